"""How much of a GPU's memory this program has, in PyTorch's words, and the sentence when it is too
little.

CuPy's pool takes memory from the GPU and keeps what arrays give back, for the next ones. *Reserved*
is what it took, *allocated* what live arrays hold of that. Both grow only when memory is asked for,
and the pool counts them; so one look after each allocation finds their peaks, exactly. A captured
step (`graph.py`) has a pool of its own, which is counted too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from ..backend import (
    OutOfMemoryError,
    device,
    module_for,
    module_of_type,
    when_cupy_arrives,
)

__all__ = [
    "StepMemory",
    "empty_cache",
    "gpu",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "number_of",
    "on",
    "reset_peak_memory_stats",
    "watched",
]

Device = device | str | int | None

LOWER = "lower the batch size (and accumulate gradients over more micro-batches), or the context"


# --- which device --------------------------------------------------------------------------------


def gpu() -> Any:
    """CuPy, with a GPU; RuntimeError with a sentence where there is none."""
    return module_for("cuda")


def number_of(where: Device) -> int:
    """The number of a GPU: given as such, by its name, or the current one."""
    if where is None or isinstance(where, int):
        return int(gpu().cuda.Device().id) if where is None else where
    found = device(where)
    if found.type != "cuda":
        raise ValueError(f"tt.cuda asks about GPUs, and {str(found)!r} is none; write 'cuda:0'")
    return found.index or 0


def on(where: Device) -> Any:
    """A `with` block in which this GPU is the current one."""
    return gpu().cuda.Device(number_of(where))


# --- what allocates ------------------------------------------------------------------------------

# By device: the most bytes allocated and reserved, and how often there were too few.
_peaks: dict[int, list[int]] = {}
_failures: dict[int, int] = {}


def _now(module: Any) -> tuple[int, int]:
    """Bytes allocated and reserved on the current device, of all pools."""
    pool = module.get_default_memory_pool()
    allocated, reserved = pool.used_bytes(), pool.total_bytes()
    for own in _of_steps if len(_of_steps) else ():
        if own.module is module:  # and not "cuda-sim"
            allocated += own.pool.used_bytes()
            reserved += own.pool.total_bytes()
    return int(allocated), int(reserved)


def _noted(module: Any, found: Any) -> Any:
    """What an allocation gave; the peaks follow it."""
    allocated, reserved = _now(module)
    peaks = _peaks.setdefault(int(module.cuda.runtime.getDevice()), [0, 0])
    if allocated > peaks[0]:
        peaks[0] = allocated
    if reserved > peaks[1]:
        peaks[1] = reserved
    return found


def watched(module: Any) -> Callable[[int], Any]:
    """CuPy's default pool as an allocator that keeps the peaks, and says in a sentence when there
    is no more.
    """
    pool = module.get_default_memory_pool()

    def allocate(size: int) -> Any:
        try:
            found = pool.malloc(size)
        except module.cuda.memory.OutOfMemoryError:
            free, total = module.cuda.runtime.memGetInfo()
            _count_failure(module)
            limit = pool.get_limit()
            allowed = f" ({limit / 2**30:.1f} GiB are allowed to CuPy)" if limit else ""
            raise OutOfMemoryError(
                f"out of memory: {size / 2**30:.2f} GiB were asked for; of the GPU's "
                f"{total / 2**30:.1f} GiB this program's arrays hold {_now(module)[0] / 2**30:.1f} "
                f"and {free / 2**30:.1f} are free{allowed}; {LOWER}"
            ) from None
        return _noted(module, found)

    return allocate


def _count_failure(module: Any) -> None:
    here = int(module.cuda.runtime.getDevice())
    _failures[here] = _failures.get(here, 0) + 1


@when_cupy_arrives
def _install(kind: type) -> None:
    module = module_of_type(kind)
    module.cuda.set_allocator(watched(module))


class StepMemory:
    """The pool of one captured step. Blocks that it gave once stay the step's: its graph repeats
    their addresses.
    """

    def __init__(self, module: Any) -> None:
        self.module, self.pool = module, module.cuda.MemoryPool()
        _of_steps.add(self)

    def malloc(self, size: int, capturing: bool = False) -> Any:
        """Memory for an array of the step, or OutOfMemoryError with a sentence."""
        held = self.pool.total_bytes()
        try:
            found = self.pool.malloc(size)
        except self.module.cuda.memory.OutOfMemoryError:
            _count_failure(self.module)
            raise self._too_little(size, held) from None
        if capturing and self.pool.total_bytes() < held:  # blocks went back that the graph uses
            raise self._too_little(size, held)
        return _noted(self.module, found)

    def _too_little(self, size: int, held: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"out of memory: a captured step asked for {size / 2**30:.2f} GiB, beside "
            f"{held / 2**30:.1f} GiB that its graph holds; {LOWER}"
        )


_of_steps: weakref.WeakSet[StepMemory] = weakref.WeakSet()


# --- what users ask ------------------------------------------------------------------------------


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Bytes of a GPU that are free and that it has; what CuPy's pool keeps idle counts as free."""
    with on(device):
        free, total = gpu().cuda.runtime.memGetInfo()
        return int(free + gpu().get_default_memory_pool().free_bytes()), int(total)


