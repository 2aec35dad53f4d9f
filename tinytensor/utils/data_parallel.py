"""One batch on all cores: each process takes a part of it, and their gradients are added.

A small model's step is a thousand calls of NumPy, of some microseconds each. Threads cannot share
them: they would wait for the interpreter's lock at every one. Processes have a lock each:

    gradients = DataParallel(model.loss, optimizer)
    for x, y in batches:
        optimizer.zero_grad()
        loss = gradients(x, y)  # forward and backward
        tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

The first call forks this process. A call hands the numbers of all parameters over in memory that is
shared, and a part of the batch to each process, takes the first part itself, and adds up what came
of the others. The optimizer works here alone; the other processes know no moments.

For ranks that are started by a launcher, and for several machines: `tinytensor.distributed`.
"""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any

import numpy as np

from ..autograd import Leaf, Node, count_consumers, note_write
from ..backend import Array, DType
from ..cpu.threads import get_num_threads, set_num_threads, single_threaded_blas
from ..nn.module import Module
from ..optim.flat import FlatBuffer
from ..optim.optimizer import Optimizer
from ..random import default_generator
from ..tensor import Tensor, as_tensor

# Process number i draws random numbers of its own from i · 2^56 blocks further on.
STRETCH = 1 << 56

Part = tuple[int, int, int]  # start and stop of some rows, and how many there are in all


class LostProcessError(RuntimeError):
    """One of the other processes has ended, killed or out of memory, or could not be started."""


