"""Which threads do the work: ours, with BLAS on one thread while we compute.

BLAS's own threads wait for each other in busy loops. That is quick on an idle machine, but ours
would have to fight them for the cores, and on a busy machine every product waits for a thread that
is not running. So where ours work, products are done by BLAS on one thread, and there are two ways
to use the other cores:

- `later(work)`: a weight's gradient is needed by nobody before the backward pass ends. Its product
  is queued to one worker while the walk goes on; `finish()` waits for the queue.
- `split(count, least, work)`: pieces of one large product or of a long elementwise chain, one for
  each thread, when there is enough of it to pay for waking the others (some 0.1 ms).

A small model has nothing that is worth waking a thread of ours for. Its products are then done by
BLAS's threads, which are awake already: `workers.resting` says when (the numbers are the same).

BLAS's own setting is put back whenever we are done: a process that embeds the engine finds it as
it was.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import threadpoolctl

from ..autograd import during_walk
from ..backend import silent

Work = Callable[[], None]
# Small products in a row without work for our threads, after which BLAS's do the next ones. They
# stay awake for some 26 ms after each; a step of a larger model, which needs ours, has fewer.
CALM = 128
# Where such a product takes more than so many seconds, a thread of BLAS got no processor and the
# others waited for it: the next ones are done on one thread. That is PAUSE of them, or twice as
# many as the last time, up to LONGEST, if it happens again before STEADY products went well.
LATE, PAUSE, LONGEST, STEADY = 2e-3, 64, 4096, 512
PIECES_WHILE_BUSY = 3  # for each thread, of work that is split while the worker has a queue


class Task:
    """Work for another thread, and its outcome."""

    __slots__ = ("_done", "_error", "_work")

    def __init__(self, work: Work) -> None:
        self._work: Work | None = work
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def run(self) -> None:
        assert self._work is not None
        try:
            self._work()
        except BaseException as error:
            self._error = error
        self._work = None  # what it holds is free, however long the task is kept
        self._done.release()

    def wait(self) -> None:
        """Return when the work is done; raise what it raised."""
        self._done.acquire()
        self._done.release()
        if self._error is not None:
            raise self._error


class Worker:
    """One thread that does tasks in the order of their coming."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        threading.Thread(target=self._loop, name="tinytensor-worker", daemon=True).start()

    @silent  # for whoever waits: NumPy's setting is each thread's own
    def _loop(self) -> None:
        while True:
            self._tasks.get().run()

    def do(self, work: Work) -> Task:
        task = Task(work)
        self._tasks.put(task)
        return task


class _Workers:
    """The worker threads of this process, made when first asked for, and again after a fork."""

    def __init__(self) -> None:
        self._process = 0
        self._workers: list[Worker] = []
        self._calm = 0  # small products since a worker was last asked for
        self._pause = PAUSE

    @property
    def resting(self) -> bool:
        """Whether BLAS's threads have the cores to themselves, as far as we can tell."""
        return self._calm > CALM and _threads >= max(2, _blas_threads)

    def note_product(self, seconds: float) -> None:
        """A small product has been done, in so many seconds."""
        if seconds < LATE:
            self._calm += 1
            return
        went_well = self._calm - CALM
        self._pause = PAUSE if went_well > STEADY else min(2 * self._pause, LONGEST)
        self._calm = CALM - self._pause

    def __getitem__(self, index: int) -> Worker:
        self._calm = min(self._calm, 0)
        if self._process != os.getpid():
            self._process, self._workers = os.getpid(), []
        while len(self._workers) <= index:
            self._workers.append(Worker())
        return self._workers[index]


def _thread_functions(library: Any) -> tuple[Callable[[], int], Callable[[int], object]]:
    """A BLAS library's two functions that read and write how many threads it uses.

    threadpoolctl looks them up by name in every call, which costs as much as a small product.
    """
    if library.internal_api == "openblas" and library.threading_layer != "openmp":
        for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
            names = [f"{prefix}openblas_{verb}_num_threads{suffix}" for verb in ("get", "set")]
            if all(hasattr(library.dynlib, name) for name in names):
                return getattr(library.dynlib, names[0]), getattr(library.dynlib, names[1])
    return library.get_num_threads, library.set_num_threads


class _SingleThreadedBlas:
    """`with`: BLAS computes on one thread; the setting comes back when the last block is left."""

    def __init__(self) -> None:
        blas = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
        self._functions = [
            _thread_functions(library) for library in blas if library.get_num_threads() is not None
        ]
        self._previous: list[int] = []
        self._depth = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._previous = [get() for get, _ in self._functions]
                for (_, put), threads in zip(self._functions, self._previous, strict=True):
                    if threads != 1:
                        put(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                for (_, put), threads in zip(self._functions, self._previous, strict=True):
                    if threads != 1:
                        put(threads)

    def threads(self) -> int:
        """How many threads BLAS was told to use, by its environment variables or by the machine."""
        return max((get() for get, _ in self._functions), default=1)


workers = _Workers()
single_threaded_blas = _SingleThreadedBlas()


_as_it_is = nullcontext()


def small_products() -> AbstractContextManager[None]:
    """`with`: products of this thread alone, on one thread of BLAS unless all of them are awake.

    For matrices of at most 2^18 numbers: sums over more than 460,000 OpenBLAS divides among its
    threads, and the bits would tell how many there were.
    """
    return _as_it_is if workers.resting else single_threaded_blas


def _available() -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, single_threaded_blas.threads()))


