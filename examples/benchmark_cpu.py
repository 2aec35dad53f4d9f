"""How fast a GPT trains on a CPU: here, in PyTorch, in compiled PyTorch and in JAX.

A step is forward, backward, clipping at 1.0 and AdamW, in float32. Each engine runs in a process of
its own with the same weights, the same batches and the same options; their logits, losses and
gradient norms are compared before anything is timed. Then they take turns, so that whatever else
the machine does strikes all of them. Who waits does nothing: the processor time that it used all
the same is measured and printed. What is not installed is left out.

    python examples/benchmark_cpu.py --quick
    python examples/benchmark_cpu.py --variable-set --breakdown --json all.json
    python examples/benchmark_cpu.py --workloads W2 --engines ours --profile

The workloads: W1 is the article's model with its heads in one product (W1H: one by one), W2 the
preset `char`, W3 a character model of width 384 on 64 x 256, W4 GPT-2 124M on 4 x 64, W4L the same
on 1 x 1024. W3 needs 17 GB for all engines together, W4 12 and W4L 16; where the memory is not
free, the rows that are asked for beside them are left out one by one, then the workload.

OPENBLAS_CORETYPE keeps NumPy's OpenBLAS from kernels that the processor has; only a program that
uses NumPy reads it. The processes run without it, which is the headline. `--variable-set` adds one
of ours that has it, and `--processes` one that shares each batch out among processes, whose time
and memory are counted with its own. `--by-hand` adds the same step in NumPy alone, without any
engine (`cpu_benchmark/by_hand.py`): no peer, but what we are held against. All other variables
reach the processes as they are, so that allocators can be compared, too:
MALLOC_TRIM_THRESHOLD_=-1 MALLOC_MMAP_MAX_=0 keeps freed memory in every process.

`--breakdown` shows what stands between a step and its target: the time of its products at the
processor's peak and in their own shapes, of functions, passes and calls, each measured alone.

The parts are in `cpu_benchmark/`; its `__init__.py` says which is what. Runs for about half an hour
with everything, one minute with `--quick`, which trains W1 and W2. The last line is the result, as
in "ours over the best peer: W1 0.58, W2 0.83".
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from typing import Any

import numpy as np
from arguments import at_least, file_to_write
from cpu_benchmark.breakdown import (
    COLUMNS,
    SECONDS,
    Bounds,
    breakdown_lines,
    operations_by_part,
    totals,
)
from cpu_benchmark.engines import BY_HAND, ENGINES, IN_PROCESSES, OURS, PEERS, WITH_VARIABLE
from cpu_benchmark.machine import describe_machine, machine_lines
from cpu_benchmark.processes import KERNELS, VARIABLE, set_threads
from cpu_benchmark.profiling import profile_lines
from cpu_benchmark.race import CHECKED_STEPS, race, too_little_memory
from cpu_benchmark.tables import (
    best_peer,
    comparison,
    last_line,
    markdown,
    median_ms,
    table,
    target_of,
)
from cpu_benchmark.trainer import engine_process
from cpu_benchmark.workloads import ALL, QUICK, TURNS, WORKLOADS, Turns, token_ids

SAME_PRODUCTS = ("compile", IN_PROCESSES, BY_HAND)  # as those of PyTorch, and of ours
DEFAULT = ("ours", *PEERS)
SPARED = (IN_PROCESSES, BY_HAND, WITH_VARIABLE)  # rows that go first where memory is short


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, metavar="W",
        help=f"some of {', '.join(WORKLOADS)} (default: {', '.join(ALL)})")  # fmt: skip
    add("--engines", nargs="+", default=list(DEFAULT), choices=ENGINES, metavar="ENGINE",
        help=f"some of {', '.join(ENGINES)} (default: {', '.join(DEFAULT)})")  # fmt: skip
    add("--quick", action="store_true", help="few turns, and by default only W1 and W2")
    add("--rounds", type=at_least(1), metavar="N", help="turns of each engine")
    add("--steps-per-round", type=at_least(1), metavar="N", help="timed steps a turn")
    add("--threads", type=at_least(1), metavar="N",
        help="for every engine (default: what each takes by itself)")  # fmt: skip
    add("--variable-set", action="store_true", help=f"also time ours with {VARIABLE}={KERNELS}")
    add("--processes", action="store_true", help="also time ours as tt.utils.DataParallel")
    add("--by-hand", action="store_true", help=f"also time NumPy without an engine ({BY_HAND})")
    add("--breakdown", action="store_true", help="then say what stands between us and the targets")
    add("--profile", action="store_true", help="then say where our time goes, by operation")
    add("--generate", type=at_least(1), metavar="N", help="also time generating N tokens")
    add("--markdown", type=file_to_write, metavar="FILE", help="write the table to this file")
    add("--json", type=file_to_write, metavar="FILE", help="write everything measured to this file")
    arguments = parser.parse_args()
    if arguments.workloads is None:
        arguments.workloads = ["W1", "W2"] if arguments.quick else list(ALL)
    if "ours" not in arguments.engines:
        for option in ("variable_set", "processes", "breakdown", "profile"):
            if getattr(arguments, option):
                parser.error(f"--{option.replace('_', '-')} is about ours: add it to --engines")
    return arguments


def installed(engines: list[str]) -> list[str]:
    """Those of the engines that can run here; the others are named."""
    found = []
    for engine in dict.fromkeys(engines):
        if engine in PEERS and not importlib.util.find_spec(PEERS[engine]):
            print(f"{engine} is left out: pip install {PEERS[engine]} brings it")
        else:
            found.append(engine)
    if not found:
        raise SystemExit("none of the engines is installed, so that there is nothing to time")
    if "ours" in found and not importlib.util.find_spec("tinytensor"):
        raise SystemExit("tinytensor is not installed: pip install -e . in the checkout does it")
    return found


def with_room(workloads: list[str], engines: list[str]) -> dict[str, list[str]]:
    """By workload the engines that the machine's memory holds; what is left out is said."""
    found = {}
    for workload in workloads:
        fitting = list(engines)
        for row in [row for row in SPARED if row in engines[1:]]:
            if reason := too_little_memory(workload, fitting):
                print(f"{reason}, so that {row} is left out")
                fitting.remove(row)
        if reason := too_little_memory(workload, fitting):
            print(f"{reason}, so that {workload} is left out (--engines takes fewer)")
        else:
            found[workload] = fitting
    if not found:
        raise SystemExit("there is no workload left to time")
    return found