def memory_allocated(device: Device = None) -> int:
    """Bytes that live arrays hold, and captured steps."""
    with on(device):
        return _now(gpu())[0]


def memory_reserved(device: Device = None) -> int:
    """Bytes that have been taken from the GPU: those of live arrays, and those kept for the
    next.
    """
    with on(device):
        return _now(gpu())[1]


def max_memory_allocated(device: Device = None) -> int:
    """The most bytes that live arrays and captured steps held at one time, since the start or
    `reset_peak_memory_stats`.
    """
    return memory_stats(device)["allocated_bytes.all.peak"]


def max_memory_reserved(device: Device = None) -> int:
    """The most bytes that were taken from the GPU at one time: what it must have for this."""
    return memory_stats(device)["reserved_bytes.all.peak"]


def reset_peak_memory_stats(device: Device = None) -> None:
    """Let the peaks begin at what is allocated and reserved now."""
    where = number_of(device)
    with on(where):
        _peaks[where] = list(_now(gpu()))


def memory_stats(device: Device = None) -> dict[str, int]:
    """Allocated and reserved bytes, now and at their peak, and how often there were too few: by
    those of PyTorch's keys that have a meaning here.
    """
    where = number_of(device)
    with on(where):
        now = _now(gpu())
    peaks = list(map(max, now, _peaks.get(where, now)))
    return {
        "allocated_bytes.all.current": now[0],
        "allocated_bytes.all.peak": peaks[0],
        "reserved_bytes.all.current": now[1],
        "reserved_bytes.all.peak": peaks[1],
        "num_ooms": _failures.get(where, 0),
    }


def memory_summary(device: Device = None) -> str:
    """`memory_stats` and the GPU's own figures, to print."""
    where = number_of(device)
    stats, (free, total) = memory_stats(where), mem_get_info(where)
    lines = [f"GPU {where}: {total / 2**20:,.0f} MiB, {free / 2**20:,.0f} free", ""]
    lines.append(f"{'MiB':10} {'now':>12} {'peak':>12}")
    for kind in ("allocated", "reserved"):
        now, peak = (stats[f"{kind}_bytes.all.{when}"] / 2**20 for when in ("current", "peak"))
        lines.append(f"{kind:10} {now:12,.1f} {peak:12,.1f}")
    return "\n".join([*lines, f"out of memory {stats['num_ooms']} times"])


def empty_cache() -> None:
    """Give back to the GPU what no array holds, for other programs (PyTorch, say) to use."""
    gpu().get_default_memory_pool().free_all_blocks()
