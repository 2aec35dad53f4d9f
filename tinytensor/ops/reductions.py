"""Operations that make many numbers into fewer: y = Σ x and its relatives.

`axis` is None (all axes), an integer or a tuple; `keepdims` leaves the reduced axes in place with
size 1. Names and semantics are NumPy's; PyTorch's faces (`dim`, unbiased variance) are in
`functions.py`. A VJP returns dy with the reduced axes back in place, of size 1, and leaves the
broadcasting over x to the engine.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from ..backend import Array, array_module, is_floating, silent
from ..tensor import Tensor, op, stop_gradient
from .elementwise import absolute, bottom, divide, exp, log, power, sign, sqrt
from .elementwise import where as choose

__all__ = [
    "all",
    "amax",
    "amin",
    "any",
    "argmax",
    "argmin",
    "cumsum",
    "logsumexp",
    "mean",
    "norm",
    "prod",
    "std",
    "sum",
    "var",
]

Axis = int | tuple[int, ...] | None
Shape = tuple[int, ...]


def _reduced(name: str, x: Array, axis: Axis) -> tuple[Shape, Shape, int]:
    """The axes to reduce, counted from the front; x's shape with 1 there; how many elements."""
    ndim = x.ndim
    if axis is None:
        axes = tuple(range(ndim))
    else:
        given = axis if isinstance(axis, tuple | list) else (axis,)
        axes = tuple(operator.index(a) for a in given)
        for a in axes:
            if not -max(1, ndim) <= a < max(1, ndim):  # 0 and -1 are allowed for a scalar
                raise IndexError(f"{name}: axis {a} does not exist in shape {tuple(x.shape)}")
        axes = tuple(a % ndim for a in axes) if ndim else ()
        if len(set(axes)) < len(axes):
            raise ValueError(f"{name}: an axis appears twice in {tuple(given)}")
    kept = tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    return axes, kept, math.prod(x.shape[a] for a in axes)


def _finish(y: Array, axes: Shape, keepdims: bool) -> Array:
    """y, whose reduced axes have size 1, with or without them."""
    if keepdims or not axes:
        return y
    return y.reshape(tuple(size for a, size in enumerate(y.shape) if a not in axes))


def _check_floating(name: str, x: Array) -> None:
    if not is_floating(x.dtype):
        raise TypeError(
            f"{name}: expected a floating-point tensor, got {x.dtype}; x.float() makes one"
        )


def _widened_integers(x: Array) -> Array:
    """Booleans and integers as int64, so that sums and products have room."""
    return x.astype(np.dtype(np.int64)) if x.dtype.kind in "biu" and x.dtype != np.int64 else x


# --- sums -----------------------------------------------------------------------------------------


@op(promote=True)
@silent
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Σ x; integers and booleans are summed as int64. Gradient: dy, to every summed element."""
    axes, kept, _ = _reduced("sum", x, axis)
    y = _widened_integers(x).sum(axis=axes, keepdims=keepdims)
    return y, lambda dy: dy.reshape(kept)


@op(promote=True)
@silent
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Σ x / n, nan for n = 0. Gradient: dy / n, to every element. TypeError for integers."""
    _check_floating("mean", x)
    axes, kept, n = _reduced("mean", x, axis)
    y = divide(x.sum(axis=axes, keepdims=keepdims), n)
    return y, lambda dy: divide(dy.reshape(kept), n)


@op(promote=True)
@silent
def var(x: Array, axis: Axis = None, keepdims: bool = False, ddof: float = 0) -> Any:
    """Σ (x - mean)² / (n - ddof); nan or inf where n <= ddof. TypeError for integers.

    Gradient: dy · 2 (x - mean) / (n - ddof).
    """
    _check_floating("var", x)
    axes, kept, n = _reduced("var", x, axis)
    freedom = max(0, n - ddof)
    centered = x - divide(x.sum(axis=axes, keepdims=True), n)
    y = divide((centered * centered).sum(axis=axes, keepdims=keepdims), freedom)
    return y, lambda dy: divide(2 * dy.reshape(kept) * centered, freedom)


