// Matrix product on tensor cores, C = f(op(A) op(B) + bias) or C += …: the production kernel from
// sm_80 on.
//
// op(A) is m × k, op(B) is k × n, float32 or bfloat16; sums are float32. With TRANSPOSE_A, A is
// stored k × m, with TRANSPOSE_B, B n × k; rows are lda, ldb, ldc elements apart. float32 inputs
// are rounded to TF32. blockIdx.x counts tiles within a batch of two axes (outer, inner) with
// strides; blockIdx.y counts parts of k, k_part long each, whose sums go to c + y · part_stride
// (matmul_add_parts joins them).
//
// Split: a block of 256 threads makes a TILE_M × TILE_N tile of C; its 8 warps stand 2 × 4 and keep
// their part in registers. 128 bytes of k at a time (64 bfloat16, 32 float32) pass through STAGES
// slots of shared memory, filled by cp.async STAGES - 1 steps ahead, one barrier a step. Each slot
// holds rows of 16-byte chunks; chunk c of row r is kept at c ^ (r % 8), so that the eight rows
// which an ldmatrix reads, at one c, lie in different banks. (A TF32 matrix that is stored along m
// or n is read by words: rows t = 0 … 3, chunks c and c + 1, and there c ^ 2 (r % 4) keeps the
// banks apart.)
//
// Bytes: A is read n / TILE_N times and B m / TILE_M times, mostly from L2 (tiles are visited in
// groups of 8 rows); C is written once. At 128 × 128 a step moves 32 KB for 2 · 128 · 128 · 64
// operations: 64 a byte from L2, against 206 a byte that the H200 needs from memory, hence the
// grouping.
// Alignment: with ALIGNED, A and B begin at multiples of 16 bytes and lda, ldb, the batch strides
// and k_part are multiples of 16 bytes; without, elements are loaded one by one.
#include "matmul.cuh"
#include "mma.cuh"

#ifndef real
#define real bf16
#endif
#ifndef out
#define out bf16
#endif
#ifndef TILE_M
#define TILE_M 128
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef TRANSPOSE_A
#define TRANSPOSE_A 0
#endif
#ifndef TRANSPOSE_B
#define TRANSPOSE_B 0
#endif
#ifndef ALIGNED
#define ALIGNED 1
#endif

constexpr int THREADS = 256;
constexpr int CHUNK = 16 / sizeof(real);   // elements in 16 bytes
constexpr int DEPTH = 128 / sizeof(real);  // elements of k in a step
constexpr int WARP_M = TILE_M / 2, WARP_N = TILE_N / 4;

// Tiles of one operand, SIZE along m or n, DEPTH along k. ALONG_K: its rows run along k. A thread
// copies one chunk of every ABREAST-th row; where that is, it works out once.
template <int SIZE, bool ALONG_K>
struct Operand {
    static constexpr int CHUNKS = ALONG_K ? 8 : SIZE / CHUNK;
    static constexpr int ROWS = ALONG_K ? SIZE : DEPTH, ABREAST = THREADS / CHUNKS;
    static constexpr int BYTES = SIZE * 128;
    const real* from;         // this thread's chunk at k = 0
    long long stride;         // of rows
    int row, column, extent;  // of m or n, from this tile's first on

    __device__ __forceinline__ Operand(const real* x, long long stride, int first, int size)
        : stride(stride), extent(size - first) {
        row = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * CHUNK;
        from = x + row * stride + column + (ALONG_K ? first * stride : first);
    }

    static __device__ __forceinline__ int place(int row, int chunk) {
        int swizzle = ALONG_K || sizeof(real) == 2 ? row & 7 : 2 * (row & 3);
        return (row * CHUNKS + (chunk ^ swizzle)) * 16;
    }

    // Fill a slot with the tile that begins at k (up to k_end); zeros beyond.
    __device__ __forceinline__ void load(char* slot, int k, int k_end) const {
        static_assert(ROWS % ABREAST == 0 && ABREAST % 4 == 0, "a chunk keeps its place");
        const real* at = from + (ALONG_K ? k : k * stride);
        int rows = (ALONG_K ? extent : k_end - k) - row;
        int columns = (ALONG_K ? k_end - k : extent) - column;
        columns = columns < 0 ? 0 : columns > CHUNK ? CHUNK : columns;
#pragma unroll
        for (int i = 0; i < ROWS; i += ABREAST) {
            int count = i < rows ? columns : 0;
            char* to = slot + place(row + i, column / CHUNK);
            if (ALIGNED) {
                copy_async(to, at, count * sizeof(real));
            } else {
                for (int j = 0; j < CHUNK; j++)
                    ((real*)to)[j] = j < count ? at[j] : from_float<real>(0.0f);
            }
            at += ABREAST * stride;
        }
    }

    __device__ __forceinline__ unsigned word(const char* slot, int k, int i) {
        return to_tf32(*(const unsigned*)(slot + place(k, i / 4) + i % 4 * 4));
    }

    // Sixteen rows of op(A) from `first`, 32 bytes of k from step · 32: the a registers of an mma.
    __device__ __forceinline__ void left(unsigned a[4], const char* slot, int first, int step,
                                         int lane) {
        if (ALONG_K) {
            ldmatrix(a, slot + place(first + lane % 16, 2 * step + lane / 16));
        } else if (sizeof(real) == 2) {
            int k = 16 * step + lane / 16 * 8 + lane % 8;
            ldmatrix_transposed(a, slot + place(k, first / 8 + lane / 8 % 2));
        } else {
            int k = 8 * step + lane % 4, i = first + lane / 4;
            a[0] = word(slot, k, i), a[1] = word(slot, k, i + 8);
            a[2] = word(slot, k + 4, i), a[3] = word(slot, k + 4, i + 8);
        }
        if (ALONG_K && sizeof(real) == 4)
            for (int j = 0; j < 4; j++) a[j] = to_tf32(a[j]);
    }

