"""Matrix products in all their shapes, linear and einsum: NumPy's numbers, and derivatives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tinytensor as tt
from tinytensor import ops
from tinytensor.ops import linalg

from .derivatives import check_derivatives, operations_of, real, recorded

PRODUCTS = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (4, 3, 2)),
    ((1, 2, 3), (2, 3, 2)),
    ((0, 3), (3, 2)),
    ((2, 2, 3), (3, 0)),
    ((2, 0), (0, 2)),
]
SUBSCRIPTS = {
    "ij,jk->ik": [(2, 3), (3, 4)],
    "ij,jk": [(2, 3), (3, 4)],
    "ba,ac": [(2, 3), (3, 4)],
    "bij,bjk->bik": [(2, 2, 3), (2, 3, 2)],
    "ii->i": [(3, 3)],
    "ii": [(3, 3)],
    "iij->ij": [(2, 2, 3)],
    "iij,j->i": [(2, 2, 3), (3,)],
    "iii->i": [(3, 3, 3)],
    "ijij->": [(2, 3, 2, 3)],
    "ij->": [(2, 3)],
    "ij->j": [(2, 3)],
    "ij->ji": [(2, 3)],
    "i,j->ij": [(2,), (3,)],
    "ij,kl->il": [(2, 3), (2, 2)],
    "ij,ij->": [(1, 3), (2, 3)],
    "ijk,ij,k->i": [(2, 3, 2), (2, 3), (2,)],
    "...ij,...jk->...ik": [(2, 1, 2, 3), (3, 3, 2)],
    "...ij,jk": [(2, 2, 3), (3, 2)],
    "i...->...": [(3, 2)],
    "b h t d , b h s d -> b h t s": [(2, 1, 3, 2), (2, 1, 2, 2)],
}
CASES = {
    **{f"matmul {a} {b}": (ops.matmul, [a, b]) for a, b in PRODUCTS},
    "linear": (ops.linear, [(2, 3), (4, 3), (4,)]),
    "linear of a vector": (ops.linear, [(3,), (4, 3), (4,)]),
    "linear of a batch": (ops.linear, [(2, 2, 3), (4, 3), (4,)]),
    "linear of nothing": (ops.linear, [(0, 3), (4, 3), (4,)]),
    "linear without bias": (lambda x, w: ops.linear(x, w, None), [(2, 3), (4, 3)]),
    "outer": (ops.outer, [(2,), (3,)]),
    **{
        f"einsum {text}": (lambda *xs, text=text: ops.einsum(text, *xs), shapes)
        for text, shapes in SUBSCRIPTS.items()
    },
}


def tensors(shapes):
    return [real(*shape, seed=seed) for seed, shape in enumerate(shapes)]


def test_the_table_covers_every_operation():
    covered = set()
    for function, shapes in CASES.values():
        covered |= recorded(function(*tensors(shapes)))
    assert operations_of(linalg) <= covered


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case):
    function, shapes = CASES[case]
    check_derivatives(function, tensors(shapes))


# --- matmul ---------------------------------------------------------------------------------------


@given(
    arrays.mutually_broadcastable_shapes(signature="(m?,k),(k,n?)->(m?,n?)", max_dims=2, max_side=3)
)
def test_matmul_is_numpys(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, shape) for shape in shapes.input_shapes)
    y = tt.tensor(a) @ tt.tensor(b)
    assert y.dtype == tt.int64
    np.testing.assert_array_equal(y.numpy(), a @ b)
    u = rng.integers(-9, 9, y.shape).astype(np.float64)
    left, right = (tt.tensor(x.astype(np.float64), requires_grad=True) for x in (a, b))
    (left @ right).backward(tt.tensor(u))
    # Σ u (a @ b) is linear in a and in b, so its value is a · da and b · db.
    total = np.sum(u * (a @ b))
    assert (left.grad.numpy() * a).sum() == pytest.approx(total)
    assert (right.grad.numpy() * b).sum() == pytest.approx(total)


def test_matmul_of_different_dtypes_promotes():
    assert (tt.ones(2, 2, dtype=tt.int64) @ tt.ones(2, 2)).dtype == tt.float32
    assert (tt.ones(2, 2) @ np.ones((2, 2))).dtype == tt.float64
    assert (np.ones((2, 2)) @ tt.ones(2, 2)).dtype == tt.float64


def products_of(x, w):
    """The same product by every operation that has a bfloat16 path."""
    yield x @ w
    yield x.unsqueeze(0) @ w
    yield ops.linear(x, w.T, None)
    yield ops.einsum("ij,jk->ik", x, w)


def test_bfloat16_is_accumulated_in_float32():
    # 1024 ones: a running sum in bfloat16 would stop at 256.
    x = tt.ones(1, 1024, dtype=tt.bfloat16, requires_grad=True)
    w = tt.ones(1024, 1, dtype=tt.bfloat16)
    for y in products_of(x, w):
        assert y.dtype == tt.bfloat16
        assert y.flatten().tolist() == [1024]
        (gradient,) = tt.autograd.grad(y.sum(), [x])
        assert gradient.dtype == tt.bfloat16


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ((2, 3), (4, 5), "3 columns but 4 rows"),
        ((3,), (4,), "3 columns but 4 rows"),
        ((2, 3), (2,), "3 columns but 2 rows"),
        ((2, 3), (), "a tensor without axes is not a matrix; use * instead"),
        ((2, 2, 3), (3, 3, 2), "the batch axes (2,) and (3,) do not agree"),
    ],
)
def test_matmul_says_what_does_not_fit(a, b, why):
    with pytest.raises(ValueError) as caught:
        tt.ones(a) @ tt.ones(b)
    assert str(caught.value) == f"matmul: {a} @ {b}: {why}"


# --- linear and outer -----------------------------------------------------------------------------


@given(arrays.array_shapes(max_dims=3, max_side=4), st.integers(1, 4), st.booleans())
def test_linear_is_its_formula(shape, out_features, with_bias):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=shape), rng.normal(size=(out_features, shape[-1]))
    bias = rng.normal(size=out_features) if with_bias else None
    y = ops.linear(tt.tensor(x), tt.tensor(weight), None if bias is None else tt.tensor(bias))
    np.testing.assert_allclose(y.numpy(), x @ weight.T + (bias if with_bias else 0), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "sentence"),
    [
        (
            tt.ones(2, 5), tt.ones(3, 4), None,
            "linear: x has 5 features but the weight expects 4 (x is (2, 5), weight is (3, 4))",
        ),
        (
            tt.ones(2, 4), tt.ones(3, 4), tt.ones(4),
            "linear: the bias is (4,) but the weight has 3 outputs (weight is (3, 4))",
        ),
        (tt.ones(4), tt.ones(4), None, "linear: the weight must be (out, in), got shape (4,)"),
    ],
)  # fmt: skip
def test_linear_says_what_does_not_fit(x, weight, bias, sentence):
    with pytest.raises(ValueError) as caught:
        ops.linear(x, weight, bias)
    assert str(caught.value) == sentence


def test_linear_wants_one_dtype():
    with pytest.raises(TypeError, match="one dtype, got float64, float32"):
        ops.linear(tt.ones(2, 3).double(), tt.ones(4, 3), None)


def test_outer_wants_vectors():
    with pytest.raises(ValueError, match=r"expected two vectors, got \(2, 2\) and \(2,\)"):
        ops.outer(tt.ones(2, 2), tt.ones(2))


# --- einsum ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SUBSCRIPTS)
def test_einsum_is_numpys(text):
    xs = [x.detach() for x in tensors(SUBSCRIPTS[text])]
    expected = np.einsum(text, *(x.numpy() for x in xs))
    np.testing.assert_allclose(ops.einsum(text, *xs).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "shapes", "sentence"),
    [
        ("ij,jk", [(2, 3)], "einsum: 'ij,jk' names 2 operands but 1 were given"),
        ("ijk", [(2, 3)], "einsum: 'ijk' in 'ijk' names 3 axes but the operand is (2, 3)"),
        ("i", [(2, 3)], "einsum: 'i' in 'i' names 1 axes but the operand is (2, 3)"),
        ("ij,jk", [(2, 3), (4, 5)], "einsum: 'j' of 'ij,jk' has sizes 3 and 4"),
        ("ij->k", [(2, 3)],
         "einsum: the output of 'ij->k' must name each axis once, and only axes of the operands"),
        ("i1->i", [(2, 3)], "einsum: '1' in 'i1->i' is not a letter"),
    ],
)  # fmt: skip
def test_einsum_says_what_does_not_fit(text, shapes, sentence):
    with pytest.raises(ValueError) as caught:
        ops.einsum(text, *(tt.ones(shape) for shape in shapes))
    assert str(caught.value) == sentence
