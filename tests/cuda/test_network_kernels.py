"""Softmax, layer norm, cross-entropy, embedding in the simulator, and float64 references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tests.cuda import bounds
from tests.cuda.bounds import close
from tests.cuda.kernel_cases import (
    BOTH,
    FLOAT32,
    PLANS,
    counts,
    examples,
    normal,
    plan_for,
    seeds,
    wide,
    widths,
)
from tinytensor.cuda import entropy, kernels, network, simulator
from tinytensor.cuda.rows import Plan

pytestmark = pytest.mark.compiler

with_plans = pytest.mark.parametrize(("dtype", "team", "held"), PLANS)


def first_gradient(vjp, dy):
    found = vjp[0](dy) if isinstance(vjp, tuple) else vjp(dy)
    return found[0] if isinstance(found, tuple) else found


# --- softmax -------------------------------------------------------------------------------------


@with_plans
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
@examples
@given(rows=counts, columns=widths, seed=seeds, stretch=st.sampled_from([1.0, 1e4]))
def test_softmax(dtype, team, held, log, rows, columns, seed, stretch):
    x = (normal(seed, rows, columns) * np.float32(stretch)).astype(dtype)
    dy = normal(seed + 1, rows, columns, dtype=dtype)
    plan = plan_for(team, held, columns, dtype)
    reference = (tt.ops.log_softmax if log else tt.ops.softmax).reference
    y = network.softmax(x, log=log, plan=plan, seed=seed)
    exact, _ = reference(wide(x))
    if not rows:
        assert y.shape == x.shape
        return
    close(y, exact, (bounds.log_softmax if log else bounds.softmax)(wide(x)))
    dx = network.softmax_backward(dy, y, log=log, plan=plan, seed=seed)
    # From the y that was stored, which bfloat16 has rounded.
    p, d = (np.exp(wide(y)) if log else wide(y)), wide(dy)
    expected = d - p * d.sum(-1, keepdims=True) if log else p * (d - (d * p).sum(-1, keepdims=True))
    bound = bounds.log_softmax_gradient if log else bounds.softmax_gradient
    close(dx, expected, bound(wide(y), d))


@BOTH
@pytest.mark.parametrize("held", [True, False], ids=["held", "wide"])
@pytest.mark.parametrize("mask", ["causal", "boolean", "additive"])
@examples
@given(
    batch=st.sampled_from([1, 3]),
    queries=widths.filter(lambda n: n < 20),
    columns=widths,
    scale=st.sampled_from([1.0, 0.125, -2.0]),
    zeros=st.booleans(),
    seed=seeds,
)
def test_masked_softmax(dtype, held, mask, batch, queries, columns, scale, zeros, seed):
    x = normal(seed, batch, queries, columns, dtype=dtype)
    rng = np.random.default_rng(seed)
    seen = np.tri(queries, columns, dtype=bool) if mask == "causal" else None
    if mask != "causal":
        seen = rng.random((queries, columns)) < 0.6  # rows without any are nan, as in the reference
    options = {"scale": scale, "zeros": zeros, "plan": plan_for(32, held, columns, dtype)}
    scores = scale * wide(x)
    if mask == "additive":
        bias = np.where(seen, rng.standard_normal((queries, columns)), -np.inf).astype(dtype)
        y = network.softmax(x, bias=bias, **options, seed=seed)
        scores = scores + wide(bias)
    else:
        given = {"causal": True} if mask == "causal" else {"visible": seen}
        y = network.softmax(x, **given, **options, seed=seed)
        scores = np.where(seen, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        exact = tt.ops.softmax.reference(scores)[0]
    if zeros:
        exact = np.nan_to_num(exact)
    # The scaled score and the sum with the bias are rounded before the largest is known.
    of_scores = 4 * bounds.U * np.abs(np.where(np.isfinite(scores), scores, 0)).max()
    with np.errstate(invalid="ignore"):
        close(
            y, exact, np.nan_to_num(bounds.softmax(scores)) + 2 * of_scores * np.nan_to_num(exact)
        )


@BOTH
@pytest.mark.parametrize("held", [True, False], ids=["held", "wide"])
def test_softmax_of_what_is_not_finite(dtype, held):
    rows = [
        [np.inf, 1, 2],
        [np.nan, 1, 2],
        [-np.inf, -np.inf, -np.inf],
        [-np.inf, 0, 0],
        [1e-40] * 3,
    ]
    x = np.array(rows, np.float32).astype(dtype)
    y = network.softmax(x, plan=Plan(32, int(held)))
    with np.errstate(invalid="ignore"):
        exact = tt.ops.softmax.reference(wide(x))[0]
    np.testing.assert_array_equal(np.isnan(wide(y)), np.isnan(exact))
    close(y[3:], exact[3:], bounds.softmax(wide(x[3:])))


def test_softmax_masks_that_do_not_fit():
    x = np.zeros((4, 8), np.float32)
    with pytest.raises(ValueError, match=r"a mask \(3, 8\) does not repeat over rows \(4, 8\)"):
        network.softmax(x, visible=np.ones((3, 8), bool))
    with pytest.raises(ValueError, match="takes no mask"):
        network.softmax(x, log=True, causal=True)


# --- layer norm ----------------------------------------------------------------------------------


@with_plans
@pytest.mark.parametrize("residual", ["none", "like x", "float"])
@examples
@given(rows=counts, C=widths, seed=seeds, affine=st.sampled_from(["both", "weight", "none"]))
def test_layer_norm(dtype, team, held, residual, rows, C, seed, affine):
    stream = np.dtype(np.float32) if residual == "float" else dtype
    x, dy = normal(seed, rows, C, dtype=dtype), normal(seed + 1, rows, C, dtype=dtype)
    before = None if residual == "none" else normal(seed + 2, rows, C, dtype=stream)
    weight = None if affine == "none" else normal(seed + 3, C, dtype=stream)
    bias = normal(seed + 4, C, dtype=stream) if affine == "both" else None
    dtotal = None if residual == "none" else normal(seed + 5, rows, C, dtype=stream)
    plan = plan_for(team, held, C, stream)
    saved = network.layer_norm(x, weight, bias, residual=before, eps=1e-2, plan=plan, seed=seed)
    total = (
        x if before is None else (x.astype(np.float32) + before.astype(np.float32)).astype(stream)
    )
    assert (saved.y.dtype, saved.total.dtype) == (dtype, stream)
    np.testing.assert_array_equal(saved.total.astype(np.float32), total.astype(np.float32))
    exact, vjp = tt.ops.layer_norm.reference(wide(total), wide(weight), wide(bias), eps=1e-2)
    if not rows:
        assert saved.y.shape == (0, C)
        return
    errors = bounds.LayerNorm(wide(total), 1e-2)
    gain, shift = (1.0 if weight is None else wide(weight)), (0.0 if bias is None else wide(bias))
    close(saved.y, exact, errors.y(gain, shift))
    dx, dweight, dbias, dresidual = network.layer_norm_backward(
        dy, saved, weight, dtotal=dtotal, blocks=2, plan=plan, seed=seed
    )
    past = 0.0 if dtotal is None else wide(dtotal)
    expected = vjp[0](wide(dy)) + past
    assert (dx.dtype, dresidual.dtype) == (dtype, stream)
    for found in (dx, dresidual):
        close(found, expected, errors.dx(wide(dy), gain, expected) + bounds.U * np.abs(past))
    close(dweight, (vjp[1](wide(dy))).sum(0), errors.dweight(wide(dy)))
    close(dbias, wide(dy).sum(0), bounds.sums(wide(dy)))


def test_layer_norm_gradients_do_not_depend_on_the_order_of_threads():
    x, dy = normal(0, 37, 72), normal(1, 37, 72)
    saved = network.layer_norm(x, normal(2, 72))
    first = network.layer_norm_backward(dy, saved, normal(2, 72), blocks=3, seed=1)
    for seed in (2, 3):
        again = network.layer_norm_backward(dy, saved, normal(2, 72), blocks=3, seed=seed)
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)


@BOTH
@examples
@given(
    rows=st.sampled_from([0, 1, 8, 9, 63, 130]),
    C=widths,
    slices=st.sampled_from([None, 1, 3]),
    seed=seeds,
)
def test_column_sum(dtype, rows, C, slices, seed):
    x, before = normal(seed, rows, C, dtype=dtype), normal(seed + 1, C)
    exact, bound = wide(x).sum(0), bounds.sums(wide(x))
    close(network.column_sum(x, slices=slices, seed=seed), exact, bound)
    after = network.column_sum(x, out=before.copy(), accumulate=True, slices=slices, seed=seed)
    close(after, wide(before) + exact, bound + bounds.U * np.abs(wide(before)))


# --- cross-entropy -------------------------------------------------------------------------------


@with_plans
@examples
@given(
    rows=counts,
    V=widths,
    seed=seeds,
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    stretch=st.sampled_from([1.0, 1e4]),
)
def test_cross_entropy(dtype, team, held, rows, V, seed, smoothing, weighted, stretch):
    rng = np.random.default_rng(seed)
    logits = (normal(seed, rows, V) * np.float32(stretch)).astype(dtype)
    targets = rng.integers(0, V, rows)
    targets[rng.random(rows) < 0.2] = -100
    weight = rng.random(V, np.float32).astype(dtype) if weighted else None
    scale = rng.random(rows if rows % 2 else 1, np.float32)
    options = {"label_smoothing": smoothing}
    exact, vjp = tt.ops.cross_entropy.reference(
        wide(logits), targets, wide(weight), reduction="none", **options
    )
    plan = plan_for(team, held, V, dtype)
    gradient = logits.copy() if rows % 3 else np.empty_like(logits)
    source = gradient if rows % 3 else logits  # in place, or not
    losses, totals = entropy.cross_entropy(
        source, targets, weight, **options, gradient=gradient, scale=scale, plan=plan, seed=seed
    )
    if not rows:
        return
    z, w = wide(logits), np.ones(V) if weight is None else wide(weight)
    close(losses, exact, bounds.loss(z, targets, w, smoothing))
    each = np.broadcast_to(wide(scale), rows)
    expected = vjp[0](each)
    close(gradient, expected, bounds.loss_gradient(z, expected, w, each[:, None], False))
    weights = None if weight is None else float(wide(weight).sum())
    again = entropy.cross_entropy_gradient(
        logits,
        totals,
        targets,
        weight,
        scale=scale,
        weights=weights,
        **options,
        plan=plan,
        seed=seed,
    )
    close(again, expected, bounds.loss_gradient(z, expected, w, each[:, None], True))


@BOTH
@examples
@given(rows=counts.filter(bool), V=widths, columns=st.sampled_from([1, 8, 40, 600]), seed=seeds)
def test_linear_cross_entropy_in_parts(dtype, rows, V, columns, seed):
    rng = np.random.default_rng(seed)
    logits, targets = normal(seed, rows, V, dtype=dtype), rng.integers(0, V, rows)
    if columns < V:
        targets[targets < columns] = V - 1
        logits[:, :columns] = -np.inf  # a whole part of them
    targets[rng.random(rows) < 0.2] = -100
    scale = rng.random(1, np.float32)
    with np.errstate(
        invalid="ignore"
    ):  # an ignored row looks at class 0, and its logit may be -inf
        exact, vjp = tt.ops.cross_entropy.reference(wide(logits), targets, None, reduction="none")
    parts = [(i, np.ascontiguousarray(logits[:, i : i + columns])) for i in range(0, V, columns)]
    parts = parts if len(parts) < 9 else [(0, logits.copy())]
    state = tuple(np.full(rows, np.nan, np.float32) for _ in range(3))
    for first, part in parts:
        entropy.linear_cross_entropy_part(state, part, targets, first, plan=Plan(32, 0), seed=seed)
    losses, totals = entropy.linear_cross_entropy_loss(state, targets, seed=seed)
    ones = np.ones(V)
    close(losses, exact, bounds.loss(wide(logits), targets, ones, 0.0))
    for first, part in parts:
        entropy.linear_cross_entropy_gradient(
            part, totals, targets, first, scale=scale, plan=Plan(32, 0), seed=seed
        )
    dlogits = np.concatenate([part for _, part in parts], axis=1)
    expected = vjp[0](np.full(rows, wide(scale)[0]))
    close(dlogits, expected, bounds.loss_gradient(wide(logits), expected, ones, wide(scale), True))


def test_a_target_that_is_no_class_gives_nan_and_reads_nothing():
    logits, targets = normal(0, 3, 5), np.array([4, 5, -1])
    losses, _ = entropy.cross_entropy(logits, targets)
    assert np.isfinite(losses[0]) and np.isnan(losses[1:]).all()


# --- embedding -----------------------------------------------------------------------------------


@BOTH
@examples
@given(
    n=st.sampled_from([0, 1, 5, 16, 17, 70]),
    V=st.sampled_from([1, 2, 30]),
    C=widths,
    padding=st.sampled_from([None, 0]),
    accumulate=st.booleans(),
    seed=seeds,
)
def test_embedding(dtype, n, V, C, padding, accumulate, seed):
    weight, ids = normal(seed, V, C, dtype=dtype), np.random.default_rng(seed).integers(0, V, n)
    y = network.embedding(weight, ids, seed=seed)
    np.testing.assert_array_equal(wide(y), wide(weight[ids]))
    dy = normal(seed + 1, n, C, dtype=dtype)
    expected = tt.ops.embedding.reference(wide(weight), ids, padding_idx=padding)[1][0](wide(dy))
    out = normal(seed + 2, V, C) if accumulate else None
    bound = n * bounds.U * embedded(np.abs(wide(dy)), ids, V)
    if accumulate:
        expected, bound = expected + wide(out), bound + bounds.U * np.abs(wide(out))
    dweight = network.embedding_backward(
        dy, ids, V, out=out, padding_idx=padding, chunk=8, seed=seed
    )
    close(dweight, expected, bound)


def embedded(rows, ids, V):
    """Each row added to that of its id."""
    out = np.zeros((V, rows.shape[1]))
    np.add.at(out, ids, rows)
    return out


def test_an_id_out_of_range_gives_nan():
    y = network.embedding(np.ones((3, 4), np.float32), np.array([0, 3, -1, 2]))
    np.testing.assert_array_equal(np.isnan(y).all(1), [False, True, True, False])


def test_plans_hold_every_width_or_say_that_they_do_not():
    from tinytensor.cuda.rows import choose

    for columns in (1, 127, 128, 768, 1024, 3072, 16384, 16385, 50304):
        plan = choose(columns, FLOAT32)
        assert plan.each == 0 or plan.team * plan.each * 4 >= columns
        assert plan.team % 32 == 0
        assert plan.each * 4 <= (32 if plan.team == 32 else 16)
    assert choose(768, FLOAT32) == Plan(32, 6)
    assert choose(50304, FLOAT32).each == 0


# --- a test of the tests -------------------------------------------------------------------------

Z = wide(normal(0, 6, 512))
LABELS = np.arange(6)
ONES = np.ones(512)


def one_term_short(x):
    """softmax whose sum lacks the last term."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e[:, :-1].sum(-1, keepdims=True)


