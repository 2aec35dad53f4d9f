"""Elementwise kernels and random numbers in the simulator: references, and the CPU's bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tests.cuda import bounds
from tests.cuda.bounds import close
from tests.cuda.kernel_cases import BOTH, FLOAT32, examples, normal, seeds, sizes, wide
from tinytensor import random
from tinytensor.cuda import elementwise
from tinytensor.random import Draw, keep_mask

pytestmark = pytest.mark.compiler

keys, counters = st.integers(0, 2**64 - 1), st.integers(0, 2**60)


@BOTH
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@examples
@given(rows=st.sampled_from([0, 1, 3, 5]), C=sizes.filter(bool), biased=st.booleans(), seed=seeds)
def test_gelu(dtype, approximate, rows, C, biased, seed):
    x = (normal(seed, rows, C) * 3).astype(dtype)
    dy, bias = normal(seed + 1, rows, C, dtype=dtype), normal(seed + 2, C, dtype=dtype)
    bias = bias if biased else None
    inner = wide(x) + (0 if bias is None else wide(bias))
    exact, vjp = tt.ops.gelu.reference(inner, approximate=approximate)
    shift = 0.0 if bias is None else wide(bias)
    close(elementwise.gelu(x, bias, approximate, seed), exact, bounds.gelu(wide(x), shift))
    dx = elementwise.gelu_backward(dy, x, bias, approximate, seed)
    expected = vjp(wide(dy)) if callable(vjp) else vjp[0](wide(dy))
    close(dx, expected, bounds.gelu_gradient(wide(x), shift, wide(dy)))


@BOTH
def test_subnormal_numbers_are_numbers(dtype):
    x = np.array([1e-40, -3e-39, 1.1e-38, 3e-38, 0.0], np.float32).astype(dtype)
    one = np.ones_like(x)
    for name, arrays, exact in (
        ("add", (x, x), wide(x) + wide(x)),
        ("subtract", (x, one * x[1]), wide(x) - wide(x)[1]),
        ("multiply", (x, one), wide(x)),
        ("divide", (x, one), wide(x)),
        ("relu", (x,), np.maximum(wide(x), 0)),
        ("scale", (x,), wide(x)),
    ):
        ours = elementwise.apply(name, *arrays, s=1.0)
        np.testing.assert_array_equal(ours, exact.astype(np.float32).astype(dtype))
        assert ours.astype(np.float32)[0] != 0


@BOTH
@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_far_from_zero(dtype, approximate):
    x = np.array([1e4, -1e4, 3e38, -3e38, 1e-40, 0, np.inf, np.nan], np.float32).astype(dtype)
    y = elementwise.gelu(x, None, approximate).astype(np.float32)
    dx = elementwise.gelu_backward(np.ones_like(x), x, None, approximate).astype(np.float32)
    np.testing.assert_array_equal(y[[0, 2, 6]], x[[0, 2, 6]].astype(np.float32))
    np.testing.assert_array_equal(y[[1, 3, 5]], 0)
    np.testing.assert_array_equal(dx[[0, 1, 2, 3, 5]], [1, 0, 1, 0, 0.5])
    assert np.isnan(y[7]) and np.isnan(dx[7])


@BOTH
@examples
@given(
    count=sizes, seed=seeds, key=keys, counter=counters, p=st.sampled_from([0.0, 0.1, 0.3, 0.999])
)
def test_dropout_has_the_bits_of_the_engine(dtype, count, seed, key, counter, p):
    x, draw = normal(seed, count, dtype=dtype), Draw(key, counter)
    y = elementwise.dropout(x, p, draw, seed)
    scaled = (x.astype(np.float32) * np.float32(1 / (1 - p))).astype(dtype)
    expected = np.where(keep_mask(draw, (count,), p), scaled, np.zeros((), dtype))
    np.testing.assert_array_equal(y.view(np.uint8), expected.view(np.uint8))


@examples
@given(count=sizes, seed=seeds, key=keys, counter=counters)
def test_words_are_the_engines(count, seed, key, counter):
    draw = Draw(key, counter)
    ours = elementwise.random_words(draw, count, seed=seed)
    np.testing.assert_array_equal(ours, random.words(draw, count))
    np.testing.assert_array_equal(ours, random.philox_words(draw, count))


@examples
@given(count=sizes, seed=seeds, key=keys, counter=counters)
def test_uniform_numbers_have_the_bits_of_the_engine(count, seed, key, counter):
    draw = Draw(key, counter)
    ours = elementwise.random_uniform((count,), draw, seed=seed)
    np.testing.assert_array_equal(ours, random.unit(draw, count))
    generator = random.Generator().set_state({"seed": key, "counter": counter})
    moved = elementwise.random_uniform((count,), draw, -2.5, 3.0, seed=seed)
    np.testing.assert_array_equal(moved, random.uniform((count,), -2.5, 3.0, generator=generator))


@examples
@given(count=sizes, seed=seeds, key=keys, counter=counters)
def test_normal_numbers_are_the_engines_to_units_in_the_last_place(count, seed, key, counter):
    generator = random.Generator().set_state({"seed": key, "counter": counter})
    expected = random.normal((count,), 1.0, 2.0, generator=generator)
    ours = elementwise.random_normal((count,), Draw(key, counter), 1.0, 2.0, seed=seed)
    # Each of root, logarithm, sine and cosine is within 4 units; |x| is below 6 (24-bit uniforms).
    np.testing.assert_allclose(ours, expected, rtol=0, atol=16 * 2.0**-24 * 12)


EXACT = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "scale": lambda a: np.float32(1.7) * a,
    "axpy": lambda a, b: np.float32(1.7) * a + b,
    "multiply_add": lambda a, b, c: a * b + c,
    "relu": lambda a: np.maximum(a, np.float32(0)),
    "relu_backward": lambda a, b: np.where(b > 0, a, np.float32(0)),
    "divide_backward": lambda a, b, c: -(a * (b / c)),
}
NEARLY = {
    "exp": lambda a: np.exp(a),
    "erf": lambda a: tt.ops.erf.reference(a)[0],
    "erf_backward": lambda a, b: a * 2 / np.sqrt(np.pi) * np.exp(-b * b),
    "tanh": lambda a: np.tanh(a),
    "tanh_backward": lambda a, b: a * (1 - b * b),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "sigmoid_backward": lambda a, b: a * b * (1 - b),
    "silu": lambda a: a / (1 + np.exp(-a)),
    "silu_backward": lambda a, b: a * (lambda s: s * (1 + b * (1 - s)))(1 / (1 + np.exp(-b))),
}


def test_every_member_of_the_family_is_tested():
    assert {*EXACT, *NEARLY} == set(elementwise.FAMILY)


@pytest.mark.parametrize("name", sorted(elementwise.FAMILY))
def test_the_family(name):
    dtype = tt.bfloat16 if len(name) % 2 else FLOAT32  # each of them in one, both of them often
    inputs = elementwise.FAMILY[name][0]
    for count in (0, 1, 7, 8, 9, 1031):
        arrays = [normal(count + i, count, dtype=dtype) for i in range(inputs)]
        y = elementwise.apply(name, *arrays, s=1.7, seed=count)
        if name in EXACT:
            expected = EXACT[name](*(a.astype(np.float32) for a in arrays)).astype(dtype)
            np.testing.assert_array_equal(y.view(np.uint8), expected.view(np.uint8))
        else:
            # Two functions at most and six roundings, of terms up to 1 + |b| times the first array.
            size = np.abs(wide(arrays[0])) * (1 + np.abs(wide(arrays[-1])))
            exact = NEARLY[name](*map(wide, arrays))
            close(y, exact, (2 * bounds.F + 6) * bounds.U * (size + np.abs(exact)))


def test_the_family_in_place_and_between_16_bytes():
    memory = normal(0, 50)
    a = memory[1:40]
    expected = a + a
    assert elementwise.apply("add", a, a, out=a) is a
    np.testing.assert_array_equal(a, expected)


def test_bad_use():
    x = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="there is no elementwise kernel 'cube'"):
        elementwise.apply("cube", x)
    with pytest.raises(ValueError, match="add: takes 2 arrays, but got 1"):
        elementwise.apply("add", x)
    with pytest.raises(TypeError, match="float32 or bfloat16 arrays of one shape"):
        elementwise.apply("add", x, x.astype(np.float64))
    with pytest.raises(ValueError, match="approximate is 'sigmoid'"):
        elementwise.gelu(x, None, "sigmoid")
