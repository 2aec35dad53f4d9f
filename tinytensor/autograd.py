"""The graph of an expression, and the walk over it that makes gradients.

A `Node` stands for one value: it knows the nodes it was computed from and the VJP that carries a
gradient back to them. It never holds a Tensor, so no reference cycle forms and memory is freed the
moment the last user lets go. What a VJP's closures captured *is* what is saved for the backward
pass; `node.saved()` lists it. A `Leaf` is where a walk ends and a gradient is kept.

`backward` is the walk: it counts how many consumers each node has, then visits a node when its last
consumer has been visited. It is iterative, so depth does not matter, and a leaf's gradient is
complete (and can be sent to other processes) as early as possible. Read `tensor.py` next.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import CellType, FunctionType, MethodType, TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np

from .backend import Array, DType, array_module, bfloat16, is_array, memory_range, silent

Shape = tuple[int, ...]
# One function per parent (None where no gradient flows), or one function that returns a tuple.
VJP = Any
F = TypeVar("F", bound=Callable[..., Any])


class LazyGradient(Protocol):
    """A gradient that knows how to put itself into a buffer instead of being a dense array.

    A weight gradient can be multiplied straight into the optimizer's buffer, and the gradient of an
    embedding touches only the rows that were looked up. Fast paths return such objects.
    """

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> DType: ...
    def write_to(self, buffer: Array) -> None:
        """buffer = gradient"""

    def add_to(self, buffer: Array) -> None:
        """buffer += gradient"""

    def dense(self) -> Array:
        """The gradient as an array of its own."""


class _State(threading.local):
    """What holds on this thread: each thread starts with these values."""

    grad_enabled = True
    reference_only = False  # inside reference_ops()
    recording = False  # whether the operation being computed will be recorded
    autocast = False  # whether operations choose their precision (amp.py)


state = _State()
_numbers = itertools.count()


class Freed:
    """Stands where a node's VJP was, after a backward pass used it up."""

    __slots__ = ()


FREED = Freed()


class Node:
    """One recorded value: which operation made it, from which nodes, and how gradients flow back.

    `shape` and `dtype` describe the value (a gradient that arrives is fitted to them), `level` says
    which derivative is being recorded: 1 for `tensor.backward()`, more inside `tt.func` transforms.
    """

    __slots__ = (
        "__weakref__",
        "dtype",
        "level",
        "number",
        "operation",
        "parents",
        "shape",
        "vjp",
        "watcher",
    )

    def __init__(
        self,
        operation: str,
        vjp: VJP,
        parents: tuple[Node | None, ...],
        shape: Shape,
        dtype: DType,
        level: int,
    ) -> None:
        self.operation = operation
        self.vjp = vjp
        self.parents = parents
        self.shape = shape
        self.dtype = dtype
        self.level = level
        self.number = next(_numbers)  # grows with time: a parent's number is below its child's
        self.watcher: Watcher | None = None

    def saved(self) -> list[Array]:
        """The arrays kept for the backward pass: what the VJP's closures captured."""
        found: dict[int, Array] = {}
        functions = self.vjp if isinstance(self.vjp, tuple) else (self.vjp,)
        _collect_arrays(functions, found, set())
        return list(found.values())

    def vjps(self, gradient: Array) -> Sequence[Any]:
        """The gradients of the parents, given the gradient of this value."""
        vjp = self.vjp
        if vjp is FREED:
            self.check_not_freed()
        if self.number < writes.time:
            writes.check(self)
        if type(vjp) is tuple:
            return [f and f(gradient) for f in vjp]
        gradients = vjp(gradient)
        return gradients if type(gradients) is tuple else (gradients,)

    def check_not_freed(self) -> None:
        if self.vjp is FREED:
            raise RuntimeError(
                f"backward: the graph behind this {self.operation} was already used and freed by "
                "an earlier backward; run the forward pass again, or pass retain_graph=True to the "
                "first backward"
            )

    def __repr__(self) -> str:
        return f"<{self.operation} {self.shape} {self.dtype}>"


class Output(Node):
    """One of the several outputs of the operation that its only parent stands for.

    It has no VJP of its own: the walk puts its gradient at `index` of the `count` that the VJP of
    its parent is called with, as one tuple. None stands there for an output that led nowhere.
    """

    __slots__ = ("count", "index")

    def __init__(self, parent: Node, index: int, count: int, y: Array) -> None:
        super().__init__(parent.operation, (), (parent,), y.shape, y.dtype, parent.level)
        self.index, self.count = index, count


