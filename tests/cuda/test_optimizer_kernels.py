"""AdamW, SGD, the norm of gradients and clipping in the simulator; updates have the CPU's bits."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinytensor as tt
from tests.cuda import bounds
from tests.cuda.bounds import close
from tests.cuda.kernel_cases import BOTH, examples, normal, seeds, sizes, wide
from tinytensor.cpu import blas
from tinytensor.cuda import optimizer
from tinytensor.optim.adamw import adamw_update
from tinytensor.random import Draw, words32

pytestmark = pytest.mark.compiler

BFLOAT16 = tt.bfloat16
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}


def bits(x):
    return x.view(np.uint16 if x.dtype == BFLOAT16 else np.uint32)


@examples
@given(count=sizes, offset=st.sampled_from([0, 1]), decay=st.sampled_from([0.0, 0.1]), seed=seeds)
def test_adamw_float32_is_the_cpus_bit_for_bit(count, offset, decay, seed):
    cpu, ours = (
        [np.zeros(count + offset, np.float32)[offset:] for _ in range(3)] for _ in range(2)
    )
    cpu[0][...] = ours[0][...] = normal(seed, count)
    for step in range(1, 4):
        gradient = normal(seed + step, count) * np.float32(10.0) ** np.float32(step - 2)
        options = {**OPTIONS, "step": step, "weight_decay": decay}
        with mock.patch.object(blas, "_axpby", {}):  # which may round a product and its sum as one
            adamw_update(cpu[0], gradient, cpu[1], cpu[2], np.empty_like(gradient), **options)
        factors = optimizer.adamw_factors(**options)
        optimizer.adamw(ours[0], gradient, ours[1], ours[2], factors, seed=seed)
    for one, other in zip(ours, cpu, strict=True):
        np.testing.assert_array_equal(bits(one), bits(other))


@BOTH
@examples
@given(
    count=sizes,
    offset=st.sampled_from([0, 1]),
    decay=st.sampled_from([0.0, 0.1]),
    running=st.sampled_from([{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]),
    seed=seeds,
)
def test_sgd_is_the_cpu_s_bit_for_bit(dtype, count, offset, decay, running, seed):
    p = tt.tensor(normal(seed, max(1, count), dtype=dtype), requires_grad=True)
    engine = tt.optim.SGD([p], lr=0.3, weight_decay=decay, **running)
    value = np.empty(p.numel() + offset, dtype)[offset:]
    value[...] = p.detach().numpy()
    sums = np.zeros(p.numel(), np.float32) if running else None
    master = value.astype(np.float32) if dtype == BFLOAT16 else None
    for step in range(1, 4):
        gradient = normal(seed + step, p.numel(), dtype=dtype)
        p.grad = tt.tensor(gradient)
        engine.step()
        factors = optimizer.sgd_factors(step, 0.3, decay, **running)
        optimizer.sgd(value, gradient, factors, momentum=sums, master=master, seed=seed)
    np.testing.assert_array_equal(bits(value), bits(p.detach().numpy()))
    if running:
        kept = engine.state_dict()["state"][0]["momentum_buffer"].numpy()
        np.testing.assert_array_equal(bits(sums), bits(kept))


@examples
@given(count=sizes, seed=seeds)
def test_adamw_bfloat16_with_master_weights_is_the_optimizers(count, seed):
    p = tt.tensor(normal(seed, max(1, count), dtype=BFLOAT16), requires_grad=True)
    engine = tt.optim.AdamW([p], weight_decay=0.1, **OPTIONS)
    value = p.detach().numpy().copy()
    master, m, v = value.astype(np.float32), *np.zeros((2, *value.shape), np.float32)
    for step in range(1, 4):
        gradient = normal(seed + step, *value.shape, dtype=BFLOAT16)
        p.grad = tt.tensor(gradient)
        if step == 3:  # somebody writes the weights between two steps
            value[0] = 2
            p.data[0] = 2.0
        engine.step()
        factors = optimizer.adamw_factors(step, weight_decay=0.1, **OPTIONS)
        optimizer.adamw(value, gradient, m, v, factors, master=master, seed=seed)
    np.testing.assert_array_equal(bits(value), bits(p.detach().numpy()))


@examples
@given(count=sizes, seed=seeds, key=st.integers(0, 2**64 - 1))
def test_adamw_stochastic_rounding_goes_up_by_the_bits_of_the_draw(count, seed, key):
    value, gradient = normal(seed, count, dtype=BFLOAT16), normal(seed + 1, count, dtype=BFLOAT16)
    exact = value.astype(np.float32)
    m, v, m2, v2 = np.zeros((4, count), np.float32)
    draw = Draw(key, 5)
    factors = optimizer.adamw_factors(1, weight_decay=0.1, **OPTIONS)
    optimizer.adamw(value, gradient, m, v, factors, draw=draw, seed=seed)
    optimizer.adamw(exact, gradient.astype(np.float32), m2, v2, factors, seed=seed)
    added = exact.view(np.uint32) + (words32(draw, count) >> np.uint32(16))
    np.testing.assert_array_equal(bits(value), (added >> np.uint32(16)).astype(np.uint16))


@BOTH
@examples
@given(
    counts=st.lists(sizes, min_size=1, max_size=3), blocks=st.sampled_from([1, 3, 1024]), seed=seeds
)
def test_global_norm_and_clipping(dtype, counts, blocks, seed):
    arrays = [normal(seed + i, count, dtype=dtype) for i, count in enumerate(counts)]
    exact = math.sqrt(sum(float((wide(a) ** 2).sum()) for a in arrays))
    norm, scale = optimizer.global_norm(arrays, 1.5, blocks, seed)
    again = optimizer.global_norm(arrays, 1.5, blocks, seed + 1)
    np.testing.assert_array_equal(norm, again[0])
    # A thread adds its squares in float32, all else is float64; √ halves a relative error.
    unit = (-(-max(counts) // 256) + 8) * bounds.U / 2
    close(norm, np.array([exact]), unit * exact)
    factor = min(1.0, 1.5 / (exact + 1e-6))
    close(scale, np.array([factor]), (unit + (2 + bounds.F) * bounds.U) * factor)
    for array in arrays:
        expected = (array.astype(np.float32) * scale).astype(dtype)
        optimizer.scale_in_place(array, scale, seed)
        np.testing.assert_array_equal(bits(array), bits(expected))


def test_a_norm_that_is_not_a_number_shows():
    array = np.array([1, np.nan], np.float32)
    norm, scale = optimizer.global_norm([array], 1.0)
    assert np.isnan(norm[0]) and np.isnan(scale[0])


def test_adamw_multiplies_by_the_clipping_scale_first():
    gradient, scale = normal(0, 20), np.array([0.3], np.float32)
    ours, other = np.ones((3, 20), np.float32), np.ones((3, 20), np.float32)
    factors = optimizer.adamw_factors(1, weight_decay=0.0, **OPTIONS)
    optimizer.adamw(*ours[:1], gradient, *ours[1:], factors, scale=scale)
    optimizer.adamw(*other[:1], gradient * scale, *other[1:], factors)
    np.testing.assert_array_equal(ours, other)


def test_bad_use():
    x = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="bfloat16 values need float32 master weights or a draw"):
        optimizer.adamw(x.astype(BFLOAT16), x, x, x, np.ones(8, np.float32))
    with pytest.raises(ValueError, match="sgd: bfloat16 values need float32 master weights"):
        optimizer.sgd(x.astype(BFLOAT16), x, np.ones(8, np.float32))
    with pytest.raises(TypeError, match="updates float32 and bfloat16, not float64"):
        optimizer.adamw(x.astype(np.float64), x, x, x, np.ones(8, np.float32))
