"""Array modules and devices: the only file that imports CuPy.

Everything above works on "an array" and asks here which module computes on it. `array_module(x)`
answers `numpy`, `cupy`, or, when `x` is itself a Tensor (a derivative of a derivative is being
taken), the engine's own namespace of functions under NumPy's names. The device "cuda-sim" has
arrays of its own (`cuda/device.py`), which behave as CuPy's on a machine without a GPU. Read
`autograd.py` next.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

# An array of one of the registered modules. Python's type system has no name for "NumPy or CuPy
# array, or a Tensor standing in for one", so signatures say Array where a reader wants to know.
Array = Any
DType = np.dtype[Any]

bfloat16: DType = np.dtype(ml_dtypes.bfloat16)
finfo: Any = ml_dtypes.finfo  # the limits of a floating-point dtype; NumPy's knows no bfloat16
default_dtype: DType = np.dtype(np.float32)

# Decorates what computes: inf and nan come without NumPy's warning, as in PyTorch.
silent = np.errstate(divide="ignore", invalid="ignore", over="ignore")

# type of array -> module of functions for it. CuPy and Tensor add themselves.
_modules: dict[type, Any] = {np.ndarray: np}
# type of array -> where an array of that type lives, for all but NumPy's.
_places: dict[type, Callable[[Array], device]] = {}
_cupy_watchers: list[Callable[[type], None]] = []


def register_array_type(
    kind: type, module: Any, place: Callable[[Array], device] | None = None
) -> None:
    """Let `array_module` answer `module` for arrays of type `kind`, which live where `place`
    says.
    """
    _modules[kind] = module
    if place is not None:
        _places[kind] = place


def when_cupy_arrives(watcher: Callable[[type], None]) -> None:
    """Call `watcher(cupy.ndarray)` once CuPy has been imported; at once if it has been."""
    _cupy_watchers.append(watcher)
    for module in list(_modules.values()):
        if getattr(module, "__name__", "") == "cupy":
            watcher(module.ndarray)


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


@cache
def cupy() -> ModuleType:
    """CuPy, imported on first use; a sentence that says what is missing where it cannot be."""
    wheels = cupy_wheels()
    if len(wheels) > 1:
        raise RuntimeError(
            f"{len(wheels)} CuPy wheels are installed ({', '.join(wheels)}) and shadow one "
            f"another: pip uninstall {' '.join(wheels)}, then install the one that fits the driver"
        )
    if importlib.util.find_spec("cupy") is None:
        raise RuntimeError(
            "device 'cuda' needs CuPy, which is not installed: pip install "
            "'tinytensor-gpt[cuda13]' "
            "(or [cuda12] for a CUDA 12 driver)"
        )
    try:
        module = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            f"CuPy is installed but cannot be imported ({error}); `python -m tinytensor doctor` "
            "says what is missing"
        ) from error
    register_array_type(module.ndarray, module, lambda array: device("cuda", int(array.device.id)))
    for watcher in _cupy_watchers:
        watcher(module.ndarray)
    return module


def nccl() -> ModuleType:
    """CuPy's binding of NCCL; ImportError where it was built without, or the library is missing."""
    cupy()
    return importlib.import_module("cupy.cuda.nccl")


def cupy_wheels() -> list[str]:
    """Names of the installed distributions of CuPy, of which there should be one at most."""
    names = {str(d.metadata["Name"]).lower() for d in importlib.metadata.distributions()}
    return sorted(n for n in names if n in ("cupy", "cupy-cuda") or n.startswith("cupy-cuda"))


