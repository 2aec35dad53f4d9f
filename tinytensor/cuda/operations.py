"""Which operations run a kernel of ours: one registration for CuPy arrays and those of "cuda-sim".

    @kernel_for(ops.softmax)
    def softmax(x, axis=-1):
        if axis not in (-1, x.ndim - 1) or x.dtype != np.float32:
            return NotImplemented                 # the reference runs instead, on the device
        y = array_module(x).empty_like(x)
        launch("softmax_forward", ..., [y, x], [...])
        return y, lambda dy: ...

The contract is that of `@op` (`tinytensor/tensor.py`): arrays in, `(output, vjp)` out. What a
function needs of the array's module it asks `array_module(x)` for, by names that NumPy and CuPy
share, and so the simulator tests, on any machine, all that the GPU runs but the GPU. A file that
registers kernels is imported at the end of this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..backend import when_cupy_arrives
from ..tensor import Operation
from .device import SimArray

Implementation = TypeVar("Implementation", bound=Callable[..., Any])


def kernel_for(operation: Operation) -> Callable[[Implementation], Implementation]:
    """Use the decorated function for arrays on "cuda" and on "cuda-sim", bfloat16 ones included
    (those that it declines are widened to float32 for the reference).
    """

    def add(function: Implementation) -> Implementation:
        def register(kind: type) -> None:
            operation.register(kind, bfloat16=True)(function)

        register(SimArray)
        when_cupy_arrives(register)
        return function

    return add


from . import joining as joining  # noqa: E402 (these import kernel_for from here)
from . import layers as layers  # noqa: E402
from . import pointwise as pointwise  # noqa: E402
from . import products as products  # noqa: E402
from . import sampling as sampling  # noqa: E402
