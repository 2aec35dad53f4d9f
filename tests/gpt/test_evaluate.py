"""Evaluation: every token once, with the context that is promised; and the endings of HellaSwag.

`endings.jsonl` has HellaSwag's layout and sentences of our own.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from gpt import UserError, cli
from gpt.bpe import BytePairTokenizer
from gpt.evaluate import (
    EvaluateConfig,
    Score,
    bytes_of,
    score_pieces,
    score_tokens,
    text_tokens,
    tokens_of,
    windows,
)
from gpt.export import save_pretrained
from gpt.hellaswag import Example, ending_nats, read_examples, score_examples
from gpt.model import GPT, BigramLanguageModel, GPTConfig, LanguageModel
from gpt.shard_files import find_shards
from gpt.shard_writer import write_shards
from gpt.tokenizer import CharTokenizer
from gpt.weights import load_pretrained

ENDINGS = Path(__file__).with_name("endings.jsonl")
BYTES = BytePairTokenizer([])  # a token a byte, and the end of a text


def built(vocab_size, block_size, seed=0):
    tt.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size, block_size, n_layer=1, n_head=2, n_embd=16, dropout=0.4))
    with tt.no_grad():
        for parameter in model.parameters():
            parameter.add_(tt.randn_like(parameter), alpha=0.2)
    return model  # in training mode: evaluating must turn dropout off by itself


def nats_by_definition(model, context, token):
    """-ln p of one token after a context, by a pass of its own."""
    model.eval()
    with tt.no_grad():
        scores = model(tt.tensor([list(map(int, context))]))[0].numpy()[0, -1].astype(np.float64)
    model.train()
    return math.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[token]


# ---- Windows ----


@given(count=st.integers(1, 100), block_size=st.integers(1, 30), data=st.data())
def test_every_token_is_scored_once_with_the_context_promised(count, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    scored = []
    for number, (begin, first, end) in enumerate(windows(count, block_size, stride)):
        assert 0 <= begin <= first < end <= count
        assert end - begin == min(block_size, count)
        if number:
            assert first - begin >= block_size - stride
        scored += range(first, end)
    assert scored == list(range(count))


@pytest.mark.parametrize("stride", [1, 3, 4, 8, 0])
@pytest.mark.parametrize("length", [2, 5, 9, 10, 31])
@pytest.mark.parametrize("kind", ["gpt", "bigram"])
def test_the_score_is_the_sum_over_tokens_by_definition(stride, length, kind):
    model = built(11, 8)
    if kind == "bigram":
        model = BigramLanguageModel(11, 8, embed_size=8, num_head=2, num_layers=1)
    tokens = np.random.default_rng(1).integers(11, size=length)
    nats, count = score_tokens(model, tokens, stride)
    assert count == length - 1
    expected = sum(
        nats_by_definition(model, tokens[begin : i + 1], tokens[i + 1])
        for begin, first, end in windows(count, 8, stride or 4)
        for i in range(first, end)
    )
    assert nats == pytest.approx(expected, rel=1e-5)
    assert model.training


class Counts(LanguageModel):
    """A model that always gives the first token half, and the others the rest in equal parts."""

    def __init__(self, vocab_size, block_size):
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size

    def logits(self, idx):
        p = np.full(self.vocab_size, 0.5 / (self.vocab_size - 1), np.float32)
        p[0] = 0.5
        return tt.tensor(np.broadcast_to(np.log(p), (*idx.shape, self.vocab_size)).copy())


def test_known_probabilities_give_known_numbers():
    model = Counts(5, 4)
    score = score_pieces(
        model, CharTokenizer.of("abcd€"), [np.array([1, 0, 0, 4, 2]), np.array([3, 0])]
    )
    assert score.tokens == 5 and score.bytes == 7  # the sign of the euro has three
    assert score.nats == pytest.approx(3 * math.log(2) + 2 * math.log(8), rel=1e-6)
    assert score.loss == pytest.approx(score.nats / 5)
    assert score.perplexity == pytest.approx(2 ** (9 / 5), rel=1e-6)
    assert score.bits_per_byte == pytest.approx(9 / 7, rel=1e-6)
    assert "bits a byte (5 tokens, 7 bytes" in score.line()
    assert Score(1e6, 1, 0, 0).perplexity == math.inf and math.isnan(
        Score(1, 1, 0, 0).bits_per_byte
    )


def test_a_later_token_moves_no_score():
    """The honest context: what comes after a token is not seen."""
    model = built(11, 8)
    tokens = np.random.default_rng(2).integers(11, size=9)
    before, _ = score_tokens(model, tokens[:6], 4)
    total = sum(nats_by_definition(model, tokens[: i + 1], tokens[i + 1]) for i in range(5))
    assert before == pytest.approx(total, rel=1e-5)


def test_a_limit_and_short_pieces():
    model = Counts(5, 4)
    letters = CharTokenizer.of("abcde")
    score = score_pieces(model, letters, [np.array([1]), np.arange(5), np.arange(5)], limit=6)
    assert score.tokens == 6
    with pytest.raises(UserError, match="nothing to score"):
        score_pieces(model, letters, [np.array([1])])
    with pytest.raises(ValueError, match="the stride must be between 1 and 4"):
        score_tokens(model, np.arange(5), 5)
    with pytest.raises(ValueError, match="1 tokens leave nothing to predict"):
        score_tokens(model, np.arange(1), 1)


def test_special_tokens_have_no_bytes():
    ids = [*BYTES.encode("a€"), BYTES.end_of_text]
    assert bytes_of(BYTES, np.array(ids)) == 4
    assert text_tokens(BYTES, "ab").tolist() == [BYTES.end_of_text, *BYTES.encode("ab")]


def test_the_splits_of_a_text_meet(tmp_path):
    """Train and validation are scored once each, and together they are the whole."""
    path = tmp_path / "text.txt"
    path.write_text("abcdefghij" * 5 + "xyz")
    tokenizer = CharTokenizer.of(path.read_text())
    parts = {
        split: tokens_of(EvaluateConfig(run="r", split=split), tokenizer, str(path))[0]
        for split in ("train", "validation", "whole")
    }
    joined = np.concatenate([parts["train"][1:], parts["validation"][1:]])
    assert (joined == parts["whole"][1:]).all()
    assert len(parts["validation"]) - 1 == 53 - int(0.9 * 53)
    assert parts["validation"][0] == parts["train"][-1]


# ---- Endings ----


def test_endings_are_scored_by_their_tokens_after_the_context():
    model = built(257, 120)
    for example in read_examples(ENDINGS)[:2]:
        context = BYTES.encode(example.context)
        endings = [BYTES.encode(" " + ending) for ending in example.endings]
        found = ending_nats(model, context, endings)
        kept = context[-(120 - max(map(len, endings)) + 1) :]
        for ending, nats in zip(endings, found, strict=True):
            assert len(nats) == len(ending)
            expected = [
                nats_by_definition(model, kept + ending[:i], ending[i]) for i in range(len(ending))
            ]
            np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_context_that_is_read_once_gives_the_same_as_one_read_for_each(length):
    """`GPT` has a cache for the context; a model that only has logits reads it four times."""
    model = built(20, 12)

    class Uncached(LanguageModel):
        vocab_size, block_size = 20, 12

        def logits(self, idx):
            return model(idx)[0]

    plain = Uncached()
    context = list(range(length))
    endings = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 9]]
    model.eval()
    left, right = ending_nats(model, context, endings), ending_nats(plain, context, endings)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_sum_and_mean_choose_differently():
    """Half for token a: a long ending of it loses by the sum and wins by the mean."""
    model = Counts(5, 20)
    tokenizer = CharTokenizer.of(" abcd")  # the space, which begins each ending, is token 0
    examples = [
        Example("a", ("b", "     "), 0),  # sum: 1 + 3 bits against 6; mean: 2 against 1
        Example("a", ("b", "     "), 1),
        Example("a", ("      ", "c"), 0),
    ]
    accuracy = score_examples(model, tokenizer, examples)
    assert (accuracy.examples, accuracy.by_sum, accuracy.by_mean) == (3, 1, 2)
    assert "0.3333 by the sum, 0.6667 length-normalised" in accuracy.line()
    assert "0.2859 and 0.2955" in accuracy.line()


def test_a_model_that_has_read_the_right_endings_finds_them():
    """The whole way on the file that ships with the tests: learned by heart, all is right."""
    examples = read_examples(ENDINGS)
    assert len(examples) == 8 and {example.label for example in examples} == {0, 1, 2, 3}
    assert len(read_examples(ENDINGS, limit=3)) == 3
    texts = [example.context + " " + example.endings[example.label] for example in examples]
    tokenizer = BytePairTokenizer.train(texts, 420)
    model = GPT(GPTConfig(tokenizer.vocab_size, 96, n_layer=1, n_head=2, n_embd=48))
    rows = [
        tokenizer.encode(example.context) + tokenizer.encode(" " + example.endings[example.label])
        for example in examples
    ]
    longest = max(map(len, rows))
    x = tt.tensor([row + [tokenizer.end_of_text] * (longest - len(row)) for row in rows])
    optimizer = tt.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        _, loss = model(x[:, :-1], x[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = score_examples(model, tokenizer, examples)
    assert accuracy.by_sum >= 7 and accuracy.by_mean >= 7
    assert accuracy.numbers()["accuracy"] == accuracy.by_sum / 8


GOOD = {"ctx": "A dog", "endings": ["barks.", "rains."], "label": 0}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("[1]", "an example is an object"),
        (json.dumps({**GOOD, "ctx": 3}), "ctx must be a text"),
        (json.dumps({**GOOD, "ctx": " "}), "ctx must be a text"),
        (json.dumps({**GOOD, "endings": "ab"}), "endings must be a list"),
        (json.dumps({**GOOD, "endings": ["a"]}), "endings must be a list"),
        (json.dumps({**GOOD, "endings": ["a", None]}), "endings must be a list"),
        (json.dumps({**GOOD, "label": 2}), "0 to 1, but it is '2'"),
        (json.dumps({**GOOD, "label": ""}), "the test file of HellaSwag has no labels"),
        (json.dumps({**GOOD, "label": True}), "label must be the number"),
        (json.dumps({**GOOD, "ctx": "x" * (1 << 20)}), "longer than 1,048,576 letters"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, words):
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps({**GOOD, "label": "1"}) + "\n\n" + line + "\n")
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert f"{path}, line 3: " in str(caught.value) and words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_files_that_hold_no_examples(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for name, words in (
        ("empty", "has no examples"),
        ("absent", "there is no file"),
        ("latin", "is not UTF-8"),
        (".", "is a folder"),
    ):
        with pytest.raises(UserError, match=words):
            read_examples(tmp_path / name)
    with pytest.raises(UserError, match="an ending of 7 tokens does not fit"):
        ending_nats(built(20, 6), [1], [[1] * 7, [2]])


# ---- The commands ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights on characters of our sentences; GPT-2's own tokenizer is not needed."""
    folder = tmp_path_factory.mktemp("evaluate") / "weights"
    tokenizer = BytePairTokenizer.train([ENDINGS.read_text()], 300)
    tt.manual_seed(1)
    model = GPT(GPTConfig(tokenizer.vocab_size, 64, n_layer=1, n_head=2, n_embd=16))
    save_pretrained(model, folder, tokenizer)
    return str(folder)


