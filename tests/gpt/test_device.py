"""Every command computes on every device, with the same numbers; "cuda-sim" stands in for a GPU.

The runs are the smallest that there are: one layer, a width of 16, a context of 8.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from pathlib import Path

import numpy as np
import pytest

import tinytensor as tt
import tinytensor.distributed as dist
from gpt import UserError, devices, plan, ranks, runs, train
from gpt.captured import CapturedGradients
from gpt.checks import overfits
from gpt.cli import main
from gpt.config import GenerateConfig, TrainConfig
from gpt.corpus import load_corpus
from gpt.data import load_text
from gpt.evaluate import EvaluateConfig
from gpt.generate import generate, write_in_order
from gpt.hellaswag import Example, ending_nats, score_examples
from gpt.presets import PRESETS
from gpt.runs import RunFolder
from gpt.tokenizer import CharTokenizer
from tinytensor import backend
from tinytensor.cuda.device import host_copies

SIM = "cuda-sim"
simulated = pytest.mark.compiler  # the simulator compiles the kernels

no_gpu = pytest.mark.skipif(tt.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Six steps of two batches, with dropout and clipping."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "plot_losses", lambda run, path: None)  # the picture and the peak
    monkeypatch.setattr(train, "peak_of", lambda where, config: 1e9)  # take longer than the steps
    Path("text.txt").write_text(load_text("python").content[:3000], encoding="utf-8")
    return TrainConfig(
        data="text.txt",
        device="cpu",
        block_size=8,
        n_layer=1,
        n_head=2,
        n_embd=16,
        dropout=0.1,
        iterations=6,
        batch_size=2,
        total_batch=32,
        learning_rate=1e-2,
        schedule="constant",
        warmup=2,
        eval_every=100,
        eval_batches=1,
        log_every=1,
        checkpoint_every=0,
        sample_chars=4,
    )


def trained(config, **changes):
    return train.train(dataclasses.replace(config, **changes)).run


def numbers(run, *names, kind="train"):
    return [[record[name] for name in names] for record in run.records(kind)]


def model_of(config, device, vocab_size=50):
    tt.manual_seed(config.seed)
    return runs.build_model(config, vocab_size).to(device)


# ---- Training ----


@simulated
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_losses_are_those_of_the_cpu(config, checkpointing):
    here = trained(config, checkpointing=checkpointing)
    there = trained(config, checkpointing=checkpointing, device=SIM)
    for kind, names in (
        ("train", ["loss", "gradient_norm", "learning_rate"]),
        ("evaluation", ["train_loss", "validation_loss"]),
    ):
        expected = numbers(here, *names, kind=kind)
        assert np.allclose(numbers(there, *names, kind=kind), expected, rtol=0, atol=1e-4)
        assert expected[0] != expected[-1]
    assert (there.records("start")[0]["device"], here.records("start")[0]["device"]) == (SIM, "cpu")


@simulated
@pytest.mark.parametrize(("first", "then"), [("cpu", SIM), (SIM, "cpu")])
def test_a_run_goes_on_on_another_device(config, first, then, monkeypatch):
    whole = trained(config)
    parted = trained(config, device=first, iterations=3)
    finish = dataclasses.replace(parted.config(), device=then, iterations=6)
    train.check_changes(parted.config(), finish)
    parted = train.train(finish, RunFolder.open(str(parted))).run

    assert [record["step"] for record in parted.records("train")] == [1, 2, 3, 4, 5, 6]
    assert np.allclose(numbers(parted, "loss"), numbers(whole, "loss"), rtol=0, atol=1e-4)
    saved = [
        tt.load_file(run.checkpoint() / "model.safetensors")
        for run in (whole, parted)
    ]  # fmt: skip
    assert saved[0].keys() == saved[1].keys()
    for name, tensor in saved[0].items():
        assert saved[1][name].dtype == tt.float32
        np.testing.assert_allclose(saved[1][name].numpy(), tensor.numpy(), rtol=0, atol=1e-3)
    states = [json.loads((run.checkpoint() / "state.json").read_text()) for run in (whole, parted)]
    assert states[0]["batches"] == states[1]["batches"]
    assert states[0]["random"] == states[1]["random"]


@simulated
def test_a_step_reads_its_device_once(config):
    config = dataclasses.replace(config, device=SIM, checks=False)
    copies = []
    for iterations in (2, 5):
        before = host_copies()
        trained(config, iterations=iterations)
        copies.append(host_copies() - before)
    assert copies[1] - copies[0] == 3


@simulated
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_step_that_diverges_is_explained_from_any_device(config):
    said = []
    for device in ("cpu", SIM):
        with pytest.raises(UserError) as error:
            trained(config, device=device, learning_rate=1e38, warmup=0, name=device)
        said.append(str(error.value))
    assert "the training has diverged; looked at on the CPU, the first nan was made by" in said[1]
    # What overflows first at such sizes may differ; what is found on the CPU does not.
    makers = [re.search(r"the first nan was made by (.*?): ", words).group(1) for words in said]
    assert makers[0] == makers[1] == "add_layer_norm (backward) in transformer.ln_f"
    assert RunFolder(Path("runs") / SIM).checkpoint().name == "checkpoint-000001"


@pytest.mark.parametrize("device", ["cpu", pytest.param(SIM, marks=simulated)])
def test_bfloat16_is_near_and_parameters_stay_float32(config, device):
    config = dataclasses.replace(config, device=device, checkpointing=True, iterations=4)
    exact, rounded = trained(config), trained(config, precision="bfloat16")
    losses = [np.array(numbers(run, "loss")) for run in (exact, rounded)]
    assert (losses[0] != losses[1]).any()
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    saved = tt.load_file(rounded.checkpoint() / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {tt.float32}
    with pytest.raises(UserError, match="--precision was 'bfloat16' when the run began"):
        train.check_changes(
            rounded.config(), dataclasses.replace(rounded.config(), precision="float32")
        )


# ---- The other commands ----


@simulated
@pytest.mark.parametrize("cache", [True, False])
def test_the_same_text_is_written(config, cache, capsys):
    run = trained(config, learning_rate=1e-2)
    capsys.readouterr()
    texts = []
    for device in ("cpu", SIM):
        asked = GenerateConfig(
            run=str(run),
            device=device,
            prompt=("the ", "a"),
            max_new_tokens=12,  # beyond the context
            temperature=0,
            cache=cache,
        )
        model, tokenizer = runs.load_run(str(run))
        texts.append(
            [(text.prompt, piece) for text, piece in write_in_order(model, tokenizer, asked)]
        )
        assert str(devices.device_of(model)) == device
    assert texts[0] == texts[1]


@simulated
def test_what_is_drawn_is_the_same_too(config):
    drawn = [
        list(generate(model_of(config, device), [1], 10, generator=tt.Generator(3)))
        for device in ("cpu", SIM)
    ]
    assert drawn[0] == drawn[1]


@simulated
def test_the_same_score_and_the_same_checks(config, capsys):
    run = trained(config, iterations=1)
    capsys.readouterr()
    lines = []
    for device in ("cpu", SIM):
        flags = ["--run", str(run), "--limit", "40", "--device", device]
        assert main(["evaluate", *flags]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]

    batch = load_corpus(config).training_batches().next_batch()
    faults = [overfits(model_of(config, device, 80), batch, steps=2) for device in ("cpu", SIM)]
    assert faults[0] == faults[1] != ""


@simulated
def test_hellaswag_gives_the_same_answers(config, capsys):
    """Endings of different lengths, read behind one cached context."""
    tokenizer = CharTokenizer("abcde ")
    examples = [Example("abca", ("ba", "dec", "e"), 1), Example("d", ("cb", "aa"), 0)]
    small = dataclasses.replace(config, block_size=16)
    scores = []
    for device in ("cpu", SIM):
        model = model_of(small, device, tokenizer.vocab_size)
        context, endings = tokenizer.encode("abca"), [[1, 2, 3], [4]]
        scores.append(ending_nats(model, context, endings))
        accuracy = score_examples(model, tokenizer, examples)
        assert accuracy.examples == 2 and str(devices.device_of(model)) == device
    for here, there in zip(*scores, strict=True):
        np.testing.assert_allclose(there, here, rtol=1e-5)


# ---- Choosing ----


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    for count, name in ((0, "cpu"), (1, "cuda")):
        monkeypatch.setattr(backend, "cuda_device_count", lambda count=count: count)
        assert tt.device("auto").type == name
    assert PRESETS["char"].device == GenerateConfig(run="x").device == "auto"


@no_gpu
def test_without_a_gpu_cuda_is_refused_in_a_sentence(config, capsys):
    run = trained(config, iterations=1)
    capsys.readouterr()
    commands = (
        ["train", "--data", "text.txt"],
        ["train", "--resume", str(run)],
        ["check", "--data", "text.txt"],
        ["generate", "--run", str(run)],
        ["evaluate", "--run", str(run)],
    )
    for command in commands:
        for device in ("cuda", "cuda:3"):
            assert main([*command, "--device", device]) == 2
            said = capsys.readouterr().err
            assert said.startswith(f"error: --device {device}: device '") and said.count("\n") == 1


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "CPU", "", "cpu:0 "])
def test_a_device_that_is_none_is_refused(name):
    for make in (
        lambda: TrainConfig(device=name),
        lambda: GenerateConfig(run="x", device=name),
        lambda: EvaluateConfig(run="x", device=name),
    ):
        with pytest.raises(UserError, match=r"^--device '.*' is unknown; it is auto, cpu, cuda, "):
            make()


def test_each_rank_computes_on_its_own_device(config, monkeypatch):
    asked = []

    def join(timeout, device):
        asked.append(device)
        return dist.Place(1, 2, 1, tt.device("cuda", 1))

    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", join)
    config = dataclasses.replace(config, device="cuda")
    assert str(ranks.join(config).device) == "cuda:1"
    with pytest.raises(UserError, match="--device cuda-sim is for one process"):
        ranks.join(dataclasses.replace(config, device=SIM))
    assert asked == ["cuda", "cpu"]


# ---- Memory and speed ----


GPU = "tinytensor.cuda.memory.gpu"


def fake_cupy(free, pooled=0):
    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            return self

        def __exit__(self, *error): ...

    runtime = types.SimpleNamespace(memGetInfo=lambda: (free, 80 << 30))
    pool = types.SimpleNamespace(free_bytes=lambda: pooled)
    return types.SimpleNamespace(
        cuda=types.SimpleNamespace(Device=Device, runtime=runtime),
        get_default_memory_pool=lambda: pool,
    )


def test_the_plan_compares_with_the_gpu_s_memory(config, monkeypatch):
    where = tt.device("cuda")
    monkeypatch.setattr(GPU, lambda: fake_cupy(free=1 << 20, pooled=1 << 10))
    planned = plan.plan_for(config, 50, where)
    assert planned.available == (1 << 20) + (1 << 10)
    large = dataclasses.replace(config, n_embd=256)
    with pytest.raises(UserError, match=r"needs about .* but the GPU has 1 MB free"):
        plan.plan_for(large, 50, where).check()
    monkeypatch.setattr(GPU, lambda: fake_cupy(free=80 << 30))
    plan.plan_for(large, 50, where).check()


def test_a_cupy_that_cannot_say_what_is_free_stops_nothing(config, monkeypatch):
    monkeypatch.setattr(GPU, lambda: types.SimpleNamespace(cuda=None))
    assert plan.plan_for(config, 50, tt.device("cuda")).available is None

    def missing():
        raise RuntimeError("no CuPy")

    monkeypatch.setattr(GPU, missing)
    plan.plan_for(config, 50, tt.device("cuda")).check()


@simulated
def test_a_device_s_peak_is_that_of_its_own_product(monkeypatch):
    waits = []
    monkeypatch.setattr(tt.cuda, "synchronize", lambda: waits.append(1))
    peak = plan.device_peak(tt.device(SIM), tt.float32, width=16, seconds=0.0)
    assert 0 < peak < math.inf and len(waits) == 2


def test_the_published_recipe_for_a_gpu():
    preset = PRESETS["shakespeare-gpu"]
    assert preset.accumulation * preset.batch_size * preset.block_size == 16_384
    assert (preset.warmup, preset.learning_rate, preset.min_learning_rate) == (100, 1e-3, 1e-4)
    assert (preset.beta2, preset.weight_decay, preset.clip) == (0.99, 0.1, 1.0)
    parameters = runs.model_config(preset, 65).parameter_count()
    # Published as 10.65 million, without the table of positions and rounded.
    assert parameters - 256 * 384 == pytest.approx(10.65e6, abs=1e4)


# ---- Captured ----


@simulated
@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16", "checkpointing": True}])
@pytest.mark.parametrize("total_batch", [16, 32])
def test_a_captured_run_is_the_plain_one(config, changes, total_batch):
    changes = {**changes, "device": SIM, "total_batch": total_batch, "eval_every": 3}
    runs_of = [trained(config, capture=capture, **changes) for capture in (False, True)]
    for kind, names in (
        ("train", ["loss", "gradient_norm", "learning_rate"]),
        ("evaluation", ["train_loss", "validation_loss"]),
    ):
        plain, captured = (numbers(run, *names, kind=kind) for run in runs_of)
        assert plain == captured
        assert plain[0] != plain[-1]
    states = [json.loads((run.checkpoint() / "state.json").read_text()) for run in runs_of]
    assert states[0]["random"] == states[1]["random"]


@simulated
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_captured_run_diverges_in_the_same_words(config):
    with pytest.raises(UserError, match="the training has diverged; looked at on the CPU, the fir"):
        trained(config, device=SIM, learning_rate=1e38, warmup=0, capture=True)


def test_what_cannot_be_captured_is_refused_in_a_sentence(config, monkeypatch):
    with pytest.raises(UserError, match="--capture is for GPUs, and this run computes on the CPU"):
        trained(config, capture=True)
    model = model_of(config, SIM)
    with pytest.raises(UserError, match="--capture is for one process"):
        CapturedGradients(model, config, ranks=2)
    gradients = CapturedGradients(model, config)
    monkeypatch.setattr(devices, "loss_on", lambda model, batch: batch[0].sum().item())
    batch = tt.zeros(1, 8).long(), tt.zeros(1, 8).long()
    gradients.replay.calls = gradients.replay.warmup  # as after two batches
    with pytest.raises(UserError, match=r"^--capture: graph: .*cannot be captured.* without --cap"):
        gradients(batch, 1.0)
