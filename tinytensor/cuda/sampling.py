"""Random numbers on CUDA arrays, the largest of a row, and the tokens drawn among them: what
`kernels/random.cu` and `kernels/top_k.cu` are registered for.

Random numbers are the CPU's: the same draw, the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Array, array_module, module_of_type, when_cupy_arrives
from ..ops.choosing import check_rows, sample_logits
from ..ops.sorting import argtopk
from ..random import Draw, Kernels, register_kernels
from .device import SimArray
from .elementwise import random_normal, random_uniform, random_words
from .kernels import launch
from .operations import kernel_for
from .rows import DTYPES, contiguous, count_of, element
from .views import strides, window

__all__ = ["MOST", "cuda_argtopk", "cuda_sample_logits"]

THREADS = 1024  # a row
MOST = 4096  # numbers that a block sorts in shared memory


def _register_random(kind: type) -> None:
    register_kernels(module_of_type(kind), Kernels(random_words, random_uniform, random_normal))


_register_random(SimArray)
when_cupy_arrives(_register_random)


@kernel_for(argtopk)
def cuda_argtopk(
    x: Array,
    k: int = 1,
    axis: int = -1,
    largest: bool = True,
    sorted: bool = True,
    threads: int | None = None,
    seed: int | None = None,
) -> Any:
    """One launch, a block a row, for up to `MOST` of each; of equal numbers those that come first.

    They are in order whether that is asked for or not.
    """
    if x.dtype not in DTYPES or not -x.ndim <= axis < x.ndim or not 0 < k <= MOST:
        return NotImplemented
    V = x.shape[axis]
    if k > V or 0 in x.shape:
        return NotImplemented
    rows = contiguous(x.swapaxes(axis, -1))
    ids = array_module(x).empty((*rows.shape[:-1], k), np.int64)
    size = 1 << (k - 1).bit_length()
    threads = threads or (THREADS if V > THREADS else 128)
    launch(
        "top_k",
        (count_of(rows) // V,),
        (threads,),
        [ids, rows],
        [V, V, k, size],
        seed,
        defines=(
            ("real", element(x.dtype)),
            ("THREADS", threads),
            ("SMALLEST", int(not largest)),
        ),
        shared_bytes=8 * size,
    )
    return ids.swapaxes(axis, -1), None


@kernel_for(sample_logits)
def cuda_sample_logits(
    logits: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    draws: Sequence[Draw] = (),
    threads: int = THREADS,
    seed: int | None = None,
) -> Any:
    """One launch, a block a row; rows may be apart, as those of a padded vocabulary are.

    Keys and counters travel to the device, nothing comes back. `threads` of a block is a multiple
    of 32.
    """
    if logits.dtype not in DTYPES or logits.ndim != 2 or strides(logits)[1] not in (0, 1):
        return NotImplemented
    check_rows(logits, temperature, top_k, draws)
    if any(draw.origin is not None for draw in draws):
        raise RuntimeError(
            "sample_logits: tokens are not drawn in a captured step, whose random numbers are known"
            " at each replay only; draw them outside"
        )
    xp, (rows, V) = array_module(logits), logits.shape
    words = np.array([(draw.key, draw.counter) for draw in draws], np.uint64)
    tokens = xp.empty(rows, np.int64)
    launch(
        "sample_top_k",
        (rows,),
        (threads,),
        [tokens, window(logits), xp.asarray(words)],
        [V, strides(logits)[0], top_k or V, temperature],
        seed,
        defines=(("real", element(logits.dtype)), ("THREADS", threads)),
    )
    return tokens, None
