"""What a layer does with its weights: linear, embedding; and dropout."""

from __future__ import annotations

import math

from ... import ops, random
from ...tensor import Tensor, check_tensors

__all__ = ["dropout", "embedding", "linear"]


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weightᵀ + bias, with weight (out, in): (…, in) -> (…, out)."""
    return ops.linear(input, weight, bias)  # type: ignore[no-any-return]


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table: input (…) of integers, weight (V, C) -> (…, C).

    The row `padding_idx` receives no gradient; it may be negative, the ids may not.
    """
    check_tensors("embedding", input=input, weight=weight)
    return ops.embedding(  # type: ignore[no-any-return]
        weight, input, padding_row(padding_idx, weight.shape[0])
    )


def padding_row(padding_idx: int | None, rows: int) -> int | None:
    """`padding_idx` counted from the start of a table of so many rows."""
    if padding_idx is None:
        return None
    if not hasattr(padding_idx, "__index__") or not -rows <= padding_idx < rows:
        raise ValueError(f"embedding: padding_idx {padding_idx!r} is not one of the {rows} rows")
    return padding_idx % rows


def dropout(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Each element zeroed with probability p, the rest times 1 / (1 - p); `input` if not training.

    The mask comes from the default generator, and is made again in the backward pass.
    """
    check_tensors("dropout", input=input)
    check_probability("dropout", p)
    if not training or p == 0:
        return input
    return ops.dropout(input, p, mask_draw(input.shape))  # type: ignore[no-any-return]


def mask_draw(shape: tuple[int, ...]) -> random.Draw:
    """What the default generator sets aside for the mask of an array of this shape."""
    return random.default_generator.reserve(-(-math.prod(shape) // 2))  # two elements a word


def check_probability(name: str, p: float) -> None:
    """Raise unless `p` is a probability."""
    if not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ValueError(f"{name}: p is a probability, between 0 and 1, but it is {p!r}")
