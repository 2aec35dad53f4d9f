"""Medians, spreads and ratios, as lines of text and as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from .engines import BY_HAND, IN_PROCESSES, OURS, PEERS, WITH_VARIABLE
from .workloads import MEMORY_TARGETS, TARGETS, TITLES

Race = dict[str, Any]  # what `race` answers


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3


def median_ms(result: Race, engine: str) -> float:
    return 1e3 * statistics.median(s for turn in result["engines"][engine]["seconds"] for s in turn)


def best_peer(result: Race) -> str | None:
    peers = [engine for engine in result["engines"] if engine in PEERS]
    return min(peers, key=lambda engine: median_ms(result, engine), default=None)


def target_of(workload: str, ours: str) -> float | None:
    """Our time over the best peer's that is aimed at, for a workload that has a target."""
    if workload not in TARGETS:
        return None
    target = TARGETS[workload]
    return target.variable_set if ours == WITH_VARIABLE else target.unset


def spoken(values: dict[str, Any], form: str, between: str = " ") -> str:
    return ", ".join(f"{name}{between}{form.format(value)}" for name, value in values.items())


def table(races: dict[str, Race], peak: float) -> list[str]:
    """A line for each engine at each workload."""
    lines = [
        f"{'':4} {'engine':<18} {'ms a step':>10} {'quartiles':>21} {'over best peer':>15} "
        f"{'GFLOP/s':>8} {'of peak':>8} {'cpu ms':>9} {'memory MB':>10} {'faults/step':>12}"
    ]
    for workload, result in races.items():
        best = best_peer(result)
        for engine, measured in result["engines"].items():
            milliseconds = [1e3 * s for turn in measured["seconds"] for s in turn]
            low, median, high = quartiles(milliseconds)
            rate = result["flops"] / (median / 1e3)
            over = f"{median / median_ms(result, best):.2f}" if best else "-"
            name = HEADINGS[BY_HAND] if engine == BY_HAND else engine
            lines.append(
                f"{workload:4} {name:<18} {median:10.2f} {f'{low:.2f} to {high:.2f}':>21} "
                f"{over:>15} {rate / 1e9:8.1f} {rate / peak:8.0%} "
                f"{1e3 * measured['processor']:9.2f} {measured['memory'] / 1e6:10.0f} "
                f"{measured['faults']:12,.0f}"
            )
            if "seconds_per_token" in measured:
                rate = 1 / measured["seconds_per_token"]
                lines.append(f"{'':4} {engine:<18} {rate:10.1f} tokens a second, generated")
    return lines


def comparison(workload: str, result: Race, ours: str, best: str) -> str:
    """Ours over the best peer, turn by turn: what the machine did meanwhile struck both."""
    turns = zip(result["engines"][ours]["seconds"], result["engines"][best]["seconds"], strict=True)
    low, _, high = quartiles([statistics.median(a) / statistics.median(b) for a, b in turns])
    ratio = median_ms(result, ours) / median_ms(result, best)
    line = f"{workload}: {ours} takes {ratio:.2f} of the time of {best}"
    line += f" (turn by turn: quartiles {low:.2f} and {high:.2f})"
    if target := target_of(workload, ours):
        line += f", aimed at {target:.2f}"
    if share := memory_share(result, ours):
        line += f"; {share:.2f} of the memory of torch"
        if workload in MEMORY_TARGETS:
            line += f", aimed at {MEMORY_TARGETS[workload]:.2f}"
    return line


def memory_share(result: Race, ours: str) -> float | None:
    """Our peak of memory over PyTorch's, where both were measured."""
    memory = {engine: measured["memory"] for engine, measured in result["engines"].items()}
    return memory[ours] / memory["torch"] if memory.get("torch") and memory[ours] else None


def last_line(races: dict[str, Race]) -> str:
    if any("ours" not in result["engines"] or not best_peer(result) for result in races.values()):
        times = [
            f"{workload} {engine} {median_ms(result, engine):.2f} ms"
            for workload, result in races.items()
            for engine in result["engines"]
        ]
        return "medians: " + ", ".join(times)
    parts = []
    for workload, result in races.items():
        best = median_ms(result, best_peer(result) or "")
        parts.append(f"{workload} {median_ms(result, 'ours') / best:.2f}")
        for row in [row for row in OURS[1:] if row in result["engines"]]:
            parts[-1] += f" ({HEADINGS[row]} {median_ms(result, row) / best:.2f})"
    return "ours over the best peer: " + ", ".join(parts)


# ---- Markdown ----


def short_time(milliseconds: float) -> str:
    """Three digits, with a unit: 8.81 ms, 41.7 ms, 7.00 s."""
    value, unit = (milliseconds, "ms") if milliseconds < 1000 else (milliseconds / 1e3, "s")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


HEADINGS = {
    "ours": "tinytensor",
    WITH_VARIABLE: "variable set",
    IN_PROCESSES: "processes",
    "torch": "PyTorch",
    "compile": "compiled",
    "jax": "JAX",
    BY_HAND: "NumPy by hand",
}


def markdown(races: dict[str, Race], notes: list[str]) -> str:
    """A row for each workload, ours in every variant side by side; the best engine is bold."""
    engines = [e for e in HEADINGS if any(e in result["engines"] for result in races.values())]
    ours = [engine for engine in engines if engine in OURS]
    head = ["model, batch x length"]
    for engine in engines:
        head += [HEADINGS[engine], "over the best"] if engine in OURS else [HEADINGS[engine]]
    rows = [[*head, "memory, PyTorch = 1"], ["---"] * (len(head) + 1)]
    for workload, result in races.items():
        best = best_peer(result)
        times = {engine: median_ms(result, engine) for engine in result["engines"]}
        quickest = min(times.keys() - {WITH_VARIABLE, BY_HAND}, key=lambda engine: times[engine])
        row = [TITLES[workload]]
        for engine in engines:
            said = short_time(times[engine]) if engine in times else "-"
            row.append(f"**{said}**" if engine == quickest else said)
            if engine in OURS:
                timed = best and engine in times  # a row may have had no memory here
                row.append(f"{times[engine] / times[best]:.2f}" if timed else "-")
        share = memory_share(result, ours[0]) if ours else None
        rows.append([*row, f"{share:.2f}" if share else "-"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"
