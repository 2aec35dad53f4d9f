"""Each operation of a step by itself: the same implementation, called again and again.

One step is watched, and the first call of every kind (operation and shapes) is kept with its
gradient. Then it is repeated, forward and backward, while nothing else happens: what an operation
takes as it is written here, with its arrays as near as they get and no other one beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .floor import seconds_of
from .profiling import PYTHON, part_of, what_it_computes
from .workloads import CLIP


class Example:
    """A call of an operation, its gradients by the VJP that they went to, how many are like it."""

    def __init__(
        self, row: str, function: Callable[..., Any], values: Any, options: Any, walks: Any
    ) -> None:
        self.row, self.function, self.values, self.options = row, function, values, options
        self.walks = walks
        self.calls = 0
        self.dy: dict[int, tuple[Any, ...]] = {}
        self.buffers: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def noting(self, index: int, vjp: Callable[..., Any]) -> Callable[..., Any]:
        def call(*dy: Any) -> Any:  # one for each output
            self.dy[index] = dy
            return vjp(*dy)

        return call

    def __call__(self) -> None:
        """Forward and backward, as in the step: threads that work beside a walk do so here."""
        _, vjp = self.function(*self.values, **self.options)
        rules = vjp if isinstance(vjp, tuple) else (vjp,)
        for walk in self.walks:
            walk.begin()
        for index, dy in self.dy.items():
            gradients = rules[index](*dy)
            for gradient in gradients if isinstance(gradients, tuple) else (gradients,):
                self.settle(gradient)
        for walk in self.walks:
            walk.finish()
            walk.end()

    def settle(self, gradient: Any) -> None:
        """Computes a late gradient into a buffer, as the walk does."""
        if hasattr(gradient, "write_to"):
            if gradient.shape not in self.buffers:
                self.buffers[gradient.shape] = np.zeros(gradient.shape, gradient.dtype)
            buffer = self.buffers[gradient.shape]
            # A table of embeddings has a gradient already where it is the head's weight, too.
            write = gradient.add_to if self.row == "embedding" else gradient.write_to
            write(buffer)


def operations_alone(engine: Any, batch: tuple[Any, Any]) -> dict[str, float]:
    """Seconds a step, by row of the profile; what is Python there is left out."""
    from tinytensor import autograd
    from tinytensor.tensor import OPERATIONS

    examples: dict[Any, Example] = {}

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **options: Any) -> Any:
            result = function(*values, **options)
            row, _ = what_it_computes(name, values)
            if result is NotImplemented or result[1] is None or part_of(row) == PYTHON:
                return result
            y, vjp = result
            key = (row, *(getattr(value, "shape", None) for value in values))
            if key not in examples:
                examples[key] = Example(row, function, values, options, autograd._beside)
            example = examples[key]
            example.calls += 1
            if isinstance(vjp, tuple):
                return y, tuple([f and example.noting(i, f) for i, f in enumerate(vjp)])
            return y, example.noting(0, vjp)

        return run

    before = {
        operation: (dict(operation.implementations), operation.reference)
        for operation in OPERATIONS.values()
    }
    for operation, (implementations, reference) in before.items():
        for kind, function in implementations.items():
            operation.implementations[kind] = watched(operation.__name__, function)
        operation.reference = watched(operation.__name__, reference)
    try:
        engine.step(*batch)
    finally:
        for operation, (implementations, reference) in before.items():
            operation.implementations.update(implementations)
            operation.reference = reference

    autograd.state.recording = True  # what an operation asks that could leave its backward pass out
    seconds: dict[str, float] = {}
    for example in examples.values():
        if example.dy:
            taken = example.calls * seconds_of([example])
            seconds[example.row] = seconds.get(example.row, 0.0) + taken
    parameters = list(engine.model.parameters())
    seconds["clip_grad_norm_"] = seconds_of([lambda: engine.clip(parameters, CLIP)])
    seconds["AdamW"] = seconds_of([engine.optimizer.step])
    return seconds
