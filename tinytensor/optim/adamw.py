"""AdamW: each number steps by its mean gradient over the root of its mean squared gradient.

`adamw_reference` is the formula; `adamw_update` the same in place, on arrays that fit the cache.
The tests hold the two together.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import numpy as np

from ..backend import Array, array_module
from ..cpu.blas import axpby
from ..cuda import optimizer as cuda
from ..random import Draw
from .flat import FlatBuffer
from .optimizer import Group, Optimizer, Params, Stretch


def adamw_reference(
    value: Array,
    gradient: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Array, Array, Array]:
    """The `step`-th update (from 1): new value and moments.

    I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization" (arXiv 1711.05101),
    algorithm 2:

        m = beta1 m + (1 - beta1) g               mean of the gradients
        v = beta2 v + (1 - beta2) g²              mean of their squares
        m^ = m / (1 - beta1^step)                 both began at zero: this takes the zero out
        v^ = v / (1 - beta2^step)
        value = value - lr (m^ / (√v^ + eps) + weight_decay value)

    As in PyTorch, the decay is multiplied by the learning rate.
    """
    xp = array_module(value)
    beta1, beta2 = betas
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient * gradient
    mean = exp_avg / (1 - beta1**step)
    square = exp_avg_sq / (1 - beta2**step)
    value = value - lr * (mean / (xp.sqrt(square) + eps) + weight_decay * value)
    return value, exp_avg, exp_avg_sq


@functools.singledispatch
def adamw_update(
    value: Array,
    gradient: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    scratch: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """`adamw_reference` written into `value`, `exp_avg` and `exp_avg_sq`.

    Implementations are registered by type of array; this one serves every type that has none.
    """
    options: dict[str, Any] = {
        "step": step, "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
    }  # fmt: skip
    value[...], exp_avg[...], exp_avg_sq[...] = adamw_reference(
        value, gradient, exp_avg, exp_avg_sq, **options
    )


@adamw_update.register(np.ndarray)
def _adamw_update_numpy(
    value: Array,
    gradient: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    scratch: Array,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    beta1, beta2 = betas
    root = math.sqrt(1 - beta2**step)
    # Passes that wait for memory alternate with passes that compute: while one thread waits, the
    # other has the memory to itself.
    np.multiply(gradient, gradient, out=scratch)
    axpby(1 - beta2, scratch, beta2, exp_avg_sq)
    # m^ / (√v^ + eps), with both corrections moved out of the passes over the arrays:
    # = root / (1 - beta1^step) · m / (√v + eps · root)
    np.sqrt(exp_avg_sq, out=scratch)
    scratch += eps * root
    axpby(1 - beta1, gradient, beta1, exp_avg)
    np.divide(exp_avg, scratch, out=scratch)
    axpby(-lr * root / (1 - beta1**step), scratch, 1 - lr * weight_decay, value)


class _AdamFamily(Optimizer):
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    counts_steps: ClassVar[bool] = True
    coupled: ClassVar[bool]  # whether the decay is part of the gradient

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        self._refuse(group, "eps", group["eps"] >= 0.0, "at least 0")
        betas = group["betas"]
        good = len(betas) == 2 and all(0.0 <= beta < 1.0 for beta in betas)
        self._refuse(group, "betas", good, "two numbers in [0, 1)")

    def _update(self, stretch: Stretch) -> None:
        value, gradient, state, step, group, (temporary, decayed) = stretch
        if cuda.updates(value, gradient, *state):
            self._on_device(stretch)
            return
        cuda.refuse_recording(value.dtype)
        options = _options(step, group)
        if self.coupled:
            gradient = stretch.decayed_gradient(decayed)
            options["weight_decay"] = 0.0
        exp_avg, exp_avg_sq = state
        adamw_update(value, gradient, exp_avg, exp_avg_sq, temporary, **options)

    def _update_with_master(self, stretch: Stretch, master: Array) -> None:
        if cuda.updates(stretch.value, stretch.gradient, master, *stretch.state):
            self._on_device(stretch, master=master)
        else:
            super()._update_with_master(stretch, master)

    def _update_at_random(self, stretch: Stretch, place: tuple[Draw, int]) -> None:
        if cuda.updates(stretch.value, stretch.gradient, *stretch.state):
            self._on_device(stretch, draw=place[0])
        else:
            super()._update_at_random(stretch, place)

    def _on_device(self, stretch: Stretch, **kept: Any) -> None:
        """The same in one kernel, `kernels/adamw.cu`."""
        value, gradient, (exp_avg, exp_avg_sq), step, group, _ = stretch
        formula = functools.partial(cuda.adamw_factors, coupled=self.coupled)
        factors = cuda.factors_for(value, formula, _options(step, group))
        cuda.adamw(value, gradient, exp_avg, exp_avg_sq, factors, **kept)

    def _scratch(self, buffer: FlatBuffer, part: slice) -> tuple[Array, Array]:
        # The kernel needs none, and what has no kernel makes its own.
        return super()._scratch(buffer, part) if buffer.device.type == "cpu" else (None, None)


class AdamW(_AdamFamily):
    """Adam with decoupled weight decay: `adamw_reference` states the update.

    Parameters and defaults are PyTorch's: `lr`; `betas`, the decay rates of the two moments; `eps`,
    added to the root; `weight_decay`, times `lr`, taken from each weight at each step. State:
    `exp_avg`, `exp_avg_sq`, `step`.

    bfloat16 weights have a float32 copy in the state, `master`. With `stochastic_rounding=True`
    (not in PyTorch) they have none, 4 bytes a weight less, and are rounded up or down at random,
    by numbers of the default generator.
    """

    coupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        stochastic_rounding: bool = False,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
        self.stochastic_rounding = stochastic_rounding


def _options(step: int, group: Group) -> dict[str, Any]:
    """What `adamw_update` is told of a group."""
    return {
        "step": step,
        "lr": float(group["lr"]),
        "betas": group["betas"],
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
    }


class Adam(_AdamFamily):
    """AdamW with the decay inside the gradient, g + weight_decay · value.

    D. Kingma and J. Ba, "Adam" (arXiv 1412.6980), with PyTorch's parameters and defaults.
    """

    coupled: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )
