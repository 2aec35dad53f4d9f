"""How far a kernel's result may be from the exact one: bounds made from the roundings behind it.

u = 2⁻²⁴ is what one float32 rounding costs, relative to the rounded number. A sum of n terms in
whatever order is off by n·u·Σ|term| at most (N. Higham, Accuracy and Stability of Numerical
Algorithms, section 4.2). A function of the library (exp, log, erfc, tanh, √, division) is off by F
roundings: CUDA documents 4 units in the last place at most for those in use here, a unit being two
u. Errors of intermediate results are carried on to first order, and SECOND_ORDER, together with the
smallest normal number for what underflows, stands for the rest. `close` adds the rounding of the
result to its own dtype, half a unit in the last place.

Each function returns the bound on one result of one kernel, elementwise, from its float64 inputs.
Rows are the last axis.
"""

from __future__ import annotations

import numpy as np

from tinytensor.backend import bfloat16

U = 2.0**-24
F = 8
SECOND_ORDER = 1.1
TINY = 2.0**-126

Numbers = np.ndarray


def close(ours: Numbers, exact: Numbers, bound: Numbers | float) -> None:
    """`ours` is within `bound`, and half a unit of its dtype, of `exact`; or as infinite as it."""
    exact = np.asarray(exact, np.float64)
    got = ours.astype(np.float64)
    assert got.shape == exact.shape
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(got[~finite], exact[~finite])
    half = 2.0**-8 if ours.dtype == bfloat16 else U
    with np.errstate(invalid="ignore"):
        allowed = SECOND_ORDER * (np.asarray(bound) + half * np.abs(exact)) + TINY
        excess = np.where(finite, np.abs(got - exact) - allowed, -1.0)
    assert (excess <= 0).all(), f"{excess.max()} over the bound, at {excess.argmax()}"


def total(x: Numbers) -> Numbers:
    return x.sum(axis=-1, keepdims=True)


def sums(terms: Numbers, axis: int = 0) -> Numbers:
    """Of Σ terms along an axis."""
    return terms.shape[axis] * U * np.abs(terms).sum(axis=axis)


# --- softmax and losses --------------------------------------------------------------------------


