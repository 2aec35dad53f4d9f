"""Operations with several outputs: which gradients reach the VJP, and everything that looks on."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import func, ops
from tinytensor.autograd import note_write
from tinytensor.backend import array_module
from tinytensor.inspect.nonfinite import first_nonfinite
from tinytensor.tensor import op
from tinytensor.testing import gradcheck, gradgradcheck
from tinytensor.utils.checkpoint import checkpoint


def added(*terms):
    """The sum of those that are not None."""
    terms = [term for term in terms if term is not None]
    return sum(terms[1:], terms[0])


@op
def cartesian(r, angle):
    """(r · cos angle, r · sin angle)"""
    xp = array_module(r, angle)
    c, s = xp.cos(angle), xp.sin(angle)

    def along(factor, gradient):
        return None if gradient is None else factor * gradient

    return (r * c, r * s), (
        lambda dx, dy: added(along(c, dx), along(s, dy)),
        lambda dx, dy: added(along(-r * s, dx), along(r * c, dy)),
    )


@op
def halves(x):
    """x in two, by one function for all gradients; what it was called with is kept."""
    n = len(x) // 2

    def vjp(*dys):
        calls.append([dy is None for dy in dys])
        zeros = array_module(x).zeros(n, x.dtype)
        return array_module(x).concatenate([zeros if dy is None else dy for dy in dys])

    return (x[:n], x[n:]), vjp


calls: list[list[bool]] = []


@pytest.fixture(autouse=True)
def _no_calls():
    calls.clear()


def points(seed=0):
    rng = np.random.default_rng(seed)
    return [tt.tensor(rng.uniform(0.5, 2, 5), requires_grad=True) for _ in range(2)]


def same(x, expected):
    np.testing.assert_array_equal(x.detach().numpy(), expected.detach().numpy())


@pytest.mark.parametrize("use", [lambda x, y: x, lambda x, y: y, lambda x, y: x * y + y])
def test_any_use_of_the_outputs_has_the_right_derivatives(use):
    def f(*inputs):
        return use(*cartesian(*inputs))

    inputs = points()
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)
    plain, direction = [x.detach() for x in inputs], tuple(points(1))
    expected = func.jvp(
        lambda r, a: use(r * ops.cos(a), r * ops.sin(a)), tuple(plain), tuple(direction)
    )
    for ours, theirs in zip(func.jvp(f, tuple(plain), direction), expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-12)


def test_all_outputs_are_checked_at_once():
    assert gradcheck(cartesian, points())
    assert gradgradcheck(cartesian, points())


@pytest.mark.parametrize(
    ("use", "missing"),
    [
        (lambda a, b: a.sum(), [False, True]),
        (lambda a, b: b.sum(), [True, False]),
        (lambda a, b: (a * b).sum() + a.sum(), [False, False]),
    ],
)
def test_an_output_that_leads_nowhere_sends_none(use, missing):
    x = tt.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    a, b = halves(x)
    use(a, b).backward()
    assert calls == [missing]  # one call, however often an output was used
    assert [not any(half) for half in (x.grad[:2].tolist(), x.grad[2:].tolist())] == missing


def test_outputs_of_constants_are_constants():
    a, b = halves(tt.arange(4.0))
    assert not a.requires_grad and not b.requires_grad
    x = tt.tensor([1.0, 2.0], requires_grad=True)
    with tt.no_grad():
        assert not any(y.requires_grad for y in halves(x))
    values = halves(np.arange(4.0))
    assert [type(y) for y in values] == [np.ndarray, np.ndarray]


def test_gradients_of_inputs_that_need_none_are_dropped_with_what_they_kept():
    r, angle = points()
    x, _ = cartesian(r, angle.detach())
    (operation,) = x.node.parents
    assert operation.parents == (r.node, None)
    assert not any(a is r.value for a in operation.saved())
    assert any(np.array_equal(a, np.cos(angle.value)) for a in operation.saved())


def test_hooks_see_the_gradient_of_each_output():
    r, angle = points()
    x, y = cartesian(r, angle)
    seen = []
    x.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 0)
    y.retain_grad()
    (3 * x + y).sum().backward()
    assert seen == [[3.0] * 5]
    assert y.grad.tolist() == [0.0] * 5
    same(r.grad, 3 * ops.cos(angle))


def test_a_graph_is_freed_as_one():
    x = tt.tensor([1.0, 2.0], requires_grad=True)
    a, b = halves(x)
    a.sum().backward()
    with pytest.raises(RuntimeError, match="the graph behind this halves was already used"):
        b.sum().backward()
    a, b = halves(x)
    a.sum().backward(retain_graph=True)
    b.sum().backward()
    assert x.grad.tolist() == [2.0, 1.0]


def test_a_write_to_what_it_saved_is_noticed():
    r, angle = points()
    x, y = cartesian(r, angle)
    with tt.no_grad():
        r.mul_(2)
    with pytest.raises(RuntimeError, match=r"an array that cartesian \(5,\) needs"):
        (x + y).sum().backward()
    x, y = cartesian(r, angle)
    note_write(np.zeros(3))
    (x + y).sum().backward()


def test_nothing_is_left_for_the_collector():
    gc.collect()
    gc.disable()
    try:
        r, angle = points()
        outputs = cartesian(r, angle)
        operation = weakref.ref(outputs[0].node.parents[0])
        array = weakref.ref(next(a for a in operation().saved() if a is not r.value))
        del outputs
        assert operation() is None and array() is None
    finally:
        gc.enable()


def test_checkpoint_gives_the_same_bits():
    def f(r, angle):
        x, y = cartesian(r, angle)
        return x * y, y

    gradients = []
    for run in (f, lambda *inputs: checkpoint(f, *inputs)):
        inputs = points()
        one, two = run(*inputs)
        (one + two * two).sum().backward()
        gradients.append([x.grad for x in inputs])
    for plain, again in zip(*gradients, strict=True):
        same(again, plain)


def test_each_output_is_rounded_to_bfloat16():
    @op(promote=True)
    def sum_and_difference(a, b):
        def vjp(dsum, ddifference):
            return dsum + ddifference, dsum - ddifference

        return (a + b, a - b), vjp

    a = tt.tensor([256.0]).bfloat16().requires_grad_()
    b = tt.tensor([1.0], requires_grad=True)
    y, z = sum_and_difference(a, b)
    assert (y.dtype, z.dtype) == (tt.float32, tt.float32)
    y, z = sum_and_difference(a, b.detach().bfloat16())
    assert (y.dtype, z.dtype) == (tt.bfloat16, tt.bfloat16)
    assert (y.item(), z.item()) == (256.0, 255.0)
    (y + z).sum().backward()
    assert a.grad.dtype == tt.bfloat16


def test_who_made_the_first_nan_is_found_behind_several_outputs():
    @op
    def broken(x):
        return (x, array_module(x).full_like(x, np.nan)), None

    x = tt.tensor([1.0, 2.0], requires_grad=True)
    birth = first_nonfinite(lambda: broken(x))
    assert (birth.operation, birth.direction) == ("broken", "forward")

    @op
    def broken_backwards(x):
        return (x, x), lambda dy, dz: dy * np.nan

    linear = tt.nn.Linear(2, 2)
    linear.forward = lambda x: broken_backwards(x)[0]
    birth = first_nonfinite(lambda: linear(x).sum().backward(), tt.nn.Sequential(linear))
    assert (birth.operation, birth.direction, birth.place) == ("broken_backwards", "backward", "0")


def test_passing_on_an_infinite_gradient_is_not_to_make_it():
    r, angle = points()
    gradient = tt.full((5,), float("inf"), dtype=tt.float64)
    assert first_nonfinite(lambda: cartesian(r, angle)[0].backward(gradient)) is None


def test_a_vjp_of_the_wrong_length_is_named():
    @op
    def twice(x):
        return (x, x), (lambda dy, dz: dy, lambda dy, dz: dz)

    with pytest.raises(ValueError, match="twice: its VJP has 2 functions for 1 inputs"):
        twice(tt.tensor([1.0], requires_grad=True))