    // Sixteen columns of op(B) from `first`: the b registers of two mma side by side.
    __device__ __forceinline__ void right(unsigned b[4], const char* slot, int first, int step,
                                          int lane) {
        if (ALONG_K) {
            int row = first + lane / 16 * 8 + lane % 8;
            ldmatrix(b, slot + place(row, 2 * step + lane / 8 % 2));
        } else if (sizeof(real) == 2) {
            ldmatrix_transposed(b, slot + place(16 * step + lane % 16, first / 8 + lane / 16));
        } else {
            int k = 8 * step + lane % 4, i = first + lane / 4;
            b[0] = word(slot, k, i), b[1] = word(slot, k + 4, i);
            b[2] = word(slot, k, i + 8), b[3] = word(slot, k + 4, i + 8);
        }
        if (ALONG_K && sizeof(real) == 4)
            for (int j = 0; j < 4; j++) b[j] = to_tf32(b[j]);
    }
};

using Left = Operand<TILE_M, !TRANSPOSE_A>;
using Right = Operand<TILE_N, bool(TRANSPOSE_B)>;

extern "C" __global__ void __launch_bounds__(256,
                                             TILE_M* TILE_N > 16384 || sizeof(real) == 4 ? 1 : 2)
    matmul_mma(out* c, out* before, const real* a, const real* b, const real* bias, int m, int n,
               int k, long long lda, long long ldb, long long ldc, int inner, long long a_outer,
               long long a_inner, long long b_outer, long long b_inner, long long c_outer,
               long long c_inner, int k_part, long long part_stride, int what) {
    DYNAMIC_SHARED(char, slots);
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    Tile tile = choose_tile(blockIdx.x, TILE_M, TILE_N, m, n);
    int row = tile.row, column = tile.column;
    int outer_index = tile.batch / inner, inner_index = tile.batch % inner;
    a += outer_index * a_outer + inner_index * a_inner;
    b += outer_index * b_outer + inner_index * b_inner;
    Left of_a(a, lda, row, m);
    Right of_b(b, ldb, column, n);
    int start = blockIdx.y * k_part, end = k - start < k_part ? k : start + k_part;
    int steps = (end - start + DEPTH - 1) / DEPTH;

    auto load = [&](int step) {
        if (step < steps) {
            char* slot = slots + step % STAGES * (Left::BYTES + Right::BYTES);
            int at = start + step * DEPTH;
            of_a.load(slot, at, end);
            of_b.load(slot + Left::BYTES, at, end);
        }
        end_copy_group();  // an empty group too: wait_for_copies counts groups
    };

    float sums[WARP_M / 16][WARP_N / 8][4] = {};
    for (int step = 0; step < STAGES - 1; step++) load(step);
    for (int step = 0; step < steps; step++) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // this step has arrived, and all have left the slot that is filled next
        load(step + STAGES - 1);
        const char* left = slots + step % STAGES * (Left::BYTES + Right::BYTES);
        const char* right = left + Left::BYTES;
#pragma unroll
        for (int inside = 0; inside < 4; inside++) {
            unsigned x[WARP_M / 16][4], y[WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++)
                of_a.left(x[i], left, warp / 4 * WARP_M + 16 * i, inside, lane);
#pragma unroll
            for (int j = 0; j < WARP_N / 16; j++)
                of_b.right(y[j], right, warp % 4 * WARP_N + 16 * j, inside, lane);
#pragma unroll
            for (int i = 0; i < WARP_M / 16; i++)
#pragma unroll
                for (int j = 0; j < WARP_N / 8; j++)
                    if (sizeof(real) == 2)
                        mma_bf16(sums[i][j], x[i], y[j / 2] + j % 2 * 2);
                    else
                        mma_tf32(sums[i][j], x[i], y[j / 2] + j % 2 * 2);
        }
    }
    wait_for_copies<0>();

    long long offset = outer_index * c_outer + inner_index * c_inner + blockIdx.y * part_stride;
    c += offset, before += what & SAVE ? offset : 0;
#pragma unroll
    for (int i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (int j = 0; j < WARP_N / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = row + warp / 4 * WARP_M + 16 * i + lane / 4 + 8 * half;
                int s = column + warp % 4 * WARP_N + 8 * j + lane % 4 * 2;
                float* pair = sums[i][j] + 2 * half;
                if (r < m && s + 1 < n)
                    finish_pair(c, before, bias, r * ldc + s, s, pair[0], pair[1], what);
                else if (r < m && s < n)
                    finish(c, before, bias, r * ldc + s, s, pair[0], what);
            }
}

// c = f(Σ parts): parts is count × m × n float32, contiguous, added in order.
extern "C" __global__ void matmul_add_parts(out* c, out* before, const float* parts,
                                            const real* bias, int m, int n, int count,
                                            long long ldc, int what) {
    long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x, size = (long long)m * n;
    if (index >= size) return;
    float sum = 0.0f;
    for (int i = 0; i < count; i++) sum += parts[i * size + index];
    int r = index / n, s = index % n;
    finish(c, before, bias, r * ldc + s, s, sum, what);
}
