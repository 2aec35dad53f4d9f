"""Operations that make many numbers into fewer: y = Σ x and its relatives.

`axis` is None (all axes), an integer or a tuple; `keepdims` leaves reduced axes in place with size
1.
NumPy's names and semantics; PyTorch's faces (`dim`, unbiased variance) are in `functions.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import Array, array_module, is_floating
from ..tensor import Tensor, op, stop_gradient
from .elementwise import divide, silent

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


def _axes(name: str, x: Array, axis: Axis) -> tuple[int, ...]:
    """`axis` as a tuple of non-negative numbers; IndexError with a sentence for one that x
    lacks.
    """
    axes = (
        tuple(range(x.ndim))
        if axis is None
        else (axis,)
        if not isinstance(axis, tuple | list)
        else tuple(axis)
    )
    for a in axes:
        if not -max(1, x.ndim) <= a < max(1, x.ndim):
            raise IndexError(
                f"{name}: axis {a} is out of range for a tensor of shape {tuple(x.shape)}"
            )
    return tuple(a % x.ndim for a in axes) if x.ndim else ()


def _kept(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of x with the reduced axes of size 1."""
    return tuple(1 if a in axes else n for a, n in enumerate(x.shape))


def _count(x: Array, axes: tuple[int, ...]) -> int:
    return math.prod(x.shape[a] for a in axes)


@op(promote=True)
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Σ x. Integers and booleans are summed as int64. Gradient: dy, to every summed element."""
    axes = _axes("sum", x, axis)
    kept, shape = _kept(x, axes), tuple(x.shape)
    if x.dtype.kind in "biu" and x.dtype != np.int64:
        x = x.astype(np.dtype(np.int64))
    y = x.sum(axis=axes, keepdims=keepdims)
    return y, lambda dy: array_module(dy).broadcast_to(dy.reshape(kept), shape)


@op
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Σ x / n. Gradient: dy / n, to every element. The mean of nothing is nan."""
    _check_floating("mean", x)
    axes = _axes("mean", x, axis)
    kept, shape, n = _kept(x, axes), tuple(x.shape), _count(x, axes)
    y = divide(_wide_sum(x, axes, keepdims), n).astype(x.dtype)
    return y, lambda dy: array_module(dy).broadcast_to(divide(dy.reshape(kept), n), shape)


