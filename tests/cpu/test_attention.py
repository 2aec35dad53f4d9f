"""The blocked attention against the reference: every mask, dropout, extremes, threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import ops
from tinytensor.cpu import attention
from tinytensor.cpu.dropout import keep_words
from tinytensor.random import Draw, words32


def tensor(x, dtype=np.float32):
    return tt.from_numpy(np.asarray(x, dtype)).requires_grad_()


MASKS = {
    "none": lambda rng, B, H, L, S: None,
    "boolean": lambda rng, B, H, L, S: rng.random((B, 1, L, S)) < 0.7,
    "few": lambda rng, B, H, L, S: rng.random((L, S)) < 0.1,  # some queries may see nothing
    "keys": lambda rng, B, H, L, S: rng.random((1, H, 1, S)) < 0.5,
    "real": lambda rng, B, H, L, S: rng.normal(size=(B, 1, L, S)),
    "real, by key": lambda rng, B, H, L, S: rng.normal(size=(S,)),
    "real, -inf": lambda rng, B, H, L, S: np.where(rng.random((H, L, S)) < 0.3, -math.inf, 0.0),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MASKS)),
    st.booleans(),
    st.sampled_from([0.0, 0.0, 0.3]),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 150), st.integers(1, 150)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1.0, 1e4, 1e-41]),
    st.sampled_from([1, 2]),
    st.integers(0, 2**32),
)
def test_every_mask_at_every_size(kind, causal, dropout, shape, sizes, dtype, size, threads, seed):
    B, H, L, S = shape
    D, E = sizes
    rng = np.random.default_rng(seed)
    # Scores around `size`: each score is a sum of D products.
    q = tensor(rng.normal(size=(B, H, L, D)) * size / math.sqrt(D), dtype)
    k = tensor(rng.normal(size=(B, S, H, D)), dtype).transpose(1, 2)
    v = tensor(rng.normal(size=(B, H, S, E)), dtype)
    mask = MASKS[kind](rng, B, H, L, S)
    inputs = [q, k.detach().requires_grad_(), v]
    if mask is not None and mask.dtype == float:
        finite = bool(np.isfinite(mask).all())
        mask = tt.from_numpy(mask.astype(dtype))
        inputs.append(mask.requires_grad_() if finite else mask)
    else:
        inputs.append(None if mask is None else tt.from_numpy(mask))

    def attend(q, k, v, mask):
        return ops.scaled_dot_product_attention(
            q, k, v, mask, causal, dropout, None if size < 1e4 else 1.0, Draw(7, 11)
        )

    before = tt.get_num_threads()
    tt.set_num_threads(threads)
    saved = attention.WORTH_A_PIECE, attention.QUERIES, attention.SHORT
    attention.WORTH_A_PIECE, attention.QUERIES, attention.SHORT = 1, 40, 20
    try:
        agree_beside_their_terms(attend, inputs, dtype)
    finally:
        tt.set_num_threads(before)
        attention.WORTH_A_PIECE, attention.QUERIES, attention.SHORT = saved


def agree_beside_their_terms(attend, inputs, dtype):
    """As `check_implementations`, with the largest product behind a result as its size.

    ds = w · (dw - Σ dw·w) is a difference of equal numbers where w is near 0 or 1: what is left of
    it is rounding, which is small beside dw, not beside ds.
    """
    dy = np.random.default_rng(0).normal(size=(*inputs[0].shape[:3], inputs[2].shape[3]))
    grown = [x for x in inputs if x is not None and x.requires_grad]

    def run(kind):
        given = [x if x is None or x.dtype == bool else x.detach().to(kind) for x in inputs]
        given = [
            x.requires_grad_() if any(y is g for g in grown) else x
            for x, y in zip(given, inputs, strict=True)
        ]
        y = attend(*given)
        wanted = [x for x in given if x is not None and x.requires_grad]
        return [y, *tt.autograd.grad(y, wanted, tt.from_numpy(dy.astype(kind)))]

    fast = run(dtype)
    with tt.reference_ops():
        plain, exact = run(dtype), run(np.float64)
    largest = [abs(x.array).max() for x in inputs[:3]]
    size = math.prod(max(1.0, x) for x in largest) * abs(dy).sum(axis=-1).max()
    allowed = np.finfo(dtype).eps * (4 + math.sqrt(inputs[1].shape[2])) * size
    for one, two, truth in zip(fast, plain, exact, strict=True):
        one, two, truth = (x.array.astype(np.float64) for x in (one, two, truth))
        assert abs(one - truth).max() <= allowed + 2 * abs(two - truth).max()


def test_sums_that_overflow_where_no_exponential_does():
    ones = np.ones((1, 1, 100, 1))  # exp(88) is 1.7e38, and two of them are more than a float32
    v = np.random.default_rng(0).normal(size=(1, 1, 100, 3))
    inputs = tensor(88 * ones), tensor(ones), tensor(v)
    mine = ops.scaled_dot_product_attention(*inputs, None, scale=1.0)
    with tt.reference_ops():
        theirs = ops.scaled_dot_product_attention(*inputs, None, scale=1.0)
    np.testing.assert_allclose(mine.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def test_nothing_of_the_size_of_the_scores_is_kept():
    x = np.ones((1, 1, 4096, 4), np.float32)
    for options in ({}, {"dropout_p": 0.5, "draw": Draw(1, 1)}):
        q = tensor(x)
        y = ops.scaled_dot_product_attention(q, q, q, None, True, **options)
        assert max(saved.size for saved in y.node.saved()) <= x.size


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 100), st.integers(0, 2**64 - 1), st.booleans())
def test_words_from_the_middle_of_a_draw(first, count, key, wraps):
    draw = Draw(key, 2**64 - 3 if wraps else 0)
    if wraps and first + count > 24:  # the first 24 are in the three blocks before the wrap
        draw = Draw(key, 5)
    whole = words32(draw, first + count)
    np.testing.assert_array_equal(keep_words(draw, first, count), whole[first:])


@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.3, "draw": Draw(3, 9)}])
def test_threads_do_not_change_the_numbers(options, monkeypatch):
    monkeypatch.setattr(attention, "WORTH_A_PIECE", 1)
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.normal(size=(3, 4, 200, 16)).astype(np.float32) for _ in range(4))
    found, before = [], tt.get_num_threads()
    try:
        for threads in (1, 2, 3):
            tt.set_num_threads(threads)
            y, vjp = attention.fast_attention(q, k, v, None, True, **options)
            found.append((y, *vjp(dy)[:3]))
    finally:
        tt.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
