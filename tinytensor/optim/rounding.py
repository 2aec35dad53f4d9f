"""Weights narrower than the updates they get: a float32 master copy, or rounding at random.

bfloat16 has 8 bits of precision, and an update is often smaller than half the gap between two of
its numbers: rounded to the nearest, the weight would never move. Either float32 weights are kept
beside (`follow`), or the sum is rounded up with the probability of its distance to the lower
neighbour, so that it is right on average (S. Gupta et al., "Deep learning with limited numerical
precision", ICML 2015).
"""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module, bfloat16
from ..cpu.dropout import keep_words
from ..random import Draw, words32

EXPONENT = np.uint32(0x7F800000)  # all ones in infinities and NaNs


def follow(master: Array, value: Array) -> None:
    """Where `value` is not `master` rounded, somebody wrote it since: the master takes it over."""
    bits = np.dtype(f"u{value.dtype.itemsize}")
    written = master.astype(value.dtype).view(bits) != value.view(bits)
    array_module(master).copyto(master, value.astype(master.dtype), where=written)


def round_at_random(value: Array, exact: Array, draw: Draw, first: int) -> None:
    """value = exact, float32 to bfloat16, up or down by the upper 16 bits of the draw's 32-bit
    words from number `first` on: those bits are added below the ones that stay.
    """
    xp = array_module(value)
    if xp is np:
        words = keep_words(draw, first, exact.size)
    else:
        words = words32(draw, first + exact.size, xp)[first:]
    bits = exact.view(np.uint32)
    rounded = ((bits + (words >> np.uint32(16))) >> np.uint32(16)).astype(np.uint16)
    special = (bits & EXPONENT) == EXPONENT  # nothing must be carried into these
    nearest = exact.astype(bfloat16).view(np.uint16)
    value.view(np.uint16)[...] = xp.where(special, nearest, rounded)
