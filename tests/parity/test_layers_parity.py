"""Layers, losses and initial values against PyTorch's, over drawn shapes and options."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tests.parity.compare import name_of, numbers, same, to_torch, torch
from tests.table import Given, distinct, exactly, integers, real, smooth
from tinytensor.testing import strategies

pytestmark = pytest.mark.parity

random = strategies.random_array


# --- functional ----------------------------------------------------------------------------------

X, IDS = real(3, 4), integers(5, 2, 3)
LOGITS, TARGETS = real(6, 5), exactly([0, 4, -100, 4, 1, 2])
UNIT = Given((3, 4), 0.0, 1.0)
FUNCTIONAL = {
    "relu": lambda F, x: F.relu(x),
    "leaky_relu": lambda F, x: (F.leaky_relu(x), F.leaky_relu(x, 0.2)),
    "gelu": lambda F, x: (F.gelu(x), F.gelu(x, approximate="tanh")),
    "silu": lambda F, x: F.silu(x),
    "sigmoid": lambda F, x: F.sigmoid(x),
    "tanh": lambda F, x: F.tanh(x),
    "logsigmoid": lambda F, x: (F.logsigmoid(x), F.logsigmoid(x * 50)),
    "softplus": lambda F, x: (F.softplus(x), F.softplus(x, 2.0, 1.0), F.softplus(x * 50)),
    "softmax": lambda F, x: (F.softmax(x, dim=0), F.softmax(x, -1)),
    "log_softmax": lambda F, x: F.log_softmax(x, dim=1),
    "normalize": lambda F, x: (F.normalize(x), F.normalize(x, p=1.0, dim=0)),
    "cosine_similarity": lambda F, x: F.cosine_similarity(x, x.flip(0), dim=1),
    "dropout in evaluation": lambda F, x: (F.dropout(x, 0.5, False), F.dropout(x, 0.0)),
    "layer_norm": lambda F, x: (F.layer_norm(x, (4,)), F.layer_norm(x, (3, 4), eps=0.1)),
    "elu": lambda F, x: (F.elu(x), F.elu(x, 0.5)),
    "mish": lambda F, x: F.mish(x),
    "hardtanh": lambda F, x: (F.hardtanh(x), F.hardtanh(x, -0.3, 0.7)),
    "glu": lambda F, x: F.glu(x),
    "rms_norm": lambda F, x: (F.rms_norm(x, (4,)), F.rms_norm(x, (3, 4), eps=0.1)),
    "group_norm": lambda F, x: (F.group_norm(x, 2), F.group_norm(x, 1, x[0], x[1], 0.1)),
    "batch_norm": lambda F, x: F.batch_norm(x, x[0].detach(), x[1].detach() ** 2, eps=0.1),
    "pad": lambda F, x: (F.pad(x, (1, 2)), F.pad(x, (0, -1, 2, 0), value=3.0)),
    "mse_loss": lambda F, x: [F.mse_loss(x, x.flip(0), reduction=r) for r in REDUCTIONS],
    "l1_loss": lambda F, x: [F.l1_loss(x, x.flip(0) + 9, reduction=r) for r in REDUCTIONS],
    "smooth_l1_loss": lambda F, x: [
        F.smooth_l1_loss(x, x.flip(0) + 0.7, reduction=r, beta=b)
        for r in REDUCTIONS
        for b in (0.0, 0.5, 1.0)
    ],
    "huber_loss": lambda F, x: [
        F.huber_loss(x, x.flip(0) + 0.7, reduction=r, delta=d)
        for r in REDUCTIONS
        for d in (0.5, 2.0)
    ],
}
REDUCTIONS = ("mean", "sum", "none")


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional(name):
    same(lambda L, x: FUNCTIONAL[name](L.nn.functional, x), smooth(3, 4))


KL_MEAN = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")


@KL_MEAN
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_other_losses(reduction):
    def binary(L, x, t, w):
        F, t, w = L.nn.functional, t.detach(), w.detach()
        return (
            F.binary_cross_entropy_with_logits(x, t, reduction=reduction),
            F.binary_cross_entropy_with_logits(x, t, weight=w, reduction=reduction),
            F.binary_cross_entropy_with_logits(x * 30, t, pos_weight=w, reduction=reduction),
        )

    same(binary, X, UNIT, Given((4,), 0.5, 2.0))

    def of_probabilities(L, p, t, w):
        F, t, w = L.nn.functional, t.detach(), w.detach()
        return (
            F.binary_cross_entropy(p, t, reduction=reduction),
            F.binary_cross_entropy(p, t, w, reduction=reduction),
        )

    same(of_probabilities, Given((3, 4), 0.1, 0.9), UNIT, Given((4,), 0.5, 2.0))

    def divergence(L, x, t):
        F, t = L.nn.functional, t.detach()
        found = [F.kl_div(x, t, reduction=r) for r in (reduction, "batchmean")]
        return [*found, F.kl_div(x, L.log(t + 1), reduction=reduction, log_target=True)]

    same(divergence, X, UNIT)
    same(divergence, X, exactly(np.eye(3, 4)))

    def likelihood(L, x, t, w):
        F = L.nn.functional
        log_p = F.log_softmax(x, -1)
        return F.nll_loss(log_p, t, reduction=reduction), F.nll_loss(
            log_p, t, w.detach(), reduction=reduction
        )

    same(likelihood, LOGITS, TARGETS, Given((5,), 0.5, 2.0))


def test_one_hot():
    F = {tt: tt.nn.functional, torch: torch.nn.functional}
    same(lambda L, i: (F[L].one_hot(i), F[L].one_hot(i, 7)), IDS, dtypes=(np.float64,))


@settings(max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(2, 6),
    st.sampled_from([(), (3,), (2, 3)]),
    st.sampled_from(REDUCTIONS),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),
    st.sampled_from([-100, 1]),
    strategies.seeds(),
)
def test_cross_entropy(N, V, more, reduction, smoothing, weighted, ignore_index, seed):
    """Class numbers, with every option, and classes on axis 1 of more than two."""
    logits = random(seed, (N, V, *more), low=-4, high=4)
    target = np.random.default_rng(seed).integers(0, V, (N, *more))
    target[np.random.default_rng(seed + 1).random(target.shape) < 0.3] = ignore_index
    if not (target != ignore_index).any():
        target.flat[0] = 0  # all ignored is nan: a test of its own
    weight = random(seed, (V,), low=0.5, high=2.0) if weighted else None

    def call(L, x, t):
        w = None if weight is None else (tt.tensor(weight) if L is tt else torch.tensor(weight))
        return L.nn.functional.cross_entropy(
            x,
            t,
            weight=None if w is None else w.to(x.dtype),
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=smoothing,
        )

    same(call, logits, target, dtypes=(np.float64,))
    same(call, logits.astype(np.float32), target, dtypes=(np.float32,))


def test_cross_entropy_of_nothing_and_of_one_row():
    def call(L, x, t):
        return L.nn.functional.cross_entropy(x, t)

    same(call, real(2, 3), exactly([-100, -100]))
    same(call, real(5), exactly(2))
    same(call, exactly([[1e4, 0.0], [-1e4, 1e4]]), exactly([1, 1]))


@settings(max_examples=20)
@given(st.sampled_from(REDUCTIONS), st.sampled_from([0.0, 0.2]), st.booleans(), strategies.seeds())
def test_cross_entropy_of_probabilities(reduction, smoothing, deep, seed):
    shape = (3, 4, 2) if deep else (3, 4)
    logits, target = random(seed, shape), random(seed + 1, shape, low=0.0, high=1.0)
    weight = random(seed + 2, (4,), low=0.5, high=2.0)

    def call(L, x, t, w):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        F = L.nn.functional
        return F.cross_entropy(x, t, **options), F.cross_entropy(x, t, w.detach(), **options)

    same(call, logits, target, weight, dtypes=(np.float64,))


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([(), (2,), (2, 3)]),
    st.sampled_from(["none", "causal", "boolean", "additive", "row"]),
    st.sampled_from([None, 0.25]),
    strategies.seeds(),
)
def test_attention(sizes, batch, masking, scale, seed):
    """Different query and key lengths, head sizes, masks and scales."""
    L_, S, D, E = sizes
    if S == 1:
        return  # the one weight is 1: gradients of q and k are nothing but rounding
    q, k, v = (random(seed + i, (*batch, *s)) for i, s in enumerate([(L_, D), (S, D), (S, E)]))
    rng = np.random.default_rng(seed)
    masks = {
        "boolean": rng.random((L_, S)) < 0.6,
        "additive": rng.normal(size=(L_, S)),
        "row": rng.random((1, S)) < 0.6,
    }
    arguments = [q, k, v, *([masks[masking]] if masking in masks else [])]

    def call(L, q, k, v, mask=None):
        return L.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=masking == "causal", scale=scale
        )

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        same(call, *arguments, dtypes=(np.float64,))


def test_attention_with_shared_heads():
    def call(L, q, k, v):
        F = L.nn.functional
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    same(call, real(2, 6, 3, 4), real(2, 2, 3, 4), real(2, 2, 3, 4))


@settings(max_examples=40)
@given(strategies.shapes(min_dims=1, max_dims=4, min_side=1), st.data())
def test_layer_norm(shape, data):
    ndim = data.draw(st.integers(1, len(shape)))
    normalized = shape[len(shape) - ndim :]
    if math.prod(normalized) == 1:
        return  # 0 / √eps: nothing but rounding to compare
    x = random(data.draw(strategies.seeds()), shape, distinct=True)
    w, b = random(1, normalized), random(2, normalized)
    keep_weight, keep_bias = data.draw(st.booleans()), data.draw(st.booleans())

    def call(L, x, w, b):
        return L.nn.functional.layer_norm(
            x, normalized, w if keep_weight else None, b if keep_bias else None, 1e-3
        )

    same(call, x, w, b, dtypes=(np.float64,))


@pytest.mark.parametrize("used", [slice(None), slice(1), slice(1, 2)], ids=["both", "sum", "norm"])
@pytest.mark.parametrize("affine", [True, False])
def test_add_layer_norm_is_pytorch_s_sum_and_norm(used, affine):
    def call(L, x, residual, w, b):
        w, b = (w, b) if affine else (None, None)
        if L is tt:
            return L.nn.functional.add_layer_norm(x, residual, w, b)[used]
        total = x + residual
        return (total, L.nn.functional.layer_norm(total, (6,), w, b))[used]

    same(call, distinct(2, 3, 6), distinct(2, 3, 6), real(6), real(6))


@settings(max_examples=40)
@given(
    st.sampled_from([(), (3,), (2, 3), (2, 0), (2, 1, 3)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
    strategies.seeds(),
)
def test_linear(batch, inputs, outputs, biased, seed):
    x, w, b = (
        random(seed + i, s) for i, s in enumerate([(*batch, inputs), (outputs, inputs), (outputs,)])
    )

    def call(L, x, w, b):
        return L.nn.functional.linear(x, w, b if biased else None)

    same(call, x, w, b, dtypes=(np.float64,))


@pytest.mark.parametrize("padding_idx", [None, 1, -2])
def test_embedding(padding_idx):
    def call(L, i, w):
        return L.nn.functional.embedding(i, w, padding_idx=padding_idx)

    same(call, IDS, real(5, 3))
    same(call, exactly(2), real(5, 3))
    same(call, exactly(np.zeros((0, 2), np.int64)), real(5, 3))


# --- modules -------------------------------------------------------------------------------------

IMAGE = real(2, 3, 4)
LAYERS = {
    "Linear": (lambda nn: nn.Linear(4, 5), IMAGE),
    "Linear without bias": (lambda nn: nn.Linear(4, 5, bias=False), X),
    "Embedding": (lambda nn: nn.Embedding(5, 3), IDS),
    "Embedding with padding": (lambda nn: nn.Embedding(5, 3, padding_idx=1), IDS),
    "LayerNorm": (lambda nn: nn.LayerNorm(4), distinct(3, 4)),
    "LayerNorm of two axes": (lambda nn: nn.LayerNorm((3, 4), eps=1e-3), IMAGE),
    "LayerNorm without bias": (lambda nn: nn.LayerNorm(4, bias=False), IMAGE),
    "LayerNorm without affine": (lambda nn: nn.LayerNorm(4, elementwise_affine=False), IMAGE),
    "RMSNorm": (lambda nn: nn.RMSNorm(4), distinct(3, 4)),
    "RMSNorm of two axes": (lambda nn: nn.RMSNorm((3, 4), eps=1e-3), IMAGE),
    "RMSNorm without affine": (lambda nn: nn.RMSNorm(4, elementwise_affine=False), IMAGE),
    "GroupNorm": (lambda nn: nn.GroupNorm(2, 4), distinct(3, 4, 5)),
    "GroupNorm without affine": (lambda nn: nn.GroupNorm(4, 4, affine=False), distinct(3, 4, 5)),
    "BatchNorm1d": (lambda nn: nn.BatchNorm1d(4), distinct(3, 4)),
    "BatchNorm1d of sequences": (lambda nn: nn.BatchNorm1d(4, eps=0.1), distinct(3, 4, 5)),
    "BatchNorm1d in evaluation": (lambda nn: nn.BatchNorm1d(4).eval(), distinct(3, 4)),
    "BatchNorm1d without affine": (lambda nn: nn.BatchNorm1d(4, affine=False), distinct(3, 4)),
    "Dropout": (lambda nn: nn.Dropout(0.3).eval(), X),
    "Dropout of nothing": (lambda nn: nn.Dropout(0.0), X),
    "Identity": (lambda nn: nn.Identity(), X),
    "Flatten": (lambda nn: nn.Flatten(), IMAGE),
    "Flatten from the front": (lambda nn: nn.Flatten(0, 1), IMAGE),
    "ReLU": (lambda nn: nn.ReLU(), smooth(3, 4)),
    "LeakyReLU": (lambda nn: nn.LeakyReLU(0.1), smooth(3, 4)),
    "ELU": (lambda nn: nn.ELU(0.5), smooth(3, 4)),
    "Mish": (lambda nn: nn.Mish(), X),
    "Hardtanh": (lambda nn: nn.Hardtanh(-0.5, 0.7), X),
    "GLU": (lambda nn: nn.GLU(), X),
    "GELU": (lambda nn: nn.GELU(), X),
    "GELU tanh": (lambda nn: nn.GELU(approximate="tanh"), X),
    "SiLU": (lambda nn: nn.SiLU(), X),
    "Sigmoid": (lambda nn: nn.Sigmoid(), X),
    "Tanh": (lambda nn: nn.Tanh(), X),
    "Softplus": (lambda nn: nn.Softplus(), X),
    "Softmax": (lambda nn: nn.Softmax(dim=0), X),
    "LogSoftmax": (lambda nn: nn.LogSoftmax(dim=-1), X),
    "Sequential": (
        lambda nn: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2)),
        IMAGE,
    ),
}
LOSSES = {
    "MSELoss": (lambda nn: nn.MSELoss(), (X, real(3, 4))),
    "SmoothL1Loss": (lambda nn: nn.SmoothL1Loss(beta=0.5), (X, real(3, 4))),
    "HuberLoss": (lambda nn: nn.HuberLoss(delta=0.5), (X, real(3, 4))),
    "KLDivLoss": (lambda nn: nn.KLDivLoss(reduction="batchmean"), (X, Given((3, 4), 0.1, 0.9))),
    "KLDivLoss of logarithms": (lambda nn: nn.KLDivLoss(log_target=True), (X, real(3, 4))),
    "BCELoss": (lambda nn: nn.BCELoss(), (Given((3, 4), 0.1, 0.9), exactly(np.eye(3, 4)))),
    "L1Loss": (lambda nn: nn.L1Loss(reduction="sum"), (X, Given((3, 4), 5.0, 6.0))),
    "CrossEntropyLoss": (lambda nn: nn.CrossEntropyLoss(label_smoothing=0.1), (LOGITS, TARGETS)),
    "NLLLoss": (lambda nn: nn.NLLLoss(reduction="sum"), (LOGITS, TARGETS)),
    "BCEWithLogitsLoss": (lambda nn: nn.BCEWithLogitsLoss(), (X, UNIT)),
}


def copied(make):
    """A layer of each library, with the same numbers in it, in float64."""
    mine, theirs = make(tt.nn).double(), make(torch.nn).double()
    ours = mine.state_dict()
    shapes = {name: tuple(x.shape) for name, x in theirs.state_dict().items()}
    assert {name: tuple(x.shape) for name, x in ours.items()} == shapes
    assert list(ours) == list(shapes)
    theirs.load_state_dict({name: to_torch(x.detach().numpy()) for name, x in ours.items()})
    assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in mine.named_modules()] == [n for n, _ in theirs.named_modules()]
    return {tt: mine, torch: theirs}


@pytest.mark.parametrize(("make", "x"), LAYERS.values(), ids=list(LAYERS))
def test_layers(make, x):
    tt.manual_seed(0)
    layers = copied(make)
    same(lambda L, x: layers[L](x), x, dtypes=(np.float64,))
    for (name, mine), (_, theirs) in zip(
        layers[tt].named_parameters(), layers[torch].named_parameters(), strict=True
    ):
        np.testing.assert_allclose(
            numbers(mine.grad), numbers(theirs.grad), rtol=1e-10, atol=1e-12, err_msg=name
        )
        assert mine.requires_grad == theirs.requires_grad


def test_running_statistics():
    """Three batches in training move them as PyTorch's; None averages over all batches."""
    for momentum in (0.1, None):
        layers = copied(lambda nn, m=momentum: nn.BatchNorm1d(4, momentum=m))
        for seed in range(3):
            x = random(seed, (5, 4))
            layers[tt](tt.tensor(x)), layers[torch](torch.tensor(x))
        for name, theirs in layers[torch].state_dict().items():
            np.testing.assert_allclose(numbers(layers[tt].state_dict()[name]), numbers(theirs))


