"""Attention in blocks of queries: no array of (queries, keys) is ever whole, or normalised.

A block's exponentials e = exp(scale · q kᵀ + mask) are made without their row maximum first,
because a pass over short rows costs as much as the exponential itself; the row sums s show whether
that was safe, and the block is made again with the maximum where it was not. y = (e v) / s divides
(queries, head size) numbers instead of (queries, keys). Under a causal mask the keys after the
block are never looked at.

Backward, with dy' = dy / s and c = Σ dy'·y (row by row):
ds = e · (dy' vᵀ - c), dq = scale · ds k, dk = scale · dsᵀ q, dv = eᵀ dy'.
scale · kᵀ and scale · vᵀ are written out once for all blocks, so that ds has its scale already.
With dropout, m being 0 or 1 / (1 - p): y = ((e · m) v) / s, ds = e · (m · (dy' vᵀ) - c) and
dv = (e · m)ᵀ dy'; a block's part of m is made again from its random words. The exponentials of a
short sequence are kept for the backward pass, those of a long one made again.

What a thread does is written into its own few arrays: fresh ones would be fresh pages, and the
threads would wait for each other to get them.

Shapes: B batch, H heads, L queries, S keys, D head size. q, k and v may be strided views of one
array.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..autograd import Shape, state
from ..backend import Array, DType, silent
from ..ops.attention import scaled_dot_product_attention
from ..ops.network import NO_DRAW
from ..random import Draw
from .dropout import keep_words, threshold
from .linear import FLOATS, ones
from .losses import SAFE_SUMS
from .one_row import one_query_attention
from .pool import empty
from .threads import get_num_threads, single_threaded_blas, small_products, split

QUERIES = 64  # rows in a block, twice as many where there are more than MANY_KEYS
MANY_KEYS = 512
BOOL: DType = np.dtype(bool)
CACHE_LINE = 16  # float32 numbers in it
WORTH_A_PIECE = 1 << 21  # multiplications in each product of what another thread takes
SHORT = 64  # queries and keys up to which all weights of a head are one block
WORKING_SET = 1 << 18  # numbers in a group of blocks that are worked on together: 1 MB of float32
KEPT = 1 << 21  # numbers of exponentials that one call keeps for its backward pass: 8 MB of float32

Group = tuple[slice, slice]  # of batch and of heads
Block = tuple[Group, int, int, int]  # (batch, heads), first and last query, keys the last one sees


def _usable_mask(mask: Array, q: Array, k: Array) -> bool:
    """None, or one that broadcasts to the scores: boolean, or real and of q's dtype."""
    if mask is None:
        return True
    if type(mask) is not np.ndarray or mask.ndim > 4:
        return False
    if mask.dtype.kind != "b" and mask.dtype != q.dtype:
        return False
    scores = (*q.shape[:3], k.shape[2])
    sizes = zip(mask.shape[::-1], scores[::-1], strict=False)
    return all(size in (1, wanted) for size, wanted in sizes)


@functools.lru_cache(maxsize=64)
def _triangle(rows: int, columns: int, dtype: DType = BOOL) -> Array:
    """True, or 1, where a query of the block may look at a key of the same block."""
    return np.tri(rows, columns, dtype=dtype)


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


class _Scratch:
    """Arrays that one thread writes block after block into, by name.

    `most` is how many numbers the largest block will ask for: causal blocks grow, and an array for
    each length would stay in the pool.
    """

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype
        self._arrays: dict[str, Array] = {}

    def __call__(self, name: str, *shape: int, most: int = 0) -> Array:
        size = math.prod(shape)
        array = self._arrays.get(name)
        if array is None or array.size < size:
            array = self._arrays[name] = empty((max(size, most),), self._dtype)
        return array[:size].reshape(shape)

    def transposed(self, name: str, x: Array, factor: Any) -> Array:
        """`_transposed`, with a cache line between the rows: the caches take no two at one place
        if they are a power of two apart.
        """
        batch, heads, keys, size = x.shape
        out = self(name, batch, heads, size, keys + CACHE_LINE)[..., :keys]
        return _transposed(x, factor, out)


