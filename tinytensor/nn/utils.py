"""`nn.utils`: clipping gradients, and a model's parameters as one vector.

Gradients that live side by side in an optimizer's buffer are clipped as one array: a single
reduction and a single product, however many parameters there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..autograd import note_write
from ..backend import Array, array_module, default_dtype, silent
from ..cpu.threads import single_threaded_blas, split
from ..cuda import optimizer as cuda
from ..ops import concatenate
from ..optim.flat import flat_gradients
from ..tensor import Tensor, as_tensor
from .module import Module

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "parameters_to_vector",
    "skip_init",
    "vector_to_parameters",
]

_BLOCK = 1 << 13  # numbers summed in the gradient's own precision, before float64 takes over
_LONG = 1 << 20  # numbers that take another thread longer than it takes to wake it


@silent
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale the gradients down together so that their joint norm is at most `max_norm`.

    The norm is (Σ |g|^norm_type)^(1/norm_type) over every number of every gradient, or the largest
    |g| for `norm_type=inf`. Returns it, as it was before, as a tensor without axes. With
    `error_if_nonfinite=True` a norm that is nan or infinite raises RuntimeError and changes
    nothing.
    """
    if norm_type <= 0:
        raise ValueError(f"clip_grad_norm_: norm_type must be positive, got {norm_type}")
    arrays = flat_gradients(_listed(parameters))
    if not arrays:
        return as_tensor(np.zeros((), default_dtype))
    xp = array_module(arrays[0])
    by_kernel = norm_type == 2 and cuda.norm_of(arrays)
    if by_kernel:  # nothing is read back: the scale stays on the device
        norm, scale = cuda.global_norm(arrays, max_norm)
        total = norm.reshape(())
    else:
        total = _joint_norm([power_sum(array, norm_type) for array in arrays], norm_type, xp)
    if error_if_nonfinite and not bool(xp.isfinite(total)):
        raise RuntimeError(
            f"clip_grad_norm_: the norm of the gradients is {float(total)}; look for a nan or an "
            "infinity in the loss, or lower the learning rate"
        )
    if by_kernel:
        for array in arrays:
            cuda.scale_in_place(array, scale)
            note_write(array)
        return as_tensor(total)
    # The small term keeps a norm of 0 from dividing by 0, as in PyTorch.
    scale = xp.minimum(max_norm / (total + 1e-6), 1.0).astype(total.dtype)
    if xp is not np or not scale >= 1.0:  # on a GPU, looking would mean waiting
        for array in arrays:
            _scale(array, scale.astype(array.dtype))
            note_write(array)
    return as_tensor(total)


def _scale(array: Array, factor: Array) -> None:
    """array *= factor, on the CPU by all threads where it is long."""
    if type(array) is not np.ndarray:
        array *= factor
        return
    flat = array.reshape(-1)  # a view: gradients are contiguous

    def scale(start: int, stop: int) -> None:
        np.multiply(flat[start:stop], factor, out=flat[start:stop])

    split(flat.size, _LONG, scale)


def power_sum(array: Array, norm_type: float) -> Array:
    """Σ |g|^norm_type of one array, or max |g|, in float32 or better, on the array's device."""
    xp = array_module(array)
    flat = array.reshape(-1)
    if flat.size == 0:
        return xp.zeros((), np.float32)
    if flat.dtype.itemsize < 4:
        flat = flat.astype(np.float32)
    if math.isinf(norm_type):
        return xp.maximum(xp.amax(flat), -xp.amin(flat))
    if norm_type != 2:
        return xp.sum(xp.abs(flat) ** norm_type)
    if xp is not np:
        return xp.sum(xp.square(flat))
    blocks = flat[: flat.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    rest = flat[blocks.size :]
    sums = np.empty(len(blocks) + 1)
    sums[-1] = np.dot(rest, rest)

    def add_up(start: int, stop: int) -> None:
        sums[start:stop] = np.vecdot(blocks[start:stop], blocks[start:stop])

    with single_threaded_blas:
        split(len(blocks), _LONG // _BLOCK, add_up)
    return np.asarray(math.fsum(sums), flat.dtype)


def _joint_norm(sums: list[Array], norm_type: float, xp: Any) -> Array:
    together = xp.stack([xp.asarray(s) for s in sums])
    if math.isinf(norm_type):
        return xp.amax(together)
    total = xp.sum(together)
    return xp.sqrt(total) if norm_type == 2 else total ** (1 / norm_type)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clip every number of every gradient to [-clip_value, clip_value]."""
    if clip_value < 0:
        raise ValueError(f"clip_grad_value_: clip_value must not be negative, got {clip_value}")
    for array in flat_gradients(_listed(parameters)):
        array_module(array).clip(array, -clip_value, clip_value, out=array)
        note_write(array)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All numbers of the parameters, one after the other, as one vector (with their history)."""
    return concatenate([p.reshape(-1) for p in parameters])  # type: ignore[no-any-return]


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Write the numbers of `vec` back into the parameters: `parameters_to_vector` reversed."""
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters: expected a tensor, got {type(vec).__name__}")
    listed = _listed(parameters)
    numbers = vec.array.reshape(-1)
    needed = sum(math.prod(p.shape) for p in listed)
    if numbers.size != needed:
        raise ValueError(
            f"vector_to_parameters: the vector has {numbers.size} numbers but the parameters "
            f"{needed}"
        )
    start = 0
    for parameter in listed:
        array = parameter.array
        array[...] = numbers[start : start + array.size].reshape(array.shape)
        note_write(array)
        start += array.size


def skip_init(module_cls: Any, *args: Any, **kwargs: Any) -> Any:
    """`module_cls(*args, **kwargs)` whose parameters keep what their memory held: they are about to
    be overwritten, by weights from a file.

    What is left out is the module's own `reset_parameters`, as `Linear`, `Embedding` and
    `LayerNorm` have it; no random number is drawn.
    """
    if not isinstance(module_cls, type) or not issubclass(module_cls, Module):
        raise TypeError(f"skip_init: expected a class of modules, not {module_cls!r}")
    unfilled = type(module_cls.__name__, (module_cls,), {"reset_parameters": lambda self: None})
    module = unfilled(*args, **kwargs)
    module.__class__ = module_cls
    return module


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
