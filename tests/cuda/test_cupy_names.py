"""What is asked of CuPy is there, under that name and with those arguments, in the CuPy installed.

A function that CuPy lacks would be met on a GPU first. Importing CuPy needs none.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import tests.table as table
import tinytensor as tt
from tinytensor.cuda import capture

pytestmark = pytest.mark.cuda

PACKAGE = Path(tt.__file__).parent
PLACES = ("backend.py", "random.py", "sampling.py", "ops/*.py", "optim/*.py", "cuda/*.py")
# A module of arrays, by the names that it has in the code; then the names asked of it.
ASKED = re.compile(
    r"(?<![\w.])(?:xp|module|(?:cupy|gpu|_gpu)\(\)|array_module\([^()]*\)|(?:self|lab|bench)\.xp)"
    r"\.((?:[A-Za-z]\w*)(?:\.[A-Za-z]\w*)*)"
)


def found_in(module, name):
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def test_names_in_the_code():
    from tinytensor.backend import cupy

    names = {
        name
        for place in PLACES
        for path in PACKAGE.glob(place)
        for name in ASKED.findall(path.read_text(encoding="utf-8"))
    }
    assert {"cuda.Stream", "cuda.runtime.memGetInfo", "argsort", "RawModule"} <= names
    assert [name for name in sorted(names) if found_in(cupy(), name) is None] == []


def test_attributes_of_a_device():
    from tinytensor.backend import cupy

    runtime = cupy().cuda.runtime
    for name in ("MultiProcessorCount", "MaxSharedMemoryPerBlockOptin"):
        assert hasattr(runtime, f"cudaDevAttr{name}")  # where Device.attributes has its keys from


def run(case):
    """One case forward and backward on "cuda-sim", by references."""
    inputs = []
    for x in case.arrays(np.float32):
        tensor = None if x is None else table.tensor_of(x).detach().to("cuda-sim")
        real = tensor is not None and tensor.dtype.kind == "f"
        inputs.append(tensor.requires_grad_() if real else tensor)
    y = case.function(*inputs)
    if y.node is not None:
        y.backward(tt.ones_like(y))


def test_functions_that_references_call(monkeypatch):
    """Every call of an array function or method while the table of operations runs on a device."""
    from tinytensor.backend import cupy

    calls, made = set(), capture.made

    def noted(function, given, options):
        own = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        calls.add((type(own), getattr(own, "__name__", ""), name, len(given), tuple(options)))
        return made(function, given, options)

    monkeypatch.setattr(capture, "made", noted)
    with tt.reference_ops():
        for case in table.CASES:
            if not case.label.endswith(("weighted", "of zero", "each")):  # they hold NumPy arrays
                run(case)
    assert len(calls) > 80
    wrong = []
    for kind, of, name, given, options in calls:
        if kind is np.ufunc:
            function = getattr(cupy(), of, None)
            good = hasattr(function, name) and set(options) <= {"out", "dtype", "casting"}
        elif kind is np.ndarray:
            good = hasattr(cupy().ndarray, name)
        else:
            function = found_in(cupy(), name) or found_in(cupy().lib.stride_tricks, name)
            good = function is not None and takes(function, given, options)
        if not good:
            wrong.append((of, name, given, options))
    assert wrong == []


def takes(function, given, options):
    """Whether a function can be called so; ufuncs and functions in C do not say."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return True
    try:
        signature.bind(*[None] * given, **dict.fromkeys(options))
    except TypeError:
        return False
    return True
