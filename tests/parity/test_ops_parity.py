"""Every public function and method of tensors, forward and gradient, against PyTorch."""

from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tests.parity.compare import same, torch
from tests.table import (
    BINARY,
    EINSUMS,
    INDICES,
    UNARY,
    Given,
    above_one,
    between_integers,
    booleans,
    distinct,
    exactly,
    inside_one,
    integers,
    positive,
    real,
    smooth,
)
from tinytensor.testing import strategies

pytestmark = pytest.mark.parity


# --- the table -----------------------------------------------------------------------------------

ROWS = []


def row(name, *arguments, **options):
    """`library.name(*arguments, **options)`, and the method of that name if both have it."""
    ROWS.append((name, arguments, options))


X, Y, M = real(3, 4), real(3, 4), real(2, 3, 4)

for name in [
    "abs",
    "absolute",
    "neg",
    "negative",
    "square",
    "exp",
    "expm1",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "erf",
    "relu",
]:
    row(name, smooth(3, 4))
for name in ["log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal"]:
    row(name, positive(3, 4))
for name in ["asin", "arcsin", "acos", "arccos", "atanh", "arctanh"]:
    row(name, inside_one(3, 4))
for name in ["atan", "arctan", "asinh", "arcsinh"]:
    row(name, X)
for name in ["acosh", "arccosh"]:
    row(name, above_one(3, 4))
for name in ["atan2", "arctan2", "hypot"]:
    row(name, X, smooth(4))
row("atan2", exactly([0.0, 1.0, -1.0]), exactly([0.0, 0.0, -0.0]))
for name in ["floor", "ceil", "round", "sign"]:
    row(name, between_integers(3, 4))
row("round", X, decimals=1)
for name in ["add", "sub", "subtract", "mul", "multiply", "maximum", "minimum"]:
    row(name, X, real(4))
for name in ("div", "divide", "true_divide"):
    row(name, X, smooth(4))
row("add", X, Y, alpha=2.5)
row("sub", X, Y, alpha=2.5)
row("sub", X, 1.5)
row("mul", X, 2)
row("div", X, positive(3, 1), rounding_mode="floor")
row("div", X, positive(3, 1), rounding_mode="trunc")
row("floor_divide", Given((5,), -9, 9, dtype=np.int64), 4)
row("remainder", X, 0.7)
row("remainder", Given((5,), -9, 9, dtype=np.int64), -4)
row("pow", positive(3, 4), real(4))
row("pow", X, 3)
row("pow", positive(3, 4), 0.5)
row("pow", Given((5,), -4, 4, dtype=np.int64), 3)
row("clamp", X, -0.5, 0.5)
row("clamp", X, min=0.25)
row("clip", X, max=0.25)
row("clamp", X, real(4), Given((4,), 2.0, 3.0))
row("lerp", X, Y, 0.3)
row("where", booleans(3, 4), X, real(4))
row("where", booleans(3, 4), X, 0.5)
row("where", booleans(3, 4))
row("masked_fill", X, booleans(3, 1), -1.5)
row("masked_fill", X, booleans(3, 4), float("-inf"))
row("masked_select", X, booleans(3, 4))
for name in [
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
]:
    row(name, integers(4, 3, 4), integers(4, 4))
    row(name, X, 0.5)
row("equal", X, X)
row("isclose", X, Y)
row("allclose", X, Y)
for name in ["logical_and", "logical_or", "logical_xor"]:
    row(name, booleans(3, 4), booleans(4))
    row(name, integers(2, 3, 4), X)
for name in ["bitwise_and", "bitwise_or", "bitwise_xor"]:
    row(name, integers(9, 3, 4), integers(9, 4))
    row(name, booleans(3, 4), booleans(4))
row("logical_not", integers(2, 3, 4))
SPECIAL = exactly([0.0, -1.0, np.inf, -np.inf, np.nan])
for name in ["isnan", "isinf", "isfinite"]:
    row(name, SPECIAL)
row("numel", X)
row("is_floating_point", X)
row("is_tensor", X)
row("clone", X)
row("addcmul", X, Y, real(4), value=0.5)
row("addcdiv", X, Y, positive(4), value=0.5)

for name in ["tan", "sinh", "cosh"]:
    row(name, X)
row("tan", Given((4,), -1.4, 1.4))
for name in ["trunc", "frac"]:
    row(name, between_integers(3, 4))
