"""GELU, ReLU and large sums in one pass over pieces that stay in cache, into pooled arrays."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..autograd import state
from ..backend import Array, DType
from ..ops._special import error_function
from ..ops.elementwise import add, divide, gelu, multiply, relu, where
from .linear import FLOATS
from .pool import SMALLEST, empty
from .threads import split

PIECE = 1 << 16  # numbers in a piece: many enough that calls cost little, few enough for a cache
ERF_PIECE = 1 << 14  # the error function makes arrays of its own: these are too small for pages
LONG = 1 << 17  # numbers in a chain that takes another thread longer than it takes to wake it


@gelu.register(np.ndarray)
def fast_gelu(x: Array, approximate: str = "none") -> Any:
    """The tanh form, as x · s with s = sigmoid(2u), because 1 + tanh(u) = 2 sigmoid(2u).

    u = √(2/π) (x + 0.044715 x³). The derivative s + x s (1 - s) 2u' is kept instead of x.
    """
    if approximate == "none" and x.dtype in FLOATS and x.size:
        return _gelu_erf(x)
    if approximate != "tanh" or x.dtype not in FLOATS or x.size == 0:
        return NotImplemented
    recording = state.recording
    c = 2 * math.sqrt(2 / math.pi)
    source = x.reshape(-1)
    y = empty(source.shape, x.dtype)
    slope = empty(source.shape, x.dtype) if recording else None
    # Where -2u passes this, s is 0 to the last bit and exp would overflow.
    limit = _constant(87.0 if x.dtype == np.float32 else 708.0, x.dtype)

    def piece(start: int, stop: int) -> None:
        square, sigmoid, scratch = (empty((min(PIECE, stop - start),), x.dtype) for _ in range(3))
        for i in range(start, stop, PIECE):
            a = source[i : min(i + PIECE, stop)]
            q, s, t = square[: len(a)], sigmoid[: len(a)], scratch[: len(a)]
            np.multiply(a, a, out=q)
            np.multiply(q, -0.044715 * c, out=s)
            np.subtract(s, c, out=s)
            np.multiply(s, a, out=s)  # -2u
            np.minimum(s, limit[: len(a)], out=s)
            np.exp(s, out=t)
            np.add(t, 1, out=s)
            np.divide(1, s, out=s)
            out = y[i : i + len(a)]
            np.multiply(a, s, out=out)
            if slope is not None:
                np.multiply(q, 3 * 0.044715 * c, out=q)
                np.add(q, c, out=q)  # 2u'
                np.multiply(t, s, out=t)  # 1 - s, without the loss of digits
                np.multiply(t, out, out=t)
                np.multiply(t, q, out=t)
                np.add(t, s, out=slope[i : i + len(a)])

    split(len(source), LONG, piece)
    shape = x.shape

    def dx(dy: Array) -> Array:
        out = empty(shape, dy.dtype)
        np.multiply(dy, slope.reshape(shape), out=out)  # type: ignore[union-attr]
        return out

    return y.reshape(shape), dx if recording else None


def _gelu_erf(x: Array) -> Any:
    """The form with the error function: Φ = (1 + erf(x/√2)) / 2; the derivative Φ + x φ is kept."""
    recording = state.recording
    source = x.reshape(-1)
    y = empty(source.shape, x.dtype)
    slope = empty(source.shape, x.dtype) if recording else None

    def work(start: int, stop: int) -> None:
        scratch = empty((min(ERF_PIECE, stop - start),), x.dtype)
        for i in range(start, stop, ERF_PIECE):
            a = source[i : min(i + ERF_PIECE, stop)]
            t, out = scratch[: len(a)], y[i : i + len(a)]
            np.multiply(a, math.sqrt(0.5), out=t)
            area = error_function(t)
            np.add(area, 1, out=area)
            np.multiply(area, 0.5, out=area)
            np.multiply(a, area, out=out)
            if slope is not None:
                np.multiply(a, a, out=t)
                np.multiply(t, -0.5, out=t)
                np.exp(t, out=t)
                np.multiply(t, 1 / math.sqrt(2 * math.pi), out=t)
                np.multiply(t, a, out=t)
                np.add(t, area, out=slope[i : i + len(a)])

    split(len(source), ERF_PIECE, work)
    shape = x.shape

    def dx(dy: Array) -> Array:
        out = empty(shape, dy.dtype)
        np.multiply(dy, slope.reshape(shape), out=out)  # type: ignore[union-attr]
        return out

    return y.reshape(shape), dx if recording else None


@functools.cache
def _constant(value: float, dtype: DType) -> Array:
    """PIECE copies of a number: NumPy takes the larger or smaller of two arrays in a third of the
    time that it needs for an array and a number.
    """
    return np.full(PIECE, value, dtype)


@relu.register(np.ndarray)
def fast_relu(x: Array) -> Any:
    """max(x, 0); the output itself says where the gradient passes."""
    if x.dtype not in FLOATS:
        return NotImplemented
    zeros = _constant(0.0, x.dtype)
    shape = x.shape
    source = x.reshape(-1)
    y = empty(source.shape, x.dtype)
    for i in range(0, len(source), PIECE):
        piece = source[i : i + PIECE]
        np.maximum(piece, zeros[: len(piece)], out=y[i : i + PIECE])

    def dx(dy: Array) -> Array:
        out = empty(shape, dy.dtype)
        return np.multiply(dy, np.not_equal(y, 0).reshape(shape), out=out)  # nan ≠ 0: it passes

    return y.reshape(shape), dx


@where.register(np.ndarray)
def fast_where(condition: Array, a: Array, b: Array) -> Any:
    """Between arrays, or an array and a number."""
    if not (type(a) is np.ndarray or type(b) is np.ndarray):
        return NotImplemented
    return np.where(condition, a, b), (
        None,
        lambda dy: np.where(condition, dy, dy.dtype.type(0)),
        lambda dy: np.where(condition, dy.dtype.type(0), dy),
    )


@divide.register(np.ndarray)
def fast_divide(a: Array, b: Array) -> Any:
    """By a number other than zero, which needs no care about poles."""
    if (type(b) is not float and type(b) is not int) or b == 0 or a.dtype not in FLOATS:
        return NotImplemented
    return a / b, (lambda dy: dy / b, None)


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
