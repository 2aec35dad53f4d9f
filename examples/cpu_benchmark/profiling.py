"""Where our time in a step goes, by operation: `--profile`.

Clocks are put around the implementations in the registry (`tinytensor.tensor.OPERATIONS`) and
around the VJPs that they return, for as long as the process lives. A clock that is started inside
another one stops the outer one, so that the times of a step add up to the step. What is left to the
forward and the backward pass itself is Python: the model's lines, the wrapper, the walk.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

FORWARD, BACKWARD = 0, 1


class Row:
    """One line of the profile: seconds forward and backward, calls, floating-point operations."""

    def __init__(self) -> None:
        self.seconds = [0.0, 0.0]
        self.calls = 0
        self.flops = 0.0


class Profile:
    """Clocks by name; `inner` holds, for each one running, the time of those inside it."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, Row] = defaultdict(Row)
        self.inner: list[float] = []

    def clocked(self, name: str, phase: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            seconds, inner = self.rows[name].seconds, self.inner
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                elapsed = time.perf_counter() - start
                seconds[phase] += elapsed - inner.pop()
                if inner:
                    inner[-1] += elapsed

        return call

    def watch_operation(self, operation: Any) -> None:
        for kind, implementation in list(operation.implementations.items()):
            operation.implementations[kind] = self.body(operation.__name__, implementation)
        slow = f"{operation.__name__} (reference)" if operation.implementations else None
        operation.reference = self.body(slow or operation.__name__, operation.reference)

    def body(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which returns an output and a VJP, with clocks for both."""

        def run(*values: Any, **options: Any) -> Any:
            row, flops = what_it_computes(name, values)
            result = self.clocked(row, FORWARD, function)(*values, **options)
            if result is NotImplemented:
                return result
            self.rows[row].calls += 1
            self.rows[row].flops += flops
            y, vjp = result
            if isinstance(vjp, tuple):
                return y, tuple([f and self.vjp(row, f) for f in vjp])
            return y, vjp and self.vjp(row, vjp)

        return run

    def vjp(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        clocked = self.clocked(name, BACKWARD, function)

        def call(*dy: Any) -> Any:  # one for each output
            gradient = clocked(*dy)
            if isinstance(gradient, tuple):
                return tuple([self.late(name, g) for g in gradient])
            return self.late(name, gradient)

        return call

    def late(self, name: str, gradient: Any) -> Any:
        return LateGradient(self, name, gradient) if hasattr(gradient, "write_to") else gradient


class LateGradient:
    """A gradient that is computed when it is wanted, on the clock of its operation."""

    def __init__(self, profile: Profile, name: str, gradient: Any) -> None:
        self.shape, self.dtype = gradient.shape, gradient.dtype
        self.write_to = profile.clocked(name, BACKWARD, gradient.write_to)
        self.add_to = profile.clocked(name, BACKWARD, gradient.add_to)
        self.dense = profile.clocked(name, BACKWARD, gradient.dense)
        if hasattr(gradient, "joined"):
            self.joined = lambda other: self._joined(profile, name, gradient, other)
        self.gradient = gradient

    def _joined(self, profile: Profile, name: str, gradient: Any, other: Any) -> Any:
        joined = gradient.joined(getattr(other, "gradient", other))
        return joined and LateGradient(profile, name, joined)


def what_it_computes(name: str, values: tuple[Any, ...]) -> tuple[str, float]:
    """The row of a call, and the operations in its matrix products, backward included."""
    if name == "linear":
        out, features = values[1].shape
        return f"linear {features} to {out}", 6.0 * math.prod(values[0].shape) * out
    if name == "scaled_dot_product_attention":
        B, H, T, D = values[0].shape
        return "attention", 12.0 * B * H * D * (T * (T + 1) // 2)
    if name == "linear_cross_entropy":
        return name, 6.0 * math.prod(values[0].shape) * values[1].shape[0]
    return name, 0.0


def profile_steps(engine: Any, batches: list[Any]) -> dict[str, Any]:
    """Runs the steps twice, without clocks and with them; the process is of no use afterwards."""
    from tinytensor import autograd
    from tinytensor.tensor import OPERATIONS

    def seconds_of_steps() -> list[float]:
        times = [time.perf_counter()]
        for x, y in batches:
            engine.step(x, y)
            times.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(times)]

    unwatched = seconds_of_steps()
    profile = Profile()
    for operation in OPERATIONS.values():
        profile.watch_operation(operation)
    engine.loss = profile.clocked("model and wrappers", FORWARD, engine.loss)
    engine.clip = profile.clocked("clip_grad_norm_", BACKWARD, engine.clip)
    engine.optimizer.step = profile.clocked("AdamW", BACKWARD, engine.optimizer.step)
    engine.optimizer.zero_grad = profile.clocked("zero_grad", BACKWARD, engine.optimizer.zero_grad)
    # The walk's own work on arrays: sums where paths meet, and copies into the gradient buffer.
    for name, row in (
        ("backward", "walk of the graph"),
        ("fit", "walk: gradients fitted to shapes"),
        ("_add_pending", "walk: gradients of paths added"),
        ("accumulate", "walk: gradients stored"),
    ):
        setattr(autograd, name, profile.clocked(row, BACKWARD, getattr(autograd, name)))
    watched = sum(seconds_of_steps()) / len(batches)
    steps = len(batches)
    rows = {
        name: {
            "forward": row.seconds[FORWARD] / steps,
            "backward": row.seconds[BACKWARD] / steps,
            "calls": row.calls / steps,
            "flops": row.flops / steps,
        }
        for name, row in profile.rows.items()
    }
    return {
        "unwatched": sum(unwatched) / steps,
        "quickest": min(unwatched),
        "watched": watched,
        "steps": steps,
        "rows": rows,
    }


# ---- The profile as text ----

LISTED = 24  # rows of a profile
LINEAR, ATTENTION, HEAD, PASSES = "linear layers", "attention", "head and loss", "activations, sums"
OPTIMIZER, PYTHON = "clipping and AdamW", "Python"
PARTS = {
    LINEAR: "matrix products, and what is in between",
    ATTENTION: "products and exponentials of all pairs",
    HEAD: "the product with the vocabulary, its exponentials, the loss",
    PASSES: "over arrays: activations, norms, sums, lookups",
    OPTIMIZER: "a pass over all parameters and moments",
    PYTHON: "the model's lines, the wrapper of operations, the walk, these clocks",
}
_PART_OF = {
    "attention": ATTENTION,
    "linear_cross_entropy": HEAD,
    "cross_entropy": HEAD,
    **dict.fromkeys(("AdamW", "clip_grad_norm_", "zero_grad"), OPTIMIZER),
    **dict.fromkeys(("model and wrappers", "reshape", "swapaxes", "getitem", "transpose"), PYTHON),
    "broadcast_to": PYTHON,
}


def part_of(name: str) -> str:
    """The part of a step that a row of the profile belongs to."""
    if name.startswith("linear "):
        return LINEAR
    if name.startswith("walk"):
        return PYTHON
    return _PART_OF.get(name, PASSES)


def by_part(rows: dict[str, float]) -> dict[str, float]:
    """Seconds of rows, added up by part."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for name, value in rows.items():
        seconds[part_of(name)] += value
    return seconds


def seconds_by_part(profile: dict[str, Any]) -> dict[str, float]:
    """A watched step, divided among the parts; what no clock saw is Python."""
    rows = profile["rows"].items()
    seconds = by_part({name: row["forward"] + row["backward"] for name, row in rows})
    seconds[PYTHON] += profile["watched"] - sum(seconds.values())
    return seconds


def profile_lines(workload: str, profile: dict[str, Any], peak: float) -> list[str]:
    """The profile as lines of text, the longest times first, and its sums by part."""
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
    lines.append("of a step it spent")
    for part, seconds in seconds_by_part(profile).items():
        share = seconds / profile["watched"]
        lines.append(f"{1e3 * seconds:10.2f} ms ({share:4.0%}) in {part}: {PARTS[part]}")
    return lines
