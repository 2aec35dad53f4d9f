"""Making tensors from data, and constant tensors of a given shape. PyTorch's names and defaults.

Random tensors are in `sampling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import (
    Array,
    DType,
    default_dtype,
    device,
    device_of,
    is_array,
    is_floating,
    module_for,
    silent,
    to_device,
)
from .tensor import Tensor, as_tensor

__all__ = [
    "arange",
    "asarray",
    "empty",
    "empty_like",
    "eye",
    "from_numpy",
    "full",
    "full_like",
    "get_default_dtype",
    "linspace",
    "ones",
    "ones_like",
    "set_default_dtype",
    "tensor",
    "zeros",
    "zeros_like",
]

Device = device | str | None


def finish(array: Array, where: Device, requires_grad: bool) -> Tensor:
    """`array` as a tensor on device `where`, a leaf that requires a gradient if asked for."""
    result = as_tensor(array if where is None else to_device(array, where))
    return result.requires_grad_(requires_grad) if requires_grad else result


def tensor(
    data: Any, dtype: Any = None, device: Device = None, requires_grad: bool = False
) -> Tensor:
    """A tensor with a copy of `data`: a number, nested lists of numbers, an array or a tensor.

    Python floats become float32 and ints int64; arrays and tensors keep their dtype. Raises
    ValueError for ragged lists and TypeError for what is not a number.
    """
    return finish(
        np.array(_to_array(data, dtype)) if not _on_gpu(data) else _gpu_copy(data, dtype),
        device,
        requires_grad,
    )


def asarray(data: Any, dtype: Any = None, device: Device = None) -> Tensor:
    """A tensor of `data`, sharing its memory where it can: `torch.as_tensor` and
    `torch.asarray`.
    """
    if isinstance(data, Tensor):
        result = data if dtype is None or data.dtype == dtype else data.to(np.dtype(dtype))
        return result if device is None else result.to(device)
    return finish(_to_array(data, dtype), device, False)


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the memory of a NumPy array."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy: expected a numpy.ndarray, got {type(array).__name__}")
    return as_tensor(_numbers(np.asarray(array), "from_numpy"))


def _on_gpu(data: Any) -> bool:
    array = data.array if isinstance(data, Tensor) else data
    return is_array(array) and not isinstance(array, np.ndarray | np.generic)


def _gpu_copy(data: Any, dtype: Any) -> Array:
    array = data.array if isinstance(data, Tensor) else data
    return array.astype(array.dtype if dtype is None else dtype)


@silent
def _to_array(data: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
    if isinstance(data, Tensor):
        data = data.array
    elif isinstance(data, list | tuple):
        data = _opened(data)
    known = is_array(data) or hasattr(data, "__array__")
    try:
        array = np.asarray(data)
    except ValueError:
        raise ValueError(
            "tensor: the nested lists have different lengths; every row must be as long as the "
            "others"
        ) from None
    array = _numbers(array, "tensor")
    if dtype is None and not known and (is_floating(array.dtype) or array.size == 0):
        dtype = default_dtype
    return array if dtype is None else _numbers(array.astype(dtype, copy=False), "tensor")


def _opened(data: Any) -> Any:
    """Nested lists with the tensors in them replaced by arrays."""
    if isinstance(data, Tensor):
        return data.array
    if isinstance(data, list | tuple):
        return [_opened(item) for item in data]
    return data


def _numbers(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    if array.dtype.kind not in "biuf" and not is_floating(array.dtype):
        raise TypeError(
            f"{name}: cannot make a tensor of {array.dtype} data; expected real numbers or booleans"
        )
    return array


def get_default_dtype() -> DType:
    """float32: what Python floats become, and what random and constant tensors are made of."""
    return default_dtype


def set_default_dtype(d: Any) -> None:
    """Accepts float32, which it is; raises ValueError for another, and says what to do instead."""
    if np.dtype(d) != default_dtype:
        raise ValueError(
            f"set_default_dtype: the default stays {default_dtype}; pass dtype={np.dtype(d)} where "
            "a tensor is made, convert a model by model.to(dtype), or use tt.autocast"
        )


def shape_of(name: str, sizes: tuple[Any, ...], size: Any = None) -> tuple[int, ...]:
    """The shape in `f(2, 3)`, `f((2, 3))`, `f([2, 3])` or `f(size=(2, 3))`."""
    if size is not None:
        if sizes:
            raise TypeError(f"{name}: the size is given twice, as {sizes} and as size={size}")
        sizes = (size,)
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    try:
        shape = tuple(int(n.__index__()) for n in sizes)
    except AttributeError:
        raise TypeError(f"{name}: sizes must be integers, got {sizes}") from None
    if any(n < 0 for n in shape):
        raise ValueError(f"{name}: sizes must not be negative, got {shape}")
    return shape


@silent
def _filled(
    name: str, size: Any, value: Any, dtype: Any, where: Device, requires_grad: bool
) -> Tensor:
    shape = shape_of(name, size)
    array = module_for(where).full(shape, value, default_dtype if dtype is None else dtype)
    return finish(array, where, requires_grad)


def zeros(
    *sizes: Any,
    size: Any = None,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of zeros; float32 unless `dtype` says otherwise."""
    xp = module_for(device)  # zeros() takes pages that are zero already; full() would write them
    array = xp.zeros(shape_of("zeros", sizes, size), default_dtype if dtype is None else dtype)
    return finish(array, device, requires_grad)


