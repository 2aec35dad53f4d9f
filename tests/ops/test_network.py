"""Softmax, cross-entropy, layer norm, embedding, dropout and attention.

Each operation is differentiated once and twice against finite differences, in every variant that
its options give; its values are compared with a few lines of NumPy, or with numbers worked out by
hand.
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import ops
from tinytensor.ops import attention, network
from tinytensor.random import Draw
from tinytensor.testing import check_implementations

from .derivatives import check_derivatives, operations_of, real, recorded

INF, NAN = math.inf, math.nan
DRAW = Draw(3, 5)


def fast_or_not(fast):
    """Inside the `with` block: fast paths where there are some, or references only."""
    return contextlib.nullcontext() if fast else tt.reference_ops()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- derivatives ----------------------------------------------------------------------------------

IDS = tt.tensor([0, 4, 2, 4, 1, 0])
SOME_IGNORED = tt.tensor([0, 4, -100, 4, 1, -100])
CLASS_WEIGHT = tt.tensor([0.5, 1.0, 2.0, 0.25, 3.0], dtype=tt.float64)
MASK = tt.tensor([[True, False, True, True], [False] * 4, [True, True, False, False]])

CASES = {
    "softmax": (ops.softmax, (real(3, 4),)),
    "softmax along axis 0": (lambda x: ops.softmax(x, 0), (real(3, 4),)),
    "softmax of large numbers": (lambda x: ops.softmax(x * 1e4), (real(2, 3),)),
    "log_softmax": (ops.log_softmax, (real(3, 4),)),
    "log_softmax along axis 1": (lambda x: ops.log_softmax(x, axis=1), (real(2, 3, 2),)),
    **{
        f"cross_entropy {reduction} {label_smoothing} {name}": (
            lambda x, t=target, w=weight, r=reduction, s=label_smoothing: ops.cross_entropy(
                x, t, w, reduction=r, label_smoothing=s
            ),
            (real(6, 5),),
        )
        for reduction in ("mean", "sum", "none")
        for label_smoothing in (0.0, 0.2)
        for name, target, weight in [
            ("plain", IDS, None),
            ("ignored, weighted", SOME_IGNORED, CLASS_WEIGHT),
        ]
    },
    "cross_entropy of (B, T, V)": (
        lambda x: ops.cross_entropy(x, IDS.reshape(2, 3), None, reduction="none"),
        (real(2, 3, 5),),
    ),
    "cross_entropy of one row": (lambda x: ops.cross_entropy(x, IDS[2], None), (real(5),)),
    **{
        f"linear_cross_entropy {reduction} block {block}": (
            lambda x, w, b, r=reduction, n=block: ops.linear_cross_entropy(
                x, w, b, SOME_IGNORED, CLASS_WEIGHT, reduction=r, label_smoothing=0.1, block=n
            ),
            (real(6, 3), real(5, 3), real(5)),
        )
        for reduction, block in [("mean", 4), ("sum", None), ("none", 1)]
    },
    "linear_cross_entropy without bias": (
        lambda x, w: ops.linear_cross_entropy(x, w, None, IDS.reshape(2, 3), None, block=4),
        (real(2, 3, 3), real(5, 3)),
    ),
    "layer_norm": (ops.layer_norm, (real(3, 4), real(4), real(4, seed=1))),
    "layer_norm without bias": (lambda x, w: ops.layer_norm(x, w, None), (real(2, 3, 4), real(4))),
    "layer_norm bare": (lambda x: ops.layer_norm(x, None, None, eps=0.1), (real(3, 4),)),
    "layer_norm over two axes": (
        lambda x, w, b: ops.layer_norm(x, w, b, 2),
        (real(2, 3, 4), real(3, 4), real(3, 4, seed=1)),
    ),
    "add_layer_norm": (
        lambda *inputs: ops.stack(ops.add_layer_norm(*inputs)),
        (real(3, 4), real(3, 4, seed=2), real(4), real(4, seed=1)),
    ),
    "add_layer_norm, its norm alone, of a row to many": (
        lambda x, r: ops.add_layer_norm(x, r, None, None, eps=0.1)[1],
        (real(4), real(2, 3, 4)),
    ),
    "embedding": (lambda w: ops.embedding(w, IDS.reshape(2, 3)), (real(5, 3),)),
    "embedding of one id": (lambda w: ops.embedding(w, IDS[1]), (real(5, 3),)),
    "dropout": (lambda x: ops.dropout(x, 0.4, DRAW), (real(5, 7),)),
    "dropout of everything": (lambda x: ops.dropout(x, 1.0, DRAW) + x, (real(2, 3),)),
    **{
        f"attention {name}": (
            lambda q, k, v, f=options: ops.scaled_dot_product_attention(q, k, v, None, **f),
            (real(2, 3, L, 2), real(2, 3, S, 2, seed=1), real(2, 3, S, 3, seed=2)),
        )
        for name, L, S, options in [
            ("plain", 3, 3, {}),
            ("causal", 4, 4, {"is_causal": True}),
            ("causal, fewer keys", 4, 2, {"is_causal": True}),
            ("causal, more keys", 2, 4, {"is_causal": True}),
            ("scaled", 2, 3, {"scale": 0.3}),
            ("with dropout", 3, 4, {"dropout_p": 0.3, "draw": DRAW}),
            ("causal with dropout", 3, 3, {"is_causal": True, "dropout_p": 0.3, "draw": DRAW}),
        ]
    },
    "attention with an additive mask": (
        ops.scaled_dot_product_attention,
        (real(2, 3, 2), real(2, 4, 2, seed=1), real(2, 4, 3, seed=2), real(3, 4)),
    ),
    "attention with a boolean mask and a row of nothing": (
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, MASK),
        (real(2, 3, 2), real(2, 4, 2, seed=1), real(2, 4, 3, seed=2)),
    ),
    "attention, broadcast over heads": (
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, MASK, is_causal=True),
        (real(2, 2, 3, 2), real(1, 4, 2, seed=1), real(4, 2, seed=2)),
    ),
    "attention without a batch": (
        lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, None),
        (real(3, 2), real(4, 2, seed=1), real(4, 1, seed=2)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    function, inputs = CASES[case]
    check_derivatives(function, inputs)


def test_the_table_covers_every_operation():
    covered = set()
    for function, inputs in CASES.values():
        covered |= recorded(function(*inputs))
    assert operations_of(network) | operations_of(attention) <= covered


# 1e4 times a rounded number is another number.
NARROW = [case for case in CASES if "large numbers" not in case]


@pytest.mark.parametrize("case", NARROW)
@pytest.mark.parametrize("dtype", [tt.float32, tt.bfloat16], ids=str)
def test_narrower_dtypes_agree_with_float64_and_with_fast_paths(case, dtype):
    function, inputs = CASES[case]
    narrow = [x.detach().to(dtype) for x in inputs]
    y = function(*narrow)
    exact = function(*(x.double() for x in narrow))
    assert y.dtype == (tt.float32 if case.startswith("linear_cross_entropy") else dtype)
    unit = {"float32": 2.0**-23, "bfloat16": 2.0**-8}[str(dtype)]
    size = np.abs(exact.numpy()).max()
    np.testing.assert_allclose(y.double().numpy(), exact.numpy(), rtol=unit, atol=8 * unit * size)
    if dtype == tt.float32:
        check_implementations(function, [x.requires_grad_() for x in narrow])


# --- values ---------------------------------------------------------------------------------------


def test_softmax_by_hand():
    y = tt.softmax(tt.tensor([[0.0, math.log(3.0)], [1000.0, 1000.0], [-INF, 5.0]]), dim=-1)
    np.testing.assert_allclose(y.numpy(), [[0.25, 0.75], [0.5, 0.5], [0.0, 1.0]], rtol=1e-6)
    log_y = tt.log_softmax(tt.tensor([0.0, -1000.0]), dim=0)
    np.testing.assert_array_equal(log_y.numpy(), [0.0, -1000.0])


def test_the_articles_masked_softmax():
    """Row i of the average over the past: 1/(i+1) for each of the first i+1, 0 for the rest."""
    T = 4
    weights = tt.zeros(T, T).masked_fill(tt.tril(tt.ones(T, T)) == 0, -INF)
    expected = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    np.testing.assert_allclose(ops.softmax(weights).numpy(), expected, rtol=1e-6)


def test_cross_entropy_by_hand():
    logits = tt.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(7.0), 0.0, 0.0, 0.0]])
    target = tt.tensor([2, 0])
    losses = [math.log(4), math.log(10 / 7)]
    for reduction, expected in [
        ("none", losses),
        ("sum", sum(losses)),
        ("mean", sum(losses) / 2),
    ]:
        y = ops.cross_entropy(logits, target, None, reduction=reduction)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)
    # weights 1 and 3: the mean is (1·l₀ + 3·l₁) / 4
    weight = tt.tensor([3.0, 9.0, 1.0, 9.0])
    y = ops.cross_entropy(logits, target, weight)
    assert y.item() == pytest.approx((losses[0] + 3 * losses[1]) / 4)
    # a tenth of the target is spread evenly over the four classes
    y = ops.cross_entropy(logits[1:], target[1:], None, label_smoothing=0.1)
    spread = (losses[1] + 3 * math.log(10)) / 4
    assert y.item() == pytest.approx(0.9 * losses[1] + 0.1 * spread)


def test_an_untrained_model_of_65_characters_starts_at_ln_65():
    y = ops.cross_entropy(tt.zeros(10, 65), tt.arange(10), None)
    assert y.item() == pytest.approx(4.174387, abs=1e-6)


@pytest.mark.parametrize("fast", [True, False])
def test_ignored_rows_count_for_nothing_whatever_they_hold(fast):
    logits = np.random.default_rng(0).normal(size=(4, 5))
    logits[1] = [INF, -INF, 0, 0, 0]
    x = tt.tensor(logits, requires_grad=True)
    target = tt.tensor([1, -1, 0, 4])

    with np.errstate(invalid="ignore"), fast_or_not(fast):
        y = ops.cross_entropy(x, target, None, ignore_index=-1)
    kept = [0, 2, 3]
    expected = -np.log(softmax(logits[kept]))[[0, 1, 2], [1, 0, 4]].mean()
    assert y.item() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_batch_of_nothing_but_ignored_rows(reduction):
    """As in PyTorch: the mean of no losses is nan, and its gradient zero."""
    x = real(3, 4)
    y = ops.cross_entropy(x, tt.tensor([-100] * 3), None, reduction=reduction)
    np.testing.assert_array_equal(
        y.detach().numpy(), {"mean": NAN, "sum": 0, "none": [0, 0, 0]}[reduction]
    )
    y.backward(tt.ones_like(y.detach()))
    np.testing.assert_array_equal(x.grad.numpy(), np.zeros((3, 4)))
    x.grad = None


def test_layer_norm_by_hand():
    x = tt.tensor([[1.0, 3.0], [5.0, 5.0]])  # mean 2, deviation 1; a constant row
    y = ops.layer_norm(x, tt.tensor([2.0, 3.0]), tt.tensor([0.5, 0.0]), eps=0.0 + 1e-12)
    np.testing.assert_allclose(y.numpy(), [[-1.5, 3.0], [0.5, 0.0]], rtol=1e-6)


def test_sums_of_bfloat16_are_made_in_float32():
    """A sum of 4096 ones, added up in bfloat16, would stop at 256."""
    x = tt.zeros(1, 4096, dtype=tt.bfloat16)
    assert ops.softmax(x)[0, 0].item() == 2.0**-12
    y = ops.layer_norm((tt.arange(4096) % 2).bfloat16(), None, None)
    assert y[:2].tolist() == [-1.0, 1.0]
    assert ops.cross_entropy(x, tt.tensor([0]), None).item() == pytest.approx(
        math.log(4096), rel=2**-8
    )


# --- attention ------------------------------------------------------------------------------------


def attention_by_hand(q, k, v, allowed):
    scores = np.where(allowed, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -np.inf)
    return softmax(scores) @ v


@pytest.mark.parametrize(("L", "S"), [(5, 5), (3, 5), (5, 3), (1, 4)])
def test_attention_by_hand(L, S):
    q, k, v = (real(2, 3, n, 4, seed=i).detach() for i, n in enumerate([L, S, S]))
    causal = np.tril(np.ones((L, S), bool))  # query i and keys 0, ..., i: aligned at the top left
    mask = np.random.default_rng(0).random((L, S)) < 0.7
    mask[:, 0] = True
    arrays = [x.numpy() for x in (q, k, v)]
    for given, is_causal, allowed in [
        (None, False, np.ones((L, S), bool)),
        (None, True, causal),
        (mask, False, mask),
        (mask, True, mask & causal),
        (np.where(mask, 0.0, -INF), False, mask),
    ]:
        given = None if given is None else tt.tensor(given)
        y = ops.scaled_dot_product_attention(q, k, v, given, is_causal)
        np.testing.assert_allclose(
            y.numpy(), attention_by_hand(*arrays, allowed), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(
    "mask", [MASK, tt.where(MASK, 0.0, -INF).double()], ids=["boolean", "additive"]
)
def test_a_query_that_may_see_nothing_gets_zeros_and_no_gradient(mask):
    q, k, v = real(3, 2), real(4, 2, seed=1), real(4, 2, seed=2)
    y = ops.scaled_dot_product_attention(q, k, v, mask)
    assert y[1].tolist() == [0.0, 0.0]
    (y * real(3, 2, seed=3).detach()).sum().backward()
    assert q.grad[1].tolist() == [0.0, 0.0]
    assert all(np.isfinite(x.grad.numpy()).all() for x in (q, k, v))
    for x in (q, k, v):
        x.grad = None


@pytest.mark.parametrize("fast", [True, False])
def test_causal_attention_does_not_look_ahead(fast):
    q, k, v = (real(1, 2, 6, 4, seed=i).detach() for i in range(3))
    with fast_or_not(fast):
        y = ops.scaled_dot_product_attention(q, k, v, None, True).numpy().copy()
        for t in range(6):
            for x in (q, k, v):
                other = x.clone()
                other[:, :, t] = 100.0
                given = [other if z is x else z for z in (q, k, v)]
                changed = ops.scaled_dot_product_attention(*given, None, True).numpy()
                np.testing.assert_array_equal(changed[:, :, :t], y[:, :, :t])
                if t or x is v:  # the first query has one key and no choice
                    assert not np.array_equal(changed[:, :, t], y[:, :, t])


# --- dropout --------------------------------------------------------------------------------------


def test_the_dropout_mask_is_made_again_and_not_stored():
    x = tt.ones(1000, requires_grad=True)
    y = ops.dropout(x, 0.25, DRAW)
    assert y.grad_fn.saved() == []
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())
    again = ops.dropout(x, 0.25, DRAW)
    np.testing.assert_array_equal(again.detach().numpy(), y.detach().numpy())
    other = ops.dropout(x, 0.25, Draw(3, 6))
    assert not np.array_equal(other.detach().numpy(), y.detach().numpy())


def test_attention_drops_weights_not_outputs():
    q, k = real(1, 1, 4, 2).detach(), real(1, 1, 8, 2, seed=1).detach()
    v = tt.eye(8, dtype=tt.float64).reshape(1, 1, 8, 8)  # so that y is the weights themselves
    weights = ops.scaled_dot_product_attention(q, k, v, None).numpy()
    y = ops.scaled_dot_product_attention(q, k, v, None, dropout_p=0.5, draw=DRAW).numpy()
    kept = y != 0
    assert 4 < kept.sum() < 28
    np.testing.assert_allclose(y[kept], 2 * weights[kept], rtol=1e-12)


# --- the memory of linear_cross_entropy -----------------------------------------------------------


def test_linear_cross_entropy_keeps_no_logits():
    N, C, V = 512, 8, 4096
    rng = np.random.default_rng(0)
    x = tt.tensor(rng.normal(size=(N, C)), dtype=tt.float32, requires_grad=True)
    weight = tt.tensor(rng.normal(size=(V, C)), dtype=tt.float32, requires_grad=True)
    target = tt.tensor(rng.integers(0, V, N))
    y = ops.linear_cross_entropy(x, weight, None, target, None, block=64)
    assert sum(array.size for array in y.grad_fn.saved()) < 2 * (N + V) * C
    y.backward()
    whole = ops.cross_entropy(ops.linear(x.detach(), weight.detach(), None), target, None)
    assert y.item() == pytest.approx(whole.item(), rel=1e-6)


# --- what is refused ------------------------------------------------------------------------------

X, W = tt.zeros(2, 5), tt.zeros(4, 5)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: ops.cross_entropy(tt.zeros(2, 65), tt.tensor([3, 70]), None),
            IndexError,
            "cross_entropy: target 70 is out of range: there are 65 classes",
        ),
        (
            lambda: ops.cross_entropy(X, tt.tensor([0, -1]), None),
            IndexError,
            "target -1 is out of range",
        ),
        (
            lambda: ops.cross_entropy(X, tt.tensor([0, 1, 2]), None),
            ValueError,
            r"logits \(2, 5\) need one target per row, \(2,\), but the targets are \(3,\)",
        ),
        (
            lambda: ops.cross_entropy(X, tt.tensor([0.0, 1.0]), None),
            TypeError,
            "targets are class numbers, but they are float32",
        ),
        (
            lambda: ops.cross_entropy(X, tt.tensor([0, 1]), tt.ones(4)),
            ValueError,
            r"5 classes need a weight \(5,\), but it is \(4,\)",
        ),
        (
            lambda: ops.cross_entropy(X, tt.tensor([0, 1]), None, reduction="average"),
            ValueError,
            "reduction is 'average'; it is 'none', 'mean' or 'sum'",
        ),
        (
            lambda: ops.cross_entropy(X, tt.tensor([0, 1]), None, label_smoothing=1.5),
            ValueError,
            "label_smoothing is between 0 and 1, but it is 1.5",
        ),
        (
            lambda: ops.linear_cross_entropy(X, W, None, tt.tensor([0, 4]), None),
            IndexError,
            "target 4 is out of range: there are 4 classes",
        ),
        (
            lambda: ops.cross_entropy(X, [0, 1], None),
            TypeError,
            "cross_entropy: expected tensors, got a list",
        ),
        (
            lambda: ops.cross_entropy(tt.tensor(1.0), tt.tensor(0), None),
            ValueError,
            r"logits \(\) need one target per row",
        ),
        *(
            (
                lambda call=call: ops.linear_cross_entropy(X, W, None, *call[0], **call[1]),
                error,
                f"linear_cross_entropy: {sentence}",
            )
            for call, error, sentence in (
                (((tt.tensor([0]), None), {}), ValueError, r"logits \(2, 4\) need one target"),
                (((tt.tensor([0.0, 1.0]), None), {}), TypeError, "targets .* they are float32"),
                (((IDS[:2], tt.ones(5)), {}), ValueError, r"4 classes need .* it is \(5,\)"),
                (((IDS[:2], None), {"reduction": "avg"}), ValueError, "reduction is 'avg'"),
                (((IDS[:2], None), {"label_smoothing": -1}), ValueError, "label_smoothing .* -1"),
            )
        ),
        (
            lambda: ops.linear_cross_entropy(X, W[:, :2], None, tt.tensor([0, 1]), None),
            ValueError,
            r"they are \(2, 5\) and \(4, 2\)",
        ),
        (
            lambda: ops.embedding(W, tt.tensor([[0, 4]])),
            IndexError,
            "embedding: id 4 is out of range: there are 4 rows in the table",
        ),
        (lambda: ops.embedding(W, tt.tensor([-1])), IndexError, "id -1 is out of range"),
        (lambda: ops.embedding(W, X), TypeError, "ids are row numbers, but they are float32"),
        (
            lambda: ops.embedding(W[0], tt.tensor([0])),
            ValueError,
            r"\(rows, channels\), not \(5,\)",
        ),
        (lambda: ops.softmax(tt.tensor([1, 2])), TypeError, "softmax: the input is int64"),
        (
            lambda: ops.layer_norm(X, tt.ones(2), None),
            ValueError,
            r"the weight is \(2,\) but the last axes of the input \(2, 5\) are \(5,\)",
        ),
        (lambda: ops.layer_norm(X, None, None, 3), ValueError, "cannot normalize 3 axes"),
        (
            lambda: ops.add_layer_norm(X, X, tt.ones(2), None),
            ValueError,
            r"the weight is \(2,\) but the last axes of the input \(2, 5\) are \(5,\)",
        ),
        (
            lambda: ops.add_layer_norm(X, tt.ones(2, 4), None, None),
            ValueError,
            r"add_layer_norm: shapes \(2, 5\) and \(2, 4\) do not broadcast together",
        ),
        (
            lambda: ops.scaled_dot_product_attention(X, tt.zeros(3, 4), tt.zeros(3, 4), None),
            ValueError,
            "queries of size 5 cannot be compared with keys of size 4",
        ),
        (
            lambda: ops.scaled_dot_product_attention(X, tt.zeros(3, 5), W, None),
            ValueError,
            "3 keys need as many values, but there are 4",
        ),
        (
            lambda: ops.scaled_dot_product_attention(X, tt.zeros(0, 5), tt.zeros(0, 5), None),
            ValueError,
            "no keys to attend to",
        ),
        (
            lambda: ops.scaled_dot_product_attention(X, W, W.double(), None),
            TypeError,
            "one dtype, got float32, float32, float64",
        ),
        (
            lambda: ops.scaled_dot_product_attention(X, W, W, tt.ones(2, 4).long()),
            TypeError,
            "the mask is int64",
        ),
        (
            lambda: ops.scaled_dot_product_attention(X, W, W, tt.ones(3, 4) > 0),
            ValueError,
            r"the mask \(3, 4\) does not fit the scores \(2, 4\)",
        ),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_what_is_refused(call, error, sentence, fast):
    with fast_or_not(fast), pytest.raises(error, match=sentence):
        call()
