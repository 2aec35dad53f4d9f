"""`tt.cuda.graph(step)`: a training step captured once as one CUDA graph, and replayed.

A small model's step is hundreds of short kernels, and Python takes longer to ask for them than the
GPU to run them. Captured, they are asked for once:

    def step(x, y):
        loss = model.loss(x, y)
        optimizer.zero_grad()
        loss.backward()
        tt.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    step = tt.cuda.graph(step, optimizer)
    for x, y in batches:
        scheduler.step()
        loss = step(x, y)              # loss.item() here, if it is to be seen

The first calls run plainly (kernels are compiled, memory is found), the next one captures, and from
then on a call copies its tensors to where the graph reads them and launches it. So n calls are n
steps. The learning rate and the number of the step are inputs too: the few numbers of each update
are computed anew and put on the device (`kernels/adamw.cu`, `sgd.cu`). So is where the random
generators stand: each replay draws the masks that the plain step would have drawn. On "cuda-sim"
steps are captured as well (`capture.py`); on "cpu" every call runs plainly, and the same script
works everywhere.

A graph repeats addresses, so what it needs lives in a memory pool of its own, and repeats numbers,
so whatever would read from the device while it is captured is refused.
"""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..autograd import note_write
from ..backend import CPU, Array, device, module_for, to_device
from ..func import tree_leaves, tree_map
from ..random import Generator, Origin, counted_from
from ..tensor import Tensor, as_tensor
from .kernels import launch
from .memory import StepMemory
from .optimizer import FACTORS, Formula, put_factors, recorded_by

__all__ = ["Graph", "graph"]

PACKAGE = str(Path(__file__).parent.parent)


def graph(
    step: Callable[..., Any],
    optimizer: Any = None,
    *,
    warmup: int = 2,
    dot: str | Path | None = None,
) -> Graph:
    """`step` as a function that captures itself as a CUDA graph and replays it.

    `step` takes and returns tensors (in tuples, lists or dicts if wanted); those elsewhere are
    moved to the device first. Other arguments are constants of the graph. `optimizer`: the one, or
    the list of those, whose `step()` is called in it. `warmup`: how many calls run plainly before
    one is captured, at least 1. `dot`: a file for CUDA's description of the graph, which Graphviz
    draws. What a replay returns is overwritten by the next one.

    Raises RuntimeError with the line at fault for what cannot be captured, ValueError for tensors
    of another shape or dtype than the captured ones.
    """
    return Graph(step, optimizer, warmup=warmup, dot=dot)


