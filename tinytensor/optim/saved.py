"""What is saved of an optimizer, and what is checked before a saved state is taken over.

The structure is PyTorch's, so that states move both ways:

    {"state": {0: {"step": 10, "exp_avg": tensor, "exp_avg_sq": tensor}, ...},
     "param_groups": [{"lr": 0.001, ..., "params": [0, 1]}, ...]}

Parameters are numbered through all groups; one that was never updated has no state. Weights in
bfloat16 have one more tensor, "master".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import to_device
from ..tensor import Tensor, as_tensor
from .flat import FlatBuffer

if TYPE_CHECKING:
    from .optimizer import Group, Optimizer

# What PyTorch's own saved groups hold besides: how to compute, not what.
_FLAGS = {
    "amsgrad",
    "maximize",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
}


def state_of(optimizer: Optimizer, buffer: FlatBuffer, index: int) -> dict[str, Any]:
    """The state of parameter `index` of `buffer`: tensors that are views of it, and its step."""
    if not buffer.steps[index]:
        return {}
    state: dict[str, Any] = {"step": buffer.steps[index]} if optimizer.counts_steps else {}
    for name in buffer.state:
        state[name] = as_tensor(buffer.state_view(name, index))
    return state


def restore(optimizer: Optimizer, buffer: FlatBuffer, index: int, state: Mapping[str, Any]) -> None:
    """Give parameter `index` of `buffer` this state; an empty one is that before the first step."""
    buffer.steps[index] = (state["step"] if optimizer.counts_steps else 1) if state else 0
    for name in buffer.state.keys() - state.keys():
        buffer.state_view(name, index)[...] = 0
    for name, value in state.items():
        if name != "step":
            array = value.array if isinstance(value, Tensor) else np.asarray(value)
            buffer.state_view(name, index)[...] = to_device(array, buffer.device)


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state in PyTorch's structure."""
    tensors = (p for group in optimizer.param_groups for p in group["params"])
    numbers = {id(parameter): number for number, parameter in enumerate(tensors)}
    states = {numbers[id(parameter)]: state for parameter, state in optimizer.state.items()}
    groups = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "params": [numbers[id(parameter)] for parameter in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    return {"state": {n: states[n] for n in sorted(states) if states[n]}, "param_groups": groups}


def checked(
    optimizer: Optimizer, given: Mapping[str, Any]
) -> tuple[list[Group], dict[int, dict[str, Any]]]:
    """The groups of a saved state with this optimizer's parameters, and states by `id(parameter)`.

    Raises ValueError where the saved state is not one of this optimizer.
    """
    name = type(optimizer).__name__
    try:
        groups, states = [dict(group) for group in given["param_groups"]], dict(given["state"])
        sizes = [len(group["params"]) for group in groups]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{name}: load_state_dict needs a dict with 'state' and 'param_groups', as "
            "state_dict() makes it"
        ) from None
    own_sizes = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != own_sizes:
        raise ValueError(
            f"{name}: the saved state has groups of {sizes} parameters, this optimizer {own_sizes}"
        )
    unknown = states.keys() - {number for group in groups for number in group["params"]}
    if unknown:
        raise ValueError(f"{name}: the saved state is of parameters that no group has: {unknown}")
    merged: list[Group] = []
    by_parameter: dict[int, dict[str, Any]] = {}
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        merged.append(_checked_group(optimizer, group, own))
        for number, parameter in zip(group["params"], own["params"], strict=True):
            state = states.get(number, {})
            by_parameter[id(parameter)] = _checked_state(
                optimizer, state, parameter, number, merged[-1]
            )
    return merged, by_parameter


def _checked_group(optimizer: Optimizer, group: Group, own: Group) -> Group:
    name = type(optimizer).__name__
    for key in ("amsgrad", "maximize"):
        if group.get(key):
            raise ValueError(f"{name}: the state was saved with {key}=True, which is not offered")
    missing = [repr(key) for key in optimizer.defaults if key not in group]
    if missing:
        raise ValueError(f"{name}: a saved group lacks {', '.join(missing)}")
    kept = {key: value for key, value in group.items() if key not in _FLAGS}
    kept["params"] = own["params"]
    optimizer.check_options(kept)
    return kept


def _checked_state(
    optimizer: Optimizer, state: Mapping[str, Any], parameter: Tensor, number: int, group: Group
) -> dict[str, Any]:
    owner = f"{type(optimizer).__name__}: the saved state of parameter {number}"
    if not isinstance(state, Mapping):
        raise ValueError(f"{owner} is a {type(state).__name__}, not a dict")
    checked: dict[str, Any] = {}
    for key, value in state.items():
        if key == "step":
            if optimizer.counts_steps:
                checked[key] = int(value)
        elif key not in (*optimizer.state_names, "master"):
            kept = ", ".join(optimizer.state_names)
            raise ValueError(f"{owner} holds {key!r}, which is not kept here ({kept} are)")
        elif value is not None:  # PyTorch writes None for a momentum buffer not yet begun
            shape = tuple(getattr(value, "shape", ()))
            if shape != parameter.shape:
                raise ValueError(
                    f"{owner} holds {key} of shape {shape}, but the parameter has shape "
                    f"{parameter.shape}"
                )
            checked[key] = value
    if checked and optimizer.counts_steps:
        needed = ("step", *optimizer._names_for(group))
        lacking = [key for key in needed if key not in checked]
        if lacking:
            raise ValueError(f"{owner} lacks {', '.join(lacking)}")
    return checked
