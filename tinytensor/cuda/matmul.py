"""Matrix products on CUDA arrays, by kernels of our own.

`product(a, b)` is what the operations call: any shapes, strides and batch axes, bias and GELU in
the same kernel, added to what is there if wanted. `ladder(name, a, b)` runs one rung of the study
ladder in `kernels/matmul.cu`. Read the headers of `kernels/matmul_wgmma.cu`, `matmul_mma.cu` and
`matmul_plain.cu`; `tiles.py` chooses among them, `matmul_launch.py` launches.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from ..backend import Array, array_module, bfloat16
from .kernels import Defines, launch
from .matmul_launch import ADD_TO_C, BIAS, GELU, LINES, SAVE, Axis, Product
from .tensor_map import refusal
from .tiles import (
    LARGE,
    MIDDLE,
    SMALL,
    TURNS,
    WIDE,
    Limits,
    Tile,
    choose_parts,
    choose_tile,
    limits,
    plan_wgmma,
    suits_wgmma,
)
from .views import forward_strided, strides

__all__ = [
    "KERNELS",
    "LADDER",
    "VARIANTS",
    "Tile",
    "avoid",
    "get_float32_matmul_precision",
    "ladder",
    "product",
    "set_float32_matmul_precision",
]

FLOAT32 = np.dtype(np.float32)
DTYPES = (FLOAT32, bfloat16)

# Rung of the ladder -> rows and columns of C that a block of 16 × 16 threads makes.
LADDER = {
    "matmul_naive": 16,
    "matmul_tiled": 16,
    "matmul_register_tiled": 64,
    "matmul_vectorised": 128,
}


# What `product` chooses from, the most particular first.
KERNELS = ("matmul_wgmma", "matmul_mma", "matmul_plain")

# Source -> the variants that are compiled to see that all of them do; in use there are more.
VARIANTS: dict[str, tuple[Defines, ...]] = {
    "matmul_mma.cu": tuple(
        (
            *(("real", real), ("out", out), ("TILE_M", tile.m), ("TILE_N", tile.n)),
            *(
                ("STAGES", tile.stages),
                ("TRANSPOSE_A", a),
                ("TRANSPOSE_B", b),
                ("ALIGNED", aligned),
            ),
        )
        for real, out, tile, a, b, aligned in (
            ("bf16", "bf16", LARGE, 0, 1, 1),  # x Wᵀ
            ("bf16", "bf16", LARGE, 0, 0, 1),  # dy W
            ("bf16", "float", MIDDLE, 1, 0, 1),  # dyᵀ x
            ("bf16", "bf16", SMALL, 1, 1, 0),
            ("float", "float", LARGE, 0, 1, 1),
            ("float", "float", MIDDLE, 1, 0, 1),
            ("float", "float", SMALL, 0, 0, 0),
        )
    ),
    "matmul_wgmma.cu": tuple(
        (
            *(("out", out), ("TILE_N", tile.n), ("STAGES", tile.stages)),
            *(("TURNS", int(tile.turns)), ("TRANSPOSE_A", a), ("TRANSPOSE_B", b), ("WHAT", what)),
        )
        for tile in (WIDE, TURNS)
        for out, a, b, what in (
            ("bf16", 0, 1, BIAS | GELU | SAVE | LINES),  # gelu(x Wᵀ + b)
            ("bf16", 0, 0, LINES),  # dy W
            ("float", 1, 0, ADD_TO_C | LINES),  # dyᵀ x
            ("float", 1, 1, BIAS),
        )
    ),
    "matmul_plain.cu": tuple(
        (("real", real), ("out", real), ("TILE", side))
        for real, side in (("float", 128), ("float", 64), ("bf16", 128))
    ),
}

_precision = "highest"
_avoided: set[str] = set()


def set_float32_matmul_precision(precision: str) -> None:
    """ "highest": float32 products in float32. "high" or "medium": in TF32, on tensor cores.

    TF32 keeps 10 bits of fraction of each factor and adds in float32: some 1e-3 of relative error.
    Raises ValueError for another word.
    """
    global _precision
    if precision not in ("highest", "high", "medium"):
        raise ValueError(
            f"set_float32_matmul_precision: {precision!r} is unknown; use 'highest' (float32), or "
            "'high' or 'medium' (TF32 on CUDA devices)"
        )
    _precision = precision


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` was given last."""
    return _precision


