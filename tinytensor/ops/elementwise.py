"""Elementwise operations: y[i] = f(x[i]), with inputs broadcast against each other.

Each docstring gives the gradient; the engine sums it back over broadcast axes. Where the
mathematics has a pole or leaves the reals (log 0, √-1), the result is inf or nan in silence, as in
PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Array, array_module, is_array, is_floating, silent
from ..tensor import Tensor, op, result_type, stop_gradient
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


def bottom(x: Any) -> Any:
    """The array at the bottom of a Tensor, for what has no gradient; anything else as it is."""
    return x.array if isinstance(x, Tensor) else x


def _zeros_like(dy: Array) -> Array:
    return array_module(dy).zeros_like(dy)


# --- arithmetic -----------------------------------------------------------------------------------


@op(promote=True)
@silent
def add(a: Array, b: Array) -> Any:
    """a + b. Gradients: dy, dy."""
    return a + b, (lambda dy: dy, lambda dy: dy)


@op(promote=True)
@silent
def subtract(a: Array, b: Array) -> Any:
    """a - b. Gradients: dy, -dy."""
    return a - b, (lambda dy: dy, lambda dy: -dy)


@op(promote=True)
@silent
def multiply(a: Array, b: Array) -> Any:
    """a · b. Gradients: dy·b, dy·a."""
    return a * b, (lambda dy: dy * b, lambda dy: dy * a)


@op(floating=True)
@silent
def divide(a: Array, b: Array) -> Any:
    """y = a / b; integers are divided as float32. Gradients: dy/b, -dy·y/b."""
    y = a / b
    return y, (lambda dy: divide(dy, b), lambda dy: -dy * divide(y, b))


@op(promote=True)
@silent
def power(a: Array, b: Array) -> Any:
    """y = a to the power b. Gradients: dy·b·a^(b-1), and dy·y·ln a, or 0 where a = 0 and b >= 0.

    0⁰ is 1. Raises ValueError for integers to a negative integer power.
    """
    _check_integer_power(a, b)
    y = _whole_power(a, b) if type(b) in (int, float) else a**b

    def da(dy: Array) -> Array:
        if type(b) in (int, float):  # x², x³, √x: the usual ones
            return _zeros_like(dy) if b == 0 else dy if b == 1 else _times(dy, b * power(a, b - 1))
        flat = (a == 0) & (b == 0)  # a^(b-1) is infinite there, and its product with b is 0
        return _times(dy, b * power(a, where(flat, 1, b - 1)))

    def db(dy: Array) -> Array:
        flat = (a == 0) & (b >= 0)  # ln a is infinite there
        one = array_module(b).ones_like(b)
        return _times(dy, where(flat, 0, _times(y, log(where(flat, one, a)))))

    return y, (da, db)


@silent
def _times(a: Array, b: Array) -> Array:
    return a * b


def _check_integer_power(a: Any, b: Any) -> None:
    if _are_integers(a, b) and _seen(bottom(b) < 0):
        raise ValueError(
            "power: integers cannot be raised to a negative integer power; use x.float()"
        )


def _are_integers(a: Any, b: Any) -> bool:
    dtypes = [x.dtype for x in (a, b) if is_array(x)]
    return bool(dtypes) and all(dtype.kind in "iub" for dtype in dtypes)


def _whole_power(a: Array, n: float) -> Array:
    """a to the power n; where n is a small whole number by multiplications, far faster than pow."""
    if isinstance(a, Tensor) or a.dtype.kind != "f" or n % 1 or not 2 <= abs(n) <= 8:
        return a**n
    product = a
    for bit in f"{int(abs(n)):b}"[1:]:  # from the second highest on: xᵏ becomes x²ᵏ or x²ᵏ⁺¹
        product = product * product * a if bit == "1" else product * product
    return product if n > 0 else 1 / product


@op
def negative(x: Array) -> Any:
    """-x. Gradient: -dy."""
    return -x, lambda dy: -dy


@op
def absolute(x: Array) -> Any:
    """|x|. Gradient: dy·sign(x), 0 at 0."""
    return abs(x), lambda dy: dy * sign(stop_gradient(x))


@op(promote=True)
def sign(x: Array) -> Any:
    """-1, 0 or 1. Gradient: 0."""
    boolean = getattr(x, "dtype", None) == np.bool_
    return (x if boolean else array_module(x).sign(x)), _zeros_like


@op(floating=True)
@silent
def reciprocal(x: Array) -> Any:
    """1 / x. Gradient: -dy / x²."""
    return 1 / x, lambda dy: divide(divide(-dy, x), x)


@op(promote=True)
@silent
def square(x: Array) -> Any:
    """x². Gradient: 2·dy·x."""
    return x * x, lambda dy: dy * (2 * x)


@op(promote=True)
@silent
def floor_divide(a: Array, b: Array) -> Any:
    """⌊a / b⌋, towards minus infinity. No gradient.

    ZeroDivisionError for integers by zero; on a device, where an array is not looked at, 0.
    """
    _check_integer_division("floor_divide", a, b)
    return a // b, None


@op(promote=True)
@silent
def remainder(a: Array, b: Array) -> Any:
    """a - b·⌊a / b⌋, with the sign of b. Gradients: dy, -dy·⌊a / b⌋.

    ZeroDivisionError for integers by zero; on a device an array is not looked at, and the result is
    any number.
    """
    _check_integer_division("remainder", a, b)
    return a % b, (lambda dy: dy, lambda dy: -dy * floor_divide(stop_gradient(a), stop_gradient(b)))


def _check_integer_division(name: str, a: Any, b: Any) -> None:
    if _are_integers(a, b) and _seen(bottom(b) == 0):
        raise ZeroDivisionError(f"{name}: integer division by zero")


def _seen(condition: Any) -> bool:
    """Whether a condition holds anywhere; numbers on a device, which would have to be waited for,
    are not looked at.
    """
    if not is_array(condition):
        return bool(condition)
    return array_module(condition) is np and bool(condition.any())


# --- functions of one number ----------------------------------------------------------------------


@op(floating=True)
@silent
def exp(x: Array) -> Any:
    """y = eˣ. Gradient: dy·y."""
    y = array_module(x).exp(x)
    return y, lambda dy: dy * y


@op(floating=True)
@silent
def expm1(x: Array) -> Any:
    """eˣ - 1, exact near 0. Gradient: dy·eˣ."""
    return array_module(x).expm1(x), lambda dy: dy * exp(x)


@op(floating=True)
@silent
def log(x: Array) -> Any:
    """The natural logarithm; -inf at 0, nan below. Gradient: dy / x."""
    return array_module(x).log(x), lambda dy: divide(dy, x)


@op(floating=True)
@silent
def log1p(x: Array) -> Any:
    """ln(1 + x), exact near 0. Gradient: dy / (1 + x)."""
    return array_module(x).log1p(x), lambda dy: divide(dy, 1 + x)


@op(floating=True)
@silent
def sqrt(x: Array) -> Any:
    """y = √x. Gradient: dy / 2y, which is inf at 0."""
    y = array_module(x).sqrt(x)
    return y, lambda dy: divide(dy, 2 * y)


@op(floating=True)
@silent
def rsqrt(x: Array) -> Any:
    """y = 1 / √x. Gradient: -dy·y / 2x."""
    y = 1 / array_module(x).sqrt(x)
    return y, lambda dy: divide(-0.5 * dy, x) * y


@op(floating=True)
@silent
def sin(x: Array) -> Any:
    """sin x, x in radians. Gradient: dy·cos x."""
    return array_module(x).sin(x), lambda dy: dy * cos(x)


@op(floating=True)
@silent
def cos(x: Array) -> Any:
    """cos x, x in radians. Gradient: -dy·sin x."""
    return array_module(x).cos(x), lambda dy: -dy * sin(x)


@op(floating=True)
def tanh(x: Array) -> Any:
    """y = tanh x. Gradient: dy·(1 - y²)."""
    y = array_module(x).tanh(x)
    return y, lambda dy: dy * (1 - y * y)


@op(floating=True)
@silent
def sigmoid(x: Array) -> Any:
    """y = 1 / (1 + e⁻ˣ). Gradient: dy·y·(1 - y)."""
    # Where e⁻ˣ overflows, y is 0 as it should be, but the derivative of these steps would be 0·inf.
    y = sigmoid(x) if isinstance(x, Tensor) else 1 / (1 + array_module(x).exp(-x))
    return y, lambda dy: dy * (y * (1 - y))


@op(floating=True)
def erf(x: Array) -> Any:
    """The error function, 2/√π ∫₀ˣ e^(-t²) dt. Gradient: dy · 2/√π · e^(-x²)."""
    y = erf(x) if isinstance(x, Tensor) else error_function(x)
    return y, lambda dy: dy * (2 / math.sqrt(math.pi) * exp(-square(x)))


@op(promote=True)
def relu(x: Array) -> Any:
    """max(x, 0). Gradient: dy where x > 0, else 0."""
    off = x <= 0
    return where(off, 0, x), lambda dy: where(off, 0, dy)


@op(floating=True)
@silent
def silu(x: Array) -> Any:
    """x·σ(x) (D. Hendrycks and K. Gimpel, 2016). Gradient: dy·(σ + x·σ·(1 - σ))."""
    s = sigmoid(x)
    return x * s, lambda dy: dy * (s + x * s * (1 - s))


@op(floating=True)
@silent
def gelu(x: Array, approximate: str = "none") -> Any:
    """x·Φ(x), with Φ the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415).

    "none": Φ = (1 + erf(x/√2)) / 2; gradient dy·(Φ + x·φ(x)), φ the normal density.
    "tanh", GPT-2's: Φ ≈ (1 + tanh u) / 2 with u = √(2/π)(x + 0.044715 x³);
    gradient dy·((1 + t)/2 + x·(1 - t²)·u'/2), t = tanh u.
    """
    if approximate == "tanh":
        return _gelu_tanh(x)
    if approximate != "none":
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r}")
    area = 0.5 * (1 + erf(x * math.sqrt(0.5)))

    def dx(dy: Array) -> Array:
        density = exp(-0.5 * square(x)) * (1 / math.sqrt(2 * math.pi))
        return dy * (area + x * density)

    return x * area, dx


def _gelu_tanh(x: Array) -> Any:
    c = math.sqrt(2 / math.pi)
    t = tanh(c * (x + 0.044715 * (x * x * x)))

    def dx(dy: Array) -> Array:
        slope = c * (1 + 3 * 0.044715 * square(x))  # u'
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)

    return 0.5 * x * (1 + t), dx


# --- rounding -------------------------------------------------------------------------------------


@op(promote=True)
def floor(x: Array) -> Any:
    """The largest integer not above x. Gradient: 0."""
    return array_module(x).floor(x), _zeros_like


@op(promote=True)
def ceil(x: Array) -> Any:
    """The smallest integer not below x. Gradient: 0."""
    return array_module(x).ceil(x), _zeros_like


@op(promote=True)
def round(x: Array) -> Any:
    """The nearest integer, halves to even. Gradient: 0."""
    return array_module(x).round(x), _zeros_like


# --- choosing -------------------------------------------------------------------------------------


@op(promote=True)
def maximum(a: Array, b: Array) -> Any:
    """The larger of a and b; nan if one is. Gradient: to the larger, half to each of equals."""
    share = _share_of_larger(a, b)
    return array_module(a, b).maximum(a, b), (
        lambda dy: dy * share(dy),
        lambda dy: dy * (1 - share(dy)),
    )


@op(promote=True)
def minimum(a: Array, b: Array) -> Any:
    """The smaller of a and b; nan if one is. Gradient: to the smaller, half to each of equals."""
    share = _share_of_larger(b, a)
    return array_module(a, b).minimum(a, b), (
        lambda dy: dy * share(dy),
        lambda dy: dy * (1 - share(dy)),
    )


def _share_of_larger(a: Array, b: Array) -> Callable[[Array], Array]:
    """How much of dy goes to the input that wins when a > b: 1, 1/2 or 0."""
    return lambda dy: 0.5 * ((bottom(a) > bottom(b)).astype(dy.dtype) + (bottom(a) >= bottom(b)))


@op(promote=True)
def clip(x: Array, low: float | None = None, high: float | None = None) -> Any:
    """x limited to [low, high]; None is no limit. Gradient: dy where low <= x <= high, else 0.

    Where low > high the result is high. An integer x with a floating limit becomes floating.
    """
    if low is None and high is None:
        raise ValueError("clip: give low, high or both")
    low, high = (v.item() if isinstance(v, np.generic) else v for v in (low, high))
    dtype = result_type(x, low, high)
    y = x = x if x.dtype == dtype else x.astype(dtype)
    inside = True
    if low is not None:
        y = where(y < low, low, y)
        inside = inside & (x >= low)
    if high is not None:
        y = where(y > high, high, y)
        inside = inside & (x <= high)
    return y, lambda dy: where(inside, dy, 0)


@op(promote=("a", "b"))
def where(condition: Array, a: Array, b: Array) -> Any:
    """a where `condition` is true, else b; all three broadcast.

    Gradients: dy where chosen, else 0. The condition takes no part in the result's dtype.
    """
    condition = bottom(condition)
    if not is_array(condition) and not isinstance(condition, bool | int | float):
        kind = type(condition).__name__
        raise TypeError(f"where: the condition is a boolean tensor, as x > 0 is, not a {kind}")
    xp = array_module(a, b, condition)
    if not (is_array(a) or is_array(b)):  # two numbers: the default dtypes are PyTorch's
        dtype = result_type(a, b)
        a, b = xp.full((), a, dtype), xp.full((), b, dtype)
    return xp.where(condition, a, b), (
        None,
        lambda dy: where(condition, dy, 0),
        lambda dy: where(condition, 0, dy),
    )


def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """x with `value` where the boolean `mask` is true; the dtype is x's.

    `value` is a number or a tensor of one element without axes. Gradient: dy where the mask is
    false, and to a tensor `value` the sum of dy where it is true.
    """
    if getattr(mask, "dtype", None) != np.bool_:
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(
            f"masked_fill: the mask must be a boolean tensor, not {kind}; compare, as in x == 0"
        )
    if isinstance(value, Tensor) or is_array(value):
        if value.ndim:
            raise ValueError(
                f"masked_fill: the value must have no axes, got shape {tuple(value.shape)}; "
                "use where(mask, value, x)"
            )
        value = value.astype(x.dtype)
    elif not isinstance(value, bool | int | float):
        raise TypeError(f"masked_fill: the value must be a number, not {value!r}")
    elif x.dtype == np.bool_:
        value = bool(value)
    elif not is_floating(x.dtype):
        if not float(value).is_integer():
            raise TypeError(f"masked_fill: the value {value} does not fit into a {x.dtype} tensor")
        value = int(value)
    return where(mask, value, x)


# --- comparisons and logic, without gradient ------------------------------------------------------


def _compare(name: str, symbol: str, compute: Callable[[Any, Any], Any]) -> Any:
    def body(a: Array, b: Array) -> Any:
        return compute(a, b), None

    body.__name__, body.__doc__ = name, f"a {symbol} b, as booleans."
    return op(promote=True)(body)


def _bitwise(name: str, symbol: str, compute: Callable[[Any, Any], Any]) -> Any:
    def body(a: Array, b: Array) -> Any:
        for x in (a, b):
            if getattr(x, "dtype", np.dtype(int)).kind not in "iub":
                raise TypeError(f"{name}: expected booleans or integers, got {x.dtype}")
        return compute(a, b), None

    body.__name__, body.__doc__ = name, f"a {symbol} b, bit by bit, of booleans or integers."
    return op(promote=True)(body)


def _truth(x: Any) -> Any:
    return x != 0


equal = _compare("equal", "==", lambda a, b: a == b)
not_equal = _compare("not_equal", "!=", lambda a, b: a != b)
less = _compare("less", "<", lambda a, b: a < b)
less_equal = _compare("less_equal", "<=", lambda a, b: a <= b)
greater = _compare("greater", ">", lambda a, b: a > b)
greater_equal = _compare("greater_equal", ">=", lambda a, b: a >= b)
logical_and = _compare("logical_and", "and", lambda a, b: _truth(a) & _truth(b))
logical_or = _compare("logical_or", "or", lambda a, b: _truth(a) | _truth(b))
logical_xor = _compare("logical_xor", "xor", lambda a, b: _truth(a) ^ _truth(b))
bitwise_and = _bitwise("bitwise_and", "&", lambda a, b: a & b)
bitwise_or = _bitwise("bitwise_or", "|", lambda a, b: a | b)
bitwise_xor = _bitwise("bitwise_xor", "^", lambda a, b: a ^ b)


@op(promote=True)
def logical_not(x: Array) -> Any:
    """Whether x is zero."""
    return x == 0, None


@op(promote=True)
def isnan(x: Array) -> Any:
    """Whether x is not a number."""
    return x != x, None


@op(promote=True)
def isinf(x: Array) -> Any:
    """Whether x is plus or minus infinity."""
    return abs(x) == math.inf, None


@op(promote=True)
def isfinite(x: Array) -> Any:
    """Whether x is neither infinite nor nan."""
    return abs(x) < math.inf, None


# --- the same numbers -----------------------------------------------------------------------------


@op
@silent
def astype(x: Array, dtype: Any = None) -> Any:
    """x in another dtype. Gradient: dy, cast back; none where the new dtype is not floating."""
    dtype = np.dtype(dtype)
    return x.astype(dtype), (lambda dy: dy) if is_floating(dtype) and is_floating(x.dtype) else None


@op
def copy(x: Array) -> Any:
    """x in memory of its own. Gradient: dy."""
    return array_module(x).copy(x), lambda dy: dy
