"""Optimizers, clipping and schedules against PyTorch's, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tests.parity.compare import numbers, to_torch, torch
from tinytensor.testing import strategies

pytestmark = pytest.mark.parity

SHAPES = [(3, 4), (4,), (), (2, 1, 3), (5, 2)]


class Twins:
    """The same parameters in both libraries, which are given the same gradients."""

    def __init__(self, dtype=np.float64, seed=0):
        self.rng = np.random.default_rng(seed)
        values = [self.rng.normal(size=shape).astype(dtype) for shape in SHAPES]
        self.mine = [tt.nn.Parameter(tt.tensor(v)) for v in values]
        self.theirs = [torch.nn.Parameter(to_torch(v)) for v in values]
        self.dtype = dtype

    def give_gradients(self, skip=()):
        """By a backward pass, so that gradients go where each library puts them."""
        totals = [0.0, 0.0]
        for i, (mine, theirs) in enumerate(zip(self.mine, self.theirs, strict=True)):
            factor = self.rng.normal(size=mine.shape).astype(self.dtype)
            if i not in skip:
                totals[0] = totals[0] + (mine * mine * tt.tensor(factor)).sum()
                totals[1] = totals[1] + (theirs * theirs * to_torch(factor)).sum()
        for total in totals:
            total.backward()

    def agree(self, rtol=1e-11):
        for mine, theirs in zip(self.mine, self.theirs, strict=True):
            atol = rtol * np.abs(numbers(theirs)).max(initial=1)
            np.testing.assert_allclose(numbers(mine), numbers(theirs), rtol=rtol, atol=atol)

    def groups(self, *options):
        """Two groups of parameters with options of their own."""
        return tuple(
            [{"params": p[:3], **options[0]}, {"params": p[3:], **options[-1]}]
            for p in (self.mine, self.theirs)
        )


OPTIMIZERS = {
    "AdamW": ("AdamW", {"lr": 1e-2}, [{}]),
    "AdamW defaults": ("AdamW", {}, [{}]),
    "AdamW groups": (
        "AdamW",
        {"lr": 1e-2},
        [{"weight_decay": 0.3}, {"weight_decay": 0.0, "lr": 0.1}],
    ),
    "AdamW betas": ("AdamW", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4}, [{}]),
    "Adam": ("Adam", {"lr": 1e-2}, [{}]),
    "Adam decay": ("Adam", {"lr": 1e-2, "weight_decay": 0.1}, [{}]),
    "SGD": ("SGD", {"lr": 0.1}, [{}]),
    "SGD momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}, [{}]),
    "SGD groups": ("SGD", {"lr": 0.1}, [{"momentum": 0.9}, {"weight_decay": 0.1}]),
    "SGD dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, [{}]),
    "SGD nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}, [{}]),
    "RMSprop": ("RMSprop", {}, [{}]),
    "RMSprop momentum": ("RMSprop", {"momentum": 0.9, "alpha": 0.9, "weight_decay": 0.1}, [{}]),
    "RMSprop groups": (
        "RMSprop",
        {"eps": 1e-3},
        [{"centered": True}, {"momentum": 0.5, "lr": 0.1}],
    ),
    "Adagrad": ("Adagrad", {}, [{}]),
    "Adagrad decay": ("Adagrad", {"lr": 0.1, "lr_decay": 0.3, "weight_decay": 0.1}, [{}]),
    "Adagrad groups": (
        "Adagrad",
        {"initial_accumulator_value": 0.5},
        [{"eps": 1e-3}, {"lr": 0.3}],
    ),
    "Adadelta": ("Adadelta", {}, [{}]),
    "Adadelta groups": (
        "Adadelta",
        {"rho": 0.8},
        [{"weight_decay": 0.1}, {"lr": 0.3, "eps": 1e-3}],
    ),
    "SGD decay": ("SGD", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2}, [{}]),
}


def pair(twins, name, options, groups):
    mine, theirs = twins.groups(*groups)
    return getattr(tt.optim, name)(mine, **options), getattr(torch.optim, name)(theirs, **options)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("name", "options", "groups"), OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_ten_steps(name, options, groups, dtype):
    twins = Twins(dtype)
    optimizers = pair(twins, name, options, groups)
    for step in range(10):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        twins.give_gradients()
        for optimizer in optimizers:
            optimizer.step()
        twins.agree(1e-11 if dtype == np.float64 else 3e-5)


@pytest.mark.parametrize(
    "name", ["AdamW", "SGD groups", "SGD momentum", "RMSprop groups", "Adagrad decay"]
)
def test_parameters_without_gradients_are_passed_over(name):
    """They are not decayed either, and their own step count stands still."""
    twins = Twins()
    optimizers = pair(twins, *OPTIMIZERS[name])
    for skip in ((1,), (), (0, 1, 2), (3, 4), (), (2,)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        twins.give_gradients(skip)
        for optimizer in optimizers:
            optimizer.step()
        twins.agree()


@pytest.mark.parametrize(
    "name",
    [
        "AdamW groups",
        "SGD momentum",
        "Adam decay",
        "RMSprop groups",
        "Adagrad decay",
        "Adadelta groups",
    ],
)
def test_a_run_that_was_interrupted(name):
    """Saved after five steps, loaded into a new optimizer, it goes on as PyTorch's does."""
    twins = Twins()
    optimizers = list(pair(twins, *OPTIMIZERS[name]))
    for step in range(10):
        if step == 5:
            renewed = pair(twins, *OPTIMIZERS[name])
            for i, optimizer in enumerate(renewed):
                optimizer.load_state_dict(optimizers[i].state_dict())
                optimizers[i] = optimizer
        for optimizer in optimizers:
            optimizer.zero_grad()
        twins.give_gradients()
        for optimizer in optimizers:
            optimizer.step()
        twins.agree()


