"""Weights of GPT-2 in and out: golden numbers, every refusal in one sentence, peak memory."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import tinytensor as tt
from gpt import UserError, cli, weights
from gpt.bpe import BytePairTokenizer
from gpt.export import save_pretrained
from gpt.files import checksums, write_checksums
from gpt.model import GPT, BigramLanguageModel, GPTConfig, parameter_groups
from gpt.runs import RunFolder
from gpt.tokenizer import CharTokenizer
from gpt.tokenizers import describe_characters, load_tokenizer
from gpt.weights import cache_folder, find_weights, load_gpt2, load_pretrained, read_config
from tests.gpt import gpt2_files
from tests.gpt.gpt2_files import batch, numbers, write

# Measured once with PyTorch 2.13 and transformers 5.23 on the files of `gpt2_files.write`.
LOGITS_FIRST = [-0.12534717, -0.20290832, -0.78424698, 0.08071526]
LOGITS_LAST = [0.63072342, -0.18442877, -1.78225243, -0.58847558]
LOGITS_STD = 0.70434448230777
GREEDY = [
    [92, 92, 92, 74, 93, 93, 93, 93, 93, 32, 32, 32],
    [32, 32, 92, 32, 32, 32, 32, 32, 32, 32, 32, 32],
]
LOSSES = [4.791693, 4.811444, 4.922592, 4.739994, 4.82088, 4.875477, 4.928483, 4.854799, 4.991421,
          4.687741]  # fmt: skip
NORMS = [1.582298, 1.358129, 1.490009, 1.413444, 1.320453, 1.737099, 1.255412, 1.567334, 1.636709,
         1.350814]  # fmt: skip


# ---- In ----


def test_logits_and_greedy_text_as_transformers_computes_them(tmp_path):
    model = load_gpt2(write(tmp_path / "small"))
    x = tt.tensor(batch()[:, :16])
    logits = model(x)[0].detach().numpy()
    np.testing.assert_allclose(logits[0, 0, :4], LOGITS_FIRST, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits[-1, -1, -4:], LOGITS_LAST, rtol=0, atol=1e-5)
    assert logits.astype(np.float64).std(ddof=1) == pytest.approx(LOGITS_STD, rel=1e-6)
    tokens = x[:2, :4]
    for _ in range(12):
        following = model(tokens)[0][:, -1, :].argmax(-1, keepdim=True)
        tokens = tt.cat((tokens, following), dim=1)
    assert tokens[:, 4:].tolist() == GREEDY


def test_ten_training_steps_as_pytorch_takes_them(tmp_path):
    model = load_gpt2(write(tmp_path / "small")).train()
    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = tt.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(10):
        tokens = tt.tensor(batch(step))
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
        loss.backward()
        norms.append(tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, LOSSES, rtol=0, atol=1e-5)
    np.testing.assert_allclose(norms, NORMS, rtol=1e-5)


def same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name].numpy() == second[name].numpy()).all(), name


def prefixed(tensors):
    return {f"transformer.{name}": array for name, array in tensors.items()}


def masks():
    mask = np.tril(np.ones((1, 1, 16, 16), np.float32))
    return {f"h.{i}.attn.bias": mask for i in range(2)} | {
        "h.0.attn.masked_bias": np.array(-1e4, np.float32),
        "h.1.attn.bias": mask.astype(np.uint8),  # another age of the library
    }


@pytest.mark.parametrize(
    ("tensors", "options"),
    {
        "prefix": (prefixed(numbers()), {}),
        "masks": (numbers() | masks(), {}),
        "head": (prefixed(numbers()) | {"lm_head.weight": numbers()["wte.weight"]}, {}),
        "three files": (prefixed(numbers()), {"files": 3}),
        "old config": (numbers(), {"n_positions": ..., "layer_norm_epsilon": ..., "n_inner": None}),
    }.values(),
    ids=["prefix", "masks", "head", "three files", "old config"],
)
def test_the_same_model_in_other_files(tensors, options, tmp_path):
    plain = load_gpt2(write(tmp_path / "plain"))
    same_weights(plain, load_gpt2(write(tmp_path / "other", tensors, **options)))
    assert plain.config == GPTConfig(97, 16, 2, 3, 24) and not plain.training
    assert plain.lm_head.weight is plain.transformer.wte.weight


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_halves_become_float32(dtype, tmp_path):
    halves = {name: array.astype(dtype) for name, array in numbers().items()}
    whole = {name: array.astype(np.float32) for name, array in halves.items()}
    model = load_gpt2(write(tmp_path / "halves", halves))
    assert model.transformer.wte.weight.dtype == tt.float32
    same_weights(model, load_gpt2(write(tmp_path / "whole", whole)))


def test_header_of_odd_length(tmp_path):
    """The format does not say that numbers begin at a multiple of their size."""
    folder = write(tmp_path / "odd")
    plain = load_gpt2(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length].rstrip()
    header += b" " * (1 - len(header) % 2)
    assert len(header) % 2
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    same_weights(plain, load_gpt2(folder))


def test_untied(tmp_path):
    head = numbers(5)["wte.weight"]
    folder = write(
        tmp_path / "untied",
        prefixed(numbers()) | {"lm_head.weight": head},
        tie_word_embeddings=False,
    )
    model = load_gpt2(folder)
    assert (model.lm_head.weight.detach().numpy() == head).all()
    assert not (model.transformer.wte.weight.detach().numpy() == head).all()


def test_changes(tmp_path):
    folder = write(tmp_path / "small", attn_pdrop=0.1, embd_pdrop=0.2)
    plain = load_gpt2(folder, dropout=0.0)
    x = tt.tensor(batch()[:, :8])
    shorter = load_gpt2(folder, dropout=0.25, block_size=8)
    assert shorter.config.dropout == 0.25 and shorter.transformer.wpe.weight.shape == (8, 24)
    assert (shorter(x)[0].detach().numpy() == plain(x)[0].detach().numpy()).all()
    padded = load_gpt2(folder, dropout=0.0, vocab_multiple=64)
    assert padded.transformer.wte.weight.shape == (128, 24)
    assert not padded.transformer.wte.weight.detach().numpy()[97:].any()
    np.testing.assert_allclose(
        padded(x)[0].detach().numpy()[..., :97], plain(x)[0].detach().numpy(), rtol=0, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"block_size cannot be 17: .* has 16 positions"):
        load_gpt2(folder, dropout=0.0, block_size=17)
    with pytest.raises(ValueError, match="n_layer belongs to the weights; one can change dropout"):
        load_gpt2(folder, n_layer=1)


def test_weights_are_their_own(tmp_path):
    """The file may go, and layers made later draw their starting values again."""
    folder = write(tmp_path / "small")
    model = load_gpt2(folder)
    with tt.no_grad():
        model.transformer.wte.weight.fill_(0)
    same_weights(load_gpt2(folder), load_gpt2(write(tmp_path / "same")))
    fresh = GPT(GPTConfig(**{**vars(model.config), "vocab_size": 5}))
    assert fresh.transformer.wte.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert tt.nn.Linear(3, 3).weight.abs().sum().item() > 0


# ---- What is refused ----


def without(name):
    return {key: array for key, array in numbers().items() if key != name}


def planted(name, value):
    tensors = numbers()
    tensors[name].flat[3] = value
    return tensors


REFUSED = {
    "missing, unexpected and misshapen at once": (
        without("h.1.mlp.c_fc.bias")
        | {"h.0.ln_1.gain": np.zeros(2, np.float32)}
        | {"h.0.attn.c_attn.weight": np.zeros((72, 24), np.float32)},
        {},
        r"1 missing: transformer\.h\.1\.mlp\.c_fc\.bias \(96,\); 1 unexpected: h\.0\.ln_1\.gain; "
        r"1 misshapen: h\.0\.attn\.c_attn\.weight is \(72, 24\), not \(24, 72\)$",
    ),
    "another width": (numbers(), {"n_embd": 27}, "misshapen: .* and 20 more"),
    "another vocabulary": (numbers(), {"vocab_size": 98}, r"is \(97, 24\), not \(98, 24\)"),
    "more layers": (numbers(), {"n_layer": 3}, "12 missing: .* and 4 more"),
    "fewer layers": (numbers(), {"n_layer": 1}, "12 unexpected: .* and 4 more"),
    "far more layers": (numbers(), {"n_layer": 2**30}, r"17,208 numbers, but .* a model of 7,\d"),
    "far wider": (numbers(), {"n_embd": 3 * 2**28}, "17,208 numbers, but"),
    "no head": (numbers(), {"tie_word_embeddings": False}, r"missing: lm_head\.weight \(97, 24\)"),
    "a head that is not tied": (
        numbers() | {"lm_head.weight": numbers(1)["wte.weight"]},
        {},
        "is not the token table, though",
    ),
    "twice": (numbers() | prefixed(numbers()), {}, "holds .* twice, with and without"),
    "not a number": (planted("wte.weight", np.nan), {}, r"1 numbers of wte\.weight are not finite"),
    "infinite": (planted("h.1.ln_2.bias", -np.inf), {}, r"h\.1\.ln_2\.bias are not finite"),
    "integers": (
        numbers() | {"ln_f.bias": np.zeros(24, np.int32)},
        {},
        r"ln_f\.bias is int32; weights are float32, bfloat16 or float16",
    ),
    "another model": (numbers(), {"model_type": "llama"}, "model_type is 'llama', but this"),
    "n_inner": (numbers(), {"n_inner": 100}, "n_inner is 100, but this GPT widens four"),
    "epsilon": (numbers(), {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06, but"),
    "unscaled": (numbers(), {"scale_attn_weights": False}, "scale_attn_weights is False"),
    "scaled by layer": (numbers(), {"scale_attn_by_inverse_layer_idx": True}, "idx is True"),
    "cross": (numbers(), {"add_cross_attention": True}, "add_cross_attention is True"),
    "quantized": (numbers(), {"quantization_config": {"bits": 4}}, "quantization_config is"),
    "activation": (numbers(), {"activation_function": "silu"}, "is 'silu'; known are gelu_new"),
    "activation list": (numbers(), {"activation_function": ["relu"]}, r"is \['relu'\]; known"),
    "three dropouts": (
        numbers(),
        {"attn_pdrop": 0.2},
        r"embd_pdrop, attn_pdrop, resid_pdrop are 0\.0, 0\.2, 0\.0, .*dropout=0\.1\) chooses",
    ),
    "dropout of all": (
        numbers(),
        {"attn_pdrop": 1, "embd_pdrop": 1, "resid_pdrop": 1},
        "dropout is a probability",
    ),
    "no size": (numbers(), {"n_embd": ...}, "has no n_embd; is it the configuration of a GPT-2"),
    "half a size": (numbers(), {"n_layer": 2.0}, r"n_layer is 2\.0, not a number from 1 to 2\^31"),
    "true size": (numbers(), {"n_layer": True}, "n_layer is True, not"),
    "negative": (numbers(), {"n_head": -3}, "n_head is -3, not"),
    "heads": (numbers(), {"n_head": 5}, "heads must divide the width: 24 channels do not split"),
    "tied or not": (numbers(), {"tie_word_embeddings": "yes"}, "is 'yes', neither true nor false"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "options", "sentence"), REFUSED.values(), ids=list(REFUSED))
def test_what_does_not_fit_is_one_sentence(tensors, options, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as caught:
        load_gpt2(write(tmp_path / "folder", tensors, **options))
    text = str(caught.value)
    assert str(tmp_path / "folder") in text and "\n" not in text


def index_of(folder, **placed):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"] |= placed
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("placed", "sentence"),
    {
        "traversal": ({"wte.weight": "../secret.safetensors"}, "no file name beside it"),
        "absolute": ({"wte.weight": "/etc/passwd"}, "no file name beside it"),
        "number": ({"wte.weight": 3}, "no file name beside it"),
        "no such file": ({"more": "a.safetensors"}, "a.safetensors cannot be read: No such file"),
        "elsewhere": ({"wte.weight": "x.safetensors"}, "weight', which .* puts 'x.safetensors'"),
        "no such name": ({"more": "model-00001-of-00002.safetensors"}, "lists more, which its"),
        "the other file": (
            {"wte.weight": "model-00002-of-00002.safetensors"},
            "'wte.weight', which model.safetensors.index.json puts 'model-00002",
        ),
    }.values(),
    ids=str,
)
def test_an_index_that_lies(placed, sentence, tmp_path):
    folder = write(tmp_path / "folder", files=2)
    index_of(folder, **placed)
    with pytest.raises(UserError, match=sentence):
        load_gpt2(folder)


def test_a_name_that_the_index_does_not_list(tmp_path):
    folder = write(tmp_path / "folder", files=2)
    path = folder / "model-00001-of-00002.safetensors"
    tensors = safetensors.numpy.load_file(path) | {"more": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(UserError, match=r"'more', which model.safetensors.index.json puts nowhere"):
        load_gpt2(folder)


def test_where_nothing_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(weights, "cache_folder", lambda name: tmp_path / "cache" / name)
    for name in ("gpt2-xl", "openai-community/gpt2-xl"):
        with pytest.raises(
            UserError, match="gpt2-xl is not on this machine; `python -m gpt downlo"
        ):
            load_gpt2(name)
    with pytest.raises(UserError, match=r"no folder llama; .* or a name: gpt2, gpt2-medium"):
        load_gpt2("llama")
    with pytest.raises(UserError, match=r"there is no file x\.safetensors"):
        load_gpt2("x.safetensors")
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no weights: neither model.safetensors nor"):
        load_gpt2("empty")
    Path("empty/pytorch_model.bin").touch()
    with pytest.raises(UserError, match="a pickle can run any program"):
        load_gpt2("empty")


def test_names_are_found_where_they_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(weights, "cache_folder", lambda name: tmp_path / "cache" / name)
    theirs = tmp_path / "hf/hub/models--openai-community--gpt2"
    commit = "0123456789" * 4
    (theirs / "refs").mkdir(parents=True)
    (theirs / "refs/main").write_text(commit)
    (theirs / "snapshots" / commit).parent.mkdir()
    write(theirs / "snapshots" / commit)
    assert find_weights("gpt2")[0] == theirs / "snapshots" / commit
    (tmp_path / "cache").mkdir()
    ours = write(tmp_path / "cache/gpt2")
    assert find_weights("openai-community/gpt2")[0] == ours
    write(Path("gpt2"))
    assert find_weights("gpt2")[0] == Path("gpt2")
    monkeypatch.undo()
    assert cache_folder("gpt2").name == "gpt2"


def test_checksums(tmp_path):
    folder = write(tmp_path / "small")
    write_checksums(folder, ["config.json", "model.safetensors"])
    load_gpt2(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last bit of a number: nothing else could notice
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors is damaged: its SHA-256 is not"):
        load_gpt2(folder)
    (folder / "SHA256SUMS").unlink()
    load_gpt2(folder)
    (folder / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(UserError, match="SHA256SUMS is damaged"):
        load_gpt2(folder)


# ---- Out ----


def tokenizer():
    return BytePairTokenizer.train(["low lower lowest newest widest"] * 3, 300)


def small(**changes):
    tt.manual_seed(0)
    return GPT(GPTConfig(**{"vocab_size": 97, "block_size": 16, "n_layer": 2, "n_head": 3,
                            "n_embd": 24, **changes}))  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False}, {"tied": False}, {"activation": "relu"}, {"vocab_multiple": 64}],
    ids=str,
)
def test_what_is_written_is_read_again(changes, tmp_path):
    model = small(**changes, dropout=0.125).eval()
    save_pretrained(model, tmp_path / "out")
    again = load_gpt2(tmp_path / "out")
    assert again.config == GPTConfig(**{**vars(model.config), "bias": True, "vocab_multiple": 1})
    x = tt.tensor(batch()[:, :16])
    mine, found = model(x)[0].detach().numpy(), again(x)[0].detach().numpy()
    np.testing.assert_allclose(found, mine[..., :97], rtol=0, atol=1e-6)
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert sorted(checksums(tmp_path / "out")) == ["config.json", "model.safetensors"]


def test_the_files_are_as_their_library_writes_them(tmp_path):
    """Golden: names, layout, metadata and configuration, read by other readers than ours."""
    source = write(tmp_path / "in")
    save_pretrained(load_gpt2(source), tmp_path / "out")
    written = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    expected = prefixed(numbers())
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        assert written[name].dtype == np.float32 and (written[name] == array).all(), name
    with safetensors.safe_open(tmp_path / "out/model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "out/config.json").read_text())
    before = json.loads((source / "config.json").read_text())
    for key in gpt2_files.CONFIG.keys() - {"n_ctx", "task_specific_params", "summary_type"}:
        if not key.endswith("token_id"):
            assert config[key] == before[key], key


def test_tokenizer_goes_along(tmp_path):
    mine = tokenizer()
    save_pretrained(small(vocab_size=mine.vocab_size), tmp_path / "out", mine)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["SHA256SUMS", "config.json", "merges.txt", "model.safetensors",
                     "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]  # fmt: skip
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["eos_token_id"] == config["bos_token_id"] == mine.end_of_text
    _, again = load_pretrained(tmp_path / "out")
    assert again.encode("lowest new é") == mine.encode("lowest new é")


def test_weights_and_tokenizer_must_fit(tmp_path):
    mine = tokenizer()
    with pytest.raises(UserError, match=f"has 97 tokens, the tokenizer {mine.vocab_size}"):
        save_pretrained(small(), tmp_path / "out", mine)
    save_pretrained(small(vocab_size=mine.vocab_size), tmp_path / "out", mine)
    for name in ("SHA256SUMS", "config.json", "model.safetensors"):
        (tmp_path / "out" / name).unlink()
    write(tmp_path / "out")
    with pytest.raises(UserError, match=f"for 97 tokens, but its tokenizer has {mine.vocab_size}"):
        load_pretrained(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_written(dtype, tmp_path):
    model = small()
    save_pretrained(model, tmp_path / "out", dtype=dtype)
    again = load_gpt2(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        assert (tensor.to(getattr(tt, dtype)).float().numpy() == again[name].numpy()).all()
    size = (tmp_path / "out/model.safetensors").stat().st_size
    assert size == pytest.approx(2 * model.config.parameter_count(), rel=0.1)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="a bias in its head"):
        save_pretrained(small(head_bias=True), tmp_path / "out")
    model = small()
    with tt.no_grad():
        model.transformer.wpe.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"wpe.weight has numbers that are not finite in"):
        save_pretrained(model, tmp_path / "out", dtype="float16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match="full already has something in it"):
        save_pretrained(model, tmp_path / "full")
    with pytest.raises(UserError, match="a Strange cannot be written for `transformers`"):
        save_pretrained(model, tmp_path / "out", type("Strange", (), {"vocab_size": 97})())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="out cannot be written: Not a directory"):
        save_pretrained(model, tmp_path / "file/out")
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def test_export_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be, or not to be, that is the question: " * 40)
    options = (
        "--data text.txt --block-size 8 --n-layer 1 --n-head 2 --n-embd 16 --batch-size 4 "
        "--iterations 3 --warmup 1 --eval-every 3 --eval-batches 1 --sample-chars 0"
    )
    assert cli.main(["train", "--name", "small", *options.split()]) == 0
    assert cli.main(["export", "--run", "runs/small", "--out", "out"]) == 0
    assert "out" in capsys.readouterr().out
    vocabulary = json.loads(Path("out/tokenizer.json").read_text())["model"]["vocab"]
    run = RunFolder.open("runs/small")
    characters = run.tokenizer()
    assert isinstance(characters, CharTokenizer) and vocabulary == characters.number
    same = load_gpt2("out")
    assert same.config.vocab_size == characters.vocab_size
    _, tokenizer = load_pretrained("out")
    assert isinstance(tokenizer, CharTokenizer)
    assert tokenizer.vocabulary == characters.vocabulary
    capsys.readouterr()
    texts = []
    for model in (["--run", "runs/small"], ["--weights", "out"]):
        asked = [*model, "--prompt", "to", "--max-new-tokens", "9", "--temperature", "0"]
        assert cli.main(["generate", *asked]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert cli.main(["export", "--run", "runs/small", "--out", "out"]) == 2
    assert "already has something in it" in capsys.readouterr().err
    assert cli.main(["export", "--run", "runs/none", "--out", "more"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"model": []},
        {"model": {"type": "BPE", "vocab": {"ab": 0}}},
        {"model": {"type": "WordLevel", "vocab": {"a": 1, "b": 0}, "unk_token": ""}},
        {"normalizer": {"type": "Lowercase"}},
    ],
)
def test_another_tokenizer_of_that_library_is_refused(tmp_path, change):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(describe_characters(CharTokenizer("ab")) | change))
    with pytest.raises(UserError, match=r"json is a tokenizer of the library `tokenizers`; of th"):
        load_tokenizer(path)


def test_bigram_has_no_place_there(tmp_path, monkeypatch):
    from gpt import export, runs

    monkeypatch.setattr(runs, "load_run", lambda *_: (BigramLanguageModel(5), None))
    with pytest.raises(UserError, match="is a BigramLanguageModel, which `transformers` does not"):
        export.export(export.ExportConfig("runs/bigram", str(tmp_path / "out")))


# ---- Memory ----

PEAK = """
    import re, sys
    from gpt.weights import load_gpt2
    def peak():  # not ru_maxrss, which remembers the process that this one was forked from
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    before = peak()
    model = load_gpt2(sys.argv[1])
    print(peak() - before, 4 * model.config.parameter_count())
"""


def peak_and_size(folder):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(folder)],
        capture_output=True, text=True, cwd=Path(weights.__file__).parents[1],
    )  # fmt: skip
    assert not run.returncode, run.stderr
    return map(int, run.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_second_copy_of_the_weights(tmp_path):
    """The model's own memory, and little more: files are mapped a tensor at a time."""
    sizes = {"vocab_size": 4000, "n_positions": 64, "n_embd": 512, "n_layer": 8, "n_head": 8}
    config = gpt2_files.CONFIG | sizes
    folder = write(tmp_path / "large", numbers(config=config), **sizes)
    peak, size = peak_and_size(folder)
    assert size > 100e6
    assert size < peak < 1.2 * size


def test_the_dtypes_of_config_are_read_by_name(tmp_path):
    config = read_config(write(tmp_path / "small", torch_dtype="bfloat16") / "config.json")
    assert config == GPTConfig(97, 16, 2, 3, 24)
    assert re.fullmatch(r"[\w.-]+", find_weights(tmp_path / "small")[1].name)
