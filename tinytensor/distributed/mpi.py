"""Arrays in main memory, in messages of MPI: what every rank does in a collective, in which order.

Sums are taken in a fixed order, that of a binary tree over the ranks: ((0 + 1) + (2 + 3)) + ….
MPI's own reductions choose their order by message size and topology. With this one all ranks hold
the same bits, and the sum over 4 ranks is the sum over 2 ranks of sums over 2 micro-batches. It
costs nothing: each rank receives its N-th part from everybody, adds, and sends the sum to
everybody, which moves the 2 (N - 1) / N bytes per byte that any all-reduce must move.

Requests are polled, with short sleeps: a blocking call of MPI would spin on a core that computes.
Ranks of one machine have a quicker way, `shared.py`.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend import Array, bfloat16
from .operations import ReduceOp

# Below this it is quicker that everybody sends everything: one message latency instead of two.
SMALL = 1 << 14  # bytes

# Waiting for a message: how many polls without a pause, and the pause after them. A poll moves what
# the shared memory between two processes holds at once, some kilobytes: with a pause of a
# millisecond, 24 MB took eight times as long as with this one.
EAGER_POLLS = 20
PAUSE = 2e-5  # seconds

COMBINE: dict[ReduceOp, Callable[..., Any]] = {
    ReduceOp.SUM: np.add,
    ReduceOp.AVG: np.add,
    ReduceOp.MAX: np.maximum,
    ReduceOp.MIN: np.minimum,
}

# What a launcher tells each process that it starts: MPICH and Intel, Open MPI and PMIx, SLURM.
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")


def launched_size() -> int:
    """How many processes the launcher started, by its environment variables; 1 without one."""
    for name in SIZE_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def launched_rank() -> int:
    """This process's number among those that the launcher started; 0 without one."""
    if launched_size() == 1:
        return 0
    numbers = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(number) for number in numbers if number.isdigit()), 0)


def connect() -> Any:
    """MPI's world communicator, a copy of our own, or a sentence about what is missing."""
    launched = launched_size()
    how = "pip install 'tinytensor-gpt[mpi]' brings mpi4py and an mpiexec that fits"
    try:
        MPI = importlib.import_module("mpi4py.MPI")
    except ImportError as error:
        missing = "is not installed" if error.name == "mpi4py" else f"does not load ({error})"
        raise RuntimeError(
            f"distributed: {launched} processes were started, but mpi4py {missing}; {how}"
        ) from None
    if launched > 1 and MPI.COMM_WORLD.size != launched:
        library = " ".join(MPI.Get_library_version().split("\n")[0].split())
        if "SLURM_STEP_NUM_TASKS" in os.environ and "PMI_SIZE" not in os.environ:
            how = "for MPICH it is srun --mpi=pmi2 (srun --mpi=list shows which there are)"
        raise RuntimeError(
            f"distributed: the launcher started {launched} processes, but mpi4py sees "
            f"{MPI.COMM_WORLD.size}: its MPI ({library}) does not understand the launcher; {how}"
        )
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise RuntimeError(
            "distributed: this MPI was started for one thread only; leave mpi4py.rc.thread_level "
            "at 'multiple'"
        )
    return MPI.COMM_WORLD.Dup()


