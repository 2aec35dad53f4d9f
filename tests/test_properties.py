"""Every operation, in every case of the table: derivatives, values, dtypes, layouts, fast paths."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tests.table import (
    AT_LEAST_FLOAT32,
    BINARY,
    CASES,
    NON_DIFFERENTIABLE,
    REDUCTIONS,
    UNARY,
    ZERO_GRADIENT,
    differentiable,
    fixed,
    operations,
    tensor_of,
)
from tinytensor import func, ops
from tinytensor.tensor import OPERATIONS
from tinytensor.testing import check_implementations, gradcheck, gradgradcheck, strategies
from tinytensor.testing.implementations import rounding_unit
from tinytensor.testing.strategies import LAYOUTS, lay_out


def table(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def table_with_dtypes(*more):
    """Every differentiable case, in each narrow dtype that it is meant for and in `more`."""
    pairs = [(case, np.dtype(d)) for case in differentiable() for d in (*more, *case.dtypes)]
    ids = [f"{case.id} {dtype}" for case, dtype in pairs]
    return pytest.mark.parametrize(("case", "dtype"), pairs, ids=ids)


# --- the table itself ----------------------------------------------------------------------------


def test_every_operation_has_a_case():
    missing = operations() - {case.name for case in CASES}
    assert not missing, f"no case in tests/table.py for {sorted(missing)}"


def test_the_table_names_operations_only():
    unknown = ({case.name for case in CASES} | NON_DIFFERENTIABLE | ZERO_GRADIENT) - operations()
    assert not unknown, f"no such operation: {sorted(unknown)}"


def test_every_differentiable_operation_is_differentiated():
    covered = {case.name for case in differentiable()} | NON_DIFFERENTIABLE
    assert operations() == covered


def test_cases_have_names_of_their_own():
    ids = [case.id for case in CASES]
    assert sorted(set(ids)) == sorted(ids)


# --- derivatives ---------------------------------------------------------------------------------


@table(differentiable())
def test_gradients_agree_with_finite_differences(case):
    gradcheck(case.function, case.tensors())
    with tt.reference_ops():
        gradcheck(case.function, case.tensors(seed=1))


@table(differentiable())
def test_second_derivatives_agree_with_finite_differences(case):
    gradgradcheck(case.function, case.tensors(), directions=2)


@table([case for case in CASES if case.name in NON_DIFFERENTIABLE])
def test_operations_without_gradient_record_nothing(case):
    y = case.function(*case.tensors())
    assert not y.requires_grad


@table([case for case in CASES if case.name in ZERO_GRADIENT])
def test_zero_gradients_are_zero(case):
    (x,) = case.tensors()
    (dx,) = tt.autograd.grad(case.function(x).sum(), x)
    assert not dx.numpy().any()


@table([case for case in differentiable() if case.name not in ZERO_GRADIENT])
def test_other_gradients_are_not_zero(case):
    """A case whose gradient vanished could not tell a right VJP from one that returns zeros."""
    inputs = case.tensors()
    real = [x for x in inputs if isinstance(x, tt.Tensor) and x.requires_grad]
    y = case.function(*inputs)
    if not y.shape or y.numel():
        cotangent = tt.from_numpy(np.random.default_rng(0).normal(size=y.shape))
        gradients = tt.autograd.grad(y, real, cotangent)
        if case.label not in ("of all", "0"):  # dropout of everything, x to the power 0
            assert all(g.numpy().any() for g in gradients)


# --- values --------------------------------------------------------------------------------------


@table([case for case in CASES if case.expected is not None])
def test_values_agree_with_numpy(case):
    arrays = case.arrays()
    expected = np.asarray(case.expected(*arrays))
    for y in (case.function(*map(tensor_of, arrays)), reference(case, arrays)):
        assert y.shape == expected.shape
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-300)
        eps = rounding_unit(np.float64)
        np.testing.assert_allclose(
            y.detach().numpy(), expected, rtol=0, atol=16 * case.condition * eps * scale
        )
        if case.result is not None:
            assert y.dtype == case.result


def reference(case, arrays):
    with tt.reference_ops():
        return case.function(*map(tensor_of, arrays))


@table(CASES)
def test_arrays_in_arrays_out(case):
    """Operations are functions of arrays as much as of tensors; bodies call each other so."""
    arrays = case.arrays()
    y = case.function(*arrays)
    assert isinstance(y, np.ndarray | np.generic)
    z = case.function(*map(tensor_of, arrays)).detach().numpy()
    assert y.dtype == z.dtype
    np.testing.assert_allclose(y, z, rtol=1e-14, atol=1e-15)


# --- dtypes --------------------------------------------------------------------------------------


@table_with_dtypes()
def test_dtype_is_kept(case, dtype):
    """float32 and bfloat16 in, the same out, forward and backward, and near the exact numbers."""
    arrays = case.arrays(dtype)
    # The same numbers, rounded already, so that what is compared is the operation's own rounding.
    exact = [a.astype(np.float64) if a is not None and a.dtype == dtype else a for a in arrays]
    before = [None if a is None else a.copy() for a in arrays]
    got, wanted = outputs_and_gradients(case, arrays), outputs_and_gradients(case, exact)
    longest = max((g.size for g in arrays if g is not None), default=1)
    unit = rounding_unit(dtype) * case.condition * (2 + longest**0.5)
    for (what, a), (_, b) in zip(got, wanted, strict=True):
        widened = what == "output" and case.name in AT_LEAST_FLOAT32
        assert a.dtype == (case.result or (np.float32 if widened else dtype)), what
        assert a.shape == b.shape, what
        scale = np.abs(b).max(initial=0)
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=unit * scale, err_msg=what)
    for a, b in zip(arrays, before, strict=True):
        assert a is None or np.array_equal(a, b)


def outputs_and_gradients(case, arrays):
    inputs = [tensor_of(a) for a in arrays]
    y = case.function(*inputs)
    real = [x for x in inputs if isinstance(x, tt.Tensor) and x.requires_grad]
    cotangent = np.random.default_rng(5).integers(-4, 5, y.shape).astype(y.dtype)
    gradients = tt.autograd.grad(y, real, tt.from_numpy(cotangent), allow_unused=True)
    return [
        ("output", y.detach().numpy()),
        *((f"gradient {i}", g.numpy()) for i, g in enumerate(gradients) if g is not None),
    ]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "C"])
@table(CASES)
def test_layout_does_not_matter(case, layout):
    for dtype in (np.float32, np.float64):
        arrays = case.arrays(dtype)
        moved = [None if a is None else lay_out(a, layout) for a in arrays]
        before = [None if a is None else a.copy() for a in moved]
        one = case.function(*map(tensor_of, arrays))
        two = case.function(*map(tensor_of, moved))
        unit = 16 * case.condition * rounding_unit(dtype)
        a, b = one.detach().numpy(), two.detach().numpy()
        assert a.dtype == b.dtype
        scale = np.abs(a[np.isfinite(a)].astype(np.float64)).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=unit * scale)
        if one.requires_grad:
            for (_, g), (what, h) in zip(
                outputs_and_gradients(case, arrays), outputs_and_gradients(case, moved), strict=True
            ):
                scale = np.abs(g).max(initial=0)
                np.testing.assert_allclose(g, h, rtol=0, atol=unit * scale, err_msg=what)
        for x, y in zip(moved, before, strict=True):
            assert x is None or np.array_equal(x, y, equal_nan=x.dtype.kind == "f")


@table_with_dtypes(np.float64)
def test_fast_paths_agree_with_references(case, dtype):
    check_implementations(case.function, case.tensors(dtype))


@table(differentiable())
def test_transforms_see_the_same_functions(case):
    """One level up, values and gradients are the same."""
    function, real = of_real_inputs(case)
    y, pullback = func.vjp(function, *real)
    leaves = [x.clone().requires_grad_() for x in real]
    expected = function(*leaves)
    np.testing.assert_allclose(
        y.detach().numpy(), expected.detach().numpy(), rtol=1e-12, atol=1e-15
    )
    u = tt.from_numpy(np.random.default_rng(0).normal(size=y.shape))
    wanted = tt.autograd.grad(expected, leaves, u)
    for g, w in zip(pullback(u), wanted, strict=True):
        np.testing.assert_allclose(g.detach().numpy(), w.numpy(), rtol=1e-9, atol=1e-12)


@table(differentiable())
def test_pushforward_and_pullback_agree(case):
    """u · (J v) = (Jᵀ u) · v: `jvp` differentiates the VJP itself, with tensors for dy."""
    function, real = of_real_inputs(case)
    rng = np.random.default_rng(1)
    v = tuple(tt.from_numpy(rng.normal(size=x.shape)) for x in real)
    y, pushed = func.jvp(function, real, v)
    u = tt.from_numpy(rng.normal(size=y.shape))
    pulled = func.vjp(function, *real)[1](u)
    products = [(g * d).detach().numpy() for g, d in zip(pulled, v, strict=True)]
    size = sum(np.abs(p).sum() for p in products)
    difference = float((u * pushed).sum()) - sum(p.sum() for p in products)
    assert abs(difference) <= 1e-11 * max(size, 1e-3)


def of_real_inputs(case):
    """The case as a function of its differentiable inputs alone, and these."""
    inputs = case.tensors()
    places = [i for i, x in enumerate(inputs) if isinstance(x, tt.Tensor) and x.requires_grad]

    def function(*xs):
        given = list(inputs)
        for place, x in zip(places, xs, strict=True):
            given[place] = x
        return case.function(*given)

    return function, tuple(inputs[i].detach() for i in places)


# --- drawn shapes, axes and layouts --------------------------------------------------------------


@settings(max_examples=150)
@given(st.sampled_from(sorted(UNARY)), st.data())
def test_functions_of_one_number_on_any_array(name, data):
    domain, expected = UNARY[name]
    kind = domain(1)
    x = data.draw(
        strategies.tensors(low=kind.low, high=kind.high, avoid=kind.avoid, distinct=kind.distinct)
    )
    y = getattr(ops, name)(x)
    assert y.shape == x.shape
    np.testing.assert_allclose(
        y.detach().numpy(), expected(x.detach().numpy()), rtol=1e-12, atol=1e-14
    )
    if x.numel():
        assert gradcheck(getattr(ops, name), x, directions=1)


@settings(max_examples=150)
@given(st.sampled_from(sorted(BINARY)), strategies.broadcastable_shapes(), st.data())
def test_functions_of_two_numbers_broadcast(name, shapes, data):
    *domains, expected = BINARY[name]
    kinds = [domain(1) for domain in domains]
    a, b = (
        data.draw(strategies.tensors(shape, low=kind.low, high=kind.high, avoid=kind.avoid))
        for shape, kind in zip(shapes, kinds, strict=True)
    )
    function = getattr(ops, name)
    y = function(a, b)
    wanted = expected(a.detach().numpy(), b.detach().numpy())
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y.detach().numpy(), wanted, rtol=1e-12, atol=1e-14)
    apart = np.abs(a.detach().numpy() - b.detach().numpy()).min(initial=np.inf)
    if y.numel() and (name in ("maximum", "minimum") and apart < 1e-3):
        return  # a kink
    if y.numel() and name != "remainder":  # which jumps wherever a / b is whole
        assert gradcheck(function, [a, b], directions=1)
    elif not y.numel():
        y.sum().backward()
        assert (a.grad.shape, b.grad.shape) == shapes
        assert not a.grad.numpy().any()


@settings(max_examples=200)
@given(st.sampled_from(sorted(REDUCTIONS)), strategies.shapes(min_side=1), st.booleans(), st.data())
def test_reductions_along_any_axes(name, shape, keepdims, data):
    domain, expected = REDUCTIONS[name]
    kind = domain(1)
    x = data.draw(strategies.tensors(shape, low=0.25, high=kind.high, distinct=kind.distinct))
    axis = data.draw(strategies.axes(len(shape)))
    function = fixed(getattr(ops, name), axis=axis, keepdims=keepdims)
    with np.errstate(all="ignore"):
        wanted = np.asarray(expected(x.detach().numpy(), axis=axis, keepdims=keepdims))
    y = function(x)
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y.detach().numpy(), wanted, rtol=1e-12, atol=1e-14)
    alone = x.numel() == y.numel()  # the standard deviation of one number has a kink at 0
    if not (alone and name == "std"):
        assert gradcheck(function, x, directions=1)


EMPTY_SUMS = {"sum": 0.0, "prod": 1.0, "logsumexp": -np.inf, "norm": 0.0}


@pytest.mark.parametrize("name", sorted(EMPTY_SUMS))
def test_reductions_of_nothing(name):
    x = tt.zeros(0, 3, dtype=tt.float64, requires_grad=True)
    y = getattr(ops, name)(x, axis=0)
    assert y.tolist() == [EMPTY_SUMS[name]] * 3
    y.sum().backward()
    assert x.grad.shape == (0, 3)
    assert getattr(ops, name)(x, axis=1).shape == (0,)


@settings(max_examples=150)
@given(strategies.matmul_shapes(), st.data())
def test_products_of_any_shapes(shapes, data):
    a, b = (data.draw(strategies.tensors(shape)) for shape in shapes)
    y = ops.matmul(a, b)
    wanted = np.matmul(a.detach().numpy(), b.detach().numpy())
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y.detach().numpy(), wanted, rtol=1e-12, atol=1e-13)
    if a.numel() and b.numel() and y.numel():
        assert gradcheck(ops.matmul, [a, b], directions=1)
    else:
        y.sum().backward()
        assert (a.grad.shape, b.grad.shape) == shapes
        assert not a.grad.numpy().any()
        assert not b.grad.numpy().any()


@settings(max_examples=200)
@given(strategies.shapes(), st.data())
def test_any_index_reads_as_numpy_does(shape, data):
    index = data.draw(strategies.indices(shape))
    x = data.draw(strategies.tensors(shape))
    y = ops.getitem(x, index)
    wanted = np.asarray(x.detach().numpy()[index])
    assert y.shape == wanted.shape
    assert np.array_equal(y.detach().numpy(), wanted)
    dy = np.random.default_rng(0).normal(size=wanted.shape)
    expected = np.zeros(shape)
    np.add.at(expected, index, dy)
    y.backward(tt.from_numpy(dy))
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-12, atol=1e-12)
    with_tensors = tuple_of_tensors(index)
    assert np.array_equal(ops.getitem(x, with_tensors).detach().numpy(), wanted)


def tuple_of_tensors(index):
    """The same index with tensors instead of arrays."""
    if isinstance(index, tuple):
        return tuple(map(tuple_of_tensors, index))
    return tt.from_numpy(index) if isinstance(index, np.ndarray) else index


@settings(max_examples=100)
@given(strategies.shapes(min_side=1), st.data())
def test_numbers_are_moved_and_brought_back(shape, data):
    """Where an operation only moves numbers, gradients find the way back."""
    x = data.draw(strategies.tensors(shape))
    order = data.draw(st.permutations(range(len(shape))))
    functions = [
        (fixed(ops.transpose, tuple(order)), fixed(np.transpose, order)),
        (fixed(ops.reshape, (-1,)), fixed(np.reshape, -1)),
        (ops.flip, np.flip),
        (fixed(ops.roll, 2), fixed(np.roll, 2)),
        (fixed(ops.tile, (2, 1)), fixed(np.tile, (2, 1))),
        (fixed(ops.broadcast_to, (2, *shape)), fixed(np.broadcast_to, (2, *shape))),
        (fixed(ops.repeat, 2), fixed(np.repeat, 2)),
    ]
    for function, expected in functions:
        y = function(x)
        assert np.array_equal(y.detach().numpy(), expected(x.detach().numpy()))
        assert gradcheck(function, x, directions=1)


@settings(max_examples=60)
@given(
    strategies.arrays(
        strategies.shapes(min_dims=1, max_dims=3, max_side=70), dtype=(np.float64, np.float32)
    ),
    st.data(),
)
def test_fast_paths_at_every_size_and_layout(x, data):
    """Sizes on both sides of every block of a fast path, zero among them."""
    name = data.draw(st.sampled_from(["gelu", "softmax", "relu", "layer_norm", "linear", "add"]))
    x = tt.from_numpy(x).requires_grad_()
    rng = np.random.default_rng(data.draw(strategies.seeds()))
    inputs = {
        "linear": lambda: [x, tensor_of(rng.normal(size=(33, x.shape[-1])).astype(x.dtype)), None],
        "layer_norm": lambda: [
            x,
            *(tensor_of(rng.normal(size=x.shape[-1:]).astype(x.dtype)) for _ in "wb"),
        ],
        "add": lambda: [x, tensor_of(rng.normal(size=x.shape[-1:]).astype(x.dtype))],
        "gelu": lambda: [x],
    }.get(name, lambda: [x])()
    options = {"approximate": "tanh"} if name == "gelu" else {}
    if name in ("softmax", "layer_norm") and not x.shape[-1]:
        return
    assert check_implementations(fixed(getattr(ops, name), **options), inputs)


@settings(max_examples=40)
@given(
    st.sampled_from(["attention", "cross_entropy", "embedding", "linear_cross_entropy", "dropout"]),
    st.tuples(st.integers(1, 3), st.integers(1, 130), st.integers(1, 70), st.integers(1, 40)),
    st.sampled_from([np.float32, np.float64]),
    strategies.seeds(),
)
def test_fast_paths_of_networks_at_every_size(name, sizes, dtype, seed):
    B, T, S, D = sizes
    rng = np.random.default_rng(seed)

    def real(*shape):
        return tensor_of(rng.normal(size=shape).astype(dtype))

    ids = tt.from_numpy(rng.integers(0, S, (B, T)))
    causal = bool(rng.integers(2))
    function, inputs = {
        "attention": (
            fixed(ops.scaled_dot_product_attention, None, is_causal=causal),
            [real(B, T, D), real(B, S, D), real(B, S, D)],
        ),
        "cross_entropy": (
            fixed(ops.cross_entropy, None, ignore_index=0 if S > 1 else -1),
            [real(B, T, S), ids],
        ),
        "embedding": (ops.embedding, [real(S, D), ids]),
        "linear_cross_entropy": (
            fixed(ops.linear_cross_entropy, None, ids, None),
            [real(B, T, D), real(S, D)],
        ),
        "dropout": (fixed(ops.dropout, 0.3, tt.random.Draw(3, 4)), [real(B, T, D)]),
    }[name]
    if name == "cross_entropy":
        inputs[1].view(-1)[0] = S - 1  # at least one row counts
    assert check_implementations(function, inputs)


LARGE = dict.fromkeys(("add", "multiply", "divide", "relu", "gelu"), (300, 400))


@pytest.mark.parametrize(
    "name", sorted(name for name in operations() if np.ndarray in OPERATIONS[name].implementations)
)
def test_every_fast_path_is_taken(name, monkeypatch):
    """One that always declined would agree with its reference, and be worth nothing."""
    operation, taken = OPERATIONS[name], []
    fast = operation.implementations[np.ndarray]

    def watched(*args, **options):
        result = fast(*args, **options)
        taken.append(result is not NotImplemented)
        return result

    monkeypatch.setitem(operation.implementations, np.ndarray, watched)
    for case in CASES:
        if case.name == name:
            case.function(*case.tensors(np.float32))
    if name in LARGE:  # worth it for large arrays only
        x = tt.rand(*LARGE[name]) + 1
        options = {"approximate": "tanh"} if name == "gelu" else {}
        operation(*[x] * len(operation.inputs), **options)
    assert any(taken)


# --- numbers at the edge -------------------------------------------------------------------------

INF, NAN = math.inf, math.nan
EDGES = {
    "relu": ([-INF, INF, NAN, -0.0], [0, INF, NAN, 0]),
    "sigmoid": ([-INF, INF, NAN, 1000, -1000], [0, 1, NAN, 1, 0]),
    "tanh": ([-INF, INF, NAN], [-1, 1, NAN]),
    "silu": ([1000, -1000, NAN], [1000, 0, NAN]),
    "gelu": ([1000, -1000, NAN], [1000, 0, NAN]),
    "exp": ([-INF, INF, NAN, 1e6], [0, INF, NAN, INF]),
    "log": ([0, INF, -1, NAN], [-INF, INF, NAN, NAN]),
    "log1p": ([-1, INF, NAN, 1e-300], [-INF, INF, NAN, 1e-300]),
    "expm1": ([1e-300, -INF], [1e-300, -1]),
    "sqrt": ([0, INF, -1, NAN], [0, INF, NAN, NAN]),
    "rsqrt": ([0, INF, -1], [INF, 0, NAN]),
    "reciprocal": ([0, INF, -INF], [INF, 0, 0]),
    "absolute": ([-INF, NAN, -0.0], [INF, NAN, 0]),
    "sign": ([-INF, 0, NAN], [-1, 0, NAN]),
    "erf": ([-INF, INF, NAN, 0], [-1, 1, NAN, 0]),
    "logsumexp": ([-INF, -INF], -INF),
    "softmax": ([1000, 1000], [0.5, 0.5]),
    "log_softmax": ([0, -INF], [0, -INF]),
    "amax": ([1, NAN, 3], NAN),
    "isnan": ([1, NAN], [False, True]),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, tt.bfloat16], ids=str)
@pytest.mark.parametrize("name", EDGES)
def test_numbers_at_the_edge(name, dtype):
    """Infinities, nan and overflow: PyTorch's results, and no warning."""
    values, expected = EDGES[name]
    if dtype != np.float64:
        values = [v for v in values if abs(v) != 1e-300]
        expected = [v for v in expected if v != 1e-300] if isinstance(expected, list) else expected
    x = tt.tensor(values, dtype=np.dtype(dtype))
    for _ in range(2):
        y = getattr(ops, name)(x)
        np.testing.assert_array_equal(y.numpy().astype(float), np.array(expected, float))
        with tt.reference_ops():
            y = getattr(ops, name)(x)
        np.testing.assert_array_equal(y.numpy().astype(float), np.array(expected, float))


SILENT = {
    "power": lambda x: x**3,
    "exp": lambda x: x.exp(),
    "sum": lambda x: x.sum(),
    "softmax of nothing": lambda x: (x * 0).masked_fill(x > 0, -INF).softmax(-1),
    "log_softmax of nothing": lambda x: (x * 0).masked_fill(x > 0, -INF).log_softmax(-1),
}


@pytest.mark.parametrize("dtype", [np.float32, tt.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SILENT)
def test_infinities_come_without_warnings(name, dtype):
    """Infinities and nan come out, as in PyTorch, and no warning of NumPy's."""
    x = tt.tensor([3e38, 3e38]).to(np.dtype(dtype))
    for context in (contextlib.nullcontext(), tt.reference_ops()):
        with context:
            y = SILENT[name](x)
        assert not np.isfinite(y.numpy().astype(float)).any()


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "exp", "softmax", "logsumexp", "erf"])
def test_gradients_at_the_edge_are_finite(name):
    x = tt.tensor([-1e3, -80.0, 0.5, 80.0], dtype=tt.float32, requires_grad=True)
    y = getattr(ops, name)(x)
    (dx,) = tt.autograd.grad(y.sum(), x)
    assert np.isfinite(dx.numpy()).all()
