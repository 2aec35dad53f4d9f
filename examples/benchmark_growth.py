"""How the cost of a training step grows with the batch and with the length of the context.

    python examples/benchmark_growth.py --plot growth.png
    python examples/benchmark_growth.py --parts context --context 8192

Three things should hold, and are measured on a small GPT (width 64, 2 layers, 4 heads; forward,
backward and AdamW, float32):

- batch: the time for a token does not depend on how many rows are in a batch, once there are
  enough of them to fill the processors;
- length: all of a step but attention grows with the number of tokens, attention with its square, so
  that its share of the time grows with T. `--plot` draws it;
- context: attention keeps nothing of the size (T, T). One step on a single row of 8,192 tokens
  takes less memory than the weights alone would, B · H · T² · 4 bytes for each layer. It is
  measured in a process of its own, whose memory before the step is subtracted.

Runs for about a minute. The last line is the result, as in
"a token takes 1.0 times its best time at batch 64; attention 26% of a step at T = 64 and 86% at
4096; 8192 tokens in 0.05 of the memory of their weights".
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from arguments import at_least, file_to_write

import tinytensor as tt
from gpt.model import GPT, GPTConfig
from tinytensor.ops.attention import scaled_dot_product_attention

V, C, H, LAYERS = 65, 64, 4, 2
BATCH_T = 64
PARTS = ("batch", "length", "context")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    positive = at_least(1)
    add("--batches", nargs="+", type=positive, default=[1, 2, 4, 8, 16, 32, 64], metavar="B")
    add("--lengths", nargs="+", type=positive, metavar="T",
        default=[64, 128, 256, 512, 1024, 2048, 4096])  # fmt: skip
    add("--context", type=positive, default=8192, metavar="T")
    add("--steps", type=positive, default=7, help="timed steps of each setting (default 7)")
    add("--plot", type=file_to_write, metavar="PNG", help="draw attention's share of a step")
    add("--json", type=file_to_write, metavar="FILE", help="write everything measured to this file")
    add("--only-context", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plot and "length" not in arguments.parts:
        parser.error("--plot draws the part `length`: add it to --parts")
    if arguments.plot and arguments.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        parser.error(f"--plot writes a .png, .svg or .pdf, not {arguments.plot.name}")
    return arguments


def training_step(B: int, T: int) -> Callable[[], None]:
    """A step of a fresh model on one batch of random tokens."""
    tt.manual_seed(0)
    model = GPT(GPTConfig(V, T, n_layer=LAYERS, n_head=H, n_embd=C))
    optimizer = tt.optim.AdamW(model.parameters(), lr=1e-3)
    ids = np.random.default_rng(0).integers(V, size=(B, T + 1))
    x, y = tt.from_numpy(ids[:, :-1].copy()), tt.from_numpy(ids[:, 1:].copy())

    def step() -> None:
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    """The median time of `step`, after one that is not counted."""
    step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def clock_on_attention() -> Iterator[list[float]]:
    """Times of attention, forward and backward, are appended to the list."""
    times: list[float] = []
    operation: Any = scaled_dot_product_attention
    fast = operation.implementations[np.ndarray]

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            times.append(time.perf_counter() - start)
            return result

        return call

    def attention(*arguments: Any, **options: Any) -> Any:
        result = clocked(fast)(*arguments, **options)
        if result is NotImplemented:
            return result
        y, vjp = result
        return y, clocked(vjp)

    operation.implementations[np.ndarray] = attention
    try:
        yield times
    finally:
        operation.implementations[np.ndarray] = fast


def over_batches(arguments: argparse.Namespace) -> dict[int, float]:
    """Microseconds a token, by batch size."""
    found = {}
    for B in arguments.batches:
        found[B] = 1e6 * seconds(training_step(B, BATCH_T), arguments.steps) / (B * BATCH_T)
        print(f"batch {B:4} x {BATCH_T}: {found[B]:8.2f} us a token", flush=True)
    return found


def over_lengths(arguments: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Microseconds a token and attention's share of them, by length, about 4,096 tokens a batch."""
    found = {}
    for T in arguments.lengths:
        B = max(1, max(arguments.lengths) // T)
        step = training_step(B, T)
        step()
        with clock_on_attention() as times:
            start = time.perf_counter()
            for _ in range(arguments.steps):
                step()
            whole = time.perf_counter() - start
        token = 1e6 * whole / arguments.steps / (B * T)
        found[T] = {"microseconds": token, "share": sum(times) / whole}
        print(
            f"length {T:5}, {B:3} rows: {token:8.2f} us a token, {sum(times) / whole:4.0%} of them "
            "attention",
            flush=True,
        )
    return found


def peak_bytes() -> int:
    """The most memory that this program has had. (Linux's ru_maxrss remembers who started it.)"""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def context_alone(T: int) -> None:
    """In a process of its own: what one step on T tokens adds to the peak of memory."""
    training_step(1, 8)()  # what is loaded at the first use of anything
    step = training_step(1, T)
    before = peak_bytes()
    start = time.perf_counter()
    step()
    print(json.dumps({"bytes": peak_bytes() - before, "seconds": time.perf_counter() - start}))


def over_context(T: int) -> dict[str, float]:
    """The memory of a step on one row of T tokens, beside that of (T, T) weights."""
    command = [sys.executable, __file__, "--only-context", "--context", str(T)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(
            f"the step on {T} tokens ended with code {done.returncode} (-9 is what the system does "
            f"when memory runs out; --context takes fewer):\n{done.stderr}"
        )
    found: dict[str, float] = json.loads(done.stdout)
    found["weights"] = LAYERS * H * T**2 * 4
    print(
        f"context {T}: a step took {found['seconds']:.1f} s and {found['bytes'] / 1e6:,.0f} MB; "
        f"the weights of {LAYERS} layers, B·H·T²·4 bytes each, would be "
        f"{found['weights'] / 1e6:,.0f} MB"
    )
    return found


def draw(lengths: dict[int, dict[str, float]], file: Path) -> None:
    """Attention's share over T, and the time of a token in two colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    T = list(lengths)
    share = [100 * lengths[t]["share"] for t in T]
    token = [lengths[t]["microseconds"] for t in T]
    inside = [lengths[t]["microseconds"] * lengths[t]["share"] for t in T]
    left.plot(T, share, marker="o")
    left.set(xlabel="context length T", ylabel="attention, % of a step", ylim=(0, 100))
    right.stackplot(
        T,
        [a - b for a, b in zip(token, inside, strict=True)],
        inside,
        labels=["everything else", "attention"],
    )
    right.set(xlabel="context length T", ylabel="µs a token", ylim=(0, None))
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(T, [f"{t:,}" for t in T])
        axes.grid(alpha=0.3)
    figure.suptitle(f"Training a GPT of width {C}: attention grows with T², all else with T")
    figure.savefig(file, dpi=120)


def main() -> None:
    arguments = parse_arguments()
    if arguments.only_context:
        context_alone(arguments.context)
        return
    measured: dict[str, Any] = {}
    said = []
    if "batch" in arguments.parts:
        measured["batch"] = found = over_batches(arguments)
        largest = max(found)
        ratio = found[largest] / min(found.values())
        said.append(f"a token takes {ratio:.1f} times its best time at batch {largest}")
    if "length" in arguments.parts:
        measured["length"] = lengths = over_lengths(arguments)
        first, last = min(lengths), max(lengths)
        said.append(
            f"attention {lengths[first]['share']:.0%} of a step at T = {first} and "
            f"{lengths[last]['share']:.0%} at {last}"
        )
        if arguments.plot:
            draw(lengths, arguments.plot)
            print(f"drawn: {arguments.plot}")
    if "context" in arguments.parts:
        measured["context"] = context = over_context(arguments.context)
        share = context["bytes"] / context["weights"]
        said.append(f"{arguments.context} tokens in {share:.2f} of the memory of their weights")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print("; ".join(said))


if __name__ == "__main__":
    main()
