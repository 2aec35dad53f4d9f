"""How many threads work on a row, and how much of it each holds: what `kernels/rows.cuh` is told.

Also what every launcher asks: which dtypes the kernels have, and whether 16 bytes move at once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, DType, array_module, bfloat16
from .kernels import Defines
from .tiles import limits
from .views import is_aligned

FLOAT32: DType = np.dtype(np.float32)
DTYPES = (FLOAT32, bfloat16)

WARP, MOST_THREADS = 32, 512
# Numbers of one row that a thread may hold: a thread of a small block has 255 registers, of a large
# one 128, and layer norm's backward pass holds four times as many.
HELD_BY_WARP, HELD_BY_BLOCK = 32, 16


class Plan(NamedTuple):
    """`team` threads a row (a warp or a block), `each` pieces of 16 bytes a thread; 0: not held."""

    team: int
    each: int

    def blocks(self, rows: int) -> int:
        """Blocks that `rows` rows take."""
        return -(-rows // self.rows_of_block)

    @property
    def rows_of_block(self) -> int:
        return self.threads // self.team

    @property
    def threads(self) -> int:
        return 128 if self.team == WARP else self.team


def choose(columns: int, dtype: DType) -> Plan:
    """The fewest threads that can hold a row of `columns`."""
    pieces = -(-columns * dtype.itemsize // 16)
    by_warp, by_block = (held * dtype.itemsize // 16 for held in (HELD_BY_WARP, HELD_BY_BLOCK))
    if pieces <= WARP * by_warp:
        return Plan(WARP, max(1, -(-pieces // WARP)))
    if pieces > MOST_THREADS * by_block:
        return Plan(MOST_THREADS, 0)
    team = -(-pieces // by_block)
    team = max(2 * WARP, 1 << (team - 1).bit_length())  # few variants to compile
    return Plan(team, -(-pieces // team))


def element(dtype: DType) -> str:
    """The C++ name of a dtype that the kernels have."""
    return "float" if dtype == FLOAT32 else "bf16"


def variant(plan: Plan, columns: int, *arrays: Array, **more: Any) -> Defines:
    """The macros of a kernel over rows of `columns` in `arrays`, of which the first says `real`."""
    present = [a for a in arrays if a is not None]
    row = columns * present[0].itemsize
    aligned = row % 16 == 0 and all(is_aligned(a) for a in present)
    return (
        ("real", element(present[0].dtype)),
        ("TEAM", plan.team),
        ("EACH", plan.each),
        ("ALIGNED", int(aligned)),
        *more.items(),
    )


def staged(plan: Plan, columns: int, *arrays: Array) -> tuple[Defines, int]:
    """The macro and the bytes of shared memory with which a kernel reads rows of `arrays` once that
    are too wide for registers; none where they fit there, or not even into shared memory.
    """
    pieces = plan.rows_of_block * sum(-(-columns * array.itemsize // 16) for array in arrays)
    room = limits(array_module(arrays[0])).shared_bytes - 1024  # 1 KB for what a kernel declares
    if plan.each or 16 * pieces > room:
        return (), 0
    return (("STAGED", 1),), 16 * pieces


def flat_variant(*arrays: Array, **more: Any) -> Defines:
    """The macros of a kernel over contiguous numbers."""
    present = [a for a in arrays if a is not None]
    aligned = all(is_aligned(a) for a in present)
    return (("real", element(present[0].dtype)), ("ALIGNED", int(aligned)), *more.items())


def contiguous(x: Array) -> Array:
    """`x`, or a copy in row-major order if it lies otherwise."""
    return x if x.flags.c_contiguous else array_module(x).ascontiguousarray(x)


def count_of(x: Array) -> int:
    return math.prod(x.shape)


def processors(xp: Any) -> int:
    """Multiprocessors of the current device."""
    return 4 if xp is np else limits(xp).processors
