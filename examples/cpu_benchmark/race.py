"""One workload: do the engines compute the same? Then they are timed, turn by turn."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .engines import BY_HAND, OURS
from .tables import spoken
from .trainer import engine_process
from .workloads import NEEDS, WORKLOADS, Turns, token_ids

SHORT = 0.5  # seconds; where a step is shorter, an untimed one first fills the caches again
CHECKED_STEPS = 3
GENERATE = (*OURS, "torch")  # who runs `LanguageModel.generate`
# How far numbers may lie apart. Rounding makes a difference of about 1e-6. The norms may differ by
# more: PyTorch adds the squares of a large gradient up in float32, and its result for GPT-2 is
# wrong by 1e-4 to 3e-3.
LIMITS = {"logits": 1e-4, "losses": 1e-4, "gradient norms": 1e-2}


def race(workload: str, engines: list[str], turns: Turns, generate: int) -> dict[str, Any]:
    """Checks that the engines compute the same, then times them in turns."""
    rng = np.random.default_rng(0)
    shape = WORKLOADS[workload]
    if not shape.fused_heads:
        engines = [engine for engine in engines if engine not in ("jax", BY_HAND)]
    checked = token_ids(shape, CHECKED_STEPS, rng)
    times: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    with contextlib.ExitStack() as stack:
        clients = {
            engine: stack.enter_context(engine_process(engine, workload)) for engine in engines
        }
        answers = {engine: client("build", checked) for engine, client in clients.items()}
        print(f"{workload}: {agreement(answers)}", flush=True)
        untimed = int(max(answer["seconds"] for answer in answers.values()) < SHORT)
        for number in range(turns.rounds):
            ids = token_ids(shape, turns.steps + untimed, rng)
            for engine in engines[:: -1 if number % 2 else 1]:
                times[engine].append(clients[engine]("turn", ids, untimed))
        results = {e: summarized(times[e], clients[e]("peak_memory")) for e in engines}
        last = {engine: result["losses"][-1] for engine, result in results.items()}
        print(f"{workload}: losses at the end " + spoken(last, "{:.4f}"), flush=True)
        for engine in engines:
            if generate and engine in GENERATE:
                seconds = clients[engine]("generate", checked[0], generate)
                results[engine]["seconds_per_token"] = seconds
    return {"shape": asdict(shape), "flops": shape.flops(), "engines": results}


def summarized(turns: list[dict[str, Any]], memory: int) -> dict[str, Any]:
    """An engine's turns as one record: seconds by turn; faults and processor time a step."""
    return {
        "seconds": [turn["seconds"] for turn in turns],
        "losses": [loss for turn in turns for loss in turn["losses"]],
        "faults": statistics.median(turn["faults"] for turn in turns),
        "processor": statistics.median(turn["processor"] for turn in turns),
        "idle_share": idle_share(turns),
        "memory": memory,
    }


def agreement(answers: dict[str, dict[str, Any]]) -> str:
    """One sentence on how far the engines' numbers lie apart; stops where that is too far."""
    (name, first), *others = answers.items()
    if not others:
        return "one engine only, nothing to compare its numbers with"
    furthest = dict.fromkeys(LIMITS, 0.0)
    for other, answer in others:
        logits = np.abs(answer["logits"] - first["logits"]).max() / np.abs(first["logits"]).max()
        steps = np.abs(np.divide(answer["steps"], first["steps"]) - 1).max(axis=0)
        for what, distance in zip(LIMITS, (logits, *steps), strict=True):
            if not distance < LIMITS[what]:
                raise SystemExit(
                    f"{name} and {other} do not compute the same: their {what} differ by "
                    f"{distance:.1e} of their size, and at most {LIMITS[what]:.0e} is rounding"
                )
            furthest[what] = max(furthest[what], float(distance))
    distances = spoken(furthest, "within {:.0e}", " ")
    return f"{len(answers)} engines agree in {CHECKED_STEPS} steps: {distances}"


def idle_share(turns: list[dict[str, Any]]) -> float:
    """The share of a processor that an engine used between its turns, if they were far apart."""
    wall = cpu = 0.0
    for before, after in itertools.pairwise(turns):
        wall += after["began"][0] - before["ended"][0]
        cpu += after["began"][1] - before["ended"][1]
    return cpu / wall if wall > 1 else 0.0


def too_little_memory(workload: str, engines: list[str]) -> str:
    """That this workload cannot be run with all these engines at once; "" if it can."""
    needs = NEEDS.get(workload, {})
    needed = sum(needs.get("ours" if engine in OURS else engine, 0.0) for engine in engines)
    with contextlib.suppress(OSError):  # only Linux says
        free = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
        available = int(free) * 1024 / 1e9
        if available < needed:
            return (
                f"{workload}: {len(engines)} engines together need about {needed:.0f} GB of memory "
                f"and {available:.0f} GB are free"
            )
    return ""
