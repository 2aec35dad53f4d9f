"""How fast a GPT trains on a CPU: here, in PyTorch, in compiled PyTorch and in JAX.

A step is forward, backward, clipping at 1.0 and AdamW, in float32. Each engine runs in a process of
its own with the same weights, the same batches and the same options (`benchmark_peers.py`); their
logits, losses and gradient norms are compared before anything is timed. Then they take turns, so
that whatever else the machine does strikes all of them. Who waits does nothing: the processor time
that it used all the same is measured and printed. What is not installed is left out.

    python examples/benchmark_cpu.py --workloads W1 W2 --json times.json
    python examples/benchmark_cpu.py --workloads W2 --engines ours --profile

The workloads: W1 is the article's model with its heads in one product (W1H: one by one), W2 the
preset `char`, W3 a character model of width 384 on 64 x 256, W4 GPT-2 124M on 4 x 64, W4L the same
on 1 x 1024. W3 needs about 20 GB for all engines together, W4 and W4L 12.

OPENBLAS_CORETYPE keeps NumPy's OpenBLAS from kernels that the processor has; only a program that
uses NumPy reads it. The processes run without it. `--variable-set` adds one of ours that has it.

Runs for about two minutes with W1 and W2, half an hour with all. The last line is the result, as in
"ours over the best peer: W1 0.58, W2 0.83".
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_peers import ENGINES, PEERS, WORKLOADS, matmul_peak, profile_steps, token_ids

try:
    import resource
except ImportError:  # Windows has no such counters
    resource = None  # type: ignore[assignment]

VARIABLE, KERNELS = "OPENBLAS_CORETYPE", "Haswell"
WITH_VARIABLE = "ours, variable set"
# Turns, and timed steps a turn; where a step is short, an untimed one first fills the caches again.
TURNS = {"W1": (15, 40), "W1H": (10, 20), "W2": (15, 12), "W3": (3, 1), "W4": (4, 2), "W4L": (3, 1)}
SHORT = 0.5  # seconds
CHECKED_STEPS = 3
FEW = 64  # positions whose logits are compared
GENERATE = ("ours", WITH_VARIABLE, "torch")  # who runs the loop of `gpt/model.py`
SETTLE = 0.1  # seconds after a turn in which thread pools go to sleep
LISTED = 24  # rows of a profile
OPTIMIZER = ("AdamW", "clip_grad_norm_", "zero_grad")
PYTHON = ("model and wrappers", "reshape", "swapaxes", "getitem", "transpose", "broadcast_to")
VARIABLES = re.compile(r"BLAS|OMP_|MKL|KMP|XLA|JAX|TORCH|NPROC|MALLOC|GLIBC_TUNABLES|LD_PRELOAD")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workloads", nargs="+", default=["W1", "W2"], choices=WORKLOADS, metavar="W")
    add("--engines", nargs="+", default=list(ENGINES), choices=ENGINES, metavar="ENGINE",
        help=f"some of {', '.join(ENGINES)} (default: all that are installed)")  # fmt: skip
    add("--rounds", type=int, help="turns of each engine (default: by workload)")
    add("--steps-per-round", type=int, help="timed steps a turn (default: by workload)")
    add("--threads", type=int, help="for every engine (default: what each takes by itself)")
    add("--variable-set", action="store_true", help=f"also time ours with {VARIABLE}={KERNELS}")
    add("--profile", action="store_true", help="then say where our time goes, by operation")
    add("--generate", type=int, default=0, metavar="N", help="also time generating N tokens")
    add("--json", type=Path, metavar="FILE", help="write everything measured to this file")
    arguments = parser.parse_args()
    for option in ("rounds", "steps_per_round", "threads"):
        if getattr(arguments, option) is not None and getattr(arguments, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    return arguments


# ---- A process that holds one engine ----


class Server:
    """What a child process does when asked: each method is a request."""

    def __init__(self, engine: str, workload: str) -> None:
        self.engine_name = engine
        self.workload = WORKLOADS[workload]
        if resource:
            self.faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        else:
            self.faults = lambda: 0

    def peak(self) -> dict[str, Any]:
        return {"flops": matmul_peak(self.engine_name), "blas": loaded_openblas()}

    def build(self, ids: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Makes the model, and trains it on `ids`; answers what the engines are compared by."""
        self.engine = ENGINES[self.engine_name](self.workload)
        batches = [self.engine.batch(i) for i in ids]
        logits = self.engine.logits(batches[0][0][:, :FEW])  # few: training is to set the memory
        steps = [self.engine.step(x, y) for x, y in batches[:-1]]
        start = time.perf_counter()
        steps.append(self.engine.step(*batches[-1]))
        return {"logits": logits, "steps": steps, "seconds": time.perf_counter() - start}

    def turn(self, ids: np.ndarray[Any, Any], untimed: int) -> dict[str, Any]:
        """Steps on `ids`, each timed but the first `untimed` ones."""
        batches = [self.engine.batch(i) for i in ids]
        began = time.perf_counter(), time.process_time()
        seconds, losses = [], []
        for number, (x, y) in enumerate(batches):
            if number == untimed:
                faults, processor = self.faults(), time.process_time()
            start = time.perf_counter()
            loss, _ = self.engine.step(x, y)
            seconds.append(time.perf_counter() - start)
            losses.append(loss)
        timed = seconds[untimed:]
        faults = (self.faults() - faults) / len(timed)
        processor = (time.process_time() - processor) / len(timed)
        time.sleep(SETTLE)
        return {
            "seconds": timed,
            "losses": losses[untimed:],
            "faults": faults,
            "processor": processor,
            "began": began,
            "ended": (time.perf_counter(), time.process_time()),
        }

    def peak_memory(self) -> int:
        """The most bytes of memory that this process has had so far."""
        with contextlib.suppress(OSError):
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("VmHWM:")[1].split()[0])
        if resource is None:
            return 0
        unit = 1 if platform.system() == "Darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def generate(self, ids: np.ndarray[Any, Any], tokens: int) -> float:
        """Seconds for each token after one window of `ids`."""
        prompt, _ = self.engine.batch(ids[:1])
        self.engine.generate(prompt, 2)
        start = time.perf_counter()
        self.engine.generate(prompt, tokens)
        return (time.perf_counter() - start) / tokens

    def profile(self, ids: np.ndarray[Any, Any]) -> dict[str, Any]:
        return profile_steps(self.engine, [self.engine.batch(i) for i in ids])