class Graph:
    """What `graph` returns: call it as the step itself."""

    def __init__(
        self,
        step: Callable[..., Any],
        optimizer: Any = None,
        *,
        warmup: int = 2,
        dot: str | Path | None = None,
    ) -> None:
        if warmup < 1:
            raise ValueError(f"graph: at least 1 call must run before the capture, not {warmup}")
        self.step = step
        self.optimizers: list[Any] = (
            [] if optimizer is None else [*optimizer] if _is_list(optimizer) else [optimizer]
        )
        self.warmup, self.dot = warmup, dot
        self.calls = 0
        self._captured: _Captured | None = None
        self._stream: Any = None
        self._memory: Any = None

    @property
    def captured(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._captured is not None

    def __call__(self, *args: Any, **options: Any) -> Any:
        where = self._device(args, options)
        args, options = tree_map(lambda x: _moved(x, where), (args, options))
        module = _capturing_module(where)
        if module is None:
            self.calls += 1
            return _detached(self.step(*args, **options))
        if self._captured is None and self.calls < self.warmup:
            result = self._run_beside(module, args, options)
        else:
            if self._captured is None:
                self._captured = self._capture(module, args, options)
            result = self._captured.replay(module, args, options)
        self.calls += 1
        return result

    def debug_dot_str(self) -> str:
        """CUDA's description of the captured graph, in the language of Graphviz."""
        if self._captured is None:
            raise RuntimeError(
                f"graph: nothing has been captured after {self.calls} calls; on a GPU, call "
                f"{self.warmup + 1} captures"
            )
        return str(self._captured.graph.debug_dot_str())

    def _device(self, args: Any, options: Any) -> device:
        for optimizer in self.optimizers:
            return optimizer.flat_buffers()[0].device  # type: ignore[no-any-return]
        tensors = [x for x in tree_leaves((args, options)) if isinstance(x, Tensor)]
        return tensors[0].device if tensors else CPU

    @contextmanager
    def _own_memory(self, module: Any, capturing: bool) -> Iterator[None]:
        """The graph's stream and memory."""
        if self._stream is None:
            self._stream = module.cuda.Stream(non_blocking=True)
            self._memory = StepMemory(module)
        allocate = functools.partial(self._memory.malloc, capturing=capturing)
        with self._stream, module.cuda.using_allocator(allocate):
            yield

    def _run_beside(self, module: Any, args: Any, options: Any) -> Any:
        """A plain call, on the stream and in the memory that the capture will use."""
        outside = module.cuda.get_current_stream()
        with self._own_memory(module, False):
            self._stream.wait_event(outside.record())
            result = _detached(self.step(*args, **options))
            outside.wait_event(self._stream.record())
        return result

    def _capture(self, module: Any, args: Any, options: Any) -> _Captured:
        module.cuda.get_current_stream().synchronize()
        with self._own_memory(module, False):
            inputs = tree_map(_copy, (args, options))
        self._stream.synchronize()
        randomness = _Randomness(module)
        updates = _Updates(self.optimizers, module)
        with self._own_memory(module, True):
            self._stream.begin_capture()
            try:
                with updates.recorded(), randomness.recorded(), _no_waiting(module):
                    result = _detached(self.step(*inputs[0], **inputs[1]))
            except BaseException as error:
                with suppress(Exception):  # what was captured so far is thrown away
                    self._stream.end_capture()
                randomness.take_back()
                updates.take_back()
                if isinstance(error, Exception) and (reason := _why(error)):
                    raise RuntimeError(reason) from error
                raise
            captured = self._stream.end_capture()
        randomness.take_back()  # nothing has run yet: the replay counts
        updates.take_back()
        text = str(captured.debug_dot_str())
        if "HtoD" in text or "DtoH" in text:
            kind = "from the host to the device" if "HtoD" in text else "from the device to it"
            raise RuntimeError(
                f"graph: the step copies {kind} while it is captured, and every replay would read "
                "what lies at that address then; make such arrays once, outside of the step"
            )
        if self.dot is not None:
            Path(self.dot).write_text(text, encoding="utf-8")
        return _Captured(captured, inputs, result, updates, randomness)


def _is_list(x: Any) -> bool:
    return isinstance(x, list | tuple)


def _capturing_module(where: device) -> Any:
    """The array module of a device whose work can be captured, None for the others."""
    return None if where.type == "cpu" else module_for(where)


def _detached(result: Any) -> Any:
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, result)


def _moved(x: Any, where: device) -> Any:
    return as_tensor(to_device(x.array, where)) if isinstance(x, Tensor) else x


def _copy(x: Any) -> Any:
    return as_tensor(x.array.copy()) if isinstance(x, Tensor) else x


