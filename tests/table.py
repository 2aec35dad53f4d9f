"""One table with cases for every operation of the engine.

A case is a function of tensors, what it is called with, and how its values can be had from NumPy.
`test_properties.py` differentiates each once and twice, in every layout and dtype, by fast paths
and references; `parity/` gives the same inputs to PyTorch. An operation without a case fails the
tests.

Shapes are small and awkward on purpose: 1s that broadcast, no two axes alike where they could be
confused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinytensor as tt
from tinytensor import ops, random
from tinytensor.random import Draw
from tinytensor.tensor import OPERATIONS, Operation
from tinytensor.testing.strategies import random_array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Given:
    """One input: numbers from `low` to `high`, none near `avoid`, differentiated if floating."""

    shape: Shape
    low: float = -2.0
    high: float = 2.0
    avoid: tuple[float, ...] = ()
    distinct: bool = False
    dtype: Any = np.float64
    value: Any = None  # instead of random numbers

    def array(self, seed: int, dtype: Any = np.float64) -> np.ndarray[Any, Any]:
        if self.value is not None:
            return np.array(self.value)
        kind = np.dtype(self.dtype).kind
        return random_array(
            seed,
            self.shape,
            dtype if kind == "f" else self.dtype,
            self.low,
            self.high,
            self.avoid,
            self.distinct,
        )


@dataclass(frozen=True)
class Case:
    """`function(*inputs)`, a case of the operation `name`."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Given | None, ...]
    label: str = ""
    expected: Callable[..., Any] | None = None  # the same with NumPy
    dtypes: tuple[Any, ...] = (np.float32, tt.bfloat16)
    # The factor by which the operation may magnify the rounding of its inputs.
    condition: float = 1.0
    result: Any = None  # the dtype of the output, where it is not that of the inputs

    @property
    def id(self) -> str:
        return f"{self.name}{' ' if self.label else ''}{self.label}"

    def arrays(self, dtype: Any = np.float64, seed: int = 0) -> list[np.ndarray[Any, Any] | None]:
        return [
            None if given is None else given.array(seed + 1000 * i, dtype)
            for i, given in enumerate(self.inputs)
        ]

    def tensors(self, dtype: Any = np.float64, seed: int = 0) -> list[Any]:
        return [tensor_of(x) for x in self.arrays(dtype, seed)]


def tensor_of(x: np.ndarray[Any, Any] | None) -> Any:
    """A tensor around an array, which takes part in derivatives if it can."""
    if x is None:
        return None
    tensor = tt.from_numpy(x) if isinstance(x, np.ndarray) else tt.tensor(x)
    return tensor.requires_grad_() if tensor.dtype.kind not in "biu" else tensor


# --- inputs --------------------------------------------------------------------------------------


def real(*shape: int, **options: Any) -> Given:
    return Given(shape, **options)


def positive(*shape: int) -> Given:
    return Given(shape, 0.25, 3.0)


def inside_one(*shape: int) -> Given:
    return Given(shape, -0.9, 0.9)


def above_one(*shape: int) -> Given:
    return Given(shape, 1.1, 3.0)


def smooth(*shape: int) -> Given:
    """Not near 0, where many functions have a kink or a pole."""
    return Given(shape, avoid=(0.0,))


def between_integers(*shape: int) -> Given:
    """Not near an integer or a half, where rounding jumps."""
    return Given(shape, avoid=tuple(k / 2 for k in range(-5, 6)))


def distinct(*shape: int) -> Given:
    return Given(shape, distinct=True)


def integers(high: int, *shape: int) -> Given:
    return Given(shape, 0, high - 1, dtype=np.int64)


def booleans(*shape: int) -> Given:
    return Given(shape, dtype=np.bool_)


def exactly(value: Any) -> Given:
    array = np.array(value)
    return Given(array.shape, dtype=array.dtype, value=array)


# --- the table -----------------------------------------------------------------------------------

CASES: list[Case] = []

# Operations that carry no gradient, and those whose gradient is zero wherever it exists.
NON_DIFFERENTIABLE = {
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
    "logical_and", "logical_or", "logical_xor", "logical_not",
    "bitwise_and", "bitwise_or", "bitwise_xor", "floor_divide",
    "isnan", "isinf", "isfinite", "argmax", "argmin", "argsort", "argtopk", "any", "all",
    "sample_logits",
}  # fmt: skip
ZERO_GRADIENT = {"sign", "floor", "ceil", "round"}
AT_LEAST_FLOAT32 = {"linear_cross_entropy"}  # a loss, whatever the inputs are


