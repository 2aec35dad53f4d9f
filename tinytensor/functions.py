"""What `tt.*` offers: the operations under PyTorch's names, with PyTorch's arguments and results.

`ops/` holds the mathematics under NumPy's names. Where the two libraries agree, a name here *is*
the operation; where they differ (`max` with a dim also returns indices, `std` divides by n - 1,
`div` takes a rounding mode) a short function says how. It is longer than other files because
PyTorch has many names; read it as the table that it is. What only moves numbers (`transpose`,
`cat`, `gather`) is in `rearranging.py`, what is a few operations together (`tan`, `meshgrid`) in
`composed.py`. `methods.py` makes Tensor methods of the same functions.

`axis` and `keepdims` are accepted wherever `dim` and `keepdim` are documented.
"""

# An operation returns Any, for it answers arrays with arrays and tensors with tensors.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import builtins
import math
from typing import Any, NamedTuple

import numpy as np

from . import composed, ops, rearranging
from .backend import Array, array_module, bfloat16, is_floating, silent
from .composed import *  # noqa: F403 (this file is the front of all three)
from .rearranging import *  # noqa: F403
from .rearranging import array_of, dim_from_front, dims_of, nonzero, takes_axis
from .tensor import Tensor, as_tensor, check_tensors

__all__ = [
    "abs", "absolute", "acos", "acosh", "add", "addmm", "all", "allclose", "amax", "amin", "any",
    "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "argmax", "argmin",
    "argsort", "asin", "asinh", "atan", "atan2", "atanh", "baddbmm", "bincount", "bitwise_and",
    "bitwise_or", "bitwise_xor", "bmm", "ceil", "clamp", "clip", "clone", "cos", "count_nonzero",
    "cumsum", "div", "divide", "dot", "einsum", "eq", "equal", "erf", "exp", "expm1", "floor",
    "floor_divide", "ge", "greater", "greater_equal", "gt", "hypot", "is_floating_point",
    "is_tensor", "isclose", "isfinite", "isinf", "isnan", "le", "lerp", "less", "less_equal", "log",
    "log10", "log1p", "log2", "log_softmax", "logical_and", "logical_not", "logical_or",
    "logical_xor", "logsumexp", "lt", "masked_fill", "matmul", "max", "maximum", "mean", "median",
    "min", "minimum", "mm", "mul", "multiply", "mv", "ne", "neg", "negative", "norm", "not_equal",
    "numel", "outer", "pow", "prod", "reciprocal", "relu", "remainder", "round", "rsqrt", "sigmoid",
    "sign", "sin", "softmax", "sort", "sqrt", "square", "std", "std_mean", "sub", "subtract", "sum",
    "swapaxes", "swapdims", "take_along_dim", "tanh", "topk", "true_divide", "unique", "var",
    "var_mean", "where",
]  # fmt: skip
__all__ += rearranging.__all__ + composed.__all__

# --- names that mean the same in ops/ ------------------------------------------------------------

mul = multiply = ops.multiply
true_divide = ops.divide
pow = ops.power
neg = negative = ops.negative
abs = absolute = ops.absolute
sign = ops.sign
reciprocal = ops.reciprocal
square = ops.square
exp = ops.exp
expm1 = ops.expm1
log = ops.log
log1p = ops.log1p
sqrt = ops.sqrt
rsqrt = ops.rsqrt
tanh = ops.tanh
sigmoid = ops.sigmoid
erf = ops.erf
relu = ops.relu
sin = ops.sin
cos = ops.cos
asin = arcsin = ops.arcsin
acos = arccos = ops.arccos
atan = arctan = ops.arctan
atan2 = arctan2 = ops.arctan2
asinh = arcsinh = ops.arcsinh
acosh = arccosh = ops.arccosh
atanh = arctanh = ops.arctanh
hypot = ops.hypot
floor = ops.floor
ceil = ops.ceil
maximum = ops.maximum
minimum = ops.minimum
floor_divide = ops.floor_divide
remainder = ops.remainder
masked_fill = ops.masked_fill
eq = ops.equal
ne = not_equal = ops.not_equal
lt = less = ops.less
le = less_equal = ops.less_equal
gt = greater = ops.greater
ge = greater_equal = ops.greater_equal
logical_and = ops.logical_and
logical_or = ops.logical_or
logical_xor = ops.logical_xor
logical_not = ops.logical_not
bitwise_and = ops.bitwise_and
bitwise_or = ops.bitwise_or
bitwise_xor = ops.bitwise_xor
isnan = ops.isnan
isinf = ops.isinf
isfinite = ops.isfinite
amax = ops.amax
amin = ops.amin
logsumexp = ops.logsumexp
argmax = ops.argmax
argmin = ops.argmin
any = ops.any
all = ops.all
swapaxes = swapdims = ops.swapaxes
matmul = ops.matmul
outer = ops.outer
take_along_dim = ops.take_along_axis

