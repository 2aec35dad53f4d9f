"""Softmax, layer norm and embedding on CUDA arrays: shapes, variants, and launches.

Each function is one operation on contiguous float32 or bfloat16 arrays, forward or backward; the
`.cu` file of the same name says what it computes. `plan` (threads a row) is chosen by width unless
given; `seed` orders the simulator.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, DType, array_module
from .kernels import Defines, launch
from .rows import (
    FLOAT32,
    Plan,
    choose,
    contiguous,
    count_of,
    element,
    flat_variant,
    processors,
    staged,
    variant,
)
from .views import is_aligned

__all__ = [
    "LayerNorm",
    "LayerNormGradients",
    "column_sum",
    "embedding",
    "embedding_backward",
    "layer_norm",
    "layer_norm_backward",
    "softmax",
    "softmax_backward",
]

MOST_ROWS = 2**31 - 1
CHUNK = 64  # sorted ids of a warp: kernels/embedding.cu


def _rows(name: str, x: Array) -> tuple[int, int]:
    columns = x.shape[-1]
    rows = count_of(x) // columns if columns else 0
    if rows > MOST_ROWS:
        raise ValueError(f"{name}: {rows} rows are more than a launch can have, {MOST_ROWS}")
    return rows, columns


# --- softmax -------------------------------------------------------------------------------------


def softmax(
    x: Array,
    *,
    log: bool = False,
    causal: bool = False,
    visible: Array = None,
    bias: Array = None,
    scale: float = 1.0,
    zeros: bool = False,
    plan: Plan | None = None,
    seed: int = 0,
) -> Array:
    """softmax(scale · x) or log_softmax over the last axis, at most one mask applied before.

    `causal`: x (..., queries, keys), query i sees keys 0 … i. `visible`: booleans, `bias`:
    numbers that are added; (rows, columns) for the last rows of x, repeated for the axes before.
    A row that sees nothing is nan, or 0 with `zeros`.
    """
    mask = 1 if causal else 2 if visible is not None else 3 if bias is not None else 0
    if log and mask:
        raise ValueError("log_softmax: the CUDA kernel takes no mask")
    x = contiguous(x)
    rows, columns = _rows("softmax", x)
    y = array_module(x).empty(x.shape, x.dtype)
    plan = plan or choose(columns, x.dtype)
    mask_rows = 1
    for array in (visible, bias):
        if array is not None:
            mask_rows = count_of(array) // max(1, columns)
            if tuple(array.shape[-1:]) != (columns,) or not mask_rows or rows % mask_rows:
                raise ValueError(
                    f"softmax: a mask {tuple(array.shape)} does not repeat over rows "
                    f"{tuple(x.shape)}"
                )
    seen = None if visible is None else contiguous(visible).view(np.uint8)
    added = None if bias is None else contiguous(bias.astype(x.dtype, copy=False))
    queries = x.shape[-2] if causal and x.ndim > 1 else 1
    stage, shared_bytes = staged(plan, columns, x)
    launch(
        "softmax_forward",
        (plan.blocks(rows),),
        (plan.threads,),
        [y, x, seen, added],
        [rows, columns, queries, mask_rows, scale, int(zeros)],
        seed,
        defines=(*variant(plan, columns, y, x, added, LOG=int(log), MASK=mask), *stage),
        shared_bytes=shared_bytes,
    )
    return y


def softmax_backward(
    dy: Array, y: Array, *, log: bool = False, plan: Plan | None = None, seed: int = 0
) -> Array:
    """dx of `softmax`, from what it returned."""
    y, dy = contiguous(y), contiguous(dy.astype(y.dtype, copy=False))
    rows, columns = _rows("softmax", y)
    dx = array_module(y).empty(y.shape, y.dtype)
    plan = plan or choose(columns, y.dtype)
    stage, shared_bytes = staged(plan, columns, y, dy)
    defines = (*variant(plan, columns, dx, dy, y, LOG=int(log)), *stage)
    launch(
        "softmax_backward",
        (plan.blocks(rows),),
        (plan.threads,),
        [dx, dy, y],
        [rows, columns],
        seed,
        defines=defines,
        shared_bytes=shared_bytes,
    )
    return dx


# --- sums over rows ------------------------------------------------------------------------------


def column_sum(
    x: Array,
    *,
    out: Array = None,
    accumulate: bool = False,
    dtype: Any = None,
    slices: int | None = None,
    seed: int = 0,
) -> Array:
    """Σ over rows of x (rows, C): a new array, or `out` (= or, with `accumulate`, +=)."""
    xp, x = array_module(x), contiguous(x)
    rows, C = x.shape
    if out is None:
        out, accumulate = xp.empty(C, dtype or x.dtype), False
    if not rows:
        if not accumulate:
            out[...] = 0
        return out
    columns_of_block = 512 // x.itemsize
    across = -(-C // columns_of_block)
    if slices is None:
        slices = max(1, min(4 * processors(xp) // max(1, across), rows // 64))
    each = -(-rows // slices)
    slices = -(-rows // each)

    def run(into: Array, source: Array, parts: int, of_part: int, add: bool) -> None:
        width = 512 // source.itemsize
        aligned = is_aligned(source, (C,))
        launch(
            "column_sum",
            (-(-C // width), parts),
            (256,),
            [into, source],
            [source.shape[0], C, of_part, int(add)],
            seed,
            defines=(
                ("real", element(source.dtype)),
                ("into", element(into.dtype)),
                ("ALIGNED", int(aligned)),
            ),
        )

    if slices == 1:
        run(out, x, 1, rows, accumulate)
    else:
        sums = xp.empty((slices, C), FLOAT32)
        run(sums, x, slices, each, False)
        run(out, sums, 1, slices, accumulate)
    return out


# --- layer norm ----------------------------------------------------------------------------------


class LayerNorm(NamedTuple):
    """What `layer_norm` returns; `total` is x itself where no residual was added."""

    y: Array
    total: Array
    mean: Array
    rstd: Array


class LayerNormGradients(NamedTuple):
    """What `layer_norm_backward` returns; where x and residual are of one dtype, so are dx and
    dresidual one array. dweight and dbias are None where not asked for.
    """

    dx: Array
    dweight: Array
    dbias: Array
    dresidual: Array


def layer_norm(
    x: Array,
    weight: Array = None,
    bias: Array = None,
    *,
    residual: Array = None,
    eps: float = 1e-5,
    plan: Plan | None = None,
    seed: int = 0,
) -> LayerNorm:
    """Layer norm of x (..., C), or of residual + x; weight (C,) and bias (C,) are optional.

    `residual` is of x's dtype, or float32 with x in bfloat16: the total is then float32, and the
    norm bfloat16.
    """
    xp, x = array_module(x), contiguous(x)
    rows, C = _rows("layer_norm", x)
    stream = x.dtype if residual is None else residual.dtype
    y = xp.empty(x.shape, x.dtype)
    total = None if residual is None else xp.empty(x.shape, stream)
    residual = None if residual is None else contiguous(residual)
    mean, rstd = xp.empty(rows, FLOAT32), xp.empty(rows, FLOAT32)
    weight, bias = (
        None if a is None else contiguous(a.astype(stream, copy=False)) for a in (weight, bias)
    )
    plan = plan or choose(C, stream)
    launch(
        "layer_norm_forward",
        (plan.blocks(rows),),
        (plan.threads,),
        [y, total, mean, rstd, x, residual, weight, bias],
        [rows, C, eps],
        seed,
        defines=(
            *variant(plan, C, y, x, residual, weight, bias, total),
            ("RESIDUAL", int(residual is not None)),
            *_stream(x.dtype, stream),
        ),
    )
    return LayerNorm(y, x if total is None else total, mean, rstd)


def layer_norm_backward(
    dy: Array,
    saved: LayerNorm,
    weight: Array = None,
    *,
    dtotal: Array = None,
    dweight: bool = True,
    dbias: bool = True,
    blocks: int | None = None,
    plan: Plan | None = None,
    seed: int = 0,
) -> LayerNormGradients:
    """The gradients of x, of the residual, and of weight and bias if they are asked for.

    `dtotal` is the gradient of `total` that comes past the norm; it is added to dx.
    """
    total, xp = saved.total, array_module(saved.total)
    dtype, stream = saved.y.dtype, total.dtype
    dy = contiguous(dy.astype(dtype, copy=False))
    if dtotal is not None:
        dtotal = contiguous(dtotal.astype(stream, copy=False))
    if weight is not None:
        weight = contiguous(weight.astype(stream, copy=False))
    rows, C = _rows("layer_norm", total)
    dresidual = xp.empty(total.shape, stream)
    dx = None if dtype == stream else xp.empty(total.shape, dtype)
    plan = plan or choose(C, stream)
    if blocks is None:
        blocks = processors(xp) * max(1, 1024 // plan.threads)
    blocks = min(blocks, plan.blocks(rows))
    teams = blocks * plan.rows_of_block
    shares = [xp.empty((teams, C), FLOAT32) if wanted else None for wanted in (dweight, dbias)]
    launch(
        "layer_norm_backward",
        (blocks,),
        (plan.threads,),
        [dx, dresidual, *shares, dy, dtotal, total, weight, saved.mean, saved.rstd],
        [rows, C],
        seed,
        defines=(
            *variant(plan, C, dy, dx, dresidual, dtotal, total, weight),
            *_stream(dtype, stream),
        ),
    )
    # A team that had no row wrote nothing if rows are not held.
    used = teams if plan.each else min(teams, rows)
    sums = [None if s is None else column_sum(s[:used], dtype=stream, seed=seed) for s in shares]
    return LayerNormGradients(dresidual if dx is None else dx, sums[0], sums[1], dresidual)


def _stream(dtype: DType, stream: DType) -> Defines:
    """What the kernel is told where the residual stream is not of the activations' dtype."""
    return () if stream == dtype else (("stream_type", element(stream)),)


