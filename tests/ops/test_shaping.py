"""Reshape, transpose, concatenate and their kin: NumPy's numbers, views where NumPy has views, and
derivatives.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import ops
from tinytensor.ops import shaping

from .derivatives import check_derivatives, operations_of, real, recorded

# what it shows: (function of the namespace and its tensors, the shapes of these). The namespace is
# `ops` for the operation and `numpy` for what it must agree with.
CASES = {
    "reshape": (lambda xp, x: xp.reshape(x, (4, 6)), [(2, 3, 4)]),
    "reshape, one size left out": (lambda xp, x: xp.reshape(x, (3, -1)), [(2, 3, 4)]),
    "reshape of a transposed one": (
        lambda xp, x: xp.reshape(xp.swapaxes(x, 0, 2), 24),
        [(2, 3, 4)],
    ),
    "reshape of nothing": (lambda xp, x: xp.reshape(x, (3, 0)), [(0, 2)]),
    "squeeze": (lambda xp, x: xp.squeeze(x), [(1, 3, 1)]),
    "squeeze one axis": (lambda xp, x: xp.squeeze(x, -1), [(1, 3, 1)]),
    "squeeze two": (lambda xp, x: xp.squeeze(x, (0, 2)), [(1, 3, 1)]),
    "expand_dims": (lambda xp, x: xp.expand_dims(x, 1), [(2, 3)]),
    "expand_dims at both ends": (lambda xp, x: xp.expand_dims(x, (0, -1)), [(2, 3)]),
    "swapaxes": (lambda xp, x: xp.swapaxes(x, 0, -1), [(2, 3, 4)]),
    "transpose": (lambda xp, x: xp.transpose(x), [(2, 3, 4)]),
    "transpose in an order": (lambda xp, x: xp.transpose(x, (1, -1, 0)), [(2, 3, 4)]),
    "broadcast_to": (lambda xp, x: xp.broadcast_to(x, (2, 5, 3)), [(1, 3)]),
    "broadcast_to from a number": (lambda xp, x: xp.broadcast_to(x, (2, 2)), [()]),
    "ascontiguousarray": (lambda xp, x: xp.ascontiguousarray(xp.transpose(x)), [(2, 3)]),
    "concatenate": (lambda xp, a, b: xp.concatenate([a, b, a]), [(2, 3), (1, 3)]),
    "concatenate along axis -1": (
        lambda xp, a, b: xp.concatenate((a, b), axis=-1),
        [(2, 3), (2, 1)],
    ),
    "concatenate one": (lambda xp, a: xp.concatenate([a]), [(2, 3)]),
    "concatenate with nothing": (lambda xp, a, b: xp.concatenate([a, b]), [(2, 3), (0, 3)]),
    "stack": (lambda xp, a, b: xp.stack([a, b]), [(2, 3), (2, 3)]),
    "stack along axis -1": (lambda xp, a, b: xp.stack([a, b, a], axis=-1), [(2, 3), (2, 3)]),
    "stack of numbers": (lambda xp, a, b: xp.stack([a, b]), [(), ()]),
    "split": (lambda xp, x: xp.concatenate(xp.split(x, [1, 3])[::-1]), [(4, 2)]),
    "split, one piece used": (lambda xp, x: xp.split(x, [2, 2], axis=-1)[0], [(3, 4)]),
    "split, two pieces used": (lambda xp, x: xp.stack(xp.split(x, [2, 3], 1)[::2]), [(3, 5)]),
    "flip": (lambda xp, x: xp.flip(x), [(2, 3)]),
    "flip along two axes": (lambda xp, x: xp.flip(x, (0, 2)), [(2, 3, 2)]),
    "roll": (lambda xp, x: xp.roll(x, 2), [(2, 3)]),
    "roll along two axes": (lambda xp, x: xp.roll(x, (1, -2), (0, 1)), [(2, 3)]),
    "tril": (lambda xp, x: xp.tril(x), [(3, 3)]),
    "tril of a batch, shifted": (lambda xp, x: xp.tril(x, -1), [(2, 3, 4)]),
    "triu": (lambda xp, x: xp.triu(x, 1), [(3, 4)]),
    "repeat": (lambda xp, x: xp.repeat(x, 2), [(2, 3)]),
    "repeat along an axis": (lambda xp, x: xp.repeat(x, 3, 1), [(2, 3, 2)]),
    "repeat, each its own number": (lambda xp, x: xp.repeat(x, np.array([2, 0, 1]), 1), [(2, 3)]),
    "tile": (lambda xp, x: xp.tile(x, (2, 3)), [(2, 3)]),
    "tile along new axes": (lambda xp, x: xp.tile(x, (2, 1, 3)), [(2, 3)]),
    "tile along the last axis": (lambda xp, x: xp.tile(x, 2), [(2, 3)]),
    "pad": (lambda xp, x: xp.pad(x, ((1, 0), (2, 3))), [(2, 3)]),
    "pad with ones": (lambda xp, x: xp.pad(x, [(1, 1)], constant_values=1.0), [(2,)]),
}
VIEWS = ["reshape", "squeeze", "expand_dims", "swapaxes", "transpose", "broadcast_to"]


def tensors(shapes):
    return [real(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def test_the_table_covers_every_operation():
    covered = set()
    for function, shapes in CASES.values():
        covered |= recorded(function(ops, *tensors(shapes)))
    assert operations_of(shaping) - covered == {"to_device"}  # its derivative: tests of CUDA


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_numpys(case):
    function, shapes = CASES[case]
    inputs = tensors(shapes)
    expected = function(np, *(x.detach().numpy() for x in inputs))
    for dtype in (tt.float64, tt.float32, tt.bfloat16, tt.int64, tt.bool):
        cast = [x.detach().to(dtype) for x in inputs]
        y = function(ops, *cast)
        assert y.dtype == dtype
        expected = function(np, *(x.numpy() for x in cast))
        np.testing.assert_array_equal(y.numpy(), expected)


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    function, shapes = CASES[case]
    check_derivatives(lambda *xs: function(ops, *xs), tensors(shapes))


@pytest.mark.parametrize("case", VIEWS)
def test_views_share_memory(case):
    function, (shape,) = CASES[case]
    x = tt.zeros(shape)
    assert np.shares_memory(function(ops, x).numpy(), x.numpy())
    y = function(ops, x.numpy())  # given an array, an operation returns an array
    assert isinstance(y, np.ndarray) and np.shares_memory(y, x.numpy())


def test_ascontiguousarray_copies_only_what_it_must():
    x = tt.ones(2, 3)
    assert np.shares_memory(ops.ascontiguousarray(x).numpy(), x.numpy())
    assert ops.ascontiguousarray(x.T).numpy().flags.c_contiguous
    assert ops.ascontiguousarray(tt.tensor(1.0)).shape == ()


def test_to_device_of_the_same_device_is_no_copy():
    x = real(3)
    y = ops.to_device(x, "cpu")
    assert np.shares_memory(y.array, x.array)
    (2 * y).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_constants_like_a_tensor_are_tensors_and_like_an_array_arrays():
    x = real(2, 3)
    for make, value in [(ops.zeros_like, 0), (ops.ones_like, 1)]:
        assert make(x).tolist() == [[value] * 3] * 2
        assert not make(x).requires_grad
        assert isinstance(make(x.array), np.ndarray)
    assert ops.full_like(x, 7, tt.int64).dtype == tt.int64


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 2), st.data())
def test_concatenate_and_its_gradient_take_apart_what_they_put_together(sizes, axis, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = [2, 3, 2]
    inputs = []
    for size in sizes:
        shape[axis] = size
        inputs.append(tt.tensor(rng.normal(size=shape), requires_grad=True))
    y = ops.concatenate(inputs, axis=axis)
    u = rng.normal(size=y.shape)
    y.backward(tt.tensor(u))
    np.testing.assert_array_equal(np.concatenate([x.grad.numpy() for x in inputs], axis), u)


def test_concatenate_promotes():
    y = ops.concatenate([tt.ones(2, dtype=tt.int64), tt.ones(1), tt.ones(1, dtype=tt.bool)])
    assert y.dtype == tt.float32


ERRORS = {
    "reshape: (2, 3) has 6 elements, which do not fit the shape (4, -1)": lambda x: ops.reshape(
        x, (4, -1)
    ),
    "squeeze: axis 1 of (2, 3) has size 3, not 1": lambda x: ops.squeeze(x, 1),
    "expand_dims: there is no axis 4 in a tensor of 3 axes": lambda x: ops.expand_dims(x, 4),
    "transpose: the axes (0, 0) do not name each of the 2 axes of x once": lambda x: ops.transpose(
        x, (0, 0)
    ),
    "broadcast_to: (2, 3) does not broadcast to (3, 3)": lambda x: ops.broadcast_to(x, (3, 3)),
    "concatenate: (2, 3) and (3, 2) may differ in axis 0 only": lambda x: ops.concatenate([x, x.T]),
    "concatenate: there is no axis 2 in a tensor of 2 axes": lambda x: ops.concatenate([x, x], 2),
    "concatenate: expected at least one tensor, got an empty list": lambda x: ops.concatenate([]),
    "concatenate: expected tensors, got a float among them": lambda x: ops.concatenate([x, 1.0]),
    "concatenate: expected a list or tuple of tensors, got int": lambda x: ops.concatenate(3),
    "stack: the tensors must have one shape, got (2, 3) and (3, 2)": lambda x: ops.stack([x, x.T]),
    "tril: expected at least two axes, got shape (3,)": lambda x: ops.tril(x[0]),
    "pad: 1 (before, after) pairs for the 2 axes of x": lambda x: ops.pad(x, [(1, 1)]),
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_errors_name_the_numbers(sentence):
    with pytest.raises((ValueError, IndexError, TypeError)) as caught:
        ERRORS[sentence](tt.ones(2, 3))
    assert str(caught.value) == sentence