class Watcher:
    """What users asked to see of one node's gradient: hooks to run, and whether to keep it."""

    __slots__ = ("gradient", "hooks", "retains")

    def __init__(self) -> None:
        self.hooks: list[Callable[[Any], Any]] = []
        self.retains = False
        self.gradient: Any = None  # a Tensor, kept by the last backward pass if `retains`


class Leaf(Node):
    """Where a walk ends: a tensor that the user made with `requires_grad=True`.

    The gradient is kept here and not on the tensor, so that the graph needs no reference to it.
    `buffer`, when an optimizer has set one, is where the gradient's numbers are written: `=` by the
    first gradient after `zero_grad()`, `+=` by later ones.
    """

    __slots__ = ("buffer", "grad", "ready_hooks")

    def __init__(self, shape: Shape, dtype: DType, level: int = 1) -> None:
        super().__init__("leaf", (), (), shape, dtype, level)
        self.grad: Any = None  # a Tensor, or None
        self.buffer: Array = None
        self.ready_hooks: list[Callable[[], None]] | None = None


def _collect_arrays(objects: Iterable[Any], found: dict[int, Array], seen: set[int]) -> None:
    for item in objects:
        if isinstance(item, np.generic):
            continue  # a number
        if is_array(item):
            found[id(item)] = item
        elif id(item) in seen:
            continue
        elif isinstance(item, FunctionType):
            seen.add(id(item))
            _collect_arrays(map(_cell_contents, item.__closure__ or ()), found, seen)
            _collect_arrays(item.__defaults__ or (), found, seen)
        elif isinstance(item, functools.partial):
            _collect_arrays((item.func, *item.args, *item.keywords.values()), found, seen)
        elif isinstance(item, MethodType):
            _collect_arrays((item.__self__,), found, seen)
        elif isinstance(item, tuple | list):
            seen.add(id(item))
            _collect_arrays(item, found, seen)
        elif isinstance(item, dict):
            seen.add(id(item))
            _collect_arrays(item.values(), found, seen)


def _cell_contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a cell that was never filled
        return None


# --- in-place writes -----------------------------------------------------------------------------


class WriteClock:
    """Notices when memory that a gradient needs was written in place.

    Nodes and writes are numbered by one counter. A write leaves its number and address range; a
    node whose VJP runs after a younger write looks its saved arrays up among those. An array that
    is still saved cannot have given its address away, so a hit is a real one. Nothing is paid while
    nobody writes.
    """

    def __init__(self) -> None:
        self.time = -1  # the number of the last write
        self._last_write: dict[tuple[int, int], int] = {}

    def note(self, array: Array) -> None:
        self.time = next(_numbers)
        span = memory_range(array)
        self._last_write.pop(span, None)  # so that the dict stays in order of time
        self._last_write[span] = self.time
        if len(self._last_write) > 1 << 16:
            del self._last_write[next(iter(self._last_write))]

    def check(self, node: Node) -> None:
        spans: list[tuple[int, int]] | None = None
        for (low, high), time in reversed(self._last_write.items()):
            if time < node.number:
                return
            if spans is None:
                spans = [
                    memory_range(array) for array in node.saved() if not hasattr(array, "node")
                ]
            if any(low < end and start < high for start, end in spans):
                raise RuntimeError(
                    f"backward: an array that {node.operation} {node.shape} needs for its "
                    "gradient was written in place after it was used; write a new tensor instead "
                    "(x = x + 1, tt.where, masked_fill), or take a clone() before the write"
                )


writes = WriteClock()
note_write = writes.note


# --- the walk ------------------------------------------------------------------------------------


def fit(gradient: Array, shape: Shape, dtype: DType, operation: str) -> Array:
    """`gradient` summed over broadcast axes to `shape` and cast to `dtype`: un-broadcasting, once.

    If y = f(broadcast(x)), then dx = sum of dy over the axes along which x was repeated.
    """
    if gradient.shape != shape:
        gradient = _unbroadcast(gradient, shape, operation)
    if gradient.dtype != dtype:
        gradient = gradient.astype(dtype)
    return gradient