class DataParallel:
    """`function` and its backward pass, computed by several processes, each on a part of the batch.

    `function(*tensors)` returns the mean of a loss over the first axis of its tensors, all of which
    are cut along it. `optimizer` has the parameters that it trains. `processes`: how many, this one
    included; by default as many as there would be threads. Where processes cannot be forked
    (Windows, macOS) this one does everything. `random_by_row`: every random number that the
    function draws belongs to a row, as the masks of dropout do; with any number of processes they
    are then those of one (`Generator.of_rows`). Otherwise each process draws its own.

    A call returns the loss, without a graph (in float32, if the function's is narrower), and adds
    the gradients to `p.grad`. They are those of the whole batch, up to rounding, if each part has
    as many losses as its share of the rows. What the function reads beside its tensors and these
    parameters is read as it was at the first call, and what else it writes (the running mean of a
    batch norm) stays in the process that wrote it.

    Raises ValueError for tensors of different lengths, RuntimeError where the gradients would not
    be complete, LostProcessError where another process ended or could not be started, and whatever
    the function raises, in any of the processes.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        optimizer: Optimizer,
        processes: int | None = None,
        random_by_row: bool = False,
    ) -> None:
        processes = get_num_threads() if processes is None else processes
        if processes < 1:
            raise ValueError(f"DataParallel: at least 1 process is needed, got {processes}")
        self.function, self.optimizer = function, optimizer
        self.processes = processes if can_fork() else 1
        self.random_by_row = random_by_row
        self._helpers: list[_Helper] = []
        self._values: list[Array] = []  # of the parameters, where all processes see them
        self._buffers: list[FlatBuffer] = []
        self._learned: list[bool] = []
        self._training = True
        self._looked = False  # at what the function computes with

    def __call__(self, *inputs: Tensor) -> Tensor:
        rows = _common_length(inputs)
        if not self._buffers:
            self._start()
        self._check()
        for helper in self._helpers:
            helper.finish()  # what a call that failed has left behind
        arrays = [x.array for x in inputs]
        busy = self._helpers[: rows - 1]
        if busy:
            self._hand_over_values()
        parts = cut(rows, len(busy) + 1)
        place = default_generator.get_state()
        for helper, (start, stop) in zip(busy, parts[1:], strict=True):
            state = place if self.random_by_row else further_on(place, helper.number)
            helper.begin([x[start:stop] for x in arrays], (start, stop, rows), state)
        with _one_thread() if busy else nullcontext():
            start, stop = parts[0]
            loss = self._backward([x[start:stop] for x in arrays], (start, stop, rows))
        for helper in busy:
            theirs, present = helper.result()
            loss += theirs
            for buffer, gradients, there in zip(
                self._buffers, helper.gradients, present, strict=True
            ):
                _add_gradients(buffer, gradients, there)
        return as_tensor(loss)

    def other_processes(self) -> list[int]:
        """The process numbers (pid) of those that the first call has started."""
        return [helper.pid for helper in self._helpers]

    def close(self) -> None:
        """End the other processes; the next call starts others, from what is here then."""
        for helper in self._helpers:
            helper.close()
        self._helpers, self._values, self._buffers = [], [], []
        self._looked = False

    def __enter__(self) -> DataParallel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what can be told beforehand ------------------------------------------------------------

    def _start(self) -> None:
        buffers = self.optimizer.flat_buffers()
        for buffer in buffers:
            if buffer.device.type != "cpu":
                raise RuntimeError(
                    f"DataParallel: the parameters are on {buffer.device}; it is for the CPU "
                    "(on GPUs, tinytensor.distributed trains with one process for each)"
                )
        self._buffers = buffers
        self._learned = self._requiring_gradients()
        self._training = self._owner_is_training()
        self._values = [shared_zeros(buffer.size, buffer.dtype) for buffer in buffers]
        try:
            for number in range(1, self.processes):
                self._helpers.append(_Helper(number, self))
        except OSError as error:
            self.close()
            raise LostProcessError(
                f"DataParallel: process {number} could not be started: {error.strerror}"
            ) from None

    def _check(self) -> None:
        """Refuse what the other processes would not know of."""
        now = self.optimizer.flat_buffers()
        if list(map(id, now)) != list(map(id, self._buffers)) or (
            self._requiring_gradients() != self._learned
        ):
            raise RuntimeError(
                "DataParallel: the optimizer's parameters have been replaced, frozen or released "
                "since the first call; close() it, and the next call begins anew"
            )
        if self._owner_is_training() != self._training:
            mode = "training" if self._training else "evaluation"
            raise RuntimeError(
                f"DataParallel: the model was in {mode} mode at the first call and is not now; "
                "close() it, and the next call begins anew (to evaluate, call the model itself)"
            )

    def _requiring_gradients(self) -> list[bool]:
        return [p.node is not None for buffer in self._buffers for p in buffer.parameters]

    def _owner_is_training(self) -> bool:
        """Of the module whose method the function is, or which it is."""
        owner = getattr(self.function, "__self__", self.function)
        return owner.training if isinstance(owner, Module) else True

    def _hand_over_values(self) -> None:
        for buffer, values in zip(self._buffers, self._values, strict=True):
            buffer.gather_values()
            values[...] = buffer.values

    # --- what each process does -----------------------------------------------------------------

    def _backward(self, arrays: Sequence[Array], part: Part) -> Array:
        """share · loss of a part of the batch; its gradients are added to the leaves'."""
        start, stop, rows = part
        share = (stop - start) / rows
        with default_generator.of_rows(*part) if self.random_by_row else nullcontext():
            loss = self.function(*map(as_tensor, arrays))
            if not self._looked and self._helpers and loss.node is not None:
                self._check_leaves(loss.node)
                self._looked = True
            loss.backward(as_tensor(np.full(loss.shape, share, loss.dtype)))
        return loss.array * share

    def _check_leaves(self, loss: Node) -> None:
        """Every gradient must find its way here, and nobody may look at it before."""
        ours = {p.node for buffer in self._buffers for p in buffer.parameters}
        for node in count_consumers(loss):
            if not isinstance(node, Leaf):
                continue
            if node not in ours:
                raise RuntimeError(
                    f"DataParallel: a tensor of shape {node.shape} requires a gradient and is not "
                    "one of the optimizer's parameters, so that its gradient would be that of a "
                    "part of the batch; give it to the optimizer, or detach() it"
                )
            if node.ready_hooks or node.watcher is not None:
                raise RuntimeError(
                    f"DataParallel: a hook on a parameter of shape {node.shape} would see the "
                    "gradient of a part of the batch; remove it"
                )


