"""Many arrays made into one on a device, by copies alone.

CuPy joins more than eight small arrays by a kernel that is given their addresses in an array, which
it makes on the host and copies over: nothing that a captured step could repeat. Here each array is
copied to its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ..backend import Array, array_module
from ..ops.shaping import concatenate_all, stack_all
from .operations import kernel_for

__all__ = ["MOST"]

MOST = 8  # arrays that CuPy itself copies one by one


def _joined(arrays: Sequence[Array], axis: int) -> tuple[Array, list[Any]] | None:
    """Arrays of one dtype, and of one shape but for `axis`, joined, and their places; None for
    others.
    """
    first = arrays[0]
    if any(type(x) is not type(first) or x.dtype != first.dtype for x in arrays):
        return None
    if len({(*x.shape[:axis], -1, *x.shape[axis + 1 :]) for x in arrays}) > 1:
        return None
    ends = list(accumulate(x.shape[axis] for x in arrays))
    shape = (*first.shape[:axis], ends[-1], *first.shape[axis + 1 :])
    y = array_module(first).empty(shape, first.dtype)
    before = (slice(None),) * axis
    places = [
        (*before, slice(end - x.shape[axis], end)) for x, end in zip(arrays, ends, strict=True)
    ]
    for x, place in zip(arrays, places, strict=True):
        y[place] = x
    return y, places


@kernel_for(concatenate_all)
def cuda_concatenate_all(*arrays: Array, axis: int = 0) -> Any:
    """More than `MOST` arrays, one after the other along `axis`."""
    ndim = arrays[0].ndim
    if len(arrays) <= MOST or not -ndim <= axis < ndim or any(x.ndim != ndim for x in arrays):
        return NotImplemented
    found = _joined(arrays, axis % ndim)
    if found is None:
        return NotImplemented
    y, places = found
    return y, lambda dy: tuple(dy[place] for place in places)


@kernel_for(stack_all)
def cuda_stack_all(*arrays: Array, axis: int = 0) -> Any:
    """More than `MOST` arrays of one shape along a new axis."""
    shape = arrays[0].shape
    if len(arrays) <= MOST or not -len(shape) - 1 <= axis <= len(shape):
        return NotImplemented
    at = axis % (len(shape) + 1)
    found = None
    if all(x.shape == shape for x in arrays):
        found = _joined([x.reshape((*shape[:at], 1, *shape[at:])) for x in arrays], at)
    if found is None:
        return NotImplemented
    before = (slice(None),) * at
    return found[0], lambda dy: tuple(dy[(*before, i)] for i in range(len(arrays)))
