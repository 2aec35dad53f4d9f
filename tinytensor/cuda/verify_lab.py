"""Where the cases of `verify` work, and how a result is judged against the exact one.

The measure is the largest error over the largest exact number, in units of the dtype's rounding
(the distance from 1 to the next number). A sum of n terms may be off by 4 + √n units in float32.
Sums are float32 for bfloat16 too, so there a result may be off by 1 unit, and by 1 more for each
rounding to bfloat16 on the way to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, DType, bfloat16, cupy
from ..random import Draw
from .device import sim
from .groups import FAILED, GOOD, LOST, WRONG, Journal

Host = np.ndarray[Any, Any]
FLOAT32: DType = np.dtype(np.float32)
DTYPES = (FLOAT32, bfloat16)
DRAW = Draw(5, 6)


class Compared(NamedTuple):
    """A result beside the exact one. `length`: terms of its sums; `roundings`: to its dtype on the
    way; `unit`: its rounding, if not that of its dtype.
    """

    what: str
    ours: Array
    exact: Host
    length: int = 1
    roundings: int = 0
    unit: float = 0.0


def rounding(dtype: DType) -> float:
    return 2.0**-7 if dtype == bfloat16 else 2.0**-23


def judge(ours: Host, exact: Host, length: int, roundings: int, unit: float) -> tuple[float, float]:
    """(error, limit) in units of rounding; an infinite error where the two are not finite alike."""
    wide, exact = ours.astype(np.float64), np.asarray(exact, np.float64)
    if wide.shape != exact.shape:
        return math.inf, 0.0
    finite = np.isfinite(exact)
    strange = np.array_equal(wide[~finite], exact[~finite], equal_nan=True)
    if not strange or not np.isfinite(wide[finite]).all():
        return math.inf, 0.0
    if unit or ours.dtype != bfloat16:
        limit = 4 + roundings + math.sqrt(length)
    else:
        limit = 1 + roundings + math.sqrt(length) / 1024
    size = float(np.abs(exact[finite]).max(initial=0.0)) or 1.0
    error = float(np.abs(wide[finite] - exact[finite]).max(initial=0.0))
    return error / (size * (unit or rounding(ours.dtype))), limit


class Lab:
    """Where a group works: the module `xp` of the device's arrays, tiny shapes or GPT-2's."""

    def __init__(self, journal: Journal, where: str, tiny: bool) -> None:
        self.journal, self.where, self.tiny = journal, where, tiny
        self.xp: Any = sim if where == "cuda-sim" else cupy()
        self.rng = np.random.default_rng(0)

    def check(self, name: str, run: Callable[..., Iterator[Compared]], *args: Any) -> None:
        """One case: every result that `run(self, *args)` yields must be within its limit."""

        def judged() -> tuple[str, str, dict[str, Any]]:
            worst, text, state, found = -1.0, "nothing compared", WRONG, 0
            for what, ours, exact, length, roundings, unit in run(self, *args):
                error, limit = judge(self.host(ours), exact, length, roundings, unit)
                found += 1
                if error / max(limit, 1e-9) > worst:
                    worst = error / max(limit, 1e-9)
                    state = GOOD if error <= limit else WRONG
                    text = f"{what}: {error:.2f} of {limit:.2f} units"
                    numbers = {"error": min(error, 1e30), "limit": limit}
            self.wait()
            return state, text, numbers if found else {}

        self.case(name, judged)

    def case(self, name: str, run: Callable[[], tuple[str, str, dict[str, Any]]]) -> None:
        """One case that answers (state, text, numbers) by itself."""
        row = self.journal.case(name, run)
        if row is not None and row.state == FAILED:
            try:
                self.wait()
            except Exception:  # the process has lost the GPU; the parent starts another one
                raise SystemExit(LOST) from None

    def wait(self) -> None:
        """Errors of kernels that are still running belong to this case."""
        if self.where != "cuda-sim":
            self.xp.cuda.runtime.deviceSynchronize()

    def host(self, x: Array) -> Host:
        return x if isinstance(x, np.ndarray) else self.xp.asnumpy(x)

    def put(self, x: Any) -> Any:
        """A NumPy array on the device; anything else as it is."""
        return self.xp.asarray(x) if isinstance(x, np.ndarray) else x

    def normal(self, *shape: int, dtype: DType = FLOAT32, scale: float = 1.0) -> Host:
        x = self.rng.standard_normal(shape, np.float32)
        return (x * np.float32(scale) if scale != 1 else x).astype(dtype, copy=False)

    def poisoned(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """An output in which every element that is not written is seen."""
        return self.put(np.full(shape, np.nan, np.float32).astype(dtype))

    def pick(self, n: int, most: int) -> Host:
        """Some of 0, …, n - 1: the first, the last, and others between."""
        if n <= most:
            return np.arange(n)
        inner = np.sort(self.rng.choice(n - 2, most - 2, replace=False) + 1)
        return np.concatenate([[0], inner, [n - 1]])


def wide(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype in DTYPES else x


def name_of(dtype: DType) -> str:
    return "bfloat16" if dtype == bfloat16 else "float32"
