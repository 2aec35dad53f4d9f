"""Parameters whose new numbers are still on their way from the other ranks.

An optimizer that has begun to gather its parameters need not wait for them: the next forward pass
takes time, too, and needs them one after the other. Who looks into a parameter waits, and only
then, and only for the parameters that travel with it. That holds for a layer, an evaluation, a
checkpoint and a curious user alike, for all of them read `Tensor.value`: meanwhile the parameter is
of a class of its own, in which `value` is a property. Whoever does not wait for anything pays
nothing, since afterwards it is of its own class again.

Who had looked before may still have the array, or a view of it. Reference counts tell: then the
numbers must have come before the optimizer's step returns (`zero.py`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

from ..backend import Array
from ..optim.flat import FlatBuffer
from ..tensor import Tensor
from .lane import Work

_slot: Any = Tensor.__dict__["value"]  # where a tensor keeps its array, whatever its class says


class Delivery:
    """`parameters` whose numbers travel together, into the memory of `buffers`."""

    def __init__(self, parameters: Sequence[Tensor], buffers: Sequence[FlatBuffer]) -> None:
        self._parameters = list(parameters)
        self._buffers = list(buffers)
        self._views: list[Array] = [parameter.value for parameter in parameters]
        self._work: Work | None = None
        self._arriving = threading.Lock()
        self._references = self._count_references()

    def _count_references(self) -> list[int]:
        # NumPy traces a view of a parameter to the parameter's array, and one of the buffer to the
        # memory below it; CuPy traces both to the buffer's own array.
        buffers = [buffer.values for buffer in self._buffers]
        memory = [values.base for values in buffers if values.base is not None]
        return list(map(sys.getrefcount, [*buffers, *memory, *self._views]))

    def seen(self) -> bool:
        """Whether somebody besides the parameters holds an array of these numbers, or a view."""
        return any(
            now > alone
            for now, alone in zip(self._count_references(), self._references, strict=True)
        )

    def begin(self, work: Work) -> None:
        """From now on, reading one of the parameters waits for `work`."""
        self._work = work
        for parameter in self._parameters:
            expected = _OnItsWay(parameter.value, type(parameter), self)
            parameter.__class__ = _waiting(expected.kind)
            _slot.__set__(parameter, expected)

    def wait(self) -> None:
        """Return when the numbers are there; raise what went wrong on their way, each time."""
        work = self._work
        if work is None:
            return
        work.wait()
        with self._arriving:
            if self._work is not work:  # another thread was here
                return
            for parameter in self._parameters:
                held = _slot.__get__(parameter)
                if isinstance(held, _OnItsWay):
                    _slot.__set__(parameter, held.array)
                    parameter.__class__ = held.kind
            self._work = None


class _OnItsWay:
    """What a parameter of class `kind` holds in the place of its array."""

    __slots__ = ("array", "delivery", "kind")

    def __init__(self, array: Array, kind: type[Tensor], delivery: Delivery) -> None:
        self.array = array
        self.kind = kind
        self.delivery = delivery


_classes: dict[type[Tensor], type[Tensor]] = {}


def _waiting(kind: type[Tensor]) -> type[Tensor]:
    """`kind`, but that reading or replacing `value` waits for it."""
    if kind in _classes:
        return _classes[kind]

    def look(tensor: Tensor) -> Any:
        held = _slot.__get__(tensor)
        if not isinstance(held, _OnItsWay):
            return held
        held.delivery.wait()
        return tensor.value

    def replace(tensor: Tensor, value: Any) -> None:
        look(tensor)
        _slot.__set__(tensor, value)

    def reduce(tensor: Tensor) -> Any:  # a copy is of the class that the tensor has afterwards
        look(tensor)
        tensor.__class__ = kind  # another thread may be about to do it
        return tensor.__reduce__()

    members = {
        "__slots__": (),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__reduce__": reduce,
        "value": property(look, replace),
    }
    return _classes.setdefault(kind, type(kind.__name__, (kind,), members))
