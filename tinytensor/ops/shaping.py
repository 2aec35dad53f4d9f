"""Operations that move numbers and compute none: reshape, transpose, concatenate and their kin.

Where NumPy returns a view, so do these. Their gradients move dy's numbers back to where they came
from; the sum over repeated ones is the engine's un-broadcasting wherever that suffices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, pairwise
from operator import add, index
from typing import Any

from .. import backend
from ..backend import Array, array_module
from ..tensor import Tensor, as_tensor, op
from .indexing import scatter_to

__all__ = [
    "ascontiguousarray",
    "broadcast_to",
    "concatenate",
    "concatenate_all",
    "expand_dims",
    "flip",
    "full_like",
    "ones_like",
    "pad",
    "repeat",
    "reshape",
    "roll",
    "split",
    "squeeze",
    "stack",
    "stack_all",
    "swapaxes",
    "tile",
    "to_device",
    "transpose",
    "tril",
    "triu",
    "zeros_like",
]

Axes = int | Sequence[int] | None


def normalize_axis(name: str, axis: Any, ndim: int) -> int:
    """`axis` counted from the front; IndexError if there is none of that number."""
    if not hasattr(axis, "__index__"):
        raise TypeError(f"{name}: an axis is an integer, not {axis!r}")
    number: int = axis.__index__()
    if not -ndim <= number < ndim:
        raise IndexError(f"{name}: there is no axis {number} in a tensor of {ndim} axes")
    return number % ndim


# --- the same numbers in another shape -----------------------------------------------------------


@op
def reshape(x: Array, shape: int | Sequence[int] = (-1,)) -> Any:
    """The elements of x, in row-major order, in another shape; one size may be -1.

    A view where possible. Gradient: dy in the shape of x.
    """
    given = x.shape
    try:
        y = x.reshape(shape)
        if y.shape != shape:  # one size was -1: NumPy takes any negative number for it
            _check_sizes(shape)
    except ValueError:
        sizes = _check_sizes(shape)
        raise ValueError(
            f"reshape: {given} has {math.prod(given)} elements, which do not fit the shape {sizes}"
        ) from None
    return y, lambda dy: dy.reshape(given)


def _check_sizes(shape: Any) -> tuple[int, ...]:
    """The shape as a tuple, if its sizes are integers from -1 up."""
    sizes = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    if not all(hasattr(size, "__index__") for size in sizes):
        raise TypeError(f"reshape: sizes are integers, but the shape is {sizes}")
    if min(sizes, default=0) < -1:
        raise ValueError(f"reshape: sizes are not negative, but for one -1, and not {sizes}")
    return sizes


def squeeze(x: Any, axis: Axes = None) -> Any:
    """x without its axes of size 1, or without the given ones, which must be of size 1."""
    shape = tuple(x.shape)
    if axis is None:
        dropped = {i for i, size in enumerate(shape) if size == 1}
    else:
        axes = (axis,) if isinstance(axis, int) else axis
        dropped = {normalize_axis("squeeze", a, len(shape)) for a in axes}
        for a in dropped:
            if shape[a] != 1:
                raise ValueError(f"squeeze: axis {a} of {shape} has size {shape[a]}, not 1")
    return reshape(x, tuple(size for i, size in enumerate(shape) if i not in dropped))


def expand_dims(x: Any, axis: int | Sequence[int] = 0) -> Any:
    """x with new axes of size 1, which get the numbers `axis` in the result."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    ndim = len(x.shape) + len(axes)
    new = {normalize_axis("expand_dims", a, ndim) for a in axes}
    rest = iter(x.shape)
    return reshape(x, tuple(1 if i in new else next(rest) for i in range(ndim)))


@op
def swapaxes(x: Array, axis1: int = -2, axis2: int = -1) -> Any:
    """x with two axes exchanged: a view. Gradient: dy with the same two exchanged back."""
    try:
        y = x.swapaxes(axis1, axis2)
    except IndexError:
        for axis in (axis1, axis2):
            normalize_axis("swapaxes", axis, x.ndim)
        raise
    return y, lambda dy: dy.swapaxes(axis1, axis2)


@op
def transpose(x: Array, axes: Sequence[int] | None = None) -> Any:
    """x with its axes in the order `axes` (default: reversed): a view. Gradient: dy, put back."""
    ndim = x.ndim
    order = tuple([index(a) % ndim for a in axes] if axes is not None else range(ndim)[::-1])
    try:
        y = array_module(x).transpose(x, order)
    except ValueError:
        raise ValueError(
            f"transpose: the axes {tuple(axes or ())} do not name each of the {ndim} axes of x once"
        ) from None
    return y, lambda dy: transpose(dy, tuple(order.index(a) for a in range(ndim)))


