"""Which token comes next: from scores to a distribution, and from the distribution to a token.

The model's scores are of the vocabulary's length, and all that follows is float64 on the CPU. On a
GPU one kernel does the same for the plain options, and only the tokens come back: one seed draws
the same tokens everywhere. This file knows numbers only, no models and no text.

V is the size of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinytensor as tt

Numbers = np.ndarray[Any, Any]

# So many of the likeliest tokens are sorted first; they mostly hold the share that top_p asks for.
SORTED_FIRST = 1024


@dataclass(frozen=True)
class Sampling:
    """How to choose among the tokens; the defaults are the model's own distribution.

    In this order: `repetition_penalty` r divides the positive scores of tokens that the text
    already has by r and multiplies the negative ones by it (N. Keskar et al., 2019: CTRL, section
    4.1); `temperature` divides all scores, and 0 takes the likeliest token; `top_k` keeps that many
    of the likeliest (0 keeps all; of equal ones those with lower numbers); `top_p` keeps the fewest
    likeliest that hold this share of what is left (A. Holtzman et al., 2020); `min_p` drops what is
    less likely than this share of the likeliest. The likeliest is always kept. Raises ValueError
    for a value that means nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"generate: temperature must be at least 0 and finite, got {self.temperature}"
            )
        if isinstance(self.top_k, float) or self.top_k < 0:
            raise ValueError(f"generate: top_k must be at least 1, or 0 for all, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"generate: top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"generate: min_p must lie in [0, 1], got {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                "generate: repetition_penalty must be greater than 0 and finite (1 changes "
                f"nothing), got {self.repetition_penalty}"
            )

    def probabilities(self, logits: Numbers, seen: Sequence[int] = ()) -> Numbers:
        """The distribution (V,) in float64 that the options leave of `logits` (V,).

        `seen` are the tokens of the text so far. Raises ValueError where no score is finite.
        """
        scores = self.penalised(logits.astype(np.float64), seen)
        highest = scores.max()
        if not np.isfinite(highest):  # also where a score is nan
            raise ValueError(f"generate: the model's largest score is {highest}; nothing to choose")
        if self.temperature == 0:
            p = np.zeros_like(scores)
            p[scores.argmax()] = 1
            return p
        # The largest score becomes 0 first: dividing by a tiny temperature must not overflow.
        with np.errstate(over="ignore", under="ignore"):
            p = np.exp((scores - highest) / self.temperature)
            p /= p.sum()
        V = len(p)
        # By the scores, which may differ where the probabilities are equal to the last digit.
        if 0 < self.top_k < V:
            p = only(p, likeliest(scores, self.top_k))
        if self.top_p < 1:
            p = only(p, nucleus(p, scores, self.top_p * p.sum()))
        if self.min_p > 0:
            p[p < self.min_p * p.max()] = 0
        return p / p.sum()

    def penalised(self, scores: Numbers, seen: Sequence[int]) -> Numbers:
        if self.repetition_penalty != 1 and len(seen):
            ids = np.unique(np.asarray(seen))
            old = scores[ids]
            r = self.repetition_penalty
            scores[ids] = np.where(old > 0, old / r, old * r)
        return scores

    def draw(
        self, logits: Numbers, seen: Sequence[int] = (), generator: tt.Generator | None = None
    ) -> int:
        """One token: the first whose cumulated probability exceeds a uniform number.

        Temperature 0 takes no random number; any other takes one.
        """
        p = self.probabilities(logits, seen)
        if self.temperature == 0:
            return int(p.argmax())
        cumulated = p.cumsum()
        u = tt.rand(1, generator=generator, dtype=tt.float64).item()
        # u · total may round up to the total, which no cumulated probability exceeds.
        level = min(u * cumulated[-1], np.nextafter(cumulated[-1], 0))
        return int(np.searchsorted(cumulated, level, side="right"))

    def draw_all(
        self,
        logits: tt.Tensor,
        texts: Sequence[Sequence[int]],
        generators: Sequence[tt.Generator | None],
    ) -> list[int]:
        """A token for each row of `logits` (B, V), given its text and drawn by its generator."""
        plain = self.top_p == 1 and self.min_p == 0 and self.repetition_penalty == 1
        if logits.device.type == "cpu" or not plain:
            rows = zip(logits.cpu().numpy(), texts, generators, strict=True)
            return [self.draw(row, seen, generator) for row, seen, generator in rows]
        tokens: list[int] = tt.sample_logits(
            logits, self.temperature, self.top_k, generator=generators
        ).tolist()
        if -1 in tokens:
            raise ValueError("generate: the model's largest score is not finite; nothing to choose")
        return tokens


def likeliest(scores: Numbers, count: int) -> Numbers:
    """The tokens with the `count` largest scores; of equal ones those with lower numbers."""
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > least)
    return np.concatenate([above, np.flatnonzero(scores == least)[: count - len(above)]])


def only(p: Numbers, kept: Numbers) -> Numbers:
    """`p` where `kept` says, 0 elsewhere."""
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out


def nucleus(p: Numbers, scores: Numbers, share: float) -> Numbers:
    """The fewest likeliest tokens whose probabilities reach `share`, and at least one."""
    for count in (min(SORTED_FIRST, len(p)), len(p)):
        ids = np.argpartition(scores, len(p) - count)[len(p) - count :]
        ids = ids[np.argsort(-scores[ids], kind="stable")]
        before = p[ids].cumsum() - p[ids]  # the probability held by those likelier
        if count == len(p) or before[-1] >= share:
            break
    kept = before < share
    kept[0] = True
    return ids[kept & (p[ids] > 0)]