def fixed(function: Callable[..., Any], *last: Any, **options: Any) -> Callable[..., Any]:
    """`function` with its last arguments and options given, to be called with the first ones."""

    @functools.wraps(function)
    def called(*first: Any) -> Any:
        return function(*first, *last, **options)

    return called


def add(name: str, function: Callable[..., Any], *inputs: Given | None, **options: Any) -> None:
    CASES.append(Case(name, function, inputs, **options))


# Elementwise functions of one number: name -> (what they are given, NumPy's version).
erf = np.vectorize(math.erf, otypes=[float])
sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
UNARY: dict[str, tuple[Callable[..., Given], Callable[..., Any]]] = {
    "negative": (real, np.negative),
    "absolute": (smooth, np.abs),
    "sign": (smooth, np.sign),
    "reciprocal": (smooth, np.reciprocal),
    "square": (real, np.square),
    "exp": (real, np.exp),
    "expm1": (real, np.expm1),
    "log": (positive, np.log),
    "log1p": (positive, np.log1p),
    "sqrt": (positive, np.sqrt),
    "rsqrt": (positive, lambda x: 1 / np.sqrt(x)),
    "sin": (real, np.sin),
    "cos": (real, np.cos),
    "tanh": (real, np.tanh),
    "arcsin": (inside_one, np.arcsin),
    "arccos": (inside_one, np.arccos),
    "arctan": (real, np.arctan),
    "arcsinh": (real, np.arcsinh),
    "arccosh": (above_one, np.arccosh),
    "arctanh": (inside_one, np.arctanh),
    "sigmoid": (real, sigmoid),
    "erf": (real, erf),
    "relu": (smooth, lambda x: np.maximum(x, 0)),
    "silu": (real, lambda x: x * sigmoid(x)),
    "gelu": (real, lambda x: x * (1 + erf(x / math.sqrt(2))) / 2),
    "floor": (between_integers, np.floor),
    "ceil": (between_integers, np.ceil),
    "round": (between_integers, np.round),
    "copy": (real, np.copy),
}
for name, (domain, expected) in UNARY.items():
    add(name, getattr(ops, name), domain(3, 4), expected=expected, condition=4)


