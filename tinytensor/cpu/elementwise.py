"""GELU, ReLU and large sums in one pass over pieces that stay in cache, into pooled arrays."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..autograd import state
from ..backend import Array, DType, silent
from ..ops._special import error_function
from ..ops.elementwise import add, divide, gelu, multiply, relu, where
from .linear import FLOATS
from .one_row import FEW, gelu_row
from .pieces import in_pieces
from .pool import SMALLEST, empty
from .recipes import leave_recipe
from .threads import split

ZEROS = 1 << 16  # numbers that ReLU compares at a time
ERF_PIECE = 1 << 14  # the error function makes arrays of its own: these are too small for pages
# Numbers for which GELU keeps its input alone: memory then counts for more than computing it again.
LARGE = 1 << 21
WORTH_A_THREAD = 1 << 17  # numbers: each goes through a dozen passes
ROOT = math.sqrt(2 / math.pi)


@gelu.register(np.ndarray)
@silent
def fast_gelu(x: Array, approximate: str = "none") -> Any:
    """y = x h with h = (1 + tanh u) / 2, u = √(2/π) (x + 0.044715 x³), and dx = dy · slope.

    The slope is kept instead of x. For a large array x is kept instead of both the slope and y.
    """
    if approximate == "none" and x.dtype in FLOATS and x.size:
        return _gelu_erf(x)
    if approximate != "tanh" or x.dtype not in FLOATS or x.size == 0:
        return NotImplemented
    recording = state.recording
    if x.size <= FEW and not recording:
        return gelu_row(x), None
    shape = x.shape
    source = x.reshape(-1)
    if not recording or x.size >= LARGE:
        y = _gelu_tanh(source).reshape(shape)
        if not recording:
            return y, None
        leave_recipe(y, lambda: _gelu_tanh(source).reshape(shape))
        return y, lambda dy: _gelu_tanh_gradient(source, dy.reshape(-1)).reshape(shape)
    y, slope = empty(source.shape, x.dtype), empty(source.shape, x.dtype)

    def work(start: int, stop: int) -> None:
        h, square = (empty((stop - start,), x.dtype) for _ in range(2))
        part = slice(start, stop)
        _half_of(source[part], h, square)
        np.multiply(source[part], h, out=y[part])
        _slope_of(h, square, y[part], slope[part])

    in_pieces(len(source), 1, work, WORTH_A_THREAD)

    def dx(dy: Array) -> Array:
        out = empty(shape, dy.dtype)
        np.multiply(dy, slope.reshape(shape), out=out)
        return out

    return y.reshape(shape), dx


def _gelu_tanh(x: Array) -> Array:
    """The tanh form of one axis of numbers."""
    y = empty(x.shape, x.dtype)

    def work(start: int, stop: int) -> None:
        part = slice(start, stop)
        h = empty((stop - start,), x.dtype)
        _half_of(x[part], h, y[part])
        np.multiply(x[part], h, out=y[part])

    in_pieces(len(x), 1, work, WORTH_A_THREAD)
    return y


def _gelu_tanh_gradient(x: Array, dy: Array) -> Array:
    """dy · slope, from x alone."""
    dx = empty(x.shape, x.dtype)

    def work(start: int, stop: int) -> None:
        h, square = (empty((stop - start,), x.dtype) for _ in range(2))
        part = slice(start, stop)
        out = dx[part]
        _half_of(x[part], h, square)
        np.multiply(x[part], h, out=out)
        _slope_of(h, square, out, out)
        np.multiply(out, dy[part], out=out)

    in_pieces(len(x), 1, work, WORTH_A_THREAD)
    return dx


def _half_of(x: Array, h: Array, square: Array) -> None:
    """h = (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, and square = x²."""
    np.multiply(x, x, out=square)
    np.multiply(square, 0.044715 * ROOT, out=h)
    np.add(h, ROOT, out=h)
    np.multiply(h, x, out=h)
    np.tanh(h, out=h)
    np.multiply(h, 0.5, out=h)
    np.add(h, 0.5, out=h)


def _slope_of(h: Array, square: Array, y: Array, slope: Array) -> None:
    """slope = h + y (1 - h) 2u', u' = √(2/π) (1 + 3 · 0.044715 x²), for y = x h.

    square is lost; slope may be y's own array.
    """
    np.multiply(square, 6 * 0.044715 * ROOT, out=square)
    np.add(square, 2 * ROOT, out=square)
    np.multiply(square, y, out=square)
    np.subtract(1, h, out=slope)
    np.multiply(slope, square, out=slope)
    np.add(slope, h, out=slope)


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
    """ZEROS copies of a number: NumPy takes the larger or smaller of two arrays in a third of the
    time that it needs for an array and a number.
    """
    return np.full(ZEROS, value, dtype)


@relu.register(np.ndarray)
def fast_relu(x: Array) -> Any:
    """max(x, 0); the output itself says where the gradient passes."""
    if x.dtype not in FLOATS:
        return NotImplemented
    zeros = _constant(0.0, x.dtype)
    shape = x.shape
    source = x.reshape(-1)
    y = empty(source.shape, x.dtype)
    for i in range(0, len(source), ZEROS):
        piece = source[i : i + ZEROS]
        np.maximum(piece, zeros[: len(piece)], out=y[i : i + ZEROS])

    def dx(dy: Array) -> Array:
        out = empty(shape, dy.dtype)
        return np.multiply(dy, np.not_equal(y, 0).reshape(shape), out=out)  # nan ≠ 0: it passes

    return y.reshape(shape), dx


@where.register(np.ndarray)
def fast_where(condition: Array, a: Array, b: Array) -> Any:
    """Between arrays, or an array and a number."""
    if type(condition) is not np.ndarray or not (type(a) is np.ndarray or type(b) is np.ndarray):
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
@silent
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
@silent
def fast_multiply(a: Array, b: Array) -> Any:
    """Large products of equal shapes go into a pooled array."""
    if type(a) is np.ndarray is type(b) and a.nbytes >= SMALLEST and _alike(a, b):
        return _product(a, b), (lambda dy: _product(dy, b), lambda dy: _product(dy, a))
    return a * b, (lambda dy: dy * b, lambda dy: dy * a)


def _product(a: Array, b: Array) -> Array:
    out = empty(a.shape, a.dtype)
    np.multiply(a, b, out=out)
    return out
