"""y = a x + b y in one pass over the arrays, by the BLAS library that NumPy brings.

NumPy has no function for it and takes three passes: a x, b y, and their sum. An optimizer does
little else. OpenBLAS and MKL call theirs axpby; where none is loaded, NumPy's passes do the same.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import numpy as np
import threadpoolctl

from ..backend import Array, DType
from .pool import empty


def _axpby_by_type() -> dict[DType, Callable[..., None]]:
    """The functions that are there; their names have parts that tell builds apart."""
    found: dict[DType, Callable[..., None]] = {}
    libraries = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    names = itertools.product(libraries, ("", "scipy_"), ("", "64_"), _TYPES)
    for library, prefix, suffix, (letter, dtype, scalar) in names:
        function = getattr(library.dynlib, f"{prefix}cblas_{letter}axpby{suffix}", None)
        if function is not None:
            integer = ctypes.c_int64 if suffix else ctypes.c_int
            array = (ctypes.c_void_p, integer)  # its first number, and the step to the next
            function.argtypes = [integer, scalar, *array, scalar, *array]
            function.restype = None
            found[np.dtype(dtype)] = function
    return found


_TYPES = (("s", np.float32, ctypes.c_float), ("d", np.float64, ctypes.c_double))
_axpby = _axpby_by_type()


def axpby(a: float, x: Array, b: float, y: Array) -> None:
    """y = a x + b y, for 1-D arrays of one length; of an array times 0 BLAS does not see a nan."""
    function = _axpby.get(y.dtype)
    plain = y.flags.carray and x.flags.carray and x.dtype == y.dtype and x.shape == y.shape
    if function is not None and plain:
        function(y.size, a, x.ctypes.data, 1, b, y.ctypes.data, 1)
    else:
        y *= b
        y += np.multiply(x, a, out=empty(x.shape, x.dtype))