def cuda_device_count() -> int:
    """How many CUDA devices CuPy can use; 0 without CuPy, a driver or a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return 0
    try:
        return int(cupy().cuda.runtime.getDeviceCount())
    except (ImportError, RuntimeError):  # CuPy without a driver raises CUDARuntimeError
        return 0


def what_hides_gpus() -> str | None:
    """Why an installed CuPy can use no GPU that may be there; None where none is to be expected."""
    if importlib.util.find_spec("cupy") is None:
        return None
    try:
        return driver_too_old(cupy())
    except RuntimeError as error:
        return str(error)


class device:
    """Where an array lives: `device("cpu")`, `device("cuda")` or, a numbered one, `"cuda:1"`;
    `device("cuda-sim")` runs the CUDA kernels in a simulator on the CPU.
    """

    __slots__ = ("index", "type")

    type: str
    index: int | None

    def __init__(self, type: str | device, index: int | None = None) -> None:
        name, _, number = str(type).partition(":")  # str(device("cuda", 1)) is "cuda:1"
        if name == "auto":
            name = "cuda" if cuda_device_count() else "cpu"
            if name == "cpu" and (reason := what_hides_gpus()):
                warnings.warn(f"device 'auto' is the CPU: {reason}", RuntimeWarning, stacklevel=2)
        if name not in ("cpu", "cuda", "cuda-sim") or (number and not number.isdigit()):
            raise ValueError(
                f"device {type!r} is unknown; use 'cpu', 'cuda', 'cuda:N', 'cuda-sim' or 'auto'"
            )
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
    return _places[type(array)](array)


def module_for(where: device | str | None) -> Any:
    """The array module that creates arrays on `where` (None is the CPU)."""
    where = CPU if where is None else device(where)
    if where.type == "cpu":
        return np
    if where.type == "cuda-sim":
        return importlib.import_module("tinytensor.cuda.device").sim
    module = cupy()
    count = cuda_device_count()
    if (where.index or 0) >= count:
        old = driver_too_old(module)
        raise RuntimeError(
            f"device '{where}' was asked for, but "
            + (old or f"CuPy sees {count} CUDA devices here; check the driver with nvidia-smi")
            + ", or use device='cpu' ('cuda-sim' runs the kernels on the CPU, to study them)"
        )
    return module


def driver_too_old(module: Any) -> str | None:
    """Why CuPy cannot use the driver, if that is because of the driver's age."""
    try:
        driver = int(module.cuda.runtime.driverGetVersion())
        wheel = int(module.cuda.runtime.runtimeGetVersion())
    except (ImportError, RuntimeError):
        return None
    if not 0 < driver // 1000 < wheel // 1000:
        return None
    return (
        f"the NVIDIA driver is too old: it is for CUDA {driver // 1000}.{driver % 1000 // 10}, and "
        f"CuPy's wheel for CUDA {wheel // 1000}; update the driver, install "
        f"tinytensor-gpt[cuda{driver // 1000}] in its place"
    )


class OutOfMemoryError(MemoryError):
    """The GPU's memory does not hold what was asked for."""


def to_device(array: Array, where: device | str) -> Array:
    """`array` on `where`; the same object when it is there already."""
    where = device(where)
    here = device_of(array)
    if here == where:
        return array
    if where.type == "cpu":
        return module_of(array).asnumpy(array)
    module = module_for(where)
    if here.type not in ("cpu", where.type):  # between kinds of devices: by way of the host
        array = module_of(array).asnumpy(array)
    with module.cuda.Device(where.index or 0):
        return module.asarray(array)


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """`array` as a NumPy array, copied from the GPU if it lives there."""
    return array if isinstance(array, np.ndarray) else np.asarray(to_device(array, CPU))


def memory_range(array: Array) -> tuple[int, int]:
    """First and one-past-last address of the memory that `array` touches."""
    if isinstance(array, np.ndarray):
        return np.lib.array_utils.byte_bounds(array)
    low = high = int(array.data.ptr)
    if array.size == 0:
        return low, high
    for n, step in zip(array.shape, array.strides, strict=True):
        low, high = low + min(0, (n - 1) * step), high + max(0, (n - 1) * step)
    return low, high + int(array.itemsize)


def module_of(array: Array) -> Any:
    """The module that `array`'s type was registered with."""
    return _modules[type(array)]


def module_of_type(kind: type) -> Any:
    """The module that arrays of type `kind` were registered with."""
    return _modules[kind]


def is_floating(dtype: DType) -> bool:
    """Whether `dtype` can carry a gradient (bfloat16 included: NumPy files it under kind 'V')."""
    return dtype.kind == "f" or dtype == bfloat16
