"""Elementwise operations: what is special about each.

That every operation's gradient is right at an ordinary point is in `tests/test_properties.py`. Here
are the points that are not ordinary: poles, ties, zeros, numbers at which a careless formula
overflows or loses its digits, and the dtypes.
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import ops

from .derivatives import check_derivatives, real

INF, NAN, PI = math.inf, math.nan, math.pi


def leaf(values, dtype=tt.float64):
    return tt.tensor(values, dtype=dtype, requires_grad=True)


def gradient_of(function, *values, dtype=tt.float64):
    """The output, and the gradients of its sum, of `function` at these numbers."""
    inputs = [leaf(x, dtype) for x in values]
    y = function(*inputs)
    y.backward(tt.ones_like(y))
    return y.detach().numpy(), *(x.grad.numpy() for x in inputs)


def second_derivative(function, x):
    """The second derivative of a function of one number."""
    return tt.func.grad(tt.func.grad(function))(tt.tensor(x, dtype=tt.float64)).item()


# --- derivatives away from the ordinary -----------------------------------------------------------

MASK = tt.tensor([[True, False, True], [False, False, True]])
DERIVATIVES = {
    **{
        f"x ** {n}, x of both signs": (lambda x, n=n: x**n, (leaf([-1.5, -0.3, 0.7, 2.0]),))
        for n in (-8, -5, -2, -1, 1, 2, 3, 4, 6, 7, 8, 9, 3.0)
    },
    **{
        f"x ** {p}, x positive": (lambda x, p=p: x**p, (leaf([0.2, 1.0, 3.5]),))
        for p in (-1.5, -0.5, 0.5, 2.5)
    },
    "x ** tensor of both signs": (ops.power, (leaf([0.5, 1.5, 2.0]), leaf([[-1.5], [0.0], [2.0]]))),
    "number ** x": (lambda x: ops.power(2, x) + 0.3**x, (real(3),)),
    "number / x": (lambda x: 3 / x - 1.5 / (x * x), (leaf([-2.0, 0.4]),)),
    "broadcast all ways": (lambda a, b, c: a * b / ops.exp(c) - c, (real(2, 1), real(3), real())),
    "gelu at the edge of erf's ranges": (
        ops.gelu,
        (leaf([-9.0, -5.7, -3.1, -0.66, 0.0, 0.67, 5.6, 8.0]),),
    ),
    "sigmoid far out": (lambda x: ops.sigmoid(x) * 1e6, (leaf([-12.0, -3.0, 8.0]),)),
    "where": (lambda a, b: ops.where(MASK, a, b), (real(2, 3), real(3))),
    "where with a number": (lambda a: ops.where(MASK, 1.5, a), (real(2, 3),)),
    "where with a broadcast condition": (
        lambda a, b: ops.where(MASK[:, :1], a, b),
        (real(1, 3), real()),
    ),
    "masked_fill with a tensor": (lambda x, v: ops.masked_fill(x, MASK, v), (real(2, 3), real())),
    "clip": (lambda x: ops.clip(x * x, 0.3, 2), (leaf([-2.0, -1.0, 0.1, 0.9]),)),
    "clip from one side": (lambda x: ops.clip(x, high=0.5), (leaf([-2.0, 0.4, 0.6]),)),
    "maximum with a number": (lambda x: ops.maximum(0.25, x) * x, (real(5),)),
    "remainder of both": (ops.remainder, (leaf([5.5, -3.2, 7.1]), leaf([2.0, 1.5, -3.0]))),
}  # fmt: skip


@pytest.mark.parametrize("case", DERIVATIVES)
def test_first_and_second_derivatives(case):
    check_derivatives(*DERIVATIVES[case])


# --- special points -------------------------------------------------------------------------------

# operation: rows of x, y, dy/dx. A gradient of nan where PyTorch has one too.
POINTS = {
    ops.exp: [(-INF, 0, 0), (1e4, INF, INF), (-1e4, 0, 0), (NAN, NAN, NAN)],
    ops.expm1: [(-1e4, -1, 0), (1e4, INF, INF), (-INF, -1, 0)],
    ops.log: [(0.0, -INF, INF), (-1.0, NAN, -1), (INF, INF, 0)],
    ops.log1p: [(-1.0, -INF, INF), (-2.0, NAN, -1), (INF, INF, 0)],
    ops.sqrt: [(0.0, 0, INF), (-1.0, NAN, NAN), (INF, INF, 0)],
    ops.rsqrt: [(0.0, INF, -INF), (-1.0, NAN, NAN), (INF, 0, 0)],
    ops.reciprocal: [(0.0, INF, -INF), (INF, 0, 0)],
    ops.sin: [(INF, NAN, NAN)],
    ops.cos: [(INF, NAN, NAN)],
    ops.tanh: [(1e4, 1, 0), (-1e4, -1, 0), (INF, 1, 0)],
    ops.sigmoid: [(1e4, 1, 0), (-1e4, 0, 0), (INF, 1, 0), (-INF, 0, 0), (0.0, 0.5, 0.25)],
    ops.silu: [(1e4, 1e4, 1), (-1e4, 0, 0), (0.0, 0, 0.5)],
    ops.gelu: [(1e4, 1e4, 1), (-1e4, 0, 0), (0.0, 0, 0.5)],
    ops.erf: [(1e4, 1, 0), (-1e4, -1, 0), (INF, 1, 0), (-INF, -1, 0), (NAN, NAN, NAN)],
    ops.arcsin: [(1.0, PI / 2, INF), (-1.0, -PI / 2, INF), (2.0, NAN, NAN), (INF, NAN, NAN)],
    ops.arccos: [(1.0, 0, -INF), (-1.0, PI, -INF), (-2.0, NAN, NAN)],
    ops.arctan: [(1e30, PI / 2, 0), (-INF, -PI / 2, 0), (0.0, 0, 1)],
    ops.arcsinh: [(0.0, 0, 1), (-0.0, 0, 1), (INF, INF, 0)],
    ops.arccosh: [(1.0, 0, INF), (0.5, NAN, NAN), (-2.0, NAN, NAN), (INF, INF, 0)],
    ops.arctanh: [(1.0, INF, INF), (-1.0, -INF, INF), (2.0, NAN, -1 / 3), (0.0, 0, 1)],
    ops.relu: [(0.0, 0, 0), (-0.0, 0, 0), (-INF, 0, 0), (INF, INF, 1)],
    ops.absolute: [(0.0, 0, 0), (-2.0, 2, -1), (-INF, INF, -1)],
    ops.sign: [(0.0, 0, 0), (-2.0, -1, 0), (INF, 1, 0)],
    ops.floor: [(-0.5, -1, 0), (2.0, 2, 0)],
    ops.ceil: [(-0.5, 0, 0), (2.0, 2, 0)],
    ops.round: [(0.5, 0, 0), (1.5, 2, 0), (-2.5, -2, 0)],
}
GELU_TANH = [(1e4, 1e4, 1), (-1e4, 0, 0), (0.0, 0, 0.5)]
ALL_POINTS = [(f, f.__name__, *row) for f, rows in POINTS.items() for row in rows] + [
    (lambda x: ops.gelu(x, "tanh"), "gelu tanh", *row) for row in GELU_TANH
]


@pytest.mark.parametrize("dtype", [tt.float64, tt.float32, tt.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("function", "x", "y", "slope"),
    [(f, x, y, slope) for f, _, x, y, slope in ALL_POINTS],
    ids=[f"{name} {x}" for _, name, x, *_ in ALL_POINTS],
)
def test_poles_and_limits_are_silent(function, x, y, slope, dtype):
    expected = np.array([[y], [slope]]).astype(dtype).astype(float)
    for context in (contextlib.nullcontext(), tt.reference_ops()):
        with context:
            got = gradient_of(function, [x], dtype=dtype)
        assert all(part.dtype == dtype for part in got)
        # 0 may be a number that no sum would notice.
        np.testing.assert_allclose(np.array(got, float), expected, rtol=0, atol=1e-20)
    if math.isfinite(slope) and math.isfinite(x):
        both = tt.func.value_and_grad(function)
        inside = tt.func.grad(lambda x: both(x)[0])(tt.tensor(x, dtype=dtype))
        np.testing.assert_allclose(inside.item(), expected[1, 0], rtol=0, atol=1e-20)


@pytest.mark.parametrize("dtype", [tt.float64, tt.float32], ids=str)
def test_directions_and_lengths_at_the_edges(dtype):
    """The four axes, the origin, and sides whose squares are beyond the dtype."""
    big = float(tt.finfo(dtype).max) / 4
    a, b = [0.0, 1.0, 0.0, -1.0, 0.0, big], [1.0, 0.0, -1.0, 0.0, 0.0, big]
    y, da, db = gradient_of(ops.arctan2, a, b, dtype=dtype)
    np.testing.assert_allclose(y, [0, PI / 2, PI, -PI / 2, 0, PI / 4], rtol=1e-6)
    np.testing.assert_allclose(da, [1, 0, -1, 0, 0, 0], atol=1e-30)
    np.testing.assert_allclose(db, [0, -1, 0, 1, 0, 0], atol=1e-30)
    y, da, db = gradient_of(ops.hypot, a, b, dtype=dtype)
    np.testing.assert_allclose(y, [1, 1, 1, 1, 0, math.sqrt(2) * big], rtol=1e-6)
    np.testing.assert_allclose(da, [0, 1, 0, -1, NAN, math.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_allclose(db, [1, 0, -1, 0, NAN, math.sqrt(0.5)], rtol=1e-6)


def test_division_by_zero():
    y, da, db = gradient_of(ops.divide, [1.0, -1.0, 0.0], [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(y, [INF, -INF, NAN])
    np.testing.assert_array_equal(da, [INF, INF, INF])
    np.testing.assert_array_equal(db, [-INF, INF, NAN])


@pytest.mark.parametrize(
    ("function", "x", "expected"),
    [
        (ops.expm1, 1e-10, 1.00000000005e-10),
        (ops.log1p, 1e-10, 9.9999999995e-11),
        (ops.sigmoid, -40.0, 4.248354255291589e-18),  # (1 + tanh(x/2)) / 2 would say 0
        (ops.silu, -40.0, -1.6993417021166355e-16),
        (ops.erf, 1e-300, 1.1283791670955127e-300),
        (ops.gelu, 1.0, 0.8413447460685429),
        (lambda x: ops.gelu(x, "tanh"), 1.0, 0.8411919906082768),
        (lambda x: ops.power(x, 8), 1.5, 25.62890625),
        (lambda x: ops.power(x, -4), -10.0, 1e-4),
    ],
)
def test_no_digits_are_lost(function, x, expected):
    assert function(leaf(x)).item() == pytest.approx(expected, rel=4e-16, abs=0)


def test_the_error_function_is_that_of_the_c_library():
    rng = np.random.default_rng(0)
    edges = [0.0, 0.46875, 4.0, 5.9, 6.0, 27.0]
    sizes = np.concatenate([edges, np.nextafter(edges, 100), rng.exponential(1.5, 20000)])
    x = np.concatenate([sizes, -sizes, 10.0 ** rng.uniform(-300, -1, 1000), [INF, NAN]])
    expected = np.array([math.erf(v) for v in x])
    y = ops.erf(tt.tensor(x)).numpy()
    np.testing.assert_allclose(y, expected, rtol=2e-15, atol=0)
    assert np.nanmax(np.abs(y - expected)) < 3e-16
    np.testing.assert_array_equal(ops.erf(tt.tensor(-x)).numpy(), -y)

    single = x.astype(np.float32)
    expected = np.array([math.erf(v) for v in single.tolist()])
    y = ops.erf(tt.tensor(single)).numpy()
    assert y.dtype == np.float32 and np.nanmax(np.abs(y)) == 1
    np.testing.assert_allclose(y, expected, rtol=4e-7, atol=1e-44)


# --- powers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "exponent", "y", "slope"),
    [
        (0.0, 0, 1, 0), (0.0, 1, 0, 1), (0.0, 2, 0, 0), (0.0, 3, 0, 0), (0.0, 2.0, 0, 0),
        (0.0, 0.0, 1, 0), (0.0, 0.5, 0, INF), (0.0, -1, INF, -INF), (0.0, -2.0, INF, -INF),
        (-2.0, 0, 1, 0), (-2.0, 1, -2, 1), (-2.0, 2, 4, -4), (-2.0, 3, -8, 12), (-2.0, 5, -32, 80),
        (-2.0, -1, -0.5, -0.25), (-2.0, -3, -0.125, -0.1875), (-2.0, 0.5, NAN, NAN),
        (4.0, 0.5, 2, 0.25), (4.0, -0.5, 0.5, -0.0625), (INF, 0, 1, 0), (NAN, 0, 1, 0),
    ],
)  # fmt: skip
def test_powers_at_zero_and_of_negative_numbers(base, exponent, y, slope):
    """A number and a tensor of one exponent mean the same."""
    exponents = [exponent]
    if math.isfinite(base):  # with a tensor, PyTorch too has 0·inf
        exponents.append(tt.tensor([float(exponent)] * 2, dtype=tt.float64))
    for n in exponents:
        got = gradient_of(lambda x, n=n: ops.power(x, n), [base, base])
        np.testing.assert_array_equal(got, [[y, y], [slope, slope]])


@pytest.mark.parametrize(
    ("base", "exponent", "slope"),
    [
        (0.0, 0.0, 0), (0.0, 2.0, 0), (0.0, -1.0, -INF), (1.0, 3.0, 0), (-2.0, 2.0, NAN),
        (2.0, 3.0, 8 * math.log(2)), (0.5, -1.0, 2 * math.log(0.5)),
    ],
)  # fmt: skip
def test_the_gradient_of_an_exponent(base, exponent, slope):
    """a^b ln a, and 0 at a = 0 <= b."""
    for function in (ops.power, lambda a, b: ops.power(base, b) + 0 * a):
        _, _, db = gradient_of(function, [base], [exponent])
        np.testing.assert_allclose(db, [slope], rtol=1e-15)


def test_second_derivatives_of_powers():
    """d²(aᵇ)/da db = a^(b-1) (1 + b ln a), which is 1/a at b = 0, where d(aᵇ)/da is 0."""

    def slope_in_a(b):
        return tt.func.grad(lambda a: ops.power(a, b))(tt.tensor(2.0, dtype=tt.float64))

    for b in (0.0, 1.0, -1.5):
        mixed = tt.func.grad(slope_in_a)(tt.tensor(b, dtype=tt.float64)).item()
        assert mixed == pytest.approx(2 ** (b - 1) * (1 + b * math.log(2)), rel=1e-14)
    for x in (0.0, -3.0):
        for n, expected in [(0, 0), (1, 0), (2, 2), (3, 6 * x), (4, 12 * x * x), (10, 90 * x**8)]:
            assert second_derivative(lambda x, n=n: x**n, x) == expected


sizes = st.floats(0.01, 30)


@given(sizes | sizes.map(lambda x: -x), st.integers(-12, 12), st.sampled_from([int, float]))
def test_whole_powers_are_products(x, n, kind):
    assert ops.power(leaf([x]), kind(n)).item() == pytest.approx(x**n, rel=4e-15)


# --- ties and limits ------------------------------------------------------------------------------


def test_equals_share_the_gradient():
    """As in PyTorch; and in both derivatives of both operations."""
    a, b = [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]
    _, da, db = gradient_of(ops.maximum, a, b)
    np.testing.assert_array_equal([da, db], [[0, 0.5, 1], [1, 0.5, 0]])
    _, da, db = gradient_of(ops.minimum, a, b)
    np.testing.assert_array_equal([da, db], [[1, 0.5, 0], [0, 0.5, 1]])
    slope = tt.func.grad(lambda x: tt.func.grad(lambda y: ops.maximum(x, y) * y)(x))
    assert slope(tt.tensor(2.0)).item() == 1.5  # of max(x, y) + y ∂max/∂y, x = y


@pytest.mark.parametrize(
    ("low", "high", "y", "slope"),
    [
        (-1, 1, [-1, -1, 0, 1, 1], [0, 1, 1, 1, 0]),
        (None, 0.0, [-2, -1, 0, 0, 0], [1, 1, 1, 0, 0]),
        (0, None, [0, 0, 0, 1, 2], [0, 0, 1, 1, 1]),
        (1, -1, [-1] * 5, [0] * 5),
        (np.float64(-1), np.float32(1), [-1, -1, 0, 1, 1], [0, 1, 1, 1, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [tt.float64, tt.float32, tt.bfloat16], ids=str)
def test_clip_passes_the_gradient_on_its_limits(low, high, y, slope, dtype):
    got = gradient_of(lambda x: ops.clip(x, low, high), [-2, -1, 0, 1, 2], dtype=dtype)
    assert all(part.dtype == dtype for part in got)
    np.testing.assert_array_equal(got, np.array([y, slope], dtype))
    inner = tt.func.grad(lambda x: tt.func.grad(lambda y: ops.clip(y, low, high).sum())(x)[0])
    assert not inner(tt.tensor([-1.0, 0.5])).numpy().any()


def test_clip_and_relu_keep_nan():
    assert np.isnan(ops.clip(leaf([NAN]), 0, 1).detach().numpy()).all()
    for context in (tt.no_grad(), tt.reference_ops()):
        with context:
            assert np.isnan(ops.relu(leaf([NAN])).detach().numpy()).all()


@pytest.mark.parametrize("x", [-1e4, -40.0, 0.0, 1e4])
@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "erf", "tanh", "relu"])
def test_second_derivatives_are_finite_where_a_careless_formula_overflows(name, x):
    """e⁻ˣ is infinite at -1e4: differentiating the steps of 1 / (1 + e⁻ˣ) would give 0·inf."""
    assert math.isfinite(second_derivative(getattr(ops, name), x))


# --- choosing -------------------------------------------------------------------------------------


def test_where_blocks_the_gradient_it_did_not_use():
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    y = ops.where(tt.tensor([True, False]), a, b)
    y.backward(tt.tensor([INF, NAN], dtype=tt.float64))
    np.testing.assert_array_equal([a.grad.numpy(), b.grad.numpy()], [[INF, 0], [0, NAN]])


@pytest.mark.parametrize(
    ("a", "b", "dtype"),
    [
        (1.0, 0.0, tt.float32),
        (1, 0, tt.int64),
        (True, False, tt.bool),
        (tt.ones(2, dtype=tt.int64), 0.5, tt.float32),
        (tt.ones(2, dtype=tt.bfloat16), 0.5, tt.bfloat16),
        (0, tt.ones(2, dtype=tt.bfloat16), tt.bfloat16),
        (tt.ones(2), tt.ones((), dtype=tt.float64), tt.float32),
        (tt.ones(2), tt.ones(2, dtype=tt.float64), tt.float64),
    ],
)
@pytest.mark.parametrize("condition", [tt.bool, tt.float64, tt.int64], ids=str)
def test_the_condition_takes_no_part_in_promotion(a, b, dtype, condition):
    """Whatever the condition is: it is not zero, or it is."""
    y = ops.where(tt.tensor([1, 0]).to(condition), a, b)
    assert y.dtype == dtype
    expected = [np.asarray(x.numpy() if isinstance(x, tt.Tensor) else x) for x in (a, b)]
    assert y.tolist() == [np.broadcast_to(x, 2)[i] for i, x in enumerate(expected)]


@pytest.mark.parametrize(
    ("x", "value", "expected"),
    [
        (tt.ones(2), -INF, [-INF, 1]),
        (tt.ones(2, dtype=tt.bfloat16), -1.5, [-1.5, 1]),
        (tt.ones(2, dtype=tt.int64), 3, [3, 1]),
        (tt.ones(2, dtype=tt.int64), 3.0, [3, 1]),
        (tt.ones(2, dtype=tt.bool), 0, [False, True]),
        (tt.ones(2), tt.tensor(2.0, dtype=tt.float64), [2, 1]),
    ],
)
def test_masked_fill_keeps_the_dtype(x, value, expected):
    y = ops.masked_fill(x, tt.tensor([True, False]), value)
    assert (y.dtype, y.tolist()) == (x.dtype, expected)


# --- dtypes ---------------------------------------------------------------------------------------

FLOATING = [
    "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh",
    "sigmoid", "erf", "silu", "gelu",
]  # fmt: skip
SAME = ["negative", "absolute", "sign", "square", "relu", "floor", "ceil", "round", "copy"]
PREDICATES = ["isnan", "isinf", "isfinite", "logical_not"]
ARITHMETIC = ["add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "remainder"]
COMPARISONS = [
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
    "logical_and", "logical_or", "logical_xor",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [tt.float64, tt.float32, tt.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3,), ()], ids=str)
def test_floating_dtypes_are_kept(dtype, shape):
    """Python numbers never widen a tensor, nor do NumPy's, with axes or without."""
    values = np.array([0.5, 1.25, 2.0][: 3 if shape else 1]).reshape(shape)
    calls = {name: getattr(ops, name) for name in FLOATING + SAME}
    for name in ARITHMETIC:
        operation = getattr(ops, name)
        calls[name] = lambda x, f=operation: f(x, x)
        for number in (2, 0.3, np.float64(0.3)):
            calls[f"{name} with {number!r}"] = lambda x, f=operation, n=number: f(x, n)
            calls[f"{name} of {number!r}"] = lambda x, f=operation, n=number: f(n, x)
    for reference in (False, True):
        for name, call in calls.items():
            x = leaf(values, dtype)
            y = call(x) if not reference else _by_reference(call, x)
            assert (y.dtype, y.shape) == (dtype, shape), name
            y.backward(tt.ones_like(y))
            assert (x.grad.dtype, x.grad.shape) == (dtype, shape), name
    x = tt.tensor(values, dtype=dtype)
    for name in PREDICATES:
        assert getattr(ops, name)(x).dtype == np.bool_, name
    for name in COMPARISONS:
        assert getattr(ops, name)(x, 0.3).dtype == np.bool_, name


