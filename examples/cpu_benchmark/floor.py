"""What the parts of a step take when nothing else is in the way: `--breakdown`.

Our engine is not used here, but for the calls. Each matrix product of a step is done by itself, in
its own shape, again and again; exponentials and tanh in arrays that stay in the cache; and every
operation on activations, the clipping and the optimizer as if it were one pass, which reads and
writes each of its arrays once at the rate of NumPy's addition. The calls are our step with layers
so narrow that nothing but calls is left of it: Python, wrappers, NumPy's own overhead. Where
threads help, they do not wait for one another, and the fastest way is taken. So the sum of all is
less than a step takes with NumPy, and nearer to it than the products at their peak.

Shapes: B batch, T time, C channels, H heads, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import threadpoolctl

from .engines import Ours
from .profiling import ATTENTION, HEAD, LINEAR, OPTIMIZER, PARTS, PASSES, profile_steps
from .profiling import seconds_by_part as divided
from .workloads import Workload, parameter_shapes, token_ids

Array = np.ndarray[Any, Any]
Work = Callable[[], object]

TRIES, LEAST, ENOUGH = 5, 0.02, 1.0  # times each is measured; seconds of one, and of all of them
CHUNK = 1 << 15  # floats that stay in a core's cache, with their result
QUERIES = 64  # rows of the causal blocks of attention
WARM_UP, STEPS = 20, 100  # of the narrow model


@dataclass
class Part:
    """Of one step: operations in products, and seconds of what is measured alone."""

    flops: float = 0.0
    products: float = 0.0
    functions: float = 0.0
    passes: float = 0.0
    calls: float = 0.0

    @property
    def seconds(self) -> float:
        return self.products + self.functions + self.passes + self.calls


def measure_parts(workload: Workload) -> dict[str, Any]:
    """For each part of a step (`profiling.PARTS`) a `Part` as a dict."""
    W, threads = workload, blas_threads()
    parts = {name: Part() for name in PARTS}

    for features, out in W.linears():
        parts[LINEAR].products += W.layers * linear_seconds(W.tokens, features, out, threads)
        parts[LINEAR].flops += 6.0 * W.layers * W.tokens * features * out
    parts[HEAD].products = linear_seconds(W.tokens, W.C, W.V, threads)
    parts[HEAD].flops = 6.0 * W.tokens * W.C * W.V
    parts[ATTENTION].products = W.layers * attention_seconds(W, threads)
    parts[ATTENTION].flops = 12.0 * W.C // W.H * W.pairs

    exponential = function_seconds(np.exp, threads)
    parts[ATTENTION].functions = W.pairs * exponential
    parts[HEAD].functions = W.tokens * W.V * exponential
    if W.activation == "gelu_tanh":
        wide = W.layers * W.tokens * 4 * W.C
        parts[PASSES].functions = wide * function_seconds(np.tanh, threads)

    for name, (floats, size) in floats_moved(W).items():
        parts[name].passes = floats * pass_seconds(size, threads)
    for name, seconds in seconds_of_calls(W).items():  # last: it puts clocks into the engine
        parts[name].calls = seconds
    return {name: asdict(part) for name, part in parts.items()}


def floats_moved(workload: Workload) -> dict[str, tuple[float, int]]:
    """By part: how many floats a step reads and writes at least, and the size of the arrays.

    A norm reads its input and writes its output; backward it reads two and writes one. A sum on the
    residual stream reads two and writes one, forward and backward. The activation, four times as
    wide, is read and written, then read twice and written. A bias is added in place, and its
    gradient reads once. Of the pairs only the gradient of softmax is counted. Clipping reads the
    gradients; AdamW reads four arrays and writes three.
    """
    W = workload
    stream = W.tokens * W.C
    wide = sum(out for _, out in W.linears()) // W.C
    parameters = sum(int(np.prod(shape)) for shape in parameter_shapes(W).values())
    norms, sums, activation, lookup = 5 * (2 * W.layers + 1), 12 * W.layers, 20 * W.layers, 5
    return {
        LINEAR: (3.0 * wide * W.layers * stream * W.bias, stream),
        ATTENTION: (3.0 * W.pairs, CHUNK),
        PASSES: (float(stream * (norms + sums + activation + lookup)), stream),
        OPTIMIZER: (8.0 * parameters, parameters),
    }


# ---- Clocks ----


def blas_threads() -> int:
    """How many threads NumPy's BLAS uses; ours are as many."""
    libraries = [lib for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]
    return max((lib["num_threads"] for lib in libraries), default=1)


def elapsed(works: Sequence[Work], repeats: int) -> float:
    """Seconds until each of `works`, on a thread of its own, has been done so many times."""
    ready = threading.Barrier(len(works))

    def loop(work: Work) -> None:
        ready.wait()
        for _ in range(repeats):
            work()

    others = [threading.Thread(target=loop, args=(work,)) for work in works[1:]]
    for thread in others:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for _ in range(repeats):
        works[0]()
    for thread in others:
        thread.join()
    return time.perf_counter() - start


