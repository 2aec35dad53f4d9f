"""Dropout in pieces that stay in cache, each with its own stretch of the draw's random words.

The words are a function of their place alone (Philox), so a piece can be made by any thread, and
made again in the backward pass. Attention takes the words for its blocks from here too.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..backend import Array, silent
from ..ops.network import NO_DRAW, dropout
from ..random import Draw
from .linear import FLOATS
from .pool import empty
from .threads import split

PIECE = 1 << 16  # numbers in a piece
LONG = 1 << 16  # numbers that take another thread longer than it takes to wake it
WORDS = 8  # 32-bit words in one block of the cipher
_MASK = (1 << 64) - 1


class _Cipher(threading.local):
    """NumPy's Philox, one for each thread. (Its Generator lets other threads run meanwhile.)"""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.bits)
        self.state: Any = self.bits.state


_cipher = _Cipher()


def keep_words(draw: Draw, first: int, count: int) -> Array:
    """`random.words32(draw, first + count)[first:]`, without the words before."""
    block, skipped = divmod(first, WORDS)
    inner = _cipher.state["state"]
    # NumPy increments the counter before it makes a block, so it starts one earlier.
    counter = (draw.counter + block) & _MASK
    inner["counter"][:] = ((counter - 1) & _MASK, *((0 if counter else _MASK,) * 3))
    inner["key"][:] = (draw.key, 0)
    _cipher.bits.state = _cipher.state
    raw = _cipher.generator.integers(
        0, _MASK, -(-(skipped + count) // 2), dtype=np.uint64, endpoint=True
    )
    return raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]


def threshold(p: float) -> Any:
    """An element is kept where its word is at least this."""
    return np.uint32(min(round(p * 2**32), 2**32 - 1))


@dropout.register(np.ndarray)
@silent
def fast_dropout(x: Array, p: float = 0.5, draw: Draw = NO_DRAW) -> Any:
    """x · keep / (1 - p); the gradient is the same function of dy."""
    if x.dtype not in FLOATS or p >= 1 or x.size == 0:
        return NotImplemented
    least = threshold(p)
    scale = x.dtype.type(1 / (1 - p))

    def drop(a: Array) -> Array:
        source = a.reshape(-1)
        out = empty(source.shape, source.dtype)

        def work(start: int, stop: int) -> None:
            for i in range(start, stop, PIECE):
                piece = source[i : min(i + PIECE, stop)]
                y = out[i : i + len(piece)]
                np.multiply(piece, scale, out=y)
                np.multiply(y, keep_words(draw, i, len(piece)) >= least, out=y)

        split(len(source), LONG, work)
        return out.reshape(a.shape)

    return drop(x), drop
