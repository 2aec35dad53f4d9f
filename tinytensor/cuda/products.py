"""`matmul`, `linear` and `scaled_dot_product_attention` on CUDA arrays, by kernels of our own.

Each has the contract of the reference it is registered for (`ops/linalg.py`, `ops/attention.py`),
and declines what its kernels do not take: the reference runs then, on the device. Transposed
factors are passed as views and read as they lie; a weight's gradient is multiplied straight into
the optimizer's buffer.
"""

from __future__ import annotations

import math
from typing import Any

from ..autograd import Shape, state
from ..backend import Array, DType, array_module
from ..ops.attention import scaled_dot_product_attention
from ..ops.linalg import linear, matmul
from ..ops.network import NO_DRAW
from ..random import Draw
from . import elementwise, network
from .attention import Attention, backward, decode, forward, refusal
from .matmul import DTYPES, FLOAT32, product
from .operations import kernel_for


@kernel_for(matmul)
def cuda_matmul(a: Array, b: Array) -> Any:
    """a @ b of matrices and batches of matrices; vectors are left to the reference."""
    if not _products_of(a, b) or a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        return NotImplemented
    if b.ndim == 2 and a.ndim > 2:
        # One matrix for the whole batch: one tall product, and no sum over a batch of db.
        given, (k, n) = a.shape, b.shape
        rows = a.reshape(math.prod(given[:-1]), k)
        return product(rows, b).reshape((*given[:-1], n)), (
            lambda dy: product(_rows(dy, b), b.swapaxes(0, 1)).reshape(given),
            lambda dy: product(rows.swapaxes(0, 1), _rows(dy, b)),
        )
    return product(a, b), (
        lambda dy: product(_like(dy, a), b.swapaxes(-1, -2)),
        lambda dy: product(a.swapaxes(-1, -2), _like(dy, a)),
    )


@kernel_for(linear)
def cuda_linear(x: Array, weight: Array, bias: Array) -> Any:
    """y = x Wᵀ + b, the bias added where the product is finished."""
    if (
        not _products_of(x, weight)
        or x.ndim < 1
        or weight.ndim != 2
        or x.shape[-1] != weight.shape[1]
        or (bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype))
    ):
        return NotImplemented
    given, (features, inputs) = x.shape, weight.shape
    rows = x.reshape(math.prod(given[:-1]), inputs)
    transposed = weight.swapaxes(0, 1)
    y = product(rows, transposed, bias=bias).reshape((*given[:-1], features))
    return y, (
        lambda dy: product(_rows(dy, transposed), weight).reshape(given),
        lambda dy: ProductGradient(_rows(dy, transposed), rows),
        None if bias is None else lambda dy: network.column_sum(_rows(dy, transposed)),
    )


class ProductGradient:
    """The gradient aᵀ b of a weight, a (N, out) and b (N, in), multiplied where it is wanted."""

    __slots__ = ("a", "b", "dtype", "shape")

    def __init__(self, a: Array, b: Array, dtype: DType | None = None) -> None:
        self.a, self.b = a, b
        self.shape: Shape = (a.shape[1], b.shape[1])
        self.dtype: DType = dtype or a.dtype

    def astype(self, dtype: DType) -> ProductGradient:
        """The same product with results of another type: nothing is computed yet."""
        return ProductGradient(self.a, self.b, dtype)

    def write_to(self, buffer: Array) -> None:
        """buffer = gradient"""
        product(self.a.swapaxes(0, 1), self.b, out=buffer)

    def add_to(self, buffer: Array) -> None:
        """buffer += gradient"""
        product(self.a.swapaxes(0, 1), self.b, out=buffer, accumulate=True)

    def dense(self) -> Array:
        """The gradient as an array of its own."""
        return product(self.a.swapaxes(0, 1), self.b, dtype=self.dtype)