def run(*arguments):
    try:
        return cli.main(list(arguments))
    except SystemExit as leaving:
        return leaving.code


def test_evaluate_on_a_text(weights, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The dog waits. " * 30)
    out = tmp_path / "out.json"
    asked = ["--data", str(text), "--split", "whole", "--json", str(out)]
    assert run("evaluate", "--weights", weights, *asked) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("loss ") and captured.err == ""
    numbers = json.loads(out.read_text())
    assert numbers["bytes"] == 450
    # Weights as they start know nothing: ln V a token, to a few hundredths.
    assert numbers["loss"] == pytest.approx(math.log(300), abs=0.1)
    assert numbers["perplexity"] == pytest.approx(math.exp(numbers["loss"]))


def test_evaluate_on_shards(weights, tmp_path, monkeypatch, capsys):
    """Each token after a shard's first is scored once; shards share the token between them."""
    monkeypatch.chdir(tmp_path)
    model, tokenizer = load_pretrained(weights)
    texts = [f"The dog {word} and waits. " * 9 for word in ("barks", "sees a cat", "runs")]
    documents = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]
    write_shards(map(np.array, documents), Path("shards"), tokenizer, 100, validation=0.5)
    rows = {split: find_shards("shards", split) for split in ("train", "validation")}
    for split, shards in rows.items():
        asked = ["--data", "shards", "--split", split, "--json", "out.json", "--stride", "64"]
        assert run("evaluate", "--weights", weights, *asked) == 0
        found = json.loads(Path("out.json").read_text())
        nats = [score_tokens(model, np.array(shard.open()), 64) for shard in shards]
        assert found["tokens"] == sum(count for _, count in nats)
        assert found["loss"] * found["tokens"] == pytest.approx(sum(n for n, _ in nats))
    tokens = sum(map(len, documents))
    assert sum(len(s.open()) - 1 for shards in rows.values() for s in shards) >= tokens - 2
    capsys.readouterr()

    for damage, words in (
        (lambda: None, "shards have the splits train and validation"),
        (lambda: truncate(rows["validation"][0].path), f"{rows['validation'][0].path}"),
        (lambda: CharTokenizer("ab").save(Path("shards/tokenizer.json")), "another tokenizer than"),
    ):
        damage()
        split = "whole" if "splits" in words else "validation"
        assert run("evaluate", "--weights", weights, "--data", "shards", "--split", split) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and words in captured.err
        assert captured.err.count("\n") == 1


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def test_evaluate_on_hellaswag(weights, tmp_path, capsys):
    asked = ["--hellaswag", str(ENDINGS), "--examples", "5"]
    assert run("evaluate", "--weights", weights, *asked) == 0
    assert "length-normalised (± " in (line := capsys.readouterr().out) and "5 examples" in line


