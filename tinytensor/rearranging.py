"""PyTorch's functions that move numbers and compute none: shapes, joining and cutting, picking.

The part of `tt.*` that stands on `ops/shaping.py` and `ops/indexing.py`; the rest is in
`functions.py`.
"""

# An operation returns Any, for it answers arrays with arrays and tensors with tensors.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from . import ops
from .backend import Array, array_module, is_array
from .tensor import Tensor, as_tensor, check_tensors

__all__ = [
    "argwhere", "broadcast_to", "cat", "chunk", "concat", "concatenate", "diag", "diagonal",
    "expand", "flatten", "flip", "gather", "hstack", "index_add", "index_select", "masked_select",
    "moveaxis", "movedim", "narrow", "nonzero", "permute", "repeat", "repeat_interleave", "reshape",
    "roll", "scatter", "scatter_add", "select", "split", "squeeze", "stack", "t", "tile", "trace",
    "transpose", "tril", "triu", "unbind", "unflatten", "unsqueeze", "vstack",
]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])

# --- helpers -------------------------------------------------------------------------------------


def takes_axis(function: F) -> F:
    """Accept NumPy's `axis` and `keepdims` for `dim` and `keepdim`."""

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            if "axis" in kwargs:
                kwargs["dim"] = kwargs.pop("axis")
            if "keepdims" in kwargs:
                kwargs["keepdim"] = kwargs.pop("keepdims")
            if "out" in kwargs and kwargs["out"] is None:  # np.mean(x) and its kin pass it on
                del kwargs["out"]
        try:
            return function(*args, **kwargs)
        except AttributeError:
            if args:
                check_tensors(function.__name__, input=args[0])
            raise

    return translated  # type: ignore[return-value]


def dim_from_front(name: str, dim: Any, ndim: int) -> int:
    """`dim` counted from the front."""
    if not hasattr(dim, "__index__"):
        raise TypeError(f"{name}: dim is an integer, not {dim!r}")
    if not -ndim <= dim < ndim:
        raise IndexError(f"{name}: dim {dim} does not exist in a tensor of {ndim} dimensions")
    return int(dim) % ndim


def dims_of(dims: Any) -> Any:
    """Lists of dims become tuples, as NumPy wants them."""
    return tuple(dims) if isinstance(dims, list) else dims


