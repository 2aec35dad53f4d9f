"""Schedules: golden values (PyTorch's, where it has the schedule), and resuming at any step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.optim import SGD, Adagrad, AdamW, lr_scheduler
from tinytensor.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    WarmupCosineLR,
    warmup_cosine,
)


def optimizer(*rates: float, kind: Any = SGD) -> Any:
    groups = [{"params": [tt.zeros(1, requires_grad=True)], "lr": lr} for lr in rates or (1.0,)]
    return kind(groups)


SCHEDULES: dict[str, Any] = {
    "LambdaLR": lambda o: LambdaLR(o, lambda step: 0.5**step),
    "ConstantLR": lambda o: ConstantLR(o, factor=0.5, total_iters=2),
    "LinearLR": lambda o: LinearLR(o, start_factor=0.25, end_factor=1.0, total_iters=3),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 1], gamma=0.5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=4, eta_min=0.2),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, T_0=1, T_mult=2, eta_min=0.2
    ),
    "OneCycleLR": lambda o: OneCycleLR(
        o, max_lr=4.0, total_steps=5, pct_start=0.6, div_factor=4.0, final_div_factor=10.0
    ),
    "WarmupCosineLR": lambda o: WarmupCosineLR(o, warmup=1, total=3, min_lr=0.2),
    "SequentialLR": lambda o: SequentialLR(
        o, [LinearLR(o, start_factor=0.5, total_iters=2), CosineAnnealingLR(o, T_max=2)], [2]
    ),
}
half = math.sqrt(0.5)
GOLDEN = {
    "LambdaLR": [1, 0.5, 0.25, 0.125, 0.0625],
    "ConstantLR": [0.5, 0.5, 1, 1, 1],
    "LinearLR": [0.25, 0.5, 0.75, 1, 1],
    "StepLR": [1, 1, 0.5, 0.5, 0.25],
    "MultiStepLR": [1, 0.5, 0.5, 0.25, 0.25],
    "ExponentialLR": [1, 0.5, 0.25, 0.125, 0.0625],
    "CosineAnnealingLR": [1, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half, 0.2],
    "CosineAnnealingWarmRestarts": [1, 1, 0.6, 1, 0.6 + 0.4 * half],
    "OneCycleLR": [1, 2.5, 4, 2.05, 0.1],
    "WarmupCosineLR": [0.5, 1, 0.6, 0.2, 0.2],
    "SequentialLR": [0.5, 0.75, 1, 0.5, 0],
}


def test_every_schedule_has_golden_values() -> None:
    public = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type)
        and issubclass(kind, lr_scheduler.LRScheduler)
        and name == kind.__name__
    }
    assert lr_scheduler._LRScheduler is lr_scheduler.LRScheduler
    assert public - {"LRScheduler"} == set(GOLDEN)


@pytest.mark.parametrize("name", SCHEDULES)
def test_golden_values(name: str) -> None:
    trained = optimizer(1.0, 1.0)
    schedule = SCHEDULES[name](trained)
    for expected in GOLDEN[name]:
        np.testing.assert_allclose(schedule.get_last_lr(), [expected] * 2, atol=1e-12)
        assert [group["lr"] for group in trained.param_groups] == schedule.get_last_lr()
        trained.step()
        schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_goes_on_from_a_state_dict(name: str) -> None:
    first = optimizer(1.0, 0.1)
    schedule = SCHEDULES[name](first)
    schedule.step()
    schedule.step()
    second = optimizer(7.0, 8.0)
    second.load_state_dict(first.state_dict())
    resumed = SCHEDULES[name](second)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(3):
        assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in first.param_groups]
        schedule.step()
        resumed.step()


def test_goes_on_from_last_epoch() -> None:
    first = optimizer(1.0)
    schedule = CosineAnnealingLR(first, T_max=10)
    for _ in range(4):
        schedule.step()
    resumed = CosineAnnealingLR(first, T_max=10, last_epoch=4)
    assert resumed.get_last_lr() == schedule.get_last_lr()
    with pytest.raises(ValueError, match="group 0 of the optimizer has no 'initial_lr'"):
        CosineAnnealingLR(optimizer(1.0), T_max=10, last_epoch=4)


def test_groups_keep_their_ratio() -> None:
    trained = optimizer(1.0, 0.1)
    schedule = LambdaLR(trained, [lambda step: 1.0, lambda step: 0.5])
    np.testing.assert_allclose(schedule.get_last_lr(), [1.0, 0.05])


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_one_cycle_moves_the_momentum_the_other_way(kind: Any) -> None:
    def momentum() -> Any:
        group = trained.param_groups[0]
        return group["betas"][0] if kind is AdamW else group["momentum"]

    trained = optimizer(1.0, kind=kind)
    alone = OneCycleLR(trained, 1.0, total_steps=5, pct_start=0.6, anneal_strategy="linear")
    both = SequentialLR(trained, [ConstantLR(trained, factor=0.5), alone], [2])
    seen = []
    for _ in range(7):
        seen.append(momentum())
        trained.step()
        both.step()
    np.testing.assert_allclose(seen, [0.95, 0.95, 0.95, 0.9, 0.85, 0.9, 0.95])
    if kind is AdamW:
        assert trained.param_groups[0]["betas"][1] == 0.999


def test_one_cycle_ends() -> None:
    schedule = OneCycleLR(optimizer(), 1.0, epochs=2, steps_per_epoch=3, cycle_momentum=False)
    for _ in range(6):
        schedule.step()
    with pytest.raises(ValueError, match="step 7 of a schedule of 6; it ends there"):
        schedule.step()


def test_a_plateau_is_left_with_smaller_steps() -> None:
    trained = optimizer(1.0, 0.1)
    plateau = ReduceLROnPlateau(trained, factor=0.5, patience=1, cooldown=1, min_lr=0.04)
    rates = []
    for metric in (3.0, 2.0, 2.0, 2.5, 9.0, 9.0, 9.0, 1.0, 1.0, math.nan):
        plateau.step(metric)
        rates.append(plateau.get_last_lr())
    # Two metrics that are no better are one too many; the one after them is not counted.
    expected = [[1, 0.1]] * 3 + [[0.5, 0.05]] * 3 + [[0.25, 0.04]] * 3 + [[0.125, 0.04]]
    assert rates == expected
    resumed = ReduceLROnPlateau(trained, factor=0.5, patience=1)
    resumed.load_state_dict(plateau.state_dict())
    assert vars(resumed).items() >= plateau.state_dict().items()
    with pytest.raises(ValueError, match="the saved state lacks best, num_bad_epochs"):
        resumed.load_state_dict({"cooldown_counter": 0, "last_epoch": 0})


@given(st.integers(0, 50), st.integers(1, 100), st.floats(1e-5, 1.0), st.floats(0.0, 1.0))
def test_warmup_cosine_rises_to_the_peak_and_falls_to_the_minimum(
    warmup: int, extra: int, peak: float, share: float
) -> None:
    total, minimum = warmup + extra, peak * share
    rates = [warmup_cosine(step, warmup, total, peak, minimum) for step in range(total + 5)]
    assert all(a < b for a, b in pairwise(rates[: warmup + 1]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    assert rates[0] > 0 and math.isclose(rates[warmup], peak)
    assert rates[total:] == [minimum] * 5


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda o: LambdaLR(o, [abs, abs]), ValueError, "2 functions for 1 parameter groups"),
        (lambda o: ConstantLR(o, factor=2.0), ValueError, "factor must be between 0 and 1"),
        (lambda o: LinearLR(o, start_factor=0.0), ValueError, r"start_factor must be in \(0, 1\]"),
        (lambda o: LinearLR(o, total_iters=0), ValueError, "total_iters must be at least 1"),
        (lambda o: lr_scheduler.StepLR(o, 0), ValueError, "step_size must be at least 1"),
        (lambda o: CosineAnnealingLR(o, T_max=0), ValueError, "T_max must be at least 1"),
        (lambda o: WarmupCosineLR(o, 10, 5), ValueError, "warmup=10 and total=5"),
        (lambda o: WarmupCosineLR(o, 1, 5, min_lr=-1.0), ValueError, "min_lr must be at least 0"),
        (lambda o: SequentialLR(o, [ConstantLR(o)], [3]), ValueError, "1 schedulers need 0 mile"),
        (
            lambda o: SequentialLR(o, [ConstantLR(optimizer()), ConstantLR(o)], [3]),
            ValueError,
            "the same optimizer",
        ),
        (
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 0),
            ValueError,
            "T_0 and T_mult must be at least 1, got 0 and 1",
        ),
        (lambda o: OneCycleLR(o, 1.0, epochs=2), ValueError, "give total_steps, or epochs and st"),
        (lambda o: OneCycleLR(o, 1.0, 5, pct_start=2.0), ValueError, "between 0 and 1, got 2.0"),
        (lambda o: OneCycleLR(o, 1.0, 5, anneal_strategy="sin"), ValueError, '"cos" or "linear"'),
        (
            lambda o: OneCycleLR(o, [1.0, 2.0], 5),
            ValueError,
            "got 2 numbers as max_lr for 1 groups",
        ),
        (
            lambda o: OneCycleLR(optimizer(kind=Adagrad), 1.0, 5),
            ValueError,
            "Adagrad has neither a momentum nor betas to cycle",
        ),
        (lambda o: OneCycleLR([o], 1.0, 5), TypeError, "expected an optimizer, got list"),
        (lambda o: ReduceLROnPlateau([o]), TypeError, "expected an optimizer, got list"),
        (lambda o: ReduceLROnPlateau(o, "least"), ValueError, "'least' and 'rel'"),
        (lambda o: ReduceLROnPlateau(o, factor=1.0), ValueError, "factor must be below 1, got 1.0"),
        (lambda o: ReduceLROnPlateau(o, min_lr=[0, 1]), ValueError, "2 numbers as min_lr for 1 gr"),
        (lambda o: CosineAnnealingLR([o], T_max=1), TypeError, "expected an optimizer, got list"),
        (
            lambda o: ConstantLR(o).load_state_dict({"base_lrs": [1.0, 2.0], "last_epoch": 1}),
            ValueError,
            "2 groups, the optimizer 1",
        ),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        make(optimizer())
