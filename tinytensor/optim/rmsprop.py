"""RMSprop: each number steps by its gradient over the root of its mean squared gradient."""

from __future__ import annotations

from typing import ClassVar

from ..backend import array_module
from ..cuda import optimizer as cuda
from .optimizer import Group, Optimizer, Params, Stretch


class RMSprop(Optimizer):
    """RMSprop with PyTorch's parameters, defaults and placement of eps, outside of the root:

        g = gradient + weight_decay · value
        square_avg = alpha · square_avg + (1 - alpha) · g²
        grad_avg = alpha · grad_avg + (1 - alpha) · g                with centered
        change = g / (√square_avg + eps)                             or
                 g / (√(square_avg - grad_avg²) + eps)               with centered
        buffer = momentum · buffer + change                          with momentum
        value = value - lr · buffer                                  or lr · change

    T. Tieleman and G. Hinton, "Neural Networks for Machine Learning", lecture 6.5 (2012); centered:
    A. Graves, "Generating Sequences With Recurrent Neural Networks" (arXiv 1308.0850), equation 38.

    State: `square_avg`, `step`, and `grad_avg`, `momentum_buffer` where they are used.
    """

    state_names: ClassVar[tuple[str, ...]] = ("square_avg", "grad_avg", "momentum_buffer")
    counts_steps: ClassVar[bool] = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        }
        super().__init__(params, defaults)

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        self._refuse(group, "alpha", 0.0 <= group["alpha"] <= 1.0, "between 0 and 1")
        self._refuse(group, "eps", group["eps"] >= 0.0, "at least 0")
        self._refuse(group, "momentum", group["momentum"] >= 0.0, "at least 0")

    def _names_for(self, group: Group) -> tuple[str, ...]:
        used = (True, bool(group["centered"]), group["momentum"] > 0.0)
        return tuple(name for name, use in zip(self.state_names, used, strict=True) if use)

    def _update(self, stretch: Stretch) -> None:
        value, gradient, state, _, group, (change, decayed) = stretch
        cuda.refuse_recording(type(self).__name__)
        xp = array_module(value)
        moments = dict(zip(self._names_for(group), state, strict=True))
        square_avg, alpha = moments["square_avg"], group["alpha"]
        gradient = stretch.decayed_gradient(decayed)
        xp.multiply(gradient, gradient, out=change)
        change *= 1 - alpha
        square_avg *= alpha
        square_avg += change
        if group["centered"]:
            grad_avg = moments["grad_avg"]
            xp.multiply(gradient, 1 - alpha, out=change)
            grad_avg *= alpha
            grad_avg += change
            xp.multiply(grad_avg, grad_avg, out=change)
            xp.subtract(square_avg, change, out=change)
            xp.maximum(change, 0, out=change)  # a variance, which rounding may take below 0
            xp.sqrt(change, out=change)
        else:
            xp.sqrt(square_avg, out=change)
        change += group["eps"]
        xp.divide(gradient, change, out=change)  # 0 / 0 where eps = 0 and no gradient ever was
        if group["momentum"]:
            buffer = moments["momentum_buffer"]
            buffer *= group["momentum"]
            buffer += change
            xp.multiply(buffer, float(group["lr"]), out=change)
        else:
            change *= float(group["lr"])
        value -= change
