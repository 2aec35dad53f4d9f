"""GELU, ReLU and large sums in one pass over pieces that stay in cache, into pooled arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..autograd import state
from ..backend import Array
from ..ops.elementwise import add, gelu, multiply, relu
from .linear import FLOATS
from .pool import SMALLEST, empty

PIECE = 1 << 14  # numbers in a piece: what a chain works on stays in the first two caches


@gelu.register(np.ndarray)
def fast_gelu(x: Array, approximate: str = "none") -> Any:
    """The tanh form, as x · s with s = sigmoid(2u), because 1 + tanh(u) = 2 sigmoid(2u).

    u = √(2/π) (x + 0.044715 x³). The derivative s + x s (1 - s) 2u' is kept instead of x.
    """
    if approximate != "tanh" or x.dtype not in FLOATS or x.size == 0:
        return NotImplemented
    recording = state.recording
    c = 2 * math.sqrt(2 / math.pi)
    source = x.reshape(-1)
    y = empty(source.shape, x.dtype)
    slope = empty(source.shape, x.dtype) if recording else None
    size = min(PIECE, len(source))
    square, s, scratch = (np.empty(size, x.dtype) for _ in range(3))
    # Where -2u passes this, s is 0 to the last bit and exp would overflow.
    limit = 87.0 if x.dtype == np.float32 else 708.0
    for i in range(0, len(source), PIECE):
        a = source[i : i + PIECE]
        q, e, t = square[: len(a)], s[: len(a)], scratch[: len(a)]
        np.multiply(a, a, out=q)
        np.multiply(q, -0.044715 * c, out=e)
        np.subtract(e, c, out=e)
        np.multiply(e, a, out=e)  # -2u
        np.minimum(e, limit, out=e)
        np.exp(e, out=e)
        np.add(e, 1, out=e)
        np.divide(1, e, out=e)  # s
        out = y[i : i + PIECE]
        np.multiply(a, e, out=out)
        if slope is not None:
            d = slope[i : i + PIECE]
            np.multiply(q, 3 * 0.044715 * c, out=q)
            np.add(q, c, out=q)  # 2u'
            np.subtract(1, e, out=t)
            np.multiply(t, out, out=t)
            np.multiply(t, q, out=t)
            np.add(t, e, out=d)
    shape = x.shape

    def dx(dy: Array) -> Array:
        out = empty(shape, dy.dtype)
        np.multiply(dy, slope.reshape(shape), out=out)  # type: ignore[union-attr]
        return out

    return y.reshape(shape), dx if recording else None


@relu.register(np.ndarray)
def fast_relu(x: Array) -> Any:
    """max(x, 0); the output itself says where the gradient passes."""
    if x.dtype not in FLOATS:
        return NotImplemented
    y = empty(x.shape, x.dtype)
    np.maximum(x, 0, out=y)

    def dx(dy: Array) -> Array:
        out = empty(dy.shape, dy.dtype)
        np.multiply(dy, y > 0, out=out)
        return out

    return y, dx


@add.register(np.ndarray)
def fast_add(a: Array, b: Array) -> Any:
    """Large sums of equal shapes go into a pooled array."""
    if type(a) is np.ndarray is type(b) and a.nbytes >= SMALLEST and _alike(a, b):
        y = empty(a.shape, a.dtype)
        np.add(a, b, out=y)
    else:
        y = a + b
    return y, (_same, _same)


def _same(dy: Array) -> Array:
    return dy


def _alike(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.dtype in FLOATS


@multiply.register(np.ndarray)
def fast_multiply(a: Array, b: Array) -> Any:
    """Large products of equal shapes go into a pooled array."""
    if type(a) is np.ndarray is type(b) and a.nbytes >= SMALLEST and _alike(a, b):
        return _product(a, b), (lambda dy: _product(dy, b), lambda dy: _product(dy, a))
    return a * b, (lambda dy: dy * b, lambda dy: dy * a)


def _product(a: Array, b: Array) -> Array:
    out = empty(a.shape, a.dtype)
    np.multiply(a, b, out=out)
    return out
