"""NCCL's calls as they would be made, recorded by a communicator that computes nothing.

What is recorded is what `cupy.cuda.nccl.NcclCommunicator` takes: addresses, counts, the numbers of
nccl.h for dtype and operation, and a stream. On a real GPU `python -m tinytensor.cuda.verify` makes
the same calls (`tinytensor/distributed/verify_nccl.py`).
"""

from __future__ import annotations

import ctypes
import threading
import weakref
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


def test_broadcast(recorder: Recorder):
    communicator(recorder).broadcast([DeviceArray(64, 5, np.int32)], 2)  # type: ignore[list-item]
    call = ("broadcast", 64, 64, 5, 2, 2, STREAM)
    assert recorder.calls == [("groupStart",), call, ("groupEnd",)]


@pytest.mark.parametrize("end", ["abort", "destroy"])
def test_the_end_comes_once_and_nothing_is_asked_after_it(recorder: Recorder, end: str):
    """Of one that was freed, NCCL says that the argument is invalid: an error to the watch."""
    own = communicator(recorder)
    own.check()
    (own.abort if end == "abort" else own.close)()
    own.check()
    own.abort()
    own.close()
    assert recorder.calls == [("check_async_error",), (end,)]


def test_the_sum_of_truth_values_is_or(recorder: Recorder):
    """They travel as bytes, of which 1 + 1 is 2: neither false nor true."""
    own = communicator(recorder)
    array: Any = DeviceArray(1000, 8, np.bool_)
    own.all_reduce([array], ReduceOp.SUM)
    own.reduce_scatter(array, slices(8, 4), ReduceOp.SUM)
    own.reduce_scatter(array, [slice(0, 8), *[slice(8, 8)] * 3], ReduceOp.SUM)
    uint8, maximum = 1, 2
    assert [call[1:] for call in recorder.calls if len(call) > 1] == [
        (1000, 1000, 8, uint8, maximum, STREAM),
        (1000, 1002, 2, uint8, maximum, STREAM),
        (1000, 1000, 8, uint8, maximum, 0, STREAM),
    ]
    recorder.calls.clear()
    own.all_reduce([DeviceArray(1000, 8, np.uint8)], ReduceOp.SUM)  # type: ignore[list-item]
    assert recorder.calls[1] == ("allReduce", 1000, 1000, 8, uint8, 0, STREAM)


def test_a_dtype_that_nccl_has_not(recorder: Recorder):
    with pytest.raises(TypeError, match=r"NCCL has no complex64 arrays; it has int8, "):
        communicator(recorder).all_reduce([DeviceArray(0, 1, np.complex64)], ReduceOp.SUM)  # type: ignore[list-item]
    # No group stays open: all later calls would wait for its end.
    assert recorder.calls == [("groupStart",), ("groupEnd",)]


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

    stream = "wait_event synchronize begin_capture end_capture is_capturing __enter__ __exit__"
    names = {"Stream": stream, "Event": "record done", "Graph": "launch", "Device": "synchronize"}
    for kind, wanted in names.items():
        missing = [name for name in wanted.split() if not hasattr(getattr(cupy.cuda, kind), name)]
        assert not missing, (kind, missing)
    assert callable(cupy.cuda.get_current_stream)


# ---- the cases for a real GPU, with one that is not ----


NUMBERS = {number: np.dtype(name) for name, number in nccl.TYPES.items() if name != "bool"}
REDUCTIONS: dict[int, Any] = {0: np.add.reduce, 2: np.max, 3: np.min, 4: np.mean}


