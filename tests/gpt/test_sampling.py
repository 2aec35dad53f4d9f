"""Sampling: exactly the distribution that the options describe, and draws that follow it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from gpt.generate import generate
from gpt.model import GPT, GPTConfig
from gpt.sampling import SORTED_FIRST, Sampling
from tinytensor.cuda.device import SimArray, host_copies

PROBABILITIES = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def tempered(temperature):
    p = PROBABILITIES ** (1 / temperature)
    return p / p.sum()


def only(*kept):
    p = np.where(np.isin(np.arange(5), kept), PROBABILITIES, 0)
    return p / p.sum()


CASES = [
    ({}, PROBABILITIES),
    ({"temperature": 0.5}, tempered(0.5)),
    ({"temperature": 2.0}, tempered(2.0)),
    ({"temperature": 0.0}, only(1)),
    ({"temperature": 1e-30}, only(1)),
    ({"top_k": 1}, only(1)),
    ({"top_k": 2}, only(1, 3)),
    ({"top_k": 99}, PROBABILITIES),
    ({"top_p": 0.3}, only(1)),  # the likeliest is always kept
    ({"top_p": 0.6}, only(1, 3)),
    ({"top_p": 0.75}, only(1, 3, 2)),
    ({"top_k": 2, "top_p": 0.5}, only(1)),  # the share is counted after top_k
    ({"min_p": 0.3}, only(1, 3, 2)),  # 0.3 of 0.4 is 0.12
    ({"min_p": 1.0}, only(1)),
    ({"temperature": 2.0, "top_k": 1}, only(1)),
]


@pytest.mark.parametrize(("options", "expected"), CASES)
def test_the_distribution_is_the_one_described(options, expected):
    found = Sampling(**options).probabilities(LOGITS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found[expected == 0] == 0).all()


@pytest.mark.parametrize(("options", "expected"), CASES)
def test_tokens_come_as_often_as_their_probabilities_say(options, expected):
    """Pearson's chi-square over 2,000 draws; what has no probability never comes."""
    count = 2000
    generator = tt.Generator(11)
    drawn = Counter(Sampling(**options).draw(LOGITS, generator=generator) for _ in range(count))
    found = np.array([drawn[i] for i in range(5)])
    assert found.sum() == count
    assert (found[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = ((found - count * expected)[kept] ** 2 / (count * expected[kept])).sum()
    assert chi_square < 23.5  # exceeded once in 10,000 at four degrees of freedom, and at fewer


def test_the_chi_square_would_notice():
    generator = tt.Generator(11)
    drawn = Counter(Sampling(1.3).draw(LOGITS, generator=generator) for _ in range(2000))
    found = np.array([drawn[i] for i in range(5)])
    assert ((found - 2000 * PROBABILITIES) ** 2 / (2000 * PROBABILITIES)).sum() > 23.5


def test_repetition_makes_what_was_said_less_likely():
    """Positive scores are divided, negative ones multiplied; how often it was said is no matter."""
    logits = np.array([2.0, -1.0, 0.5, 3.0])
    found = Sampling(repetition_penalty=2.0).probabilities(logits, seen=[3, 1, 3, 3])
    expected = np.exp([2.0, -2.0, 0.5, 1.5])
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-12)
    assert Sampling(0, repetition_penalty=2.0).draw(logits, seen=[3]) == 0
    assert logits.tolist() == [2.0, -1.0, 0.5, 3.0]  # the scores themselves stay


def reference(logits, options, seen):
    """The same by the plainest means: a sorted list of (probability, token)."""
    scores = [float(x) for x in logits]
    r = options["repetition_penalty"]
    for i in set(seen):
        scores[i] = scores[i] / r if scores[i] > 0 else scores[i] * r
    highest = max(scores)
    weights = [math.exp((x - highest) / options["temperature"]) for x in scores]
    pairs = sorted(((w, i) for i, w in enumerate(weights)), reverse=True)
    if options["top_k"]:
        pairs = pairs[: options["top_k"]]
    total, before, kept = sum(w for w, _ in pairs), 0.0, []
    for w, i in pairs:
        if kept and options["top_p"] < 1 and before / total >= options["top_p"]:
            break
        before += w
        if w >= options["min_p"] * pairs[0][0]:
            kept.append((w, i))
    total = sum(w for w, _ in kept)
    return {i: w / total for w, i in kept}


@given(
    seed=st.integers(0, 10_000),
    V=st.integers(1, 40),
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
    repetition_penalty=st.floats(0.5, 2),
)
def test_all_options_together_against_a_plain_reference(seed, V, **options):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, V).astype(np.float32)
    seen = rng.integers(V, size=5).tolist()
    found = Sampling(**options).probabilities(logits, seen)
    expected = reference(logits, options, seen)
    assert {int(i) for i in np.flatnonzero(found)} == set(expected)
    for i, p in expected.items():
        assert found[i] == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.999, 0.9999999])
