"""How long a training step of the article's model takes, here and in PyTorch.

One process, the same lines of code for both: the source of `gpt/bigram.py` is executed once more
with its import lines changed to PyTorch's. PyTorch runs it twice. The result compares with the
first, which is as the article has it: a loop over the heads, and AdamW as it comes. The second is
as quick as PyTorch gets without compiling: all heads together, as they are written in that file,
and the fused AdamW. All start from the same weights and see the same batches (32 windows of 8
characters), and take turns, so that whatever else the machine does strikes all. A step is forward,
zero_grad, backward and AdamW. PyTorch is optional: without it only the times of tinytensor are
printed. Then the wrapper around one operation: how much longer a recorded multiplication of two
tensors takes than NumPy's of the arrays inside.

Runs for about 20 seconds. The last line is the result, as in
"tinytensor 18.3 ms, PyTorch 23.0 ms: 1.24 times as fast; wrapper 3.5 us an operation".
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable

from arguments import at_least
from cpu_benchmark.processes import set_threads
from cpu_benchmark.torch_source import torch_model_module

VOCAB_SIZE, BLOCK_SIZE, BATCH_SIZE = 65, 8, 32
ARTICLE, QUICKEST = "PyTorch", "PyTorch, at its quickest"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=at_least(1), default=20, help="turns of each library")
    add("--steps", type=at_least(2), default=20, help="training steps a turn")
    add("--threads", type=at_least(1), help="for both (default: what each takes by itself)")
    return parser.parse_args()


def loop_over_heads(self, x):
    """`MultiHeadAttention.forward` as the article has it."""
    import torch

    return self.dropout(self.proj(torch.cat([head(x) for head in self.sa_head], dim=-1)))


def training_step(model, optimizer) -> Callable:
    """One step as a function of a batch, in the common language of both libraries."""

    def step(x, y):
        _, loss = model(x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def timed(step: Callable, batches: list) -> tuple[list[float], float]:
    """Seconds of each step, and the last loss."""
    seconds = []
    for x, y in batches:
        start = time.perf_counter()
        loss = step(x, y)
        seconds.append(time.perf_counter() - start)
    return seconds, loss.item()


def microseconds(function: Callable[[], object], calls: int, repeats: int = 25) -> float:
    """The time of one call: the least of several repeats, since whatever disturbs only adds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e6


def main() -> None:
    arguments = parse_arguments()
    set_threads(arguments.threads)  # before NumPy: its BLAS reads the variables when it is loaded

    import numpy as np
    from cpu_benchmark.machine import processor

    import tinytensor as tt
    from gpt.model import BigramLanguageModel

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"threads: {arguments.threads or 'what each library takes by itself'}")
    print(f"NumPy {np.__version__} with {blas}")

    tt.manual_seed(0)
    model = BigramLanguageModel(VOCAB_SIZE, BLOCK_SIZE)
    weights = {name: weight.numpy().copy() for name, weight in model.state_dict().items()}
    libraries = {"tinytensor": tt}
    steps = {"tinytensor": training_step(model, tt.optim.AdamW(model.parameters(), lr=1e-3))}

    if importlib.util.find_spec("torch"):
        import torch

        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
        for name in (ARTICLE, QUICKEST):
            module = torch_model_module()
            if name == ARTICLE:
                module.MultiHeadAttention.forward = loop_over_heads
            torch_model = module.BigramLanguageModel(VOCAB_SIZE, BLOCK_SIZE)
            torch_model.load_state_dict({key: torch.from_numpy(w) for key, w in weights.items()})
            libraries[name] = torch
            fused = True if name == QUICKEST else None
            optimizer = torch.optim.AdamW(torch_model.parameters(), lr=1e-3, fused=fused)
            steps[name] = training_step(torch_model, optimizer)
    else:
        print("PyTorch is not installed; with it (pip install torch) both are compared")

    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    ratios, losses = [], {}
    for turn in range(arguments.rounds + 1):
        ids = rng.integers(VOCAB_SIZE, size=(arguments.steps, BATCH_SIZE, BLOCK_SIZE + 1))
        medians = {}
        for name in list(libraries)[:: 1 if turn % 2 else -1]:
            tensor = libraries[name].from_numpy
            batches = [(tensor(i[:, :-1].copy()), tensor(i[:, 1:].copy())) for i in ids]
            times, losses[name] = timed(steps[name], batches)
            medians[name] = statistics.median(times)
            if turn:  # the first turn warms caches and allocators up
                seconds[name] += times
        if turn and len(medians) > 1:
            ratios.append(medians[ARTICLE] / medians["tinytensor"])

    for name, times in seconds.items():
        q1, median, q3 = statistics.quantiles([1e3 * t for t in times], n=4)
        print(
            f"{name:<24}{median:6.2f} ms a step (quartiles {q1:.2f} and {q3:.2f}), "
            f"loss after all of them {losses[name]:.4f}"
        )
    if ratios:
        print(f"turn by turn: from {min(ratios):.2f} to {max(ratios):.2f} times as fast")
        quickest = statistics.median(seconds[QUICKEST]) / statistics.median(seconds["tinytensor"])
        print(f"beside {QUICKEST}: {quickest:.2f} times as fast")

    a = tt.randn(16, requires_grad=True)
    b = tt.randn(16, requires_grad=True)
    raw_a, raw_b = a.detach().numpy(), b.detach().numpy()
    calls = 1000 * max(1, arguments.rounds // 2)
    recorded = microseconds(lambda: a * b, calls)
    raw = microseconds(lambda: raw_a * raw_b, calls)
    print(f"multiply: recorded {recorded:.2f} us, NumPy {raw:.2f} us")

    result = f"tinytensor {1e3 * statistics.median(seconds['tinytensor']):.1f} ms"
    if ratios:
        result += f", PyTorch {1e3 * statistics.median(seconds[ARTICLE]):.1f} ms: "
        result += f"{statistics.median(ratios):.2f} times as fast"
    print(f"{result}; wrapper {recorded - raw:.1f} us an operation")


if __name__ == "__main__":
    main()