@op(promote=True)
@silent
def std(x: Array, axis: Axis = None, keepdims: bool = False, ddof: float = 0) -> Any:
    """y = √var. Gradient: dy · (x - mean) / ((n - ddof) y), and 0 where y is 0, as in PyTorch."""
    _check_floating("std", x)
    axes, kept, n = _reduced("std", x, axis)
    freedom = max(0, n - ddof)
    centered = x - divide(x.sum(axis=axes, keepdims=True), n)
    if isinstance(x, Tensor):  # as one operation, whose gradient at y = 0 is not that of √0
        y = std(x, axes, True, ddof)
    else:
        y = sqrt(divide((centered * centered).sum(axis=axes, keepdims=True), freedom))

    def dx(dy: Array) -> Array:
        return divide(divide(dy.reshape(kept) * centered, freedom), choose(y == 0, 1, y))

    return _finish(y, axes, keepdims), dx


@op(promote=True)
@silent
def cumsum(x: Array, axis: int = -1) -> Any:
    """y[i] = x[0] + … + x[i] along `axis`; integers as int64. Gradient: dy summed from the end."""
    (axis,) = _reduced("cumsum", x, operator.index(axis))[0] or (0,)
    xp = array_module(x)
    if x.ndim == 0:
        return xp.copy(_widened_integers(x)), lambda dy: dy

    def dx(dy: Array) -> Array:
        xp = array_module(dy)
        return xp.flip(xp.cumsum(xp.flip(dy, axis), axis=axis), axis)

    return xp.cumsum(_widened_integers(x), axis=axis), dx


# --- products -------------------------------------------------------------------------------------


