"""What every table of operations is put through: first and second derivatives, both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import tinytensor as tt
from tinytensor.tensor import OPERATIONS
from tinytensor.testing import check_implementations, gradcheck, gradgradcheck


def real(*shape: int, seed: int = 0) -> tt.Tensor:
    """A random float64 tensor that takes part in derivatives."""
    values = np.random.default_rng((seed, *shape)).normal(size=shape)
    return tt.tensor(values, requires_grad=True)


def check_derivatives(function: Callable[..., tt.Tensor], inputs: Sequence[Any]) -> None:
    """The VJP, the VJP of the VJP and the JVP of the reference; then the fast path, if there is
    one.
    """
    with tt.reference_ops():
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs, directions=1)
        check_jvp(function, inputs)
    check_implementations(function, inputs)


def check_jvp(function: Callable[..., tt.Tensor], inputs: Sequence[Any]) -> None:
    """u · (J v) = (Jᵀ u) · v: a VJP that is handed a Tensor, as jvp does, says the same."""
    rng = np.random.default_rng(0)
    xs = tuple(x.detach() for x in inputs)
    vs = tuple(tt.tensor(rng.normal(size=x.shape)) for x in xs)
    y, jv = tt.func.jvp(function, xs, vs)
    _, pullback = tt.func.vjp(function, *xs)
    u = tt.tensor(rng.normal(size=y.shape))
    left = (u * jv).sum().item()
    right = sum((g * v).sum().item() for g, v in zip(pullback(u), vs, strict=True))
    assert left == pytest.approx(right, rel=1e-9, abs=1e-12)


def operations_of(module: Any) -> set[str]:
    """The names of the operations that `module` defines: its table must cover them."""
    return {
        name
        for name, operation in OPERATIONS.items()
        if operation.reference.__module__ == module.__name__
    }


def recorded(y: tt.Tensor) -> set[str]:
    """The names of the operations that `y` was computed with."""
    found, stack = set(), [y.node]
    while stack:
        node = stack.pop()
        found.add(node.operation)
        stack.extend(parent for parent in node.parents if parent is not None)
    return found
