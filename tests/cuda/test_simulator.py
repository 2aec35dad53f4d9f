"""A test of the tests: faults planted in kernels are caught by the simulator, at every seed."""

from __future__ import annotations

import numpy as np
import pytest

import tinytensor as tt
from tinytensor.cuda import kernels, simulator

pytestmark = pytest.mark.compiler

SEEDS = range(4)


def run(source, arrays, scalars=(), *, grid=(1,), block=(32,), seed=0, **options):
    simulator.launch(source, "f", grid, block, arrays, scalars, seed, **options)


def kernel(parameters, body):
    return f'extern "C" __global__ void f({parameters}) {{\n{body}\n}}'


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# A product of 16 × 16 tiles and a sum by shuffles: the right ones, to be spoiled.
TILED = kernel(
    "float* c, const float* a, const float* b, int n",
    """    __shared__ float a_tile[16][16], b_tile[16][16];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * 16 + ty, column = blockIdx.x * 16 + tx;
    float sum = 0.0f;
    for (int start = 0; start < n; start += 16) {
        a_tile[ty][tx] = row < n && start + tx < n ? a[row * n + start + tx] : 0.0f;
        b_tile[ty][tx] = column < n && start + ty < n ? b[(start + ty) * n + column] : 0.0f;
        __syncthreads();  // filled
        for (int i = 0; i < 16; i++) sum += a_tile[ty][i] * b_tile[i][tx];
        __syncthreads();  // read
    }
    if (row < n && column < n) c[row * n + column] = sum;""",
)
SUM = kernel(
    "float* y, const float* x, int n",
    """    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += 32) sum += x[i];
    for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
    y[threadIdx.x] = sum;""",
)


def tiled(source, seed):
    a, b = floats(2, 40, 40)
    c = np.zeros((40, 40), np.float32)
    run(source, [c, a, b], [40], grid=(3, 3), block=(16, 16), seed=seed)
    return np.allclose(c, a @ b, atol=1e-4)


