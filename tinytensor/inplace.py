"""Writing into a tensor's memory: `x.add_(y)`, `x += y`, `x[i] = y`.

A gradient may need the numbers that a write destroys, so there are three cases:

- A tensor that no gradient is recorded for (or any, under `no_grad`) is really written, and
  `note_write` tells the graph: a later backward pass that needs the old numbers raises.
- `x += y`, where the result has a gradient, makes x the sum, in new memory: nothing is
  overwritten, and the gradient is always right. (Views taken of x before do not see the change.)
- Everything else raises RuntimeError, which says what to write instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import functions, ops, random
from .autograd import Leaf, note_write, state
from .backend import array_module, device_of, is_floating, silent, to_device
from .ops.indexing import plain_index
from .tensor import Tensor, _category

# --- the rules -----------------------------------------------------------------------------------


def check_writable(name: str, target: Tensor, instead: str, values: tuple[Any, ...] = ()) -> None:
    """Raise if a write to `target`, or of `values`, would lose a gradient."""
    if not state.grad_enabled:
        return
    if isinstance(target.node, Leaf):
        if target.node.level > 1:
            raise RuntimeError(
                f"{name}: this is an argument of the function being differentiated, and is not "
                f"overwritten; write {instead}"
            )
        raise RuntimeError(
            f"{name}: this tensor is a leaf that requires a gradient; change it inside "
            "`with tt.no_grad():`"
        )
    if target.node is not None:
        raise RuntimeError(
            f"{name}: this is the result of {target.node.operation}, recorded for a gradient, "
            f"and is not overwritten; write {instead}"
        )
    for value in values:
        if isinstance(value, Tensor) and value.node is not None:
            raise RuntimeError(
                f"{name}: the value comes from {value.node.operation}, recorded for a gradient "
                f"that this would lose; write {instead}, or use value.detach()"
            )


def check_fits(name: str, target: Tensor, result: Any) -> None:
    """Raise if `result` does not have the target's shape, or has a dtype of a higher category."""
    if tuple(result.shape) != target.shape:
        raise ValueError(
            f"{name}: the result has shape {tuple(result.shape)}, which does not fit into a tensor "
            f"of shape {target.shape}"
        )
    if _category(result.dtype) > _category(target.dtype):
        raise TypeError(
            f"{name}: the result is {result.dtype}, which a tensor of {target.dtype} cannot hold; "
            "convert it first, as in x = x.float()"
        )


def store(name: str, target: Tensor, result: Any) -> Tensor:
    """Write `result` into the target's memory; returns the target."""
    check_fits(name, target, result)
    return write(name, target, result)


@silent
def write(name: str, target: Tensor, result: Any, index: Any = ...) -> Tensor:
    """target[index] = result, whatever its dtype."""
    array = target.array
    result = result.array if isinstance(result, Tensor) else result
    if (
        hasattr(result, "dtype")
        and not isinstance(result, np.generic)
        and type(result) is not type(array)
    ):
        result = to_device(result, device_of(array))
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise RuntimeError(
            f"{name}: this tensor is read-only, or a view whose elements share memory (expand); "
            "write into a clone() of it"
        )
    array[index] = result
    note_write(array)
    return target


# --- methods -------------------------------------------------------------------------------------


def in_place(name: str, function: Callable[..., Any], instead: str) -> Callable[..., Tensor]:
    """The method `name`, which stores what `function(x, …)` returns in x."""

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_writable(name, self, instead, (*args, *kwargs.values()))
        return store(name, self, function(self, *args, **kwargs))

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"`{instead}`, written into this tensor's memory."
    return method


def augmented(
    name: str, symbol: str, function: Any, is_operand: Callable[[Any], bool]
) -> Callable[..., Any]:
    """The method behind `x += y` and its kin."""

    def method(self: Tensor, other: Any) -> Any:
        if not is_operand(other):
            return NotImplemented
        if state.grad_enabled:
            if isinstance(self.node, Leaf):
                check_writable(f"x {symbol} y", self, f"x = x {symbol[:-1]} y")
            if self.node is not None or (isinstance(other, Tensor) and other.node is not None):
                # Both operands may be needed by a gradient, so neither is overwritten: this handle
                # becomes the result, which is what x = x + y would have made of it.
                result = function(self, other)
                check_fits(f"x {symbol} y", self, result)
                self.value, self.node = result.value, result.node
                return self
        return store(f"x {symbol} y", self, function(self, other))

    method.__name__ = method.__qualname__ = name
    return method


def setitem(self: Tensor, index: Any, value: Any) -> None:
    """x[index] = value."""
    check_writable(
        "x[index] = value", self, "x = tt.where(…), x.masked_fill(…), tt.stack or tt.cat", (value,)
    )
    try:
        write("x[index] = value", self, value, plain_index(index, self.array))
    except (ValueError, IndexError) as error:
        raise type(error)(f"x[index] = value: {error} (the tensor is {self.shape})") from None


def copy_(self: Tensor, src: Any, non_blocking: bool = False) -> Tensor:
    """Copy the elements of `src`, broadcast and cast, into this tensor's memory."""
    check_writable("copy_", self, "x = src.clone()", (src,))
    source = src.array if isinstance(src, Tensor) else np.asarray(src)
    try:
        shape = np.broadcast_shapes(source.shape, self.shape)
    except ValueError:
        shape = None
    if shape != self.shape:
        raise ValueError(
            f"copy_: a tensor of shape {tuple(source.shape)} does not fit into {self.shape}"
        )
    return write("copy_", self, source)


