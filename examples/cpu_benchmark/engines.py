"""A training step in each library: ours, PyTorch's, compiled PyTorch's, and JAX's (`jax_engine`).

Each class is one library at one workload: `step` trains on a batch, `logits` is its answer to one.
All start from the same weights, which are made from the names of the parameters. Ours and PyTorch's
run the very same lines, those of `gpt/model.py` (`torch_source`). Each library gets what it
documents as its fastest in float32: PyTorch its fused AdamW, its own attention, gradients set to
None, and a compiled graph without a break; JAX one compiled function for the whole step, with its
buffers donated. `by_hand` does without a library: NumPy alone.

No library is imported before its class is made, so that each process holds one only.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from .by_hand import ByHand
from .jax_engine import Jax
from .torch_source import torch_model_module
from .workloads import BETAS, CLIP, EPS, LR, WEIGHT_DECAY, Workload, initial_weight


class Ours:
    """This engine. PyTorch's class below differs in names only."""

    def __init__(self, workload: Workload) -> None:
        import tinytensor
        from gpt import model

        self.prepare(tinytensor, model, workload)
        self.loss = self.model.loss
        self.optimizer = tinytensor.optim.AdamW(self.groups, lr=LR, betas=BETAS, eps=EPS)

    def prepare(self, library: Any, source: Any, workload: Workload) -> None:
        """The model of `source`, whose tensors are the library's, with the initial weights."""
        self.library = library
        self.model = build_model(source, workload)
        with library.no_grad():
            for name, parameter in self.model.named_parameters():
                weight = initial_weight(name, tuple(parameter.shape))
                parameter.copy_(library.from_numpy(weight))
        self.groups = source.parameter_groups(self.model, WEIGHT_DECAY)
        self.clip = library.nn.utils.clip_grad_norm_

    def batch(self, ids: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        """Windows (B, T) and their targets, as the library's tensors."""
        tensor = self.library.from_numpy
        return tensor(ids[:, :-1].copy()), tensor(ids[:, 1:].copy())

    def step(self, x: Any, y: Any) -> tuple[float, float]:
        """Trains on one batch; returns the loss, and the norm of the gradients before clipping.

        Gradients go before the forward pass, so that no library keeps the last step's meanwhile.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x, y)
        loss.backward()
        norm = self.clip(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item(), norm.item()

    def logits(self, x: Any) -> np.ndarray[Any, Any]:
        """The scores (B, V) of the token after each window."""
        with self.library.no_grad():
            return self.model(x)[0][:, -1, :].numpy()

    def generate(self, x: Any, tokens: int) -> None:
        self.model.generate(x, tokens)


def build_model(source: Any, workload: Workload) -> Any:
    W = workload
    if not W.fused_heads:
        return source.BigramLanguageModel(W.V, W.block_size, W.C, W.H, W.layers)
    config = source.GPTConfig(
        W.V, W.block_size, W.layers, W.H, W.C,
        bias=W.bias, tied=W.tied, activation=W.activation, head_bias=W.head_bias,
    )  # fmt: skip
    return source.GPT(config)


class InProcesses(Ours):
    """This engine, with each batch shared out among as many processes as there are cores."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.gradients = self.library.utils.DataParallel(self.model.loss, self.optimizer)

    def step(self, x: Any, y: Any) -> tuple[float, float]:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(x, y)
        norm = self.clip(self.model.parameters(), CLIP)
        self.optimizer.step()
        return loss.item(), norm.item()


class Torch(Ours):
    """PyTorch as most people run it."""

    def __init__(self, workload: Workload) -> None:
        import torch

        self.prepare(torch, torch_model_module(), workload)
        self.optimizer = torch.optim.AdamW(self.groups, lr=LR, betas=BETAS, eps=EPS, fused=True)

    def loss(self, x: Any, y: Any) -> Any:
        return self.model(x, y)[1]


class Compiled(Torch):
    """PyTorch with `torch.compile` from the tokens to the loss, forward and backward."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.loss = self.library.compile(super().loss, fullgraph=True)


# Rows of ours beside the headline: where `processes.VARIABLE` is set, and in several processes.
WITH_VARIABLE, IN_PROCESSES = "ours, variable set", "ours, processes"
OURS = ("ours", WITH_VARIABLE, IN_PROCESSES)
# Engine -> the module that it needs; the order is the table's.
PEERS = {"torch": "torch", "compile": "torch", "jax": "jax"}
BY_HAND = "numpy"  # no peer: what NumPy can do, for us to be held against
ENGINES: dict[str, type] = {
    "ours": Ours, "torch": Torch, "compile": Compiled, "jax": Jax, BY_HAND: ByHand,
}  # fmt: skip


def matmul_peak(engine: str, size: int = 2048, repeats: int = 12) -> float:
    """FLOP/s of the library's product of two square matrices: the best of several."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    if engine in ("torch", "compile"):
        import torch

        t = torch.from_numpy(a)
        product = lambda: t @ t  # noqa: E731
    elif engine == "jax":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        j, times = jax.numpy.asarray(a), jax.jit(lambda a: a @ a)
        product = lambda: times(j).block_until_ready()  # noqa: E731
    else:
        out = np.empty_like(a)
        product = lambda: np.matmul(a, a, out=out)  # noqa: E731
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
