"""What one row goes through while a model writes: against the references, on any threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import ops
from tinytensor.cpu import one_row

FLOATS = st.sampled_from([np.float32, np.float64])
SIZES = st.sampled_from([1.0, 1e4, 1e-41])
SEEDS = st.integers(0, 2**32)


@pytest.fixture(params=[1, 2, 3], autouse=True)
def threads(request, monkeypatch):
    """However little there is to read, the threads share it."""
    monkeypatch.setattr(one_row, "WORTH_A_READER", 1)
    before = tt.get_num_threads()
    tt.set_num_threads(request.param)
    yield request.param
    tt.set_num_threads(before)


def agree(operation, *args, terms=1, size=None, **options):
    """The fast path and the reference, both beside float64, `size` large, of `terms` terms."""
    fast = operation(*map(tensor, args), **options)
    with tt.reference_ops():
        plain = operation(*map(tensor, args), **options).array
        wide = [x if x is None else x.astype(np.float64) for x in args]
        exact = operation(*map(tensor, wide), **options).array
    assert fast.dtype == args[0].dtype
    assert fast.shape == plain.shape
    size = abs(exact).max() if size is None else size
    allowed = np.finfo(fast.dtype).eps * (4 + math.sqrt(terms)) * size
    allowed += np.finfo(fast.dtype).tiny
    assert abs(fast.array - exact).max() <= allowed + 2 * abs(plain - exact).max()


def tensor(x):
    return None if x is None else tt.from_numpy(x)


@settings(max_examples=20)
@given(st.integers(1, 900), st.booleans(), st.booleans(), FLOATS, SIZES, SEEDS)
def test_layer_norm(channels, weighted, biased, dtype, size, seed):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(1, 1, channels)) * size).astype(dtype)
    weight = rng.normal(size=channels).astype(dtype) if weighted else None
    bias = rng.normal(size=channels).astype(dtype) if biased else None
    agree(ops.layer_norm, x, weight, bias, terms=channels, size=4 * math.sqrt(channels))


@settings(max_examples=20)
@given(st.integers(1, 900), FLOATS, SIZES, SEEDS)
def test_gelu(channels, dtype, size, seed):
    x = np.random.default_rng(seed).normal(size=(1, 1, channels)) * size
    agree(ops.gelu, x.astype(dtype), approximate="tanh", size=1 + abs(x).max())


@settings(max_examples=20)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 400)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.booleans(),
    FLOATS,
    SIZES,
    SEEDS,
)
def test_attention_of_one_query(shape, sizes, causal, dtype, size, seed):
    B, H, S = shape
    D, E = sizes
    rng = np.random.default_rng(seed)
    cache = rng.normal(size=(2, B, H, S + 5, max(sizes))).astype(dtype)
    k, v = cache[0, :, :, :S, :D], cache[1, :, :, :S, :E]  # as a cache hands them out
    q = (rng.normal(size=(B, H, 1, D)) * size / math.sqrt(D)).astype(dtype)
    largest = abs(v).max() * max(1, abs(q).max() * abs(k).max())
    attend = ops.scaled_dot_product_attention
    agree(attend, q, k, v, None, terms=S + D, size=largest, is_causal=causal)


def test_a_row_that_needs_a_gradient_gets_one():
    rng = np.random.default_rng(0)
    x = tt.from_numpy(rng.normal(size=(1, 1, 8))).requires_grad_()
    weight = tt.from_numpy(rng.normal(size=8))
    for operation in (
        lambda x: ops.layer_norm(x, weight, None),
        lambda x: ops.gelu(x, approximate="tanh"),
        lambda x: ops.scaled_dot_product_attention(*[x.view(1, 2, 1, 4)] * 3, None),
    ):
        dy = tt.from_numpy(rng.normal(size=operation(x).shape))
        fast = tt.autograd.grad(operation(x), [x], dy)[0]
        with tt.reference_ops():
            expected = tt.autograd.grad(operation(x), [x], dy)[0]
        np.testing.assert_allclose(fast.numpy(), expected.numpy(), rtol=1e-12, atol=1e-12)
        with tt.no_grad():
            np.testing.assert_allclose(
                operation(x).numpy(), operation(x.detach().requires_grad_()).detach().numpy()
            )