@pytest.mark.parametrize("name", ["RMSprop groups", "Adagrad decay", "Adadelta groups"])
def test_states_move_both_ways(name):
    """After five steps each library goes on with the state that the other one saved."""
    twins = Twins()
    optimizers = pair(twins, *OPTIMIZERS[name])
    for step in range(10):
        if step == 5:
            saved = [optimizer.state_dict() for optimizer in optimizers]
            optimizers = pair(twins, *OPTIMIZERS[name])
            optimizers[0].load_state_dict(saved[1])
            optimizers[1].load_state_dict({**saved[1], "state": in_torch(saved[0]["state"])})
        for optimizer in optimizers:
            optimizer.zero_grad()
        twins.give_gradients()
        for optimizer in optimizers:
            optimizer.step()
        twins.agree()


def in_torch(states):
    """Saved states of parameters, as PyTorch keeps them: the step is a tensor, too."""
    return {
        number: {
            key: to_torch(np.array(value, np.float32) if key == "step" else numbers(value).copy())
            for key, value in state.items()
        }
        for number, state in states.items()
    }


def test_options_may_change_between_steps():
    twins = Twins()
    optimizers = pair(twins, *OPTIMIZERS["AdamW groups"])
    for step in range(6):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1)
                group["weight_decay"] = 0.1 * (step % 2)
            optimizer.zero_grad()
        twins.give_gradients()
        for optimizer in optimizers:
            optimizer.step()
        twins.agree()


def test_gradients_that_add_up_over_several_passes():
    twins = Twins()
    optimizers = pair(twins, *OPTIMIZERS["AdamW"])
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for _ in range(4):
            twins.give_gradients()
        for optimizer in optimizers:
            optimizer.step()
        twins.agree()


