"""Convolution and pooling over one or two axes, by windows that slide over the input.

`ops.windows` lays all windows side by side without a copy; a convolution is then one product of
matrices, its weights by the windows' numbers, and pooling a maximum or a mean over each window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ... import ops
from ...amp import is_autocast_enabled
from ...backend import array_module
from ...creation import ones
from ...tensor import Tensor, as_tensor, check_tensors
from .layers import dropout

__all__ = [
    "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "conv1d", "conv2d", "dropout2d",
    "max_pool1d", "max_pool2d", "unfold",
]  # fmt: skip

# One number for all axes, or one for each.
Numbers = int | Sequence[int]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """y[n, o, p] = bias[o] + Σ weight[o, c, k] · x[n, c, p · stride + k · dilation], x with zeros
    added at both ends: input (N, C, L) or (C, L), weight (O, C / groups, K) -> (N, O, places).

    `padding` is how many zeros, or "same" for as many places as the input is long, or "valid" for
    none. With `groups` output channels o of the i-th group see input channels of the i-th group.
    """
    return _convolution("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """`conv1d` over two axes: input (N, C, H, W) or (C, H, W), weight (O, C / groups, kH, kW).

    Stride, padding and dilation are one number, or one down and one across.
    """
    return _convolution("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


def _convolution(
    name: str,
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
) -> Tensor:
    _check_convolution(name, n, input, weight, bias, groups)
    size, strides = tuple(weight.shape[2:]), per_axis(name, "stride", stride, n, 1)
    dilations = per_axis(name, "dilation", dilation, n, 1)
    x = input if input.ndim == n + 2 else input.unsqueeze(0)
    x = _padded(x, convolution_padding(name, padding, n, size, strides, dilations), 0.0)
    columns = ops.windows(x, size, strides, dilations)
    (N, C), places, outputs = x.shape[:2], columns.shape[-n:], weight.shape[0]
    inside = C // groups * math.prod(size)  # the numbers that one output is made of
    columns = columns.reshape(N, groups, inside, math.prod(places))
    rows = weight.reshape(groups, outputs // groups, inside)
    y = ops.matmul(rows, columns).reshape(N, outputs, *places)
    if bias is not None:
        y = y + bias.reshape(outputs, *(1,) * n).to(y.dtype)
    return y if input.ndim == n + 2 else y.squeeze(0)  # type: ignore[no-any-return]


def _check_convolution(
    name: str, n: int, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> None:
    check_tensors(name, input=x, weight=weight)
    shapes = f"the input is {tuple(x.shape)} and the weight {tuple(weight.shape)}"
    if x.ndim not in (n + 1, n + 2) or weight.ndim != n + 2:
        sides = "length" if n == 1 else "height, width"
        raise ValueError(
            f"{name}: expected an input (batch, channels, {sides}) or (channels, {sides}) and a "
            f"weight of {n + 2} axes, but {shapes}"
        )
    channels = x.shape[-n - 1]
    if groups < 1 or weight.shape[0] % groups or channels != weight.shape[1] * groups:
        raise ValueError(
            f"{name}: a weight (O, C / groups, …) with groups={groups} does not fit {channels} "
            f"input channels: {shapes}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"{name}: the bias is {tuple(bias.shape)} but the weight has {weight.shape[0]} outputs"
        )
    dtypes = [t.dtype for t in (x, weight, bias) if t is not None]
    if len(set(dtypes)) > 1 and not is_autocast_enabled():
        raise TypeError(
            f"{name}: input, weight and bias must have one dtype, got "
            f"{', '.join(map(str, dtypes))}; use .to(dtype)"
        )


def convolution_padding(
    name: str,
    padding: Numbers | str,
    n: int,
    size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """How many zeros come before and after, for each axis. ValueError for what means nothing."""
    if padding == "valid":
        return [(0, 0)] * n
    if padding == "same":
        if any(step != 1 for step in stride):
            raise ValueError(f'{name}: padding="same" needs a stride of 1, not {tuple(stride)}')
        missing = [d * (k - 1) for k, d in zip(size, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in missing]
    if isinstance(padding, str):
        raise ValueError(f'{name}: padding is a number, "same" or "valid", not {padding!r}')
    return [(p, p) for p in per_axis(name, "padding", padding, n, 0)]


def unfold(
    input: Tensor,
    kernel_size: Numbers,
    dilation: Numbers = 1,
    padding: Numbers = 0,
    stride: Numbers = 1,
) -> Tensor:
    """The windows of images as columns: (N, C, H, W) -> (N, C · kH · kW, places), a copy."""
    name = "unfold"
    check_tensors("unfold", input=input)
    if input.ndim not in (3, 4):
        raise ValueError(f"unfold: expected (N, C, H, W) or (C, H, W), got {tuple(input.shape)}")
    size = per_axis(name, "kernel_size", kernel_size, 2, 1)
    pairs = [(p, p) for p in per_axis(name, "padding", padding, 2, 0)]
    strides = per_axis(name, "stride", stride, 2, 1)
    x = _padded(input, pairs, 0.0)
    y = ops.windows(x, size, strides, per_axis(name, "dilation", dilation, 2, 1))
    rows, columns = x.shape[-3] * math.prod(size), math.prod(y.shape[-2:])
    return y.reshape(*x.shape[:-3], rows, columns)  # type: ignore[no-any-return]


def max_pool1d(
    input: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
) -> Tensor:
    """The largest number of each window: (N, C, L) -> (N, C, places). Gradient: to the first such.

    The stride is `kernel_size` unless given; padding is with -inf, by at most half a window.
    """
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation)


def max_pool2d(
    input: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
) -> Tensor:
    """`max_pool1d` over two axes: (N, C, H, W) -> (N, C, places down, places across)."""
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation)


def _max_pool(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None,
    padding: Numbers,
    dilation: Numbers,
) -> Tensor:
    size, strides, pairs = _pooling(name, n, input, kernel_size, stride, padding)
    how = size, strides, per_axis(name, "dilation", dilation, n, 1)
    x = _padded(input, pairs, -math.inf)
    seen = ops.windows(x.detach(), *how)
    before, sides, places = x.shape[:-n], x.shape[-n:], seen.shape[-n:]
    seen = seen.reshape(*before, math.prod(size), math.prod(places))
    largest = ops.argmax(seen, axis=-2).array  # which number of its window
    xp = array_module(largest)
    numbered = ops.windows(xp.arange(math.prod(sides)).reshape(sides), *how)
    numbered = numbered.reshape(math.prod(size), math.prod(places))
    place = as_tensor(numbered[largest, xp.arange(math.prod(places))])
    y = ops.take_along_axis(x.reshape(*before, math.prod(sides)), place, -1)
    return y.reshape(*before, *places)  # type: ignore[no-any-return]


def avg_pool1d(
    input: Tensor, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0
) -> Tensor:
    """The mean of each window: (N, C, L) -> (N, C, places); zeros that are added count, too.

    The stride is `kernel_size` unless given; padding is by at most half a window.
    """
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding)


def avg_pool2d(
    input: Tensor, kernel_size: Numbers, stride: Numbers | None = None, padding: Numbers = 0
) -> Tensor:
    """`avg_pool1d` over two axes: (N, C, H, W) -> (N, C, places down, places across)."""
    return _avg_pool("avg_pool2d", 2, input, kernel_size, stride, padding)


def _avg_pool(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None,
    padding: Numbers,
) -> Tensor:
    size, strides, pairs = _pooling(name, n, input, kernel_size, stride, padding)
    seen = ops.windows(_padded(input, pairs, 0.0), size, strides, (1,) * n)
    return ops.mean(seen, tuple(range(-2 * n, -n)))  # type: ignore[no-any-return]


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """Means over a grid of `output_size` windows that cover (N, C, H, W) -> (N, C, *output_size).

    Window i of n along an axis of L goes from ⌊i · L / n⌋ up to ⌈(i + 1) · L / n⌉; windows share
    numbers where n does not divide L. One size for both axes, or two; None leaves an axis as it is.
    """
    check_tensors("adaptive_avg_pool2d", input=input)
    if input.ndim not in (3, 4) or 0 in input.shape[-2:]:
        raise ValueError(
            f"adaptive_avg_pool2d: expected (N, C, H, W) or (C, H, W), got {tuple(input.shape)}"
        )
    wanted = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    sides = [side if n is None else n for n, side in zip(wanted, input.shape[-2:], strict=True)]
    down, across = per_axis("adaptive_avg_pool2d", "output_size", sides, 2, 1)
    means = ops.matmul(_means_of_windows(down, input, -2), input)
    return ops.matmul(means, _means_of_windows(across, input, -1).T)  # type: ignore[no-any-return]


def _means_of_windows(n: int, x: Tensor, axis: int) -> Tensor:
    """The (n, L) matrix by which a vector of L numbers becomes the means of n windows."""
    length = x.shape[axis]
    xp = array_module(x.array)
    at, place = xp.arange(n)[:, None], xp.arange(length)
    inside = (place >= at * length // n) & (place < -(-(at + 1) * length // n))
    return as_tensor((inside / inside.sum(1, keepdims=True)).astype(x.dtype))


def _pooling(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None,
    padding: Numbers,
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]:
    check_tensors(name, input=input)
    if input.ndim not in (n + 1, n + 2):
        raise ValueError(
            f"{name}: expected {n + 2} axes, the first for a batch, or {n + 1}, got "
            f"{tuple(input.shape)}"
        )
    size = per_axis(name, "kernel_size", kernel_size, n, 1)
    strides = size if stride is None else per_axis(name, "stride", stride, n, 1)
    added = per_axis(name, "padding", padding, n, 0)
    if any(2 * p > k for p, k in zip(added, size, strict=True)):
        raise ValueError(f"{name}: padding {added} is more than half of the window {size}")
    return size, strides, [(p, p) for p in added]


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`dropout` of whole channels: each plane of (N, C, H, W) or (C, H, W) is kept or zeroed."""
    check_tensors("dropout2d", input=input)
    if input.ndim not in (3, 4):
        raise ValueError(f"dropout2d: expected (N, C, H, W) or (C, H, W), got {tuple(input.shape)}")
    planes = ones(*input.shape[:-2], 1, 1, dtype=input.dtype, device=input.device)
    return input * dropout(planes, p) if training and p else dropout(input, p, training)


def per_axis(name: str, what: str, value: Numbers, n: int, least: int) -> tuple[int, ...]:
    """`value` for each of n axes; ValueError unless it is one integer from `least` on, or n."""
    numbers = (value,) * n if isinstance(value, int) else tuple(value)
    if len(numbers) != n or any(not isinstance(v, int) or v < least for v in numbers):
        each = "" if n == 1 else f", or {n} of them"
        raise ValueError(f"{name}: {what} is an integer from {least} on{each}, not {value!r}")
    return numbers


def _padded(x: Tensor, pairs: list[tuple[int, int]], value: float) -> Tensor:
    if not any(map(any, pairs)):
        return x
    return ops.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs, value)  # type: ignore[no-any-return]