def gelu_tanh(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


add(
    "gelu",
    fixed(ops.gelu, approximate="tanh"),
    real(3, 4),
    label="tanh",
    expected=gelu_tanh,
    condition=8,
)

# Elementwise functions of two numbers: name -> (two inputs, NumPy's version).
BINARY: dict[str, tuple[Callable[..., Given], Callable[..., Given], Callable[..., Any]]] = {
    "add": (real, real, np.add),
    "subtract": (real, real, np.subtract),
    "multiply": (real, real, np.multiply),
    "divide": (real, smooth, np.divide),
    "power": (positive, real, np.power),
    "maximum": (real, real, np.maximum),
    "minimum": (real, real, np.minimum),
    "remainder": (real, positive, np.remainder),
    "arctan2": (real, smooth, np.arctan2),
    "hypot": (real, smooth, np.hypot),
}
BROADCAST: tuple[tuple[Shape, Shape], ...] = (((3, 4), (3, 4)), ((3, 1), (1, 4)), ((4,), (2, 1, 4)))
for name, (left, right, expected) in BINARY.items():
    for one, two in BROADCAST:
        add(
            name,
            getattr(ops, name),
            left(*one),
            right(*two),
            label=f"{one} {two}",
            expected=expected,
            condition=16 if name in ("power", "remainder") else 4,
            # a % b is measured in bs, of which bfloat16 has too few digits
            dtypes=(np.float32,) if name == "remainder" else (np.float32, tt.bfloat16),
        )
    add(
        name,
        fixed(getattr(ops, name), 1.5),
        left(3, 4) if name != "remainder" else between_integers(3, 4),
        label="with a number",
        expected=fixed(expected, 1.5),
        condition=8,
        dtypes=(np.float32,) if name == "remainder" else (np.float32, tt.bfloat16),
    )
for exponent in (0, 1, 2, 3, -1, -2):
    add(
        "power",
        fixed(ops.power, exponent),
        smooth(3, 4),
        label=f"{exponent}",
        expected=fixed(np.power, float(exponent)),
        condition=16,
    )
add("power", lambda x: ops.power(2.0, x), real(3), label="number to a tensor", condition=8)
add(
    "power",
    lambda a: ops.power(a, np.array([2.0, 3.0, 2.0])),
    exactly([0.0, 0.0, 2.0]),
    label="of zero",
    expected=lambda a: a ** np.array([2.0, 3.0, 2.0]),
    dtypes=(),
)
for low, high in ((-1.0, 1.0), (None, 0.5), (-0.5, None)):
    add(
        "clip",
        fixed(ops.clip, low, high),
        Given((3, 4), avoid=(-1.0, -0.5, 0.5, 1.0)),
        label=f"{low} {high}",
        expected=fixed(np.clip, low, high),
    )
add("where", ops.where, booleans(3, 4), real(3, 4), real(3, 4), expected=np.where)
add(
    "where", ops.where, booleans(4), real(3, 1), real(2, 1, 4), label="broadcast", expected=np.where
)
add("where", lambda c, x: ops.where(c, x, 0.5), booleans(3, 4), real(3, 4), label="with a number")
add(
    "where",
    fixed(ops.masked_fill, 1.5),
    real(3, 4),
    booleans(1, 4),
    label="masked_fill",
    expected=lambda x, mask: np.where(mask, 1.5, x),
)
add(
    "astype",
    lambda x: ops.astype(ops.astype(x, np.float64), np.float64),
    real(3, 4),
    dtypes=(),
    expected=lambda x: x,
)

# --- without gradient ---

for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
    function = getattr(np, name)
    add(name, getattr(ops, name), real(3, 1), real(4), expected=function, result=np.bool_)
    add(
        name,
        getattr(ops, name),
        integers(3, 3, 4),
        integers(3, 4),
        label="integers",
        expected=function,
        result=np.bool_,
    )
for name in ("logical_and", "logical_or", "logical_xor"):
    function = getattr(np, name)
    add(name, getattr(ops, name), booleans(3, 1), booleans(4), expected=function, result=np.bool_)
    add(
        name,
        getattr(ops, name),
        integers(2, 3, 4),
        real(4),
        label="numbers",
        expected=function,
        result=np.bool_,
    )
for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    function = getattr(np, name)
    add(name, getattr(ops, name), booleans(3, 1), booleans(4), expected=function, result=np.bool_)
    add(
        name,
        getattr(ops, name),
        integers(9, 3, 4),
        integers(9, 4),
        label="integers",
        expected=function,
        result=np.int64,
    )
add("logical_not", ops.logical_not, booleans(5), expected=np.logical_not, result=np.bool_)
SPECIAL = [0.0, 1.0, -2.0, math.inf, -math.inf, math.nan]
for name in ("isnan", "isinf", "isfinite"):
    function = getattr(np, name)
    add(name, getattr(ops, name), exactly(SPECIAL), expected=function, result=np.bool_, dtypes=())
add("floor_divide", ops.floor_divide, real(3, 4), positive(4), expected=np.floor_divide, dtypes=())
add(
    "floor_divide",
    ops.floor_divide,
    Given((3, 4), -9, 9, dtype=np.int64),
    exactly([2, 3, -2, -5]),
    label="integers",
    expected=np.floor_divide,
    result=np.int64,
)
add(
    "remainder",
    ops.remainder,
    Given((3, 4), -9, 9, dtype=np.int64),
    exactly([2, 3, -2, -5]),
    label="integers",
    expected=np.remainder,
    result=np.int64,
)
for name in ("argmax", "argmin"):
    for options in ({}, {"axis": 1}, {"axis": 0, "keepdims": True}):
        add(
            name,
            fixed(getattr(ops, name), **options),
            distinct(3, 4),
            label=str(options or ""),
            expected=fixed(getattr(np, name), **options),
            result=np.int64,
        )
for options in ({}, {"axis": 0}, {"axis": 1, "descending": True}):
    add(
        "argsort",
        fixed(ops.argsort, **options),
        distinct(3, 4),
        label=str(options or ""),
        expected=lambda x, o=options: np.argsort(
            -x if "descending" in o else x, axis=o.get("axis", -1)
        ),
        result=np.int64,
    )
for options in ({"k": 2}, {"k": 3, "axis": 0}, {"k": 4, "largest": False}):
    add(
        "argtopk",
        fixed(ops.argtopk, **options),
        distinct(3, 4),
        label=str(options),
        expected=lambda x, o=options: np.take(
            np.argsort(x if "largest" in o else -x, axis=o.get("axis", -1)),
            range(o["k"]),
            axis=o.get("axis", -1),
        ),
        result=np.int64,
    )
for name in ("any", "all"):
    for options in ({}, {"axis": 1}, {"axis": (0, 1), "keepdims": True}):
        add(
            name,
            fixed(getattr(ops, name), **options),
            booleans(3, 2),
            label=str(options or ""),
            expected=fixed(getattr(np, name), **options),
            result=np.bool_,
        )

# --- reductions ---


def np_norm(x: Any, axis: Any = None, keepdims: bool = False, ord: float = 2) -> Any:
    if ord == math.inf:
        return np.abs(x).max(axis=axis, keepdims=keepdims)
    if ord == -math.inf:
        return np.abs(x).min(axis=axis, keepdims=keepdims)
    return (np.abs(x) ** ord).sum(axis=axis, keepdims=keepdims) ** (1 / ord)


def np_logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


REDUCTIONS: dict[str, tuple[Callable[..., Given], Callable[..., Any]]] = {
    "sum": (real, np.sum),
    "mean": (real, np.mean),
    "var": (distinct, np.var),
    "std": (distinct, np.std),
    "prod": (smooth, np.prod),
    "amax": (distinct, np.amax),
    "amin": (distinct, np.amin),
    "logsumexp": (real, np_logsumexp),
    "norm": (smooth, np_norm),
}
REDUCED: tuple[dict[str, Any], ...] = (
    {},
    {"axis": 1},
    {"axis": -3, "keepdims": True},
    {"axis": (0, 2)},
    {"axis": (-1, 1), "keepdims": True},
)
for name, (domain, expected) in REDUCTIONS.items():
    for options in REDUCED:
        add(
            name,
            fixed(getattr(ops, name), **options),
            domain(3, 4, 2),
            label=str(options or ""),
            expected=fixed(expected, **options),
            condition=8,
        )
for name in ("var", "std"):
    add(
        name,
        fixed(getattr(ops, name), axis=1, ddof=1),
        distinct(3, 4),
        label="unbiased",
        expected=fixed(getattr(np, name), axis=1, ddof=1),
        condition=8,
    )
for order in (1, 3, 2.5, math.inf, -math.inf):
    add(
        "norm",
        fixed(ops.norm, order, axis=1),
        Given((3, 4), 0.25, 3.0, distinct=True),
        label=f"{order}",
        expected=fixed(np_norm, 1, ord=order),
        condition=16,
    )
add(
    "prod",
    lambda x: ops.prod(x, 1),
    exactly([[0.0, 2.0, 3.0], [0.0, 0.0, 5.0]]),
    label="of zeros",
    dtypes=(),
)
for axis in (0, -1):
    add(
        "cumsum",
        fixed(ops.cumsum, axis),
        real(3, 4),
        label=f"axis {axis}",
        expected=fixed(np.cumsum, axis),
        condition=4,
    )

# --- shape ---


def same(name: str, label: str, shape: Shape, *last: Any, **options: Any) -> Any:
    """A row of SHAPING for an operation that NumPy has under the same name."""
    functions = (fixed(getattr(module, name), *last, **options) for module in (ops, np))
    yield (name, label, shape, *functions)


SHAPING: tuple[tuple[str, str, Shape, Callable[..., Any], Callable[..., Any]], ...] = (
    ("reshape", "", (2, 3, 4), fixed(ops.reshape, (4, -1)), lambda x: x.reshape(4, 6)),
    ("reshape", "squeeze", (2, 1, 3), fixed(ops.squeeze, 1), lambda x: x[:, 0]),
    (
        "reshape",
        "expand_dims",
        (2, 3),
        fixed(ops.expand_dims, (0, -1)),
        lambda x: x[None, ..., None],
    ),
    ("swapaxes", "", (2, 3, 4), fixed(ops.swapaxes, 0, -1), lambda x: x.swapaxes(0, 2)),
    ("transpose", "", (2, 3, 4), ops.transpose, np.transpose),
    (
        "transpose",
        "axes",
        (2, 3, 4),
        fixed(ops.transpose, (1, -1, 0)),
        fixed(np.transpose, (1, 2, 0)),
    ),
    (
        "ascontiguousarray",
        "",
        (2, 3),
        lambda x: ops.ascontiguousarray(x.swapaxes(0, 1)),
        np.transpose,
    ),
    ("to_device", "", (2, 3), fixed(ops.to_device, "cpu"), lambda x: x),
    ("flip", "", (2, 3), ops.flip, np.flip),
    *same("broadcast_to", "", (3, 1), (2, 3, 4)),
    *same("flip", "axis", (2, 3, 4), (0, -1)),
    *same("roll", "", (2, 3), 2),
    *same("roll", "axes", (2, 3), (1, -2), (0, 1)),
    *same("tril", "", (2, 3, 4)),
    *same("tril", "k", (4, 3), -1),
    *same("triu", "", (3, 4)),
    *same("triu", "k", (2, 4, 3), 1),
    *same("repeat", "", (2, 3), 2),
    *same("repeat", "axis", (2, 3, 2), 3, 1),
    *same("repeat", "each", (2, 3), np.array([0, 1, 3]), -1),
    *same("tile", "", (3, 2), (2, 1, 3)),
    *same("tile", "fewer", (3, 2), 2),
    *same("pad", "", (2, 3), ((1, 0), (0, 2)), constant_values=7.0),
)
for name, label, shape, function, expected in SHAPING:
    add(name, function, real(*shape), label=label, expected=expected)

for axis in (0, -1):
    add(
        "concatenate_all",
        lambda *xs, a=axis: ops.concatenate(xs, a),
        *(real(2, 3) if axis == 0 else real(2, n) for n in (3, 1, 2)),
        label=f"axis {axis}",
        expected=lambda *xs, a=axis: np.concatenate(xs, a),
    )
for axis in (0, 1, -1):
    add(
        "stack_all",
        lambda *xs, a=axis: ops.stack(xs, a),
        *(real(2, 3) for _ in range(3)),
        label=f"axis {axis}",
        expected=lambda *xs, a=axis: np.stack(xs, a),
    )
add("concatenate_all", lambda x: ops.concatenate([x, x]), real(2, 3), label="one twice")
for axis in (0, -1):
    for label, chosen in (("all", [0, 1, 2]), ("one", [1]), ("two, turned", [2, 0])):

        def pieces(x: Any, xp: Any = ops, axis: int = axis, chosen: list[int] = chosen) -> Any:
            return xp.concatenate([xp.split(x, [2, 3], axis)[i] for i in chosen], axis)

        add(
            "split",
            pieces,
            real(5, 3) if axis == 0 else real(2, 5),
            label=f"{label}, axis {axis}",
            expected=fixed(pieces, np),
        )

# --- indexing ---

INDICES: dict[str, Any] = {
    "integer": 1,
    "from the end": (-1, 2),
    "slices": (slice(1, None), slice(None, None, 2)),
    "backwards": (slice(None), slice(None, None, -1)),
    "ellipsis": (..., 0),
    "new axis": (None, slice(None), None, 1),
    "array": np.array([0, 2, 0, -1]),
    "arrays": (np.array([0, 2, 0]), np.array([1, 1, 1])),
    "arrays apart": (np.array([0, 2]), slice(None), np.array([1, 0])),
    "broadcast arrays": (np.array([[0], [2]]), np.array([1, 3, 3])),
    "mask": np.arange(3) != 1,
    "mask of all axes": np.arange(24).reshape(3, 4, 2) % 3 == 0,
    "mask and slice": (np.arange(3) > 0, slice(1, 3)),
    "nothing": slice(0, 0),
    "list": [2, 0],
    "everything": (),
}
for label, index in INDICES.items():
    add(
        "getitem",
        fixed(ops.getitem, index),
        real(3, 4, 2),
        label=label,
        expected=fixed(np.ndarray.__getitem__, index),
    )


def np_scatter(dy: Any, index: Any, shape: Shape) -> Any:
    y = np.zeros(shape)
    np.add.at(y, index, dy)
    return y


for label in ("slices", "array", "arrays apart", "mask", "backwards"):
    index = INDICES[label]
    add(
        "scatter_to",
        fixed(ops.scatter_to, index, (3, 4, 2)),
        real(*np.zeros((3, 4, 2))[index].shape),
        label=label,
        expected=fixed(np_scatter, index, (3, 4, 2)),
        condition=4,
    )


def np_windows(x: Any, size: Any, stride: Any, dilation: Any) -> Any:
    reach = tuple(d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True))
    axes = tuple(range(-len(size), 0))
    y = np.lib.stride_tricks.sliding_window_view(x, reach, axes)  # places, then windows
    steps = [slice(None, None, step) for step in (*stride, *dilation)]
    return np.moveaxis(y[(..., *steps)], axes, [axis - len(size) for axis in axes])


