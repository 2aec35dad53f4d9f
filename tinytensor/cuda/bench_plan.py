"""`bench --dry-run`: what would be timed, and about how long each group takes, without a GPU.

The groups themselves are asked; a case says what one run of it asks of the GPU (`Work`), and is not
run. The GPU's own work is seconds; nearly all the time is compiling, most of it PyTorch's, which a
rehearsal does beforehand. The assumptions stand below: but for NVRTC's time they are guesses, to
see that the groups fit into their budgets, and no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .bench_lab import Bench, Work
from .groups import Journal, table

__all__ = ["Planned", "plan", "report", "seconds"]

BYTES = 4.0e12  # a second
FLOPS = 4.0e14  # a second, of bfloat16 on tensor cores
FLUSH = 0.6e-3  # seconds, before each run
VARIANT = 0.4  # seconds that NVRTC takes for a variant of ours: mean of 236, on a core of a Zen 4
GRAPH = 7.0  # seconds that torch.compile takes for a function, the backward pass included
SETUP = 0.3  # seconds of a case: arrays, and giving memory back
START = 8.0  # seconds of a group: imports, the first use of the GPU


class Planned(NamedTuple):
    """A case that would be timed."""

    group: str
    name: str
    work: Work


class _Planner(Bench):
    """A `Bench` on an H200 that times nothing."""

    def __init__(self, group: str) -> None:
        super().__init__(Journal(Path(), group), "cuda-sim", False)
        self.group = group
        self.cases: list[Planned] = []

    @property
    def hopper(self) -> bool:
        return True

    def case(self, name: str, run: Callable[[], dict[str, Any]], work: Work) -> None:
        self.cases.append(Planned(self.group, name, work))


def plan(groups: dict[str, Callable[[Bench], None]], only: Sequence[str]) -> list[Planned]:
    """The cases of the groups, in their order."""
    found: list[Planned] = []
    for group in only:
        planner = _Planner(group)
        groups[group](planner)
        found += planner.cases
    return found


def seconds(work: Work, compiled: set[str]) -> tuple[float, float]:
    """(of the GPU's work, of the whole case), by the assumptions above; what it compiles is added
    to `compiled`.
    """
    once = max(work.bytes / BYTES, work.flops / FLOPS) + FLUSH
    gpu = once * work.runs * (1 + work.peers)
    variants = sum(number for name, number in work.kernels if name not in compiled)
    compiled.update(name for name, _ in work.kernels)
    return gpu, gpu + SETUP + VARIANT * variants + GRAPH * work.graphs


def report(cases: Sequence[Planned], budgets: dict[str, float]) -> str:
    """A line for each case, and for each group its sum beside its budget."""
    lines: list[tuple[str, ...]] = []
    totals: list[tuple[str, ...]] = []
    whole, compiled = 0.0, set[str]()
    for group in dict.fromkeys(case.group for case in cases):
        mine = [case for case in cases if case.group == group]
        times = [seconds(case.work, compiled) for case in mine]
        for case, (gpu, took) in zip(mine, times, strict=True):
            moved, flops = case.work.bytes / 1e9, case.work.flops / 1e12
            lines.append(
                (group, case.name, f"{moved:.2f}", f"{flops:.2f}", f"{gpu:.2f}", f"{took:.0f}")
            )
        total = START + sum(took for _, took in times)
        whole += total
        on_gpu = sum(gpu for gpu, _ in times)
        totals.append(
            (group, str(len(mine)), f"{on_gpu:.1f}", f"{total:.0f}", f"{budgets[group]:.0f}")
        )
    header = ("group", "case", "GB a run", "TFLOP a run", "s on the GPU", "s in all")
    summary = ("group", "cases", "s on the GPU", "s in all", "budget")
    parts = [table(header, lines), table(summary, totals)]
    parts.append(
        f"about {whole:.0f} s without a rehearsal, of {sum(budgets[g] for g, *_ in totals):.0f}"
    )
    return "\n\n".join(parts)
