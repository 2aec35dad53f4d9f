"""Real processes under mpiexec: collectives, equality with one rank, mishaps and resumption."""

from __future__ import annotations

import re
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import tinytensor as tt

from .ranks import run_ranks, try_ranks

pytestmark = pytest.mark.mpi

TRAINING = "tests.distributed.training"


@pytest.mark.parametrize("way", ["shared", "tiny-chunks", "messages"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_collectives(count: int, way: str):
    assert "all collectives are right" in run_ranks(count, "tests.distributed.collectives", way)


def trained(folder: Path, count: int, *arguments: object) -> bytes:
    """The file of parameters that `count` ranks end with."""
    run_ranks(count, TRAINING, "--out", folder, *arguments)
    return (folder / "parameters.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory):
    """What one rank with 4 micro-batches a step ends with, after 20 steps with dropout."""

    @cache
    def parameters(clip: float) -> bytes:
        return trained(tmp_path_factory.mktemp("alone"), 1, "--clip", clip)

    return parameters


@pytest.mark.parametrize("clip", [0, 0.05])
@pytest.mark.parametrize("count", [2, 4])
def test_ranks_equal_micro_batches_bit_for_bit(count: int, clip: float, alone, tmp_path: Path):
    assert trained(tmp_path, count, "--clip", clip) == alone(clip)


@pytest.mark.parametrize("bucket", [0, 100])
def test_the_size_of_the_buckets_changes_nothing(bucket: float, alone, tmp_path: Path):
    assert trained(tmp_path, 2, "--clip", 0.05, "--bucket-mb", bucket) == alone(0.05)


def test_sharded_optimizer_gives_the_same_bits(alone, tmp_path: Path):
    assert trained(tmp_path, 4, "--clip", 0, "--sharded") == alone(0)


def test_sharded_optimizer_with_clipping(alone, tmp_path: Path):
    """The norm is summed in another order, so that the last bit of the scale may differ.

    Without biases: that of a key has no gradient but rounding errors (softmax does not see it), and
    Adam makes full steps of them.
    """
    arguments = ["--clip", 0.05, "--no-bias", "--lr", 1e-3]
    one = trained(tmp_path / "1", 1, *arguments)
    assert_close(trained(tmp_path / "2", 2, *arguments, "--sharded"), one, tmp_path)


def test_six_micro_batches(tmp_path: Path):
    """Pairs of them on three ranks are the same sum; threes on two are another order of it."""
    arguments = ["--micro-batches", 6, "--clip", 0.05, "--no-bias", "--lr", 1e-3]
    one = trained(tmp_path / "1", 1, *arguments)
    assert trained(tmp_path / "3", 3, *arguments) == one
    assert_close(trained(tmp_path / "2", 2, *arguments), one, tmp_path)


def assert_close(found: bytes, expected: bytes, folder: Path) -> None:
    loaded = []
    for name, content in (("found", found), ("expected", expected)):
        (folder / name).write_bytes(content)
        loaded.append(tt.load_file(folder / name))
    for name, tensor in loaded[1].items():
        np.testing.assert_allclose(loaded[0][name].numpy(), tensor.numpy(), rtol=0, atol=1e-6)


# ---- mishaps ----

# A rank that is missing is noticed at once or after its timeout of 60 seconds: which of them it was
# shows on a machine that has other things to do, too.
AT_ONCE = 50  # seconds, with starting three processes and some steps

KILLS = [("backward", 1), ("reduction", 2), ("saving", 0)]
SAVING = ["--micro-batches", 3, "--steps", 9, "--save-every", 3]


@cache
def undisturbed(folder: Path) -> bytes:
    return trained(folder / "undisturbed", 3, *SAVING)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


def kill_and_resume(where: str, victim: int, at: int, folder: Path, shared: Path) -> None:
    mishap = ["--mishap", "kill", "--where", where, "--victim", victim, "--at", at]
    began = time.monotonic()
    done = try_ranks(3, TRAINING, "--out", folder, *SAVING, *mishap)
    assert time.monotonic() - began < AT_ONCE
    assert done.returncode != 0
    sentence = f"tinytensor.distributed: rank {victim} died without a word"
    assert sentence in done.stdout, done.stdout
    assert re.search(r"collective \d+ \(the reduction of gradient bucket \d of \d", done.stdout)
    assert trained(folder, 3, *SAVING) == undisturbed(shared)


@pytest.mark.parametrize(("where", "victim"), KILLS)
def test_a_killed_rank_is_named_and_the_run_resumes(
    where: str, victim: int, tmp_path: Path, shared: Path
):
    kill_and_resume(where, victim, 5, tmp_path, shared)
    if where == "saving":
        assert (tmp_path / "checkpoint.aside").exists() is False  # replaced by a whole one


@pytest.mark.nightly
@pytest.mark.parametrize("repetition", range(10))
@pytest.mark.parametrize(("where", "victim"), KILLS)
def test_killed_again_and_again(
    where: str, victim: int, repetition: int, tmp_path: Path, shared: Path
):
    at = 5 if where == "saving" else repetition % 9
    kill_and_resume(where, (victim + repetition) % 3, at, tmp_path, shared)


def test_a_run_goes_on_with_another_number_of_ranks(alone, tmp_path: Path):
    arguments = ["--clip", 0.05, "--save-every", 5]
    mishap = ["--mishap", "kill", "--where", "forward", "--victim", 3, "--at", 12]
    assert try_ranks(4, TRAINING, "--out", tmp_path, *arguments, *mishap).returncode != 0
    assert trained(tmp_path, 2, *arguments) == alone(0.05)


def test_a_sharded_run_goes_on_with_another_number_of_ranks(alone, tmp_path: Path):
    arguments = ["--clip", 0, "--save-every", 5, "--sharded"]
    mishap = ["--mishap", "kill", "--where", "forward", "--victim", 1, "--at", 7]
    assert try_ranks(2, TRAINING, "--out", tmp_path, *arguments, *mishap).returncode != 0
    assert trained(tmp_path, 4, *arguments) == alone(0)


MISHAPS = {
    "raise": r"rank 1 stopped after collective .*ValueError: a planted error",
    "hang": r"rank 1 has not come to collective \d+ \(the reduction of gradient bucket 1 of \d, "
    r"[\d.]+ MB\) in 6 seconds",
    "freeze": r"rank 1 has not come to collective .* no sign of life from rank 1",
    "leave": r"rank 1 ended its program after collective",
}


@pytest.mark.parametrize("mishap", MISHAPS)
def test_every_rank_stops_with_a_sentence(mishap: str, tmp_path: Path):
    """The launcher kills the others when the first one ends: they are given time for their words.

    A rank that was never stopped would still be there at the time limit.
    """
    arguments = ["--mishap", mishap, "--where", "backward", "--at", 2, "--timeout", 6]
    arguments += ["--micro-batches", 3, "--last-words", 3]
    done = try_ranks(3, TRAINING, "--out", tmp_path, *arguments)
    assert done.returncode != 0
    for rank in (0, 2):
        assert re.search(rf"rank {rank} stops: {MISHAPS[mishap]}", done.stdout), done.stdout


# ---- ranks that differ ----

DIFFERENCES = {
    "parameters": r"do not agree at the start: rank 2 differs in the parameters \(",
    "configuration": r"rank 2 differs in the configuration's lr \(0\.2 there, 0\.1 on rank 0\)",
    "model": r"do not agree about the model: rank 2 differs in the configuration's weight",
    "later": r"do not agree after 2 steps: rank 2 differs in the parameters \(",
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_rank_that_differs_is_named(what: str):
    done = try_ranks(3, "tests.distributed.differing", what)
    assert done.returncode != 0
    assert re.search(DIFFERENCES[what], done.stdout), done.stdout
    assert "no difference was found" not in done.stdout


def test_equal_ranks_agree():
    assert run_ranks(2, "tests.distributed.differing", "nothing").count("no difference") == 2
