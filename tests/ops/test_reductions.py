"""Sums, products, extremes and norms: NumPy's numbers along every axis, and what is special.

That every gradient is right at an ordinary point is in `tests/test_properties.py`. Here are zeros
in products, ties among the largest, norms of nothing, rows of -inf, axes without elements.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import ops

from .derivatives import check_derivatives, real

INF, NAN = math.inf, math.nan


def leaf(values, dtype=tt.float64):
    return tt.tensor(values, dtype=dtype, requires_grad=True)


def gradient_of(function, x, dy=None):
    """The output of `function`, and the gradient of its sum (weighted by dy)."""
    x = leaf(x)
    y = function(x)
    y.backward(tt.ones_like(y) if dy is None else tt.tensor(dy, dtype=tt.float64))
    return y.detach().numpy(), x.grad.numpy()


# --- the numbers are NumPy's ----------------------------------------------------------------------


def logsumexp(x, axis=None, keepdims=False):
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


def norm(order):
    def by_definition(x, axis=None, keepdims=False):
        total = (np.abs(x) ** order).sum(axis=axis, keepdims=keepdims)
        return total ** (1 / order)

    return by_definition


# name: ours and NumPy's, functions of x, axis and keepdims
REDUCTIONS = {
    **{name: (getattr(ops, name), getattr(np, name)) for name in ("sum", "mean", "var", "std")},
    **{name: (getattr(ops, name), getattr(np, name)) for name in ("prod", "amax", "amin")},
    **{name: (getattr(ops, name), getattr(np, name)) for name in ("any", "all")},
    "var, ddof 1": (
        lambda x, **where: ops.var(x, ddof=1, **where),
        lambda x, **where: np.var(x, ddof=1, **where),
    ),
    "std, ddof 1": (
        lambda x, **where: ops.std(x, ddof=1, **where),
        lambda x, **where: np.std(x, ddof=1, **where),
    ),
    "logsumexp": (ops.logsumexp, logsumexp),
    **{
        f"norm {order}": (lambda x, n=order, **where: ops.norm(x, n, **where), norm(order))
        for order in (1, 2, 3, 0.5, 2.5)
    },
    "norm inf": (
        lambda x, **where: ops.norm(x, INF, **where),
        lambda x, **where: np.abs(x).max(**where),
    ),
    "norm -inf": (
        lambda x, **where: ops.norm(x, -INF, **where),
        lambda x, **where: np.abs(x).min(**where),
    ),
    "norm 0": (
        lambda x, **where: ops.norm(x, 0, **where),
        lambda x, **where: (x != 0).sum(**where),
    ),
}
AXES = [None, 0, 1, -1, (0, 2), (-1, 0), (0, 1, 2), ()]


@pytest.mark.parametrize("name", REDUCTIONS)
def test_numbers_are_numpys(name):
    ours, numpys = REDUCTIONS[name]
    x = np.random.default_rng(0).normal(size=(3, 2, 4)).round(1)
    for axis in AXES:
        for keepdims in (False, True):
            if axis == () and "ddof" in name:
                continue  # one number has no unbiased variance
            expected = numpys(x, axis=axis, keepdims=keepdims)
            y = ours(tt.tensor(x), axis=axis, keepdims=keepdims)
            assert y.shape == np.shape(expected)
            np.testing.assert_allclose(y.numpy(), expected, rtol=1e-13, err_msg=f"axis {axis}")
    if "ddof" not in name:
        for axis in (None, 0, -1):  # a tensor without axes is reduced to itself
            y = ours(tt.tensor(-1.5, dtype=tt.float64), axis=axis)
            assert y.shape == ()
            np.testing.assert_allclose(y.numpy(), numpys(np.array([-1.5])), rtol=1e-15)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize("dtype", [tt.float64, tt.bfloat16, tt.int32, tt.bool], ids=str)
def test_positions_are_those_of_the_first(name, dtype):
    x = np.random.default_rng(0).integers(0, 3, size=(3, 2, 4))
    x[1, 1] = 1
    x = x.astype(dtype)
    for axis in (None, 0, -1, 1):
        for keepdims in (False, True):
            y = getattr(ops, name)(tt.tensor(x), axis=axis, keepdims=keepdims)
            expected = getattr(np, name)(x.astype(float), axis=axis, keepdims=keepdims)
            assert y.dtype == np.int64
            np.testing.assert_array_equal(y.numpy(), expected)
    assert getattr(ops, name)(tt.tensor(2.0), axis=0).tolist() == 0
    assert getattr(ops, name)(tt.tensor([1.0, NAN, 2.0, NAN]).bfloat16()).item() == 1


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cumsum(axis):
    x = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_array_equal(ops.cumsum(tt.tensor(x), axis).numpy(), np.cumsum(x, axis))
    assert ops.cumsum(tt.tensor([True, True]), 0).tolist() == [1, 2]
    assert ops.cumsum(tt.tensor(2.0), 0).item() == 2


# --- derivatives away from the ordinary -----------------------------------------------------------

DERIVATIVES = {
    **{
        f"{name} {options}": (
            lambda x, n=name, o=options: getattr(ops, n)(x, **o),
            (real(3, 2, 4),),
        )
        for name in ("sum", "mean", "var", "std", "prod", "amax", "amin", "logsumexp")
        for options in ({"axis": (0, -1)}, {"axis": 1, "keepdims": True}, {"axis": ()})
        if not (name == "std" and options["axis"] == ())  # constant: 0 everywhere
    },
    **{
        f"{name} of one number": (getattr(ops, name), (real(),))
        for name in ("sum", "mean", "prod", "amax", "logsumexp", "norm")
    },
    "var, ddof 1.5": (lambda x: ops.var(x, -1, ddof=1.5), (real(2, 4),)),
    "std, ddof 1": (lambda x: ops.std(x, 0, ddof=1), (real(4, 2),)),
    **{
        f"prod with {zeros} zeros in a row": (
            lambda x: ops.prod(x, -1),
            (leaf([[1.5, -0.5, 2.0, 0.3], [0.0] * zeros + [2.0, -0.7, 1.1, 0.9][zeros:]]),),
        )
        for zeros in (1, 2, 3)
    },
    "prod of many": (lambda x: ops.prod(x * 0.1 + 1), (real(37),)),
    "logsumexp of large numbers": (
        lambda x: ops.logsumexp(x * 1e4, 0),
        (leaf([0.1, 0.10001, 0.1]),),
    ),
    "logsumexp beside -inf": (
        lambda x: ops.logsumexp(ops.where(tt.tensor([True, False, True]), x, -INF), -1),
        (real(2, 3),),
    ),
    **{
        f"norm {order}": (lambda x, n=order: ops.norm(x, n, -1), (real(2, 4),))
        for order in (1, 2, 3, 0.5, 1.5, 4, INF, -INF)
    },
    "norm of all, kept": (lambda x: ops.norm(x, keepdims=True), (real(2, 3),)),
    "cumsum along axis 0": (lambda x: ops.cumsum(x, 0), (real(3, 2),)),
    "cumsum along axis -1": (lambda x: ops.cumsum(x, -1), (real(2, 3),)),
}  # fmt: skip


@pytest.mark.parametrize("case", DERIVATIVES)
def test_first_and_second_derivatives(case):
    check_derivatives(*DERIVATIVES[case])


# --- special points -------------------------------------------------------------------------------

# what it shows: (function, x, y, dx)
POINTS = {
    "two of three are largest": (ops.amax, [2.0, 1.0, 2.0], 2, [0.5, 0, 0.5]),
    "all are smallest": (ops.amin, [-1.0] * 4, -1, [0.25] * 4),
    "the largest of a row": (
        lambda x: ops.amax(x, 1),
        [[1.0, 1.0], [0.0, 3.0]],
        [1, 3],
        [[0.5, 0.5], [0, 1]],
    ),
    "one zero": (ops.prod, [2.0, 0.0, 3.0], 0, [0, 6, 0]),
    "two zeros": (ops.prod, [2.0, 0.0, 0.0], 0, [0, 0, 0]),
    "the product of nothing": (lambda x: ops.prod(x, 1), np.ones((2, 0)), [1, 1], np.ones((2, 0))),
    "the sum of nothing": (ops.sum, np.ones((0, 3)), 0, np.ones((0, 3))),
    "the mean of nothing": (ops.mean, np.ones(0), NAN, np.ones(0)),
    "the largest along another axis than the empty one": (
        lambda x: ops.amax(x, 1),
        np.ones((0, 3)),
        np.ones(0),
        np.ones((0, 3)),
    ),
    "the deviation of equals": (ops.std, [3.0, 3.0, 3.0], 0, [0, 0, 0]),
    "the unbiased variance of one": (lambda x: ops.var(x, ddof=1), [3.0], NAN, [NAN]),
    "the unbiased deviation of one": (lambda x: ops.std(x, ddof=1), [3.0], NAN, [NAN]),
    "more is taken off than there is": (lambda x: ops.var(x, ddof=5), [1.0, 3.0], INF, [-INF, INF]),
    **{
        f"the norm {order} of zeros": (lambda x, n=order: ops.norm(x, n), [0.0, -0.0], 0, [0, 0])
        for order in (0, 0.5, 1, 1.5, 2, 3, INF, -INF)
    },
    "the norm of nothing": (ops.norm, np.ones(0), 0, np.ones(0)),
    "one zero in a norm": (lambda x: ops.norm(x, 1.5), [0.0, 4.0], 4, [0, 1]),
    "equals in a norm": (lambda x: ops.norm(x, INF), [3.0, -3.0, 1.0], 3, [0.5, -0.5, 0]),
    "logsumexp of -inf": (lambda x: ops.logsumexp(x, 0), [-INF, -INF], -INF, [0, 0]),
    "logsumexp of one number": (lambda x: ops.logsumexp(x, 0), [-INF, 1e4], 1e4, [0, 1]),
    "logsumexp of small numbers": (ops.logsumexp, [-1e4] * 2, -1e4 + math.log(2), [0.5, 0.5]),
    "logsumexp of inf": (ops.logsumexp, [INF, 0.0], INF, [NAN, 0]),
    "logsumexp of nothing": (ops.logsumexp, np.ones(0), -INF, np.ones(0)),
}


@pytest.mark.parametrize("case", POINTS)
def test_points_that_are_not_ordinary(case):
    """In silence; inside transforms too, where there is a slope."""
    function, x, y, slope = POINTS[case]
    got, dx = gradient_of(function, x)
    np.testing.assert_allclose(got, y, rtol=1e-15)
    np.testing.assert_allclose(dx, slope, rtol=1e-15)
    if np.isfinite(dx).all():
        x = tt.tensor(x, dtype=tt.float64)
        both = tt.func.value_and_grad(lambda x: function(x).sum())
        through_value = tt.func.grad(lambda x: both(x)[0])(x)
        np.testing.assert_allclose(through_value.numpy(), slope, rtol=1e-15)
        through_slope = tt.func.grad(lambda x: both(x)[1].sum())(x)
        assert np.isfinite(through_slope.numpy()).all()


def test_the_variance_has_no_large_mean_in_it():
    x = np.array([1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16])
    assert ops.var(tt.tensor(x)).item() == 22.5


# --- dtypes ---------------------------------------------------------------------------------------

FLOATING = ["sum", "mean", "var", "std", "prod", "amax", "amin", "logsumexp", "norm", "cumsum"]


@pytest.mark.parametrize("dtype", [tt.float64, tt.float32, tt.bfloat16], ids=str)
@pytest.mark.parametrize("name", FLOATING)
def test_floating_dtypes_are_kept(name, dtype):
    for values in ([[0.5, 1.25], [2.0, -1.0]], 0.5):
        for axis in (0, -1):
            x = leaf(values, dtype)
            y = getattr(ops, name)(x, axis=axis)
            y.backward(tt.ones_like(y))
            assert (y.dtype, x.grad.dtype, x.grad.shape) == (dtype, dtype, x.shape)
    for order in (0, 1, 3, INF):
        assert ops.norm(leaf([1.0, 2.0], dtype), order).dtype == dtype


@pytest.mark.parametrize("dtype", [tt.bool, tt.uint8, tt.int32, tt.int64], ids=str)
def test_integers(dtype):
    x = tt.tensor([1, 1, 0], dtype=dtype)
    for name, expected in [("sum", 2), ("prod", 0), ("cumsum", [1, 2, 2])]:
        y = getattr(ops, name)(x)
        assert (y.dtype, y.tolist()) == (np.int64, expected), name
    for name in ("amax", "amin"):
        assert getattr(ops, name)(x).dtype == dtype
    for name in ("any", "all"):
        assert getattr(ops, name)(x).dtype == np.bool_
    assert ops.logsumexp(x).dtype == np.float32


def test_nan_in_bfloat16_is_silent():
    x = tt.tensor([1.0, NAN], dtype=tt.bfloat16)
    for name in FLOATING:
        assert math.isnan(getattr(ops, name)(x, axis=0).reshape(-1)[-1].item()), name
    assert ops.any(x).item() and ops.all(x).item()


def test_many_terms_of_bfloat16():
    """300 ones are 300, though in bfloat16 256 + 1 is 256."""
    x = leaf(np.ones((300, 2)), tt.bfloat16)
    assert ops.sum(x, 0).tolist() == [300, 300]
    assert ops.mean(x).item() == 1
    assert ops.cumsum(x, 0)[-1].tolist() == [300, 300]
    assert ops.norm(x * x, 1).item() == 600
    ops.amax(x).backward()
    np.testing.assert_allclose(x.grad.float().numpy(), 1 / 600, rtol=2**-8)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *(
            (lambda n=name: getattr(ops, n)(tt.tensor([1, 2])), TypeError, f"{name}: .* int64")
            for name in ("mean", "var", "std", "norm")
        ),
        *(
            (lambda n=name: getattr(ops, n)(tt.ones(2, 0), 1), ValueError, rf"{name}: .*\(2, 0\)")
            for name in ("amax", "amin", "argmax", "argmin")
        ),
        (lambda: ops.norm(tt.ones(0), INF), ValueError, r"norm: shape \(0,\) has no elements"),
        (lambda: ops.sum(tt.ones(2, 3), 2), IndexError, r"sum: axis 2 .*\(2, 3\)"),
        (lambda: ops.argmax(tt.ones(2, 3), -3), IndexError, r"argmax: axis -3 .*\(2, 3\)"),
        (lambda: ops.any(tt.tensor(1.0), 1), IndexError, r"any: axis 1 .*\(\)"),
        (lambda: ops.cumsum(tt.ones(2), 1), IndexError, r"cumsum: axis 1 .*\(2,\)"),
        (lambda: ops.mean(tt.ones(2, 3), (1, -1)), ValueError, r"mean: .* twice in \(1, -1\)"),
    ],
)
def test_refusals_are_sentences(call, error, message):
    with pytest.raises(error, match=message):
        call()
