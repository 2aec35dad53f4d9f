"""Indexing: every kind of index that NumPy knows, views where it has views, adjoints and
derivatives.
"""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tinytensor as tt
from tinytensor import ops
from tinytensor.ops import indexing

from .derivatives import check_derivatives, operations_of, real, recorded

ROWS = np.array([2, 0, 2])
MASK = np.array([[True, False, True, False], [False] * 4, [True] * 4])

# Indices of a (3, 4) array. A tuple that names one element twice is the hard case of the gradient.
INDICES = {
    "an integer": 1,
    "a negative integer": -1,
    "a slice": slice(1, None),
    "a step": (slice(None), slice(None, None, 2)),
    "backwards": slice(None, None, -1),
    "every axis": (1, 2),
    "an ellipsis": (..., 0),
    "a new axis": (None, slice(None), None, 1),
    "nothing": (),
    "rows": ROWS,
    "rows from the end": ROWS - 3,
    "a list": [0, 0, 1],
    "a range": range(2),
    "an empty list": [],
    "a matrix of rows": np.array([[0, 1], [2, 2]]),
    "columns": (slice(None), ROWS),
    "elements": (ROWS, ROWS),
    "elements, broadcast": (np.array([[0], [1]]), ROWS),
    "rows and a column": (ROWS, 1),
    "rows and a new axis": (ROWS, None),
    "rows and a slice": (ROWS, slice(1, 3)),
    "a mask": MASK,
    "a mask of rows": np.array([True, False, True]),
    "a mask of columns": (slice(None), MASK[0]),
    "a mask and a slice": (MASK[:, 0], slice(0, 2)),
    "a mask and rows": (MASK[:, 0], np.array([1, 1])),
    "an empty mask": np.zeros((3, 4), bool),
}
VIEWS = list(INDICES)[:9]

ALONG = np.array([[0, 3, 3], [1, 1, 0], [2, 2, 2]])  # columns of a (3, 4) array
APART = np.array([[0, 3], [1, 0], [2, 3]])  # the same, no column twice in a row

CASES = {
    **{
        f"getitem at {name}": (lambda x, i=i: ops.getitem(x, i), [(3, 4)])
        for name, i in INDICES.items()
    },
    **{
        f"scatter_to {name}": (
            lambda dy, i=i: ops.scatter_to(dy, i, (3, 4)),
            [np.zeros((3, 4))[i].shape],
        )
        for name, i in INDICES.items()
    },
    "take": (lambda x: ops.take(x, ROWS, 1), [(3, 4)]),
    "take_along_axis": (lambda x: ops.take_along_axis(x, ALONG, 1), [(3, 4)]),
    "take_along_axis, broadcast": (lambda x: ops.take_along_axis(x, ALONG[:1], 1), [(3, 4)]),
    "take_along_axis 0": (lambda x: ops.take_along_axis(x, ALONG[:, :1] % 3, 0), [(3, 1)]),
    "scatter_along_axis": (
        lambda x: ops.scatter_along_axis(x, ALONG, axis=1, shape=(3, 4)),
        [(3, 3)],
    ),
    "scatter_add": (lambda x, s: ops.scatter_add(x, ALONG, s, 1), [(3, 4), (3, 3)]),
    "scatter_add at one row": (lambda x, s: ops.scatter_add(x, ALONG[:1], s, 1), [(3, 4), (1, 3)]),
    "scatter_add at two rows": (lambda x, s: ops.scatter_add(x, ALONG[:2], s, 1), [(3, 4), (2, 3)]),
    "put_along_axis at one row": (
        lambda x, s: ops.put_along_axis(x, APART[:1], s, -1),
        [(3, 4), (1, 2)],
    ),
    "put_along_axis": (lambda x, s: ops.put_along_axis(x, APART, s, 1), [(3, 4), (3, 2)]),
    "put_along_axis a number": (lambda x: ops.put_along_axis(x, APART, 7.0, 1), [(3, 4)]),
}


def tensors(shapes):
    return [real(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def test_the_table_covers_every_operation():
    covered = set()
    for function, shapes in CASES.values():
        covered |= recorded(function(*tensors(shapes)))
    assert operations_of(indexing) <= covered


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    function, shapes = CASES[case]
    check_derivatives(function, tensors(shapes))


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16, tt.int64, tt.bool], ids=str)
def test_getitem_is_numpys(name, dtype):
    index, x = INDICES[name], real(3, 4).detach().to(dtype)
    expected = x.numpy()[index]
    np.testing.assert_array_equal(x[index].numpy(), expected)
    assert x[index].dtype == dtype
    assert np.shares_memory(x[index].numpy(), x.numpy()) == (name in VIEWS)
    # Tensors in an index count as the arrays that they hold.
    parts = index if isinstance(index, tuple) else (index,)
    as_tensors = tuple(tt.tensor(i) if isinstance(i, np.ndarray) else i for i in parts)
    np.testing.assert_array_equal(x[as_tensors].numpy(), expected)


