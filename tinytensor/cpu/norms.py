"""Layer norm over the last axis, in pieces of rows that stay in cache.

Row sums are products with a vector of ones or dot products of rows with themselves; NumPy's own
reductions over a short last axis are several times slower.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..backend import Array, DType
from ..ops.network import layer_norm
from .linear import FLOATS, column_sums
from .pool import empty
from .threads import split

PIECE = 1 << 15  # numbers in a piece: 128 KB of float32
LONG = 1 << 17  # numbers that take another thread longer than it takes to wake it


@layer_norm.register(np.ndarray)
def fast_layer_norm(x: Array, weight: Array, bias: Array, ndim: int = 1, eps: float = 1e-5) -> Any:
    """y = n · weight + bias with n = (x - mean) · rstd; n and rstd are kept.

    dx = rstd · (dy · weight - Σ dy · share - n · Σ dy · n · share) with share = weight / C;
    dweight = Σ dy · n over the rows, dbias = Σ dy.
    """
    dtype = x.dtype
    if (
        ndim != 1
        or x.ndim < 1
        or dtype not in FLOATS
        or not 0 < x.shape[-1] <= PIECE
        or x.size == 0
        or not _fits(weight, x)
        or not _fits(bias, x)
    ):
        return NotImplemented
    shape, channels = x.shape, x.shape[-1]
    rows = x.reshape(-1, channels)
    count, step = len(rows), PIECE // channels
    mean_of = _shares(channels, dtype)  # row @ mean_of is the row's mean
    n, y = empty(rows.shape, dtype), empty(rows.shape, dtype)
    rstd = np.empty(count, dtype)

    def forward(start: int, stop: int) -> None:
        for i in range(start, stop, step):
            part = slice(i, min(i + step, stop))
            source, piece, out, r = rows[part], n[part], y[part], rstd[part]
            np.subtract(source, (source @ mean_of)[:, None], out=piece)
            np.multiply(piece, piece, out=out)
            np.add(out @ mean_of, dtype.type(eps), out=r)
            np.sqrt(r, out=r)
            np.divide(1, r, out=r)
            np.multiply(piece, r[:, None], out=piece)
            if weight is None:
                out[...] = piece
            else:
                np.multiply(piece, weight, out=out)
            if bias is not None:
                np.add(out, bias, out=out)

    split(count, -(-LONG // channels), forward)

    def vjp(dy: Array) -> tuple[Array, Array, Array]:
        dy = dy.reshape(-1, channels)
        dx = empty(dy.shape, dtype)
        share = _shares(channels, dtype)
        if weight is not None:
            share = weight * share
        sums: dict[int, tuple[Array, Array]] = {}  # by the first row: the order of adding

        def backward(start: int, stop: int) -> None:
            dweight, dbias = np.zeros(channels, dtype), np.zeros(channels, dtype)
            scratch = empty((min(step, stop - start), channels), dtype)
            for i in range(start, stop, step):
                part = slice(i, min(i + step, stop))
                given, piece, out, r = dy[part], n[part], dx[part], rstd[part]
                product = scratch[: len(given)]
                np.multiply(given, piece, out=product)
                if weight is not None:
                    dweight += column_sums(product)
                if bias is not None:
                    dbias += column_sums(given)
                np.multiply(piece, (product @ share)[:, None], out=product)
                if weight is None:
                    np.subtract(given, product, out=out)
                else:
                    np.multiply(given, weight, out=out)
                    np.subtract(out, product, out=out)
                np.subtract(out, (given @ share)[:, None], out=out)
                np.multiply(out, r[:, None], out=out)
            sums[start] = dweight, dbias

        split(count, -(-LONG // channels), backward)
        dweight, dbias = (
            sum(parts[1:], parts[0])
            for parts in zip(*(sums[start] for start in sorted(sums)), strict=True)
        )
        return (
            dx.reshape(shape),
            None if weight is None else dweight,
            None if bias is None else dbias,
        )

    return y.reshape(shape), vjp


def _fits(parameter: Array, x: Array) -> bool:
    return parameter is None or (parameter.dtype == x.dtype and parameter.shape == x.shape[-1:])


@functools.lru_cache(maxsize=64)
def _shares(channels: int, dtype: DType) -> Array:
    return np.full(channels, 1 / channels, dtype)
