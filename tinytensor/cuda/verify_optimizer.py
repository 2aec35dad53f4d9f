"""The cases of `verify` for what updates parameters: AdamW, Adam, SGD, the joint norm, clipping."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backend import DType, bfloat16
from . import optimizer
from .verify_lab import DRAW, DTYPES, FLOAT32, Compared, Lab, name_of, wide

__all__ = ["optimizer_group"]


def optimizer_group(lab: Lab) -> None:
    """AdamW in its three forms, Adam, SGD, the joint norm, clipping."""
    for dtype, keep in ((FLOAT32, "plain"), (bfloat16, "master"), (bfloat16, "stochastic")):
        lab.check(f"AdamW {keep}", _adamw, dtype, keep)
    lab.check("Adam", _adamw, FLOAT32, "plain", True)
    for dtype in DTYPES:
        for momentum in (None, 0.9):
            lab.check(f"SGD {name_of(dtype)}, momentum {momentum}", _sgd, dtype, momentum)
    for dtype in DTYPES:
        lab.check(f"norm and clipping {name_of(dtype)}", _norm, dtype)


def _adamw(lab: Lab, dtype: DType, keep: str, coupled: bool = False) -> Iterator[Compared]:
    from ..optim.adamw import adamw_reference  # which imports this package

    count = 75 if lab.tiny else 5_000_011
    options: dict[str, Any] = {
        "step": 3, "lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1,
    }  # fmt: skip
    value, gradient = lab.normal(count, dtype=dtype), lab.normal(count, dtype=dtype)
    m, v = lab.normal(count), np.abs(lab.normal(count)) + np.float32(0.1)
    master = value.astype(np.float32) if keep == "master" else None
    on = [lab.put(x) for x in (value, gradient, m, v)]
    held = lab.put(master)
    formula = functools.partial(optimizer.adamw_factors, coupled=coupled)
    factors = optimizer.factors_for(on[0], formula, options)
    rounded_by = DRAW if keep == "stochastic" else None
    optimizer.adamw(on[0], on[1], on[2], on[3], factors, master=held, draw=rounded_by)
    given = [wide(x) for x in (value, gradient, m, v)]
    if coupled:
        given[1] = given[1] + options["weight_decay"] * given[0]
    exact = adamw_reference(*given, **(options | {"weight_decay": 0.0} if coupled else options))
    if keep == "master":
        yield Compared("master weights", held, exact[0], 16)
    # Rounding at random goes up or down: a whole unit.
    yield Compared("weights", on[0], exact[0], 16, 1 if keep == "stochastic" else 0)
    yield Compared("mean", on[2], exact[1], 16)
    yield Compared("mean square", on[3], exact[2], 16)


def _sgd(lab: Lab, dtype: DType, momentum: float | None) -> Iterator[Compared]:
    count = 75 if lab.tiny else 5_000_011
    value, gradient = lab.normal(count, dtype=dtype), lab.normal(count, dtype=dtype)
    before = lab.normal(count)
    on = [lab.put(x) for x in (value, gradient, before)]
    held = lab.put(value.astype(np.float32)) if dtype == bfloat16 else None
    options = {"step": 2, "lr": 0.1, "weight_decay": 0.1, "momentum": momentum, "nesterov": True}
    factors = optimizer.factors_for(on[0], optimizer.sgd_factors, options)
    running = None if momentum is None else on[2]
    optimizer.sgd(on[0], on[1], factors, momentum=running, master=held)
    step = wide(gradient) + 0.1 * wide(value)
    if momentum is not None:
        sums = momentum * wide(before) + step
        yield Compared("running sum", on[2], sums, 4)
        step = step + momentum * sums
    exact = wide(value) - 0.1 * step
    if held is not None:
        yield Compared("master weights", held, exact, 8)
    yield Compared("weights", on[0], exact, 8)


def _norm(lab: Lab, dtype: DType) -> Iterator[Compared]:
    arrays = [lab.normal(n, dtype=dtype) for n in ((50, 7) if lab.tiny else (3_000_001, 77))]
    on = [lab.put(x) for x in arrays]
    total = math.sqrt(sum((wide(x) ** 2).sum() for x in arrays))
    norm, scale = optimizer.global_norm(on, 1.0)
    yield Compared("norm", norm, np.array([total]))
    yield Compared("scale", scale, np.array([min(1.0, 1.0 / (total + 1e-6))]))
    optimizer.scale_in_place(on[0], scale)
    yield Compared("clipped", on[0], wide(arrays[0]) / (total + 1e-6), 1)
