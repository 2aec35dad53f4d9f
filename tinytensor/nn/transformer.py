"""`nn.TransformerEncoderLayer` and a stack of them, with PyTorch's weights and arguments.

The GPT's own blocks are in `gpt/model.py`; these layers are for scripts that were written for
PyTorch's. Both are built on `nn.MultiheadAttention`, next door.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ..tensor import Tensor
from . import functional as F
from .attention import MultiheadAttention
from .containers import ModuleList
from .layers import Dropout, LayerNorm, Linear, check_size
from .module import Module

__all__ = ["TransformerEncoder", "TransformerEncoderLayer"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class TransformerEncoderLayer(Module):
    """Attention of a sequence to itself, then two linear layers, each added to what goes in.

        x = norm1(x + dropout(attention(x)))
        x = norm2(x + dropout(linear2(dropout(activation(linear1(x))))))

    A. Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.1. With
    `norm_first` each part is x = x + dropout(part(norm(x))), as in GPT-2. The sequence is (length,
    batch, d_model), or (batch, length, d_model) with `batch_first`, or (length, d_model);
    `activation` is "relu", "gelu" or a function.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(activation, str) and activation not in _ACTIVATIONS:
            raise ValueError(
                'nn.TransformerEncoderLayer: activation is "relu", "gelu" or a function, not '
                f"{activation!r}"
            )
        place = {"device": device, "dtype": dtype}
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, **place
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, **place)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **place)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, **place)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = _ACTIVATIONS[activation] if isinstance(activation, str) else activation

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """A tensor like `src`. The masks are those of `nn.MultiheadAttention`.

        So is `is_causal`: True hides what is later, whether a mask comes with it or not.
        """
        x, masks = src, (src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            x = x + self._attention(self.norm1(x), *masks)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attention(x, *masks))
        return self.norm2(x + self._feed_forward(x))  # type: ignore[no-any-return]

    def _attention(
        self, x: Tensor, mask: Tensor | None, key_padding_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        y, _ = self.self_attn(
            x, x, x, key_padding_mask, need_weights=False, attn_mask=mask, is_causal=is_causal
        )
        return self.dropout1(y)  # type: ignore[no-any-return]

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(x)))
        return self.dropout2(self.linear2(hidden))  # type: ignore[no-any-return]


class TransformerEncoder(Module):
    """`num_layers` copies of `encoder_layer` one after the other, and then `norm`, if given.

    The copies start with the same numbers; a model that is to be trained draws them anew, as in
    `for p in encoder.parameters(): if p.dim() > 1: nn.init.xavier_uniform_(p)`.
    """

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        check_size("TransformerEncoder", num_layers=num_layers)
        self.layers = ModuleList(copy.deepcopy(encoder_layer) for _ in range(num_layers))
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """A tensor like `src`; every layer is given the masks."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, is_causal)
        return src if self.norm is None else self.norm(src)
