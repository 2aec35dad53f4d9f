"""`--processes`: the run of one process, by several, and nobody left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gpt
import tinytensor as tt
from gpt import UserError, cli, plan, runs, shared, train
from gpt.config import TrainConfig
from gpt.data import load_text
from gpt.model import MLP
from gpt.presets import PRESETS
from gpt.runs import RunFolder
from gpt.shared import SharedGradients, chosen_processes
from gpt.train import accumulate, build_optimizer

pytestmark = pytest.mark.skipif(not tt.utils.can_fork(), reason="processes cannot be copied here")

CPU = tt.device("cpu")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(load_text("python").content[:6000], encoding="utf-8")
    return TrainConfig(
        data="text.txt",
        block_size=8,
        n_layer=2,
        n_head=2,
        n_embd=16,
        dropout=0.1,
        iterations=20,
        batch_size=5,
        warmup=5,
        log_every=1,
        eval_every=10,
        eval_batches=2,
        checkpoint_every=10,
        sample_chars=10,
        processes=2,
    )


@pytest.fixture
def four_cores():
    before = tt.get_num_threads()
    tt.set_num_threads(4)
    yield
    tt.set_num_threads(before)


def measured(run, name):
    return [record[name] for record in run.records("train")]


def resume(run, **changes):
    return train.train(dataclasses.replace(run.config(), **changes), RunFolder.open(str(run))).run


def saved(run, *names):
    return [(run.checkpoint() / name).read_bytes() for name in names or (runs.MODEL,)]


def state(run):
    return json.loads((run.checkpoint() / "state.json").read_text())


# ---- The same run ----


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "bigram"},
        {"checkpointing": True},
        {"total_batch": 3 * 40, "ordered": False},
        {"dropout": 0.0, "block_size": 7},
    ],
)
@pytest.mark.parametrize("processes", [2, 3])
def test_the_losses_are_those_of_one_process(config, changes, processes):
    config = dataclasses.replace(config, **changes)
    one = train.train(dataclasses.replace(config, processes=1)).run
    many = train.train(dataclasses.replace(config, processes=processes)).run
    np.testing.assert_allclose(measured(many, "loss"), measured(one, "loss"), rtol=1e-6)
    np.testing.assert_allclose(
        measured(many, "gradient_norm"), measured(one, "gradient_norm"), rtol=1e-4
    )
    assert state(many)["random"] == state(one)["random"]
    assert state(many)["batches"] == state(one)["batches"]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("rows", [5, 1])  # of the last batch, if it had fewer than processes
def test_gradients_in_float64_with_targets_to_ignore(config, rows):
    config = dataclasses.replace(config, batch_size=8)
    model = runs.build_model(config, 50).double()
    optimizer = build_optimizer(config, model)
    batches = []
    for count in (8, rows):
        x, y = tt.randint(50, (count, 8)), tt.randint(50, (count, 8)).numpy().copy()
        y[0, 1:6] = shared.IGNORED  # the rows, and the batches, have unlike numbers of targets
        batches.append((x, tt.from_numpy(y)))
    parts = [part.item() for part in accumulate(model, optimizer, batches, config, 1)]
    whole = [p.grad.numpy().copy() for p in model.parameters()]
    with SharedGradients(model, optimizer, config, 3) as gradients:
        again = accumulate(model, optimizer, batches, config, 1, gradients)
        assert len(gradients.other_processes()) == 2
        np.testing.assert_allclose([part.item() for part in again], parts, rtol=1e-6)
        for p, expected in zip(model.parameters(), whole, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_a_run_goes_on_bit_for_bit_and_with_another_number_to_rounding(config):
    whole = train.train(dataclasses.replace(config, name="whole")).run
    schedule = {"iterations": 10, "schedule": "constant"}
    parted = train.train(dataclasses.replace(config, **schedule, name="parted")).run
    long = train.train(dataclasses.replace(config, schedule="constant", name="long")).run
    files = (runs.MODEL, runs.OPTIMIZER)
    assert saved(resume(parted, iterations=20), *files) == saved(long, *files) != saved(whole)
    for first, then in ((2, 1), (1, 2), (2, 3)):
        name = f"from-{first}-to-{then}"
        one = dataclasses.replace(config, **schedule, processes=first, name=name)
        other = resume(train.train(one).run, iterations=20, processes=then)
        np.testing.assert_allclose(measured(other, "loss"), measured(long, "loss"), rtol=1e-6)
        assert state(other)["random"] == state(long)["random"]
        assert other.config().processes == then


# ---- How many ----


@pytest.mark.parametrize(
    ("preset", "changes", "processes"),
    [
        ("char", {}, 4),
        ("char", {"batch_size": 6}, 3),
        ("char", {"batch_size": 1}, 1),
        ("char", {"dropout": 0.2}, 4),
        ("char", {"n_embd": 132, "block_size": 63, "dropout": 0.2}, 1),  # masks of 8,316 numbers
        ("bigram", {}, 4),
        ("char", {"n_embd": 16, "n_layer": 1, "block_size": 8}, 1),  # over in a millisecond
        ("char", {"n_embd": 384, "n_layer": 6, "batch_size": 4}, 1),  # many parameters, few tokens
        ("char", {"n_embd": 512, "n_layer": 12, "batch_size": 64}, 1),  # many parameters
        ("char", {"total_batch": 1536}, 1),
        ("char", {"total_batch": 1536, "ordered": False}, 4),
        ("char", {"processes": 1}, 1),
        ("char", {"processes": 9}, 9),
    ],
)
def test_as_many_as_are_quick(preset, changes, processes, four_cores):
    config = dataclasses.replace(PRESETS[preset], **changes)
    assert chosen_processes(config, 65, CPU) == processes
    if config.processes == 0:
        assert chosen_processes(config, 65, tt.device("cuda-sim")) == 1
        assert chosen_processes(config, 65, CPU, ranks=2) == 1


def test_no_more_than_memory_allows(monkeypatch, four_cores):
    config = PRESETS["char"]
    needed = plan.plan_for(config, 65, CPU, processes=4).bytes()
    for available, processes in ((needed, 4), (needed - 1, 1)):
        monkeypatch.setattr(plan, "available_memory", lambda available=available: available)
        assert chosen_processes(config, 65, CPU) == processes


def test_a_resumed_run_keeps_the_number_that_was_chosen(config, four_cores):
    config = dataclasses.replace(config, processes=0, block_size=64, batch_size=6, n_embd=64)
    run = train.train(dataclasses.replace(config, iterations=2)).run
    assert run.records("start")[0]["processes"] == state(run)["processes"] == 3
    tt.set_num_threads(2)
    assert chosen_processes(config, 50, CPU) == 2
    assert state(resume(run, iterations=3))["processes"] == 3
    assert run.config().processes == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": -1}, "--processes must be at least 0, but it is -1"),
        (
            {"processes": 6},
            "--processes 6 cannot share 5 rows: each takes at least one of",
        ),
        (
            {"total_batch": 120},
            "a step's 3 batches one after the other, not as a tree; --no-ordered",
        ),
        ({"n_embd": 18, "block_size": 6}, "--block-size x --n-embd = 108 and .* multiples of 8"),
    ],
)
def test_what_cannot_be_shared_is_refused(config, changes, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(config, **changes)


def test_where_processes_cannot_share_is_refused(config, monkeypatch):
    with pytest.raises(UserError, match="2 is for a run without a launcher, and this one has 4 ra"):
        chosen_processes(config, 65, CPU, ranks=4)
    with pytest.raises(UserError, match="2 is for the CPU, and this run computes on cuda-sim"):
        chosen_processes(config, 65, tt.device("cuda-sim"))
    monkeypatch.setattr(tt.utils, "can_fork", lambda: False)
    with pytest.raises(UserError, match=r"needs a system that can copy a process .*--processes 1"):
        train.train(config)
    assert train.train(dataclasses.replace(config, processes=0)).finished


# ---- What goes wrong ----


def at_step(step, monkeypatch, act):
    """Calls `act` when a step has been logged."""
    log = RunFolder.log

    def log_and_act(self, kind, at, **values):
        log(self, kind, at, **values)
        if (kind, at) == ("train", step):
            act()

    monkeypatch.setattr(RunFolder, "log", log_and_act)


def flags(config):
    return [
        word
        for field in dataclasses.fields(TrainConfig)
        if getattr(config, field.name) != field.default
        for word in (f"--{field.name.replace('_', '-')}", str(getattr(config, field.name)))
    ]


def test_a_killed_process_is_one_sentence_and_the_run_goes_on(config, monkeypatch, capsys):
    whole = train.train(dataclasses.replace(config, name="whole")).run

    def kill():
        multiprocessing.active_children()[0].kill()

    with monkeypatch.context() as patch:
        at_step(15, patch, kill)
        assert cli.main(["train", *flags(config), "--name", "broken"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --processes 2: process 1 ended with code -9; ")
    assert "checkpoint-000010 is whole, and `python -m gpt train --resume runs/broken` goes" in said
    assert not multiprocessing.active_children()
    assert saved(resume(RunFolder(Path("runs/broken")))) == saved(whole)


def test_a_process_that_cannot_be_started_is_a_sentence(config, monkeypatch):
    def refuse():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(UserError, match="process 1 could not be started: Resource temporarily"):
        train.train(config)


def test_what_another_process_raises_is_raised_here(config, monkeypatch):
    here, forward = os.getpid(), MLP.forward

    def fail_elsewhere(self, x):
        if os.getpid() != here:
            raise KeyError("over there")
        return forward(self, x)

    monkeypatch.setattr(MLP, "forward", fail_elsewhere)
    with pytest.raises(KeyError, match="over there") as caught:
        train.train(config)
    assert "in fail_elsewhere" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_a_number_that_is_not_finite_is_traced(config, monkeypatch):
    here, forward, calls = os.getpid(), MLP.forward, []

    def fail_elsewhere(self, x):
        """In the rows of the other process from the fifth step on, and wherever they are later."""
        y = forward(self, x)
        calls.append(self.training)
        if calls.count(True) <= 4 * 2:
            return y
        bad = tt.log(y[-1:] - 1e9)
        return bad + y if os.getpid() != here or len(y) == 5 else y

    monkeypatch.setattr(MLP, "forward", fail_elsewhere)
    with pytest.raises(UserError) as caught:
        train.train(config)
    words = str(caught.value)
    assert words.startswith("at step 5 the loss is nan: the training has diverged; the first nan ")
    assert "was made by log (forward) in transformer.h.0.mlp" in words
    assert "checkpoint-000004 is whole" in words


# ---- Nobody stays behind ----


@contextlib.contextmanager
def started(config, *more):
    """`python -m gpt train`, and the process that shares its batches."""
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(gpt.__file__).parents[1])]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt", "train", *flags(config), *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    log = Path("runs/broken/log.jsonl")
    with process:
        try:
            trains = lambda: log.exists() and log.read_text().count('"train"') > 30  # noqa: E731
            until(lambda: trains() or process.poll() is not None)
            assert process.poll() is None, process.communicate()[0]
            (other,) = children.read_text().split()
            yield process, int(other)
        finally:
            process.kill()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def gone(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return "State:\tZ" in status  # nobody has asked yet how it ended


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("ended_by", ["SIGKILL", "SIGTERM", "SIGINT", "SIGINT to both"])
def test_whoever_ends_the_run_ends_all_of_it(config, ended_by):
    config = dataclasses.replace(config, iterations=5000, eval_every=5000)
    with started(config, "--name", "broken") as (process, other):
        if ended_by == "SIGINT to both":  # as a terminal does it
            os.kill(other, signal.SIGINT)
        process.send_signal(getattr(signal, ended_by.split()[0]))
        output, _ = process.communicate(timeout=60)
        until(lambda: gone(other))
    assert "Traceback" not in output and "error" not in output
    run = RunFolder(Path("runs/broken"))
    step = run.load_state(runs.MODEL, runs.OPTIMIZER)["step"]
    if ended_by.startswith("SIGINT"):
        assert process.returncode == 130 and f"stopped after step {step}" in output
        assert output.count("stopping after this step") == 1
    else:
        assert step % 10 == 0
