"""How kernels see arrays: a strided view as the flat stretch of memory that it touches, and
strides.

`launch` takes contiguous arrays. A kernel that is told the strides can read a transposed matrix, or
the queries inside a joint projection of queries, keys and values, where they lie: it gets
`window(view)`, which begins at the view's first element and ends after its last.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import Array, array_module


def window(view: Array) -> Array:
    """The memory from the first element of `view` to its last, as one axis. Nothing is copied."""
    if 0 in view.shape or view.flags.c_contiguous:
        return view.reshape(-1)
    steps = strides(view)
    span = 1 + sum((n - 1) * step for n, step in zip(view.shape, steps, strict=True))
    xp: Any = array_module(view)
    return xp.lib.stride_tricks.as_strided(view, (span,), (view.itemsize,))


def strides(view: Array) -> tuple[int, ...]:
    """Strides in elements; those of axes of length one are 0, whatever NumPy calls them."""
    return tuple(
        0 if n <= 1 else step // view.itemsize
        for n, step in zip(view.shape, view.strides, strict=True)
    )


def forward_strided(view: Array) -> bool:
    """Whether no stride is negative, so that `window` can describe the view."""
    return all(step >= 0 for step in strides(view))


def is_aligned(view: Array, steps: tuple[int, ...] = (), elements: int = 0) -> bool:
    """Whether `view` begins at a multiple of 16 bytes, or of so many `elements`, and so does each
    of its steps (in elements).
    """
    address = view.ctypes.data if isinstance(view, np.ndarray) else view.data.ptr
    unit = elements * view.itemsize or 16
    return math.gcd(address, *(step * view.itemsize for step in steps)) % unit == 0


def orientation(x: Array) -> tuple[bool, int]:
    """Whether the last two axes lie the other way round, and the step from row to row of memory."""
    rows, columns = x.shape[-2:]
    down, across = strides(x)[-2:]
    if columns > 1 and across != 1:
        return True, across
    if columns == 1 and rows > 1 and down == 1:
        return True, 0
    return False, down
