"""`Parameter`: a tensor that a module learns. `module.py` says what modules do with it."""

from __future__ import annotations

from typing import Any

from ..tensor import Tensor, as_tensor


class Parameter(Tensor):
    """A tensor that a module learns: one that is assigned to an attribute of the module.

    Shares the memory of `data`. What is computed from a parameter is a plain Tensor.
    """

    __slots__ = ()

    def __init__(self, data: Any = (), requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{as_tensor(self.value, self.node)!r}"
