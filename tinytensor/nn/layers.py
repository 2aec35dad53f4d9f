"""Layers with parameters, and Dropout: Linear, Embedding, LayerNorm.

Each keeps its parameters and calls one operation; names, shapes and starting distributions are
PyTorch's, so weights move both ways. `device=` and `dtype=` say where and how parameters are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import ops
from ..creation import empty
from ..tensor import Tensor
from . import functional as F
from . import init
from .functional.layers import check_probability, padding_row
from .module import Module
from .parameter import Parameter

__all__ = ["AddLayerNorm", "Dropout", "Embedding", "Flatten", "Identity", "LayerNorm", "Linear"]


class Linear(Module):
    """y = x @ weightᵀ + bias: (…, in_features) -> (…, out_features).

    weight is (out_features, in_features), bias (out_features,); both start uniform on
    ±1/√in_features.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_size("Linear", in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = parameter((out_features, in_features), device, dtype)
        self.bias = parameter((out_features,), device, dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the starting values anew."""
        bound = 1 / math.sqrt(max(1, self.in_features))
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Embedding(Module):
    """A table of vectors, looked up by number: (…) integers -> (…, embedding_dim).

    weight is (num_embeddings, embedding_dim) and starts as N(0, 1). The row `padding_idx` starts as
    zeros and receives no gradient.
    """

    weight: Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_size("Embedding", num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_row(padding_idx, num_embeddings)
        self.weight = parameter((num_embeddings, embedding_dim), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the starting values anew."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            self.weight.array[self.padding_idx] = 0

    def forward(self, input: Tensor) -> Tensor:
        return ops.embedding(self.weight, input, self.padding_idx)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class LayerNorm(Module):
    """(x - mean) / √(variance + eps) · weight + bias over the last axes, of `normalized_shape`.

    weight starts as ones and bias as zeros; `bias=False` leaves bias out, and
    `elementwise_affine=False` both.
    """

    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = self.bias = None
        if elementwise_affine:
            self.weight = parameter(self.normalized_shape, device, dtype)
            if bias:
                self.bias = parameter(self.normalized_shape, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones and zeros again."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class AddLayerNorm(LayerNorm):
    """`LayerNorm` of a sum, which is returned too: (input, residual) -> (sum, its norm).

    The two steps between the layers of a transformer, x = x + layer(…) and norm(x), in one pass. It
    normalizes the last axis; the weights are those of `LayerNorm`.
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_size("AddLayerNorm", normalized_shape=normalized_shape)
        super().__init__((normalized_shape,), eps, elementwise_affine, bias, device, dtype)

    def forward(  # type: ignore[override]
        self, input: Tensor, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return F.add_layer_norm(input, residual, self.weight, self.bias, self.eps)


class Dropout(Module):
    """In training, zeroes elements with probability p and multiplies the rest by 1 / (1 - p)."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("Dropout", p)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """Returns what it is given; takes any arguments, so it can stand in for any layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        return input


class Flatten(Module):
    """The axes from `start_dim` to `end_dim` as one; by default all but the batch."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return input.flatten(self.start_dim, self.end_dim)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


def parameter(shape: tuple[int, ...], device: Any, dtype: Any) -> Parameter:
    """A parameter whose values are still to be drawn."""
    return Parameter(empty(shape, dtype=dtype, device=device))


def check_size(layer: str, **sizes: int) -> None:
    """Raise unless every size of nn.`layer` is an integer that is not negative."""
    for name, size in sizes.items():
        if not isinstance(size, int):
            raise TypeError(f"nn.{layer}: {name} must be an integer, not {size!r}")
        if size < 0:
            raise ValueError(f"nn.{layer}: {name} must not be negative, but it is {size}")
