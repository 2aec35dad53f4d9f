"""A test of the tests: faults planted in kernels are caught by the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from tinytensor.cuda import kernels, simulator

pytestmark = pytest.mark.compiler


def planted(file, right, wrong):
    source = (kernels.folder() / file).read_text()
    source = source.replace(
        '#include "reduce.cuh"', (kernels.folder() / "reduce.cuh").read_text()
    ).replace("#pragma once", "")
    assert right in source
    return source.replace(right, wrong)


def matmul_runs(source):
    a, b = np.random.default_rng(0).standard_normal((2, 40, 40), np.float32)
    for seed in range(4):
        c = np.zeros((40, 40), np.float32)
        simulator.launch(source, "matmul_tiled", (3, 3), (16, 16), [c, a, b], [40] * 3, seed)
        yield np.allclose(c, a @ b, atol=1e-4)


def softmax_runs(source):
    x = np.random.default_rng(0).standard_normal((3, 50), np.float32)
    for seed in range(4):
        y = np.zeros_like(x)
        simulator.launch(source, "softmax_forward", (3,), (64,), [y, x], [3, 50], seed)
        yield np.allclose(y.sum(1), 1, atol=1e-5)


def test_without_a_fault_all_is_well():
    assert all(matmul_runs(planted("matmul.cu", "sum = 0.0f", "sum = 0.0f")))
    assert all(softmax_runs(planted("softmax.cu", "lane = 16", "lane = 16")))


def test_missing_barrier_is_caught():
    source = planted("matmul.cu", "        __syncthreads();\n        for", "        for")
    assert not all(matmul_runs(source))


def test_wrong_lane_is_caught():
    assert not all(softmax_runs(planted("softmax.cu", "lane = 16", "lane = 8")))


@pytest.mark.parametrize(
    ("right", "wrong", "seed"), [("x[i]", "x[i + 1]", 0), ("x[i]", "x[i - 1]", 1)]
)
def test_access_out_of_bounds_is_an_exception(right, wrong, seed):
    source, x = planted("gelu.cu", right, wrong), np.ones(40, np.float32)
    with pytest.raises(simulator.SimulationError, match=r"gelu_forward.*out of bounds.*thread \("):
        simulator.launch(source, "gelu_forward", (2,), (32,), [x.copy(), x], [40], seed)


def test_divergence_at_a_barrier_is_an_exception():
    source = 'extern "C" __global__ void f(float* y) { if (threadIdx.x < 5) __syncthreads(); }'
    with pytest.raises(simulator.SimulationError, match="diverge"):
        simulator.launch(source, "f", (1,), (32,), [np.zeros(1, np.float32)])


def test_write_to_an_input_is_an_exception():
    source = 'extern "C" __global__ void f(float* y, const float* x) { ((float*)x)[0] = 1; }'
    with pytest.raises(simulator.SimulationError, match="const"):
        x = np.zeros(4, np.float32)
        simulator.launch(source, "f", (1,), (1,), [x.copy(), x])
