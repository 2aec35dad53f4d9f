"""Tensors from data, constant tensors, random tensors: dtypes, shapes, sharing, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1.5, tt.float32),
        (3, tt.int64),
        (True, tt.bool),
        ([[1, 2], [3, 4]], tt.int64),
        ([1, 2.5], tt.float32),
        ([], tt.float32),
        (np.float64(1), tt.float64),
        (np.zeros(2), tt.float64),
        (np.zeros(2, np.int8), tt.int8),
        ([tt.tensor(1.0), tt.tensor(2.0)], tt.float32),
    ],
)
def test_the_dtype_of_data(data, dtype):
    assert tt.tensor(data).dtype == dtype


def test_tensor_copies_and_from_numpy_shares():
    array = np.zeros(3)
    copied, shared = tt.tensor(array), tt.from_numpy(array)
    array[0] = 7
    assert copied.tolist() == [0, 0, 0]
    assert shared.tolist() == [7, 0, 0]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: tt.zeros(2, 3), np.zeros((2, 3), np.float32)),
        (lambda: tt.ones((2,), dtype=tt.long), np.ones(2, np.int64)),
        (lambda: tt.zeros(size=(2, 3)), np.zeros((2, 3), np.float32)),
        (lambda: tt.ones(size=[2], dtype=tt.long), np.ones(2, np.int64)),
        (lambda: tt.full((2, 2), 7), np.full((2, 2), 7)),
        (lambda: tt.full((2,), 0.5), np.full(2, 0.5, np.float32)),
        (lambda: tt.eye(2, 3), np.eye(2, 3, dtype=np.float32)),
        (lambda: tt.arange(5), np.arange(5)),
        (lambda: tt.arange(2, 8, 3), np.array([2, 5])),
        (lambda: tt.arange(0, 1, 0.25), np.array([0, 0.25, 0.5, 0.75], np.float32)),
        (lambda: tt.arange(3, 0, -1), np.array([3, 2, 1])),
        (lambda: tt.linspace(0, 1, 5), np.linspace(0, 1, 5).astype(np.float32)),
        (lambda: tt.zeros_like(tt.ones(2, dtype=tt.float64)), np.zeros(2)),
        (lambda: tt.full_like(tt.ones(2), 3), np.full(2, 3, np.float32)),
    ],
)
def test_constant_tensors(made, expected):
    found = made()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.numpy(), expected)


def test_requires_grad_makes_a_leaf():
    x = tt.randn(2, 2, requires_grad=True)
    assert x.requires_grad and x.is_leaf and x.grad is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: tt.rand(3, 4, generator=g),
        lambda g: tt.randn((3, 4), generator=g),
        lambda g: tt.randint(5, (3, 4), generator=g),
        lambda g: tt.randint(2, 9, (12,), generator=g),
        lambda g: tt.randperm(12, generator=g),
        lambda g: tt.bernoulli(tt.full((12,), 0.5), generator=g),
        lambda g: tt.multinomial(tt.ones(12), 12, replacement=True, generator=g),
    ],
)
def test_the_same_seed_gives_the_same_tensor(draw):
    a, b, c = (draw(tt.Generator(seed)).numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_randperm_is_a_permutation():
    assert sorted(tt.randperm(100).tolist()) == list(range(100))


def test_multinomial_follows_its_weights():
    weights = tt.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])
    drawn = tt.multinomial(weights, 20_000, replacement=True, generator=tt.Generator(0)).numpy()
    assert drawn.shape == (2, 20_000)
    assert abs((drawn[0] == 2).mean() - 0.75) < 0.015
    assert (drawn[0] != 0).all() and (drawn[1] == 0).all()


def test_multinomial_without_replacement_draws_each_index_once():
    weights = tt.tensor([0.1, 0.0, 0.4, 0.2])
    generator = tt.Generator(0)
    first = [0, 0, 0, 0]
    for _ in range(2000):
        drawn = tt.multinomial(weights, 3, generator=generator).tolist()
        assert sorted(drawn) == [0, 2, 3]
        first[drawn[0]] += 1
    assert abs(first[2] / 2000 - 4 / 7) < 0.05


def test_random_sizes_by_their_name():
    for make in (tt.rand, tt.randn, tt.empty):
        assert make(size=(2, 3)).shape == make(size=[2, 3]).shape == make(2, 3).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: tt.tensor([[1], [1, 2]]), ValueError, "different lengths"),
        (lambda: tt.tensor("text"), TypeError, "expected real numbers"),
        (lambda: tt.tensor([None]), TypeError, "expected real numbers"),
        (lambda: tt.from_numpy([1]), TypeError, "expected a numpy.ndarray, got list"),
        (lambda: tt.zeros(2, -1), ValueError, "must not be negative"),
        (lambda: tt.zeros(2.5), TypeError, "sizes must be integers"),
        (lambda: tt.rand(2, size=(3,)), TypeError, r"twice, as \(2,\) and as size=\(3,\)"),
        (lambda: tt.arange(0, 1, 0), ValueError, "step must not be 0"),
        (lambda: tt.arange(0, 1, -1), ValueError, "never leads from 0 to 1"),
        (lambda: tt.randint(5), TypeError, "randint"),
        (lambda: tt.randint(5, 5, (2,)), ValueError, "is empty"),
        (lambda: tt.rand(2, dtype=tt.long), TypeError, "must be floating"),
        (lambda: tt.multinomial(tt.tensor([-1.0, 2.0]), 1), ValueError, "negative number"),
        (lambda: tt.multinomial(tt.zeros(3), 1), ValueError, "all zero"),
        (lambda: tt.multinomial(tt.ones(3), 4), ValueError, "only 3 non-zero weights"),
        (lambda: tt.bernoulli(tt.tensor([1.5])), ValueError, r"must be in \[0, 1\]"),
        (
            lambda: tt.tensor([1], requires_grad=True),
            TypeError,
            "int64 tensor cannot have a gradient",
        ),
        (lambda: tt.zeros(2, device="tpu"), ValueError, "'tpu' is unknown"),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