class _Captured(NamedTuple):
    """A graph with the tensors that it reads and those that it writes."""

    graph: Any
    inputs: Any
    result: Any
    updates: _Updates
    randomness: _Randomness

    def replay(self, module: Any, args: Any, options: Any) -> Any:
        self._write_inputs((args, options))
        self.updates.write()
        self.randomness.write()
        self.graph.launch(module.cuda.get_current_stream())
        return self.result

    def _write_inputs(self, given: Any) -> None:
        held, new = tree_leaves(self.inputs), tree_leaves(given)
        if len(held) != len(new):
            raise ValueError(
                f"graph: the step was captured with {len(held)} arguments, not {len(new)}"
            )
        for i, (old, x) in enumerate(zip(held, new, strict=True)):
            if not isinstance(old, Tensor):
                if isinstance(x, Tensor) or x != old:
                    raise ValueError(
                        f"graph: argument {i} was {old!r} when the step was captured and is "
                        f"{x!r} now; only tensors can change (the learning rate is set in the "
                        "optimizer's groups)"
                    )
            elif not isinstance(x, Tensor) or (x.shape, x.dtype) != (old.shape, old.dtype):
                found = f"{x.dtype} {x.shape}" if isinstance(x, Tensor) else repr(x)
                raise ValueError(
                    f"graph: argument {i} was {old.dtype} {old.shape} when the step was captured "
                    f"and is {found} now; make a graph for each shape"
                )
        for old, x in zip(held, new, strict=True):
            if isinstance(old, Tensor):
                old.array[...] = x.array


# --- the updates of the optimizers ---------------------------------------------------------------


class _Update(NamedTuple):
    """One update in the graph: what it follows, and what was fixed by the capture."""

    buffer: Any
    first: int  # parameter
    ahead: int  # updates of that parameter earlier in the graph
    group: dict[str, Any]
    formula: Formula  # its numbers, from its options
    options: dict[str, Any]  # what the update was called with
    follows: tuple[str, ...]  # the options that the group decides