def np_overlap_add(dy: Any, stride: Any, dilation: Any, shape: Any) -> Any:
    n = len(stride)
    y, numbers = np.zeros(shape), np.arange(np.prod(shape)).reshape(shape)
    places = np_windows(numbers, dy.shape[-2 * n : -n], stride, dilation)
    np.add.at(y.reshape(-1), places.reshape(-1), dy.reshape(-1))
    return y


WINDOWS: dict[str, tuple[Shape, Shape, Shape, Shape]] = {
    "in a row": ((2, 7), (3,), (1,), (1,)),
    "apart": ((7,), (2,), (3,), (1,)),
    "dilated": ((2, 1, 8), (3,), (2,), (2,)),
    "in a plane": ((2, 5, 4), (3, 2), (1, 2), (1, 1)),
    "of one": ((3, 2), (1, 1), (1, 1), (1, 1)),
}
for label, (shape, *how) in WINDOWS.items():
    cut = np_windows(np.zeros(shape), *how)
    add("windows", fixed(ops.windows, *how), real(*shape), label=label,
        expected=fixed(np_windows, *how))  # fmt: skip
    add("overlap_add", fixed(ops.overlap_add, *how[1:], shape), real(*cut.shape), label=label,
        expected=fixed(np_overlap_add, *how[1:], shape), condition=4)  # fmt: skip