@settings(max_examples=40, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "boolean", "additive", "heads", "causal"]),
    st.booleans(),
    st.booleans(),
    strategies.seeds(),
)
def test_multihead_attention(first, bias, crossing, masking, padding, average, seed):
    tt.manual_seed(seed)
    N, L_, S, C, H = 2, 3, 5 if crossing else 3, 8, 2
    layers = copied(lambda nn: nn.MultiheadAttention(C, H, bias=bias, batch_first=first))
    rng = np.random.default_rng(seed)
    allowed = np.ones((N * H, L_, S), bool)
    allowed[:, :, 1:] = rng.random((N * H, L_, S - 1)) < 0.7
    masks = {
        "boolean": ~allowed[0],
        "heads": ~allowed,
        "additive": rng.normal(size=(L_, S)),
        "causal": np.triu(np.ones((L_, S), bool), 1),
    }
    hidden = np.zeros((N, S), bool)
    hidden[1, -1] = padding

    def shaped(x):
        return x if first else np.swapaxes(x, 0, 1)

    def call(L, q, kv):
        library = tt.tensor if L is tt else torch.tensor
        mask = library(masks[masking]) if masking in masks else None
        blind = library(hidden if masking != "additive" else np.where(hidden, -np.inf, 0.0))
        options = {"attn_mask": mask, "key_padding_mask": blind if padding else None}
        if masking == "causal":
            options["is_causal"] = True
        y, weights = layers[L](q, kv, kv, average_attn_weights=average, **options)
        alone, nothing = layers[L](q, kv, kv, need_weights=False, **options)
        assert nothing is None
        return y, weights, alone

    q, kv = random(seed, (N, L_, C)), random(seed + 1, (N, S, C))
    same(call, shaped(q), shaped(kv), dtypes=(np.float64,))