class _Updates:
    """The optimizers' updates in a captured step, and their numbers, computed for each replay."""

    def __init__(self, optimizers: Sequence[Any], module: Any) -> None:
        self.optimizers = optimizers
        self.groups = [(group, dict(group)) for opt in optimizers for group in opt.param_groups]
        self.buffers = [
            (buffer, _group_of(opt, buffer)) for opt in optimizers for buffer in opt.flat_buffers()
        ]
        self.before = [list(buffer.steps) for buffer, _ in self.buffers]
        self.counts: list[list[int]] = []
        self.updates: list[_Update] = []
        # A row for each update; there are as many as runs of parameters at most.
        rooms = 4 * sum(len(buffer.parameters) for buffer, _ in self.buffers)
        self.factors = module.zeros((max(1, rooms), FACTORS), np.float32)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Inside the `with` block updates take their numbers from `factors`."""
        with recorded_by(self.record):
            yield

    def record(self, value: Array, formula: Formula, options: dict[str, Any]) -> Array:
        """The row of `factors` for an update of `value`."""
        address = value.data.ptr
        for buffer, of_group in self.buffers:
            offset = (address - buffer.values.data.ptr) // buffer.values.itemsize
            starts = [span.start for span in buffer.spans]
            if 0 <= offset < buffer.size and offset in starts:
                group = of_group
                break
        else:
            raise RuntimeError(
                "graph: the step updates parameters of an optimizer that the graph was not told "
                "of, and could not be given its learning rate; call "
                "tt.cuda.graph(step, optimizer)"
            )
        first, row = starts.index(offset), len(self.updates)
        if row == len(self.factors):
            raise RuntimeError(f"graph: more than {row} updates in one step")
        options = dict(options)
        ahead = options.pop("step") - 1 - self.before[self._place(buffer)][first]
        follows = tuple(name for name, value in options.items() if value == group[name])
        self.updates.append(_Update(buffer, first, ahead, group, formula, options, follows))
        return self.factors[row]

    def _place(self, buffer: Any) -> int:
        return next(i for i, (other, _) in enumerate(self.buffers) if other is buffer)

    def take_back(self) -> None:
        """Undo the counting of updates that were captured and did not run."""
        if not self.counts:
            self.counts = [
                [now - before for now, before in zip(buffer.steps, steps, strict=True)]
                for (buffer, _), steps in zip(self.buffers, self.before, strict=True)
            ]
        for (buffer, _), steps in zip(self.buffers, self.before, strict=True):
            buffer.steps[:] = steps

    def write(self) -> None:
        """Copy the numbers of the next replay to the device, and count its updates."""
        self._check()
        for row, update in enumerate(self.updates):
            options = update.options | {name: update.group[name] for name in update.follows}
            step = update.buffer.steps[update.first] + update.ahead + 1
            put_factors(self.factors[row], update.formula(step=step, **options))
        for (buffer, _), counts in zip(self.buffers, self.counts, strict=True):
            note_write(buffer.values)
            buffer.steps[:] = [n + more for n, more in zip(buffer.steps, counts, strict=True)]

    def _check(self) -> None:
        """Refuse a change that the graph cannot follow."""
        now = [buffer for opt in self.optimizers for buffer in opt.flat_buffers()]
        if [id(buffer) for buffer in now] != [id(buffer) for buffer, _ in self.buffers]:
            raise RuntimeError(
                "graph: the optimizer's parameters have been moved or replaced since the step was "
                "captured; make a new one"
            )
        moved = {
            id(group)
            for (_, group), counts in zip(self.buffers, self.counts, strict=True)
            if any(counts)
        }
        for group, captured in self.groups:
            if id(group) not in moved:  # the step does not update it
                continue
            mine = [update for update in self.updates if update.group is group]
            for name, value in captured.items():
                if name in ("params", "initial_lr") or group[name] == value:
                    continue
                if not mine or any(name not in update.follows for update in mine):
                    raise RuntimeError(
                        f"graph: {name} was {value} when the step was captured and is "
                        f"{group[name]} now, which the captured update does not follow; make a "
                        "new one"
                    )


def _group_of(optimizer: Any, buffer: Any) -> dict[str, Any]:
    first = buffer.parameters[0]
    return next(g for g in optimizer.param_groups if any(p is first for p in g["params"]))


# --- the random numbers --------------------------------------------------------------------------


class _Randomness:
    """The generators that a captured step draws from, and where each stands, for each replay."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.origins: dict[Generator, Origin] = {}
        self.blocks: dict[Generator, int] = {}  # that a replay draws

    def recorded(self) -> AbstractContextManager[None]:
        """Inside the `with` block draws are counted from what lies on the device by then."""
        return counted_from(self.origin_of)

    def origin_of(self, generator: Generator) -> Origin:
        origin = self.origins.get(generator)
        if origin is None:
            words = self.module.empty(2, np.uint64)
            origin = self.origins[generator] = Origin(**generator.get_state(), words=words)
        return origin

    def take_back(self) -> None:
        """Put the generators back to where they stood: what was captured has drawn nothing yet."""
        for generator, (seed, counter, _) in self.origins.items():
            self.blocks[generator] = generator.get_state()["counter"] - counter
            generator.set_state({"seed": seed, "counter": counter})

    def write(self) -> None:
        """Tell the next replay where the generators stand, and move them on."""
        for generator, (_, _, words) in self.origins.items():
            state = generator.get_state()
            launch("set_origin", (1,), (32,), [words], [state["seed"], state["counter"]])
            generator.skip(self.blocks[generator])


# --- what cannot be captured ---------------------------------------------------------------------


@contextmanager
def _no_waiting(module: Any) -> Iterator[None]:
    """Let CuPy itself refuse to wait for the device, where it knows that it would."""
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated for what it misses; CUDA refuses that
        try:
            allow = importlib.import_module(f"{module.__name__}x").allow_synchronize
        except (ImportError, AttributeError):
            yield
            return
        with allow(False):
            yield


def _why(error: Exception) -> str | None:
    """The sentence for an error that the capture is the reason of; None for others."""
    text = f"{type(error).__name__}: {error}"
    if not any(word in text for word in ("ynchroniz", "StreamCapture", "stream capture")):
        return None
    place = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(PACKAGE) and "cupy" not in frame.filename:
            place = f" at {Path(frame.filename).name}:{frame.lineno} ({frame.line})"
            break
    return (
        f"graph: the step cannot be captured: it reads from the device, or waits for it,{place}; "
        "return the tensor and read it after the call (item(), tolist(), printing and `if x:` "
        f"wait; so does clip_grad_norm_ with error_if_nonfinite=True). CuPy says: {text}"
    )
