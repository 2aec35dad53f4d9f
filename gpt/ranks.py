"""What changes when a run has many processes: who writes, who computes what, and what is added up.

`mpiexec -n 4 python -m gpt train …` starts four ranks that run the same lines of `gpt/train.py`.
All of them draw all batches of a step, so that the data and their order do not depend on the number
of ranks, and each computes its share. Rank 0 alone logs, saves and samples. One process is all
ranks at once, and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tinytensor.distributed as dist
from gpt import UserError
from gpt.config import TrainConfig
from gpt.runs import RunFolder

T = TypeVar("T")


def join(config: TrainConfig) -> dist.Place:
    """Meets the other ranks. Raises UserError where the batches of a step cannot be shared out."""
    if dist.is_initialized():
        place = dist.Place(
            dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(), dist.get_device()
        )
    else:
        try:
            place = dist.init_process_group(timeout=config.rank_timeout)
        except RuntimeError as error:
            raise UserError(str(error)) from None
    ranks, batches = place.world_size, config.accumulation
    if batches % ranks:
        tokens = config.batch_size * config.block_size
        raise UserError(
            f"{ranks} processes cannot share a step of {batches} batches of {tokens:,} tokens; "
            f"for one each, --total-batch {ranks * tokens}"
        )
    return place


def leads() -> bool:
    """Whether this rank is the one that writes."""
    return dist.get_rank() == 0


def share_of(things: Sequence[T]) -> list[tuple[int, T]]:
    """This rank's neighbouring part of the things, with their numbers."""
    count = len(things) // dist.get_world_size()
    first = dist.get_rank() * count
    return list(enumerate(things))[first : first + count]


def summed(value: float) -> float:
    """The sum of the ranks' values, which all ranks get with the same bits."""
    return float(sum(_gathered(value)))


def anyone(flag: bool) -> bool:
    """Whether it holds on any rank."""
    return any(_gathered(flag))


def dealt(things: Sequence[T]) -> Sequence[T]:
    """Every so-manieth thing, beginning with this rank's."""
    return things[dist.get_rank() :: dist.get_world_size()]


def collected(values: Sequence[T]) -> list[T]:
    """What became of all the things that were `dealt`, in their order."""
    hands = _gathered(list(values))
    return [hands[i % len(hands)][i // len(hands)] for i in range(sum(map(len, hands)))]


def new_folder(config: TrainConfig) -> RunFolder:
    """A new run's place, chosen by rank 0."""
    if dist.get_world_size() == 1:
        return RunFolder.create(config)
    answer: tuple[str, str] = ("", "")
    if leads():
        try:
            answer = (str(RunFolder.create(config).path), "")
        except UserError as error:
            answer = ("", str(error))
    path, problem = _gathered(answer)[0]
    if problem:
        raise UserError(problem)
    return written_by_rank_0(RunFolder(Path(path)))


def written_by_rank_0(run: RunFolder) -> RunFolder:
    """`run`, to which the other ranks write nothing."""
    return run if leads() else Spectator(run.path)


class Spectator(RunFolder):
    """A run folder that is read, and that others write."""

    def begin(self, *arguments: Any, **options: Any) -> None: ...
    def save_config(self, *arguments: Any, **options: Any) -> None: ...
    def open_board(self, *arguments: Any, **options: Any) -> None: ...
    def log(self, *arguments: Any, **options: Any) -> None: ...
    def write_sample(self, *arguments: Any, **options: Any) -> None: ...
    def save_checkpoint(self, *arguments: Any, **options: Any) -> None: ...


def _gathered(value: T) -> list[T]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
