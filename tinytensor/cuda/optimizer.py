"""AdamW, the norm of the gradients and their clipping on CUDA arrays, with nothing read back.

See `kernels/adamw.cu` and `kernels/norm.cu`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..backend import Array, array_module
from ..random import Draw
from .kernels import launch
from .rows import DTYPES, FLOAT32, count_of, element, flat_variant
from .views import is_aligned

__all__ = ["adamw", "adamw_factors", "global_norm", "scale_in_place"]

NORM_BLOCKS = 1024  # of the norm of one array: fixed, so that the sum is the same on every card


def adamw_factors(
    step: int, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> np.ndarray:
    """The seven numbers of `kernels/adamw.cu` for the `step`-th update (from 1), on the host.

    Rounded to float32 as NumPy rounds a Python number that meets a float32 array.
    """
    beta1, beta2 = betas
    root = math.sqrt(1 - beta2**step)
    rate = lr * root / (1 - beta1**step)
    decay = 1 - lr * weight_decay if weight_decay else 1.0
    return np.array([beta1, 1 - beta1, beta2, 1 - beta2, eps * root, rate, decay], np.float32)


def adamw(
    value: Array,
    gradient: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    factors: Array,
    *,
    master: Array = None,
    scale: Array = None,
    draw: Draw | None = None,
    seed: int = 0,
) -> None:
    """One update in place. `factors`: `adamw_factors` on the device; `scale`: of the gradients.

    float32 values need no more. bfloat16 ones come with float32 `master` weights, or with a `draw`
    that rounds them at random (one 32-bit word each).
    """
    if value.dtype not in DTYPES or gradient.dtype not in DTYPES:
        raise TypeError(
            f"adamw: the CUDA kernel updates float32 and bfloat16, not {value.dtype} by "
            f"{gradient.dtype}"
        )
    if (value.dtype == FLOAT32) != (master is None and draw is None):
        raise ValueError(
            "adamw: bfloat16 values need float32 master weights or a draw to round by; float32 "
            "ones neither"
        )
    keep = "MASTER" if master is not None else "STOCHASTIC" if draw is not None else "PLAIN"
    count = count_of(value)
    draw = draw or Draw(0, 0)
    present = [a for a in (gradient, exp_avg, exp_avg_sq, master) if a is not None]
    launch(
        "adamw",
        (-(-count // 2048),),
        (256,),
        [value, master, exp_avg, exp_avg_sq, gradient, factors, scale],
        [count, draw.key, draw.counter],
        seed,
        defines=flat_variant(value, *present, gradient_type=element(gradient.dtype), KEEP=keep),
    )


def global_norm(
    arrays: Sequence[Array], largest: float = math.inf, blocks: int = NORM_BLOCKS, seed: int = 0
) -> tuple[Array, Array]:
    """(norm, scale) of all numbers of `arrays`, each (1,) float32 on the device.

    `scale` is min(1, largest / (norm + 1e-6)): what gradients of that norm are multiplied with.
    """
    xp = array_module(arrays[0])
    taken = [
        max(1, min(blocks, -(-count_of(a) * a.itemsize // (256 * 16)))) if count_of(a) else 0
        for a in arrays
    ]
    shares = xp.empty(sum(taken), np.float64)
    start = 0
    for array, number in zip(arrays, taken, strict=True):
        launch(
            "sum_of_squares",
            (number,),
            (256,),
            [shares[start : start + number], array],
            [count_of(array)],
            seed,
            defines=flat_variant(array),
        )
        start += number
    norm, scale = xp.empty(1, FLOAT32), xp.empty(1, FLOAT32)
    launch("norm_and_scale", (1,), (256,), [norm, scale, shares], [start, largest], seed)
    return norm, scale


def scale_in_place(array: Array, scale: Array, seed: int = 0) -> None:
    """array *= scale, a (1,) float32 array of the device; nothing is touched where it is 1."""
    count = count_of(array)
    grid = (-(-count * array.itemsize // 4096),)
    defines = (("real", element(array.dtype)), ("ALIGNED", int(is_aligned(array))))
    launch("scale_in_place", grid, (256,), [array, scale], [count], seed, defines=defines)