def _unbroadcast(gradient: Array, shape: Shape, operation: str) -> Array:
    given = tuple(gradient.shape)
    try:
        related = np.broadcast_shapes(given, shape)
    except ValueError:
        raise ValueError(
            f"{operation}: its VJP returned a gradient of shape {given} for an input of shape "
            f"{shape}; the two are not related by broadcasting"
        ) from None
    extra = len(given) - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + axis
        for axis, size in enumerate(shape)
        if extra + axis >= 0 and size == 1 and given[extra + axis] != 1
    )
    if axes:
        # A sum of 300 ones in bfloat16 is 256; `fit` casts back.
        wide = gradient.astype(np.float32) if gradient.dtype == bfloat16 else gradient
        gradient = wide.sum(axis=axes, keepdims=True)
    if extra > 0:
        gradient = gradient.reshape(shape)
    if tuple(gradient.shape) != shape:  # a VJP may return less: a scalar for every element, say
        if related != shape:
            raise ValueError(
                f"{operation}: its VJP returned a gradient of shape {given} for an input of shape "
                f"{shape}"
            )
        gradient = array_module(gradient).broadcast_to(gradient, shape)
    return gradient


def count_consumers(root: Node) -> dict[Node, int]:
    """For each node that `root` was computed from, by how many others it is used, each time."""
    counts = {root: 0}
    stack = [root]
    while stack:
        for parent in stack.pop().parents:
            if parent in counts:
                counts[parent] += 1
            elif parent is not None:
                counts[parent] = 1
                if parent.parents:
                    stack.append(parent)
    return counts


class Walk(Protocol):
    """What computes beside a backward walk (the CPU's threads) and has to be waited for."""

    def begin(self) -> None:
        """A walk begins on this thread."""

    def finish(self) -> None:
        """Return when every gradient that was handed over so far is complete."""

    def end(self) -> None:
        """The walk is over, or failed."""

    def aside(self) -> AbstractContextManager[None]:
        """Inside the `with` block things are computed as they would be outside the walk."""


_beside: list[Walk] = []


def during_walk(walk: Walk) -> None:
    """Have `walk` told of every backward walk from now on."""
    _beside.append(walk)


@contextmanager
def aside() -> Iterator[None]:
    """For a forward pass inside a backward walk: it gives the bits that it would give outside."""
    with ExitStack() as stack:
        for walk in _beside:
            stack.enter_context(walk.aside())
        yield


@silent
def backward(
    root: Node,
    gradient: Array,
    *,
    retain_graph: bool = False,
    wanted: dict[Node, Any] | None = None,
) -> None:
    """Carry `gradient`, that of `root`'s value, back to everything it was computed from.

    Without `wanted` the gradients are added into the leaves' `.grad`. With it, only nodes on a path
    to one of its keys are visited, and its values become their gradients (arrays, or Tensors of the
    level below); leaves are left alone.
    """
    root.check_not_freed()
    for walk in _beside:
        walk.begin()
    try:
        _walk_back(root, gradient, retain_graph, wanted)
    finally:
        try:
            for walk in _beside:
                walk.finish()
        finally:
            for walk in _beside:
                walk.end()


def _walk_back(
    root: Node, gradient: Array, retain_graph: bool, wanted: dict[Node, Any] | None
) -> None:
    counts = count_consumers(root)
    if wanted is not None:
        _keep_paths_to(wanted, counts)
    pending: dict[Node, Any] = {root: gradient}
    owned: set[Node] = set()  # nodes whose pending gradient is a fresh sum, safe to add into
    stored: set[Node] = set()  # leaves to whose `.grad` this walk has added
    ready = [root] if root in counts else []
    while ready:
        node = ready.pop()
        gradient = pending.pop(node, None)
        if gradient is not None:
            if node.watcher is not None:
                gradient = _run_hooks(node, node.watcher, _dense(gradient))
            if wanted is not None and node in wanted:
                wanted[node] = _dense(gradient)
        if type(node) is Leaf:
            if gradient is not None and wanted is None:
                accumulate(node, gradient)
                stored.add(node)
            if node.ready_hooks and node in stored:
                for walk in _beside:
                    walk.finish()
                for hook in node.ready_hooks:
                    hook()
            continue
        parents = node.parents
        gradients: Sequence[Any] | None = None
        if gradient is not None:
            if type(gradient) is not np.ndarray:
                gradient = tuple(gradient) if type(gradient) is list else _dense(gradient)
            if type(node) is Output:
                _put_part(pending, node, gradient)
            else:
                gradients = node.vjps(gradient)
                if len(gradients) != len(parents):
                    raise ValueError(
                        f"{node.operation}: its VJP returned {len(gradients)} gradients for "
                        f"{len(parents)} inputs"
                    )
        if not retain_graph:
            node.vjp = FREED
        for i, parent in enumerate(parents):
            if parent is None or (waiting := counts.get(parent)) is None:
                continue
            if gradients is not None and (given := gradients[i]) is not None:
                if given.shape != parent.shape or (
                    given.dtype is not parent.dtype and given.dtype != parent.dtype
                ):
                    given = fit(given, parent.shape, parent.dtype, node.operation)
                if type(parent) is Leaf and wanted is None and _takes_parts(parent, stored):
                    accumulate(parent, given)
                elif parent not in pending:
                    pending[parent] = given
                else:
                    _add_pending(pending, owned, parent, given)
            counts[parent] = waiting = waiting - 1
            if not waiting:
                ready.append(parent)


