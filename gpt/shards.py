"""Tokens cut into shards on the disk, and the loader that trains on them.

    shards/
        index.json            the vocabulary, how many tokens, each shard's SHA-256
        tokenizer.json        the tokenizer itself
        train-00000.npy       20,971,520 tokens and one more
        validation-00000.npy

The one more is the last target: of 9 tokens, 1 to 9, two rows of four are X = 1 2 3 4 | 5 6 7 8 and
Y = 2 3 4 5 | 6 7 8 9. It is also the next shard's first input, so that no token is a target twice.
Folders that nanoGPT, llm.c and others wrote are read as well (`gpt/shard_files.py`); ours come from
`python -m gpt prepare` (`gpt/prepare.py`, `gpt/shard_writer.py`). This file knows tokens, no text.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import tinytensor as tt
from gpt import UserError
from gpt.shard_files import Tokens, find_shards


class ShardDataLoader:
    """Batches from shards, one shard after another, each token once an epoch.

    A step takes `world_size` batches that follow each other, and rank r the r-th of them, so that
    the ranks together read what one rank would. What is left of a shard and fills no step is passed
    over. With a seed, the order of the shards is another in each epoch. Batches are read ahead by a
    thread of its own. Raises UserError for shards that are damaged or too short.

        with ShardDataLoader("shards", batch_size=16, block_size=1024, seed=0) as batches:
            x, y = batches.next_batch()  # (B, T) each, int64: y[b, t] comes right after x[b, t]
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        batch_size: int = 16,
        block_size: int = 1024,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        vocab_size: int | None = None,
        verify: bool = True,
        prefetch: int = 2,
    ):
        if min(batch_size, block_size, world_size) < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batches of {batch_size} x {block_size} for rank {rank} of {world_size}: sizes "
                "begin at 1, ranks at 0"
            )
        self.batch_size, self.block_size = batch_size, block_size
        self.rank, self.world_size = rank, world_size
        self.seed, self.vocab_size, self.prefetch = seed, vocab_size, prefetch
        self.shards = find_shards(shards, split, vocab_size, verify)
        self.tokens_per_step = batch_size * block_size * world_size
        self.steps = [(shard.tokens - 1) // self.tokens_per_step for shard in self.shards]
        if not any(self.steps):
            largest = max(self.shards, key=lambda shard: shard.tokens)
            raise UserError(
                f"no {split} shard fills one step of {world_size} x {batch_size} x {block_size} "
                f"tokens and one more: the largest, {largest.path}, has {largest.tokens:,}"
            )
        self.mapped: tuple[int, Tokens] | None = None
        self.reader = ThreadPoolExecutor(1, "shards")
        self.batches_drawn = 0
        self.ahead: deque[Future[tuple[Tokens, Tokens]]] = deque()

    @property
    def batches_per_epoch(self) -> int:
        return sum(self.steps)

    def next_batch(self) -> tuple[tt.Tensor, tt.Tensor]:
        """Inputs and targets (B, T), int64: y[b, t] comes right after x[b, t]."""
        while len(self.ahead) <= self.prefetch:
            step = self.batches_drawn + len(self.ahead)
            self.ahead.append(self.reader.submit(self.read, step))
        try:
            x, y = self.ahead.popleft().result()
        except BaseException:
            self.seek(self.batches_drawn)
            raise
        self.batches_drawn += 1
        return tt.from_numpy(x), tt.from_numpy(y)

    def read(self, step: int) -> tuple[Tokens, Tokens]:
        """The batch of a step, counted from the beginning of the training."""
        number, start = self.place(step)
        if self.mapped is None or self.mapped[0] != number:
            self.mapped = number, self.shards[number].open()
        B, T = self.batch_size, self.block_size
        window = self.mapped[1][start : start + B * T + 1].astype(np.int64)
        if self.vocab_size is not None and not 0 <= window.min() <= window.max() < self.vocab_size:
            raise UserError(
                f"the shard {self.shards[number].path} has changed: it holds tokens outside the "
                f"vocabulary of {self.vocab_size}"
            )
        return window[:-1].reshape(B, T), window[1:].reshape(B, T)

    def place(self, step: int) -> tuple[int, int]:
        """The shard that a step reads, and where this rank's batch begins in it."""
        epoch, step = divmod(step, self.batches_per_epoch)
        for number in shard_order(len(self.shards), self.seed, epoch):
            if step < self.steps[number]:
                break
            step -= self.steps[number]
        return number, (step * self.world_size + self.rank) * self.batch_size * self.block_size

    def seek(self, batches_drawn: int) -> None:
        """Goes to a place in the endless sequence of batches; 0 is its beginning."""
        for future in self.ahead:
            future.cancel()
        self.ahead.clear()
        self.batches_drawn = batches_drawn

    def state_dict(self) -> dict[str, Any]:
        """The place, as JSON can hold it, and what it is a place in."""
        return {"batches_drawn": self.batches_drawn, **self.sequence()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken. Raises UserError if the batches would differ."""
        for name, value in self.sequence().items():
            if state.get(name) != value:
                raise UserError(
                    f"the batches cannot go on: their {name} was {state.get(name)}, and is {value} "
                    "now"
                )
        self.seek(state["batches_drawn"])

    def sequence(self) -> dict[str, Any]:
        files = json.dumps([[shard.path.name, shard.tokens] for shard in self.shards])
        return {
            "shards": hashlib.sha256(files.encode()).hexdigest()[:16],
            "seed": self.seed,
            "block_size": self.block_size,
            "tokens_per_step": self.tokens_per_step,
        }

    def close(self) -> None:
        """Stops reading ahead."""
        self.seek(self.batches_drawn)
        self.reader.shutdown()
        self.mapped = None

    def __enter__(self) -> ShardDataLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@lru_cache(maxsize=4)
def shard_order(count: int, seed: int | None, epoch: int) -> list[int]:
    """The order of an epoch: sorted by a hash, so that it is the same on every machine."""
    if seed is None:
        return list(range(count))
    key = lambda i: hashlib.sha256(f"{seed} {epoch} {i}".encode()).digest()  # noqa: E731
    return sorted(range(count), key=key)
