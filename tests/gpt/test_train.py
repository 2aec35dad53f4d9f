"""Training: what a run does, what it leaves, and that a break in it leaves no trace.

Every run here is tiny: one layer, a width of 16, a text of a few thousand characters.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

import gpt
import tinytensor as tt
import tinytensor.distributed as dist
from gpt import UserError, cli, devices, runs, train
from gpt.bpe import BytePairTokenizer
from gpt.config import TrainConfig
from gpt.data import Windows, load_text
from gpt.model import GPT, LanguageModel
from gpt.presets import PRESETS
from gpt.progress import StopRequest
from gpt.runs import RunFolder
from gpt.tokenizer import CharTokenizer
from gpt.train import build_optimizer, check_changes, learning_rate

TEXT = load_text("python").content[:6000]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run of 200 steps with dropout, so that the default generator matters, too."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return TrainConfig(
        data="text.txt",
        block_size=8,
        n_layer=1,
        n_head=2,
        n_embd=16,
        dropout=0.1,
        iterations=200,
        batch_size=4,
        warmup=10,
        eval_every=40,
        eval_batches=2,
        checkpoint_every=30,
        sample_chars=30,
    )


def result(run):
    """Everything that a run came to, without the times."""
    place = run.checkpoint()
    state = json.loads((place / "state.json").read_text())
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    for record in (state, *log):
        record.pop("seconds", None)
        for measured in ("tokens_per_second", "flops_utilisation", "matmul_peak"):
            record.pop(measured, None)
    return {
        "place": place.name,
        "model": (place / "model.safetensors").read_bytes(),
        "optimizer": (place / "optimizer.safetensors").read_bytes(),
        "state": state,
        "log": log,
        "sample": (run.path / "sample.txt").read_bytes(),
    }


def stop_at(step, monkeypatch):
    """Presses Ctrl-C while a step is under way, once."""
    log = RunFolder.log

    def log_and_stop(self, kind, at, **values):
        log(self, kind, at, **values)
        if (kind, at) == ("train", step):
            monkeypatch.setattr(RunFolder, "log", log)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "log", log_and_stop)


def resume(run, **changes):
    return train.train(dataclasses.replace(run.config(), **changes), RunFolder.open(str(run)))


# ---- What a run does and leaves ----


def test_a_run_learns_and_leaves_a_folder(config, capsys):
    outcome = train.train(
        dataclasses.replace(config, iterations=400, learning_rate=1e-2, tied=False, batch_size=16)
    )
    run = outcome.run
    assert outcome.finished and outcome.step == 400 and str(run) == "runs/char"

    start = run.records("start")[0]
    evaluations = run.records("evaluation")
    assert [record["step"] for record in evaluations] == list(range(0, 401, 40))
    assert evaluations[0]["validation_loss"] == pytest.approx(start["uniform"], abs=0.15)
    assert evaluations[-1]["validation_loss"] < start["unigram"] < start["uniform"]
    steps = run.records("train")
    assert [record["step"] for record in steps] == list(range(10, 401, 10))
    assert all(record["gradient_norm"] > 0 for record in steps)

    assert {path.name for path in run.path.iterdir()} == {
        "checkpoint-000400",
        "config.json",
        "log.jsonl",
        "loss.png",
        "sample.txt",
        "tokenizer.json",
    }
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    sample = (run.path / "sample.txt").read_text(encoding="utf-8")
    assert len(sample) == 30 and set(sample) <= set(TEXT)

    printed = capsys.readouterr().out
    last = evaluations[-1]["validation_loss"]
    assert f"validation loss {last:.3f}" in printed and sample in printed
    assert f"{start['uniform']:.3f} guesses (uniform, ln {start['vocab_size']})" in printed


def test_the_articles_model_trains(config):
    bigram = dataclasses.replace(config, model="bigram", schedule="constant", decay="all", clip=0.0)
    run = train.train(dataclasses.replace(bigram, iterations=60)).run
    losses = [record["train_loss"] for record in run.records("evaluation")]
    assert losses[-1] < losses[0]
    assert run.records("train")[0]["gradient_norm"] > 0


def test_the_same_seed_gives_the_same_run_and_evaluating_changes_nothing(config):
    first = train.train(config).run
    second = train.train(dataclasses.replace(config, eval_every=17)).run
    other = train.train(dataclasses.replace(config, seed=2)).run
    assert (first.path.name, second.path.name, other.path.name) == ("char", "char-2", "char-3")
    assert result(first)["model"] == result(second)["model"] != result(other)["model"]


def test_a_name_that_is_taken_is_refused(config):
    named = dataclasses.replace(config, name="mine", iterations=1)
    train.train(named)
    with pytest.raises(UserError, match=r"runs/mine already holds a run; .*--resume runs/mine"):
        train.train(named)


def test_a_prompt_that_cannot_be_encoded_is_refused_before_training(config):
    with pytest.raises(UserError, match="--sample-prompt '€' cannot be continued"):
        train.train(dataclasses.replace(config, sample_prompt="€"))
    assert not Path("runs").exists()


def test_samples_on_the_way(config):
    run = train.train(dataclasses.replace(config, iterations=90, sample_every=40)).run
    samples = sorted((run.path / "samples").iterdir())
    assert [path.name for path in samples] == ["000040.txt", "000080.txt"]
    assert all(len(path.read_text(encoding="utf-8")) == 30 for path in samples)


def test_tensorboard_without_its_package_is_a_sentence(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="python -m pip install tensorboardX"):
        train.train(dataclasses.replace(config, tensorboard=True))


def test_tensorboard_gets_every_number(config, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert (Path(folder), purge_step) == (Path("runs/char/tensorboard"), 1)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def flush(self):
            pass

    module = types.ModuleType("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    train.train(dataclasses.replace(config, iterations=10, tensorboard=True))
    assert ("loss", 10) in written and ("validation_loss", 10) in written


# ---- A step from many batches ----


def all_gradients(model):
    return [p.grad.detach().numpy().astype(np.float64) for p in model.parameters()]


@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_32_batches_have_the_gradient_of_one_large_batch(config, ignored):
    config = dataclasses.replace(config, dropout=0.0, n_layer=2, n_embd=32, block_size=16)
    model = runs.build_model(config, 50)
    optimizer = build_optimizer(config, model)
    x, y = tt.randint(50, (64, 16)).numpy(), tt.randint(50, (64, 16)).numpy()
    y = np.where(np.random.default_rng(1).random(y.shape) < ignored, -100, y)
    y[0, 0] = 1  # some batch has more targets than another

    def parts(rows):
        return [
            (tt.from_numpy(x[i : i + rows]), tt.from_numpy(y[i : i + rows]))
            for i in range(0, 64, rows)
        ]

    loss = sum(devices.read(train.accumulate(model, optimizer, parts(64), config, 1)))
    whole = all_gradients(model)
    again = sum(devices.read(train.accumulate(model, optimizer, parts(2), config, 1)))
    assert again == pytest.approx(loss, rel=1e-6)
    for one, many in zip(whole, all_gradients(model), strict=True):
        assert np.linalg.norm(many - one) <= 1e-6 * np.linalg.norm(one)


def test_the_loss_without_all_logits_is_the_loss_with_them(config, monkeypatch):
    """Padding, accumulation, dropout: the same run to rounding, with less in memory."""
    config = dataclasses.replace(config, iterations=12, total_batch=64, vocab_multiple=64)
    config = dataclasses.replace(config, log_every=1)
    fused = train.train(config).run
    monkeypatch.setattr(GPT, "loss", LanguageModel.loss)  # that of `forward`
    plain = train.train(config).run
    for kind, names in (
        ("train", ("loss", "gradient_norm")),
        ("evaluation", ("train_loss", "validation_loss")),
    ):
        for name in names:
            found, expected = ([r[name] for r in run.records(kind)] for run in (fused, plain))
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_batches_that_are_added_one_after_the_other(config):
    config = dataclasses.replace(config, iterations=12, total_batch=5 * 32, log_every=1)
    tree = train.train(config).run
    line = train.train(dataclasses.replace(config, ordered=False)).run
    for name in ("loss", "gradient_norm"):
        found, expected = ([r[name] for r in run.records("train")] for run in (line, tree))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(UserError, match="--ordered was False when the run began"):
        check_changes(line.config(), dataclasses.replace(line.config(), ordered=True))


def test_the_loss_inside_data_parallelism(config):
    model = runs.build_model(config, 50).eval()
    batch = tt.randint(50, (4, 8)), tt.randint(50, (4, 8))
    dist.init_process_group()
    try:
        parallel = dist.DistributedDataParallel(model)
        assert devices.loss_on(parallel, batch).item() == model.loss(*batch).item()
        without = dist.DistributedDataParallel(tt.nn.Linear(2, 2))
        with pytest.raises(AttributeError, match="Linear has no method loss; call the model"):
            without.loss(tt.zeros(1, 2))
    finally:
        dist.destroy_process_group()


def test_masks_belong_to_the_batch_whoever_draws_random_numbers_before(config):
    model = runs.build_model(config, 50)
    optimizer = build_optimizer(config, model)
    batch = tt.randint(50, (4, 8)), tt.randint(50, (4, 8))
    losses = []
    for step in (1, 1, 2):
        tt.rand(step)
        parts = train.accumulate(model, optimizer, [batch, batch], config, step)
        losses.append(devices.read(parts))
    assert losses[0] == losses[1] != losses[2]


# ---- Checkpoints that are kept ----


def test_the_last_checkpoints_and_the_best_are_kept(config):
    config = dataclasses.replace(config, iterations=200, eval_every=20, learning_rate=0.05)
    config = dataclasses.replace(config, keep_checkpoints=2, keep_best=True, min_learning_rate=0.05)
    run = train.train(config).run
    best, loss = run.best_evaluation()
    losses = [record["validation_loss"] for record in run.records("evaluation")[1:]]
    assert loss == min(losses) and best == 20 * (1 + losses.index(loss))
    kept = [int(path.name[11:]) for path in run.checkpoints()]
    assert len(kept) <= 3 and {best, 200} <= set(kept)


@pytest.fixture
def two_checkpoints(config):
    """Steps 20 and 40; the first has the lower validation loss, as its log says."""
    config = dataclasses.replace(config, iterations=40, eval_every=20, checkpoint_every=20)
    run = train.train(dataclasses.replace(config, keep_checkpoints=2)).run
    records = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            record["validation_loss"] = 1.0 + record["step"] if record["step"] else 0.5
    write_log(run, records)
    return run


def write_log(run, records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run.path / "log.jsonl").write_text(lines)


def test_the_best_checkpoint_is_used_unless_another_is_asked_for(two_checkpoints):
    run = two_checkpoints
    names = {"best": 20, "last": 40, "checkpoint-000020": 20, str(run.checkpoint()): 40}
    for which, step in names.items():
        model, _ = runs.load_run(str(run), which)
        saved = tt.load_file(run.path / f"checkpoint-{step:06d}" / "model.safetensors")
        for name, tensor in model.state_dict().items():
            assert (tensor.numpy() == saved[name].numpy()).all()
    assert runs.load_run(str(run))[0].lm_head.weight[0, 0].item() == pytest.approx(
        runs.load_run(str(run), "best")[0].lm_head.weight[0, 0].item(), abs=0
    )
    for absent in ("checkpoint-000030", "", "runs"):
        with pytest.raises(UserError, match=r"char has checkpoint-000020, checkpoint-000040 \("):
            runs.load_run(str(run), absent)


def test_without_an_evaluation_the_best_is_the_last(two_checkpoints):
    records = [{"kind": "evaluation", "step": 20, "validation_loss": bad} for bad in ("1", None)]
    write_log(two_checkpoints, [*records, {"kind": "evaluation", "step": "20"}])
    assert two_checkpoints.find_checkpoint("best").name == "checkpoint-000040"
    (two_checkpoints.path / "log.jsonl").unlink()
    assert two_checkpoints.find_checkpoint("best").name == "checkpoint-000040"
    (two_checkpoints.path / "log.jsonl").mkdir()
    with pytest.raises(UserError, match=r"log\.jsonl is a folder"):
        two_checkpoints.find_checkpoint("best")


def test_every_command_that_loads_a_run_says_which_checkpoint(two_checkpoints, capsys):
    capsys.readouterr()
    run = str(two_checkpoints)
    steps = {}
    for which in ("best", "last"):
        asked = ["--run", run, "--checkpoint", which]
        assert cli.main(["evaluate", *asked, "--limit", "50"]) == 0
        steps[which] = capsys.readouterr()
    note = "checkpoint-000020 has the lowest validation loss; --checkpoint last takes checkpoint-0"
    assert note in steps["best"].err and not steps["last"].err
    assert steps["best"].out != steps["last"].out
    assert cli.main(["generate", "--run", run, "--max-new-tokens", "2"]) == 0
    assert note in capsys.readouterr().err
    assert cli.main(["export", "--run", run, "--out", "hf", "--checkpoint", "last"]) == 0
    for command in ("generate", "evaluate"):
        asked = ["--weights", "hf", "--checkpoint", "last"]
        assert cli.main([command, *asked]) == 2
        assert "--checkpoint last chooses among those of a --run" in capsys.readouterr().err


def test_a_field_that_a_later_version_adds_changes_no_fingerprint(config):
    run = train.train(dataclasses.replace(config, iterations=1)).run
    path = run.path / "config.json"
    known = json.loads(path.read_text())
    del known["init_from"]  # as written before there was one
    path.write_text(json.dumps(known))
    assert resume(run, iterations=2).finished


# ---- Shards ----


@pytest.fixture
def shards(config):
    """Two shards and one for validation, in a folder that does not name its tokenizer."""
    tokenizer = CharTokenizer.of(TEXT)
    tokenizer.save(Path("own.json"))
    ids = np.array(tokenizer.encode(TEXT), np.uint16)
    Path("shards").mkdir()
    for name, part in {
        "train-0": ids[:1601], "train-1": ids[1600:3301], "validation-0": ids[4000:],
    }.items():  # fmt: skip
        np.save(f"shards/{name}.npy", part)
    return dataclasses.replace(
        config, data="shards", tokenizer="own.json", iterations=60, total_batch=4 * 8 * 3
    )


def test_training_from_shards_goes_on_in_the_middle_of_one(shards, monkeypatch):
    whole = train.train(dataclasses.replace(shards, name="whole")).run
    stop_at(30, monkeypatch)
    broken = train.train(dataclasses.replace(shards, name="broken"))
    assert broken.step == 30
    state = json.loads((broken.run.checkpoint() / "state.json").read_text())
    assert state["batches"]["batches_drawn"] == 90
    assert resume(broken.run).finished
    assert result(broken.run) == result(whole)
    assert runs.load_run(str(whole))[1].vocabulary == CharTokenizer.of(TEXT).vocabulary


def test_shards_that_cannot_be_trained_on_are_a_sentence(shards):
    for changes, words in (
        ({"tokenizer": ""}, "does not say which tokenizer its tokens are of"),
        ({"tokenizer": "characters"}, "--tokenizer characters is for texts"),
        ({"block_size": 512, "total_batch": 0}, "fills one step of 1 x 4 x 512 tokens"),
        ({"tokenizer": "absent"}, "there is no tokenizer absent"),
    ):
        with pytest.raises(UserError, match=words):
            train.train(dataclasses.replace(shards, **changes))
    run = train.train(shards).run
    np.save("shards/train-1.npy", np.zeros(900, np.uint16))
    with pytest.raises(UserError, match="not the text that the run began with"):
        resume(run)


def test_a_text_by_bytes_and_pairs(config):
    BytePairTokenizer.train([TEXT], 300).save(Path("pairs.json"))
    run = train.train(dataclasses.replace(config, tokenizer="pairs.json", iterations=20)).run
    assert run.records("start")[0]["vocab_size"] == 300
    assert run.tokenizer().vocab_size == 300
    assert resume(run, iterations=21).finished


# ---- The optimizer ----


def test_the_step_size_rises_and_falls():
    config = PRESETS["char"]
    sizes = [learning_rate(step, config) for step in range(1, config.iterations + 1)]
    assert sizes[0] == pytest.approx(1e-3 / 101) and sizes[100] == 1e-3 == max(sizes)
    assert np.all(np.diff(sizes[:101]) > 0) and np.all(np.diff(sizes[100:]) < 0)
    assert sizes[1050] == pytest.approx((1e-3 + 1e-4) / 2)  # half way down the cosine
    assert sizes[-1] == pytest.approx(1e-4, rel=1e-4)
    assert {learning_rate(step, PRESETS["bigram"]) for step in (1, 2500, 5000)} == {1e-3}


def test_matrices_decay_and_vectors_do_not(config):
    model = runs.build_model(dataclasses.replace(config, bias=True), 20)
    for group in build_optimizer(config, model).param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)
    everything = build_optimizer(dataclasses.replace(config, decay="all"), model)
    assert [group["weight_decay"] for group in everything.param_groups] == [0.1]


# ---- Stopping and going on ----


@pytest.mark.parametrize("preset", ["gpt", "bigram"])
def test_200_steps_are_100_and_a_stop_and_100(config, monkeypatch, capsys, preset):
    config = dataclasses.replace(config, model=preset)
    whole = train.train(dataclasses.replace(config, name="whole")).run
    stop_at(100, monkeypatch)
    outcome = train.train(dataclasses.replace(config, name="broken"))
    assert (outcome.finished, outcome.step) == (False, 100)
    assert "python -m gpt train --resume runs/broken" in capsys.readouterr().out
    assert outcome.run.checkpoint().name == "checkpoint-000100"

    tt.rand(7)  # whatever else draws random numbers meanwhile
    again = resume(outcome.run)
    assert (again.finished, again.step) == (True, 200)
    assert result(again.run) == result(whole)


def test_stopping_at_once_and_twice_loses_nothing(config, monkeypatch):
    config = dataclasses.replace(config, iterations=40, log_every=1)
    whole = train.train(dataclasses.replace(config, name="whole")).run
    stop_at(1, monkeypatch)
    outcome = train.train(dataclasses.replace(config, name="broken"))
    assert outcome.step == 1
    stop_at(2, monkeypatch)
    assert resume(outcome.run).step == 2
    stop_at(40, monkeypatch)  # a stop in the last step is none
    assert resume(outcome.run).finished
    assert resume(outcome.run).finished  # and there is nothing left to do
    assert result(outcome.run) == result(whole)


def test_a_second_ctrl_c_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_finished_run_can_be_made_longer(config):
    config = dataclasses.replace(config, schedule="constant")
    longer = train.train(dataclasses.replace(config, name="long", iterations=90)).run
    run = train.train(dataclasses.replace(config, name="short", iterations=50)).run
    assert resume(run, iterations=90).step == 90
    assert result(run)["model"] == result(longer)["model"]
    assert run.config().iterations == 90


def test_a_run_without_a_checkpoint_begins_again(config):
    whole = train.train(dataclasses.replace(config, name="whole", iterations=20)).run
    run = train.train(dataclasses.replace(config, name="lost", iterations=20)).run
    runs.shutil.rmtree(run.checkpoint())
    resume(run)
    assert result(run) == result(whole)


def test_what_a_run_is_cannot_change_on_resuming():
    saved = TrainConfig()
    check_changes(saved, dataclasses.replace(saved, iterations=9, checkpoint_every=1))
    with pytest.raises(UserError) as caught:
        check_changes(saved, dataclasses.replace(saved, n_embd=64))
    assert "--n-embd was 128 when the run began and cannot become 64" in str(caught.value)


def test_a_run_goes_on_with_its_own_text_only(config):
    run = train.train(dataclasses.replace(config, iterations=20)).run
    before = (run.path / "log.jsonl").read_bytes()
    for other in (TEXT.upper(), TEXT.replace("a", "b")):
        Path("text.txt").write_text(other, encoding="utf-8")
        with pytest.raises(UserError, match=r"text\.txt is not the text that the run began with"):
            resume(run)
    assert (run.path / "log.jsonl").read_bytes() == before


# ---- Kills ----


def start_training(*arguments):
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(gpt.__file__).parents[1])]
    return subprocess.Popen(
        [sys.executable, "-m", "gpt", "train", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_kills_at_random_moments_leave_no_trace(config, kills):
    config = dataclasses.replace(config, iterations=400, checkpoint_every=7)
    flags = [
        word
        for field in dataclasses.fields(TrainConfig)
        if getattr(config, field.name) != field.default
        for word in (f"--{field.name.replace('_', '-')}", str(getattr(config, field.name)))
    ]
    began = time.perf_counter()
    process = start_training(*flags, "--name", "whole")
    output, _ = process.communicate(timeout=120)
    duration = time.perf_counter() - began
    assert process.returncode == 0, output

    moments = random.Random(kills)
    run = RunFolder(Path("runs/broken"))
    for _ in range(kills):
        begun = ["--resume", str(run)] if run.begun else [*flags, "--name", "broken"]
        process = start_training(*begun)
        time.sleep(moments.uniform(0, duration))
        process.kill()
        output, _ = process.communicate(timeout=120)
        assert "error" not in output, output
    process = start_training(
        *(["--resume", str(run)] if run.begun else [*flags, "--name", "broken"])
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert result(run) == result(RunFolder(Path("runs/whole")))


class Killed(BaseException):
    """Stands in for SIGKILL in the middle of a call: nothing in the program handles it."""


def kill_at_call(number, patch):
    """Lets the number-th of the calls that touch the disk be the last; lists those made."""
    made = []

    def watch(module, name):
        original = getattr(module, name)

        def call(*arguments, **options):
            made.append(name)
            if len(made) == number:
                raise Killed
            return original(*arguments, **options)

        patch.setattr(module, name, call)

    for name in ("flush_file", "flush_folder", "replace_file", "sha256"):
        watch(runs, name)
    watch(tt, "save_file")
    watch(tt, "save")
    watch(runs.os, "rename")
    watch(runs.shutil, "rmtree")
    return made


def whole_step(run):
    return run.load_state(runs.MODEL, runs.OPTIMIZER)["step"]


def test_a_kill_at_any_call_of_saving_leaves_a_whole_checkpoint(config, monkeypatch):
    run = train.train(dataclasses.replace(config, iterations=20)).run
    model, _ = runs.load_run(str(run))
    batches = Windows(np.arange(50), 8, 4, tt.Generator(1))
    step, calls = 20, 0
    while True:
        step, calls = step + 1, calls + 1
        optimizer = build_optimizer(config, model)
        with monkeypatch.context() as patch:
            made = kill_at_call(calls, patch)
            try:
                run.save_checkpoint(step, model, optimizer, batches, text="", seconds=0.0)
            except Killed:
                pass
            else:
                break
        assert whole_step(run) in (step - 1, step), made
        step += 1  # and the debris is in nobody's way
        run.save_checkpoint(step, model, optimizer, batches, text="", seconds=0.0)
        assert whole_step(run) == step
    assert calls > 10 and [path.name for path in run.path.glob("checkpoint-*")] == [
        f"checkpoint-{step:06d}"
    ]


def test_a_full_disk_keeps_the_checkpoint_before(config, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    save = tt.save_file
    saved = []

    def save_until_full(tensors, path, *arguments, **options):
        saved.append(path)
        if len(saved) == 2:  # in the second checkpoint
            Path(path).write_bytes(b"half of it")
            raise full
        return save(tensors, path, *arguments, **options)

    monkeypatch.setattr(tt, "save_file", save_until_full)
    with pytest.raises(UserError) as caught:
        train.train(config)
    assert str(caught.value) == (
        "the checkpoint of step 60 could not be written to runs/char: No space left on device; "
        "checkpoint-000030 is whole, and `python -m gpt train --resume runs/char` goes on from it"
    )
    run = RunFolder.open("runs/char")
    assert not list(run.path.glob("*.new"))
    monkeypatch.setattr(tt, "save_file", save)
    assert resume(run).finished


def test_a_disk_too_full_for_the_log_is_a_sentence(tmp_path, monkeypatch):
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "open", no_room, raising=False)
    with pytest.raises(UserError, match=r"step 5 could not be logged in .*: No space left"):
        RunFolder(tmp_path).log("train", 5, loss=1.0)


# ---- Damage ----


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def widen(path):
    path.write_text(path.read_text().replace('"n_embd": 16', '"n_embd": 32'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda place: truncate(place / "model.safetensors"), "model.safetensors is damaged"),
        (lambda place: (place / "model.safetensors").unlink(), "model.safetensors is damaged"),
        (lambda place: (place / "state.json").write_text("{"), "state.json is damaged"),
        (lambda place: (place / "state.json").write_text("{}"), "state.json is damaged"),
        (lambda place: (place / "state.json").unlink(), "state.json cannot be read"),
        (
            lambda place: CharTokenizer("abc").save(place.parent / "tokenizer.json"),
            "another vocabulary than the one that checkpoint-000020 was trained with",
        ),
        (lambda place: (place.parent / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda place: (place.parent / "config.json").write_text("[]"), "no configuration"),
        (lambda place: widen(place.parent / "config.json"), "does not fit config.json"),
    ],
)
def test_a_damaged_run_is_a_sentence(config, damage, words):
    run = train.train(dataclasses.replace(config, iterations=20)).run
    damage(run.checkpoint())
    for use in (lambda: runs.load_run(str(run)), lambda: resume(run)):
        with pytest.raises(UserError) as caught:
            use()
        assert words in str(caught.value)


def test_text_needs_no_optimizer_but_training_does(config):
    run = train.train(dataclasses.replace(config, iterations=20)).run
    truncate(run.checkpoint() / "optimizer.safetensors")
    runs.load_run(str(run))
    with pytest.raises(UserError, match=r"optimizer\.safetensors is damaged or incomplete"):
        resume(run)


def test_a_folder_without_a_checkpoint_cannot_generate(config):
    run = train.train(dataclasses.replace(config, iterations=1)).run
    runs.shutil.rmtree(run.checkpoint())
    with pytest.raises(UserError, match="runs/char has no checkpoint yet"):
        runs.load_run("runs/char")
    with pytest.raises(UserError, match="elsewhere is not a run folder"):
        runs.load_run("elsewhere")