class _Helper:
    """Another process, seen from here."""

    def __init__(self, number: int, owner: DataParallel) -> None:
        self.number = number
        self.gradients = [shared_zeros(buffer.size, buffer.dtype) for buffer in owner._buffers]
        self._busy = False
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(owner, theirs), daemon=True)
        # Ctrl-C is for the process with the terminal: the other one never sees it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                # Of a fork beside threads Python warns, because one of them may hold a lock. Ours
                # wait for work, and OpenBLAS ends its own before a fork.
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    # --- here ---

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def begin(self, arrays: list[Array], part: Part, random_state: dict[str, int]) -> None:
        self._busy = True
        self._talk(self._connection.send, (arrays, part, random_state))

    def result(self) -> tuple[Array, list[list[bool]]]:
        """share · loss, and which parameters have a gradient; raises what went wrong there."""
        error, *found = self._talk(self._connection.recv)
        self._busy = False
        if error is not None:
            raise error
        return found[0], found[1]

    def finish(self) -> None:
        """Wait for a result that nobody wants any more."""
        if self._busy:
            self._talk(self._connection.recv)
            self._busy = False

    def _talk(self, say: Callable[..., Any], *words: Any) -> Any:
        try:
            return say(*words)
        except (EOFError, OSError):
            self._process.join(1)
            raise LostProcessError(
                f"DataParallel: process {self.number} ended with code {self._process.exitcode}; "
                "-9 is what the system does when memory runs out (with fewer processes there is "
                "less of it in use)"
            ) from None

    def close(self) -> None:
        self._connection.close()
        self._process.kill()  # it may be at work on what nobody wants any more
        self._process.join()

    # --- there ---

    def _serve(self, owner: DataParallel, connection: Any) -> None:
        """Answer requests until the other end is closed."""
        for helper in (*owner._helpers, self):
            helper._connection.close()  # or nobody's end would be the last
        owner._helpers = [self]
        for buffer in owner._buffers:
            buffer.state.clear()  # the optimizer's moments: they are of no use here
        with _one_thread():
            while True:
                try:
                    request = connection.recv()
                except (EOFError, OSError):
                    return
                try:
                    answer: tuple[Any, ...] = (None, *self._part(owner, *request))
                except Exception as error:
                    answer = (_portable(error),)
                    answer[0].add_note("in another process:\n" + traceback.format_exc())
                try:
                    connection.send(answer)
                except OSError:  # nobody is there any more to hear it
                    return

    def _part(
        self, owner: DataParallel, arrays: list[Array], part: Part, random_state: dict[str, int]
    ) -> tuple[Array, list[list[bool]]]:
        default_generator.set_state(random_state)
        for buffer, values in zip(owner._buffers, owner._values, strict=True):
            buffer.values[...] = values
        owner.optimizer.zero_grad()
        loss = owner._backward(arrays, part)
        present = [buffer.gather_gradients() for buffer in owner._buffers]
        for buffer, gradients, here in zip(owner._buffers, self.gradients, present, strict=True):
            for run in buffer.runs(here, by_step=False):
                gradients[run.span] = buffer.gradients[run.span]
        return loss, present


def _add_gradients(buffer: FlatBuffer, gradients: Array, there: list[bool]) -> None:
    """Add what another process found for the parameters that are marked in `there`."""
    here = buffer.gather_gradients()
    for parameter, mine, theirs in zip(buffer.parameters, here, there, strict=True):
        if theirs and not mine:
            leaf = parameter.node
            assert isinstance(leaf, Leaf)
            leaf.buffer[...] = 0
            leaf.grad = as_tensor(leaf.buffer)
    for run in buffer.runs(there, by_step=False):
        total = buffer.gradients[run.span]
        note_write(total)
        np.add(total, gradients[run.span], out=total)


def _common_length(inputs: Sequence[Tensor]) -> int:
    lengths = {x.shape[0] if isinstance(x, Tensor) and x.ndim else None for x in inputs}
    if len(lengths) != 1 or not (length := lengths.pop()):
        raise ValueError(
            "DataParallel: the inputs are cut along their first axis, so they must be tensors of "
            f"one length there, at least 1; got {[getattr(x, 'shape', x) for x in inputs]}"
        )
    return length


def cut(rows: int, parts: int) -> list[tuple[int, int]]:
    """Start and stop of so many neighbouring parts, as equal as can be.

    >>> cut(7, 2)
    [(0, 3), (3, 7)]
    """
    edges = [rows * i // parts for i in range(parts + 1)]
    return list(itertools.pairwise(edges))


def further_on(random_state: dict[str, int], number: int) -> dict[str, int]:
    """Where process number `number` draws random numbers of its own."""
    counter = (random_state["counter"] + number * STRETCH) % (1 << 64)
    return {**random_state, "counter": counter}


def can_fork() -> bool:
    """Whether processes can be copied here."""
    # Apple's own libraries do not survive a fork.
    return "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside the `with` block this process computes on one thread: the others have the cores."""
    before = get_num_threads()
    set_num_threads(1)
    try:
        with single_threaded_blas:
            yield
    finally:
        set_num_threads(before)


def shared_zeros(size: int, dtype: DType) -> Array:
    """An array in memory that processes forked from now on share with this one."""
    memory = mmap.mmap(-1, max(1, size * dtype.itemsize))
    return np.frombuffer(memory, dtype, size)


def _portable(error: Exception) -> Exception:
    """The error, or its text where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
