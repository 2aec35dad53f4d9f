"""Where `bench` measures: the device, the clock, PyTorch where it is installed, and the lines.

PyTorch runs on CUDA's default stream, as CuPy does, so that one pair of events times either.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, DType, bfloat16, cupy
from ..random import Draw
from . import elementwise
from .device import sim
from .groups import FAILED, GOOD, LOST, Journal
from .memory import max_memory_allocated, memory_allocated, reset_peak_memory_stats
from .tiles import limits

FLOAT32: DType = np.dtype(np.float32)
FLUSH_BYTES = 1 << 30  # several times any L2; takes about as long as Python asking for a kernel
LONGEST = 3.0  # seconds of a measurement, beside the warm-up
LEARNING = {"lr": 6e-4, "betas": (0.9, 0.95), "eps": 1e-8}


class Timing(NamedTuple):
    """Milliseconds: the median, the quartiles, and how long asking took."""

    median: float
    low: float
    high: float
    asking: float


class Work(NamedTuple):
    """What one run of a case asks of the GPU, for the plan (`bench_plan.py`): bytes moved, floating
    point operations, how many peers run it, how many functions PyTorch compiles; and how often it
    is run. `kernels`: the variants of ours that are compiled for it, by a name, and how many.
    """

    bytes: float = 0.0
    flops: float = 0.0
    peers: int = 1
    graphs: int = 0
    runs: int = 33  # of ours, and of each peer
    kernels: tuple[tuple[str, int], ...] = ()


class Bench:
    """Where a group works: the device, the clock, PyTorch if there is one.

    `share` (i, n): a rehearsal of the i-th of n parts of the cases. Each is run once, which
    compiles it, and nothing is timed.
    """

    def __init__(
        self, journal: Journal, where: str, tiny: bool, share: tuple[int, int] | None = None
    ) -> None:
        self.journal, self.where, self.tiny, self.share = journal, where, tiny, share
        self.number = 0
        self.xp: Any = sim if where == "cuda-sim" else cupy()
        self.rng = np.random.default_rng(0)
        self.draws = 0

    @cached_property
    def torch(self) -> Any:
        """PyTorch, or None: a yardstick that need not be there."""
        name = "torch"
        if importlib.util.find_spec(name) is None:
            return None
        library = importlib.import_module(name)
        if self.where != "cuda-sim" and not library.cuda.is_available():
            return None
        return library

    @cached_property
    def flush(self) -> Any:
        return self.xp.empty(1 << 10 if self.tiny else FLUSH_BYTES, np.uint8)

    def time(self, run: Callable[[], Any], repeats: int = 30, warm: int = 3) -> Timing:
        """`run`, which asks for work on the current stream and does not wait for it."""
        if self.tiny:
            run()
            start = time.perf_counter()
            run()
            took = 1e3 * (time.perf_counter() - start)
            return Timing(took, took, took, took)
        cuda = self.xp.cuda
        if self.share is not None:
            run()
            cuda.runtime.deviceSynchronize()
            return Timing(1.0, 1.0, 1.0, 1.0)
        repeats = self._warmed(run, repeats, warm)
        pairs, asking = [], []
        for number in range(repeats):
            pair = cuda.Event(), cuda.Event()
            self.flush[...] = number % 256
            pair[0].record()
            start = time.perf_counter()
            run()
            asking.append(1e3 * (time.perf_counter() - start))
            pair[1].record()
            pairs.append(pair)
        cuda.runtime.deviceSynchronize()
        times = sorted(float(cuda.get_elapsed_time(a, b)) for a, b in pairs)
        quarter = len(times) // 4
        return Timing(
            statistics.median(times), times[quarter], times[-1 - quarter], statistics.median(asking)
        )

    def _warmed(self, run: Callable[[], Any], repeats: int, warm: int) -> int:
        """Run it `warm` times, and say how often to time it: less often if one takes very long."""
        took = 0.0
        for _ in range(warm):
            start = time.perf_counter()
            run()
            self.xp.cuda.runtime.deviceSynchronize()
            took = time.perf_counter() - start
        return max(3, min(repeats, int(LONGEST / max(took, 1e-9))))

    def array(self, *shape: int, dtype: DType = bfloat16, scale: float = 1.0) -> Array:
        """Random numbers on the device; large arrays are made there."""
        if self.where != "cuda-sim":
            self.draws += 1
            x = elementwise.random_normal(shape, Draw(self.draws, 0), 0.0, scale, self.xp)
            return x.astype(dtype, copy=False)
        x = self.rng.standard_normal(shape, np.float32) * np.float32(scale)
        return self.xp.asarray(x.astype(dtype))

    def integers(self, high: int, *shape: int) -> Array:
        return self.xp.asarray(self.rng.integers(0, high, shape))

    def peer(self, x: Array, gradient: bool = False) -> Any:
        """The same numbers as a tensor of PyTorch's, in memory of its own."""
        plain = x.view(np.int16) if x.dtype == bfloat16 else x
        if self.where == "cuda-sim":
            tensor = self.torch.from_numpy(self.xp.asnumpy(plain))
        else:
            tensor = self.torch.from_dlpack(plain)
        tensor = tensor.view(self.torch.bfloat16) if x.dtype == bfloat16 else tensor
        tensor = tensor.clone()
        return tensor.requires_grad_() if gradient else tensor

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self.tiny else self.torch.compile(function, dynamic=False)

    @property
    def hopper(self) -> bool:
        """Whether there is wgmma to time."""
        return limits(self.xp).hopper

    def case(self, name: str, run: Callable[[], dict[str, Any]], work: Work) -> None:
        """`run` answers the numbers; 'text' is what the table says."""
        self.number += 1
        if self.share is not None and self.number % self.share[1] != self.share[0]:
            return

        def told() -> tuple[str, str, dict[str, Any]]:
            numbers = run()
            return numbers.pop("state", GOOD), numbers.pop("text"), numbers

        row = self.journal.case(name, told)
        if row is not None and row.state == FAILED and self.where != "cuda-sim":
            try:
                self.xp.cuda.runtime.deviceSynchronize()
            except Exception:  # the process has lost the GPU; the parent starts another one
                raise SystemExit(LOST) from None
        self.tidy()

    def tidy(self) -> None:
        """Give memory back: what one case held, the next may need, and PyTorch has its own pool."""
        gc.collect()
        if self.where != "cuda-sim":
            self.xp.get_default_memory_pool().free_all_blocks()
            if self.torch is not None:
                self.torch.cuda.empty_cache()

    def memory(self, run: Callable[[], Any]) -> float | None:
        """The most bytes that `run` holds at one time beside what there was; None in the
        simulator.
        """
        if self.where == "cuda-sim":
            return None
        before = memory_allocated()
        reset_peak_memory_stats()
        run()
        return float(max_memory_allocated() - before)

    def bandwidth(self) -> float:
        """Bytes a second of a large copy, read and written."""
        a = self.array(64, dtype=FLOAT32) if self.tiny else self.xp.ones(1 << 28, np.float32)
        b = self.xp.empty_like(a)
        return float(2 * a.nbytes / (self.time(lambda: self.xp.copyto(b, a)).median / 1e3))


class Peers(dict[str, Timing]):
    """The times of others; one that fails says why in its place, and ours is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[str, str] = {}

    def time(self, name: str, measure: Callable[[], Timing]) -> None:
        """Set a peer up and time it."""
        try:
            self[name] = measure()
        except Exception as error:
            self.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]


def against(ours: Timing, peers: Peers, target: float | None, **more: Any) -> Any:
    """The line of a case that has peers; the ratio is to the fastest that is compared."""
    text = f"ours {_ms(ours)}" + "".join(f", {name} {_ms(t)}" for name, t in peers.items())
    text += "".join(f"; {name} failed: {why}" for name, why in peers.failed.items())
    numbers: dict[str, Any] = {"ours": ours._asdict(), "text": text, **more}
    numbers |= {name: t._asdict() for name, t in peers.items()}
    if peers:
        numbers["ratio"] = min(t.median for t in peers.values()) / ours.median
    if target is not None:
        numbers["target"] = target
    return numbers


def _ms(t: Timing) -> str:
    return f"{t.median:.3f} ms ({t.low:.3f}–{t.high:.3f})"