def exponentials(x: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """p = softmax(x), and the relative errors of exp(x - max) and of their sum, in u."""
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(x.max(-1, keepdims=True) - x, nan=0.0, posinf=0.0)
        e = np.nan_to_num(np.exp(x - x.max(-1, keepdims=True)))
    of_each = distance + F  # a rounded distance d changes exp by d·u
    sum_of = np.maximum(total(e), 1.0)
    return e / sum_of, of_each, total(e * of_each) / sum_of + x.shape[-1]


def softmax(x: Numbers) -> Numbers:
    p, of_each, of_sum = exponentials(x)
    return U * p * (of_each + of_sum + F + 1)


def log_sum_exp(x: Numbers) -> Numbers:
    """Of log Σ exp(x - max), per row, and of max + that."""
    _, _, of_sum = exponentials(x)
    return U * (of_sum + F * np.log(x.shape[-1]))


def log_softmax(x: Numbers) -> Numbers:
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(x.max(-1, keepdims=True) - x, nan=0.0, posinf=0.0)
    return 2 * U * distance + log_sum_exp(x) + U * np.log(x.shape[-1])


def softmax_gradient(y: Numbers, dy: Numbers) -> Numbers:
    """dy may be zero where y is; y is what was stored."""
    return U * np.abs(y) * (3 * np.abs(dy) + (y.shape[-1] + 3) * total(np.abs(dy * y)))


def log_softmax_gradient(y: Numbers, dy: Numbers) -> Numbers:
    p = np.exp(y)
    of_product = p * (F + 2) * np.abs(total(dy)) + p * y.shape[-1] * total(np.abs(dy))
    return U * (np.abs(dy) + of_product)


def loss(x: Numbers, targets: Numbers, weight: Numbers, smoothing: float) -> Numbers:
    """Of one loss a row; weight (V,)."""
    V = x.shape[-1]
    valid = (targets >= 0) & (targets < V)
    largest = x.max(-1, keepdims=True)
    at = np.take_along_axis(x, np.where(valid, targets, 0)[:, None], -1)
    at = np.where(valid[:, None], at, largest)  # an ignored row's may be infinite
    of_log = log_sum_exp(x)
    hot = (1 - smoothing) * (weight[np.where(valid, targets, 0)] * valid)[:, None]
    bound = hot * (of_log + U * (4 * np.abs(largest - at) + 4 * np.log(V) + 2))
    if smoothing:
        spread = np.abs(largest) + np.log(V)
        terms = total(weight * np.abs(x)) + total(weight) * spread
        bound = bound + smoothing / V * (weight.sum() * of_log + (V + 6) * U * terms)
    return np.where(valid, bound[:, 0], 0.0)


def loss_gradient(
    x: Numbers, exact: Numbers, weight: Numbers, scale: Numbers, from_sum: bool
) -> Numbers:
    """Of dlogits = scale · (p Σq - q). `from_sum`: p = exp(x - log Σ exp x), whose logarithm was
    rounded at its own size; else from the row's largest.
    """
    p, of_each, of_sum = exponentials(x)
    if from_sum:
        size = np.abs(x.max(-1, keepdims=True)) + np.log(x.shape[-1])
        of_each = of_each + 2 * size
    of_p = U * p * (of_each + of_sum + F * np.log(x.shape[-1]) + F)
    most = weight.max(initial=1.0)
    q = most * (x.shape[-1] + 6) * U
    return scale * (most * of_p + q * p) + 6 * U * (np.abs(exact) + scale * most * p)


# --- layer norm ----------------------------------------------------------------------------------


class LayerNorm:
    """Errors of the mean, of 1/std and of the normalised x, and with these of every result."""

    def __init__(self, x: Numbers, eps: float) -> None:
        C = x.shape[-1]
        self.x, self.C = x, C
        mean = x.mean(-1, keepdims=True)
        of_mean = (C + 1) * U * total(np.abs(x)) / C
        centered = x - mean
        of_centered = of_mean + U * np.abs(centered)
        variance = total(centered**2) / C
        of_variance = 2 * total(np.abs(centered) * of_centered) / C + (C + 2) * U * variance
        self.rstd = 1 / np.sqrt(variance + eps)
        self.of_rstd = of_variance / (variance + eps) / 2 + (F + 2) * U  # relative
        self.n = centered * self.rstd
        self.of_n = of_centered * self.rstd + np.abs(self.n) * (self.of_rstd + U)

    def y(self, weight: Numbers | float, bias: Numbers | float) -> Numbers:
        return np.abs(weight) * self.of_n + 2 * U * (np.abs(self.n * weight) + np.abs(bias))

    def dx(self, dy: Numbers, weight: Numbers | float, exact: Numbers) -> Numbers:
        dn, C = np.abs(dy * weight), self.C
        dot = total(dy * weight * self.n) / C
        of_mean = (C + 3) * U * total(dn) / C
        of_dot = total(dn * self.of_n + (C + 3) * U * dn * np.abs(self.n)) / C
        along = np.abs(self.n * dot)
        inner = 4 * U * (dn + total(dn) / C + along) + of_mean
        inner = inner + self.of_n * np.abs(dot) + np.abs(self.n) * of_dot
        return self.rstd * inner + np.abs(exact) * (self.of_rstd + U)

    def dweight(self, dy: Numbers) -> Numbers:
        return (np.abs(dy) * self.of_n).sum(0) + sums(dy * self.n) + U * np.abs(dy * self.n).sum(0)


# --- GELU ----------------------------------------------------------------------------------------


def gelu(x: Numbers, bias: Numbers | float) -> Numbers:
    """The argument x + bias is rounded, and GELU's slope is at most 1.13. In tanh's argument five
    roundings are worth 5 · max (1 - t²) u ≤ 2.3 of t, and erfc's costs as much; then F of the
    function and two of products, all relative to x/2 · 2.
    """
    return U * np.abs(x + bias) * (1.13 + 2.3 + F + 3)


def gelu_gradient(x: Numbers, bias: Numbers | float, dy: Numbers) -> Numbers:
    """The slope's own slope is at most 0.8 / |x|, and its terms, of 1, 1/2 + |t|/2 and the product
    (1 - t²) · x (1 + 0.134 x²), carry 12 roundings and the function's. Beyond |x| = 6 there is
    none of the last: (1 - t²) is below u.
    """
    inner = np.minimum(np.abs(x + bias), 6.0)
    return U * np.abs(dy) * (F + 12) * (1 + inner * (1 + 0.134 * inner**2))