def memory(address: int, count: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    whole = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(whole, dtype)


class Rank(Recorder):
    """NCCL among some threads of this process, which meet `everyone` and wait at `barrier`."""

    def __init__(self, rank: int, everyone: list[Any], barrier: threading.Barrier) -> None:
        super().__init__()
        self.rank, self.everyone, self.barrier = rank, everyone, barrier

    def perform(self, name: str, given: dict[str, int]) -> None:
        if not given:
            return
        (source, target, count), size = list(given.values())[:3], len(self.everyone)
        dtype = NUMBERS[given["datatype"]]
        sent = memory(source, count * (size if name == "reduceScatter" else 1), dtype).copy()
        rows = self.exchanged(sent)
        found = np.concatenate(rows) if name == "allGather" else rows[given.get("root", 0)]
        if "op" in given:
            wide = np.float32 if dtype.itemsize == 2 else dtype
            found = REDUCTIONS[given["op"]](np.stack(rows).astype(wide), axis=0).astype(dtype)
        if name == "reduceScatter":
            found = found[self.rank * count :][:count]
        if name != "reduce" or self.rank == given["root"]:
            memory(target, len(found), dtype)[...] = found

    def exchanged(self, sent: Any) -> list[Any]:
        self.everyone[self.rank] = sent
        self.barrier.wait()
        rows = list(self.everyone)
        self.barrier.wait()
        return rows


def on_ranks(size: int, kind: type[Rank] = Rank) -> tuple[list[Rank], list[dict[str, Any]]]:
    """What becomes of the cases on each rank."""
    everyone, barrier = [None] * size, threading.Barrier(size, timeout=60)
    ranks = [kind(rank, everyone, barrier) for rank in range(size)]
    found: list[dict[str, Any]] = [{} for _ in ranks]

    def run(rank: int) -> None:
        own = communicator(ranks[rank], rank, size)
        for name, case in verify_nccl.cases(own, host_module(), lambda work: work):
            found[rank][name] = case()[:2]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return ranks, found


class HostArray(np.ndarray):
    """A NumPy array that says where it lies as a CuPy array does."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)


def host_module() -> Any:
    asarray = lambda x: np.array(x).view(HostArray)  # noqa: E731
    return SimpleNamespace(cuda=Cuda(done=True), asarray=asarray, asnumpy=np.array, add=np.add)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_cases_of_verify(size: int):
    ranks, found = on_ranks(size)
    every_call = {*SIGNATURES, "groupStart", "groupEnd"} - {"abort", "destroy"}
    for rank, states in zip(ranks, found, strict=True):
        assert {state for state, _ in states.values()} == {"good"}, states
        assert {call[0] for call in rank.calls} == every_call
        assert {
            "all_reduce (avg) of bfloat16, captured",
            "broadcast from 0 of bool",
        } <= states.keys()
        assert states["all_reduce (sum) of float16"] == ("good", "the same bits")


def test_the_cases_of_verify_can_fail():
    class Forgetful(Rank):
        """The first of the numbers does not arrive."""

        def perform(self, name: str, given: dict[str, int]) -> None:
            target = list(given.values())[1] if given else 0
            held = ctypes.string_at(target, 1) if given else b""
            super().perform(name, given)
            if given and self.rank == 1:
                ctypes.memmove(target, held, 1)

    _, (first, second) = on_ranks(2, Forgetful)
    assert {state for state, _ in first.values()} == {"good"}
    for case in ("broadcast from 0 of int8", "all_reduce (max) of int64, captured"):
        assert second[case][0] == "wrong"


class Cuda:
    """`cupy.cuda`: streams and events that record who waits for whom."""

    def __init__(self, done: bool = False) -> None:
        self.calls: list[str] = []
        cuda = self

        class Stream:
            def __init__(self, name: str = "own", non_blocking: bool = False) -> None:
                self.name = name
                self.capturing = False

            def is_capturing(self) -> bool:
                return self.capturing

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


def test_what_is_captured_is_not_watched():
    """It does not run, so that it would seem to take for ever, and its events must not be asked."""
    cuda, names = Cuda(), []
    watch: Any = SimpleNamespace(enter=lambda name, done: names.append(name))
    lane = StreamLane(cuda, watch)
    lane.launch("now", lambda: None)
    cuda.main.capturing = True
    lane.launch("captured", lambda: None)
    assert names == ["now"]


def test_memory_that_only_the_task_knows_is_kept_until_its_end():
    """The pool would give it to the main stream's next array, while the lane's still reads it."""
    lane, array = StreamLane(Cuda()), HostArray(3)
    gone = weakref.ref(array)
    work = lane.launch("broadcast of a copy", lambda array=array: None)
    del array
    assert gone() is not None
    work.wait()
    assert gone() is None


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "nccl", lambda: SimpleNamespace(available=False))
    with pytest.raises(RuntimeError, match=r"CuPy finds no NCCL.*tinytensor-gpt\[cuda13\]"):
        nccl.library()


def test_verify_without_a_gpu_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(verify_nccl, "library", lambda: None)
    monkeypatch.setattr(verify_nccl, "cuda_device_count", lambda: 0)
    assert verify_nccl.main() == 2
    expected = "verify_nccl: CuPy sees no GPU here, and NCCL computes on nothing else\n"
    assert capsys.readouterr() == ("", expected)
