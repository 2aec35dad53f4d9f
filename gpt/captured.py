"""`--capture`: the gradients of a batch as one CUDA graph, asked for once and not kernel by kernel.

A small model's forward and backward pass are some hundred short kernels, and Python takes longer to
ask for them than a GPU to run them. The first two batches run plainly, the third is captured
(`tt.cuda.graph`), and from then on a batch and its weight are copied to where the graph reads them.
Dropout masks are those of the plain run. The optimizer's few kernels stay outside, because a loss
that is not finite must be seen before they move the parameters; so does evaluation. Gradients are
added onto zeros. Go back to `gpt/train.py`.
"""

from __future__ import annotations

import tinytensor as tt
from gpt import UserError, devices
from gpt.config import TrainConfig
from gpt.corpus import Batch
from gpt.language_model import LanguageModel


class CapturedGradients:
    """Adds the gradient of `share` times a batch's mean loss to the parameters' gradients.

    Returns that product, where the model is. The gradients must have been cleared, and not set to
    None. Raises UserError where the model is not on a GPU (or "cuda-sim"), or among many ranks, and
    for what cannot be captured.
    """

    def __init__(self, model: LanguageModel, config: TrainConfig, ranks: int = 1) -> None:
        self.where = devices.device_of(model)
        if self.where.type == "cpu":
            raise UserError(
                "--capture is for GPUs, and this run computes on the CPU; leave it out, or ask for "
                "one with --device cuda (cuda-sim shows it without a GPU)"
            )
        if ranks > 1:
            raise UserError(
                "--capture is for one process: with several, gradients are sent away while the "
                "backward pass still runs; leave it out"
            )

        def gradients(x: tt.Tensor, y: tt.Tensor, share: tt.Tensor) -> tt.Tensor:
            with devices.precision(config.precision, self.where):
                loss = devices.loss_on(model, (x, y))
            loss.backward(share)
            return loss * share

        self.replay = tt.cuda.graph(gradients)

    def __call__(self, batch: Batch, share: float) -> tt.Tensor:
        x, y = (part.to(self.where) for part in batch)
        try:
            part: tt.Tensor = self.replay(x, y, tt.full((), share, device=self.where))
        except (RuntimeError, tt.cuda.OutOfMemoryError) as error:
            if self.replay.captured or not str(error).startswith(("graph:", "out of memory:")):
                raise
            raise UserError(f"--capture: {error}; without --capture the run goes on") from None
        return part.clone()  # the next replay writes where this one did
