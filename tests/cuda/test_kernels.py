"""Every kernel in the simulator against the references, over odd sizes and thread orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinytensor as tt
from tinytensor.cuda.kernels import launch
from tinytensor.random import Draw, keep_mask

pytestmark = pytest.mark.compiler

sizes = st.sampled_from([0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 65, 67])
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=15, deadline=None)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def blank(*shape):
    return np.full(shape, np.nan, np.float32)


def close(ours, reference, length=1):
    """To a few roundings, growing with the square root of the length of the sums."""
    tolerance = 8 * np.finfo(np.float32).eps * max(1, length) ** 0.5
    np.testing.assert_allclose(ours, reference, rtol=4 * tolerance, atol=4 * tolerance)


@examples
@given(sizes, sizes.filter(bool), seeds)
def test_softmax(rows, columns, seed):
    x, dy = normal(seed, rows, columns), normal(seed + 1, rows, columns)
    y, dx = blank(rows, columns), blank(rows, columns)
    expected, vjp = tt.ops.softmax.reference(x.astype(np.float64))
    launch("softmax_forward", (rows,), (64,), [y, x], [rows, columns], seed)
    launch("softmax_backward", (rows,), (64,), [dx, dy, y], [rows, columns], seed)
    close(y, expected, columns)
    close(dx, vjp(dy) if callable(vjp) else vjp[0](dy), columns)


@examples
@given(sizes.filter(bool), sizes.filter(bool), seeds)
def test_layer_norm(rows, C, seed):
    x, dy = normal(seed, rows, C), normal(seed + 1, rows, C)
    weight, bias = normal(seed + 2, C), normal(seed + 3, C)
    y, dx, mean, rstd = blank(rows, C), blank(rows, C), blank(rows), blank(rows)
    dweight, dbias = blank(C), blank(C)
    wide = [a.astype(np.float64) for a in (x, weight, bias)]
    expected, vjp = tt.ops.layer_norm.reference(*wide, eps=1e-2)
    one = (rows,), (64,)
    launch("layer_norm_forward", *one, [y, mean, rstd, x, weight, bias], [rows, C, 1e-2], seed)
    launch("layer_norm_dx", *one, [dx, dy, x, weight, mean, rstd], [rows, C], seed)
    outputs = [dweight, dbias, dy, x, mean, rstd]
    launch("layer_norm_dparameters", (-(-C // 32),), (32,), outputs, [rows, C], seed)
    close(y, expected, 16 * C)
    close(dx, vjp[0](dy), 256 * C)
    close(dweight, vjp[1](dy).sum(0), 16 * rows)
    close(dbias, dy.sum(0), 16 * rows)


@examples
@given(sizes, seeds)
def test_gelu(count, seed):
    x, dy, y, dx = normal(seed, count), normal(seed + 1, count), blank(count), blank(count)
    expected, vjp = tt.ops.gelu.reference(x.astype(np.float64), approximate="tanh")
    grid = (-(-count // 32),)
    launch("gelu_forward", grid, (32,), [y, x], [count], seed)
    launch("gelu_backward", grid, (32,), [dx, dy, x], [count], seed)
    close(y, expected)
    close(dx, vjp(dy) if callable(vjp) else vjp[0](dy))


@examples
@given(sizes, seeds, st.integers(0, 2**64 - 1), st.integers(0, 2**60))
def test_dropout_has_the_bits_of_the_engine(count, seed, key, counter):
    x, y, p = normal(seed, count), blank(count), 0.3
    scale = np.float32(1 / (1 - p))
    scalars = [count, round(p * 2**32), scale, key, counter]
    launch("dropout", (-(-count // 256),), (32,), [y, x], scalars, seed)
    keep = keep_mask(Draw(key, counter), (count,), p)
    np.testing.assert_array_equal(y, np.where(keep, x * scale, np.float32(0)))


@pytest.mark.parametrize("name", ["matmul_naive", "matmul_tiled"])
@examples
@given(m=sizes, n=sizes, k=sizes, seed=seeds)
def test_matmul(name, m, n, k, seed):
    a, b, c = normal(seed, m, k), normal(seed + 1, k, n), blank(m, n)
    launch(name, (-(-n // 16), -(-m // 16)), (16, 16), [c, a, b], [m, n, k], seed)
    close(c, a.astype(np.float64) @ b.astype(np.float64), 16 * k)
