"""How fast GPT-2 writes on a CPU: here and in `transformers`, both with a cache of keys and values.

One token costs one look at every weight, 498 MB in float32, so that the speed of memory is the
limit: the share of it that is used is printed, against what reading alone reaches on this machine.
Each library runs in a process of its own with the same random weights; that they write the same
tokens is checked before anything is timed, then they take turns.

    python examples/benchmark_generate.py --prompt 32 --tokens 64

`plain` is the loop of most small GPTs, and of our model's own `generate`: no cache, the whole text
again for every token. OPENBLAS_CORETYPE, which only NumPy's BLAS reads, is taken from the processes
(`cpu_benchmark/processes.py`). Runs for about a minute. The last line is the result, as in
"tinytensor 40.3 tokens/s, 45% of the memory's bandwidth; transformers 25.5 tokens/s, 28% of the
memory's bandwidth: 1.58 times as fast".
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import threading
import time
from typing import Any

import numpy as np
from arguments import at_least, file_to_write
from cpu_benchmark.machine import describe_machine, machine_lines
from cpu_benchmark.processes import VARIABLE, Client, set_threads
from cpu_benchmark.workloads import initial_weight

SIZES = {"gpt2": (50_257, 1024, 12, 12, 768), "tiny": (97, 64, 2, 2, 32)}
ENGINES = ("tinytensor", "transformers")
SETTLE = 0.1  # seconds after a turn in which thread pools go to sleep
READ = 1 << 28  # bytes that are read to measure the memory; far more than any cache holds


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", choices=SIZES, default="gpt2")
    add("--prompt", type=at_least(1), default=32, help="tokens in the prompt")
    add("--tokens", type=at_least(2), default=64, help="tokens to write after it")
    add("--batch", type=at_least(1), default=1, help="texts at once")
    add("--rounds", type=at_least(1), default=5, help="turns of each library")
    add("--threads", type=at_least(1), help="for each library (default: what each takes by itself)")
    add("--engines", nargs="+", choices=KINDS, default=list(ENGINES))
    add("--json", type=file_to_write, metavar="FILE", help="write everything measured to this file")
    arguments = parser.parse_args()
    context = SIZES[arguments.size][1]
    if arguments.prompt + arguments.tokens > context:
        parser.error(
            f"--prompt {arguments.prompt} and --tokens {arguments.tokens} are more than the "
            f"context of {context} holds"
        )
    return arguments


# ---- What runs in a process of its own ----


class Ours:
    """This engine, as `python -m gpt generate --temperature 0` runs it."""

    cached = True

    def __init__(self, size: tuple[int, ...]):
        from gpt.model import GPT, GPTConfig
        from gpt.weights import uninitialized

        vocab_size, block_size, layers, heads, width = size
        with uninitialized():
            self.model = GPT(GPTConfig(vocab_size, block_size, layers, heads, width)).eval()
        for name, parameter in self.model.named_parameters():
            parameter.data.numpy()[...] = initial_weight(name, tuple(parameter.shape))

    def bytes(self) -> int:
        """Of the weights, which every token looks at."""
        return sum(p.numel() * 4 for p in self.model.parameters())

    def write(self, prompts: list[list[int]], count: int) -> tuple[list[list[int]], list[float]]:
        """Greedy continuations, and when each token was there."""
        from gpt.contexts import contexts_of

        contexts = contexts_of(self.model, prompts, count, 1, self.cached)
        times = [time.perf_counter()]
        for _ in range(count):
            contexts.append([int(row.argmax()) for row in contexts.next_logits()])
            times.append(time.perf_counter())
        return [text[-count:] for text in contexts.texts], times


class Plain(Ours):
    cached = False


class Transformers:
    """Hugging Face's GPT-2 on PyTorch, with its default cache."""

    def __init__(self, size: tuple[int, ...]):
        import torch
        import transformers

        self.torch = torch
        vocab_size, block_size, layers, heads, width = size
        config = transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=block_size, n_layer=layers, n_head=heads,
            n_embd=width, bos_token_id=0, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        self.model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                matrix = "transformer.h." in name and parameter.ndim == 2  # stored transposed
                shape = tuple(parameter.shape)[:: -1 if matrix else 1]
                weight = initial_weight(name, shape)
                parameter.copy_(torch.from_numpy(weight.T if matrix else weight))

    def bytes(self) -> int:
        return sum(p.numel() * 4 for p in self.model.parameters())

    def write(self, prompts: list[list[int]], count: int) -> tuple[list[list[int]], list[float]]:
        idx = self.torch.tensor(prompts)
        times = [time.perf_counter()]

        class Clock:
            """Is handed the prompt, and then every token."""

            def put(self, value: Any) -> None:
                times.append(time.perf_counter())

            def end(self) -> None:
                pass

        streamer = Clock() if len(prompts) == 1 else None
        with self.torch.inference_mode():
            out = self.model.generate(
                idx, attention_mask=self.torch.ones_like(idx), max_new_tokens=count,
                do_sample=False, use_cache=True, streamer=streamer,
            )  # fmt: skip
        if streamer:
            del times[1]
        else:
            end, start = time.perf_counter(), times[0]
            times = [start + (end - start) * i / count for i in range(count + 1)]
        return out[:, idx.shape[1] :].tolist(), times


