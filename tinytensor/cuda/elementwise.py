"""Elementwise kernels: GELU, dropout, random numbers, and a family from a table of expressions.

The arrays are float32 or bfloat16 and contiguous; the kernels compute in float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import Array, array_module
from ..random import Draw
from .kernels import launch
from .rows import DTYPES, FLOAT32, contiguous, count_of, flat_variant

__all__ = [
    "FAMILY",
    "apply",
    "dropout",
    "gelu",
    "gelu_backward",
    "random_normal",
    "random_uniform",
    "random_words",
]

# Name -> (number of arrays, expression of their elements a, b, c and the scalars s, t).
FAMILY = {
    "add": (2, "__fadd_rn(a, b)"),
    "subtract": (2, "__fsub_rn(a, b)"),
    "multiply": (2, "__fmul_rn(a, b)"),
    "divide": (2, "__fdiv_rn(a, b)"),
    "divide_backward": (3, "(-__fmul_rn(a, __fdiv_rn(b, c)))"),
    "scale": (1, "__fmul_rn(s, a)"),
    "axpy": (2, "__fadd_rn(__fmul_rn(s, a), b)"),
    "multiply_add": (3, "__fadd_rn(__fmul_rn(a, b), c)"),
    "relu": (1, "(a > 0.0f || a != a ? a : 0.0f)"),
    "relu_backward": (2, "(b <= 0.0f ? 0.0f : a)"),
    "exp": (1, "expf(a)"),
    "erf": (1, "erff(a)"),
    "erf_backward": (2, "(a * 1.1283791671f * expf(-b * b))"),
    "tanh": (1, "tanhf(a)"),
    "tanh_backward": (2, "(a * (1.0f - b * b))"),
    "sigmoid": (1, "(1.0f / (1.0f + expf(-a)))"),
    "sigmoid_backward": (2, "(a * b * (1.0f - b))"),
    "silu": (1, "(a / (1.0f + expf(-a)))"),
    "silu_backward": (
        2,
        "(a * (1.0f + b * (1.0f - 1.0f / (1.0f + expf(-b)))) / (1.0f + expf(-b)))",
    ),
}


def _blocks(count: int, of_thread: int) -> tuple[int]:
    return (-(-count // (256 * of_thread)),)


def _check(name: str, *arrays: Array) -> None:
    first = arrays[0]
    for x in arrays:
        if x.dtype not in DTYPES or x.dtype != first.dtype or x.shape != first.shape:
            raise TypeError(
                f"{name}: the CUDA kernel takes float32 or bfloat16 arrays of one shape and dtype, "
                f"not {[(tuple(a.shape), str(a.dtype)) for a in arrays]}"
            )


def apply(
    name: str, *arrays: Array, s: float = 0.0, t: float = 0.0, out: Array = None, seed: int = 0
) -> Array:
    """`FAMILY[name]` of arrays of one shape: in one pass, into `out` (which may be one of them)."""
    if name not in FAMILY:
        raise ValueError(f"there is no elementwise kernel {name!r}; there are {', '.join(FAMILY)}")
    number, expression = FAMILY[name]
    if len(arrays) != number:
        raise ValueError(f"{name}: takes {number} arrays, but got {len(arrays)}")
    _check(name, *arrays)
    arrays = tuple(map(contiguous, arrays))
    y = array_module(arrays[0]).empty(arrays[0].shape, arrays[0].dtype) if out is None else out
    count = count_of(y)
    launch(
        "elementwise",
        _blocks(count, 16 // y.itemsize),
        (256,),
        [y, *arrays, *(None,) * (3 - number)],
        [count, s, t],
        seed,
        defines=flat_variant(y, *arrays, INPUTS=number, EXPRESSION=expression),
    )
    return y


def _form(approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate is {approximate!r}; it is 'none' or 'tanh'")
    return "TANH" if approximate == "tanh" else "ERF"


def gelu(x: Array, bias: Array = None, approximate: str = "none", seed: int = 0) -> Array:
    """gelu(x + bias): x (..., C), bias (C,) or None."""
    _check("gelu", x)
    form, x = _form(approximate), contiguous(x)
    y, count = array_module(x).empty(x.shape, x.dtype), count_of(x)
    columns = x.shape[-1] if x.ndim else 1
    defines = flat_variant(y, x, FORM=form)
    grid = _blocks(count, 16 // x.itemsize)
    launch("gelu_forward", grid, (256,), [y, x, bias], [count, columns], seed, defines=defines)
    return y


def gelu_backward(
    dy: Array, x: Array, bias: Array = None, approximate: str = "none", seed: int = 0
) -> Array:
    """The gradient of `gelu` with respect to x; that of the bias is its sum over rows."""
    form, dy, x = _form(approximate), contiguous(dy.astype(x.dtype, copy=False)), contiguous(x)
    _check("gelu", dy, x)
    dx, count = array_module(x).empty(x.shape, x.dtype), count_of(x)
    columns = x.shape[-1] if x.ndim else 1
    defines = flat_variant(dx, dy, x, FORM=form)
    grid = _blocks(count, 16 // x.itemsize)
    launch(
        "gelu_backward", grid, (256,), [dx, dy, x, bias], [count, columns], seed, defines=defines
    )
    return dx


def dropout(x: Array, p: float, draw: Draw, seed: int = 0) -> Array:
    """`x` times the dropout mask of `draw`, for p in [0, 1): the CPU's mask, bit for bit."""
    _check("dropout", x)
    x = contiguous(x)
    y, count = array_module(x).empty(x.shape, x.dtype), count_of(x)
    threshold = min(round(p * 2**32), 2**32 - 1)
    scalars = [count, threshold, np.float32(1 / (1 - p)), draw.key, draw.counter]
    defines = flat_variant(y, x)
    arrays = [y, x, draw.origin]
    launch("dropout", _blocks(count, 8), (256,), arrays, scalars, seed, defines=defines)
    return y


def random_words(draw: Draw, count: int, xp: Any = np, seed: int = 0) -> Array:
    """The first `count` 64-bit words of `draw`: those of `tinytensor.random.words`."""
    words = xp.empty(count, np.uint64)
    scalars = [count, draw.key, draw.counter]
    launch("random_words", _blocks(count, 4), (256,), [words, draw.origin], scalars, seed)
    return words


def _random(
    kernel: str,
    shape: tuple[int, ...],
    draw: Draw,
    a: float,
    b: float,
    plain: bool,
    xp: Any,
    seed: int,
) -> Array:
    x = xp.empty(shape, FLOAT32)
    count = math.prod(shape)
    threads = count if kernel == "random_uniform" else -(-count // 2)
    scalars = [count, draw.key, draw.counter, a, b, int(plain)]
    launch(kernel, _blocks(threads, 8), (256,), [x, draw.origin], scalars, seed)
    return x


def random_uniform(
    shape: tuple[int, ...],
    draw: Draw,
    low: float = 0.0,
    high: float = 1.0,
    xp: Any = np,
    seed: int = 0,
) -> Array:
    """What `tinytensor.random.uniform` makes of `draw` in float32, bit for bit."""
    plain = (low, high) == (0.0, 1.0)
    return _random("random_uniform", shape, draw, low, high - low, plain, xp, seed)


def random_normal(
    shape: tuple[int, ...],
    draw: Draw,
    mean: float = 0.0,
    std: float = 1.0,
    xp: Any = np,
    seed: int = 0,
) -> Array:
    """What `tinytensor.random.normal` makes of `draw` in float32, to units in the last place."""
    return _random("random_normal", shape, draw, mean, std, (mean, std) == (0.0, 1.0), xp, seed)
