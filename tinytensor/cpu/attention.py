"""Attention in blocks of queries: no array of (queries, keys) is ever whole, or normalised.

A block's exponentials e = exp(scale · q kᵀ) are made without their row maximum first, because a
pass
over short rows costs as much as the exponential itself; the row sums s show whether that was safe,
and
the block is made again with the maximum where it was not. y = (e v) / s divides (queries, head
size)
numbers instead of (queries, keys). Under a causal mask the keys after the block are never looked
at.

Backward, with dy' = dy / s and c = Σ dy'·y (row by row):
ds = e · (dy' vᵀ - c), dq = scale · ds k, dk = dsᵀ (scale · q), dv = eᵀ dy'.
The exponentials of a short sequence are kept for it, those of a long one made again.

Shapes: B batch, H heads, L queries, S keys, D head size. q, k and v may be strided views of one
array.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..autograd import state
from ..backend import Array
from ..ops.attention import scaled_dot_product_attention
from ..random import Draw
from .linear import FLOATS, WORTH_A_THREAD, ones
from .losses import SAFE_SUMS
from .pool import empty
from .threads import get_num_threads, single_threaded_blas, split

QUERIES = 64  # rows in a block
WORKING_SET = 1 << 18  # numbers in a group of blocks that are worked on together: 1 MB of float32
KEPT = 1 << 21  # numbers of exponentials that one call keeps for its backward pass: 8 MB of float32

Group = tuple[slice, slice]  # of batch and of heads


@functools.lru_cache(maxsize=64)
def _triangle(rows: int, columns: int) -> Array:
    """True where a query of the block may look at a key of the same block."""
    return np.tri(rows, columns, dtype=bool)


def _groups(B: int, H: int, numbers: int, pieces: int) -> list[Group]:
    """(batch, heads) slices that cover everything, each with a working set that stays in cache.

    There are at least as many as `pieces`, if that many heads.
    """
    together = max(1, min(WORKING_SET // numbers, -(-B * H // pieces)))
    if together >= H:
        step = together // H
        return [(slice(b, b + step), slice(0, H)) for b in range(0, B, step)]
    return [
        (slice(b, b + 1), slice(h, h + together)) for b in range(B) for h in range(0, H, together)
    ]


@scaled_dot_product_attention.register(np.ndarray)
def fast_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    draw: Draw | None = None,
) -> Any:
    """(B, H, L, D) attention, causal or full, without mask and dropout."""
    if (
        mask is not None
        or dropout_p
        or q.ndim != 4
        or type(k) is not np.ndarray
        or type(v) is not np.ndarray
        or q.dtype not in FLOATS
        or not q.dtype == k.dtype == v.dtype
        or not q.shape[:2] == k.shape[:2] == v.shape[:2]
        or q.shape[3] != k.shape[3]
        or k.shape[2] != v.shape[2]
        or 0 in (*q.shape, *k.shape, *v.shape)
    ):
        return NotImplemented
    B, H, L, D = q.shape
    S, E = v.shape[2:]
    dtype = q.dtype
    factor = dtype.type(1 / math.sqrt(D) if scale is None else scale)
    pieces = max(1, min(get_num_threads(), B * H * L * S * D // WORTH_A_THREAD))
    groups = _groups(B, H, min(QUERIES, L) * S, pieces)
    least = -(-len(groups) // pieces)  # groups for a thread
    if max(L, S) <= QUERIES:
        return _short_attention(q, k, v, is_causal, factor, groups, least)
    # The output is laid out (B, L, H, E), so that joining the heads afterwards is free.
    y = empty((B, L, H, E), dtype).transpose(0, 2, 1, 3)
    sums = np.empty((B, H, L, 1), dtype)
    shifts: dict[tuple[int, int, int], Array] = {}  # row maxima of the few blocks that needed them
    kept: dict[tuple[int, int, int], Array] = {}
    keep = state.recording and B * H * L * S <= KEPT
    low, high = SAFE_SUMS[dtype.itemsize]

    def blocks(first: int, last: int) -> Iterator[tuple[Group, int, int, int]]:
        """Of some groups: (batch, heads), first and last query, how many keys the last one sees."""
        for group in groups[first:last]:
            for i in range(0, L, QUERIES):
                j = min(i + QUERIES, L)
                yield group, i, j, min(j, S) if is_causal else S

    def exponentials(group: Group, i: int, j: int, s: int, scaled: Array, first: bool) -> Array:
        key = (group[0].start, group[1].start, i)
        keys = k[group][:, :, :s].swapaxes(2, 3)
        e = empty((*scaled.shape[:3], s), dtype)
        np.matmul(scaled, keys, out=e)
        shift = shifts.get(key)
        corner = e[..., i:s] if is_causal else e[..., :0]
        visible = _triangle(j - i, corner.shape[3])
        if shift is not None:
            np.subtract(e, shift, out=e)
            np.copyto(corner, -math.inf, where=~visible)
        with np.errstate(over="ignore", invalid="ignore"):
            np.exp(e, out=e)
            np.multiply(corner, visible, out=corner)
        if first and shift is None:
            total = sums[group][:, :, i:j]
            np.matmul(e, np.ones((s, 1), dtype), out=total)
            if not (total.min() > low and total.max() < high):  # also where a sum is nan
                scores = scaled @ keys
                np.copyto(scores[..., i : i + corner.shape[3]], -math.inf, where=~visible)
                shifts[key] = scores.max(axis=3, keepdims=True)
                e = exponentials(group, i, j, s, scaled, False)
                np.matmul(e, np.ones((s, 1), dtype), out=total)
        return e

    def forward(first: int, last: int) -> None:
        for group, i, j, s in blocks(first, last):
            rows = q[group][:, :, i:j]
            scaled = np.multiply(rows, factor, out=empty(rows.shape, dtype))
            e = exponentials(group, i, j, s, scaled, True)
            out = np.matmul(e, v[group][:, :, :s], out=empty((*rows.shape[:3], E), dtype))
            np.divide(out, sums[group][:, :, i:j], out=y[group][:, :, i:j])
            if keep:
                kept[group[0].start, group[1].start, i] = e

    with single_threaded_blas:
        split(len(groups), least, forward)

    def vjp(dy: Array) -> tuple[Array, Array, Array, None]:
        dq = empty((B, L, H, D), dtype).transpose(0, 2, 1, 3)
        dk = empty((B, S, H, D), dtype).transpose(0, 2, 1, 3)
        dv = empty((B, S, H, E), dtype).transpose(0, 2, 1, 3)
        seen = L if is_causal else S  # keys after it have no gradient
        for whole in (dk, dv):
            whole[:, :, seen:] = 0

        def backward(first: int, last: int) -> None:
            for group, i, j, s in blocks(first, last):
                scaled = q[group][:, :, i:j] * factor
                e = kept.get((group[0].start, group[1].start, i))
                if e is None:
                    e = exponentials(group, i, j, s, scaled, False)
                shared = dy[group][:, :, i:j] / sums[group][:, :, i:j]
                along = (shared * y[group][:, :, i:j]).sum(axis=3, keepdims=True)
                ds = empty(e.shape, dtype)
                np.matmul(shared, v[group][:, :, :s].swapaxes(2, 3), out=ds)
                np.subtract(ds, along, out=ds)
                np.multiply(ds, e, out=ds)
                np.multiply(np.matmul(ds, k[group][:, :, :s]), factor, out=dq[group][:, :, i:j])
                _gather(dk[group], ds.swapaxes(2, 3) @ scaled, i, s, is_causal)
                _gather(dv[group], e.swapaxes(2, 3) @ shared, i, s, is_causal)

        split(len(groups), least, backward)
        return dq, dk, dv, None

    return y, vjp


def _short_attention(
    q: Array, k: Array, v: Array, is_causal: bool, factor: Any, groups: list[Group], least: int
) -> Any:
    """The same for sequences of one block: the weights p = e / s are whole, and kept.

    c = Σ dy·y, ds = scale · p · (dy vᵀ - c), dq = ds k, dk = dsᵀ q, dv = pᵀ dy.
    """
    B, H, L, D = q.shape
    S, E = v.shape[2:]
    dtype = q.dtype
    low, high = SAFE_SUMS[dtype.itemsize]
    highest = math.log(high / S)
    y = empty((B, L, H, E), dtype).transpose(0, 2, 1, 3)
    p = empty((B, H, L, S), dtype)
    visible = _triangle(L, S) if is_causal else None

    def forward(first: int, last: int) -> None:
        for group in groups[first:last]:
            e = p[group]
            scaled = np.multiply(q[group], factor, out=empty((*e.shape[:3], D), dtype))
            np.matmul(scaled, k[group].swapaxes(2, 3), out=e)
            safe = e.max() < highest
            if safe:
                np.exp(e, out=e)
                if visible is not None:
                    np.multiply(e, visible, out=e)
                total = np.matmul(e, ones(S, dtype))
                safe = total.min() > low
            if not safe:  # also where there is a nan
                np.matmul(scaled, k[group].swapaxes(2, 3), out=e)
                if visible is not None:
                    np.copyto(e, -math.inf, where=~visible)
                with np.errstate(invalid="ignore"):
                    np.subtract(e, e.max(axis=3, keepdims=True), out=e)
                np.exp(e, out=e)
                total = np.matmul(e, ones(S, dtype))
            np.divide(e, total[..., None], out=e)
            np.matmul(e, v[group], out=y[group])

    with single_threaded_blas:
        split(len(groups), least, forward)

    def vjp(dy: Array) -> tuple[Array, Array, Array, None]:
        dq = empty((B, L, H, D), dtype).transpose(0, 2, 1, 3)
        dk = empty((B, S, H, D), dtype).transpose(0, 2, 1, 3)
        dv = empty((B, S, H, E), dtype).transpose(0, 2, 1, 3)

        def backward(first: int, last: int) -> None:
            for group in groups[first:last]:
                weights, given = p[group], dy[group]
                ds = empty(weights.shape, dtype)
                np.matmul(given, v[group].swapaxes(2, 3), out=ds)
                np.subtract(ds, np.vecdot(given, y[group])[..., None], out=ds)
                np.multiply(ds, weights, out=ds)
                np.multiply(ds, factor, out=ds)
                np.matmul(ds, k[group], out=dq[group])
                np.matmul(ds.swapaxes(2, 3), q[group], out=dk[group])
                np.matmul(weights.swapaxes(2, 3), given, out=dv[group])

        split(len(groups), least, backward)
        return dq, dk, dv, None

    return y, vjp


def _gather(total: Array, part: Array, i: int, s: int, is_causal: bool) -> None:
    """Add the part of the block that begins at query i to the first s keys; keys first seen are
    written.
    """
    old = 0 if i == 0 else min(i, s) if is_causal else s
    total[:, :, old:s] = part[:, :, old:]
    if old:
        total[:, :, :old] += part[:, :, :old]