def unbiased(x):
    """Layer norm by the variance that divides by one less."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True, ddof=1) + 1e-2)


@pytest.mark.parametrize(
    ("wrong", "exact", "bound"),
    [
        (one_term_short(Z), tt.ops.softmax.reference(Z)[0], bounds.softmax(Z)),
        (
            np.log(one_term_short(Z)),
            tt.ops.log_softmax.reference(Z)[0],
            bounds.log_softmax(Z),
        ),
        (
            -np.log(one_term_short(Z))[LABELS, LABELS],
            tt.ops.cross_entropy.reference(Z, LABELS, None, reduction="none")[0],
            bounds.loss(Z, LABELS, ONES, 0.0),
        ),
        (
            unbiased(Z),
            tt.ops.layer_norm.reference(Z, None, None, eps=1e-2)[0],
            bounds.LayerNorm(Z, 1e-2).y(1.0, 0.0),
        ),
        (
            tt.ops.gelu.reference(Z, approximate="tanh")[0],
            tt.ops.gelu.reference(Z)[0],
            bounds.gelu(Z, 0.0),
        ),
        (Z[1:].sum(0), Z.sum(0), bounds.sums(Z)),
    ],
    ids=["softmax", "log_softmax", "loss", "layer_norm", "gelu", "sum"],
)
def test_bounds_are_narrower_than_a_small_mistake(wrong, exact, bound):
    with pytest.raises(AssertionError, match="over the bound"):
        bounds.close(wrong.astype(np.float32), exact, bound)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("    __syncthreads();\n", "", "race"),
        ("if (c >= C) continue;", "", "out of bounds"),
        ("w < 8; w++", "w < 9; w++", "out of bounds"),
    ],
)
def test_faults_planted_in_column_sum_are_caught(right, wrong, message):
    source = (kernels.folder() / "bias.cu").read_text(encoding="utf-8")
    assert right in source
    sums, x = np.zeros(5, np.float32), normal(0, 20, 5)
    for seed in range(3):
        with pytest.raises(simulator.SimulationError, match=message):
            simulator.launch(
                source.replace(right, wrong), "column_sum", (1, 1), (256,), [sums, x],
                [20, 5, 20, 0], seed=seed,
            )  # fmt: skip