def test_multihead_attention_of_one_sequence():
    layers = copied(lambda nn: nn.MultiheadAttention(6, 3))
    same(lambda L, x: layers[L](x, x, x), real(4, 6), dtypes=(np.float64,))


@KL_MEAN
@pytest.mark.parametrize(("make", "arguments"), LOSSES.values(), ids=list(LOSSES))
def test_loss_modules(make, arguments):
    same(lambda L, x, t: make(L.nn)(x, t), *arguments, dtypes=(np.float64,))


def block_of(L):
    """A transformer block in the style of GPT, with names, buffers and lists of all kinds."""
    nn = L.nn

    class Attention(nn.Module):
        def __init__(self, C, H):
            super().__init__()
            self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C, bias=False)
            self.H = H
            self.register_buffer("tril", L.tril(L.ones(8, 8)))
            self.register_buffer("cache", L.zeros(3), persistent=False)

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = self.c_attn(x).split(C, dim=2)
            q, k, v = (t.view(B, T, self.H, C // self.H).transpose(1, 2) for t in (q, k, v))
            w = q @ k.transpose(-2, -1) * k.size(-1) ** -0.5
            w = w.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
            y = nn.functional.softmax(w, dim=-1) @ v
            return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))

    class Block(nn.Module):
        def __init__(self, C, H):
            super().__init__()
            self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(C), Attention(C, H), nn.LayerNorm(C)
            self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))

    class Model(nn.Module):
        def __init__(self, V=7, C=8, H=2):
            super().__init__()
            parts = {"wte": nn.Embedding(V, C), "wpe": nn.Embedding(8, C)}
            self.transformer = nn.ModuleDict(parts)
            self.h = nn.ModuleList([Block(C, H) for _ in range(2)])
            self.scale = nn.Parameter(L.ones(1))
            self.head = nn.Linear(C, V, bias=False)
            self.head.weight = self.transformer["wte"].weight  # tied

        def forward(self, ids):
            x = self.transformer["wte"](ids) + self.transformer["wpe"](L.arange(ids.shape[1]))
            for block in self.h:
                x = block(x)
            return self.head(x * self.scale)

    return Model()