def _put_part(pending: dict[Node, Any], output: Output, gradient: Array) -> None:
    """The gradient of one of several outputs, into the list of all of them."""
    operation = output.parents[0]
    assert operation is not None
    if operation not in pending:
        pending[operation] = [None] * output.count
    pending[operation][output.index] = gradient


def _takes_parts(leaf: Leaf, stored: set[Node]) -> bool:
    """Whether gradients of `leaf` go to its `.grad` as they come, without a sum in between.

    That is so where nobody watches it, unless there is one from an earlier walk: sums over several
    walks do not depend on how often each has used the leaf.
    """
    if leaf.watcher is not None:
        return False
    if leaf in stored:
        for walk in _beside:
            walk.finish()  # what is added to may still be in a queue
    elif leaf.grad is None:
        stored.add(leaf)
    else:
        return False
    return True


def _keep_paths_to(wanted: Iterable[Node], counts: dict[Node, int]) -> None:
    """Reduce `counts` to the nodes from which a node of `wanted` can be reached, and recount."""
    useful = set(wanted)
    for node in sorted(counts, key=lambda n: n.number):  # parents before children
        if any(parent in useful for parent in node.parents):
            useful.add(node)
    kept = [node for node in counts if node in useful]
    counts.clear()
    counts.update(dict.fromkeys(kept, 0))
    for node in kept:
        for parent in node.parents:
            if parent in counts:
                counts[parent] += 1


def _add_pending(pending: dict[Node, Any], owned: set[Node], node: Node, given: Any) -> None:
    """pending[node] += given, in place where the sum so far is nobody else's."""
    total = pending[node]
    if node not in owned:
        if not (_is_lazy(total) or _is_lazy(given)):
            pending[node] = total + given
            owned.add(node)
            return
        if not _is_lazy(total):
            total, given = given, total
        joined = total.joined(given) if hasattr(total, "joined") else None
        if joined is not None:
            pending[node] = joined
            return
        pending[node] = total = total.dense()
        owned.add(node)
    if _is_lazy(given):
        given.add_to(total)
        for walk in _beside:
            walk.finish()  # the sum is read while the walk goes on
    elif isinstance(total, np.ndarray):
        np.add(total, given, out=total)
    else:
        pending[node] = total + given


def _is_lazy(gradient: Any) -> bool:
    return type(gradient) is not np.ndarray and hasattr(gradient, "dense")


def _dense(gradient: Any) -> Array:
    return gradient.dense() if _is_lazy(gradient) else gradient


as_tensor: Any = None  # wraps an array: tensor.py, which knows this file, puts its function here


def _run_hooks(node: Node, watcher: Watcher, gradient: Array) -> Array:
    for hook in watcher.hooks:
        replaced = hook(as_tensor(gradient))
        if replaced is not None:
            if replaced.shape != node.shape:
                raise ValueError(
                    "register_hook: the hook returned a gradient of shape "
                    f"{tuple(replaced.shape)} for a tensor of shape {node.shape}"
                )
            gradient = replaced.value
    if watcher.retains:
        watcher.gradient = as_tensor(gradient)
    return gradient


def accumulate(leaf: Leaf, gradient: Any) -> None:
    """Add `gradient` to the leaf's `.grad`; the first one after `zero_grad()` is written there."""
    lazy = _is_lazy(gradient)
    if leaf.grad is not None:
        total = leaf.grad.value
        # Held by .grad, `total` and the call; by `buffer` and its optimizer. By more? Then perhaps
        # by a closure that saved it for another backward pass, which has to be told.
        if sys.getrefcount(total) > (5 if leaf.buffer is total else 3):
            note_write(total)
        if lazy:
            gradient.add_to(total)
        else:
            total += gradient
        return
    buffer = leaf.buffer
    if buffer is None:
        if lazy:
            leaf.grad = as_tensor(gradient.dense())
            return
        buffer = array_module(gradient).empty(leaf.shape, leaf.dtype)
    if lazy:
        gradient.write_to(buffer)
    else:
        buffer[...] = gradient
    leaf.grad = as_tensor(buffer)