def _by_reference(call, x):
    with tt.reference_ops():
        return call(x)


@pytest.mark.parametrize("dtype", [tt.int64, tt.int32, tt.uint8], ids=str)
def test_integers(dtype):
    x = tt.tensor([1, 2, 3], dtype=dtype)
    for name in FLOATING:
        assert getattr(ops, name)(x).dtype == np.float32, name
    for name in SAME:
        y = getattr(ops, name)(x)
        assert y.dtype == dtype, name
    for name in ARITHMETIC:
        expected = np.float32 if name == "divide" else dtype
        assert getattr(ops, name)(x, 2).dtype == expected, name
        assert getattr(ops, name)(x, 0.5).dtype == np.float32, name
    assert ops.clip(x, 2, None).dtype == dtype
    assert ops.clip(x, 1.5, 2).tolist() == [1.5, 2, 2]
    assert ops.round(tt.tensor(2**53 + 1)).item() == 2**53 + 1
    assert ops.floor_divide(tt.tensor([7, -7]), 2).tolist() == [3, -4]
    assert ops.remainder(tt.tensor([7, -7]), 3).tolist() == [1, 2]
    assert ops.power(x, 3).tolist() == [1, 8, 27]
    assert ops.bitwise_xor(x, 3).tolist() == [2, 1, 0]


