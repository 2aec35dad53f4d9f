"""What a kernel asks of the memory, counted in the simulator: `with counting() as launches: …`.

The simulator logs every load and store of the first blocks it runs; here the accesses of the 32
threads of a warp by one instruction are put together again, as a GPU issues them:

- Global memory moves in sectors of 32 bytes. 32 neighbouring floats are 4 sectors; 32 floats a row
  apart are 32, of which 28 bytes each are thrown away.
- Shared memory has 32 banks, 4 bytes wide. Threads that want different words of one bank wait for
  one another: an access takes as many *passes* as its busiest bank has words. (One of 8 or 16 bytes
  a thread is issued for 16 or 8 threads at a time, and takes 2 or 4 passes at best.)
- A branch that some lanes take and others do not is run for both, with lanes asleep.

The numbers are those of the C++ compiler's code: a register that it keeps where nvcc would not, or
the reverse, shifts them a little. They compare kernels; they are not a profile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import simulator

Log = np.ndarray[Any, Any]

WRITE, SHARED, STEP = 1, 2, 4  # bits of `kind` in the log
SECTOR, BANKS, WORD = 32, 32, 4


@dataclass(frozen=True)
class Counts:
    """One launch of a kernel, or of as many of its blocks as were counted."""

    name: str
    blocks: int  # that ran
    counted: int  # whose accesses the numbers below add up
    loads: int  # instructions of a warp that read global memory
    stores: int
    sectors: int
    bytes: int  # of global memory, as the threads asked for them
    shared: int  # instructions of a warp on shared memory
    passes: int
    fewest_passes: int
    active: float  # lanes at work, of those that the warps have, over all steps
    divergent: float  # steps that a part of a warp took, of all steps

    @property
    def conflicts(self) -> int:
        """Passes over shared memory that another layout would save."""
        return self.passes - self.fewest_passes

    def per_launch(self, count: float) -> float:
        """`count`, scaled from the blocks counted to all of them."""
        return count * self.blocks / max(1, self.counted)


@contextmanager
def counting(blocks: int = 4, room: int = 4_000_000) -> Iterator[list[Counts]]:
    """Count every launch in the simulator inside the `with` block, in order.

    `blocks` of each launch are counted; raises MemoryError if they make more than `room` accesses.
    """
    launches: list[Counts] = []

    def observe(name: str, log: Log, needed: int, ran: int, threads: int) -> None:
        if needed > len(log):
            raise MemoryError(
                f"{name}: {needed} accesses in {blocks} blocks, but there is room for {len(log)}; "
                "count fewer blocks, or a smaller problem"
            )
        launches.append(count(name, log[:needed], ran, min(blocks, ran), threads))

    previous = simulator.observer
    simulator.observer = simulator.Observer(observe, blocks, room)
    try:
        yield launches
    finally:
        simulator.observer = previous


def count(name: str, log: Log, blocks: int, counted: int, threads: int) -> Counts:
    """The counters of a log of accesses, by blocks of `threads` threads."""
    group, first = _instructions(log)
    kind = log["kind"][first]
    steps, memory = kind & STEP != 0, kind & STEP == 0
    lanes = np.bincount(group, minlength=len(first))
    warp = log["thread"][first] // 32
    available = np.minimum(32, threads - 32 * warp.astype(np.int64))
    at_work = int(lanes[steps].sum()) / max(1, int(available[steps].sum()))
    partly = int((lanes < available)[steps].sum()) / max(1, int(steps.sum()))

    is_global = log["kind"] & (SHARED | STEP) == 0
    sectors = np.stack([group[is_global], log["address"][is_global] // SECTOR], axis=1)
    passes, fewest = _passes(log, group)
    on_global = memory & (kind & SHARED == 0)
    return Counts(
        name,
        blocks,
        counted,
        loads=int((on_global & (kind & WRITE == 0)).sum()),
        stores=int((on_global & (kind & WRITE != 0)).sum()),
        sectors=len(np.unique(sectors, axis=0)),
        bytes=int(log["bytes"][is_global].sum()),
        shared=int((memory & (kind & SHARED != 0)).sum()),
        passes=passes,
        fewest_passes=fewest,
        active=at_work,
        divergent=partly,
    )


def _instructions(log: Log) -> tuple[Log, Log]:
    """The warp instruction that each access is part of, and the first access of each.

    The n-th time that a lane comes by an instruction goes together with the n-th of the other
    lanes.
    """
    where = np.arange(len(log))
    order = np.lexsort((where, log["pc"], log["thread"], log["block"]))
    sorted_log = log[order]
    time = where - np.maximum.accumulate(
        np.where(_starts(sorted_log["pc"], sorted_log["thread"], sorted_log["block"]), where, 0)
    )
    turn = np.empty_like(time)
    turn[order] = time
    keys = (turn, log["pc"], log["thread"] // 32, log["block"])
    order = np.lexsort(keys)
    starts = _starts(*(key[order] for key in keys))
    group = np.empty(len(log), np.int64)
    group[order] = np.cumsum(starts) - 1
    return group, order[starts]


def _starts(*keys: Log) -> Log:
    """Where a run of equal keys begins."""
    starts = np.zeros(len(keys[0]), np.bool_)
    starts[:1] = True
    for key in keys:
        starts[1:] |= key[1:] != key[:-1]
    return starts


def _passes(log: Log, group: Log) -> tuple[int, int]:
    """Passes over the banks of shared memory, and how few there could be."""
    chosen = log["kind"] & SHARED != 0
    log, group = log[chosen], group[chosen]
    if not len(log):
        return 0, 0
    # The part of a warp that is served together: 32 lanes of up to 4 bytes, 16 of 8, 8 of 16.
    words = np.maximum(1, log["bytes"].astype(np.int64) // WORD)
    part = group * 4 + log["thread"] % 32 * words // 32
    part = np.repeat(part, words)
    offset = np.arange(len(part)) - np.repeat(np.cumsum(words) - words, words)
    word = np.repeat(log["address"].astype(np.int64) // WORD, words) + offset
    asked = np.unique(np.stack([part, word], axis=1), axis=0)  # the same word is read once for all
    banks, load = np.unique(asked[:, 0] * BANKS + asked[:, 1] % BANKS, return_counts=True)
    parts, begin = np.unique(banks // BANKS, return_index=True)
    return int(np.maximum.reduceat(load, begin).sum()), len(parts)
