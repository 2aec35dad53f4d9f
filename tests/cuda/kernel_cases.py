"""What the tests of kernels share: random arrays, plans, which kernels ran. See `bounds.py`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from tinytensor.backend import bfloat16
from tinytensor.cuda import simulator
from tinytensor.cuda.rows import Plan

FLOAT32 = np.dtype(np.float32)

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


def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that the simulator runs from now on, in order."""
    names, launch = [], simulator.launch

    def noted(source, name, grid, *rest, **options):
        names.append(name)
        launch(source, name, grid, *rest, **options)

    monkeypatch.setattr(simulator, "launch", noted)
    return names


def wide(x: np.ndarray | None) -> np.ndarray | None:
    return None if x is None else x.astype(np.float64)
