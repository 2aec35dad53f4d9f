"""The real NCCL: every collective in every dtype between the ranks, also inside a captured graph.

    python -m tinytensor.distributed.verify_nccl                  # one GPU
    mpiexec -n 4 python -m tinytensor.distributed.verify_nccl     # four

The first is a group of cases of `python -m tinytensor.cuda.verify`, too. With one rank every
collective leaves what it was given: what is seen is that CuPy's binding takes the calls as
`nccl.py` makes them, that NCCL knows the numbers of dtypes and operations, that streams wait for
each other, and that a capture accepts all of it. Several ranks compare sums and parts with NumPy's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array, bfloat16, cuda_device_count, cupy
from ..cuda.groups import ABSENT, FAILED, GOOD, WRONG, sentence
from . import group, mpi
from .lane import StreamLane
from .mpi import COMBINE, slices
from .nccl import TYPES, NcclCommunicator, library
from .operations import ReduceOp

ELEMENTS = 1000  # of an array; no multiple of anything that NCCL would like
REPLAYS = 3
PATIENCE = 60.0  # seconds that a collective may take

Answer = tuple[str, str, dict[str, Any]]
Case = tuple[str, Callable[[], Answer]]


class Collective(NamedTuple):
    """What is done to a rank's array, and what it holds then, given (ranks, n) what all held."""

    call: Callable[[Array], None]
    result: Callable[[Array], Array]
    averaged: int = 1  # over how many ranks


def nccl_group(lab: Any) -> None:
    """The cases, one after the other, for the `Lab` of `tinytensor.cuda.verify`."""
    if lab.where == "cuda-sim":
        lab.journal.case("(all)", lambda: (ABSENT, "the simulator has no NCCL", {}))
        return
    try:
        nccl = library()
    except RuntimeError as error:
        reason = sentence(error)
        lab.journal.case("(all)", lambda: (ABSENT, reason, {}))
        return
    xp = lab.xp
    communicator = NcclCommunicator.connect(0, 1, nccl.get_unique_id())
    for name, run in cases(communicator, xp, lambda work: captured(xp, work)):
        lab.case(name, run)
    lab.case("abort", lambda: _abort(nccl))
    communicator.close()


def cases(
    communicator: NcclCommunicator, xp: Any, capture: Callable[[Callable[[], None]], Any]
) -> Iterator[Case]:
    """Name and test of each case; `capture(work)` answers what replays `work` on the GPU."""
    for name in TYPES:
        dtype = np.dtype(bfloat16 if name == "bfloat16" else name)
        for what, collective in _collectives(communicator, dtype).items():
            plain = (xp, communicator, dtype, collective)
            yield f"{what} of {name}", lambda p=plain: _outside(*p)  # type: ignore[misc]
            yield f"{what} of {name}, captured", lambda p=plain: _inside(capture, *p)  # type: ignore[misc]
    yield "beside the computation, on a stream of its own", lambda: _beside(xp, communicator)


def _collectives(communicator: NcclCommunicator, dtype: np.dtype[Any]) -> dict[str, Collective]:
    """Each as it is called on one contiguous array."""
    rank, size = communicator.rank, communicator.size
    length = ELEMENTS // size * size
    # Parts of different lengths go one by one; one is empty, and has no call. (Of one rank, it is
    # that of a second rank.)
    ways = {
        "": slices(length, size),
        " of unequal parts": [*slices(length, max(1, size - 1)), slice(length, length)],
    }
    found: dict[str, Collective] = {}
    for source in sorted({0, size - 1}):
        found[f"broadcast from {source}"] = Collective(
            lambda x, source=source: communicator.broadcast([x], source),  # type: ignore[misc]
            lambda rows, source=source: rows[source],  # type: ignore[misc]
        )
    for way, parts in ways.items():
        found[f"all_gather{way}"] = Collective(
            lambda x, parts=parts: communicator.all_gather(x[:length], parts),  # type: ignore[misc]
            lambda rows, parts=parts: _gathered(rows, rank, parts),  # type: ignore[misc]
        )
    for op in ReduceOp:
        if op is ReduceOp.AVG and dtype.kind in "iub":
            continue  # refused before it reaches NCCL
        averaged = size if op is ReduceOp.AVG else 1
        found[f"all_reduce ({op.value})"] = Collective(
            lambda x, op=op: communicator.all_reduce([x[:7], x[7:]], op),  # type: ignore[misc]
            lambda rows, op=op: _reduced(rows, op),  # type: ignore[misc]
            averaged,
        )
        for way, parts in ways.items():
            found[f"reduce_scatter ({op.value}){way}"] = Collective(
                lambda x, op=op, parts=parts: communicator.reduce_scatter(x[:length], parts, op),  # type: ignore[misc]
                lambda rows, op=op, parts=parts: _scattered(rows, rank, parts[rank], op),  # type: ignore[misc]
                averaged,
            )
    return found


# --- what NumPy makes of it -----------------------------------------------------------------------


def _numbers(dtype: np.dtype[Any], rank: int) -> Array:
    """Small integers, whose sums over 50 ranks every floating dtype has exactly."""
    return ((np.arange(ELEMENTS) + 3 * rank) % (2 if dtype.kind == "b" else 5)).astype(dtype)


def _reduced(rows: Array, op: ReduceOp) -> Array:
    total = rows[0]
    for row in rows[1:]:
        total = COMBINE[op](total, row)
    return (total / len(rows)).astype(rows.dtype) if op is ReduceOp.AVG else total


def _scattered(rows: Array, rank: int, mine: slice, op: ReduceOp) -> Array:
    found = rows[rank].copy()
    found[mine] = _reduced(rows, op)[mine]
    return found