KINDS = {"tinytensor": Ours, "transformers": Transformers, "plain": Plain}


# ---- The memory ----


def read_bandwidth(threads: int) -> float:
    """Bytes a second that this many threads read at best, each its part of an array."""
    parts = np.array_split(np.ones(READ // 4, np.float32), threads)

    def seconds() -> float:
        others = [threading.Thread(target=part.max) for part in parts[1:]]
        start = time.perf_counter()
        for thread in others:
            thread.start()
        parts[0].max()
        for thread in others:
            thread.join()
        return time.perf_counter() - start

    return READ / min(seconds() for _ in range(5))


# ---- The comparison ----


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    set_threads(arguments.threads)
    engines = installed(arguments.engines)
    size = SIZES[arguments.size]
    machine = describe_machine({"torch", "transformers"} if "transformers" in engines else set())
    print("\n".join(machine_lines(machine, VARIABLE)))
    rng = np.random.default_rng(0)
    prompts = rng.integers(size[0], size=(arguments.batch, arguments.prompt)).tolist()
    bandwidth = read_bandwidth(arguments.threads or machine["processors"])
    results: dict[str, dict[str, Any]] = {engine: {"prompt": [], "token": []} for engine in engines}
    with contextlib.ExitStack() as stack:
        clients = {e: stack.enter_context(Client(e, KINDS[e], size)) for e in engines}
        weight_bytes = clients[engines[0]]("bytes")
        check({e: client("write", prompts, arguments.tokens)[0] for e, client in clients.items()})
        for _ in range(arguments.rounds):
            for engine, client in clients.items():
                _, times = client("write", prompts, arguments.tokens)
                results[engine]["prompt"].append(times[1] - times[0])
                results[engine]["token"].append((times[-1] - times[1]) / (len(times) - 2))
                time.sleep(SETTLE)
    print(
        f"\n{arguments.size}, {arguments.batch} x {arguments.prompt} tokens of prompt and "
        f"{arguments.tokens} more, float32; {weight_bytes / 1e6:.0f} MB of weights, memory read at "
        f"{bandwidth / 1e9:.1f} GB/s\n"
    )
    print(f"{'':14} {'tokens/s':>9} {'(spread)':>15} {'bandwidth':>10} {'prompt':>9}")
    for engine, result in results.items():
        rates = sorted(arguments.batch / seconds for seconds in result["token"])
        result["rate"] = statistics.median(rates)
        result["share"] = result["rate"] / arguments.batch * weight_bytes / bandwidth
        spread = f"({rates[0]:.1f} to {rates[-1]:.1f})"
        milliseconds = 1e3 * statistics.median(result["prompt"])
        print(
            f"{engine:14} {result['rate']:9.1f} {spread:>15} {result['share']:10.0%} "
            f"{milliseconds:6.0f} ms"
        )
    return {
        "machine": machine,
        "engines": results,
        "bandwidth": bandwidth,
        "weight_bytes": weight_bytes,
    }


def check(written: dict[str, list[list[int]]]) -> None:
    """Says how many tokens agree. Where two are nearly as likely, rounding may choose; the rest of
    that text then differs, but the first tokens of all texts do not.
    """
    (_, first), *_ = written.items()
    for engine, texts in written.items():
        pairs = [
            pair for texts in zip(first, texts, strict=True) for pair in zip(*texts, strict=True)
        ]
        same = sum(a == b for a, b in pairs)
        print(f"{engine}: {same} of {len(pairs)} greedy tokens are the same")
        if [text[0] for text in texts] != [text[0] for text in first]:
            raise SystemExit(f"{engine} does not compute the same: its first tokens are others")


def installed(engines: list[str]) -> list[str]:
    """Those that can run here; `transformers` is named where it cannot."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    found = [e for e in dict.fromkeys(engines) if e != "transformers" or not missing]
    if "transformers" in engines and missing:
        print(f"transformers is left out: pip install {' '.join(missing)} brings it")
    if not found:
        raise SystemExit("none of the engines is installed, so that there is nothing to time")
    return found


def summary(results: dict[str, dict[str, Any]]) -> str:
    line = "; ".join(
        f"{engine} {result['rate']:.1f} tokens/s, {result['share']:.0%} of the memory's bandwidth"
        for engine, result in results.items()
    )
    if {"tinytensor", "transformers"} <= results.keys():
        ratio = results["tinytensor"]["rate"] / results["transformers"]["rate"]
        line += f": {ratio:.2f} times as fast"
    return line


if __name__ == "__main__":
    arguments = parse_arguments()
    measured = main(arguments)
    if arguments.json:
        options = {**vars(arguments), "json": str(arguments.json)}
        arguments.json.write_text(json.dumps({**options, **measured}, indent=1) + "\n")
    print("\n" + summary(measured["engines"]))
