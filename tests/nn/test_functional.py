"""`nn.functional`: PyTorch's names and argument order, values by hand, gradients, refusals."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

import tinytensor as tt
from tests.ops.derivatives import check_derivatives, real
from tinytensor.nn import functional as F

# What PyTorch's functions take, in order, without its deprecated arguments and `inplace`.
SIGNATURES = {
    "softmax": "input dim dtype",
    "log_softmax": "input dim dtype",
    "cross_entropy": "input target weight ignore_index reduction label_smoothing",
    "nll_loss": "input target weight ignore_index reduction",
    "mse_loss": "input target reduction",
    "l1_loss": "input target reduction",
    "binary_cross_entropy_with_logits": "input target weight reduction pos_weight",
    "linear_cross_entropy": "input linear_weight target linear_bias weight reduction ignore_index "
    "label_smoothing",
    "layer_norm": "input normalized_shape weight bias eps",
    "elu": "input alpha",
    "mish": "input",
    "hardtanh": "input min_val max_val",
    "glu": "input dim",
    "rms_norm": "input normalized_shape weight eps",
    "group_norm": "input num_groups weight bias eps",
    "batch_norm": "input running_mean running_var weight bias training momentum eps",
    "smooth_l1_loss": "input target reduction beta",
    "huber_loss": "input target reduction delta",
    "kl_div": "input target reduction log_target",
    "binary_cross_entropy": "input target weight reduction",
    "linear": "input weight bias",
    "embedding": "input weight padding_idx",
    "dropout": "input p training",
    "gelu": "input approximate",
    "leaky_relu": "input negative_slope",
    "softplus": "input beta threshold",
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal scale "
    "enable_gqa",
    "normalize": "input p dim eps",
    "cosine_similarity": "x1 x2 dim eps",
    "one_hot": "tensor num_classes",
    "pad": "input pad mode value",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_pytorchs(name):
    assert list(inspect.signature(getattr(F, name)).parameters) == SIGNATURES[name].split()


# --- values and gradients -------------------------------------------------------------------------

IDS = tt.tensor([2, 0, 1])
PROBABILITIES = np.random.default_rng(1).dirichlet(np.ones(4), size=3)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


CASES = {
    # name: function of tensors, inputs, what NumPy says
    "relu": (F.relu, (real(3, 4),), lambda x: np.maximum(x, 0)),
    "leaky_relu": (F.leaky_relu, (real(3, 4),), lambda x: np.where(x > 0, x, 0.01 * x)),
    "silu": (F.silu, (real(3, 4),), lambda x: x / (1 + np.exp(-x))),
    "sigmoid": (F.sigmoid, (real(3, 4),), lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (F.tanh, (real(3, 4),), np.tanh),
    "gelu": (
        F.gelu,
        (real(3, 4),),
        lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    ),
    "gelu by tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        (real(3, 4),),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "softplus": (
        lambda x: F.softplus(x, beta=2),
        (real(3, 4),),
        lambda x: np.log1p(np.exp(2 * x)) / 2,
    ),
    "softplus above its threshold": (
        lambda x: F.softplus(x, threshold=-100),
        (real(3, 4),),
        lambda x: x,
    ),
    "logsigmoid": (F.logsigmoid, (real(3, 4),), lambda x: -np.log1p(np.exp(-x))),
    "softmax": (
        lambda x: F.softmax(x, dim=1),
        (real(3, 4),),
        lambda x: np.exp(log_softmax(x)),
    ),
    "log_softmax": (lambda x: F.log_softmax(x, dim=-1), (real(3, 4),), log_softmax),
    "linear": (
        F.linear,
        (real(2, 3, 4), real(5, 4), real(5)),
        lambda x, w, b: x @ w.T + b,
    ),
    "embedding": (lambda w: F.embedding(IDS, w), (real(4, 2),), lambda w: w[[2, 0, 1]]),
    "cross_entropy of class numbers": (
        lambda x: F.cross_entropy(x, IDS),
        (real(3, 4),),
        lambda x: -log_softmax(x)[[0, 1, 2], [2, 0, 1]].mean(),
    ),
    "cross_entropy with classes on axis 1": (
        lambda x: F.cross_entropy(x, tt.tensor([[2, 0, 1]]), reduction="none"),
        (real(1, 4, 3),),
        lambda x: -log_softmax(x[0].T)[[0, 1, 2], [2, 0, 1]][None],
    ),
    "cross_entropy of one row": (
        lambda x: F.cross_entropy(x, tt.tensor(3)),
        (real(4),),
        lambda x: -log_softmax(x)[3],
    ),
    "cross_entropy of probabilities": (
        F.cross_entropy,
        (real(3, 4), tt.tensor(PROBABILITIES, requires_grad=True)),
        lambda x, p: -(log_softmax(x) * p).sum() / 3,
    ),
    "cross_entropy of probabilities on axis 1": (
        lambda x, p: F.cross_entropy(x, p, reduction="none"),
        (real(1, 4, 3), tt.tensor(PROBABILITIES.T[None].copy(), requires_grad=True)),
        lambda x, p: -(log_softmax(x[0].T) * p[0].T).sum(1)[None],
    ),
    "cross_entropy of probabilities, weighted and smoothed": (
        lambda x, p: F.cross_entropy(
            x, p, tt.arange(4).to(x.dtype), reduction="sum", label_smoothing=0.2
        ),
        (real(3, 4), tt.tensor(PROBABILITIES, requires_grad=True)),
        lambda x, p: -(log_softmax(x) * (0.8 * p + 0.05) * np.arange(4)).sum(),
    ),
    "nll_loss": (
        lambda x: F.nll_loss(F.log_softmax(x, 1), IDS, tt.arange(4).double(), ignore_index=1),
        (real(3, 4),),
        lambda x: -2 * log_softmax(x)[0, 2] / 2,  # row 1 weighs 0, row 2 is ignored
    ),
    "linear_cross_entropy": (
        lambda x, w, b: F.linear_cross_entropy(x, w, IDS, linear_bias=b),
        (real(3, 2), real(4, 2), real(4)),
        lambda x, w, b: -log_softmax(x @ w.T + b)[[0, 1, 2], [2, 0, 1]].mean(),
    ),
    "mse_loss": (F.mse_loss, (real(3, 4), real(3, 4, seed=1)), lambda x, y: ((x - y) ** 2).mean()),
    "l1_loss": (
        lambda x, y: F.l1_loss(x, y, reduction="sum"),
        (real(3, 4), real(3, 4, seed=1)),
        lambda x, y: abs(x - y).sum(),
    ),
    "binary_cross_entropy_with_logits": (
        lambda x: F.binary_cross_entropy_with_logits(
            x, tt.tensor(PROBABILITIES), pos_weight=tt.tensor(3.0), reduction="sum"
        ),
        (real(3, 4),),
        lambda x: (
            3 * PROBABILITIES * np.log1p(np.exp(-x)) + (1 - PROBABILITIES) * np.log1p(np.exp(x))
        ).sum(),
    ),
    "layer_norm": (
        lambda x: F.layer_norm(x, (3, 4)),
        (real(2, 3, 4),),
        lambda x: (
            (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
        ),
    ),
    "normalize": (
        F.normalize,
        (real(3, 4),),
        lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    ),
    "normalize by another norm": (
        lambda x: F.normalize(x, p=3.0, dim=0),
        (real(3, 4),),
        lambda x: x / np.linalg.norm(x, 3, axis=0, keepdims=True),
    ),
    "cosine_similarity": (
        lambda x, y: F.cosine_similarity(x, y, dim=0),
        (real(3, 4), real(3, 1)),
        lambda x, y: (x * y).sum(0) / np.linalg.norm(x, axis=0) / np.linalg.norm(y),
    ),
    "pad": (
        lambda x: F.pad(x, (1, 0, 2, 3), value=5.0),
        (real(2, 3, 4),),
        lambda x: np.pad(x, ((0, 0), (2, 3), (1, 0)), constant_values=5.0),
    ),
    "pad by less than nothing": (
        lambda x: F.pad(x, (-1, 2, 0, -1)),
        (real(2, 3, 4),),
        lambda x: np.pad(x[:, :-1, 1:], ((0, 0), (0, 0), (0, 2))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values(case):
    function, inputs, expected = CASES[case]
    y = function(*inputs).detach().numpy()
    hand = np.asarray(expected(*(x.detach().numpy() for x in inputs)))
    assert y.shape == hand.shape and y.dtype == np.float64
    np.testing.assert_allclose(y, hand, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    function, inputs, _ = CASES[case]
    check_derivatives(function, inputs)


def test_dtype_converts_the_input_of_softmax():
    x = tt.tensor([1, 2])
    assert F.softmax(x, 0, dtype=tt.float64).dtype == tt.float64
    assert F.log_softmax(x, 0, dtype=tt.float32).dtype == tt.float32


def test_losses_far_from_zero_stay_finite_and_exact():
    x = tt.tensor([-1000.0, 1000.0], dtype=tt.float64)
    assert F.logsigmoid(x).tolist() == [-1000.0, 0.0]
    y = F.binary_cross_entropy_with_logits(x, tt.tensor([1.0, 1.0]).double(), reduction="none")
    assert y.tolist() == [1000.0, 0.0]
    assert F.softplus(x).tolist() == [0.0, 1000.0]
    assert F.normalize(tt.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_one_hot():
    hot = F.one_hot(tt.tensor([[0, 2], [1, 0]]))
    assert hot.dtype == tt.int64 and hot.shape == (2, 2, 3)
    assert hot.tolist() == [[[1, 0, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0]]]
    assert F.one_hot(tt.tensor([1]), 4).tolist() == [[0, 1, 0, 0]]
    assert F.one_hot(tt.tensor([], dtype=tt.long), 2).shape == (0, 2)


# --- dropout and attention ------------------------------------------------------------------------


def test_dropout_draws_from_the_default_generator():
    x = tt.ones(1000)
    tt.manual_seed(5)
    first, second = F.dropout(x, 0.3), F.dropout(x, 0.3)
    tt.manual_seed(5)
    np.testing.assert_array_equal(F.dropout(x, 0.3).numpy(), first.numpy())
    assert not np.array_equal(first.numpy(), second.numpy())
    # Two draws have no words in common: kept together as often as chance has it.
    both = ((first > 0) & (second > 0)).float().mean().item()
    assert abs(both - 0.49) < 5 * math.sqrt(0.49 * 0.51 / 1000)
    state = tt.get_rng_state()
    assert F.dropout(x, 0.3, training=False) is x and F.dropout(x, 0.0) is x
    assert tt.get_rng_state() == state


def test_attention_drops_weights_only_when_asked_and_repeats_with_the_seed():
    q, k, v = (real(2, 2, 4, 3, seed=i).detach() for i in range(3))
    plain = F.scaled_dot_product_attention(q, k, v)
    np.testing.assert_array_equal(
        F.scaled_dot_product_attention(q, k, v, None, 0.0, False).numpy(), plain.numpy()
    )
    tt.manual_seed(5)
    first = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    state = tt.get_rng_state()
    tt.manual_seed(5)
    again = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    np.testing.assert_array_equal(again.numpy(), first.numpy())
    assert tt.get_rng_state() == state
    # 2 · 2 · 4 · 4 weights, two to a word and four words to a block
    assert state["counter"] == 64 // 2 // 4


def test_heads_of_keys_are_shared_among_heads_of_queries():
    q, k, v = real(2, 6, 4, 3), real(2, 2, 5, 3), real(2, 2, 5, 3, seed=1)
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    for head in range(6):
        alone = F.scaled_dot_product_attention(q[:, head], k[:, head // 3], v[:, head // 3])
        np.testing.assert_allclose(y[:, head].detach().numpy(), alone.detach().numpy(), rtol=1e-12)
    with pytest.raises(ValueError, match=r"4 heads .* cannot be shared out evenly among 6 heads"):
        F.scaled_dot_product_attention(q, real(2, 4, 5, 3), real(2, 4, 5, 3), enable_gqa=True)


# --- what is refused ------------------------------------------------------------------------------

X = tt.zeros(2, 5)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: F.cross_entropy(tt.zeros(4, 8, 65), tt.zeros(4, 8).long()),
            ValueError,
            r"classes are axis 1 of the input \(4, 8, 65\), so the targets must be \(4, 65\), but "
            r"they are \(4, 8\); .*logits.view\(-1, V\)",
        ),
        (
            lambda: F.cross_entropy(X, tt.tensor([1, 70])),
            IndexError,
            "target 70 is out of range: there are 5 classes",
        ),
        (lambda: F.cross_entropy(X, X, reduction="avg"), ValueError, "reduction is 'avg'"),
        (lambda: F.nll_loss(X, tt.tensor([1, 5])), IndexError, "nll_loss: target 5 is out"),
        (
            lambda: F.mse_loss(X, tt.zeros(5)),
            ValueError,
            r"the input is \(2, 5\) but the target is \(5,\)",
        ),
        (lambda: F.dropout(X, -2), ValueError, "between 0 and 1, but it is -2"),
        (
            lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=2),
            ValueError,
            "between 0 and 1, but it is 2",
        ),
        (lambda: F.layer_norm(X, (2,)), ValueError, r"last axes .* \(2, 5\) are not \(2,\)"),
        (lambda: F.layer_norm(X, 5), TypeError, r"layer_norm: .* a tuple .*, but it is 5$"),
        (lambda: F.layer_norm(X[0, 0], ()), ValueError, r"last axes .* \(\) are not \(\)"),
        (lambda: F.rms_norm(X, 5), TypeError, r"rms_norm: .* a tuple .*, but it is 5$"),
        (lambda: F.rms_norm(X[0, 0], ()), ValueError, r"last axes .* \(\) are not \(\)"),
        (lambda: F.rms_norm(X, (5,), tt.ones(1)), ValueError, r"weight is \(1,\) but not \(5,\)"),
        *(
            (lambda p=p, t=t: F.binary_cross_entropy(tt.tensor(p), tt.tensor(t)), ValueError, words)
            for p, t, words in [
                ([0.5, 1.5], [0.0, 1.0], r"with_logits.*input .* 0 and 1, but 1\.5 is"),
                ([0.5, -0.1], [0.0, 1.0], r"input must be probabilities.* -0\.1 is among"),
                ([0.5, math.nan], [0.0, 1.0], "input must be probabilities.* nan is among"),
                ([0.5, 0.5], [0.0, 2.0], r"target must be probabilities.* 2 is among"),
            ]
        ),
        (
            lambda: F.embedding(tt.tensor([0]), X, padding_idx=-3),
            ValueError,
            "padding_idx -3 is not one of the 2 rows",
        ),
        (lambda: F.one_hot(X), TypeError, "expected class numbers, got float32"),
        (lambda: F.one_hot(tt.tensor([3]), 3), IndexError, "class 3 is out of range: there are 3"),
        (lambda: F.one_hot(tt.tensor([], dtype=tt.long)), ValueError, "num_classes must be given"),
        (lambda: F.pad(X, (1,)), ValueError, "at most the 2 axes of the input, got 1 numbers"),
        (lambda: F.pad(X, (1, 1), mode="reflect"), ValueError, "only 'constant' is offered"),
        (lambda: F.softmax(tt.tensor([1, 2]), 0), TypeError, r"int64.*x\.float\(\)"),
        (lambda: F.gelu(X, approximate="erf"), ValueError, "erf"),
    ],
)
def test_what_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
