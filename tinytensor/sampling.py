"""Random tensors. PyTorch's names; numbers from `random.py`, so from (seed, counter) alone.

Every function takes `generator=`; without one the default generator is used, which
`tt.manual_seed(seed)` seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import ops, random
from .backend import Array, DType, array_module, default_dtype, is_floating, module_for
from .creation import Device, as_tensor_like, finish, shape_of
from .random import Generator
from .tensor import Tensor, as_tensor, check_tensors

__all__ = [
    "bernoulli",
    "multinomial",
    "normal",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "sample_logits",
]


def _real(name: str, dtype: Any) -> DType:
    real: DType = default_dtype if dtype is None else np.dtype(dtype)
    random.check_floating(name, real)
    return real


def rand(
    *sizes: Any,
    size: Any = None,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """Numbers uniform on [0, 1)."""
    array = random.uniform(
        shape_of("rand", sizes, size), 0.0, 1.0, _real("rand", dtype), generator, module_for(device)
    )
    return finish(array, device, requires_grad)


def randn(
    *sizes: Any,
    size: Any = None,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers of mean 0 and variance 1."""
    shape, real = shape_of("randn", sizes, size), _real("randn", dtype)
    array = random.normal(shape, 0.0, 1.0, real, generator, module_for(device))
    return finish(array, device, requires_grad)


def normal(
    mean: float,
    std: float,
    size: Any,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Device = None,
) -> Tensor:
    """Normal numbers of the given mean and standard deviation."""
    if std < 0:
        raise ValueError(f"normal: std must not be negative, got {std}")
    array = random.normal(
        shape_of("normal", (size,)),
        mean,
        std,
        _real("normal", dtype),
        generator,
        module_for(device),
    )
    return finish(array, device, False)


def randint(
    low: int,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Device = None,
) -> Tensor:
    """Integers uniform on low, …, high - 1: `randint(high, size)` or `randint(low, high, size)`;
    int64.
    """
    if size is None:  # randint(high, size)
        if high is None:
            raise TypeError("randint: expected randint(high, size) or randint(low, high, size)")
        low, high, size = (0, low, high) if isinstance(high, list | tuple) else _missing_size()
    array = random.integers(
        shape_of("randint", (size,)), int(low), int(high), generator, module_for(device)
    )
    return finish(array if dtype is None else array.astype(dtype), device, False)


def _missing_size() -> Any:
    raise TypeError("randint: the size must be a tuple, as in randint(0, 10, (2, 3))")


def randperm(n: int, *, generator: Generator | None = None, device: Device = None) -> Tensor:
    """The integers 0, …, n - 1 in random order: the order that sorts n random 64-bit words."""
    if n < 0:
        raise ValueError(f"randperm: n must not be negative, got {n}")
    xp = module_for(device)
    draw = (generator or random.default_generator).reserve(n)
    return finish(
        xp.argsort(random.words(draw, n, xp), kind="stable").astype(np.int64), device, False
    )


def rand_like(
    input: Tensor, *, generator: Generator | None = None, dtype: Any = None, device: Device = None
) -> Tensor:
    """`rand` of the shape, dtype and device of `input`."""
    shape, dtype, where = as_tensor_like("rand_like", input, dtype, device)
    return rand(shape, generator=generator, dtype=dtype, device=where)


def randn_like(
    input: Tensor, *, generator: Generator | None = None, dtype: Any = None, device: Device = None
) -> Tensor:
    """`randn` of the shape, dtype and device of `input`."""
    shape, dtype, where = as_tensor_like("randn_like", input, dtype, device)
    return randn(shape, generator=generator, dtype=dtype, device=where)


def randint_like(
    input: Tensor,
    low: int,
    high: int | None = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Device = None,
) -> Tensor:
    """`randint` of the shape, dtype and device of `input`."""
    shape, dtype, where = as_tensor_like("randint_like", input, dtype, device)
    low, high = (0, low) if high is None else (low, high)
    return randint(low, high, shape, generator=generator, dtype=dtype, device=where)


