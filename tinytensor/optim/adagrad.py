"""Adagrad: each number steps by its gradient over the root of the sum of its squared gradients."""

from __future__ import annotations

from typing import ClassVar

from ..backend import array_module
from ..cuda import optimizer as cuda
from .optimizer import Group, Optimizer, Params, Stretch


class Adagrad(Optimizer):
    """Adagrad with PyTorch's parameters and defaults, at step t from 1:

        g = gradient + weight_decay · value
        sum = sum + g²                                  from initial_accumulator_value
        value = value - lr / (1 + (t - 1) · lr_decay) · g / (√sum + eps)

    J. Duchi, E. Hazan and Y. Singer, "Adaptive Subgradient Methods for Online Learning and
    Stochastic Optimization", Journal of Machine Learning Research 12 (2011).

    State: `sum`, `step`.
    """

    state_names: ClassVar[tuple[str, ...]] = ("sum",)
    counts_steps: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        for key in ("lr_decay", "initial_accumulator_value", "eps"):
            self._refuse(group, key, group[key] >= 0.0, "at least 0")

    def _update(self, stretch: Stretch) -> None:
        value, gradient, (total,), step, group, (change, decayed) = stretch
        cuda.refuse_recording(type(self).__name__)
        xp = array_module(value)
        if step == 1:
            total[...] = group["initial_accumulator_value"]
        gradient = stretch.decayed_gradient(decayed)
        xp.multiply(gradient, gradient, out=change)
        total += change
        xp.sqrt(total, out=change)
        change += group["eps"]
        xp.divide(gradient, change, out=change)  # 0 / 0 where eps = 0 and no gradient ever was
        change *= float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
        value -= change
