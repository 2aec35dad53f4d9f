"""Layers: shapes, starting distributions, what they compute, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import nn
from tinytensor.nn import functional as F


def close(actual, expected, rtol=1e-6, atol=1e-7):
    np.testing.assert_allclose(np.asarray(actual.detach()), expected, rtol=rtol, atol=atol)


# --- what is computed -----------------------------------------------------------------------------

ACTIVATIONS = [
    (nn.ReLU(), F.relu),
    (nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2)),
    (nn.GELU(), F.gelu),
    (nn.GELU("tanh"), lambda x: F.gelu(x, approximate="tanh")),
    (nn.SiLU(), F.silu),
    (nn.Sigmoid(), F.sigmoid),
    (nn.Tanh(), F.tanh),
    (nn.Softplus(2.0), lambda x: F.softplus(x, 2.0)),
    (nn.Softmax(dim=0), lambda x: F.softmax(x, 0)),
    (nn.LogSoftmax(dim=-1), lambda x: F.log_softmax(x, -1)),
    (nn.Identity(1, anything=2), lambda x: x),
    (nn.Flatten(), lambda x: x.reshape(3, 4)),
    (nn.Flatten(0), lambda x: x.reshape(12)),
]


@pytest.mark.parametrize(
    ("layer", "function"), ACTIVATIONS, ids=lambda v: getattr(v, "__name__", type(v).__name__)
)
def test_a_layer_without_parameters_is_its_function(layer, function):
    tt.manual_seed(1)
    x = tt.randn(3, 2, 2)
    assert list(layer.parameters()) == []
    np.testing.assert_array_equal(layer(x).numpy(), function(x).numpy())


def test_linear_by_hand():
    layer = nn.Linear(2, 3)
    layer.load_state_dict(
        {
            "weight": tt.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
            "bias": tt.tensor([0.0, 0.5, 1.0]),
        }
    )
    close(layer(tt.tensor([[1.0, -1.0], [2.0, 0.0]])), [[-1.0, -0.5, 0.0], [2.0, 6.5, 11.0]])
    assert nn.Linear(2, 3, bias=False).bias is None
    assert layer(tt.ones(4, 5, 2)).shape == (4, 5, 3)


def test_embedding_looks_rows_up_and_its_padding_row_does_not_learn():
    layer = nn.Embedding(4, 3, padding_idx=-1)
    assert layer.padding_idx == 3
    assert layer.weight[3].tolist() == [0.0, 0.0, 0.0]
    ids = tt.tensor([[0, 1], [1, 3]])
    assert layer(ids).shape == (2, 2, 3)
    layer(ids).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0] * 3, [2.0] * 3, [0.0] * 3, [0.0] * 3]


def test_layer_norm_has_mean_zero_and_variance_one_over_its_axes():
    tt.manual_seed(1)
    x = tt.randn(5, 4, 6) * 3 + 2
    for shape, axes in [(6, (2,)), ((4, 6), (1, 2)), ([6], (2,))]:
        y = nn.LayerNorm(shape, eps=0.0)(x).detach().numpy()
        np.testing.assert_allclose(y.mean(axis=axes), 0, atol=1e-6)
        np.testing.assert_allclose(y.var(axis=axes), 1, rtol=1e-5)
    assert nn.LayerNorm(6, bias=False).bias is None
    assert list(nn.LayerNorm(6, elementwise_affine=False).parameters()) == []
    with pytest.raises(ValueError, match=r"last axes of the input \(5, 4, 6\) are not \(4,\)"):
        nn.LayerNorm(4)(x)


def test_add_layer_norm_is_a_sum_and_its_layer_norm():
    x, residual = tt.randn(2, 3, 6), tt.randn(2, 3, 6)
    layer, norm = nn.AddLayerNorm(6, eps=0.1), nn.LayerNorm(6, eps=0.1)
    nn.init.normal_(layer.weight)
    norm.load_state_dict(layer.state_dict())
    total, y = layer(x, residual)
    assert tt.equal(total, x + residual)
    assert tt.equal(y, norm(x + residual))
    begun, y = layer(x)
    assert begun is x
    assert tt.equal(y, norm(x))
    assert nn.AddLayerNorm(6, bias=False).bias is None
    with pytest.raises(TypeError, match=r"AddLayerNorm: normalized_shape must be an integer"):
        nn.AddLayerNorm((3, 6))
    assert str(layer) == "AddLayerNorm((6,), eps=0.1, elementwise_affine=True)"


def test_dropout_drops_its_share_in_training_and_nothing_otherwise():
    tt.manual_seed(1)
    layer = nn.Dropout(0.25)
    x = tt.ones(100, 100)
    y = layer(x).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / y.size)
    assert not np.array_equal(layer(x).numpy(), y)
    assert layer.eval()(x) is x
    assert nn.Dropout(0.0)(x) is x
    assert nn.Dropout(1.0)(x).sum().item() == 0
    with pytest.raises(ValueError, match=r"between 0 and 1, but it is 1\.5"):
        nn.Dropout(1.5)


def test_losses_are_their_functions():
    tt.manual_seed(1)
    x, y = tt.randn(4, 3), tt.rand(4, 3)
    ids, weight = tt.tensor([0, 2, 1, 1]), tt.tensor([1.0, 2.0, 3.0])
    for reduction in ("mean", "sum", "none"):
        pairs = [
            (nn.MSELoss(reduction=reduction)(x, y), F.mse_loss(x, y, reduction)),
            (nn.L1Loss(reduction=reduction)(x, y), F.l1_loss(x, y, reduction)),
            (
                nn.CrossEntropyLoss(weight, 1, reduction, 0.1)(x, ids),
                F.cross_entropy(x, ids, weight, 1, reduction, 0.1),
            ),
            (
                nn.NLLLoss(weight, 1, reduction)(x, ids),
                F.nll_loss(x, ids, weight, 1, reduction),
            ),
            (
                nn.BCEWithLogitsLoss(weight, reduction, weight)(x, y),
                F.binary_cross_entropy_with_logits(x, y, weight, reduction, weight),
            ),
        ]
        for module, function in pairs:
            np.testing.assert_array_equal(module.numpy(), function.numpy())
    assert list(nn.CrossEntropyLoss(weight).state_dict()) == ["weight"]
    with pytest.raises(ValueError, match="reduction is 'average'; it is 'none', 'mean' or 'sum'"):
        nn.MSELoss("average")


# --- starting values ------------------------------------------------------------------------------


def test_starting_distributions_are_pytorchs():
    tt.manual_seed(1)
    linear = nn.Linear(400, 300)
    bound = 1 / 20
    for parameter in (linear.weight, linear.bias):
        values = parameter.detach().numpy()
        assert abs(values).max() <= bound
        assert abs(values).max() > 0.98 * bound
        assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
    table = nn.Embedding(300, 400).weight.detach().numpy()
    assert abs(table.mean()) < 5 / math.sqrt(table.size)
    assert abs(table.std() - 1) < 5 / math.sqrt(2 * table.size)
    norm = nn.LayerNorm((2, 3))
    assert norm.weight.tolist() == [[1.0] * 3] * 2 and norm.bias.tolist() == [[0.0] * 3] * 2


def test_a_seed_gives_the_same_layer():
    def made():
        tt.manual_seed(3)
        return [p.tolist() for p in nn.Sequential(nn.Linear(2, 3), nn.Embedding(2, 2)).parameters()]

    assert made() == made()


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: nn.Linear(3, 2, **k),
        lambda **k: nn.Embedding(3, 2, **k),
        lambda **k: nn.LayerNorm(3, **k),
    ],
    ids=["Linear", "Embedding", "LayerNorm"],
)
@pytest.mark.parametrize("dtype", [tt.float64, tt.bfloat16], ids=str)
def test_layers_are_made_in_a_dtype_and_on_a_device(make, dtype):
    for parameter in make(dtype=dtype, device="cpu").parameters():
        assert parameter.dtype == dtype and parameter.device == "cpu"
        assert isinstance(parameter, nn.Parameter) and parameter.requires_grad


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: nn.Linear(-1, 2), ValueError, "in_features must not be negative, but it is -1"),
        (lambda: nn.Linear(2, 2.5), TypeError, "out_features must be an integer, not 2.5"),
        (lambda: nn.Embedding(2, -3), ValueError, "embedding_dim must not be negative"),
        (
            lambda: nn.Embedding(2, 3, padding_idx=2),
            ValueError,
            "padding_idx 2 is not one of the 2",
        ),
        (lambda: nn.Linear(4, 3)(tt.ones(2, 5)), ValueError, "5 features but the weight expects 4"),
        (
            lambda: nn.Embedding(65, 3)(tt.tensor([70])),
            IndexError,
            "id 70 is out of range.*65 rows",
        ),
        (lambda: nn.Embedding(65, 3)(tt.ones(2)), TypeError, "float32"),
    ],
)
def test_layers_refuse_in_a_sentence(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


# --- containers -----------------------------------------------------------------------------------


def test_sequential_applies_its_modules_in_order():
    tt.manual_seed(1)
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    net = nn.Sequential(a, b, c)
    x = tt.randn(4, 2)
    np.testing.assert_array_equal(net(x).detach().numpy(), c(b(a(x))).detach().numpy())
    assert len(net) == 3 and list(net) == [a, b, c]
    assert net[0] is a and net[-1] is c
    assert type(net[:2]) is nn.Sequential and list(net[:2]) == [a, b]
    assert list(net[1:].state_dict()) == ["2.weight", "2.bias"]  # a slice keeps the names
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]

    named = nn.Sequential({"first": a, "second": c})
    assert named.first is a and list(named.state_dict())[-1] == "second.bias"
    with pytest.raises(IndexError, match="index 3 is out of range: 3 parts"):
        net[3]
    with pytest.raises(TypeError, match=r"holds nn\.Module objects, not a function"):
        nn.Sequential(lambda x: x)


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_numbered_containers_are_lists(kind):
    a, b, c, d = (nn.Linear(1, i + 1) for i in range(4))
    parts = kind(a, b) if kind is nn.Sequential else kind([a, b])
    assert parts.append(c) is parts
    parts.extend([d])
    assert list(parts) == [a, b, c, d]
    del parts[1]
    assert list(parts) == [a, c, d]
    assert [name for name, _ in parts.named_children()] == ["0", "1", "2"]
    parts.insert(1, b)
    assert list(parts) == [a, b, c, d]
    parts[-1] = a
    assert list(parts) == [a, b, c, a] and len(parts) == 4
    del parts[1:3]
    assert list(parts) == [a, a]
    assert list(parts[:1]) == [a] and type(parts[:1]) is kind
    with pytest.raises(IndexError, match="index 5"):
        del parts[5]


def test_module_dict_and_parameter_list():
    a, b = nn.Linear(1, 1), nn.ReLU()
    parts = nn.ModuleDict({"a": a})
    parts["keys_"] = b
    assert parts["a"] is a and "keys_" in parts and "c" not in parts and len(parts) == 2
    assert list(parts) == ["a", "keys_"] == list(parts.keys())
    assert list(parts.values()) == [a, b] and list(parts.items()) == [("a", a), ("keys_", b)]
    assert list(parts.state_dict()) == ["a.weight", "a.bias"]
    del parts["a"]
    assert list(parts) == ["keys_"]
    for missing in (lambda: parts["a"], lambda: parts.__delitem__("a")):
        with pytest.raises(KeyError, match="a"):
            missing()

    values = nn.ParameterList([tt.ones(2), nn.Parameter(tt.zeros(3))])
    values.append(tt.ones(1))
    assert [tuple(p.shape) for p in values.parameters()] == [(2,), (3,), (1,)]
    assert all(isinstance(p, nn.Parameter) for p in values)
    assert list(values.state_dict()) == ["0", "1", "2"]


# --- a small network learns -----------------------------------------------------------------------


def test_a_small_network_learns_xor():
    tt.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    x = tt.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = tt.tensor([[0.0], [1.0], [1.0], [0.0]])
    for _ in range(1000):
        loss = F.mse_loss(net(x), y)
        net.zero_grad()
        loss.backward()
        with tt.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    assert loss.item() < 0.01
    assert (net(x) > 0.5).tolist() == (y > 0.5).tolist()


REFUSALS = {
    "nn.GroupNorm: 4 channels cannot be cut into 3 groups": lambda: nn.GroupNorm(3, 4),
    "nn.MultiheadAttention: embed_dim 8 cannot be cut into 3 heads": lambda: nn.MultiheadAttention(
        8, 3
    ),
    "nn.BatchNorm1d: expected (N, 3) or (N, 3, L), got (2, 4)": lambda: nn.BatchNorm1d(3)(
        tt.zeros(2, 4)
    ),
    "batch_norm: training needs more than one value per channel, but the input is (1, 3)": lambda: (
        nn.BatchNorm1d(3)(tt.zeros(1, 3))
    ),
    "rms_norm: the last axes of the input (2, 3) are not (4,), which it normalizes over": lambda: (
        nn.RMSNorm(4)(tt.zeros(2, 3))
    ),
    "glu: dim -1 of the input (2, 3) cannot be cut into halves": lambda: nn.GLU()(tt.zeros(2, 3)),
    "smooth_l1_loss: beta must not be negative, but it is -1": lambda: nn.SmoothL1Loss(beta=-1)(
        tt.zeros(1), tt.zeros(1)
    ),
    "huber_loss: delta must be positive, but it is 0": lambda: nn.HuberLoss(delta=0)(
        tt.zeros(1), tt.zeros(1)
    ),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_refusals_name_the_numbers(sentence):
    with pytest.raises(ValueError) as caught:
        REFUSALS[sentence]()
    assert str(caught.value) == sentence


def test_rms_norm_has_a_root_mean_square_of_one():
    x = tt.tensor([[3.0, 4.0], [-6.0, 8.0]])
    y = nn.RMSNorm(2)(x)
    np.testing.assert_allclose((y * y).mean(-1).tolist(), [1, 1], rtol=1e-6)
    # 300 · 300 is beyond float16: the mean is taken in float32
    wide = nn.RMSNorm(2, dtype=tt.float16)(tt.tensor([[300.0, 300.0]], dtype=tt.float16))
    assert wide.dtype == tt.float16 and wide.tolist() == [[1, 1]]


def test_batch_norm_learns_the_statistics_of_its_batches():
    tt.manual_seed(0)
    layer = nn.BatchNorm1d(2)
    for _ in range(200):
        layer(tt.randn(64, 2) * 3 + 5)
    np.testing.assert_allclose(layer.running_mean.tolist(), [5, 5], atol=0.3)
    np.testing.assert_allclose(layer.running_var.tolist(), [9, 9], rtol=0.15)
    assert layer.num_batches_tracked.item() == 200
    y = layer.eval()(tt.tensor([[5.0, 5.0]]))
    np.testing.assert_allclose(y.tolist(), [[0, 0]], atol=0.1)
    assert layer.num_batches_tracked.item() == 200


def test_multihead_attention_is_the_gpts_attention():
    """Weights sum to one, see nothing late, and need not be asked for."""
    tt.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x = tt.randn(2, 5, 8)
    y, weights = layer(x, x, x, is_causal=True)
    alone, none = layer(x, x, x, need_weights=False, is_causal=True)
    assert none is None
    np.testing.assert_allclose(y.tolist(), alone.tolist(), atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1).tolist(), np.ones((2, 5)), rtol=1e-6)
    assert weights.triu(1).abs().max().item() == 0
