"""Real processes with a sharded optimizer whose parameters travel beside the forward pass."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from .ranks import run_ranks, try_ranks

pytestmark = pytest.mark.mpi

TRAINING = "tests.distributed.training"
SHARDED = ["--sharded", "--steps", 8, "--bucket-mb", 0.005]


def trained(folder: Path, count: int, *arguments: object) -> bytes:
    """The file of parameters that `count` ranks end with."""
    run_ranks(count, TRAINING, "--out", folder, *arguments)
    return (folder / "parameters.safetensors").read_bytes()


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """What runs end with whose steps wait until all parameters are there, clipped."""
    return {
        count: trained(tmp_path_factory.mktemp("once"), count, *SHARDED, "--at-once")
        for count in (2, 4)
    }


@pytest.mark.parametrize("extra", [[], ["--look"], ["--save-every", 3]], ids=str)
@pytest.mark.parametrize("count", [2, 4])
def test_parameters_on_their_way_change_nothing(
    count: int, extra: list[object], at_once: dict[int, bytes], tmp_path: Path
):
    assert trained(tmp_path, count, *SHARDED, *extra) == at_once[count]


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_undivided_buckets_change_nothing(share: float, tmp_path: Path):
    """Unclipped, for the norm is summed in another order; also the moments, which are saved."""
    arguments = ["--steps", 6, "--bucket-mb", 0.005, "--clip", 0, "--save-every", 6]
    one = trained(tmp_path / "1", 1, *arguments)
    sharded = ["--sharded", "--undivided", share]
    assert trained(tmp_path / "2", 2, *arguments, *sharded) == one
    moments = "checkpoint-0006/optimizer.safetensors"
    assert (tmp_path / "2" / moments).read_bytes() == (tmp_path / "1" / moments).read_bytes()


def test_a_rank_that_is_killed_while_parameters_are_gathered(tmp_path: Path):
    arguments = ["--micro-batches", 3, "--save-every", 2, *SHARDED]
    mishap = ["--mishap", "kill", "--where", "gathering", "--victim", 1, "--at", 5]
    began = time.monotonic()
    done = try_ranks(3, TRAINING, "--out", tmp_path / "killed", *arguments, *mishap)
    assert done.returncode != 0
    assert time.monotonic() - began < 60
    assert "tinytensor.distributed: rank 1 died without a word" in done.stdout, done.stdout
    where = r"collective \d+ \(the gathering of parameters, bucket \d+ of \d+, [\d.]+ MB\)"
    assert re.search(where, done.stdout), done.stdout
    assert trained(tmp_path / "killed", 3, *arguments) == trained(tmp_path / "whole", 3, *arguments)


@pytest.mark.parametrize("how", ["gathering", "parted"])
def test_a_program_may_end_while_parameters_are_gathered(how: str):
    """Each rank takes part in what the others wait for before it says goodbye."""
    said = run_ranks(2, "tests.distributed.ending", how)
    assert said.count("is at its end") == 2
    assert "tinytensor.distributed" not in said


def test_an_interrupted_rank_is_named():
    done = try_ranks(2, "tests.distributed.ending", "interrupted")
    assert done.returncode != 0
    sentence = r"rank 0 stopped (in|after) collective \d+ \(the gathering .*\): KeyboardInterrupt;"
    assert re.search(sentence, done.stdout), done.stdout
