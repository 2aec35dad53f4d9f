"""Tensor, and `@op`: the one place where arrays become tensors.

A `Tensor` is a pair: a `value` (an array, or a Tensor of the level below) and the `node` that says
how the value was made. An operation is a function on arrays that returns its output and its VJP;
`@op` makes it differentiable:

    @op
    def multiply(a, b):
        return a * b, (lambda dy: dy * b, lambda dy: dy * a)

The body sees only what is inside the tensors, so a closure cannot hold a Tensor. Because it is
ordinary array mathematics it also runs on tensors of the level below, and then its VJP is recorded
in turn: that is all that higher derivatives need (`func.py`). The operations are in `ops/`; the
methods that bind them to Tensor, under PyTorch's names, in `methods.py`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from . import autograd
from .autograd import Leaf, Node, Output, Shape, state
from .backend import (
    Array,
    DType,
    array_module,
    bfloat16,
    default_dtype,
    device,
    device_of,
    is_array,
    is_floating,
    module_of_type,
    register_array_type,
    silent,
)


class Tensor:
    """An array with a memory of how it was made.

    `Tensor(data)` makes a float32 constant, as in PyTorch; `tt.tensor(data)` keeps the data's own
    type. Methods and semantics are PyTorch's; `value` is the array inside.
    """

    __slots__ = ("__weakref__", "node", "value")

    # NumPy arrays and scalars must leave `array + tensor` to Tensor's own operators.
    __array_ufunc__ = None
    __array_priority__ = 1000

    value: Array
    node: Node | None

    def __init_subclass__(cls) -> None:
        register_array_type(cls, module_of_type(Tensor))

    @silent
    def __init__(self, data: Any = (), *, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            self.value = data.detach().value
        elif is_array(data):
            self.value = data if not isinstance(data, np.generic) else np.asarray(data)
        else:
            self.value = np.array(data, default_dtype)
        self.node = None
        if requires_grad:
            self.requires_grad_(requires_grad)

    if TYPE_CHECKING:
        # Operations become methods in methods.py, from a table; mypy is told that they exist.
        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...

    # --- what is inside ---

    @property
    def shape(self) -> Shape:
        return self.value.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> DType:
        return self.value.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        return self.value.ndim  # type: ignore[no-any-return]

    @property
    def array(self) -> Array:
        """The array at the bottom of the stack of levels."""
        value = self.value
        while isinstance(value, Tensor):
            value = value.value
        return value

    @property
    def device(self) -> device:
        return device_of(self.array)

    @property
    def data(self) -> Tensor:
        """The same numbers in the same memory, without history."""
        return self.detach()

    @data.setter
    def data(self, new: Any) -> None:
        value = new.detach().value if isinstance(new, Tensor) else new
        if not is_array(value):
            raise TypeError(f"data: expected a tensor or an array, got {type(new).__name__}")
        if isinstance(self.node, Leaf):
            self.node.shape, self.node.dtype = value.shape, value.dtype
        elif self.node is not None:
            raise RuntimeError(
                "data: this tensor was computed from others; assign to a leaf, or to the variable "
                "itself"
            )
        self.value = value

    def detach(self) -> Tensor:
        """A tensor that shares this one's memory and takes no part in any derivative."""
        return as_tensor(self.array)

    # --- gradients ---

    @property
    def requires_grad(self) -> bool:
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self.requires_grad_(wanted)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Start (or stop) recording what is computed from this tensor."""
        if not isinstance(requires_grad, bool):
            raise TypeError(f"requires_grad: True or False, but it is {requires_grad!r}")
        if not requires_grad:
            if self.node is not None and not isinstance(self.node, Leaf):
                raise RuntimeError(
                    "requires_grad_: only leaf tensors can stop requiring a gradient; use "
                    "x.detach()"
                )
            self.node = None
        elif self.node is None:
            if not is_floating(self.dtype):
                raise TypeError(
                    f"requires_grad: a {self.dtype} tensor cannot have a gradient; only "
                    "floating-point tensors can (x.float() makes one)"
                )
            self.node = Leaf(self.shape, self.dtype)
        return self

    @property
    def is_leaf(self) -> bool:
        return self.node is None or isinstance(self.node, Leaf)

    @property
    def grad_fn(self) -> Node | None:
        """The node that made this tensor; None for a leaf."""
        return None if isinstance(self.node, Leaf) else self.node

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward passes have added up, or None."""
        if isinstance(self.node, Leaf):
            return self.node.grad  # type: ignore[no-any-return]
        return (
            None if self.node is None or self.node.watcher is None else self.node.watcher.gradient
        )

    @grad.setter
    def grad(self, gradient: Tensor | None) -> None:
        if self.node is None:
            if gradient is not None:
                raise RuntimeError(
                    "grad: this tensor does not require a gradient; call requires_grad_() first"
                )
        elif not isinstance(self.node, Leaf):
            raise RuntimeError("grad: only a leaf's gradient can be assigned")
        elif gradient is None:
            self.node.grad = None
            # Whoever still holds the old gradient keeps its numbers; the optimizer finds out.
            self.node.buffer = None
        elif not isinstance(gradient, Tensor):
            raise TypeError(
                f"grad: expected a tensor or None, got a {type(gradient).__name__}; "
                "tt.tensor(...) makes one"
            )
        else:
            if gradient.shape != self.shape or gradient.dtype != self.dtype:
                raise ValueError(
                    f"grad: expected shape {self.shape} and dtype {self.dtype}, got "
                    f"{gradient.shape} and {gradient.dtype}"
                )
            self.node.grad = gradient.detach()

    def retain_grad(self) -> None:
        """Keep this tensor's gradient in `.grad` after a backward pass, though it is not a leaf."""
        if self.node is None:
            raise RuntimeError("retain_grad: this tensor does not require a gradient")
        if not isinstance(self.node, Leaf):
            self._watcher().retains = True

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `hook(gradient)` whenever this tensor's gradient is computed; it may replace it."""
        if self.node is None:
            raise RuntimeError("register_hook: this tensor does not require a gradient")
        if not callable(hook):
            raise TypeError(f"register_hook: a hook is a function of the gradient, not {hook!r}")
        hooks = self._watcher().hooks
        hooks.append(hook)
        return RemovableHandle(hooks, hook)

    def _watcher(self) -> autograd.Watcher:
        assert self.node is not None
        if self.node.watcher is None:
            self.node.watcher = autograd.Watcher()
        return self.node.watcher

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call `hook(tensor)` as soon as a backward pass has added this leaf's last gradient."""
        if not isinstance(self.node, Leaf):
            raise RuntimeError(
                "register_post_accumulate_grad_hook: only a leaf that requires a gradient has one"
            )
        self.node.ready_hooks = hooks = self.node.ready_hooks or []
        call = _WeakCall(hook, self)
        hooks.append(call)
        return RemovableHandle(hooks, call)

    def backward(
        self, gradient: Tensor | None = None, retain_graph: bool = False, create_graph: bool = False
    ) -> None:
        """Add this tensor's gradient with respect to every leaf behind it to the leaf's `.grad`.

        `gradient` is the gradient of some scalar with respect to this tensor (same shape); it may
        be left out when this tensor has one element. Raises RuntimeError on a graph that an earlier
        backward freed, and on a tensor with nothing behind it that requires a gradient.
        """
        if create_graph:
            raise RuntimeError(CREATE_GRAPH)
        if self.node is None:
            raise RuntimeError(
                "backward: nothing to differentiate: no tensor with requires_grad=True led to "
                "this one (or it was computed under no_grad)"
            )
        dy = cotangent("backward", self, gradient)
        if gradient is not None and is_array(dy):
            dy = dy.copy()  # it may be the .grad of a leaf, which the walk adds to
        autograd.backward(self.node, dy, retain_graph=retain_graph)

    def __reduce__(self) -> Any:
        # copy.copy and copy.deepcopy come through here; a leaf stays a leaf, its gradient stays
        # behind.
        if not self.is_leaf:
            raise RuntimeError("copy: only leaf tensors can be copied; use x.detach() or x.clone()")
        return _rebuild, (type(self), self.array, self.requires_grad)


