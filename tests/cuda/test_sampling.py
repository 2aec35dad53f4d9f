"""Tokens and random numbers on "cuda-sim": the CPU's, from the same seed and counter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from gpt.sampling import Sampling
from tests.cuda.kernel_cases import BOTH, FLOAT32, examples, launched, normal, seeds
from tinytensor import ops
from tinytensor.cuda import kernels, simulator
from tinytensor.cuda.device import host_copies, sim
from tinytensor.cuda.sampling import cuda_sample_logits
from tinytensor.random import Draw

pytestmark = pytest.mark.compiler

ROWS = 5
vocabularies = st.sampled_from([1, 2, 31, 32, 33, 64, 65, 127, 130, 1025])


def draws_of(seed, rows=ROWS):
    words = np.random.default_rng(seed).integers(0, 2**64, (rows, 2), np.uint64)
    return [Draw(int(key), int(counter)) for key, counter in words]


@BOTH
@pytest.mark.parametrize("threads", [32, 64])
@examples
@given(
    V=vocabularies,
    top_k=st.sampled_from([0, 1, 2, 31, 32, 64, 2000]),
    temperature=st.sampled_from([1e-3, 0.7, 1.0, 50.0]),
    steps=st.sampled_from([0, 1, 8]),  # of a coarse grid, whose many equal logits are a tie each
    padding=st.sampled_from([0, 3]),
    seed=seeds,
)
def test_the_token_is_the_references(dtype, threads, V, top_k, temperature, steps, padding, seed):
    logits = normal(seed, ROWS, V + padding) * np.float32(3)
    logits[:, V:] = 1e9  # never looked at
    if steps:
        logits[:, :V] = np.round(logits[:, :V] * steps) / steps
    logits = logits.astype(dtype)
    draws, options = draws_of(seed), {"temperature": temperature, "top_k": top_k}
    tokens, _ = cuda_sample_logits(
        logits[:, :V], **options, draws=draws, threads=threads, seed=seed
    )
    expected, _ = ops.sample_logits.reference(logits[:, :V], **options, draws=draws)
    np.testing.assert_array_equal(tokens, expected)


def test_a_block_as_the_gpu_has_it():
    logits = normal(0, ROWS, 5000)
    for top_k in (0, 40):
        options = {"top_k": top_k, "draws": draws_of(1)}
        tokens, _ = cuda_sample_logits(logits, **options)
        np.testing.assert_array_equal(tokens, ops.sample_logits.reference(logits, **options)[0])


@pytest.mark.parametrize("top_k", [0, 1, 7])
def test_rows_with_scores_that_are_not_numbers(top_k):
    logits = normal(0, ROWS, 40)
    logits[0, 3], logits[1, 39], logits[2] = np.nan, np.inf, -np.inf
    logits[3, ::2] = -np.inf
    logits[4, :20] = -0.0  # equal to the zeros behind it
    logits[4, 20:] = 0.0
    options = {"top_k": top_k, "draws": draws_of(0)}
    tokens, _ = cuda_sample_logits(logits, **options, threads=32)
    expected, _ = ops.sample_logits.reference(logits, **options)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(tokens[:3], -1)
    assert tokens[3] % 2 == 1 and tokens[4] >= 0


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.7, 5), Sampling(0), Sampling(2.0, 300)]
)
def test_a_model_s_token_is_the_same_on_every_device(sampling, monkeypatch):
    logits = normal(3, 8, 200) * np.float32(2)
    theirs, ours = ([tt.Generator(i) for i in range(8)] for _ in range(2))
    expected = [sampling.draw(row, (), g) for row, g in zip(logits, theirs, strict=True)]
    names = launched(monkeypatch)
    moved, before = tt.tensor(logits).to("cuda-sim"), host_copies()
    tokens = tt.sample_logits(moved, sampling.temperature, sampling.top_k, generator=ours)
    assert host_copies() == before and str(tokens.device) == "cuda-sim"
    assert names == ["sample_top_k"]
    assert tokens.tolist() == expected
    assert [g.get_state() for g in ours] == [g.get_state() for g in theirs]


def test_shapes_and_what_is_refused():
    scores = tt.tensor([0.0, 5.0, 1.0])
    assert tt.sample_logits(scores, temperature=0).shape == ()
    assert tt.sample_logits(tt.stack([scores, -scores]), 0).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"expected \(V,\) or \(N, V\), got \(1, 1, 3\)"):
        tt.sample_logits(scores.view(1, 1, 3))
    with pytest.raises(ValueError, match="temperature must be greater than 0 and finite, got -1"):
        tt.sample_logits(scores, -1)
    with pytest.raises(ValueError, match="top_k must be at least 1, or 0 for all, got -2"):
        tt.sample_logits(scores, 1, -2)
    with pytest.raises(ValueError, match=r"\(1, 3\) and there are 2 draws"):
        tt.sample_logits(scores, generator=[tt.Generator(), tt.Generator()])
    captured = [Draw(0, 0, sim.zeros(2, np.uint64))]
    with pytest.raises(RuntimeError, match="not drawn in a captured step"):
        cuda_sample_logits(sim.zeros((1, 3), np.float32), draws=captured)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("< lowest) return", "<= lowest) return"),
        ("k = digit.wanted", "k = k"),
        ("| ~(unsigned int)id", "| (unsigned int)id"),
        ("words[0] >> 11", "words[1] >> 11"),
        ("        __syncthreads();\n        Digit digit", "        Digit digit"),
    ],
)
def test_planted_faults_are_caught(right, wrong):
    source = (kernels.folder() / "top_k.cu").read_text(encoding="utf-8")
    assert right in source
    logits, draws = np.round(normal(0, 40, 130)), draws_of(2, 40)
    expected, _ = ops.sample_logits.reference(logits, top_k=9, draws=draws)
    tokens, words = np.empty(40, np.int64), np.array([draw[:2] for draw in draws], np.uint64)
    with pytest.raises((AssertionError, simulator.SimulationError)):
        simulator.launch(
            source.replace(right, wrong), "sample_top_k", (40,), (64,),
            [tokens, logits, words], [130, 130, 9, 1.0], 1, defines=(("THREADS", 64),),
        )  # fmt: skip
        np.testing.assert_array_equal(tokens, expected)


# --- random numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, tt.bfloat16, np.dtype(np.float64)], ids=str)
def test_random_numbers_are_those_of_the_cpu_and_a_kernel_makes_them(dtype, monkeypatch):
    def numbers(device):
        options = {"generator": tt.Generator(3), "dtype": dtype, "device": device}
        drawn = [tt.rand(3, 5, **options), tt.randn(7, **options), tt.rand(0, **options)]
        drawn.append(tt.normal(2.0, 3.0, (5,), **options))
        assert options["generator"].get_state() == {"seed": 3, "counter": drawn_until}
        return [x.cpu().to(tt.float64).numpy() for x in drawn]

    drawn_until = 4 + 2 + 0 + 2 if dtype == np.float64 else 2 + 1 + 0 + 1
    expected = numbers("cpu")
    names = launched(monkeypatch)
    unit = 2.0**-7 if dtype == tt.bfloat16 else 2.0**-23
    for ours, theirs in zip(numbers("cuda-sim"), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=unit, atol=8 * unit)
    made = ["random_uniform", "random_normal", "random_normal"]
    assert names == (["random_words"] * 3 if dtype == np.float64 else made)


@pytest.mark.parametrize(
    "drawn",
    [
        lambda **o: tt.randint(3, 90, (7,), **o),
        lambda **o: tt.randperm(9, **o),
        lambda **o: tt.bernoulli(tt.full((11,), 0.4, device=o["device"]), generator=o["generator"]),
        lambda **o: tt.multinomial(tt.ones(3, 6, device=o["device"]), 2, generator=o["generator"]),
    ],
    ids=["randint", "randperm", "bernoulli", "multinomial"],
)
def test_what_is_made_of_words_has_them_from_one_launch(drawn, monkeypatch):
    names = launched(monkeypatch)
    found = [
        drawn(device=device, generator=tt.Generator(5)).cpu().tolist()
        for device in ("cpu", "cuda-sim")
    ]
    assert found[0] == found[1]
    assert names.count("random_words") == 1
