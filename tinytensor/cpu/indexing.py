"""The gradient of a view: it adds itself where the view lies, instead of filling an array of zeros.

`x.split(...)` and `x[:, :T]` are views by slices. Several of them are often taken of one array, and
their gradients are then written side by side into one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Shape
from ..backend import Array, DType
from ..ops.indexing import getitem, plain_index
from .pool import empty

SIMPLE = (slice, int, type(None), type(Ellipsis))


class PartGradient:
    """A gradient of `shape`: dy at `index`, which names no element twice, and 0 elsewhere."""

    __slots__ = ("dtype", "dy", "index", "shape")

    def __init__(self, index: Any, dy: Array, shape: Shape) -> None:
        self.index, self.dy, self.shape = index, dy, shape
        self.dtype: DType = dy.dtype

    def write_to(self, buffer: Array) -> None:
        """buffer = gradient"""
        if self.dy.size != buffer.size:
            buffer[...] = 0
        buffer[self.index] = self.dy

    def add_to(self, buffer: Array) -> None:
        """buffer += gradient"""
        part = buffer[self.index]
        np.add(part, self.dy, out=part)

    def dense(self) -> Array:
        """The gradient as an array of its own."""
        out = empty(self.shape, self.dtype)
        self.write_to(out)
        return out


@getitem.register(np.ndarray)
def fast_getitem(x: Array, index: Any = ()) -> Any:
    """By slices, integers, None and Ellipsis only: the result is a view."""
    index = plain_index(index, x)
    for part in index if type(index) is tuple else (index,):
        if type(part) not in SIMPLE:
            return NotImplemented
    try:
        y = x[index]
    except IndexError:
        return NotImplemented
    if type(y) is not np.ndarray:  # an integer for every axis
        return NotImplemented
    shape = x.shape
    return y, lambda dy: PartGradient(index, dy, shape)