add(
    "take_along_axis",
    fixed(ops.take_along_axis, 1),
    real(3, 4),
    integers(4, 3, 6),
    expected=fixed(np.take_along_axis, 1),
)
add(
    "take_along_axis",
    fixed(ops.take_along_axis, 0),
    real(3, 4),
    integers(3, 2, 1),
    label="broadcast",
    expected=fixed(np.take_along_axis, 0),
)


def np_scatter_along(dy: Any, i: Any) -> Any:
    y = np.zeros((3, 4))
    np.add.at(y, (np.arange(3)[:, None], i), dy)
    return y


add(
    "scatter_along_axis",
    fixed(ops.scatter_along_axis, 1, (3, 4)),
    real(3, 6),
    integers(4, 3, 6),
    expected=np_scatter_along,
    condition=4,
)
add(
    "scatter_along_axis",
    fixed(ops.scatter_add, 1),
    real(3, 4),
    integers(4, 3, 6),
    real(3, 6),
    label="scatter_add",
    expected=lambda x, i, dy: x + np_scatter_along(dy, i),
    condition=4,
)


def np_put(x: Any, i: Any, source: Any) -> Any:
    y = x.copy()
    np.put_along_axis(y, i, source, 1)
    return y


add(
    "put_along_axis",
    fixed(ops.put_along_axis, 1),
    real(3, 4),
    exactly([[3, 0], [1, 2], [0, 3]]),
    real(3, 2),
    expected=np_put,
)
add(
    "getitem",
    fixed(ops.take, 1),
    real(2, 3),
    exactly([2, 0, 2]),
    label="take",
    expected=fixed(np.take, 1),
)

