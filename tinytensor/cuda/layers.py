"""The operations of `ops/network.py` and GELU on CUDA arrays, by kernels of our own.

Each has the contract of the reference that it is registered for, and declines what its kernel does
not take (other axes, other dtypes, wrong shapes, which the reference then refuses in a sentence).
The launches are in `network.py` and `elementwise.py`.
"""

from __future__ import annotations

from typing import Any

from ..autograd import Shape
from ..backend import Array, DType, array_module
from ..ops.elementwise import gelu
from ..ops.network import (
    NO_DRAW,
    add_layer_norm,
    check_classes,
    class_shares,
    cross_entropy,
    dropout,
    embedding,
    layer_norm,
    linear_cross_entropy,
    log_softmax,
    reduced,
    softmax,
)
from ..random import Draw
from . import elementwise, entropy, network
from .matmul import product
from .operations import kernel_for
from .rows import DTYPES, FLOAT32

LOGITS = 1 << 26  # numbers of logits that linear_cross_entropy has in memory at a time


def _rows_along(x: Array, axis: int) -> bool:
    """Whether the kernels over rows take `x`: float32 or bfloat16, along its last axis."""
    return x.dtype in DTYPES and x.ndim > 0 and axis in (-1, x.ndim - 1) and x.shape[-1] > 0


@kernel_for(softmax)
def cuda_softmax(x: Array, axis: int = -1) -> Any:
    """exp(x) / Σ exp(x) along the last axis, in one read."""
    if not _rows_along(x, axis):
        return NotImplemented
    y = network.softmax(x)
    return y, lambda dy: network.softmax_backward(dy, y)


@kernel_for(log_softmax)
def cuda_log_softmax(x: Array, axis: int = -1) -> Any:
    """x - log Σ exp(x) along the last axis, in one read."""
    if not _rows_along(x, axis):
        return NotImplemented
    y = network.softmax(x, log=True)
    return y, lambda dy: network.softmax_backward(dy, y, log=True)


@kernel_for(layer_norm)
def cuda_layer_norm(x: Array, weight: Array, bias: Array, ndim: int = 1, eps: float = 1e-5) -> Any:
    """Layer norm over the last axis."""
    if ndim != 1 or not _rows_along(x, -1):
        return NotImplemented
    for scale in (weight, bias):
        if scale is not None and (scale.shape != x.shape[-1:] or scale.dtype != x.dtype):
            return NotImplemented
    saved = network.layer_norm(x, weight, bias, eps=eps)
    wanted: dict[str, Any] = {"dweight": weight is not None, "dbias": bias is not None}
    return saved.y, lambda dy: tuple(network.layer_norm_backward(dy, saved, weight, **wanted)[:3])


@kernel_for(add_layer_norm)
def cuda_add_layer_norm(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float = 1e-5
) -> Any:
    """The sum and its norm in one pass; so are the stream's two gradients added."""
    stream = residual.dtype
    if not _rows_along(x, -1) or type(residual) is not type(x) or residual.shape != x.shape:
        return NotImplemented
    if stream not in (x.dtype, FLOAT32):
        return NotImplemented
    for scale in (weight, bias):
        if scale is not None and (scale.shape != x.shape[-1:] or scale.dtype != stream):
            return NotImplemented
    saved = network.layer_norm(x, weight, bias, residual=residual, eps=eps)
    wanted: dict[str, Any] = {"dweight": weight is not None, "dbias": bias is not None}

    def vjp(dsum: Array, dnormed: Array) -> tuple[Array, ...]:
        if dnormed is None:
            return dsum, dsum, None, None
        found = network.layer_norm_backward(dnormed, saved, weight, dtotal=dsum, **wanted)
        return found.dx, found.dresidual, found.dweight, found.dbias

    return (saved.total, saved.y), vjp


@kernel_for(gelu)
def cuda_gelu(x: Array, approximate: str = "none") -> Any:
    """x·Φ(x), exact or in the tanh form."""
    if x.dtype not in DTYPES or approximate not in ("none", "tanh"):
        return NotImplemented
    y = elementwise.gelu(x, None, approximate)
    return y, lambda dy: elementwise.gelu_backward(dy, x, None, approximate)


@kernel_for(dropout)
def cuda_dropout(x: Array, p: float = 0.5, draw: Draw = NO_DRAW) -> Any:
    """x times the mask of `draw`, which is made again for the gradient."""
    if x.dtype not in DTYPES or not 0 <= p < 1:
        return NotImplemented
    dtype = x.dtype
    return elementwise.dropout(x, p, draw), lambda dy: elementwise.dropout(
        dy.astype(dtype, copy=False), p, draw
    )


# --- embedding -----------------------------------------------------------------------------------


@kernel_for(embedding)
def cuda_embedding(weight: Array, ids: Array, padding_idx: int | None = None) -> Any:
    """The rows `ids` of a table; nan for an id that is no row, since looking would mean waiting."""
    if weight.ndim != 2 or weight.dtype not in DTYPES or str(ids.dtype) != "int64":
        return NotImplemented
    if type(ids) is not type(weight) or 0 in weight.shape or not weight.flags.c_contiguous:
        return NotImplemented
    ids = array_module(ids).ascontiguousarray(ids)
    shape = weight.shape
    return network.embedding(weight, ids), (
        lambda dy: EmbeddingGradient(dy, ids, shape, padding_idx),
        None,
    )


