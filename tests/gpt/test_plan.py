"""The plan: what it says a run takes, what a process really allocates, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import gpt
from gpt import UserError, footprint, plan
from gpt.cli import main
from gpt.config import TrainConfig
from gpt.model import GPT, GPT2, GPT_37M, GPTConfig
from gpt.plan import (
    MARGIN,
    Plan,
    available_memory,
    control_group_memory,
    flops_per_token,
    plan_for,
    sums_of_gradients,
)
from gpt.presets import PRESETS
from gpt.runs import build_model, model_config

MEASURE = """
import tracemalloc
from gpt.config import TrainConfig
from gpt.footprint import take_steps

tracemalloc.start()
before = tracemalloc.get_traced_memory()[0]
take_steps(TrainConfig(**{fields}), {vocab_size})
print(tracemalloc.get_traced_memory()[1] - before)
"""

SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 8}


@pytest.mark.parametrize(
    ("changes", "vocab_size"),
    [
        ({}, 65),  # activations decide
        ({"n_layer": 8, "n_embd": 256, "batch_size": 2}, 65),  # parameters decide
        ({"bias": True, "vocab_multiple": 64}, 12_001),  # the head decides
        ({"block_size": 256, "batch_size": 4, "dropout": 0.1}, 65),
        ({"checkpointing": True, "batch_size": 32}, 65),
        ({"batch_size": 4, "total_batch": 4 * 4 * 64}, 2000),
        ({"n_embd": 256, "batch_size": 1, "total_batch": 8 * 64}, 500),  # sums of batches decide
        ({"n_embd": 256, "batch_size": 1, "total_batch": 8 * 64, "ordered": False}, 500),
        ({"model": "bigram", "bias": True, "tied": False}, 65),
    ],
)
def test_the_predicted_memory_is_what_is_allocated(changes, vocab_size):
    config = TrainConfig(**{**SMALL, **changes})
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    finished = subprocess.run(
        [sys.executable, "-c", MEASURE.format(fields=fields, vocab_size=vocab_size)],
        cwd=Path(gpt.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert plan_for(config, vocab_size).bytes() == pytest.approx(int(finished.stdout), rel=MARGIN)


def test_the_command_prints_the_plan_and_what_two_steps_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be " * 500)
    asked = ["plan", "--data", "text.txt", "--n-embd", "256", "--n-layer", "6", "--batch-size", "8"]
    assert main([*asked, "--measure"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plan    2,000 steps of 512 tokens (1 batch of 8 x 64), 1.0 million")
    together, measured = (next(x for x in lines if word in x) for word in ("together", "measured"))
    # Beyond the arrays: what BLAS and the C library keep for themselves.
    ratio = float(measured.split()[-1])
    assert 1 - MARGIN - 0.1 < ratio < 1 + MARGIN, (together, measured)
    assert not Path("runs").exists()

    assert main([*asked, "--measure", "--device", "cuda-sim"]) == 2
    assert "--measure looks at main memory" in capsys.readouterr().err


def test_a_measurement_that_fails_is_a_sentence(monkeypatch):
    monkeypatch.setattr(footprint.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="could not be measured: it was killed, perhaps for its"):
        footprint.measure(TrainConfig(), 65)


@pytest.mark.parametrize("model", ["gpt", "bigram"])
def test_the_predicted_parameters_are_those_of_the_model(model):
    config = TrainConfig(**SMALL, model=model)
    built = sum(p.numel() for p in build_model(config, 65).parameters())
    # (The article's queries, keys and values have no biases; counting them is an error of 0.2 %.)
    assert model_config(config, 65).parameter_count() == pytest.approx(built, rel=0.003)


def test_the_presets_are_the_sizes_of_the_model():
    for preset, size in {
        "gpt2-124m": GPT2["gpt2"],
        "gpt2-355m": GPT2["gpt2-medium"],
        "gpt2-774m": GPT2["gpt2-large"],
        "gpt2-1558m": GPT2["gpt2-xl"],
        "gpt-37m": GPT_37M,
    }.items():
        config = PRESETS[preset]
        multiple = config.vocab_multiple
        assert model_config(config, 50_257) == dataclasses.replace(size, vocab_multiple=multiple)
        assert config.accumulation * config.batch_size * config.block_size == 524_288
        assert (config.batch_size, config.accumulation) == (16, 32)


def test_the_sums_that_a_binary_tree_keeps():
    counts = {1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 8: 3, 32: 5}
    assert {batches: sums_of_gradients(batches) for batches in counts} == counts


def planned(available, **changes):
    config = dataclasses.replace(PRESETS["gpt2-124m"], **changes)
    return Plan(config, model_config(config, 50_257), available)


def test_ranks_share_the_batches_and_with_zero_the_moments():
    alone = planned(None).numbers_of_model(16)
    four = dataclasses.replace(planned(None, zero=True), ranks=4).numbers_of_model(16)
    assert four["AdamW's moments"] == alone["AdamW's moments"] // 4
    assert alone["sums of batches"] == 5 * four["parameters"]  # of 32 batches
    assert four["sums of batches"] == 3 * four["parameters"]  # of 8


def test_processes_have_parameters_and_gradients_of_their_own():
    config = TrainConfig(**{**SMALL, "dropout": 0.1, "n_embd": 256})
    alone = Plan(config, model_config(config, 65), None)
    three = dataclasses.replace(alone, processes=3)
    one = alone.numbers_of_model(8)["parameters"]
    assert three.numbers_of_model(8)["other processes"] == 7 * one + 2 * plan.PROCESS
    # Rows are shared out; what each has to work on is not.
    found, expected = three.activations(8), alone.activations(8)
    assert (found["4 blocks"], found["head"]) == (expected["4 blocks"], expected["head"])
    assert found["in passing"] == expected["in passing"] + 2 * 4 * plan.SCRATCH

    short = dataclasses.replace(three, available=three.bytes() - 1)
    with pytest.raises(UserError, match=r"^this run needs about .*; --processes 1 takes \d+ MB"):
        short.check()


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux says what a process shares"
)
def test_the_predicted_memory_of_processes_is_what_they_have():
    config = TrainConfig(**{**SMALL, "n_layer": 6, "n_embd": 256, "processes": 3})
    taken = footprint.measure(config, 65)
    # Beyond the arrays: what Python, BLAS and the C library keep for themselves.
    ratio = plan_for(config, 65, processes=3).bytes() / taken
    assert 1 - MARGIN - 0.1 < ratio < 1 + MARGIN
    assert taken > 2 * footprint.measure(dataclasses.replace(config, processes=1), 65)


def test_the_plan_of_gpt2_is_printed():
    lines = "\n".join(planned(8 << 30).lines())
    for words in (
        "19,073 steps of 524,288 tokens (32 batches of 16 x 1024), 9,999.7 million in all",
        "parameters",
        "498 MB",  # 124.5 million, the 47 rows of padding included
        "AdamW's moments",
        "996 MB",
        "12 blocks",
        "head",
        "of 8.6 GB that are free",
        "sums of batches     2.5 GB",
        "the largest --batch-size that fits is 4",
    ):
        assert words in lines


@pytest.mark.parametrize(
    ("available", "changes", "words"),
    [
        (8e9, {}, "lower --batch-size to ROWS, which takes"),
        (8e9, {"ordered": False}, "lower --batch-size to ROWS, which takes"),
        (4.2e9, {}, "sums of a step's batches take 2.5 GB; --no-ordered does without"),
        (8e9, {"total_batch": 0}, "lower --batch-size to ROWS"),
        (2.1e9, {"ordered": False}, "lower --block-size, or --checkpointing keeps less"),
        (2.1e9, {"ordered": False, "checkpointing": True}, "lower --block-size"),
        (1e9, {"ordered": False}, "the model alone takes 2.0 GB with its gradients and moments; l"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_flag_to_lower(available, changes, words):
    too_large = planned(int(available), **changes)
    with pytest.raises(UserError) as caught:
        too_large.check()
    words = words.replace("ROWS", str(too_large.largest_batch()))
    assert words in str(caught.value) and "--ignore-memory" in str(caught.value)
    assert str(caught.value).startswith("this run needs about")
    dataclasses.replace(
        too_large, config=dataclasses.replace(too_large.config, ignore_memory=True)
    ).check()


@pytest.mark.parametrize("available", [4e9, 5e9, 8e9, 16e9, 40e9])
def test_the_largest_batch_is_the_largest_that_fits(available):
    whole = planned(int(available), total_batch=0)
    rows = whole.largest_batch()
    assert whole.bytes(rows) <= available < whole.bytes(rows + 1)
    for ordered in (True, False):
        divided = planned(int(available), ordered=ordered)
        rows = divided.largest_batch()
        assert rows == 0 or (512 % rows == 0 and divided.bytes(rows) <= available)
        assert rows == 512 or divided.bytes(2 * rows or 1) > available
    assert rows >= 1  # without sums


def test_a_machine_that_does_not_say_is_trusted():
    unknown = planned(None)
    unknown.check()
    assert unknown.largest_batch() == 16 and "free" not in "\n".join(unknown.lines())


def test_the_memory_of_this_machine(tmp_path, monkeypatch):
    assert 1 << 20 < available_memory() < 1 << 50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert control_group_memory(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert control_group_memory(tmp_path) is None
    monkeypatch.setattr(plan, "free_memory", lambda: None)
    monkeypatch.setattr(plan, "control_group_memory", lambda: None)
    assert available_memory() is None


def test_flops_are_counted_as_one_counts_them_by_hand():
    # A width of 2, one block, 3 tokens of context, 5 in the vocabulary: 12·4 + 5·2 weights.
    sizes = GPTConfig(vocab_size=5, block_size=3, n_layer=1, n_head=1, n_embd=2)
    assert flops_per_token(sizes) == 6 * (48 + 10) + 3 * (4 * 3 * 2)
    # For GPT-2 that is close to the rule of thumb, 6 per parameter, plus attention.
    assert flops_per_token(GPT2["gpt2"]) == pytest.approx(6 * 124.4e6 * 1.15, rel=0.02)
    assert isinstance(GPT(sizes), GPT)


def test_the_peak_is_measured():
    assert 1e8 < plan.matmul_peak(width=256, seconds=0.01) < 1e15
