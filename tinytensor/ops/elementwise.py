"""Elementwise operations: y[i] = f(x[i]), with inputs broadcast against each other.

Each docstring gives the gradient; the engine sums it back over broadcast axes. Where the
mathematics
has a pole or leaves the reals (log 0, 0⁻¹), the result is inf or nan in silence, as in PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import Array, array_module, is_array, is_floating
from ..tensor import Tensor, op, stop_gradient
from ._special import error_function

__all__ = [
    "absolute",
    "add",
    "astype",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "ceil",
    "clip",
    "copy",
    "cos",
    "divide",
    "equal",
    "erf",
    "exp",
    "expm1",
    "floor",
    "floor_divide",
    "gelu",
    "greater",
    "greater_equal",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "masked_fill",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "power",
    "reciprocal",
    "relu",
    "remainder",
    "round",
    "rsqrt",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sqrt",
    "square",
    "subtract",
    "tanh",
    "where",
]


def silent() -> Any:
    """Poles give inf and nan without a warning."""
    return np.errstate(divide="ignore", invalid="ignore", over="ignore")


# --- arithmetic ----------------------------------------------------------------------------------


@op(promote=True)
def add(a: Array, b: Array) -> Any:
    """a + b. Gradients: dy, dy."""
    return a + b, (lambda dy: dy, lambda dy: dy)


@op(promote=True)
def subtract(a: Array, b: Array) -> Any:
    """a - b. Gradients: dy, -dy."""
    return a - b, (lambda dy: dy, lambda dy: -dy)


@op(promote=True)
def multiply(a: Array, b: Array) -> Any:
    """a · b. Gradients: dy·b, dy·a."""
    return a * b, (lambda dy: dy * b, lambda dy: dy * a)


@op(floating=True)
def divide(a: Array, b: Array) -> Any:
    """a / b; integers are divided as float32. Gradients: dy/b, -dy·a/b²."""
    with silent():
        y = a / b
    return y, (lambda dy: divide(dy, b), lambda dy: divide(-dy * a, b * b))


@op(promote=True)
def power(a: Array, b: Array) -> Any:
    """a to the power b. Gradients: dy·b·a^(b-1), and dy·y·ln a, which is 0 where a is 0 and b >= 0.

    Raises ValueError for integers to a negative integer power.
    """
    _check_integer_power(a, b)
    with silent():
        y = a**b

    def da(dy: Array) -> Array:
        if not is_array(b):  # a Python number: x², x³, √x are the usual ones
            return dy * 0 if b == 0 else dy * b if b == 1 else dy * (b * power(a, b - 1))
        xp = array_module(dy, a, b)
        # a^(b-1) is infinite at a = 0 = b, where the product with b must be 0.
        return dy * b * power(a, xp.where(b == 0, xp.ones_like(b), b - 1))

    def db(dy: Array) -> Array:
        xp = array_module(dy, a, b)
        flat = (a == 0) & (b >= 0)
        one = xp.ones_like(b)
        return dy * xp.where(
            flat, xp.zeros_like(b), power(a, b) * log(xp.where(flat, one, a * one))
        )

    return y, (da, db)


def _check_integer_power(a: Any, b: Any) -> None:
    base = getattr(a, "dtype", None)
    if base is not None and base.kind in "iu":
        lowest = b if not is_array(b) else (stop_gradient(b).array if isinstance(b, Tensor) else b)
        if (
            np.any(np.asarray(lowest) < 0)
            if not hasattr(lowest, "get")
            else bool((lowest < 0).any())
        ):
            raise ValueError(
                "power: integers cannot be raised to a negative integer power; use x.float()"
            )


@op
def negative(x: Array) -> Any:
    """-x. Gradient: -dy."""
    return -x, lambda dy: -dy


@op
def absolute(x: Array) -> Any:
    """|x|. Gradient: dy·sign(x), 0 at 0."""
    return abs(x), lambda dy: dy * sign(stop_gradient(x))


@op
def sign(x: Array) -> Any:
    """-1, 0 or 1. Gradient: 0."""
    xp = array_module(x)
    return xp.sign(x), lambda dy: dy * 0


@op(floating=True)
def reciprocal(x: Array) -> Any:
    """1 / x. Gradient: -dy / x²."""
    return divide(1, x), lambda dy: divide(-dy, x * x)


@op(promote=True)
def square(x: Array) -> Any:
    """x². Gradient: 2·dy·x."""
    return x * x, lambda dy: dy * (2 * x)


@op(promote=True)
def floor_divide(a: Array, b: Array) -> Any:
    """⌊a / b⌋, towards minus infinity. No gradient."""
    _check_integer_zero("floor_divide", a, b)
    with silent():
        return a // b, None


@op(promote=True)
def remainder(a: Array, b: Array) -> Any:
    """a - b·⌊a / b⌋, with the sign of b. Gradients: dy, -dy·⌊a / b⌋."""
    _check_integer_zero("remainder", a, b)
    with silent():
        return a % b, (lambda dy: dy, lambda dy: -dy * floor_divide(a, b))


def _check_integer_zero(name: str, a: Any, b: Any) -> None:
    integers = all(getattr(x, "dtype", np.dtype(type(x))).kind in "iub" for x in (a, b))
    if integers and isinstance(b, int | np.ndarray) and np.any(np.equal(b, 0)):
        raise ZeroDivisionError(f"{name}: integer division by zero")


# --- functions of one number ---------------------------------------------------------------------


@op(floating=True)
def exp(x: Array) -> Any:
    """eˣ. Gradient: dy·eˣ."""
    with silent():
        y = array_module(x).exp(x)
    return y, lambda dy: dy * y


@op(floating=True)
def expm1(x: Array) -> Any:
    """eˣ - 1, exact near 0. Gradient: dy·eˣ."""
    with silent():
        return array_module(x).expm1(x), lambda dy: dy * exp(x)


@op(floating=True)
def log(x: Array) -> Any:
    """The natural logarithm. Gradient: dy / x."""
    with silent():
        return array_module(x).log(x), lambda dy: divide(dy, x)


@op(floating=True)
def log1p(x: Array) -> Any:
    """ln(1 + x), exact near 0. Gradient: dy / (1 + x)."""
    with silent():
        return array_module(x).log1p(x), lambda dy: divide(dy, 1 + x)


@op(floating=True)
def sqrt(x: Array) -> Any:
    """√x. Gradient: dy / (2√x)."""
    with silent():
        y = array_module(x).sqrt(x)
    return y, lambda dy: divide(dy, 2 * y)


@op(floating=True)
def rsqrt(x: Array) -> Any:
    """1 / √x. Gradient: -dy·y³ / 2."""
    y = divide(1, sqrt(x))
    return y, lambda dy: dy * (-0.5 * y * y * y)


@op(floating=True)
def sin(x: Array) -> Any:
    """sin x, x in radians. Gradient: dy·cos x."""
    with silent():
        return array_module(x).sin(x), lambda dy: dy * cos(x)


@op(floating=True)
def cos(x: Array) -> Any:
    """cos x, x in radians. Gradient: -dy·sin x."""
    with silent():
        return array_module(x).cos(x), lambda dy: -dy * sin(x)


@op(floating=True)
def tanh(x: Array) -> Any:
    """tanh x. Gradient: dy·(1 - y²)."""
    y = array_module(x).tanh(x)
    return y, lambda dy: dy * (1 - y * y)


@op(floating=True)
def sigmoid(x: Array) -> Any:
    """1 / (1 + e⁻ˣ), as (1 + tanh(x/2)) / 2, which cannot overflow. Gradient: dy·y·(1 - y)."""
    y = 0.5 * array_module(x).tanh(0.5 * x) + 0.5
    return y, lambda dy: dy * (y * (1 - y))


@op(floating=True)
def erf(x: Array) -> Any:
    """The error function, 2/√π ∫₀ˣ e^(-t²) dt. Gradient: dy · 2/√π · e^(-x²)."""
    y = erf(x) if isinstance(x, Tensor) else error_function(x)
    return y, lambda dy: dy * (2 / math.sqrt(math.pi) * exp(-x * x))


@op
def relu(x: Array) -> Any:
    """max(x, 0). Gradient: dy where x > 0, else 0."""
    positive = x > 0
    return array_module(x).where(positive, x, x * 0), lambda dy: dy * positive


@op(floating=True)
def silu(x: Array) -> Any:
    """x·σ(x) (D. Hendrycks and K. Gimpel, 2016). Gradient: dy·(σ + x·σ·(1 - σ))."""
    s = sigmoid(x)
    return x * s, lambda dy: dy * (s + x * s * (1 - s))


@op(floating=True)
def gelu(x: Array, approximate: str = "none") -> Any:
    """x·Φ(x), with Φ the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415).

    "none": Φ = (1 + erf(x/√2)) / 2; gradient dy·(Φ + x·φ(x)), φ the normal density.
    "tanh", GPT-2's: Φ ≈ (1 + tanh u) / 2 with u = √(2/π)(x + 0.044715 x³);
    gradient dy·((1 + t)/2 + x·(1 - t²)·u'/2), t = tanh u.
    """
    xp = array_module(x)
    if approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        t = xp.tanh(c * (x + 0.044715 * (x * x * x)))

        def dx(dy: Array) -> Array:
            slope = c * (1 + 3 * 0.044715 * (x * x))  # u'
            return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)

        return 0.5 * x * (1 + t), dx
    if approximate != "none":
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    area = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    return (
        x * area,
        lambda dy: dy * (area + x * (exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi)))),
    )


# --- rounding ------------------------------------------------------------------------------------


@op
def floor(x: Array) -> Any:
    """The largest integer not above x. Gradient: 0."""
    return array_module(x).floor(x), lambda dy: dy * 0


@op
def ceil(x: Array) -> Any:
    """The smallest integer not below x. Gradient: 0."""
    return array_module(x).ceil(x), lambda dy: dy * 0


@op
def round(x: Array) -> Any:
    """The nearest integer, halves to even. Gradient: 0."""
    xp = array_module(x)
    return (
        xp.round(x) if isinstance(x, Tensor) else xp.rint(x).astype(x.dtype, copy=False)
    ), lambda dy: dy * 0


# --- choosing ------------------------------------------------------------------------------------


@op(promote=True)
def maximum(a: Array, b: Array) -> Any:
    """The larger of a and b. Gradient: to the larger; half to each where they are equal."""
    share = _share(stop_gradient(a), stop_gradient(b))
    return array_module(a, b).maximum(a, b), (
        lambda dy: dy * share(dy),
        lambda dy: dy * (1 - share(dy)),
    )


@op(promote=True)
def minimum(a: Array, b: Array) -> Any:
    """The smaller of a and b. Gradient: to the smaller; half to each where they are equal."""
    share = _share(stop_gradient(b), stop_gradient(a))
    return array_module(a, b).minimum(a, b), (
        lambda dy: dy * share(dy),
        lambda dy: dy * (1 - share(dy)),
    )


def _share(a: Any, b: Any) -> Any:
    """The part of the gradient that goes to a in max(a, b): 1, 1/2 or 0, in the gradient's
    dtype.
    """
    return lambda dy: ((a > b) + 0.5 * (a == b)).astype(dy.dtype)


@op(promote=True)
def clip(x: Array, low: float | None = None, high: float | None = None) -> Any:
    """x limited to [low, high]; None is no limit. Gradient: dy where low <= x <= high, else 0."""
    if low is None and high is None:
        raise ValueError("clip: give low, high or both")
    xp = array_module(x)
    y = x
    if low is not None:
        y = xp.maximum(y, low)
    if high is not None:
        y = xp.minimum(y, high)
    inside = y == x
    return y, lambda dy: dy * inside


@op(promote=("a", "b"))
def where(condition: Array, a: Array, b: Array) -> Any:
    """a where `condition` is true, else b; all three broadcast. Gradients: dy where chosen, else
    0.
    """
    condition = bottom(condition)
    return array_module(condition, a, b).where(condition, a, b), (
        None,
        lambda dy: array_module(condition, dy).where(condition, dy, 0),
        lambda dy: array_module(condition, dy).where(condition, 0, dy),
    )


def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """x with `value` where the boolean `mask` is true; the dtype is x's. Gradient: dy where it is
    false.
    """
    if mask.dtype != np.bool_:
        raise TypeError(
            f"masked_fill: the mask must be boolean, not {mask.dtype}; compare, as in mask == 0"
        )
    if is_array(value):
        value = value.astype(x.dtype)
    elif not is_floating(x.dtype) and isinstance(value, float):
        raise TypeError(f"masked_fill: the value {value} does not fit into a {x.dtype} tensor")
    return where(mask, value, x)


# --- comparisons and logic, without gradient -----------------------------------------------------


def _compare(name: str, symbol: str, compute: Any) -> Any:
    def body(a: Array, b: Array) -> Any:
        return compute(a, b), None

    body.__name__, body.__doc__ = name, f"a {symbol} b, as booleans."
    return op(promote=True)(body)


equal = _compare("equal", "==", lambda a, b: a == b)
not_equal = _compare("not_equal", "!=", lambda a, b: a != b)
less = _compare("less", "<", lambda a, b: a < b)
less_equal = _compare("less_equal", "<=", lambda a, b: a <= b)
greater = _compare("greater", ">", lambda a, b: a > b)
greater_equal = _compare("greater_equal", ">=", lambda a, b: a >= b)
bitwise_and = _compare("bitwise_and", "&", lambda a, b: a & b)
bitwise_or = _compare("bitwise_or", "|", lambda a, b: a | b)
bitwise_xor = _compare("bitwise_xor", "^", lambda a, b: a ^ b)
logical_and = _compare("logical_and", "and", lambda a, b: _truth(a) & _truth(b))
logical_or = _compare("logical_or", "or", lambda a, b: _truth(a) | _truth(b))
logical_xor = _compare("logical_xor", "xor", lambda a, b: _truth(a) ^ _truth(b))


def _truth(x: Any) -> Any:
    return x != 0


@op
def logical_not(x: Array) -> Any:
    """Whether x is zero."""
    return x == 0, None


@op
def isnan(x: Array) -> Any:
    """Whether x is not a number."""
    return x != x, None


@op
def isinf(x: Array) -> Any:
    """Whether x is plus or minus infinity."""
    return abs(x) == math.inf, None


@op
def isfinite(x: Array) -> Any:
    """Whether x is neither infinite nor nan."""
    return abs(x) < math.inf, None


# --- the same numbers ----------------------------------------------------------------------------


@op
def astype(x: Array, dtype: Any = None) -> Any:
    """x in another dtype. Gradient: dy, cast back; none where the new dtype is not floating."""
    dtype = np.dtype(dtype)
    return x.astype(dtype), (lambda dy: dy) if is_floating(dtype) and is_floating(x.dtype) else None


@op
def copy(x: Array) -> Any:
    """x in memory of its own. Gradient: dy."""
    return array_module(x).copy(x), lambda dy: dy


def bottom(x: Any) -> Any:
    return x.array if isinstance(x, Tensor) else x
