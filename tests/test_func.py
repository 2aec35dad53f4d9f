"""Transforms of functions: derivatives of any order, nested, of captured variables too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import func, ops
from tinytensor.testing import gradcheck, strategies


def const(*values):
    return tt.tensor(np.array(values, dtype=np.float64))


def number(value):
    return tt.tensor(float(value), dtype=tt.float64)


def normal(*shape, seed=0):
    return tt.tensor(np.random.default_rng(seed).normal(size=shape))


def close(x, expected, rtol=1e-9):
    expected = expected.numpy() if isinstance(expected, tt.Tensor) else expected
    np.testing.assert_allclose(x.detach().numpy(), expected, rtol=rtol, atol=1e-12)


# --- each transform ------------------------------------------------------------------------------


def test_grad_of_a_scalar_function():
    close(func.grad(lambda x: (x * x * x).sum())(const(1.0, 2.0)), [3.0, 12.0])
    assert func.grad(lambda x: x * x)(3.0).item() == 6.0  # a Python number will do
    assert func.grad(lambda x: x * x)(3).dtype == tt.float32


def test_grad_with_respect_to_chosen_arguments():
    f = lambda x, y, *, scale=1.0: (x * x * y * scale).sum()  # noqa: E731
    x, y = const(1.0, 2.0), const(3.0, 4.0)
    close(func.grad(f)(x, y), [6.0, 16.0])
    close(func.grad(f, argnums=1)(x, y, scale=10.0), [10.0, 40.0])
    close(func.grad(f, argnums=-1)(x, y), [1.0, 4.0])
    dx, dy = func.grad(f, argnums=(0, 1))(x, y)
    close(dx, [6.0, 16.0])
    close(dy, [1.0, 4.0])


def test_value_and_grad_and_aux():
    def f(x):
        y = x * x
        return y.sum(), {"squares": y, "name": "f"}

    (value, aux), gradient = func.value_and_grad(f, has_aux=True)(const(1.0, 2.0))
    assert value.item() == 5.0
    close(gradient, [2.0, 4.0])
    assert aux["name"] == "f"
    gradient, aux = func.grad(f, has_aux=True)(const(1.0, 2.0))
    close(gradient, [2.0, 4.0])
    value, gradient = func.value_and_grad(lambda x: x.sum())(const(1.0, 2.0))
    assert value.item() == 3.0
    assert not value.requires_grad


def test_trees_in_and_out():
    parameters = {"w": const(1.0, 2.0), "layers": [const(3.0), (const(4.0), const(5.0))]}

    def f(p, x):
        a, (b, c) = p["layers"]
        return (p["w"] * x * a).sum() + (b * c).sum()

    gradient = func.grad(f)(parameters, const(1.0, 10.0))
    close(gradient["w"], [3.0, 30.0])
    close(gradient["layers"][0], [21.0])
    close(gradient["layers"][1][0], [5.0])
    assert isinstance(gradient["layers"][1], tuple)
    outputs, pullback = func.vjp(lambda x: {"a": x * 2, "b": (x * x, const(7.0))}, const(1.0, 2.0))
    close(outputs["a"], [2.0, 4.0])
    (dx,) = pullback({"a": const(1.0, 0.0), "b": (const(0.0, 1.0), const(9.0))})
    close(dx, [2.0, 4.0])
    (dx,) = pullback({"a": const(0.0, 1.0), "b": (const(0.0, 0.0), const(0.0))})  # once more
    close(dx, [0.0, 2.0])


def test_vjp_and_jvp_are_the_two_sides_of_the_jacobian():
    x, u, v = normal(4), normal(3, seed=1), normal(4, seed=2)
    w = normal(3, 4, seed=3)
    f = lambda x: ops.tanh(w @ x) * (x * x).sum()  # noqa: E731
    matrix = func.jacobian(f)(x)
    assert matrix.shape == (3, 4)
    output, pullback = func.vjp(f, x)
    close(output, f(x))
    close(pullback(u)[0], u @ matrix)
    output, pushed = func.jvp(f, (x,), (v,))
    close(output, f(x))
    close(pushed, matrix @ v)
    step = 1e-6
    close(pushed, (f(x + step * v) - f(x - step * v)) / (2 * step), rtol=1e-7)
    close(func.jacrev(f)(x), matrix)


def test_jacobian_shapes():
    x = normal(2, 3)
    assert func.jacobian(lambda x: x.sum())(x).shape == (2, 3)
    assert func.jacobian(lambda x: x[:, :2].exp())(x).shape == (2, 2, 2, 3)
    assert func.jacobian(lambda x: x[:0])(x).shape == (0, 3, 2, 3)
    y = normal(3)
    close(func.jacobian(lambda x, y: x @ y, argnums=1)(x, y), x)
    assert func.hessian(lambda x: (x * x * x).sum())(x).shape == (2, 3, 2, 3)


def test_hvp_is_the_hessian_times_a_vector():
    w = normal(5, 5, seed=1)
    f = lambda x: ops.logsumexp(w @ x) + (x * x * x).sum()  # noqa: E731
    x, v = normal(5), normal(5, seed=2)
    hessian = func.hessian(f)(x)
    close(hessian, hessian.T)
    value, product = func.hvp(f, x, v)
    close(value, f(x))
    close(product, hessian @ v)
    f2 = lambda a, b: (a * a * b).sum()  # noqa: E731
    value, (da, db) = func.hvp(f2, (const(2.0), const(3.0)), (const(1.0), const(10.0)))
    assert value.item() == 12.0
    close(da, [2 * 3 * 1 + 2 * 2 * 10])
    close(db, [2 * 2 * 1])


def test_hvp_of_trees():
    f = lambda p: (p["a"] ** 2 * p["b"]).sum()  # noqa: E731
    primal = {"a": const(2.0), "b": const(3.0)}
    _, product = func.hvp(f, primal, {"a": const(1.0), "b": const(10.0)})
    close(product["a"], [46.0])
    close(product["b"], [4.0])


# --- nesting -------------------------------------------------------------------------------------


def test_any_order():
    f, x = ops.sin, number(0.7)
    derivatives = [np.cos(0.7), -np.sin(0.7), -np.cos(0.7), np.sin(0.7), np.cos(0.7)]
    for expected in derivatives:
        f = func.grad(f)
        assert f(x).item() == pytest.approx(expected, rel=1e-12)


def test_polynomials_of_any_order():
    f = lambda x: x**5 + 2 * x**3  # noqa: E731
    expected = [
        lambda x: 5 * x**4 + 6 * x**2,
        lambda x: 20 * x**3 + 12 * x,
        lambda x: 60 * x**2 + 12,
        lambda x: 120 * x,
        lambda x: 120,
        lambda x: 0,
        lambda x: 0,
    ]
    for order in expected:
        f = func.grad(f)
        for x in (-1.5, 0.0, 2.0):
            assert f(number(x)).item() == pytest.approx(order(x), abs=1e-12)


def test_perturbations_are_not_confused():
    """d/dx (x · d/dy (x + y)): the inner derivative is 1 whatever x is, so the whole is 1.

    J. Siskind and B. Pearlmutter, "Perturbation confusion and referential transparency", 2005.
    """
    outer = func.grad(lambda x: x * func.grad(lambda y: x + y)(number(1.0)))
    assert outer(number(1.0)).item() == 1.0
    outer = func.grad(lambda x: x * func.grad(lambda y: x * y)(number(2.0)))
    assert outer(number(3.0)).item() == 6.0  # d/dx x²
    outer = func.grad(lambda x: func.grad(lambda y: x * x * y * y)(x))
    assert outer(number(2.0)).item() == pytest.approx(2 * 3 * 4)  # d/dx 2x³
    three = func.grad(
        lambda x: func.grad(lambda y: func.grad(lambda z: x * y * y * z * z * z)(y * x))(x)
    )
    # ∂z: 3xy²z²; at z = yx: 3x³y⁴; ∂y: 12x³y³; at y = x: 12x⁶; ∂x: 72x⁵
    assert three(number(1.5)).item() == pytest.approx(72 * 1.5**5)


def test_perturbations_are_not_confused_by_the_other_transforms():
    f = lambda x: func.jvp(lambda y: x * y, (number(2.0),), (number(1.0),))[1]  # noqa: E731
    assert func.grad(lambda x: x * f(x))(number(3.0)).item() == 6.0
    inner = lambda x: func.jacobian(lambda y: x * y * y)(const(1.0, 2.0)).sum()  # noqa: E731
    assert func.grad(inner)(number(3.0)).item() == 6.0
    g = func.grad(lambda x: func.hvp(lambda y: x * y * y * y, x * 2, number(1.0))[1])
    assert g(number(1.5)).item() == pytest.approx(2 * 12 * 1.5)  # 6·x·2x


def test_derivatives_of_derivatives_of_captured_variables():
    a = number(2.0)
    g = lambda b: func.grad(lambda x: x * x * b)(a)  # noqa: E731
    assert func.grad(g)(number(5.0)).item() == 4.0
    close(
        func.grad(lambda b: func.grad(lambda x: (x * b * b).sum())(b).sum())(const(2.0, 3.0)),
        [4, 6],
    )


def test_a_function_that_ignores_its_argument():
    x = const(1.0, 2.0)
    close(func.grad(lambda x: number(3.0))(x), [0.0, 0.0])
    close(func.hessian(lambda x: x.sum())(x), np.zeros((2, 2)))
    _, pushed = func.jvp(lambda x: const(1.0, 2.0, 3.0), (x,), (x,))
    close(pushed, np.zeros(3))
    close(func.jacobian(lambda x: const(5.0))(x), np.zeros((1, 2)))
    assert func.grad(func.grad(lambda x: x * 2))(number(1.0)).item() == 0.0


def test_identity_and_repeated_outputs():
    x = const(1.0, 2.0)
    output, pullback = func.vjp(lambda x: x, x)
    close(output, x)
    close(pullback(const(3.0, 4.0))[0], [3.0, 4.0])
    _, pullback = func.vjp(lambda x: (x, x), x)
    close(pullback((const(1.0, 0.0), const(10.0, 1.0)))[0], [11.0, 1.0])


def test_jvp_of_jvp_and_grad_of_jvp():
    f = lambda x: ops.sin(x) * x  # noqa: E731
    one = number(1.0)
    directional = lambda x: func.jvp(f, (x,), (one,))[1]  # noqa: E731
    x = number(0.3)
    second = 2 * np.cos(0.3) - 0.3 * np.sin(0.3)
    assert func.jvp(directional, (x,), (one,))[1].item() == pytest.approx(second)
    assert func.grad(directional)(x).item() == pytest.approx(second)
    assert func.grad(lambda x: func.grad(f)(x))(x).item() == pytest.approx(second)
    third = -3 * np.sin(0.3) - 0.3 * np.cos(0.3)
    assert func.grad(func.grad(directional))(x).item() == pytest.approx(third)
    tangent = func.grad(lambda v: func.jvp(f, (x,), (v,))[1])(one)
    assert tangent.item() == pytest.approx(np.sin(0.3) + 0.3 * np.cos(0.3))


def test_gradient_of_a_training_step():
    """Through an inner gradient step to the learning rate, the derivative of learning."""
    data = normal(6, 3)

    def loss(w):
        return (ops.tanh(data @ w) - 1).square().sum()

    def after_step(lr):
        w = const(0.1, -0.2, 0.3)
        for _ in range(2):
            w = w - lr * func.grad(loss)(w)
        return loss(w)

    assert gradcheck(after_step, tt.tensor(0.05, dtype=tt.float64, requires_grad=True))
    lr = number(0.05)
    step = 1e-6
    difference = (after_step(lr + step) - after_step(lr - step)).item() / (2 * step)
    assert func.grad(after_step)(lr).item() == pytest.approx(difference, rel=1e-6)


# --- with ordinary recording around and inside ---------------------------------------------------


def test_transforms_are_recorded_for_backward():
    w = tt.tensor([2.0, 3.0], dtype=tt.float64, requires_grad=True)
    gradient = func.grad(lambda x: (w * x * x).sum())(const(5.0, 7.0))
    assert gradient.requires_grad
    gradient.sum().backward()
    close(w.grad, [10.0, 14.0])
    w.grad = None
    x = tt.tensor([5.0, 7.0], dtype=tt.float64, requires_grad=True)
    func.grad(lambda x: (w * x * x).sum())(x).sum().backward()
    close(x.grad, [4.0, 6.0])
    close(w.grad, [10.0, 14.0])
    (dw,) = tt.autograd.grad(func.hvp(lambda x: (w * x**3).sum(), x, x)[1].sum(), w)
    close(dw, 6 * np.array([5.0, 7.0]) ** 2)


def test_a_gradient_penalty():
    """The norm of a gradient as part of a loss, differentiated with respect to weights."""
    w, x = normal(3, 4).requires_grad_(), normal(4, seed=1)

    def penalty(w):
        gradient = func.grad(lambda x: ops.tanh(w @ x).sum())(x)
        return (gradient.square().sum() - 1).square()

    assert gradcheck(penalty, w)
    assert gradcheck(lambda w: func.grad(penalty)(w), w)


def test_nothing_is_recorded_under_no_grad():
    w = tt.tensor([2.0], dtype=tt.float64, requires_grad=True)
    with tt.no_grad():
        gradient = func.grad(lambda x: (w * x * x).sum())(const(5.0))
        close(gradient, [20.0])
        assert not gradient.requires_grad
        value, _ = func.vjp(lambda x: w * x, const(5.0))
        assert not value.requires_grad
        assert not func.hessian(lambda x: (w * x * x).sum())(const(5.0)).requires_grad
    assert tt.is_grad_enabled()


def test_no_grad_inside_makes_constants():
    def f(x):
        with tt.no_grad():
            factor = x * 10
        assert not factor.requires_grad
        return (x * factor).sum()

    close(func.grad(f)(const(1.0, 2.0)), [10.0, 20.0])
    close(func.hessian(f)(const(1.0, 2.0)), np.zeros((2, 2)))


def test_detach_inside_makes_constants_of_every_level():
    close(func.grad(lambda x: (x * x.detach()).sum())(const(1.0, 2.0)), [1.0, 2.0])
    nested = func.grad(lambda x: func.grad(lambda y: y * y * x.detach())(x))
    assert nested(number(3.0)).item() == 2 * 3.0  # d/dx 2·x·c with c = 3


def test_tensors_that_require_gradients_inside():
    def f(x):
        w = tt.ones(2, dtype=tt.float64, requires_grad=True)
        return (x * x * w).sum()

    gradient = func.grad(f)(const(1.0, 2.0))
    close(gradient, [2.0, 4.0])


def test_ordinary_gradients_inside_a_transform():
    """`backward` of something that does not depend on the argument works as anywhere."""
    w = tt.tensor([3.0], dtype=tt.float64, requires_grad=True)

    def f(x):
        (w * w).sum().backward()
        return (x * w.grad).sum()

    close(func.grad(f)(const(1.0)), [6.0])
    close(w.grad, [6.0])


def test_the_argument_is_not_marked():
    x = const(1.0, 2.0)
    func.grad(lambda x: (x * x).sum())(x)
    assert not x.requires_grad
    assert x.grad is None
    y = tt.tensor([1.0], dtype=tt.float64, requires_grad=True)
    func.grad(lambda x: (x * x).sum())(y)
    assert y.grad is None


def test_inside_every_level_looks_alike():
    def f(x):
        assert x.shape == (2, 3)
        assert x.dtype == tt.float64
        assert x.ndim == 2
        assert x.device == tt.device("cpu")
        assert x.requires_grad
        assert float(x[0, 0]) == 1.0
        assert len(x) == 2
        if x.sum() > 0:  # control flow by values
            return (x * x).sum()
        return x.sum()

    x = tt.ones(2, 3, dtype=tt.float64)
    close(func.grad(f)(x), 2 * np.ones((2, 3)))
    close(func.grad(lambda x: func.grad(f)(x).sum())(x), 2 * np.ones((2, 3)))


def test_control_flow_and_indexing_under_two_levels():
    def f(x):
        total = x[0] * 0
        for i, row in enumerate(x):
            total = total + row * row if i % 2 else total + row.exp()
        return total.sum()

    x = normal(4, 3)
    hessian = func.hessian(f)(x).numpy().reshape(12, 12)
    expected = np.where(np.arange(12) // 3 % 2, 2.0, np.exp(x.numpy().reshape(-1)))
    np.testing.assert_allclose(hessian, np.diag(expected), atol=1e-12)


def test_dropout_under_a_transform_draws_once():
    def f(x):
        tt.manual_seed(3)
        y = tt.nn.functional.dropout(x * x, 0.5, True)
        return (y * x).sum()

    x = normal(20)
    mask = np.array(func.jacobian(lambda x: f(x))(x).numpy()) / (3 * x.numpy() ** 2)
    assert set(np.round(mask, 6)) == {0.0, 2.0}
    assert gradcheck(f, x.clone().requires_grad_())


@given(
    strategies.arrays(strategies.shapes(min_dims=1, min_side=1, max_dims=3, max_side=3)), st.data()
)
def test_products_agree_whatever_the_shape(x, data):
    """u · (J v) = (Jᵀ u) · v, and v · (H w) = w · (H v)."""
    rng = np.random.default_rng(data.draw(strategies.seeds()))
    x = tt.from_numpy(np.ascontiguousarray(x))
    v, w = (tt.from_numpy(rng.normal(size=x.shape)) for _ in range(2))

    def f(x):
        return ops.softmax(x, -1) * ops.sigmoid(x).sum() + ops.tanh(x.reshape(-1)[:1])

    y, pullback = func.vjp(f, x)
    u = tt.from_numpy(rng.normal(size=y.shape))
    left = (u * func.jvp(f, (x,), (v,))[1]).sum()
    assert left.item() == pytest.approx((pullback(u)[0] * v).sum().item(), rel=1e-9, abs=1e-12)
    scalar = lambda x: (f(x) * u).sum()  # noqa: E731
    one = (v * func.hvp(scalar, x, w)[1]).sum().item()
    assert one == pytest.approx((w * func.hvp(scalar, x, v)[1]).sum().item(), rel=1e-9, abs=1e-12)


# --- fused operations under transforms -----------------------------------------------------------


def transformer_block(p, x):
    B, T, C = x.shape
    h = ops.layer_norm(x, p["g"], p["b"])
    q, k, v = (ops.linear(h, p[n], None).reshape(B, T, 2, C // 2).swapaxes(1, 2) for n in "qkv")
    a = ops.scaled_dot_product_attention(q, k, v, None, is_causal=True)
    x = x + a.swapaxes(1, 2).reshape(B, T, C)
    x = x + ops.linear(ops.gelu(ops.linear(x, p["up"], None), approximate="tanh"), p["down"], None)
    return ops.cross_entropy(
        ops.linear(x, p["head"], None), tt.arange(B * T).reshape(B, T) % 5, None
    )


@pytest.fixture
def block():
    shapes = {"g": (4,), "b": (4,), "q": (4, 4), "k": (4, 4), "v": (4, 4)}
    shapes |= {"up": (8, 4), "down": (4, 8), "head": (5, 4)}
    p = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return p, normal(2, 3, 4, seed=99)


def test_hvp_through_a_transformer_block(block):
    """The Hessian-vector product of a whole model, in all of its parameters at once."""
    p, x = block
    v = {name: normal(*w.shape, seed=50 + i) for i, (name, w) in enumerate(p.items())}
    value, product = func.hvp(lambda p: transformer_block(p, x), p, v)
    close(value, transformer_block(p, x))
    gradient, step = func.grad(transformer_block), 1e-5
    plus = gradient({n: w + step * v[n] for n, w in p.items()}, x)
    minus = gradient({n: w - step * v[n] for n, w in p.items()}, x)
    for name, g in product.items():
        difference = ((plus[name] - minus[name]) / (2 * step)).numpy()
        np.testing.assert_allclose(
            g.numpy(), difference, rtol=1e-5, atol=2e-9 * abs(difference).max() + 1e-10
        )


def test_the_gradient_is_the_same_by_every_road(block):
    p, x = block
    expected = func.grad(transformer_block)(p, x)
    leaves = {name: w.clone().requires_grad_() for name, w in p.items()}
    loss = transformer_block(leaves, x)
    by_grad = dict(
        zip(leaves, tt.autograd.grad(loss, leaves.values(), retain_graph=True), strict=True)
    )
    loss.backward()
    with tt.reference_ops():
        plain = func.grad(transformer_block)(p, x)
    for name, g in expected.items():
        for other in (by_grad[name], leaves[name].grad, plain[name]):
            np.testing.assert_allclose(g.numpy(), other.numpy(), rtol=1e-9, atol=1e-12)


def test_third_derivatives_through_fused_operations(block):
    p, x = block
    head, v, weights = p["head"], normal(5, 4, seed=7), normal(5, 4, seed=8)

    def f(head):
        _, product = func.hvp(lambda h: transformer_block({**p, "head": h}, x), head, v)
        return (product * weights).sum()

    assert gradcheck(f, head.clone().requires_grad_(), directions=1)


# --- errors --------------------------------------------------------------------------------------

X, SHORT = const(1.0, 2.0), const(1.0)
MISUSE = {
    "integer argument": (
        lambda: func.grad(lambda x: x)(tt.tensor([1, 2])),
        TypeError,
        "int64 tensor; use a floating",
    ),
    "not a scalar": (
        lambda: func.grad(lambda x: x * 2)(X),
        RuntimeError,
        r"one element, not \(2,\)",
    ),
    "not a tensor": (lambda: func.grad(lambda x: 3.0)(X), TypeError, "tensors, not float"),
    "argnums": (
        lambda: func.grad(lambda x: x, argnums=2)(X),
        ValueError,
        "argnums=2 but only 1 positional",
    ),
    "cotangent": (
        lambda: func.vjp(lambda x: x, X)[1](SHORT),
        ValueError,
        r"\(1,\) but the output has shape \(2,\)",
    ),
    "direction": (lambda: func.hvp(lambda x: x.sum(), X, SHORT), ValueError, r"\(2,\) .* \(1,\)"),
    "tangent": (lambda: func.jvp(lambda x: x, (X,), (SHORT,)), ValueError, r"\(2,\) .* \(1,\)"),
    "trees": (
        lambda: func.jvp(lambda x: x[0], ([X, X],), ([X],)),
        ValueError,
        "2 branches against",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), MISUSE.values(), ids=list(MISUSE))
def test_misuse_is_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_tensor_that_left_its_transform_is_refused():
    def leaky(x):
        kept = []
        func.grad(lambda y: kept.append(y * y) or y.sum())(x)
        return kept[0].sum()

    with pytest.raises(RuntimeError, match="transform that has ended"):
        func.grad(leaky)(X)
