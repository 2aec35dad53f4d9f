"""Modules that hold others: Sequential, ModuleList, ModuleDict, and ParameterList.

The numbered ones keep their parts as attributes named "0", "1", …, which is where the numbers in a
state dict's names come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar

from .module import Module
from .parameter import Parameter

__all__ = ["ModuleDict", "ModuleList", "ParameterList", "Sequential"]

Part = TypeVar("Part")


class _Numbered(Module, Generic[Part]):
    """A list of parts of one kind."""

    kind: type[Part]

    def _parts(self) -> list[Part]:
        return [part for _, part in self._own(self.kind)]

    def _renumber(self, parts: Iterable[Part]) -> None:
        parts = list(parts)
        for name, _ in self._own(self.kind):
            delattr(self, name)
        for i, part in enumerate(parts):
            self._add(str(i), part)

    def _add(self, name: str, part: Any) -> None:
        if not isinstance(part, self.kind):
            raise TypeError(
                f"{type(self).__name__} holds nn.{self.kind.__name__} objects, not a "
                f"{type(part).__name__}"
            )
        setattr(self, name, part)

    def _name(self, index: int) -> str:
        names = [name for name, _ in self._own(self.kind)]
        if not -len(names) <= index < len(names):
            raise IndexError(f"index {index} is out of range: {len(names)} parts")
        return names[index]

    def __len__(self) -> int:
        return len(self._parts())

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return type(self)(self._parts()[index])  # type: ignore[call-arg]
        return self.__dict__[self._name(index)]

    def __setitem__(self, index: int, part: Part) -> None:
        self._add(self._name(index), part)

    def __delitem__(self, index: int | slice) -> None:
        parts = self._parts()
        if isinstance(index, int):
            self._name(index)
        del parts[index]
        self._renumber(parts)

    def append(self, part: Part) -> Self:
        """Add a part at the end."""
        self._add(str(len(self)), part)
        return self

    def extend(self, parts: Iterable[Part]) -> Self:
        """Add parts at the end."""
        for part in parts:
            self.append(part)
        return self

    def insert(self, index: int, part: Part) -> Self:
        """Add a part before number `index`; those after it move up by one."""
        parts = self._parts()
        parts.insert(index, part)
        self._renumber(parts)
        return self


class Sequential(_Numbered[Module]):
    """Modules applied one after the other: each one's output is the next one's input.

    `Sequential(a, b, c)`, or `Sequential({"first": a, "second": b})` to name them. Indexing gives a
    module, slicing another Sequential.
    """

    kind = Module

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self._check_new("module", name)
                self._add(name, module)
        else:
            self._renumber(modules)

    def forward(self, input: Any) -> Any:
        for module in self:
            input = module(input)
        return input

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(self._own(Module)[index]))
        return super().__getitem__(index)


class ModuleList(_Numbered[Module]):
    """A list of modules that their owner finds: its parameters are the owner's parameters."""

    kind = Module

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def _shown(self) -> list[tuple[str, str]]:
        # Blocks that look the same are shown once: "(0-11): 12 x Block(...)".
        shown = []
        for text, group in itertools.groupby(super()._shown(), key=lambda part: part[1]):
            names = [name for name, _ in group]
            if len(names) == 1:
                shown.append((names[0], text))
            else:
                shown.append((f"{names[0]}-{names[-1]}", f"{len(names)} x {text}"))
        return shown


class ParameterList(_Numbered[Parameter]):
    """A list of parameters that their owner finds; tensors given to it become parameters."""

    kind = Parameter

    def __init__(self, values: Iterable[Any] = ()) -> None:
        super().__init__()
        self.extend(values)

    def _add(self, name: str, part: Any) -> None:
        super()._add(name, part if isinstance(part, Parameter) else Parameter(part))

    def extra_repr(self) -> str:
        return ", ".join(f"({name}): {tuple(p.shape)}" for name, p in self._own(Parameter))


class ModuleDict(Module):
    """Modules by name, which their owner finds; iterates in the order of insertion."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add modules, or replace those of the same names."""
        for name, module in modules.items():
            self[name] = module

    def __getitem__(self, name: str) -> Module:
        found = self.__dict__.get(name)
        if not isinstance(found, Module):
            raise KeyError(name)
        return found

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        delattr(self, name if name in self else self._missing(name))

    def _missing(self, name: str) -> str:
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(self.__dict__.get(name), Module)  # type: ignore[call-overload]

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        """The names."""
        return [name for name, _ in self._own(Module)]

    def values(self) -> list[Module]:
        """The modules."""
        return [module for _, module in self._own(Module)]

    def items(self) -> list[tuple[str, Module]]:
        """Names and modules."""
        return self._own(Module)
