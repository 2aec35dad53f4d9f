"""Layer norm over the last axis, in pieces of rows that stay in cache.

Row sums are products with a vector of ones or dot products of rows with themselves; NumPy's own
reductions over a short last axis are several times slower.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..autograd import Shape, state
from ..backend import Array, DType, silent
from ..ops.network import add_layer_norm, layer_norm
from .linear import FLOATS, column_sums
from .one_row import layer_norm_row
from .pieces import in_pieces
from .pool import empty
from .recipes import leave_recipe
from .threads import small_products

WIDEST = 1 << 15  # numbers in a row
# Numbers in an output that is made again instead of kept: two passes are soon paid for.
LARGE = 1 << 19


@layer_norm.register(np.ndarray)
@silent
def fast_layer_norm(x: Array, weight: Array, bias: Array, ndim: int = 1, eps: float = 1e-5) -> Any:
    """y = n · weight + bias with n = (x - mean) · rstd; n and rstd are kept, a large y is not."""
    if ndim != 1 or not _takes(x, weight, bias):
        return NotImplemented
    shape, channels = x.shape, x.shape[-1]
    if x.size == channels and not state.recording:
        return layer_norm_row(x, weight, bias, eps), None
    n, rstd, y = _normalized(x.reshape(-1, channels), None, None, weight, bias, eps)

    def vjp(dy: Array) -> tuple[Array, Array, Array]:
        return _gradients(dy.reshape(-1, channels), None, n, rstd, weight, bias, shape)

    return _remembered(y.reshape(shape), n, weight, bias), vjp


@add_layer_norm.register(np.ndarray)
@silent
def fast_add_layer_norm(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float = 1e-5
) -> Any:
    """The sum is normalised piece by piece while it is in cache, and so are gradients added."""
    if (
        type(residual) is not np.ndarray
        or residual.shape != x.shape
        or residual.dtype != x.dtype
        or not _takes(x, weight, bias)
    ):
        return NotImplemented
    shape, channels = x.shape, x.shape[-1]
    if x.size == channels and not state.recording:
        total = x + residual
        return (total, layer_norm_row(total, weight, bias, eps)), None
    total = empty((x.size // channels, channels), x.dtype)
    n, rstd, y = _normalized(
        x.reshape(total.shape), residual.reshape(total.shape), total, weight, bias, eps
    )

    def vjp(dsum: Array, dnormed: Array) -> tuple[Array, ...]:
        if dnormed is None:
            return dsum, dsum, None, None
        dsum = None if dsum is None else dsum.reshape(-1, channels)
        dnormed = dnormed.reshape(-1, channels)
        dx, dweight, dbias = _gradients(dnormed, dsum, n, rstd, weight, bias, shape)
        return dx, dx, dweight, dbias

    return (total.reshape(shape), _remembered(y.reshape(shape), n, weight, bias)), vjp


def _takes(x: Array, weight: Array, bias: Array) -> bool:
    """Whether these are of a dtype and a shape for the functions below."""
    return (
        x.ndim > 0
        and x.dtype in FLOATS
        and 0 < x.shape[-1] <= WIDEST
        and x.size > 0
        and _fits(weight, x)
        and _fits(bias, x)
    )


def _normalized(
    rows: Array, residual: Array, total: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array]:
    """(n, rstd, y) of rows (N, C); or of rows + `residual`, which is written to `total`."""
    channels, dtype = rows.shape[1], rows.dtype
    mean_of = _shares(channels, dtype)  # row @ mean_of is the row's mean
    epsilon, root = np.array(channels * eps, dtype), np.array(channels**0.5, dtype)
    n = empty(rows.shape, dtype)
    rstd = np.empty(len(rows), dtype)
    scaled = weight is not None or bias is not None
    y = empty(rows.shape, dtype) if scaled else n

    def forward(start: int, stop: int) -> None:
        part = slice(start, stop)
        source, piece, r = rows[part], n[part], rstd[part]
        if residual is not None:
            source = np.add(source, residual[part], out=total[part])
        np.subtract(source, (source @ mean_of)[:, None], out=piece)
        np.vecdot(piece, piece, out=r)  # r = √C / √(Σ piece² + C eps)
        np.add(r, epsilon, out=r)
        np.sqrt(r, out=r)
        np.divide(root, r, out=r)
        np.multiply(piece, r[:, None], out=piece)
        if scaled:
            _scale_and_shift(piece, weight, bias, y[part])

    with small_products():
        in_pieces(len(rows), channels, forward)
    return n, rstd, y


def _remembered(y: Array, n: Array, weight: Array, bias: Array) -> Array:
    """y; a large one with a recipe, so that nobody needs to keep it."""
    scaled = weight is not None or bias is not None
    if scaled and y.size >= LARGE and state.recording:
        shape = y.shape
        leave_recipe(y, lambda: _output(n, weight, bias).reshape(shape))
    return y


def _output(n: Array, weight: Array, bias: Array) -> Array:
    """y = n · weight + bias, a second time."""
    y = empty(n.shape, n.dtype)

    def work(start: int, stop: int) -> None:
        _scale_and_shift(n[start:stop], weight, bias, y[start:stop])

    in_pieces(len(n), n.shape[1], work)
    return y


def _scale_and_shift(n: Array, weight: Array, bias: Array, y: Array) -> None:
    if weight is not None:
        np.multiply(n, weight, out=y)
    if bias is not None:
        np.add(n if weight is None else y, bias, out=y)


def _gradients(
    dy: Array, past: Array, n: Array, rstd: Array, weight: Array, bias: Array, shape: Shape
) -> tuple[Array, Array, Array]:
    """dx in the given shape, dweight, dbias; for dy and n of (rows, C).

    dx = rstd · (dy · weight - Σ dy · share - n · Σ dy · n · share) with share = weight / C, plus
    the gradient `past` (rows, C) that goes by the norm, or None; dweight = Σ dy · n over the rows,
    dbias = Σ dy.
    """
    count, channels = n.shape
    dtype = n.dtype
    dx = empty(n.shape, dtype)
    share = _shares(channels, dtype)
    if weight is not None:
        share = weight * share
    sums: dict[int, tuple[Array, Array]] = {}  # by the first row: the order of adding

    def backward(start: int, stop: int) -> None:
        part = slice(start, stop)
        given, piece, out = dy[part], n[part], dx[part]
        product = np.multiply(given, piece, out=empty(piece.shape, dtype))
        sums[start] = (
            None if weight is None else column_sums(product),
            None if bias is None else column_sums(given),
        )
        np.multiply(piece, (product @ share)[:, None], out=product)
        if weight is None:
            np.subtract(given, product, out=out)
        else:
            np.multiply(given, weight, out=out)
            np.subtract(out, product, out=out)
        np.subtract(out, (given @ share)[:, None], out=out)
        np.multiply(out, rstd[part, None], out=out)
        if past is not None:
            np.add(past[part], out, out=out)

    with small_products():
        in_pieces(count, channels, backward)
    dweight, dbias = (
        None if parts[0] is None else sum(parts[1:], parts[0])
        for parts in zip(*(sums[start] for start in sorted(sums)), strict=True)
    )
    return dx.reshape(shape), dweight, dbias


def _fits(parameter: Array, x: Array) -> bool:
    return parameter is None or (parameter.dtype == x.dtype and parameter.shape == x.shape[-1:])


@functools.lru_cache(maxsize=64)
def _shares(channels: int, dtype: DType) -> Array:
    return np.full(channels, 1 / channels, dtype)
