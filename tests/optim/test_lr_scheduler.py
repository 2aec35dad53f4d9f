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
from tinytensor.optim import SGD, lr_scheduler
from tinytensor.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    SequentialLR,
    WarmupCosineLR,
    warmup_cosine,
)


def optimizer(*rates: float) -> SGD:
    groups = [{"params": [tt.zeros(1, requires_grad=True)], "lr": lr} for lr in rates or (1.0,)]
    return SGD(groups)


SCHEDULES: dict[str, Any] = {
    "LambdaLR": lambda o: LambdaLR(o, lambda step: 0.5**step),
    "ConstantLR": lambda o: ConstantLR(o, factor=0.5, total_iters=2),
    "LinearLR": lambda o: LinearLR(o, start_factor=0.25, end_factor=1.0, total_iters=3),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 1], gamma=0.5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, T_max=4, eta_min=0.2),
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
    "WarmupCosineLR": [0.5, 1, 0.6, 0.2, 0.2],
    "SequentialLR": [0.5, 0.75, 1, 0.5, 0],
}


def test_every_schedule_has_golden_values() -> None:
    public = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler)
    }
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