@scaled_dot_product_attention.register(np.ndarray)
@silent
def fast_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    draw: Draw = NO_DRAW,
) -> Any:
    """(B, H, L, D) attention, causal or not, with any mask and dropout."""
    if (
        q.ndim != 4
        or type(q) is not np.ndarray
        or type(k) is not np.ndarray
        or type(v) is not np.ndarray
        or q.dtype not in FLOATS
        or not q.dtype == k.dtype == v.dtype
        or not q.shape[:2] == k.shape[:2] == v.shape[:2]
        or q.shape[3] != k.shape[3]
        or k.shape[2] != v.shape[2]
        or 0 in (*q.shape, *k.shape, *v.shape)
        or not _usable_mask(mask, q, k)
        or dropout_p >= 1
    ):
        return NotImplemented
    B, H, L, D = q.shape
    S, E = v.shape[2:]
    dtype = q.dtype
    factor = dtype.type(1 / math.sqrt(D) if scale is None else scale)
    if L == 1 and mask is None and not dropout_p and not state.recording:
        seen = slice(0, 1 if is_causal else S)
        return one_query_attention(q, k[:, :, seen], v[:, :, seen], factor), None
    rows = min(QUERIES if S <= MANY_KEYS else 2 * QUERIES, L)
    pieces = max(1, min(get_num_threads(), B * H * L * S * D // WORTH_A_PIECE))
    groups = _groups(B, H, rows * S, pieces)
    least = -(-len(groups) // pieces)  # groups for a thread
    if mask is None and not dropout_p and (max(L, S) <= SHORT or L == 1):
        return _short_attention(q, k, v, is_causal and S > 1, factor, groups, least)
    additive = mask is not None and mask.dtype.kind != "b"
    masks = None if mask is None else np.broadcast_to(mask, (B, H, L, S))
    # The output is laid out (B, L, H, E), so that joining the heads afterwards is free.
    y = empty((B, L, H, E), dtype).transpose(0, 2, 1, 3)
    sums = np.empty((B, H, L, 1), dtype)
    shifts: dict[tuple[int, int, int], Array] = {}  # row maxima of the few blocks that needed them
    kept: dict[tuple[int, int, int], Array] = {}
    keep = state.recording and B * H * L * S <= KEPT and not dropout_p
    seen = min(L, S) if is_causal else S
    low, high = SAFE_SUMS[dtype.itemsize]
    least_kept = threshold(dropout_p)

    def blocks(first: int, last: int) -> Iterator[Block]:
        for group in groups[first:last]:
            for i in range(0, L, rows):
                j = min(i + rows, L)
                yield group, i, j, min(j, S) if is_causal else S

    def hide(block: Block, scores: Array, write: Callable[[Array, Array], None]) -> None:
        """`write` to the scores that may not be seen, given which of an array of them may."""
        group, i, j, s = block
        if is_causal and i < s:
            write(scores[..., i:s], _triangle(j - i, s - i))
        if masks is not None and not additive:
            write(scores, masks[group][:, :, i:j, :s])

    def exponentials(block: Block, keys: Array, e: Array, first: bool = False) -> None:
        group, i, j, s = block
        key = (group[0].start, group[1].start, i)

        def write_scores() -> None:
            np.matmul(q[group][:, :, i:j], keys[..., :s], out=e)
            if additive:
                np.add(e, masks[group][:, :, i:j, :s], out=e)  # type: ignore[index]

        write_scores()
        total = sums[group][:, :, i:j]
        if key not in shifts:
            np.exp(e, out=e)
            hide(block, e, _zero)
            if not first:
                return
            np.matmul(e, ones(s, dtype)[:, None], out=total)
            if total.min() > low and total.max() < high:  # neither if a sum is nan
                return
            write_scores()
            hide(block, e, _forbid)
            highest = e.max(axis=3, keepdims=True)
            shifts[key] = np.where(highest == -math.inf, dtype.type(0), highest)
        else:
            hide(block, e, _forbid)
        np.subtract(e, shifts[key], out=e)
        np.exp(e, out=e)
        if first:
            np.matmul(e, ones(s, dtype)[:, None], out=total)
            np.copyto(total, 1, where=total == 0)  # a query that may see nothing gets zeros

    def drop(block: Block, weights: Array) -> None:
        """weights = 0 where the mask of `draw` says so."""
        (batch, heads), i, j, s = block
        for b, of_batch in enumerate(weights, batch.start):
            for h, of_head in enumerate(of_batch, heads.start):
                first = ((b * H + h) * L + i) * S
                words = keep_words(draw, first, (j - i) * S).reshape(j - i, S)[:, :s]
                np.multiply(of_head, words >= least_kept, out=of_head)

    def forward(first: int, last: int) -> None:
        scratch = _Scratch(dtype)
        for block in blocks(first, last):
            group, i, j, s = block
            if i == 0:
                keys = scratch.transposed("keys", k[group][:, :, :seen], factor)
            out = y[group][:, :, i:j]
            shape = (*out.shape[:3], s)
            e = empty(shape, dtype) if keep else scratch("e", *shape, most=S * (out.size // E))
            exponentials(block, keys, e, True)
            total = sums[group][:, :, i:j]
            if dropout_p:
                drop(block, e)
                total = total * dtype.type(1 - dropout_p)
            mixed = np.matmul(e, v[group][:, :, :s], out=scratch("mixed", *out.shape))
            np.divide(mixed, total, out=out)
            if keep:
                kept[group[0].start, group[1].start, i] = e

    with single_threaded_blas:
        split(len(groups), least, forward)

    def score_gradients(
        dy: Array, block: Block, keys: Array, values: Array, by: Any, scratch: _Scratch
    ) -> tuple[Array, Array, Array]:
        """(by · ds, e · m, dy') of a block, given scale · kᵀ and by · vᵀ."""
        group, i, j, s = block
        given = dy[group][:, :, i:j]
        shape, most = (*given.shape[:3], s), S * (given.size // E)
        e = kept.get((group[0].start, group[1].start, i))
        if e is None:
            e = scratch("e", *shape, most=most)
            exponentials(block, keys, e)
        shared = np.divide(given, sums[group][:, :, i:j], out=scratch("shared", *given.shape))
        along = np.multiply(shared, y[group][:, :, i:j], out=scratch("mixed", *given.shape))
        along = (along.reshape(-1, E) @ np.full(E, by, dtype)).reshape(*shape[:3], 1)
        if dropout_p:
            np.multiply(shared, dtype.type(1 / (1 - dropout_p)), out=shared)
        ds = np.matmul(shared, values[..., :s], out=scratch("ds", *shape, most=most))
        if dropout_p:
            drop(block, ds)
        np.subtract(ds, along, out=ds)
        np.multiply(ds, e, out=ds)
        if dropout_p:
            drop(block, e)
        return ds, e, shared

    def vjp(dy: Array) -> tuple[Any, ...]:
        dq = empty((B, L, H, D), dtype).transpose(0, 2, 1, 3)
        dk = empty((B, S, H, D), dtype).transpose(0, 2, 1, 3)
        dv = empty((B, S, H, E), dtype).transpose(0, 2, 1, 3)
        for whole in (dk, dv):
            whole[:, :, seen:] = 0  # a key that no query sees has no gradient

        def backward(first: int, last: int) -> None:
            scratch = _Scratch(dtype)
            for block in blocks(first, last):
                group, i, j, s = block
                if i == 0:
                    keys = (
                        None if keep else scratch.transposed("keys", k[group][:, :, :seen], factor)
                    )
                    values = scratch.transposed("values", v[group][:, :, :seen], factor)
                ds, weights, shared = score_gradients(dy, block, keys, values, factor, scratch)
                np.matmul(ds, k[group][:, :, :s], out=dq[group][:, :, i:j])
                old = 0 if i == 0 else min(i, s) if is_causal else s
                for total, a, b in ((dk, ds, q[group][:, :, i:j]), (dv, weights, shared)):
                    _gather(total[group], a.swapaxes(2, 3), b, old, s, scratch)

        with single_threaded_blas:
            split(len(groups), least, backward)
        return dq, dk, dv, MaskGradient(mask.shape, dy, add_mask_gradient) if additive else None

    def add_mask_gradient(dy: Array, buffer: Array) -> None:
        """buffer += ds, summed over the axes along which the mask was repeated."""
        scratch = _Scratch(dtype)
        whole = buffer.reshape((1,) * (4 - buffer.ndim) + buffer.shape)
        with single_threaded_blas:
            for block in blocks(0, len(groups)):
                group, i, j, s = block
                if i == 0:
                    keys = (
                        None if keep else scratch.transposed("keys", k[group][:, :, :seen], factor)
                    )
                    values = scratch.transposed("values", v[group][:, :, :seen], 1)
                ds = score_gradients(dy, block, keys, values, 1, scratch)[0]
                wanted = *group, slice(i, j), slice(0, s)
                repeated = tuple(axis for axis in range(4) if whole.shape[axis] == 1)
                index = tuple(
                    slice(0, 1) if axis in repeated else wanted[axis] for axis in range(4)
                )
                whole[index] += ds.sum(axis=repeated, keepdims=True) if repeated else ds

    return y, vjp


def _short_attention(
    q: Array, k: Array, v: Array, is_causal: bool, factor: Any, groups: list[Group], least: int
) -> Any:
    """The same for sequences of one block: the weights p = e / s are whole, and kept.

    dp = dy vᵀ, ds = scale · p · (dp - Σ dp·p), dq = ds k, dk = dsᵀ q, dv = pᵀ dy.
    """
    B, H, L, D = q.shape
    S, E = v.shape[2:]
    dtype = q.dtype
    low, high = SAFE_SUMS[dtype.itemsize]
    y = empty((B, L, H, E), dtype).transpose(0, 2, 1, 3)
    p = empty((B, H, L, S), dtype)
    visible = _triangle(L, S, dtype) if is_causal else None

    def row_sums(x: Array) -> Array:
        return (x.reshape(-1, S) @ ones(S, dtype)).reshape(*x.shape[:3], 1)

    def forward(first: int, last: int) -> None:
        for group in groups[first:last]:
            e = p[group]
            keys = _transposed(k[group], factor)
            np.matmul(q[group], keys, out=e)
            np.exp(e, out=e)
            if visible is not None:
                np.multiply(e, visible, out=e)
            total = row_sums(e)
            if not (total.min() > low and total.max() < high):  # also where there is a nan
                np.matmul(q[group], keys, out=e)
                if visible is not None:
                    np.copyto(e, -math.inf, where=visible == 0)
                np.subtract(e, e.max(axis=3, keepdims=True), out=e)
                np.exp(e, out=e)
                total = row_sums(e)
            np.divide(e, total, out=e)
            np.matmul(e, v[group], out=y[group])

    with small_products():
        split(len(groups), least, forward)

    def vjp(dy: Array) -> tuple[Array, Array, Array, None]:
        dq = empty((B, L, H, D), dtype).transpose(0, 2, 1, 3)
        dk = empty((B, S, H, D), dtype).transpose(0, 2, 1, 3)
        dv = empty((B, S, H, E), dtype).transpose(0, 2, 1, 3)

        def backward(first: int, last: int) -> None:
            for group in groups[first:last]:
                weights, given = p[group], dy[group]
                ds, scratch = (empty(weights.shape, dtype) for _ in range(2))
                np.matmul(given, _transposed(v[group], factor), out=ds)
                np.multiply(ds, weights, out=ds)
                np.multiply(weights, row_sums(ds), out=scratch)
                np.subtract(ds, scratch, out=ds)
                np.matmul(ds, k[group], out=dq[group])
                np.matmul(ds.swapaxes(2, 3), q[group], out=dk[group])
                np.matmul(weights.swapaxes(2, 3), given, out=dv[group])

        split(len(groups), least, backward)
        return dq, dk, dv, None

    return y, vjp


def _transposed(x: Array, factor: Any, out: Array = None) -> Array:
    """factor · xᵀ for x (batch, heads, keys, size), written out.

    BLAS multiplies small matrices at two thirds of its speed by the transpose of a second factor.
    """
    if out is None:
        batch, heads, keys, size = x.shape
        out = empty((batch, heads, size, keys), x.dtype)
    return np.multiply(x.swapaxes(2, 3), factor, out=out)


def _zero(e: Array, visible: Array) -> None:
    np.multiply(e, visible, out=e)


def _forbid(scores: Array, visible: Array) -> None:
    np.copyto(scores, -math.inf, where=~visible)


def _gather(total: Array, a: Array, b: Array, old: int, s: int, scratch: _Scratch) -> None:
    """Write a b to the keys that are seen for the first time, old to s; add it to those before."""
    if old < s:
        np.matmul(a[:, :, old:], b, out=total[:, :, old:s])
    if old:
        earlier = total[:, :, :old]
        part = np.matmul(a[:, :, :old], b, out=scratch("part", *earlier.shape, most=total.size))
        np.add(earlier, part, out=earlier)


class MaskGradient:
    """The gradient of an additive mask: as large as the scores, and made only if it is wanted."""

    __slots__ = ("add", "dtype", "dy", "shape")

    def __init__(self, shape: Shape, dy: Array, add: Callable[[Array, Array], None]) -> None:
        self.shape, self.dy, self.add = shape, dy, add
        self.dtype: DType = dy.dtype

    def write_to(self, buffer: Array) -> None:
        """buffer = gradient"""
        buffer[...] = 0
        self.add(self.dy, buffer)

    def add_to(self, buffer: Array) -> None:
        """buffer += gradient"""
        self.add(self.dy, buffer)

    def dense(self) -> Array:
        """The gradient as an array of its own."""
        out = empty(self.shape, self.dtype)
        self.write_to(out)
        return out
