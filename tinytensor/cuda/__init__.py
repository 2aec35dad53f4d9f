"""`tt.cuda`: what a script asks about GPUs. Works, and says no, on a machine without CuPy."""

from __future__ import annotations

from ..backend import OutOfMemoryError, cuda_device_count
from ..random import Generator
from ..random import manual_seed as manual_seed
from . import operations as operations
from .graph import graph as graph
from .memory import (
    Device,
    empty_cache,
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    memory_summary,
    reset_peak_memory_stats,
)
from .memory import gpu as _gpu
from .memory import number_of as _number
from .memory import on as _on

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
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "reset_peak_memory_stats",
    "set_device",
    "synchronize",
]


def is_available() -> bool:
    """Whether CuPy is installed and sees at least one CUDA device."""
    return cuda_device_count() > 0


def device_count() -> int:
    """How many CUDA devices CuPy sees."""
    return cuda_device_count()


def set_device(device: Device) -> None:
    """Allocate and compute on this GPU from now on."""
    _gpu().cuda.Device(_number(device)).use()


def current_device() -> int:
    """The number of the GPU that is allocated and computed on."""
    return _number(None)


def synchronize(device: Device = None) -> None:
    """Wait until the device has finished everything that was asked of it."""
    with _on(device):
        _gpu().cuda.runtime.deviceSynchronize()


# --- what the GPU is -----------------------------------------------------------------------------


def get_device_name(device: Device = None) -> str:
    """The GPU's name, such as "NVIDIA H200"."""
    name = _gpu().cuda.runtime.getDeviceProperties(_number(device))["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def get_device_capability(device: Device = None) -> tuple[int, int]:
    """The compute capability: (9, 0) for Hopper."""
    found = _gpu().cuda.runtime.getDeviceProperties(_number(device))
    return int(found["major"]), int(found["minor"])


def is_bf16_supported() -> bool:
    """Whether the current GPU multiplies bfloat16 on tensor cores: compute capability 8.0 on."""
    return is_available() and get_device_capability() >= (8, 0)


# --- random numbers ------------------------------------------------------------------------------


def manual_seed_all(seed: int) -> Generator:
    """`tt.manual_seed`: one generator serves all devices, the CPU too, so there is one seed."""
    return manual_seed(seed)
