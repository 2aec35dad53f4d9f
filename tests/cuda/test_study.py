"""The counters: accesses whose sectors, passes and lanes are known, and the ladder's story."""

from __future__ import annotations

import numpy as np
import pytest

from tinytensor.cuda import simulator, study
from tinytensor.cuda.counters import counting

pytestmark = pytest.mark.compiler


def counts(body, block=(32,), shared="", grid=(1,), blocks=4):
    source = f'extern "C" __global__ void f(float* y, const float* x) {{ {shared}\n{body}\n}}'
    x, y = np.ones(4096, np.float32), np.zeros(4096, np.float32)
    with counting(blocks) as launches:
        simulator.launch(source, "f", grid, block, [y, x])
    (found,) = launches
    return found


@pytest.mark.parametrize(
    ("stride", "sectors"), [(0, 1), (1, 4), (2, 8), (4, 16), (8, 32), (32, 32)]
)
def test_sectors_of_one_load_by_a_warp(stride, sectors):
    found = counts(f"y[threadIdx.x] = x[{stride} * threadIdx.x];")
    assert (found.loads, found.stores) == (1, 1)
    assert found.sectors == sectors + 4
    assert found.bytes == 256


def test_wide_loads_are_fewer_instructions_for_the_same_sectors():
    loop = "for (int i = 0; i < 4; i++) y[i * 32 + threadIdx.x] = x[i * 32 + threadIdx.x];"
    narrow = counts(loop)
    wide = counts("((float4*)y)[threadIdx.x] = ((const float4*)x)[threadIdx.x];")
    assert (narrow.loads, wide.loads) == (4, 1)
    assert narrow.sectors == wide.sectors == 32


@pytest.mark.parametrize(("stride", "passes"), [(0, 1), (1, 1), (2, 2), (3, 1), (8, 8), (32, 32)])
def test_passes_over_the_banks(stride, passes):
    found = counts(
        f"s[threadIdx.x] = 1; __syncthreads(); y[threadIdx.x] = s[{stride} * threadIdx.x];",
        shared="__shared__ float s[1024];",
    )
    assert found.shared == 2
    assert found.passes == passes + 1
    assert found.conflicts == passes - 1


def test_sixteen_bytes_a_lane_take_four_passes_and_no_conflict():
    shared = "__shared__ __align__(16) float s[128];"
    body = "((float4*)s)[threadIdx.x] = make_float4(1, 2, 3, 4);"
    found = counts(body, shared=shared)
    assert (found.shared, found.passes, found.conflicts) == (1, 4, 0)


def test_lanes_asleep():
    even = counts("float a = x[threadIdx.x]; y[threadIdx.x] = a * a;")
    odd = counts("if (threadIdx.x % 4 == 0) y[threadIdx.x] = sqrtf(x[threadIdx.x]);")
    assert even.active == 1
    assert even.divergent == 0
    assert odd.active < 1
    assert odd.divergent > 0


def test_only_the_first_blocks_are_counted():
    found = counts("y[32 * blockIdx.x + threadIdx.x] = x[threadIdx.x];", grid=(10,), blocks=2)
    assert (found.blocks, found.counted) == (10, 2)
    assert found.loads == 2
    assert found.per_launch(found.loads) == 10


def test_too_much_to_count_is_a_sentence():
    source = 'extern "C" __global__ void f(float* y) { y[threadIdx.x] = 1; }'
    sentence = r"f: \d+ accesses in 4 blocks, but there is room for 10"
    with pytest.raises(MemoryError, match=sentence), counting(room=10):
        simulator.launch(source, "f", (1,), (32,), [np.zeros(32, np.float32)])


def test_counting_changes_no_result_and_ends():
    counts("y[threadIdx.x] = x[threadIdx.x];")
    assert simulator.observer is None


def test_each_rung_of_the_ladder_asks_less_of_the_memory():
    found = study.study(128, 128, 32, blocks=1)
    naive, tiled, registers, vectors = (
        found[f"matmul_{name}"] for name in ("naive", "tiled", "register_tiled", "vectorised")
    )
    sectors = [c.per_launch(c.sectors) for c in (naive, tiled, registers, vectors)]
    assert sectors[0] > 2 * sectors[1] > 4 * sectors[2] > 4 * sectors[3]
    assert registers.per_launch(registers.passes) < tiled.per_launch(tiled.passes)
    assert vectors.per_launch(vectors.loads) < registers.per_launch(registers.loads)
    text = study.table(found, 128, 128, 32, "matmul_tiled")
    assert "→ matmul_tiled" in text


def test_the_command(capsys):
    assert study.main(["matmul_tiled", "--m", "32", "--blocks", "1"]) == 0
    printed = capsys.readouterr().out
    assert "32 × 32 × 32" in printed
    assert "matmul_register_tiled: a value read from shared memory" in printed
    with pytest.raises(SystemExit):
        study.main(["matmul_magic"])
    assert "there is no rung 'matmul_magic'" in capsys.readouterr().err