def summed(source, seed):
    x, y = floats(50), np.zeros(32, np.float32)
    run(source, [y, x], [50], seed=seed)
    return np.allclose(y, x.sum(), atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_fault_all_is_well(seed):
    assert tiled(TILED, seed)
    assert summed(SUM, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("missing", ["filled", "read"])
def test_missing_barrier_is_caught(missing, seed):
    source = TILED.replace(f"__syncthreads();  // {missing}", "")
    with pytest.raises(simulator.SimulationError, match=r"race.*barrier between.*at kernel"):
        tiled(source, seed)


def test_missing_barrier_in_dynamic_shared_memory_is_caught():
    body = """DYNAMIC_SHARED(float, s);
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x];"""
    source, x = kernel("float* y, const float* x", body), floats(64)
    y = np.zeros_like(x)
    run(source, [y, x], block=(64,), shared_bytes=256)
    np.testing.assert_array_equal(y, x[::-1])
    with pytest.raises(simulator.SimulationError, match="race"):
        run(source.replace("__syncthreads();", ""), [y, x], block=(64,), shared_bytes=256)


def test_missing_warp_barrier_is_caught():
    body = """__shared__ float s[32];
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = s[31 - threadIdx.x];"""
    source, x = kernel("float* y, const float* x", body), floats(32)
    y = np.zeros_like(x)
    run(source, [y, x])
    np.testing.assert_array_equal(y, x[::-1])
    with pytest.raises(simulator.SimulationError, match="race"):
        run(source.replace("__syncwarp();", ""), [y, x])


@pytest.mark.parametrize("seed", SEEDS)
def test_wrong_lane_is_caught(seed):
    assert not summed(SUM.replace("bits = 16", "bits = 8"), seed)
    with pytest.raises(simulator.SimulationError, match=r"lane \d+, which takes no part"):
        summed(SUM.replace("0xffffffffu", "threadIdx.x < 16 ? 0xffffu : 0xffff0000u"), seed)


def test_shuffles_and_votes():
    body = """int lane = threadIdx.x;
    y[lane] = __shfl_down_sync(~0u, lane, 3);
    y[32 + lane] = __shfl_up_sync(~0u, lane, 5, 16);
    y[64 + lane] = __shfl_sync(~0u, lane, 9, 8);
    y[96 + lane] = (int)__ballot_sync(~0u, lane % 3 == 0);
    y[128 + lane] = __any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane < 31);
    if (lane < 8) y[160 + lane] = __shfl_xor_sync(0xffu, lane, 1);
    y[192 + lane] = (int)__shfl_sync(~0u, 1000000000000ll * lane, 31) / 2;
    atomicAdd(&y[224], lane), atomicMax(&y[225], lane), atomicCAS(&y[226], 5, lane);
    y[228 + lane] = __syncthreads_count(lane < 11);"""
    y = np.zeros(260, np.int32)
    y[226] = 5
    run(kernel("int* y", body), [y], seed=3)
    lane = np.arange(32)
    np.testing.assert_array_equal(y[:32], np.where(lane < 29, lane + 3, lane))
    np.testing.assert_array_equal(y[32:64], np.where(lane % 16 >= 5, lane - 5, lane))
    np.testing.assert_array_equal(y[64:96], lane // 8 * 8 + 1)
    np.testing.assert_array_equal(y[96:128].view(np.uint32), sum(1 << i for i in range(0, 32, 3)))
    np.testing.assert_array_equal(y[128:160], 1)
    np.testing.assert_array_equal(y[160:168], lane[:8] ^ 1)
    assert (y[224], y[225]) == (496, 31)
    assert 0 <= y[226] < 32
    np.testing.assert_array_equal(y[228:], 11)


# parameters of the kernel, its body, and what the sentence says
OUT_OF_BOUNDS = {
    "global, above": ("y[threadIdx.x + 1] = x[0];", "writes 4 bytes at byte 128 of array 0"),
    "global, below": ("y[0] = x[(int)threadIdx.x - 1];", "reads 4 bytes at byte -4 of array 1"),
    "global, far": ("y[0] = x[100000 * threadIdx.x];", "out of bounds"),
    "global, wide": ("*(float4*)y = *(const float4*)(x + threadIdx.x / 4 * 4 + 4);", "reads 16"),
    "shared": ("__shared__ float s[32]; s[threadIdx.x + 1] = 0; y[0] = s[0];", "out of bounds"),
    "shared, inner axis": (
        "__shared__ float s[4][8]; s[0][threadIdx.x] = 0; y[0] = s[1][2];",
        "declared array",
    ),
    "shared, by pointer": (
        "__shared__ float s[32]; float* p = s + 32; p[threadIdx.x] = 0; y[0] = s[0];",
        "out of bounds of shared memory",
    ),
    "dynamic, above": ("DYNAMIC_SHARED(float, s); s[threadIdx.x + 1] = 0;", "byte 128 of 128"),
    "dynamic, below": ("DYNAMIC_SHARED(float, s); s[(int)threadIdx.x - 1] = 0;", "byte -4 of 128"),
    "registers": ("float r[4]; r[threadIdx.x] = x[0]; y[0] = r[1];", "declared array"),
    "memcpy": ("memcpy(y, x, 132);", "bytes at byte 0"),
    "null": ("y[0] = nothing[threadIdx.x];", "null pointer"),
    "misaligned": ("*(float2*)(y + 1) = *(const float2*)x;", "misaligned"),
    "misaligned, shared": (
        "DYNAMIC_SHARED(float, s); *(float4*)(s + 1) = *(const float4*)x;",
        "misaligned",
    ),
    "const": ("((float*)x)[threadIdx.x] = 1;", "const array"),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_access_out_of_bounds_is_an_exception(case, seed):
    body, sentence = OUT_OF_BOUNDS[case]
    source = kernel("float* y, const float* x, const float* nothing", body)
    with pytest.raises(simulator.SimulationError, match=rf"f: .*{sentence}.*block .*thread \("):
        run(source, [floats(32), floats(32), None], seed=seed, shared_bytes=128)


def test_after_an_error_the_next_launch_is_sound():
    with pytest.raises(simulator.SimulationError):
        tiled(TILED.replace("__syncthreads();  // read", ""), 0)
    assert tiled(TILED, 0)


def test_divergence_at_a_barrier_is_an_exception():
    source = kernel("float* y", "if (threadIdx.x < 5) __syncthreads();")
    with pytest.raises(simulator.SimulationError, match=r"diverge.*line 2.*has returned"):
        run(source, [floats(1)])


def test_uninitialised_shared_memory_is_nan():
    y = floats(4)
    run(
        kernel("float* y", "__shared__ float s[4]; y[threadIdx.x] = s[threadIdx.x];"),
        [y],
        block=(4,),
    )
    assert np.isnan(y).all()


def test_too_much_shared_memory_and_too_many_threads():
    source = kernel("float* y", "DYNAMIC_SHARED(float, s); s[threadIdx.x] = 0;")
    run(source, [floats(1)], shared_bytes=227 * 1024)
    with pytest.raises(simulator.SimulationError, match="227 KB"):
        run(source, [floats(1)], shared_bytes=228 * 1024)
    with pytest.raises(simulator.SimulationError, match="a block of 2048 threads"):
        run(source, [floats(1)], block=(2048,), shared_bytes=4096)


def test_arrays_that_overlap_are_one_piece_of_memory():
    source = kernel("float* y, const float* x", "y[threadIdx.x] = 2 * x[threadIdx.x];")
    x = floats(64)
    run(source, [x[:32], x[:32]])
    run(source, [x[32:], x[:32]])
    np.testing.assert_array_equal(x, np.concatenate([2 * floats(64)[:32], 4 * floats(64)[:32]]))


def test_variants_and_dtypes():
    source = "#ifndef real\n#define real float\n#endif\n#define TYPE real\n" + kernel(
        "real* y, const TYPE *x, unsigned char* flags", "y[threadIdx.x] = x[0]; flags[0] = 7;"
    )
    source = "struct bf16 { unsigned short bits; };\n" + source
    for defines, dtype in (((), np.float32), ((("real", "bf16"),), tt.bfloat16)):
        y, x = np.zeros(32, dtype), np.full(1, 3, dtype)
        flags = np.zeros(1, np.uint8)
        run(source, [y, x, flags], defines=defines)
        assert (y == x).all()
        assert flags[0] == 7
    with pytest.raises(TypeError, match="y must be bfloat16, not float32"):
        run(source, [floats(32), x, flags], defines=(("real", "bf16"),))


def test_signatures_of_all_kinds():
    source = """
    // extern "C" __global__ void commented(int* x) {
    extern "C" __global__ void __launch_bounds__(256, WIDE > (1 << 4) ? 1 : 2)
        first(out* __restrict__ y, const real *x,  // the input
              unsigned long long key, bool flag) {}
    extern "C" __global__ __launch_bounds__(64) void second(const unsigned int* i, float eps) {}"""
    found = kernels.signatures(source, (("real", "bf16"), ("out", "float")))
    assert list(found) == ["first", "second"]
    assert [tuple(p) for p in found["first"]] == [
        ("y", "float", True, False),
        ("x", "bf16", True, True),
        ("key", "unsigned long long", False, False),
        ("flag", "bool", False, False),
    ]
    assert found["second"][0].type == "unsigned int"


@pytest.mark.parametrize(
    ("arrays", "scalars", "error", "sentence"),
    [
        ([floats(4)], [1], ValueError, "takes 2 arrays and 1 scalars, but got 1 and 1"),
        ([floats(4), floats(4).astype(np.float64)], [1], TypeError, "x must be float32"),
        ([floats(4), floats(4, 4).T], [1], ValueError, "x .4, 4. must be contiguous"),
    ],
)
def test_arguments_that_do_not_fit(arrays, scalars, error, sentence):
    with pytest.raises(error, match=f"f.*{sentence}"):
        run(SUM, arrays, scalars)


def test_unknown_kernel():
    with pytest.raises(ValueError, match="there is no kernel 'matmul_magic'; there are"):
        kernels.launch("matmul_magic", (1,), (1,), [])


def test_without_a_compiler_there_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler: install g\+\+"):
        simulator.compiler()
