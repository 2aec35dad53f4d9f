// Matrix product without tensor cores, C = f(A B + bias) or C += …: any GPU, any strides, float32
// sums.
//
// A is m × k, B is k × n; element (i, j) of A is a[i · a_row + j · a_column], of B likewise, so a
// transposed or sliced matrix is passed as it lies. float32 or bfloat16 in and out. The batch in
// blockIdx.x, the parts of k of blockIdx.y and the `what` flags are those of matmul_mma.cu.
//
// Split: 16 × 16 threads make a TILE × TILE tile of C, each 4 × 4 pieces of it in registers (TILE
// 128: four such pieces, 64 apart). 16 of k at a time are read into registers while the 16 before
// are multiplied from shared memory; two slots, so one barrier a step. Threads read along whichever
// axis of A and B is contiguous. Bytes: A n / TILE times and B m / TILE times, from L2; C once.
// Arithmetic: at TILE 128, 64 multiply-adds for 4 shared loads of 16 bytes.
#include "matmul.cuh"

#ifndef real
#define real float
#endif
#ifndef out
#define out float
#endif
#ifndef TILE
#define TILE 128
#endif

constexpr int DEPTH = 16, EACH = TILE * DEPTH / 256, PIECES = TILE / 64;

// Where in a tile of TILE × DEPTH element `i` of this thread lies: along k first, or along the
// side.
struct Place {
    int side, k;
};
__device__ __forceinline__ Place place(int i, bool along_k) {
    int e = threadIdx.x + 256 * i;
    return along_k ? Place{e / DEPTH, e % DEPTH} : Place{e % TILE, e / TILE};
}
__device__ __forceinline__ void fetch(float (&into)[EACH], const real* x, long long side_stride,
                                      long long k_stride, int first, int size, int k, int end) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        Place p = place(i, k_stride == 1);
        bool inside = first + p.side < size && k + p.k < end;
        into[i] =
            inside ? to_float(x[(first + p.side) * side_stride + (k + p.k) * k_stride]) : 0.0f;
    }
}
__device__ __forceinline__ void put(float (&tile)[DEPTH][TILE + 4], const float (&from)[EACH],
                                    bool along_k) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        Place p = place(i, along_k);
        tile[p.k][p.side] = from[i];
    }
}

extern "C" __global__ void __launch_bounds__(256)
    matmul_plain(out* c, out* before, const real* a, const real* b, const real* bias, int m, int n,
                 int k, long long a_row, long long a_column, long long b_row, long long b_column,
                 long long ldc, int inner, long long a_outer, long long a_inner, long long b_outer,
                 long long b_inner, long long c_outer, long long c_inner, int k_part,
                 long long part_stride, int what) {
    alignas(16) __shared__ float a_tile[2][DEPTH][TILE + 4];
    alignas(16) __shared__ float b_tile[2][DEPTH][TILE + 4];
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    Tile tile = choose_tile(blockIdx.x, TILE, TILE, m, n);
    int row = tile.row, column = tile.column;
    int outer_index = tile.batch / inner, inner_index = tile.batch % inner;
    a += outer_index * a_outer + inner_index * a_inner;
    b += outer_index * b_outer + inner_index * b_inner;
    long long offset = outer_index * c_outer + inner_index * c_inner + blockIdx.y * part_stride;
    c += offset, before += what & SAVE ? offset : 0;
    int start = blockIdx.y * k_part, end = k - start < k_part ? k : start + k_part;

    float next_a[EACH], next_b[EACH], sums[4 * PIECES][4 * PIECES] = {};
    fetch(next_a, a, a_row, a_column, row, m, start, end);
    fetch(next_b, b, b_column, b_row, column, n, start, end);
    for (int at = start, slot = 0; at < end; at += DEPTH, slot ^= 1) {
        put(a_tile[slot], next_a, a_column == 1);
        put(b_tile[slot], next_b, b_row == 1);
        __syncthreads();
        fetch(next_a, a, a_row, a_column, row, m, at + DEPTH, end);
        fetch(next_b, b, b_column, b_row, column, n, at + DEPTH, end);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            alignas(16) float x[4 * PIECES], y[4 * PIECES];
#pragma unroll
            for (int p = 0; p < PIECES; p++) {
                *(float4*)(x + 4 * p) = *(const float4*)&a_tile[slot][i][64 * p + 4 * ty];
                *(float4*)(y + 4 * p) = *(const float4*)&b_tile[slot][i][64 * p + 4 * tx];
            }
#pragma unroll
            for (int p = 0; p < 4 * PIECES; p++)
#pragma unroll
                for (int q = 0; q < 4 * PIECES; q++) sums[p][q] += x[p] * y[q];
        }
    }
#pragma unroll
    for (int p = 0; p < 4 * PIECES; p++)
#pragma unroll
        for (int q = 0; q < 4 * PIECES; q++) {
            int r = row + p / 4 * 64 + 4 * ty + p % 4, s = column + q / 4 * 64 + 4 * tx + q % 4;
            if (r < m && s < n) finish(c, before, bias, r * ldc + s, s, sums[p][q], what);
        }
}
