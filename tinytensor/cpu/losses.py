"""Softmax and cross-entropy in pieces of rows that stay in cache.

Row sums are products with a vector of ones. The normalised probabilities are kept by cross_entropy,
whose gradient is then one multiplication and one subtraction per row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import Array
from ..ops.network import check_range, cross_entropy, softmax
from .linear import FLOATS
from .pool import empty
from .threads import single_threaded_blas, split

PIECE = 1 << 16  # numbers in a piece: 256 KB of float32
LONG = 1 << 17  # numbers that take another thread longer than it takes to wake it
# Sums of exponentials that say that none of them overflowed, and that they did not all vanish; by
# the size of their dtype in bytes.
SAFE_SUMS = {4: (1e-30, 1e30), 8: (1e-200, 1e200)}


@softmax.register(np.ndarray)
def fast_softmax(x: Array, axis: int = -1) -> Any:
    """Along the last axis; dx = y · (dy - Σ dy·y)."""
    if (
        x.dtype not in FLOATS
        or x.ndim == 0
        or axis not in (-1, x.ndim - 1)
        or x.size == 0
        or x.shape[-1] > PIECE
    ):
        return NotImplemented
    shape, width = x.shape, x.shape[-1]
    rows = x.reshape(-1, width)
    step = PIECE // width
    ones = np.ones(width, x.dtype)
    low, high = SAFE_SUMS[x.dtype.itemsize]
    highest = math.log(high)
    y = empty(rows.shape, x.dtype)
    for i in range(0, len(rows), step):
        out = y[i : i + step]
        source = rows[i : i + step]
        # Without each row's maximum: in short rows that costs more than the exponential. The
        # largest number of all and the sums show whether it was safe.
        safe = source.max() < highest
        if safe:
            np.exp(source, out=out)
            total = out @ ones
            safe = total.min() > low
        if not safe:  # also where there is a nan
            with np.errstate(invalid="ignore"):  # a row of -inf is nan, as in the reference
                np.subtract(source, source.max(axis=1, keepdims=True), out=out)
            np.exp(out, out=out)
            total = out @ ones
        np.divide(out, total[:, None], out=out)

    def dx(dy: Array) -> Array:
        dy = dy.reshape(-1, width)
        out = empty(dy.shape, dy.dtype)
        for i in range(0, len(dy), step):
            piece, weights = out[i : i + step], y[i : i + step]
            np.multiply(dy[i : i + step], weights, out=piece)
            along = piece @ ones
            np.subtract(dy[i : i + step], along[:, None], out=piece)
            np.multiply(piece, weights, out=piece)
        return out.reshape(shape)

    return y.reshape(shape), dx


@cross_entropy.register(np.ndarray)
def fast_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """The plain case, one loss for (N, V) logits: mean or sum, no class weights, no smoothing."""
    if (
        logits.ndim != 2
        or logits.dtype not in FLOATS
        or type(target) is not np.ndarray
        or target.shape != logits.shape[:1]
        or target.dtype.kind not in "iu"
        or weight is not None
        or label_smoothing
        or reduction not in ("mean", "sum")
        or not 0 < logits.shape[1] <= PIECE
    ):
        return NotImplemented
    count, width = logits.shape
    valid = target != ignore_index
    used = int(np.count_nonzero(valid))
    if used == 0:
        return NotImplemented
    index = target if used == count else target * valid
    check_range("cross_entropy", "target", index, width, "classes")
    step = PIECE // width
    ones = np.ones(width, logits.dtype)
    p = empty(logits.shape, logits.dtype)
    each = np.empty(count, logits.dtype)

    def forward(start: int, stop: int) -> None:
        for i in range(start, stop, step):
            part = slice(i, min(i + step, stop))
            source, out, chosen = logits[part], p[part], each[part]
            np.subtract(source, source.max(axis=1, keepdims=True), out=out)
            chosen[...] = out[np.arange(len(out)), index[part]]
            np.exp(out, out=out)
            total = out @ ones
            np.divide(out, total[:, None], out=out)
            np.subtract(np.log(total), chosen, out=chosen)

    with single_threaded_blas:
        split(count, -(-LONG // width), forward)
    if used < count:
        each = np.where(valid, each, 0)
    y = each.sum()
    if reduction == "mean":
        y = y / used

    def dlogits(dy: Array) -> Array:
        share = logits_dtype(dy / used if reduction == "mean" else dy)
        per_row = (
            np.full(count, share) if used == count else np.where(valid, share, logits_dtype(0))
        )
        out = empty(p.shape, p.dtype)

        def backward(start: int, stop: int) -> None:
            np.multiply(p[start:stop], per_row[start:stop, None], out=out[start:stop])

        split(count, -(-LONG // width), backward)
        out[np.arange(count), index] -= per_row
        return out

    logits_dtype = logits.dtype.type
    return y, (dlogits, None, None)
