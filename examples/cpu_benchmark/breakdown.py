"""What stands in the way of a target: the parts of a step, beside our step and the best peer's.

The sentence at the end of each table is computed: it says which of the bounds, from the products at
the processor's peak to everything that was measured, lies above the target, or that none does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .profiling import PARTS, PYTHON, by_part, seconds_by_part

COLUMNS = """\
what a step is made of, in ms, each part measured alone in this run:
  at peak    its matrix products at the peak above
  products   each product in its own shape, by NumPy's BLAS: on BLAS's threads or cut into a piece
             for each of ours, whichever is faster
  exp, tanh  of every element that needs one, in the cache
  passes     each operation reads and writes its arrays once, as fast as NumPy adds
  calls      the same step with heads of size 2 on 2 x 2 tokens: Python, wrappers, NumPy's own
  sum        of the last four: what a step takes if nothing gets in the way of anything
  alone      our operations as they are written, with NumPy's many passes: each by itself
  ours       the median step, divided among the parts as its profile is"""

SECONDS = ("products", "functions", "passes", "calls")  # of a part, as `floor` measures it


@dataclass(frozen=True)
class Bounds:
    """Seconds of a step: ours, the best peer's, and what it cannot be shorter than."""

    ours: float
    flops: float
    peak: float
    products: float
    least: float
    alone: float
    peer: str = ""
    best: float = 0.0
    target: float | None = None
    by_hand: float | None = None

    @property
    def at_peak(self) -> float:
        return self.flops / self.peak


def totals(parts: dict[str, dict[str, float]]) -> dict[str, float]:
    return {column: sum(p[column] for p in parts.values()) for column in next(iter(parts.values()))}


def operations_by_part(
    parts: dict[str, dict[str, float]], profile: dict[str, Any]
) -> dict[str, float]:
    """Seconds of our operations, each by itself, and of Python with nothing to compute."""
    return {**by_part(profile["alone"]), PYTHON: parts[PYTHON]["calls"]}


def breakdown_lines(
    title: str, parts: dict[str, dict[str, float]], profile: dict[str, Any], bounds: Bounds
) -> tuple[list[str], list[str]]:
    """The table of one workload, and its sentences."""
    scale = bounds.ours / profile["watched"]
    ours = {name: scale * seconds for name, seconds in seconds_by_part(profile).items()}
    operations = operations_by_part(parts, profile)
    rows = [(name, parts[name], operations[name], ours[name]) for name in PARTS]
    rows.append(("a step", totals(parts), bounds.alone, bounds.ours))
    lines = [
        f"{title:<22} {'at peak':>10} {'products':>10} {'exp, tanh':>10} {'passes':>10} "
        f"{'calls':>10} {'sum':>10} {'alone':>10} {'ours':>10}"
    ]
    for name, part, alone, mine in rows:
        columns = [part[column] for column in SECONDS]
        seconds = [part["flops"] / bounds.peak, *columns, sum(columns), alone, mine]
        lines.append(
            f"{name:<22}" + "".join(f" {1e3 * s:10.2f}" if s else f" {'':10}" for s in seconds)
        )
    if bounds.peer:
        whose = f"of {bounds.peer}'s step"
        lines.append(f"{whose:<22}" + "".join(f" {s / bounds.best:10.2f}" for s in seconds))
    sentences = [verdict(bounds), *without_engine(bounds), *slowest(operations, ours, bounds)]
    return lines, [f"{title}: {sentence}" for sentence in sentences]


def verdict(bounds: Bounds) -> str:
    """Whether the target is met, and if not, which bound lies above it."""
    if not bounds.peer:
        return "no peer was timed that a target could be compared with"
    share = bounds.ours / bounds.best
    if bounds.target is None:
        return f"ours takes {share:.2f} of the time of {bounds.peer}, and no target is set"
    if share <= bounds.target:
        return f"the target of {bounds.target:.2f} is met: ours takes {share:.2f} of {bounds.peer}"
    allowed = bounds.target * bounds.best
    missed = f"the target of {bounds.target:.2f} is missed ({share:.2f}), and"
    gflops, peak = bounds.flops / allowed / 1e9, bounds.peak / 1e9
    if bounds.at_peak > allowed:
        return (
            f"{missed} cannot be met on this machine: at its peak of {peak:.0f} GFLOP/s the "
            f"products alone take {bounds.at_peak / bounds.best:.2f} of the time of {bounds.peer}, "
            f"which computes them at {bounds.flops / bounds.best / bounds.peak:.0%} of that peak "
            f"with all the rest; {bounds.target:.2f} would need them at {gflops:.0f} GFLOP/s"
        )
    if bounds.products > allowed:
        return (
            f"{missed} cannot be met with this BLAS: the products alone, in their own shapes, take "
            f"{bounds.products / bounds.best:.2f} of the time of {bounds.peer}; "
            f"{bounds.target:.2f} would need them at {gflops:.0f} GFLOP/s, and they run at "
            f"{bounds.flops / bounds.products / 1e9:.0f}"
        )
    if bounds.least > allowed:
        return (
            f"{missed} what stands in the way is the sum: the products take "
            f"{bounds.products / bounds.best:.2f} of the time of {bounds.peer}, and with "
            f"functions, passes and calls, each alone, it is {bounds.least / bounds.best:.2f}"
        )
    if bounds.alone > allowed:
        return (
            f"{missed} what stands in the way is how NumPy computes: if each operation were one "
            f"pass, the parts would take {bounds.least / bounds.best:.2f} of the time of "
            f"{bounds.peer}; as they are written, each by itself, they take "
            f"{bounds.alone / bounds.best:.2f}"
        )
    return (
        f"{missed} nothing that was measured stands in the way: our operations, each by itself, "
        f"take {bounds.alone / bounds.best:.2f} of the time of {bounds.peer}"
    )


def without_engine(bounds: Bounds) -> list[str]:
    """What the step that is written by hand takes, if it was timed."""
    if not bounds.by_hand:
        return []
    line = "written by hand in NumPy, without an engine, the same step takes "
    if bounds.peer:
        line += f"{bounds.by_hand / bounds.best:.2f} of the time of {bounds.peer}, and "
    return [line + f"{bounds.by_hand / bounds.ours:.2f} of ours"]


def slowest(operations: dict[str, float], ours: dict[str, float], bounds: Bounds) -> list[str]:
    """Where our step is furthest above its operations alone, if it is above them."""
    if bounds.ours <= bounds.alone:
        return []
    above = {name: ours[name] - operations[name] for name in PARTS}
    name = max(above, key=lambda name: above[name])
    return [
        f"ours takes {bounds.ours / bounds.least:.2f} times the sum and "
        f"{bounds.ours / bounds.alone:.2f} times its operations alone; in the step the most is "
        f"lost in {name}: {1e3 * above[name]:.2f} of {1e3 * (bounds.ours - bounds.alone):.2f} ms"
    ]
