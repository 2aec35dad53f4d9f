"""Attention on CUDA arrays: which kernel, and its launch. See the headers of
`kernels/attention*.cu`.

`forward` and `backward` take (B, H, time, D) arrays with any strides but the last, so q, k and v
may be views of one joint projection; `decode` is for one query a head. Results are laid out (B,
time, H, D), seen as (B, H, time, D), so that joining the heads is free.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, array_module, bfloat16
from ..random import Draw
from .kernels import Defines, launch
from .matmul import FLOAT32
from .tiles import limits
from .views import forward_strided, is_aligned, strides, window

__all__ = ["LARGEST_HEAD", "VARIANTS", "Attention", "backward", "decode", "forward"]

LARGEST_HEAD = 128
TILE = 32  # rows of a tile in attention_plain.cu
KEYS_IN_A_PART = 256  # decode: fewer keys a block cost more in joining than they fill the device

# Source -> the variants that are compiled to see that all of them do; in use there are more.
VARIANTS: dict[str, tuple[Defines, ...]] = {
    "attention.cu": tuple(
        (("HEAD", head), ("DROPOUT", dropout), ("ALIGNED", aligned))
        for head, dropout, aligned in (
            (64, 0, 1),
            (64, 1, 1),
            (128, 0, 1),
            (128, 1, 1),
            (96, 0, 1),
            (32, 0, 0),
            (16, 1, 0),
        )
    ),
    "attention_plain.cu": tuple(
        (("HEAD", head), ("DROPOUT", dropout), ("real", real))
        for head, dropout, real in ((64, 0, "float"), (128, 1, "float"), (64, 0, "bf16"))
    ),
    "attention_decode.cu": tuple(
        (("real", real), ("HEAD", head)) for real, head in (("float", 64), ("bf16", 128))
    ),
}


class Attention(NamedTuple):
    """What a call of attention is about, beside its arrays.

    `tensor_cores`: None chooses by dtype and device; a scale that is not positive takes the plain
    kernels in any case. `seed` orders the simulator.
    """

    is_causal: bool = False
    scale: float | None = None
    dropout_p: float = 0.0
    draw: Draw = Draw(0, 0)
    tensor_cores: bool | None = None
    seed: int | None = None


DEFAULT = Attention()


def refusal(q: Array, k: Array, v: Array) -> str | None:
    """Why the kernels do not take these arrays, as a sentence; None where they do."""
    shapes = f"q is {q.shape}, k is {k.shape}, v is {v.shape}"
    if q.ndim != 4 or not q.shape[:2] == k.shape[:2] == v.shape[:2] or k.shape != v.shape:
        return (
            "attention: the CUDA kernels take (B, H, time, D) arrays with equal B, H and D, and "
            f"as many keys as values; {shapes}"
        )
    if q.shape[3] != k.shape[3] or 0 in (*q.shape, *k.shape):
        return f"attention: the CUDA kernels need one head size and no empty axis; {shapes}"
    if q.shape[3] > LARGEST_HEAD:
        return (
            f"attention: the CUDA kernels take heads of at most {LARGEST_HEAD} elements, not "
            f"{q.shape[3]}; use more heads"
        )
    if q.dtype not in (FLOAT32, bfloat16) or not q.dtype == k.dtype == v.dtype:
        return (
            "attention: the CUDA kernels take float32 or bfloat16, all three alike, not "
            f"{q.dtype}, {k.dtype}, {v.dtype}"
        )
    return None


def forward(q: Array, k: Array, v: Array, how: Attention = DEFAULT) -> tuple[Array, Array]:
    """(y, log_sum_exp): y = dropout(softmax(scale · q kᵀ)) v; of each query log Σ exp(scale · q·k).

    q (B, H, L, D), k and v (B, H, S, D), float32 or bfloat16, D at most 128; log_sum_exp (B, H, L)
    float32. Causal: query i sees keys 0, …, i. Raises ValueError with the reason for other arrays.
    """
    _check(q, k, v)
    B, H, L, _ = q.shape
    call = _Call(q, k, v, how)
    y, y_view = _joined(q, L)
    log_sum_exp = call.xp.empty((B, H, L), FLOAT32)
    call.launch(
        "attention_forward" if call.mma else "attention_plain_forward",
        L,
        [y, log_sum_exp],
        [q, k, v],
        [],
    )
    return y_view, log_sum_exp


def backward(
    dy: Array, q: Array, k: Array, v: Array, y: Array, log_sum_exp: Array, how: Attention
) -> tuple[Array, Array, Array]:
    """dq, dk and dv of `forward`, from its results: the weights are made again, tile by tile."""
    _check(q, k, v)
    B, H, L, D = q.shape
    call = _Call(q, k, v, how)
    dy = _readable(dy.astype(q.dtype, copy=False))
    rows = B * H * L
    delta = call.xp.empty((B, H, L), FLOAT32)
    joined_y = y.swapaxes(1, 2)
    if not joined_y.flags.c_contiguous:
        joined_y = call.xp.ascontiguousarray(joined_y)
    launch(
        "attention_delta",
        (-(-rows // 4),),
        (128,),
        [delta, window(dy), joined_y],
        [H, L, D, rows, *_steps(dy)],
        defines=(("real", _name(q)), ("HEAD", 16)),
        seed=how.seed,
    )
    dq, dq_view = _joined(q, L)
    dk, dk_view = _joined(k, k.shape[2])
    dv, dv_view = _joined(v, k.shape[2])
    kind = "attention_" if call.mma else "attention_plain_"
    call.launch(kind + "dkdv", k.shape[2], [dk, dv], [dy, q, k, v], [log_sum_exp, delta])
    call.launch(kind + "dq", L, [dq], [dy, q, k, v], [log_sum_exp, delta])
    return dq_view, dk_view, dv_view


def decode(
    q: Array,
    k: Array,
    v: Array,
    scale: float | None = None,
    parts: int | None = None,
    seed: int | None = None,
) -> tuple[Array, Array]:
    """`forward` for one query a head that sees every key; `parts` of the keys are read side by
    side.
    """
    _check(q, k, v)
    B, H, L, D = q.shape
    S = k.shape[2]
    if L != 1:
        raise ValueError(f"attention: decode takes one query a head, not {L}")
    xp: Any = array_module(q)
    q, k, v = _readable(q), _readable(k), _readable(v)
    head = -(-D // 16) * 16
    if parts is None:
        parts = max(1, min(S // KEYS_IN_A_PART, 2 * limits(xp).processors // (B * H)))
    part_length = -(-S // parts)
    parts = -(-S // part_length)
    partial = xp.empty((B * H, parts, head + 2), FLOAT32)
    defines = (("real", _name(q)), ("HEAD", head))
    steps = [*_steps(q)[:2], *_steps(k), *_steps(v)]
    scale = 1 / math.sqrt(D) if scale is None else scale
    launch(
        "attention_decode",
        (B * H, parts),
        (128,),
        [partial, window(q), window(k), window(v)],
        [H, S, D, *steps, scale, part_length],
        defines=defines,
        seed=seed,
    )
    y, y_view = _joined(q, 1)
    log_sum_exp = xp.empty((B, H, 1), FLOAT32)
    arrays = [y, log_sum_exp, partial]
    launch("attention_join", (B * H,), (128,), arrays, [parts, D], defines=defines, seed=seed)
    return y_view, log_sum_exp


# --- launching -----------------------------------------------------------------------------------


class _Call:
    """What the launches of one forward or backward pass have in common."""

    def __init__(self, q: Array, k: Array, v: Array, how: Attention) -> None:
        self.xp: Any = array_module(q)
        (self.B, self.H, self.L, self.D), self.S = q.shape, k.shape[2]
        self.how = how
        self.dropped = int(how.dropout_p > 0)
        self.name = _name(q)
        device = limits(self.xp)
        wanted = how.tensor_cores is None or how.tensor_cores
        scale = 1.0 if how.scale is None else how.scale
        self.mma = wanted and q.dtype == bfloat16 and device.tensor_cores and scale > 0
        self.head = -(-self.D // 16) * 16

    def launch(
        self,
        name: str,
        rows: int,
        outputs: list[Array],
        inputs: list[Array],
        statistics: list[Array],
    ) -> None:
        """One kernel over (B · H, tiles of `rows`)."""
        how, head = self.how, self.head
        inputs = [_readable(x) for x in inputs]
        steps = [_steps(x) for x in inputs]
        threshold = min(round(how.dropout_p * 2**32), 2**32 - 1)
        keep_scale = float(np.float32(1 / (1 - how.dropout_p)))
        scale = 1 / math.sqrt(self.D) if how.scale is None else how.scale
        defines: tuple[tuple[str, Any], ...] = (("HEAD", head), ("DROPOUT", self.dropped))
        if self.mma:
            tile, threads = (128 if head <= 64 and not self.dropped else 64), 128
            held, step = (1, 64 if head <= 64 else 32) if len(inputs) == 3 else (2, 32)
            shared_bytes = (held * tile + 4 * step) * (head // 8 + 1) * 16
            if name == "attention_dkdv":
                shared_bytes += 4 * step * 4  # log-sum-exps and deltas of two tiles of queries
            aligned = self.D % 8 == 0 and all(map(is_aligned, inputs, steps))
            defines = (*defines, ("ALIGNED", int(aligned)))
        else:
            tile, threads = TILE, 256
            weights = 2 if name.endswith("dkdv") else 1
            held = 0 if len(inputs) == 3 else 4 * TILE * (head + 1) + weights * TILE * (TILE + 1)
            shared_bytes = 4 * held
            defines = (*defines, ("real", self.name))
        launch(
            name,
            (self.B * self.H, -(-rows // tile)),
            (threads,),
            [*outputs, *map(window, inputs), *statistics, how.draw.origin],
            [
                *(self.H, self.L, self.S, self.D),
                *(step for three in steps for step in three),
                *(scale, int(how.is_causal), threshold, keep_scale),
                *(how.draw.key, how.draw.counter),
            ],
            defines=defines,
            shared_bytes=shared_bytes,
            seed=how.seed,
        )


def _check(q: Array, k: Array, v: Array) -> None:
    if reason := refusal(q, k, v):
        raise ValueError(reason)


def _joined(like: Array, length: int) -> tuple[Array, Array]:
    """A new (B, length, H, D) array, and the same seen as (B, H, length, D)."""
    B, H, _, D = like.shape
    y = array_module(like).empty((B, length, H, D), like.dtype)
    return y, y.swapaxes(1, 2)


def _readable(x: Array) -> Array:
    """`x`, or a copy of it if its last axis is not contiguous."""
    if forward_strided(x) and strides(x)[-1] in (0, 1):
        return x
    return array_module(x).ascontiguousarray(x)


def _steps(x: Array) -> tuple[int, ...]:
    """The strides of batch, head and time; every other axis is contiguous."""
    return strides(x)[:3]


def _name(x: Array) -> str:
    return "float" if x.dtype == FLOAT32 else "bf16"