# --- what users call -----------------------------------------------------------------------------


class set_grad_enabled:
    """Record operations (True) or not (False), inside a `with` block or a decorated function."""

    def __init__(self, mode: bool) -> None:
        self.mode = mode
        self._previous: list[bool] = []

    def __enter__(self) -> None:
        self._previous.append(state.grad_enabled)
        state.grad_enabled = self.mode

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        state.grad_enabled = self._previous.pop()

    def __call__(self, function: F) -> F:
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generator(*args: Any, **kwargs: Any) -> Any:
                # The mode holds while the generator's own lines run, not while its user's do.
                iterator = function(*args, **kwargs)
                while True:
                    with set_grad_enabled(self.mode):
                        try:
                            item = next(iterator)
                        except StopIteration as stop:
                            return stop.value
                    yield item

            return generator  # type: ignore[return-value]

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with set_grad_enabled(self.mode):
                return function(*args, **kwargs)

        return wrapped  # type: ignore[return-value]


def no_grad(function: F | None = None) -> Any:
    """Do not record: `with tt.no_grad():`, `@tt.no_grad()` or `@tt.no_grad`."""
    return set_grad_enabled(False) if function is None else set_grad_enabled(False)(function)


def enable_grad(function: F | None = None) -> Any:
    """Record again inside a `no_grad` block: context manager and decorator."""
    return set_grad_enabled(True) if function is None else set_grad_enabled(True)(function)


def is_grad_enabled() -> bool:
    """Whether operations on this thread are being recorded."""
    return state.grad_enabled


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Any, ...]:
    """The gradients of `outputs` with respect to `inputs`, as a tuple; nobody's `.grad` is touched.

    `outputs` and `inputs` are a tensor or a sequence of tensors, `grad_outputs` the cotangents of
    the outputs (left out for scalars). Several outputs are summed over. Raises RuntimeError for an
    input that no path reaches, unless `allow_unused=True`: its gradient is then None.
    """
    from .tensor import CREATE_GRAPH, Tensor, cotangent

    if create_graph:
        raise RuntimeError(CREATE_GRAPH)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if grad_outputs is None or isinstance(grad_outputs, Tensor):
        grad_outputs = (grad_outputs,) * len(outputs) if grad_outputs is None else (grad_outputs,)
    if len(grad_outputs) != len(outputs):
        raise ValueError(
            f"grad: {len(grad_outputs)} grad_outputs were given for {len(outputs)} outputs"
        )
    for what, tensors in (("output", outputs), ("input", inputs)):
        for position, x in enumerate(tensors):
            if not hasattr(x, "node"):
                raise TypeError(f"grad: {what} {position} is a {type(x).__name__}, not a tensor")
    for position, x in enumerate(inputs):
        if x.node is None:
            raise RuntimeError(
                f"grad: input {position} (shape {x.shape}) does not require a gradient"
            )
    totals: list[Any] = [None] * len(inputs)
    for position, (output, gradient) in enumerate(zip(outputs, grad_outputs, strict=True)):
        if output.node is None:
            raise RuntimeError(
                f"grad: output {position} (shape {output.shape}) does not require a gradient"
            )
        wanted: dict[Node, Any] = {x.node: None for x in inputs}
        # Outputs may share a graph: only the last walk may free it.
        keep = bool(retain_graph) or position + 1 < len(outputs)
        backward(output.node, cotangent("grad", output, gradient), retain_graph=keep, wanted=wanted)
        for i, x in enumerate(inputs):
            found = wanted[x.node]
            if found is not None:
                totals[i] = found if totals[i] is None else totals[i] + found
    if not allow_unused:
        for position, total in enumerate(totals):
            if total is None:
                raise RuntimeError(
                    f"grad: no path leads from the outputs to input {position} (shape "
                    f"{inputs[position].shape}); pass allow_unused=True to get None for it"
                )
    return tuple(None if total is None else as_tensor(total) for total in totals)


def gradcheck(function: Callable[..., Any], inputs: Any, **options: Any) -> bool:
    """`tt.testing.gradcheck`, under the name that it has in PyTorch."""
    from .testing import gradcheck as check

    return check(function, inputs, **options)
