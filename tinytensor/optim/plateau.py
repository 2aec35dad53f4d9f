"""`lr_scheduler.ReduceLROnPlateau`: smaller steps when the training no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .optimizer import Optimizer


class ReduceLROnPlateau:
    """The learning rates times `factor` when `step(metric)` has seen no progress for a while.

    That is when more than `patience` metrics in a row were not better than the best. With mode
    "min" a metric is better below best · (1 - threshold), or best - threshold with
    threshold_mode="abs"; with "max" above best · (1 + threshold), or best + threshold. After a
    reduction `cooldown` metrics are not counted. No rate goes below `min_lr` (one number, or one
    for each group), nor changes by `eps` or less.

    ValueError where the arguments contradict themselves.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"ReduceLROnPlateau: expected an optimizer, got {type(optimizer).__name__}"
            )
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ValueError(
                'ReduceLROnPlateau: mode is "min" or "max" and threshold_mode "rel" or "abs", got '
                f"{mode!r} and {threshold_mode!r}"
            )
        if not factor < 1.0:
            raise ValueError(f"ReduceLROnPlateau: factor must be below 1, got {factor}")
        groups = len(optimizer.param_groups)
        self.min_lrs = list(min_lr) if isinstance(min_lr, Sequence) else [min_lr] * groups
        if len(self.min_lrs) != groups:
            raise ValueError(
                f"ReduceLROnPlateau: got {len(self.min_lrs)} numbers as min_lr for {groups} groups"
            )
        self.optimizer = optimizer
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
        self.factor, self.patience, self.cooldown, self.eps = factor, patience, cooldown, eps
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def step(self, metrics: Any) -> None:
        """Note one metric: a number, or a tensor of one element."""
        current = float(metrics)
        self.last_epoch += 1
        better = self.is_better(current, self.best)
        self.best = current if better else self.best
        self.num_bad_epochs = 0 if better else self.num_bad_epochs + 1
        if self.cooldown_counter:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def is_better(self, a: float, best: float) -> bool:
        """Whether `a` is better than `best` by the threshold."""
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "rel":
            return sign * a > sign * best * (1 + sign * self.threshold)
        return sign * a > sign * best + self.threshold

    def _reduce(self) -> None:
        for group, lowest in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            lr = max(group["lr"] * self.factor, lowest)
            if group["lr"] - lr > self.eps:
                group["lr"] = lr

    def get_last_lr(self) -> list[float]:
        """The learning rates of the groups."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What has been seen; the learning rates themselves are in the optimizer's state."""
        return {name: getattr(self, name) for name in self._STATE}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict()` was taken; load the optimizer's state, too."""
        missing = [name for name in self._STATE if name not in state_dict]
        if missing:
            raise ValueError(f"ReduceLROnPlateau: the saved state lacks {', '.join(missing)}")
        for name in self._STATE:
            setattr(self, name, state_dict[name])

    _STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