def test_generate_from_weights_with_everything(weights, tmp_path, capsys):
    page = tmp_path / "page.html"
    arguments = (
        f"generate --weights {weights} --max-new-tokens 6 --num-samples 2 --top-k 9 --min-p 0.01 "
        f"--repetition-penalty 1.1 --slide 8 --probabilities --html {page} --stop zzz"
    ).split()
    assert run(*arguments, "--prompt", "A dog", "The €") == 0
    first = capsys.readouterr().out
    assert first.count("-" * 72) == 3 and first.count("chance") == 4 and "\x1b" not in first
    assert page.read_text().count("<table>") == 4
    assert run(*arguments, "--no-cache", "--batch-size", "1", "--prompt", "A dog", "The €") == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("evaluate", "either --run FOLDER or --weights FOLDER"),
        ("evaluate --run a --weights b", "either --run FOLDER or --weights FOLDER"),
        ("evaluate --weights b", "evaluate needs --data or --hellaswag"),
        ("evaluate --run a --data b --hellaswag c", "one evaluation at a time"),
        ("evaluate --run a --stride -1", "--stride must be at least 0"),
        ("evaluate --run absent", "absent is not a run folder"),
        ("evaluate --weights absent --data x", "there is no folder absent"),
        ("evaluate --weights WEIGHTS --data absent.txt", "there is no file or folder absent.txt"),
        ("evaluate --weights WEIGHTS --data TEXT --stride 65", "larger than the model's context"),
        ("evaluate --weights WEIGHTS --data .", "has no shards"),
        ("evaluate --weights WEIGHTS --hellaswag absent", "there is no file absent"),
        ("generate", "either --run FOLDER or --weights FOLDER"),
        ("generate --run a --stop= ", "every text contains the empty one"),
        ("generate --run a --min-p 2", "--min-p must lie in [0, 1]"),
        ("generate --run a --repetition-penalty 0", "--repetition-penalty must be greater than 0"),
        ("generate --run a --batch-size 0", "--batch-size must be at least 1"),
        ("generate --weights WEIGHTS --slide 65", "--slide 65 is more than the model's context"),
        ("generate --weights WEIGHTS --max-new-tokens 1 --html ./a/b", "./a/b cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(weights, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("words " * 50)
    given = [a.replace("WEIGHTS", weights).replace("TEXT", "text.txt") for a in arguments.split()]
    assert run(*given) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err
    assert captured.err.count("\n") == 1