def avoid(*kernels: str) -> None:
    """Let `product` choose among the other kernels, unless one of these is asked for by name."""
    _avoided.update(kernels)


def ladder(name: str, a: Array, b: Array, seed: int | None = None) -> Array:
    """a @ b of two contiguous float32 matrices by the kernel `name` of the study ladder."""
    if name not in LADDER:
        raise ValueError(f"matmul: there is no rung {name!r}; there are {', '.join(LADDER)}")
    _check(a, b)
    (m, k), n = a.shape, b.shape[1]
    c = array_module(a).empty((m, n), FLOAT32)
    side = LADDER[name]
    launch(name, (-(-n // side), -(-m // side)), (16, 16), [c, a, b], [m, n, k], seed=seed)
    return c


def product(
    a: Array,
    b: Array,
    *,
    out: Array = None,
    accumulate: bool = False,
    bias: Array = None,
    gelu: bool = False,
    before: Array = None,
    dtype: Any = None,
    kernel: str | None = None,
    tile: Tile | None = None,
    parts: int | None = None,
    seed: int | None = None,
) -> Array:
    """gelu(a @ b + bias), a (..., m, k) and b (..., k, n) with leading axes that broadcast.

    a and b have one dtype, float32 or bfloat16, and any strides (a transposed view costs nothing);
    sums are float32. The result is `out` if given, else a new array of `dtype` (a's own unless
    given); with `accumulate` it is added to `out`. `before` (…, m, n) receives what GELU is given,
    for the backward pass. `kernel` (one of KERNELS), `tile` and `parts` (of k, each summed by
    itself and then added in order) are chosen by shape and device unless given; `seed` orders the
    simulator.

    Raises ValueError for shapes that do not fit, and where `kernel` cannot take them; TypeError for
    dtypes.
    """
    _check(a, b)
    xp = array_module(a, b)
    (m, k), n = a.shape[-2:], b.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if out is None:
        if accumulate:
            raise ValueError("matmul: accumulate adds to `out`, but there is none")
        out = xp.empty((*batch, m, n), dtype or a.dtype)
    _check_outputs(a, (*batch, m, n), out, bias, gelu, before, accumulate)
    if 0 in out.shape:
        return out
    if k == 0:  # a launch needs at least one element of each matrix to point at
        a, b, k = xp.zeros((m, 1), a.dtype), xp.zeros((1, n), a.dtype), 1
    what = (
        (ADD_TO_C if accumulate else 0)
        | (BIAS if bias is not None else 0)
        | (GELU if gelu else 0)
        | (SAVE if before is not None else 0)
    )
    a, b = _readable(a), _readable(b)
    a = xp.broadcast_to(a, (*batch, *a.shape[-2:]))
    b = xp.broadcast_to(b, (*batch, *b.shape[-2:]))
    axes = _batch_axes(a, b, out)
    device, count = limits(xp), math.prod(batch)
    kernel = _choose_kernel(kernel, a, b, axes, device)
    if kernel == "matmul_wgmma":
        planned, planned_parts = plan_wgmma(m, n, k, count, out.itemsize, device.processors, gelu)
        tile = tile or planned
        parts = parts or (planned_parts if tile == planned else 1)
    if tile is None:
        tile = choose_tile(m, n, count, device, kernel == "matmul_mma")
    if parts is None:
        parts = choose_parts(m, n, k, count, tile, device)
    step = 128 // a.itemsize
    k_part = max(step, -(-k // parts // step) * step)
    parts = -(-k // k_part)
    run = Product(kernel, tile, k_part, parts, what, seed)

    # The kernels count two axes of the batch; those before are counted here.
    *earlier, outer, inner = [(1, 0, 0, 0), (1, 0, 0, 0), *axes]
    for index in itertools.product(*(range(axis[0]) for axis in earlier)):
        places = [
            sum(i * axis[x] for i, axis in zip(index, earlier, strict=True)) for x in (1, 2, 3)
        ]
        run(a, b, out, bias, before, places, (outer, inner))
    return out


# --- how factors lie ---------------------------------------------------------------------------


def _readable(x: Array) -> Array:
    """`x`, or a copy of it where no kernel can read it as it lies."""
    steps = strides(x)[-2:]
    if forward_strided(x) and (1 in steps or max(x.shape[-2:]) == 1):
        return x
    return array_module(x).ascontiguousarray(x)


def _batch_axes(a: Array, b: Array, out: Array) -> list[Axis]:
    """The leading axes, neighbours that are evenly spaced in all three arrays made one."""
    axes: list[Axis] = []
    for axis in zip(
        out.shape[:-2], strides(a)[:-2], strides(b)[:-2], strides(out)[:-2], strict=True
    ):
        if axis[0] == 1:
            continue
        if axes and all(axes[-1][i] == axis[0] * axis[i] for i in (1, 2, 3)):
            axes[-1] = (axes[-1][0] * axis[0], *axis[1:])
        else:
            axes.append(axis)
    return axes


# --- choosing ------------------------------------------------------------------------------------


def _choose_kernel(wanted: str | None, a: Array, b: Array, axes: list[Axis], device: Limits) -> str:
    """The kernel that was asked for, if it can; else the most particular one that suits."""
    if wanted is not None and wanted not in KERNELS:
        raise ValueError(f"matmul: there is no kernel {wanted!r}; there are {', '.join(KERNELS)}")
    (m, k), n = a.shape[-2:], b.shape[-1]
    suits = "matmul_wgmma" not in _avoided and suits_wgmma(m, n, k, a.dtype, device)
    if wanted == "matmul_wgmma" or (wanted is None and suits):
        reason = _wgmma_refusal(a, b, axes, device)
        if reason is None:
            return "matmul_wgmma"
        if wanted:
            raise ValueError(f"matmul_wgmma: {reason}; matmul_mma takes it")
    if wanted is not None:
        return wanted
    tensor_cores = a.dtype == bfloat16 or _precision != "highest"
    tensor_cores = tensor_cores and "matmul_mma" not in _avoided
    return "matmul_mma" if tensor_cores and device.tensor_cores else "matmul_plain"


def _wgmma_refusal(a: Array, b: Array, axes: list[Axis], device: Limits) -> str | None:
    """Why `matmul_wgmma` does not multiply a by b, or None: it does."""
    if a.dtype != bfloat16:
        return f"it multiplies bfloat16, not {a.dtype}"
    if not device.hopper:
        return "it needs a GPU of compute capability 9.0 (H100, H200)"
    for name, x, which in (("a", a, 1), ("b", b.swapaxes(-1, -2), 2)):
        reason = refusal(x, [axis[which] for axis in axes])
        if reason:
            return f"{name}: {reason}"
    return None


# --- checking ------------------------------------------------------------------------------------


def _check(a: Array, b: Array) -> None:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: {a.shape} @ {b.shape} is no product of matrices")
    if a.dtype != b.dtype or a.dtype not in DTYPES:
        raise TypeError(
            f"matmul: the CUDA kernels multiply float32 by float32 or bfloat16 by bfloat16, not "
            f"{a.dtype} by {b.dtype}"
        )


def _check_outputs(
    a: Array,
    shape: tuple[int, ...],
    out: Array,
    bias: Array,
    gelu: bool,
    before: Array,
    accumulate: bool,
) -> None:
    if out.shape != shape or out.dtype not in DTYPES or strides(out)[-1] not in (0, 1):
        raise ValueError(
            f"matmul: out must be {shape}, float32 or bfloat16, with contiguous rows; it is "
            f"{out.shape}, {out.dtype}, strides {strides(out)}"
        )
    if bias is not None and (bias.shape != shape[-1:] or bias.dtype != a.dtype):
        raise ValueError(
            f"matmul: the bias must be {shape[-1:]}, {a.dtype}; it is {bias.shape}, {bias.dtype}"
        )
    if before is not None and (
        before.shape != shape or before.dtype != out.dtype or strides(before) != strides(out)
    ):
        raise ValueError(
            f"matmul: `before` must be like out, {shape}, {out.dtype}; it is {before.shape}, "
            f"{before.dtype}"
        )
    if accumulate and (gelu or before is not None):
        raise ValueError("matmul: accumulate adds plain products; it does not go with gelu")