@op(promote=True)
@silent
def prod(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Π x; integers and booleans are multiplied as int64.

    Gradient: dy · the product of the other elements, computed as such and not as y / x. So it is
    right where elements are zero, and can be differentiated again.
    """
    axes, kept, n = _reduced("prod", x, axis)
    y = array_module(x).prod(_widened_integers(x), axis=axes, keepdims=keepdims)

    def dx(dy: Array) -> Array:
        xp = array_module(x)
        # The reduced axes go last and become one.
        order = [a for a in range(x.ndim) if a not in axes] + list(axes)
        moved = xp.transpose(x, order)
        others = _products_of_others(moved.reshape(tuple(moved.shape[: x.ndim - len(axes)]) + (n,)))
        back = [order.index(a) for a in range(x.ndim)]
        return dy.reshape(kept) * xp.transpose(others.reshape(moved.shape), back)

    return y, dx


@silent
def _products_of_others(x: Array) -> Array:
    """For each element along the last axis the product of all the others, in O(n) multiplications.

    Pairs are multiplied, the problem is solved for the half as many products, and an element's
    answer is that of its pair times its partner.
    """
    n = x.shape[-1]
    xp = array_module(x)
    if n <= 1:
        return xp.ones_like(x)
    if n % 2:
        x = xp.concatenate((x, xp.ones_like(x[..., :1])), axis=-1)
    pairs = x.reshape(tuple(x.shape[:-1]) + (x.shape[-1] // 2, 2))
    others = _products_of_others(pairs[..., 0] * pairs[..., 1])
    return (others[..., None] * pairs[..., ::-1]).reshape(x.shape)[..., :n]


# --- extremes -------------------------------------------------------------------------------------


@op(promote=True)
def amax(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest element; nan if one is. Gradient: dy, shared evenly among equal largest ones.

    ValueError where there is no element to choose from.
    """
    return _extreme("amax", "amax", x, axis, keepdims)


@op(promote=True)
def amin(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest element; nan if one is. Gradient: dy, shared evenly among equal smallest ones.

    ValueError where there is no element to choose from.
    """
    return _extreme("amin", "amin", x, axis, keepdims)


def _extreme(caller: str, kind: str, x: Array, axis: Axis, keepdims: bool) -> Any:
    axes, kept, n = _reduced(caller, x, axis)
    _check_not_empty(caller, x, axes, n)
    y = getattr(array_module(x), kind)(x, axis=axes, keepdims=keepdims)

    def dx(dy: Array) -> Array:
        best = bottom(x) == bottom(y).reshape(kept)
        count = best.sum(axis=axes, keepdims=True).astype(dy.dtype)
        return choose(best, divide(dy.reshape(kept), count), 0)

    return y, dx


def _check_not_empty(name: str, x: Array, axes: Shape, n: int) -> None:
    if n == 0:
        raise ValueError(
            f"{name}: shape {tuple(x.shape)} has no elements to choose from along "
            f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"
        )


@op(floating=True)
@silent
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """ln Σ eˣ, computed without overflow; -inf where every x is. Gradient: dy · softmax(x).

    The gradient is 0 where every x is -inf.
    """
    axes, kept, n = _reduced("logsumexp", x, axis)
    array = bottom(x)
    xp = array_module(array)
    top = xp.amax(array, axis=axes, keepdims=True) if n else xp.zeros(kept, x.dtype)
    top = choose(abs(top) < math.inf, top, 0)
    e = exp(x - top)
    total = e.sum(axis=axes, keepdims=True)
    y = logsumexp(x, axes, True) if isinstance(x, Tensor) else log(total) + top

    def dx(dy: Array) -> Array:
        return dy.reshape(kept) * divide(e, choose(total == 0, 1, total))

    return _finish(y, axes, keepdims), dx


@op(promote=True)
@silent
def norm(x: Array, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> Any:
    """y = (Σ |x|^ord)^(1/ord); ord inf is max |x|, -inf min |x|, 0 the number of non-zeros.

    Gradient: dy · sign(x) (|x| / y)^(ord-1), which for ord 2 is dy · x / y; 0 where x is 0. For
    ±inf: dy · sign(x), shared evenly among the extreme elements. TypeError for integers.
    """
    _check_floating("norm", x)
    axes, kept, _ = _reduced("norm", x, axis)
    if abs(ord) == math.inf:
        y, dsize = _extreme("norm", "amax" if ord > 0 else "amin", absolute(x), axis, keepdims)
        return y, lambda dy: dsize(dy) * sign(stop_gradient(x))
    if ord == 0:
        y = (x != 0).astype(x.dtype).sum(axis=axes, keepdims=keepdims)
        return y, lambda dy: array_module(dy).zeros_like(dy.reshape(kept))
    if isinstance(x, Tensor):  # as one operation, whose gradient at y = 0 is not that of √0
        y = norm(x, ord, axes, True)
    else:
        y = power(power(abs(x), ord).sum(axis=axes, keepdims=True), 1 / ord)

    def dx(dy: Array) -> Array:
        size = choose(y == 0, 1, y)
        if ord == 2:
            return dy.reshape(kept) * divide(x, size)
        direction = choose(y == 0, 0, dy.reshape(kept)) * sign(stop_gradient(x))
        # Where x is 0 so is the direction; 1 keeps 0^(ord-1) from being infinite.
        return direction * power(divide(choose(x == 0, 1, absolute(x)), size), ord - 1)

    return _finish(y, axes, keepdims), dx


# --- without gradient -----------------------------------------------------------------------------


@op(promote=True)
def argmax(x: Array, axis: int | None = None, keepdims: bool = False) -> Any:
    """Where the largest element is, the first of equals; `axis` None counts in row-major order."""
    return _position("argmax", x, axis, keepdims), None


@op(promote=True)
def argmin(x: Array, axis: int | None = None, keepdims: bool = False) -> Any:
    """Where the smallest element is, the first of equals; `axis` None counts in row-major order."""
    return _position("argmin", x, axis, keepdims), None


def _position(name: str, x: Array, axis: int | None, keepdims: bool) -> Array:
    axes, _, n = _reduced(name, x, axis)
    _check_not_empty(name, x, axes, n)
    x = bottom(x)
    if x.ndim == 0:
        return getattr(x.reshape(1), name)().reshape(())
    return getattr(array_module(x), name)(x, axis=axis, keepdims=keepdims)


@op(promote=True)
def any(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether some element is not zero."""
    return (bottom(x) != 0).any(axis=_reduced("any", x, axis)[0], keepdims=keepdims), None


@op(promote=True)
def all(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether every element is not zero."""
    return (bottom(x) != 0).all(axis=_reduced("all", x, axis)[0], keepdims=keepdims), None