def serve(connection: Any, engine: str, workload: str) -> None:
    """Answers requests until the other end is closed; waiting for one is waiting on a pipe."""
    server = Server(engine, workload)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            request, *arguments = connection.recv()
            try:
                connection.send((True, getattr(server, request)(*arguments)))
            except Exception:
                connection.send((False, traceback.format_exc()))


class Client:
    """The parent's end of a process."""

    def __init__(self, name: str, workload: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        engine = "ours" if name == WITH_VARIABLE else name
        self.process = context.Process(target=serve, args=(theirs, engine, workload))
        with environment(KERNELS if name == WITH_VARIABLE else None):
            self.process.start()
        theirs.close()

    def __call__(self, request: str, *arguments: Any) -> Any:
        self.connection.send((request, *arguments))
        try:
            good, answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise SystemExit(
                f"{self.name}: the process ended with code {self.process.exitcode} during "
                f"{request!r}; -9 is what the system does when memory runs out (--engines takes "
                "fewer at a time)"
            ) from None
        if not good:
            raise SystemExit(f"{self.name} failed at {request!r}:\n{answer}")
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()


@contextlib.contextmanager
def environment(kernels: str | None) -> Iterator[None]:
    """The environment that a process starts with: BLAS libraries read it once, when loaded."""
    before = os.environ.pop(VARIABLE, None)
    if kernels:
        os.environ[VARIABLE] = kernels
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def set_threads(threads: int | None) -> None:
    if threads:
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
            os.environ[name] = str(threads)  # NPROC is what JAX's thread pool goes by


# ---- One workload ----


def race(workload: str, engines: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Checks that the engines compute the same, then times them in turns."""
    rng = np.random.default_rng(0)
    shape = WORKLOADS[workload]
    rounds, steps = TURNS.get(workload, (3, 3))
    rounds, steps = arguments.rounds or rounds, arguments.steps_per_round or steps
    if not shape.fused_heads:
        engines = [engine for engine in engines if engine != "jax"]
    checked = token_ids(shape, CHECKED_STEPS, rng)
    clients: dict[str, Client] = {}
    turns: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    results: dict[str, dict[str, Any]] = {}
    try:
        answers = {}
        for engine in engines:
            clients[engine] = Client(engine, workload)
            answers[engine] = clients[engine]("build", checked)
        print(f"{workload}: {agreement(answers)}", flush=True)
        untimed = int(max(answer["seconds"] for answer in answers.values()) < SHORT)
        for number in range(rounds):
            ids = token_ids(shape, steps + untimed, rng)
            for engine in engines[:: -1 if number % 2 else 1]:
                turns[engine].append(clients[engine]("turn", ids, untimed))
        for engine, timed in turns.items():
            results[engine] = {
                "seconds": [turn["seconds"] for turn in timed],
                "losses": [loss for turn in timed for loss in turn["losses"]],
                "faults": statistics.median(turn["faults"] for turn in timed),
                "processor": statistics.median(turn["processor"] for turn in timed),
                "idle_share": idle_share(timed),
                "memory": clients[engine]("peak_memory"),
            }
        last = {engine: result["losses"][-1] for engine, result in results.items()}
        print(f"{workload}: losses at the end " + spoken(last, "{:.4f}"), flush=True)
        if arguments.generate:
            for engine in engines:
                if engine in GENERATE:
                    seconds = clients[engine]("generate", checked[0], arguments.generate)
                    results[engine]["seconds_per_token"] = seconds
    finally:
        for client in clients.values():
            client.close()
    return {"shape": asdict(shape), "flops": shape.flops(), "engines": results}


def agreement(answers: dict[str, dict[str, Any]]) -> str:
    """One sentence on how far the engines' numbers lie apart; stops where that is too far.

    Rounding makes a difference of about 1e-6. The norms may differ by more: PyTorch adds the
    squares of a large gradient up in float32, and its result for GPT-2 is wrong by 1e-4 to 3e-3.
    """
    (name, first), *others = answers.items()
    if not others:
        return "one engine only, nothing to compare its numbers with"
    limits = {"logits": 1e-4, "losses": 1e-4, "gradient norms": 1e-2}
    furthest = dict.fromkeys(limits, 0.0)
    for other, answer in others:
        logits = np.abs(answer["logits"] - first["logits"]).max() / np.abs(first["logits"]).max()
        steps = np.abs(np.divide(answer["steps"], first["steps"]) - 1).max(axis=0)
        for what, distance in zip(limits, (logits, *steps), strict=True):
            if not distance < limits[what]:
                raise SystemExit(
                    f"{name} and {other} do not compute the same: their {what} differ by "
                    f"{distance:.1e} of their size, and at most {limits[what]:.0e} is rounding"
                )
            furthest[what] = max(furthest[what], float(distance))
    distances = spoken(furthest, "within {:.0e}", " ")
    return f"{len(answers)} engines agree in {CHECKED_STEPS} steps: {distances}"


def idle_share(turns: list[dict[str, Any]]) -> float:
    """The share of a processor that an engine used between its turns."""
    wall = cpu = 0.0
    for before, after in itertools.pairwise(turns):
        wall += after["began"][0] - before["ended"][0]
        cpu += after["began"][1] - before["ended"][1]
    return cpu / wall if wall else 0.0


# ---- The machine ----


def processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def loaded_openblas() -> dict[str, Any]:
    """The kernels and threads that NumPy's OpenBLAS chose, from the library itself (Linux)."""
    found: dict[str, Any] = {
        "name": np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    }
    with contextlib.suppress(OSError, StopIteration):
        maps = Path("/proc/self/maps").read_text().splitlines()
        library = ctypes.CDLL(next(line.split()[-1] for line in maps if "openblas" in line))
        for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", "")):
            if hasattr(library, f"{prefix}openblas_get_corename{suffix}"):
                corename = getattr(library, f"{prefix}openblas_get_corename{suffix}")
                corename.restype = ctypes.c_char_p
                found["kernels"] = corename().decode()
                found["threads"] = getattr(library, f"{prefix}openblas_get_num_threads{suffix}")()
                break
    return found


def describe_machine(engines: list[str]) -> dict[str, Any]:
    packages = ["numpy", *sorted({PEERS[e] for e in engines if e in PEERS})]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {
        "processor": processor(),
        "processors": usable,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "variables": {k: v for k, v in os.environ.items() if VARIABLES.search(k)},
    }
    peaks: dict[str, Any] = {}
    for engine in engines:
        if engine != "compile":  # PyTorch's products are the same, compiled or not
            client = Client(engine, "tiny")
            peaks[engine] = client("peak")
            client.close()
    machine["peaks"] = peaks
    return machine


def print_machine(machine: dict[str, Any]) -> None:
    versions = spoken({"Python": machine["python"], **machine["versions"]}, "{}", " ")
    print(f"{machine['processor']}, {machine['processors']} processors; {versions}")
    if machine["load"] and machine["load"] > 0.5:
        print(f"the machine is not idle: its load was {machine['load']:.1f} before the start")
    for engine, peak in machine["peaks"].items():
        blas = peak["blas"]
        kernels = f" ({blas['kernels']} kernels, {blas['threads']} threads)" * ("kernels" in blas)
        name = f"{blas['name']}{kernels}" if engine.startswith("ours") else "its own"
        print(f"matmul of {engine}: {peak['flops'] / 1e9:.0f} GFLOP/s, {name}")
    variables = machine["variables"]
    print(f"variables that matter: {spoken(variables, '{}', '=') if variables else 'none is set'}")
    if VARIABLE in variables:
        print(f"{VARIABLE} is set here and taken from the processes' environment")


# ---- The table ----


def table(races: dict[str, dict[str, Any]], peak: float) -> list[str]:
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
            lines.append(
                f"{workload:4} {engine:<18} {median:10.2f} {f'{low:.2f} to {high:.2f}':>21} "
                f"{over:>15} {rate / 1e9:8.1f} {rate / peak:8.0%} "
                f"{1e3 * measured['processor']:9.2f} {measured['memory'] / 1e6:10.0f} "
                f"{measured['faults']:12,.0f}"
            )
            if "seconds_per_token" in measured:
                rate = 1 / measured["seconds_per_token"]
                lines.append(f"{'':4} {engine:<18} {rate:10.1f} tokens a second, generated")
    return lines


def report(workload: str, profile: dict[str, Any], peak: float) -> list[str]:
    """The profile as lines of text, the longest times first."""
    lines = [
        f"{workload}: a step took {1e3 * profile['watched']:.2f} ms while it was watched, "
        f"{1e3 * profile['unwatched']:.2f} ms before (means of {profile['steps']} steps)",
        f"{'':32} {'calls':>6} {'forward':>9} {'backward':>9} {'share':>7} {'GFLOP/s':>8} "
        f"{'of peak':>8}",
    ]
    ordered = sorted(
        profile["rows"].items(), key=lambda item: item[1]["forward"] + item[1]["backward"]
    )[::-1]
    for name, row in ordered[:LISTED]:
        seconds = row["forward"] + row["backward"]
        line = f"{name:<32} {row['calls']:6.0f} {1e3 * row['forward']:9.3f} "
        line += f"{1e3 * row['backward']:9.3f} {seconds / profile['watched']:7.1%}"
        if row["flops"] and seconds:
            rate = row["flops"] / seconds
            line += f" {rate / 1e9:8.1f} {rate / peak:8.0%}"
        lines.append(line)
    rest = sum(row["forward"] + row["backward"] for _, row in ordered[LISTED:])
    outside = profile["watched"] - sum(r["forward"] + r["backward"] for _, r in ordered)
    lines.append(f"{'all others':<32} {'':6} {1e3 * rest:9.3f}")
    lines.append(f"{'outside of every clock':<32} {'':6} {1e3 * outside:9.3f}")
    return lines + breakdown(profile, peak)


def breakdown(profile: dict[str, Any], peak: float) -> list[str]:
    """What a step is made of, beside what its matrix products alone would take at the peak."""
    kinds = dict.fromkeys(("products", "optimizer", "Python", "passes"), 0.0)
    flops = 0.0
    for name, row in profile["rows"].items():
        kind = "products" if row["flops"] else "passes"
        if name in OPTIMIZER:
            kind = "optimizer"
        elif name in PYTHON or name.startswith("walk"):
            kind = "Python"
        kinds[kind] += row["forward"] + row["backward"]
        flops += row["flops"]
    kinds["Python"] += profile["watched"] - sum(kinds.values())
    meanings = {
        "products": "linear layers, attention and the loss: matrix products and what is in between",
        "passes": "over arrays: activations, norms, sums, lookups",
        "optimizer": "clipping and AdamW: a pass over all parameters and moments",
        "Python": "the model's lines, the wrapper of operations, the walk, these clocks",
    }
    least = f"{1e3 * flops / peak:.2f} ms is what {flops / 1e9:,.1f} GFLOP of products take at peak"
    lines = [f"of a step, {least}; it spent"]
    for kind, meaning in meanings.items():
        share = kinds[kind] / profile["watched"]
        lines.append(f"{1e3 * kinds[kind]:10.2f} ms ({share:4.0%}) in {kind}: {meaning}")
    return lines


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3


def median_ms(result: dict[str, Any], engine: str) -> float:
    return 1e3 * statistics.median(s for turn in result["engines"][engine]["seconds"] for s in turn)


def best_peer(result: dict[str, Any]) -> str | None:
    peers = [engine for engine in result["engines"] if engine in PEERS]
    return min(peers, key=lambda engine: median_ms(result, engine), default=None)


def comparison(workload: str, result: dict[str, Any], ours: str) -> str:
    """Ours over the best peer, turn by turn: what the machine did meanwhile struck both."""
    best = best_peer(result)
    turns = zip(result["engines"][ours]["seconds"], result["engines"][best]["seconds"], strict=True)
    low, _, high = quartiles([statistics.median(a) / statistics.median(b) for a, b in turns])
    ratio = median_ms(result, ours) / median_ms(result, best)
    memory = {e: measured["memory"] for e, measured in result["engines"].items()}
    line = f"{workload}: {ours} takes {ratio:.2f} of the time of {best}"
    line += f" (turn by turn: quartiles {low:.2f} and {high:.2f})"
    if memory.get("torch") and memory[ours]:
        line += f", {memory[ours] / memory['torch']:.2f} of the memory of torch"
    return line


def last_line(races: dict[str, dict[str, Any]]) -> str:
    if any("ours" not in result["engines"] or not best_peer(result) for result in races.values()):
        times = [
            f"{workload} {engine} {median_ms(result, engine):.2f} ms"
            for workload, result in races.items()
            for engine in result["engines"]
        ]
        return "medians: " + ", ".join(times)
    ratios = [
        f"{workload} {median_ms(result, 'ours') / median_ms(result, best_peer(result)):.2f}"
        for workload, result in races.items()
    ]
    return "ours over the best peer: " + ", ".join(ratios)


def spoken(values: dict[str, Any], form: str, between: str = " ") -> str:
    return ", ".join(f"{name}{between}{form.format(value)}" for name, value in values.items())


def main() -> None:
    arguments = parse_arguments()
    set_threads(arguments.threads)
    wanted: list[str] = []
    for engine in dict.fromkeys(arguments.engines):
        if engine in PEERS and not importlib.util.find_spec(PEERS[engine]):
            print(f"{engine} is left out: pip install {PEERS[engine]} brings it")
        else:
            wanted.append(engine)
    if arguments.variable_set:
        wanted.insert(1, WITH_VARIABLE)
    machine = describe_machine(wanted)
    print_machine(machine)
    peak = max(found["flops"] for found in machine["peaks"].values())

    races = {workload: race(workload, wanted, arguments) for workload in arguments.workloads}
    print(f"\na step is forward, backward, clip and AdamW; peak is {peak / 1e9:.0f} GFLOP/s;")
    print("cpu ms is the processor time of all threads, which other programs disturb least")
    print("\n".join(table(races, peak)))
    idle = max(e["idle_share"] for result in races.values() for e in result["engines"].values())
    print(f"a waiting process used at most {idle:.1%} of a processor\n")
    profiles = {}
    if arguments.profile:
        for workload in races:
            profiles[workload] = profiled(workload)
            print("\n".join(report(workload, profiles[workload], peak)), end="\n\n")
    for workload, result in races.items():
        for ours in ("ours", WITH_VARIABLE):
            if ours in result["engines"] and best_peer(result):
                print(comparison(workload, result, ours))
    if arguments.json:
        measured = {"machine": machine, "workloads": races, "profiles": profiles}
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(last_line(races))


def profiled(workload: str) -> dict[str, Any]:
    """Our profile, from a process that does nothing else."""
    rng = np.random.default_rng(0)
    client = Client("ours", workload)
    try:
        client("build", token_ids(WORKLOADS[workload], CHECKED_STEPS, rng))
        steps = max(3, min(30, int(3e10 / WORKLOADS[workload].flops())))
        return client("profile", token_ids(WORKLOADS[workload], steps, rng))
    finally:
        client.close()


if __name__ == "__main__":
    main()
