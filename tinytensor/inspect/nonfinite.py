"""Where the first nan or infinity of a computation came from.

`first_nonfinite(f)` calls `f` once more while it looks at every operation's result and at every
gradient that an operation hands back. An operation *made* a nan if none of its inputs has one, and
an infinity if all its inputs are finite; what merely passes one on is not to blame. (So −∞ in a
mask is nobody's fault.) The look costs a pass over each array, so it belongs in a step that has
failed already.

For the time of the call, `Operation.__call__` and `Node.vjps` are replaced by functions that look
and then do what they did before; other threads must not compute meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..autograd import Leaf, Node
from ..backend import is_array, is_floating
from ..cpu import get_num_threads, set_num_threads
from ..nn.module import Module
from ..tensor import Operation, Tensor


@dataclass(frozen=True)
class Numbers:
    """An array in a few words: what, shape, dtype, and what its numbers are like."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nans: int
    infinities: int
    lowest: float  # of the finite numbers, as the two below; nan where there are none
    highest: float
    size: float  # the root of their mean square

    @classmethod
    def of(cls, name: str, value: Any) -> Numbers:
        array = _numpy(value)
        wide = array.astype(np.float64).ravel()
        finite = wide[np.isfinite(wide)]
        lowest, highest, size = float("nan"), float("nan"), float("nan")
        if finite.size:
            lowest, highest = float(finite.min()), float(finite.max())
            with np.errstate(over="ignore"):
                size = float(np.sqrt(np.mean(np.square(finite))))
        nans = int(np.isnan(wide).sum())
        infinities = int(np.isinf(wide).sum())
        return cls(name, array.shape, str(array.dtype), nans, infinities, lowest, highest, size)

    def __str__(self) -> str:
        words = [f"{self.name} {self.shape} {self.dtype}"]
        if self.nans:
            words.append(f"{self.nans:,} nan")
        if self.infinities:
            words.append(f"{self.infinities:,} infinite")
        if not np.isnan(self.lowest):
            words.append(
                f"from {self.lowest:.4g} to {self.highest:.4g}, root mean square {self.size:.4g}"
            )
        return ", ".join(words)


@dataclass(frozen=True)
class Birth:
    """The operation that made the first number that is not finite."""

    operation: str
    direction: str  # "forward", "backward", or "sum" of gradients that are finite each
    place: str  # the path of the module, such as transformer.h.3.mlp; "" outside of any
    made: Numbers
    inputs: tuple[Numbers, ...]

    def __str__(self) -> str:
        where = f" in {self.place}" if self.place else ""
        what = "nan" if self.made.nans else "infinity"
        if self.direction == "sum":
            return (
                f"the first {what} is a sum of gradients that are finite each: {self.made}{where}"
            )
        inputs = "; ".join(map(str, self.inputs)) or "none"
        return (
            f"the first {what} was made by {self.operation} ({self.direction}){where}: "
            f"{self.made}; its inputs: {inputs}"
        )


class _Found(Exception):  # noqa: N818 (it is no error: it ends the search)
    def __init__(self, birth: Birth) -> None:
        super().__init__(str(birth))
        self.birth = birth


def first_nonfinite(function: Callable[[], Any], module: Module | None = None) -> Birth | None:
    """Calls `function` and says which operation made the first nan or infinity; None if none did.

    The call ends where it is found. `module` is where places are named from: its submodules' paths.
    Gradients that were added up in `module`'s parameters are looked at after the call.
    """
    try:
        with _watching(module):
            function()
    except _Found as found:
        return found.birth
    for name, parameter in module.named_parameters() if module is not None else ():
        if parameter.grad is not None and _trouble(parameter.grad.value):
            made = Numbers.of("gradient", parameter.grad.value)
            return Birth("sum", "sum", name, made, ())
    return None


@contextmanager
def _watching(module: Module | None) -> Iterator[None]:
    places: WeakKeyDictionary[Node, str] = WeakKeyDictionary()
    path: list[str] = []
    call, vjps, threads = Operation.__call__, Node.vjps, get_num_threads()

    def watched_call(operation: Operation, *args: Any, **options: Any) -> Any:
        y = call(operation, *args, **options)
        outputs = [x for x in (y if isinstance(y, tuple) else (y,)) if isinstance(x, Tensor)]
        if outputs:
            place = path[-1] if path else ""
            for node in [x.node for x in outputs if x.node is not None]:
                # The node of one output among several stands in front of the operation's.
                for place_of in (node, *(node.parents if isinstance(y, tuple) else ())):
                    if place_of is not None and not isinstance(place_of, Leaf):
                        places.setdefault(place_of, place)
            _judge(operation.__name__, "forward", place, outputs, _named(operation, args, options))
        return y

    def watched_vjps(node: Node, dy: Any) -> Sequence[Any]:
        inputs = [("dy", given) for given in (dy if isinstance(dy, tuple) else (dy,))]
        inputs += [(f"saved[{i}]", array) for i, array in enumerate(node.saved())]
        gradients = [g.dense() if hasattr(g, "write_to") else g for g in vjps(node, dy)]
        _judge(node.operation, "backward", places.get(node, ""), gradients, inputs)
        return gradients

    handles = []
    for name, part in module.named_modules() if module is not None else ():
        handles.append(part.register_forward_pre_hook(lambda _, __, name=name: path.append(name)))
        handles.append(part.register_forward_hook(lambda _, __, ___: _leave(path)))
    # A method of a class is looked up there at each call, so this reaches every operation and node.
    setattr(Operation, "__call__", watched_call)  # noqa: B010 (mypy: a method is not assigned to)
    setattr(Node, "vjps", watched_vjps)  # noqa: B010
    set_num_threads(1)
    try:
        yield
    finally:
        setattr(Operation, "__call__", call)  # noqa: B010
        setattr(Node, "vjps", vjps)  # noqa: B010
        set_num_threads(threads)
        for handle in handles:
            handle.remove()


def _leave(path: list[str]) -> None:
    path.pop()


def _judge(
    operation: str, direction: str, place: str, results: Sequence[Any], inputs: list[Any]
) -> None:
    for result in results:
        trouble = _trouble(result)
        if not trouble:
            continue
        inherited = {_trouble(value) for _, value in inputs}
        if "nan" in inherited or trouble in inherited:
            continue
        name = "result" if direction == "forward" else "gradient"
        numbers = tuple(Numbers.of(n, v) for n, v in inputs if _is_floating(v))
        raise _Found(Birth(operation, direction, place, Numbers.of(name, result), numbers))


def _trouble(value: Any) -> str:
    """ "nan", "infinity" or nothing."""
    if isinstance(value, float):
        return "nan" if value != value else "infinity" if abs(value) == float("inf") else ""
    if not _is_floating(value):
        return ""
    array = _numpy(value)
    if np.isfinite(array).all():
        return ""
    return "nan" if np.isnan(array).any() else "infinity"


def _is_floating(value: Any) -> bool:
    return (is_array(value) or isinstance(value, Tensor)) and is_floating(value.dtype)


def _numpy(value: Any) -> np.ndarray[Any, Any]:
    array = value.array if isinstance(value, Tensor) else value
    return np.asarray(array.get() if hasattr(array, "get") else array)


def _named(
    operation: Operation, args: Sequence[Any], options: dict[str, Any]
) -> list[tuple[str, Any]]:
    names = operation.inputs if not operation.variadic else ()
    named = [
        (names[i] if i < len(names) else f"argument {i}", value) for i, value in enumerate(args)
    ]
    return named + list(options.items())
