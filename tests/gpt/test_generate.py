"""Generation: the right distribution, the right context, options that mean what they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import tinytensor as tt
from gpt import UserError
from gpt.generate import draw, encode_prompt, generate
from gpt.model import GPT, GPTConfig
from gpt.tokenizer import CharTokenizer

PROBABILITIES = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
LOGITS = tt.tensor(np.log(PROBABILITIES).astype(np.float32))


class Recorder:
    """Stands in for a model: always token (last + 1) mod 10, and remembers what it was shown."""

    block_size = 4

    def __init__(self):
        self.training = True
        self.seen = []
        self.modes = set()

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.training = False

    def __call__(self, idx):
        self.seen.append(idx.tolist()[0])
        self.modes.add((self.training, tt.is_grad_enabled()))
        logits = np.full((1, idx.shape[1], 10), -50.0, dtype=np.float32)
        logits[0, -1, (self.seen[-1][-1] + 1) % 10] = 50.0
        return tt.tensor(logits), None


def test_it_slides_past_the_context():
    model = Recorder()
    assert list(generate(model, [7], 6, generator=tt.Generator(0))) == [8, 9, 0, 1, 2, 3]
    assert model.seen == [[7], [7, 8], [7, 8, 9], [7, 8, 9, 0], [8, 9, 0, 1], [9, 0, 1, 2]]


def test_it_leaves_no_switch_turned():
    model = Recorder()
    stream = generate(model, [1], 3)
    next(stream)
    assert model.training and tt.is_grad_enabled()  # between two tokens, too
    assert model.modes == {(False, False)}


def test_the_prompt_is_not_changed():
    prompt = [1, 2]
    list(generate(Recorder(), prompt, 3))
    assert prompt == [1, 2]


def frequencies(count=2000, **options):
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    generator = tt.Generator(11)
    drawn = Counter(draw(LOGITS, generator=generator, **options) for _ in range(count))
    return np.array([drawn[i] / count for i in range(len(PROBABILITIES))])


def tempered(temperature):
    p = PROBABILITIES ** (1 / temperature)
    return p / p.sum()


def only(*kept):
    p = np.where(np.isin(np.arange(5), kept), PROBABILITIES, 0)
    return p / p.sum()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
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
    ],
)
def test_tokens_come_as_often_as_the_options_say(options, expected):
    measured = frequencies(**options)
    assert (measured[expected == 0] == 0).all()
    # Five standard deviations of a frequency in 2,000 draws, at its widest.
    assert np.abs(measured - expected).max() < 5 * 0.5 / 2000**0.5


@pytest.fixture(scope="module")
def model():
    tt.manual_seed(0)
    return GPT(GPTConfig(vocab_size=11, block_size=6, n_layer=1, n_head=2, n_embd=8, dropout=0.5))


def test_the_same_seed_writes_the_same_text(model):
    texts = [list(generate(model, [1], 20, generator=tt.Generator(seed))) for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) == 20


def test_greedy_text_follows_the_largest_logit(model):
    ids = [3, 1]
    for token in generate(model, ids, 8, temperature=0):
        with tt.no_grad():
            model.eval()
            logits, _ = model(tt.tensor([ids[-6:]]))
            model.train()
        assert token == int(np.argmax(logits.numpy()[0, -1]))
        ids.append(token)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ids": []}, "prompt has no token"),
        ({"max_new_tokens": -1}, "max_new_tokens must not be negative, got -1"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and finite, got nan"),
        ({"temperature": float("inf")}, "temperature must be at least 0 and finite, got inf"),
        ({"top_k": -1}, "top_k must be at least 1, or 0 for all, got -1"),
        ({"top_p": 0.0}, "top_p must lie in (0, 1], got 0.0"),
        ({"top_p": 1.5}, "top_p must lie in (0, 1], got 1.5"),
    ],
)
def test_options_that_mean_nothing_are_refused_at_once(options, words):
    with pytest.raises(ValueError) as caught:
        generate(Recorder(), **{"ids": [1], "max_new_tokens": 3, **options})  # nothing is drawn
    assert words in str(caught.value)


def test_a_prompt_becomes_tokens():
    tokenizer = CharTokenizer.of("ab\n")
    assert encode_prompt(tokenizer, "ba", "--prompt") == [2, 1]
    assert encode_prompt(tokenizer, "", "--prompt") == [0]
    with pytest.raises(UserError, match=r"--prompt 'abc' cannot be continued: .* has no 'c'"):
        encode_prompt(tokenizer, "abc", "--prompt")
