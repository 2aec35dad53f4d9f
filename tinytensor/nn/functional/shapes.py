"""Vectors of length one and the angles between them, one-hot rows, padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ... import ops
from ...backend import array_module
from ...ops.elementwise import bottom
from ...tensor import Tensor, as_tensor, check_tensors

__all__ = ["cosine_similarity", "normalize", "one_hot", "pad"]


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """x / max(‖x‖ₚ, eps), with the norm taken along `dim`."""
    norm = ops.norm(input, ord=p, axis=dim, keepdims=True)
    return ops.divide(input, ops.maximum(norm, eps))  # type: ignore[no-any-return]


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """x₁ · x₂ / (max(‖x₁‖, eps) · max(‖x₂‖, eps)) along `dim` of the shape they broadcast to."""
    check_tensors("cosine_similarity", x1=x1, x2=x2)
    try:
        shape = np.broadcast_shapes(x1.shape, x2.shape)
    except ValueError:
        raise ValueError(
            f"cosine_similarity: shapes {tuple(x1.shape)} and {tuple(x2.shape)} do not broadcast "
            "together"
        ) from None
    x1, x2 = ops.broadcast_to(x1, shape), ops.broadcast_to(x2, shape)
    return (normalize(x1, 2.0, dim, eps) * normalize(x2, 2.0, dim, eps)).sum(dim)  # type: ignore[no-any-return]


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Integers (…) -> (…, num_classes) int64: 1 at each number, else 0.

    num_classes=-1 is one more than the largest number.
    """
    check_tensors("one_hot", tensor=tensor)
    ids = bottom(tensor)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"one_hot: expected class numbers, got {ids.dtype}")
    if num_classes == -1:
        if ids.size == 0:
            raise ValueError("one_hot: num_classes must be given where there is no number to go by")
        num_classes = int(ids.max()) + 1
    if not hasattr(num_classes, "__index__") or num_classes < 1:
        raise ValueError(
            f"one_hot: num_classes is a positive integer, or -1, but it is {num_classes!r}"
        )
    ops.network.check_range("one_hot", "class", ids, num_classes, "classes")
    hot = ids[..., None] == array_module(ids).arange(num_classes)
    return as_tensor(hot.astype("int64"))


def pad(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """`input` with elements added before and after: pad = (left, right, top, bottom, …).

    The pairs go from the last axis backwards; a negative number cuts elements off. Added elements
    are `value` (0); "constant" is the only mode.
    """
    if mode != "constant":
        raise ValueError(f"pad: mode is {mode!r}, but only 'constant' is offered")
    check_tensors("pad", input=input)
    if not isinstance(pad, tuple | list) or not all(hasattr(n, "__index__") for n in pad):
        raise TypeError(f"pad: expected a tuple of integers, got {pad!r}")
    if len(pad) % 2 or len(pad) // 2 > input.ndim:
        raise ValueError(
            f"pad: expected (before, after) pairs for at most the {input.ndim} axes of the input, "
            f"got {len(pad)} numbers"
        )
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    pairs = [(0, 0)] * (input.ndim - len(pairs)) + pairs
    if any(
        before + size + after < 0 for (before, after), size in zip(pairs, input.shape, strict=True)
    ):
        raise ValueError(f"pad: {tuple(pad)} cuts more off than the input {tuple(input.shape)} has")
    cut = tuple(
        slice(max(0, -before), size - max(0, -after))
        for (before, after), size in zip(pairs, input.shape, strict=True)
    )
    widths = [(max(0, before), max(0, after)) for before, after in pairs]
    if any(n < 0 for n in pad):
        input = input[cut]
    return ops.pad(input, widths, 0 if value is None else value)  # type: ignore[no-any-return]
