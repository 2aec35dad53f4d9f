"""`--processes`: the gradients of a batch, computed by several processes of this machine.

Each takes a part of the batch's rows (`tt.utils.DataParallel`); a small model's step is too many
short calls for threads to share. This process takes the first part, adds up what came of the
others, and does all the rest alone: the optimizer, the log, evaluations, checkpoints. Dropout masks
belong to the rows, so that the numbers are those of one process, but for the order of sums. Go back
to `gpt/train.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

import tinytensor as tt
from gpt import UserError, devices
from gpt.config import TrainConfig
from gpt.corpus import Batch
from gpt.fields import require
from gpt.language_model import LanguageModel
from gpt.plan import plan_for
from gpt.runs import RunFolder, model_config

IGNORED = -100  # a target that is none: cross-entropy leaves it out
# When sharing is quicker, as measured on two cores: not where a step is over before the others have
# begun (few tokens, or few times the parameters), nor where it has many parameters for each token,
# whose gradients take long to add up; nor is it worth the memory where these are many.
FEW_TOKENS, LITTLE_WORK = 1 << 8, 1 << 22
MANY_PARAMETERS, MANY_FOR_A_TOKEN = 1 << 24, 1 << 13
MOST, ROWS = 4, 2  # processes at most, and rows that each has at least


def chosen_processes(
    config: TrainConfig, vocab_size: int, where: tt.device, ranks: int = 1, before: int = 0
) -> int:
    """How many processes share a batch on this device: those asked for, or those that --processes 0
    leaves open.

    These are as many as the run has had `before`, if it goes on where that is possible, and never
    more than memory allows. Raises UserError where what was asked for cannot be.
    """
    if config.processes == 1:
        return 1
    reason = against_sharing_here(where, ranks)
    if config.processes:
        require(not reason, f"--processes {config.processes} {reason}")
        return config.processes
    processes = before or quick_processes(config, vocab_size)
    if reason or config.against_sharing(processes):
        return 1
    return processes if plan_for(config, vocab_size, where, processes).fits() else 1


def against_sharing_here(where: tt.device, ranks: int) -> str:
    """Why --processes cannot be here, as what follows on it; empty where it can."""
    if ranks > 1:
        return (
            f"is for a run without a launcher, and this one has {ranks} ranks; say --processes 1, "
            "and start as many ranks as there are cores"
        )
    if where.type != "cpu":
        return f"is for the CPU, and this run computes on {where}; say --processes 1"
    if not tt.utils.can_fork():
        return (
            "needs a system that can copy a process (fork), as Linux can; say --processes 1, and "
            "threads share the work"
        )
    return ""


def quick_processes(config: TrainConfig, vocab_size: int) -> int:
    """How many processes make a step quick."""
    parameters = model_config(config, vocab_size).parameter_count()
    tokens = config.batch_size * config.block_size
    if (
        tokens < FEW_TOKENS
        or tokens * parameters < LITTLE_WORK
        or parameters > min(MANY_PARAMETERS, MANY_FOR_A_TOKEN * tokens)
    ):
        return 1
    return max(1, min(MOST, tt.get_num_threads(), config.batch_size // ROWS))


def counted_targets(y: tt.Tensor) -> Any:
    """How many targets each row has."""
    return np.count_nonzero(y.numpy() != IGNORED, axis=1)


def shares(batches: Iterable[Batch]) -> list[float]:
    """Which part of all targets each batch has."""
    counts = [int(counted_targets(y).sum()) for _, y in batches]
    return [count / sum(counts) for count in counts]


class SharedGradients:
    """Adds the gradient of `share` times a batch's mean loss to the parameters' gradients.

    Returns that product. The other processes start at the first call and end with the `with` block.
    Raises UserError where one of them ended before, with the way on from `run`, if there is one.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: tt.optim.Optimizer,
        config: TrainConfig,
        processes: int,
        run: RunFolder | None = None,
    ) -> None:
        self.model, self.precision, self.run = model, config.precision, run
        self.gradients = tt.utils.DataParallel(self.loss, optimizer, processes, random_by_row=True)

    def loss(self, x: tt.Tensor, y: tt.Tensor, weights: tt.Tensor) -> tt.Tensor:
        """The mean loss of some rows times their mean weight; each process calls it."""
        with devices.precision(self.precision, tt.device("cpu")):
            return devices.loss_on(self.model, (x, y)) * weights.mean()

    def __call__(self, batch: Batch, share: float) -> tt.Tensor:
        x, y = batch
        targets = counted_targets(y)
        weights = share * (targets * len(targets) / targets.sum())  # a mean is that of the targets
        try:
            return self.gradients(x, y, tt.from_numpy(weights.astype(np.float32)))
        except tt.utils.LostProcessError as error:
            sentence = str(error).removeprefix("DataParallel: ")
            way_on = f"; {self.run.way_on()}" if self.run else ""
            raise UserError(f"--processes {self.gradients.processes}: {sentence}{way_on}") from None

    def other_processes(self) -> list[int]:
        """The process numbers (pid) of those that compute beside this one."""
        return self.gradients.other_processes()

    def __enter__(self) -> SharedGradients:
        return self

    def __exit__(self, *exception: object) -> None:
        self.gradients.close()
