"""`tt.autocast`: products in bfloat16, everything that needs the range or the sum in float32.

    with tt.autocast("cuda", dtype=tt.bfloat16):
        logits, loss = model(x, y)
    loss.backward()

Parameters stay float32. Inside the block each operation of `LOWER` gets its float32 inputs rounded
to bfloat16 (the gradients of those inputs come back as float32), and each of `WIDER` its bfloat16
inputs as float32; all others take what they are given. bfloat16 has float32's range, so losses need
no scaling, and there is no GradScaler. The two lists follow PyTorch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from . import ops as _ops  # noqa: F401 (it fills OPERATIONS)
from .autograd import state
from .backend import DType, bfloat16
from .tensor import OPERATIONS

__all__ = ["autocast", "get_autocast_dtype", "is_autocast_enabled"]

F = TypeVar("F", bound=Callable[..., Any])

LOWER = (
    "matmul", "linear", "linear_cross_entropy", "einsum", "outer", "scaled_dot_product_attention",
)  # fmt: skip
WIDER = (
    "cross_entropy", "exp", "expm1", "layer_norm", "log", "log1p", "log_softmax", "logsumexp",
    "norm", "power", "prod", "reciprocal", "rsqrt", "softmax", "std", "sum", "var", "cumsum",
)  # fmt: skip


class autocast:
    """Context manager and decorator: operations choose their precision as the file's head says.

    `device_type` ("cpu", "cuda" or "cuda-sim") is there for PyTorch's sake: arrays know where they
    are. `dtype` is bfloat16, or float32 for nothing to happen; `enabled=False` switches off inside
    an outer block. Raises ValueError for other dtypes.
    """

    def __init__(
        self, device_type: str = "cuda", dtype: DType | None = None, enabled: bool = True
    ) -> None:
        if str(device_type).split(":")[0] not in ("cpu", "cuda", "cuda-sim"):
            raise ValueError(
                f'autocast: the device type is "cpu", "cuda" or "cuda-sim", not {device_type!r}'
            )
        dtype = np.dtype(bfloat16 if dtype is None else dtype)
        if dtype not in (bfloat16, np.dtype(np.float32)):
            raise ValueError(
                f"autocast: {dtype} is not offered; use tt.bfloat16, whose range is float32's"
            )
        self.enabled = enabled and dtype == bfloat16
        self._previous: list[bool] = []

    def __enter__(self) -> autocast:
        self._previous.append(state.autocast)
        state.autocast = self.enabled
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        state.autocast = self._previous.pop()

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


def is_autocast_enabled(device_type: str | None = None) -> bool:
    """Whether operations on this thread choose their precision themselves."""
    return state.autocast


def get_autocast_dtype(device_type: str | None = None) -> DType:
    """What products are computed in inside `autocast`."""
    return bfloat16


for _name in LOWER:
    OPERATIONS[_name].casts = (np.dtype(np.float32), bfloat16)
for _name in WIDER:
    OPERATIONS[_name].casts = (bfloat16, np.dtype(np.float32))
