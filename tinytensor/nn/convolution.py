"""Convolution and pooling layers, with PyTorch's weights; the functions are in `functional/`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ..tensor import Tensor
from . import functional as F
from . import init
from .functional.convolution import Numbers, convolution_padding, per_axis
from .functional.layers import check_probability
from .layers import check_size, parameter
from .module import Module
from .parameter import Parameter

__all__ = [
    "AdaptiveAvgPool2d", "AvgPool1d", "AvgPool2d", "Conv1d", "Conv2d", "Dropout2d", "MaxPool1d",
    "MaxPool2d", "Unfold",
]  # fmt: skip


class _Convolution(Module):
    """The weight (out_channels, in_channels / groups, *kernel_size) and the bias (out_channels,).

    Both start uniform on ±1/√n, n the numbers of the input that one output is made of. Padding is
    with zeros, the only `padding_mode`.
    """

    axes: ClassVar[int]
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Numbers,
        stride: Numbers = 1,
        padding: Numbers | str = 0,
        dilation: Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name, n = type(self).__name__, self.axes
        check_size(name, in_channels=in_channels, out_channels=out_channels)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"nn.{name}: {in_channels} input and {out_channels} output channels cannot be cut "
                f"into {groups} groups"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = per_axis(f"nn.{name}", "kernel_size", kernel_size, n, 1)
        self.stride = per_axis(f"nn.{name}", "stride", stride, n, 1)
        self.dilation = per_axis(f"nn.{name}", "dilation", dilation, n, 1)
        pairs = convolution_padding(
            f"nn.{name}", padding, n, self.kernel_size, self.stride, self.dilation
        )
        self.padding = padding if isinstance(padding, str) else tuple(p for p, _ in pairs)
        self.groups = groups
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = parameter(shape, device, dtype)
        self.bias = parameter((out_channels,), device, dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the starting values anew."""
        bound = 1 / math.sqrt(max(1, math.prod(self.weight.shape[1:])))
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        convolution = F.conv1d if self.axes == 1 else F.conv2d
        return convolution(
            input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )

    def extra_repr(self) -> str:
        shown = [f"{self.in_channels}, {self.out_channels}"]
        shown += [f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        usual = {"padding": (0,) * self.axes, "dilation": (1,) * self.axes, "groups": 1}
        shown += [f"{k}={getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v]
        return ", ".join(shown if self.bias is not None else [*shown, "bias=False"])


class Conv1d(_Convolution):
    """`F.conv1d` with weights of its own: (N, in_channels, L) -> (N, out_channels, places).

    weight is (out_channels, in_channels / groups, kernel_size).
    """

    axes: ClassVar[int] = 1


class Conv2d(_Convolution):
    """`F.conv2d` with weights of its own: (N, in_channels, H, W) -> (N, out_channels, …, …).

    weight is (out_channels, in_channels / groups, kH, kW). Kernel size, stride, padding and
    dilation are one number, or one down and one across.
    """

    axes: ClassVar[int] = 2


class _Pooling(Module):
    def __init__(
        self, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _MaxPooling(_Pooling):
    def __init__(
        self,
        kernel_size: Numbers,
        stride: Numbers | None = None,
        padding: Numbers = 0,
        dilation: Numbers = 1,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.dilation = dilation

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dilation={self.dilation}"


class MaxPool1d(_MaxPooling):
    """The largest number of each window, `F.max_pool1d`: (N, C, L) -> (N, C, places)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool1d(input, self.kernel_size, self.stride, self.padding, self.dilation)


class MaxPool2d(_MaxPooling):
    """The largest number of each window, `F.max_pool2d`: (N, C, H, W) -> (N, C, …, …)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation)


class AvgPool1d(_Pooling):
    """The mean of each window, `F.avg_pool1d`: (N, C, L) -> (N, C, places)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pooling):
    """The mean of each window, `F.avg_pool2d`: (N, C, H, W) -> (N, C, …, …)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, self.kernel_size, self.stride, self.padding)


class AdaptiveAvgPool2d(Module):
    """Means over `output_size` windows, `F.adaptive_avg_pool2d`: (N, C, H, W) -> (N, C, …, …)."""

    def __init__(self, output_size: int | Sequence[int | None]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class Unfold(Module):
    """The windows of images as columns, `F.unfold`: (N, C, H, W) -> (N, C · kH · kW, places)."""

    def __init__(
        self,
        kernel_size: Numbers,
        dilation: Numbers = 1,
        padding: Numbers = 0,
        stride: Numbers = 1,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.padding = padding
        self.stride = stride

    def forward(self, input: Tensor) -> Tensor:
        return F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, dilation={self.dilation}, padding={self.padding}, "
            f"stride={self.stride}"
        )


class Dropout2d(Module):
    """In training, zeroes whole channels with probability p and multiplies the rest by 1/(1-p)."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("Dropout2d", p)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout2d(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