def _gathered(rows: Array, rank: int, parts: list[slice]) -> Array:
    found = rows[rank].copy()
    for row, part in zip(rows, parts, strict=False):
        found[part] = row[part]
    return found


# --- the cases ------------------------------------------------------------------------------------


def _outside(
    xp: Any, communicator: NcclCommunicator, dtype: np.dtype[Any], collective: Collective
) -> Answer:
    rows = np.stack([_numbers(dtype, rank) for rank in range(communicator.size)])
    array = xp.asarray(rows[communicator.rank])
    collective.call(array)
    return _compared(xp.asnumpy(array), collective.result(rows), collective.averaged)


def _inside(
    capture: Any,
    xp: Any,
    communicator: NcclCommunicator,
    dtype: np.dtype[Any],
    collective: Collective,
) -> Answer:
    """Two kernels and the collective between them, replayed: the order of all three shows."""
    one = np.ones((), dtype)
    rows = np.stack([_numbers(dtype, rank) for rank in range(communicator.size)])
    mine = rows[communicator.rank]
    source, array, last = xp.asarray(mine), xp.asarray(mine), xp.asarray(mine)
    step = xp.asarray(one)

    def work() -> None:
        xp.add(source, step, out=array)
        collective.call(array)
        xp.add(array, step, out=last)

    work()  # kernels are compiled before a capture
    replay = capture(work)
    for _ in range(REPLAYS):
        array[...] = last[...] = xp.asarray(mine)
        replay()
    expected = np.add(collective.result(np.add(rows, one)), one)
    return _compared(xp.asnumpy(last), expected, collective.averaged)


def _beside(xp: Any, communicator: NcclCommunicator) -> Answer:
    """As in a backward pass: many reductions in the lane, each of what was just computed."""
    lane = StreamLane(xp.cuda)
    arrays = [xp.asarray(np.zeros(ELEMENTS << 8, np.float32)) for _ in range(8)]
    works = []
    for array in arrays:
        for _ in range(16):
            array += 1
        works.append(lane.launch("", lambda x=array: communicator.all_reduce([x], ReduceOp.MAX)))  # type: ignore[misc]
    for work, array in zip(works, arrays, strict=True):
        work.wait()
        array *= 2
    found = np.stack([xp.asnumpy(array) for array in arrays])
    communicator.check()
    lane.close()
    finished = all(work.is_completed() for work in works)
    state, text, numbers = _compared(found, np.full_like(found, 32))
    return (state, text, numbers) if finished else (WRONG, "an event is not done", numbers)


def _compared(found: Array, expected: Array, averaged: int = 1) -> Answer:
    """NCCL averages by adding up n-th parts: exact if n is a power of two, else rounded n times."""
    if averaged & (averaged - 1) == 0:
        wrong = int((np.asarray(found) != np.asarray(expected)).sum())
        good = "the same bits"
    else:
        bound = averaged * 2.0 ** {2: -8, 4: -23, 8: -52}[expected.dtype.itemsize]
        wide, exact = (np.asarray(x).astype(np.float64) for x in (found, expected))
        wrong = int((np.abs(wide - exact) > bound * np.abs(exact)).sum())
        good = f"equal to {bound:.0e}"
    text = f"{wrong} of {expected.size} numbers are wrong" if wrong else good
    return WRONG if wrong else GOOD, text, {"wrong": wrong}


def captured(xp: Any, work: Callable[[], None]) -> Callable[[], None]:
    """`work` as a CUDA graph; each call replays it and waits for it."""
    stream = xp.cuda.Stream(non_blocking=True)
    xp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        try:
            work()
        except BaseException:  # a stream that went on capturing would fail the cases after this
            with suppress(Exception):
                stream.end_capture()
            raise
        graph = stream.end_capture()

    def replay() -> None:
        xp.cuda.Device().synchronize()  # with what other streams wrote
        graph.launch(stream)
        stream.synchronize()

    return replay


def _abort(nccl: Any) -> Answer:
    """What happens when a rank is missing: `Watch.stop` calls this, and the process ends."""
    NcclCommunicator.connect(0, 1, nccl.get_unique_id()).abort()
    return GOOD, "a communicator can be aborted", {}


# --- as a program ---------------------------------------------------------------------------------


def main() -> int:
    """Run the cases among the ranks that were started; 1 if something is wrong, 2 without GPUs."""
    try:
        communicator = _communicator()
    except RuntimeError as error:
        if mpi.launched_rank() == 0:
            print(f"verify_nccl: {error}", file=sys.stderr)
        return 2
    xp, bad, count = cupy(), 0, 0
    for name, run in cases(communicator, xp, lambda work: captured(xp, work)):
        try:
            state, text, _ = run()
        except Exception as error:
            state, text = FAILED, sentence(error)
        count += 1
        # All ranks leave a case together, or the watch says which of them does not.
        told = group.current().gather_objects((state, text), name)
        wrong = [f"rank {r}: {what}, {why}" for r, (what, why) in enumerate(told) if what != GOOD]
        bad += bool(wrong)
        if wrong and communicator.rank == 0:
            print(f"{name}: {'; '.join(wrong)}", flush=True)
    if communicator.rank == 0:
        print(f"NCCL among {communicator.size} ranks: {count - bad} of {count} cases are good")
    if communicator.size == 1:
        communicator.close()
    group.destroy_process_group()
    return int(bad > 0)


def _communicator() -> NcclCommunicator:
    if mpi.launched_size() > 1:
        group.init_process_group(device="cuda", timeout=PATIENCE)
        return group.current().gpu  # type: ignore[no-any-return]
    nccl = library()
    if not cuda_device_count():
        raise RuntimeError("CuPy sees no GPU here, and NCCL computes on nothing else")
    return NcclCommunicator.connect(0, 1, nccl.get_unique_id())


if __name__ == "__main__":
    sys.exit(main())