# --- linear algebra ---

MATMUL: tuple[tuple[Shape, Shape], ...] = (
    ((3, 4), (4, 2)),
    ((4,), (4,)),
    ((4,), (4, 2)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4, 2)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 2)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((5, 2, 3), (5, 3, 1)),
)
for one, two in MATMUL:
    add(
        "matmul",
        ops.matmul,
        real(*one),
        real(*two),
        label=f"{one} {two}",
        expected=np.matmul,
        condition=4,
    )
add(
    "linear",
    ops.linear,
    real(2, 3, 4),
    real(5, 4),
    real(5),
    expected=lambda x, w, b: x @ w.T + b,
    condition=4,
)
add(
    "linear",
    ops.linear,
    real(4),
    real(5, 4),
    None,
    label="of a vector, no bias",
    expected=lambda x, w, b: x @ w.T,
    condition=4,
)
add("outer", ops.outer, real(3), real(4), expected=np.outer)
EINSUMS: dict[str, tuple[Shape, ...]] = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "bij,bjk->bik": ((2, 3, 4), (2, 4, 2)),
    "ij->ji": ((2, 3),),
    "ij->": ((2, 3),),
    "ij->j": ((2, 3),),
    "ii": ((3, 3),),
    "ii->i": ((3, 3),),
    "i,j": ((2,), (3,)),
    "i,i,i->i": ((3,), (3,), (3,)),
    "...ij,jk": ((2, 2, 3), (3, 4)),
    "...i,...i->...": ((2, 3), (4, 1, 3)),
    "bhtd,bhsd->bhts": ((2, 2, 3, 4), (2, 2, 5, 4)),
    "ab,cd": ((2, 3), (4, 2)),
}
for subscripts, shapes in EINSUMS.items():
    add(
        "einsum",
        lambda *xs, s=subscripts: ops.einsum(s, *xs),
        *(real(*shape) for shape in shapes),
        label=subscripts,
        expected=lambda *xs, s=subscripts: np.einsum(s, *xs),
        condition=8,
    )

