"""What a module does with all its tensors at once: save and load them, convert them, replace them.

Functions of a module, behind the methods in `module.py` where users find them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..autograd import Leaf, note_write
from ..backend import Array, device_of, is_array, to_device
from ..tensor import Tensor, as_tensor
from .parameter import Parameter

if TYPE_CHECKING:
    from .module import Members, Module


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(strict=False)` did not find a partner for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def joined(prefix: str, name: str) -> str:
    """A dotted name."""
    return f"{prefix}.{name}" if prefix else name


def named_state(module: Module) -> Iterator[tuple[str, Any]]:
    """Every parameter and every persistent buffer; shared ones under all their names."""

    def of(part: Module) -> Members:
        saved = [(name, buffer) for name, buffer in part._own_buffers() if part._buffers[name]]
        return part._own(Parameter) + saved

    return module._named_members(of, remove_duplicate=False)


# --- loading --------------------------------------------------------------------------------------


def load(module: Module, given: Mapping[str, Any], strict: bool) -> IncompatibleKeys:
    """`Module.load_state_dict`: check everything, then copy in place."""
    if not isinstance(given, Mapping):
        raise TypeError(f"load_state_dict: expected a dict of tensors, got {type(given).__name__}")
    own = dict(named_state(module))
    filled = {id(own[name]) for name in given if name in own}
    missing = [name for name, tensor in own.items() if id(tensor) not in filled]
    unexpected = [name for name in given if name not in own]
    misshapen = [name for name in given if name in own and _shape(given[name]) != _shape(own[name])]
    problems = [
        *_listed("missing", [f"{n} {_shape(own[n])}" for n in missing if strict]),
        *_listed("unexpected", [f"{n} {_shape(given[n])}" for n in unexpected if strict]),
        *_listed(
            "of another shape",
            [f"{n} is {_shape(own[n])} here but {_shape(given[n])} there" for n in misshapen],
        ),
    ]
    if problems:
        raise RuntimeError(
            "\n".join(
                [f"load_state_dict: the tensors given do not fit this {type(module).__name__}:"]
                + problems
            )
        )
    for name, value in given.items():
        if name in own:
            target = own[name].array
            source = value.array if isinstance(value, Tensor) else value
            target[...] = to_device(source, device_of(target))
            note_write(target)
    return IncompatibleKeys(missing, unexpected)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor) or is_array(value):
        return str(tuple(value.shape))
    return f"a {type(value).__name__}"


def _listed(what: str, lines: list[str]) -> list[str]:
    return ["\n    ".join([f"  {len(lines)} {what}:", *lines])] if lines else []


# --- converting -----------------------------------------------------------------------------------


def convert(module: Module, change: Callable[[Array], Array]) -> None:
    """Replace the array in every parameter, its gradient and every buffer by `change(array)`."""
    for parameter in module.parameters():
        new = change(parameter.array)
        if new is parameter.array:
            continue
        parameter.data = as_tensor(new)
        leaf = parameter.node
        if isinstance(leaf, Leaf):
            leaf.buffer = None
            leaf.grad = None if leaf.grad is None else as_tensor(change(leaf.grad.array))
    done: dict[int, Tensor] = {}  # a buffer that several modules share stays shared
    for part in module.modules():
        for name, buffer in part._own_buffers():
            new = change(buffer.array)
            if new is not buffer.array:
                part.__dict__[name] = done.setdefault(id(buffer), as_tensor(new))


# --- replacing ------------------------------------------------------------------------------------


@contextmanager
def replaced(module: Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """`Module.replaced`: swap the named tensors, wherever they are shared, and put them back."""
    originals: dict[str, Tensor] = {}
    places: dict[int, list[tuple[Module, str]]] = {}
    for where, part in module.named_modules(remove_duplicate=False):
        for name, tensor in (*part._own(Parameter), *part._own_buffers()):
            originals[joined(where, name)] = tensor
            places.setdefault(id(tensor), []).append((part, name))
    unknown = [name for name in tensors if name not in originals]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} has no parameter or buffer named {', '.join(unknown)}; "
            "named_parameters() and named_buffers() list them"
        )
    chosen: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} can only be replaced by a tensor, not {type(tensor).__name__}")
        if chosen.setdefault(id(originals[name]), tensor) is not tensor:
            raise ValueError(
                f"{name} shares its tensor with another name that was given a different "
                "replacement; give one of them"
            )
    swaps = [
        (part, name, part.__dict__[name], chosen[original])
        for original in chosen
        for part, name in places[original]
    ]
    try:
        for part, name, _, tensor in swaps:
            part.__dict__[name] = tensor
        yield
    finally:
        for part, name, tensor, _ in swaps:
            part.__dict__[name] = tensor
