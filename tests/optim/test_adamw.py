"""AdamW and Adam: the pass over flat buffers against the formula, parameter by parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.optim import Adam, AdamW
from tinytensor.optim.adamw import adamw_reference, adamw_update
from tinytensor.optim.optimizer import CHUNK

hyperparameters = st.fixed_dictionaries(
    {
        "lr": st.floats(0.0, 1.0),
        "betas": st.tuples(st.floats(0.0, 0.99), st.floats(0.0, 0.9999)),
        "eps": st.floats(1e-8, 1e-2),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
    }
)


def parameter(shape: tuple[int, ...], seed: int, dtype: Any = np.float32) -> tt.Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return tt.tensor(numbers, requires_grad=True)


@given(
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 40),
    st.integers(1, 2000),
    hyperparameters,
    st.integers(0, 2**32 - 1),
)
def test_in_place_update_is_the_formula(
    dtype: Any, size: int, step: int, options: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    value, gradient, exp_avg = (rng.standard_normal(size).astype(dtype) for _ in range(3))
    exp_avg_sq = rng.random(size).astype(dtype)
    expected = adamw_reference(value, gradient, exp_avg, exp_avg_sq, step=step, **options)
    kept = gradient.copy()
    adamw_update(value, gradient, exp_avg, exp_avg_sq, np.empty(size, dtype), step=step, **options)
    # A dozen rounded operations on numbers below ten; the division magnifies by at most the step.
    largest = max(1.0, float(np.max(np.abs(expected[0]), initial=0.0)))
    tolerance = 32 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(value, expected[0], rtol=tolerance, atol=tolerance * largest)
    np.testing.assert_allclose(exp_avg, expected[1], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(exp_avg_sq, expected[2], rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(gradient, kept)


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6),
    hyperparameters,
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_steps_are_those_of_each_parameter_alone(
    presence: list[list[bool]], options: dict[str, Any], decoupled: bool, seed: int
) -> None:
    """One parameter is longer than a chunk; gradients come and go, so step counts drift apart."""
    rng = np.random.default_rng(seed)
    shapes = [(3, 5), (), (CHUNK + 7,), (2, 0, 3)]
    parameters = [parameter(shape, seed + i, np.float64) for i, shape in enumerate(shapes)]
    expected = [(p.data.numpy().copy(), np.zeros(p.shape), np.zeros(p.shape)) for p in parameters]
    steps = [0] * len(shapes)
    optimizer = (AdamW if decoupled else Adam)(parameters, **options)
    decay = options["weight_decay"]
    for present in presence:
        optimizer.zero_grad()
        for i, p in enumerate(parameters):
            if not present[i]:
                continue
            gradient = rng.standard_normal(p.shape)
            p.grad = tt.tensor(gradient)
            steps[i] += 1
            rule = options if decoupled else {**options, "weight_decay": 0.0}
            value, m, v = expected[i]
            felt = gradient if decoupled else gradient + decay * value
            expected[i] = adamw_reference(value, felt, m, v, step=steps[i], **rule)
        optimizer.step()
        for p, (value, _, _) in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(p.data.numpy(), value, rtol=1e-9, atol=1e-9)
    state = optimizer.state_dict()["state"]
    assert {i: s["step"] for i, s in state.items()} == {i: n for i, n in enumerate(steps) if n}


def test_first_step_is_the_learning_rate_against_the_sign() -> None:
    """m^ / √v^ = g / |g| after one step: the size of the gradient does not matter."""
    w = tt.tensor([1.0, 1.0, 1.0], requires_grad=True)
    optimizer = AdamW([w], lr=0.1, weight_decay=0.0)
    (w * tt.tensor([5.0, -0.001, 0.0])).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(w.data.numpy(), [0.9, 1.1, 1.0], rtol=1e-4)


def test_decay_is_apart_from_the_gradient() -> None:
    w = tt.tensor([2.0], requires_grad=True)
    optimizer = AdamW([w], lr=0.1, weight_decay=0.5)
    w.grad = tt.tensor([0.0])
    optimizer.step()
    np.testing.assert_allclose(w.data.numpy(), [2.0 * (1 - 0.1 * 0.5)], rtol=1e-6)
    optimizer.zero_grad()
    optimizer.step()  # without a gradient there is no decay either
    np.testing.assert_allclose(w.data.numpy(), [1.9], rtol=1e-6)


def test_eps_zero_with_a_gradient_everywhere() -> None:
    w = parameter((5,), 0)
    optimizer = AdamW([w], lr=0.1, eps=0.0)
    w.grad = tt.ones(5)
    optimizer.step()
    assert np.isfinite(w.data.numpy()).all()


def test_finds_the_minimum_of_a_bowl() -> None:
    w = tt.tensor([3.0, -2.0], requires_grad=True)
    optimizer = AdamW([w], lr=0.05, weight_decay=0.0)
    for _ in range(400):
        optimizer.zero_grad()
        ((w - 1) ** 2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(w.data.numpy(), [1.0, 1.0], atol=1e-3)


def test_groups_have_their_own_hyperparameters_and_may_change_them() -> None:
    a, b = (tt.tensor([1.0], requires_grad=True) for _ in range(2))
    optimizer = AdamW(
        [{"params": [a]}, {"params": [b], "lr": 0.5, "weight_decay": 0.0}], lr=0.1, weight_decay=0.0
    )
    for p in (a, b):
        p.grad = tt.tensor([1.0])
    optimizer.step()
    np.testing.assert_allclose([a.item(), b.item()], [0.9, 0.5], rtol=1e-5)
    optimizer.param_groups[1]["lr"] = 0.0
    optimizer.step()
    np.testing.assert_allclose(b.item(), 0.5, rtol=1e-5)
    assert a.item() < 0.85


def test_added_group_is_trained_and_saved() -> None:
    a, b = (tt.tensor([1.0], requires_grad=True) for _ in range(2))
    optimizer = AdamW([a], lr=0.1)
    optimizer.add_param_group({"params": b, "lr": 0.2})
    a.grad, b.grad = tt.tensor([1.0]), tt.tensor([1.0])
    optimizer.step()
    np.testing.assert_allclose(b.item(), 1 - 0.2 - 0.2 * 0.01, rtol=1e-5)
    assert [group["params"] for group in optimizer.state_dict()["param_groups"]] == [[0], [1]]


def test_closure_computes_the_loss_with_recording_on() -> None:
    w = tt.tensor([1.0], requires_grad=True)
    optimizer = AdamW([w], lr=0.1, weight_decay=0.0)

    def closure() -> tt.Tensor:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with tt.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == 1.0
    np.testing.assert_allclose(w.item(), 0.9, rtol=1e-5)


def test_frozen_parameters_stay_and_may_thaw() -> None:
    a, b = parameter((3,), 0), parameter((3,), 1)
    b.requires_grad_(False)
    before = b.data.numpy().copy()
    optimizer = AdamW([a, b])
    (a * b).sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(b.data.numpy(), before)
    b.requires_grad_()
    optimizer.zero_grad()
    (a * b).sum().backward()
    optimizer.step()
    assert (b.data.numpy() != before).all()


# --- bfloat16 ----------------------------------------------------------------------------------


def test_bfloat16_weights_follow_a_float32_master() -> None:
    """An update is a hundredth of the gap between bfloat16 numbers near 1; together they count."""
    w = tt.ones(4).to(tt.bfloat16).requires_grad_()
    exact = tt.ones(4).requires_grad_()
    both = AdamW([w, exact], lr=5e-5, weight_decay=0.0)
    for _ in range(200):
        w.grad, exact.grad = tt.ones(4).to(tt.bfloat16), tt.ones(4)
        both.step()
    np.testing.assert_array_equal(w.data.numpy(), exact.data.numpy().astype(w.dtype))
    assert w.dtype == tt.bfloat16 and (w.data.numpy().astype(np.float32) < 0.995).all()


def test_bfloat16_weights_written_by_others_are_taken_over() -> None:
    w = tt.ones(4).to(tt.bfloat16).requires_grad_()
    optimizer = AdamW([w], lr=0.0)
    w.grad = tt.ones(4).to(tt.bfloat16)
    optimizer.step()
    w.value[1] = 3.0
    optimizer.step()
    np.testing.assert_array_equal(w.data.numpy().astype(np.float32), [1.0, 3.0, 1.0, 1.0])


# --- resuming ----------------------------------------------------------------------------------


def train(optimizer: Any, parameters: list[tt.Tensor], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        rng = np.random.default_rng(step)
        for index, p in enumerate(parameters):
            if (step + index) % 3:
                p.grad = tt.tensor(rng.standard_normal(p.shape).astype(np.float32)).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("kind", [AdamW, Adam, tt.optim.SGD])
@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16])
def test_resumes_bit_for_bit_from_a_file(kind: Any, dtype: Any, tmp_path: Any) -> None:
    def fresh() -> tuple[Any, list[tt.Tensor]]:
        parameters = [parameter((4, 3), 0).detach(), parameter((7,), 1).detach()]
        parameters = [p.to(dtype).requires_grad_() for p in parameters]
        more = {"momentum": 0.9} if kind is tt.optim.SGD else {}
        return kind([{"params": [p]} for p in parameters], lr=0.01, **more), parameters

    optimizer, parameters = fresh()
    train(optimizer, parameters, range(5))
    optimizer.param_groups[0]["lr"] = 0.003
    saved = {"optimizer": optimizer.state_dict(), "weights": [p.detach() for p in parameters]}
    tt.save(saved, tmp_path / "checkpoint")
    train(optimizer, parameters, range(5, 10))

    resumed, others = fresh()
    loaded = tt.load(tmp_path / "checkpoint")
    for p, weights in zip(others, loaded["weights"], strict=True):
        p.data = weights
    resumed.load_state_dict(loaded["optimizer"])
    train(resumed, others, range(5, 10))
    for p, other in zip(parameters, others, strict=True):
        assert p.data.numpy().tobytes() == other.data.numpy().tobytes()
    assert resumed.param_groups[0]["lr"] == 0.003


def test_state_shows_live_moments() -> None:
    w = parameter((3,), 0)
    optimizer = AdamW([w], betas=(0.9, 0.999))
    assert optimizer.state == {}
    w.grad = tt.ones(3)
    optimizer.step()
    np.testing.assert_allclose(optimizer.state[w]["exp_avg"].numpy(), 0.1, rtol=1e-6)
    assert optimizer.state[w]["step"] == 1


def test_own_state_may_be_loaded_back() -> None:
    w = parameter((3,), 0)
    optimizer = AdamW([w])
    w.grad = tt.ones(3)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    np.testing.assert_allclose(optimizer.state[w]["exp_avg"].numpy(), 0.1, rtol=1e-6)


def damaged(**changes: Any) -> Any:
    def damage(state: dict[str, Any]) -> dict[str, Any]:
        state["state"][0] = {**state["state"][0], **changes}
        return {**state, "state": {0: {k: v for k, v in state["state"][0].items() if v is not ...}}}

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda s: {"state": {}}, "needs a dict with 'state' and 'param_groups'"),
        (lambda s: {**s, "param_groups": s["param_groups"] * 2}, r"groups of \[1, 1\] parameters"),
        (damaged(exp_avg=tt.zeros(4)), r"parameter 0 holds exp_avg of shape \(4,\).* shape \(3,\)"),
        (damaged(momentum_buffer=tt.zeros(3)), "'momentum_buffer', which is not kept here"),
        (lambda s: {**s, "state": {"0": s["state"][0]}}, "parameters that no group has: {'0'}"),
        (lambda s: {**s, "state": {0: None}}, "parameter 0 is a NoneType, not a dict"),
        (damaged(step=...), "parameter 0 lacks step"),
        (lambda s: {**s, "param_groups": [{"params": [0]}]}, "lacks 'lr', 'betas'"),
        (
            lambda s: {**s, "param_groups": [{**s["param_groups"][0], "amsgrad": True}]},
            "amsgrad=True, which is not offered",
        ),
    ],
)
def test_state_that_does_not_fit_is_refused_and_changes_nothing(damage: Any, sentence: str) -> None:
    w = parameter((3,), 0)
    optimizer = AdamW([w])
    w.grad = tt.ones(3)
    optimizer.step()
    before = optimizer.state_dict()
    kept = before["state"][0]["exp_avg"].numpy().copy()
    with pytest.raises(ValueError, match=sentence):
        optimizer.load_state_dict(damage(optimizer.state_dict()))
    after = optimizer.state_dict()
    np.testing.assert_array_equal(after["state"][0]["exp_avg"].numpy(), kept)
    assert after["param_groups"] == before["param_groups"]


# --- bad arguments -----------------------------------------------------------------------------

w = parameter((2,), 0)


@pytest.mark.parametrize(
    ("params", "options", "error", "sentence"),
    [
        ([w], {"lr": -0.1}, ValueError, "AdamW: lr must be at least 0, got -0.1"),
        ([w], {"lr": float("nan")}, ValueError, "lr must be at least 0, got nan"),
        ([w], {"betas": (0.9, 1.0)}, ValueError, r"betas must be two numbers in \[0, 1\), got"),
        ([w], {"betas": (0.9,)}, ValueError, "betas must be two numbers"),
        ([w], {"eps": -1.0}, ValueError, "eps must be at least 0"),
        ([w], {"weight_decay": -1.0}, ValueError, "weight_decay must be at least 0"),
        ([w], {"amsgrad": True}, TypeError, "amsgrad"),
        ([], {}, ValueError, "empty list of parameters"),
        ([{"params": []}], {}, ValueError, "parameter group 0 is empty"),
        (w, {}, TypeError, "not Tensor"),
        ({w}, {}, TypeError, "not set"),
        (3, {}, TypeError, "not int"),
        ([{w}], {}, TypeError, "not a tensor"),
        ([{"params": {w}}], {}, TypeError, "a set has none"),
        ([{"weights": [w]}], {}, TypeError, "'params'"),
        ([w, np.ones(3)], {}, TypeError, "parameter 1 of group 0 is a ndarray"),
        ([w, w], {}, ValueError, "parameter 1 of group 0 is also parameter 0 of group 0"),
        (
            [{"params": [w]}, {"params": [w]}],
            {},
            ValueError,
            "parameter 0 of group 1 is also group 0",
        ),
        ([w * 2], {}, ValueError, "computed by <multiply .*only leaf tensors"),
        ([tt.zeros(3)], {}, ValueError, "none of the 1 parameters requires a gradient"),
        ([w, tt.arange(3)], {}, TypeError, "int64 tensor"),
    ],
)
def test_bad_arguments(params: Any, options: Any, error: type[Exception], sentence: str) -> None:
    memory = w.value
    with pytest.raises(error, match=sentence):
        AdamW(params, **options)
    assert w.value is memory  # a refused call moves nothing
