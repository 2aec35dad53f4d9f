"""What neural networks are made of: softmax, cross-entropy, layer norm, embedding, dropout.

Each is a few lines of array mathematics, and one operation: its gradient is written out by hand
because the result is shorter, and rounds better, than the chain of its parts. They run on arrays of
any module and on tensors of a lower level; their fast versions are in `cpu/` and `cuda/`. PyTorch's
argument order and defaults are in `nn/functional/`; attention is next door in `attention.py`.

A VJP may be handed a Tensor `dy` although the body saw arrays (that is how `jvp` works), so a VJP
takes its functions from `array_module(dy)` where operators do not suffice.

Shapes: N rows, V vocabulary (number of classes), C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import VJP, Shape
from ..backend import Array, DType, array_module, is_array, is_floating, silent
from ..random import Draw, keep_mask
from ..tensor import Tensor, op, stop_gradient
from .indexing import scatter_to
from .linalg import linear
from .shaping import concatenate_all, normalize_axis

__all__ = [
    "add_layer_norm",
    "cross_entropy",
    "dropout",
    "embedding",
    "layer_norm",
    "linear_cross_entropy",
    "log_softmax",
    "softmax",
]

Body = Callable[..., tuple[Array, VJP]]

NO_DRAW = Draw(0, 0)  # a default that says: reserve one from a generator, if anything is dropped


def at_least_float32(body: Body, rounded: bool = True) -> Body:
    """The body of an operation on real numbers, which computes in float32 if they are narrower.

    bfloat16 has 8 bits of precision: a sum of 300 ones is 256. So narrow inputs are widened, and
    only the result is rounded back to the dtype of the first, or not even that. An integer first
    input is refused.
    """

    @functools.wraps(body)
    def computed(x: Array, *others: Any, **options: Any) -> tuple[Array, VJP]:
        if not is_floating(x.dtype):
            raise TypeError(
                f"{body.__name__}: the input is {x.dtype}, but it takes real numbers; "
                "x.float() converts"
            )
        if x.dtype.itemsize >= 4:
            return body(x, *others, **options)
        y, vjp = body(_widened(x), *map(_widened, others), **options)
        y = y.astype(x.dtype) if rounded else y
        if isinstance(vjp, tuple):
            return y, tuple(f and _on_wide_gradient(f) for f in vjp)
        return y, vjp and _on_wide_gradient(vjp)

    return computed


def _widened(x: Any) -> Any:
    narrow = is_array(x) and is_floating(x.dtype) and x.dtype.itemsize < 4
    return x.astype(np.dtype(np.float32)) if narrow else x


def _on_wide_gradient(vjp: Callable[[Array], Any]) -> Callable[[Array], Any]:
    return lambda dy: vjp(_widened(dy))


def bottom(x: Any) -> Any:
    """The array at the bottom of a stack of tensors: integers and booleans are constants there."""
    return x.array if isinstance(x, Tensor) else x


# --- softmax --------------------------------------------------------------------------------------


@op
@silent
@at_least_float32
def softmax(x: Array, axis: int = -1) -> tuple[Array, VJP]:
    """exp(x) / Σ exp(x) along `axis`, for real x of any shape.

    The largest x is subtracted first: it cancels, and exp cannot overflow.
    Gradient: dx = y · (dy - Σ dy·y).
    """
    xp = array_module(x)
    axis = normalize_axis("softmax", axis, max(1, x.ndim))
    e = xp.exp(x - xp.amax(stop_gradient(x), axis=axis, keepdims=True))
    y = e / e.sum(axis=axis, keepdims=True)
    return y, lambda dy: y * (dy - (dy * y).sum(axis=axis, keepdims=True))


@op
@silent
@at_least_float32
def log_softmax(x: Array, axis: int = -1) -> tuple[Array, VJP]:
    """x - log Σ exp(x) along `axis`: the logarithm of softmax, exact where softmax underflows.

    Gradient: dx = dy - softmax(x) · Σ dy.
    """
    xp = array_module(x)
    axis = normalize_axis("log_softmax", axis, max(1, x.ndim))
    shifted = x - xp.amax(stop_gradient(x), axis=axis, keepdims=True)
    y = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return y, lambda dy: dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True)


# --- cross-entropy --------------------------------------------------------------------------------


@op
@silent
@at_least_float32
def cross_entropy(
    logits: Array,
    target: Array,
    weight: Array,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> tuple[Array, VJP]:
    """The negative log-likelihood, in nats, of class numbers under softmax(logits).

    logits (..., V), target (...) integers, weight (V,) of the classes or None. Rows whose target is
    `ignore_index` count for nothing. A row's loss is -Σ q·log p, where p = softmax(logits) and q is
    weight[target] at the target; with smoothing ε, (1 - ε) of that plus ε/V · weight everywhere.
    `reduction`: "none" (...), "sum", or "mean", the sum over Σ weight[target] (nan if all rows are
    ignored). Gradient of a row: p · Σq - q. Raises IndexError for a target that is no class.
    """
    xp = array_module(logits)
    check_classes("cross_entropy", logits.shape, target, weight, reduction, label_smoothing)
    V, dtype = logits.shape[-1], logits.dtype
    index, valid, weight, share = class_shares(
        "cross_entropy", logits.shape, dtype, target, weight, ignore_index
    )
    log_p = log_softmax(logits)
    smooth = label_smoothing / V

    each = -xp.take_along_axis(log_p, index, axis=-1)[..., 0] * share
    if label_smoothing:
        each = each * (1 - label_smoothing) - (log_p * weight).sum(axis=-1) * smooth
    # An ignored row is left out, not multiplied by 0: its logits may be infinite.
    y, per_row = reduced(xp.where(valid, each, 0.0), share, reduction)

    def dlogits(dy: Array) -> Array:
        hot = index == array_module(index).arange(V)  # (..., V): True at the target
        q = hot * share[..., None]
        if label_smoothing:
            q = q * (1 - label_smoothing) + valid[..., None] * (weight * smooth)
        return (xp.exp(log_p) * q.sum(axis=-1, keepdims=True) - q) * per_row(dy)[..., None]

    return y, (dlogits, None, None)


def check_classes(
    name: str,
    shape: Shape,
    target: Any,
    weight: Any,
    reduction: str,
    label_smoothing: float = 0.0,
) -> None:
    """Raise unless these go with logits of this shape (..., V); all versions of a loss ask here.

    Whether the targets are among the V classes is for `check_range` to say.
    """
    if not is_array(target):
        raise TypeError(
            f"{name}: targets are a tensor of class numbers, not {type(target).__name__}"
        )
    if not shape or tuple(target.shape) != tuple(shape[:-1]):
        raise ValueError(
            f"{name}: logits {tuple(shape)} need one target per row, {tuple(shape[:-1])}, "
            f"but the targets are {tuple(target.shape)}"
        )
    if target.dtype.kind not in "iu":
        raise TypeError(f"{name}: targets are class numbers, but they are {target.dtype}")
    if weight is not None and tuple(weight.shape) != (shape[-1],):
        raise ValueError(
            f"{name}: {shape[-1]} classes need a weight ({shape[-1]},), but it is "
            f"{tuple(weight.shape)}"
        )
    check_reduction(name, reduction)
    check_smoothing(name, label_smoothing)


def class_shares(
    name: str, shape: Shape, dtype: DType, target: Any, weight: Any, ignore_index: int
) -> tuple[Array, Array, Array, Array]:
    """(index, valid, weight, share): each row's class (..., 1), whether and how much it counts.

    weight (V,) is that of the classes, and a row's share is weight[index] if valid, else 0.
    """
    V = shape[-1]
    target, weight = bottom(target), bottom(weight)
    if weight is None:
        weight = array_module(target).ones(V, dtype)
    weight = weight.astype(dtype, copy=False)
    valid = target != ignore_index
    index = target * valid
    check_range(name, "target", index, V, "classes")
    return index[..., None], valid, weight, weight[index] * valid


def reduced(each: Array, share: Array, reduction: str) -> tuple[Array, Callable[[Array], Array]]:
    """The reduced loss of rows, and the function that hands its gradient back to each row."""
    if reduction == "none":
        return each, lambda dy: dy
    if reduction == "sum":
        return each.sum(), lambda dy: dy.reshape((1,) * share.ndim)
    xp, total = array_module(share), share.sum()
    nonzero = xp.where(total == 0, 1.0, total).astype(share.dtype)
    # 0 / 0 without a warning: nan, as PyTorch says. The gradient of no rows is zero all the same.
    mean = each.sum() / nonzero + xp.where(total == 0, math.nan, 0.0).astype(share.dtype)
    return mean, lambda dy: (dy / nonzero).reshape((1,) * share.ndim)


def check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{name}: reduction is {reduction!r}; it is 'none', 'mean' or 'sum'")


def check_smoothing(name: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{name}: label_smoothing is between 0 and 1, but it is {label_smoothing}")


def check_range(name: str, noun: str, ids: Array, size: int, things: str) -> None:
    """Raise IndexError unless all ids are in 0, …, size - 1.

    Arrays on a GPU are not looked at: the answer would have to be waited for.
    """
    if isinstance(ids, np.ndarray | np.generic) and ids.size:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise IndexError(
                f"{name}: {noun} {wrong} is out of range: there are {size} {things}, numbered from "
                "0"
            )


@op
@silent
@functools.partial(at_least_float32, rounded=False)
def linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array,
    target: Array,
    class_weight: Array,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    block: int | None = None,
) -> tuple[Array, VJP]:
    """cross_entropy(linear(x, weight, bias), target) without ever holding all the logits.

    x (..., C), weight (V, C), bias (V,) or None, target (...), class_weight (V,) or None. The
    logits of `block` rows at a time are made (by default about 4 million numbers), used and
    dropped; the backward pass makes them again. Of a block of rows with dlogits from cross_entropy:
    dx = dlogits · weight, dweight += dlogitsᵀ · x, dbias += Σ dlogits. Of bfloat16 inputs the
    products are bfloat16 in the fast versions, and the loss is float32 in all.
    """
    target = bottom(target)
    if weight.ndim != 2 or tuple(x.shape[-1:]) != tuple(weight.shape[1:]):
        raise ValueError(
            f"linear_cross_entropy: x must be (..., in) and the weight (classes, in), but they are "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    V, C = weight.shape
    name, shape = "linear_cross_entropy", (*x.shape[:-1], V)
    check_classes(name, shape, target, class_weight, reduction, label_smoothing)
    _, _, class_weight, share = class_shares(
        name, shape, x.dtype, target, class_weight, ignore_index
    )
    rows, row_targets = x.reshape((-1, C)), target.reshape(-1)
    step = block or max(1, 2**22 // V)
    blocks = [slice(i, i + step) for i in range(0, max(1, rows.shape[0]), step)]

    def losses(block: slice) -> tuple[Array, VJP]:
        logits = linear(rows[block], weight, bias)
        return cross_entropy.reference(  # type: ignore[no-any-return]
            logits, row_targets[block], class_weight, ignore_index, "none", label_smoothing
        )

    each = concatenate_all(*(losses(block)[0] for block in blocks))
    y, per_row = reduced(each.reshape(x.shape[:-1]), share, reduction)

    def vjp(dy: Array) -> tuple[Any, ...]:
        xp = array_module(dy, x, weight, bias)
        dy = xp.broadcast_to(per_row(dy), x.shape[:-1]).reshape(-1)
        dx, dweight, dbias = [], 0, 0
        for block in blocks:
            dlogits = losses(block)[1][0](dy[block])
            dx.append(dlogits @ weight)
            dweight = dweight + dlogits.swapaxes(0, 1) @ rows[block]
            dbias = dbias + dlogits.sum(axis=0)
        return concatenate_all(*dx).reshape(x.shape), dweight, dbias, None, None

    return y, vjp


# --- layer norm -----------------------------------------------------------------------------------


@op
@silent
@at_least_float32
def layer_norm(
    x: Array, weight: Array, bias: Array, ndim: int = 1, eps: float = 1e-5
) -> tuple[Array, VJP]:
    """(x - mean) / √(variance + eps) · weight + bias, over the last `ndim` axes (Ba et al., 2016).

    weight and bias have the shape of those axes; either may be None. The variance is the mean
    square deviation (not the unbiased one). With n = (x - mean) · rstd and dn = dy · weight:
    dx = rstd · (dn - mean(dn) - n · mean(dn · n)), dweight = Σ dy · n, dbias = Σ dy over rows.
    """
    _check_normalized(x, weight, bias, ndim)
    xp, axes = array_module(x), tuple(range(-ndim, 0))
    centered = x - x.mean(axis=axes, keepdims=True)
    rstd = 1 / xp.sqrt((centered * centered).mean(axis=axes, keepdims=True) + eps)
    n = centered * rstd
    y = n if weight is None else n * weight
    y = y if bias is None else y + bias

    def dx(dy: Array) -> Array:
        dn = dy if weight is None else dy * weight
        mean = dn.mean(axis=axes, keepdims=True)
        return rstd * (dn - mean - n * (dn * n).mean(axis=axes, keepdims=True))

    return y, (dx, lambda dy: dy * n, lambda dy: dy)


@op
@silent
def add_layer_norm(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float = 1e-5
) -> tuple[tuple[Array, Array], VJP]:
    """(x + residual, layer_norm(x + residual)), the norm over the last axis: two outputs.

    x (..., C) is what a layer of a transformer adds to its `residual` stream (..., C), the sum is
    the stream from there on, and its norm is what the next layer reads. weight and bias (C,) or
    None. The sum has the wider dtype of the two, the norm that of x: so a float32 stream goes with
    layers in bfloat16 (as in `dropout_add_layer_norm` of T. Dao's flash-attn). Gradient of both x
    and residual: dsum + the dx of layer_norm.
    """
    total = x + residual
    normed, rule = layer_norm.reference(total, weight, bias, eps=eps)

    def vjp(dsum: Array, dnormed: Array) -> tuple[Array, ...]:
        if dnormed is None:
            return dsum, dsum, None, None
        dx, dweight, dbias = (function(dnormed) for function in rule)
        dx = dx if dsum is None else dsum + dx
        return dx, dx, dweight, dbias

    return (total, normed.astype(x.dtype)), vjp


def _check_normalized(x: Array, weight: Array, bias: Array, ndim: int) -> None:
    shape = tuple(x.shape[-ndim:])
    if not 0 < ndim <= x.ndim:
        raise ValueError(f"layer_norm: cannot normalize {ndim} axes of an input {tuple(x.shape)}")
    for name, scale in (("weight", weight), ("bias", bias)):
        if scale is not None and tuple(scale.shape) != shape:
            raise ValueError(
                f"layer_norm: the {name} is {tuple(scale.shape)} but the last axes of the input "
                f"{tuple(x.shape)} are {shape}"
            )


# --- embedding ------------------------------------------------------------------------------------


@op
def embedding(weight: Array, ids: Array, padding_idx: int | None = None) -> tuple[Array, VJP]:
    """The rows `ids` of a table: weight (V, C), ids (...) integers -> (..., C).

    Gradient: each row of dy is added to the row of dweight that it came from; the row `padding_idx`
    receives none. Raises IndexError for an id outside 0, …, V - 1 (negative ids do not count back).
    """
    ids = bottom(ids)
    if weight.ndim != 2:
        raise ValueError(f"embedding: the table must be (rows, channels), not {weight.shape}")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"embedding: ids are row numbers, but they are {ids.dtype}; ids.long()")
    shape = weight.shape  # all that the gradient needs of the table
    check_range("embedding", "id", ids, shape[0], "rows in the table")

    def dweight(dy: Array) -> Array:
        if padding_idx is not None:
            dy = dy * (ids != padding_idx)[..., None]
        return scatter_to(dy, ids, shape)

    return weight[ids], (dweight, None)


# --- dropout --------------------------------------------------------------------------------------


@op
@silent
@at_least_float32
def dropout(x: Array, p: float = 0.5, draw: Draw = NO_DRAW) -> tuple[Array, VJP]:
    """x with each element zeroed with probability `p`, and the rest multiplied by 1 / (1 - p).

    Which elements is a function of `draw` alone (the caller reserves it from a generator, one word
    for two elements), so the backward pass makes the mask again and nothing is stored. The map is
    linear and symmetric: its gradient is itself.
    """

    def drop(a: Array) -> Array:
        return dropped(a, p, draw)

    return drop(x), drop


def dropped(x: Array, p: float, draw: Draw) -> Array:
    """`x` times the dropout mask of `draw`: 1 / (1 - p) where an element is kept, else 0."""
    if p >= 1:
        return x * 0
    keep = keep_mask(draw, x.shape, p, array_module(bottom(x)))
    return x * (keep.astype(x.dtype) * x.dtype.type(1 / (1 - p)))
