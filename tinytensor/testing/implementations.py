"""Do the fast paths say what the reference says?

An operation has one readable definition and, for some types of array, a fast implementation that
repeats its mathematics on purpose. Both are run here on the same inputs with the same random
cotangent. What they may differ by follows from the dtype and the length of the sums, and is
measured against the reference in float64: a fast path must be about as good as the reference is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .. import autograd, func
from ..backend import Array, is_floating, to_numpy
from ..tensor import Tensor, as_tensor, reference_ops

Results = list[tuple[str, np.ndarray[Any, Any]]]


def check_implementations(
    function: Callable[..., Any],
    inputs: Any,
    *,
    length: int | None = None,
    rtol: float | None = None,
    seed: int = 0,
    raise_exception: bool = True,
) -> bool:
    """Whether fast paths give `function(*inputs)` and its gradients as the references do.

    Tensors with `requires_grad=True` among the inputs get gradients compared, from one random
    cotangent per output. For results with rounding unit e, the largest entry of the exact result
    being M and the reference's own error E, the fast path may be off by `rtol·M + 2·E`, where
    `rtol` is e · (4 + sqrt(length)) by default and `length`, the number of terms in a sum, the
    size of the largest input. Raises AssertionError with the worst element, or returns False with
    `raise_exception=False`.
    """
    leaves = [x for x in func.tree_leaves(inputs) if isinstance(x, Tensor)]
    if length is None:
        length = max((math.prod(x.shape) for x in leaves), default=1)
    name = getattr(function, "__name__", type(function).__name__)
    with reference_ops():
        plain = _run(function, inputs, seed, None)
        exact = _run(function, inputs, seed, np.dtype(np.float64))
    try:
        fast = _run(function, inputs, seed, None)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        if raise_exception:
            raise AssertionError(
                f"check_implementations: {name}: the fast path fails where the reference does not: "
                f"{error}"
            ) from error
        return False
    for (what, one), (_, two), (_, truth) in zip(fast, plain, exact, strict=True):
        problem = _compare(what, one, two, truth, length, rtol)
        if problem is not None:
            if raise_exception:
                raise AssertionError(f"check_implementations: {name}: {problem}")
            return False
    return True


def rounding_unit(dtype: Any) -> float:
    """The distance from 1 to the next number of `dtype`."""
    finfo: Any = ml_dtypes.finfo
    return float(finfo(dtype).eps)


def _run(function: Callable[..., Any], inputs: Any, seed: int, dtype: Any) -> Results:
    """Outputs and gradients, by name. With `dtype`, floating inputs are first cast to it."""
    rng = np.random.default_rng(seed)
    varied: list[Tensor] = []

    def prepare(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        array = x.array
        copy = array if dtype is None or not is_floating(x.dtype) else array.astype(dtype)
        if not x.requires_grad:
            return as_tensor(copy)
        varied.append(as_tensor(copy.view()).requires_grad_())
        return varied[-1]

    outputs = function(
        *func.tree_map(prepare, tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,))
    )
    several = outputs if isinstance(outputs, list | tuple) else (outputs,)
    results: Results = [(f"output {i}", to_numpy(y.array)) for i, y in enumerate(several)]
    for place, y in enumerate(several):
        # Rounded to the coarsest dtype, so that every run is given the same cotangent.
        cotangent = (
            rng.standard_normal(tuple(y.shape)).astype(ml_dtypes.bfloat16).astype(np.float64)
        )
        if y.node is None or not varied:
            continue
        gradient = as_tensor(_like(cotangent, y.array))
        found = autograd.grad(y, varied, gradient, retain_graph=True, allow_unused=True)
        for i, g in enumerate(found):
            if g is not None:
                results.append(
                    (f"the gradient of output {place} with respect to input {i}", to_numpy(g.array))
                )
    return results


def _like(values: np.ndarray[Any, Any], array: Array) -> Array:
    given = values.astype(array.dtype)
    if isinstance(array, np.ndarray):
        return given
    from ..backend import module_of

    return module_of(array).asarray(given)


def _compare(
    what: str,
    fast: np.ndarray[Any, Any],
    plain: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    length: int,
    rtol: float | None,
) -> str | None:
    if fast.shape != plain.shape or fast.dtype != plain.dtype:
        return (
            f"{what} is {fast.dtype} {fast.shape} by the fast path and "
            f"{plain.dtype} {plain.shape} by the reference"
        )
    if not is_floating(fast.dtype):
        return (
            None if np.array_equal(fast, plain) else f"{what} differs ({fast.dtype} {fast.shape})"
        )
    if rtol is None:
        rtol = rounding_unit(fast.dtype) * (4 + math.sqrt(length))
    one, two, exact = fast.astype(np.float64), plain.astype(np.float64), truth.astype(np.float64)
    if not np.array_equal(np.isnan(one), np.isnan(two)) or not np.array_equal(
        np.isinf(one), np.isinf(two)
    ):
        return f"{what}: the fast path and the reference are not finite in the same places"
    finite = np.isfinite(two) & np.isfinite(exact)
    if not finite.any():
        return None
    off = np.where(finite, np.abs(np.where(finite, one, 0) - np.where(finite, exact, 0)), 0)
    own = np.abs(two[finite] - exact[finite]).max()
    allowed = rtol * np.abs(exact[finite]).max() + 2 * own
    if off.max() <= allowed:
        return None
    worst = np.unravel_index(int(off.argmax()), off.shape)
    where = f"[{', '.join(map(str, worst))}]" if off.shape else ""
    return (
        f"{what} {fast.shape}, element {where}: {one[worst]:.9g} by the fast path, "
        f"{two[worst]:.9g} by the reference, "
        f"{exact[worst]:.9g} by the reference in float64 (off by {off.max():.2g}, allowed "
        f"{allowed:.2g})"
    )
