"""What `bench` times of a whole GPT-2: a training step beside PyTorch's, and 100 losses."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..tensor import as_tensor
from . import layers
from .bench_lab import LEARNING, Bench, Timing, Work
from .graph import graph
from .small_gpt import GPT2, TINY, Sizes, model_class, parameter_groups

assert layers  # imported to register its kernels

# For the plan: how much slower float32 is without tensor cores, and the variants of a step.
FLOAT32_SLOWER = 12.0
BFLOAT16, FLOAT32 = (("step, bfloat16", 40),), (("step, float32", 20),)


def batches(sizes: Sizes, B: int, count: int, seed: int = 3) -> list[np.ndarray[Any, Any]]:
    """Token numbers (B, T + 1) that can be learned: runs of neighbours, a tenth of it noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = (rng.integers(0, sizes.V, (B, 1)) + np.arange(sizes.T + 1)) % sizes.V
        noise = rng.integers(0, sizes.V, ids.shape)
        found.append(np.where(rng.random(ids.shape) < 0.1, noise, ids))
    return found


class Ours:
    """A training step of this engine: forward, backward, clipping, AdamW."""

    def __init__(self, bench: Bench, sizes: Sizes, autocast: bool, captured: bool) -> None:
        import tinytensor as tt

        tt.manual_seed(0)
        self.where = bench.where
        self.model = model_class(tt.nn, tt.nn.functional, tt.arange)(sizes).to(bench.where)
        groups = parameter_groups(self.model)
        self.optimizer: Any = tt.optim.AdamW(groups, **LEARNING)  # type: ignore[arg-type]
        kind = "cuda" if bench.where == "cuda" else "cuda-sim"

        def step(x: Any, y: Any) -> Any:
            with tt.autocast(kind, enabled=autocast):
                loss = self.model(x, y)
            self.optimizer.zero_grad()
            loss.backward()
            tt.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            return loss.detach()

        self.step: Callable[..., Any] = graph(step, self.optimizer) if captured else step

    def put(self, ids: np.ndarray[Any, Any]) -> Any:
        return as_tensor(np.ascontiguousarray(ids)).to(self.where)


class Theirs:
    """The same lines in PyTorch, compiled, with flash attention and fused AdamW."""

    def __init__(self, bench: Bench, sizes: Sizes) -> None:
        torch = bench.torch
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.torch, self.where = torch, "cpu" if bench.where == "cuda-sim" else "cuda"
        model = model_class(torch.nn, torch.nn.functional, torch.arange)(sizes).to(self.where)
        fused = self.where == "cuda"
        self.optimizer = torch.optim.AdamW(parameter_groups(model), fused=fused, **LEARNING)
        self.model, self.run = model, bench.compiled(model)

    def step(self, x: Any, y: Any) -> Any:
        with self.torch.autocast(self.where, dtype=self.torch.bfloat16):
            loss = self.run(x, y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def put(self, ids: np.ndarray[Any, Any]) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(ids)).to(self.where)


def training_group(bench: Bench) -> None:
    """Tokens a second of a whole step, by micro-batch: plain, captured, and PyTorch compiled."""
    sizes = TINY if bench.tiny else GPT2
    for B in (2,) if bench.tiny else (16, 32, 64):
        work = Work(flops=B * sizes.T * _flops(sizes), peers=2, graphs=8, runs=15, kernels=BFLOAT16)
        bench.case(f"micro-batch {B}", lambda B=B: _training(bench, sizes, B), work)  # type: ignore[misc]


def _flops(sizes: Sizes) -> float:
    """Of a token in a training step: 6 for each weight of a matrix, and attention's."""
    matrices = sizes.V * sizes.C + 12 * sizes.layers * sizes.C**2
    return 6.0 * matrices + 6.0 * sizes.layers * sizes.T * sizes.C


