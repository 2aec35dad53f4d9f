"""SGD: a step against the gradient, or against a running sum of gradients (momentum)."""

from __future__ import annotations

from typing import ClassVar

from ..backend import Array, array_module
from ..cuda import optimizer as cuda
from .flat import FlatBuffer
from .optimizer import Group, Optimizer, Params, Stretch


class SGD(Optimizer):
    """Stochastic gradient descent, with PyTorch's parameters, defaults and meaning of momentum:

        g = gradient + weight_decay · value
        buffer = g                                          at the first update with momentum
        buffer = momentum · buffer + (1 - dampening) · g    later
        value = value - lr · buffer

    Nesterov's step is lr · (g + momentum · buffer), the one without momentum lr · g.

    State: `momentum_buffer`, once an update with momentum was made.
    """

    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        self._refuse(group, "momentum", group["momentum"] >= 0.0, "at least 0")
        plain = group["momentum"] > 0.0 and group["dampening"] == 0.0
        self._refuse(
            group,
            "nesterov",
            plain or not group["nesterov"],
            "False unless momentum > 0 and dampening = 0",
        )

    def _names_for(self, group: Group) -> tuple[str, ...]:
        return self.state_names if group["momentum"] else ()

    def _update(self, stretch: Stretch) -> None:
        value, gradient, state, step, group, (change, decayed) = stretch
        if cuda.updates(value, gradient, *state):
            self._on_device(stretch)
            return
        cuda.refuse_recording(value.dtype)
        xp = array_module(value)
        gradient = stretch.decayed_gradient(decayed)
        if group["momentum"]:
            (buffer,) = state
            if step == 1:
                buffer[...] = gradient
            else:
                change = xp.multiply(gradient, 1 - group["dampening"], out=change)
                buffer *= group["momentum"]
                buffer += change
            if group["nesterov"]:
                change = xp.multiply(buffer, group["momentum"], out=change)
                change += gradient
                gradient = change
            else:
                gradient = buffer
        change = xp.multiply(gradient, float(group["lr"]), out=change)
        value -= change

    def _update_with_master(self, stretch: Stretch, master: Array) -> None:
        if cuda.updates(stretch.value, stretch.gradient, master, *stretch.state):
            self._on_device(stretch, master)
        else:
            super()._update_with_master(stretch, master)

    def _on_device(self, stretch: Stretch, master: Array = None) -> None:
        """The same in one kernel, `kernels/sgd.cu`."""
        value, gradient, state, step, group, _ = stretch
        running = ("momentum", "dampening", "nesterov") if state else ()
        names = ("lr", "weight_decay", *running)
        options = {"step": step} | {name: group[name] for name in names}
        factors = cuda.factors_for(value, cuda.sgd_factors, options)
        momentum = state[0] if state else None
        cuda.sgd(value, gradient, factors, momentum=momentum, master=master)

    def _scratch(self, buffer: FlatBuffer, part: slice) -> tuple[Array, Array]:
        # The kernel needs none, and what has no kernel makes its own.
        return super()._scratch(buffer, part) if buffer.device.type == "cpu" else (None, None)
