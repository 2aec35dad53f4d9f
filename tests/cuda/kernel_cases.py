"""What the tests of kernels share: random arrays, plans, tolerances from dtype and length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from tinytensor.backend import bfloat16
from tinytensor.cuda.rows import Plan

FLOAT32 = np.dtype(np.float32)
EPSILON = {FLOAT32: 2.0**-23, bfloat16: 2.0**-7}

# Around a piece of 16 bytes, a warp's row, two warps' row; and widths that no plan below can hold.
widths = st.sampled_from([1, 2, 3, 4, 7, 8, 16, 31, 64, 127, 128, 129, 256, 257, 512])
counts = st.sampled_from([0, 1, 2, 3, 5, 9, 13])
sizes = st.sampled_from([0, 1, 2, 7, 8, 9, 31, 64, 255, 257, 1031, 2048])
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=8, deadline=None)

# Dtype, threads a row (a warp, or a block), and whether the row is held in registers.
PLANS = [
    pytest.param(FLOAT32, 32, True, id="float-warp"),
    pytest.param(bfloat16, 64, True, id="bf16-block"),
    pytest.param(FLOAT32, 64, False, id="float-wide"),
    pytest.param(bfloat16, 32, False, id="bf16-wide"),
]
BOTH = pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=["float", "bf16"])


def plan_for(team: int, held: bool, columns: int, dtype: np.dtype) -> Plan:
    """The smaller of two plans that holds the row (few variants to compile), or one for none."""
    if not held:
        return Plan(team, 0)
    pieces = -(-columns * dtype.itemsize // 16)
    return Plan(team, next((each for each in (1, 4) if pieces <= team * each), 0))


def normal(seed: int, *shape: int, dtype: np.dtype = FLOAT32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def wide(x: np.ndarray | None) -> np.ndarray | None:
    return None if x is None else x.astype(np.float64)


def close(ours: np.ndarray, exact: np.ndarray, length: int = 1, scale: float | None = None) -> None:
    """`ours` is `exact` up to its own rounding, and that of float32 sums of `length` terms of size
    `scale` (the largest of the result, unless given): √length roundings, with a margin of eight.
    """
    exact = np.asarray(exact, np.float64)
    assert ours.shape == exact.shape
    got = ours.astype(np.float64)
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(got[~finite], exact[~finite])
    if not finite.any():
        return
    size = max(float(np.abs(exact[finite]).max()), scale or 0.0)
    sums = 8 * EPSILON[FLOAT32] * max(1, length) ** 0.5 * size
    error = np.abs(got - np.where(finite, exact, 0))[finite]
    assert (error <= sums + EPSILON[ours.dtype] * np.abs(exact[finite])).all(), error.max()
