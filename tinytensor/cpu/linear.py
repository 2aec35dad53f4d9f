"""Matrix products whose results land where they are needed, and gradients of table rows.

`linear` writes into pooled arrays; its weight gradient is an object that multiplies itself into the
parameter's gradient buffer. An embedding's gradient is one small product over the distinct ids.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..autograd import Shape
from ..backend import Array, DType, silent
from ..ops.linalg import linear
from ..ops.network import check_range, embedding
from .pool import empty
from .recipes import Recipe, recipe_of
from .threads import later, single_threaded_blas, split, workers

# Multiplications in a product that takes another thread longer than it takes to wake it: a sixth of
# a millisecond at some 50 · 10⁹ a second.
WORTH_A_THREAD = 1 << 23
# Multiplications in a weight's gradient that all threads compute together. A smaller one is queued
# beside the walk, which keeps its operands in memory meanwhile.
WORTH_ALL_THREADS = 1 << 29
# Products up to this size OpenBLAS does on one thread by itself.
TOO_SMALL_FOR_BLAS_THREADS = 1 << 18
# Rows of a product that BLAS is given at a time: it copies as many of them as fit its buffer, whose
# pages (some 25 MB for each thread) are then never given back.
PACKED = 1 << 12
# Numbers in a matrix of zeros and ones that adds up equal ids, and in one for every row of a table.
FEW_EQUAL, FEW_ROWS = 1 << 21, 1 << 16
SHARED_BY_BLAS = 1 << 18  # numbers in a matrix whose product with a vector OpenBLAS may share out
ADDED = 1 << 20  # numbers of a product that is added to another array, at a time
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class ProductGradient:
    """The gradient aᵀ b of a weight, for a (N, out) and b (N, in), multiplied where it is
    wanted.
    """

    __slots__ = ("a", "b", "dtype", "shape")

    def __init__(self, a: Array, b: Array) -> None:
        self.a, self.b = a, b
        self.shape: Shape = (a.shape[1], b.shape[1])
        self.dtype: DType = a.dtype

    def write_to(self, buffer: Array) -> None:
        """buffer = gradient, by the time that the backward walk returns."""
        if self._size() >= WORTH_ALL_THREADS:
            product(self.a.T, self.b, out=buffer)
        elif self._size() < WORTH_A_THREAD:
            self._multiply(buffer)
        else:
            later(lambda: self._multiply(buffer))

    def add_to(self, buffer: Array) -> None:
        """buffer += gradient, by the time that the backward walk returns."""
        if self._size() >= WORTH_ALL_THREADS:
            add_product(buffer, self.a.T, self.b)
        elif self._size() < WORTH_A_THREAD:
            np.add(buffer, self.dense(), out=buffer)
        else:
            later(lambda: self._add(buffer))

    def dense(self) -> Array:
        """The gradient as an array of its own."""
        return product(self.a.T, self.b)

    def _multiply(self, out: Array) -> Array:
        return np.matmul(self.a.T, self.b, out=out)

    def _add(self, out: Array) -> Array:
        return np.add(out, self._multiply(empty(self.shape, self.dtype)), out=out)

    def _size(self) -> int:
        return int(self.a.size) * self.shape[1]


@linear.register(np.ndarray)
@silent
def fast_linear(x: Array, weight: Array, bias: Array) -> Any:
    """y = x Wᵀ + b with the leading axes of x as one axis of rows."""
    dtype = x.dtype
    if not (
        type(weight) is np.ndarray
        and dtype is weight.dtype
        and dtype in FLOATS
        and x.ndim > 1
        and weight.ndim == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == dtype))
    ):
        return NotImplemented
    shape = x.shape
    features, inputs = weight.shape
    rows = x.reshape(-1, inputs)
    y = product(rows, weight.T, bias)

    def dx(dy: Array) -> Array:
        return product(dy.reshape(-1, features), weight).reshape(shape)

    dweight = _weight_gradient(rows, recipe_of(x))
    dbias = None
    if bias is not None:

        def dbias(dy: Array) -> Array:
            return column_sums(dy.reshape(-1, features))

    return y.reshape((*shape[:-1], features)), (dx, dweight, dbias)


def _weight_gradient(rows: Array, recipe: Recipe | None) -> Callable[[Array], ProductGradient]:
    """The VJP dyᵀ x of a weight, with `rows` (N, in) of x kept, or made again by the recipe."""
    if recipe is None:
        return lambda dy: ProductGradient(dy.reshape(-1, dy.shape[-1]), rows)
    shape = rows.shape
    return lambda dy: ProductGradient(dy.reshape(-1, dy.shape[-1]), recipe().reshape(shape))


def product(a: Array, b: Array, bias: Array = None, out: Array = None) -> Array:
    """a b + bias, into `out` or a new array.

    The threads' pieces are of the longer side of the result, because BLAS packs the whole of the
    other matrix for each piece.
    """
    (m, k), n = a.shape, b.shape[1]
    size = m * n * k
    if m == 1 or size <= TOO_SMALL_FOR_BLAS_THREADS:
        out = np.matmul(a, b, out=out)
        return out if bias is None else np.add(out, bias, out=out)
    if out is None:
        out = empty((m, n), a.dtype)
    if size < WORTH_A_THREAD:
        if workers.resting:
            start = time.perf_counter()
            np.matmul(a, b, out=out)
            workers.note_product(time.perf_counter() - start)
        else:
            with single_threaded_blas:
                np.matmul(a, b, out=out)
            workers.note_product(0.0)
        return out if bias is None else np.add(out, bias, out=out)

    def rows(start: int, stop: int) -> None:
        for i in range(start, stop, PACKED):
            piece = out[i : min(i + PACKED, stop)]
            np.matmul(a[i : i + len(piece)], b, out=piece)
            if bias is not None:
                np.add(piece, bias, out=piece)

    def columns(start: int, stop: int) -> None:
        piece = out[:, start:stop]
        np.matmul(a, b[:, start:stop], out=piece)
        if bias is not None:
            np.add(piece, bias[start:stop], out=piece)

    with single_threaded_blas:
        if m >= n:
            split(m, max(1, WORTH_A_THREAD // (k * n)), rows)
        else:
            split(n, max(1, WORTH_A_THREAD // (m * k)), columns)
    return out


def add_product(total: Array, a: Array, b: Array) -> None:
    """total += a b, a few rows at a time: the product is never whole."""
    step = max(1, ADDED // total.shape[1])

    def work(start: int, stop: int) -> None:
        scratch = empty((min(step, stop - start), total.shape[1]), total.dtype)
        for i in range(start, stop, step):
            part = total[i : min(i + step, stop)]
            np.add(part, np.matmul(a[i : i + len(part)], b, out=scratch[: len(part)]), out=part)

    with single_threaded_blas:
        split(len(total), max(1, WORTH_A_THREAD // b.size), work)


def column_sums(x: Array) -> Array:
    """Σ over rows, as the product of a row of ones with x (N, C): BLAS adds faster than np.sum
    does. On one thread, if it could be several: the bits would tell how many there were.
    """
    with single_threaded_blas if x.size > SHARED_BY_BLAS else nullcontext():
        return ones(len(x), x.dtype) @ x


@functools.lru_cache(maxsize=64)
def ones(length: int, dtype: DType) -> Array:
    return np.ones(length, dtype)


class RowsGradient:
    """The gradient of a table whose rows `ids` were looked up: dy (N, C) added to those rows.

    For a small table they are the product of a (rows, N) matrix of zeros and ones with dy. For a
    large one equal ids are summed first, by such a product or by sorting, and each distinct row is
    then written once.
    """

    __slots__ = ("dtype", "dy", "ids", "shape")

    def __init__(self, ids: Array, dy: Array, shape: Shape) -> None:
        self.ids, self.dy, self.shape = ids, dy, shape
        self.dtype: DType = dy.dtype

    def _summed(self) -> tuple[Array, Array]:
        if len(self.ids) == 1:
            return self.ids, self.dy
        distinct, which = np.unique(self.ids, return_inverse=True)
        if len(distinct) == len(self.ids):
            return self.ids, self.dy
        if len(distinct) * len(self.ids) <= FEW_EQUAL:
            return distinct, product(self._chosen(len(distinct), which), self.dy)
        order = np.argsort(which, kind="stable")
        starts = np.searchsorted(which[order], np.arange(len(distinct)))
        return distinct, np.add.reduceat(self.dy[order], starts, axis=0)

    def _chosen(self, rows: int, ids: Array) -> Array:
        """(rows, N): 1 where a row is the one of an id."""
        chosen = empty((rows, len(ids)), self.dtype)
        chosen[...] = 0
        chosen[ids, np.arange(len(ids))] = 1
        return chosen

    def write_to(self, buffer: Array) -> None:
        rows, count = len(buffer), len(self.ids)
        if rows <= count and rows * count <= FEW_ROWS:
            product(self._chosen(rows, self.ids), self.dy, out=buffer)
            return
        buffer[...] = 0
        if count:
            ids, sums = self._summed()
            buffer[ids] = sums

    def add_to(self, buffer: Array) -> None:
        if len(self.ids):
            ids, rows = self._summed()
            buffer[ids] += rows

    def dense(self) -> Array:
        out = empty(self.shape, self.dtype)
        self.write_to(out)
        return out


@embedding.register(np.ndarray)
def fast_embedding(weight: Array, ids: Array, padding_idx: int | None = None) -> Any:
    """Rows of a table, gathered by `np.take`; the gradient is a RowsGradient."""
    if type(ids) is not np.ndarray or weight.ndim != 2 or ids.dtype.kind not in "iu":
        return NotImplemented
    if weight.dtype not in FLOATS or padding_idx is not None:
        return NotImplemented
    shape = weight.shape
    check_range("embedding", "id", ids, shape[0], "rows in the table")
    y = empty((*ids.shape, shape[1]), weight.dtype)
    np.take(weight, ids, axis=0, out=y, mode="clip")  # in range already; "raise" would buffer `out`

    def dweight(dy: Array) -> RowsGradient:
        return RowsGradient(ids.reshape(-1), dy.reshape(-1, shape[1]), shape)

    return y, (dweight, None)


def is_float_matrix(x: Any) -> bool:
    """Whether x is a float32 or float64 NumPy array of at least one axis."""
    return type(x) is np.ndarray and x.dtype in FLOATS and x.ndim > 0
