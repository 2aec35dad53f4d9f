"""Ten seconds, from an addition to a model that learns; the first failure names what is broken.

    pytest -x tests/test_tiny.py

Each test needs what the tests before it showed, and one thing more.
"""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import nn, optim
from tinytensor.nn import functional as F


def test_a_tensor_is_an_array():
    x = tt.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert x.shape == (2, 3)
    assert x.dtype == tt.float32
    assert x.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert np.array_equal(x.numpy(), np.arange(1.0, 7.0).reshape(2, 3))


def test_arithmetic():
    a, b = tt.tensor([1.0, 2.0]), tt.tensor([3.0, 4.0])
    assert (a + b).tolist() == [4.0, 6.0]
    assert (2 * a - b / 2).tolist() == [0.5, 2.0]
    assert (a**2).sum().item() == 5.0
    assert (a < b).all()


def test_shapes():
    x = tt.arange(6).view(2, 3)
    assert x.transpose(0, 1).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert x[:, -1].tolist() == [2, 5]
    assert tt.cat([x, x], dim=1).shape == (2, 6)
    assert (x + tt.tensor([[10], [20]])).tolist() == [[10, 11, 12], [23, 24, 25]]


def test_matrix_product():
    a, b = tt.arange(6.0).view(2, 3), tt.arange(6.0).view(3, 2)
    assert (a @ b).tolist() == [[10.0, 13.0], [28.0, 40.0]]


def test_the_gradient_of_one_operation():
    x = tt.tensor(3.0, requires_grad=True)
    (x * x).backward()
    assert x.grad.item() == 6.0


def test_the_chain_rule():
    x = tt.tensor([0.5, -1.0], requires_grad=True)
    ((x * 2).tanh() + x).sum().backward()
    expected = 2 * (1 - np.tanh([1.0, -2.0]) ** 2) + 1
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


def test_gradients_add_up_and_broadcast():
    w, b = tt.ones(3, requires_grad=True), tt.zeros(1, requires_grad=True)
    (w * tt.ones(4, 3) + b).sum().backward()
    assert w.grad.tolist() == [4.0, 4.0, 4.0]
    assert b.grad.tolist() == [12.0]


def test_gradients_agree_with_finite_differences():
    from tinytensor.testing import gradcheck

    x = tt.tensor(np.linspace(-1, 1, 6).reshape(2, 3), requires_grad=True)
    assert gradcheck(lambda x: F.softmax(x @ x.T, dim=-1).exp().sum(), x)


def test_second_derivatives():
    f = tt.func.grad(tt.func.grad(lambda x: x**3))
    assert f(2.0).item() == 12.0


def test_no_grad_records_nothing():
    x = tt.ones(2, requires_grad=True)
    with tt.no_grad():
        assert not (x * 2).requires_grad


def test_random_numbers_repeat():
    tt.manual_seed(1337)
    one = tt.randn(3), tt.randint(0, 10, (3,))
    tt.manual_seed(1337)
    two = tt.randn(3), tt.randint(0, 10, (3,))
    assert all(a.tolist() == b.tolist() for a, b in zip(one, two, strict=True))


def test_a_layer():
    tt.manual_seed(0)
    layer = nn.Linear(3, 2)
    y = layer(tt.ones(4, 3))
    assert y.shape == (4, 2)
    y.sum().backward()
    assert layer.weight.grad.tolist() == [[4.0] * 3] * 2
    assert layer.bias.grad.tolist() == [4.0, 4.0]


def test_the_loss_of_uniform_guesses():
    loss = F.cross_entropy(tt.zeros(5, 65), tt.tensor([0, 1, 2, 3, 64]))
    assert loss.item() == pytest.approx(np.log(65))


def test_one_step_downhill():
    w = nn.Parameter(tt.tensor([1.0, -2.0]))
    optimizer = optim.SGD([w], lr=0.1)
    (w * w).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(w.detach().numpy(), [0.8, -1.6], rtol=1e-6)
    optimizer.zero_grad()
    assert w.grad is None or not w.grad.numpy().any()


def test_a_small_network_learns_xor():
    tt.manual_seed(0)
    x = tt.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = tt.tensor([0, 1, 1, 0])
    model = nn.Sequential(nn.Linear(2, 16), nn.GELU(), nn.Linear(16, 2))
    optimizer = optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(100):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert model(x).argmax(dim=-1).tolist() == [0, 1, 1, 0]


def test_attention_learns_to_copy():
    """Predict the token two places back: only attention over positions can."""
    tt.manual_seed(0)
    B, T, C, V = 16, 8, 16, 5
    tokens, places, head = nn.Embedding(V, C), nn.Embedding(T, C), nn.Linear(C, V)
    qkv, norm = nn.Linear(C, 3 * C), nn.LayerNorm(C)
    model = nn.ModuleList([tokens, places, head, qkv, norm])
    optimizer = optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(150):
        ids = tt.randint(0, V, (B, T))
        x = tokens(ids) + places(tt.arange(T))
        q, k, v = qkv(norm(x)).split(C, dim=-1)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        logits = head(x)[:, 2:]
        loss = F.cross_entropy(logits.reshape(-1, V), ids[:, :-2].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_a_model_survives_saving(tmp_path):
    tt.manual_seed(0)
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    tt.save_file(one.state_dict(), tmp_path / "model.safetensors")
    two.load_state_dict(tt.load_file(tmp_path / "model.safetensors"))
    x = tt.randn(4, 3)
    assert one(x).tolist() == two(x).tolist()
