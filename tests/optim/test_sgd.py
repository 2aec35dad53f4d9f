"""SGD against its formula, step by step in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.optim import SGD


@given(
    st.floats(0.0, 1.0),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_steps_are_the_formula(
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    presence: list[tuple[bool, bool]],
    seed: int,
) -> None:
    nesterov = nesterov and momentum > 0 and dampening == 0
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal((2, 3)), rng.standard_normal(17)]
    buffers: list[Any] = [None, None]
    parameters = [tt.tensor(value.copy(), requires_grad=True) for value in values]
    optimizer = SGD(parameters, lr, momentum, dampening, weight_decay, nesterov)
    for present in presence:
        optimizer.zero_grad()
        for i, here in enumerate(present):
            if not here:
                continue
            gradient = rng.standard_normal(values[i].shape)
            parameters[i].grad = tt.tensor(gradient)
            g = gradient + weight_decay * values[i]
            if momentum:
                begun = buffers[i] is not None
                buffers[i] = momentum * buffers[i] + (1 - dampening) * g if begun else g
                g = g + momentum * buffers[i] if nesterov else buffers[i]
            values[i] = values[i] - lr * g
        optimizer.step()
        for p, value in zip(parameters, values, strict=True):
            np.testing.assert_allclose(p.data.numpy(), value, rtol=1e-12, atol=1e-12)
    kept = optimizer.state_dict()["state"]
    assert sorted(kept) == [i for i, buffer in enumerate(buffers) if buffer is not None]


def test_momentum_switched_on_later_begins_with_the_gradient() -> None:
    w = tt.tensor([0.0], requires_grad=True)
    optimizer = SGD([w], lr=1.0, dampening=0.5)
    for momentum, expected in [(0.0, -1.0), (0.9, -2.0), (0.9, -2.0 - (0.9 + 0.5))]:
        optimizer.param_groups[0]["momentum"] = momentum
        w.grad = tt.tensor([1.0])
        optimizer.step()
        np.testing.assert_allclose(w.item(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": -1.0}, "SGD: lr must be at least 0, got -1.0"),
        ({"momentum": -0.1}, "momentum must be at least 0"),
        ({"nesterov": True}, "nesterov must be False unless momentum > 0 and dampening = 0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov must be False"),
    ],
)
def test_bad_arguments(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SGD([tt.zeros(2, requires_grad=True)], **options)