class EmbeddingGradient:
    """The gradient of a table, which has as many rows as there were ids and zeros elsewhere."""

    __slots__ = ("dtype", "dy", "ids", "padding_idx", "shape")

    def __init__(self, dy: Array, ids: Array, shape: Shape, padding_idx: int | None) -> None:
        self.dy, self.ids, self.padding_idx = dy, ids, padding_idx
        self.shape: Shape = shape
        self.dtype: DType = dy.dtype

    def write_to(self, buffer: Array) -> None:
        """buffer = gradient"""
        buffer[...] = 0
        self.add_to(buffer)

    def add_to(self, buffer: Array) -> None:
        """buffer += gradient"""
        if buffer.dtype in DTYPES and buffer.flags.c_contiguous:
            network.embedding_backward(
                self.dy, self.ids, self.shape[0], out=buffer, padding_idx=self.padding_idx
            )
        else:
            buffer += self.dense().astype(buffer.dtype)

    def dense(self) -> Array:
        """The gradient as an array of its own."""
        return network.embedding_backward(
            self.dy, self.ids, self.shape[0], padding_idx=self.padding_idx
        )


# --- cross-entropy -------------------------------------------------------------------------------


def _classes(logits_dtype: DType, target: Array, weight: Array, smoothing: float) -> bool:
    """Whether the kernels take these (smoothing needs Σ weight, which would mean waiting)."""
    return (
        logits_dtype in DTYPES
        and str(target.dtype) == "int64"
        and (weight is None or not smoothing)
    )


@kernel_for(cross_entropy)
def cuda_cross_entropy(
    logits: Array,
    target: Array,
    weight: Array,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Losses in one read of the logits; their gradient is one more, from the log-sum-exps."""
    if not _rows_along(logits, -1) or not _classes(logits.dtype, target, weight, label_smoothing):
        return NotImplemented
    if type(target) is not type(logits):
        return NotImplemented
    check_classes("cross_entropy", logits.shape, target, weight, reduction, label_smoothing)
    xp = array_module(logits)
    _, _, _, share = class_shares(
        "cross_entropy", logits.shape, FLOAT32, target, weight, ignore_index
    )
    flat = xp.ascontiguousarray(logits).reshape(-1, logits.shape[-1])
    classes = xp.ascontiguousarray(target).reshape(-1)
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    losses, totals = entropy.cross_entropy(flat, classes, weight, **options)
    y, per_row = reduced(losses.reshape(target.shape), share, reduction)

    def dlogits(dy: Array) -> Array:
        scale = xp.ascontiguousarray(per_row(dy.astype(FLOAT32)).astype(FLOAT32)).reshape(-1)
        found = entropy.cross_entropy_gradient(
            flat, totals, classes, weight, scale=scale, **options
        )
        return found.reshape(logits.shape)

    return y.astype(logits.dtype, copy=False), (dlogits, None, None)


@kernel_for(linear_cross_entropy)
def cuda_linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array,
    target: Array,
    class_weight: Array,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    block: int | None = None,
) -> Any:
    """The logits of some rows at a time; backward makes them again, and their gradient in place."""
    if not _rows_along(x, -1) or not _classes(x.dtype, target, class_weight, label_smoothing):
        return NotImplemented
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1] or 0 in x.shape or 0 in weight.shape:
        return NotImplemented
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        return NotImplemented
    if type(target) is not type(x):
        return NotImplemented
    xp, (V, C) = array_module(x), weight.shape
    name, shape = "linear_cross_entropy", (*x.shape[:-1], V)
    check_classes(name, shape, target, class_weight, reduction, label_smoothing)
    _, _, _, share = class_shares(name, shape, FLOAT32, target, class_weight, ignore_index)
    rows, classes = x.reshape(-1, C), xp.ascontiguousarray(target).reshape(-1)
    step = block or max(1, LOGITS // V)
    parts = [slice(i, i + step) for i in range(0, len(rows), step)]
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}

    def logits_of(part: slice) -> Array:
        return product(rows[part], weight.swapaxes(0, 1), bias=bias)

    losses, totals = xp.empty(len(rows), FLOAT32), xp.empty(len(rows), FLOAT32)
    for part in parts:
        out = losses[part], totals[part]
        entropy.cross_entropy(logits_of(part), classes[part], class_weight, out=out, **options)
    y, per_row = reduced(losses.reshape(x.shape[:-1]), share, reduction)

    def vjp(dy: Array) -> tuple[Any, ...]:
        scale = xp.ascontiguousarray(per_row(dy.astype(FLOAT32)).astype(FLOAT32)).reshape(-1)
        dx = xp.empty(rows.shape, x.dtype)
        dweight = xp.empty((V, C), FLOAT32)
        dbias = None if bias is None else xp.empty(V, FLOAT32)
        for part in parts:
            logits, more = logits_of(part), part.start > 0
            dlogits = entropy.cross_entropy_gradient(
                logits, totals[part], classes[part], class_weight, out=logits,
                scale=scale if len(scale) == 1 else scale[part], **options,
            )  # fmt: skip
            product(dlogits, weight, out=dx[part])
            product(dlogits.swapaxes(0, 1), rows[part], out=dweight, accumulate=more)
            if dbias is not None:
                network.column_sum(dlogits, out=dbias, accumulate=more)
        return dx.reshape(x.shape), dweight, dbias, None, None

    return y, vjp


__all__ = ["EmbeddingGradient"]
