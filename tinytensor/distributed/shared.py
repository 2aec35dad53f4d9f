"""Arrays in main memory, between ranks of one machine: through memory that all of them share.

MPI hands a message from process to process in pieces of some kilobytes, one piece a poll. Between
polls the thread must sleep, or it takes the core from the backward pass: 15 MB between two ranks
took 1,000 polls and 120 ms, 105 of them asleep. Here each rank copies what it has into a row of a
shared segment, adds up its own part of all rows, in place, and copies the sums out again:

    stage 1     copy in chunk 0
    stage 2     copy in chunk 1     add chunk 0
    stage 3     copy in chunk 2     add chunk 1     copy out chunk 0
    …

Before the next stage a rank waits until all are done with this one. A chunk has one of three slots
in turn, so that what is written in a stage is read in the next, and nothing else touches it. The
segment is small and stays in the processor's cache. The order of each sum is that of `mpi.py`.
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

Task = Callable[[Array, slice], None]

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

    def _pipeline(self, array: Array, rows: int, *tasks: Task) -> None:
        """Each task does each chunk of `array`, one stage after the task before it.

        A task is given a slot as (rows, n) numbers of the array's dtype, and the place of these n
        in the array. The last stage needs no waiting: its slot is not written again before the
        stage after the next.
        """
        length = self._slots.shape[1] // rows // array.itemsize
        chunks = [
            slice(start, min(start + length, array.size)) for start in range(0, array.size, length)
        ]
        first, stages = self._stage, len(chunks) + len(tasks) - 1
        for stage in range(stages):
            for behind, task in enumerate(tasks):
                if 0 <= (number := stage - behind) < len(chunks):
                    place = chunks[number]
                    slot = self._slots[(first + number) % SLOTS].reshape(rows, -1)
                    task(slot.view(array.dtype)[:, : place.stop - place.start], place)
            if stage < stages - 1:
                self._finish_stage()

    # --- what a collective is made of -----------------------------------------------------------

    def _add_rows(self, op: ReduceOp) -> Task:
        """This rank's part of the rows is combined, and the first row holds it then."""

        def combine(rows: Array, place: slice) -> None:
            part = slices(place.stop - place.start, self.size)[self.rank]
            total = self._combined(rows[:, part], op)
            if total.dtype != rows.dtype:  # otherwise the first row is where it was added up
                rows[0, part] = total

        return combine

    def _reduce(self, array: Array, op: ReduceOp, wanted: slice) -> None:
        """`array[wanted]` becomes the reduction over all ranks."""

        def copy_in(rows: Array, place: slice) -> None:
            rows[self.rank] = array[place]

        def copy_out(rows: Array, place: slice) -> None:
            common = intersection(place, wanted)
            array[common] = rows[0, within(common, place)]

        self._pipeline(array, self.size, copy_in, self._add_rows(op), copy_out)

    # --- collectives ----------------------------------------------------------------------------

    def all_reduce(self, arrays: Sequence[Array], op: ReduceOp) -> None:
        """Each array becomes its reduction over all ranks."""
        flat = packed(arrays)
        self._reduce(flat, op, slice(0, flat.size))
        unpack(flat, arrays)

    def reduce_scatter(self, array: Array, parts: Sequence[slice], op: ReduceOp) -> None:
        """This rank's part of `array` becomes the reduction; the rest keeps what it held."""
        self._reduce(array, op, parts[self.rank])

    def all_gather(self, array: Array, parts: Sequence[slice]) -> None:
        """Rank r's part of `array`, which only r holds, is sent to all."""
        mine = parts[self.rank]

        def copy_in(rows: Array, place: slice) -> None:
            common = intersection(place, mine)
            rows[0, within(common, place)] = array[common]

        def copy_out(rows: Array, place: slice) -> None:
            array[place] = rows[0]

        self._pipeline(array, 1, copy_in, copy_out)

    def broadcast(self, arrays: Sequence[Array], source: int) -> None:
        """Each array becomes what rank `source` holds."""
        flat = packed(arrays)

        def copy_in(rows: Array, place: slice) -> None:
            if self.rank == source:
                rows[0] = flat[place]

        def copy_out(rows: Array, place: slice) -> None:
            if self.rank != source:
                flat[place] = rows[0]

        self._pipeline(flat, 1, copy_in, copy_out)
        unpack(flat, arrays)

    def barrier(self) -> None:
        self._finish_stage()

    def close(self) -> None:
        del self._slots, self._counters  # views of what is given back now
        self._window.Unlock_all()
        self._window.Free()
        super().close()


def intersection(a: slice, b: slice) -> slice:
    """What two slices have in common; an empty one where that is nothing.

    >>> intersection(slice(2, 6), slice(4, 9)), intersection(slice(0, 2), slice(5, 7))
    (slice(4, 6, None), slice(5, 5, None))
    """
    start = max(a.start, b.start)
    return slice(start, max(start, min(a.stop, b.stop)))


def within(inner: slice, outer: slice) -> slice:
    """`inner`, counted from the beginning of `outer`."""
    return slice(inner.start - outer.start, inner.stop - outer.start)
