"""The gradient of a view: it adds itself where the view lies, instead of filling an array of zeros.

`x.split(...)` and `x[:, :T]` are views by slices. Several of them are often taken of one array, and
their gradients are then written side by side into one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..autograd import Shape
from ..backend import Array, DType
from ..ops import shaping
from ..ops.indexing import getitem, plain_index
from .pieces import LONG
from .pool import empty
from .threads import split

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

    def joined(self, other: Any) -> SideBySide | None:
        """self + other, if both are parts that differ in one axis."""
        return SideBySide.of([self, other]) if type(other) is PartGradient else None


class SideBySide:
    """The sum of parts along one axis that do not overlap: q, k and v of one array, say.

    Parts that fill the whole are written once each, instead of being added to zeros.
    """

    __slots__ = ("axis", "dtype", "parts", "shape", "spans")

    def __init__(self, parts: list[PartGradient], axis: int, spans: list[tuple[int, int]]) -> None:
        self.parts, self.axis, self.spans = parts, axis, spans
        self.shape, self.dtype = parts[0].shape, parts[0].dtype

    @classmethod
    def of(cls, parts: list[PartGradient]) -> SideBySide | None:
        """None if the parts are not of this kind."""
        cuts: list[tuple[int, int, int]] = []
        for part in parts:
            cut = _only_cut(part.index, part.shape)
            if cut is None or (cuts and cut[0] != cuts[0][0]):
                return None
            cuts.append(cut)
        spans = [(start, stop) for _, start, stop in cuts]
        ordered = sorted(spans)
        if any(before[1] > after[0] for before, after in itertools.pairwise(ordered)):
            return None
        return cls(parts, cuts[0][0], spans)

    def joined(self, other: Any) -> SideBySide | None:
        """self + other, if that is of this kind too."""
        return SideBySide.of([*self.parts, other]) if type(other) is PartGradient else None

    def write_to(self, buffer: Array) -> None:
        """buffer = gradient"""
        if sum(stop - start for start, stop in self.spans) < self.shape[self.axis]:
            buffer[...] = 0

        def write(first: int, last: int) -> None:
            for part in self.parts:
                buffer[part.index][first:last] = part.dy[first:last]

        rows = self.shape[0]
        if self.axis == 0:
            write(0, rows)  # each part is cut from these already, and ends where it ends
        else:
            split(rows, -(-LONG * rows // max(1, buffer.size)), write)

    def add_to(self, buffer: Array) -> None:
        """buffer += gradient"""
        for part in self.parts:
            part.add_to(buffer)

    def dense(self) -> Array:
        """The gradient as an array of its own."""
        out = empty(self.shape, self.dtype)
        self.write_to(out)
        return out


def _only_cut(index: Any, shape: Shape) -> tuple[int, int, int] | None:
    """(axis, start, stop) if the index takes everything but a stretch of one axis."""
    cuts = []
    for axis, part in enumerate(index if type(index) is tuple else (index,)):
        if type(part) is not slice or part.step not in (None, 1):
            return None
        if part != slice(None):
            cuts.append((axis, *part.indices(shape[axis])[:2]))
    return cuts[0] if len(cuts) == 1 else None


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


@shaping.split.register(np.ndarray)
def fast_split(x: Array, indices: Sequence[int] = (), axis: int = 0) -> Any:
    """Views, whose gradients are written side by side."""
    pieces, _ = shaping.split.reference(x, indices, axis)
    axis, shape = axis % x.ndim, x.shape
    spans = list(itertools.pairwise((0, *indices, shape[axis])))

    def vjp(*dys: Array) -> SideBySide:
        given = [(dy, span) for dy, span in zip(dys, spans, strict=True) if dy is not None]
        before = (slice(None),) * axis
        parts = [PartGradient((*before, slice(*span)), dy, shape) for dy, span in given]
        return SideBySide(parts, axis, [span for _, span in given])

    return pieces, vjp