def _training(bench: Bench, sizes: Sizes, B: int) -> dict[str, Any]:
    steps, warm = (2, 2) if bench.tiny else (10, 5)  # a third call captures
    if bench.share is not None:
        steps, warm = 1, 1
    data = batches(sizes, B, 4)
    tokens = B * sizes.T
    rates: dict[str, float] = {}
    notes: dict[str, Any] = {}
    makers: dict[str, Callable[[], Any]] = {
        "ours": lambda: Ours(bench, sizes, True, False),
        "ours captured": lambda: Ours(bench, sizes, True, True),
    }
    if bench.torch is not None:
        makers["PyTorch compiled"] = lambda: Theirs(bench, sizes)
    for name, make in makers.items():
        try:
            timing, losses = _steps(bench, make(), data, steps, warm)
            rates[name] = 1e3 * tokens / timing.median
            notes[name] = {**timing._asdict(), "losses": losses}
        except Exception as error:
            notes[name] = {"failed": " ".join(str(error).split())[:500]}
        bench.tidy()
    mine = [rate for name, rate in rates.items() if name.startswith("ours")]
    text = ", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in rates.items())
    for name, note in notes.items():
        if "failed" in note:
            text += f"; {name} failed: {note['failed'][:160]}"
    numbers = {"text": text, "tokens_per_second": rates, "runs": notes, "target": 0.8}
    if mine and "PyTorch compiled" in rates:
        numbers["ratio"] = max(mine) / rates["PyTorch compiled"]
    if not mine:
        raise RuntimeError(text)
    return numbers


def _steps(
    bench: Bench, engine: Any, data: list[Any], steps: int, warm: int
) -> tuple[Timing, list[float]]:
    """The time of one step among others, nothing flushed: a step is many times the cache."""
    pairs = [(engine.put(ids[:, :-1]), engine.put(ids[:, 1:])) for ids in data]
    losses = [float(engine.step(*pairs[i % len(pairs)]).item()) for i in range(warm)]
    on_gpu = bench.where != "cuda-sim"
    wait = bench.xp.cuda.runtime.deviceSynchronize if on_gpu else lambda: None
    events = [bench.xp.cuda.Event() for _ in range(steps + 1)] if on_gpu else []
    wait()
    start = time.perf_counter()
    for i in range(steps):
        if on_gpu:
            events[i].record()
        loss = engine.step(*pairs[i % len(pairs)])
    if on_gpu:
        events[steps].record()
    asking = 1e3 * (time.perf_counter() - start) / steps
    wait()
    whole = 1e3 * (time.perf_counter() - start) / steps
    losses.append(float(loss.item()))
    each = [whole]
    if on_gpu:
        elapsed = bench.xp.cuda.get_elapsed_time
        each = sorted(float(elapsed(a, b)) for a, b in itertools.pairwise(events))
    return Timing(max(whole, statistics.median(each)), each[0], each[-1], asking), losses


def losses_group(bench: Bench) -> None:
    """100 steps in bfloat16 and in float32 on the same data."""
    sizes = TINY if bench.tiny else GPT2
    flops = 4 * sizes.T * _flops(sizes) * FLOAT32_SLOWER
    work = Work(flops=flops, peers=0, runs=100, kernels=(*BFLOAT16, *FLOAT32))
    bench.case("bfloat16 beside float32", lambda: _losses(bench, sizes), work)


def _losses(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    steps, B = (3, 2) if bench.tiny else (100 if bench.share is None else 1, 4)
    data = batches(sizes, B, 8)
    found = []
    for autocast in (True, False):
        engine = Ours(bench, sizes, autocast, False)
        pairs = [(engine.put(ids[:, :-1]), engine.put(ids[:, 1:])) for ids in data]
        kept = [engine.step(*pairs[i % len(pairs)]) for i in range(steps)]
        found.append([float(loss.item()) for loss in kept])
        del engine, kept
        bench.tidy()
    apart = [abs(a - b) / abs(b) for a, b in zip(*found, strict=True)]
    text = (
        f"losses {found[1][0]:.3f} … {found[1][-1]:.3f}, furthest apart "
        f"{100 * max(apart):.2f} % at step {apart.index(max(apart))} (1 % is allowed)"
    )
    good = all(map(math.isfinite, apart)) and max(apart) <= 0.01
    ratio = min(1.0, 0.01 / max(max(apart), 1e-12))
    return {"text": text, "bfloat16": found[0], "float32": found[1], "apart": max(apart),
            "ratio": ratio, "target": 1.0, "good": good}  # fmt: skip