# --- network ---


def np_softmax(x: Any, axis: int = -1) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


for axis in (-1, 0):
    add(
        "softmax",
        fixed(ops.softmax, axis),
        real(3, 4),
        label=f"axis {axis}",
        expected=fixed(np_softmax, axis),
        condition=4,
    )
    add(
        "log_softmax",
        fixed(ops.log_softmax, axis),
        real(3, 4),
        label=f"axis {axis}",
        expected=lambda x, a=axis: np.log(np_softmax(x, a)),
        condition=4,
    )


def np_cross_entropy(
    logits: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    V = logits.shape[-1]
    weight = np.ones(V) if weight is None else weight
    log_p = np.log(np_softmax(logits)).reshape(-1, V)
    losses, shares = [], []
    for row, t in zip(log_p, target.reshape(-1), strict=True):
        counts = t != ignore_index
        q = np.full(V, label_smoothing / V) * weight
        q[t if counts else 0] += (1 - label_smoothing) * weight[t if counts else 0]
        losses.append(-(q * row).sum() * counts)
        shares.append(weight[t] if counts else 0.0)
    if reduction == "none":
        return np.reshape(losses, target.shape)
    return np.sum(losses) / (np.sum(shares) if reduction == "mean" else 1)


TARGETS = exactly([0, 4, -100, 4, 1, 2])
CROSS_ENTROPIES: tuple[dict[str, Any], ...] = (
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none"},
    {"label_smoothing": 0.3},
    {"ignore_index": 4},
)
for options in CROSS_ENTROPIES:
    targets = TARGETS if "ignore_index" not in options else exactly([0, 4, 3, 4, 1, 2])
    for weighted in (False, True):
        # The weights of the classes are constants: an integer array would be too, but is not real.
        weights = np.array([0.5, 1.0, 2.0, 0.25, 3.0]) if weighted else None
        label = " ".join(f"{k}={v}" for k, v in options.items()) + (" weighted" if weighted else "")
        add(
            "cross_entropy",
            lambda x, t, w=weights, o=options: ops.cross_entropy(
                x, t, None if w is None else w.astype(x.dtype), **o
            ),
            real(6, 5),
            targets,
            label=label,
            expected=fixed(np_cross_entropy, weights, **options),
            condition=8,
        )
        if options != {"reduction": "none"}:
            add(
                "linear_cross_entropy",
                lambda x, m, b, t, w=weights, o=options: ops.linear_cross_entropy(
                    x, m, b, t, None if w is None else w.astype(x.dtype), block=4, **o
                ),
                real(6, 3),
                real(5, 3),
                real(5),
                targets,
                label=label,
                expected=lambda x, m, b, t, w=weights, o=options: np_cross_entropy(
                    x @ m.T + b, t, w, **o
                ),
                condition=16,
            )


def np_layer_norm(x: Any, weight: Any, bias: Any, ndim: int = 1) -> Any:
    axes = tuple(range(-ndim, 0))
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


for shape, weight, bias in (
    ((2, 3, 8), real(8), real(8)),
    ((4, 8), None, None),
    ((4, 8), real(8), None),
    ((2, 3, 4), real(3, 4), real(3, 4)),
):
    ndim = 1 if weight is None else len(weight.shape)
    add(
        "layer_norm",
        fixed(ops.layer_norm, ndim),
        distinct(*shape),
        weight,
        bias,
        label=f"{shape} {'weight' if weight else ''} {'bias' if bias else ''}",
        expected=fixed(np_layer_norm, ndim),
        condition=16,
    )
for label, chosen, weight, bias in (
    ("the sum", lambda outputs: outputs[0], None, None),
    ("its norm", lambda outputs: outputs[1], real(8), None),
    ("both", ops.stack, real(8), real(8)),
):
    add(
        "add_layer_norm",
        lambda *inputs, chosen=chosen: chosen(ops.add_layer_norm(*inputs)),
        distinct(4, 8),
        real(8) if label == "both" else real(4, 8),
        weight,
        bias,
        label=label,
        expected=lambda x, r, *scale, chosen=(np.stack if label == "both" else chosen): chosen(
            (x + r, np_layer_norm(x + r, *scale))
        ),
        condition=16,
    )
add("embedding", ops.embedding, real(5, 3), integers(5, 2, 4), expected=lambda w, i: w[i])
add(
    "embedding",
    # The row of padding_idx is given no gradient by decree, so it is not among the ids here.
    lambda w, i: ops.embedding(w, i, padding_idx=1),
    real(3, 2),
    exactly([2, 0, 0, 2]),
    label="padding",
    expected=lambda w, i: w[i],
)
DRAW = Draw(7, 11)
add("dropout", fixed(ops.dropout, 0.3, DRAW), real(5, 7))
add(
    "dropout",
    fixed(ops.dropout, 0.0, DRAW),
    real(5, 7),
    label="of nothing",
    expected=lambda x: x,
)
add(
    "dropout",
    fixed(ops.dropout, 1.0, DRAW),
    real(5, 7),
    label="of all",
    expected=lambda x: x * 0,
)


def np_attention(
    q: Any, k: Any, v: Any, mask: Any = None, is_causal: bool = False, scale: Any = None
) -> Any:
    scores = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    return np_softmax(scores) @ v


QKV = (real(2, 2, 5, 4), real(2, 2, 5, 4), real(2, 2, 5, 4))
CROSS = (real(2, 3, 4), real(2, 6, 4), real(2, 6, 3))
ATTENTIONS: tuple[tuple[str, tuple[Given, ...], Given | None, dict[str, Any]], ...] = (
    ("", QKV, None, {}),
    ("causal", QKV, None, {"is_causal": True}),
    ("other lengths", CROSS, None, {}),
    ("causal, other lengths", CROSS, None, {"is_causal": True}),
    ("causal, more queries", (real(6, 4), real(3, 4), real(3, 2)), None, {"is_causal": True}),
    ("scale", QKV, None, {"scale": 0.3}),
    ("additive mask", CROSS, real(3, 6), {}),
    ("boolean mask", CROSS, exactly(np.arange(18).reshape(3, 6) % 4 != 1), {}),
    ("shared keys", (real(3, 2, 5, 4), real(1, 4, 4), real(4, 4)), None, {}),
)
for label, given, mask, options in ATTENTIONS:
    add(
        "scaled_dot_product_attention",
        fixed(ops.scaled_dot_product_attention, **options),
        *given,
        mask,
        label=label,
        expected=fixed(np_attention, **options),
        condition=16,
    )
add(
    "scaled_dot_product_attention",
    lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, None, dropout_p=0.4, draw=DRAW),
    *QKV,
    label="dropout",
    condition=16,
)


