"""Scaled dot-product attention as one operation (A. Vaswani et al., 2017).

The reference keeps the whole matrix of weights for its backward pass and shows the mathematics; the
fast versions work on tiles of it and never hold it. Shapes: B batch, H heads, L queries, S keys,
D head size. Any axes may stand before (L, D); batch and heads are only the usual ones.
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd import VJP
from ..backend import Array, array_module, silent
from ..random import Draw
from ..tensor import op, stop_gradient
from .network import NO_DRAW, at_least_float32, bottom, dropped

__all__ = ["scaled_dot_product_attention"]


@op
@silent
@at_least_float32
def scaled_dot_product_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    draw: Draw = NO_DRAW,
) -> tuple[Array, VJP]:
    """y = dropout(softmax(scale · q kᵀ + mask)) v.

    q (..., L, D), k (..., S, D), v (..., S, E) -> y (..., L, E); leading axes broadcast. `scale` is
    1/√D unless given. `mask` broadcasts to (..., L, S): boolean, True where a query may attend, or
    added to the scores, and then it has a gradient; None for neither. With `is_causal`, query i
    attends to keys 0, …, i only (L and S may differ). A query that may attend to nothing gets
    zeros, as in PyTorch. With w the softmax and dw = dropout(dy vᵀ):
    ds = w · (dw - Σ dw·w), dq = scale · ds k, dk = scale · dsᵀ q, dv = dropout(w)ᵀ dy, dmask = ds.
    """
    _check_shapes(q, k, v, mask)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    additive = mask is not None and mask.dtype.kind != "b"

    xp = array_module(q, k, v, mask)
    scores = (q @ k.swapaxes(-1, -2)) * scale
    if additive:
        scores = scores + mask
    elif mask is not None:
        scores = xp.where(bottom(mask), scores, -math.inf)
    if is_causal:
        causal = array_module(bottom(q)).tri(q.shape[-2], k.shape[-2], dtype=bool)
        scores = xp.where(causal, scores, -math.inf)
    w = _softmax_or_zeros(scores, xp)

    def drop(a: Array) -> Array:
        return dropped(a, dropout_p, draw) if dropout_p else a

    def vjp(dy: Array) -> tuple[Any, ...]:
        dw = drop(dy @ v.swapaxes(-1, -2))
        ds = w * (dw - (dw * w).sum(axis=-1, keepdims=True))
        dv = drop(w).swapaxes(-1, -2) @ dy
        dq, dk = (ds @ k) * scale, (ds.swapaxes(-1, -2) @ q) * scale
        return dq, dk, dv, ds if additive else None

    return drop(w) @ v, vjp


def _softmax_or_zeros(scores: Array, xp: Any) -> Array:
    """softmax along the last axis; zeros where every score is -inf (softmax itself says nan)."""
    highest = xp.amax(stop_gradient(scores), axis=-1, keepdims=True)
    e = xp.exp(scores - xp.where(highest == -math.inf, 0.0, highest))
    total = e.sum(axis=-1, keepdims=True)
    return e / xp.where(total == 0, 1.0, total)


def _check_shapes(q: Array, k: Array, v: Array, mask: Array) -> None:
    shapes = f"q is {tuple(q.shape)}, k is {tuple(k.shape)}, v is {tuple(v.shape)}"
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise ValueError(f"attention: q, k and v need at least (time, size) axes: {shapes}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"attention: queries of size {q.shape[-1]} cannot be compared with keys of size "
            f"{k.shape[-1]}: {shapes}"
        )
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"attention: {k.shape[-2]} keys need as many values, but there are {v.shape[-2]}: "
            f"{shapes}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"attention: q, k and v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}; "
            "use .to(dtype)"
        )
    if k.shape[-2] == 0:
        raise ValueError(f"attention: there are no keys to attend to: {shapes}")
    if mask is not None:
        _check_mask(mask, (q.shape[-2], k.shape[-2]))


def _check_mask(mask: Array, scores: tuple[int, int]) -> None:
    if mask.dtype.kind in "iu":
        raise TypeError(
            f"attention: the mask is {mask.dtype}; it is boolean (True: may attend) or real "
            "(added to the scores)"
        )
    last = (1, 1, *mask.shape)[-2:]
    if any(given not in (1, size) for given, size in zip(last, scores, strict=True)):
        raise ValueError(
            f"attention: the mask {tuple(mask.shape)} does not fit the scores {scores} of "
            "(queries, keys)"
        )
