"""Angles, and the sides that they belong to: the inverses of sine, cosine, tangent, sinh, cosh and
tanh, and the hypotenuse. `sin`, `cos` and `tanh` themselves are in `elementwise.py`.

Where a function is not defined the result is nan in silence, and where its graph is vertical the
gradient is inf. No gradient squares x, so none overflows before the result would.
"""

from __future__ import annotations

import math
from typing import Any

from ..backend import Array, array_module, silent
from ..tensor import op
from .elementwise import divide, sqrt, where

__all__ = ["arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "hypot"]


@op(floating=True)
@silent
def arcsin(x: Array) -> Any:
    """The angle from -π/2 to π/2 whose sine is x. Gradient: dy / √(1 - x²)."""
    return array_module(x).arcsin(x), lambda dy: divide(dy, sqrt(1 - x) * sqrt(1 + x))


@op(floating=True)
@silent
def arccos(x: Array) -> Any:
    """The angle from 0 to π whose cosine is x. Gradient: -dy / √(1 - x²)."""
    return array_module(x).arccos(x), lambda dy: -divide(dy, sqrt(1 - x) * sqrt(1 + x))


@op(floating=True)
def arctan(x: Array) -> Any:
    """The angle from -π/2 to π/2 whose tangent is x. Gradient: dy / (1 + x²)."""

    def dx(dy: Array) -> Array:
        root = hypot(x, 1)
        return divide(divide(dy, root), root)

    return array_module(x).arctan(x), dx


@op(floating=True)
def arctan2(a: Array, b: Array) -> Any:
    """The angle from -π to π of the point with abscissa b and ordinate a, so tan y = a / b.

    Gradients: dy·b / (a² + b²), -dy·a / (a² + b²); 0 at the origin, which lies in no direction.
    """

    def across(dy: Array, side: Array) -> Array:
        length = hypot(a, b)
        length = where(length == 0, math.inf, length)
        return divide(dy * divide(side, length), length)

    y = array_module(a, b).arctan2(a, b)
    return y, (lambda dy: across(dy, b), lambda dy: -across(dy, a))


@op(floating=True)
@silent
def hypot(a: Array, b: Array) -> Any:
    """y = √(a² + b²), which does not overflow before the result does.

    Gradients: dy·a / y, dy·b / y; nan at the origin, as in PyTorch.
    """
    y = array_module(a, b).hypot(a, b)
    return y, (lambda dy: dy * divide(a, y), lambda dy: dy * divide(b, y))


@op(floating=True)
def arcsinh(x: Array) -> Any:
    """The number whose hyperbolic sine is x. Gradient: dy / √(x² + 1)."""
    return array_module(x).arcsinh(x), lambda dy: divide(dy, hypot(x, 1))


@op(floating=True)
@silent
def arccosh(x: Array) -> Any:
    """The number from 0 on whose hyperbolic cosine is x. Gradient: dy / √(x² - 1)."""
    return array_module(x).arccosh(x), lambda dy: divide(dy, sqrt(x - 1) * sqrt(x + 1))


@op(floating=True)
@silent
def arctanh(x: Array) -> Any:
    """The number whose hyperbolic tangent is x. Gradient: dy / (1 - x²)."""
    return array_module(x).arctanh(x), lambda dy: divide(dy, (1 - x) * (1 + x))
