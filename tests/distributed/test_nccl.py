"""NCCL's calls as they would be made, recorded by a communicator that computes nothing.

What is recorded is what `cupy.cuda.nccl.NcclCommunicator` takes: addresses, counts, the numbers of
nccl.h for dtype and operation, and a stream. On a real GPU `python -m tinytensor.cuda.verify` makes
the same calls (`tinytensor/distributed/verify_nccl.py`).
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tinytensor import backend
from tinytensor.distributed import ReduceOp, nccl, verify_nccl
from tinytensor.distributed.lane import StreamLane
from tinytensor.distributed.mpi import slices
from tinytensor.distributed.nccl import NcclCommunicator

# What CuPy 14 says of its methods; `test_the_signatures_are_cupys` asks it.
SIGNATURES = {
    "allReduce": "sendbuf recvbuf count datatype op stream",
    "reduceScatter": "sendbuf recvbuf recvcount datatype op stream",
    "reduce": "sendbuf recvbuf count datatype op root stream",
    "broadcast": "sendbuff recvbuff count datatype root stream",
    "allGather": "sendbuf recvbuf count datatype stream",
    "check_async_error": "",
    "abort": "",
    "destroy": "",
}


class Recorder:
    """Answers every call, and keeps it: ("allReduce", 4096, 4096, 10, 7, 0, 77)."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def groupStart(self) -> None:
        self.calls.append(("groupStart",))

    def groupEnd(self) -> None:
        self.calls.append(("groupEnd",))

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: int) -> None:
            given = dict(zip(SIGNATURES[name].split(), arguments, strict=True))
            assert all(type(value) is int for value in given.values()), given
            self.calls.append((name, *arguments))
            self.perform(name, given)

        return call

    def perform(self, name: str, given: dict[str, int]) -> None:
        """Nothing: the addresses are made up."""


class DeviceArray:
    """As much of a CuPy array as the communicator looks at."""

    def __init__(self, address: int, size: int, dtype: Any = np.float32) -> None:
        self.data = SimpleNamespace(ptr=address)
        self.size = size
        self.dtype = np.dtype(dtype)
        self.itemsize = self.dtype.itemsize


STREAM = 77


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def communicator(recorder: Recorder, rank: int = 1, size: int = 4) -> NcclCommunicator:
    stream = lambda: SimpleNamespace(ptr=STREAM)  # noqa: E731
    return NcclCommunicator(recorder, rank, size, recorder, stream)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [(np.float32, 7), (np.float64, 8), (np.float16, 6), (ml_dtypes.bfloat16, 9), (np.int64, 4)],
)
@pytest.mark.parametrize(
    ("op", "operation"),
    [(ReduceOp.SUM, 0), (ReduceOp.MAX, 2), (ReduceOp.MIN, 3), (ReduceOp.AVG, 4)],
)
def test_all_reduce(recorder: Recorder, dtype: Any, number: int, op: ReduceOp, operation: int):
    arrays: Any = [DeviceArray(4096, 10, dtype), DeviceArray(8192, 3, dtype)]
    communicator(recorder).all_reduce(arrays, op)
    assert recorder.calls == [
        ("groupStart",),
        ("allReduce", 4096, 4096, 10, number, operation, STREAM),
        ("allReduce", 8192, 8192, 3, number, operation, STREAM),
        ("groupEnd",),
    ]


def test_equal_parts_are_one_call(recorder: Recorder):
    array: Any = DeviceArray(1000, 8)
    own = communicator(recorder)
    own.reduce_scatter(array, slices(8, 4), ReduceOp.AVG)
    own.all_gather(array, slices(8, 4))
    # Part 1 begins at the third element, 8 bytes from the beginning.
    assert recorder.calls == [
        ("reduceScatter", 1000, 1008, 2, 7, 4, STREAM),
        ("allGather", 1008, 1000, 2, 7, STREAM),
    ]


def test_unequal_parts_go_one_by_one(recorder: Recorder):
    """Each part to, or from, the rank that it belongs to; the call is the same on all ranks."""
    array: Any = DeviceArray(1000, 3)
    parts = slices(3, 4)
    assert parts == [slice(0, 0), slice(0, 1), slice(1, 2), slice(2, 3)]
    for rank in range(4):
        recorder.calls.clear()
        own = communicator(recorder, rank)
        own.reduce_scatter(array, parts, ReduceOp.SUM)
        own.all_gather(array, parts)
        assert recorder.calls == [
            ("groupStart",),
            ("reduce", 1000, 1000, 1, 7, 0, 1, STREAM),
            ("reduce", 1004, 1004, 1, 7, 0, 2, STREAM),
            ("reduce", 1008, 1008, 1, 7, 0, 3, STREAM),
            ("groupEnd",),
            ("groupStart",),
            ("broadcast", 1000, 1000, 1, 7, 1, STREAM),
            ("broadcast", 1004, 1004, 1, 7, 2, STREAM),
            ("broadcast", 1008, 1008, 1, 7, 3, STREAM),
            ("groupEnd",),
        ]


def test_broadcast_abort_and_close(recorder: Recorder):
    own = communicator(recorder)
    own.broadcast([DeviceArray(64, 5, np.int32)], 2)  # type: ignore[list-item]
    own.check()
    own.abort()
    own.close()
    assert recorder.calls == [
        ("groupStart",),
        ("broadcast", 64, 64, 5, 2, 2, STREAM),
        ("groupEnd",),
        ("check_async_error",),
        ("abort",),
        ("destroy",),
    ]


