"""autocast: the dtype that each operation computes in; gradients and losses come back whole."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from gpt.model import GPT, GPTConfig
from tinytensor import nn
from tinytensor.nn import functional as F
from tinytensor.utils.checkpoint import checkpoint

SIZES = GPTConfig(vocab_size=33, block_size=16, n_layer=2, n_head=2, n_embd=32)


def test_products_are_bfloat16_and_sums_float32():
    layer = nn.Linear(4, 3)
    x = tt.randn(2, 4)
    assert layer(x).dtype == tt.float32
    with tt.autocast("cpu", dtype=tt.bfloat16):
        assert tt.is_autocast_enabled()
        y = layer(x)
        assert y.dtype == (x @ x.T).dtype == tt.bfloat16
        assert F.softmax(y, dim=-1).dtype == F.layer_norm(y, (3,)).dtype == tt.float32
        assert F.relu(y).dtype == tt.bfloat16
        assert (x + y[:, :1]).dtype == tt.float32
        with tt.autocast("cpu", enabled=False):
            assert layer(x).dtype == tt.float32
        assert layer(x).dtype == tt.bfloat16
    assert not tt.is_autocast_enabled()
    expected = layer(x.to(tt.bfloat16).float()).detach().numpy()
    np.testing.assert_allclose(y.float().detach().numpy(), expected, rtol=2**-7, atol=2**-7)


def test_gradients_of_float32_parameters_are_float32():
    layer = nn.Linear(4, 3)
    with tt.autocast("cpu"):
        loss = (layer(tt.randn(5, 4)) ** 2).sum()
    loss.backward()
    assert {p.grad.dtype for p in layer.parameters()} == {tt.float32}


def test_a_gpt_learns_the_same_within_bfloat16():
    losses = []
    for enabled in (False, True):
        tt.manual_seed(0)
        model = GPT(SIZES)
        optimizer = tt.optim.AdamW(model.parameters(), lr=1e-2)
        x, y = tt.randint(0, 33, (4, 16)), tt.randint(0, 33, (4, 16))
        for _ in range(20):
            with tt.autocast("cpu", enabled=enabled):
                _, loss = model(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_a_checkpoint_computes_again_as_it_did():
    layer = nn.Linear(4, 4)
    x = tt.randn(2, 4, requires_grad=True)
    gradients = []
    for call in (lambda f, v: f(v), checkpoint):
        x.grad = None
        with tt.autocast("cpu"):
            y = call(lambda v: layer(v).tanh(), x)
        y.float().sum().backward()
        gradients.append(x.grad.numpy())
    np.testing.assert_array_equal(*gradients)


def test_decorator():
    @tt.autocast("cpu")
    def product(a, b):
        return a @ b

    assert product(tt.ones(2, 2), tt.ones(2, 2)).dtype == tt.bfloat16
    assert not tt.is_autocast_enabled()


def test_what_is_not_offered():
    with pytest.raises(ValueError, match=r"use tt\.bfloat16"):
        tt.autocast("cuda", dtype=tt.float16)
    with pytest.raises(ValueError, match="device type"):
        tt.autocast("tpu")
