"""`nn.TransformerEncoderLayer` and `TransformerEncoder` against PyTorch's, over drawn options."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tests.parity.compare import numbers, same, torch
from tests.parity.test_layers_parity import copied
from tinytensor.testing import strategies

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
]

N, T, C, H = 2, 4, 6, 2
MASKS = {
    "none": None,
    "boolean": np.triu(np.ones((T, T), bool), 1),
    "additive": np.triu(np.full((T, T), -np.inf), 1),
    "bias": np.random.default_rng(0).normal(size=(T, T)),
}


def compare(layers, x, padded, causal=False, **masks):
    """`masks` is the mask, under the name that the layer has for it."""
    ((name, mask),) = masks.items()
    hidden = np.zeros((N, T), bool)
    hidden[1, -2:] = True
    if mask is not None and mask.dtype != bool:  # PyTorch wants both of one kind
        hidden = np.where(hidden, -np.inf, 0.0)

    def call(L, x):
        tensor = tt.tensor if L is tt else torch.tensor
        given = {} if mask is None else {name: tensor(mask)}
        if padded:
            given["src_key_padding_mask"] = tensor(hidden)
        if causal:
            given["is_causal"] = True
        return layers[L](x, **given)

    same(call, x, dtypes=(np.float64,))
    theirs = dict(layers[torch].named_parameters())
    for name, mine in layers[tt].named_parameters():
        np.testing.assert_allclose(
            numbers(mine.grad), numbers(theirs[name].grad), rtol=1e-9, atol=1e-11, err_msg=name
        )


@settings(max_examples=40, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["relu", "gelu", "own"]),
    st.sampled_from(sorted(MASKS)),
    st.booleans(),
    strategies.seeds(),
)
def test_encoder_layer(batch_first, norm_first, bias, activation, mask, padded, seed):
    tt.manual_seed(seed)

    def make(nn):
        own = nn.functional.silu if activation == "own" else activation
        return nn.TransformerEncoderLayer(
            C, H, 10, 0.0, own, 1e-3, batch_first, norm_first=norm_first, bias=bias
        )

    shape = (N, T, C) if batch_first else (T, N, C)
    compare(copied(make), strategies.random_array(seed, shape), padded, src_mask=MASKS[mask])


@settings(max_examples=20, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.sampled_from(sorted(MASKS)),
    st.booleans(),
    strategies.seeds(),
)
def test_encoder(norm_first, last, mask, padded, seed):
    tt.manual_seed(seed)

    def make(nn):
        layer = nn.TransformerEncoderLayer(
            C, H, 10, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(C) if last else None)

    causal = mask in ("boolean", "additive")
    x = strategies.random_array(seed, (N, T, C))
    compare(copied(make), x, padded, causal, mask=MASKS[mask])


def test_one_sequence_in_evaluation():
    def make(nn):
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(C, H, 10, 0.5), 3).eval()

    layers = copied(make)
    same(lambda L, x: layers[L](x), strategies.random_array(0, (T, C)), dtypes=(np.float64,))


def test_starting_values_have_the_same_spread():
    def spreads(nn):
        layer = nn.TransformerEncoderLayer(64, 4, 256)
        return {name: x.std().item() for name, x in layer.named_parameters()}

    tt.manual_seed(0)
    torch.manual_seed(0)
    mine, theirs = spreads(tt.nn), spreads(torch.nn)
    assert list(mine) == list(theirs)
    for name, spread in mine.items():
        assert spread == pytest.approx(theirs[name], rel=0.15, abs=1e-12), name
