"""What every optimizer shares: groups, the step over flat buffers, and the state that is saved.

A subclass says how one stretch of numbers is updated (`_update`); this class finds the stretches.
The parameters of a group lie in flat buffers (`flat.py`), and a step goes over each buffer once, in
chunks that fit the cache. A parameter without a gradient is left out: no decay, no moments, no step
counted.

Types narrower than 32 bits (bfloat16) keep a float32 master copy of the weights: an update smaller
than the gap between two bfloat16 numbers would otherwise be rounded away each time. Read `adamw.py`
next.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..autograd import enable_grad, note_write
from ..backend import Array, array_module, bfloat16, is_floating, silent
from ..cpu.pool import pool
from ..cpu.threads import split
from ..random import Draw, default_generator
from ..tensor import Tensor
from . import saved
from .flat import FlatBuffer, Run, flat_gradients
from .rounding import follow, round_at_random

# Elements of one pass: the scratch arrays stay in a cache, and two threads meet seldom in Python.
CHUNK = 1 << 18

Group = dict[str, Any]
Params = Iterable[Tensor] | Iterable[Group]


class Stretch(NamedTuple):
    """Neighbouring numbers of a flat buffer, and what one update of them needs; all arrays 1-D."""

    value: Array  # the parameters, to be updated in place
    gradient: Array  # not to be written
    state: Sequence[Array]  # what `_names_for` names, to be updated in place
    step: int  # which update of these numbers it is, from 1
    group: Group
    scratch: tuple[Array, Array]  # of the same length, to be written at will

    def decayed_gradient(self, out: Array) -> Array:
        """gradient + weight_decay · value, in `out`; the gradient itself where nothing decays."""
        if not self.group["weight_decay"]:
            return self.gradient
        out = array_module(self.value).multiply(self.value, self.group["weight_decay"], out=out)
        out += self.gradient
        return out


class Optimizer:
    """The base of the optimizers.

    `params` is an iterable of tensors, or of dicts with a list under 'params' and hyper-parameters
    that differ from `defaults`. `param_groups` is the list of such dicts in full; what they say
    under 'lr' and so on may be changed between steps.

    The parameters move into flat buffers: `p.data` and `p.grad` become views. A gradient that the
    caller still holds when `zero_grad()` is called keeps its numbers.
    """

    # The flat arrays kept beside the parameters; the names are those of PyTorch's state dict.
    state_names: ClassVar[tuple[str, ...]] = ()
    # Whether the number of updates is part of a parameter's state.
    counts_steps: ClassVar[bool] = False
    # Whether bfloat16 weights are rounded at random and have no float32 copies (`rounding.py`).
    stochastic_rounding: bool = False

    def __init__(self, params: Params, defaults: Group) -> None:
        self.defaults = defaults
        self.param_groups: list[Group] = []
        # For each group, its parameters when they were last put into buffers, and the buffers.
        self._arranged: list[tuple[list[Tensor], list[FlatBuffer]]] = []
        name = type(self).__name__
        if isinstance(params, Tensor | Mapping | set | frozenset) or not isinstance(
            params, Iterable
        ):
            raise TypeError(
                f"{name}: params must be a list (or another ordered iterable) of tensors or of "
                f"dicts, not {type(params).__name__}"
            )
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError(f"{name}: got an empty list of parameters")
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        checked: list[Group] = []
        for group in groups:
            checked.append(self._checked_group(group, checked))
        self._require_something_to_learn(checked)
        # Only now does anything move: a call that is refused leaves the tensors alone.
        for group in checked:
            self._adopt(group)

    # --- groups ---------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Train further tensors: `{'params': [...], 'lr': ...}`, with defaults for the rest."""
        self._adopt(self._checked_group(param_group, self.param_groups))

    def _adopt(self, group: Group) -> None:
        self.param_groups.append(group)
        self._arranged.append(([], []))
        self._arrange(len(self.param_groups) - 1)

    def _checked_group(self, group: Any, others: Sequence[Group]) -> Group:
        name = type(self).__name__
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(
                f"{name}: a parameter group must be a dict with a list of tensors under 'params'"
            )
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else params
        if isinstance(params, set | frozenset):
            raise TypeError(
                f"{name}: parameters are numbered in their order, and a set has none; pass a list"
            )
        params = list(params)
        if not params:
            raise ValueError(f"{name}: parameter group {len(others)} is empty")
        seen = {id(p): f"group {at}" for at, other in enumerate(others) for p in other["params"]}
        for index, parameter in enumerate(params):
            place = f"parameter {index} of group {len(others)}"
            if not isinstance(parameter, Tensor):
                raise TypeError(f"{name}: {place} is a {type(parameter).__name__}, not a tensor")
            if not parameter.is_leaf:
                raise ValueError(
                    f"{name}: {place} was computed by {parameter.grad_fn!r}; only leaf tensors can "
                    "be optimized (a model's parameters, or x.detach().requires_grad_())"
                )
            if not is_floating(parameter.dtype):
                raise TypeError(
                    f"{name}: {place} is a {parameter.dtype} tensor; only floating-point tensors "
                    "can be optimized"
                )
            if id(parameter) in seen:
                raise ValueError(
                    f"{name}: {place} is also {seen[id(parameter)]}; each tensor may be given once "
                    "(model.parameters() lists a shared one once)"
                )
            seen[id(parameter)] = place
        full = {**group, "params": params}
        for key, value in self.defaults.items():
            full.setdefault(key, value)
        self.check_options(full)
        return full

    def _require_something_to_learn(self, groups: Sequence[Group]) -> None:
        # Some frozen parameters are how people fine-tune; nothing but frozen ones is a slip.
        name = type(self).__name__
        tensors = [p for group in groups for p in group["params"]]
        if not any(p.requires_grad for p in tensors):
            raise ValueError(
                f"{name}: none of the {len(tensors)} parameters requires a gradient, so no step "
                "could change anything; call requires_grad_() on those to be trained"
            )

    def check_options(self, group: Group) -> None:
        """Raise ValueError with a sentence if a hyper-parameter of `group` makes no sense."""
        self._refuse(group, "lr", group["lr"] >= 0.0, "at least 0")
        self._refuse(group, "weight_decay", group["weight_decay"] >= 0.0, "at least 0")

    def _refuse(self, group: Group, key: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f"{type(self).__name__}: {key} must be {wanted}, got {group[key]}")

    # --- flat buffers ---------------------------------------------------------------------------

    def flat_buffers(self) -> list[FlatBuffer]:
        """The buffers with the parameters and gradients: one for each group, dtype and device."""
        return [buffer for at in range(len(self.param_groups)) for buffer in self._arrange(at)]

    def flat_gradients(self) -> list[Array]:
        """All gradients, in as few 1-D arrays as hold them; writing there changes `p.grad`."""
        return flat_gradients(p for group in self.param_groups for p in group["params"])

    def _arrange(self, at: int) -> list[FlatBuffer]:
        """The buffers of group `at`, made anew if its parameters, or their kind, are others now."""
        params: list[Tensor] = self.param_groups[at]["params"]
        arranged, buffers = self._arranged[at]
        same = len(params) == len(arranged) and all(map(operator.is_, params, arranged))
        if same and all(buffer.fits() for buffer in buffers):
            return buffers
        places = {
            id(p): (buffer, index)
            for buffer in buffers
            for index, p in enumerate(buffer.parameters)
        }
        states = {
            key: saved.state_of(self, buffer, index) for key, (buffer, index) in places.items()
        }
        kinds: dict[Any, list[Tensor]] = {}
        for parameter in params:
            self._check_shape(parameter, states.get(id(parameter), {}))
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        buffers = [FlatBuffer(alike) for alike in kinds.values()]
        for buffer in buffers:
            for index, parameter in enumerate(buffer.parameters):
                saved.restore(self, buffer, index, states.get(id(parameter), {}))
        self._arranged[at] = list(params), buffers
        return buffers

    def use_buffers(self, at: int, buffers: Sequence[FlatBuffer]) -> None:
        """Keep group `at` in these buffers, made elsewhere; they hold its parameters in its order.

        For whoever has the memory already (`distributed/zero.py`), before the first step.
        """
        for buffer in buffers:
            buffer.gather_values()
        self._arranged[at] = list(self.param_groups[at]["params"]), list(buffers)

    def _check_shape(self, parameter: Tensor, state: Mapping[str, Any]) -> None:
        for moment in state.values():
            if isinstance(moment, Tensor) and moment.shape != parameter.shape:
                raise ValueError(
                    f"{type(self).__name__}: a parameter whose moments have shape {moment.shape} "
                    f"now has shape {parameter.shape}; make a new optimizer"
                )

    # --- the step -------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or, with `set_to_none=False`, fill them with zeros."""
        for buffer in self.flat_buffers():
            if set_to_none:
                buffer.drop_gradients()
            else:
                buffer.clear_gradients()

    @silent
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        `closure`, if given, computes the loss (and the gradients); the loss is returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for at, group in enumerate(self.param_groups):
            names = self._names_for(group)
            for buffer in self._arrange(at):
                buffer.gather_values()
                # State that no earlier step kept (momentum that was just switched on) begins now.
                begun = all(name in buffer.state for name in names)
                arrays = [buffer.state_array(name) for name in names]
                for run in buffer.runs(buffer.gather_gradients()):
                    self._update_run(buffer, run, arrays, run.step + 1 if begun else 1, group)
        return loss

    def _update_run(
        self, buffer: FlatBuffer, run: Run, arrays: Sequence[Array], step: int, group: Group
    ) -> None:
        note_write(buffer.values[run.span])
        first, count = run.span.start, run.span.stop - run.span.start

        on_cpu = buffer.device.type == "cpu"
        at_random = self.stochastic_rounding and buffer.dtype == bfloat16
        draw = default_generator.reserve(-(-count // 2)) if at_random else None

        def update(start: int, stop: int) -> None:
            for part in _chunks(first + start, first + stop, CHUNK if on_cpu else count):
                state = [array[part] for array in arrays]
                scratch = self._scratch(buffer, part)
                value, gradient = buffer.values[part], buffer.gradients[part]
                stretch = Stretch(value, gradient, state, step, group, scratch)
                if buffer.dtype == buffer.precision:
                    self._update(stretch)
                elif draw is None:
                    self._update_with_master(stretch, buffer.state_array("master")[part])
                else:
                    self._update_at_random(stretch, (draw, part.start - first))

        if on_cpu:
            split(count, CHUNK, update)
        else:
            update(0, count)
        for index in range(run.first, run.last):
            buffer.steps[index] = step

    def _update_with_master(self, stretch: Stretch, master: Array) -> None:
        """`_update` of the float32 weights behind narrower ones, which are those rounded."""
        follow(master, stretch.value)
        gradient = stretch.gradient.astype(master.dtype)
        self._update(stretch._replace(value=master, gradient=gradient))
        stretch.value[...] = master

    def _update_at_random(self, stretch: Stretch, place: tuple[Draw, int]) -> None:
        """`_update` of bfloat16 weights, rounded up or down by the words of a draw from a place."""
        exact = stretch.value.astype(np.float32)
        gradient = stretch.gradient.astype(np.float32)
        self._update(stretch._replace(value=exact, gradient=gradient))
        round_at_random(stretch.value, exact, *place)

    def _scratch(self, buffer: FlatBuffer, part: slice) -> tuple[Array, Array]:
        """Two arrays for an update to write into."""
        empty = pool.empty if buffer.device.type == "cpu" else array_module(buffer.values).empty
        shape = (part.stop - part.start,)
        return empty(shape, buffer.precision), empty(shape, buffer.precision)

    def _names_for(self, group: Group) -> tuple[str, ...]:
        """The state arrays that an update of `group` reads and writes."""
        return self.state_names

    def _update(self, stretch: Stretch) -> None:
        """Update the numbers and their state in place."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it updates a parameter")

    # --- state ----------------------------------------------------------------------------------

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """For each parameter that has been updated, its moments (views) and number of updates."""
        return {
            parameter: saved.state_of(self, buffer, index)
            for buffer in self.flat_buffers()
            for index, parameter in enumerate(buffer.parameters)
            if buffer.steps[index]
        }

    def state_dict(self) -> dict[str, Any]:
        """`{'state': {index: {...}}, 'param_groups': [...]}`: enough to go on bit for bit.

        Parameters are numbered through all groups, as in PyTorch. The tensors are views of the live
        state: save them, or clone them, before the next step.
        """
        return saved.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict()` returned, here or in another process (PyTorch's too).

        Raises ValueError, before anything is changed, if it does not fit this optimizer.
        """
        groups, states = saved.checked(self, state_dict)
        for group, new in zip(self.param_groups, groups, strict=True):
            group.clear()
            group.update(new)
        for buffer in self.flat_buffers():
            for index, parameter in enumerate(buffer.parameters):
                saved.restore(self, buffer, index, states.get(id(parameter), {}))

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {number}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return "\n".join([*lines, ")"])


def _chunks(start: int, stop: int, length: int) -> Iterator[slice]:
    for at in range(start, stop, max(length, 1)):
        yield slice(at, min(at + length, stop))