def ones(
    *sizes: Any,
    size: Any = None,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of ones; float32 unless `dtype` says otherwise."""
    return _filled("ones", shape_of("ones", sizes, size), 1, dtype, device, requires_grad)


def full(
    size: Sequence[int],
    fill_value: Any,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of `fill_value`s, with the dtype that `tensor(fill_value)` has."""
    if not isinstance(size, tuple | list):
        raise TypeError(f"full: the size is a tuple, such as (2, 3), not {size!r}")
    if isinstance(fill_value, Tensor):
        fill_value = fill_value.item()
    if not isinstance(fill_value, bool | int | float | np.generic):
        raise TypeError(f"full: the value is a number, not {fill_value!r}")
    dtype = tensor(fill_value).dtype if dtype is None else dtype
    return _filled("full", (tuple(size),), fill_value, dtype, device, requires_grad)


def empty(
    *sizes: Any,
    size: Any = None,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor whose numbers are whatever the memory held."""
    xp = module_for(device)
    array = xp.empty(shape_of("empty", sizes, size), default_dtype if dtype is None else dtype)
    return finish(array, device, requires_grad)


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """The (n, m) matrix with ones on the diagonal; m is n if left out."""
    n, m = shape_of("eye", (n, n if m is None else m))
    array = module_for(device).eye(n, m, dtype=default_dtype if dtype is None else dtype)
    return finish(array, device, requires_grad)


@silent
def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """start, start + step, … up to but without `end`; int64 if all three are integers, else
    float32.
    """
    if end is None:
        start, end = 0, start
    start, end, step = (
        x.item() if isinstance(x, Tensor | np.generic) else x for x in (start, end, step)
    )
    for number in (start, end, step):
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"arange: start, end and step are finite numbers, not {number!r}")
    if step == 0:
        raise ValueError("arange: step must not be 0")
    if (end - start) / step < 0:
        raise ValueError(f"arange: a step of {step} never leads from {start} to {end}")
    if dtype is None:
        dtype = np.int64 if all(isinstance(x, int) for x in (start, end, step)) else default_dtype
    # Counted in float64, so that the last element does not depend on dtype's rounding.
    count = math.ceil((end - start) / step)
    array = (module_for(device).arange(count) * step + start).astype(dtype)
    return finish(array, device, requires_grad)


def linspace(
    start: float,
    end: float,
    steps: int,
    *,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """`steps` numbers from `start` to `end`, both included, evenly spaced."""
    if not hasattr(steps, "__index__") or steps < 0:
        raise ValueError(f"linspace: steps is an integer, not negative, but it is {steps!r}")
    array = (
        module_for(device)
        .linspace(start, end, steps)
        .astype(default_dtype if dtype is None else dtype)
    )
    return finish(array, device, requires_grad)


def as_tensor_like(
    name: str, input: Tensor, dtype: Any, where: Device
) -> tuple[tuple[int, ...], DType, device | str]:
    """Shape, dtype and device for a `*_like` function: those of `input` unless given."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(input).__name__}")
    return (
        tuple(input.shape),
        input.dtype if dtype is None else np.dtype(dtype),
        device_of(input.array) if where is None else where,
    )


def zeros_like(
    input: Tensor, *, dtype: Any = None, device: Device = None, requires_grad: bool = False
) -> Tensor:
    """Zeros of the shape, dtype and device of `input`."""
    shape, dtype, where = as_tensor_like("zeros_like", input, dtype, device)
    return zeros(shape, dtype=dtype, device=where, requires_grad=requires_grad)


def ones_like(
    input: Tensor, *, dtype: Any = None, device: Device = None, requires_grad: bool = False
) -> Tensor:
    """Ones of the shape, dtype and device of `input`."""
    shape, dtype, where = as_tensor_like("ones_like", input, dtype, device)
    return ones(shape, dtype=dtype, device=where, requires_grad=requires_grad)


def full_like(
    input: Tensor,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Device = None,
    requires_grad: bool = False,
) -> Tensor:
    """`fill_value`s of the shape, dtype and device of `input`."""
    shape, dtype, where = as_tensor_like("full_like", input, dtype, device)
    return full(shape, fill_value, dtype=dtype, device=where, requires_grad=requires_grad)


def empty_like(
    input: Tensor, *, dtype: Any = None, device: Device = None, requires_grad: bool = False
) -> Tensor:
    """An uninitialised tensor of the shape, dtype and device of `input`."""
    shape, dtype, where = as_tensor_like("empty_like", input, dtype, device)
    return empty(shape, dtype=dtype, device=where, requires_grad=requires_grad)
