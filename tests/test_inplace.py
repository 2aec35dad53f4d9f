"""Writing into tensors: what is written, what is refused, and that no gradient is ever wrong for
it.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import inplace

MASK = tt.tensor([True, False, True])
INDEX = tt.tensor([0, 2])

# method -> (how it is called, the same without a write)
WRITES = {
    "add_": (lambda x: x.add_(1, alpha=2), lambda x: x + 2),
    "sub_": (lambda x: x.sub_(tt.ones(1)), lambda x: x - 1),
    "mul_": (lambda x: x.mul_(3), lambda x: x * 3),
    "div_": (lambda x: x.div_(2, rounding_mode="floor"), lambda x: x // 2),
    "pow_": (lambda x: x.pow_(2), lambda x: x**2),
    "neg_": (lambda x: x.neg_(), lambda x: -x),
    "abs_": (lambda x: x.abs_(), lambda x: x.abs()),
    "exp_": (lambda x: x.exp_(), lambda x: x.exp()),
    "log_": (lambda x: x.log_(), lambda x: x.log()),
    "sqrt_": (lambda x: x.sqrt_(), lambda x: x.sqrt()),
    "rsqrt_": (lambda x: x.rsqrt_(), lambda x: x.rsqrt()),
    "reciprocal_": (lambda x: x.reciprocal_(), lambda x: 1 / x),
    "tanh_": (lambda x: x.tanh_(), lambda x: x.tanh()),
    "sigmoid_": (lambda x: x.sigmoid_(), lambda x: x.sigmoid()),
    "relu_": (lambda x: x.relu_(), lambda x: x.relu()),
    "floor_": (lambda x: x.floor_(), lambda x: x.floor()),
    "ceil_": (lambda x: x.ceil_(), lambda x: x.ceil()),
    "round_": (lambda x: x.round_(), lambda x: x.round()),
    "clamp_": (lambda x: x.clamp_(min=1), lambda x: x.clamp(1)),
    "clip_": (lambda x: x.clip_(0, 1), lambda x: x.clamp(0, 1)),
    "lerp_": (lambda x: x.lerp_(tt.ones(3), 0.5), lambda x: (x + 1) / 2),
    "addcmul_": (lambda x: x.addcmul_(x, x, value=2), lambda x: x + 2 * x * x),
    "addcdiv_": (lambda x: x.addcdiv_(tt.ones(3), x, value=2), lambda x: x + 2 / x),
    "masked_fill_": (lambda x: x.masked_fill_(MASK, 7.0), lambda x: tt.where(MASK, 7.0, x)),
    "tril_": (lambda x: x.view(1, 3).tril_(), lambda x: x.view(1, 3).tril()),
    "triu_": (lambda x: x.view(1, 3).triu_(1), lambda x: x.view(1, 3).triu(1)),
    "scatter_": (lambda x: x.scatter_(0, INDEX, 7.0), lambda x: tt.where(MASK, 7.0, x)),
    "scatter_add_": (lambda x: x.scatter_add_(0, INDEX, tt.ones(2)), lambda x: x + MASK),
    "index_fill_": (lambda x: x.index_fill_(0, INDEX, 1), lambda x: x.masked_fill(MASK, 1)),
    "index_add_": (lambda x: x.index_add_(0, INDEX, tt.ones(2)), lambda x: x + MASK),
    "logical_not_": (lambda x: x.bool().logical_not_(), lambda x: ~x.bool()),
    "copy_": (lambda x: x.copy_(tt.tensor(2)), lambda x: tt.full((3,), 2.0)),
    "fill_": (lambda x: x.fill_(tt.tensor(2.0)), lambda x: tt.full((3,), 2.0)),
    "zero_": (lambda x: x.zero_(), lambda x: x * 0),
}
RANDOM = {
    "normal_": lambda x: x.normal_(3.0, 0.1),
    "uniform_": lambda x: x.uniform_(2.0, 4.0),
    "exponential_": lambda x: x.exponential_(0.5),
    "bernoulli_": lambda x: x.bernoulli_(0.25),
}


def fresh():
    return tt.tensor([0.5, 1.25, 2.0])


def test_the_tables_cover_every_method():
    others = {"addcmul", "addcdiv", "__setitem__"}
    assert set(inplace.METHODS) == set(WRITES) | set(RANDOM) | others


@pytest.mark.parametrize("name", WRITES)
def test_writes_the_numbers_into_the_memory(name):
    write, without = WRITES[name]
    x = fresh()
    expected = without(fresh())
    if name not in ("logical_not_", "tril_", "triu_"):  # these are called on another tensor
        assert write(x) is x
        assert x.dtype == tt.float32
    else:
        x = write(x)
    np.testing.assert_allclose(x.numpy(), expected.numpy(), rtol=1e-6)


# Booleans have no gradient, so there is nothing to refuse.
@pytest.mark.parametrize("name", sorted((WRITES | RANDOM).keys() - {"logical_not_"}))
def test_refuses_where_a_gradient_is_recorded(name):
    write = (WRITES | RANDOM)[name]
    write = write[0] if isinstance(write, tuple) else write
    leaf = fresh().requires_grad_()
    before = leaf.tolist()
    for target, sentence in [(leaf, "tt.no_grad()"), (leaf * 1, "is not overwritten; write x = ")]:
        if name in ("tril_", "triu_"):
            sentence = "is not overwritten; write x = "
        with pytest.raises(RuntimeError) as caught:
            write(target)
        assert str(caught.value).startswith(f"{name}: ")
        assert sentence in str(caught.value)
        assert target.tolist() == before
    with tt.no_grad():
        write(leaf)
    assert leaf.requires_grad and leaf.is_leaf


@pytest.mark.parametrize("name", RANDOM)
def test_random_fills(name):
    mean, spread = {
        "normal_": (3.0, 0.1),
        "uniform_": (3.0, 12**-0.5 * 2),
        "exponential_": (2.0, 2.0),
        "bernoulli_": (0.25, (0.25 * 0.75) ** 0.5),
    }[name]
    size = 40_000
    x = RANDOM[name](tt.empty(size))
    assert x.mean().item() == pytest.approx(mean, abs=5 * spread / size**0.5)
    assert x.std().item() == pytest.approx(spread, rel=0.05)
    generator = tt.Generator(7)
    one = getattr(tt.empty(5), name)(generator=generator)
    again = getattr(tt.empty(5), name)(generator=generator.manual_seed(7))
    assert tt.equal(one, again)


def test_random_fills_refuse_nonsense():
    for call, sentence in [
        (lambda: tt.arange(3).normal_(), "a tensor of int64 cannot hold random real numbers"),
        (lambda: fresh().normal_(0, -1), "std must not be negative, got -1"),
        (lambda: fresh().uniform_(1, 0), "the range from 1 to 0 is empty"),
        (lambda: fresh().exponential_(0), "the rate must be positive, got 0"),
        (lambda: fresh().bernoulli_(2), "must be in [0, 1], got 2"),
    ]:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert sentence in str(caught.value)


# --- x += y ---------------------------------------------------------------------------------------


def test_augmented_assignment_writes_constants():
    x = y = tt.zeros(2, 3)
    x += tt.arange(3)
    x -= 1
    x *= np.float32(2)
    x /= 2.0
    x **= 2
    assert y is x
    assert y.tolist() == [[1, 0, 1]] * 2
    n = tt.tensor([7, 8])
    n //= 2
    n %= 3
    n &= 1
    n |= 2
    n ^= 7
    assert n.tolist() == [5, 4]
    m = tt.ones(2, 2)
    m @= tt.ones(2, 2)
    assert m.tolist() == [[2, 2], [2, 2]]


def test_augmented_assignment_under_no_grad_writes_a_leaf():
    w = tt.ones(2, requires_grad=True)
    memory = w.numpy(force=True)
    (w * 3).sum().backward()
    with tt.no_grad():
        w -= 0.5 * w.grad
    assert memory.tolist() == [-0.5, -0.5]
    assert w.is_leaf and w.requires_grad
    with pytest.raises(RuntimeError, match=r"x \+= y: .* leaf .* tt.no_grad\(\)"):
        w += 1


@given(st.lists(st.sampled_from("+-*/"), max_size=6))
def test_augmented_assignment_gives_the_gradient_of_the_written_out_form(steps):
    def run(in_place):
        w = tt.tensor([1.5, -0.5], dtype=tt.float64, requires_grad=True)
        x = tt.tensor([2.0, 3.0], dtype=tt.float64)  # begins as a constant
        for step in steps:
            y = w * w + 1
            if in_place:
                if step == "+":
                    x += y
                elif step == "-":
                    x -= y
                elif step == "*":
                    x *= x * y  # needs the x that it replaces
                else:
                    x /= y
            else:
                x = {"+": x + y, "-": x - y, "*": x * (x * y), "/": x / y}[step]
        (x * w).sum().backward()
        return x.tolist(), w.grad.tolist()

    assert run(True) == run(False)


def test_augmented_assignment_inside_a_derivative():
    def f(x):
        total = tt.zeros(2)
        total += x * x
        total *= x
        return total.sum()

    x = tt.tensor([1.0, 2.0])
    assert tt.func.grad(f)(x).tolist() == [3, 12]
    assert tt.func.hessian(f)(x).tolist() == [[6, 0], [0, 12]]

    def g(x):
        x += 1
        return x.sum()

    with pytest.raises(RuntimeError, match="argument of the function being differentiated"):
        tt.func.grad(g)(x)
    assert x.tolist() == [1, 2]


def test_what_does_not_fit_is_refused():
    for x, y, kind, sentence in [
        (
            tt.zeros(3),
            tt.ones(2, 3),
            ValueError,
            "shape (2, 3), which does not fit into a tensor of shape (3,)",
        ),
        (
            tt.arange(3),
            1.5,
            TypeError,
            "the result is float32, which a tensor of int64 cannot hold",
        ),
        (tt.zeros(3).requires_grad_() * 1, tt.ones(2, 3), ValueError, "does not fit"),
        (tt.zeros(3).expand(2, 3), 1, RuntimeError, "write into a clone() of it"),
    ]:
        with pytest.raises(kind) as caught:
            x += y
        assert sentence in str(caught.value)
    with pytest.raises(
        ValueError, match=r"copy_: a tensor of shape \(2, 3\) does not fit into \(3,\)"
    ):
        tt.zeros(3).copy_(tt.ones(2, 3))


def test_narrower_floats_are_written():
    x = tt.zeros(2)
    x += tt.ones(2, dtype=tt.float64)
    assert x.dtype == tt.float32
    x.copy_(tt.tensor([3, 4]))
    assert x.tolist() == [3, 4]


# --- x[i] = y -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        slice(1, None),
        (slice(None), 1),
        (0, 2),
        ...,
        [0, 0],
        tt.tensor([1]),
        (tt.tensor(1), 2),
    ]
    + [tt.tensor([True, False]), tt.tensor([[True, False, True], [False] * 3])],
    ids=str,
)
@pytest.mark.parametrize("value", [7.0, tt.tensor(8.0), np.float64(9)], ids=str)
def test_setitem_is_numpys(index, value):
    x = tt.arange(6).view(2, 3).float()
    expected = x.numpy().copy()
    plain = (
        tuple(np.asarray(i) if isinstance(i, tt.Tensor) else i for i in index)
        if isinstance(index, tuple)
        else index
    )
    plain = np.asarray(plain) if isinstance(plain, tt.Tensor) else plain
    x[index] = value
    expected[plain] = float(value)
    np.testing.assert_array_equal(x.numpy(), expected)


def test_setitem_refuses():
    x = tt.zeros(2, 3)
    w = tt.ones(3, requires_grad=True)
    for kind, sentence, index, value in [
        (ValueError, "from shape (2,) into shape (3,) (the tensor is (2, 3))", 0, tt.ones(2)),
        (IndexError, "index 5 is out of bounds for axis 0 with size 2", 5, 1.0),
        (RuntimeError, "the value comes from multiply", 0, w * 2),
        (RuntimeError, "the value comes from leaf", 0, w),
    ]:
        with pytest.raises(kind) as caught:
            x[index] = value
        assert sentence in str(caught.value)
    with pytest.raises(RuntimeError, match=r"leaf that requires a gradient"):
        w[0] = 1
    with pytest.raises(RuntimeError, match=r"write x = tt.where"):
        (w * 1)[0] = 1
    assert x.tolist() == [[0] * 3] * 2
    with tt.no_grad():
        x[1] = w * 2
        w[0] = 5
    assert x[1].tolist() == [2, 2, 2] and w.tolist() == [5, 1, 1]


# --- the graph notices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x.zero_(),
        lambda x: x.__setitem__(0, 9.0),
        lambda x: x[:1].fill_(9.0),
    ]
    + [
        lambda x: x.__iadd__(1),
        lambda x: x.copy_(tt.ones(2)),
        lambda x: x.normal_(),
        lambda x: x.detach().mul_(2),
    ],
)
def test_a_write_to_what_a_gradient_needs_is_noticed(write):
    w = tt.ones(2, requires_grad=True)
    x = tt.tensor([1.0, 2.0])
    y = (w * x).sum()
    write(x)
    with pytest.raises(RuntimeError, match="written in place after it was used"):
        y.backward()


def test_a_write_before_use_or_elsewhere_is_not():
    w = tt.ones(2, requires_grad=True)
    x = tt.tensor([1.0, 2.0])
    x.add_(1)
    y = (w * x).sum()
    tt.zeros(2).add_(1)
    (w + x).sum()
    y.backward()
    assert w.grad.tolist() == [2, 3]
