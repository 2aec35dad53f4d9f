"""Large arrays that are sooner made again than kept for the backward pass.

The output of layer norm or GELU is needed once more, for the gradient of the weight that it was
multiplied with; what it was made from is kept anyway, for the gradient of the layer norm or GELU
itself. So the operation that makes such an array leaves a recipe here, and `linear` keeps the
recipe instead of the array, whose memory is free as soon as the product is done.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from ..autograd import writes
from ..backend import Array

Recipe = Callable[[], Array]

_known: dict[int, tuple[weakref.ref[Array], int, Recipe]] = {}


def leave_recipe(y: Array, make: Recipe) -> Array:
    """Note that `make()` gives the numbers of y, which is returned."""
    key = id(y)
    _known[key] = weakref.ref(y, lambda _: _known.pop(key, None)), writes.time, make
    return y


def recipe_of(x: Array) -> Recipe | None:
    """How to make x again; None if nobody said, or if an array was written in place since."""
    found = _known.get(id(x))
    if found is None or found[0]() is not x or found[1] != writes.time:
        return None
    return found[2]
