"""Nonlinearities, and softmax with its logarithm and its random twin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ... import ops
from ...backend import finfo, is_floating
from ...creation import zeros_like
from ...sampling import rand_like
from ...tensor import Tensor, check_tensors

__all__ = [
    "elu",
    "gelu",
    "glu",
    "gumbel_softmax",
    "hardtanh",
    "leaky_relu",
    "log_softmax",
    "logsigmoid",
    "mish",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


def relu(input: Tensor) -> Tensor:
    """max(x, 0)."""
    return ops.relu(input)  # type: ignore[no-any-return]


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope · x."""
    return ops.where(input > 0, input, input * negative_slope)  # type: ignore[no-any-return]


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x · Φ(x), with Φ the normal distribution function (D. Hendrycks, K. Gimpel, 2016).

    approximate="tanh" is 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), which GPT-2 was
    trained with.
    """
    return ops.gelu(input, approximate)  # type: ignore[no-any-return]


def silu(input: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    return ops.silu(input)  # type: ignore[no-any-return]


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return ops.sigmoid(input)  # type: ignore[no-any-return]


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return ops.tanh(input)  # type: ignore[no-any-return]


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta · x)) / beta; x itself where beta · x is above `threshold`."""
    x = input * beta
    smooth = (ops.relu(x) + ops.log1p(ops.exp(-abs(x)))) / beta
    return ops.where(x > threshold, input, smooth)  # type: ignore[no-any-return]


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), exact where sigmoid underflows."""
    return -softplus(-input, threshold=math.inf)


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha · (exp(x) - 1) (D.-A. Clevert et al., arXiv 1511.07289)."""
    below = ops.expm1(ops.minimum(input, 0)) * alpha
    return ops.where(input > 0, input, below)  # type: ignore[no-any-return]


def mish(input: Tensor) -> Tensor:
    """x · tanh(softplus(x)) (D. Misra, arXiv 1908.08681)."""
    return input * ops.tanh(softplus(input))  # type: ignore[no-any-return]


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x between `min_val` and `max_val`, and the nearer of the two elsewhere."""
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val {min_val} is above max_val {max_val}")
    return ops.clip(input, min_val, max_val)  # type: ignore[no-any-return]


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a · sigmoid(b), where a and b are the halves of the input along `dim` (arXiv 1612.08083)."""
    if input.size(dim) % 2:
        raise ValueError(
            f"glu: dim {dim} of the input {tuple(input.shape)} cannot be cut into halves"
        )
    a, b = input.chunk(2, dim)
    return a * ops.sigmoid(b)  # type: ignore[no-any-return]


def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """exp(x) / Σ exp(x) along `dim`; `dtype`, if given, is what the input is converted to first."""
    return ops.softmax(_as_dtype(input, dtype), dim)  # type: ignore[no-any-return]


def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """The logarithm of softmax along `dim`, exact where softmax underflows."""
    return ops.log_softmax(_as_dtype(input, dtype), dim)  # type: ignore[no-any-return]


def gumbel_softmax(
    logits: Tensor, tau: float = 1.0, hard: bool = False, *, dim: int = -1
) -> Tensor:
    """softmax((logits + g) / tau) along `dim`, of noise g = -log(-log u): a soft draw of a class.

    The largest element is at a class drawn with the probabilities softmax(logits); the smaller
    `tau`, the nearer the rest is to 0. `hard` returns the one-hot vector of that class with the
    gradient of the soft one (straight through). The noise comes from the default generator.
    E. Jang et al., "Categorical Reparameterization with Gumbel-Softmax" (arXiv 1611.01144).
    ValueError unless tau > 0. PyTorch's `eps`, which does nothing there, is not offered.
    """
    check_tensors("gumbel_softmax", logits=logits)
    if not is_floating(logits.dtype):
        raise TypeError(f"gumbel_softmax: the logits are {logits.dtype}; x.float() makes real ones")
    if not tau > 0:
        raise ValueError(f"gumbel_softmax: tau must be positive, but it is {tau}")
    wide = np.float64 if logits.dtype == np.float64 else np.float32
    uniform = rand_like(logits, dtype=wide).clamp(min=float(finfo(wide).tiny))  # no logarithm of 0
    noise = -ops.log(-ops.log(uniform))
    soft: Tensor = ops.softmax((logits + ops.astype(noise, logits.dtype)) / tau, dim)
    if not hard:
        return soft
    drawn = ops.argmax(soft, axis=dim, keepdims=True)
    one_hot = zeros_like(soft).scatter(dim, drawn, 1.0)
    return soft + (one_hot - soft).detach()  # type: ignore[no-any-return]


def _as_dtype(x: Tensor, dtype: Any) -> Tensor:
    return x if dtype is None else ops.astype(x, dtype)