# --- arithmetic ----------------------------------------------------------------------------------


def add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """input + alpha · other."""
    return ops.add(input, other if alpha == 1 else ops.multiply(other, alpha))


def sub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """input - alpha · other."""
    return ops.subtract(input, other if alpha == 1 else ops.multiply(other, alpha))


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """input / other; the quotient rounded down with "floor", towards zero with "trunc"."""
    if rounding_mode is None:
        return ops.divide(input, other)
    if rounding_mode == "floor":
        return ops.floor_divide(input, other)
    if rounding_mode != "trunc":
        raise ValueError(
            f'div: rounding_mode must be None, "floor" or "trunc", got {rounding_mode!r}'
        )
    positive = ops.floor_divide(ops.absolute(input), ops.absolute(other))
    return positive * (ops.sign(input) * ops.sign(other))


subtract, divide = sub, div


def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """input with everything below `min` raised to it and everything above `max` lowered to it."""
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both")
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        input = input if min is None else ops.maximum(input, min)
        return input if max is None else ops.minimum(input, max)
    return ops.clip(input, min, max)


clip = clamp


def round(input: Tensor, decimals: int = 0) -> Tensor:
    """input to the nearest integer, halves to the even one, or to so many decimals."""
    if decimals == 0:
        return ops.round(input)
    return ops.round(input * 10.0**decimals) / 10.0**decimals


def log2(input: Tensor) -> Tensor:
    """log₂(input)."""
    return ops.log(input) / math.log(2.0)


def log10(input: Tensor) -> Tensor:
    """log₁₀(input)."""
    return ops.log(input) / math.log(10.0)