CREATE_GRAPH = (
    "create_graph=True is not offered: the graph holds arrays, not tensors. Write the expression "
    "as a function and nest transforms instead: tt.func.grad(tt.func.grad(f)), tt.func.hvp, "
    "tt.func.hessian"
)


def _rebuild(kind: type[Tensor], array: Array, requires_grad: bool) -> Tensor:
    tensor = kind.__new__(kind)
    tensor.value, tensor.node = array.copy(), None
    return tensor.requires_grad_() if requires_grad else tensor


class _WeakCall:
    """Calls `hook(tensor)` while the tensor lives; the graph must not keep it alive."""

    def __init__(self, hook: Callable[[Tensor], None], tensor: Tensor) -> None:
        import weakref

        self.hook, self.tensor = hook, weakref.ref(tensor)

    def __call__(self) -> None:
        tensor = self.tensor()
        if tensor is not None:
            self.hook(tensor)


class RemovableHandle:
    """What `register_hook` returns; `remove()` takes the hook away again."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


def as_tensor(value: Array, node: Node | None = None) -> Tensor:
    """A Tensor around `value` without a copy; a constant Tensor is returned as it is."""
    if node is None and isinstance(value, Tensor):
        return value
    if type(value) is not np.ndarray and isinstance(value, np.generic | bool | int | float):
        value = np.asarray(value)
    tensor = _new(Tensor)
    tensor.value = value
    tensor.node = node
    return tensor


_new = Tensor.__new__
autograd.as_tensor = as_tensor


def cotangent(caller: str, output: Tensor, gradient: Tensor | None) -> Array:
    if gradient is None:
        if output.array.size != 1:
            raise RuntimeError(
                f"{caller}: the tensor has shape {output.shape}; without a gradient argument only "
                "a tensor of one element can be differentiated (take a .sum() or .mean(), or pass "
                "gradient= of that shape)"
            )
        return array_module(output.value).ones_like(output.value)
    if not is_array(gradient):
        raise TypeError(
            f"{caller}: the gradient is a tensor, not a {type(gradient).__name__}; "
            "tt.tensor(...) makes one"
        )
    if tuple(gradient.shape) != tuple(output.shape):
        raise ValueError(
            f"{caller}: the gradient has shape {tuple(gradient.shape)} but the tensor has shape "
            f"{output.shape}"
        )
    value = gradient.value if isinstance(gradient, Tensor) and gradient.node is None else gradient
    return value if value.dtype == output.dtype else value.astype(output.dtype)


def check_tensors(name: str, **inputs: Any) -> None:
    """Raise TypeError for the first of the inputs that is neither a tensor nor an array."""
    for what, x in inputs.items():
        if not is_array(x):
            kind = type(x).__name__
            raise TypeError(
                f"{name}: the {what} is a tensor, not a {kind}; tt.tensor(...) makes one"
            )


def stop_gradient(x: Any) -> Any:
    """`x` as a constant: arrays as they are, tensors detached from every level."""
    return x.detach() if isinstance(x, Tensor) else x


# --- operations ----------------------------------------------------------------------------------

OPERATIONS: dict[str, Operation] = {}  # every operation by name: the tests' table must cover it
_RENAMED = {"dim": "axis", "keepdim": "keepdims"}


class Operation:
    """A differentiable function, made by `@op` from a body that returns `(output, vjp)`.

    Parameters of the body without a default (and `*variadic` ones) are its inputs: tensors, arrays,
    Python scalars or None. The others are options and are passed on untouched.

    - `reference`: the body itself, on arrays.
    - `register(array_type)`: decorator that adds a fast implementation with the same contract for
      that type of array. It may return NotImplemented to decline; the reference runs then. Where
      inputs are promoted, bfloat16 reaches it as float32, unless it asks for `bfloat16=True`.
    """

    def __init__(
        self, body: Callable[..., Any], promote: bool | tuple[str, ...], floating: bool
    ) -> None:
        self.reference = body
        self.promote = bool(promote) or floating
        self.floating = floating
        self.implementations: dict[type, Callable[..., Any]] = {}
        self._takes_bfloat16: set[type] = set()
        # Inside `autocast` (amp.py): inputs of the first dtype are cast to the second.
        self.casts: tuple[DType, DType] | None = None
        parameters = inspect.signature(body).parameters.values()
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.inputs = tuple(
            p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
        )
        self._count = len(self.inputs)
        # Which inputs take part in promotion; None for all.
        self._promoted = (
            [self.inputs.index(name) for name in promote] if isinstance(promote, tuple) else None
        )
        functools.update_wrapper(self, body)
        self.__name__: str = body.__name__

    def register(
        self, kind: type, *, bfloat16: bool = False
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Use the decorated function for arrays of type `kind`."""

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            self.implementations[kind] = function
            if bfloat16:
                self._takes_bfloat16.add(kind)
            return function

        return add

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<operation {self.__name__}>"

    def __call__(self, *args: Any, **options: Any) -> Any:
        if options:
            args, options = self._arrange(args, options)
        inputs = args
        if not self.variadic and len(args) != self._count:
            inputs = args[: self._count]
            if len(inputs) < self._count:
                missing = ", ".join(self.inputs[len(inputs) :])
                raise TypeError(f"{self.__name__}: missing {missing}")

        # What the body sees of each input, and the level to record: the inputs' highest.
        level = 0
        found = False
        values: list[Any] = []
        parents: list[Node | None] = []
        for x in inputs:
            if isinstance(x, Tensor):
                found = True
                values.append(x.value)
                node = x.node
                parents.append(node)
                if node is not None and node.level > level:
                    level = node.level
            else:
                values.append(x)
                parents.append(None)
        if not found:
            self._refuse_strangers(inputs)
            return self.compute(args, options)[0]
        if level:
            if not state.grad_enabled:
                values, level = _open(inputs, 0), 0
            elif level > 1:
                values = _open(inputs, level)
                parents = [
                    node if node is not None and node.level == level else None for node in parents
                ]
        if self.casts is not None and state.autocast:
            given, wanted = self.casts
            values = [v.astype(wanted) if _dtype(v) == given else v for v in values]
        narrow = False
        if self.promote:
            chosen = values if self._promoted is None else [values[i] for i in self._promoted]
            if not _usual(chosen):
                self._refuse_strangers(chosen)
                chosen = promote_types(chosen, self.floating)
                narrow = any(_dtype(v) == bfloat16 for v in chosen)
                if self._promoted is None:
                    values = chosen
                else:
                    for i, value in zip(self._promoted, chosen, strict=True):
                        values[i] = value
        if inputs is not args:
            values += args[self._count :]

        try:
            y, vjp = (self._run_narrow if narrow else self._run)(values, options, level)
        except (ValueError, TypeError, AttributeError) as error:
            self._explain(values, options, error)
            raise

        if type(y) is not np.ndarray:
            if type(y) is tuple:
                return self._several(y, vjp, parents, level)
            if isinstance(y, Tensor) and (not level or vjp is None):
                return y
            y = np.asarray(y) if isinstance(y, np.generic) else y
        tensor = _new(Tensor)
        tensor.value = y
        if not level or vjp is None:
            tensor.node = None
            return tensor
        if type(vjp) is tuple:
            vjp = _pruned(self.__name__, vjp, parents)
        tensor.node = Node(self.__name__, vjp, tuple(parents), y.shape, y.dtype, level)
        return tensor

    def _several(
        self, ys: tuple[Array, ...], vjp: Any, parents: list[Node | None], level: int
    ) -> tuple[Tensor, ...]:
        """The outputs as tensors, each with a node of its own in front of the operation's."""
        if not level or vjp is None:
            return tuple([as_tensor(y) for y in ys])
        if type(vjp) is tuple:
            vjp = _pruned(self.__name__, vjp, parents)
        y = ys[0]
        node = Node(self.__name__, _of_several(vjp), tuple(parents), y.shape, y.dtype, level)
        return tuple([as_tensor(y, Output(node, i, len(ys), y)) for i, y in enumerate(ys)])

    def compute(self, values: Sequence[Any], options: dict[str, Any]) -> tuple[Any, Any]:
        """`(output, vjp)` on arrays: by what is registered for their type, or the reference."""
        try:
            return self._run(values, options, 0)
        except (ValueError, TypeError, AttributeError) as error:
            self._explain(values, options, error)
            raise

    def _explain(self, values: Sequence[Any], options: dict[str, Any], error: Exception) -> None:
        """Raise a sentence in place of an error whose cause is plain, or which names no operation
        where there were options.
        """
        message = str(error)
        self._refuse_strangers(values, message)
        explain_mismatch(self.__name__, values, error)
        given = [] if self.variadic else [repr(value)[:40] for value in values[self._count :]]
        given += [f"{name}={value!r}"[:40] for name, value in options.items()]
        if given and not re.match(r"[\w.\[\]]+: ", message):
            kinds = (kind for kind in (IndexError, ValueError) if isinstance(error, kind))
            raise next(kinds, TypeError)(
                f"{self.__name__}: {message} (given {', '.join(given)})"
            ) from None

    def _refuse_strangers(self, values: Sequence[Any], complaint: str = "") -> None:
        """Raise TypeError for an input that is no tensor, array, number or None.

        Also for one that is a number or None, if a body complained of just that type.
        """
        for x in values[self._count :] if self.variadic else values[: self._count]:
            if x is None:
                refused = "NoneType" in complaint
            elif isinstance(x, bool | int | float):
                refused = f"'{type(x).__name__}' object has no" in complaint
            else:
                refused = not is_array(x)
            if refused:
                given = "None" if x is None else f"a {type(x).__name__}"
                raise TypeError(
                    f"{self.__name__}: expected tensors, got {given}; tt.tensor(...) makes one"
                ) from None

    def _run(self, values: Sequence[Any], options: dict[str, Any], level: int) -> tuple[Any, Any]:
        if self.implementations and not state.reference_only:
            for value in values:
                fast = self.implementations.get(type(value))
                if fast is not None:
                    state.recording = level > 0
                    result = fast(*values, **options)
                    if result is NotImplemented:
                        break
                    if level > 1 and result[1] is not None:
                        return result[0], self._either(result[1], values, options)
                    return result  # type: ignore[no-any-return]
        return self.reference(*values, **options)  # type: ignore[no-any-return]

    def _run_narrow(
        self, values: Sequence[Any], options: dict[str, Any], level: int
    ) -> tuple[Any, Any]:
        """With bfloat16 among the values: as they are, if there is an implementation for that.

        Otherwise in float32, rounded once at the end. NumPy's bfloat16 does not compute with Python
        numbers, and a sum of 300 of its ones is 256.
        """
        if level < 2 and not state.reference_only:
            for value in values:
                if type(value) in self._takes_bfloat16:
                    state.recording = level > 0
                    result = self.implementations[type(value)](*values, **options)
                    if result is not NotImplemented:
                        return result  # type: ignore[no-any-return]
                    break
        y, vjp = self._run([_wide(value) for value in values], options, level)
        return (tuple(map(_narrow, y)) if type(y) is tuple else _narrow(y)), vjp

    def _either(
        self, fast: Any, values: Sequence[Any], options: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """A fast VJP for gradients that are arrays, and the reference's for those that are Tensors.

        Inside a transform the gradient may itself be under differentiation, which only references
        can take.
        """

        def vjp(*dy: Any) -> Any:
            stacked = any(isinstance(d, Tensor) for d in dy)
            rule = self.reference(*values, **options)[1] if stacked else fast
            return tuple([f and f(*dy) for f in rule]) if isinstance(rule, tuple) else rule(*dy)

        return vjp

    def _arrange(
        self, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """PyTorch's `dim`/`keepdim` become `axis`/`keepdims`; named inputs move to their places."""
        for torch_name, name in _RENAMED.items():
            if torch_name in options:
                options[name] = options.pop(torch_name)
        if not self.variadic:
            rest = list(args)
            for name in self.inputs[len(args) :]:
                if name in options:
                    rest.append(options.pop(name))
                else:
                    break
            args = tuple(rest)
        return args, options


def _pruned(name: str, vjp: tuple[Any, ...], parents: list[Node | None]) -> tuple[Any, ...]:
    """`vjp` without the functions of inputs that need no gradient, and what only these kept."""
    if len(vjp) == len(parents) == 2:  # most operations have two inputs, and this runs in every one
        if parents[0] is None:
            return None, vjp[1]
        return vjp if parents[1] is not None else (vjp[0], None)
    if len(vjp) != len(parents):
        raise ValueError(f"{name}: its VJP has {len(vjp)} functions for {len(parents)} inputs")
    return tuple([None if parent is None else vjp[i] for i, parent in enumerate(parents)])


def _of_several(vjp: Any) -> Callable[[tuple[Any, ...]], Any]:
    """The VJP of an operation with several outputs as the walk calls it: with one tuple."""
    if type(vjp) is tuple:
        return lambda dys: tuple([f and f(*dys) for f in vjp])
    return lambda dys: vjp(*dys)


@overload
def op(body: Callable[..., Any]) -> Operation: ...
@overload
def op(
    *, promote: bool | tuple[str, ...] = ..., floating: bool = ...
) -> Callable[[Callable[..., Any]], Operation]: ...


def op(
    body: Callable[..., Any] | None = None,
    *,
    promote: bool | tuple[str, ...] = False,
    floating: bool = False,
) -> Any:
    """Make a function on arrays that returns `(output, vjp)` a differentiable operation on tensors.

    `vjp` is a tuple with one function per input (None for an input that has no gradient), or one
    function that returns a tuple, or None when the output carries no gradient. With `promote=True`
    the inputs (or, as a tuple of names, those inputs) are first brought to a common dtype by
    PyTorch's rules; with `floating=True` integers become float32 too. Broadcasting needs no
    thought: each gradient is summed back to its input's shape.

    The output may be a tuple of arrays. The functions of `vjp` are then called with the gradient of
    each, `lambda dy, dz: ...`, and None stands for that of an output which led nowhere.
    """
    if body is None:
        return functools.partial(_define, promote=promote, floating=floating)
    return _define(body, promote, floating)


def _define(body: Callable[..., Any], promote: bool | tuple[str, ...], floating: bool) -> Operation:
    operation = Operation(body, promote, floating)
    OPERATIONS[operation.__name__] = operation
    return operation


@contextmanager
def reference_ops() -> Iterator[None]:
    """Inside the `with` block every operation runs its readable reference body."""
    previous = state.reference_only
    state.reference_only = True
    try:
        yield
    finally:
        state.reference_only = previous


def _open(inputs: Sequence[Any], level: int) -> list[Any]:
    """What a body sees when `level` is recorded: values of that level, constants as arrays.

    If a Tensor of a lower level remains among them, arrays are wrapped too, so that a body never
    mixes both.
    """
    values = []
    mixed = False
    for x in inputs:
        if isinstance(x, Tensor):
            if level == 0:
                x = x.array
            elif x.node is None or x.node.level == level:
                x = x.value
            if isinstance(x, Tensor):
                mixed = True
        values.append(x)
    if mixed:
        values = [as_tensor(v) if is_array(v) else v for v in values]
    return values


# --- dtypes --------------------------------------------------------------------------------------


def _category(dtype: DType) -> int:
    if dtype == bfloat16:
        return 2
    return {"b": 0, "i": 1, "u": 1, "f": 2}.get(dtype.kind, 3)


_SCALAR_CATEGORY = {bool: 0, int: 1, float: 2}


def _usual(values: list[Any]) -> bool:
    """Whether there is nothing to promote: one floating array, two of a dtype, or one and a number.

    Most calls are of this kind, and this is asked in each.
    """
    a = values[0]
    if len(values) == 1:
        return type(a) is np.ndarray and a.dtype.kind == "f"
    if len(values) != 2:
        return False
    b = values[1]
    if type(a) is not np.ndarray:
        a, b = b, a
    if type(a) is not np.ndarray or a.dtype.kind != "f":
        return False
    kind = type(b)
    return a.dtype is b.dtype if kind is np.ndarray else kind is float or kind is int


def _dtype(value: Any) -> DType | None:
    return getattr(value, "dtype", None)


def _wide(value: Any) -> Any:
    return value.astype(np.float32) if _dtype(value) == bfloat16 else value


def _narrow(value: Any) -> Any:
    return value.astype(bfloat16) if value.dtype == np.float32 else value


def promote_types(values: list[Any], floating: bool = False) -> list[Any]:
    """Bring `values` to one dtype by PyTorch's rules.

    A tensor with axes outranks one without, and that a Python scalar, unless the lower one is of a
    higher category (bool < integer < floating). A floating scalar turns an integer tensor into
    float32.
    """
    if not values:
        return values
    first: DType | None = None
    agree = True
    highest_scalar = -1
    for v in values:
        if isinstance(v, np.generic):
            v = v.item()
        dtype = getattr(v, "dtype", None)
        if dtype is None:
            highest_scalar = max(highest_scalar, _SCALAR_CATEGORY.get(type(v), -1))
        elif first is None:
            first = dtype
        elif dtype != first:
            agree = False
    if first is None:
        return values
    if agree and (first.kind == "f" or (not floating and highest_scalar <= _category(first))):
        if highest_scalar >= 0:
            return [v.item() if isinstance(v, np.generic) else v for v in values]
        return values
    dtype = result_type(*(v.item() if isinstance(v, np.generic) else v for v in values))
    if floating and not is_floating(dtype):
        dtype = default_dtype
    return [_cast(v, dtype) for v in values]


def _cast(value: Any, dtype: DType) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not is_array(value) or value.dtype == dtype:
        return value
    return value.astype(dtype)


def result_type(*values: Any) -> DType:
    """The dtype that PyTorch's promotion gives to these tensors, arrays and Python scalars."""
    ranked: list[list[DType]] = [[], [], []]  # with axes, without axes, Python scalars
    for v in values:
        if isinstance(v, bool | int | float) or v is None:
            if v is not None:
                kinds: dict[type, Any] = {bool: np.bool_, int: np.int64}
                ranked[2].append(np.dtype(kinds.get(type(v), default_dtype)))
        elif isinstance(v, np.dtype):
            ranked[0].append(v)
        else:
            ranked[0 if v.ndim else 1].append(v.dtype)
    best: DType | None = None
    for dtypes in ranked:
        if dtypes:
            joined = functools.reduce(_join, dtypes)
            if best is None or _category(joined) > _category(best):
                best = joined
    if best is None:
        raise TypeError("result_type: no tensor, array or Python number among the arguments")
    return best


def _join(a: DType, b: DType) -> DType:
    if a == b:
        return a
    higher, lower = (a, b) if _category(a) >= _category(b) else (b, a)
    if _category(higher) > _category(lower):
        return higher
    if bfloat16 in (a, b) and np.float16 in (a, b):  # neither holds the other
        return default_dtype
    return np.promote_types(a, b)


# --- errors --------------------------------------------------------------------------------------


def explain_mismatch(name: str, values: Sequence[Any], error: Exception) -> None:
    """Raise a sentence in place of an array module's own message, where the cause is plain."""
    arrays = [v for v in values if is_array(v)]
    kinds = {type(v) for v in arrays if not isinstance(v, np.generic)}
    if len(kinds) > 1 and Tensor not in kinds:
        places = " and ".join(sorted({_place(v) for v in arrays}))
        raise RuntimeError(
            f"{name}: tensors on {places} cannot be mixed; move them with .to(device)"
        ) from None
    if isinstance(error, ValueError) and "could not be broadcast" in str(error) and len(arrays) > 1:
        shapes = " and ".join(str(tuple(v.shape)) for v in arrays)
        raise ValueError(f"{name}: shapes {shapes} do not broadcast together") from None


def _place(array: Array) -> str:
    try:
        return str(device_of(array))
    except AttributeError:
        return type(array).__module__


def _register_namespace(namespace: Any) -> None:
    """Called by `ops`: the functions that compute on Tensors."""
    register_array_type(Tensor, namespace)
