"""The checks: silent on what this package builds, and loud on a planted fault of each kind.

The faults are those of the first models that people write, and of the articles that this project
began with: no mask, a softmax over the wrong axis, one split for both losses, targets moved by
three, an embedding of N(0, 1) under a tied head, a copy in place of a tied table.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import tinytensor as tt
from gpt import UserError, checks, train
from gpt.cli import main
from gpt.config import TrainConfig
from gpt.corpus import TextCorpus, load_corpus
from gpt.data import load_text
from gpt.model import GPT, GPTConfig, LanguageModel
from gpt.presets import PRESETS
from gpt.runs import build_model
from gpt.train import build_optimizer
from tinytensor import nn
from tinytensor.nn import functional as F

V, T = 20, 8
SIZES = GPTConfig(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=16)
TINY = {"block_size": T, "n_layer": 1, "n_head": 2, "n_embd": 16, "batch_size": 4}


class Careless(LanguageModel):
    """One layer of attention, with a choice of mistakes."""

    def __init__(self, mask=True, axis=-1, across_rows=False, blind=False):
        super().__init__()
        self.vocab_size, self.block_size = V, T
        self.table, self.places = nn.Embedding(V, 32), nn.Embedding(T, 32)
        self.qkv, self.wide, self.head = nn.Linear(32, 96), nn.Linear(32, 128), nn.Linear(128, V)
        self.mask, self.axis, self.across_rows, self.blind = mask, axis, across_rows, blind

    def logits(self, idx):
        x = self.table(idx * 0 if self.blind else idx) + self.places(tt.arange(idx.shape[1]))
        q, k, v = self.qkv(x).split(32, dim=2)
        weights = q @ k.transpose(1, 2) / 32**0.5
        if self.mask:
            hidden = tt.tril(tt.ones(idx.shape[1], idx.shape[1])) == 0
            weights = weights.masked_fill(hidden, -1e9)
        y = x + F.softmax(weights, dim=self.axis) @ v
        if self.across_rows:
            y = y - y.mean(dim=0, keepdim=True)
        return self.head(F.gelu(self.wide(y)))


def batch(B=8, moved=1):
    tokens = tt.randint(V, (B, T + 8), generator=tt.Generator(4))
    return tokens[:, :T], tokens[:, moved : T + moved]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(load_text("python").content[:6000], encoding="utf-8")
    return load_corpus(TrainConfig(data=str(path), **TINY))


# ---- What is well ----


@pytest.mark.parametrize("preset", ["char", "bigram"])
def test_the_models_of_this_package_have_none_of_these_faults(preset, corpus):
    config = PRESETS[preset]
    model = build_model(config, V)
    for check in (checks.future, checks.rows):
        assert check(model) == ""
    assert checks.first_loss(model, batch()) == ""
    groups = build_optimizer(config, model).param_groups
    assert checks.tied_once(model, groups, config) == ""
    assert checks.targets(batch()) == checks.overlap(corpus) == ""
    assert checks.overfits(model, batch()) == ""


def test_looking_changes_nothing(corpus):
    config = corpus.config
    model = build_model(config, corpus.vocab_size)
    optimizer = build_optimizer(config, model)
    random, before = tt.get_rng_state(), [p.detach().clone() for p in model.parameters()]
    checks.check_before_training(model, optimizer, corpus, config)
    assert tt.get_rng_state() == random and model.training
    for p, was in zip(model.parameters(), before, strict=True):
        assert p.grad is None and np.array_equal(p.detach().numpy(), was.numpy())


# ---- Planted faults: the model ----


@pytest.mark.parametrize(
    ("mistake", "check", "words"),
    [
        ({"mask": False}, checks.future, r"a later token moves an earlier logit: .* mask is"),
        ({"axis": 1}, checks.future, "a later token moves an earlier logit"),
        ({"axis": 0}, checks.rows, "the rows of a batch are not independent: changing row 1"),
        ({"across_rows": True}, checks.rows, "a softmax, norm or reshape mixes the batch axis"),
    ],
)
def test_a_model_that_sees_what_it_must_not(mistake, check, words):
    assert check(Careless()) == ""
    fault = check(Careless(**mistake))
    assert re.search(words, fault), fault


def test_a_mask_that_comes_one_too_late():
    class Late(GPT):
        def logits(self, idx):
            return super().logits(tt.cat((idx[:, 1:], idx[:, :1]), dim=1))

    assert "changing the tokens from position" in checks.future(Late(SIZES))


def test_an_initialisation_that_does_not_guess():
    model = GPT(SIZES)
    model.transformer.wte.weight.data.normal_()  # nn.Embedding's own, under a tied head
    fault = checks.first_loss(model, batch())
    assert "guesses, which is ln 20 = 2.996: the initial weights are too large" in fault


def test_a_model_that_sees_its_targets():
    class Cheating(GPT):
        def loss(self, idx, targets):
            logits = self(idx)[0] + 10 * F.one_hot(targets, V)
            return F.cross_entropy(logits.view(-1, V), targets.reshape(-1))

    assert "it sees its targets" in checks.first_loss(Cheating(SIZES), batch())


def test_a_copy_in_place_of_a_tied_table():
    model = GPT(SIZES)
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.detach().clone())
    groups = [{"params": list(model.parameters())}]
    assert "the head's weight is a copy of the token table" in checks.tied_once(model, groups)


def test_a_tied_table_under_two_names():
    model = GPT(SIZES)
    twice = [{"params": [p for _, p in model.named_parameters(remove_duplicate=False)]}]
    fault = checks.tied_once(model, twice)
    assert "transformer.wte.weight is given to the optimizer twice" in fault


def test_a_parameter_that_the_optimizer_does_not_have():
    model = GPT(SIZES)
    groups = [{"params": [p for p in model.parameters() if p.ndim == 2]}]
    assert "transformer.h.0.ln_1.weight is not given to the optimizer" in checks.tied_once(
        model, groups
    )


def test_a_model_that_cannot_learn_by_heart():
    assert checks.overfits(Careless(), batch()) == ""
    fault = checks.overfits(Careless(blind=True), batch())
    assert fault.startswith("one batch of 8 rows is not learned by heart: after 120 steps")


# ---- Planted faults: the data ----


def test_targets_that_are_not_the_next_tokens():
    assert checks.targets(batch()) == ""
    assert "the inputs themselves" in checks.targets(batch(moved=0))
    assert "moved by 3 tokens, not by one" in checks.targets(batch(moved=3))
    x, y = batch()
    assert "not the inputs moved by one token" in checks.targets((x, y.flip(0)))


def test_one_split_for_both_losses(corpus):
    assert checks.overlap(corpus) == ""
    whole = corpus.splits["train"]
    corpus.splits["validation"] = whole[-500:]
    assert "they are cut from the same tokens" in checks.overlap(corpus)
    corpus.splits["validation"] = whole[1000:1600].copy()
    assert "passages of the validation text stand in the training text" in checks.overlap(corpus)


def test_a_text_that_repeats_itself_is_no_fault(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the same line again\n" * 300)
    assert checks.overlap(load_corpus(TrainConfig(data=str(path), **TINY))) == ""


# ---- Where they run ----


def test_a_training_begins_with_them(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        TextCorpus, "training_batches", lambda self: Shifted(self.windows("train", "batches"))
    )
    config = TrainConfig(data=corpus.source, iterations=2, eval_batches=1, **TINY)
    with pytest.raises(UserError, match=r"moved by 2 tokens, not by one \(--no-checks trains"):
        train.train(config)
    assert not Path("runs").exists()


class Shifted:
    """Batches whose targets lie one token too far."""

    def __init__(self, windows):
        self.windows = windows

    def next_batch(self):
        x, y = self.windows.next_batch()
        return x[:, :-1], y[:, 1:]


def test_the_command_prints_each(corpus, capsys, monkeypatch):
    flags = f"--data {corpus.source} --block-size 8 --n-layer 1 --n-head 2 --n-embd 32".split()
    assert main(["check", *flags]) == 0
    assert capsys.readouterr().out.count("ok      ") == 7
    monkeypatch.setattr(
        TextCorpus, "training_batches", lambda self: Shifted(self.windows("train", "batches"))
    )
    assert main(["check", *flags]) == 2
    printed = capsys.readouterr().out
    assert printed.count("ok      ") == 6
    assert "fault   the targets are the inputs moved by 2 tokens, not by one\n" in printed
