"""Learning-rate schedules: the learning rate of every group as a function of the step.

PyTorch's names and numbers. Each schedule here is one formula, `learning_rate(base, step)`, with no
memory of the steps before: where a run is resumed, or jumps, the learning rate is right at once.
`ReduceLROnPlateau`, which goes by how the training does, is in `plateau.py`.

    scheduler = WarmupCosineLR(optimizer, warmup=100, total=5000, min_lr=1e-5)
    for batch in batches:
        ...
        optimizer.step()
        scheduler.step()
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .optimizer import Optimizer
from .plateau import ReduceLROnPlateau as ReduceLROnPlateau


def warmup_cosine(step: int, warmup: int, total: int, peak: float, minimum: float = 0.0) -> float:
    """The learning rate of `step` (from 0): a line up to `peak`, half a cosine down to `minimum`.

        step < warmup            peak · (step + 1) / (warmup + 1)
        warmup <= step <= total  minimum + (peak - minimum) · (1 + cos(π · done)) / 2,
                                 done = (step - warmup) / (total - warmup)
        later                    minimum

    Step `warmup` has the peak, step `total` the minimum: T. Brown et al., "Language Models are
    Few-Shot Learners" (arXiv 2005.14165), appendix B; I. Loshchilov and F. Hutter, "SGDR" (arXiv
    1608.03983), equation 5.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= total:
        return minimum
    done = (step - warmup) / (total - warmup)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * done)) / 2


class LRScheduler:
    """The base of the schedules; a subclass defines `learning_rate(base, group, step)`.

    The learning rates that the groups have when the scheduler is made are the base ones; they are
    kept in the groups as 'initial_lr'. `last_epoch` is the number of `step()` calls so far. A run
    that goes on elsewhere passes that number, or loads the state dict.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__}: expected an optimizer, got {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        for number, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"{type(self).__name__}: last_epoch={last_epoch} goes on with an earlier "
                    f"schedule, but group {number} of the optimizer has no 'initial_lr'; load the "
                    "optimizer's state dict first"
                )
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = max(last_epoch, 0)
        self._set()

    def learning_rate(self, base: float, group: int, step: int) -> float:
        """The learning rate of group number `group`, whose base is `base`, at `step`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what the learning rate is")

    def momentum(self, step: int) -> float | None:
        """The momentum (SGD's, or Adam's first beta) of all groups at `step`; None leaves it."""
        return None

    def get_lr(self) -> list[float]:
        """The learning rate of each group at the present step."""
        return [
            self.learning_rate(base, at, self.last_epoch) for at, base in enumerate(self.base_lrs)
        ]

    def get_last_lr(self) -> list[float]:
        """The learning rates that were last given to the groups."""
        return self._last_lr

    def step(self) -> None:
        """Go on to the next step; call it after `optimizer.step()`."""
        self.last_epoch += 1
        self._set()

    def _set(self) -> None:
        self._last_lr = self.get_lr()
        momentum = self.momentum(self.last_epoch)
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None:
                group["momentum"] = momentum

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, in plain numbers. LambdaLR's functions are not part of it."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "_last_lr": list(self._last_lr),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict()` was taken; the groups get their learning rate at once."""
        bases = list(state_dict["base_lrs"])
        if len(bases) != len(self.optimizer.param_groups):
            raise ValueError(
                f"{type(self).__name__}: the saved schedule has {len(bases)} groups, the optimizer "
                f"{len(self.optimizer.param_groups)}"
            )
        self.base_lrs = bases
        self.last_epoch = int(state_dict["last_epoch"])
        self._set()


_LRScheduler = LRScheduler  # its name before PyTorch 2, from which older scripts derive their own


