"""RMSprop, Adagrad and Adadelta against their formulas, step by step in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.optim import Adadelta, Adagrad, RMSprop
from tinytensor.optim.optimizer import CHUNK

SHAPES = [(2, 3), (), (CHUNK + 5,)]  # the last is longer than one pass
presences = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5)
seeds = st.integers(0, 2**32 - 1)
decays = st.sampled_from([0.0, 0.1])


def rmsprop(
    value: Any, g: Any, state: dict[str, Any], step: int, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    o = options
    g = g + o["weight_decay"] * value
    square, mean, buffer = (state.get(k, 0.0) for k in ("square_avg", "grad_avg", "buffer"))
    square = o["alpha"] * square + (1 - o["alpha"]) * g**2
    mean = o["alpha"] * mean + (1 - o["alpha"]) * g
    variance = square - mean**2 if o["centered"] else square
    buffer = o["momentum"] * buffer + g / (np.sqrt(variance) + o["eps"])
    return value - o["lr"] * buffer, {"square_avg": square, "grad_avg": mean, "buffer": buffer}


def adagrad(
    value: Any, g: Any, state: dict[str, Any], step: int, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    o = options
    g = g + o["weight_decay"] * value
    total = state.get("sum", o["initial_accumulator_value"]) + g**2
    lr = o["lr"] / (1 + (step - 1) * o["lr_decay"])
    return value - lr * g / (np.sqrt(total) + o["eps"]), {"sum": total}


def adadelta(
    value: Any, g: Any, state: dict[str, Any], step: int, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    o = options
    g = g + o["weight_decay"] * value
    square, delta = state.get("square_avg", 0.0), state.get("acc_delta", 0.0)
    square = o["rho"] * square + (1 - o["rho"]) * g**2
    change = np.sqrt(delta + o["eps"]) / np.sqrt(square + o["eps"]) * g
    delta = o["rho"] * delta + (1 - o["rho"]) * change**2
    return value - o["lr"] * change, {"square_avg": square, "acc_delta": delta}


def check(kind: Any, formula: Any, options: Any, presence: Any, seed: int) -> None:
    """Gradients come and go, so that step counts drift apart."""
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal(shape) for shape in SHAPES]
    parameters = [tt.tensor(value.copy(), requires_grad=True) for value in values]
    states: list[dict[str, Any]] = [{}, {}, {}]
    steps = [0, 0, 0]
    optimizer = kind(parameters, **options)
    for present in presence:
        optimizer.zero_grad()
        for i, here in enumerate(present):
            if here:
                gradient = rng.standard_normal(SHAPES[i])
                parameters[i].grad = tt.tensor(gradient)
                steps[i] += 1
                values[i], states[i] = formula(values[i], gradient, states[i], steps[i], options)
        optimizer.step()
        for p, value in zip(parameters, values, strict=True):
            np.testing.assert_allclose(p.data.numpy(), value, rtol=1e-9, atol=1e-9)
    kept = optimizer.state_dict()["state"]
    assert {i: state["step"] for i, state in kept.items()} == {
        i: n for i, n in enumerate(steps) if n
    }


@given(
    st.floats(0.0, 1.0),
    st.sampled_from([0.5, 0.99]),
    st.sampled_from([1e-8, 0.1]),
    decays,
    st.sampled_from([0.0, 0.9]),
    st.booleans(),
    presences,
    seeds,
)
def test_rmsprop_is_its_formula(
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
    presence: Any,
    seed: int,
) -> None:
    options = {
        "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay,
        "momentum": momentum, "centered": centered,
    }  # fmt: skip
    check(RMSprop, rmsprop, options, presence, seed)


@given(
    st.floats(0.0, 1.0),
    st.sampled_from([0.0, 0.2]),
    decays,
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([1e-10, 0.1]),
    presences,
    seeds,
)
def test_adagrad_is_its_formula(
    lr: float,
    lr_decay: float,
    weight_decay: float,
    initial: float,
    eps: float,
    presence: Any,
    seed: int,
) -> None:
    options = {
        "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
        "initial_accumulator_value": initial, "eps": eps,
    }  # fmt: skip
    check(Adagrad, adagrad, options, presence, seed)


@given(
    st.floats(0.0, 1.0),
    st.sampled_from([0.5, 0.9]),
    st.sampled_from([1e-6, 0.1]),
    decays,
    presences,
    seeds,
)
def test_adadelta_is_its_formula(
    lr: float, rho: float, eps: float, weight_decay: float, presence: Any, seed: int
) -> None:
    options = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
    check(Adadelta, adadelta, options, presence, seed)


def test_a_variance_that_rounding_takes_below_zero() -> None:
    """Of a gradient that never changes, square_avg - grad_avg² comes to 0, or a little less."""
    w = tt.ones(1000, requires_grad=True)
    gradient = tt.tensor(np.random.default_rng(0).standard_normal(1000).astype(np.float32))
    optimizer = RMSprop([w], lr=1e-9, alpha=0.9, centered=True)
    for _ in range(200):
        w.grad = gradient
        optimizer.step()
    (state,) = optimizer.state_dict()["state"].values()
    assert (state["grad_avg"].square() > state["square_avg"]).any()
    assert w.isfinite().all()


@pytest.mark.parametrize("kind", [RMSprop, Adagrad])
def test_gradients_of_zero_and_beyond_measure_are_silent(kind: Any) -> None:
    w = tt.tensor([1.0, 1.0, 1.0], requires_grad=True)
    optimizer = kind([w], lr=0.5, eps=0.0)
    w.grad = tt.tensor([0.0, 1e30, float("inf")])
    optimizer.step()
    assert w.isnan().tolist() == [True, False, True]
    assert w[1].item() == 1.0  # its square is inf


STATES = {
    "RMSprop": (lambda p: RMSprop(p), {"square_avg", "step"}),
    "RMSprop with all": (
        lambda p: RMSprop(p, momentum=0.9, centered=True),
        {"square_avg", "grad_avg", "momentum_buffer", "step"},
    ),
    "Adagrad": (lambda p: Adagrad(p), {"sum", "step"}),
    "Adadelta": (lambda p: Adadelta(p), {"square_avg", "acc_delta", "step"}),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16])
def test_what_is_saved_and_that_it_suffices(name: str, dtype: Any) -> None:
    make, names = STATES[name]
    rng = np.random.default_rng(0)
    first, second = (tt.ones(7, dtype=dtype).requires_grad_() for _ in range(2))
    optimizer = make([first])
    for step in range(4):
        first.grad = tt.tensor(rng.standard_normal(7)).to(dtype)
        optimizer.step()
        if step == 1:
            state = optimizer.state_dict()["state"][0]
            assert set(state) == names | ({"master"} if dtype == tt.bfloat16 else set())
            second = first.detach().clone().requires_grad_()
            resumed = make([second])
            resumed.load_state_dict(optimizer.state_dict())
        elif step > 1:
            second.grad = first.grad
            resumed.step()
            assert tt.equal(first.detach(), second.detach())


def test_a_state_that_lacks_a_moment_is_refused() -> None:
    w = tt.tensor([1.0], requires_grad=True)
    plain = RMSprop([w])
    w.grad = tt.tensor([1.0])
    plain.step()
    saved = plain.state_dict()
    saved["param_groups"][0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="parameter 0 lacks momentum_buffer"):
        RMSprop([w], momentum=0.9).load_state_dict(saved)


@pytest.mark.compiler
@pytest.mark.parametrize("kind", [RMSprop, Adagrad, Adadelta])
def test_on_a_device(kind: Any) -> None:
    """The same bits as on the CPU; inside a captured step, a sentence."""
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((2, 3, 40)).astype(np.float32)
    here = tt.tensor(numbers[0, 0], requires_grad=True)
    there = tt.tensor(numbers[0, 0]).to("cuda-sim").requires_grad_()
    for p in (here, there):
        optimizer = kind([p], weight_decay=0.1)
        for gradient in numbers[1]:
            p.grad = tt.tensor(gradient).to(p.device)
            optimizer.step()
    assert tt.equal(here.detach(), there.detach().cpu())
    optimizer.zero_grad()

    def step(x: tt.Tensor) -> tt.Tensor:
        loss = (there * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    captured = tt.cuda.graph(step, optimizer)
    x = tt.ones(40, device="cuda-sim")
    with pytest.raises(RuntimeError, match=f"can be captured, not those of {kind.__name__}"):
        for _ in range(6):
            captured(x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: RMSprop(p, lr=-1.0), "RMSprop: lr must be at least 0, got -1.0"),
        (lambda p: RMSprop(p, alpha=1.5), "RMSprop: alpha must be between 0 and 1, got 1.5"),
        (lambda p: RMSprop(p, eps=-1.0), "eps must be at least 0"),
        (lambda p: RMSprop(p, momentum=-0.1), "momentum must be at least 0"),
        (lambda p: Adagrad(p, lr_decay=-0.1), "Adagrad: lr_decay must be at least 0, got -0.1"),
        (lambda p: Adagrad(p, initial_accumulator_value=-1.0), "initial_accumulator_value must be"),
        (lambda p: Adagrad(p, eps=-1.0), "eps must be at least 0"),
        (lambda p: Adadelta(p, rho=1.5), "Adadelta: rho must be between 0 and 1, got 1.5"),
        (lambda p: Adadelta(p, eps=-1.0), "eps must be at least 0"),
    ],
)
def test_bad_arguments(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make([tt.zeros(2, requires_grad=True)])