def measure_machine(engines: list[str]) -> dict[str, Any]:
    machine = describe_machine({PEERS[engine] for engine in engines if engine in PEERS})
    return {**machine, "peaks": measure_peaks(engines)}


def measure_peaks(engines: list[str]) -> dict[str, dict[str, Any]]:
    """By engine, how fast its library multiplies large matrices."""
    peaks = {}
    for engine in engines:
        if engine not in SAME_PRODUCTS:
            with engine_process(engine, "tiny") as client:
                peaks[engine] = client("peak")
    return peaks


def turns_of(workload: str, arguments: argparse.Namespace) -> Turns:
    turns = (QUICK if arguments.quick else TURNS).get(workload, TURNS[workload])
    return Turns(arguments.rounds or turns.rounds, arguments.steps_per_round or turns.steps)


def profiled(ours: str, workload: str, operations: bool) -> dict[str, Any]:
    """Our profile, from a process that does nothing else; "alone" are its operations one by one."""
    rng = np.random.default_rng(0)
    shape = WORKLOADS[workload]
    steps = max(2, min(30, int(3e10 / shape.flops())))
    with engine_process(ours, workload) as client:
        ids = token_ids(shape, min(steps, CHECKED_STEPS), rng)
        client("build", ids)
        alone = client("operations", ids[0]) if operations else {}
        return {**client("profile", token_ids(shape, steps, rng)), "alone": alone}