def bernoulli(input: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability that `input` (floating, each in [0, 1]) gives for each element, else
    0.
    """
    p = input.array
    if not is_floating(p.dtype):
        raise TypeError(f"bernoulli: expected floating probabilities, got {p.dtype}")
    if p.size and not (p.min() >= 0 and p.max() <= 1):  # also refuses nan
        raise ValueError(f"bernoulli: probabilities must be in [0, 1], got {p.min()} to {p.max()}")
    xp = array_module(p)
    drawn = random.uniform(p.shape, 0.0, 1.0, np.dtype(np.float64), generator, xp) < p
    return as_tensor(drawn.astype(p.dtype))


def multinomial(
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Indices drawn with the probabilities in the rows of `input`: (V,) or (N, V) floats -> (...,
    num_samples) int64.

    Rows need not sum to one. With replacement (or for one sample) the uniform number u picks the
    first index whose cumulative sum exceeds u · total; without, the smallest of exponential arrival
    times
    -ln(u) / p are
    taken (P. Efraimidis and P. Spirakis, 2006). Raises ValueError for weights that are negative,
    not finite or all zero, and for more samples than there are non-zero weights.
    """
    check_tensors("multinomial", input=input)
    p = input.array if isinstance(input, Tensor) else input
    if p.ndim not in (1, 2) or not is_floating(p.dtype):
        raise ValueError(
            f"multinomial: expected floating weights of shape (V,) or (N, V), got {p.dtype} "
            f"{tuple(p.shape)}"
        )
    if not hasattr(num_samples, "__index__") or num_samples < 1:
        raise ValueError(
            f"multinomial: num_samples must be an integer, at least 1, but it is {num_samples!r}"
        )
    xp = array_module(p)
    rows = p.reshape(-1, p.shape[-1]).astype(np.float64)
    _check_weights(rows, num_samples, replacement or num_samples == 1, xp)
    if replacement or num_samples == 1:
        u = random.uniform((len(rows), num_samples), 0.0, 1.0, np.dtype(np.float64), generator, xp)
        sums = xp.cumsum(rows, axis=1)
        # u * total may round up to the total, which no cumulative sum exceeds
        level = xp.minimum(u * sums[:, -1:], xp.nextafter(sums[:, -1:], 0.0))
        indices = (sums[:, None, :] <= level[:, :, None]).sum(axis=-1)
    else:
        u = random.uniform(rows.shape, 0.0, 1.0, np.dtype(np.float64), generator, xp)
        arrival = xp.where(rows > 0, -xp.log1p(-u) / xp.where(rows > 0, rows, 1.0), math.inf)
        indices = xp.argsort(arrival, axis=1)[:, :num_samples]
    return as_tensor(indices.astype(np.int64).reshape((*p.shape[:-1], num_samples)))


def sample_logits(
    input: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    *,
    generator: Generator | Sequence[Generator | None] | None = None,
) -> Tensor:
    """A token for each row of `input`, (V,) or (N, V) floats -> () or (N,) int64, on its device.

    It is drawn from softmax(input / temperature) over the `top_k` largest (0: all of them; of equal
    ones those with the lower index). One random number a row, from one generator or from a sequence
    of them, one a row; the same generator draws the same token on every device. Temperature 0 takes
    the largest, and no random number. A row whose largest number is not finite gives -1. Raises
    ValueError for a temperature or top_k that means nothing.
    """
    if input.ndim not in (1, 2):
        raise ValueError(f"sample_logits: expected (V,) or (N, V), got {tuple(input.shape)}")
    rows = input.reshape(1, -1) if input.ndim == 1 else input
    given = generator if isinstance(generator, Sequence) else [generator] * rows.shape[0]
    generators = [each or random.default_generator for each in given]
    if temperature == 0:
        temperature, top_k, draws = 1.0, 1, [random.Draw(0, 0)] * len(generators)
    else:
        draws = [each.reserve(1) for each in generators]
    chosen: Tensor = ops.sample_logits(rows, temperature=temperature, top_k=top_k, draws=draws)
    return chosen.reshape(()) if input.ndim == 1 else chosen


def _check_weights(rows: Array, num_samples: int, replacement: bool, xp: Any) -> None:
    if not bool(xp.isfinite(rows).all()) or bool((rows < 0).any()):
        raise ValueError("multinomial: the weights contain a negative number, an infinity or a nan")
    positive = (rows > 0).sum(axis=1)
    fewest = int(positive.min()) if len(rows) else 1
    if fewest == 0:
        raise ValueError("multinomial: a row's weights are all zero")
    if not replacement and fewest < num_samples:
        raise ValueError(
            f"multinomial: {num_samples} samples without replacement, but a row has only {fewest} "
            "non-zero weights"
        )
