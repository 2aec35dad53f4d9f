"""`F.gumbel_softmax`: what it draws, how often, and the gradient that goes through the draw."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinytensor as tt
from tests.ops.derivatives import check_derivatives, real
from tinytensor.nn import functional as F


def drawn(logits, seed=3, **options):
    tt.manual_seed(seed)
    return F.gumbel_softmax(logits, **options)


@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_classes_are_drawn_with_the_probabilities_of_softmax(tau):
    probabilities, n = np.array([0.5, 0.3, 0.15, 0.05]), 20_000
    logits = tt.tensor(np.log(probabilities)).expand(n, 4)
    share = drawn(logits, tau=tau, hard=True).mean(0).numpy()
    spread = np.sqrt(probabilities * (1 - probabilities) / n)
    assert (abs(share - probabilities) < 5 * spread).all()


@pytest.mark.parametrize("dim", [0, -1])
def test_hard_is_the_largest_of_soft_with_the_gradient_of_soft(dim):
    weights = real(5, 6, seed=1).detach()
    results = []
    for hard in (False, True):
        logits = real(5, 6)
        y = drawn(logits, tau=0.7, hard=hard, dim=dim)
        y.backward(weights)
        results.append((y.detach().numpy(), logits.grad.numpy()))
    (soft, slope), (hard, same_slope) = results
    np.testing.assert_allclose(soft.sum(dim), 1, rtol=1e-12)
    np.testing.assert_allclose(hard, soft == soft.max(dim, keepdims=True), atol=1e-15)
    np.testing.assert_array_equal(slope, same_slope)


def test_derivatives_for_a_fixed_draw():
    check_derivatives(lambda x: drawn(x, tau=0.8), (real(3, 4),))


def test_a_uniform_number_of_zero_is_no_infinity(monkeypatch):
    monkeypatch.setattr("tinytensor.nn.functional.activations.rand_like", lambda x, dtype: 0 * x)
    assert F.gumbel_softmax(tt.zeros(2, 2)).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_dtypes():
    for dtype in (tt.float64, tt.float32, tt.bfloat16):
        assert drawn(tt.zeros(2, 3, dtype=dtype), hard=True).dtype == dtype


def test_what_is_no_logits():
    with pytest.raises(TypeError, match=r"the logits are int64; x\.float\(\)"):
        F.gumbel_softmax(tt.tensor([1, 2]))
    with pytest.raises(TypeError, match="the logits is a tensor, not a list"):
        F.gumbel_softmax([1.0, 2.0])


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_the_temperature_is_positive(tau):
    with pytest.raises(ValueError, match="tau must be positive, but it is"):
        F.gumbel_softmax(tt.zeros(3), tau=tau)
