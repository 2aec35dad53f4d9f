"""`nn.MultiheadAttention`, with PyTorch's weights and arguments.

The GPT's own attention is in `gpt/model.py`; this layer is for scripts that were written for
PyTorch's.
"""

from __future__ import annotations

import math
from typing import Any

from .. import ops
from ..backend import is_floating
from ..creation import ones
from ..tensor import Tensor, check_tensors
from . import functional as F
from . import init
from .functional.layers import check_probability
from .layers import Linear, check_size, parameter
from .module import Module
from .parameter import Parameter

__all__ = ["MultiheadAttention"]


class MultiheadAttention(Module):
    """Attention of `num_heads` heads of size embed_dim / num_heads, with its four projections.

    A. Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.2.2. The weights of
    the first three are one, `in_proj_weight` (3 · embed_dim, embed_dim). Inputs are (length, batch,
    embed_dim), or (batch, length, embed_dim) with `batch_first`, or (length, embed_dim).
    """

    in_proj_weight: Parameter
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_size("MultiheadAttention", embed_dim=embed_dim, num_heads=num_heads)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"nn.MultiheadAttention: embed_dim {embed_dim} cannot be cut into {num_heads} heads"
            )
        check_probability("MultiheadAttention", dropout)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.batch_first = batch_first
        self.in_proj_weight = parameter((3 * embed_dim, embed_dim), device, dtype)
        self.in_proj_bias = parameter((3 * embed_dim,), device, dtype) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the starting values anew: Glorot's for the first weights, zeros for the biases."""
        init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        if self.in_proj_bias is not None and self.out_proj.bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`(output, weights)`: output like query, weights (batch, L, S) or None.

        `key_padding_mask` (batch, S) and `attn_mask` (L, S) or (batch · heads, L, S) are True where
        a query may NOT attend (scaled_dot_product_attention has it the other way), or real and
        added to the scores. `is_causal` says that a query sees nothing later than itself; unlike in
        PyTorch, no mask has to come with it. Without `average_attn_weights` the weights of each
        head are returned (batch, heads, L, S); with `need_weights=False` none, which is faster.
        Raises ValueError for shapes, and TypeError for a mask's dtype, that are none of these.
        """
        self._check(query, key, value)
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (ops.swapaxes(x, 0, 1) for x in (query, key, value))
        q, k, v = (
            self._heads(F.linear(x, weight, bias))
            for x, weight, bias in zip(
                (query, key, value),
                self.in_proj_weight.chunk(3),
                [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        mask = self._mask(key_padding_mask, attn_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = _weights(q, k, mask, is_causal)
            y = ops.matmul(F.dropout(weights, dropout), v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        N, _, L, _ = y.shape
        output = self.out_proj(ops.swapaxes(y, 1, 2).reshape(N, L, self.embed_dim))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else ops.swapaxes(output, 0, 1), weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Raise unless the three are sequences of the layer's width, key and value of one shape."""
        check_tensors("nn.MultiheadAttention", query=query, key=key, value=value)
        shapes = [tuple(x.shape) for x in (query, key, value)]
        batch = 0 if self.batch_first else 1
        if (
            query.ndim not in (2, 3)
            or key.ndim != query.ndim
            or shapes[1] != shapes[2]
            or any(shape[-1] != self.embed_dim for shape in shapes)
            or (query.ndim == 3 and query.shape[batch] != key.shape[batch])
        ):
            order = "batch, length" if self.batch_first else "length, batch"
            raise ValueError(
                f"nn.MultiheadAttention: expected query, key and value ({order}, {self.embed_dim}) "
                f"or (length, {self.embed_dim}), of one batch, and value in the shape of key, got "
                f"{', '.join(map(str, shapes))}"
            )

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, length, embed_dim) -> (batch, heads, length, embed_dim / heads)."""
        N, T, C = x.shape
        return ops.swapaxes(x.reshape(N, T, self.num_heads, C // self.num_heads), 1, 2)  # type: ignore[no-any-return]

    def _mask(
        self, key_padding_mask: Tensor | None, attn_mask: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """Both masks as one that is added to scores (batch, heads, L, S)."""
        N, H, L, S = *q.shape[:3], k.shape[2]
        masks = []
        if key_padding_mask is not None:
            _check_mask("key_padding_mask", key_padding_mask, [(N, S)])
            masks.append(key_padding_mask[:, None, None])
        if attn_mask is not None:
            _check_mask("attn_mask", attn_mask, [(L, S), (N * H, L, S)])
            masks.append(attn_mask if attn_mask.ndim == 2 else attn_mask.reshape(N, H, L, S))
        added = [
            ops.where(mask, -math.inf, 0.0).to(q.dtype) if mask.dtype.kind == "b" else mask
            for mask in masks
        ]
        return sum(added[1:], added[0]) if added else None

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}"


def _check_mask(name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> None:
    """Raise unless the mask is boolean or real, in one of the shapes."""
    if mask.dtype.kind != "b" and not is_floating(mask.dtype):
        raise TypeError(
            f"nn.MultiheadAttention: {name} is {mask.dtype}; it is boolean (True: may not attend) "
            "or real (added to the scores)"
        )
    if tuple(mask.shape) not in shapes:
        raise ValueError(
            f"nn.MultiheadAttention: {name} is {tuple(mask.shape)}; here it is "
            f"{' or '.join(map(str, shapes))}"
        )


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """softmax(q kᵀ / √D + mask), (batch, heads, L, S)."""
    scores = ops.matmul(q, ops.swapaxes(k, -2, -1)) * (1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores = scores + mask
    if is_causal:
        everywhere = ones(*scores.shape[-2:], dtype=bool, device=scores.device)
        scores = ops.masked_fill(scores, everywhere.triu(1), -math.inf)
    return ops.softmax(scores, -1)  # type: ignore[no-any-return]
