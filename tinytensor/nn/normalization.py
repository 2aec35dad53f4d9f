"""Normalizing layers beside `LayerNorm`: RMSNorm, GroupNorm, BatchNorm1d and BatchNorm2d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ..creation import ones, tensor, zeros
from ..tensor import Tensor
from . import functional as F
from . import init
from .layers import check_size, parameter
from .module import Module
from .parameter import Parameter

__all__ = ["BatchNorm1d", "BatchNorm2d", "GroupNorm", "RMSNorm"]


class RMSNorm(Module):
    """x / √(mean(x²) + eps) · weight over the last axes, of `normalized_shape` (arXiv 1910.07467).

    `eps` is the dtype's own unless given; weight starts as ones, `elementwise_affine=False` leaves
    it out.
    """

    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
        self.normalized_shape = tuple(shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = (
            parameter(self.normalized_shape, device, dtype) if elementwise_affine else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones again."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        )


class _PerChannel(Module):
    """A weight (ones) and a bias (zeros) for each channel, or neither."""

    weight: Parameter | None
    bias: Parameter | None

    def __init__(self, channels: int, affine: bool, device: Any, dtype: Any) -> None:
        super().__init__()
        self.weight = parameter((channels,), device, dtype) if affine else None
        self.bias = parameter((channels,), device, dtype) if affine else None
        self.affine = affine

    def reset_parameters(self) -> None:
        """Ones and zeros again."""
        if self.weight is not None and self.bias is not None:
            init.ones_(self.weight)
            init.zeros_(self.bias)


class GroupNorm(_PerChannel):
    """Layer norm over `num_groups` groups of the channels of (N, num_channels, …)."""

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_size("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"nn.GroupNorm: {num_channels} channels cannot be cut into {num_groups} groups"
            )
        super().__init__(num_channels, affine, device, dtype)
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim < 2 or input.shape[1] != self.num_channels:
            raise ValueError(
                f"nn.GroupNorm: expected (N, {self.num_channels}, …), got {tuple(input.shape)}"
            )
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class _BatchNorm(_PerChannel):
    """What `BatchNorm1d` says of itself, over as many axes as a subclass allows."""

    shapes: ClassVar[tuple[str, ...]]  # of an input: what comes after "(N, num_features"
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_size(type(self).__name__, num_features=num_features)
        super().__init__(num_features, affine, device, dtype)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        options = {"dtype": dtype, "device": device}
        tracked = track_running_stats
        self.register_buffer("running_mean", zeros(num_features, **options) if tracked else None)
        self.register_buffer("running_var", ones(num_features, **options) if tracked else None)
        self.register_buffer("num_batches_tracked", tensor(0, device=device) if tracked else None)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        ndims = [2 + more.count(",") for more in self.shapes]
        if input.ndim not in ndims or input.shape[1] != self.num_features:
            expected = " or ".join(f"(N, {self.num_features}{more})" for more in self.shapes)
            raise ValueError(
                f"nn.{type(self).__name__}: expected {expected}, got {tuple(input.shape)}"
            )
        momentum = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum or 0.0,
            self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Each channel of (N, num_features) or (N, num_features, L) with mean 0 and variance 1.

    In training by the batch's own statistics, in evaluation by the running ones, which start as 0
    and 1 and move by `momentum` with every batch (None: their plain average over all batches).
    Without `track_running_stats` always by the batch's own.
    """

    shapes: ClassVar[tuple[str, ...]] = ("", ", L")


class BatchNorm2d(_BatchNorm):
    """`BatchNorm1d` for images: each channel of (N, num_features, H, W)."""

    shapes: ClassVar[tuple[str, ...]] = (", H, W",)
