"""One rank through the real NCCL: every collective in every dtype, also inside a captured graph.

A group of cases of `python -m tinytensor.cuda.verify`. With one rank every collective leaves what
it was given: what is seen here is that CuPy's binding takes the calls as `nccl.py` makes them, that
NCCL knows the numbers of dtypes and operations, that streams wait for each other, and that a
capture accepts all of it. Sums between ranks need as many GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from ..backend import Array, bfloat16
from ..cuda.groups import ABSENT, GOOD, WRONG, sentence
from .lane import StreamLane
from .nccl import TYPES, NcclCommunicator, library
from .operations import ReduceOp

ELEMENTS = 1000  # of an array; no multiple of anything that NCCL would like
REPLAYS = 3

Answer = tuple[str, str, dict[str, Any]]
Case = tuple[str, Callable[[], Answer]]


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
            yield f"{what} of {name}", lambda c=collective, d=dtype: _outside(xp, d, c)  # type: ignore[misc]
            yield (
                f"{what} of {name}, captured",
                lambda c=collective, d=dtype: _inside(xp, d, c, capture),  # type: ignore[misc]
            )
    yield "beside the computation, on a stream of its own", lambda: _beside(xp, communicator)


def _collectives(
    communicator: NcclCommunicator, dtype: np.dtype[Any]
) -> dict[str, Callable[[Array], None]]:
    """Each as it is called on one contiguous array."""
    whole = [slice(0, ELEMENTS)]
    # Parts of different lengths go one by one. The second rank, whose part is empty, has no call.
    unequal = [slice(0, ELEMENTS), slice(ELEMENTS, ELEMENTS)]
    found: dict[str, Callable[[Array], None]] = {
        "broadcast": lambda x: communicator.broadcast([x], 0),
        "all_gather": lambda x: communicator.all_gather(x, whole),
        "all_gather of unequal parts": lambda x: communicator.all_gather(x, unequal),
    }
    for op in ReduceOp:
        if op is ReduceOp.AVG and dtype.kind in "iub":
            continue  # refused before it reaches NCCL
        word = op.value
        found |= {
            f"all_reduce ({word})": lambda x, op=op: communicator.all_reduce([x[:7], x[7:]], op),  # type: ignore[misc]
            f"reduce_scatter ({word})": lambda x, op=op: communicator.reduce_scatter(x, whole, op),  # type: ignore[misc]
            f"reduce_scatter ({word}) of unequal parts": (
                lambda x, op=op: communicator.reduce_scatter(x, unequal, op)  # type: ignore[misc]
            ),
        }
    return found


def _numbers(dtype: np.dtype[Any]) -> Array:
    """Small integers, of which every dtype has the next few too."""
    return (np.arange(ELEMENTS) % (2 if dtype.kind == "b" else 50)).astype(dtype)


def _outside(xp: Any, dtype: np.dtype[Any], collective: Callable[[Array], None]) -> Answer:
    expected = _numbers(dtype)
    array = xp.asarray(expected)
    collective(array)
    return _compared(xp.asnumpy(array), expected)


def _inside(
    xp: Any, dtype: np.dtype[Any], collective: Callable[[Array], None], capture: Any
) -> Answer:
    """Two kernels and the collective between them, replayed: the order of all three shows."""
    numbers = _numbers(dtype)
    array, result = xp.asarray(numbers), xp.asarray(np.zeros_like(numbers))
    one = xp.asarray(np.ones((), dtype))

    def work() -> None:
        xp.add(array, one, out=array)
        collective(array)
        xp.add(array, one, out=result)

    work()  # kernels are compiled before a capture
    array[...] = xp.asarray(numbers)
    replay = capture(work)
    for _ in range(REPLAYS):
        replay()
    expected = numbers
    for _ in range(REPLAYS + 1):
        expected = np.add(expected, np.ones((), dtype))
    return _compared(xp.asnumpy(result), expected)


def _beside(xp: Any, communicator: NcclCommunicator) -> Answer:
    """As in a backward pass: many reductions in the lane, each of what was just computed."""
    lane = StreamLane(xp.cuda)
    arrays = [xp.asarray(np.zeros(ELEMENTS << 8, np.float32)) for _ in range(8)]
    works = []
    for array in arrays:
        for _ in range(16):
            array += 1
        works.append(lane.launch("", lambda x=array: communicator.all_reduce([x], ReduceOp.AVG)))  # type: ignore[misc]
    for work, array in zip(works, arrays, strict=True):
        work.wait()
        array *= 2
    found = np.stack([xp.asnumpy(array) for array in arrays])
    communicator.check()
    lane.close()
    finished = all(work.is_completed() for work in works)
    state, text, numbers = _compared(found, np.full_like(found, 32))
    return (state, text, numbers) if finished else (WRONG, "an event is not done", numbers)


def _compared(found: Array, expected: Array) -> Answer:
    wrong = int((np.asarray(found) != np.asarray(expected)).sum())
    text = f"{wrong} of {expected.size} numbers are wrong" if wrong else "the same bits"
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
        graph.launch(stream)
        stream.synchronize()

    return replay


def _abort(nccl: Any) -> Answer:
    """What happens when a rank is missing: `Watch.stop` calls this, and the process ends."""
    NcclCommunicator.connect(0, 1, nccl.get_unique_id()).abort()
    return GOOD, "a communicator can be aborted", {}
