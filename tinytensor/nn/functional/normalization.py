"""Layer, root-mean-square, group and batch norm, each over its own axes."""

from __future__ import annotations

from collections.abc import Sequence

from ... import ops
from ...backend import finfo, is_floating
from ...tensor import Tensor, check_tensors

__all__ = ["add_layer_norm", "batch_norm", "group_norm", "layer_norm", "rms_norm"]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias over the last axes, of `normalized_shape`."""
    shape = _last_axes("layer_norm", input, normalized_shape)
    return ops.layer_norm(input, weight, bias, len(shape), eps)  # type: ignore[no-any-return]


def _last_axes(name: str, input: Tensor, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """`normalized_shape` as a tuple; raises unless the last axes of the input have these sizes."""
    check_tensors(name, input=input)
    if not isinstance(normalized_shape, tuple | list):
        raise TypeError(
            f"{name}: normalized_shape is a tuple with the sizes of the last axes, such as "
            f"x.shape[-1:], but it is {normalized_shape!r}"
        )
    shape = tuple(normalized_shape)
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{name}: the last axes of the input {tuple(input.shape)} are not {shape}, "
            "which it normalizes over"
        )
    return shape


def add_layer_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(input + residual, its layer norm over the last axis), in one pass over both.

    input (…, C) is what a layer adds to a `residual` stream (…, C); None is a stream that begins
    here. PyTorch has no such function; in flash-attn it is `dropout_add_layer_norm(prenorm=True)`.
    """
    if residual is None:
        return input, layer_norm(input, input.shape[-1:], weight, bias, eps)
    return ops.add_layer_norm(input, residual, weight, bias, eps)  # type: ignore[no-any-return]


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last axes, of `normalized_shape` (arXiv 1910.07467).

    `eps` is the dtype's own (the distance from 1 to the next number) unless given. In bfloat16 and
    float16 the mean is taken in float32.
    """
    shape = _last_axes("rms_norm", input, normalized_shape)
    if not is_floating(input.dtype):
        raise TypeError(
            f"rms_norm: the input is {input.dtype}, but it takes real numbers; x.float() converts"
        )
    if weight is not None and tuple(weight.shape) != shape:
        raise ValueError(f"rms_norm: the weight is {tuple(weight.shape)} but not {shape}")
    wide = input.float() if input.dtype.itemsize < 4 else input
    eps = float(finfo(wide.dtype).eps) if eps is None else eps
    axes = tuple(range(-len(shape), 0))
    y = (wide * ops.rsqrt(ops.mean(wide * wide, axes, True) + eps)).to(input.dtype)
    return y if weight is None else y * weight  # type: ignore[no-any-return]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm over groups of channels (Y. Wu, K. He, arXiv 1803.08494).

    input (N, C, …), weight and bias (C,).
    """
    check_tensors("group_norm", input=input)
    if input.ndim < 2:
        raise ValueError(f"group_norm: expected (N, C, …), got {tuple(input.shape)}")
    N, C = input.shape[:2]
    if not hasattr(num_groups, "__index__") or num_groups < 1 or C % num_groups:
        raise ValueError(f"group_norm: {C} channels cannot be cut into {num_groups!r} groups")
    y = ops.layer_norm(input.reshape(N, num_groups, -1), None, None, 1, eps).reshape(input.shape)
    return _per_channel("group_norm", y, weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / √(variance + eps) · weight + bias for each channel of input (N, C, …).

    In training by the batch's own mean and variance (arXiv 1502.03167), which also move the running
    ones, by `momentum` (the variance divided by n - 1 there); else by the running ones.
    """
    check_tensors("batch_norm", input=input)
    if input.ndim < 2:
        raise ValueError(f"batch_norm: expected (N, C, …), got {tuple(input.shape)}")
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is None and not training:
            raise ValueError(f"batch_norm: without training=True it needs a {name}")
        _check_channels("batch_norm", name, running, input)
    axes = (0, *range(2, input.ndim))
    shape = (1, input.shape[1], *(1,) * (input.ndim - 2))
    if training or running_mean is None or running_var is None:
        n = input.numel() // input.shape[1]
        if n < 2:
            raise ValueError(
                "batch_norm: training needs more than one value per channel, but the input is "
                f"{tuple(input.shape)}"
            )
        mean, var = input.mean(axes), input.var(axes, correction=0)
        if training and running_mean is not None and running_var is not None:
            for running, new in ((running_mean, mean), (running_var, var * (n / (n - 1)))):
                running.copy_(running * (1 - momentum) + new.detach() * momentum)
    else:
        mean, var = running_mean, running_var
    y = (input - mean.reshape(shape)) * ops.rsqrt(var.reshape(shape) + eps)
    return _per_channel("batch_norm", y, weight, bias)


def _check_channels(name: str, what: str, numbers: Tensor | None, x: Tensor) -> None:
    """Raise unless there is one number for each index of axis 1."""
    if numbers is not None and tuple(numbers.shape) != (x.shape[1],):
        raise ValueError(
            f"{name}: the {what} is {tuple(numbers.shape)}, but the input {tuple(x.shape)} has "
            f"{x.shape[1]} channels"
        )


def _per_channel(name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x · weight + bias, with one weight and bias for each index of axis 1."""
    _check_channels(name, "weight", weight, x)
    _check_channels(name, "bias", bias, x)
    shape = (-1, *(1,) * (x.ndim - 2))
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)
