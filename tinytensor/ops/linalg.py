"""Products of vectors, matrices and batches of matrices.

bfloat16 products are accumulated in float32 and rounded once; integer products stay integers.
"""

from __future__ import annotations

import math
import string
from typing import Any

import numpy as np

from ..backend import Array, array_module, bfloat16, silent
from ..tensor import Tensor, op, promote_types

__all__ = ["einsum", "linear", "matmul", "outer"]


@op(promote=True)
@silent
def matmul(a: Array, b: Array) -> Any:
    """a @ b: y[…, i, j] = Σₖ a[…, i, k] · b[…, k, j].

    Matrices in the last two axes, all axes before them broadcast; a 1-D a is a row and a 1-D b a
    column, and the axis that this adds is dropped from y. Gradients: da = dy @ bᵀ, db = aᵀ @ dy.
    """
    _check_matmul(a.shape, b.shape)
    if a.ndim == 1 and b.ndim == 1:
        return _product(a, b), (lambda dy: dy * b, lambda dy: dy * a)
    if a.ndim == 1:
        return _product(a, b), (
            lambda dy: _product(b, dy[..., :, None])[..., 0],
            lambda dy: a[:, None] * dy[..., None, :],
        )
    if b.ndim == 1:
        return _product(a, b), (
            lambda dy: dy[..., :, None] * b,
            lambda dy: _product(a.swapaxes(-1, -2), dy[..., :, None])[..., 0],
        )
    if a.ndim > 2 and b.ndim == 2:
        # One matrix for the whole batch: one tall product, and no sum over a batch of db.
        given, flat = a.shape, (math.prod(a.shape[:-1]), a.shape[-1])
        out = (flat[0], b.shape[1])
        y = _product(a.reshape(flat), b).reshape((*given[:-1], out[1]))
        return y, (
            lambda dy: _product(dy.reshape(out), b.swapaxes(0, 1)).reshape(given),
            lambda dy: _product(a.reshape(flat).swapaxes(0, 1), dy.reshape(out)),
        )
    return _product(a, b), (
        lambda dy: _product(dy, b.swapaxes(-1, -2)),
        lambda dy: _product(a.swapaxes(-1, -2), dy),
    )


def _product(a: Array, b: Array) -> Array:
    """a @ b; bfloat16 accumulates in float32."""
    if a.dtype != bfloat16 or isinstance(a, Tensor) or isinstance(b, Tensor):
        return a @ b
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(bfloat16)


def _check_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if not a or not b:
        raise ValueError(f"matmul: {a} @ {b}: a tensor without axes is not a matrix; use * instead")
    columns, rows = a[-1], b[-2] if len(b) > 1 else b[0]
    if columns != rows:
        raise ValueError(f"matmul: {a} @ {b}: {columns} columns but {rows} rows")
    if len(a) > 2 and len(b) > 2:
        for left, right in zip(reversed(a[:-2]), reversed(b[:-2]), strict=False):
            if left != right and left != 1 and right != 1:
                raise ValueError(
                    f"matmul: {a} @ {b}: the batch axes {a[:-2]} and {b[:-2]} do not agree"
                )


@op
@silent
def linear(x: Array, weight: Array, bias: Array) -> Any:
    """y = x @ weightᵀ + bias, for x of shape (…, in), weight (out, in) and bias (out,) or None.

    Gradients: dx = dy @ weight, dweight = dyᵀ @ x over all rows, dbias = dy summed over all rows.
    """
    _check_linear(x, weight, bias)
    given = tuple(x.shape)
    count, (out_features, in_features) = math.prod(given[:-1]), weight.shape
    rows = x.reshape((count, in_features))
    y = _product(rows, weight.swapaxes(0, 1)).reshape((*given[:-1], out_features))
    if bias is not None:
        y = y + bias
    return y, (
        lambda dy: _product(dy.reshape((count, out_features)), weight).reshape(given),
        lambda dy: _product(dy.reshape((count, out_features)).swapaxes(0, 1), rows),
        None if bias is None else lambda dy: dy,
    )


def _check_linear(x: Array, weight: Array, bias: Array) -> None:
    if weight.ndim != 2:
        raise ValueError(f"linear: the weight must be (out, in), got shape {tuple(weight.shape)}")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear: x has {x.shape[-1] if x.ndim else 'no'} features but the weight expects "
            f"{weight.shape[1]} (x is {tuple(x.shape)}, weight is {tuple(weight.shape)})"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(
            f"linear: the bias is {tuple(bias.shape)} but the weight has {weight.shape[0]} outputs "
            f"(weight is {tuple(weight.shape)})"
        )
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype):
        dtypes = ", ".join(str(a.dtype) for a in (x, weight, bias) if a is not None)
        raise TypeError(
            f"linear: x, weight and bias must have one dtype, got {dtypes}; use .to(dtype)"
        )


@op(promote=True)
@silent
def outer(a: Array, b: Array) -> Any:
    """y[i, j] = a[i] · b[j] of two vectors. Gradients: da = dy @ b, db = a @ dy."""
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"outer: expected two vectors, got {tuple(a.shape)} and {tuple(b.shape)}")
    return a[:, None] * b, (lambda dy: matmul(dy, b), lambda dy: matmul(a, dy))


# --- einsum --------------------------------------------------------------------------------------