def _wide_sum(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """Σ x in at least float32."""
    if x.dtype.itemsize < 4:
        x = x.astype(np.dtype(np.float32))
    return x.sum(axis=axes, keepdims=keepdims)


def _check_floating(name: str, x: Array) -> None:
    if not is_floating(x.dtype):
        raise TypeError(f"{name}: expected a floating tensor, got {x.dtype}; x.float() converts")


@op(promote=True)
def var(x: Array, axis: Axis = None, keepdims: bool = False, ddof: float = 0) -> Any:
    """Σ (x - mean)² / (n - ddof). Gradient: dy · 2 (x - mean) / (n - ddof). nan where n <= ddof."""
    _check_floating("var", x)
    axes = _axes("var", x, axis)
    kept, n = _kept(x, axes), max(0, _count(x, axes) - ddof)
    centered = x - mean(x, axis=axes, keepdims=True)
    y = divide((centered * centered).sum(axis=axes, keepdims=keepdims), n)
    return y, lambda dy: divide(dy.reshape(kept) * 2 * centered, n)


@op(promote=True)
def std(x: Array, axis: Axis = None, keepdims: bool = False, ddof: float = 0) -> Any:
    """√var. Gradient: dy · (x - mean) / ((n - ddof) · y)."""
    _check_floating("std", x)
    axes = _axes("std", x, axis)
    kept, n = _kept(x, axes), max(0, _count(x, axes) - ddof)
    centered = x - mean(x, axis=axes, keepdims=True)
    square = divide((centered * centered).sum(axis=axes, keepdims=True), n)
    y = array_module(x).sqrt(square)

    def dx(dy: Array) -> Array:
        return divide(dy.reshape(kept) * centered, y * n)

    return (y if keepdims else y.reshape(_dropped(x, axes))), dx


def _dropped(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for a, n in enumerate(x.shape) if a not in axes)


@op(promote=True)
def prod(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Π x. Gradient: dy · the product of the *other* elements, from running products on both sides.

    So it is right where elements are zero, and can be differentiated again.
    """
    axes = _axes("prod", x, axis)
    kept = _kept(x, axes)
    xp = array_module(x)
    y = xp.prod(x, axis=axes, keepdims=keepdims)

    def dx(dy: Array) -> Array:
        # The reduced axes last, as one: (..., n).
        others = tuple(a for a in range(x.ndim) if a not in axes)
        order = (*others, *axes)
        xp = array_module(x)
        moved = xp.transpose(x, order)
        shape = tuple(moved.shape)
        n = _count(x, axes)
        lead = shape[: len(others)]
        flat = moved.reshape((*lead, n))
        ones = xp.ones_like(flat[..., :1])
        before, after = [ones], [ones]
        for i in range(n - 1):
            before.append(before[-1] * flat[..., i : i + 1])
            after.append(after[-1] * flat[..., n - 1 - i : n - i])
        if n:
            rest = xp.concatenate(before, axis=-1) * xp.concatenate(after[::-1], axis=-1)
        else:
            rest = flat
        back = tuple(int(a) for a in np.argsort(order))
        return dy.reshape(kept) * xp.transpose(rest.reshape(shape), back)

    return y, dx


@op
def amax(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest element. Gradient: dy, shared evenly among equal largest ones."""
    return _extreme("amax", x, axis, keepdims)


@op
def amin(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest element. Gradient: dy, shared evenly among equal smallest ones."""
    return _extreme("amin", x, axis, keepdims)


def _extreme(name: str, x: Array, axis: Axis, keepdims: bool) -> Any:
    axes = _axes(name, x, axis)
    if _count(x, axes) == 0:
        raise ValueError(
            f"{name}: a tensor of shape {tuple(x.shape)} has no elements to choose from along "
            f"{axes}"
        )
    kept = _kept(x, axes)
    y = getattr(array_module(x), name)(x, axis=axes, keepdims=keepdims)
    if not is_floating(x.dtype):
        return y, None

    def dx(dy: Array) -> Array:
        best = (stop_gradient(x) == stop_gradient(y).reshape(kept)).astype(dy.dtype)
        return dy.reshape(kept) * (best / best.sum(axis=axes, keepdims=True))

    return y, dx


@op(floating=True)
def logsumexp(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """ln Σ eˣ, with the largest x taken out first. Gradient: dy · softmax(x); -inf of nothing but
    -inf.
    """
    axes = _axes("logsumexp", x, axis)
    kept = _kept(x, axes)
    xp = array_module(x)
    top = xp.amax(stop_gradient(x), axis=axes, keepdims=True)
    top = xp.where(abs(top) == math.inf, 0.0, top).astype(x.dtype)
    e = xp.exp(x - top)
    total = e.sum(axis=axes, keepdims=True)
    with silent():
        y = xp.log(total) + top

    def dx(dy: Array) -> Array:
        xp = array_module(dy, x)
        return dy.reshape(kept) * (e / xp.where(total == 0, 1.0, total))

    return (y if keepdims else y.reshape(_dropped(x, axes))), dx


@op(promote=True)
def norm(x: Array, ord: float = 2, axis: Axis = None, keepdims: bool = False) -> Any:
    """(Σ |x|^ord)^(1/ord); ord inf is max |x|, -inf min |x|, 0 the number of non-zeros.

    Gradient for 2: dy · x / y, and 0 where y is 0; else dy · sign(x) (|x| / y)^(ord-1).
    """
    _check_floating("norm", x)
    axes = _axes("norm", x, axis)
    kept = _kept(x, axes)
    xp = array_module(x)
    if abs(ord) == math.inf:
        choose = amax if ord > 0 else amin
        y, chosen = choose.reference(abs(x), axis=axes, keepdims=keepdims)
        return y, lambda dy: chosen(dy) * xp.sign(stop_gradient(x))
    if ord == 0:
        return (x != 0).astype(x.dtype).sum(axis=axes, keepdims=keepdims), None
    if ord == 2:
        y = xp.sqrt((x * x).sum(axis=axes, keepdims=True))
    elif ord == 1:
        y = abs(x).sum(axis=axes, keepdims=True)
    else:
        y = (abs(x) ** ord).sum(axis=axes, keepdims=True) ** (1 / ord)

    def dx(dy: Array) -> Array:
        dy = dy.reshape(kept)
        xp = array_module(dy, x)
        if ord == 1:
            return dy * xp.sign(stop_gradient(x))
        size = xp.where(y == 0, xp.ones_like(y), y)
        if ord == 2:
            return dy * (x / size)
        magnitude = xp.where(x == 0, xp.ones_like(x), abs(x))
        slope = xp.where(x == 0, xp.zeros_like(x), (magnitude / size) ** (ord - 1))
        return dy * xp.sign(stop_gradient(x)) * slope

    return (y if keepdims else y.reshape(_dropped(x, axes))), dx


@op(promote=True)
def cumsum(x: Array, axis: int = -1) -> Any:
    """Running sums along `axis`. Gradient: dy summed from the other end."""
    (a,) = _axes("cumsum", x, axis) or (0,)
    if x.dtype.kind in "biu":
        x = x.astype(np.dtype(np.int64))
    xp = array_module(x)
    if x.ndim == 0:
        return x, lambda dy: dy

    def dx(dy: Array) -> Array:
        xp = array_module(dy)
        return xp.flip(xp.cumsum(xp.flip(dy, axis=a), axis=a), axis=a)

    return xp.cumsum(x, axis=a).astype(x.dtype), dx


# --- without gradient ----------------------------------------------------------------------------


@op
def argmax(x: Array, axis: int | None = None, keepdims: bool = False) -> Any:
    """The position of the largest element, the first of equals; of the flattened x if `axis` is
    None.
    """
    return _position("argmax", x, axis, keepdims), None


@op
def argmin(x: Array, axis: int | None = None, keepdims: bool = False) -> Any:
    """The position of the smallest element, the first of equals; of the flattened x if `axis` is
    None.
    """
    return _position("argmin", x, axis, keepdims), None


def _position(name: str, x: Array, axis: int | None, keepdims: bool) -> Array:
    axes = _axes(name, x, axis)
    if _count(x, axes) == 0:
        raise ValueError(
            f"{name}: a tensor of shape {tuple(x.shape)} has no elements to choose from"
        )
    if isinstance(x, Tensor):
        x = x.array
    if x.ndim == 0:
        x = x.reshape(1)
        axis = None if axis is None else 0
        return getattr(x, name)().reshape(())
    return getattr(array_module(x), name)(x, axis=axis, keepdims=keepdims)


@op
def any(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether some element is not zero."""
    return _bottom(x).astype(bool).any(axis=_axes("any", x, axis), keepdims=keepdims), None


@op
def all(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether every element is not zero."""
    return _bottom(x).astype(bool).all(axis=_axes("all", x, axis), keepdims=keepdims), None


def _bottom(x: Any) -> Array:
    return x.array if isinstance(x, Tensor) else x