def lerp(input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """input + weight · (end - input)."""
    return input + weight * (end - input)


def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """`input` where the condition holds, else `other`; without both, the indices where it holds."""
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    return ops.where(condition, input, other)


@takes_axis
def softmax(input: Tensor, dim: int = -1, dtype: Any = None) -> Tensor:
    """exp(input) divided by its sum along `dim`."""
    return ops.softmax(input if dtype is None else ops.astype(input, dtype), dim)


@takes_axis
def log_softmax(input: Tensor, dim: int = -1, dtype: Any = None) -> Tensor:
    """log(softmax(input)), computed without overflow."""
    return ops.log_softmax(input if dtype is None else ops.astype(input, dtype), dim)


# --- reductions ----------------------------------------------------------------------------------


class Extremes(NamedTuple):
    """What `max`, `min`, `sort` and `topk` return along a dim: the values, and where they were."""

    values: Tensor
    indices: Tensor


@takes_axis
def sum(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum of all elements, or along one or several dims; integers and booleans give int64."""
    return ops.sum(input if dtype is None else ops.astype(input, dtype), dims_of(dim), keepdim)


@takes_axis
def mean(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean of all elements, or along `dim`. TypeError for integers: their mean is none."""
    if dtype is not None:
        input = ops.astype(input, dtype)
    if not is_floating(input.dtype):
        raise TypeError(
            f"mean: the mean of {input.dtype} is not {input.dtype}; use x.float().mean()"
        )
    return ops.mean(input, dims_of(dim), keepdim)


@takes_axis
def prod(input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The product of all elements, or along `dim`."""
    return ops.prod(input if dtype is None else ops.astype(input, dtype), dims_of(dim), keepdim)


@takes_axis
def cumsum(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """y[i] = input[0] + … + input[i] along `dim`."""
    return ops.cumsum(input if dtype is None else ops.astype(input, dtype), axis=dim)


@takes_axis
def var(
    input: Tensor,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> Tensor:
    """The variance, Σ (x - mean)² / (n - correction); `unbiased=False` is `correction=0`."""
    dim, correction = _correction(dim, unbiased, correction)
    return ops.var(input, dim, keepdim, correction)


@takes_axis
def std(
    input: Tensor,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> Tensor:
    """The standard deviation, the square root of `var`."""
    dim, correction = _correction(dim, unbiased, correction)
    return ops.std(input, dim, keepdim, correction)


def _correction(dim: Any, unbiased: bool | None, correction: float) -> tuple[Any, float]:
    if isinstance(dim, bool):  # var(x, False)
        dim, unbiased = None, dim
    return dims_of(dim), correction if unbiased is None else int(unbiased)


@takes_axis
def var_mean(
    input: Tensor,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> tuple[Tensor, Tensor]:
    """`var` and `mean`."""
    dim, correction = _correction(dim, unbiased, correction)
    return var(input, dim, keepdim=keepdim, correction=correction), mean(input, dim, keepdim)


@takes_axis
def std_mean(
    input: Tensor,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float = 1,
) -> tuple[Tensor, Tensor]:
    """`std` and `mean`."""
    dim, correction = _correction(dim, unbiased, correction)
    return std(input, dim, keepdim=keepdim, correction=correction), mean(input, dim, keepdim)


@takes_axis
def norm(
    input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """(Σ |x|ᵖ)^(1/p) over all elements, or along `dim`; p may be math.inf, and "fro" is 2."""
    if dtype is not None:
        input = ops.astype(input, dtype)
    return ops.norm(input, 2 if p in ("fro", None) else p, dims_of(dim), keepdim)


@takes_axis
def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element; with a dim, `(values, indices)`; of two tensors, the larger ones."""
    if isinstance(dim, Tensor):
        return ops.maximum(input, dim)
    return ops.amax(input) if dim is None else _extremes(input, ops.argmax, dim, keepdim)


@takes_axis
def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; with a dim, `(values, indices)`; of two tensors, the smaller ones."""
    if isinstance(dim, Tensor):
        return ops.minimum(input, dim)
    return ops.amin(input) if dim is None else _extremes(input, ops.argmin, dim, keepdim)


def _extremes(input: Tensor, find: Any, dim: int, keepdim: bool) -> Extremes:
    if input.ndim == 0:
        return Extremes(input, as_tensor(np.zeros((), np.int64)))
    indices = find(input, axis=dim, keepdims=True)
    values = ops.take_along_axis(input, indices, dim)
    if keepdim:
        return Extremes(values, indices)
    return Extremes(ops.squeeze(values, dim), ops.squeeze(indices, dim))


@takes_axis
def count_nonzero(input: Tensor, dim: Any = None) -> Tensor:
    """How many elements are not zero, in all or along `dim`."""
    return ops.sum(ops.not_equal(input, 0), dims_of(dim))


# --- order ---------------------------------------------------------------------------------------


@takes_axis
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices that would sort `input` along `dim`."""
    return ops.argsort(input, axis=dim, descending=descending, stable=stable)


@takes_axis
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Extremes:
    """`(values, indices)`: input in order along `dim`, and where each value was."""
    indices = argsort(input, dim, descending, stable)
    return Extremes(ops.take_along_axis(input, indices, dim), indices)


@takes_axis
def topk(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> Extremes:
    """`(values, indices)` of the k largest (or smallest) elements along `dim`, in order."""
    dim = dim_from_front("topk", dim, input.ndim)
    if not hasattr(k, "__index__") or not 0 <= k <= input.shape[dim]:
        raise ValueError(f"topk: k is {k!r} but dim {dim} has {input.shape[dim]} elements")
    indices = ops.argtopk(input, k, dim, largest, sorted)
    return Extremes(ops.take_along_axis(input, indices, dim), indices)


@takes_axis
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower of the two middle elements, NaN if any is; along a dim, `(values, indices)`."""
    flat = input.reshape(-1) if dim is None else input
    at = dim_from_front("median", -1 if dim is None else dim, flat.ndim)
    if flat.shape[at] == 0:
        raise ValueError(f"median: there is no middle of nothing, in shape {tuple(input.shape)}")
    order = argsort(flat, at, stable=True)  # NaN goes last
    middle = rearranging.narrow(order, at, (flat.shape[at] - 1) // 2, 1)
    last = rearranging.narrow(order, at, flat.shape[at] - 1, 1)
    indices = ops.where(ops.any(ops.isnan(flat), at, True), last, middle)
    values = ops.take_along_axis(flat, indices, at)
    if dim is None:
        return values.reshape(())
    if keepdim:
        return Extremes(values, indices)
    return Extremes(ops.squeeze(values, at), ops.squeeze(indices, at))


def unique(
    input: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    """The different values in order; on request, which of them each element is, and how many."""
    check_tensors("unique", input=input)
    array = array_of(input)
    found = array_module(array).unique(
        array, return_inverse=return_inverse, return_counts=return_counts
    )
    return tuple(map(as_tensor, found)) if isinstance(found, tuple) else as_tensor(found)


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often (or with what weights) each of 0, 1, 2, … occurs in a vector of integers."""
    array = array_of(input)
    xp = array_module(array)
    return as_tensor(xp.bincount(array, None if weights is None else array_of(weights), minlength))


# --- products ------------------------------------------------------------------------------------


def einsum(equation: str, *operands: Any) -> Tensor:
    """Sum of products over named axes; the operands may come as a list."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return ops.einsum(equation, *operands)


def _expect_dims(name: str, *expected: tuple[Any, int]) -> None:
    for x, _ in expected:
        check_tensors(name, input=x)
    if builtins.any(x.ndim != ndim for x, ndim in expected):
        dims = " and ".join(str(ndim) for _, ndim in expected)
        shapes = " and ".join(str(tuple(x.shape)) for x, _ in expected)
        raise ValueError(f"{name}: expected tensors of {dims} dimensions, got {shapes}")


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    _expect_dims("mm", (input, 2), (mat2, 2))
    return ops.matmul(input, mat2)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two batches of matrices: (B, n, k) and (B, k, m) -> (B, n, m)."""
    _expect_dims("bmm", (input, 3), (mat2, 3))
    if input.shape[0] != mat2.shape[0]:
        raise ValueError(
            f"bmm: {input.shape[0]} matrices in {input.shape}, {mat2.shape[0]} in {mat2.shape}"
        )
    return ops.matmul(input, mat2)


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix and a vector."""
    _expect_dims("mv", (input, 2), (vec, 1))
    return ops.matmul(input, vec)


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """Σᵢ input[i] · tensor[i] of two vectors."""
    _expect_dims("dot", (input, 1), (tensor, 1))
    return ops.matmul(input, tensor)


def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """beta · input + alpha · mat1 @ mat2."""
    product = mm(mat1, mat2)
    product = product if alpha == 1 else product * alpha
    return (input if beta == 1 else input * beta) + product


def baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """beta · input + alpha · batch1 @ batch2, for batches of matrices."""
    product = bmm(batch1, batch2)
    product = product if alpha == 1 else product * alpha
    return (input if beta == 1 else input * beta) + product


# --- comparing and asking ------------------------------------------------------------------------


def _comparable(x: Any) -> Array:
    array = array_of(x)
    return array.astype(np.float32) if array.dtype == bfloat16 else array


@silent
def isclose(
    input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """|input - other| ≤ atol + rtol · |other|, element by element."""
    a, b = _comparable(input), _comparable(other)
    return as_tensor(array_module(a).isclose(a, b, rtol, atol, equal_nan))


def allclose(
    input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Whether `isclose` holds for all elements."""
    return builtins.bool(isclose(input, other, rtol, atol, equal_nan).value.all())


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one shape and the same elements."""
    a, b = array_of(input), array_of(other)
    return a.shape == b.shape and builtins.bool((a == b).all())


def numel(input: Tensor) -> int:
    """How many elements input has."""
    check_tensors("numel", input=input)
    return math.prod(input.shape)


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a Tensor."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> bool:
    """Whether input's dtype is a floating one."""
    return is_floating(input.dtype)


def clone(input: Tensor) -> Tensor:
    """A copy in memory of its own; the gradient flows through."""
    return ops.copy(input)
