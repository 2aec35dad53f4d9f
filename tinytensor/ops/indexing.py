"""Indexing, and its adjoint: reading at an index, and adding into zeros at the same index.

In the pairs getitem / scatter_to and take_along_axis / scatter_along_axis each is the other's VJP,
so indexing can be differentiated any number of times. An index is an option of its operation, not
an input: tensors inside it are replaced by their arrays once, in `plain_index`.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from ..backend import Array, array_module, bfloat16, is_array, silent
from ..tensor import Tensor, op

__all__ = [
    "getitem",
    "put_along_axis",
    "scatter_add",
    "scatter_along_axis",
    "scatter_to",
    "take",
    "take_along_axis",
]

# --- x[index] ------------------------------------------------------------------------------------


@op
def getitem(x: Array, index: Any = ()) -> Any:
    """x[index], with all of NumPy's indices. A view unless an array or a list is among them.

    Gradient: zeros of the shape of x, with dy added at `index`, so often as an element was read.
    """
    index = plain_index(index, x)
    try:
        y = x[index]
    except IndexError as error:
        raise IndexError(f"x[index]: {error} (the tensor is {tuple(x.shape)})") from None
    if isinstance(y, np.generic):
        # An integer for every axis: keep an array, which is a view as the others are.
        y = x[(*index, ...) if isinstance(index, tuple) else (index, ...)]
    shape = x.shape
    return y, lambda dy: scatter_to(dy, index, shape)


@op
@silent
def scatter_to(dy: Array, index: Any = (), shape: tuple[int, ...] = ()) -> Any:
    """Zeros of `shape` with dy added at `index`: the adjoint of getitem. Gradient: getitem."""
    if isinstance(dy, Tensor):
        return scatter_to(dy, index, shape), lambda g: getitem(g, index)
    index = plain_index(index, dy)
    return _scatter(dy, index, shape), lambda g: getitem(g, index)


def plain_index(index: Any, x: Array = None) -> Any:
    """`index` without tensors and lists: integers, slices, None, Ellipsis and arrays on x's device.

    An array without axes counts as the integer that it holds, so indexing with it is a view.
    """
    kind = type(index)
    if kind is int:
        return index
    if kind is tuple:
        return tuple([item if type(item) is int else _plain_item(item, x) for item in index])
    return _plain_item(index, x)


def _plain_item(item: Any, x: Array) -> Any:
    if isinstance(item, slice):
        start, stop, step = item.start, item.stop, item.step
        if isinstance(start, Tensor) or isinstance(stop, Tensor) or isinstance(step, Tensor):
            return slice(*(None if b is None else operator.index(b) for b in (start, stop, step)))
        return item
    if item is None or item is Ellipsis:
        return item
    if isinstance(item, Tensor):
        item = item.array
    elif isinstance(item, list | tuple | range):
        item = np.asarray([i.array if isinstance(i, Tensor) else i for i in item])
        if item.size == 0:
            item = item.astype(np.intp)
    if isinstance(item, bool | np.bool_):
        return bool(item)
    if is_array(item):
        if item.dtype.kind not in "iub":
            raise IndexError(f"x[index]: an index must hold integers or booleans, not {item.dtype}")
        if item.ndim == 0:
            return bool(item) if item.dtype.kind == "b" else int(item)
        while isinstance(x, Tensor):
            x = x.value
        if isinstance(item, np.ndarray) and not (
            x is None or isinstance(x, np.ndarray | np.generic)
        ):
            return array_module(x).asarray(item)
        return item
    try:
        return operator.index(item)
    except TypeError:
        raise IndexError(
            "x[index]: expected integers, slices, ..., None, or arrays of integers or booleans, "
            f"got {item!r}"
        ) from None


def _scatter(dy: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """`scatter_to` on arrays."""
    xp = array_module(dy)
    items = index if isinstance(index, tuple) else (index,)
    masks = [item for item in items if is_array(item) and item.dtype.kind == "b"]
    lists = [item for item in items if is_array(item) and item.dtype.kind != "b"]
    if not lists and len(masks) <= 1:  # no element is read twice
        dx = xp.zeros(shape, dy.dtype)
        dx[index] = dy
        return dx
    if dy.dtype == bfloat16:  # a sum of many rounds to bfloat16 once, at its end
        return _scatter(dy.astype(np.float32), index, shape).astype(bfloat16)
    if len(lists) == 1 and items[0] is lists[0] and len(items) == 1:
        return sum_rows(dy, lists[0], shape[0])
    dx = xp.zeros(shape, dy.dtype)
    xp.add.at(dx, index, dy)
    return dx


def sum_rows(rows: Array, indices: Array, count: int) -> Array:
    """y of `count` rows, y[indices[i]] = rows[i], those of one index summed.

    Sorting brings the rows of one index together, so that each sum is one pass over contiguous
    memory: faster than adding row by row (`add.at`), unless the rows are short.
    """
    xp = array_module(rows)
    shape = rows.shape[indices.ndim :]
    y = xp.zeros((count, *shape), rows.dtype)
    if xp is not np or math.prod(shape) < 8:
        xp.add.at(y, indices, rows)
        return y
    flat = indices.reshape(-1)
    rows = rows.reshape((flat.size, *shape))
    if flat.size == 0:
        return y
    if flat.min() < 0:
        flat = np.where(flat < 0, flat + count, flat)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    if len(starts) == len(flat):  # every index is there once
        y[flat] = rows
    else:
        y[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return y


# --- along one axis ------------------------------------------------------------------------------


def take(x: Any, indices: Any, axis: int = 0) -> Any:
    """x[:, …, indices] with the indices at `axis`."""
    axis = axis % len(x.shape)
    return getitem(x, (slice(None),) * axis + (indices,) if axis else indices)


@op
def take_along_axis(x: Array, indices: Array, axis: int = -1) -> Any:
    """y[i, j] = x[i, indices[i, j]] (for axis 1): elements picked along one axis, line by line.

    `indices` has as many axes as x and broadcasts with it everywhere but along `axis`.
    Gradient: zeros like x with dy added at the same places.
    """
    _check_indices("take_along_axis", x, indices)
    shape = tuple(x.shape)
    y = array_module(x, indices).take_along_axis(x, indices, axis)
    return y, (lambda dy: scatter_along_axis(dy, indices, axis, shape), None)


@op
@silent
def scatter_along_axis(
    dy: Array, indices: Array, axis: int = -1, shape: tuple[int, ...] = ()
) -> Any:
    """Zeros of `shape` with dy[i, j] added at [i, indices[i, j]] (for axis 1).

    The adjoint of take_along_axis, which is its gradient.
    """
    if isinstance(dy, Tensor):
        y = scatter_along_axis(dy, indices, axis, shape)
    elif dy.dtype == bfloat16:  # a sum of many rounds to bfloat16 once, at its end
        y = scatter_along_axis(dy.astype(np.float32), indices, axis, shape).astype(bfloat16)
    else:
        _check_indices("scatter_along_axis", dy, indices)
        xp = array_module(dy)
        y = xp.zeros(shape, dy.dtype)
        xp.add.at(y, _along(dy, indices, axis), dy)
    picked = tuple(dy.shape)
    return y, (lambda g: take_along_axis(_part(g, picked, axis), indices, axis), None)


def scatter_add(x: Any, indices: Any, source: Any, axis: int = -1) -> Any:
    """x with source[i, j] added at [i, indices[i, j]] (for axis 1), twice where named twice."""
    return x + scatter_along_axis(source, indices, axis, tuple(x.shape))


@op
def put_along_axis(x: Array, indices: Array, source: Array, axis: int = -1) -> Any:
    """x with [i, indices[i, j]] replaced by source[i, j] (for axis 1); `source` may be a number.

    Which of several elements put at one place wins is not defined. Gradients: dy with zeros at
    those places, and dy taken at them.
    """
    if isinstance(x, Tensor) or isinstance(source, Tensor):
        y = put_along_axis(x, indices, source, axis)
    else:
        _check_indices("put_along_axis", x, indices)
        y = x.copy()
        y[_along(indices, indices, axis)] = source
    return y, (
        lambda dy: put_along_axis(dy, indices, 0, axis),
        None,
        lambda dy: take_along_axis(_part(dy, indices.shape, axis), indices, axis),
    )


def _check_indices(name: str, x: Array, indices: Array) -> None:
    if indices.dtype.kind not in "iu":
        raise IndexError(f"{name}: the indices must be integers, not {indices.dtype}")
    if indices.ndim != x.ndim:
        raise ValueError(
            f"{name}: the indices {tuple(indices.shape)} must have as many axes as "
            f"x {tuple(x.shape)}"
        )


def _part(x: Array, shape: tuple[int, ...], axis: int) -> Array:
    """The lines of x along `axis` that an array of `shape` speaks of: the first ones."""
    axis %= len(shape)
    return x[tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(shape))]


def _along(picked: Array, indices: Array, axis: int) -> tuple[Array, ...]:
    """The index, an array for each axis, of the place [i, indices[i, j]] of each picked[i, j]."""
    if isinstance(indices, Tensor):
        indices = indices.array
    xp = array_module(picked)
    grid = list(xp.ogrid[tuple(slice(size) for size in picked.shape)])
    grid[axis] = indices
    return tuple(grid)