def _sizes(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The sizes in `f(2, 3)` or `f((2, 3))`."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes


def array_of(x: Any) -> Array:
    """The array at the bottom of a tensor, or the one that NumPy makes of anything else."""
    return x.array if isinstance(x, Tensor) else x if is_array(x) else np.asarray(x)


# --- shape ---------------------------------------------------------------------------------------


def reshape(input: Tensor, shape: Sequence[int]) -> Tensor:
    """input's elements, in order, in another shape; one size may be -1."""
    return ops.reshape(input, shape)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """input with two dims exchanged: a view."""
    return ops.swapaxes(input, dim0, dim1)


def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; a vector is left as it is."""
    if input.ndim > 2:
        raise ValueError(
            f"t: expected at most 2 dimensions, got shape {input.shape}; use transpose(dim0, dim1)"
        )
    return ops.transpose(input) if input.ndim == 2 else input


def permute(input: Tensor, dims: Sequence[int]) -> Tensor:
    """input with its dims in the given order: a view."""
    return ops.transpose(input, tuple(dims))


def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """input with the dims `source` moved to the positions `destination`, the others in order."""
    sources = [
        dim_from_front("movedim", d, input.ndim)
        for d in ([source] if isinstance(source, int) else source)
    ]
    targets = [
        dim_from_front("movedim", d, input.ndim)
        for d in ([destination] if isinstance(destination, int) else destination)
    ]
    order = [d for d in range(input.ndim) if d not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return permute(input, order)


moveaxis = movedim


@takes_axis
def squeeze(input: Tensor, dim: Any = None) -> Tensor:
    """input without its dims of size 1, or without those among `dim` that are of size 1."""
    if dim is not None:
        dims = [
            dim_from_front("squeeze", d, input.ndim)
            for d in ([dim] if isinstance(dim, int) else dim)
        ]
        dim = tuple(d for d in dims if input.shape[d] == 1)
    return ops.squeeze(input, dim)


@takes_axis
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """input with a new dim of size 1 at `dim`."""
    return ops.expand_dims(input, dim)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """input with the dims from `start_dim` to `end_dim` made one."""
    check_tensors("flatten", input=input)
    if input.ndim == 0:
        return ops.reshape(input, (1,))
    first, last = (
        dim_from_front("flatten", start_dim, input.ndim),
        dim_from_front("flatten", end_dim, input.ndim),
    )
    if first > last:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    shape = input.shape
    middle = math.prod(shape[first : last + 1])
    return ops.reshape(input, (*shape[:first], middle, *shape[last + 1 :]))


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """input with one dim split into several; one size may be -1."""
    dim = dim_from_front("unflatten", dim, input.ndim)
    return ops.reshape(input, (*input.shape[:dim], *sizes, *input.shape[dim + 1 :]))


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """input repeated, without a copy, until it has shape `size`; -1 keeps a dim as it is."""
    added = len(size) - input.ndim
    if added < 0 or -1 in size[:added]:
        raise ValueError(f"expand: {tuple(size)} does not give a size to each dim of {input.shape}")
    shape = tuple(input.shape[i - added] if n == -1 else n for i, n in enumerate(size))
    return ops.broadcast_to(input, shape)


def expand(input: Tensor, *sizes: Any) -> Tensor:
    """`broadcast_to` with the sizes as arguments."""
    return broadcast_to(input, _sizes(sizes))


def tile(input: Tensor, dims: Sequence[int]) -> Tensor:
    """`dims[i]` copies of input side by side along each dim."""
    return ops.tile(input, tuple(dims))


def repeat(input: Tensor, *sizes: Any) -> Tensor:
    """`tile`, with at least as many sizes as input has dims."""
    sizes = _sizes(sizes)
    if len(sizes) < input.ndim:
        raise ValueError(
            f"repeat: {len(sizes)} sizes for the {input.ndim} dimensions of {input.shape}"
        )
    return ops.tile(input, sizes)


@takes_axis
def repeat_interleave(input: Tensor, repeats: Any, dim: int | None = None) -> Tensor:
    """Each element `repeats` times in a row: a number, or one for each element along `dim`."""
    return ops.repeat(input, repeats if isinstance(repeats, int) else array_of(repeats), dim)


def cat(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """The tensors one after the other along `dim`. Empty tensors of shape (0,) are passed over."""
    if isinstance(tensors, list | tuple) and len(tensors) > 1:
        tensors = [x for x in tensors if getattr(x, "shape", ()) != (0,)] or tensors[:1]
    return ops.concatenate(tensors, dim if axis is None else axis)


concat = concatenate = cat


def stack(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Tensors of one shape along a new dim."""
    return ops.stack(tensors, dim if axis is None else axis)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors, as rows or matrices, one below the other."""
    return cat([x.reshape(1, -1) if x.ndim < 2 else x for x in tensors], 0)


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors side by side: along dim 1, or 0 for vectors."""
    rows = [x.reshape(1) if x.ndim == 0 else x for x in tensors]
    return cat(rows, 0 if rows[0].ndim == 1 else 1)


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """`length` elements of `dim` from `start` on: a view."""
    dim = dim_from_front("narrow", dim, input.ndim)
    size = input.shape[dim]
    start = start + size if start < 0 else start
    if not (0 <= start <= size and 0 <= length <= size - start):
        raise IndexError(
            f"narrow: {length} elements from {start} on do not lie in dim {dim} of size {size}"
        )
    return ops.getitem(input, (slice(None),) * dim + (slice(start, start + length),))


def select(input: Tensor, dim: int, index: int) -> Tensor:
    """The slice with number `index` of `dim`, without that dim: a view."""
    return ops.getitem(
        input, (slice(None),) * dim_from_front("select", dim, input.ndim) + (int(index),)
    )


@takes_axis
def split(
    input: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0
) -> tuple[Tensor, ...]:
    """Views of input cut along `dim`: pieces of one size (the last may be smaller), or of many."""
    dim = dim_from_front("split", dim, input.ndim)
    size = input.shape[dim]
    if not isinstance(split_size_or_sections, int | tuple | list):
        raise TypeError(
            "split: expected the size of a piece or a list of sizes, got "
            f"{split_size_or_sections!r}"
        )
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        if step <= 0:
            raise ValueError(f"split: the size of a piece must be positive, got {step}")
        sizes = [min(step, size - start) for start in range(0, size, step)] or [0]
    else:
        sizes = list(split_size_or_sections)
        if sum(sizes) != size or any(n < 0 for n in sizes):
            raise ValueError(
                f"split: the sections {sizes} do not add up to dim {dim} of size {size}"
            )
    return ops.split(input, list(accumulate(sizes[:-1])), dim)


@takes_axis
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of input cut along `dim`: at most `chunks` equal pieces (the last may be smaller)."""
    if not isinstance(chunks, int) or chunks <= 0:
        raise ValueError(f"chunk: the number of chunks must be positive, got {chunks!r}")
    size = input.shape[dim_from_front("chunk", dim, input.ndim)]
    return split(input, max(1, -(-size // chunks)), dim)


@takes_axis
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The slices along `dim`, each without it."""
    dim = dim_from_front("unbind", dim, input.ndim)
    return tuple(select(input, dim, i) for i in range(input.shape[dim]))


def flip(input: Tensor, dims: Any) -> Tensor:
    """input with the order of its elements reversed along `dims`."""
    return ops.flip(input, dims_of(dims))


def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """input shifted along `dims`, elements that leave at the end coming back at the front."""
    return ops.roll(input, dims_of(shifts), dims_of(dims))


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the matrices in the last two dims, zero elsewhere."""
    return ops.tril(input, diagonal)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the matrices in the last two dims, zero elsewhere."""
    return ops.triu(input, diagonal)


def diagonal(input: Tensor) -> Tensor:
    """The diagonal of the matrices in the first two dims, as the last dim."""
    check_tensors("diagonal", input=input)
    size = min(input.shape[:2])
    rows = np.arange(size)
    picked = ops.getitem(input, (rows, rows))
    return movedim(picked, 0, -1)


def diag(input: Tensor) -> Tensor:
    """The diagonal of a matrix, or the matrix with a vector on its diagonal."""
    check_tensors("diag", input=input)
    if input.ndim == 2:
        return diagonal(input)
    if input.ndim != 1:
        raise ValueError(f"diag: expected a vector or a matrix, got shape {input.shape}")
    rows = np.arange(input.shape[0])
    return ops.scatter_to(input, (rows, rows), input.shape * 2)


def trace(input: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix."""
    return ops.sum(diagonal(input))


# --- picking and placing -------------------------------------------------------------------------


def _line_up(name: str, input: Tensor, dim: int, index: Any) -> tuple[int, tuple[slice, ...]]:
    """Checks for gather and scatter; dim from the front, and the part of input that index reads."""
    if index.ndim != input.ndim:
        raise ValueError(
            f"{name}: index {tuple(index.shape)} must have as many dims as input {input.shape}"
        )
    dim = dim_from_front(name, dim, input.ndim)
    part = tuple(slice(None) if d == dim else slice(0, n) for d, n in enumerate(index.shape))
    for d, n in enumerate(index.shape):
        if d != dim and n > input.shape[d]:
            raise ValueError(
                f"{name}: index {tuple(index.shape)} exceeds input {input.shape} in dim {d}; "
                f"only dim {dim} may differ"
            )
    return dim, part


@takes_axis
def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """y[i][j] = input[i][index[i][j]] (for dim 1); y has the shape of index."""
    dim, part = _line_up("gather", input, dim, index)
    if part and tuple(index.shape) != input.shape:
        input = ops.getitem(input, part)
    return ops.take_along_axis(input, index, dim)


@takes_axis
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """input with src[i][j] added at [i][index[i][j]] (for dim 1)."""
    dim, _ = _line_up("scatter_add", input, dim, index)
    return ops.scatter_add(input, index, _source("scatter_add", index, src), dim)


@takes_axis
def scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, value: Any = None) -> Tensor:
    """input with [i][index[i][j]] replaced by src[i][j], or by a number (for dim 1)."""
    dim, _ = _line_up("scatter", input, dim, index)
    src = value if src is None else src
    src = _source("scatter", index, src) if hasattr(src, "shape") and src.shape else src
    return ops.put_along_axis(input, index, src, dim)


def _source(name: str, index: Any, src: Any) -> Any:
    if src.ndim != index.ndim or any(n > m for n, m in zip(index.shape, src.shape, strict=True)):
        raise ValueError(
            f"{name}: index {tuple(index.shape)} is larger than src {tuple(src.shape)}"
        )
    return (
        src
        if src.shape == index.shape
        else ops.getitem(src, tuple(slice(0, n) for n in index.shape))
    )


@takes_axis
def index_select(input: Tensor, dim: int, index: Any) -> Tensor:
    """The slices of `dim` with the numbers in a vector `index`, in that order."""
    if array_of(index).ndim > 1:
        raise ValueError(
            f"index_select: the index must be a vector, got shape {tuple(index.shape)}"
        )
    dim = dim_from_front("index_select", dim, input.ndim)
    return ops.take(input, array_of(index).reshape(-1), dim)


@takes_axis
def index_add(input: Tensor, dim: int, index: Any, source: Tensor, *, alpha: float = 1) -> Tensor:
    """input with alpha times slice i of source added to its slice index[i], along `dim`."""
    dim = dim_from_front("index_add", dim, input.ndim)
    added = ops.scatter_to(source, (slice(None),) * dim + (index,), tuple(input.shape))
    return ops.add(input, added if alpha == 1 else ops.multiply(added, alpha))


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where the mask holds, as a vector."""
    try:
        shape = np.broadcast_shapes(input.shape, mask.shape)
    except ValueError:
        raise ValueError(
            f"masked_select: the tensor {input.shape} and the mask {tuple(mask.shape)} do not "
            "broadcast together"
        ) from None
    return ops.getitem(ops.broadcast_to(input, shape), ops.broadcast_to(mask, shape))


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """Where input is not zero: indices of shape (n, ndim), or a tuple, a vector for each dim."""
    array = array_of(input)
    found = (array if array.ndim else array.reshape(1)).nonzero()
    if as_tuple:
        return tuple(map(as_tensor, found))
    rows = array_module(*found).stack(found, axis=1)
    return as_tensor(rows if input.ndim else rows[:, :0])


argwhere = nonzero
