"""`nn.utils`: clipping, with gradients of their own and in an optimizer's buffer, and vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import nn
from tinytensor.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    parameters_to_vector,
    vector_to_parameters,
)

SHAPES = [(3, 4), (5,), (), (2, 1, 3)]


def parameters(dtype=tt.float32):
    """Parameters with random gradients, one without a gradient among them."""
    rng = np.random.default_rng(0)
    made = [nn.Parameter(tt.tensor(rng.normal(size=s), dtype=dtype)) for s in SHAPES]
    for parameter in made:
        (parameter * tt.tensor(rng.normal(size=parameter.shape), dtype=dtype)).sum().backward()
    return [made[0], nn.Parameter(tt.ones(2)), *made[1:]]


def gradients(params):
    return [p.grad.double().numpy().copy() for p in params if p.grad is not None]


def norm(arrays, norm_type):
    return np.linalg.norm(np.concatenate([a.reshape(-1) for a in arrays]), norm_type)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("in_a_buffer", [False, True])
def test_gradients_are_scaled_to_the_norm(norm_type, in_a_buffer):
    params = parameters()
    if in_a_buffer:
        tt.optim.SGD(params, lr=0.1)
    before = gradients(params)
    total = norm(before, norm_type)

    assert clip_grad_norm_(params, 2 * total, norm_type).item() == pytest.approx(total, rel=1e-6)
    for now, then in zip(gradients(params), before, strict=True):
        np.testing.assert_array_equal(now, then)  # small enough already: untouched

    returned = clip_grad_norm_(params, total / 3, norm_type)
    assert returned.shape == () and returned.dtype == tt.float32
    assert returned.item() == pytest.approx(total, rel=1e-6)
    for now, then in zip(gradients(params), before, strict=True):
        np.testing.assert_allclose(now, then / 3, rtol=2e-6)
    assert params[1].grad is None


def test_a_single_tensor_bfloat16_and_nothing_at_all():
    parameter = parameters(tt.bfloat16)[0]
    total = norm(gradients([parameter]), 2)
    assert clip_grad_norm_(parameter, 1e9).item() == pytest.approx(total, rel=1e-6)
    clip_grad_norm_(parameter, 1.0)
    assert norm(gradients([parameter]), 2) == pytest.approx(1, rel=2**-8)
    assert clip_grad_norm_([nn.Parameter(tt.ones(2))], 1.0).item() == 0
    assert clip_grad_norm_([], 1.0).item() == 0


def test_the_norm_of_a_long_gradient_is_summed_exactly_enough():
    # Added one by one in float32, 4 million squares would be off in the third digit.
    parameter = nn.Parameter(tt.zeros(1 << 22))
    parameter.grad = tt.full((1 << 22,), 0.1)
    expected = float(np.float32(0.1)) * 2**11
    assert clip_grad_norm_(parameter, 1e9).item() == pytest.approx(expected, rel=2e-6)


def test_a_norm_that_is_not_finite_is_an_error_if_asked_for():
    params = parameters()
    params[0].grad[0, 0] = math.nan
    before = gradients(params)
    with pytest.raises(RuntimeError, match="the norm of the gradients is nan"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(gradients(params)[1], before[1])
    assert math.isnan(clip_grad_norm_(params, 1.0).item())
    with pytest.raises(ValueError, match="norm_type must be positive, got 0"):
        clip_grad_norm_(params, 1.0, 0)


def test_gradients_are_clipped_by_value():
    params = parameters()
    before = gradients(params)
    clip_grad_value_(params, 0.5)
    for now, then in zip(gradients(params), before, strict=True):
        np.testing.assert_array_equal(now, np.clip(then, -0.5, 0.5))
    with pytest.raises(ValueError, match="clip_value must not be negative, got -1"):
        clip_grad_value_(params, -1)


def test_parameters_as_one_vector_and_back():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    vector = parameters_to_vector(net.parameters())
    assert vector.shape == (13,) and vector.requires_grad
    memory = net[0].weight.data_ptr()
    vector_to_parameters(vector.detach() * 2, net.parameters())
    assert net[0].weight.data_ptr() == memory
    np.testing.assert_array_equal(
        parameters_to_vector(net.parameters()).detach().numpy(), 2 * vector.detach().numpy()
    )
    with pytest.raises(ValueError, match="the vector has 12 numbers but the parameters 13"):
        vector_to_parameters(vector[:-1], net.parameters())
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        vector_to_parameters([1.0], net.parameters())
