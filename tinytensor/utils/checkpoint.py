"""Activation checkpointing: compute a function again in the backward pass instead of keeping what
its gradient needs (T. Chen et al., "Training deep nets with sublinear memory cost", 2016).

`checkpoint(function, x)` is `function(x)`, and its graph is the same graph: the same nodes, with
the same parents, down to the parameters that the function uses. Only the VJPs are emptied, and what
they had saved is freed. The first node that the backward walk visits runs the function once more;
each node then borrows the VJP of its twin in the second run, which is dropped after use. So a stack
of L equal blocks keeps L inputs and what one block saves, in place of what L blocks save, for about
a third more arithmetic (a forward pass costs half a backward pass).

Because the graph stays whole, everything that looks at it works as without: `autograd.grad`, hooks,
gradients that are sent away as soon as they are complete, several outputs, a checkpoint inside
another, the transforms of `tt.func`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from ..autograd import Leaf, Node, aside, enable_grad, is_grad_enabled, state, writes
from ..backend import Array
from ..func import tree_leaves, tree_map
from ..random import default_generator
from ..tensor import Tensor, as_tensor

__all__ = ["checkpoint"]


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool | None = None,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """`function(*args, **kwargs)`, computed again in the backward pass; only its inputs are kept.

    Values and gradients are those of the plain call, bit for bit. The default generator's state is
    put back for the second run, so dropout masks are the same, unless `preserve_rng_state=False`.
    Outputs and arguments may be nested dicts, lists and tuples of tensors. Where nothing is
    recorded it is a plain call.

    A second run that records other operations, and arguments or parameters that were written in
    place in between, raise RuntimeError in the backward pass. `use_reentrant=True`, PyTorch's older
    way, cuts the graph and is not offered.
    """
    if use_reentrant:
        raise ValueError(
            "checkpoint: use_reentrant=True is not offered: it hides parameters from "
            "autograd.grad; leave it out"
        )
    if not is_grad_enabled():
        return function(*args, **kwargs)
    segment = _Segment(function, args, kwargs, preserve_rng_state)
    output = function(*args, **kwargs)
    segment.forget(output)
    return output


class _Inputs(Node):
    """What a function computed from, as the write clock wants to see it: a place in time."""

    __slots__ = ("arrays", "survivors")

    def __init__(self, arrays: list[Array]) -> None:
        super().__init__("checkpoint", (), (), (), arrays[0].dtype if arrays else None, 0)  # type: ignore[arg-type]
        self.arrays = arrays
        # Parameters and other tensors that the function uses without being handed them: not kept
        # alive from here, only looked at.
        self.survivors: list[weakref.ref[Any]] = []

    def saved(self) -> list[Array]:
        return self.arrays + [a for ref in self.survivors if (a := ref()) is not None]


class _Segment:
    """One checkpointed call: how to run it again, and its second run's nodes while they last."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        preserve_rng_state: bool,
    ) -> None:
        self.function = function
        self.arguments = _handles((args, kwargs))
        self.random = default_generator.get_state() if preserve_rng_state else None
        self.reference_only, self.autocast = state.reference_only, state.autocast
        self.inputs = _Inputs([x.value for x in tree_leaves((args, kwargs)) if _is_tensor(x)])
        self.described: list[str] = []  # the nodes of the first run, in order of time
        self.twins: dict[int, Node] = {}  # those of the second, until they are used

    def forget(self, output: Any) -> None:
        """Empty the VJPs that led to `output`: from now on they come from a second run."""
        nodes = _nodes_since(self.inputs, output)
        self.described = [repr(node) for node in nodes]
        saved = [weakref.ref(array) for node in nodes for array in node.saved()]
        for position, node in enumerate(nodes):
            node.vjp = functools.partial(_borrow, self, position, self.inputs.arrays)
        self.inputs.survivors = [ref for ref in saved if ref() is not None]

    def twin(self, position: int) -> Node:
        """The node at `position` of the second run, handed out once; a new run where it is gone."""
        if position not in self.twins:
            self.run_again()
        return self.twins.pop(position)

    def run_again(self) -> None:
        writes.check(self.inputs)
        start = _Inputs([])
        random = default_generator.get_state()
        modes = state.reference_only, state.autocast
        if self.random is not None:
            default_generator.set_state(self.random)
        state.reference_only, state.autocast = self.reference_only, self.autocast
        try:
            with aside(), enable_grad():
                args, kwargs = _handles(self.arguments)
                output = self.function(*args, **kwargs)
        finally:
            state.reference_only, state.autocast = modes
            default_generator.set_state(random)
        nodes = _nodes_since(start, output)
        described = [repr(node) for node in nodes]
        if described != self.described:
            raise RuntimeError(_difference(self.described, described))
        self.twins = dict(enumerate(nodes))


def _borrow(segment: _Segment, position: int, kept: list[Array], dy: Array) -> tuple[Any, ...]:
    """A node's VJP by way of its twin. (`kept` is there to be seen by `node.saved()`.)"""
    return tuple(segment.twin(position).vjps(dy))


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def _handles(tree: Any) -> Any:
    """The same tensors under other handles: `x += y` in the function rebinds its own."""

    def handle(x: Any) -> Any:
        return as_tensor(x.value, x.node) if type(x) is Tensor else x

    return tree_map(handle, tree)


def _nodes_since(start: Node, output: Any) -> list[Node]:
    """The nodes behind `output` that are younger than `start`, in the order they were made."""
    found: set[Node] = set()
    stack = [x.node for x in tree_leaves(output) if _is_tensor(x)]
    while stack:
        node = stack.pop()
        if node is None or node in found or node.number < start.number or isinstance(node, Leaf):
            continue
        found.add(node)
        stack.extend(node.parents)
    return sorted(found, key=lambda node: node.number)


def _difference(first: list[str], second: list[str]) -> str:
    where = next(
        (i for i, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), None
    )
    if where is None:
        what = f"{len(first)} operations became {len(second)}"
    else:
        what = f"operation {where} was {first[where]} and is now {second[where]}"
    return (
        f"checkpoint: the function did not compute the same the second time: {what}; it may depend "
        "only on its arguments, on parameters and the default generator, and on nothing that "
        "changes between the forward and the backward pass (such as train() and eval())"
    )
