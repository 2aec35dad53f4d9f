"""AdamW, Adam, SGD, the norm of the gradients and their clipping on CUDA arrays, with nothing read
back.

See `kernels/adamw.cu`, `kernels/sgd.cu` and `kernels/norm.cu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..backend import Array, DType, array_module
from ..random import Draw
from .kernels import launch
from .rows import DTYPES, FLOAT32, count_of, element, flat_variant
from .views import is_aligned

__all__ = [
    "FACTORS",
    "adamw",
    "adamw_factors",
    "factors_for",
    "global_norm",
    "norm_of",
    "put_factors",
    "recorded_by",
    "refuse_recording",
    "scale_in_place",
    "sgd",
    "sgd_factors",
    "updates",
]

NORM_BLOCKS = 1024  # of the norm of one array: fixed, so that the sum is the same on every card
FACTORS = 8  # numbers of an update

Numbers = np.ndarray[Any, Any]
# The numbers of an update, from its number (`step`) and options.
Formula = Callable[..., Numbers]

# While a step is captured (graph.py), what gives its updates their numbers.
_recorder: Callable[[Array, Formula, dict[str, Any]], Array] | None = None


def updates(value: Array, gradient: Array, *others: Array) -> bool:
    """Whether the kernels update these: on a device, float32 or bfloat16 values, float32 moments,
    contiguous.
    """
    return (
        type(value) is not np.ndarray
        and value.dtype in DTYPES
        and gradient.dtype in DTYPES
        and all(x.dtype == FLOAT32 for x in others)
        and all(x.flags.c_contiguous for x in (value, gradient, *others))
    )


@contextmanager
def recorded_by(recorder: Callable[[Array, Formula, dict[str, Any]], Array]) -> Iterator[None]:
    """Inside the `with` block updates take their numbers from where `recorder` says."""
    global _recorder
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None


def factors_for(value: Array, formula: Formula, options: dict[str, Any]) -> Array:
    """The numbers of an update of `value` on its device: `formula(**options)`."""
    if _recorder is not None:
        return _recorder(value, formula, options)
    factors = array_module(value).empty(FACTORS, FLOAT32)
    put_factors(factors, formula(**options))
    return factors


def refuse_recording(what: DType | str) -> None:
    """Raise where what is being captured would keep the numbers of one update for all."""
    if _recorder is not None:
        raise RuntimeError(
            "graph: only SGD's, Adam's and AdamW's updates of float32 and bfloat16 parameters can "
            f"be captured, not those of {what}"
        )


def put_factors(factors: Array, numbers: Numbers) -> None:
    """Write the numbers to the device, by value: no copy that the host would wait for."""
    launch("set_factors", (1,), (32,), [factors], list(map(float, numbers)))


def adamw_factors(
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    coupled: bool = False,
) -> Numbers:
    """The eight numbers of `kernels/adamw.cu` for the `step`-th update (from 1), on the host;
    `coupled`: Adam's, whose decay is part of the gradient.

    Rounded to float32 as NumPy rounds a Python number that meets a float32 array.
    """
    beta1, beta2 = betas
    root = math.sqrt(1 - beta2**step)
    rate = lr * root / (1 - beta1**step)
    decay = 1 - lr * weight_decay if weight_decay and not coupled else 1.0
    numbers = [beta1, 1 - beta1, beta2, 1 - beta2, eps * root, rate, decay]
    return np.array([*numbers, weight_decay if coupled else 0.0], np.float32)


def sgd_factors(
    step: int,
    lr: float,
    weight_decay: float,
    momentum: float | None = None,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Numbers:
    """The numbers of `kernels/sgd.cu` for the `step`-th update (from 1), on the host; a momentum of
    None has no running sum.
    """
    if momentum == 0.0:
        raise ValueError("sgd: an update captured with momentum keeps some; make a new graph")
    keep, rest = (0.0, 1.0) if step == 1 else (momentum or 0.0, 1 - dampening)
    ahead = momentum or 0.0 if nesterov else 0.0
    numbers = [float(lr), weight_decay, keep, rest, ahead, 0.0, 0.0, 0.0]
    return np.array(numbers, np.float32)


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
        [value, master, exp_avg, exp_avg_sq, gradient, factors, scale, draw.origin],
        [count, draw.key, draw.counter],
        seed,
        defines=flat_variant(value, *present, gradient_type=element(gradient.dtype), KEEP=keep),
    )


def sgd(
    value: Array,
    gradient: Array,
    factors: Array,
    *,
    momentum: Array = None,
    master: Array = None,
    seed: int = 0,
) -> None:
    """One update in place. `factors`: `sgd_factors` on the device; `momentum`: the running sum of
    gradients, float32. bfloat16 values come with float32 `master` weights.
    """
    if (value.dtype == FLOAT32) != (master is None):
        raise ValueError("sgd: bfloat16 values need float32 master weights; float32 ones do not")
    count = count_of(value)
    present = [a for a in (gradient, momentum, master) if a is not None]
    launch(
        "sgd",
        (-(-count // 2048),),
        (256,),
        [value, master, momentum, gradient, factors],
        [count],
        seed,
        defines=flat_variant(
            value,
            *present,
            gradient_type=element(gradient.dtype),
            KEEP="PLAIN" if master is None else "MASTER",
            MOMENTUM=int(momentum is not None),
        ),
    )


def norm_of(arrays: Sequence[Array]) -> bool:
    """Whether `global_norm` takes these: arrays of one device, float32 or bfloat16, contiguous."""
    return all(
        type(a) is not np.ndarray
        and type(a) is type(arrays[0])
        and a.dtype in DTYPES
        and a.flags.c_contiguous
        and a.device.id == arrays[0].device.id
        for a in arrays
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
