"""Fast paths beside their references: odd sizes, extremes, threads, and a loss without logits."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor import ops
from tinytensor.cpu import dropout, elementwise, indexing, linear, losses, norms, pieces
from tinytensor.random import Draw
from tinytensor.testing import check_implementations

EXTREMES = (0.0, -0.0, 1e4, -1e4, 1e-41, -1e-41, 6.0, -6.0)


def tensor(x, dtype=np.float32):
    return tt.from_numpy(np.asarray(x, dtype)).requires_grad_()


@pytest.fixture
def small_pieces(monkeypatch):
    """Everything is cut into many pieces."""
    for module in (pieces, losses, dropout):
        monkeypatch.setattr(module, "LONG", 8)
    monkeypatch.setattr(pieces, "PIECE", 64)
    monkeypatch.setattr(pieces, "WIDE", 48)
    monkeypatch.setattr(dropout, "PIECE", 24)
    monkeypatch.setattr(elementwise, "ERF_PIECE", 16)
    monkeypatch.setattr(losses, "LOGITS", 700)
    monkeypatch.setattr(linear, "ADDED", 40)
    monkeypatch.setattr(linear, "PACKED", 7)
    monkeypatch.setattr(linear, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(linear, "WORTH_ALL_THREADS", 1 << 10)
    monkeypatch.setattr(linear, "TOO_SMALL_FOR_BLAS_THREADS", 0)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["gelu", "gelu, tanh", "dropout"]),
    st.integers(1, 200),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32),
)
def test_elementwise_with_extremes(name, count, dtype, seed):
    x = np.random.default_rng(seed).normal(size=count) * 3
    x[: len(EXTREMES)] = EXTREMES[:count]
    functions = {
        "gelu": ops.gelu,
        "gelu, tanh": lambda x: ops.gelu(x, approximate="tanh"),
        "dropout": lambda x: ops.dropout(x, 0.2, Draw(seed, 5)),
    }
    # Some twenty roundings in a row; exp multiplies those of its argument by it, which is below 90.
    rtol = 20 * np.finfo(dtype).eps
    assert check_implementations(functions[name], [tensor(x, dtype)], rtol=rtol)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_come_out_as_from_the_reference(value):
    x = tensor([1.0, value, -2.0])
    with np.errstate(invalid="ignore"):
        assert check_implementations(ops.gelu, [x])
        assert check_implementations(lambda x: ops.dropout(x, 0.5, Draw(1, 1)), [x])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1.0, 1e3]),
    st.sampled_from([None, 1, 7]),
    st.integers(0, 2**32),
)
def test_a_loss_without_logits(N, V, C, biased, reduction, dtype, size, block, seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(V, size=N)
    targets[rng.random(N) < 0.2] = -100
    targets[0] = V - 1
    x, weight = (
        tensor(rng.normal(size=(N, C)) * size, dtype),
        tensor(rng.normal(size=(V, C)), dtype),
    )
    bias = tensor(rng.normal(size=V), dtype) if biased else None
    targets = tt.from_numpy(targets)

    def loss(*inputs):
        x, weight, *bias = inputs
        return 3 * ops.linear_cross_entropy(
            x, weight, bias[0] if bias else None, targets, None, -100, reduction, 0.0, block
        )

    inputs = [x, weight] if bias is None else [x, weight, bias]
    # The reference multiplies the logits again, so its own error is no measure of large ones.
    assert check_implementations(loss, inputs, rtol=np.finfo(dtype).eps * size * (8 + N + V + C))


def test_a_loss_without_logits_in_many_pieces(small_pieces):
    rng = np.random.default_rng(0)
    x, weight, bias = (tensor(rng.normal(size=size)) for size in ((4, 25, 9), (37, 9), 37))
    targets = tt.from_numpy(rng.integers(37, size=(4, 25)))

    def loss(x, weight, bias):
        return ops.linear_cross_entropy(x, weight, bias, targets, None)

    assert check_implementations(loss, [x, weight, bias])
    with tt.no_grad():
        np.testing.assert_allclose(
            loss(x, weight, bias).item(),
            tt.nn.functional.cross_entropy(
                tt.nn.functional.linear(x, weight, bias).view(-1, 37), targets.view(-1)
            ).item(),
            rtol=1e-5,
        )


@pytest.mark.parametrize("block", [None, 5])
def test_losses_added_up_in_one_gradient(small_pieces, monkeypatch, block):
    """The gradient of all logits is kept, or that of the weight; later walks add to the first."""
    monkeypatch.setattr(linear, "WORTH_ALL_THREADS", 1)
    rng = np.random.default_rng(1)
    inputs = [tensor(rng.normal(size=size)) for size in ((11, 9), (13, 9), 13)]
    targets = tt.from_numpy(rng.integers(13, size=11))

    def loss():
        return ops.linear_cross_entropy(*inputs, targets, None, -100, "mean", 0.0, block)

    assert ((11, 13) in [a.shape for a in loss().node.saved()]) == (block is None)
    for factor in (1, 3):
        y = loss()
        (factor * y).backward(retain_graph=True)
        y.backward()
    with tt.reference_ops():
        expected = tt.autograd.grad(loss(), inputs)
    for x, dx in zip(inputs, expected, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), 6 * dx.numpy(), rtol=1e-4, atol=1e-6)


def test_a_table_of_padding_scores_gets_no_gradient():
    """Rows that score -1e9 by their bias: probability 0, and no nan."""
    x, weight = tensor(np.ones((3, 4))), tensor(np.ones((5, 4)))
    bias = tt.tensor([0.0, 0.0, 0.0, -1e9, -1e9])
    y = ops.linear_cross_entropy(x, weight, bias, tt.tensor([0, 1, 2]), None)
    assert y.item() == pytest.approx(math.log(3), rel=1e-6)
    y.backward()
    assert (weight.grad.numpy()[3:] == 0).all()


def network(x, targets, layers, weight):
    x = layers(x)
    x = ops.gelu(x) + ops.dropout(x, 0.3, Draw(4, 4))
    return ops.linear_cross_entropy(x, weight, None, targets, None)


def test_the_number_of_threads_changes_nothing_beyond_rounding(small_pieces):
    """Every path that splits, in one network; twice with one setting gives the same bits."""
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(60, 20)), tt.from_numpy(rng.integers(30, size=60))
    found, before = [], tt.get_num_threads()
    try:
        for threads in (1, 2, 2, 3):
            tt.set_num_threads(threads)
            tt.manual_seed(0)
            layers = tt.nn.Sequential(
                tt.nn.Linear(20, 70),
                tt.nn.GELU(approximate="tanh"),
                tt.nn.LayerNorm(70),
                tt.nn.Linear(70, 20),
                tt.nn.LayerNorm(20),
            )
            weight = tt.randn(30, 20, requires_grad=True)
            loss = network(tensor(x), targets, layers, weight)
            loss.backward()
            parameters = [*layers.parameters(), weight]
            found.append([loss.detach().numpy(), *(p.grad.numpy().copy() for p in parameters)])
    finally:
        tt.set_num_threads(before)
    for one, two, same, three in zip(*found, strict=True):
        np.testing.assert_array_equal(two, same)
        for other in (two, three):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# ---- Arrays that are made again, and gradients of parts ----


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "layer_norm", "add_layer_norm"])
def test_what_is_made_again_gives_the_gradients_of_what_is_kept(monkeypatch, activation, biased):
    rng = np.random.default_rng(0)
    x, weight, gain = (tensor(rng.normal(size=s)) for s in ((3, 5, 8), (6, 8), 8))
    shift = tensor(rng.normal(size=8)) if biased else None
    freed = []

    def f(x, weight, gain):
        if activation == "gelu":
            y = ops.gelu(x * gain, approximate="tanh")
        elif activation == "layer_norm":
            y = ops.layer_norm(x, gain, shift)
        else:
            y = ops.add_layer_norm(x, x, gain, shift)[1]
        numbers = weakref.ref(y.value if y.value.base is None else y.value.base)
        z = ops.linear(y, weight, None)
        del y
        freed.append(numbers() is None)
        return z

    kept = f(x, weight, gain)
    for module in (elementwise, norms):
        monkeypatch.setattr(module, "LARGE", 1)
    made = f(x, weight, gain)
    assert freed == [False, True]
    assert check_implementations(f, [x, weight, gain])
    dy = rng.normal(size=kept.shape).astype(np.float32)
    gradients = [
        tt.autograd.grad(y, [x, weight, gain], tt.from_numpy(dy), retain_graph=True)
        for y in (kept, made, made)
    ]
    for one, *others in zip(*gradients, strict=True):
        for other in others:
            np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-5, atol=1e-6)


def test_an_array_that_was_written_is_not_made_again(monkeypatch):
    """The gradient of a weight is that of the numbers it was multiplied with."""
    monkeypatch.setattr(elementwise, "LARGE", 1)
    x, weight = tensor(np.arange(6.0).reshape(2, 3)), tensor(np.ones((4, 3)))
    y = ops.gelu(x, approximate="tanh")
    with tt.no_grad():
        y.zero_()
    ops.linear(y, weight, None).sum().backward()
    assert (weight.grad.numpy() == 0).all()


def test_a_write_to_what_an_array_is_made_from_is_noticed(monkeypatch):
    monkeypatch.setattr(elementwise, "LARGE", 1)
    x, weight = tensor(np.arange(6.0).reshape(2, 3)), tensor(np.ones((4, 3)))
    z = ops.linear(ops.gelu(x, approximate="tanh"), weight, None)
    with tt.no_grad():
        x.zero_()
    with pytest.raises(RuntimeError, match="written in place"):
        z.sum().backward()


@pytest.mark.parametrize(
    "cuts",
    [
        [np.s_[:, :, 0:2], np.s_[:, :, 2:4], np.s_[:, :, 4:6]],  # all of it
        [np.s_[:, :, 4:6], np.s_[:, :, 0:2]],  # a gap
        [np.s_[:, :, 0:4], np.s_[:, :, 2:6]],  # an overlap
        [np.s_[:, :, 0:2], np.s_[:, 1:2]],  # two axes
        [np.s_[0:3], np.s_[3:4]],  # the first axis
        [np.s_[2:4], np.s_[0:1], np.s_[1:2], np.s_[1:2]],
        [np.s_[..., 0:3], np.s_[:, :, 3:6]],
        [np.s_[:, :, ::2], np.s_[:, :, 1::2]],
        [np.s_[0], np.s_[1:]],
        [np.s_[:, :, 0:0], np.s_[:, :, :]],
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_parts(monkeypatch, cuts, threads):
    monkeypatch.setattr(indexing, "LONG", 1)
    rng = np.random.default_rng(0)
    x = tensor(rng.normal(size=(4, 5, 6)))
    weights = [rng.normal(size=np.zeros(x.shape)[cut].shape) for cut in cuts]
    expected = np.zeros(x.shape)
    for cut, weight in zip(cuts, weights, strict=True):
        expected[cut] += weight
    before = tt.get_num_threads()
    tt.set_num_threads(threads)
    try:
        loss = sum((x[c] * tensor(w).detach()).sum() for c, w in zip(cuts, weights, strict=True))
        loss.backward()
        np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)
        loss = sum((x[c] * tensor(w).detach()).sum() for c, w in zip(cuts, weights, strict=True))
        (loss + x.sum()).backward()
    finally:
        tt.set_num_threads(before)
    np.testing.assert_allclose(x.grad.numpy(), 2 * expected + 1, rtol=1e-5, atol=1e-6)
