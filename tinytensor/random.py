"""Counter-based random numbers: word i of a draw is a function of (seed, counter + i) alone.

The function is Philox4x64-10 (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
2011): a block cipher of ten rounds that turns a 256-bit counter into four 64-bit words. Nothing is
drawn in order, so any part of a draw can be made again, anywhere: a dropout mask is regenerated in
the backward pass from its `Draw` instead of being stored, and the same seed gives the same numbers
on every device.

NumPy carries the same cipher in C; `philox_words` spells it out in array arithmetic and serves
other array modules. Functions that return tensors are in `sampling.py`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .backend import CPU, Array, DType, default_dtype, is_floating, silent
from .backend import device as where

WORDS_PER_BLOCK = 4
_MASK = (1 << 64) - 1
PIECE = 1 << 15  # normal numbers made at a time


class Draw(NamedTuple):
    """A stretch of random words: the key they are made with, and the block that they begin at.

    In a captured step both are known at each replay only: `origin`, two uint64 on the device, then
    holds the key and what is added to the counter (`key` says nothing).
    """

    key: int
    counter: int
    origin: Array = None


class Origin(NamedTuple):
    """What the draws of a captured step are counted from: seed and counter of a generator as the
    capture found it, and the two words on the device that hold those of a replay.
    """

    seed: int
    counter: int
    words: Array


# While a step is captured (cuda/graph.py), what tells a generator's origin.
_origin_of: Callable[[Generator], Origin] | None = None


@contextmanager
def counted_from(origin_of: Callable[[Generator], Origin]) -> Iterator[None]:
    """Inside the `with` block draws are made relative to the origin of their generator."""
    global _origin_of
    _origin_of = origin_of
    try:
        yield
    finally:
        _origin_of = None


class Generator:
    """A seed and a position. Every draw moves the position on; the pair is the whole state.

    One generator serves every device, with the same numbers on each. `device` says, as in PyTorch,
    for which it is meant, and decides nothing.

    >>> a = Generator(1)
    >>> a.reserve(10)
    Draw(key=1, counter=0, origin=None)
    >>> a.get_state()
    {'seed': 1, 'counter': 3}
    """

    def __init__(self, seed: int = 0, device: where | str = CPU) -> None:
        if isinstance(seed, str | where):
            raise TypeError(
                f"Generator: the first argument is the seed; write Generator(device={str(seed)!r})"
            )
        self.device = where(device)
        self._rows: tuple[int, int, int] | None = None  # those that draws are for, of a batch
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start again from `seed`, any integer of at most 64 bits; returns the generator."""
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise TypeError(f"manual_seed: the seed must be an integer, not {seed!r}")
        if not -(1 << 63) <= seed.__index__() <= _MASK:
            raise ValueError(f"manual_seed: the seed {seed} does not fit in 64 bits")
        if _origin_of is not None:
            raise RuntimeError(
                "manual_seed: a captured step draws from where its generator stands when it is "
                "called; seed before the call"
            )
        self._seed = seed.__index__() & _MASK
        self._counter = 0
        return self

    def initial_seed(self) -> int:
        """The seed that the generator was last started from."""
        return self._seed

    def get_state(self) -> dict[str, int]:
        """Seed and position: plain integers that any file format can keep."""
        return {"seed": self._seed, "counter": self._counter}

    def set_state(self, state: dict[str, int]) -> Generator:
        """Continue exactly where `get_state()` was taken."""
        try:
            seed, counter = int(state["seed"]), int(state["counter"])
        except (TypeError, KeyError, ValueError):
            raise ValueError(
                f"set_state: expected {{'seed': int, 'counter': int}} as get_state() returns, got "
                f"{state!r}"
            ) from None
        if not 0 <= seed <= _MASK or not 0 <= counter <= _MASK:
            raise ValueError(f"set_state: seed and counter must be in [0, 2**64), got {state!r}")
        self._seed, self._counter = seed, counter
        return self

    def reserve(self, words: int) -> Draw:
        """The next `words` 64-bit words, rounded up to whole blocks, as a Draw; nothing is
        computed yet.
        """
        if self._rows is not None:
            return self._reserve_for_rows(words, *self._rows)
        draw = Draw(self._seed, self._counter)
        origin = None if _origin_of is None else _origin_of(self)
        self.skip(-(-words // WORDS_PER_BLOCK))
        if origin is None:
            return draw
        if origin.seed != self._seed:
            raise RuntimeError(
                "a captured step gave its generator the state of another seed; every replay "
                "begins where the generator stands when the step is called"
            )
        return Draw(0, (draw.counter - origin.counter) & _MASK, origin.words)

    @contextmanager
    def of_rows(self, start: int, stop: int, rows: int) -> Iterator[None]:
        """Inside the `with` block, draws are for the rows start, …, stop - 1 of a batch of `rows`.

        Whoever computes a part of a batch then has that part of the numbers which the whole batch
        would be given, and the generator stands where the whole would have left it. A row must have
        a whole number of blocks in every draw (8 numbers of a mask, or in float32); RuntimeError
        where it has not.
        """
        self._rows = start, stop, rows
        try:
            yield
        finally:
            self._rows = None

    def _reserve_for_rows(self, words: int, start: int, stop: int, rows: int) -> Draw:
        blocks, rest = divmod(words, WORDS_PER_BLOCK * (stop - start))  # of one row
        if rest:
            raise RuntimeError(
                f"a draw of {words} random words for {stop - start} of {rows} rows cannot be cut "
                f"from that of all rows: each must have a multiple of {WORDS_PER_BLOCK} words"
            )
        draw = Draw(self._seed, (self._counter + start * blocks) & _MASK)
        self.skip(rows * blocks)
        return draw

    def skip(self, blocks: int) -> None:
        """Move on by `blocks` blocks of four 64-bit words, as drawing them would."""
        self._counter = (self._counter + blocks) & _MASK


default_generator = Generator(67280421310721)


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, which every function without a `generator=` argument draws
    from.
    """
    return default_generator.manual_seed(seed)


def get_rng_state() -> dict[str, int]:
    """The default generator's seed and position."""
    return default_generator.get_state()


def set_rng_state(state: dict[str, int]) -> None:
    """Continue the default generator where `get_rng_state()` was taken."""
    default_generator.set_state(state)


# --- words ---------------------------------------------------------------------------------------


class _NumpyPhilox(threading.local):
    """NumPy's Philox, one per thread, set to a draw before each use."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.state: Any = self.bits.state

    def words(self, draw: Draw, count: int) -> np.ndarray[Any, Any]:
        if draw.origin is not None:
            raise RuntimeError(
                "random numbers on the CPU cannot be drawn in a captured step, where each replay "
                "has its own; draw them on the device (device=), or before the call"
            )
        # NumPy increments the counter before it makes a block, so it starts one earlier.
        inner = self.state["state"]
        inner["counter"][:] = (
            (draw.counter - 1) & _MASK,
            *((_MASK,) * 3 if draw.counter == 0 else (0, 0, 0)),
        )
        inner["key"][:] = (draw.key, 0)
        self.bits.state = self.state
        return self.bits.random_raw(count)


_numpy_philox = _NumpyPhilox()


class Kernels(NamedTuple):
    """What makes random numbers on arrays of a module: `words(draw, count, module)`, and in float32
    `uniform(shape, draw, low, high, module)` and `normal(shape, draw, mean, std, module)`.
    """

    words: Callable[..., Array]
    uniform: Callable[..., Array]
    normal: Callable[..., Array]


_kernels: dict[Any, Kernels] = {}


def register_kernels(module: Any, kernels: Kernels) -> None:
    """Let the random numbers of this array module be made by `kernels`."""
    _kernels[module] = kernels


def words(draw: Draw, count: int, xp: Any = np) -> Array:
    """The first `count` 64-bit words of `draw`: uint64, on the device of module `xp`."""
    if xp is np:
        return _numpy_philox.words(draw, count)
    return _kernels[xp].words(draw, count, xp) if xp in _kernels else philox_words(draw, count, xp)


def philox_words(draw: Draw, count: int, xp: Any = np) -> Array:
    """`words` in plain array arithmetic: Philox4x64-10, equation by equation."""
    blocks = -(-count // WORDS_PER_BLOCK)
    u64 = xp.uint64
    x0 = xp.arange(blocks, dtype=u64) + u64(draw.counter)
    if draw.origin is not None:
        x0 = x0 + draw.origin[1:]
    x1 = x2 = x3 = xp.zeros(blocks, u64)
    for number in range(10):
        high0, low0 = _multiply_wide(x0, 0xD2E7470EE14C6C93, xp)
        high1, low1 = _multiply_wide(x2, 0xCA5A826395121157, xp)
        golden = number * 0x9E3779B97F4A7C15 & _MASK  # the golden ratio
        key1 = u64(number * 0xBB67AE8584CAA73B & _MASK)  # the square root of three, minus one
        if draw.origin is None:
            key0 = u64((draw.key + golden) & _MASK)
        else:
            key0 = draw.origin[:1] + u64(golden)
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, low1, high0 ^ x3 ^ key1, low0
    return xp.stack([x0, x1, x2, x3], axis=1).reshape(-1)[:count]


def _multiply_wide(a: Array, b: int, xp: Any) -> tuple[Array, Array]:
    """High and low 64 bits of the 128-bit product, from four products of 32-bit halves."""
    half, low32 = xp.uint64(32), xp.uint64(0xFFFFFFFF)
    a_low, a_high = a & low32, a >> half
    b_low, b_high = xp.uint64(b & 0xFFFFFFFF), xp.uint64(b >> 32)
    middle = a_high * b_low + ((a_low * b_low) >> half)
    cross = a_low * b_high + (middle & low32)
    return a_high * b_high + (middle >> half) + (cross >> half), a * xp.uint64(b)


def words32(draw: Draw, count: int, xp: Any = np) -> Array:
    """The first `count` 32-bit words of `draw`: the halves of its 64-bit words, low half first."""
    raw = words(draw, -(-count // 2), xp)
    return raw.astype("<u8", copy=False).view("<u4")[:count]


# --- distributions -------------------------------------------------------------------------------


def words_needed(count: int, dtype: DType) -> int:
    """64-bit words behind `count` uniform numbers: one each for float64, one for two below it."""
    return count if dtype == np.float64 else -(-count // 2)


def unit(
    draw: Draw, count: int, dtype: DType = default_dtype, xp: Any = np, first: int = 0
) -> Array:
    """`count` numbers uniform on [0, 1): 53 random bits each in float64, else 24 in float32.

    `first` is how many of the draw's numbers come before them.
    """
    if first:
        each = WORDS_PER_BLOCK * (1 if dtype == np.float64 else 2)  # numbers in a block
        draw = draw._replace(counter=(draw.counter + first // each) & _MASK)
        skipped = first % each
        return unit(draw, skipped + count, dtype, xp)[skipped:]
    if dtype == np.float64:
        return (words(draw, count, xp) >> xp.uint64(11)) * 2.0**-53
    return (words32(draw, count, xp) >> xp.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def keep_mask(draw: Draw, shape: Sequence[int], p: float, xp: Any = np) -> Array:
    """Booleans, each False with probability `p`: element i compares 32-bit word i with p · 2³²."""
    count = math.prod(shape)
    threshold = min(round(p * 2**32), 2**32 - 1)
    return (words32(draw, count, xp) >= xp.uint32(threshold)).reshape(tuple(shape))


@silent
def uniform(
    shape: Sequence[int],
    low: float = 0.0,
    high: float = 1.0,
    dtype: DType = default_dtype,
    generator: Generator | None = None,
    xp: Any = np,
) -> Array:
    """An array of numbers uniform on [low, high)."""
    count = math.prod(shape)
    draw = (generator or default_generator).reserve(words_needed(count, dtype))
    if xp in _kernels and dtype != np.float64:
        return _kernels[xp].uniform(tuple(shape), draw, low, high, xp).astype(dtype, copy=False)
    x = unit(draw, count, dtype, xp)
    if (low, high) != (0.0, 1.0):
        x = x * (high - low) + low
    return x.reshape(tuple(shape)).astype(dtype, copy=False)


@silent
def normal(
    shape: Sequence[int],
    mean: float = 0.0,
    std: float = 1.0,
    dtype: DType = default_dtype,
    generator: Generator | None = None,
    xp: Any = np,
) -> Array:
    """An array of normal numbers, two from each pair of uniform ones (G. Box and M. Muller, 1958).

    r = sqrt(-2 ln(1 - u)), then r cos(2πv) and r sin(2πv).
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    draw = (generator or default_generator).reserve(words_needed(2 * pairs, dtype))
    if xp in _kernels and dtype != np.float64:
        return _kernels[xp].normal(tuple(shape), draw, mean, std, xp).astype(dtype, copy=False)
    if xp is np:
        x = _normal_in_pieces(draw, pairs, dtype)[:count]
    else:
        u = unit(draw, 2 * pairs, dtype, xp)
        x = xp.concatenate(_box_muller(u[:pairs], u[pairs:], xp))[:count]
    if (mean, std) != (0.0, 1.0):
        x *= std
        x += mean
    return x.reshape(tuple(shape)).astype(dtype, copy=False)


def _box_muller(u: Array, v: Array, xp: Any) -> tuple[Array, Array]:
    radius = xp.sqrt(-2.0 * xp.log1p(-u))
    angle = 2.0 * math.pi * v
    return radius * xp.cos(angle), radius * xp.sin(angle)


def _normal_in_pieces(draw: Draw, pairs: int, dtype: DType) -> np.ndarray[Any, Any]:
    """Box and Muller's numbers for `pairs` pairs, made in pieces that stay in a cache."""
    x = np.empty(2 * pairs, np.float64 if dtype == np.float64 else np.float32)
    for start in range(0, pairs, PIECE):
        stop = min(start + PIECE, pairs)
        u = unit(draw, stop - start, dtype, first=start)
        v = unit(draw, stop - start, dtype, first=pairs + start)
        x[start:stop], x[pairs + start : pairs + stop] = _box_muller(u, v, np)
    return x


def integers(
    shape: Sequence[int], low: int, high: int, generator: Generator | None = None, xp: Any = np
) -> Array:
    """An int64 array uniform on low, …, high - 1: floor(u · (high - low)) from 53 random bits.

    No value is more likely than another by more than (high - low) / 2⁵³.
    """
    if high <= low:
        raise ValueError(f"randint: the range from {low} to {high} (excluded) is empty")
    if high - low > 2**53:
        raise ValueError(f"randint: the range from {low} to {high} holds more than 2**53 integers")
    count = math.prod(shape)
    draw = (generator or default_generator).reserve(count)
    scaled = unit(draw, count, np.dtype(np.float64), xp) * float(high - low)
    return (scaled.astype(np.int64) + low).reshape(tuple(shape))


def check_floating(name: str, dtype: DType) -> None:
    """Raise unless `dtype` can hold random real numbers."""
    if not is_floating(dtype):
        raise TypeError(f"{name}: dtype must be floating, not {dtype}")
