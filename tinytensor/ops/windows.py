"""Windows that slide over the last axes, and their adjoint: the parts of convolution and pooling.

Each is the other's VJP, as reading at an index and adding there are in `indexing.py`. What is
computed of the windows is a product or a reduction like any other: `nn/functional/convolution.py`.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..backend import Array, array_module, bfloat16, silent
from ..tensor import Tensor, op

__all__ = ["overlap_add", "windows"]

Sizes = tuple[int, ...]


@op
def windows(x: Array, size: Sizes = (), stride: Sizes = (), dilation: Sizes = ()) -> Any:
    """y[…, k, p] = x[…, p · stride + k · dilation], one k and one p for each of the last axes:
    (…, L) -> (…, size, places); (…, H, W) -> (…, size down, size across, places down, places
    across).

    A place is where a whole window fits; what is left at the end is passed over. A view in which
    numbers lie several times: do not write into it. Gradient: overlap_add(dy). ValueError where not
    even one window fits.
    """
    shape, n = tuple(x.shape), len(size)
    before, sides = shape[: x.ndim - n], shape[x.ndim - n :]
    reach = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    if x.ndim < n or any(r > side for r, side in zip(reach, sides, strict=True)):
        raise ValueError(f"windows: a window over {reach} does not fit into the end of {shape}")
    back = lambda dy: overlap_add(dy, stride, dilation, shape)  # noqa: E731
    if isinstance(x, Tensor):
        return windows(x, size, stride, dilation), back
    places = tuple((m - r) // s + 1 for m, r, s in zip(sides, reach, stride, strict=True))
    steps = x.strides[len(before) :]
    within = tuple(step * d for step, d in zip(steps, dilation, strict=True))
    between = tuple(step * s for step, s in zip(steps, stride, strict=True))
    y = array_module(x).lib.stride_tricks.as_strided(
        x, (*before, *size, *places), (*x.strides[: len(before)], *within, *between)
    )
    return y, back


@op
@silent
def overlap_add(dy: Array, stride: Sizes = (), dilation: Sizes = (), shape: Sizes = ()) -> Any:
    """Zeros of `shape` with every window of dy added at its place: the adjoint of windows.

    Gradient: windows. The sums of bfloat16 numbers are made in float32.
    """
    n = len(stride)
    size = tuple(dy.shape[dy.ndim - 2 * n : dy.ndim - n])
    back = lambda g: windows(g, size, stride, dilation)  # noqa: E731
    if isinstance(dy, Tensor):
        return overlap_add(dy, stride, dilation, shape), back
    places = dy.shape[dy.ndim - n :]
    dx = array_module(dy).zeros(shape, np.float32 if dy.dtype == bfloat16 else dy.dtype)
    for offset in itertools.product(*map(range, size)):
        starts = [k * d for k, d in zip(offset, dilation, strict=True)]
        at = tuple(
            slice(start, start + (count - 1) * step + 1, step)
            for start, count, step in zip(starts, places, stride, strict=True)
        )
        dx[(..., *at)] += dy[(..., *offset, *(slice(None),) * n)]
    return dx.astype(dy.dtype), back