@kernel_for(scaled_dot_product_attention)
def cuda_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    draw: Draw = NO_DRAW,
) -> Any:
    """Attention that never holds (queries, keys), but with a mask or with heads over 128."""
    if not 0 <= dropout_p < 1 or not type(q) is type(k) is type(v):
        return NotImplemented
    lead: Any = (None,) * (4 - q.ndim) or ...
    given: Any = (0,) * (4 - q.ndim) or ...
    if (
        mask is not None
        or not q.ndim == k.ndim == v.ndim
        or not 2 <= q.ndim <= 4
        or refusal(q[lead], k[lead], v[lead])
    ):
        return _attention_in_parts(q, k, v, mask, Attention(is_causal, scale, dropout_p, draw))
    q, k, v = q[lead], k[lead], v[lead]
    if q.shape[2] == 1 and not is_causal and not dropout_p and not state.recording:
        return decode(q, k, v, scale)[0][given], None
    how = Attention(is_causal, scale, dropout_p, draw)
    y, log_sum_exp = forward(q, k, v, how)

    def vjp(dy: Array) -> tuple[Array | None, ...]:
        dq, dk, dv = backward(dy[lead], q, k, v, y, log_sum_exp, how)
        return dq[given], dk[given], dv[given], None

    return y[given], vjp


def _attention_in_parts(q: Array, k: Array, v: Array, mask: Array, how: Attention) -> Any:
    """Attention in three kernels, product, masked softmax, product, with the weights between them.

    The scores and the softmax are float32, whatever q is.
    """
    shapes = q.shape, k.shape, v.shape
    if not _products_of(q, k) or v.dtype != q.dtype or min(map(len, shapes)) < 2:
        return NotImplemented
    if 0 in sum(shapes, ()) or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        return NotImplemented
    if mask is not None and (type(mask) is not type(q) or mask.dtype.kind in "iu"):
        return NotImplemented
    scale = 1 / math.sqrt(q.shape[-1]) if how.scale is None else how.scale
    scores = product(q, k.swapaxes(-1, -2), dtype=FLOAT32)
    masks = _mask_of_rows(mask, scores, how.is_causal)
    w = network.softmax(scores, **masks, scale=scale, zeros=True)

    def drop(x: Array) -> Array:
        return elementwise.dropout(x, how.dropout_p, how.draw) if how.dropout_p else x

    dtype, additive = q.dtype, "bias" in masks
    dropped = drop(w).astype(dtype, copy=False)

    def vjp(dy: Array) -> tuple[Array | None, ...]:
        dy = _like(dy, v)
        dw = drop(product(dy, v.swapaxes(-1, -2), dtype=FLOAT32))
        dscores = network.softmax_backward(dw, w)
        ds = elementwise.apply("scale", dscores, s=scale).astype(dtype, copy=False)
        return (
            product(ds, k),
            product(ds.swapaxes(-1, -2), q),
            product(dropped.swapaxes(-1, -2), dy),
            _like(dscores, mask) if additive else None,
        )

    return product(dropped, v), vjp


def _mask_of_rows(mask: Array, scores: Array, is_causal: bool) -> dict[str, Any]:
    """The mask as `network.softmax` takes it: of the last rows of the scores, one for each row."""
    if mask is None:
        return {"causal": is_causal}
    xp, kind = array_module(scores), "visible" if mask.dtype.kind == "b" else "bias"
    if is_causal:
        seen = xp.tri(*scores.shape[-2:], dtype=bool)
        mask = mask & seen if kind == "visible" else xp.where(seen, _like(mask, scores), -math.inf)
    while mask.ndim > 2 and mask.shape[0] == 1:
        mask = mask[0]
    return {kind: xp.broadcast_to(mask, scores.shape[-max(2, mask.ndim) :])}


def _products_of(a: Array, b: Array) -> bool:
    return type(a) is type(b) and a.dtype == b.dtype and a.dtype in DTYPES


def _like(dy: Array, a: Array) -> Array:
    return dy.astype(a.dtype, copy=False)


def _rows(dy: Array, b: Array) -> Array:
    """`dy` (…, n) as a matrix of rows, in the dtype of its other factor `b` (k, n)."""
    return _like(dy, b).reshape(-1 if dy.size else math.prod(dy.shape[:-1]), b.shape[1])


__all__ = ["ProductGradient", "cuda_attention", "cuda_linear", "cuda_matmul"]
