"""Array modules and devices: the only file that imports CuPy.

Everything above works on "an array" and asks here which module computes on it. `array_module(x)`
answers `numpy`, `cupy`, or, when `x` is itself a Tensor (a derivative of a derivative is being
taken), the engine's own namespace of functions under NumPy's names. Read `autograd.py` next.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

# An array of one of the registered modules. Python's type system has no name for "NumPy or CuPy
# array, or a Tensor standing in for one", so signatures say Array where a reader wants to know.
Array = Any
DType = np.dtype[Any]

bfloat16: DType = np.dtype(ml_dtypes.bfloat16)
default_dtype: DType = np.dtype(np.float32)

# type of array -> module of functions for it. CuPy and Tensor add themselves.
_modules: dict[type, Any] = {np.ndarray: np}


def register_array_type(kind: type, module: Any) -> None:
    """Let `array_module` answer `module` for arrays of type `kind`."""
    _modules[kind] = module


def is_array(x: object) -> bool:
    """Whether `x` is an array of a registered module (a Tensor counts, a Python scalar does
    not).
    """
    return type(x) in _modules or isinstance(x, np.generic)


def array_module(*arrays: Any) -> Any:
    """The module whose functions compute on `arrays`: `numpy`, `cupy`, or the engine's own.

    Python scalars, None and NumPy arrays do not decide; the first argument that is something else
    does.
    """
    for array in arrays:
        kind = type(array)
        if kind is not np.ndarray:
            module = _modules.get(kind)
            if module is not None:
                return module
    return np


def cupy() -> ModuleType:
    """CuPy, imported on first use; a sentence that says what is missing where it cannot be."""
    if importlib.util.find_spec("cupy") is None:
        raise RuntimeError(
            "device 'cuda' needs CuPy, which is not installed: pip install "
            "'tinytensor-gpt[cuda13]' "
            "(or [cuda12] for a CUDA 12 driver)"
        )
    module = importlib.import_module("cupy")
    register_array_type(module.ndarray, module)
    return module


def cuda_device_count() -> int:
    """How many CUDA devices CuPy can use; 0 without CuPy, a driver or a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return 0
    try:
        return int(cupy().cuda.runtime.getDeviceCount())
    except (ImportError, RuntimeError):  # CuPy without a driver raises CUDARuntimeError
        return 0


class device:
    """Where an array lives: `device("cpu")`, `device("cuda")` or, a numbered one, `"cuda:1"`."""

    __slots__ = ("index", "type")

    type: str
    index: int | None

    def __init__(self, type: str | device, index: int | None = None) -> None:
        name, _, number = str(type).partition(":")  # str(device("cuda", 1)) is "cuda:1"
        if name == "auto":
            name = "cuda" if cuda_device_count() else "cpu"
        if name not in ("cpu", "cuda") or (number and not number.isdigit()):
            raise ValueError(f"device {type!r} is unknown; use 'cpu', 'cuda', 'cuda:N' or 'auto'")
        self.type = name
        self.index = int(number) if number else index

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            other = device(other)
        if not isinstance(other, device):
            return NotImplemented
        return (self.type, self.index or 0) == (other.type, other.index or 0)

    def __hash__(self) -> int:
        return hash((self.type, self.index or 0))

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        index = "" if self.index is None else f", index={self.index}"
        return f"device(type={self.type!r}{index})"


CPU = device("cpu")


def device_of(array: Array) -> device:
    """The device that holds `array`."""
    if isinstance(array, np.ndarray | np.generic):
        return CPU
    return device("cuda", int(array.device.id))


def module_for(where: device | str | None) -> Any:
    """The array module that creates arrays on `where` (None is the CPU)."""
    where = CPU if where is None else device(where)
    if where.type == "cpu":
        return np
    module = cupy()
    count = cuda_device_count()
    if (where.index or 0) >= count:
        raise RuntimeError(
            f"device '{where}' was asked for, but CuPy sees {count} CUDA devices here; "
            "check the driver with nvidia-smi, or use device='cpu'"
        )
    return module


def to_device(array: Array, where: device | str) -> Array:
    """`array` on `where`; the same object when it is there already."""
    where = device(where)
    if device_of(array) == where:
        return array
    if where.type == "cpu":
        return cupy().asnumpy(array)
    module = module_for(where)
    with module.cuda.Device(where.index or 0):
        return module.asarray(array)


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """`array` as a NumPy array, copied from the GPU if it lives there."""
    return array if isinstance(array, np.ndarray) else np.asarray(to_device(array, CPU))


def memory_range(array: Array) -> tuple[int, int]:
    """First and one-past-last address of the memory that `array` touches."""
    if isinstance(array, np.ndarray):
        return np.lib.array_utils.byte_bounds(array)
    low, high = module_of(array).byte_bounds(array)
    return int(low), int(high)


def module_of(array: Array) -> Any:
    """The module that `array`'s type was registered with."""
    return _modules[type(array)]


def module_of_type(kind: type) -> Any:
    """The module that arrays of type `kind` were registered with."""
    return _modules[kind]


def is_floating(dtype: DType) -> bool:
    """Whether `dtype` can carry a gradient (bfloat16 included: NumPy files it under kind 'V')."""
    return dtype.kind == "f" or dtype == bfloat16
