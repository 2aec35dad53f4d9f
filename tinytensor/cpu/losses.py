"""Softmax and cross-entropy in pieces of rows that stay in cache.

Row sums are products with a vector of ones. The normalised probabilities are kept by cross_entropy,
whose gradient is then one multiplication and one subtraction per row. With the last linear layer as
part of it, linear_cross_entropy keeps what is smaller: that gradient, or those of its inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..autograd import state
from ..backend import Array, silent
from ..ops.network import check_classes, check_range, cross_entropy, linear_cross_entropy, softmax
from .linear import FLOATS, ProductGradient, add_product, column_sums, ones, product
from .pieces import in_pieces
from .pool import empty
from .threads import single_threaded_blas, split

PIECE = 1 << 16  # numbers in a piece: 256 KB of float32
LOGITS = 1 << 24  # numbers that linear_cross_entropy makes at a time, about: 64 MB of float32
LONG = 1 << 17  # numbers that take another thread longer than it takes to wake it
# Sums of exponentials that say that none of them overflowed, and that they did not all vanish; by
# the size of their dtype in bytes.
SAFE_SUMS = {4: (1e-30, 1e30), 8: (1e-200, 1e200)}


@softmax.register(np.ndarray)
@silent
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
    column = ones(width, x.dtype)
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
            total = out @ column
            safe = total.min() > low
        if not safe:  # also where there is a nan
            np.subtract(source, source.max(axis=1, keepdims=True), out=out)
            np.exp(out, out=out)
            total = out @ column
        np.divide(out, total[:, None], out=out)

    def dx(dy: Array) -> Array:
        dy = dy.reshape(-1, width)
        out = empty(dy.shape, dy.dtype)
        for i in range(0, len(dy), step):
            piece, weights = out[i : i + step], y[i : i + step]
            np.multiply(dy[i : i + step], weights, out=piece)
            along = piece @ column
            np.subtract(dy[i : i + step], along[:, None], out=piece)
            np.multiply(piece, weights, out=piece)
        return out.reshape(shape)

    return y.reshape(shape), dx


@cross_entropy.register(np.ndarray)
@silent
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
        or weight is not None
        or label_smoothing
        or reduction == "none"
        or not 0 < logits.shape[1] <= PIECE
    ):
        return NotImplemented
    check_classes("cross_entropy", logits.shape, target, weight, reduction)
    count, width = logits.shape
    valid = target != ignore_index
    used = int(np.count_nonzero(valid))
    if used == 0:
        return NotImplemented
    index = target if used == count else target * valid
    check_range("cross_entropy", "target", index, width, "classes")
    step = PIECE // width
    column = ones(width, logits.dtype)
    p = empty(logits.shape, logits.dtype)
    each = np.empty(count, logits.dtype)

    def forward(start: int, stop: int) -> None:
        for i in range(start, stop, step):
            part = slice(i, min(i + step, stop))
            source, out, chosen = logits[part], p[part], each[part]
            np.subtract(source, source.max(axis=1, keepdims=True), out=out)
            chosen[...] = out[np.arange(len(out)), index[part]]
            np.exp(out, out=out)
            total = out @ column
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


@linear_cross_entropy.register(np.ndarray)
@silent
def fast_linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array,
    target: Array,
    class_weight: Array,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    block: int | None = None,
) -> Any:
    """The plain case: mean or sum, no class weights, no smoothing.

    The gradients of a block of logits take the place of the logits in the forward pass: for dy = 1,
    which the rest is multiplied with in the backward pass. For few rows they are kept, which takes
    no more memory than the gradient of the weight. For many rows the gradients of x and the weight
    are made from them at once, and the next block takes their place. Either way the logits are
    multiplied out once. Where nothing is recorded, only the losses are made.
    """
    V, C = weight.shape if weight.ndim == 2 else (0, 0)
    dtype = x.dtype
    if (
        type(x) is not np.ndarray
        or type(weight) is not np.ndarray
        or type(target) is not np.ndarray
        or dtype not in FLOATS
        or weight.dtype != dtype
        or x.shape[-1:] != (C,)
        or not (bias is None or (bias.dtype == dtype and bias.shape == (V,)))
        or class_weight is not None
        or label_smoothing
        or reduction == "none"
        or 0 in (*x.shape, V)
    ):
        return NotImplemented
    check_classes("linear_cross_entropy", (*x.shape[:-1], V), target, class_weight, reduction)
    rows, row_targets = x.reshape(-1, C), target.reshape(-1)
    valid = row_targets != ignore_index
    used = int(np.count_nonzero(valid))
    if used == 0:
        return NotImplemented
    index = row_targets * valid
    check_range("linear_cross_entropy", "target", index, V, "classes")
    count = len(rows)
    each = np.empty(count, dtype)
    recording = state.recording
    share = np.where(valid, dtype.type(1 / used if reduction == "mean" else 1), dtype.type(0))
    kept = recording and block is None and count * V <= V * C + LOGITS
    step = count if kept else block or -(-count // max(1, round(count * V / LOGITS)))
    if recording and not kept:
        dx = empty(rows.shape, dtype)
        dweight = empty(weight.shape, dtype)
        dbias = None if bias is None else np.zeros(V, dtype)
    block_of_logits = empty((min(step, count), V), dtype)
    for i in range(0, count, step):
        part = slice(i, min(i + step, count))
        logits = block_of_logits[: len(index[part])]
        product(rows[part], weight.T, bias, out=logits)
        scale = share[part] if recording else None
        _losses_and_gradients(logits, index[part], each[part], scale)
        if kept or not recording:
            continue
        product(logits, weight, out=dx[part])
        if i == 0:
            product(logits.T, rows[part], out=dweight)
        else:
            add_product(dweight, logits.T, rows[part])
        if dbias is not None:
            dbias += column_sums(logits)
    y = np.where(valid, each, 0).sum() if used < count else each.sum()
    if reduction == "mean":
        y = y / used
    if not recording:
        return y, None
    shape = x.shape
    if kept:

        def dx_of_logits(dy: Array) -> Array:
            dx = product(logits, weight).reshape(shape)
            return dx if dy == 1 else np.multiply(dx, dy, out=dx)

        return y, (
            dx_of_logits,
            lambda dy: ProductGradient(logits, rows if dy == 1 else rows * dy),
            None if bias is None else lambda dy: column_sums(logits) * dy,
            None,
            None,
        )

    def times(gradient: Array, dy: Array) -> Array:
        return gradient if dy == 1 else gradient * dy

    return y, (
        lambda dy: times(dx, dy).reshape(shape),
        lambda dy: times(dweight, dy),
        None if bias is None else lambda dy: times(dbias, dy),
        None,
        None,
    )


def _losses_and_gradients(logits: Array, index: Array, each: Array, share: Array) -> None:
    """Losses into `each`, and in place of the logits share · (softmax - 1 at the target)."""
    count, width = logits.shape

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        e, chosen = logits[part], each[part]
        at = np.arange(len(e)), index[part]
        np.subtract(e, e.max(axis=1, keepdims=True), out=e)
        chosen[...] = e[at]
        np.exp(e, out=e)
        total = e @ ones(width, e.dtype)
        np.subtract(np.log(total), chosen, out=chosen)
        if share is not None:
            np.multiply(e, (share[part] / total)[:, None], out=e)
            e[at] -= share[part]

    with single_threaded_blas:
        in_pieces(count, width, work)