# --- clipping ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.sampled_from([1.0, 2.0, 3.0, float("inf")]),
    st.sampled_from([0.1, 1.0, 1e6]),
    st.sampled_from([(), (0, 2)]),
    st.booleans(),
    strategies.seeds(),
)
def test_clipping_by_norm(norm_type, max_norm, skip, flat, seed):
    twins = Twins(seed=seed)
    if flat:  # gradients in an optimizer's buffer
        pair(twins, *OPTIMIZERS["AdamW"])
    twins.give_gradients(skip)
    mine, theirs = (
        L.nn.utils.clip_grad_norm_(p, max_norm, norm_type=norm_type)
        for L, p in ((tt, twins.mine), (torch, twins.theirs))
    )
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-9)
    for p, q in zip(twins.mine, twins.theirs, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(numbers(p.grad), numbers(q.grad), rtol=1e-9, atol=1e-15)


def test_clipping_by_value():
    twins = Twins()
    twins.give_gradients()
    tt.nn.utils.clip_grad_value_(twins.mine, 0.2)
    torch.nn.utils.clip_grad_value_(twins.theirs, 0.2)
    for p, q in zip(twins.mine, twins.theirs, strict=True):
        np.testing.assert_allclose(numbers(p.grad), numbers(q.grad))


def test_parameters_as_one_vector():
    twins = Twins()
    mine = tt.nn.utils.parameters_to_vector(twins.mine)
    theirs = torch.nn.utils.parameters_to_vector(twins.theirs)
    np.testing.assert_array_equal(numbers(mine), numbers(theirs))
    tt.nn.utils.vector_to_parameters(mine * 2, twins.mine)
    torch.nn.utils.vector_to_parameters(theirs * 2, twins.theirs)
    twins.agree()


# --- schedules -----------------------------------------------------------------------------------

SCHEDULES = {
    "LambdaLR": lambda S, o: S.LambdaLR(o, lambda step: 0.9**step),
    "LambdaLR of groups": lambda S, o: S.LambdaLR(o, [lambda n: 1 / (n + 1), lambda n: 0.5**n]),
    "ConstantLR": lambda S, o: S.ConstantLR(o, factor=0.25, total_iters=4),
    "LinearLR": lambda S, o: S.LinearLR(o, start_factor=0.1, total_iters=6),
    "LinearLR down": lambda S, o: S.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=5),
    "StepLR": lambda S, o: S.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda S, o: S.MultiStepLR(o, [2, 5, 5, 9]),
    "ExponentialLR": lambda S, o: S.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda S, o: S.CosineAnnealingLR(o, T_max=12, eta_min=1e-3),
    "CosineAnnealingWarmRestarts": lambda S, o: S.CosineAnnealingWarmRestarts(o, 3, eta_min=1e-3),
    "CosineAnnealingWarmRestarts, longer": lambda S, o: S.CosineAnnealingWarmRestarts(o, 2, 2),
    "OneCycleLR": lambda S, o: S.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "OneCycleLR of groups": lambda S, o: S.OneCycleLR(
        o, [0.1, 0.3], epochs=4, steps_per_epoch=3, anneal_strategy="linear", div_factor=4.0
    ),
    "OneCycleLR in three phases": lambda S, o: S.OneCycleLR(
        o, 0.1, 14, three_phase=True, base_momentum=0.5, final_div_factor=10.0, pct_start=0.4
    ),
    "OneCycleLR without momentum": lambda S, o: S.OneCycleLR(o, 0.1, 12, cycle_momentum=False),
    "SequentialLR": lambda S, o: S.SequentialLR(
        o,
        [S.LinearLR(o, start_factor=0.01, total_iters=4), S.CosineAnnealingLR(o, T_max=8)],
        milestones=[4],
    ),
}


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, kind):
    twins = Twins()
    optimizers = pair(twins, kind, {"lr": 0.1}, [{}, {"lr": 0.03}])
    schedules = [
        SCHEDULES[name](L.optim.lr_scheduler, optimizer)
        for L, optimizer in zip((tt, torch), optimizers, strict=True)
    ]
    for _ in range(12):
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        assert rates[0] == pytest.approx(rates[1], rel=1e-9)
        for mine, theirs in zip(*(o.param_groups for o in optimizers), strict=True):
            for key in {"betas", "momentum"} & mine.keys():
                assert mine[key] == pytest.approx(theirs[key], rel=1e-12)
        assert schedules[0].get_last_lr() == pytest.approx(schedules[1].get_last_lr(), rel=1e-9)
        for optimizer in optimizers:
            optimizer.zero_grad()
        twins.give_gradients()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    twins.agree(1e-9)


@settings(max_examples=100)
@given(
    st.sampled_from(["min", "max"]),
    st.sampled_from(["rel", "abs"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.lists(st.integers(-8, 8), min_size=1, max_size=40),
)
def test_reducing_on_a_plateau(mode, threshold_mode, patience, cooldown, threshold, metrics):
    optimizers = pair(Twins(), "SGD", {"lr": 0.1}, [{}, {"lr": 0.03}])
    options = {
        "mode": mode, "factor": 0.5, "patience": patience, "threshold": threshold,
        "threshold_mode": threshold_mode, "cooldown": cooldown, "min_lr": [1e-3, 1e-2],
        "eps": 1e-3,
    }  # fmt: skip
    mine, theirs = (
        L.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        for L, optimizer in zip((tt, torch), optimizers, strict=True)
    )
    for metric in metrics:
        mine.step(tt.tensor(metric / 4))
        theirs.step(torch.tensor(metric / 4))
        assert mine.get_last_lr() == [group["lr"] for group in optimizers[1].param_groups]
        for key in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
            assert getattr(mine, key) == getattr(theirs, key)