def test_a_wide_nucleus_is_found_whole(top_p):
    """Where more tokens are needed than are sorted at first."""
    logits = np.random.default_rng(0).normal(0, 0.1, 3 * SORTED_FIRST)
    found = Sampling(top_p=top_p).probabilities(logits)
    p = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-p)
    count = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    assert set(np.flatnonzero(found)) == set(order[:count])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1.0, 1e300])
def test_scores_of_any_size_give_a_distribution(scale, temperature):
    logits = np.random.default_rng(1).normal(0, scale, 20)
    p = Sampling(temperature, top_k=10, top_p=0.9).probabilities(logits)
    assert np.isfinite(p).all() and p.sum() == pytest.approx(1) and p[logits.argmax()] > 0


def test_impossible_tokens_never_come():
    logits = np.array([-np.inf, 0.0, -1e9, 1.0])
    generator = tt.Generator(0)
    assert {Sampling(5.0).draw(logits, generator=generator) for _ in range(300)} == {1, 3}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match=f"the model's largest score is {value}"):
        Sampling().draw(np.array([0.0, value]))


def test_one_random_number_a_token():
    """So that what is drawn next does not depend on the options of what was drawn before."""
    left, right = tt.Generator(3), tt.Generator(3)
    Sampling(0.7, top_k=3, top_p=0.9, min_p=0.1).draw(LOGITS, generator=left)
    Sampling().draw(LOGITS, generator=right)
    Sampling(0).draw(LOGITS, generator=right)
    assert left.get_state() == right.get_state()


@pytest.mark.parametrize("u", [0.0, 0.05, 1 - 2**-53])
def test_the_edges_of_the_uniform_number(monkeypatch, u):
    monkeypatch.setattr(tt, "rand", lambda *size, **options: tt.tensor([u], dtype=tt.float64))
    p = np.array([0.0, 0.3, 0.7, 0.0])
    with np.errstate(divide="ignore"):
        token = Sampling().draw(np.log(p))
    assert token == (2 if u > 0.5 else 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, got -1.0"),
        ({"temperature": math.nan}, "temperature must be at least 0 and finite, got nan"),
        ({"top_k": -1}, "top_k must be at least 1, or 0 for all, got -1"),
        ({"top_k": 2.5}, "top_k must be at least 1, or 0 for all, got 2.5"),
        ({"top_p": 0.0}, "top_p must lie in (0, 1], got 0.0"),
        ({"top_p": math.nan}, "top_p must lie in (0, 1], got nan"),
        ({"min_p": -0.1}, "min_p must lie in [0, 1], got -0.1"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be greater than 0 and finite"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError) as caught:
        Sampling(**options)
    assert words in str(caught.value)
    assert set(options) <= {field.name for field in dataclasses.fields(Sampling)}


# --- on a device ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [range(0, 3), range(2, 7)])
def test_of_equal_scores_those_with_lower_numbers_are_kept(ids):
    scores = np.zeros(9)
    scores[list(ids)] = 1.0
    p = Sampling(top_k=4).probabilities(scores)
    assert np.flatnonzero(p).tolist() == sorted([*ids, *set(range(9)) - set(ids)][:4])


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("sampling", "travelling"),
    [
        (Sampling(), (6,)),
        (Sampling(0.7, top_k=3), (6,)),
        (Sampling(0), (6,)),
        (Sampling(top_p=0.8, min_p=0.01, repetition_penalty=1.2), (6, 40)),  # the scores
    ],
)
def test_a_device_draws_the_same_tokens(sampling, travelling, monkeypatch):
    logits = np.random.default_rng(0).standard_normal((6, 40), np.float32) * np.float32(3)
    texts, copied = [[row] for row in range(6)], []

    def watch(name, method):
        def watched(array):
            copied.append(array.shape)
            return method(array)

        monkeypatch.setattr(SimArray, name, watched)

    watch("get", SimArray.get)
    watch("tolist", SimArray.tolist)
    drawn = []
    for device in ("cpu", "cuda-sim"):
        generators = [tt.Generator(seed) for seed in range(6)]
        moved = tt.tensor(logits).to(device)
        tokens = sampling.draw_all(moved, texts, generators)
        drawn.append((tokens, [generator.get_state() for generator in generators]))
    assert drawn[0] == drawn[1]
    assert copied == [travelling]


@pytest.mark.compiler
def test_scores_that_are_no_numbers_are_refused_on_a_device():
    logits = tt.tensor([[1.0, 2.0], [math.nan, 0.0]]).to("cuda-sim")
    with pytest.raises(ValueError, match="largest score is not finite; nothing to choose"):
        Sampling().draw_all(logits, [[], []], [None, None])


@pytest.mark.compiler
def test_a_text_written_on_a_device_brings_back_its_tokens_only():
    tt.manual_seed(0)
    model = GPT(GPTConfig(50, block_size=8, n_layer=1, n_head=2, n_embd=16, vocab_multiple=64))
    texts = []
    for device in ("cpu", "cuda-sim"):
        model.to(device)
        before = host_copies()
        texts.append(list(generate(model, [1, 2, 3], 9, 0.9, 5, generator=tt.Generator(4))))
        copies = host_copies() - before
    assert texts[0] == texts[1]
    assert copies == 9
