"""Matrix products in the simulator: every rung of the ladder, and the production kernels.

Errors are held to bounds, not to tolerances: with u the unit roundoff of float32 and |A| the matrix
of absolute values, a sum of k products in any order is within (k + 1) u |A| |B| of the exact one;
TF32 first rounds each factor (2⁻¹¹), bfloat16 the result (2⁻⁸).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.backend import bfloat16
from tinytensor.cuda import kernels, simulator
from tinytensor.cuda.matmul import LADDER, Tile, ladder, product
from tinytensor.cuda.products import ProductGradient
from tinytensor.cuda.views import is_aligned, strides, window

pytestmark = pytest.mark.compiler

FLOAT32 = np.dtype(np.float32)
SMALL = Tile(64, 64)
sizes = st.sampled_from([0, 1, 2, 7, 15, 16, 17, 31, 33, 63, 64, 65, 67, 130])
seeds = st.integers(0, 2**32 - 1)


def examples(count):
    return settings(max_examples=count, deadline=None)


def normal(seed, *shape, dtype=FLOAT32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def wide(x):
    return x.astype(np.float64)


def check(c, a, b, tf32=False, extra=0.0, addend=0.0):
    """c is a @ b + addend to within the bound above; `extra` bounds what the addend adds to it."""
    a, b = wide(a), wide(b)
    exact, sums, k = a @ b + addend, abs(a) @ abs(b), a.shape[-1]
    bound = (k + 3) * 2.0**-24 * sums + (2 * 2.0**-11 * sums if tf32 else 0) + extra
    if c.dtype == bfloat16:
        bound = 1.01 * bound + 2.0**-8 * (abs(exact) + bound)
    assert c.shape == exact.shape
    excess = abs(wide(c) - exact) - bound - 1e-30
    assert (excess <= 0).all(), f"{excess.max()} over the bound"


@pytest.mark.parametrize("name", LADDER)
@examples(15)
@given(m=sizes, n=sizes, k=sizes, seed=seeds)
def test_every_rung_of_the_ladder(name, m, n, k, seed):
    a, b = normal(seed, m, k), normal(seed + 1, k, n)
    check(ladder(name, a, b, seed), a, b)


def stored(seed, rows, columns, transpose, dtype, batch=()):
    """A random (…, rows, columns) matrix; transposed, it lies in memory the other way round."""
    if transpose:
        return normal(seed, *batch, columns, rows, dtype=dtype).swapaxes(-1, -2)
    return normal(seed, *batch, rows, columns, dtype=dtype)


# The kernel on tensor cores has a variant for each; unaligned ones load element by element.
VARIANTS = [
    *((False, False, True), (False, True, True), (True, False, True), (True, True, True)),
    *((False, False, False), (True, False, False)),
]


@pytest.mark.parametrize("dtype", [bfloat16, FLOAT32], ids=["bfloat16", "tf32"])
@pytest.mark.parametrize(("transpose_a", "transpose_b", "aligned"), VARIANTS)
@examples(8)
@given(m=sizes, n=sizes, k=sizes, parts=st.sampled_from([1, 1, 3]), seed=seeds)
def test_tensor_cores(dtype, transpose_a, transpose_b, aligned, m, n, k, parts, seed):
    if aligned:
        m, n, k = (-(-size // 8) * 8 for size in (m, n, k))
    else:
        m, n, k = (size + (size % 2 == 0) for size in (m, n, k))
    a = stored(seed, m, k, transpose_a, dtype)
    b = stored(seed + 1, k, n, transpose_b, dtype)
    c = product(a, b, kernel="matmul_mma", tile=SMALL, parts=parts, seed=seed)
    check(c, a, b, tf32=dtype == FLOAT32)


@pytest.mark.parametrize("tile", [Tile(128, 128), Tile(128, 256, 2)], ids=str)
def test_large_tiles(tile):
    a, b = normal(0, 130, 200, dtype=bfloat16), normal(1, 264, 200, dtype=bfloat16).T
    check(product(a, b, kernel="matmul_mma", tile=tile), a, b)


@pytest.mark.parametrize("dtype", [bfloat16, FLOAT32], ids=str)
@examples(20)
@given(
    m=sizes,
    n=sizes,
    k=sizes,
    flips=st.tuples(st.booleans(), st.booleans()),
    seed=seeds,
    tile=st.sampled_from([Tile(64, 64), Tile(128, 128)]),
)
def test_plain(dtype, m, n, k, flips, seed, tile):
    a, b = stored(seed, m, k, flips[0], dtype), stored(seed + 1, k, n, flips[1], dtype)
    check(product(a, b, kernel="matmul_plain", tile=tile, seed=seed), a, b)


either = pytest.mark.parametrize("kernel", ["matmul_mma", "matmul_plain"])


@either
def test_batches_and_views(kernel):
    def run(a, b):
        check(product(a, b, kernel=kernel, tile=SMALL), a, b)

    joint = normal(0, 2, 9, 3, 4, 16, dtype=bfloat16)  # B, T, (q, k, v), H, D
    q, k, v = (joint[:, :, i].swapaxes(1, 2) for i in range(3))
    run(q, k.swapaxes(-1, -2))
    run(normal(1, 2, 4, 9, 9, dtype=bfloat16), v)
    run(normal(2, 5, 1, 7, 8, dtype=bfloat16), normal(3, 3, 8, 6, dtype=bfloat16))  # broadcast
    run(normal(4, 7, 8, dtype=bfloat16), normal(5, 2, 8, 6, dtype=bfloat16))
    three = normal(6, 2, 3, 4, 8, 8, dtype=bfloat16).transpose(2, 1, 0, 3, 4)[:, ::2]
    run(three, normal(7, 4, 2, 2, 8, 8, dtype=bfloat16))
    run(normal(8, 40, 30, dtype=bfloat16)[::-1, ::3], normal(9, 10, 8, dtype=bfloat16))


@either
@pytest.mark.parametrize("parts", [1, 2])
def test_epilogue(kernel, parts):
    m, n, k = 65, 40, 136
    a, b = normal(0, m, k, dtype=bfloat16), normal(1, k, n, dtype=bfloat16)
    how = {"kernel": kernel, "tile": SMALL, "parts": parts, "dtype": FLOAT32}
    bias, before = normal(2, n, dtype=bfloat16), np.empty((m, n), np.float32)
    check(product(a, b, bias=bias, **how), a, b, addend=wide(bias), extra=2.0**-22)
    y = product(a, b, bias=bias, gelu=True, before=before, **how)
    check(before, a, b, addend=wide(bias), extra=2.0**-22)
    x = wide(before)
    expected = 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    c = normal(3, m, n)
    old = wide(c)
    product(a, b, out=c, accumulate=True, kernel=kernel, tile=SMALL, parts=parts)
    check(c, a, b, addend=old, extra=2.0**-22 * (1 + abs(old)))


@either
def test_rows_of_the_output_may_be_apart(kernel):
    a, b = normal(0, 20, 24, dtype=bfloat16), normal(1, 24, 16, dtype=bfloat16)
    whole = np.full((20, 40), 7, bfloat16)
    product(a, b, out=whole[:, 8:24], kernel=kernel, tile=SMALL)
    check(whole[:, 8:24], a, b)
    assert (whole[:, :8] == 7).all() and (whole[:, 24:] == 7).all()


@either
def test_an_empty_sum_is_the_bias(kernel):
    bias = normal(0, 4)
    y = product(normal(0, 3, 0), normal(0, 0, 4), bias=bias, kernel=kernel)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, (3, 4)))
    assert product(normal(0, 0, 3), normal(0, 3, 4), kernel=kernel).shape == (0, 4)


@either
def test_the_result_does_not_depend_on_the_order_of_threads(kernel):
    a, b = normal(0, 70, 260, dtype=bfloat16), normal(1, 260, 66, dtype=bfloat16)
    how = {"kernel": kernel, "tile": SMALL, "parts": 2, "dtype": FLOAT32}
    first = product(a, b, seed=0, **how)
    for seed in range(1, 4):
        np.testing.assert_array_equal(product(a, b, seed=seed, **how), first)


def test_not_finite_values_stay_where_they_belong():
    a, b = normal(0, 70, 40, dtype=bfloat16), normal(1, 40, 66, dtype=bfloat16)
    a[3, 5], a[8, 1] = np.nan, np.inf
    y = product(a, b, kernel="matmul_mma", tile=SMALL)
    bad = ~np.isfinite(wide(y))
    assert bad[3].all() and bad[8].all()
    bad[[3, 8]] = False
    assert not bad.any()


def nightly(*case):
    return pytest.param(*case, marks=pytest.mark.nightly)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        nightly("wait_for_copies<STAGES - 2>();", ""),
        ("wait_for_copies<STAGES - 2>();", "wait_for_copies<STAGES - 1>();"),
        ("        __syncthreads();  //", "        //"),
        nightly("chunk ^ swizzle", "chunk + swizzle"),
        ("first + lane % 16,", "first + lane % 8,"),
        nightly("y[j / 2] + j % 2 * 2", "y[j / 2]"),
        nightly("lane / 4 + 8 * half;", "lane / 4 + 4 * half;"),
    ],
)
def test_faults_planted_in_the_pipeline_are_caught(right, wrong, monkeypatch):
    source = (kernels.folder() / "matmul_mma.cu").read_text()
    assert right in source
    planted = source.replace(right, wrong)
    real_launch = simulator.launch

    def launch(source, name, *rest, **options):
        return real_launch(planted if name == "matmul_mma" else source, name, *rest, **options)

    monkeypatch.setattr(simulator, "launch", launch)
    a, b = normal(0, 64, 328, dtype=bfloat16), normal(1, 328, 64, dtype=bfloat16)
    try:
        c = product(a, b, kernel="matmul_mma", tile=SMALL, parts=1)
    except simulator.SimulationError:
        return
    with pytest.raises(AssertionError):
        check(c, a, b)


def test_misuse_is_a_sentence():
    a, b = normal(0, 3, 4), normal(1, 4, 5)
    with pytest.raises(ValueError, match=r"\(3, 4\) @ \(3, 4\) is no product"):
        product(a, a)
    with pytest.raises(TypeError, match="float32 by bfloat16"):
        product(a, b.astype(bfloat16))
    with pytest.raises(TypeError, match="float64 by float64"):
        product(wide(a), wide(b))
    with pytest.raises(ValueError, match=r"bias must be \(5,\), float32; it is \(4,\)"):
        product(a, b, bias=normal(2, 4))
    with pytest.raises(ValueError, match=r"out must be \(3, 5\)"):
        product(a, b, out=np.empty((3, 4), np.float32))
    with pytest.raises(ValueError, match="no rung 'matmul_fast'; there are matmul_naive"):
        ladder("matmul_fast", a, b)
    with pytest.raises(ValueError, match="accumulate"):
        product(a, b, accumulate=True)


def test_window_spans_a_view_and_no_more():
    x = np.arange(60, dtype=np.float32).reshape(5, 12)
    view = x[1:4, 2:7]
    flat = window(view)
    assert flat.shape == (2 * 12 + 5,) and flat[0] == view[0, 0] and flat[-1] == view[-1, -1]
    assert np.shares_memory(flat, x) and strides(view) == (12, 1)
    assert strides(x[:1]) == (0, 1)
    assert is_aligned(x, (12,)) and not is_aligned(x[:, 1:]) and not is_aligned(x, (3,))


@pytest.mark.parametrize("dtype", [FLOAT32, bfloat16], ids=str)
def test_linear_and_matmul_on_the_device(dtype, monkeypatch):
    launched = []
    real_launch = simulator.launch
    monkeypatch.setattr(
        simulator, "launch", lambda *a, **o: (launched.append(a[1]), real_launch(*a, **o))
    )
    arrays = normal(0, 2, 5, 24), normal(1, 16, 24), normal(2, 16), normal(3, 16, 7)

    def run(device):
        x, weight, bias, right = (
            tt.tensor(a).to(dtype).to(device).requires_grad_() for a in arrays
        )
        dy = tt.tensor(normal(4, 2, 5, 7)).to(dtype).to(device)
        for _ in range(2):  # the second adds to the gradients of the first
            hidden = tt.nn.functional.linear(x, weight, bias)
            y = hidden @ right
            y.backward(dy)
        results = (hidden, y, x.grad, weight.grad, bias.grad, right.grad)
        return [t.detach().cpu().float().numpy() for t in results]

    u = 2.0**-7 if dtype == bfloat16 else 2.0**-20
    for ours, expected in zip(run("cuda-sim"), run("cpu"), strict=True):
        assert (abs(ours - expected) <= 4 * u * abs(expected).max()).all()
    product_kernel = "matmul_mma" if dtype == bfloat16 else "matmul_plain"
    assert set(launched) == {product_kernel, "column_sum"}  # the latter for the bias


def test_a_weight_gradient_is_multiplied_into_its_buffer():
    a, b = normal(0, 30, 8), normal(1, 30, 6)
    gradient = ProductGradient(a, b)
    buffer = np.full((8, 6), np.nan, np.float32)
    gradient.write_to(buffer)
    check(buffer, a.T, b)
    gradient.add_to(buffer)
    check(buffer, 2 * a.T, b)
    assert gradient.shape == buffer.shape and gradient.dtype == FLOAT32
    check(gradient.dense(), a.T, b)
