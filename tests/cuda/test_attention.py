"""Attention kernels in the simulator against attention in float64, gradients and dropout included.

A result is held to a bound made from the sums behind it: u is what one rounding costs (2⁻⁸ in
bfloat16, where weights and results are rounded; the length of the sums times 2⁻²⁴ in float32), and
scores that carry an error e change their weights by a factor exp(±e).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.backend import bfloat16
from tinytensor.cuda import kernels, simulator
from tinytensor.cuda.attention import Attention, backward, decode, forward
from tinytensor.random import Draw, keep_mask

pytestmark = pytest.mark.compiler

FLOAT32 = np.dtype(np.float32)
lengths = st.sampled_from([1, 2, 15, 16, 17, 31, 33, 64, 65, 130])
seeds = st.integers(0, 2**32 - 1)


def normal(seed, *shape, dtype=FLOAT32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def wide(x):
    return np.asarray(x).astype(np.float64)


def expected(q, k, v, dy, how):
    """y, log-sum-exp, dq, dk, dv in float64, each with the bound on its error."""
    dtype, (L, D), S = q.dtype, q.shape[2:], k.shape[2]
    q, k, v, dy = map(wide, (q, k, v, dy))
    scale = D**-0.5 if how.scale is None else how.scale
    options = {"is_causal": how.is_causal, "dropout_p": how.dropout_p, "draw": how.draw}
    reference = tt.ops.scaled_dot_product_attention.reference
    y, vjp = reference(q, k, v, None, scale=how.scale, **options)
    dq, dk, dv, _ = vjp(dy)

    def t(x):
        return x.swapaxes(-1, -2)

    scores = scale * q @ t(k)
    if how.is_causal:
        scores = np.where(np.tri(L, S, dtype=bool), scores, -np.inf)
    lse = np.log(np.exp(scores).sum(-1))
    w = np.exp(scores - lse[..., None])
    drop = np.ones_like(w)
    if how.dropout_p:
        drop = keep_mask(how.draw, w.shape, how.dropout_p) / (1 - how.dropout_p)
    u = (L + S + D) * 2.0**-24
    of_scores = (scale * abs(q) @ t(abs(k))).max() * 4 * u + 4 * u  # log-sum-exp included
    u += of_scores + (2.0**-8 if dtype == bfloat16 else 0)
    dw, along = abs(drop * (dy @ t(v))), (abs(dy) * abs(y)).sum(-1, keepdims=True)
    size = w * (drop * (abs(dy) @ t(abs(v))) + along)
    slack = 3 * u * (size + w * (dw + along))  # of ds
    results = [
        (y, u * (2 * w * drop @ abs(v) + abs(y))),
        (lse, of_scores + 2.0**-22 * abs(lse)),
        (dq, scale * slack @ abs(k) + u * abs(dq)),
        (dk, scale * t(slack) @ abs(q) + u * abs(dk)),
        (dv, u * (2 * t(w * drop) @ abs(dy) + abs(dv))),
    ]
    return results


def check(q, k, v, dy, how):
    y, lse = forward(q, k, v, how)
    found = [y, lse, *backward(dy, q, k, v, y, lse, how)]
    names = ("y", "log_sum_exp", "dq", "dk", "dv")
    for name, ours, (exact, bound) in zip(names, found, expected(q, k, v, dy, how), strict=True):
        assert ours.shape == exact.shape
        excess = abs(wide(ours) - exact) - bound - 1e-6
        assert (excess <= 0).all(), f"{name}: {excess.max()} over the bound"


KINDS = [
    # dtype, tensor cores, head size, dropout
    (FLOAT32, False, 16, 0.0),
    (FLOAT32, False, 10, 0.3),
    (FLOAT32, False, 128, 0.0),
    (bfloat16, False, 20, 0.0),
    (bfloat16, True, 16, 0.0),
    (bfloat16, True, 16, 0.3),
    (bfloat16, True, 20, 0.0),
    (bfloat16, True, 48, 0.0),  # 6 chunks of 16 bytes, which do not divide the threads
    (bfloat16, True, 64, 0.0),
    (bfloat16, True, 128, 0.0),
]


@pytest.mark.parametrize(("dtype", "tensor_cores", "D", "p"), KINDS)
@settings(max_examples=5, deadline=None)
@given(L=lengths, S=lengths, causal=st.booleans(), seed=seeds)
def test_attention(dtype, tensor_cores, D, p, L, S, causal, seed):
    q = normal(seed, 1, 2, L, D, dtype=dtype)
    k, v = (normal(seed + i, 1, 2, S, D, dtype=dtype) for i in (1, 2))
    dy = normal(seed + 3, 1, L, 2, D, dtype=dtype).swapaxes(1, 2)
    how = Attention(causal, None, p, Draw(seed, 2**63 + 5 if seed % 2 else 5), tensor_cores, seed)
    check(q, k, v, dy, how)


@pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=str)
def test_views_of_one_projection_are_read_in_place(dtype):
    B, T, H, D = 2, 37, 3, 16
    joint = normal(0, B, T, 3 * H * D, dtype=dtype)
    q, k, v = (
        joint[:, :, i * H * D : (i + 1) * H * D].reshape(B, T, H, D).swapaxes(1, 2)
        for i in range(3)
    )
    dy = normal(1, B, T, H, D, dtype=dtype).swapaxes(1, 2)
    check(q, k, v, dy, Attention(True))
    y, _ = forward(q, k, v, Attention(True))
    assert y.swapaxes(1, 2).flags.c_contiguous  # joining the heads copies nothing
    check(q[..., ::-1], k[..., ::2].repeat(2, -1), v, dy, Attention(False, 0.3))


@pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=str)
def test_the_result_does_not_depend_on_the_order_of_threads(dtype):
    q, k, v = (normal(i, 1, 2, 70, 16, dtype=dtype) for i in range(3))
    dy, results = normal(3, 1, 2, 70, 16, dtype=dtype), []
    for seed in range(3):
        how = Attention(True, seed=seed)
        y, lse = forward(q, k, v, how)
        results.append((y, lse, *backward(dy, q, k, v, y, lse, how)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(wide(a), wide(b))


def test_a_scale_need_not_be_positive():
    q, k, v = (normal(i, 1, 1, 20, 16, dtype=bfloat16) for i in range(3))
    y, _ = forward(q, k, v, Attention(scale=-0.3))
    other, _ = forward(-q, k, v, Attention(scale=0.3))
    np.testing.assert_allclose(wide(y), wide(other), atol=0.02)
    flat, _ = forward(q, k, v, Attention(scale=0.0))
    np.testing.assert_allclose(wide(flat), wide(v).mean(2, keepdims=True) + 0 * wide(v), atol=0.02)


def test_large_and_infinite_scores():
    q, k, v = (normal(i, 1, 1, 40, 16) for i in range(3))
    q *= 100
    k[:, :, 7] *= 100
    y, lse = forward(q, k, v, Attention(True))
    exact = tt.ops.scaled_dot_product_attention.reference(*map(wide, (q, k, v)), None, True)[0]
    np.testing.assert_allclose(y, exact, atol=1e-3)
    assert np.isfinite(lse).all()


@pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=str)
@settings(max_examples=15, deadline=None)
@given(
    S=st.integers(1, 300),
    D=st.sampled_from([16, 40]),
    parts=st.integers(1, 5) | st.none(),
    seed=seeds,
)
def test_decoding_one_query(dtype, S, D, parts, seed):
    q = normal(seed, 2, 3, 1, D, dtype=dtype)
    cache = normal(seed + 1, 2, 2, 3, 320, D, dtype=dtype)  # room for more keys than are there
    k, v = cache[0, :, :, :S], cache[1, :, :, :S]
    y, lse = decode(q, k, v, parts=None if parts is None else min(parts, S), seed=seed)
    (exact, bound), (exact_lse, lse_bound), *_ = expected(q, k, v, wide(y) * 0, Attention())
    assert (abs(wide(y) - exact) <= bound + 1e-6).all()
    assert (abs(lse - exact_lse) <= lse_bound + 1e-6).all()


def nightly(*case):
    return pytest.param(*case, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("attention.cu", "        __syncthreads();  // this tile", "        // this tile"),
        ("attention.cu", "sums[i][j][2 * half] *= correction,", "sums[i][j][2 * half] *= 1.0f,"),
        nightly("attention.cu", "8 * half + 1, S, causal)", "8 * half, S, causal)"),
        nightly("attention.cu", "8 * half - start,", "8 * half - start + 1,"),
        nightly("attention.cu", "of_queries[BACK + query]", "of_queries[query]"),
        nightly("attention.cu", "most, 2));", "most, 4));"),
        nightly(
            "attention.cu",
            "first_query(first, causal, BACK)",
            "first_query(first, causal, BACK) + BACK",
        ),
        ("attention_plain.cu", "        __syncthreads();  // all have read k", "        // all"),
        nightly(
            "attention_plain.cu",
            "float sums[2][EACH] = {};",
            "dropout.counter++;\n    float sums[2][EACH] = {};",
        ),
    ],
)
def test_planted_faults_are_caught(file, right, wrong, monkeypatch):
    source = (kernels.folder() / file).read_text()
    assert right in source
    planted, real_launch = source.replace(right, wrong), simulator.launch

    def launch(given, name, *rest, **options):
        return real_launch(planted if given == source else given, name, *rest, **options)

    monkeypatch.setattr(simulator, "launch", launch)
    dtype = FLOAT32 if "plain" in file else bfloat16
    q, k, v, dy = (normal(i, 1, 1, 100, 16, dtype=dtype) for i in range(4))
    how = Attention(True, None, 0.3 if dtype == FLOAT32 else 0.0, Draw(1, 0))
    with pytest.raises((AssertionError, simulator.SimulationError)):
        check(q, k, v, dy, how)


def test_misuse_is_a_sentence():
    def shaped(*shape, dtype=FLOAT32):
        return np.zeros(shape, dtype)

    with pytest.raises(ValueError, match="heads of at most 128 elements, not 160"):
        forward(*[shaped(1, 1, 2, 160)] * 3)
    with pytest.raises(ValueError, match=r"as many keys as values.*k is \(1, 1, 3, 8\)"):
        forward(shaped(1, 1, 2, 8), shaped(1, 1, 3, 8), shaped(1, 1, 4, 8))
    with pytest.raises(ValueError, match="not float64"):
        forward(*[shaped(1, 1, 2, 8, dtype=np.float64)] * 3)
    with pytest.raises(ValueError, match="one head size"):
        forward(shaped(1, 1, 2, 8), *[shaped(1, 1, 2, 4)] * 2)
    with pytest.raises(ValueError, match="one query a head, not 2"):
        decode(*[shaped(1, 1, 2, 8)] * 3)


@pytest.mark.parametrize("shape", [(9, 8), (3, 9, 8), (2, 3, 9, 8)], ids=str)
def test_the_operation_on_the_device(shape):
    def run(device):
        q, k, v = (tt.tensor(normal(i, *shape)).to(device).requires_grad_() for i in range(3))
        tt.manual_seed(3)
        attention = tt.nn.functional.scaled_dot_product_attention
        y = attention(q, k, v, is_causal=True, dropout_p=0.25)
        y.backward(tt.tensor(normal(3, *shape)).to(device))
        with tt.no_grad():
            row = attention(q[..., :1, :], k, v)
        masked = attention(q, k, v, tt.ones(9, 9, dtype=bool).to(device))  # by the reference
        return [t.detach().cpu().numpy() for t in (y, q.grad, k.grad, v.grad, row, masked)]

    for ours, expected in zip(run("cuda-sim"), run("cpu"), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