def test_a_whole_model():
    tt.manual_seed(0)
    models = copied(lambda nn: block_of(tt if nn is tt.nn else torch))
    ids = np.random.default_rng(0).integers(0, 7, (3, 6))

    def loss(L, ids):
        logits = models[L](ids)
        return L.nn.functional.cross_entropy(logits.view(-1, 7), ids.flip(1).reshape(-1))

    same(loss, ids, dtypes=(np.float64,))
    for L in (tt, torch):
        loss(L, tt.tensor(ids) if L is tt else torch.tensor(ids)).backward()
    theirs = dict(models[torch].named_parameters())
    for name, mine in models[tt].named_parameters():
        np.testing.assert_allclose(
            numbers(mine.grad), numbers(theirs[name].grad), rtol=1e-8, atol=1e-12, err_msg=name
        )
    count = {L: sum(p.numel() for p in models[L].parameters()) for L in (tt, torch)}
    assert count[tt] == count[torch]
    # And back: PyTorch's weights load here, strictly.
    state = {n: tt.tensor(numbers(x)) for n, x in models[torch].state_dict().items()}
    models[tt].load_state_dict(state)


def test_state_dicts_after_a_change_of_dtype():
    for to in ("float", "double", "bfloat16"):
        both = [getattr(block_of(L), to)().state_dict() for L in (tt, torch)]
        kinds = [{n: name_of(x.dtype) for n, x in state.items()} for state in both]
        assert kinds[0] == kinds[1]


