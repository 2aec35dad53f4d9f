"""Layer norm over the last axis, in pieces of rows that stay in cache.

Row sums are products with a vector of ones or dot products of rows with themselves; NumPy's own
reductions over a short last axis are several times slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array
from ..ops.network import layer_norm
from .linear import FLOATS, column_sums
from .pool import empty

PIECE = 1 << 15  # numbers in a piece: 128 KB of float32


@layer_norm.register(np.ndarray)
def fast_layer_norm(x: Array, weight: Array, bias: Array, ndim: int = 1, eps: float = 1e-5) -> Any:
    """y = n · weight + bias with n = (x - mean) · rstd; n and rstd are kept."""
    if (
        ndim != 1
        or x.ndim < 1
        or x.dtype not in FLOATS
        or not 0 < x.shape[-1] <= PIECE
        or x.size == 0
        or any(
            p is not None and (p.dtype != x.dtype or p.shape != x.shape[-1:])
            for p in (weight, bias)
        )
    ):
        return NotImplemented
    shape, channels = x.shape, x.shape[-1]
    rows = x.reshape(-1, channels)
    step = PIECE // channels
    share = np.full(channels, 1 / channels, x.dtype)  # row @ share is the row's mean
    n, y = empty(rows.shape, x.dtype), empty(rows.shape, x.dtype)
    rstd = np.empty((len(rows), 1), x.dtype)
    for i in range(0, len(rows), step):
        piece, out = n[i : i + step], y[i : i + step]
        source = rows[i : i + step]
        np.subtract(source, (source @ share)[:, None], out=piece)
        np.multiply(piece, piece, out=out)
        r = rstd[i : i + step]
        np.sqrt(out @ share + x.dtype.type(eps), out=r[:, 0])
        np.divide(1, r, out=r)
        np.multiply(piece, r, out=piece)
        if weight is None:
            out[...] = piece
        else:
            np.multiply(piece, weight, out=out)
        if bias is not None:
            np.add(out, bias, out=out)

    def dx(dy: Array) -> Array:
        dy = dy.reshape(-1, channels)
        out = empty(dy.shape, dy.dtype)
        scratch = np.empty((min(step, len(dy)), channels), dy.dtype)
        for i in range(0, len(dy), step):
            dn, piece = out[i : i + step], n[i : i + step]
            product = scratch[: len(dn)]
            if weight is None:
                dn[...] = dy[i : i + step]
            else:
                np.multiply(dy[i : i + step], weight, out=dn)
            np.multiply(dn, piece, out=product)
            along = product @ share
            np.subtract(dn, (dn @ share)[:, None], out=dn)
            np.multiply(piece, along[:, None], out=product)
            np.subtract(dn, product, out=dn)
            np.multiply(dn, rstd[i : i + step], out=dn)
        return out.reshape(shape)

    def dweight(dy: Array) -> Array:
        dy = dy.reshape(-1, channels)
        total = np.zeros(channels, dy.dtype)
        scratch = np.empty((min(step, len(dy)), channels), dy.dtype)
        for i in range(0, len(dy), step):
            product = scratch[: len(dy) - i]
            np.multiply(dy[i : i + step], n[i : i + step], out=product)
            total += column_sums(product)
        return total

    def dbias(dy: Array) -> Array:
        return column_sums(dy.reshape(-1, channels))

    return y.reshape(shape), (dx, dweight, dbias)
