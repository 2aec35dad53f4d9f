"""The next token: one index a row, drawn from the softmax of the row's scores.

The result is an integer and has no gradient. It is written for exactness: float64 throughout, one
random number a row, and equal scores told apart by their index, so that a seed draws the same token
on every device. `tinytensor/sampling.py` has the function for users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Array, array_module, silent
from ..random import Draw, unit
from ..tensor import op
from .elementwise import bottom

__all__ = ["sample_logits"]

FLOAT64 = np.dtype(np.float64)


@op
@silent
def sample_logits(
    logits: Array, temperature: float = 1.0, top_k: int = 0, draws: Sequence[Draw] = ()
) -> Any:
    """logits (N, V), a Draw of one word for each row -> N indices, int64; no gradient.

    Of a row its `top_k` largest logits are kept (0: all; of equal ones those that come first), and
    w = exp((logit - largest) / temperature) for these, 0 for the others. With u uniform on [0, 1)
    from the row's draw, the index is the first whose Σ w up to itself exceeds u · Σ w. It is -1
    where the largest logit of a row is not finite. Raises ValueError for shapes that do not fit.
    """
    scores = bottom(logits)
    check_rows(scores, temperature, top_k, draws)
    xp = array_module(scores)
    scores = scores.astype(FLOAT64)
    largest = xp.amax(scores, axis=1, keepdims=True)
    w = xp.exp((scores - largest) / temperature)
    if 0 < top_k < scores.shape[1]:
        rank = xp.argsort(xp.argsort(-scores, axis=1, kind="stable"), axis=1)
        w = xp.where(rank < top_k, w, 0.0)
    sums = xp.cumsum(w, axis=1)
    total = sums[:, -1:]
    u = xp.asarray(np.array([[unit(draw, 1, FLOAT64)[0]] for draw in draws]))
    level = xp.minimum(u * total, xp.nextafter(total, 0.0))  # u · total may round up to total
    chosen = (sums <= level).sum(axis=1)
    return xp.where(xp.isfinite(largest[:, 0]), chosen, -1), None


def check_rows(logits: Array, temperature: float, top_k: int, draws: Sequence[Draw]) -> None:
    """Raise ValueError unless each row has a token to choose, and one draw to choose it by."""
    if logits.ndim != 2 or 0 in logits.shape or len(draws) != logits.shape[0]:
        raise ValueError(
            f"sample_logits: logits are (rows, V) with one draw a row, but they are "
            f"{tuple(logits.shape)} and there are {len(draws)} draws"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"sample_logits: temperature must be greater than 0 and finite, got {temperature}"
        )
    if top_k < 0:
        raise ValueError(f"sample_logits: top_k must be at least 1, or 0 for all, got {top_k}")
