"""Tensor maps: what tells the copy engine of an H100 or H200 how a matrix lies in memory.

A kernel parameter `const __grid_constant__ TensorMap a` takes a `TensorMap`: `launch` hands the GPU
the 128 opaque bytes that the driver makes of it (`cuTensorMapEncodeTiled`, CUDA driver API, "Tensor
Map Object Management"), and the simulator the same facts in `kernels/sim_hopper.h`'s structure.
What the driver would refuse, `refusal` tells before.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, bfloat16
from .views import orientation

__all__ = ["SWIZZLE", "Operand", "TensorMap", "refusal"]

AXES = 4  # of every map here: contiguous, rows, and two of the batch
SWIZZLE = 128  # bytes: a box is no wider, and its 16-byte chunks change places within them

# Values of enumerations in cuda.h.
_BFLOAT16, _NO_INTERLEAVE, _SWIZZLE_128, _FETCH_256_BYTES, _ZEROS_OUTSIDE = 9, 0, 3, 3, 0


def refusal(x: Array, steps: Sequence[int] = ()) -> str | None:
    """Why no copy engine reads the matrices x (…, rows, columns), or None: it does.

    `steps`: elements from matrix to matrix along the axes of the batch, 0 where x is broadcast.
    """
    address = _address(x)
    if address % 16:
        return f"it begins at address {address:#x}, which is no multiple of 16 bytes"
    transposed, rows_apart = orientation(x)
    if not rows_apart and x.shape[-1 if transposed else -2] > 1:
        return "its rows are one row, broadcast"
    for step in (rows_apart, *steps):
        stride = step * x.itemsize
        if stride % 16 or not 0 <= stride < 2**40:
            return f"rows or matrices are {stride} bytes apart; a multiple of 16 is needed"
    return None


class TensorMap(NamedTuple):
    """A bfloat16 matrix of matrices in memory, and the box of it that one copy takes.

    `array` is the flat stretch of memory (`views.window`). `sizes` and `box` count elements along
    the four axes, the contiguous one first; `strides` are those of the other three, in bytes.
    """

    array: Array
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]

    def encoded(self) -> np.ndarray[Any, Any]:
        """The 128 bytes for the GPU; raises RuntimeError with the driver's reason if it has one."""
        return _encode(_address(self.array), self.sizes, self._strides(), self.box)

    def simulated(self) -> Simulated:
        """The structure of kernels/sim_hopper.h; its `base` is filled in by the simulator."""
        return Simulated(
            None,
            self._strides(),
            self.sizes,
            self.box,
            bfloat16.itemsize,
            SWIZZLE,
        )

    def _strides(self) -> tuple[int, ...]:
        """Strides that are legal where an axis has one element, and any will do."""
        return tuple(
            16 if size == 1 else stride
            for size, stride in zip(self.sizes[1:], self.strides, strict=True)
        )


class Operand(NamedTuple):
    """A factor of `matmul_wgmma`: whether its rows run along k, its map, and whether the outer and
    the inner axis of the batch move in it (1) or not (0).
    """

    along_k: bool
    map: TensorMap
    steps: tuple[int, int]

    @classmethod
    def of(
        cls, x: Array, flat: Array, outer: tuple[int, int], inner: tuple[int, int], tile: int
    ) -> Operand:
        """The factor x (…, m or n, k), of which `flat` is the memory from the matrix to begin with.

        `outer` and `inner`: matrices along the two axes of the batch, and elements between them.
        `tile`: of m or n, in a tile.
        """
        transposed, rows_apart = orientation(x)
        rows, columns = x.shape[-2:] if not transposed else x.shape[-1:-3:-1]
        counts = [count if step else 1 for count, step in (inner, outer)]
        strides = (rows_apart, *(step for _, step in (inner, outer)))
        across = SWIZZLE // x.itemsize
        return cls(
            not transposed,
            TensorMap(
                flat,
                (columns, rows, *counts),
                tuple(step * x.itemsize for step in strides),
                (across, across if transposed else tile, 1, 1),
            ),
            (int(outer[1] > 0), int(inner[1] > 0)),
        )


class Simulated(ctypes.Structure):
    """TensorMap of kernels/sim_hopper.h."""

    _fields_ = (
        ("base", ctypes.c_void_p),
        ("strides", ctypes.c_uint64 * 3),
        ("sizes", ctypes.c_uint32 * 4),
        ("box", ctypes.c_uint32 * 4),
        ("element_bytes", ctypes.c_uint32),
        ("swizzle_bytes", ctypes.c_uint32),
    )


def _address(x: Array) -> int:
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)


@cache
def driver() -> Any:
    """The CUDA driver's library; raises RuntimeError where there is none."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise RuntimeError(
            f"tensor maps are made by the CUDA driver, but {name} cannot be loaded: {error}"
        ) from error


@lru_cache(maxsize=4096)  # a training step asks for the same maps again and again
def _encode(
    address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    encode = getattr(driver(), "cuTensorMapEncodeTiled", None)
    if encode is None:
        raise RuntimeError(
            "the CUDA driver is too old for tensor maps; update it to one for CUDA 12 or later"
        )
    room = np.zeros(128 + 64, np.uint8)
    start = -room.ctypes.data % 64  # the driver wants it aligned
    target = room[start : start + 128]
    code = encode(
        ctypes.c_void_p(target.ctypes.data),
        ctypes.c_int(_BFLOAT16),
        ctypes.c_uint32(AXES),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * AXES)(*sizes),
        (ctypes.c_uint64 * (AXES - 1))(*strides),
        (ctypes.c_uint32 * AXES)(*box),
        (ctypes.c_uint32 * AXES)(*(1,) * AXES),
        ctypes.c_int(_NO_INTERLEAVE),
        ctypes.c_int(_SWIZZLE_128),
        ctypes.c_int(_FETCH_256_BYTES),
        ctypes.c_int(_ZEROS_OUTSIDE),
    )
    if code:
        raise RuntimeError(
            f"the CUDA driver makes no tensor map (error {code}) of a bfloat16 matrix at "
            f"{address:#x} with {sizes} elements, {strides} bytes apart, in boxes of {box}"
        )
    return target
