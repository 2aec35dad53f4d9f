"""Losses: cross-entropies, distances, divergences; each reduced to its mean, its sum, or not."""

from __future__ import annotations

import numpy as np

from ... import ops
from ...backend import is_floating
from ...ops.network import (
    check_classes,
    check_reduction,
    check_smoothing,
    class_shares,
    reduced,
)
from ...tensor import Tensor, check_tensors
from .activations import logsigmoid

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "linear_cross_entropy",
    "mse_loss",
    "nll_loss",
    "smooth_l1_loss",
]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The negative log-likelihood, in nats, of `target` under softmax(input).

    input (V,), (N, V) or (N, V, d₁, …): the classes are on axis 1, or on the only one. target holds
    class numbers, in the shape of input without that axis; or, if floating-point and of input's
    shape, probabilities of the classes, which `ignore_index` does not touch. `weight` (V,) of the
    classes; `label_smoothing` ε mixes the targets with ε/V of every class. The mean over class
    numbers is weighted by `weight`; over probabilities it is the sum divided by the number of rows.
    """
    check_tensors("cross_entropy", input=input, target=target)
    if input.ndim > 2:  # the operation has its classes on the last axis
        expected = tuple(input.shape[:1] + input.shape[2:])
        if tuple(target.shape) not in (expected, tuple(input.shape)):
            raise ValueError(
                f"cross_entropy: the classes are axis 1 of the input {tuple(input.shape)}, so the "
                f"targets must be {expected}, but they are {tuple(target.shape)}; for classes on "
                "the last axis use cross_entropy(logits.view(-1, V), targets.view(-1))"
            )
        input = _classes_last(input)
        target = _classes_last(target) if target.ndim == input.ndim else target
    if is_floating(target.dtype) and tuple(target.shape) == tuple(input.shape):
        return _soft_cross_entropy(input, target, weight, reduction, label_smoothing)
    return ops.cross_entropy(  # type: ignore[no-any-return]
        input, target, weight, ignore_index, reduction, label_smoothing
    )


def _classes_last(x: Tensor) -> Tensor:
    return ops.transpose(x, (0, *range(2, x.ndim), 1))  # type: ignore[no-any-return]


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float
) -> Tensor:
    V = input.shape[-1]
    check_smoothing("cross_entropy", label_smoothing)
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / V
    losses = -(ops.log_softmax(input) * target)
    if weight is not None:
        losses = losses * weight
    return _reduce("cross_entropy", losses.sum(-1), reduction)


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-input[target], of log-probabilities: `cross_entropy` without its log_softmax."""
    check_tensors("nll_loss", input=input, target=target)
    x = _classes_last(input) if input.ndim > 2 else input
    check_classes("nll_loss", x.shape, target, weight, reduction)
    index, valid, _, share = class_shares(
        "nll_loss", x.shape, x.dtype, target, weight, ignore_index
    )
    each = -ops.take_along_axis(x, index, -1)[..., 0] * share
    return reduced(ops.where(valid, each, 0.0), share, reduction)[0]  # type: ignore[no-any-return]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target) in little memory.

    input (…, C), linear_weight (V, C), target (…) class numbers. Only some rows' logits exist at a
    time: for a vocabulary of 50,304 they would be the largest array of the whole model.
    """
    return ops.linear_cross_entropy(  # type: ignore[no-any-return]
        input,
        linear_weight,
        linear_bias,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
    )


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)², reduced. The shapes must be equal: a broadcast here is a mistake."""
    _check_same("mse_loss", input, target)
    difference = input - target
    return _reduce("mse_loss", difference * difference, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|, reduced. The shapes must be equal."""
    _check_same("l1_loss", input, target)
    return _reduce("l1_loss", abs(input - target), reduction)


def smooth_l1_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0
) -> Tensor:
    """d² / (2 · beta) where |d| < beta, else |d| - beta / 2, of d = input - target; reduced."""
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must not be negative, but it is {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    return _huber("smooth_l1_loss", input, target, beta, 1 / beta, reduction)


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """d² / 2 where |d| < delta, else delta · (|d| - delta / 2), of d = input - target; reduced."""
    if delta <= 0:
        raise ValueError(f"huber_loss: delta must be positive, but it is {delta}")
    return _huber("huber_loss", input, target, delta, 1.0, reduction)


def _huber(
    name: str, input: Tensor, target: Tensor, edge: float, scale: float, reduction: str
) -> Tensor:
    _check_same(name, input, target)
    distance = abs(input - target)
    near = ops.minimum(distance, edge)  # near · (distance - near / 2) is both branches at once
    return _reduce(name, near * (distance - near * 0.5) * scale, reduction)


def kl_div(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Tensor:
    """target · (log target - input) with input log-probabilities: the Kullback-Leibler divergence.

    The sum divided by the number of rows, which is the divergence, is reduction="batchmean"; "mean"
    divides by the number of elements, as in PyTorch. 0 · log 0 is 0.
    """
    _check_same("kl_div", input, target)
    if log_target:
        losses = ops.exp(target) * (target - input)
    else:
        some = target > 0
        logarithm = ops.log(ops.where(some, target, 1.0))
        losses = ops.where(some, target * logarithm, 0.0) - target * input
    if reduction == "batchmean":
        return losses.sum() / (input.shape[0] if input.ndim else 1)  # type: ignore[no-any-return]
    return _reduce("kl_div", losses, reduction)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(t · log p + (1 - t) · log(1 - p)) · weight of probabilities p; logarithms from -100 up.

    Prefer `binary_cross_entropy_with_logits`, which is exact where p rounds to 0 or 1. Raises
    ValueError for p or t outside of [0, 1] (on a GPU, where looking would mean waiting, they are
    not looked at).
    """
    name = "binary_cross_entropy"
    _check_same(name, input, target)
    _check_probabilities(f"{name} (for scores there is {name}_with_logits)", "input", input)
    _check_probabilities(name, "target", target)
    positive, negative = (ops.maximum(ops.log(p), -100.0) for p in (input, 1 - input))
    losses = -(target * positive + (1 - target) * negative)
    return _reduce(name, losses if weight is None else losses * weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-(pos_weight · t · log σ(x) + (1 - t) · log(1 - σ(x))) · weight, for targets t in [0, 1]."""
    name = "binary_cross_entropy_with_logits"
    _check_same(name, input, target)
    positive = target if pos_weight is None else target * pos_weight
    # 1 - σ(x) = σ(-x)
    losses = -(positive * logsigmoid(input) + (1 - target) * logsigmoid(-input))
    return _reduce(name, losses if weight is None else losses * weight, reduction)


def _check_same(name: str, input: Tensor, target: Tensor) -> None:
    check_tensors(name, input=input, target=target)
    if tuple(input.shape) != tuple(target.shape):
        raise ValueError(
            f"{name}: the input is {tuple(input.shape)} but the target is {tuple(target.shape)}; "
            "they must have one shape (target.view_as(input), or unsqueeze)"
        )


def _check_probabilities(name: str, what: str, x: Tensor) -> None:
    array = x.array
    if not isinstance(array, np.ndarray):
        return
    outside = array[~((array >= 0) & (array <= 1))]  # nan is neither
    if outside.size:
        raise ValueError(
            f"{name}: the {what} must be probabilities, between 0 and 1, but {outside[0]:g} is "
            "among them"
        )


def _reduce(name: str, losses: Tensor, reduction: str) -> Tensor:
    check_reduction(name, reduction)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()  # type: ignore[no-any-return]
