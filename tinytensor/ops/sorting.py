"""Orders: where elements would go if they were sorted. Sorted *values* are taken along these, with
gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Array, array_module, bfloat16
from ..tensor import Tensor, op

__all__ = ["argsort"]


@op
def argsort(x: Array, axis: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """The indices that sort x along `axis`; nan counts as largest. Equal elements keep their order
    if `stable`.
    """
    x = x.array if isinstance(x, Tensor) else x
    if x.ndim == 0:
        return np.zeros_like(x, dtype=np.int64), None
    if x.dtype == bfloat16:
        x = x.astype(np.float32)
    xp = array_module(x)
    kind = "stable" if stable else None
    if not descending:
        return xp.argsort(x, axis=axis, kind=kind), None
    # Sorted backwards from the other end, so that equal elements keep their order.
    order = xp.argsort(xp.flip(x, axis=axis), axis=axis, kind=kind)
    return x.shape[axis] - 1 - xp.flip(order, axis=axis), None
