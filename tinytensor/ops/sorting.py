"""Orders: where elements would go if they were sorted. nan counts as the largest number.

These are integers and have no gradient; sorted *values* are taken along them, and those have one
(`functions.sort` and `functions.topk`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array, array_module, bfloat16
from ..tensor import op
from .elementwise import bottom

__all__ = ["argsort", "argtopk"]


@op
def argsort(x: Array, axis: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """The indices that sort x along `axis`; with `stable`, equal elements keep their order."""
    x, axis = _comparable("argsort", x, axis)
    if x.ndim == 0:
        return array_module(x).zeros((), np.int64), None
    return _argsort(x, axis, descending, stable), None


@op
def argtopk(x: Array, k: int = 1, axis: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """Where the k largest (or smallest) elements along `axis` are, in order if `sorted`.

    Costs O(n + k log k): the k are split off from the others first. ValueError if there are fewer
    than k elements.
    """
    x, axis = _comparable("argtopk", x, axis)
    return _argtopk(x, k, axis, largest, sorted), None


def _argtopk(x: Array, k: int, axis: int, largest: bool, sorted: bool) -> Array:
    xp = array_module(x)
    n = x.shape[axis] if x.ndim else 1
    if not 0 <= k <= n:
        raise ValueError(f"argtopk: k is {k} but axis {axis} has {n} elements")
    if x.ndim == 0:
        return xp.zeros((), np.int64)
    before = (slice(None),) * axis
    if k in (0, n):
        return _argsort(x, axis, largest)[(*before, slice(k))]
    split = xp.argpartition(x, n - k if largest else k - 1, axis=axis)
    chosen = split[(*before, slice(n - k, None) if largest else slice(k))]
    if sorted:
        order = _argsort(xp.take_along_axis(x, chosen, axis), axis, largest)
        chosen = xp.take_along_axis(chosen, order, axis)
    return chosen


def _comparable(name: str, x: Array, axis: int) -> tuple[Array, int]:
    """x as an array that NumPy can sort, and the axis counted from the front."""
    x = bottom(x)
    if not hasattr(axis, "__index__"):
        raise TypeError(f"{name}: an axis is an integer, not {axis!r}")
    if not -max(1, x.ndim) <= axis < max(1, x.ndim):
        raise IndexError(f"{name}: axis {axis} does not exist in shape {tuple(x.shape)}")
    if x.dtype == bfloat16:
        x = x.astype(np.float32)
    return x, axis % x.ndim if x.ndim else 0


def _argsort(x: Array, axis: int, descending: bool, stable: bool = False) -> Array:
    xp = array_module(x)
    kind = "stable" if stable else None
    if not descending:
        return xp.argsort(x, axis=axis, kind=kind)
    # Sorted backwards from the other end, so that equal elements keep their order.
    order = xp.argsort(xp.flip(x, axis), axis=axis, kind=kind)
    return x.shape[axis] - 1 - xp.flip(order, axis)
