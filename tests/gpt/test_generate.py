"""Generation: the right distribution, the right context, options that mean what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from gpt import UserError
from gpt.bpe import BytePairTokenizer
from gpt.config import GenerateConfig
from gpt.generate import encode_prompt, generate, in_order, write, write_in_order
from gpt.model import GPT, GPTConfig
from gpt.probabilities import choice, page, shower, table
from gpt.sampling import Sampling
from gpt.streaming import TextStream
from gpt.tokenizer import CharTokenizer


class Recorder:
    """Stands in for a model: always token (last + 1) mod 10, and remembers what it was shown."""

    block_size = 4

    def __init__(self):
        self.training = True
        self.seen = []
        self.modes = set()

    def parameters(self):
        return []

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


def test_sliding_by_one_token_is_the_models_own_loop(model):
    idx = tt.tensor([[1, 2, 3]])
    expected = model.generate(idx, 30, generator=tt.Generator(3))[0, 3:].tolist()
    found = generate(model, [1, 2, 3], 30, generator=tt.Generator(3), slide=1)
    assert list(found) == expected
    quarters = generate(model, [1, 2, 3], 30, generator=tt.Generator(3))
    assert list(quarters)[:3] == expected[:3]  # as long as the context is not full


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
        ({"min_p": 2.0}, "min_p must lie in [0, 1], got 2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be greater than 0 and finite"),
        ({"slide": 5}, "slide must be between 1 and the context of 4"),
        ({"slide": -1}, "slide must be between 1 and the context of 4"),
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


# ---- With a cache and without, alone and in company ----


@pytest.fixture(scope="module")
def sharp():
    """A model whose scores lie far apart, so that rounding decides nothing."""
    tt.manual_seed(5)
    model = GPT(GPTConfig(vocab_size=26, block_size=12, n_layer=2, n_head=2, n_embd=16))
    with tt.no_grad():
        for parameter in model.parameters():
            parameter.add_(tt.randn_like(parameter), alpha=0.5)
    return model.eval()


LETTERS = CharTokenizer.of("abcdefghijklmnopqrstuvwxyz")
PROMPTS = [[1, 2, 3], [4], list(range(10)), [7, 8]]


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(1.5), Sampling(1, 5, 0.9, 0.01, 1.3)])
@pytest.mark.parametrize("slide", [0, 1, 12])
def test_a_text_depends_on_its_prompt_and_seed_alone(sharp, sampling, slide):
    """With or without a cache, alone or in a batch, and past the context (of 12)."""

    def written(prompts, seeds, cached):
        texts, pieces = write(
            sharp, LETTERS, prompts, 24, sampling, seeds, slide=slide, cached=cached
        )
        for _ in pieces:
            pass
        assert all(text.ended == "length" and len(text.tokens) == 24 for text in texts)
        return [text.tokens for text in texts]

    seeds = [3, 3, 4, 5]
    together = written(PROMPTS, seeds, True)
    assert together == written(PROMPTS, seeds, False)
    alone = [written([p], [s], True)[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert together == alone
    options = {name: getattr(sampling, name) for name in sampling.__dataclass_fields__}
    one = generate(sharp, PROMPTS[2], 24, generator=tt.Generator(4), slide=slide, **options)
    assert list(one) == together[2]


def test_samples_of_one_prompt_differ(sharp):
    texts, pieces = write(sharp, LETTERS, [[1], [1]], 20, seeds=[0, 1])
    list(pieces)
    assert texts[0].text != texts[1].text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "the prompt has no token"),
        ({"prompts": [[1], []]}, "the prompt has no token"),
        ({"seeds": [1, 2]}, "1 prompts cannot have 2 seeds"),
        ({"stop": ["a", ""]}, "a stop string must not be empty"),
        ({"max_new_tokens": -3}, "max_new_tokens must not be negative, got -3"),
    ],
)
def test_write_refuses_at_once(sharp, arguments, words):
    with pytest.raises(ValueError) as caught:
        write(sharp, LETTERS, **{"prompts": [[1]], "max_new_tokens": 3, **arguments})
    assert words in str(caught.value)


# ---- Where a text ends ----


def test_texts_end_at_different_times(sharp):
    """Who ends leaves the batch; the others are not disturbed."""
    free, pieces = write(sharp, LETTERS, PROMPTS, 30, seeds=[1, 2, 3, 4])
    list(pieces)
    stop = free[1].text[4:6]
    end = next(token for token in free[2].tokens[3:] if token not in free[1].tokens[:6])
    texts, pieces = write(
        sharp, LETTERS, PROMPTS, 30, seeds=[1, 2, 3, 4], stop=[stop], end=end, alternatives=3
    )
    streamed = dict.fromkeys(texts, "")
    for text, piece in pieces:
        streamed[text] += piece
    reasons = set()
    for text, without in zip(texts, free, strict=True):
        assert streamed[text] == text.text
        assert text.tokens == without.tokens[: len(text.tokens)]
        at = without.text.find(stop)
        place = without.tokens.index(end) if end in without.tokens else 30
        if at >= 0 and at + len(stop) <= place:
            assert (text.ended, text.text) == ("stop", without.text[:at])
        else:
            assert text.ended == ("end" if place < 30 else "length")
            assert text.text == without.text[:place]
        reasons.add(text.ended)
        assert [c.token for c in text.choices] == text.tokens
    assert {"stop", "end"} <= reasons


def config(**fields):
    return GenerateConfig(run="somewhere", **fields)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_texts_are_shown_one_after_the_other(sharp, batch_size):
    asked = config(
        prompt=("ab", "c"), num_samples=3, max_new_tokens=10, stop=("e",), batch_size=batch_size
    )
    order, texts = [], []
    for text, piece in write_in_order(sharp, LETTERS, asked):
        if not order or order[-1] is not text:
            order.append(text)
            texts.append("")
        texts[-1] += piece
    assert [text.prompt for text in order] == ["ab"] * 3 + ["c"] * 3
    assert texts == [text.text for text in order]
    assert len(set(texts[:3])) > 1
    first = list(write_in_order(sharp, LETTERS, config(max_new_tokens=10, prompt=("ab",))))
    assert first[0][0].tokens[: len(order[0].tokens)] == order[0].tokens  # sample 0 has the seed


def test_the_first_text_streams_while_others_wait(sharp):
    texts, pieces = write(sharp, LETTERS, [[1], [2]], 3)
    seen = [(texts.index(text), piece) for text, piece in in_order(texts, pieces) if piece]
    assert [(number, len(piece)) for number, piece in seen] == [
        (0, 1),
        (0, 1),
        (0, 1),
        (1, 2),  # what had been written until the first one ended
        (1, 1),
    ]


def test_nothing_to_write_names_every_text(sharp):
    named = list(write_in_order(sharp, LETTERS, config(max_new_tokens=0, num_samples=2)))
    assert [piece for _, piece in named] == ["", ""]


# ---- Streams ----

BYTES = BytePairTokenizer([])  # a token a byte, and the end of a text


@given(text=st.text(), cut=st.integers(0, 5))
def test_a_stream_is_whole_characters_and_joins_to_the_text(text, cut):
    ids = BYTES.encode(text)
    ids = ids[: len(ids) - cut] if cut else ids
    stream = TextStream(BYTES)
    pieces = [stream.add(i) for i in ids] + [stream.finish()]
    assert "".join(pieces) == BYTES.decode(ids)
    for piece in pieces[:-1]:
        assert "\ufffd" not in piece.replace("\ufffd", "", text.count("\ufffd"))


@given(st.lists(st.integers(0, 255), max_size=12))
def test_bytes_that_are_no_text_come_as_decode_has_them(ids):
    stream = TextStream(BYTES)
    assert "".join([stream.add(i) for i in ids] + [stream.finish()]) == BYTES.decode(ids)


def first_to_be_complete(text, stop):
    """By definition: the shortest beginning of the text that ends with a stop string."""
    for end in range(1, len(text) + 1):
        for string in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(string):
                return text[: end - len(string)], True
    return text, False


@given(
    text=st.text("abc€", max_size=20),
    stop=st.lists(st.text("abc€", min_size=1, max_size=4), max_size=3),
    merges=st.booleans(),
)
def test_a_stop_string_is_found_wherever_tokens_begin(text, stop, merges):
    tokenizer = BytePairTokenizer.train(["abc abca€ b€c cab"] * 3, 265) if merges else BYTES
    expected, stopped = first_to_be_complete(text, stop)
    stream, out = TextStream(tokenizer, stop), ""
    for token in tokenizer.encode(text):
        out += stream.add(token)
        assert expected.startswith(out)  # nothing is shown that would have to be taken back
        if stream.stopped:
            break
    assert stream.stopped == stopped
    assert out + stream.finish() == expected


# ---- Probabilities ----


def test_a_choice_says_what_the_model_held_likely():
    made = choice(np.log(np.array([0.1, 0.5, 0.15, 0.25], dtype=np.float32)), 2, 3)
    assert (made.token, made.rank) == (2, 3)
    assert made.probability == pytest.approx(0.15)
    assert [token for token, _ in made.alternatives] == [1, 3, 2]
    assert [p for _, p in made.alternatives] == pytest.approx([0.5, 0.25, 0.15])


def test_the_table_and_the_page():
    tokenizer = CharTokenizer.of("\n<ab")
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25]))
    choices = [choice(logits, token, 2) for token in (0, 1)]
    show = shower(tokenizer)
    plain = table(choices, show, colour=False).splitlines()
    assert plain[1].split() == ["10.00%", "4", r"'\n'", "'<'", "50.0%", "'b'", "25.0%"]
    assert "\x1b" not in "".join(plain)
    coloured = table(choices, show, colour=True)
    assert coloured.count("\x1b[48;2;") == coloured.count("\x1b[0m") == 2
    document = page([("a & b", choices)], show, lambda token: tokenizer.decode([token]))
    assert "a &amp; b<span" in document and "&lt;</span>" in document
    assert "<<" not in document and "<script" not in document
    assert "hsl(85 80% 80%)" in document  # 120 * sqrt(0.5)


def test_a_part_of_a_character_is_shown_as_bytes():
    show = shower(BYTES)
    assert [show(i) for i in BYTES.encode("é\n")] == [r"b'\xc3'", r"b'\xa9'", r"'\n'"]


# ---- The benchmark ----


def test_the_benchmark_ends_with_its_result():
    root = Path(__file__).parents[2]
    arguments = [
        "--size",
        "tiny",
        "--tokens",
        "4",
        "--prompt",
        "3",
        "--rounds",
        "1",
        "--engines",
        "tinytensor",
        "plain",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(root / "examples/benchmark_generate.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "plain: 4 of 4 greedy tokens are the same" in done.stdout
    share = r"[\d.]+ tokens/s, \d+% of the memory's bandwidth"
    assert re.fullmatch(rf"tinytensor {share}; plain {share}", done.stdout.splitlines()[-1])