_blas_threads = single_threaded_blas.threads()
_threads = _available()


def get_num_threads() -> int:
    """How many threads the CPU's fast paths use: the cores, or fewer if BLAS was told so."""
    return _threads


def set_num_threads(threads: int) -> None:
    """Use this many threads from now on; 1 keeps everything on the caller's."""
    global _threads
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"set_num_threads: at least 1 thread is needed, got {threads!r}")
    _threads = threads


def split(count: int, least: int, work: Callable[[int, int], None]) -> None:
    """work(start, stop) over all of range(count), in parallel pieces of at least `least`.

    While the worker has a queue there are more pieces than threads, and each is taken by whoever
    is free next: by the caller alone if the queue is long.
    """
    pieces = min(_threads, count // least) if least else _threads
    if pieces < 2:
        work(0, count)
        return
    busy = _walk.busy()
    if busy:
        pieces = min(PIECES_WHILE_BUSY * _threads, count // least) if least else pieces
    edges = [count * i // pieces for i in range(pieces + 1)]
    if busy:
        _share(edges, work)
        return
    with single_threaded_blas:
        tasks = [
            workers[i].do(lambda i=i: work(edges[i], edges[i + 1]))  # type: ignore[misc]
            for i in range(1, pieces)
        ]
        mine = Task(lambda: work(edges[0], edges[1]))
        mine.run()
        _wait_for_all([mine, *tasks])


def _wait_for_all(tasks: list[Task]) -> None:
    """Return when none of them computes any more; raise the first error."""
    errors: list[BaseException] = []
    for task in tasks:
        try:
            task.wait()
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _share(edges: list[int], work: Callable[[int, int], None]) -> None:
    """The pieces between `edges` one after another, by this thread and by workers as they come."""
    left = list(range(len(edges) - 1, -1, -1))[1:]
    changed = threading.Condition()
    helping = 0
    errors: list[BaseException] = []

    def help_out() -> None:
        nonlocal helping
        while True:
            with changed:
                if not left:
                    return
                i = left.pop()
                helping += 1
            try:
                work(edges[i], edges[i + 1])
            except BaseException as error:
                errors.append(error)
            with changed:
                helping -= 1
                changed.notify()

    for i in range(_threads - 1):
        workers[i].do(help_out)
    help_out()
    with changed:
        changed.wait_for(lambda: helping == 0)
    if errors:
        raise errors[0]


class _Walk(threading.local):
    """What holds during a backward walk on this thread; entered by `autograd.backward`."""

    depth = 0
    task: Task | None = None  # the last that was queued: the worker keeps their order
    limits_blas = False

    def begin(self) -> None:
        self.depth += 1
        if not workers.resting:
            self.limit_blas()

    def limit_blas(self) -> None:
        """BLAS computes on one thread until the outermost walk ends."""
        if not self.limits_blas:
            self.limits_blas = True
            single_threaded_blas.__enter__()

    def end(self) -> None:
        self.depth -= 1
        if self.depth == 0 and self.limits_blas:
            self.limits_blas = False
            single_threaded_blas.__exit__(None, None, None)

    def finish(self) -> None:
        """Wait until everything that was queued with `later` is done."""
        task, self.task = self.task, None
        if task is not None:
            task.wait()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Compute as outside the walk; its queue is waited for, and counts as busy again after."""
        depth, task, limits_blas = self.depth, self.task, self.limits_blas
        if task is not None:
            task.wait()
        self.depth, self.task, self.limits_blas = 0, None, False
        try:
            yield
        finally:
            self.depth, self.task, self.limits_blas = depth, task, limits_blas

    def busy(self) -> bool:
        """Whether the worker has a queue, behind which a split would have to wait."""
        return self.task is not None


_walk = _Walk()
during_walk(_walk)


def later(work: Work) -> None:
    """Do `work` on another thread, before the backward walk that this is part of returns.

    Outside a walk, or with one thread, it is done at once.
    """
    if _walk.depth == 0 or _threads == 1:
        work()
        return
    _walk.limit_blas()
    previous = _walk.task

    def after_the_previous() -> None:
        work()
        if previous is not None:
            previous.wait()  # done already: this raises what it raised

    _walk.task = workers[0].do(after_the_previous)


def finish() -> None:
    """Wait for what `later` has queued on this thread."""
    _walk.finish()


def threads_in_use() -> dict[str, Any]:
    """For reports: our threads, and what BLAS is set to."""
    return {"threads": _threads, "blas_threads": single_threaded_blas.threads()}
