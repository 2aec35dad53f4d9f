"""One row: what a model computes for each token that it writes.

A single row gives nothing to reuse: every weight is read once, and the memory's speed is the limit.
And each matrix that passes through the caches drives out everything else, NumPy's own code too. So
these paths make few calls, wake other threads for long caches only, and keep nothing for a backward
pass. Many rows go through `norms.py`, `elementwise.py` and `attention.py`, which ask here first. (A
row times a weight is left to BLAS: it is as quick as parts of the weight on threads of ours.)

Shapes: B batch, H heads, S keys, D head size.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..backend import Array, DType
from .threads import single_threaded_blas, split

# Numbers that take about as long to read as another thread takes to wake: 2 MB of float32.
WORTH_A_READER = 1 << 19
FEW = 1 << 14  # numbers for which a call costs more than its arithmetic


def layer_norm_row(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """y = (x - mean) · rstd · weight + bias for the one row in x, of any number of axes."""
    channels = x.shape[-1]
    mean_of = _shares(channels, x.dtype)
    y = x - x.dot(mean_of)[..., None]
    row = y.reshape(channels)
    row /= np.sqrt(row.dot(row) / channels + eps)
    if weight is not None:
        row *= weight
    if bias is not None:
        row += bias
    return y


def gelu_row(x: Array) -> Array:
    """The tanh form, y = x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³)."""
    c = math.sqrt(2 / math.pi)
    y = x * x
    y *= 0.044715 * c
    y += c
    y *= x
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def one_query_attention(q: Array, k: Array, v: Array, factor: Any) -> Array:
    """softmax(factor · q kᵀ) v for q (B, H, 1, D), k (B, H, S, D) and v (B, H, S, E).

    Each thread takes a part of the texts or, where there is only one, of the heads.
    """
    B, H = k.shape[:2]
    y = np.empty((B, H, 1, v.shape[3]), q.dtype)
    axis, count = (1, H) if B == 1 else (0, B)

    def part(start: int, stop: int) -> None:
        chosen = (slice(None),) * axis + (slice(start, stop),)
        out = y[chosen]
        e = np.matmul(q[chosen] * factor, k[chosen].swapaxes(2, 3))
        e -= e.max(axis=3, keepdims=True)
        np.exp(e, out=e)
        np.matmul(e, v[chosen], out=out)
        out /= e.sum(axis=3, keepdims=True)

    with single_threaded_blas:
        split(count, -(-WORTH_A_READER * count // (k.size + v.size)), part)
    return y


@functools.lru_cache(maxsize=64)
def _shares(channels: int, dtype: DType) -> Array:
    return np.full(channels, 1 / channels, dtype)
