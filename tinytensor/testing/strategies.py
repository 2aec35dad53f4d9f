"""Hypothesis strategies for what operations are given: arrays, shapes, axes, indices.

    from hypothesis import given
    from tinytensor.testing import gradcheck, strategies

    @given(strategies.tensors())
    def test_my_operation(x):
        gradcheck(my_operation, [x])

Shapes, layouts and indices are drawn, and shrink to the simplest that fails. Elements come from a
drawn seed: an array of a hundred numbers then costs one decision instead of a hundred. This is the
only module of the engine that imports hypothesis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hypothesis_numpy
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "tinytensor.testing.strategies needs hypothesis: pip install hypothesis"
    ) from error

from ..backend import DType, bfloat16, is_floating
from ..tensor import Tensor, as_tensor

Shape = tuple[int, ...]
Strategy = st.SearchStrategy[Any]

FLOATING: tuple[DType, ...] = (np.dtype(np.float64), np.dtype(np.float32), bfloat16)
LAYOUTS = ("C", "F", "strided", "reversed", "offset")


# --- shapes --------------------------------------------------------------------------------------


def shapes(min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 5) -> Strategy:
    """Shapes, the empty one () and those with sides of 0 among them."""
    return (
        hypothesis_numpy.array_shapes(
            min_dims=max(min_dims, 1), max_dims=max_dims, min_side=min_side, max_side=max_side
        )
        if min_dims
        else st.one_of(
            st.just(()),
            hypothesis_numpy.array_shapes(
                min_dims=1, max_dims=max_dims, min_side=min_side, max_side=max_side
            ),
        )
    )


def broadcastable_shapes(
    count: int = 2, max_dims: int = 4, min_side: int = 0, max_side: int = 4
) -> Strategy:
    """Tuples of `count` shapes that broadcast against each other, 1s and missing axes included."""
    return hypothesis_numpy.mutually_broadcastable_shapes(
        num_shapes=count, min_dims=0, max_dims=max_dims, min_side=min_side, max_side=max_side
    ).map(lambda drawn: drawn.input_shapes)


@st.composite
def matmul_shapes(draw: Any, min_side: int = 0, max_side: int = 4) -> tuple[Shape, Shape]:
    """Pairs of shapes that `a @ b` accepts: vectors, matrices, and batches that broadcast."""
    side = st.integers(min_side, max_side)
    rows, inner, columns = draw(side), draw(side), draw(side)
    kind_a, kind_b = (
        draw(st.sampled_from(["vector", "matrix", "batch"])),
        draw(st.sampled_from(["vector", "matrix", "batch"])),
    )
    batch_a, batch_b = draw(broadcastable_shapes(2, max_dims=2, min_side=min_side, max_side=3))
    a = (inner,) if kind_a == "vector" else (rows, inner)
    b = (inner,) if kind_b == "vector" else (inner, columns)
    return (batch_a + a if kind_a == "batch" else a), (batch_b + b if kind_b == "batch" else b)


@st.composite
def axes(draw: Any, ndim: int, several: bool = True) -> int | tuple[int, ...] | None:
    """What `axis=` accepts in an array of `ndim` axes: None, one, or several; also from the end."""
    kinds = ["none"] + (["one"] if ndim else []) + (["several"] if several else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "none":
        return None
    if kind == "one":
        return int(draw(st.integers(-ndim, ndim - 1)))
    chosen = draw(st.lists(st.integers(0, max(ndim - 1, 0)), unique=True, max_size=ndim))
    return tuple(a - ndim if draw(st.booleans()) else a for a in chosen)


# --- indices -------------------------------------------------------------------------------------


@st.composite
def indices(draw: Any, shape: Shape) -> Any:
    """Indices of an array of `shape`: integers, slices, Ellipsis, None, index arrays, masks.

    Several index arrays broadcast against each other, and may name an element more than once.
    """
    if shape and draw(st.integers(0, 7)) == 0:  # one mask over some leading axes
        count = draw(st.integers(1, len(shape)))
        return draw(masks(shape[:count]))
    basic = hypothesis_numpy.basic_indices(shape, allow_ellipsis=True, allow_newaxis=True)
    if not shape or draw(st.booleans()):
        return draw(basic)
    items: list[Any] = []
    lengths = draw(st.sampled_from([(2,), (3,), (2, 2), (1,), (0,)]))
    for size in shape[: draw(st.integers(1, len(shape)))]:
        kind = draw(st.sampled_from(["array", "slice", "integer", "new axis, slice"]))
        if kind == "array" and (size or 0 in lengths):
            values = np.random.default_rng(draw(seeds())).integers(-size, max(size, 1), lengths)
            items.append(values if size else np.zeros(lengths, np.int64))
        elif kind == "integer" and size:
            items.append(draw(st.integers(-size, size - 1)))
        else:
            items += [None] if kind.startswith("new") else []
            items.append(draw(st.slices(size)))
    return tuple(items) if draw(st.booleans()) else (*items, ...)


def masks(shape: Shape) -> Strategy:
    """Boolean arrays of `shape`."""
    return seeds().map(lambda seed: np.random.default_rng(seed).random(shape) < 0.5)


# --- arrays --------------------------------------------------------------------------------------


def floats(low: float = -3.0, high: float = 3.0, avoid: Sequence[float] = ()) -> Strategy:
    """Finite numbers from `low` to `high`, none near a point of `avoid`."""
    margin = (high - low) / 64
    return st.floats(low, high).filter(lambda x: all(abs(x - kink) > margin for kink in avoid))


def seeds() -> Strategy:
    """Seeds of random arrays."""
    return st.integers(0, 2**32 - 1)


def random_array(
    seed: int,
    shape: Shape,
    dtype: Any = np.float64,
    low: float = -3.0,
    high: float = 3.0,
    avoid: Sequence[float] = (),
    distinct: bool = False,
) -> np.ndarray[Any, Any]:
    """Numbers between `low` and `high`, none near a point of `avoid` (a kink of the function).

    With `distinct`, no two are near each other (max and sort have kinks where elements are equal).
    """
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    if not is_floating(dtype):
        return rng.integers(math.ceil(low), math.floor(high), shape, endpoint=True).astype(dtype)
    count = math.prod(shape)
    margin = (high - low) / 64
    if distinct:
        # One number in each of `count` cells, in any order, and not in the outer thirds of its
        # cell.
        cell = (high - low) / max(count, 1)
        places = rng.permutation(count) + rng.uniform(1 / 3, 2 / 3, count)
        values, margin = low + cell * places, min(margin, cell / 3)
    else:
        values = rng.uniform(low, high, count)
    for point in avoid:
        near = abs(values - point) < margin
        values[near] = point + np.where(values[near] < point, -margin, margin)
    return values.reshape(shape).astype(dtype)


def lay_out(array: np.ndarray[Any, Any], layout: str) -> np.ndarray[Any, Any]:
    """The same numbers, placed differently in memory: one of LAYOUTS."""
    shape = array.shape
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array.copy()
    if layout == "strided":  # every other element along each axis of a larger array
        larger = np.zeros([2 * n for n in shape], array.dtype)
        placed = larger[tuple(slice(None, None, 2) for _ in shape) + (...,)]
    elif layout == "reversed":  # negative strides
        placed = np.zeros(shape, array.dtype)[tuple(slice(None, None, -1) for _ in shape) + (...,)]
    elif layout == "offset":  # in the middle of other people's memory
        placed = np.zeros(array.size + 7, array.dtype)[3 : 3 + array.size].reshape(shape)
    else:
        return array.copy()
    placed[...] = array
    return placed


@st.composite
def arrays(
    draw: Any,
    shape: Shape | Strategy | None = None,
    dtype: Any = np.float64,
    layouts: Sequence[str] = LAYOUTS,
    *,
    low: float = -3.0,
    high: float = 3.0,
    avoid: Sequence[float] = (),
    distinct: bool = False,
) -> np.ndarray[Any, Any]:
    """NumPy arrays of a shape, a dtype and a layout; each may be given, or several to choose from.

    Elements are as in `random_array`.
    """
    chosen: Any = shapes() if shape is None else shape
    if isinstance(chosen, st.SearchStrategy):
        chosen = draw(chosen)
    if isinstance(dtype, list | tuple):
        dtype = draw(st.sampled_from(list(dtype)))
    elements = random_array(draw(seeds()), chosen, dtype, low, high, avoid, distinct)
    return lay_out(elements, draw(st.sampled_from(list(layouts))))


@st.composite
def tensors(
    draw: Any, /, shape: Shape | Strategy | None = None, dtype: Any = np.float64, **options: Any
) -> Tensor:
    """Tensors around such arrays; floating ones require a gradient."""
    x = as_tensor(draw(arrays(shape, dtype, **options)))
    return x.requires_grad_() if is_floating(x.dtype) else x