# --- embedding -----------------------------------------------------------------------------------


def embedding(weight: Array, ids: Array, seed: int = 0) -> Array:
    """weight[ids]: weight (V, C), ids (...) int64 -> (..., C); nan for an id out of range."""
    xp, (V, C) = array_module(weight), weight.shape
    y, n = xp.empty((*ids.shape, C), weight.dtype), count_of(ids)
    defines = flat_variant(y, weight, ALIGNED=int(is_aligned(weight, (C,)) and is_aligned(y)))
    launch(
        "embedding_forward",
        (-(-n // 4),),
        (128,),
        [y, weight, ids],
        [n, V, C],
        seed,
        defines=defines[:1] + defines[2:],
    )
    return y


def embedding_backward(
    dy: Array,
    ids: Array,
    V: int,
    *,
    out: Array = None,
    padding_idx: int | None = None,
    chunk: int = CHUNK,
    seed: int = 0,
) -> Array:
    """dweight (V, C), new or added to `out`: each row of dy (..., C) goes to the row of its id."""
    xp, C = array_module(dy), dy.shape[-1]
    accumulate = out is not None
    if out is None:
        out = xp.zeros((V, C), dy.dtype)
    dy, flat_ids = contiguous(dy), ids.reshape(-1)
    n = count_of(flat_ids)
    if not n or not C:
        return out
    positions = xp.argsort(flat_ids, kind="stable")
    sorted_ids = flat_ids[positions]
    chunks = -(-n // chunk)
    edges = xp.empty((chunks, 2, C), FLOAT32)
    grid = (-(-chunks // 4), -(-C * dy.itemsize // 512))
    sizes = [n, V, C, -1 if padding_idx is None else padding_idx, int(accumulate)]
    defines = (
        ("real", element(dy.dtype)),
        ("into", element(out.dtype)),
        ("ALIGNED", int(is_aligned(dy, (C,)) and is_aligned(out, (C,)))),
        ("CHUNK", chunk),
    )
    arrays = [out, edges, dy, sorted_ids, positions]
    launch("embedding_backward", grid, (128,), arrays, sizes, seed, defines=defines)
    launch("embedding_join", grid, (128,), [out, edges, sorted_ids], sizes, seed, defines=defines)
    return out
