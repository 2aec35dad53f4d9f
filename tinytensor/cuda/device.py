"""The device "cuda-sim": arrays that behave as CuPy's do, and live in the host's memory.

A `SimArray` holds a NumPy array and hides it. As with CuPy, a calculation with a NumPy array is
refused, a sum over everything is an array without axes and not a Python number, and
`numpy.asarray(x)` is an error: what runs on "cuda-sim" copies nothing to the host that is not asked
for. `host_copies` counts what is. Operations run their references through the module `sim`, NumPy
under another name; those with a kernel run it in the simulator (`operations.py`). A step can be
captured, as on a GPU, and replayed (`capture.py`).
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ..backend import DType, device, register_array_type
from . import capture

__all__ = ["SimArray", "host_copies", "sim"]

_host_copies = 0


def host_copies() -> int:
    """How many times since the start an array of "cuda-sim" was copied to the host, or read there
    (`item()`, `float(x)`, `if x:`). On a GPU each makes the program wait for the device.
    """
    return _host_copies


def _count() -> None:
    global _host_copies
    capture.refuse_reading()
    _host_copies += 1


class _Memory:
    """What `x.data` is on a CuPy array: `ptr`, the address."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class _Device:
    """What `x.device` and `sim.cuda.Device()` are, as far as the engine asks: a small GPU."""

    id = 0
    compute_capability = "90"
    attributes = types.MappingProxyType(
        {"MultiProcessorCount": 4, "MaxSharedMemoryPerBlockOptin": 227 * 1024}
    )

    def __init__(self, number: int = 0) -> None: ...
    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *error: object) -> None: ...


class SimArray(NDArrayOperatorsMixin):
    """An array on "cuda-sim". Attributes and methods are those of the NumPy array inside."""

    __slots__ = ("__weakref__", "host")

    host: np.ndarray[Any, Any]  # for the launcher, and for nobody else

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.host = host

    # --- what it is ---

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.host.shape)

    @property
    def dtype(self) -> DType:
        dtype: DType = self.host.dtype
        return dtype

    @property
    def ndim(self) -> int:
        return self.host.ndim

    @property
    def size(self) -> int:
        return self.host.size

    @property
    def data(self) -> _Memory:
        return _Memory(self.host.ctypes.data)

    @property
    def device(self) -> _Device:
        return _Device()

    @property
    def base(self) -> Any:
        return self.host.base

    def __len__(self) -> int:
        return len(self.host)

    def __repr__(self) -> str:
        return f"SimArray({self.host!r})"

    # --- to the host: each of these waits for a GPU ---

    def get(self) -> np.ndarray[Any, Any]:
        """A copy in the host's memory."""
        _count()
        return self.host.copy()

    def item(self, *index: Any) -> Any:
        _count()
        return self.host.item(*index)

    def tolist(self) -> Any:
        _count()
        return self.host.tolist()

    def __float__(self) -> float:
        _count()
        return float(self.host)

    def __int__(self) -> int:
        _count()
        return int(self.host)

    def __index__(self) -> int:
        _count()
        return self.host.__index__()

    def __bool__(self) -> bool:
        _count()
        return bool(self.host)

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError(
            "an array on 'cuda-sim' does not become a NumPy array by itself; use .get() (a tensor: "
            ".cpu() or .numpy())"
        )

    # --- computing ---

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _call(getattr(ufunc, method), inputs, options)

    def __array_function__(self, function: Any, kinds: Any, args: Any, options: Any) -> Any:
        return _call(function, args, options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.host, name)
        if isinstance(found, np.ndarray):
            return SimArray(found)
        return _Method(self, found) if callable(found) else found

    def __getitem__(self, index: Any) -> SimArray:
        index = _opened(index)
        _no_mask(index)
        found = self.host[index]
        if isinstance(found, np.generic):  # a view all the same, as CuPy has it
            found = self.host[(*index, ...) if isinstance(index, tuple) else (index, ...)]
        elif capture.is_capturing() and not np.may_share_memory(found, self.host):
            found = capture.made(operator.getitem, (self.host, index), {})
        return SimArray(found)

    def __setitem__(self, index: Any, value: Any) -> None:
        index, value = _opened(index), _opened(value)
        if np.ndim(value):
            _no_mask(index)
        capture.noted("setitem", lambda: self.host.__setitem__(index, value))

    def __iter__(self) -> Iterator[SimArray]:
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:
        return SimArray, (self.host,)

    def __copy__(self) -> SimArray:
        return SimArray(self.host.copy())

    def __deepcopy__(self, memo: Any) -> SimArray:
        return SimArray(self.host.copy())


