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
    "memory_allocated",
    "synchronize",
]


def is_available() -> bool:
    """Whether CuPy is installed and sees at least one CUDA device."""
    return cuda_device_count() > 0


def device_count() -> int:
    """How many CUDA devices CuPy sees."""
    return cuda_device_count()


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