def test_a_dtype_that_nccl_has_not(recorder: Recorder):
    with pytest.raises(TypeError, match=r"NCCL has no complex64 arrays; it has int8, "):
        communicator(recorder).all_reduce([DeviceArray(0, 1, np.complex64)], ReduceOp.SUM)  # type: ignore[list-item]


@pytest.mark.cuda
def test_the_signatures_are_cupys():
    try:
        real = nccl.library()
    except RuntimeError as error:
        pytest.skip(str(error))
    for name, expected in SIGNATURES.items():
        stated = getattr(real.NcclCommunicator, name).__doc__.splitlines()[0]
        arguments = stated[stated.index("(") + 1 : stated.index(")")].split(", ")
        assert arguments[0] == "self"
        assert [argument.split()[-1] for argument in arguments[1:]] == expected.split(), stated
    for name, number in nccl.TYPES.items():
        assert number == getattr(real, f"NCCL_{'UINT8' if name == 'bool' else name.upper()}")
    for op, number in nccl.OPERATIONS.items():
        assert number == getattr(real, f"NCCL_{op.name}")
    assert type(real.get_unique_id()) is bytes


@pytest.mark.cuda
def test_streams_and_events_are_cupys():
    """What the lane and the cases of verify ask of `cupy.cuda`."""
    import cupy

    stream = "wait_event synchronize begin_capture end_capture __enter__ __exit__"
    names = {"Stream": stream, "Event": "record done", "Graph": "launch", "Device": "synchronize"}
    for kind, wanted in names.items():
        missing = [name for name in wanted.split() if not hasattr(getattr(cupy.cuda, kind), name)]
        assert not missing, (kind, missing)
    assert callable(cupy.cuda.get_current_stream)


# ---- the cases for a real GPU, with one that is not ----


class OneRank(Recorder):
    """NCCL among one rank: what is sent is received."""

    def perform(self, name: str, given: dict[str, int]) -> None:
        if given:
            source, target, count = list(given.values())[:3]
            size = {0: 1, 1: 1, 6: 2, 9: 2, 2: 4, 3: 4, 7: 4, 4: 8, 5: 8, 8: 8}[given["datatype"]]
            ctypes.memmove(target, source, count * size)


class HostArray(np.ndarray):
    """A NumPy array that says where it lies as a CuPy array does."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)


def host_module() -> Any:
    asarray = lambda x: np.array(x).view(HostArray)  # noqa: E731
    return SimpleNamespace(cuda=Cuda(done=True), asarray=asarray, asnumpy=np.array, add=np.add)


def test_the_cases_of_verify(recorder: Recorder):
    one = OneRank()
    states = {}
    own = communicator(one, rank=0, size=1)
    for name, run in verify_nccl.cases(own, host_module(), lambda work: work):
        states[name] = run()[:2]
    assert set(states.values()) == {("good", "the same bits")}
    assert {call[0] for call in one.calls} == {*SIGNATURES, "groupStart", "groupEnd"} - {
        "abort",
        "destroy",
    }
    assert {"all_reduce (avg) of bfloat16, captured", "broadcast of bool"} <= states.keys()


def test_the_cases_of_verify_can_fail():
    class Forgetful(OneRank):
        def perform(self, name: str, given: dict[str, int]) -> None:
            if given:
                ctypes.memset(given.get("recvbuf", given.get("recvbuff", 0)), 0xFF, 1)

    own = communicator(Forgetful(), rank=0, size=1)
    cases = dict(verify_nccl.cases(own, host_module(), lambda work: work))
    assert cases["broadcast of bool"]()[0] == "wrong"
    assert cases["broadcast of int32, captured"]()[0] == "wrong"


class Cuda:
    """`cupy.cuda`: streams and events that record who waits for whom."""

    def __init__(self, done: bool = False) -> None:
        self.calls: list[str] = []
        cuda = self

        class Stream:
            def __init__(self, name: str = "own", non_blocking: bool = False) -> None:
                self.name = name

            def wait_event(self, event: Event) -> None:
                cuda.calls.append(f"{self.name} waits for {event.after}")

            def __enter__(self) -> None:
                cuda.calls.append(f"on {self.name}")

            def __exit__(self, *exception: object) -> None:
                cuda.calls.append("back")

            def synchronize(self) -> None:
                cuda.calls.append(f"{self.name} is empty")

        finished = done

        class Event:
            done = finished

            def __init__(self, disable_timing: bool = False) -> None:
                self.after = ""

            def record(self, stream: Stream) -> None:
                self.after = stream.name

        self.Stream, self.Event = Stream, Event
        self.main = Stream("main")

    def get_current_stream(self) -> Any:
        return self.main


def test_communication_waits_for_the_gradient_and_the_optimizer_for_communication():
    cuda = Cuda()
    lane = StreamLane(cuda)
    work = lane.launch("all_reduce", lambda: cuda.calls.append("all_reduce"))
    assert not work.is_completed()
    assert cuda.calls == ["own waits for main", "on own", "all_reduce", "back"]
    work.wait()
    assert cuda.calls[-1] == "main waits for own"
    lane.close()
    assert cuda.calls[-1] == "own is empty"


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "nccl", lambda: SimpleNamespace(available=False))
    with pytest.raises(RuntimeError, match=r"CuPy finds no NCCL.*tinytensor-gpt\[cuda13\]"):
        nccl.library()
