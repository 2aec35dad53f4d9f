"""Mbarriers, tensor copies and wgmma in the simulator, used rightly and wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda.kernel_cases import examples, normal, seeds
from tinytensor.backend import bfloat16
from tinytensor.cuda import simulator
from tinytensor.cuda.tensor_map import TensorMap

pytestmark = pytest.mark.compiler

# y = X[:64] Xᵀ of a 128 × 64 matrix X, by one warpgroup and four wgmma.
PRODUCT = """#include "types.cuh"
#include "wgmma.cuh"
extern "C" __global__ void f(float* y, const __grid_constant__ TensorMap x) {
    DYNAMIC_SHARED(char, s);
    mbarrier* full = (mbarrier*)(s + 16384);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(full, 16384);
        copy_tensor(s, &x, 0, 0, 0, 0, full);
    }
    mbarrier_wait(full, 0);
    float d[64];
    wgmma_fence();
    for (int i = 0; i < 4; i++) {
        unsigned long long tile = describe(s + 32 * i, 16, 1024);
        wgmma<128, 0, 0>(d, tile, tile, i > 0);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (int j = 0; j < 64; j++)
        y[(row + j % 4 / 2 * 8) * 128 + column + j / 4 * 8 + j % 2] = d[j];
}
"""


def whole(x):
    return TensorMap(x.reshape(-1), (64, 128, 1, 1), (128, 0, 0), (64, 128, 1, 1))


def run(source, seed=0, threads=128):
    x, y = normal(0, 128, 64, dtype=bfloat16), np.full((64, 128), np.inf, np.float32)
    options = {"shared_bytes": 16384 + 16, "file": "kernel.cu"}
    simulator.launch(source, "f", (1,), (threads,), [y, whole(x)], (), seed, **options)
    wide = x.astype(np.float64)
    return np.allclose(y, wide[:64] @ wide.T, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_fault_all_is_well(seed):
    assert run(PRODUCT, seed)


TILE = "wgmma<128, 0, 0>(d, tile, tile, i > 0);"
COPY = "copy_tensor(s, &x, 0, 0, 0, 0, full);"
COMMIT, WAIT = "wgmma_commit_group();", "    wgmma_wait_group<0>();\n"
# What stands in the kernel, what is put there instead, and what the simulator says.
FAULTS = {
    "registers changed at work": (COMMIT, COMMIT + " d[3] = 1;", "register of a wgmma at work was"),
    "nobody waits for the sums": (WAIT, "", "block ends while a wgmma is at work"),
    "nobody waits for the copy": (
        "    mbarrier_wait(full, 0);",
        "    return;",
        "may end while a tensor copy is under way: nobody waited",
    ),
    "two copies to one place": (COPY, COPY + COPY, "two tensor copies to the same shared memory"),
    "lanes disagree": (TILE, TILE.replace("i > 0", "threadIdx.x % 2"), "lanes of a warp disagree"),
    "warps disagree": (TILE, TILE.replace("i > 0", "threadIdx.x < 64"), "warps of a warpgroup"),
    "a warp does less": (TILE, f"if (threadIdx.x < 96 || i < 3) {TILE}", "same number of wgmma"),
    "a descriptor beyond": ("s + 32 * i,", "s + 8192 + 32 * i,", "a wgmma reads byte 16[45]"),
    "no swizzle": ("16, 1024);", "16, 1024) & ~(3ull << 62);", "without swizzle"),
    "reserved bits": ("16, 1024);", "16, 1024) | 1ull << 50;", "reserved bits or a base offset"),
    "a copy beyond": (COPY, COPY.replace("(s,", "(s + 1024,"), "copy to bytes 1024 to 17408 of"),
    "a copy to an odd place": (COPY, COPY.replace("(s,", "(s + 64,"), "multiple of 128 bytes"),
    "a parity of two": ("(full, 0);", "(full, 2);", "a parity is 0 or 1"),
    "one arrival too many": (COPY, COPY + " mbarrier_arrive(full);", "more threads arrive"),
    "another barrier": ("_wait(full,", "_wait(full + 1,", "not set up by mbarrier_init"),
    "no arrivals": ("init(full, 1)", "init(full, 0)", "an mbarrier of no arrivals"),
    "an arrival missing": ("init(full, 1)", "init(full, 2)", "deadlock: .*lacks 1 of 2 arrivals"),
    "bytes missing": (", 16384);\n", ", 16400);\n", "deadlock: .*lacks .* and 16 bytes of copies"),
    "too many bytes at once": (", 16384);\n", ", 1 << 20);\n", r"less than 2\^20 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(2))
def test_a_planted_fault_is_named(fault, seed):
    right, wrong, sentence = FAULTS[fault]
    assert right in PRODUCT
    with pytest.raises(simulator.SimulationError, match=sentence):
        run(PRODUCT.replace(right, wrong), seed)
    assert run(PRODUCT, seed)


def test_sums_that_nobody_waited_for_are_nan():
    early = PRODUCT.replace(WAIT, "").replace("\n}\n", f"\n{WAIT}}}\n")
    assert early != PRODUCT and not run(early)


def test_part_of_a_warpgroup_cannot_multiply():
    with pytest.raises(simulator.SimulationError, match="whole warpgroups: a multiple of 128"):
        run(PRODUCT, threads=96)


# Thread 0 copies a box, all read it back as it lies in shared memory.
BOX = """#include "types.cuh"
#include "wgmma.cuh"
extern "C" __global__ void f(bf16* y, const __grid_constant__ TensorMap x, int count, int at_x,
                             int at_y, int at_z, int at_w) {
    DYNAMIC_SHARED(bf16, s);
    __shared__ mbarrier full;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1), fence_mbarrier_init();
        mbarrier_arrive_expect_tx(&full, count * 2);
        copy_tensor(s, &x, at_x, at_y, at_z, at_w, &full);
    }
    __syncthreads();
    mbarrier_wait(&full, 0);
    for (int i = threadIdx.x; i < count; i += blockDim.x) y[i] = s[i];
}
"""


@examples
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 3, 20, 70))),
    box=st.tuples(*(st.integers(1, n) for n in (2, 2, 16))),
    start=st.tuples(*(st.integers(-9, n) for n in (4, 4, 22, 75))),
    width=st.sampled_from([16, 32, 64, 128]),
    seed=seeds,
)
def test_a_box_is_copied_swizzled_and_with_zeros_outside(shape, box, start, width, seed):
    x = normal(seed, *shape, dtype=bfloat16)
    room = np.full((*shape[:3], -(-shape[3] // 8) * 8), np.nan, bfloat16)
    room[..., : shape[3]] = x
    box = (*box, width // 2)
    strides = room.strides[2::-1]

    class Map(TensorMap):
        def simulated(self):
            made = super().simulated()
            made.swizzle_bytes = width
            return made

    count = int(np.prod(box))
    y = np.full(count, np.nan, bfloat16)
    options = {"shared_bytes": count * 2, "file": "kernel.cu"}
    maps = Map(room.reshape(-1), shape[::-1], strides, box[::-1])
    simulator.launch(BOX, "f", (1,), (64,), [y, maps], [count, *start[::-1]], seed, **options)

    expected = np.zeros(box, bfloat16)
    for index in np.ndindex(box):
        at = tuple(np.add(index, start))
        if all(0 <= i < n for i, n in zip(at, shape, strict=True)):
            expected[index] = x[at]
    # 16-byte chunk c of a line of 128 bytes is at c ^ (line % 8), narrower swizzles likewise.
    place = np.arange(count * 2)
    place ^= (place >> 7 & (width // 16 - 1)) << 4
    np.testing.assert_array_equal(y[place[::2] // 2], expected.reshape(-1))


def test_a_map_is_given_for_a_map_and_an_array_for_a_pointer():
    x, y = normal(0, 128, 64, dtype=bfloat16), np.zeros((64, 128), np.float32)
    with pytest.raises(TypeError, match="f: x takes a TensorMap, not ndarray"):
        simulator.launch(PRODUCT, "f", (1,), (128,), [y, x])
    with pytest.raises(TypeError, match="f: y takes an array, not TensorMap"):
        simulator.launch(PRODUCT, "f", (1,), (128,), [whole(x), whole(x)])
