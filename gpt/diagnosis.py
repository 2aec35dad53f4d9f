"""A step that went wrong, told in a sentence: which operation made the first nan or infinity.

The step is computed again with the same parameters, batches and dropout masks, and everything in
between is looked at (`tinytensor/inspect`). Used by `gpt/train.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from gpt.language_model import LanguageModel
from tinytensor.inspect import Numbers, first_nonfinite


@contextmanager
def unwarned() -> Iterator[None]:
    """Without NumPy's warnings of overflow: each step is looked at, and a bad one told in full."""
    with warnings.catch_warnings():  # of all threads, where np.errstate is of this one
        warnings.filterwarnings("ignore", ".* encountered in ", RuntimeWarning)
        yield


def all_finite(values: dict[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))


def damaged_parameter(model: LanguageModel) -> str:
    """The first parameter that is not finite, in words; nothing where all are."""
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().numpy()
        if not np.isfinite(numbers).all():
            return str(Numbers.of(name, numbers))
    return ""


def explain(step: Callable[[], object], model: LanguageModel) -> str:
    """What made the numbers of `step` not finite; it computes loss and gradients, and can again."""
    if damaged := damaged_parameter(model):
        return f"a parameter was not finite before the step: {damaged}"
    if birth := first_nonfinite(step, model):
        return str(birth)
    name, largest = largest_gradient(model)
    if largest:
        return (
            "every number is finite, but the gradients are too large for the sum of their "
            f"squares: the largest is {largest:.3g}, of {name}"
        )
    return "the step computed again is finite: what it computes is not the same twice"


def largest_gradient(model: LanguageModel) -> tuple[str, float]:
    """The parameter with the largest gradient, where its square is beyond float32."""
    largest = {
        name: float(np.abs(parameter.grad.numpy()).max())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    name = max(largest, key=largest.__getitem__, default="")
    return (name, largest[name]) if name and largest[name] > 1e15 else ("", 0.0)
