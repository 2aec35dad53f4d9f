"""Attention as one operation, and heads of keys that several heads of queries share."""

from __future__ import annotations

from ... import ops, random
from ...tensor import Tensor, check_tensors
from .layers import check_probability, mask_draw

__all__ = ["scaled_dot_product_attention"]


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """dropout(softmax(scale · query keyᵀ + mask)) value, as one operation.

    query (…, L, D), key (…, S, D), value (…, S, E) -> (…, L, E); `scale` is 1/√D unless given.
    `attn_mask` broadcasts to (…, L, S): boolean, True where a query may attend, or real and added
    to the scores. With `is_causal`, query i sees keys 0, …, i (aligned at the top left where L ≠
    S), and of these only what `attn_mask` allows. Queries that may see nothing get zeros.
    `dropout_p` applies always: pass 0 outside training. With `enable_gqa` the third axis from the
    end is heads, and each head of key and value serves as many heads of query as there are for it.
    """
    check_tensors("scaled_dot_product_attention", query=query, key=key, value=value)
    check_probability("scaled_dot_product_attention", dropout_p)
    if enable_gqa:
        key, value = _shared_heads(query, key), _shared_heads(query, value)
    draw = random.Draw(0, 0)
    if dropout_p:
        batch = _broadcast_batch(query, key)
        draw = mask_draw((*batch, query.shape[-2], key.shape[-2]))
    return ops.scaled_dot_product_attention(  # type: ignore[no-any-return]
        query, key, value, attn_mask, is_causal, dropout_p, scale, draw
    )


def _broadcast_batch(query: Tensor, key: Tensor) -> tuple[int, ...]:
    """The axes of the scores before (L, S). The operation refuses sizes that do not match."""
    a, b = query.shape[:-2], key.shape[:-2]
    ndim = max(len(a), len(b))
    a, b = (1,) * (ndim - len(a)) + tuple(a), (1,) * (ndim - len(b)) + tuple(b)
    return tuple(max(pair) for pair in zip(a, b, strict=True))


def _shared_heads(query: Tensor, x: Tensor) -> Tensor:
    """x (…, heads of key, S, D) with each head repeated, (…, heads of query, S, D)."""
    if min(query.ndim, x.ndim) < 3:
        raise ValueError(
            "attention: with enable_gqa, query, key and value are (…, heads, length, size), but "
            f"the query is {tuple(query.shape)} and a key or value {tuple(x.shape)}"
        )
    wanted, given = query.shape[-3], x.shape[-3]
    if given == 0 or wanted % given:
        raise ValueError(
            f"attention: {given} heads of keys and values cannot be shared out evenly among "
            f"{wanted} heads of queries"
        )
    return ops.repeat(x, wanted // given, -3)  # type: ignore[no-any-return]