@st.composite
def array_and_index(draw):
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    if draw(st.booleans()):
        index = draw(arrays.basic_indices(shape, allow_newaxis=True))
    else:
        count = draw(st.integers(1, len(shape)))
        index = draw(arrays.integer_array_indices(shape[:count]))
    return shape, index


@given(array_and_index())
def test_scatter_to_is_the_adjoint_of_getitem(case):
    """x[i] · u = x · scatter(u), and repeated elements are summed as add.at sums them."""
    shape, index = case
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    y = ops.getitem(x, index)
    np.testing.assert_array_equal(y, x[index])
    u = rng.normal(size=np.shape(y))
    scattered = ops.scatter_to(u, index, shape)
    expected = np.zeros(shape)
    np.add.at(expected, index, u)
    np.testing.assert_allclose(scattered, expected, rtol=1e-14, atol=1e-14)
    assert np.sum(y * u) == pytest.approx(np.sum(x * scattered), rel=1e-12, abs=1e-12)


@given(st.integers(1, 50), st.integers(0, 60), st.integers(1, 3))
def test_rows_read_often_collect_every_gradient(count, reads, width):
    rng = np.random.default_rng((count, reads, width))
    rows = rng.integers(-count, count, reads)
    u = rng.normal(size=(reads, width)).astype(np.float32)
    expected = np.zeros((count, width))
    np.add.at(expected, rows, u.astype(np.float64))
    np.testing.assert_allclose(
        ops.scatter_to(u, rows, (count, width)), expected, rtol=1e-6 * (1 + reads), atol=1e-5
    )


def test_bfloat16_sums_round_once():
    # 300 ones: a running sum in bfloat16 would stop at 256, where 256 + 1 rounds to 256.
    x = tt.zeros(2, dtype=tt.bfloat16, requires_grad=True)
    x[[0] * 300].sum().backward()
    assert x.grad.tolist() == [300, 0]
    y = tt.zeros(1, 2, dtype=tt.bfloat16, requires_grad=True)
    y.gather(1, tt.zeros(1, 300, dtype=tt.long)).sum().backward()
    assert y.grad.tolist() == [[300, 0]]


def test_numbers_from_tensors_bound_slices_and_make_views():
    x = tt.arange(10)
    start = tt.tensor([3, 4])
    assert x[start[0] : start[1] + 2].tolist() == [3, 4, 5]
    assert x[tt.tensor(7)].item() == 7
    x[tt.tensor(7)].fill_(0)
    assert x[7].item() == 0


def test_an_index_is_not_kept_as_a_tensor():
    gc.disable()
    try:
        x = real(3, 4)
        index = tt.tensor([0, 1])
        alive = weakref.ref(index)
        y = x[index, :]
        del index
        assert alive() is None
        del y
    finally:
        gc.enable()


def test_along_an_axis_is_numpys():
    x = real(3, 4).detach()
    np.testing.assert_array_equal(
        ops.take_along_axis(x, tt.tensor(ALONG), 1).numpy(), np.take_along_axis(x.numpy(), ALONG, 1)
    )
    expected = x.numpy().copy()
    np.put_along_axis(expected, APART, 5.0, 1)
    np.testing.assert_array_equal(ops.put_along_axis(x, APART, 5.0, 1).numpy(), expected)
    added = ops.scatter_add(tt.zeros(1, 3), np.array([[0, 0, 2]]), tt.tensor([[1.0, 2.0, 4.0]]), 1)
    assert added.tolist() == [[3, 0, 4]]


ERRORS = {
    "x[index]: index 5 is out of bounds for axis 0 with size 3 (the tensor is (3, 4))": 5,
    "x[index]: index -4 is out of bounds for axis 0 with size 3 (the tensor is (3, 4))": [-4],
    "x[index]: too many indices for array: array is 2-dimensional, but 3 were indexed "
    "(the tensor is (3, 4))": (0, 0, 0),
    "x[index]: an index must hold integers or booleans, not float32": tt.ones(2),
    "x[index]: expected integers, slices, ..., None, or arrays of integers or booleans, "
    "got 1.5": 1.5,
    "x[index]: expected integers, slices, ..., None, or arrays of integers or booleans, "
    "got 'a'": "a",
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_errors_name_the_numbers(sentence):
    with pytest.raises(IndexError) as caught:
        tt.ones(3, 4)[ERRORS[sentence]]
    assert str(caught.value) == sentence


def test_errors_along_an_axis():
    x = tt.ones(2, 3)
    with pytest.raises(ValueError, match=r"indices \(2,\) must have as many axes as x \(2, 3\)"):
        ops.take_along_axis(x, tt.tensor([0, 1]), 1)
    with pytest.raises(IndexError, match="must be integers, not float32"):
        ops.take_along_axis(x, tt.ones(2, 1), 1)
    with pytest.raises(IndexError, match="index 7 is out of bounds for axis 1 with size 3"):
        ops.take_along_axis(x, tt.tensor([[7]]), 1)