def _opened(value: Any) -> Any:
    """`value` with the arrays of the device in it replaced by what they hold."""
    if isinstance(value, SimArray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"a NumPy array {value.shape} cannot be used on 'cuda-sim'; move it there")
    if type(value) in (tuple, list):
        return type(value)(_opened(item) for item in value)
    return value


def _no_mask(index: Any) -> None:
    """A GPU has to be waited for to know how many numbers a mask selects."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(x, np.ndarray) and x.dtype == np.bool_ for x in parts):
        capture.refuse_reading()


def _closed(value: Any) -> Any:
    """Arrays and NumPy scalars as arrays of the device."""
    if isinstance(value, np.ndarray | np.generic):
        return SimArray(np.asarray(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_closed, value))
    if type(value) in (tuple, list):
        return type(value)(_closed(item) for item in value)
    return value


def _call(function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
    out = options.get("out")
    opened = {k: _opened(v) for k, v in options.items()}
    result = capture.made(function, _opened(tuple(args)), opened)
    if out is not None:
        return out[0] if isinstance(out, tuple) and len(out) == 1 else out
    return _closed(result)


class _Function:
    """A function of NumPy that takes and returns arrays of the device; a ufunc has its methods."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _call(self._function, args, options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._function, name)
        return _Function(found) if callable(found) else found


class _Method:
    """A bound method of the array inside."""

    __slots__ = ("array", "function")

    def __init__(self, array: SimArray, function: Callable[..., Any]) -> None:
        self.array, self.function = array, function

    def __call__(self, *args: Any, **options: Any) -> Any:
        opened = {key: _opened(value) for key, value in options.items()}
        result = capture.made(self.function, _opened(tuple(args)), opened)
        return self.array if result is self.array.host else _closed(result)


class _Grid:
    """`ogrid` and `mgrid`, which are indexed and not called."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def __getitem__(self, index: Any) -> Any:
        return _closed(self._grid[index])


class _Namespace:
    """A module of NumPy for arrays of the device."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found: Any = getattr(self._module, name)
        if isinstance(found, types.ModuleType):
            found = _Namespace(found)
        elif name in ("ogrid", "mgrid"):
            found = _Grid(found)
        elif callable(found) and not isinstance(found, type):
            found = _Function(found)
        setattr(self, name, found)  # looked up once
        return found


class _Cuda(capture.Cuda):
    """`sim.cuda`: as much of `cupy.cuda` as the engine asks."""

    Device = _Device


def _copied(held: Any, dtype: Any, copy: bool) -> np.ndarray[Any, Any]:
    return np.array(held, dtype=dtype, copy=True if copy else None)


class _Sim(_Namespace):
    """`sim`, the module of these arrays: NumPy's functions, and CuPy's ways to and from the
    host.
    """

    ndarray = SimArray
    cuda = _Cuda

    def array(self, data: Any, dtype: Any = None, copy: bool = True) -> SimArray:
        """A new array of the device; NumPy arrays are copied to it."""
        if isinstance(data, SimArray):
            return SimArray(capture.made(_copied, (data.host, dtype, copy), {}))
        if capture.is_capturing():  # refused later, by the graph's description, as on a GPU
            capture.noted("MEMCPY (HtoD)", lambda: None)
        return SimArray(np.array(data, dtype=dtype, copy=True if copy else None))

    def asarray(self, data: Any, dtype: Any = None) -> SimArray:
        """`data` on the device: itself if it is there, else a copy."""
        if isinstance(data, SimArray) and dtype in (None, data.dtype):
            return data
        return self.array(data, dtype)

    def asnumpy(self, array: Any) -> np.ndarray[Any, Any]:
        """A copy in the host's memory."""
        return array.get() if isinstance(array, SimArray) else np.asarray(array)


sim = _Sim(np)
_HERE = device("cuda-sim")
register_array_type(SimArray, sim, lambda array: _HERE)
