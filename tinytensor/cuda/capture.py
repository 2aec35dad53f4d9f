"""CUDA graphs on "cuda-sim": while a stream captures, what is asked of the device is noted, and
done each time that the graph is launched.

As on a GPU, kernels and functions that write into an array do not run while they are noted. A
function that makes a new array does, on whatever numbers are there by then, for the shape of what
it returns; a launch computes the numbers. Reading one meanwhile is refused with CUDA's error. The
names are those of CuPy as far as `graph.py` uses them; `device.py` and `kernels.launch` ask
`noted`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["Cuda", "Graph", "Stream", "is_capturing", "made", "noted", "refuse_reading"]

Call = Callable[[], Any]

# Functions and methods of NumPy's that write into an array that they are given.
WRITING = {"at", "copyto", "fill", "fill_diagonal", "place", "put", "putmask"}
# Functions that allocate and do nothing: a graph has no node for them.
UNWRITTEN = {"empty", "empty_like"}
# Those whose results have a shape that depends on the numbers: a GPU has to be waited for.
WAITING = {"argwhere", "flatnonzero", "nonzero", "unique"}

_noted: list[tuple[str, Call]] | None = None


def is_capturing() -> bool:
    """Whether what is asked of the device is noted and not done."""
    return _noted is not None


def noted(name: str, call: Call) -> None:
    """Do `call` now, or at each launch of the graph that is being captured."""
    if _noted is None:
        call()
    else:
        _noted.append((name, call))


def made(function: Callable[..., Any], given: Sequence[Any], options: dict[str, Any]) -> Any:
    """What `function` returns, made now and, unless it is a view of what was given, at each launch.

    `given` and `options` hold NumPy arrays; a function that writes into one of them is only noted.
    """
    if _noted is None:
        return function(*given, **options)
    name = getattr(function, "__name__", "call")
    if name in ("__call__", "reduce"):  # of a ufunc, whose own name says more
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    if name in WAITING:
        refuse_reading()
    call = functools.partial(function, *given, **options)
    if name in WRITING or options.get("out") is not None:
        _noted.append((name, call))
        return options.get("out")
    with np.errstate(all="ignore"):
        result = call()
    results = list(result) if isinstance(result, list | tuple) else [result]
    results = [np.asarray(x) if isinstance(x, np.generic) else x for x in results]
    own = getattr(function, "__self__", None)
    sources = [x for x in (*_leaves((given, options)), own) if isinstance(x, np.ndarray)]
    fresh = [
        i
        for i, x in enumerate(results)
        if isinstance(x, np.ndarray) and not any(np.may_share_memory(x, a) for a in sources)
    ]

    def again() -> None:
        found = call()
        found = found if isinstance(found, list | tuple) else [found]
        for i in fresh:
            results[i][...] = found[i]

    if fresh and name not in UNWRITTEN:
        _noted.append((name, again))
    if not isinstance(result, list | tuple):
        return results[0]
    return type(result)(*results) if hasattr(result, "_fields") else type(result)(results)


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        yield tree
        return
    for x in tree:
        yield from _leaves(x)


def refuse_reading() -> None:
    """Raise, as CUDA does, where a number is read from the device while a step is captured."""
    if _noted is not None:
        raise RuntimeError(
            "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
        )


class Graph:
    """What was noted between `begin_capture` and `end_capture`."""

    def __init__(self, calls: list[tuple[str, Call]]) -> None:
        self.calls = calls

    def launch(self, stream: Stream) -> None:
        """Do everything that was noted, in its order."""
        for _, call in self.calls:
            call()

    def debug_dot_str(self) -> str:
        """The calls as a chain, in the language of Graphviz."""
        nodes = "".join(f'n{i} [label="{name}"];\n' for i, (name, _) in enumerate(self.calls))
        chain = " -> ".join(f"n{i}" for i in range(len(self.calls)))
        return f"digraph dot {{\n{nodes}{chain};\n}}\n"


class Stream:
    """A stream: on "cuda-sim" everything is done when it is asked for, so there is no waiting."""

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking = non_blocking

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None: ...

    def record(self) -> Stream:
        return self

    def wait_event(self, event: Stream) -> None: ...

    def synchronize(self) -> None:
        refuse_reading()

    def begin_capture(self) -> None:
        global _noted
        if _noted is not None:
            raise RuntimeError("cudaErrorIllegalState: a capture is under way already")
        _noted = []

    def end_capture(self) -> Graph:
        global _noted
        calls, _noted = _noted, None
        return Graph(calls or [])


class MemoryPool:
    """A pool of which nothing is asked: arrays of "cuda-sim" are NumPy's."""

    def total_bytes(self) -> int:
        return 0


@contextmanager
def using_allocator(allocator: Callable[[int], Any]) -> Iterator[None]:
    """As CuPy's; the host's memory is allocated by NumPy all the same."""
    yield


_stream = Stream()


class Cuda:
    """The part of `sim.cuda` that captures."""

    Stream = Stream
    MemoryPool = MemoryPool
    using_allocator = staticmethod(using_allocator)
    memory = types.SimpleNamespace(OutOfMemoryError=MemoryError)

    @staticmethod
    def get_current_stream() -> Any:
        return _stream