# --- initial values ------------------------------------------------------------------------------

INITIAL = {
    "constant_": {"val": 0.5},
    "zeros_": {},
    "ones_": {},
    "eye_": {},
    "uniform_": {"a": -1.0, "b": 3.0},
    "normal_": {"mean": 1.0, "std": 0.02},
    "trunc_normal_": {"mean": 0.5, "std": 1.0, "a": -0.5, "b": 1.0},
    "xavier_uniform_": {"gain": 2.0},
    "xavier_normal_": {},
    "kaiming_uniform_": {"a": math.sqrt(5)},
    "kaiming_normal_": {"mode": "fan_out", "nonlinearity": "relu"},
    "orthogonal_": {"gain": 1.5},
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_values_have_the_same_distribution(name):
    """By the test of Kolmogorov and Smirnov, at one in a million; and mean, spread and ends."""
    shape, n = (100, 400), 40_000
    tt.manual_seed(0)
    torch.manual_seed(0)
    mine, theirs = (
        numbers(getattr(L.nn.init, name)(L.zeros(*shape), **INITIAL[name])).astype(float).ravel()
        for L in (tt, torch)
    )
    spread = theirs.std()
    assert abs(mine.mean() - theirs.mean()) <= 6 * spread * math.sqrt(2 / n)
    assert mine.std() == pytest.approx(spread, rel=6 / math.sqrt(n), abs=1e-12)
    everything = np.sort(np.concatenate([mine, theirs]))
    below = [np.searchsorted(np.sort(x), everything, side="right") / n for x in (mine, theirs)]
    # P(D > c √(2/n)) ≈ 2 e^(-2c²)
    assert np.abs(below[0] - below[1]).max() <= math.sqrt(math.log(2e6) / 2) * math.sqrt(2 / n)
    if "uniform" in name or "trunc" in name:  # bounded: the ends are reached and not passed
        assert mine.min() == pytest.approx(theirs.min(), abs=0.01 * spread)
        assert mine.max() == pytest.approx(theirs.max(), abs=0.01 * spread)


@pytest.mark.parametrize(
    "make",
    [
        lambda nn: nn.Linear(300, 200),
        lambda nn: nn.Embedding(300, 200),
        lambda nn: nn.Embedding(300, 200, padding_idx=3),
        lambda nn: nn.LayerNorm(500),
    ],
    ids=["Linear", "Embedding", "Embedding with padding", "LayerNorm"],
)
def test_layers_start_with_the_same_distribution(make):
    tt.manual_seed(1)
    torch.manual_seed(1)
    theirs = make(torch.nn).state_dict()
    for name, x in make(tt.nn).state_dict().items():
        one, two = numbers(x), numbers(theirs[name])
        spread, n = two.std(), two.size
        assert abs(one.mean() - two.mean()) <= 6 * spread * math.sqrt(2 / n)
        assert one.std() == pytest.approx(spread, rel=6 / math.sqrt(n), abs=1e-12)
        if name == "weight" and n > 1000:
            assert np.abs(one).max() == pytest.approx(np.abs(two).max(), rel=0.15)
        if one.ndim == 2:
            assert (one == 0).all(axis=1).tolist() == (two == 0).all(axis=1).tolist()


def test_gains():
    for name in ("linear", "relu", "tanh", "sigmoid", "leaky_relu"):
        assert tt.nn.init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_gumbel_softmax_has_the_same_distribution(tau):
    """By the test of Kolmogorov and Smirnov, at one in a million, for each class."""
    n, logits = 20_000, np.log([[0.5, 0.3, 0.2]])
    drawn = []
    for L in (tt, torch):
        L.manual_seed(0)
        wide = L.tensor(logits).expand(n, 3)
        drawn.append(numbers(L.nn.functional.gumbel_softmax(wide, tau)))
    for mine, theirs in zip(*(np.sort(x, axis=0).T for x in drawn), strict=True):
        everything = np.sort(np.concatenate([mine, theirs]))
        below = [np.searchsorted(x, everything, side="right") / n for x in (mine, theirs)]
        assert np.abs(below[0] - below[1]).max() <= math.sqrt(math.log(2e6) / 2) * math.sqrt(2 / n)


def test_dropout_has_the_same_statistics():
    tt.manual_seed(0)
    x = tt.ones(200, 200, requires_grad=True)
    y = tt.nn.functional.dropout(x, 0.3)
    zero, kept = np.unique(numbers(y))
    assert zero == 0
    assert kept == pytest.approx(1 / 0.7)
    assert (numbers(y) == 0).mean() == pytest.approx(0.3, abs=0.01)
    y.sum().backward()
    assert np.array_equal(numbers(x.grad), numbers(y))
