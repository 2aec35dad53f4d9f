"""What changes when a run has many processes: who writes, who computes what, and what is added up.

`mpiexec -n 4 python -m gpt train …` starts four ranks that run the same lines of `gpt/train.py`.
All of them draw all batches of a step, so that the data and their order do not depend on the number
of ranks, and each computes its share. Rank 0 alone logs, saves and samples. One process is all
ranks at once, and nothing here does anything.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tinytensor as tt
import tinytensor.distributed as dist
from gpt import UserError, devices
from gpt.config import TrainConfig
from gpt.runs import RunFolder

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def join(config: TrainConfig) -> dist.Place:
    """Meets the other ranks; each rank of a machine takes a GPU of its own.

    Raises UserError where a rank lacks its device, or the batches of a step cannot be shared out.
    """
    if dist.is_initialized():
        place = dist.Place(
            dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(), dist.get_device()
        )
    else:
        try:
            simulated = config.device == "cuda-sim"  # whose arrays are in main memory
            place = dist.init_process_group(
                timeout=config.rank_timeout, device="cpu" if simulated else config.device
            )
        except RuntimeError as error:
            way_out = " (--device cpu computes on the CPU)" if config.device == "auto" else ""
            raise UserError(f"{error}{way_out}") from None
    if place.world_size == 1:
        place = place._replace(device=devices.choose(config.device))
    elif config.device == "cuda-sim":
        raise UserError("--device cuda-sim is for one process; several compute on cpu or cuda")
    ranks, batches = place.world_size, config.accumulation
    if batches % ranks:
        tokens = config.batch_size * config.block_size
        counted = "1 batch" if batches == 1 else f"{batches} batches"
        raise UserError(
            f"{ranks} processes cannot share a step of {counted} of {tokens:,} tokens; "
            f"for one each, --total-batch {ranks * tokens}"
        )
    return place


def refuse(sentence: str, code: int) -> int:
    """Prints why nothing is done, once if all ranks refuse with this sentence; returns `code`."""
    everyone = dist.last_words(sentence)
    rank = dist.launched_rank()
    on_rank = f" on rank {rank}" if rank else ""
    if everyone is None or sentence not in everyone[:rank]:
        print(f"error{on_rank}: {sentence}", file=sys.stderr, flush=True)
    if everyone is None and not dist.is_initialized():
        os._exit(code)  # the launcher stops the others
    return code


def parting(run: F) -> F:
    """`run`, after which one process alone is in no group any more, also where it was refused.

    Where there are several, the others find out that this one raised when its process ends.
    """

    @functools.wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        finally:
            if dist.is_initialized() and dist.get_world_size() == 1:
                dist.destroy_process_group()

    return wrapped  # type: ignore[return-value]


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


def divided(
    optimizer: tt.optim.Optimizer, parallel: dist.DistributedDataParallel
) -> tt.optim.Optimizer:
    """The same optimizer, of whose state each rank keeps its share; of one process, itself."""
    if dist.get_world_size() == 1:
        return optimizer
    return dist.ZeroRedundancyOptimizer(
        optimizer.param_groups, type(optimizer), model=parallel, **optimizer.defaults
    )


def clip_grad_norm(
    model: tt.nn.Module, optimizer: tt.optim.Optimizer, max_norm: float
) -> tt.Tensor:
    """The length of the joint gradient, of which a rank may have its share only; scales it down."""
    if isinstance(optimizer, dist.ZeroRedundancyOptimizer):
        return optimizer.clip_grad_norm_(max_norm)
    return tt.nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def bring_together(optimizer: tt.optim.Optimizer) -> None:
    """Before rank 0 saves: it is sent the other ranks' shares of a divided state."""
    if isinstance(optimizer, dist.ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict()


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
    def cut_log(self, *arguments: Any, **options: Any) -> None: ...
    def log(self, *arguments: Any, **options: Any) -> None: ...
    def write_sample(self, *arguments: Any, **options: Any) -> None: ...
    def save_checkpoint(self, *arguments: Any, **options: Any) -> None: ...


def _gathered(value: T) -> list[T]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
