"""`tt.cuda`: what a script asks about GPUs. Works, and says no, on a machine without CuPy."""

from __future__ import annotations

from typing import Any

from ..backend import OutOfMemoryError, cuda_device_count, cupy
from ..backend import device as _device
from ..random import Generator
from ..random import manual_seed as manual_seed
from . import operations as operations
from .graph import graph as graph
from .graph import live_pools as _live_pools

__all__ = [
    "OutOfMemoryError",
    "current_device",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "graph",
    "is_available",
    "is_bf16_supported",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "reset_peak_memory_stats",
    "set_device",
    "synchronize",
]

Device = _device | str | int | None


def is_available() -> bool:
    """Whether CuPy is installed and sees at least one CUDA device."""
    return cuda_device_count() > 0


def device_count() -> int:
    """How many CUDA devices CuPy sees."""
    return cuda_device_count()


def set_device(device: Device) -> None:
    """Allocate and compute on this GPU from now on."""
    cupy().cuda.Device(_number(device)).use()


def current_device() -> int:
    """The number of the GPU that is allocated and computed on."""
    return int(cupy().cuda.Device().id)


def synchronize(device: Device = None) -> None:
    """Wait until the device has finished everything that was asked of it."""
    with _on(device):
        cupy().cuda.runtime.deviceSynchronize()


def _number(device: Device) -> int:
    if device is None or isinstance(device, int):
        return current_device() if device is None else device
    where = _device(device)
    if where.type != "cuda":
        raise ValueError(f"tt.cuda asks about GPUs, and {str(where)!r} is none; write 'cuda:0'")
    return where.index or 0


def _on(device: Device) -> Any:
    return cupy().cuda.Device(_number(device))


# --- what the GPU is -----------------------------------------------------------------------------


def get_device_name(device: Device = None) -> str:
    """The GPU's name, such as "NVIDIA H200"."""
    name = cupy().cuda.runtime.getDeviceProperties(_number(device))["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def get_device_capability(device: Device = None) -> tuple[int, int]:
    """The compute capability: (9, 0) for Hopper."""
    found = cupy().cuda.runtime.getDeviceProperties(_number(device))
    return int(found["major"]), int(found["minor"])


def is_bf16_supported() -> bool:
    """Whether the current GPU multiplies bfloat16 on tensor cores: compute capability 8.0 on."""
    return is_available() and get_device_capability() >= (8, 0)


# --- memory --------------------------------------------------------------------------------------


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Bytes of a GPU that are free and that it has; what CuPy's pool keeps idle counts as free."""
    with _on(device):
        free, total = cupy().cuda.runtime.memGetInfo()
        return int(free + cupy().get_default_memory_pool().free_bytes()), int(total)


def memory_allocated(device: Device = None) -> int:
    """Bytes that live arrays hold, and captured steps."""
    with _on(device):
        return sum(int(pool.used_bytes()) for pool in _pools())


def memory_reserved(device: Device = None) -> int:
    """Bytes that have been taken from the GPU: those of live arrays, and those kept for the
    next.
    """
    with _on(device):
        return sum(int(pool.total_bytes()) for pool in _pools())


def max_memory_allocated(device: Device = None) -> int:
    """A bound on what live arrays have held at once: `memory_reserved`, since memory that was
    taken is kept.

    To count exactly, every allocation would have to wait for a sum over all arrays. The bound is
    what a GPU must have for the program to run; `reset_peak_memory_stats` makes it begin anew.
    """
    return memory_reserved(device)


def empty_cache() -> None:
    """Give back to the GPU what no array holds, for other programs (PyTorch, say) to use."""
    cupy().get_default_memory_pool().free_all_blocks()


def reset_peak_memory_stats(device: Device = None) -> None:
    """Let `max_memory_allocated` begin at what live arrays hold now: `empty_cache` on a device."""
    with _on(device):
        empty_cache()


def _pools() -> list[Any]:
    return [cupy().get_default_memory_pool(), *_live_pools()]


# --- random numbers ------------------------------------------------------------------------------


def manual_seed_all(seed: int) -> Generator:
    """`tt.manual_seed`: one generator serves all devices, the CPU too, so there is one seed."""
    return manual_seed(seed)
