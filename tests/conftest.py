"""What every test shares: one BLAS thread, repeatable numbers, reasons for skips.

A test that needs more than NumPy carries a marker (`pytest --markers` lists them). Where the needed
thing is absent the test is skipped, and the reason names what to install.
"""

from __future__ import annotations

import os

# The suite runs as one process per core (`pytest -n auto`). BLAS reads these once, when it is first
# loaded, so they stand before everything that imports NumPy; a value set by the caller wins.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# Pictures are written to files; no test opens a window.
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib.util
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import hypothesis
import pytest

import tinytensor as tt

# `ci` draws the same examples every time, so that a failure is the change's and not the day's.
# `nightly` (pytest --hypothesis-profile=nightly) goes looking for new ones.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile(
    "nightly", derandomize=False, deadline=None, max_examples=2000, print_blob=True
)
hypothesis.settings.load_profile("ci")


class EngineRandom:
    """The engine's own random numbers, as hypothesis wants to see them: it seeds each example."""

    seed = staticmethod(tt.manual_seed)
    getstate = staticmethod(tt.get_rng_state)
    setstate = staticmethod(tt.set_rng_state)


engine_random = EngineRandom()  # hypothesis holds it by a weak reference only
hypothesis.register_random(engine_random)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers, whatever ran before it in its process."""
    tt.manual_seed(0)


# ---- skips ----


def _missing_module(name: str, extra: str) -> str | None:
    if importlib.util.find_spec(name) is not None:
        return None
    return f"{name} is not installed (pip install -e '.[{extra}]')"


def _missing_torch() -> str | None:
    return _missing_module("torch", "parity")


def _missing_cupy() -> str | None:
    return _missing_module("cupy", "cuda12")


def _missing_gpu() -> str | None:
    if reason := _missing_cupy():
        return reason
    import cupy

    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no driver, a driver too old, no device: each has its own class
        return f"CuPy finds no GPU: {error}"
    return None if devices else "CuPy finds no GPU"


def _missing_mpi() -> str | None:
    if reason := _missing_module("mpi4py", "mpi"):
        return reason
    # The mpich wheel puts mpiexec beside the interpreter, which need not be on PATH.
    beside_python = str(Path(sys.executable).parent)
    if shutil.which("mpiexec") or shutil.which("mpiexec", path=beside_python):
        return None
    return "mpiexec is not installed (pip install -e '.[mpi]')"


def _missing_compiler() -> str | None:
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if any(shutil.which(name) for name in candidates if name):
        return None
    return "no C++ compiler (g++, clang++, c++ or the one that CXX names)"


REQUIREMENTS: dict[str, Callable[[], str | None]] = {
    "parity": cache(_missing_torch),
    "cuda": cache(_missing_cupy),
    "gpu": cache(_missing_gpu),
    "mpi": cache(_missing_mpi),
    "compiler": cache(_missing_compiler),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker, missing in REQUIREMENTS.items():
            if item.get_closest_marker(marker) and (reason := missing()):
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("nightly") and not config.getoption("--nightly"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --nightly"))
