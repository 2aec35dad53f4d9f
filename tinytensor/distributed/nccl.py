"""Arrays on GPUs, over NCCL: `cupy.cuda.nccl.NcclCommunicator`, and nothing else of CuPy's.

`cupyx.distributed` can neither reduce bfloat16 nor average; the communicator underneath passes the
numbers of nccl.h through, so both work. Every call only enqueues work on the current stream: where
communication has a stream of its own, the backward pass goes on beside it (`lane.py`), and a call
inside a stream capture becomes part of the CUDA graph.

A rank's part of an array need not be as long as the others', which NCCL's reduce-scatter and
all-gather demand. Then one reduction or broadcast for each rank, in a group, does the same.

NCCL's own order of summation differs with the number of ranks, the links and the message size; on
one machine, twice the same run gives the same bits, and all ranks hold the same bits.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import backend
from ..backend import Array, bfloat16, cupy
from .operations import ReduceOp

# ncclDataType_t and ncclRedOp_t of nccl.h, by name of the array's dtype.
TYPES = {
    "int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5,
    "float16": 6, "float32": 7, "float64": 8, "bfloat16": 9, "bool": 1,
}  # fmt: skip
OPERATIONS = {ReduceOp.SUM: 0, ReduceOp.MAX: 2, ReduceOp.MIN: 3, ReduceOp.AVG: 4}


def library() -> Any:
    """CuPy's binding of NCCL, or a sentence about what to install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's words about a library that it does not find
        nccl = backend.nccl()
    if not getattr(nccl, "available", False):
        raise RuntimeError(
            "distributed: CuPy finds no NCCL library; pip install 'tinytensor-gpt[cuda13]' (or "
            "[cuda12]) brings it on Linux"
        )
    return nccl


def data_type(array: Array) -> int:
    """NCCL's number for the array's dtype."""
    name = "bfloat16" if array.dtype == bfloat16 else array.dtype.name
    if name not in TYPES:
        raise TypeError(f"distributed: NCCL has no {name} arrays; it has {', '.join(TYPES)}")
    return TYPES[name]


def operation(op: ReduceOp, array: Array) -> int:
    """NCCL's number for `op`. The sum of truth values is "or", as in NumPy: 1 + 1 would be 2."""
    if op is ReduceOp.SUM and array.dtype.kind == "b":
        return OPERATIONS[ReduceOp.MAX]
    return OPERATIONS[op]


class NcclCommunicator:
    """Collectives on contiguous CuPy arrays, enqueued on the current stream.

    `communicator` is NCCL's for this rank, `nccl` the module with `groupStart` and `groupEnd`, and
    `stream` answers the stream to use: tests put recorders in their place.
    """

    def __init__(self, communicator: Any, rank: int, size: int, nccl: Any, stream: Any) -> None:
        self._communicator = communicator
        self._nccl = nccl
        self._stream = stream
        self._ended = False
        self._lock = threading.Lock()
        self.rank = rank
        self.size = size

    @classmethod
    def connect(cls, rank: int, size: int, identity: bytes) -> NcclCommunicator:
        """Meets the other ranks under `identity`, which rank 0 got from `get_unique_id()`."""
        nccl, module = library(), cupy()
        communicator = nccl.NcclCommunicator(size, identity, rank)
        return cls(communicator, rank, size, nccl, module.cuda.get_current_stream)

    def all_reduce(self, arrays: Sequence[Array], op: ReduceOp) -> None:
        """Each array becomes its reduction over all ranks; several are one operation to NCCL."""
        stream = self._stream().ptr
        with self._grouped():
            for array in arrays:
                place, kind = array.data.ptr, data_type(array)
                self._communicator.allReduce(
                    place, place, array.size, kind, operation(op, array), stream
                )

    def reduce_scatter(self, array: Array, parts: Sequence[slice], op: ReduceOp) -> None:
        """This rank's part of `array` becomes the reduction; the rest keeps what it held."""
        stream, kind, width = self._stream().ptr, data_type(array), array.itemsize
        start, number = array.data.ptr, operation(op, array)
        if _equal(parts):
            mine = parts[self.rank]
            own = start + width * mine.start
            self._communicator.reduceScatter(
                start, own, mine.stop - mine.start, kind, number, stream
            )
            return
        with self._grouped():
            for root, part in enumerate(parts):
                if part.stop > part.start:
                    place = start + width * part.start
                    self._communicator.reduce(
                        place, place, part.stop - part.start, kind, number, root, stream
                    )

    def all_gather(self, array: Array, parts: Sequence[slice]) -> None:
        """Rank r's part of `array`, which only r holds, is sent to all."""
        stream, kind, width = self._stream().ptr, data_type(array), array.itemsize
        start = array.data.ptr
        mine = parts[self.rank]
        if _equal(parts):
            self._communicator.allGather(
                start + width * mine.start, start, mine.stop - mine.start, kind, stream
            )
            return
        with self._grouped():
            for root, part in enumerate(parts):
                if part.stop > part.start:
                    place = start + width * part.start
                    self._communicator.broadcast(
                        place, place, part.stop - part.start, kind, root, stream
                    )

    def broadcast(self, arrays: Sequence[Array], source: int) -> None:
        """Each array becomes what rank `source` holds."""
        stream = self._stream().ptr
        with self._grouped():
            for array in arrays:
                place, kind = array.data.ptr, data_type(array)
                self._communicator.broadcast(place, place, array.size, kind, source, stream)

    @contextmanager
    def _grouped(self) -> Iterator[None]:
        """Calls that are one operation to NCCL. A group left open would swallow all later calls."""
        self._nccl.groupStart()
        try:
            yield
        finally:
            self._nccl.groupEnd()

    # The first of these is called by the thread that watches, until the process ends; NCCL refuses
    # to be asked about a communicator that is no more, and is not asked while one is freed.

    def check(self) -> None:
        """Raise what went wrong on the GPU since the last call, if NCCL noticed anything."""
        with self._lock:
            if not self._ended:
                self._communicator.check_async_error()

    def abort(self) -> None:
        """End kernels that wait for a rank that will not come."""
        if self._end():
            self._communicator.abort()

    def close(self) -> None:
        if self._end():
            self._communicator.destroy()

    def _end(self) -> bool:
        """Whether it falls to this call to free the communicator."""
        with self._lock:
            first, self._ended = not self._ended, True
        return first


def _equal(parts: Sequence[slice]) -> bool:
    return len({part.stop - part.start for part in parts}) == 1
