"""`mpiexec -n N python -m gpt train`: the run of one process, by many."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import tinytensor as tt

from .ranks import run_ranks, try_ranks

pytestmark = pytest.mark.mpi

SMALL = [
    *("train", "--data", "python", "--iterations", 6, "--n-layer", 2, "--n-embd", 16),
    *("--n-head", 2, "--block-size", 16, "--batch-size", 2, "--total-batch", 128),
    *("--eval-every", 3, "--eval-batches", 3, "--sample-chars", 5, "--dropout", 0.1),
    *("--checkpoint-every", 2, "--log-every", 1, "--rank-timeout", 60),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_ranks(1, "gpt", *SMALL, "--folder", folder, "--name", "one")
    return folder / "one"


def log(run: Path) -> list[dict[str, object]]:
    """The log without what time it took."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "flops_utilisation", "matmul_peak", "loss")
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


def weights(run: Path) -> bytes:
    return (run / "checkpoint-000006" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("count", [2, 4])
def test_many_train_what_one_trains(count: int, one: Path, tmp_path: Path):
    said = run_ranks(count, "gpt", *SMALL, "--folder", tmp_path, "--name", "run")
    assert weights(tmp_path / "run") == weights(one)
    assert log(tmp_path / "run") == log(one)
    assert said.count("step 6 ") == 1 and said.count("validation loss") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_of_four_goes_on_with_two(one: Path, tmp_path: Path):
    first = [*SMALL, "--folder", tmp_path, "--name", "run"]
    first[first.index("--iterations") + 1] = 4
    run_ranks(4, "gpt", *first)
    run_ranks(2, "gpt", "train", "--resume", tmp_path / "run", "--iterations", 6)
    assert weights(tmp_path / "run") == weights(one)


@pytest.mark.parametrize("count", [2, 4])
def test_moments_divided_among_ranks(count: int, tmp_path: Path):
    """Unclipped, for the norm is summed in another order. Saved by 2 or 4, and gone on by one."""
    unclipped = [*SMALL, "--clip", 0, "--folder", tmp_path]
    run_ranks(1, "gpt", *unclipped, "--name", "one")
    first = [*unclipped, "--zero", "--name", "run"]
    first[first.index("--iterations") + 1] = 4
    run_ranks(count, "gpt", *first)
    run_ranks(1, "gpt", "train", "--resume", tmp_path / "run", "--iterations", 5)
    run_ranks(6 - count, "gpt", "train", "--resume", tmp_path / "run", "--iterations", 6)
    assert weights(tmp_path / "run") == weights(tmp_path / "one")
    moments = "checkpoint-000006/optimizer.safetensors"
    assert (tmp_path / "run" / moments).read_bytes() == (tmp_path / "one" / moments).read_bytes()


def test_divided_moments_with_clipping(one: Path, tmp_path: Path):
    run_ranks(2, "gpt", *SMALL, "--zero", "--folder", tmp_path, "--name", "run")
    found = tt.load_file(tmp_path / "run" / "checkpoint-000006" / "model.safetensors")
    for name, tensor in tt.load_file(one / "checkpoint-000006" / "model.safetensors").items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=0, atol=1e-6)


def test_a_step_that_cannot_be_shared_out(tmp_path: Path):
    done = try_ranks(3, "gpt", *SMALL, "--folder", tmp_path)
    assert done.returncode != 0
    sentence = "3 processes cannot share a step of 4 batches of 32 tokens; for one each, "
    assert f"{sentence}--total-batch 96" in done.stdout
    assert not re.search("Traceback", done.stdout)
    assert done.stdout.count("error") == 1  # and not once from each


@pytest.mark.parametrize("arguments", ["trian", "train --n-layer two", "train --resume nowhere"])
def test_what_all_ranks_refuse_one_says(arguments: str):
    done = try_ranks(3, "gpt", *arguments.split())
    assert done.returncode == 2
    assert len(re.findall("(?i)error", done.stdout)) == arguments.count("two") + 1


def test_what_one_rank_refuses_it_says(tmp_path: Path):
    """The others are not left waiting for it."""
    done = try_ranks(2, "tests.distributed.refusing", *SMALL, "--folder", tmp_path)
    assert done.returncode != 0
    assert "error on rank 1: there is no file or folder nowhere; " in done.stdout
    assert "error: " not in done.stdout
