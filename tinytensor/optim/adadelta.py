"""Adadelta: each number steps by its gradient, times its mean step over its mean gradient."""

from __future__ import annotations

from typing import ClassVar

from ..backend import array_module
from ..cuda import optimizer as cuda
from .optimizer import Group, Optimizer, Params, Stretch


class Adadelta(Optimizer):
    """Adadelta with PyTorch's parameters and defaults:

        g = gradient + weight_decay · value
        square_avg = rho · square_avg + (1 - rho) · g²
        change = √(acc_delta + eps) / √(square_avg + eps) · g
        acc_delta = rho · acc_delta + (1 - rho) · change²
        value = value - lr · change

    M. Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (arXiv 1212.5701), algorithm 1.

    State: `square_avg`, `acc_delta`, `step`.
    """

    state_names: ClassVar[tuple[str, ...]] = ("square_avg", "acc_delta")
    counts_steps: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay})

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        self._refuse(group, "rho", 0.0 <= group["rho"] <= 1.0, "between 0 and 1")
        self._refuse(group, "eps", group["eps"] >= 0.0, "at least 0")

    def _update(self, stretch: Stretch) -> None:
        value, gradient, (square_avg, acc_delta), _, group, (work, change) = stretch
        cuda.refuse_recording(type(self).__name__)
        xp = array_module(value)
        rho, eps = group["rho"], group["eps"]
        xp.multiply(value, group["weight_decay"], out=change)
        change += gradient  # g
        xp.multiply(change, change, out=work)
        work *= 1 - rho
        square_avg *= rho
        square_avg += work
        xp.add(acc_delta, eps, out=work)
        change *= xp.sqrt(work, out=work)
        xp.add(square_avg, eps, out=work)
        change /= xp.sqrt(work, out=work)
        xp.multiply(change, change, out=work)
        work *= 1 - rho
        acc_delta *= rho
        acc_delta += work
        change *= float(group["lr"])
        value -= change
