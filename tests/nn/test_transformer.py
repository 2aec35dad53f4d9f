"""`nn.TransformerEncoderLayer` and `nn.TransformerEncoder`, without PyTorch beside them."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tests.ops.derivatives import real
from tinytensor import nn
from tinytensor.nn import functional as F
from tinytensor.testing import gradcheck


def layer(**options):
    return nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **options).double()


@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients(norm_first):
    """Of the sequence, and of all parameters."""
    encoder = nn.TransformerEncoder(
        layer(dropout=0.0, activation="gelu", norm_first=norm_first), 2, nn.LayerNorm(6).double()
    )
    names, parameters = zip(*encoder.named_parameters(), strict=True)

    def function(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return tt.func.functional_call(encoder, given, (x,), {"is_causal": True})

    gradcheck(function, [real(2, 3, 6), *parameters])


def test_causal_is_the_mask_of_what_is_later():
    encoder = nn.TransformerEncoder(layer().eval(), 2)
    x, later = real(2, 5, 6), tt.ones(5, 5).triu(1).bool()
    causal = encoder(x, is_causal=True)
    np.testing.assert_allclose(
        causal.detach().numpy(), encoder(x, mask=later).detach().numpy(), rtol=1e-12
    )
    for length in range(1, 5):  # nothing earlier depends on what is later
        alone = encoder(x[:, :length], is_causal=True).detach().numpy()
        np.testing.assert_allclose(causal[:, :length].detach().numpy(), alone, rtol=1e-10)


def test_copies_are_apart():
    one = layer()
    encoder = nn.TransformerEncoder(one, 3)
    weights = [part.linear1.weight for part in encoder.layers]
    assert len({id(w) for w in [one.linear1.weight, *weights]}) == 4
    assert all(tt.equal(w, one.linear1.weight) for w in weights)
    assert encoder.num_layers == len(encoder.layers) == 3
    assert len(list(encoder.parameters())) == 3 * len(list(one.parameters()))


def test_dropout_acts_in_training_only():
    encoder, x = nn.TransformerEncoder(layer(dropout=0.5), 2), real(2, 5, 6)
    tt.manual_seed(1)
    first, second = encoder(x), encoder(x)
    tt.manual_seed(1)
    assert tt.equal(encoder(x), first) and not tt.equal(first, second)
    encoder.eval()
    assert tt.equal(encoder(x), encoder(x))


def test_layers_by_hand():
    """The formula, part by part."""
    one, x = layer(dropout=0.0, activation=F.silu), real(2, 5, 6)
    a = one.norm1(x + one.self_attn(x, x, x)[0])
    expected = one.norm2(a + one.linear2(F.silu(one.linear1(a))))
    np.testing.assert_allclose(one(x).detach().numpy(), expected.detach().numpy(), rtol=1e-10)


def test_what_is_refused():
    with pytest.raises(ValueError, match='activation is "relu", "gelu" or a function, not \'erf\''):
        nn.TransformerEncoderLayer(6, 2, activation="erf")
    with pytest.raises(ValueError, match="embed_dim 6 cannot be cut into 4 heads"):
        nn.TransformerEncoderLayer(6, 4)
    with pytest.raises(TypeError, match="TransformerEncoder: num_layers must be an integer"):
        nn.TransformerEncoder(layer(), 2.0)
