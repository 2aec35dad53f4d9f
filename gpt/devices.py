"""Where a run computes: the device that `--device` names, and what goes to it and comes back.

A model is made on the CPU, so that its first weights are the same everywhere, and moved once;
batches are made on the CPU and move here, in `loss_on`. Numbers come back in `read`, several in one
copy, because every copy from a GPU waits until it has done all that it was asked. Checkpoints and
samples know of no device. Go next to `gpt/train.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tinytensor as tt
from gpt import UserError

if TYPE_CHECKING:
    import tinytensor.distributed as dist
    from gpt.language_model import LanguageModel


def choose(name: str) -> tt.device:
    """The device of that name. Raises UserError, in a sentence, where this machine lacks it."""
    try:
        where = tt.device(name)
        tt.empty(0, device=where)
        if where.type == "cuda":  # what CuPy allocates goes to the current GPU
            tt.cuda.set_device(where.index or 0)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--device {name}: {error}") from None
    return where


def device_of(model: tt.nn.Module) -> tt.device:
    """Where a model's numbers are; all are in one place."""
    first = next(iter(model.parameters()), None)
    return tt.device("cpu") if first is None else first.device


def loss_on(
    model: LanguageModel | dist.DistributedDataParallel, batch: tuple[tt.Tensor, tt.Tensor]
) -> tt.Tensor:
    """The model's mean loss on a batch, which is moved to where the model is.

    Its `loss`, not its `forward`: all logits at once would be the largest array of a step.
    """
    where = device_of(model)
    x, y = (part.to(where) for part in batch)
    loss: tt.Tensor = model.loss(x, y)
    return loss


def read(numbers: Sequence[tt.Tensor]) -> list[float]:
    """The values of tensors without axes, in one copy from where they are."""
    if not numbers:
        return []
    values: list[float] = tt.stack([number.detach() for number in numbers]).tolist()
    return values


def precision(name: str, where: tt.device) -> tt.autocast:
    """The block in which products are computed in `--precision`; parameters stay float32."""
    return tt.autocast(where.type, enabled=name == "bfloat16")


def free_memory(where: tt.device) -> int | None:
    """Bytes of a GPU that a program can still get; None where CuPy cannot say."""
    try:
        return tt.cuda.mem_get_info(where.index or 0)[0]
    except (ImportError, RuntimeError, AttributeError):
        return None