def slices(length: int, parts: int) -> list[slice]:
    """`length` elements in `parts` neighbouring slices, the longest one longer by one."""
    edges = [length * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def tree(terms: list[Array], combine: Callable[..., Any], out: Array | None = None) -> Array:
    """All of `terms` combined, neighbours first; writes into the terms, at last into `out`.

    >>> tree([np.array([1.0]), np.array([2.0]), np.array([3.0])], np.add)
    array([6.])
    """
    while len(terms) > 2:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        odd = terms[-1:] if len(terms) % 2 else []
        terms = [combine(a, b, out=a) for a, b in pairs] + odd
    if len(terms) == 2:
        terms = [combine(*terms, out=terms[0] if out is None else out)]
    return terms[0]


class MpiCommunicator:
    """Collectives on contiguous NumPy arrays. Each call returns when it is done on this rank."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._bytes = importlib.import_module("mpi4py.MPI").BYTE
        self._received = np.empty(0, np.uint8)

    # --- what a collective is made of -----------------------------------------------------------

    def _finish(self, request: Any) -> None:
        polls = 0
        while not request.Test():
            polls += 1
            # Without a pause, too, a computing thread is given the interpreter.
            time.sleep(PAUSE if polls > EAGER_POLLS else 0)

    def _scratch(self, size: int) -> Any:
        if self._received.nbytes < size:
            self._received = np.empty(size, np.uint8)
        return self._received[:size]

    def _gather_rows(self, array: Array) -> Array:
        """(size, n): every rank's `array` of n elements."""
        rows = self._scratch(self.size * array.nbytes).view(array.dtype)
        self._finish(self._comm.Iallgather(self._message(array), self._message(rows)))
        return rows.reshape(self.size, array.size)

    def _message(self, array: Array) -> list[Any]:
        return [array.reshape(-1).view(np.uint8), self._bytes]

    def _parts(self, array: Array, parts: Sequence[slice]) -> list[Any]:
        width = array.itemsize
        counts = [width * (part.stop - part.start) for part in parts]
        starts = [width * part.start for part in parts]
        return [array.view(np.uint8), (counts, starts), self._bytes]

    def _combined(self, terms: list[Array], op: ReduceOp, out: Array | None = None) -> Array:
        """The terms, one from each rank, as one, if possible in `out`; writes into the terms.

        Sixteen bits are added up in thirty-two.
        """
        if terms[0].dtype == bfloat16 or terms[0].dtype == np.float16:
            terms, out = [term.astype(np.float32) for term in terms], None
        total = tree(terms, COMBINE[op], out)
        if op is ReduceOp.AVG:
            total /= self.size
        return total

    # --- collectives ----------------------------------------------------------------------------

    def all_reduce(self, arrays: Sequence[Array], op: ReduceOp) -> None:
        """Each array becomes its reduction over all ranks."""
        flat = packed(arrays)
        if flat.nbytes <= SMALL:
            flat[...] = self._combined(list(self._gather_rows(flat)), op)
        else:
            parts = slices(flat.size, self.size)
            self._reduce_part(flat, parts, op)
            self._gather_parts(flat, parts)
        unpack(flat, arrays)

    def reduce_scatter(self, array: Array, parts: Sequence[slice], op: ReduceOp) -> None:
        """This rank's part of `array` becomes the reduction; the rest keeps what it held."""
        self._reduce_part(array, parts, op)

    def all_gather(self, array: Array, parts: Sequence[slice]) -> None:
        """Rank r's part of `array`, which only r holds, is sent to all."""
        self._gather_parts(array, parts)

    def _reduce_part(self, array: Array, parts: Sequence[slice], op: ReduceOp) -> None:
        mine = parts[self.rank]
        length = mine.stop - mine.start
        rows = self._scratch(self.size * length * array.itemsize).view(array.dtype)
        there = [slice(length * r, length * (r + 1)) for r in range(self.size)]
        sent, received = self._parts(array, parts), self._parts(rows, there)
        self._finish(self._comm.Ialltoallv(sent, received))
        array[mine] = self._combined(list(rows.reshape(self.size, length)), op)

    def _gather_parts(self, array: Array, parts: Sequence[slice]) -> None:
        in_place = importlib.import_module("mpi4py.MPI").IN_PLACE
        self._finish(self._comm.Iallgatherv(in_place, self._parts(array, parts)))

    def broadcast(self, arrays: Sequence[Array], source: int) -> None:
        """Each array becomes what rank `source` holds."""
        flat = packed(arrays)
        self._finish(self._comm.Ibcast(self._message(flat), source))
        unpack(flat, arrays)

    def barrier(self) -> None:
        self._finish(self._comm.Ibarrier())

    def gather_objects(self, value: object) -> list[Any]:
        """Every rank's `value`, in the order of the ranks. Small things only: it is pickled."""
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        sizes[self.rank] = own.size
        self.all_gather(sizes, slices(self.size, self.size))
        edges = [0, *itertools.accumulate(sizes.tolist())]
        parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
        whole = np.empty(edges[-1], np.uint8)
        whole[parts[self.rank]] = own
        self.all_gather(whole, parts)
        return [pickle.loads(whole[part].data) for part in parts]

    def abort(self) -> None:
        """Nothing to undo: the process ends, and its messages with it."""

    def close(self) -> None:
        self._comm.Free()


def packed(arrays: Sequence[Array]) -> Array:
    """The arrays one after the other as one: a copy, unless there is only one."""
    if len(arrays) == 1:
        return arrays[0].reshape(-1)
    return np.concatenate([array.reshape(-1) for array in arrays])


def unpack(flat: Array, arrays: Sequence[Array]) -> None:
    """What was `packed` goes back to where it came from."""
    if len(arrays) == 1:
        return
    start = 0
    for array in arrays:
        array.reshape(-1)[...] = flat[start : start + array.size]
        start += array.size