def fill_(self: Tensor, value: Any) -> Tensor:
    """Set every element to a number."""
    check_writable("fill_", self, "x = tt.full_like(x, value)", (value,))
    value = value.item() if isinstance(value, Tensor) else value
    return write("fill_", self, value)


def zero_(self: Tensor) -> Tensor:
    """Set every element to zero."""
    check_writable("zero_", self, "x = tt.zeros_like(x)")
    return write("zero_", self, 0)


def _random(name: str, self: Tensor, instead: str, draw: Callable[[Any], Any]) -> Tensor:
    check_writable(name, self, instead)
    if not is_floating(self.dtype):
        raise TypeError(f"{name}: a tensor of {self.dtype} cannot hold random real numbers")
    return write(name, self, draw(array_module(self.array)))


def normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with normal random numbers."""
    if std < 0:
        raise ValueError(f"normal_: std must not be negative, got {std}")
    return _random(
        "normal_",
        self,
        "x = mean + std * tt.randn_like(x)",
        lambda xp: random.normal(self.shape, mean, std, self.dtype, generator, xp),
    )


def uniform_(
    self: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Any = None, **names: Any
) -> Tensor:
    """Fill with random numbers uniform on [from, to): `uniform_(-1, 1)`."""
    low = names.pop("from", names.pop("a", from_))
    high = names.pop("b", to)
    if names:
        raise TypeError(f"uniform_: unknown argument {next(iter(names))!r}")
    if high < low:
        raise ValueError(f"uniform_: the range from {low} to {high} is empty")
    return _random(
        "uniform_",
        self,
        "x = low + (high - low) * tt.rand_like(x)",
        lambda xp: random.uniform(self.shape, low, high, self.dtype, generator, xp),
    )


def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    """Fill with random numbers of density λ exp(-λx): -log(1 - u) / λ for u uniform on [0, 1)."""
    if lambd <= 0:
        raise ValueError(f"exponential_: the rate must be positive, got {lambd}")
    return _random(
        "exponential_",
        self,
        "x = -tt.log1p(-tt.rand_like(x)) / rate",
        lambda xp: (
            -xp.log1p(-random.uniform(self.shape, 0.0, 1.0, self.dtype, generator, xp)) / lambd
        ),
    )


def bernoulli_(self: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    """Fill with ones, each with probability p, and zeros."""
    if not 0 <= p <= 1:
        raise ValueError(f"bernoulli_: the probability must be in [0, 1], got {p}")
    check_writable("bernoulli_", self, "x = tt.bernoulli(tt.full_like(x, p))")
    xp = array_module(self.array)
    return write(
        "bernoulli_",
        self,
        random.uniform(self.shape, 0.0, 1.0, np.dtype(np.float64), generator, xp) < p,
    )


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value · tensor1 · tensor2."""
    return input + value * (tensor1 * tensor2)


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    """input + value · tensor1 / tensor2."""
    return input + value * (tensor1 / tensor2)


# name, the function whose result is stored, what to write where a gradient forbids the write
_STORED: tuple[tuple[str, Callable[..., Any], str], ...] = (
    ("add_", functions.add, "x = x + y"),
    ("sub_", functions.sub, "x = x - y"),
    ("mul_", functions.mul, "x = x * y"),
    ("div_", functions.div, "x = x / y"),
    ("pow_", functions.pow, "x = x ** y"),
    ("neg_", functions.neg, "x = -x"),
    ("abs_", functions.abs, "x = x.abs()"),
    ("exp_", functions.exp, "x = x.exp()"),
    ("log_", functions.log, "x = x.log()"),
    ("sqrt_", functions.sqrt, "x = x.sqrt()"),
    ("rsqrt_", functions.rsqrt, "x = x.rsqrt()"),
    ("reciprocal_", functions.reciprocal, "x = 1 / x"),
    ("tanh_", functions.tanh, "x = x.tanh()"),
    ("sigmoid_", functions.sigmoid, "x = x.sigmoid()"),
    ("relu_", functions.relu, "x = x.relu()"),
    ("floor_", functions.floor, "x = x.floor()"),
    ("ceil_", functions.ceil, "x = x.ceil()"),
    ("round_", functions.round, "x = x.round()"),
    ("clamp_", functions.clamp, "x = x.clamp(low, high)"),
    ("clip_", functions.clamp, "x = x.clamp(low, high)"),
    ("lerp_", functions.lerp, "x = x.lerp(end, weight)"),
    ("addcmul_", addcmul, "x = x + value * (a * b)"),
    ("addcdiv_", addcdiv, "x = x + value * (a / b)"),
    ("masked_fill_", ops.masked_fill, "x = x.masked_fill(mask, value)"),
    ("tril_", functions.tril, "x = x.tril()"),
    ("triu_", functions.triu, "x = x.triu()"),
    ("scatter_", functions.scatter, "x = x.scatter(dim, index, src)"),
    ("scatter_add_", functions.scatter_add, "x = x.scatter_add(dim, index, src)"),
    ("index_fill_", functions.index_fill, "x = x.index_fill(dim, index, value)"),
    ("index_add_", functions.index_add, "x = x.index_add(dim, index, source)"),
    ("logical_not_", functions.logical_not, "x = ~x"),
)

METHODS: dict[str, Callable[..., Any]] = {
    name: in_place(name, function, instead) for name, function, instead in _STORED
} | {
    "copy_": copy_,
    "fill_": fill_,
    "zero_": zero_,
    "normal_": normal_,
    "uniform_": uniform_,
    "exponential_": exponential_,
    "bernoulli_": bernoulli_,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "__setitem__": setitem,
}
