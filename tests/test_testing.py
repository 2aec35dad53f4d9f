"""The checkers have teeth: each planted error is caught, and named for what it is."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import ops, testing
from tinytensor.tensor import op
from tinytensor.testing import (
    GradcheckError,
    KinkError,
    check_implementations,
    gradcheck,
    gradgradcheck,
    strategies,
)


def real(*shape, seed=0):
    return tt.tensor(np.random.default_rng(seed).normal(size=shape), requires_grad=True)


def at(*values):
    return tt.tensor(np.array(values), requires_grad=True)


# --- right gradients pass ------------------------------------------------------------------------


@op
def planted_right(a, b):
    return np.sin(a) * b, (lambda dy: dy * np.cos(a) * b, lambda dy: dy * np.sin(a))


@pytest.mark.parametrize("full", [False, True])
def test_a_right_gradient_passes(full):
    assert gradcheck(planted_right, [real(3, 1), real(4, seed=1)], full=full)


RIGHT = {
    "scaled up": (lambda x: ops.exp(x), real(3) * 10),
    "tiny inputs": (lambda x: ops.log(x * x + 1e-30), at(1e-8, -2e-8, 3e-8)),
    "a large offset": (lambda x: ops.sin(x) + 1e6, real(3)),
    "inputs of every size": (lambda x: ops.square(x), at(1e-6, 1.0, 1e5)),
    "near a pole": (ops.log, at(1e-5, 1.0)),
    "a constant": (lambda x: x * 0 + 1, real(3)),
    "cancellation": (lambda x: ops.var(x + 1e4), real(20)),
    "beside a kink": (ops.absolute, at(1e-7, 1.0, -1e-6)),
    "smooth at 0 after all": (lambda x: x * ops.absolute(x), at(0.0, 1.0)),
    "nothing at all": (ops.exp, real(0)),
    "a scalar": (ops.exp, real()),
    "a sum of thousands": (lambda x: ops.softmax(x * 3), real(5000)),
}


@pytest.mark.parametrize(("function", "x"), RIGHT.values(), ids=list(RIGHT))
def test_hard_points_pass(function, x):
    assert gradcheck(function, x.detach().requires_grad_())


def test_other_arguments_are_held_fixed():
    mask, number = tt.tensor([True, False, True]), 2.5

    def function(x, mask, number, name, constant):
        assert name == "name"
        return ops.where(mask, x * number, constant)

    assert gradcheck(function, [real(3), mask, number, "name", tt.ones(3, dtype=tt.float64)])


def test_inputs_may_be_nested_and_float32():
    parameters = {"weight": real(4, 3), "bias": [real(4)]}

    def function(p, x):
        return ops.linear(x, p["weight"], p["bias"][0])

    x = tt.randn(2, 3, requires_grad=True)
    assert x.dtype == tt.float32
    assert gradcheck(function, [parameters, x])
    assert gradgradcheck(function, [parameters, x])


def test_several_outputs_of_which_some_are_integers():
    def function(x):
        return ops.argsort(x), ops.exp(x), (x * x).sum()

    assert gradcheck(function, real(4))
    assert gradgradcheck(function, real(4))


# --- wrong gradients do not ----------------------------------------------------------------------


@op
def planted_thousandth(a, b):
    return a * b, (lambda dy: dy * b * 1.001, lambda dy: dy * a)


@op
def planted_zero(a):
    return np.sin(a), lambda dy: dy * 0


@op
def planted_none(a, b):
    return a * b, (lambda dy: dy * b, None)


@op
def planted_transposed(a, b):
    return a @ b, (lambda dy: dy @ b.T, lambda dy: (a.T @ dy).T)


@op
def planted_sign(a):
    return np.cos(a), lambda dy: dy * np.sin(a)


@op
def planted_one_element(a):
    slope = np.cos(a)
    slope[1, 2] *= 1.001
    return np.sin(a), lambda dy: dy * slope


@op
def planted_unsummed(a):
    """Broadcasts on its own, and does not sum over what it repeated."""
    return a[:, None] * np.ones(3), lambda dy: dy[:, 0]


@op
def planted_blind(a):
    """Right for a cotangent of ones."""
    e = np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    return e, lambda dy: dy * 0


@op
def planted_nonlinear(a):
    return a * 2, lambda dy: dy * dy


@op
def planted_wrong_shape(a):
    return np.sin(a), lambda dy: (dy * np.cos(a))[:2]


@op
def planted_wrong_count(a, b):
    return a * b, lambda dy: (dy * b, dy * a, dy)


@op
def planted_writes_dy(a):
    def vjp(dy):
        dy *= 2
        return dy

    return a * 2, vjp


@op
def planted_writes_input(a):
    def vjp(dy):
        a[...] = 2 * a
        return dy * a

    return a * a, vjp


@op
def planted_forward_writes(a):
    a += 1
    return a * 2, lambda dy: dy * 2


@op
def planted_buffer(a):
    buffer = np.empty_like(a)

    def vjp(dy):
        return np.multiply(dy, 2, out=buffer)

    return a * 2, vjp


@op
def planted_random(a):
    mask = np.random.default_rng().random(a.shape) < 0.5
    return a * mask, lambda dy: dy * mask


@op
def planted_random_backward(a):
    return a * 2, lambda dy: dy * np.random.default_rng().random(a.shape)


@op
def planted_nan(a):
    return np.sqrt(a), lambda dy: dy / 0 * np.ones_like(a)


@op
def planted_raises(a):
    return a * 2, lambda dy: dy @ np.ones((7, 7))


SQUARE = real(3, 3)
PLANTED = {
    planted_thousandth: ([real(3, 4), real(4)], r"factor 1\.001"),
    planted_zero: ([real(3)], "zero everywhere"),
    planted_none: ([real(3), real(3)], "input 1.* zero everywhere"),
    planted_transposed: ([SQUARE, real(3, 3, seed=2)], "input 1.*gradient is transposed"),
    planted_sign: ([real(3)], "factor -1"),
    planted_one_element: ([real(3, 4)], r"input 0\[1, 2\].*\(1 of 144 elements"),
    planted_unsummed: ([real(4)], "wrong"),
    planted_blind: ([real(3, 4)], "zero everywhere"),
    planted_nonlinear: ([real(3)], "not deterministic|wrong"),
    planted_wrong_shape: ([real(3)], r"shape \(2,\) for an input of shape \(3,\)"),
    planted_wrong_count: ([real(3), real(3)], "3 gradients for 2 inputs"),
    planted_writes_dy: ([real(3)], "VJP of planted_writes_dy .* writes into dy"),
    planted_writes_input: ([real(3)], "backward pass of planted_writes_input writes into input 0"),
    planted_forward_writes: (
        [real(3)],
        "forward pass of planted_forward_writes writes into input 0",
    ),
    planted_buffer: ([real(3)], "planted_buffer .* overwritten by a later call"),
    planted_random: ([real(50)], "not deterministic: output 0"),
    planted_random_backward: ([real(5)], "not deterministic: the gradient"),
    planted_nan: ([at(1.0, 2.0)], "not finite"),
    planted_raises: ([real(3)], "backward pass of planted_raises failed"),
}


@pytest.mark.parametrize("full", [False, True], ids=["directions", "full"])
@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_planted_errors_are_found_and_named(planted, full):
    inputs, message = PLANTED[planted]
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    with pytest.raises(GradcheckError, match=message) as caught:
        gradcheck(planted, inputs, full=full)
    assert planted.__name__ in str(caught.value)
    assert not isinstance(caught.value, KinkError)
    inputs = [x.detach().clone().requires_grad_() for x in PLANTED[planted][0]]
    assert not gradcheck(planted, inputs, full=full, raise_exception=False)


def test_an_error_inside_a_longer_expression_names_the_operation():
    with pytest.raises(GradcheckError, match="VJP of planted_writes_dy"):
        gradcheck(lambda x: ops.sin(planted_writes_dy(x)) * x, real(3))


def test_errors_small_in_a_large_gradient_are_found():
    """One element of thousands, wrong by one part in a hundred."""

    @op
    def planted_needle(a):
        slope = np.ones_like(a)
        slope[1234] = 1.01
        return a * 1, lambda dy: dy * slope

    with pytest.raises(GradcheckError, match="planted_needle"):
        gradcheck(planted_needle, real(5000))


def test_a_detached_path_is_a_wrong_gradient():
    with pytest.raises(GradcheckError, match="zero everywhere"):
        gradcheck(lambda x: x.detach() * 2 + x * 0, real(3))
    with pytest.raises(GradcheckError, match="zero everywhere"):
        gradcheck(lambda x: x.detach() * 2, real(3))


# --- second derivatives --------------------------------------------------------------------------


@op
def planted_second(a):
    """First derivative right, second one lost: the slope is a constant to the second backward."""
    slope = ops.cos(tt.tensor(a.array)) if isinstance(a, tt.Tensor) else np.cos(a)
    return ops.sin(a), lambda dy: dy * slope


def test_a_wrong_second_derivative_is_found():
    assert gradcheck(planted_second, real(3))
    with pytest.raises(GradcheckError, match="gradient of the gradient of planted_second"):
        gradgradcheck(planted_second, real(3))
    assert not gradgradcheck(planted_second, real(3), raise_exception=False)


def test_right_second_derivatives_pass():
    assert gradgradcheck(ops.softmax, real(2, 3))
    assert gradgradcheck(ops.matmul, [real(2, 3), real(3, 2)], real(2, 2), full=True)


# --- kinks ---------------------------------------------------------------------------------------

KINKS = {
    "abs": (ops.absolute, at(1.0, 0.0, 2.0), "kink"),
    "relu": (ops.relu, at(0.0, -1.0), "kink"),
    "maximum": (ops.maximum, (at(1.0, 2.0), at(1.0, 3.0)), "kink"),
    "amax": (ops.amax, at(1.0, 3.0, 3.0), "kink"),
    "one of many": (ops.absolute, at(*np.arange(-500.0, 500)), "kink"),
    "inside": (lambda x: ops.exp(ops.absolute(x - 1)), at(1.0, 2.0), "kink"),
    "floor": (ops.floor, at(1.0, 2.5), "jump"),
    "sign": (lambda x: ops.sign(x) + x, at(0.0, 2.5), "jump"),
}


@pytest.mark.parametrize("full", [False, True], ids=["directions", "full"])
@pytest.mark.parametrize(("function", "inputs", "kind"), KINKS.values(), ids=list(KINKS))
def test_kinks_are_reported_as_kinks(function, inputs, kind, full):
    if full and isinstance(inputs, tt.Tensor) and inputs.numel() > 100:
        return
    with pytest.raises(KinkError, match=f"has a {kind} at this point"):
        gradcheck(function, inputs, full=full)
    assert not gradcheck(function, inputs, raise_exception=False)


@given(st.floats(1e-9, 1e-3), strategies.seeds())
def test_a_point_beside_a_kink_passes_or_is_a_kink(distance, seed):
    """Never a wrong gradient: close enough to a kink it may be called one."""
    x = np.random.default_rng(seed).uniform(0.5, 2, 4)
    x[0] = distance
    try:
        assert gradcheck(ops.absolute, tt.tensor(x, requires_grad=True), seed=seed)
    except KinkError:
        assert distance < 1e-8


def test_a_second_derivative_may_have_a_kink_of_its_own():
    def function(x):
        return x * ops.absolute(x)

    assert gradcheck(function, at(0.0, 1.0))
    with pytest.raises(KinkError):
        gradgradcheck(function, at(0.0, 1.0))


# --- misuse --------------------------------------------------------------------------------------


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="no input requires a gradient"):
        gradcheck(ops.exp, tt.zeros(3))
    with pytest.raises(TypeError, match="must return tensors, not ndarray"):
        gradcheck(lambda x: x.detach().numpy(), real(3))
    with pytest.raises(GradcheckError, match="no floating-point tensor"):
        gradcheck(ops.argmax, real(3))
    with pytest.raises(GradcheckError, match="float32 though every varied input is float64"):
        gradcheck(lambda x: ops.astype(x, np.float32), real(3))
    with pytest.raises(GradcheckError, match=r"output 0 .* is not finite"):
        gradcheck(ops.log, at(0.0, 1.0))
    with pytest.raises(GradcheckError, match="not finite"):
        gradcheck(ops.sqrt, at(0.0, 1.0))
    with pytest.raises(AttributeError, match="nothing"):
        _ = testing.nothing


def test_low_precision_inside_is_undecided_and_not_wrong():
    def function(x):
        return ops.astype(ops.exp(ops.astype(x, np.float32)), np.float64)

    with pytest.raises(GradcheckError, match="cannot be decided"):
        gradcheck(function, real(4))


def test_gradcheck_does_not_need_hypothesis():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import tinytensor as tt\n"
        "from tinytensor.testing import gradcheck\n"
        "assert gradcheck(tt.exp, tt.randn(3, dtype=tt.float64, requires_grad=True))\n"
        "try:\n"
        "    from tinytensor.testing import strategies\n"
        "except ImportError as error:\n"
        "    assert 'pip install hypothesis' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('strategies came without hypothesis')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- fast paths against references ---------------------------------------------------------------


@pytest.fixture
def planted_fast():
    """An operation whose fast path can be swapped by each test."""

    @op
    def planted_double(a):
        return a * 2, lambda dy: dy * 2

    return planted_double


WRONG_FAST = {
    "value": (lambda a: (a * 2.00001, lambda dy: dy * 2), "output 0"),
    "gradient": (lambda a: (a * 2, lambda dy: dy * 2.00001), "gradient of output 0"),
    "dtype": (
        lambda a: ((a * 2).astype(np.float32), lambda dy: dy * 2),
        "is float32 .* by the fast",
    ),
    "shape": (lambda a: (a.reshape(-1) * 2, lambda dy: dy * 2), "fast path fails|by the reference"),
    "nan": (lambda a: (a / 0 * 0, lambda dy: dy * 2), "not finite in the same places"),
}


@pytest.mark.parametrize(("fast", "message"), WRONG_FAST.values(), ids=list(WRONG_FAST))
def test_a_wrong_fast_path_is_found(planted_fast, fast, message):
    assert check_implementations(planted_fast, real(2, 3))
    with np.errstate(all="ignore"):
        planted_fast.register(np.ndarray)(fast)
        with pytest.raises(AssertionError, match=message):
            check_implementations(planted_fast, real(2, 3))
        assert not check_implementations(planted_fast, real(2, 3), raise_exception=False)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, tt.bfloat16])
def test_a_fast_path_may_round_differently(planted_fast, dtype):
    planted_fast.register(np.ndarray)(lambda a: (a + a, lambda dy: dy + dy))
    assert check_implementations(planted_fast, tt.randn(50).to(dtype).requires_grad_())

    @op
    def planted_total(a):
        return a.sum(axis=0), lambda dy: np.broadcast_to(dy, a.shape)

    @planted_total.register(np.ndarray)
    def backwards(a):
        wide = a.astype(np.float64)[::-1].cumsum(axis=0)
        return wide[-1].astype(a.dtype), lambda dy: np.broadcast_to(dy, a.shape)

    x = tt.randn(1000, 3).to(dtype).requires_grad_()
    assert check_implementations(planted_total, x)


# --- strategies ----------------------------------------------------------------------------------


@given(strategies.arrays(dtype=strategies.FLOATING, avoid=(0.0,), low=-1, high=1))
def test_arrays_keep_away_from_kinks(x):
    assert x.dtype in strategies.FLOATING
    assert not x.size or abs(x.astype(float)).min() > 0.02
    assert not x.size or abs(x.astype(float)).max() <= 1


@given(strategies.floats(-1, 1, avoid=(0.0, 0.5)))
def test_numbers_keep_away_from_kinks(x):
    assert -1 <= x <= 1
    assert abs(x) > 0.03
    assert abs(x - 0.5) > 0.03


@given(strategies.arrays(distinct=True))
def test_distinct_elements_are_apart(x):
    if x.size > 1:
        assert np.diff(np.sort(x, axis=None)).min() > 6 / x.size / 4


@given(strategies.arrays(dtype=(np.int64, np.bool_, np.uint8), low=0, high=4))
def test_integer_arrays_stay_in_range(x):
    assert x.dtype.kind in "iub"
    assert not x.size or 0 <= int(x.min()) <= int(x.max()) <= 4


@given(strategies.arrays(strategies.shapes(min_dims=1)), st.sampled_from(strategies.LAYOUTS))
def test_layouts_keep_the_numbers(x, layout):
    y = strategies.lay_out(x, layout)
    assert np.array_equal(x, y)
    assert not np.shares_memory(x, y)
    if x.size and max(x.shape) > 1:
        assert y.flags.c_contiguous == (layout in ("C", "offset")) or layout == "F"


@given(st.data())
def test_shapes_fit_each_other(data):
    one, two = data.draw(strategies.broadcastable_shapes())
    np.broadcast_shapes(one, two)
    a, b = data.draw(strategies.matmul_shapes())
    np.matmul(np.zeros(a), np.zeros(b))


@settings(max_examples=150)
@given(st.data())
def test_indices_fit_the_shape(data):
    shape = data.draw(strategies.shapes())
    _ = np.zeros(shape)[data.draw(strategies.indices(shape))]
    np.zeros(shape).sum(axis=data.draw(strategies.axes(len(shape))))


@given(strategies.tensors(dtype=(np.float64, np.int64)))
def test_tensors_require_gradients_where_they_can(x):
    assert x.requires_grad == (x.dtype == np.float64)


def test_a_seed_means_the_same_numbers():
    one, two = (strategies.random_array(5, (3, 4)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not math.isclose(float(strategies.random_array(6, (1,))[0]), float(one[0, 0]))