# --- tokens --------------------------------------------------------------------------------------

WORDS = [Draw(7, 11), Draw(8, 12), Draw(9, 13)]


def np_tokens(x: Any, temperature: float = 1.0, top_k: int = 0) -> Any:
    """Row by row, and the ids one after the other."""
    tokens = []
    for row, draw in zip(x.astype(np.float64), WORDS, strict=True):
        kept = sorted(range(len(row)), key=lambda i: (-row[i], i))[: top_k or None]
        weights = {i: math.exp((row[i] - row.max()) / temperature) for i in sorted(kept)}
        left = random.unit(draw, 1, np.dtype(np.float64))[0] * math.fsum(weights.values())
        for i, weight in weights.items():
            left -= weight
            if left < 0:
                tokens.append(i)
                break
    return np.array(tokens)


for options in ({}, {"temperature": 0.5, "top_k": 3}, {"top_k": 1}):
    add(
        "sample_logits",
        fixed(ops.sample_logits, draws=WORDS, **options),
        real(3, 9),
        label=str(options or ""),
        expected=fixed(np_tokens, **options),
        result=np.int64,
    )


# --- what must be covered ------------------------------------------------------------------------


def operations() -> set[str]:
    """The names of the engine's own operations (a test may define others)."""
    known = [*OPERATIONS.values(), *(x for x in vars(ops).values() if isinstance(x, Operation))]
    return {o.__name__ for o in known if o.__module__.split(".")[0] == "tinytensor"}


def differentiable(cases: Sequence[Case] = CASES) -> list[Case]:
    return [case for case in cases if case.name not in NON_DIFFERENTIABLE and _has_real(case)]


def _has_real(case: Case) -> bool:
    return any(g is not None and np.dtype(g.dtype).kind == "f" for g in case.inputs)