def test_nan_in_bfloat16_is_silent():
    """Its comparisons, in ml_dtypes, would warn of an invalid value."""
    x = tt.tensor([NAN, 1.0], dtype=tt.bfloat16)
    for name in FLOATING + SAME:
        y = getattr(ops, name)(x)
        assert y.dtype == tt.bfloat16 and math.isnan(y[0].item()), name
    for name in PREDICATES:
        assert getattr(ops, name)(x).tolist() == [name == "isnan", name == "isfinite"]
    for name in COMPARISONS[:6]:
        assert getattr(ops, name)(x, x)[0].item() == (name == "not_equal")
    assert ops.where(ops.isnan(x), 2, ops.clip(x, 0, 0.5)).tolist() == [2, 0.5]


@pytest.mark.parametrize("name", FLOATING)
def test_bfloat16_is_rounded_once(name):
    """The result is that of float32, rounded: not a sum of the roundings of each step."""
    values = tt.tensor(np.linspace(0.1, 3, 50)).to(tt.bfloat16)
    got = getattr(ops, name)(values)
    expected = getattr(ops, name)(values.float()).to(tt.bfloat16)
    np.testing.assert_array_equal(got.numpy(), expected.numpy())


def test_astype():
    x = leaf([1.5, NAN])
    assert ops.astype(x, tt.int64).requires_grad is False
    _, dx = gradient_of(lambda x: ops.astype(x, np.float32), [1.5, 2.5])
    assert dx.dtype == np.float64 and dx.tolist() == [1, 1]


