"""argsort and argtopk: the orders that Python's own sort gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import ops

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3)
# Few different numbers, so that there are ties.
numbers = st.sampled_from([-math.inf, -2.5, -1.0, 0.0, 0.5, 1.0, math.inf, math.nan])
dtypes = st.sampled_from([tt.float64, tt.float32, tt.bfloat16, tt.int64])


@st.composite
def given_tensors(draw):
    """A tensor and one of its axes."""
    shape = draw(shapes)
    dtype = draw(dtypes)
    count = math.prod(shape)
    wanted = numbers if dtype != tt.int64 else st.integers(-2, 2)
    values = draw(st.lists(wanted, min_size=count, max_size=count))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return tt.tensor(values, dtype=dtype).reshape(shape), axis


def rows(x, axis):
    """The vectors along `axis`, as lists."""
    return np.moveaxis(np.asarray(x), axis, -1).reshape(-1, x.shape[axis]).tolist()


def rank(x):
    """nan after everything else."""
    return (math.isnan(x), x)


def same(a, b):
    return all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


@given(given_tensors(), st.booleans())
def test_argsort(drawn, descending):
    x, axis = drawn
    stable = ops.argsort(x, axis, descending, stable=True)
    quick = ops.argsort(x, axis=axis, descending=descending)
    assert stable.dtype == np.int64 and stable.shape == x.shape
    values = rows(x.double().numpy(), axis)
    for row, one, two in zip(values, rows(stable, axis), rows(quick, axis), strict=True):
        expected = sorted(range(len(row)), key=lambda i, row=row: rank(row[i]))
        if descending:
            # Equal elements keep their order here too; `sorted` does it with reverse=True.
            expected = sorted(range(len(row)), key=lambda i, row=row: rank(row[i]), reverse=True)
        assert same([row[i] for i in one], [row[i] for i in expected])
        assert same([row[i] for i in two], [row[i] for i in expected])
        if not any(map(math.isnan, row)):
            assert one == expected
        assert sorted(two) == list(range(len(row)))


@given(given_tensors(), st.booleans(), st.booleans(), st.data())
def test_argtopk(drawn, largest, in_order, data):
    x, axis = drawn
    k = data.draw(st.integers(0, x.shape[axis]))
    indices = ops.argtopk(x, k, axis, largest, in_order)
    shape = list(x.shape)
    shape[axis] = k
    assert (indices.dtype, indices.shape) == (np.int64, tuple(shape))
    if k == 0:
        return
    for row, chosen in zip(rows(x.double().numpy(), axis), rows(indices, axis), strict=True):
        assert len(set(chosen)) == k
        best = [row[i] for i in chosen]
        if not in_order:
            best.sort(key=rank, reverse=largest)
        assert same(best, sorted(row, key=rank, reverse=largest)[:k])


def test_tensors_without_axes():
    for function in (ops.argsort, ops.argtopk):
        for axis in (0, -1):
            y = function(tt.tensor(3.0), axis=axis)
            assert (y.tolist(), y.dtype) == (0, np.int64)


def test_arrays_stay_arrays_and_indices_carry_no_gradient():
    x = np.array([2.0, 3.0, 1.0])
    for function in (ops.argsort, ops.argtopk):
        assert type(function(x)) is np.ndarray
        assert not function(tt.tensor(x, requires_grad=True)).requires_grad


def test_values_taken_along_an_order_have_a_gradient():
    """And inside a transform, where the tensor has another one inside."""

    def weighted(x):
        order = ops.argsort(x, descending=True)
        return (ops.take_along_axis(x, order, -1) ** 2 * tt.tensor([3.0, 2.0, 1.0])).sum()

    x = tt.tensor([1.0, 5.0, 2.0])
    assert tt.func.grad(weighted)(x).tolist() == [2, 30, 8]
    assert np.diag(tt.func.hessian(weighted)(x).numpy()).tolist() == [2, 6, 4]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.argsort(tt.ones(2, 3), 2), IndexError, r"argsort: axis 2 .*\(2, 3\)"),
        (lambda: ops.argtopk(tt.ones(2), 1, -2), IndexError, r"argtopk: axis -2 .*\(2,\)"),
        (lambda: ops.argtopk(tt.ones(2, 3), 4), ValueError, "k is 4 but axis 1 has 3"),
        (lambda: ops.argtopk(tt.ones(2), -1), ValueError, "k is -1"),
    ],
)
def test_refusals_are_sentences(call, error, message):
    with pytest.raises(error, match=message):
        call()