def seconds_of(works: Sequence[Work]) -> float:
    """Seconds that `works` take side by side: the best of several tries."""
    repeats, all_tries = 1, 0.0
    while (seconds := elapsed(works, repeats)) < LEAST:
        repeats = max(2 * repeats, min(1000 * repeats, int(repeats * LEAST / (seconds + 1e-9))))
    best = seconds
    for _ in range(TRIES - 1):
        all_tries += seconds
        if all_tries > ENOUGH:
            break
        seconds = elapsed(works, repeats)
        best = min(best, seconds)
    return best / repeats


def edges(length: int, pieces: int) -> list[tuple[int, int]]:
    """(start, stop) of equal pieces; fewer where there is less to divide."""
    pieces = max(1, min(pieces, length))
    return list(itertools.pairwise(length * i // pieces for i in range(pieces + 1)))


# ---- The parts ----


def product_seconds(a: Array, b: Array, threads: int) -> float:
    """a @ b, whole on BLAS's threads or in pieces (rows, or columns) on as many of ours."""
    out = np.empty((len(a), b.shape[1]), np.float32)
    ways = [seconds_of([partial(np.matmul, a, b, out=out)])]
    if threads > 1:
        rows, columns = edges(len(a), threads), edges(b.shape[1], threads)
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            for works in (
                [partial(np.matmul, a[i:j], b, out=out[i:j]) for i, j in rows],
                [partial(np.matmul, a, b[:, i:j], out=out[:, i:j]) for i, j in columns],
            ):
                ways.append(seconds_of(works))
    return min(ways)


def linear_seconds(tokens: int, features: int, out: int, threads: int) -> float:
    """The three products of a linear layer: its output, and the gradients of input and weight."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((tokens, n), np.float32) for n in (features, out))
    weight = rng.standard_normal((out, features), np.float32)
    return sum(product_seconds(a, b, threads) for a, b in ((x, weight.T), (dy, weight), (dy.T, x)))


def attention_seconds(workload: Workload, threads: int) -> float:
    """The six products of causal attention in one layer, in blocks that stay in the cache.

    Queries are taken 64 at a time, with the keys that they may look at, of as many heads together
    as fit. Each of the three kinds of product below is done twice in a step.
    """
    heads, T, D = workload.B * workload.H, workload.T, workload.C // workload.H
    together = max(1, CHUNK // (min(T, QUERIES) * T))
    rng = np.random.default_rng(0)

    def work(first: int, last: int) -> Work:
        q, k, y = (rng.standard_normal((last - first, T, D), np.float32) for _ in range(3))
        weights = rng.standard_normal((together, QUERIES, T), np.float32)

        def products() -> None:
            for h, start in itertools.product(
                range(0, last - first, together), range(0, T, QUERIES)
            ):
                group, stop = slice(h, min(h + together, last - first)), min(start + QUERIES, T)
                rows, keys = q[group, start:stop], k[group, :stop]
                block = weights[: len(rows), : stop - start, :stop]
                np.matmul(rows, keys.swapaxes(1, 2), out=block)
                np.matmul(block, keys, out=y[group, start:stop])
                np.matmul(block.swapaxes(1, 2), rows, out=y[group, :stop])

        return products

    ways = [seconds_of([work(0, heads)])]
    if threads > 1:
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            ways += [seconds_of([work(0, heads)])]
            ways += [seconds_of([work(i, j) for i, j in edges(heads, threads)])]
    return 2 * min(ways)


def function_seconds(function: np.ufunc, threads: int) -> float:
    """Seconds for one element of `function`, in the cache, on one thread or on all."""

    def work() -> Work:
        x = np.random.default_rng(0).standard_normal(CHUNK, np.float32)
        return partial(function, x, out=np.empty_like(x))

    return min(seconds_of([work() for _ in range(n)]) / n for n in {1, threads}) / CHUNK


def pass_seconds(size: int, threads: int) -> float:
    """Seconds for one float that is read or written, in arrays of this size."""

    def work(pieces: int) -> Work:
        a, b = np.ones((2, max(1, size // pieces)), np.float32)  # zeros would have no memory yet
        return partial(np.add, a, b, out=a)

    return min(seconds_of([work(n) for _ in range(n)]) for n in {1, threads}) / (3 * size)


def seconds_of_calls(workload: Workload) -> dict[str, float]:
    """By part: a step of the same layers with heads of size 2, on 2 x 2 tokens of 8 kinds."""
    narrow = replace(workload, V=8, C=2 * workload.H, B=2, T=2, block_size=2)
    engine = Ours(narrow)
    batches = [engine.batch(i) for i in token_ids(narrow, STEPS, np.random.default_rng(0))]
    for x, y in batches[:WARM_UP]:
        engine.step(x, y)
    profile = profile_steps(engine, batches)
    scale = profile["quickest"] / profile["watched"]
    return {name: scale * seconds for name, seconds in divided(profile).items()}
