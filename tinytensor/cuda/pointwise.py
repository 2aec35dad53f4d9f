"""Sums, products and curves of CUDA arrays, by the family of kernels in `elementwise.py`.

A kernel takes arrays of one shape and one dtype, float32 or bfloat16, that are contiguous; and
numbers, where one is multiplied with. What must be broadcast or lies otherwise is left to the
reference. In bfloat16 that saves two conversions an operation, and in curves and their gradients
the passes in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..backend import Array, DType
from ..ops.elementwise import (
    add,
    divide,
    erf,
    exp,
    multiply,
    relu,
    sigmoid,
    silu,
    subtract,
    tanh,
)
from .elementwise import apply
from .operations import kernel_for
from .rows import DTYPES

__all__ = ["ARITHMETIC", "CURVES"]

# Operation -> its kernel, that of its gradient, and whether the gradient is found from y (or x).
CURVES = {
    exp: ("exp", "multiply", True),
    tanh: ("tanh", "tanh_backward", True),
    sigmoid: ("sigmoid", "sigmoid_backward", True),
    erf: ("erf", "erf_backward", False),
    relu: ("relu", "relu_backward", False),
    silu: ("silu", "silu_backward", False),
}
ARITHMETIC = (add, subtract, multiply, divide)


def _alike(*arrays: Any) -> bool:
    """Whether the kernels take these: arrays of one device, shape and dtype, all contiguous."""
    first = arrays[0]
    return all(
        type(x) is type(first)
        and x.dtype == first.dtype
        and x.shape == first.shape
        and x.flags.c_contiguous
        for x in arrays
    ) and (first.dtype in DTYPES and first.ndim > 0)


def _as(dy: Array, dtype: DType) -> Array:
    return dy.astype(dtype, copy=False)


def _curve(forward: str, backward: str, from_y: bool, x: Array) -> Any:
    if not _alike(x):
        return NotImplemented
    y = apply(forward, x)
    kept = y if from_y else x
    return y, lambda dy: apply(backward, _as(dy, kept.dtype), kept)


for _operation, _kernels in CURVES.items():
    _implementation: Callable[..., Any] = functools.partial(_curve, *_kernels)
    kernel_for(_operation)(_implementation)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float)


@kernel_for(add)
def cuda_add(a: Array, b: Array) -> Any:
    """a + b of two arrays alike."""
    if _is_number(a) or _is_number(b) or not _alike(a, b):
        return NotImplemented
    return apply("add", a, b), (lambda dy: dy, lambda dy: dy)


@kernel_for(subtract)
def cuda_subtract(a: Array, b: Array) -> Any:
    """a - b of two arrays alike."""
    if _is_number(a) or _is_number(b) or not _alike(a, b):
        return NotImplemented
    dtype = b.dtype  # all that the gradient needs of them
    return apply("subtract", a, b), (
        lambda dy: dy,
        lambda dy: apply("scale", _as(dy, dtype), s=-1.0),
    )


@kernel_for(multiply)
def cuda_multiply(a: Array, b: Array) -> Any:
    """a · b of two arrays alike, or of an array and a number."""
    if _is_number(a) or _is_number(b):
        x, s = (b, a) if _is_number(a) else (a, b)
        if not _alike(x):
            return NotImplemented
        dtype = x.dtype

        def scaled(dy: Array) -> Array:
            return apply("scale", _as(dy, dtype), s=s)

        return scaled(x), ((None, scaled) if _is_number(a) else (scaled, None))
    if not _alike(a, b):
        return NotImplemented
    return apply("multiply", a, b), (
        lambda dy: apply("multiply", _as(dy, b.dtype), b),
        lambda dy: apply("multiply", _as(dy, a.dtype), a),
    )


@kernel_for(divide)
def cuda_divide(a: Array, b: Array) -> Any:
    """a / b of two arrays alike; db = -dy · y / b."""
    if _is_number(a) or _is_number(b) or not _alike(a, b):
        return NotImplemented
    y = apply("divide", a, b)
    return y, (
        lambda dy: apply("divide", _as(dy, b.dtype), b),
        lambda dy: apply("divide_backward", _as(dy, b.dtype), y, b),
    )
