"""`nn.RNN`, `nn.GRU` and `nn.LSTM`, without PyTorch beside them."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tests.ops.derivatives import real
from tinytensor import nn
from tinytensor.testing import gradcheck

KINDS = [nn.RNN, nn.GRU, nn.LSTM]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn(a, b, h, c):
    return np.tanh(a + b), c


def gru(a, b, h, c):
    (a_r, a_z, a_n), (b_r, b_z, b_n) = np.split(a, 3), np.split(b, 3)
    r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
    return (1 - z) * np.tanh(a_n + r * b_n) + z * h, c


def lstm(a, b, h, c):
    i, f, g, o = np.split(a + b, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


@pytest.mark.parametrize(("kind", "step"), list(zip(KINDS, [rnn, gru, lstm], strict=True)))
def test_the_formula_step_by_step(kind, step):
    layer = kind(3, 5).double()
    weight_ih, weight_hh, bias_ih, bias_hh = (p.detach().numpy() for p in layer.parameters())
    x, h, c = real(6, 3).detach(), np.zeros(5), np.zeros(5)
    outputs, last = layer(x)
    for t in range(6):
        h, c = step(weight_ih @ x.numpy()[t] + bias_ih, weight_hh @ h + bias_hh, h, c)
        np.testing.assert_allclose(outputs[t].detach().numpy(), h, rtol=1e-10)
    ends = last if kind is nn.LSTM else (last,)
    for end, expected in zip(ends, (h, c), strict=False):
        np.testing.assert_allclose(end[0].detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    layer = kind(2, 3, num_layers=2, bidirectional=True).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def function(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return tt.func.functional_call(layer, given, (x,))[0]

    gradcheck(function, [real(3, 2, 2), *parameters])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_in_two_parts(kind):
    layer, x = kind(3, 4, num_layers=2, batch_first=True), tt.randn(2, 7, 3)
    whole, last = layer(x)
    first, state = layer(x[:, :3])
    second, end = layer(x[:, 3:], state)
    assert tt.allclose(tt.cat([first, second], dim=1), whole, atol=1e-6)
    assert tt.allclose(end[0], last[0], atol=1e-6)


def test_dropout_acts_between_layers_in_training():
    tt.manual_seed(0)
    x = tt.randn(5, 2, 3)
    for layers, differ in ((1, False), (2, True)):
        layer = nn.GRU(3, 4, num_layers=layers, dropout=0.5)
        assert tt.equal(layer(x)[0], layer(x)[0]) is not differ
        layer.eval()
        assert tt.equal(layer(x)[0], layer(x)[0])


def test_it_learns_to_remember():
    """The first of several signs, told after the last."""
    tt.manual_seed(0)
    layer, head = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 2)
    x = tt.randint(0, 2, (64, 6))
    optimizer = tt.optim.RMSprop([*layer.parameters(), *head.parameters()], lr=0.02)
    for _ in range(80):
        _, (h, _) = layer(x.float().unsqueeze(-1))
        loss = nn.functional.cross_entropy(head(h[-1]), x[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: nn.GRU(3, 0),
            "nn.GRU: hidden_size and num_layers must be at least 1, got 0 and 1",
        ),
        (lambda: nn.GRU(3, 4, dropout=2.0), "GRU: p is a probability"),
        (lambda: nn.RNN(3, 4, nonlinearity="gelu"), '"tanh" or "relu", not \'gelu\''),
        (lambda: nn.GRU(3, 4)(tt.zeros(5, 2)), r"expected \(length, batch, 3\) .* got \(5, 2\)"),
        (lambda: nn.GRU(3, 4)(tt.zeros(0, 2, 3)), "at least one step"),
        (
            lambda: nn.GRU(3, 4)(tt.zeros(5, 2, 3), tt.zeros(2, 4)),
            r"nn.GRU: hx is \(2, 4\), but it must be \(1, 2, 4\)",
        ),
        (
            lambda: nn.LSTM(3, 4)(tt.zeros(5, 3), (tt.zeros(1, 4), tt.zeros(1, 3))),
            r"hx is \(1, 4\) and \(1, 3\), but it must be \(1, 4\) and \(1, 4\)",
        ),
    ],
)
def test_what_is_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
