"""What a run will take, said before anything is allocated: steps, memory by layer, what would fit.

The memory of a training step is the parameters, as much again for their gradients, twice that for
AdamW's two moments, and what the forward pass keeps for the backward pass, which grows with the
rows of a batch. The terms below name each array that is kept; `tests/gpt/test_plan.py` compares
their sum with what a process really allocates. They are within MARGIN of each other.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinytensor as tt
import tinytensor.distributed as dist
from gpt import UserError, devices
from gpt.config import TrainConfig
from gpt.model import GPTConfig
from gpt.runs import model_config

CPU = tt.device("cpu")
FLOAT = 4  # bytes of a float32
MARGIN = 0.1  # how far the prediction may be from what is measured
# Attention (tinytensor/cpu/attention.py) keeps whole weights of contexts up to SHORT; of longer
# ones exponentials, if they are up to KEPT numbers. With dropout it makes both again. SCRATCH are
# the numbers that it works on meanwhile.
SHORT, KEPT, SCRATCH = 64, 1 << 21, 1 << 20
# The loss (tinytensor/cpu/losses.py) makes about so many logits at a time.
LOGITS = 1 << 24
# From so many numbers on, what a norm or GELU gave is not kept but made again (norms.py and
# elementwise.py there).
REMADE_NORM, REMADE_GELU = 1 << 19, 1 << 21
# AdamW works on two arrays of 2^18 numbers, and lets those of the piece before go afterwards.
UPDATE = 4 << 18
# What a copied process writes to of what it shares at first: Python's counts of references.
PROCESS = 12 << 20


@dataclass(frozen=True)
class Plan:
    """The memory of a run, in bytes, and the tokens of its steps."""

    config: TrainConfig
    sizes: GPTConfig
    available: int | None  # what the machine can give; None where it does not say
    holder: str = "the machine"  # or the GPU
    ranks: int = 1  # processes that share the batches of a step
    processes: int = 1  # those that share each batch

    @property
    def parameters(self) -> int:
        return self.sizes.parameter_count()

    def numbers_of_model(self, rows: int) -> dict[str, int]:
        """What is as large as the model, or several times; batches of fewer rows have more sums."""
        one = FLOAT * self.parameters
        moments = 2 * one // self.ranks if self.config.zero else 2 * one
        parts = {"parameters": one, "gradients": one, "AdamW's moments": moments}
        share = rows * self.config.block_size * self.ranks
        batches = max(1, self.config.total_batch // share)
        if self.config.ordered and (sums := sums_of_gradients(batches)):
            parts["sums of batches"] = sums * one
        if others := self.processes - 1:
            # The parameters where all see them; of each other process its copy of them, and its
            # gradients, there and where this one reads them.
            parts["other processes"] = (1 + 3 * others) * one + others * PROCESS
        return parts

    def activations(self, rows: int) -> dict[str, int]:
        """What one batch of so many rows takes, by layer, in all processes together."""
        n = min(rows, self.processes)
        parts = [rows * (i + 1) // n - rows * i // n for i in range(n)]
        each = [self.activations_of_one(part) for part in parts]
        return {name: sum(amounts[name] for amounts in each) for name in each[0]}

    def activations_of_one(self, rows: int) -> dict[str, int]:
        """What one process keeps of so many rows, where it is most: in the backward pass.

        Letters as in gpt/model.py; N tokens are in the batch.
        """
        c = self.sizes
        B, T, C, H, L = rows, c.block_size, c.n_embd, c.n_head, c.n_layer
        N = B * T
        weights = B * H * T * T
        # For their gradients: both norms keep their normalised input (2C), attention q, k and v
        # (3C) and its output, which is what the projection was given (C), the wide layer its
        # output (4C).
        block = 10 * C * N
        if C * N < REMADE_NORM:  # what the linear layers after the norms were given (C each)
            block += 2 * C * N
        if 4 * C * N < REMADE_GELU or c.activation != "gelu_tanh":  # its activation (4C)
            block += 4 * C * N
        blocked = T > SHORT or c.dropout > 0
        if not blocked:
            block += weights + C * N  # all weights; the output is copied for the projection
        elif weights <= KEPT and not c.dropout:
            block += weights * (T + SHORT) // (2 * T)  # the exponentials below the diagonal
        kept = L * block
        if c.checkpointing:  # the input of each block, and one block as it is computed again
            kept = L * C * N + block
        V = c.padded_vocab_size
        if self.config.model == "bigram":  # (C each) the norm, the head's input; (V) p and dlogits
            head = (2 * C + 2 * V) * N
        else:
            # The norm, the head's input and its gradient (C each); and the gradient of all logits,
            # or where that is more, the logits of some tokens and the gradient of the weight.
            some = -(-N // max(1, round(N * V / LOGITS)))
            head = 3 * C * N + (N * V if N * V <= V * C + LOGITS else V * some + V * C)
        # The stream itself and the gradients in the widest part of a block, and attention's
        # scratch; when these are free again, AdamW's.
        passing = max(14 * C * N + (SCRATCH if blocked else 0), min(UPDATE, 4 * self.parameters))
        parts = {f"{L} blocks": kept, "head": head, "in passing": passing}
        return {name: FLOAT * numbers for name, numbers in parts.items()}

    def bytes(self, rows: int | None = None) -> int:
        """The whole, with the planned rows or with others."""
        rows = self.config.batch_size if rows is None else rows
        return sum(self.parts(rows).values())

    def parts(self, rows: int) -> dict[str, int]:
        return {**self.numbers_of_model(rows), **self.activations(rows)}

    def largest_batch(self) -> int:
        """The most rows that fit and divide the step; 0 where not even one does."""
        if self.available is None:
            return self.config.batch_size
        if total := self.config.total_batch // self.config.block_size:
            divisors = [rows for rows in range(1, total + 1) if total % rows == 0]
            return max((rows for rows in divisors if self.bytes(rows) <= self.available), default=0)
        # The first number of rows that does not fit, by doubling and then halving the interval.
        fits, fails = 0, 1
        while self.bytes(fails) <= self.available:
            fits, fails = fails, 2 * fails
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self.bytes(middle) <= self.available:
                fits = middle
            else:
                fails = middle
        return fits

    def fits(self) -> bool:
        return self.available is None or self.bytes() <= self.available

    def lines(self) -> list[str]:
        """The plan as it is printed: a line, or a table where a step is several batches."""
        if not self.config.total_batch and self.fits():
            return [f"memory  about {size(self.bytes())}{self.of_what_is_free}"]
        return self.table()

    @property
    def of_what_is_free(self) -> str:
        return "" if self.available is None else f" of {size(self.available)} that are free"

    def table(self) -> list[str]:
        c = self.config
        tokens = c.batch_size * c.block_size
        batches = f"{c.accumulation} {'batch' if c.accumulation == 1 else 'batches'}"
        rows = [
            f"plan    {c.iterations:,} steps of {c.accumulation * tokens:,} tokens "
            f"({batches} of {c.batch_size} x {c.block_size}), "
            f"{counted(c.iterations * c.accumulation * tokens)} in all"
        ]
        rows += [
            f"        {name:<16} {size(amount):>9}"
            for name, amount in self.parts(c.batch_size).items()
        ]
        rows.append(f"        {'together':<16} {size(self.bytes()):>9}{self.of_what_is_free}")
        if self.available is not None:
            largest = self.largest_batch()
            rows.append(
                f"        the largest --batch-size that fits is {largest}"
                if largest
                else "        not even one row of a batch fits"
            )
        return rows

    def check(self) -> None:
        """Raises UserError, with the flag to lower, for a plan that needs more than there is."""
        if self.fits() or self.config.ignore_memory:
            return
        assert self.available is not None
        needs = (
            f"this run needs about {size(self.bytes())}, but {self.holder} has "
            f"{size(self.available)} free"
        )
        if self.processes > 1 and (alone := dataclasses.replace(self, processes=1)).fits():
            raise UserError(
                f"{needs}; --processes 1 takes {size(alone.bytes())}, or go on with --ignore-memory"
            )
        if rows := self.largest_batch():
            same = " (the step stays the same)" if self.config.total_batch else ""
            raise UserError(
                f"{needs}; lower --batch-size to {rows}, which takes {size(self.bytes(rows))}"
                f"{same}, or go on with --ignore-memory"
            )
        fixed = self.numbers_of_model(self.config.batch_size)
        if sums := fixed.get("sums of batches"):
            raise UserError(
                f"{needs}, of which the sums of a step's batches take {size(sums)}; --no-ordered "
                "does without them, --ignore-memory goes on"
            )
        if sum(fixed.values()) < self.available:
            flags = (
                "--block-size" if self.sizes.checkpointing else "--block-size, or --checkpointing"
            )
            raise UserError(
                f"{needs}, and one row of {self.sizes.block_size} tokens does not fit beside the "
                f"model; lower {flags} keeps less, --ignore-memory goes on"
            )
        raise UserError(
            f"{needs}, and the model alone takes {size(sum(fixed.values()))} with its "
            "gradients and moments; lower --n-layer or --n-embd, or go on with --ignore-memory"
        )


def sums_of_gradients(batches: int) -> int:
    """How many sums of gradients wait for others when a step's batches are added as a binary tree.

    As many as a number below `batches` has binary ones: sums of 1, 2, 4, … batches
    (tinytensor/distributed/parallel.py).
    """
    return max(number.bit_count() for number in range(batches))


def plan_for(
    config: TrainConfig, vocab_size: int, where: tt.device = CPU, processes: int = 1
) -> Plan:
    """The plan of a run on a device of this machine, whose batches so many processes share.

    What is kept is counted as on the CPU, where it is most: on a GPU no attention weights are kept,
    and half of the bytes of what a product in bfloat16 was given.
    """
    sizes = model_config(config, vocab_size)
    if where.type == "cuda":
        return Plan(
            config, sizes, devices.free_memory(where), "the GPU", ranks=dist.get_world_size()
        )
    ranks = dist.get_world_size()
    return Plan(config, sizes, available_memory(), ranks=ranks, processes=processes)


# ---- The machine ----


def available_memory() -> int | None:
    """Bytes that a process can still get; None on a system that does not say."""
    found = [amount for amount in (free_memory(), control_group_memory()) if amount is not None]
    return min(found, default=None)


def free_memory() -> int | None:
    """As Linux estimates it, or else all the memory that the machine has."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def control_group_memory(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves, where there is one."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int((folder / limit).read_text())
            return max(0, most - int((folder / used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def counted(tokens: int) -> str:
    return f"{tokens:,}" if tokens < 1e6 else f"{tokens / 1e6:,.1f} million"


def size(amount: int) -> str:
    """Bytes as a person reads them."""
    if amount < 1e6:
        return f"{amount / 1e3:,.0f} kB"
    if amount < 1e9:
        return f"{amount / 1e6:,.0f} MB"
    return f"{amount / 1e9:,.1f} GB"


# ---- Speed ----


def flops_per_token(sizes: GPTConfig) -> int:
    """Floating-point operations of training on one token: three times those of the forward pass.

    Two per weight that a token is multiplied with (the head's table, but no lookup), and 4·T·C per
    block for attention's two products, counted in full as is customary, though half is masked.
    (A. Chowdhery et al., "PaLM", 2022, appendix B.)
    """
    C, T = sizes.n_embd, sizes.block_size
    weights = sizes.n_layer * 12 * C * C + sizes.vocab_size * C
    return 3 * (2 * weights + sizes.n_layer * 4 * T * C)


def peak_of(where: tt.device, config: TrainConfig) -> float:
    """The peak that a run's utilisation is a share of; that of the CPU for the simulator."""
    if where.type != "cuda":
        return matmul_peak()
    return device_peak(where, tt.bfloat16 if config.precision == "bfloat16" else tt.float32)


def device_peak(where: tt.device, dtype: Any, width: int = 4096, seconds: float = 0.25) -> float:
    """As `matmul_peak`, of the engine's own product on a device; its first one is not counted."""
    a = tt.ones(width, width, dtype=dtype, device=where)
    fastest, began = float("inf"), time.perf_counter()
    with tt.no_grad():
        a @ a
        tt.cuda.synchronize()
        while (now := time.perf_counter()) - began < seconds or fastest == float("inf"):
            a @ a
            tt.cuda.synchronize()
            fastest = min(fastest, time.perf_counter() - now)
    return 2 * width**3 / fastest


def matmul_peak(width: int = 1024, seconds: float = 0.25) -> float:
    """Floating-point operations per second of a large float32 product here: the best of several.

    In a new process the first tenth of a second may pass before BLAS computes on all cores; a
    shorter look finds half of the peak now and then, and a utilisation twice too high.
    """
    a = np.ones((width, width), np.float32)
    out = np.matmul(a, a)
    fastest, began = float("inf"), time.perf_counter()
    while (now := time.perf_counter()) - began < seconds or fastest == float("inf"):
        np.matmul(a, a, out=out)
        fastest = min(fastest, time.perf_counter() - now)
    return 2 * width**3 / fastest
