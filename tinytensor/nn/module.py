"""`Module`: what a model is made of.

A Module is an object whose attributes are parameters, buffers and other modules; it finds them by
walking its own attributes, in the order in which they were assigned. Nothing is kept twice: an
attribute *is* the registration, and a parameter that two modules share is one object, so it is
counted, moved, updated and differentiated once. Behaviour, names and state dicts are PyTorch's.

The layers that come with the engine are in `layers.py`, `activations.py`, `losses.py` and
`containers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..autograd import note_write
from ..backend import Array, bfloat16, device, is_floating, to_device
from ..tensor import RemovableHandle, Tensor
from . import state
from .parameter import Parameter

Hook = Callable[..., Any]
Members = list[tuple[str, Any]]
_NO_PARTS = {bool, int, float, str, type(None), list, tuple, dict}  # of a module: most attributes


class Module:
    """The base of every layer and model: define `__init__`, which assigns the parts, and `forward`.

    class Affine(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.scale = nn.Parameter(tt.ones(size))
            self.shift = nn.Parameter(tt.zeros(size))

        def forward(self, x):
            return x * self.scale + self.shift
    """

    training: bool
    _buffers: dict[str, bool]  # the names of the buffers; True for those that are saved
    _forward_pre_hooks: list[Hook]
    _forward_hooks: list[Hook]

    def __init__(self) -> None:
        self.training = True
        self._buffers = {}
        self._forward_pre_hooks = []
        self._forward_hooks = []

    if TYPE_CHECKING:
        # Subclasses choose the arguments of their own `forward`.
        forward: Callable[..., Any]
    else:

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"{type(self).__name__} has no forward method")

    # --- calling ---

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._forward_pre_hooks or self._forward_hooks:
            return self._call_with_hooks(args, kwargs)
        return self.forward(*args, **kwargs)

    def _call_with_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook in tuple(self._forward_pre_hooks):
            replaced = hook(self, args)
            if replaced is not None:
                args = replaced if isinstance(replaced, tuple) else (replaced,)
        output = self.forward(*args, **kwargs)
        for hook in tuple(self._forward_hooks):
            replaced = hook(self, args, output)
            if replaced is not None:
                output = replaced
        return output

    def register_forward_pre_hook(self, hook: Hook) -> RemovableHandle:
        """Call `hook(module, args)` before each forward; it may return other args."""
        self._forward_pre_hooks.append(hook)
        return RemovableHandle(self._forward_pre_hooks, hook)

    def register_forward_hook(self, hook: Hook) -> RemovableHandle:
        """Call `hook(module, args, output)` after each forward; it may return another output."""
        self._forward_hooks.append(hook)
        return RemovableHandle(self._forward_hooks, hook)

    # --- attributes ---

    def __setattr__(self, name: str, value: Any) -> None:
        members = self.__dict__
        is_part = isinstance(value, Parameter | Module)
        if is_part and "_forward_hooks" not in members:
            raise AttributeError(self._not_initialized(name))
        present = members.get(name)
        if value is not None and not is_part:
            if isinstance(present, Parameter):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a parameter and cannot become a "
                    f"{type(value).__name__}; wrap it in nn.Parameter(...), or write into the one "
                    f"that is there: with tt.no_grad(): module.{name}.copy_(...)"
                )
            if isinstance(present, Module):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a module and cannot become a "
                    f"{type(value).__name__}; assign another module, or None"
                )
        if name in members.get("_buffers", ()):
            if is_part:
                del self._buffers[name]
            elif value is not None and not isinstance(value, Tensor):
                raise TypeError(
                    f"{type(self).__name__}.{name} is a buffer and cannot become a "
                    f"{type(value).__name__}; assign a tensor, or None"
                )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._buffers.pop(name, None)

    def __getattr__(self, name: str) -> Any:  # called only for what is not there
        if "_forward_hooks" not in self.__dict__ and not name.startswith("__"):
            raise AttributeError(self._not_initialized(name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _not_initialized(self, name: str) -> str:
        return (
            f"{type(self).__name__}: call super().__init__() at the start of __init__, "
            f"before {name!r} is used"
        )

    def _check_new(self, kind: str, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a {kind} must be a string, not {name!r}")
        if not name or "." in name:
            raise ValueError(f"the name of a {kind} must not be empty or contain '.': {name!r}")
        members = self.__dict__
        replaceable = name in members and isinstance(members[name], Parameter | Module | None)
        if hasattr(self, name) and not replaceable:
            raise ValueError(f"{type(self).__name__} has an attribute {name!r} already")

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """A tensor that moves and is saved with the module but is not learned, as `self.<name>`.

        With `persistent=False` it is left out of `state_dict`.
        """
        if name not in self._buffers:
            self._check_new("buffer", name)
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"register_buffer: {name} must be a tensor, not {type(tensor).__name__}"
            )
        self._buffers.pop(name, None)
        self.__dict__.pop(name, None)
        self._buffers[name] = persistent
        setattr(self, name, tensor)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """The same as `self.<name> = param`, for a computed name; None keeps the place free."""
        self._check_new("parameter", name)
        if param is not None and not isinstance(param, Parameter):
            raise TypeError(
                f"register_parameter: {name} must be an nn.Parameter, not {type(param).__name__}"
            )
        setattr(self, name, param)

    def add_module(self, name: str, module: Module | None) -> None:
        """The same as `self.<name> = module`, for a computed name."""
        self._check_new("module", name)
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: {name} must be an nn.Module, not {type(module).__name__}")
        setattr(self, name, module)

    register_module = add_module

    # --- walking ---

    def _own(self, kind: type) -> Members:
        """This module's own attributes of a type, by name, in order."""
        return [(name, value) for name, value in self.__dict__.items() if isinstance(value, kind)]

    def _own_buffers(self) -> Members:
        members = self.__dict__
        return [(name, members[name]) for name in self._buffers if members[name] is not None]

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside this one, each once."""
        seen = set()
        for name, module in self._own(Module):
            if module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly inside this one, each once, without their names."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """This module (named `prefix`) and all inside it, depth first; shared ones once."""
        seen = set()

        def walk(prefix: str, module: Module) -> Iterator[tuple[str, Module]]:
            if remove_duplicate and module in seen:
                return
            seen.add(module)
            yield prefix, module
            for name, child in module._own(Module):
                yield from walk(state.joined(prefix, name), child)

        return walk(prefix, self)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        return iter(self._collected()[0])

    def _collected(self) -> tuple[list[Module], list[Parameter]]:
        """All modules and parameters from here on, each once, in the order of their names.

        A training step asks for them every time (to clip gradients), so it is one pass without
        names and generators. Nothing is remembered: attributes may have changed since.
        """
        modules: dict[Module, None] = {}
        parameters: dict[int, Parameter] = {}
        waiting = [self]
        while waiting:
            module = waiting.pop()
            if module in modules:
                continue
            modules[module] = None
            children = []
            for value in module.__dict__.values():
                if type(value) in _NO_PARTS:
                    continue
                if isinstance(value, Parameter):
                    parameters[id(value)] = value
                elif isinstance(value, Module):
                    children.append(value)
            waiting += reversed(children)
        return list(modules), list(parameters.values())

    def _named_members(
        self,
        of: Callable[[Module], Members],
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, Any]]:
        seen = set()
        here = [(prefix, self)]
        for where, module in self.named_modules(prefix, remove_duplicate) if recurse else here:
            for name, value in of(module):
                if remove_duplicate and id(value) in seen:
                    continue
                seen.add(id(value))
                yield state.joined(where, name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their dotted names; a shared one once, under its first name."""
        return self._named_members(_own_parameters, prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """All parameters, shared ones once: what an optimizer is given."""
        if recurse:
            return iter(self._collected()[1])
        return (parameter for _, parameter in self.named_parameters(recurse=False))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """All buffers with their dotted names."""
        return self._named_members(Module._own_buffers, prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """All buffers."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def get_submodule(self, target: str) -> Module:
        """The module with this dotted name; this module itself for ""."""
        module = self
        for name in target.split(".") if target else ():
            found = module.__dict__.get(name)
            if not isinstance(found, Module):
                raise AttributeError(f"{type(module).__name__} has no module {name!r} ({target!r})")
            module = found
        return module

    def get_parameter(self, target: str) -> Parameter:
        """The parameter with this dotted name."""
        where, _, name = target.rpartition(".")
        found = self.get_submodule(where).__dict__.get(name)
        if not isinstance(found, Parameter):
            raise AttributeError(f"{type(self).__name__} has no parameter {target!r}")
        return found

    def get_buffer(self, target: str) -> Tensor:
        """The buffer with this dotted name."""
        where, _, name = target.rpartition(".")
        module = self.get_submodule(where)
        if name not in module._buffers:
            raise AttributeError(f"{type(self).__name__} has no buffer {target!r}")
        return module.__dict__[name]  # type: ignore[no-any-return]

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call `fn` on every module inside this one and then on it: to initialise, for example."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # --- modes and gradients ---

    def train(self, mode: bool = True) -> Self:
        """Switch training behaviour (dropout) on or off, here and in all modules inside."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: the mode must be True or False, not {mode!r}")
        self.training = mode
        for child in self.children():
            child.train(mode)
        return self

    def eval(self) -> Self:
        """Switch training behaviour off."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Learn (or freeze) every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget every parameter's gradient; or, with `set_to_none=False`, fill it with zeros."""
        for parameter in self.parameters():
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.array[...] = 0
                note_write(parameter.grad.array)

    # --- moving and converting ---

    def to(
        self, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False
    ) -> Self:
        """Move to a device, convert floating-point numbers to a dtype, or both; in place.

        `to(device)`, `to(dtype)`, `to(device, dtype)` or `to(tensor)`. Do this before an optimizer
        is made: it keeps the parameters in memory of its own.
        """
        for given in args:
            if isinstance(given, Tensor):
                device, dtype = given.device, given.dtype
            elif isinstance(given, np.dtype | type):
                dtype = given
            elif given is not None:
                device = given
        dtype = None if dtype is None else np.dtype(dtype)
        if dtype is not None and not is_floating(dtype):
            raise TypeError(f"to: a module's numbers must be floating-point, not {dtype}")

        def change(array: Array) -> Array:
            if device is not None:
                array = to_device(array, device)
            if dtype is not None and is_floating(array.dtype) and array.dtype != dtype:
                array = array.astype(dtype)
            return array

        state.convert(self, change)
        return self

    def float(self) -> Self:
        """Convert floating-point numbers to float32."""
        return self.to(np.dtype(np.float32))

    def double(self) -> Self:
        """Convert floating-point numbers to float64."""
        return self.to(np.dtype(np.float64))

    def half(self) -> Self:
        """Convert floating-point numbers to float16."""
        return self.to(np.dtype(np.float16))

    def bfloat16(self) -> Self:
        """Convert floating-point numbers to bfloat16."""
        return self.to(bfloat16)

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | device | str | None = None) -> Self:
        """Move to a GPU: the first one, or the one with this number."""
        where = f"cuda:{device}" if isinstance(device, int) else device
        return self.to("cuda" if where is None else where)

    # --- state ---

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Every parameter and persistent buffer by name: detached tensors that share their memory.

        A parameter with two names appears under both. With `keep_vars=True` the parameters
        themselves.
        """
        return {
            prefix + name: value if keep_vars else value.detach()
            for name, value in state.named_state(self)
        }

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> state.IncompatibleKeys:
        """Copy the numbers of `state_dict` into the parameters and buffers of the same names.

        They are cast and moved to what is here; memory stays where it is, so an optimizer's views
        do too. Everything is checked first: if names are missing or unexpected (allowed with
        `strict=False`) or shapes differ, one RuntimeError lists them all, and nothing has changed.
        A name whose tensor is shared with a given name is not missing.
        """
        return state.load(self, state_dict, strict)

    def replaced(self, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside the `with` block, the named parameters and buffers are the given tensors.

        A tensor with several names is replaced under all of them when any one is given. This is how
        `tt.func.functional_call` makes a module a function of its parameters.
        """
        return state.replaced(self, tensors)

    # --- showing ---

    def extra_repr(self) -> str:
        """What a layer shows of itself between the brackets; a subclass may say more."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = [f"({name}): {text}" for name, text in self._shown()]
        if not lines:
            return f"{type(self).__name__}({extra})"
        inside = "\n".join(([extra] if extra else []) + lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {inside}\n)"

    def _shown(self) -> list[tuple[str, str]]:
        """The children as `repr` lists them."""
        return [(name, repr(child)) for name, child in self._own(Module)]


def _own_parameters(module: Module) -> Members:
    return module._own(Parameter)
