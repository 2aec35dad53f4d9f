"""Fast implementations of operations on NumPy arrays.

Each has the contract and the mathematics of the reference it is registered for (`ops/`), and is
property-tested against it. What makes them fast: arrays from a pool instead of fresh pages, sums as
products with a vector of ones, passes over pieces that stay in cache, and weight gradients
multiplied straight into the optimizer's buffer. A fast path declines (NotImplemented) what it was
not made for.
"""

from __future__ import annotations

from . import attention, dropout, elementwise, indexing, linear, losses, norms
from .pool import pool
from .threads import get_num_threads, set_num_threads

__all__ = [
    "attention",
    "dropout",
    "elementwise",
    "get_num_threads",
    "indexing",
    "linear",
    "losses",
    "norms",
    "pool",
    "set_num_threads",
]