row("fmod", X, smooth(4))
row("fmod", Given((5,), -9, 9, dtype=np.int64), -4)
row("logaddexp", X, real(4))
row("logaddexp", exactly([1e4, -np.inf]), exactly([1e4, 0.0]))
row("nan_to_num", SPECIAL)
row("nan_to_num", SPECIAL, nan=1.0, posinf=2.0, neginf=-3.0)
row("nan_to_num", integers(3, 4))
for shape in [(5,), (3, 4), (2, 1, 3), (0, 2)]:
    row("cumprod", real(*shape), dim=0)
row("cumprod", exactly([2.0, 0.0, 3.0, 0.0, -1.0]), 0)
row("cumprod", integers(4, 3, 4), dim=1)
row("diff", X)
row("diff", M, n=2, dim=1)
row("median", distinct(3, 4))
row("median", distinct(3, 4), dim=1)
row("median", distinct(5, 2), 0, keepdim=True)
row("median", exactly([1.0, np.nan, 2.0]))
row("tensordot", M, real(4, 3), dims=([2, 1], [0, 1]))
row("tensordot", M, real(4, 2), dims=1)
row("kron", real(2, 3), real(2, 2))
row("kron", real(2), real(2, 2))
row("cdist", real(3, 2), real(4, 2))
row("cdist", real(2, 3, 2), real(2, 4, 2), p=1.0)
row("ravel", M)
row("take", X, integers(12, 2, 2))
row("diag_embed", X)
row("index_fill", X, 1, exactly([2, 0, -1]), 1.5)
row("index_fill", integers(5, 3, 4), -2, exactly([2]), 7)
row("isin", integers(5, 3, 4), integers(5, 3))
row("searchsorted", exactly([0.0, 1.0, 1.0, 2.0]), exactly([[1.0, -1.0], [1.5, 3.0]]))
row("searchsorted", exactly([0, 1, 1, 2]), exactly([1, 5]), right=True)
row("bucketize", exactly([0.5, 1.0]), exactly([0.0, 1.0, 2.0]))
row("tril_indices", 3, 4)
row("triu_indices", 3, 4, offset=1)

row("broadcast_tensors", real(4), real(3, 1))
row("meshgrid", real(3), real(2), real(4), indexing="ij")
row("meshgrid", integers(3, 3), integers(2, 2), indexing="xy")
row("meshgrid", real(3), indexing="xy")

for name in ["sum", "mean", "prod"]:
    for options in ({}, {"dim": 1}, {"dim": 0, "keepdim": True}):
        row(name, smooth(3, 4), **options)
for name in ["sum", "mean", "var", "std", "logsumexp", "amax", "amin", "norm"]:
    for options in ({"dim": (0, 2)}, {"dim": -1, "keepdim": True}):
        row(name, distinct(2, 3, 4), **options)
for name in ["sum", "prod"]:
    row(name, integers(3, 3, 4))
    row(name, booleans(3, 4), dim=1)
row("sum", integers(3, 3, 4), dtype="float32")
row("mean", integers(3, 3, 4), dtype="float64")
for name in ("var", "std", "var_mean", "std_mean"):
    row(name, distinct(3, 4))
    row(name, distinct(3, 4), dim=1, correction=0)
    row(name, distinct(3, 4), dim=0, unbiased=False)
    row(name, distinct(3, 4), 1, True, True)
row("norm", X)
row("norm", distinct(3, 4), 1, dim=0)
row("norm", smooth(3, 4), p=3)
row("norm", distinct(3, 4), float("inf"))
for name in ("max", "min"):
    row(name, distinct(3, 4))
    row(name, distinct(3, 4), dim=1)
    row(name, distinct(3, 4), 0, keepdim=True)
    row(name, X, Y)