# --- refusals -------------------------------------------------------------------------------------

INTEGERS = tt.tensor([2, 3])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.power(INTEGERS, -1), ValueError, "negative integer power; use x.float"),
        (lambda: ops.power(2, tt.tensor([1, -1])), ValueError, "negative integer power"),
        (lambda: ops.floor_divide(INTEGERS, 0), ZeroDivisionError, "floor_divide: integer"),
        (lambda: ops.remainder(INTEGERS, INTEGERS * 0), ZeroDivisionError, "remainder: integer"),
        (lambda: ops.gelu(real(2), approximate="erf"), ValueError, "not 'erf'"),
        (lambda: ops.clip(real(2)), ValueError, "give low, high or both"),
        (lambda: ops.bitwise_and(real(2), INTEGERS), TypeError, "bitwise_and: expected booleans"),
        (lambda: ops.masked_fill(real(2), INTEGERS, 0), TypeError, "boolean tensor, not int64"),
        (lambda: ops.masked_fill(real(2), [True, False], 0), TypeError, "boolean tensor, not list"),
        (lambda: ops.masked_fill(INTEGERS, INTEGERS > 2, 0.5), TypeError, "0.5 does not fit"),
        (lambda: ops.masked_fill(INTEGERS, INTEGERS > 2, -INF), TypeError, "-inf does not fit"),
        (lambda: ops.masked_fill(real(2), INTEGERS > 2, real(2)), ValueError, r"shape \(2,\)"),
        (lambda: real(2, 3) + real(4), ValueError, r"add: shapes \(2, 3\) and \(4,\)"),
        (lambda: ops.less(real(2, 3), real(4)), ValueError, r"less: shapes \(2, 3\) and \(4,\)"),
        (
            lambda: ops.where(INTEGERS > 2, real(3), 0),
            ValueError,
            r"where: shapes \(2,\) and \(3,\)",
        ),
    ],
)
def test_refusals_are_sentences(call, error, message):
    with pytest.raises(error, match=message):
        call()
