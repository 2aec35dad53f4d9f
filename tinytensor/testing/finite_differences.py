"""The slope of a function of one variable, by central differences, with an honest error.

The function is t -> f(x + t·v) for some direction v, and may return several numbers at once (one
per output, weighted by a cotangent). Two step sizes give Richardson's extrapolation and an
estimate of what is left; smaller and larger steps are tried where that is too much. One-sided
differences tell a kink or a jump from a smooth point. `gradcheck.py` uses this and nothing else
does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)
# A central difference with step h is wrong by about h² (truncation) + EPSILON/h (rounding): least
# here.
STEP = EPSILON ** (1 / 3)


class Slope(NamedTuple):
    """An estimate, by how much it may be wrong, and the step that it was made with."""

    value: float
    error: float
    step: float


class Break(NamedTuple):
    """A kink or a jump, and the slopes on its two sides."""

    kind: str
    left: float
    right: float


class Line:
    """Values of a function along a line, and what they say about its slope at 0.

    `evaluate(t)` returns the function's value, a flat float64 array (already weighted by the
    cotangent, so that the number wanted is the slope of its sum).
    """

    def __init__(self, evaluate: Callable[[float], np.ndarray[Any, Any]], step: float) -> None:
        self.step = step
        self._evaluate = evaluate
        self._known: dict[float, np.ndarray[Any, Any]] = {}
        self.middle = self.value(0.0)
        self.size = float(np.abs(self.middle).sum())

    def value(self, t: float) -> np.ndarray[Any, Any]:
        if t not in self._known:
            self._known[t] = self._evaluate(t)
        return self._known[t]

    def noise(self, h: float) -> float:
        """What rounding of the function's values alone can do to a difference quotient."""
        return EPSILON * self.size / h

    def central(self, h: float) -> float:
        """(f(h) - f(-h)) / 2h; the differences are taken before the sum, where they are exact."""
        return float((self.value(h) - self.value(-h)).sum()) / (2 * h)

    def gap(self, h: float) -> float:
        """The right slope minus the left slope: h·f'' where f is smooth, constant at a kink."""
        return float((self.value(h) - 2 * self.middle + self.value(-h)).sum()) / h

    def right(self, h: float) -> float:
        return float((self.value(h) - self.middle).sum()) / h

    def left(self, h: float) -> float:
        return float((self.middle - self.value(-h)).sum()) / h

    def slope(self, h: float) -> Slope:
        """The slope from steps h and h/2, extrapolated, and the error that it may have."""
        coarse, fine = self.central(h), self.central(h / 2)
        error = abs(fine - coarse) + 4 * self.noise(h / 2)
        return Slope((4 * fine - coarse) / 3, error, h)

    def slopes(self) -> Iterator[Slope]:
        """Estimates with one step after another, for as long as the caller needs a better one."""
        for power in (
            0,
            -1,
            -2,
            -3,
            -4,
            -5,
            1,
            2,
            3,
        ):  # larger steps last: they may leave the domain
            yield self.slope(self.step * 8.0**power)

    def break_at_zero(self, scale: float) -> Break | None:
        """The kink or jump that the function has at 0, if it has one.

        Where the function is smooth, the gap between the right and the left slope halves with the
        step. At a kink it stays as it is; at a jump, the slope on one side at least doubles.
        `scale` is the size of slope that matters.
        """
        for kind, quantity, rate in (
            ("kink", self.gap, 1),
            ("jump", self.right, 2),
            ("jump", self.left, 2),
        ):
            h = self._grows(quantity, rate, scale)
            if h is not None:
                return Break(kind, self.left(h), self.right(h))
        return None

    def _grows(self, quantity: Callable[[float], float], rate: int, scale: float) -> float | None:
        """The smallest step tried, if `quantity` grows by `rate` with each halving; else None."""
        h = self.step
        first = quantity(h)
        if abs(quantity(h / 2)) <= 64 * self.noise(h / 2) + math.sqrt(EPSILON) * scale:
            return None
        for halvings in (1, 3, 6, 9, 12, 15):
            closer = h / 2**halvings
            if halvings > 1 and 64 * self.noise(closer) > abs(first) * rate**halvings:
                break
            # A kink beside 0 disappears from view as the step shrinks, one at 0 does not.
            if not 0.75 < quantity(closer) / (first or math.nan) / rate**halvings < 1.4:
                return None
            h_smallest = closer
        return h_smallest
