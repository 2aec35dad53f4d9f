"""The same call under two libraries: outputs, dtypes, shapes and gradients side by side.

A call is written once, as a function of the library (`tinytensor` or `torch`) and of tensors.
Importing this module skips the tests that do where PyTorch is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinytensor as tt
from tests.table import Given

torch = pytest.importorskip("torch", reason="torch is not installed (extra: parity)")

# The dtypes that both libraries have.
FLOATING = ["float64", "float32", "float16", "bfloat16"]
DTYPES = [*FLOATING, "int64", "int32", "int16", "int8", "uint8", "bool"]


def name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def to_torch(x: np.ndarray[Any, Any]) -> Any:
    if x.dtype == tt.bfloat16:
        return torch.tensor(x.astype(np.float32)).to(torch.bfloat16)
    return torch.tensor(x)


def numbers(x: Any) -> Any:
    """The values of a tensor of either library, as a NumPy array that is wide enough."""
    x = x.detach()
    return (x.float() if name_of(x.dtype) == "bfloat16" else x).numpy()


def leaves(output: Any) -> list[Any]:
    if isinstance(output, list | tuple):
        return [leaf for part in output for leaf in leaves(part)]
    return [output]


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return type(tree)(map_tree(function, part) for part in tree)
    return function(tree)


def results(library: Any, call: Callable[..., Any], arguments: Any, seed: int) -> list[Any]:
    """`(what, value)` for each output of the call, and for the gradient of each floating array."""
    given: list[Any] = []

    def make(x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        tensor = tt.tensor(x) if library is tt else to_torch(x)
        if x.dtype.kind not in "biu":
            given.append(tensor.requires_grad_())
        return tensor

    tensors = [map_tree(make, argument) for argument in arguments]
    outputs = leaves(call(library, *tensors))
    rng = np.random.default_rng(seed)
    for y in outputs:
        if isinstance(y, library.Tensor) and y.requires_grad:
            weights = rng.integers(-3, 4, tuple(y.shape)) / 4  # exact in every dtype
            y.backward((tt.tensor if library is tt else to_torch)(weights).to(y.dtype), True)
    return [
        *((f"output {i}", y) for i, y in enumerate(outputs)),
        *((f"gradient {i}", x.grad) for i, x in enumerate(given)),
    ]


def agree(what: str, mine: Any, theirs: Any, tolerance: float) -> None:
    """AssertionError unless both are the same up to `tolerance` times the largest number."""
    if what.startswith("gradient") and (mine is None or theirs is None):
        # A gradient that is zero by construction may be missing on either side.
        there = mine if theirs is None else theirs
        assert there is None or not numbers(there).any(), what
    elif isinstance(theirs, torch.Tensor):
        assert isinstance(mine, tt.Tensor), (what, type(mine))
        assert tuple(mine.shape) == tuple(theirs.shape), what
        assert name_of(mine.dtype) == name_of(theirs.dtype), what
        values = numbers(theirs)
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        atol = tolerance * float(np.abs(finite.astype(float)).max(initial=0))
        np.testing.assert_allclose(numbers(mine), values, rtol=0, atol=atol, err_msg=what)
    elif isinstance(theirs, float):
        assert math.isclose(mine, theirs, rel_tol=tolerance), what
    elif isinstance(theirs, torch.dtype):
        assert name_of(mine) == name_of(theirs), what
    else:
        assert mine == theirs, what


def given_arrays(tree: Any, dtype: Any = np.float64, seed: int = 0) -> Any:
    """Arrays in the place of every `Given`, each from a seed of its own."""
    counter = iter(range(seed, seed + 1000))
    return map_tree(lambda x: x.array(next(counter), dtype) if isinstance(x, Given) else x, tree)


# Sums are made in other orders, and in float32 by other exponentials too.
TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}


def same(
    call: Callable[..., Any], *arguments: Any, dtypes: Any = tuple(TOLERANCE), seed: int = 0
) -> None:
    """`call(library, *arguments)` gives the same under both libraries, forward and backward."""
    for dtype in dtypes:
        arrays = given_arrays(list(arguments), dtype, seed)
        mine = results(tt, call, arrays, seed)
        theirs = results(torch, call, arrays, seed)
        assert [what for what, _ in mine] == [what for what, _ in theirs]
        for (what, a), (_, b) in zip(mine, theirs, strict=True):
            agree(what, a, b, TOLERANCE[dtype])
