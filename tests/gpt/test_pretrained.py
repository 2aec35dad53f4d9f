"""Training that begins with published weights: what it takes from them, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tinytensor as tt
from gpt import UserError, cli, runs, train
from gpt.bpe import BytePairTokenizer
from gpt.config import TrainConfig
from gpt.data import load_text
from gpt.export import save_pretrained
from gpt.model import GPT, GPTConfig
from gpt.presets import PRESETS
from gpt.pretrained import with_sizes
from gpt.runs import RunFolder
from gpt.weights import load_gpt2
from tests.gpt import gpt2_files

TEXT = load_text("python").content[:6000]
BYTES = BytePairTokenizer([])  # a token a byte, and the end of a text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Weights of a small GPT-2 that reads bytes, in `weights`, and a text beside them."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    model = GPT(GPTConfig(BYTES.vocab_size, 32, n_layer=2, n_head=2, n_embd=16, dropout=0.1))
    save_pretrained(model, Path("weights"), BYTES)
    return tmp_path


RECIPE = TrainConfig(
    data="text.txt", block_size=16, batch_size=4, iterations=8, eval_every=4, eval_batches=2,
    warmup=0, sample_chars=10, checkpoint_every=4,
)  # fmt: skip
LINE = (
    "--data text.txt --block-size 16 --batch-size 4 --total-batch 0 --iterations 4 --eval-every 2 "
    "--eval-batches 2 --sample-chars 10 --learning-rate 1e-3"
)


def start(**changes):
    return dataclasses.replace(with_sizes(RECIPE, "weights"), **changes)


def test_the_first_loss_is_that_of_the_weights(folder):
    """Cropped to 16 of 32 positions, the vocabulary padded, checkpointed: the same function."""
    changes = {"vocab_multiple": 64, "checkpointing": True}
    run = train.train(start(**changes)).run
    model = load_gpt2("weights", block_size=16)
    corpus = train.load_corpus(run.config(), run.tokenizer())
    expected = train.evaluate(model, corpus, run.config())
    first = run.records("evaluation")[0]
    for name, loss in expected.items():
        assert first[name] == pytest.approx(loss, rel=1e-6)
    assert run.records("evaluation")[-1]["train_loss"] < first["train_loss"]

    config = json.loads((run.path / "config.json").read_text())
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "bias": True, "block_size": 16, "dropout": 0}
    assert config["init_from"] == "weights" and config.items() >= sizes.items()
    trained, tokenizer = runs.load_run(str(run))
    assert trained.config.padded_vocab_size == 320 and tokenizer.to_json() == BYTES.to_json()


def checkpoint(run):
    return (run.checkpoint() / "model.safetensors").read_bytes()


def test_a_resumed_run_needs_the_weights_no_more(folder):
    constant = start(schedule="constant", dropout=0.1)
    whole = train.train(dataclasses.replace(constant, name="whole")).run
    parted = train.train(dataclasses.replace(constant, name="parted", iterations=4)).run
    shutil.rmtree("weights")
    longer = dataclasses.replace(parted.config(), iterations=8)
    train.train(longer, RunFolder.open(str(parted)))
    assert checkpoint(parted) == checkpoint(whole)


def test_a_run_that_was_stopped_at_once_begins_with_them_again(folder):
    whole = train.train(start(name="whole")).run
    run = train.train(start(name="lost")).run
    shutil.rmtree(run.checkpoint())
    train.train(run.config(), RunFolder.open(str(run)))
    assert checkpoint(run) == checkpoint(whole)


def test_the_command_takes_sizes_tokenizer_and_recipe_from_them(folder, capsys):
    assert cli.main(["train", "--init-from", "weights", *LINE.split()]) == 0
    assert "from the weights of weights" in capsys.readouterr().out
    config = RunFolder.open("runs/gpt2-finetune").config()
    assert (config.preset, config.n_layer, config.beta2) == ("gpt2-finetune", 2, 0.95)
    assert cli.main(["train", "--init_from=weights", "--preset", "char", *LINE.split()]) == 0
    assert RunFolder.open("runs/char").config().beta2 == PRESETS["char"].beta2
    assert cli.main(["train", "--resume", "runs/char", "--iterations", "6"]) == 0
    assert cli.main(["check", "--init-from", "weights", *LINE.split()]) == 0
    assert "ok      the first loss is below ln V" in capsys.readouterr().out


def test_the_steps_shrink_with_a_context_that_the_weights_do_not_have(folder):
    config = with_sizes(PRESETS["gpt2-finetune"], "weights")
    assert (config.block_size, config.batch_size, config.accumulation) == (32, 1, 32)


def test_shards_of_the_same_tokenizer(folder):
    Path("shards").mkdir()
    ids = np.array(BYTES.encode(TEXT), np.uint16)
    np.save("shards/train-0.npy", ids[:4000])
    np.save("shards/validation-0.npy", ids[4000:])
    assert train.train(start(data="shards")).finished
    BytePairTokenizer.train([TEXT], 300).save(Path("shards/tokenizer.json"))
    with pytest.raises(UserError, match="shards was made with another tokenizer than that of --in"):
        train.train(start(data="shards"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--init-from absent", "there is no folder absent; give one with config.json"),
        ("--init-from gpt2-xl", "`python -m gpt download gpt2-xl` fetches it"),
        ("--init-from run", "`python -m gpt export --run run --out FOLDER` makes such a one"),
        ("--init-from weights --n-layer 3", "--n-layer 3 does not fit --init-from weights, where"),
        ("--init-from weights --no-bias", "--bias False does not fit --init-from weights"),
        ("--init-from weights --block-size 64", "--block-size 64 is beyond the 32 positions"),
        ("--init-from weights --model bigram", "--init-from weights is for --model gpt"),
        ("--init-from resume", "--resume FOLDER goes on with that run"),
        ("--init-from weights --tokenizer characters", "has weights for 257 tokens, but the token"),
    ],
)
def test_what_does_not_fit_is_one_sentence(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("HF_HOME", str(folder))
    monkeypatch.setattr("gpt.weights.cache_folder", lambda name: folder / "cache" / name)
    (folder / "run" / "checkpoint-000001").mkdir(parents=True)
    (folder / "run" / "tokenizer.json").touch()
    assert cli.main(["train", *LINE.split(), *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err
    assert captured.err.count("\n") == 1 and not Path("runs").exists()


def test_an_empty_name_is_refused():
    with pytest.raises(UserError, match="--init-from needs scratch, a name such as gpt2, or a fol"):
        TrainConfig(init_from="")


def test_weights_that_do_not_belong_to_the_text_are_noticed(folder):
    """Planted: numbers so large that the model is surer than it knows."""
    config = {**gpt2_files.CONFIG, **LARGE}
    numbers = {k: 9 * v for k, v in gpt2_files.numbers(config=config).items()}
    BYTES.save(gpt2_files.write(folder / "wild", numbers, **LARGE) / "tokenizer.json")
    with pytest.raises(UserError, match="the weights belong to another tokenizer, or were damaged"):
        train.train(with_sizes(RECIPE, "wild"))


LARGE = {"vocab_size": BYTES.vocab_size, "n_positions": 32, "n_ctx": 32}


def test_from_pretrained_is_load_gpt2(folder):
    model = GPT.from_pretrained("weights", block_size=8)
    assert model.block_size == 8 and not model.training
    idx = tt.tensor([[1, 2, 3]])
    same = load_gpt2("weights", block_size=8)
    assert model(idx)[0].tolist() == same(idx)[0].tolist()


@pytest.mark.parity
def test_a_step_from_weights_is_the_step_that_transformers_takes(folder):
    """A random GPT-2 that `transformers` builds and saves; one step of plain SGD on each side."""
    import torch
    import transformers

    torch.manual_seed(1)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=BYTES.vocab_size, n_positions=32, n_embd=24, n_layer=2, n_head=3,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=256, eos_token_id=256,
        )
    )  # fmt: skip
    theirs.save_pretrained("theirs")
    BYTES.save(Path("theirs/tokenizer.json"))
    config = dataclasses.replace(
        with_sizes(RECIPE, "theirs"), learning_rate=1e-2, iterations=2, schedule="constant",
        weight_decay=0.0, clip=0.0, log_every=1,
    )  # fmt: skip
    run = train.train(config).run

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    batches = train.load_corpus(run.config(), run.tokenizer()).training_batches()
    losses = []
    for _ in range(2):
        x, y = (torch.from_numpy(part.numpy()).long() for part in batches.next_batch())
        logits = theirs(x).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = [record["loss"] for record in run.records("train")]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