@op
def broadcast_to(x: Array, shape: Sequence[int] = ()) -> Any:
    """x repeated along new axes and axes of size 1 until it has `shape`: a read-only view.

    Gradient: dy summed over the repeats, which the engine does for every operation.
    """
    try:
        y = array_module(x).broadcast_to(x, tuple(shape))
    except ValueError:
        raise ValueError(f"broadcast_to: {x.shape} does not broadcast to {tuple(shape)}") from None
    return y, lambda dy: dy


@op
def ascontiguousarray(x: Array) -> Any:
    """x in row-major order in memory; x itself where it is so already. Gradient: dy."""
    if x.ndim == 0:  # NumPy's function would give it an axis
        return x, lambda dy: dy
    return array_module(x).ascontiguousarray(x), lambda dy: dy


@op
def to_device(x: Array, device: Any = "cpu") -> Any:
    """x on another device. Gradient: dy, moved back."""
    if isinstance(x, Tensor):
        home = x.device
        return to_device(x, device), lambda dy: to_device(dy, home)
    home = backend.device_of(x)
    return backend.to_device(x, device), lambda dy: to_device(dy, home)


# --- joining -------------------------------------------------------------------------------------


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    """The arrays one after the other along an existing axis; the other axes must agree."""
    return concatenate_all(*_sequence("concatenate", arrays), axis=axis)


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays of equal shape along a new axis, which gets the number `axis` in the result."""
    return stack_all(*_sequence("stack", arrays), axis=axis)


def _sequence(name: str, arrays: Any) -> list[Any]:
    if not hasattr(arrays, "__iter__"):
        raise TypeError(f"{name}: expected a list or tuple of tensors, got {type(arrays).__name__}")
    items = list(arrays)
    if not items:
        raise ValueError(
            f"{name}: expected at least one tensor, got an empty {type(arrays).__name__}"
        )
    for item in items:
        if not hasattr(item, "shape"):
            raise TypeError(f"{name}: expected tensors, got a {type(item).__name__} among them")
    return items


@op(promote=True)
def concatenate_all(*arrays: Array, axis: int = 0) -> Any:
    """y = x₀ followed by x₁, … along `axis`. Gradients: the stretches of dy that they filled."""
    try:
        y = array_module(*arrays).concatenate(arrays, axis=axis)
    except ValueError:
        _explain_concatenate([tuple(x.shape) for x in arrays], axis)
        raise
    before = (slice(None),) * (axis % y.ndim)
    sizes = [x.shape[axis] for x in arrays]

    def vjp(dy: Array) -> tuple[Array, ...]:
        ends = accumulate(sizes)
        return tuple(
            dy[(*before, slice(end - size, end))] for size, end in zip(sizes, ends, strict=True)
        )

    return y, vjp


def _explain_concatenate(shapes: list[tuple[int, ...]], axis: int) -> None:
    first = shapes[0]
    axis = normalize_axis("concatenate", axis, len(first))
    for shape in shapes:
        same_axes = len(shape) == len(first)
        if not same_axes or any(
            a != b for i, (a, b) in enumerate(zip(shape, first, strict=True)) if i != axis
        ):
            raise ValueError(f"concatenate: {first} and {shape} may differ in axis {axis} only")


@op
def split(x: Array, indices: Sequence[int] = (), axis: int = 0) -> Any:
    """x cut along `axis` before each of `indices`, into one view more than there are of these.

    Gradient: those of the pieces, one after the other, and zeros for a piece that led nowhere.
    """
    axis, shape = normalize_axis("split", axis, x.ndim), x.shape
    edges = (0, *indices, shape[axis])
    places = [(*(slice(None),) * axis, slice(*ends)) for ends in pairwise(edges)]

    def vjp(*dys: Array) -> Array:
        if all(dy is not None for dy in dys):
            return concatenate_all(*dys, axis=axis)
        given = zip(dys, places, strict=True)
        return reduce(add, [scatter_to(dy, at, shape) for dy, at in given if dy is not None])

    return tuple([x[at] for at in places]), vjp


@op(promote=True)
def stack_all(*arrays: Array, axis: int = 0) -> Any:
    """y[i] = xᵢ along a new axis. Gradients: dy[i]."""
    first = tuple(arrays[0].shape)
    for x in arrays:
        if tuple(x.shape) != first:
            raise ValueError(
                f"stack: the tensors must have one shape, got {first} and {tuple(x.shape)}"
            )
    before = (slice(None),) * normalize_axis("stack", axis, len(first) + 1)
    count = len(arrays)
    y = array_module(*arrays).stack(arrays, axis=axis)
    return y, lambda dy: tuple(dy[(*before, i)] for i in range(count))


# --- rearranging and repeating -------------------------------------------------------------------


@op
def flip(x: Array, axis: Axes = None) -> Any:
    """x with its elements in reverse order along `axis` (default: all). Gradient: dy reversed."""
    return array_module(x).flip(x, axis), lambda dy: flip(dy, axis)


@op
def roll(x: Array, shift: int | Sequence[int] = 0, axis: Axes = None) -> Any:
    """y[i + shift] = x[i], indices wrapping around. Gradient: dy rolled by -shift."""
    back = -shift if isinstance(shift, int) else tuple(-s for s in shift)
    return array_module(x).roll(x, shift, axis), lambda dy: roll(dy, back, axis)


@op
def tril(x: Array, k: int = 0) -> Any:
    """y[i, j] = x[i, j] where j ≤ i + k, else 0, in the last two axes. Gradient: tril(dy)."""
    _check_matrix("tril", x)
    return array_module(x).tril(x, k), lambda dy: tril(dy, k)


@op
def triu(x: Array, k: int = 0) -> Any:
    """y[i, j] = x[i, j] where j ≥ i + k, else 0, in the last two axes. Gradient: triu(dy)."""
    _check_matrix("triu", x)
    return array_module(x).triu(x, k), lambda dy: triu(dy, k)


def _check_matrix(name: str, x: Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}: expected at least two axes, got shape {tuple(x.shape)}")


@op
def repeat(x: Array, repeats: Any = 1, axis: int | None = None) -> Any:
    """Each element `repeats` times (a number, or one for each) along `axis`; None flattens x first.

    Gradient: dy summed over the repeats of each element.
    """
    if axis is None:
        flat = repeat(x.reshape(-1), repeats, 0)
        given = tuple(x.shape)
        return flat, lambda dy: _sum_repeats(dy, repeats, 0, (math.prod(given),)).reshape(given)
    given = tuple(x.shape)
    axis = normalize_axis("repeat", axis, x.ndim)
    y = array_module(x).repeat(x, repeats, axis)
    return y, lambda dy: _sum_repeats(dy, repeats, axis, given)


def _sum_repeats(dy: Array, repeats: Any, axis: int, given: tuple[int, ...]) -> Array:
    """The adjoint of `repeat` along `axis` for an input of shape `given`."""
    if isinstance(repeats, int):
        apart = given[: axis + 1] + (repeats,) + given[axis + 1 :]
        return dy.reshape(apart).sum(axis=axis + 1)
    xp = array_module(repeats)
    source = xp.repeat(xp.arange(given[axis]), repeats)  # where in x each element of y came from
    return scatter_to(dy, (slice(None),) * axis + (source,), given)


@op
def tile(x: Array, reps: int | Sequence[int] = 1) -> Any:
    """`reps[i]` copies of x side by side along each axis. Gradient: dy summed over the copies."""
    copies = (reps,) if isinstance(reps, int) else tuple(reps)
    given = (1,) * (len(copies) - x.ndim) + tuple(x.shape)
    copies = (1,) * (len(given) - len(copies)) + copies
    # dy as (copies[0], given[0], copies[1], given[1], …), summed over the copies.
    apart = tuple(size for pair in zip(copies, given, strict=True) for size in pair)
    every_other = tuple(range(0, len(apart), 2))
    y = array_module(x).tile(x, copies)
    return y, lambda dy: dy.reshape(apart).sum(axis=every_other)


@op
def pad(x: Array, pad_width: Sequence[tuple[int, int]] = (), constant_values: float = 0) -> Any:
    """x with `(before, after)` elements of a constant added at the ends of each axis.

    Gradient: the part of dy where x went.
    """
    if len(pad_width) != x.ndim:
        raise ValueError(f"pad: {len(pad_width)} (before, after) pairs for the {x.ndim} axes of x")
    inside = tuple(
        slice(before, before + size) for (before, _), size in zip(pad_width, x.shape, strict=True)
    )
    y = array_module(x).pad(x, pad_width, constant_values=constant_values)
    return y, lambda dy: dy[inside]


# --- constants like a given tensor ---------------------------------------------------------------


def zeros_like(x: Any, dtype: Any = None) -> Any:
    """Zeros of x's shape and dtype: an array for an array, a constant tensor for a tensor."""
    return full_like(x, 0, dtype)


def ones_like(x: Any, dtype: Any = None) -> Any:
    """Ones of x's shape and dtype: an array for an array, a constant tensor for a tensor."""
    return full_like(x, 1, dtype)


def full_like(x: Any, value: Any, dtype: Any = None) -> Any:
    """`value` in x's shape and dtype: an array for an array, a constant tensor for a tensor."""
    array = x.array if isinstance(x, Tensor) else x
    filled = array_module(array).full_like(array, value, dtype=dtype)
    return as_tensor(filled) if isinstance(x, Tensor) else filled