row("amax", distinct(3, 4))
row("amax", exactly([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), dim=1)
row("amin", exactly([[1.0, 1.0, 3.0], [2.0, 2.0, 2.0]]))
for name in ("argmax", "argmin"):
    row(name, distinct(3, 4))
    row(name, distinct(3, 4), dim=1)
    row(name, distinct(3, 4), dim=-1, keepdim=True)
row("any", booleans(3, 4))
row("all", booleans(3, 4), dim=1)
row("any", integers(2, 3, 4), dim=0, keepdim=True)
row("count_nonzero", integers(2, 3, 4))
row("count_nonzero", integers(2, 3, 4), dim=1)
row("cumsum", X, 0)
row("cumsum", integers(4, 3, 4), dim=1)
for options in ({}, {"dim": 0}, {"descending": True}, {"dim": 0, "stable": True}):
    row("sort", distinct(3, 4), **options)
row("argsort", distinct(3, 4), dim=0, descending=True)
row("topk", distinct(3, 5), 2)
row("topk", distinct(5, 3), 3, dim=0, largest=False)
row("unique", integers(4, 9))
row("unique", integers(4, 9), return_counts=True)
row("unique", integers(4, 9), return_inverse=True)
row("bincount", integers(4, 9))
row("bincount", integers(4, 9), minlength=7)
row("softmax", X, dim=0)
row("softmax", X, -1, dtype="float64")
row("log_softmax", X, dim=1)

row("reshape", M, (4, 6))
row("reshape", M, (-1,))
row("permute", M, (2, 0, 1))
row("transpose", M, 0, 2)
row("swapaxes", M, 0, 1)
row("swapdims", M, -1, 0)
row("t", X)
row("t", real(3))
row("movedim", M, 0, 2)
row("movedim", M, (0, 1), (-1, 0))
row("moveaxis", M, 2, 0)
row("squeeze", real(1, 3, 1))
row("squeeze", real(1, 3, 1), 0)
row("squeeze", real(1, 3, 1), 1)
row("squeeze", real(1, 3, 1), (0, 1))
row("unsqueeze", X, -1)
row("unsqueeze", X, 1)
row("flatten", M)
row("flatten", M, 1)
row("flatten", real())
row("unflatten", real(3, 8), 1, (2, -1))
row("broadcast_to", real(3, 1), (2, 3, 4))
row("cat", [X, real(2, 4), real(1, 4)])
row("cat", [X, real(3, 1)], dim=-1)
row("cat", [integers(3, 2), real(3)])
row("cat", [real(0), X], dim=1)
row("concat", [X, Y])
row("concatenate", [X, Y], dim=1)
row("stack", [X, Y])
row("stack", [X, Y], dim=-1)
row("vstack", [X, real(4)])
row("hstack", [real(2), real(3)])
row("hstack", [X, real(3, 2)])
row("split", M, 2, dim=2)
row("split", X, [1, 3], dim=1)
row("split", X, 2)
row("chunk", real(7, 2), 3)
row("chunk", X, 5, dim=1)
row("unbind", X, 1)
row("narrow", X, 1, 1, 2)
row("select", X, 1, -1)
row("flip", M, (0, 2))
row("roll", X, 2)
row("roll", X, (1, -1), (0, 1))
row("tril", M)
row("tril", X, -1)
row("triu", X, diagonal=1)
row("tile", X, (2, 1))
row("tile", X, (2, 2, 1))
row("repeat_interleave", X, 2)
row("repeat_interleave", X, 2, dim=1)
row("repeat_interleave", X, exactly([0, 1, 3]), dim=0)
row("diagonal", real(3, 4))
row("diag", real(3))
row("diag", real(3, 4))
row("trace", real(3, 3))
row("gather", X, 1, integers(4, 3, 6))
row("gather", X, 0, integers(3, 2, 3))
row("take_along_dim", X, integers(4, 3, 2), 1)
row("index_select", X, 1, integers(4, 5))
row("index_add", X, 0, exactly([2, 0, 2]), real(3, 4))
row("index_add", X, 1, exactly([2, 0]), real(3, 2), alpha=2)
row("scatter_add", X, 1, integers(4, 3, 6), real(3, 6))
row("scatter_add", X, 0, integers(3, 2, 3), real(2, 3))
row("scatter", X, 1, exactly([[0, 2], [3, 1], [1, 0]]), real(3, 2))
row("scatter", X, 1, exactly([[0], [3], [1]]), 1.5)
row("scatter", X, 1, exactly([[0], [3], [1]]), value=1.5)
row("nonzero", integers(2, 3, 4))
row("nonzero", integers(2, 3, 4), as_tuple=True)
row("argwhere", integers(2, 3, 4))

row("matmul", X, real(4, 2))
row("matmul", real(2, 1, 3, 4), real(5, 4, 2))
row("mm", X, real(4, 2))
row("bmm", M, real(2, 4, 5))
row("mv", X, real(4))
row("dot", real(4), real(4))
row("outer", real(3), real(4))
row("addmm", real(2), X, real(4, 2))
row("addmm", real(3, 2), X, real(4, 2), beta=0.5, alpha=2.0)
row("baddbmm", real(2, 3, 5), M, real(2, 4, 5))
for subscripts, shapes in EINSUMS.items():
    row("einsum", subscripts, *(real(*shape) for shape in shapes))

IDS = [f"{name} {i}" for i, (name, _, _) in enumerate(ROWS)]


@pytest.mark.parametrize(("name", "arguments", "options"), ROWS, ids=IDS)
def test_functions_and_methods(name, arguments, options):
    def in_library(library, options):
        return {k: getattr(library, v) if k == "dtype" else v for k, v in options.items()}

    def function(library, *xs):
        return getattr(library, name)(*xs, **in_library(library, options))

    def method(library, x, *xs):
        return getattr(x, name)(*xs, **in_library(library, options))

    wide = (np.float64,) if "unique" in name else (np.float64, np.float32)
    if hasattr(tt, name):
        same(function, *arguments, dtypes=wide)
    is_tensor = isinstance(arguments[0], Given)
    # PyTorch's methods take masks and conditions elsewhere in a few cases.
    both = hasattr(tt.Tensor, name) and hasattr(torch.Tensor, name)
    if is_tensor and both and name not in ("where", "is_tensor"):  # x.where(condition, y)
        same(method, *arguments, dtypes=wide)


# Functions of tt that PyTorch has too and that are tested elsewhere: creation and sampling (their
# numbers differ by design), files, modes, random states.
ELSEWHERE = {
    "Generator",
    "Size",
    "dtype",
    "finfo",
    "iinfo",
    "Tensor",
    "device",
    "enable_grad",
    "inference_mode",
    "no_grad",
    "set_grad_enabled",
    "is_grad_enabled",
    "autocast",
    "get_autocast_dtype",
    "is_autocast_enabled",
    "set_float32_matmul_precision",
    "get_float32_matmul_precision",
    "load",
    "save",
    "manual_seed",
    "get_rng_state",
    "set_rng_state",
    "get_num_threads",
    "set_num_threads",
    "get_default_dtype",
    "set_default_dtype",
    "set_printoptions",
    "bernoulli",
    "multinomial",
    "normal",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "result_type",
}
CREATION = {
    "arange": [(5,), (2, 7), (2.0, 3.0, 0.3), (5, 0, -2)],
    "linspace": [(0, 1, 5), (-2.0, 3.0, 1)],
    "eye": [(3,), (2, 4)],
    "zeros": [(2, 3), ((2, 3),)],
    "ones": [(2, 3), ((2, 3),)],
    "full": [((2, 3), 1.5), ((2,), 7), ((2,), True)],
    "tensor": [(1.5,), ([1, 2],), ([[True], [False]],), ([1, 2.5],), ([],)],
    "as_tensor": [([1, 2],), (2.5,)],
    "asarray": [([1.5, 2],)],
}
LIKE = {"zeros_like": (), "ones_like": (), "full_like": (2.5,), "empty_like": ()}


def test_every_function_is_compared():
    def functions(library):
        return {
            name
            for name, value in vars(library).items()
            if not name.startswith("_")
            and callable(value)
            and not isinstance(value, types.ModuleType)
        }

    compared = {name for name, *_ in ROWS} | set(CREATION) | set(LIKE) | ELSEWHERE
    compared |= {"empty", "from_numpy"}
    missing = (functions(tt) & functions(torch)) - compared
    assert not missing, sorted(missing)


@pytest.mark.parametrize("name", CREATION)
def test_creation(name):
    for arguments in CREATION[name]:
        same(lambda library, a=arguments: getattr(library, name)(*a), dtypes=(np.float64,))
        for dtype in ("float64", "int32", "bool"):
            if name not in ("linspace",) and (name, dtype) != ("arange", "bool"):
                same(
                    lambda library, a=arguments, d=dtype: getattr(library, name)(
                        *a, dtype=getattr(library, d)
                    ),
                    dtypes=(np.float64,),
                )


@pytest.mark.parametrize("name", LIKE)
def test_creation_like_another(name):
    def call(L, x):
        y = getattr(L, name)(x, *LIKE[name])
        z = getattr(L, name)(x, *LIKE[name], dtype=L.float32)
        if name == "empty_like":  # with any numbers in it
            return [*y.shape, y.dtype, *z.shape, z.dtype]
        return y, z

    for kind in (X, integers(3, 2, 2), booleans(3)):
        same(call, kind, dtypes=(np.float64,))


# --- drawn shapes --------------------------------------------------------------------------------

TORCH_NAMES = {"absolute": "abs", "negative": "neg", "power": "pow", "copy": "clone"}


@settings(max_examples=100)
@given(st.sampled_from(sorted(set(UNARY) - {"gelu", "silu"})), st.data())
def test_functions_of_one_number(name, data):
    kind = UNARY[name][0](1)
    x = data.draw(strategies.arrays(low=kind.low, high=kind.high, avoid=kind.avoid))
    same(
        lambda L, x: getattr(L, TORCH_NAMES.get(name, name))(x),
        np.ascontiguousarray(x).reshape(x.shape),
        dtypes=(np.float64,),
    )


@settings(max_examples=100)
@given(st.sampled_from(sorted(BINARY)), strategies.broadcastable_shapes(), st.data())
def test_functions_of_two_numbers(name, shapes, data):
    *domains, _ = BINARY[name]
    kinds = [domain(1) for domain in domains]
    a, b = (
        strategies.random_array(
            data.draw(strategies.seeds()), s, low=k.low, high=k.high, avoid=k.avoid
        )
        for s, k in zip(shapes, kinds, strict=True)
    )
    same(lambda L, a, b: getattr(L, TORCH_NAMES.get(name, name))(a, b), a, b, dtypes=(np.float64,))


@settings(max_examples=150)
@given(
    st.sampled_from(
        [
            "sum",
            "mean",
            "prod",
            "amax",
            "amin",
            "logsumexp",
            "var",
            "std",
            "norm",
            "max",
            "argmax",
            "all",
            "cumsum",
        ]
    ),
    strategies.shapes(min_side=1, min_dims=1),
    st.booleans(),
    st.data(),
)
def test_reductions(name, shape, keepdim, data):
    x = strategies.random_array(data.draw(strategies.seeds()), shape, low=0.5, distinct=True)
    one_only = name in ("prod", "max", "argmax", "cumsum")
    dim = data.draw(strategies.axes(len(shape), several=not one_only))
    if name in ("amax", "amin", "logsumexp", "norm", "all") and (dim is None or dim == ()):
        dim = 0  # where PyTorch wants one, or means another thing by none
    if name in ("var", "std") and not all(shape[d] > 1 for d in np.atleast_1d(dim or 0)):
        return  # nan, with a warning in PyTorch
    if name in ("sum", "mean", "var", "std") and dim == ():
        dim = None
    options = {} if dim is None else {"dim": dim, "keepdim": keepdim}
    if name == "cumsum":
        options = {"dim": dim or 0}
    same(lambda L, x: getattr(L, name)(x, **options), x, dtypes=(np.float64,))


@settings(max_examples=100)
@given(strategies.matmul_shapes(), strategies.seeds())
def test_matmul(shapes, seed):
    a, b = (strategies.random_array(seed + i, shape) for i, shape in enumerate(shapes))
    same(lambda L, a, b: a @ b, a, b, dtypes=(np.float64,))


@settings(max_examples=150)
@given(strategies.shapes(min_dims=1), st.data())
def test_indexing(shape, data):
    index = data.draw(strategies.indices(shape))
    items = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, slice) and (i.step or 1) < 0 for i in items):
        return  # PyTorch has no negative steps
    x = strategies.random_array(0, shape)

    def call(L, x):
        def convert(i):
            if not isinstance(i, np.ndarray):
                return i
            return tt.from_numpy(i) if L is tt else torch.from_numpy(i)

        return x[tuple(map(convert, index)) if isinstance(index, tuple) else convert(index)]

    same(call, x, dtypes=(np.float64,))


# PyTorch has no slices that run backwards.
FORWARDS = {name: index for name, index in INDICES.items() if name != "backwards"}


@pytest.mark.parametrize("index", FORWARDS.values(), ids=list(FORWARDS))
def test_indices_of_the_table(index):
    same(lambda L, x: x[index], real(3, 4, 2), dtypes=(np.float64,))


@settings(max_examples=60)
@given(strategies.shapes(min_dims=1, min_side=1), st.data())
def test_shapes(shape, data):
    x = strategies.random_array(1, shape)
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = data.draw(st.integers(1, 3))
    same(
        lambda L, x: (
            x.permute(order).reshape(-1),
            x.split(size, dim),
            x.chunk(size, dim),
            L.cat([x, x], dim),
            L.stack([x, x], dim),
            x.unsqueeze(dim),
            x.squeeze(),
            x.flip(dim),
            x.roll(size, dim),
            x.flatten(min(dim, -1)),
            x.cumsum(dim),
            x.softmax(dim),
            x.sort(dim)[0],
            x.repeat_interleave(size, dim),
            x.narrow(dim, 0, 1),
            x.unbind(dim),
            x.movedim(dim, 0),
        ),
        x,
        dtypes=(np.float64,),
    )