def broken_down(
    ours: str, workload: str, result: dict[str, Any], profile: dict[str, Any], peak: float
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The parts of a step, each measured alone, and what they say: a table, and sentences."""
    with engine_process(ours, workload) as client:
        parts = client("parts")
        peak = max(peak, client("peak")["flops"])  # as quick as the machine was just now
    best, whole = best_peer(result), totals(parts)
    operations = operations_by_part(parts, profile)
    by_hand = None
    if ours == "ours" and BY_HAND in result["engines"]:  # both without the variable
        by_hand = median_ms(result, BY_HAND) / 1e3
    bounds = Bounds(
        ours=median_ms(result, ours) / 1e3,
        flops=result["flops"],
        peak=peak,
        products=whole["products"],
        least=sum(whole[column] for column in SECONDS),
        alone=sum(operations.values()),
        peer=best or "",
        best=median_ms(result, best) / 1e3 if best else 0.0,
        target=target_of(workload, ours),
        by_hand=by_hand,
    )
    title = workload + ", variable set" * (ours == WITH_VARIABLE)
    return parts, *breakdown_lines(title, parts, profile, bounds)


def explained(
    arguments: argparse.Namespace, races: dict[str, Any], peak_of: dict[str, float]
) -> tuple[dict[str, Any], list[str]]:
    """Prints what was asked for beside the table; the measurements, and a summary in sentences."""
    profiles: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    sentences = []
    if arguments.breakdown:
        print(COLUMNS, end="\n\n")
    for workload, result in races.items():
        for ours in [engine for engine in OURS if engine in result["engines"]]:
            if best := best_peer(result):
                sentences.append(comparison(workload, result, ours, best))
            if ours == IN_PROCESSES:
                continue  # the others cannot be looked into
            if arguments.breakdown or arguments.profile:
                profile = profiled(ours, workload, arguments.breakdown)
                profiles.setdefault(workload, {})[ours] = profile
            if arguments.profile:
                print("\n".join(profile_lines(workload, profile, peak_of[ours])), end="\n\n")
            if arguments.breakdown:
                parts, lines, said = broken_down(ours, workload, result, profile, peak_of[ours])
                alone.setdefault(workload, {})[ours] = parts
                sentences += said
                print("\n".join(lines), end="\n\n")
    return {"profiles": profiles, "parts": alone}, sentences


def main() -> None:
    arguments = parse_arguments()
    set_threads(arguments.threads)
    wanted = installed(arguments.engines)
    if arguments.processes:
        wanted.insert(wanted.index("ours") + 1, IN_PROCESSES)
    if arguments.variable_set:
        wanted.insert(wanted.index("ours") + 1, WITH_VARIABLE)
    if arguments.by_hand and BY_HAND not in wanted:
        wanted.append(BY_HAND)
    engines_of = with_room(arguments.workloads, wanted)
    machine = measure_machine(wanted)
    print("\n".join(machine_lines(machine, VARIABLE)))
    races = {
        workload: race(workload, engines, turns_of(workload, arguments), arguments.generate)
        for workload, engines in engines_of.items()
    }
    for engine, again in measure_peaks(wanted).items():  # the machine may have been busy before
        machine["peaks"][engine]["flops"] = max(machine["peaks"][engine]["flops"], again["flops"])
    # Ours with the variable set is held against the kernels that it has, all else against the best.
    peak_of = {engine: found["flops"] for engine, found in machine["peaks"].items()}
    peak = max(peak_of.values())

    print(f"\na step is forward, backward, clip and AdamW; peak is {peak / 1e9:.0f} GFLOP/s;")
    print("cpu ms is the processor time of all threads, which other programs disturb least;")
    print("memory is the most that the process had, its libraries and compilers included")
    print("\n".join(table(races, peak)))
    idle = max(e["idle_share"] for result in races.values() for e in result["engines"].values())
    print(f"a waiting process used at most {idle:.1%} of a processor\n")

    details, sentences = explained(arguments, races, {**peak_of, "ours": peak})
    for sentence in sentences:
        print(sentence)
    if arguments.json:
        measured = {"machine": machine, "workloads": races, **details}
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        notes = machine_lines(machine, VARIABLE) + sentences
        arguments.markdown.write_text(markdown(races, notes), encoding="utf-8")
    print(last_line(races))


if __name__ == "__main__":
    main()