@op
@silent
def einsum(subscripts: str, *operands: Array) -> Any:
    """Sum of products over named axes: einsum("bij,bjk->bik", a, b) is the batched a @ b.

    Axes that the output does not name are summed over; without "->" it names, in alphabetical
    order, those that occur once. "..." stands for axes that broadcast. Gradient of an operand: the
    einsum of dy and the other operands that has the operand's own axes as its output.
    """
    if not isinstance(subscripts, str):
        raise TypeError(
            f'einsum: the first argument is a string such as "ij,jk->ik", not a '
            f"{type(subscripts).__name__}"
        )
    terms, output = parse_subscripts(subscripts, tuple(tuple(x.shape) for x in operands))
    operands = tuple(promote_types(list(operands)))
    y = _einsum(",".join(terms) + "->" + output, *operands)

    def vjp_of(i: int) -> Any:
        others = operands[:i] + operands[i + 1 :]
        other_terms = terms[:i] + terms[i + 1 :]
        shape = tuple(operands[i].shape)
        return lambda dy: _einsum_gradient(dy, output, others, other_terms, terms[i], shape)

    return y, (None, *(vjp_of(i) for i in range(len(operands))))


def _einsum(subscripts: str, *operands: Array) -> Array:
    if any(isinstance(x, Tensor) for x in operands):
        return einsum(subscripts, *operands)
    xp = array_module(*operands)
    if operands[0].dtype != bfloat16:
        return xp.asarray(xp.einsum(subscripts, *operands, optimize=len(operands) > 1))
    wide = [x.astype(np.float32) for x in operands]
    return xp.asarray(xp.einsum(subscripts, *wide, optimize=len(operands) > 1)).astype(bfloat16)


def _einsum_gradient(
    dy: Array,
    output: str,
    others: tuple[Array, ...],
    other_terms: list[str],
    term: str,
    shape: tuple[int, ...],
) -> Array:
    """The gradient of the operand `term`, of shape `shape`."""
    known = set(output).union(*other_terms)
    terms = [output, *other_terms]
    factors: list[Array] = [dy, *others]
    target = ""
    unused = iter(sorted(set(string.ascii_letters) - known - set(term)))
    for axis, letter in enumerate(term):
        if letter in target:
            # "ii": y read the diagonal only, so the gradient is one there: times the unit matrix.
            twin = next(unused)
            terms.append(letter + twin)
            factors.append(_unit_matrix(shape[axis], dy))
            known |= {letter, twin}
            letter = twin
        target += letter
    # An axis that no other operand has was summed away: all its elements get the same gradient.
    named = "".join(letter for letter in target if letter in known)
    gradient = _einsum(",".join(terms) + "->" + named, *factors)
    axes = iter(gradient.shape)
    return gradient.reshape(tuple(next(axes) if letter in known else 1 for letter in target))


def _unit_matrix(size: int, like: Array) -> Array:
    array = like.array if isinstance(like, Tensor) else like
    return array_module(array).eye(size, dtype=array.dtype)


def _check_sizes(subscripts: str, terms: list[str], shapes: tuple[tuple[int, ...], ...]) -> None:
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        before, _, after = term.partition("...")
        named = (*zip(before, shape, strict=False), *zip(after[::-1], shape[::-1], strict=False))
        for letter, size in named:
            if sizes.get(letter, 1) not in (1, size) and size != 1:
                raise ValueError(
                    f"einsum: {letter!r} of {subscripts!r} has sizes {sizes[letter]} and {size}"
                )
            sizes[letter] = max(size, sizes.get(letter, 1))


def parse_subscripts(subscripts: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[list[str], str]:
    """The letters of each operand and of the output, "..." replaced by letters of their own.

    >>> parse_subscripts("...ij,jk", ((5, 2, 3), (3, 4)))
    (['Aij', 'jk'], 'Aik')
    """
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ValueError(
            f"einsum: {subscripts!r} names {len(terms)} operands but {len(shapes)} were given"
        )
    spare = [c for c in string.ascii_uppercase + string.ascii_lowercase if c not in subscripts]
    widths = [len(s) - len(t.replace("...", "")) for t, s in zip(terms, shapes, strict=True)]
    for term, shape, width in zip(terms, shapes, widths, strict=True):
        if width < 0 or (width > 0 and "..." not in term):
            raise ValueError(
                f"einsum: {term!r} in {subscripts!r} names {len(term.replace('...', ''))} axes "
                f"but the operand is {shape}"
            )
    _check_sizes(subscripts, terms, shapes)
    most = max((w for t, w in zip(terms, widths, strict=True) if "..." in t), default=0)
    dots = "".join(spare[:most])
    terms = [t.replace("...", dots[most - w :]) for t, w in zip(terms, widths, strict=True)]
    if arrow:
        output = output.replace("...", dots)
    else:
        joined = "".join(terms)
        output = dots + "".join(
            c for c in sorted(set(joined)) if joined.count(c) == 1 and c not in dots
        )
    for letter in "".join(terms) + output:
        if letter not in string.ascii_letters:
            raise ValueError(f"einsum: {letter!r} in {subscripts!r} is not a letter")
    for letter in output:
        if output.count(letter) > 1 or letter not in "".join(terms):
            raise ValueError(
                f"einsum: the output of {subscripts!r} must name each axis once, and only axes "
                "of the operands"
            )
    return terms, output
