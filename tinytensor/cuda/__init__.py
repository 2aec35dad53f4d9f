"""`tt.cuda`: what a script asks about GPUs. Works, and says no, on a machine without CuPy."""

from __future__ import annotations

from ..backend import OutOfMemoryError, cuda_device_count, cupy
from . import operations as operations
from .graph import graph as graph

__all__ = [
    "OutOfMemoryError",
    "device_count",
    "graph",
    "is_available",
    "max_memory_allocated",
    "mem_get_info",
    "memory_allocated",
    "set_device",
    "synchronize",
]


def is_available() -> bool:
    """Whether CuPy is installed and sees at least one CUDA device."""
    return cuda_device_count() > 0


def device_count() -> int:
    """How many CUDA devices CuPy sees."""
    return cuda_device_count()


def set_device(device: int) -> None:
    """Allocate and compute on this GPU from now on."""
    cupy().cuda.Device(device).use()


def mem_get_info(device: int = 0) -> tuple[int, int]:
    """Bytes of a GPU that are free and that it has; what CuPy's pool keeps idle counts as free."""
    module = cupy()
    with module.cuda.Device(device):
        free, total = module.cuda.runtime.memGetInfo()
        return int(free + module.get_default_memory_pool().free_bytes()), int(total)


def synchronize() -> None:
    """Wait until the current device has finished everything that was asked of it."""
    cupy().cuda.runtime.deviceSynchronize()


def memory_allocated() -> int:
    """Bytes that live arrays hold in CuPy's memory pool."""
    return int(cupy().get_default_memory_pool().used_bytes())


def max_memory_allocated() -> int:
    """Bytes that CuPy's memory pool has taken from the device: its high-water mark, as the pool
    keeps them.
    """
    return int(cupy().get_default_memory_pool().total_bytes())
