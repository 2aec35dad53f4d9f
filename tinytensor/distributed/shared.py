"""Arrays in main memory, between ranks of one machine: through memory that all of them share.

MPI hands a message from process to process in pieces of some kilobytes, one piece a poll. Between
polls the thread must sleep, or it takes the core from the backward pass: 15 MB between two ranks
took 1,000 polls and 120 ms, 105 of them asleep. Here each rank copies what the others are to add
into a row of a shared segment, adds up its own part of all rows, and copies the others' sums out:

    stage 1     copy in chunk 0
    stage 2     copy in chunk 1     add chunk 0
    stage 3     copy in chunk 2     add chunk 1     copy out chunk 0
    …

A reduce-scatter is the first two columns of it, an all-gather the first and the last. A rank's own
part of its own numbers is never copied. Before the next stage a rank waits until all are done with
this one. A chunk has one of three slots in turn, so that what is written in a stage is read in the
next, and nothing else touches it. The segment is small and stays in the processor's cache. The
order of each sum is that of `mpi.py`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import Array
from .mpi import MpiCommunicator, packed, slices, unpack
from .operations import ReduceOp

Task = Callable[[Array, int], None]

CHUNK = 1 << 20  # bytes of a rank in one slot
SLOTS = 3
SEGMENT = 1 << 25  # bytes at most, for all ranks: containers often have no more than twice that
LINE = 64  # bytes: counters of two ranks in one cache line would slow both down

# Waiting for a rank: looks without a pause, then pauses that grow with the time already waited.
EAGER_LOOKS = 4
SHORTEST_PAUSE, LONGEST_PAUSE = 2e-5, 1e-3  # seconds


def communicator(comm: Any) -> MpiCommunicator:
    """Through shared memory where all ranks of `comm` are on one machine, else in messages."""
    MPI = importlib.import_module("mpi4py.MPI")
    neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
    together = neighbours.Get_size() == comm.Get_size()
    neighbours.Free()
    everybody = comm.allreduce(together, MPI.LAND)
    return SharedMemoryCommunicator(comm) if everybody else MpiCommunicator(comm)


class SharedMemoryCommunicator(MpiCommunicator):
    """The same collectives as over messages, with the same bits, for ranks of one machine."""

    def __init__(self, comm: Any) -> None:
        super().__init__(comm)
        MPI = importlib.import_module("mpi4py.MPI")
        chunk = min(CHUNK, SEGMENT // (SLOTS * self.size)) // LINE * LINE
        slots = SLOTS * self.size * chunk
        # Rank 0 provides it all, so that the slots lie one after the other.
        provided = slots + self.size * LINE if self.rank == 0 else 0
        self._window = MPI.Win.Allocate_shared(provided, 1, comm=comm)
        self._window.Lock_all()
        memory = np.frombuffer(self._window.Shared_query(0)[0], np.uint8)
        self._slots = memory[:slots].reshape(SLOTS, self.size * chunk)
        # How many stages each rank has done.
        self._counters = memory[slots:].view(np.int64)[:: LINE // 8]
        self._counters[self.rank] = 0
        self._stage = 0
        super().barrier()

    # --- stages ---------------------------------------------------------------------------------

    def _finish_stage(self) -> None:
        """Say that this rank has done its part of the stage, and wait for the others."""
        self._stage += 1
        self._window.Sync()  # what was written is there before the counter says so
        self._counters[self.rank] = self._stage
        began, looks = time.perf_counter(), 0
        while self._counters.min() < self._stage:
            looks += 1
            waited = time.perf_counter() - began
            pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, waited / 4))
            # Without a pause, too, a computing thread is given the interpreter.
            time.sleep(pause if looks > EAGER_LOOKS else 0)
        self._window.Sync()

    def _pipeline(self, dtype: Any, rows: int, chunks: int, *tasks: Task) -> None:
        """Each task does each chunk, one stage after the task before it.

        A task is given a slot as (rows, n) numbers of `dtype`, and the number of the chunk. The
        last stage needs no waiting: its slot is not written again before the stage after the next.
        """
        first, stages = self._stage, chunks + len(tasks) - 1
        for stage in range(stages):
            for behind, task in enumerate(tasks):
                if 0 <= (number := stage - behind) < chunks:
                    slot = self._slots[(first + number) % SLOTS]
                    task(slot.view(dtype).reshape(rows, -1), number)
            if stage < stages - 1:
                self._finish_stage()

    # --- what a collective is made of -----------------------------------------------------------

    def _length(self, dtype: Any, rows: int) -> int:
        """How many numbers of one rank's part fit in a row, when each rank's part has as many."""
        return int(self._slots.shape[1] // rows // dtype.itemsize // self.size)

    def _reduce(self, array: Array, parts: Sequence[slice], op: ReduceOp, publish: bool) -> None:
        """This rank's part of `array` becomes the reduction; with `publish`, the other parts too.

        A row is a rank's numbers: of each rank's part, so many.
        """
        length = self._length(array.dtype, self.size)
        mine = slice(self.rank * length, (self.rank + 1) * length)

        def copy_in(rows: Array, number: int) -> None:
            for r, part in enumerate(parts):
                if r != self.rank:
                    _fill(rows[self.rank, r * length :], array[piece(part, number, length)])

        def add(rows: Array, number: int) -> None:
            own = array[piece(parts[self.rank], number, length)]
            terms = [row[mine][: own.size] for row in rows]
            result = terms[self.rank]  # nobody has written there
            terms[self.rank] = own
            total = self._combined(terms, op, own)
            if total is not own:
                own[...] = total
            if publish:
                result[...] = own

        def copy_out(rows: Array, number: int) -> None:
            for r, part in enumerate(parts):
                if r != self.rank:
                    others = array[piece(part, number, length)]
                    others[...] = rows[r, r * length :][: others.size]

        tasks = [copy_in, add, copy_out] if publish else [copy_in, add]
        self._pipeline(array.dtype, self.size, chunks(parts, length), *tasks)

    # --- collectives ----------------------------------------------------------------------------

    def all_reduce(self, arrays: Sequence[Array], op: ReduceOp) -> None:
        """Each array becomes its reduction over all ranks."""
        flat = packed(arrays)
        self._reduce(flat, slices(flat.size, self.size), op, publish=True)
        unpack(flat, arrays)

    def reduce_scatter(self, array: Array, parts: Sequence[slice], op: ReduceOp) -> None:
        """This rank's part of `array` becomes the reduction; the rest keeps what it held."""
        self._reduce(array, parts, op, publish=False)

    def all_gather(self, array: Array, parts: Sequence[slice]) -> None:
        """Rank r's part of `array`, which only r holds, is sent to all."""
        length = self._length(array.dtype, 1)

        def copy_in(rows: Array, number: int) -> None:
            _fill(rows[0, self.rank * length :], array[piece(parts[self.rank], number, length)])

        def copy_out(rows: Array, number: int) -> None:
            for r, part in enumerate(parts):
                if r != self.rank:
                    others = array[piece(part, number, length)]
                    others[...] = rows[0, r * length :][: others.size]

        self._pipeline(array.dtype, 1, chunks(parts, length), copy_in, copy_out)

    def broadcast(self, arrays: Sequence[Array], source: int) -> None:
        """Each array becomes what rank `source` holds."""
        flat = packed(arrays)
        whole = slice(0, flat.size)
        length = self._slots.shape[1] // flat.itemsize

        def copy_in(rows: Array, number: int) -> None:
            if self.rank == source:
                _fill(rows[0], flat[piece(whole, number, length)])

        def copy_out(rows: Array, number: int) -> None:
            if self.rank != source:
                some = flat[piece(whole, number, length)]
                some[...] = rows[0, : some.size]

        self._pipeline(flat.dtype, 1, chunks([whole], length), copy_in, copy_out)
        unpack(flat, arrays)

    def barrier(self) -> None:
        self._finish_stage()

    def close(self) -> None:
        del self._slots, self._counters  # views of what is given back now
        self._window.Unlock_all()
        self._window.Free()
        super().close()


def _fill(room: Array, numbers: Array) -> None:
    room[: numbers.size] = numbers


def chunks(parts: Sequence[slice], length: int) -> int:
    """How many pieces of `length` the longest part has."""
    longest: int = max(part.stop - part.start for part in parts)
    return -(-longest // length)


def piece(part: slice, number: int, length: int) -> slice:
    """The `number`-th piece of `length` of a part; the last one is shorter, later ones are empty.

    >>> piece(slice(10, 15), 1, 3), piece(slice(10, 15), 2, 3)
    (slice(13, 15, None), slice(15, 15, None))
    """
    start = min(part.start + number * length, part.stop)
    return slice(start, min(start + length, part.stop))
