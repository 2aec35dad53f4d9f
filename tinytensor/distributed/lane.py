"""Where communication happens beside the computation: one thread, or one CUDA stream.

Every collective of a rank goes through a lane, one after another, so that all ranks have them in
the same order whatever else they do. `launch` returns at once; `Work.wait()` makes sure of the
result. On the CPU the lane is a thread, in which MPI makes progress while the backward pass goes
on; for a GPU it is a stream, which waits for what the current stream has computed so far, and
`wait()` lets the current stream wait for it in turn, without stopping Python.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from .watch import Watch

Task = Callable[[], Any]


class Work(Protocol):
    """A collective under way."""

    def wait(self) -> Any:
        """Return when the result may be used; raise what went wrong."""

    def is_completed(self) -> bool:
        """Whether `wait()` would return at once."""


class Done:
    """Work that was finished before it was asked for."""

    def wait(self) -> None:
        return

    def is_completed(self) -> bool:
        return True


class _ThreadWork:
    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self._task: Task | None = task
        self._finished = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self, watch: Watch | None) -> None:
        task, self._task = self._task, None
        ticket = watch.enter(self.name) if watch else None
        try:
            assert task is not None
            self._result = task()
        except BaseException as error:
            self._error = error
        if watch and ticket:
            watch.leave(ticket)
        del task  # who holds an array is asked after this (`arriving.py`)
        self._finished.set()

    def wait(self) -> Any:
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def is_completed(self) -> bool:
        return self._finished.is_set()


class ThreadLane:
    """Tasks are done by one thread in the order of their launch."""

    def __init__(self, watch: Watch | None = None) -> None:
        self.watch = watch
        self._closed = False
        self._tasks: queue.SimpleQueue[_ThreadWork | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="tinytensor-lane", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while (work := self._tasks.get()) is not None:
            work.run(self.watch)

    def launch(self, name: str, task: Task) -> Work:
        if self._closed:
            raise _parted(name)
        work = _ThreadWork(name, task)
        self._tasks.put(work)
        return work

    def close(self) -> None:
        """Returns when everything is done that was launched; nothing can be launched any more."""
        self._closed = True
        self._tasks.put(None)
        self._thread.join()


class _StreamWork:
    """`task` is kept until its end: memory that only it knows would be used anew before that."""

    def __init__(self, event: Any, stream: Callable[[], Any], task: Task) -> None:
        self._event = event
        self._stream = stream
        self._task: Task | None = task

    def wait(self) -> None:
        self._stream().wait_event(self._event)
        self._task = None

    def is_completed(self) -> bool:
        return bool(self._event.done)


class StreamLane:
    """Tasks enqueue their work on one CUDA stream of their own.

    `cuda` is `cupy.cuda`; a test puts a recorder in its place.
    """

    def __init__(self, cuda: Any, watch: Watch | None = None) -> None:
        self.watch = watch
        self._closed = False
        self._cuda = cuda
        self._own = cuda.Stream(non_blocking=True)

    def launch(self, name: str, task: Task) -> Work:
        if self._closed:
            raise _parted(name)
        current = self._cuda.get_current_stream()
        ready = self._cuda.Event(disable_timing=True)
        ready.record(current)
        self._own.wait_event(ready)
        with self._own:
            task()
        finished = self._cuda.Event(disable_timing=True)
        finished.record(self._own)
        work = _StreamWork(finished, self._cuda.get_current_stream, task)
        # What is captured does not happen now, and its events must not be asked.
        if self.watch and not current.is_capturing():
            self.watch.enter(name, work.is_completed)
        return work

    def close(self) -> None:
        """As that of a thread."""
        self._closed = True
        self._own.synchronize()


def _parted(name: str) -> RuntimeError:
    return RuntimeError(
        f"distributed: {name}, but the ranks have parted (destroy_process_group was called, or the "
        "program is at its end); join them again, and make a new DistributedDataParallel"
    )