class LambdaLR(LRScheduler):
    """base · lr_lambda(step); `lr_lambda` is one function, or a list with one for each group."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        groups = len(optimizer.param_groups) if isinstance(optimizer, Optimizer) else 0
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise ValueError(
                f"LambdaLR: got {len(self.lr_lambdas)} functions for {groups} parameter groups"
            )
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        return base * self.lr_lambdas[group](step)


class StepLR(LRScheduler):
    """base · gammaᵏ after k times `step_size` steps."""

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        if step_size < 1:
            raise ValueError(f"StepLR: step_size must be at least 1, got {step_size}")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        return base * self.gamma ** (step // self.step_size)


class MultiStepLR(LRScheduler):
    """base · gammaᵏ after the k-th of the steps `milestones`, which may repeat."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        return base * self.gamma ** bisect.bisect_right(self.milestones, step)


class ExponentialLR(LRScheduler):
    """base · gammaᵗ at step t."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        return base * self.gamma**step


class ConstantLR(LRScheduler):
    """base · factor for the first `total_iters` steps, then base."""

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"ConstantLR: factor must be between 0 and 1, got {factor}")
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        return base * self.factor if step < self.total_iters else base


class LinearLR(LRScheduler):
    """base · a factor that goes from `start_factor` to `end_factor` in `total_iters` even steps."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0.0 < start_factor <= 1.0 or not 0.0 <= end_factor <= 1.0:
            raise ValueError(
                "LinearLR: start_factor must be in (0, 1] and end_factor in [0, 1], got "
                f"{start_factor} and {end_factor}"
            )
        if total_iters < 1:
            raise ValueError(f"LinearLR: total_iters must be at least 1, got {total_iters}")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        done = min(step, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class CosineAnnealingLR(LRScheduler):
    """Half a cosine from base to `eta_min` in `T_max` steps, and on along the same cosine.

    eta_min + (base - eta_min) · (1 + cos(π step / T_max)) / 2: arXiv 1608.03983, equation 5,
    without restarts.
    """

    def __init__(
        self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        if T_max < 1:
            raise ValueError(f"CosineAnnealingLR: T_max must be at least 1, got {T_max}")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        return (
            self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2
        )


class CosineAnnealingWarmRestarts(LRScheduler):
    """Half a cosine from base to `eta_min` in `T_0` steps, and again, each `T_mult` times as long.

    arXiv 1608.03983, equation 5.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,
        T_mult: int = 1,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if T_0 < 1 or T_mult < 1:
            raise ValueError(
                "CosineAnnealingWarmRestarts: T_0 and T_mult must be at least 1, got "
                f"{T_0} and {T_mult}"
            )
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        length = self.T_0
        if self.T_mult == 1:
            step %= length
        while step >= length:
            step -= length
            length *= self.T_mult
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / length)) / 2


class OneCycleLR(LRScheduler):
    """Up to `max_lr` in the first `pct_start` of all steps, then down, far below the beginning.

    L. Smith and N. Topin, "Super-Convergence" (arXiv 1708.07120), as in PyTorch: from `max_lr` /
    `div_factor` up to `max_lr` and down to max_lr / div_factor / `final_div_factor`, along half
    cosines, or lines with anneal_strategy="linear". With `three_phase` the way down stops at the
    first of these on step 2 · pct_start · total_steps - 2. `cycle_momentum` moves the momentum the
    other way, from `max_momentum` to `base_momentum` and back. `max_lr` is one number, or a list
    with one for each group; the groups' own learning rates are replaced.

    The number of steps is `total_steps`, or epochs · steps_per_epoch; ValueError where a run takes
    more.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None and epochs is not None and steps_per_epoch is not None:
            total_steps = epochs * steps_per_epoch
        if total_steps is None or total_steps < 1:
            raise ValueError(
                "OneCycleLR: give total_steps, or epochs and steps_per_epoch, of which the product "
                f"is at least 1; got {total_steps}, {epochs} and {steps_per_epoch}"
            )
        if not 0.0 <= pct_start <= 1.0:
            raise ValueError(f"OneCycleLR: pct_start must be between 0 and 1, got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f'OneCycleLR: anneal_strategy must be "cos" or "linear", got {anneal_strategy!r}'
            )
        self.total_steps, self.anneal_strategy = total_steps, anneal_strategy
        self.cycle_momentum = cycle_momentum
        self.base_momentum, self.max_momentum = base_momentum, max_momentum
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        peak = pct_start * total_steps - 1
        self.ends = [peak, 2 * peak, total_steps - 1] if three_phase else [peak, total_steps - 1]
        if isinstance(optimizer, Optimizer):
            self._begin(optimizer, max_lr, last_epoch)
        super().__init__(optimizer, last_epoch)

    def _begin(
        self, optimizer: Optimizer, max_lr: float | Sequence[float], last_epoch: int
    ) -> None:
        groups = optimizer.param_groups
        peaks = list(max_lr) if isinstance(max_lr, Sequence) else [max_lr] * len(groups)
        if len(peaks) != len(groups):
            raise ValueError(
                f"OneCycleLR: got {len(peaks)} numbers as max_lr for {len(groups)} groups"
            )
        if self.cycle_momentum and any("momentum" not in g and "betas" not in g for g in groups):
            raise ValueError(
                f"OneCycleLR: {type(optimizer).__name__} has neither a momentum nor betas to "
                "cycle; pass cycle_momentum=False"
            )
        if last_epoch == -1:
            for group, peak in zip(groups, peaks, strict=True):
                group["initial_lr"] = peak / self.div_factor

    def learning_rate(self, base: float, group: int, step: int) -> float:
        peak, last = base * self.div_factor, base / self.final_div_factor
        return self._along(
            (base, peak, base, last) if len(self.ends) == 3 else (base, peak, last), step
        )

    def momentum(self, step: int) -> float | None:
        high, low = self.max_momentum, self.base_momentum
        return self._along((high, low, high, high), step) if self.cycle_momentum else None

    def _along(self, levels: Sequence[float], step: int) -> float:
        """The height at `step` of a way from levels[0] to levels[1] at the first end, and so on."""
        if step > self.total_steps:
            raise ValueError(
                f"OneCycleLR: step {step} of a schedule of {self.total_steps}; it ends there"
            )
        phase = min(bisect.bisect_left(self.ends, step), len(self.ends) - 1)
        start, end = (0, *self.ends)[phase], self.ends[phase]
        done = (step - start) / (end - start) if end != start else 1.0
        if self.anneal_strategy == "cos":
            done = (1 - math.cos(math.pi * done)) / 2
        return levels[phase] + (levels[phase + 1] - levels[phase]) * done


class WarmupCosineLR(LRScheduler):
    """`warmup_cosine` with each group's base as its peak: the schedule of the GPT papers."""

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: int,
        total: int,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup <= total:
            raise ValueError(
                f"WarmupCosineLR: needs 0 <= warmup <= total, got warmup={warmup} and total={total}"
            )
        if min_lr < 0.0:
            raise ValueError(f"WarmupCosineLR: min_lr must be at least 0, got {min_lr}")
        self.warmup, self.total, self.min_lr = warmup, total, min_lr
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        return warmup_cosine(step, self.warmup, self.total, base, self.min_lr)


class SequentialLR(LRScheduler):
    """One schedule after the other: at step `milestones[i]`, `schedulers[i + 1]` begins."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        if len(milestones) != len(schedulers) - 1 or list(milestones) != sorted(milestones):
            raise ValueError(
                f"SequentialLR: {len(schedulers)} schedulers need {len(schedulers) - 1} milestones "
                f"in ascending order, got {list(milestones)}"
            )
        if any(scheduler.optimizer is not optimizer for scheduler in schedulers):
            raise ValueError(
                "SequentialLR: all schedulers must have been made for the same optimizer"
            )
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        super().__init__(optimizer, last_epoch)

    def learning_rate(self, base: float, group: int, step: int) -> float:
        scheduler, step = self._at(step)
        return scheduler.learning_rate(base, group, step)

    def momentum(self, step: int) -> float | None:
        scheduler, step = self._at(step)
        return scheduler.momentum(step)

    def _at(self, step: int) -> tuple[LRScheduler, int]:
        """The scheduler whose turn it is, and its own number of the step."""
        at = bisect.bisect_right(self.milestones, step)
        return self.schedulers[at], step - (self.milestones[at - 1] if at else 0)
