// Matrix product by wgmma, C = f(op(A) op(B) + bias) or C += …: the production kernel of sm_90a
// (H100, H200) for bfloat16.
//
// op(A) is m × k, op(B) is k × n, bfloat16; sums are float32. With TRANSPOSE_A, A is stored k × m,
// with TRANSPOSE_B, B n × k. A and B come as tensor maps of four axes (contiguous, rows, inner,
// outer of the batch); step_… is 1 where that axis of the batch moves in A or B, 0 where it is
// broadcast. The batch and the parts of k are those of matmul_mma.cu; the `what` flags are the
// macro WHAT here: all the sums of a thread are written out one by one, and what is done with them
// should be short.
//
// Split: a block of three warpgroups stays and makes one 128 × TILE_N tile of C after the other:
// block b takes tiles b, b + blocks, …. One thread of the first warpgroup asks the copy engine for
// 64 of k at a time; the other two multiply, each in one of two ways: with TURNS 0 they halve a
// tile, 64 rows each; with TURNS 1 each takes every other tile whole, and one multiplies while the
// other stores. STAGES slots of shared memory stand between: a slot is full when its bytes have
// arrived, and empty when each warp that read it has said so; the n-th use of a slot is told from
// the one before by a parity. The producing warpgroup gives most of its registers to the other two.
//
// Finished sums go through shared memory, 128 bytes of 16 rows at a time and each warp by itself,
// so that C is written in whole lines: a thread holds two neighbours of eight rows, which would be
// half a sector each. With LINES in WHAT, 16 bytes a thread.
//
// Bytes: A is read n / TILE_N times and B m / 128 times, from L2 (tiles are visited in groups of 8
// rows); C is written once. At 128 × 256 a step moves 48 KB from L2 for 2 · 128 ·
// 256 · 64 operations, 85 a byte. By the data sheet (990 TFLOP/s) a multiprocessor does 4,096
// operations a cycle: a step takes 1,024 cycles, in which L2 must send 48 bytes a cycle, and shared
// memory 80 of its 128: a wgmma of 64 × 256 × 16 reads 10 KB in 128 cycles.
//
// Storing is some 600 instructions a warp at 128 × 256: with TURNS 0 it holds the next tile's
// products up for about 1,300 cycles (a tenth of a tile with k = 768), with TURNS 1 the other
// warpgroup multiplies meanwhile. GELU is 2 of 16 special operations a cycle an element, 4,096
// cycles a tile.
//
// Beside CUTLASS's kernels for this chip: TURNS 0 is their cooperative schedule and TURNS 1 their
// ping-pong, both persistent as here. Theirs also store by the copy engine (a third of the
// instructions above), and form clusters of two blocks, one below the other, each of which fetches
// half of B for both: 32 KB of 48 a step. That pays where L2 sends less than 48 bytes a cycle to
// each multiprocessor. All reckoned from the machine code, not measured.
//
// Alignment: A and B begin at multiples of 16 bytes, and so do their rows and matrices.
#include "matmul.cuh"
#include "wgmma.cuh"

#ifndef out
#define out bf16
#endif
#ifndef TILE_N
#define TILE_N 256
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef TURNS
#define TURNS 0
#endif
#ifndef TRANSPOSE_A
#define TRANSPOSE_A 0
#endif
#ifndef TRANSPOSE_B
#define TRANSPOSE_B 1
#endif
#ifndef WHAT
#define WHAT LINES
#endif

constexpr int TILE_M = 128, DEPTH = 64, CONSUMERS = 2, THREADS = 128 * (1 + CONSUMERS);
constexpr int HEIGHT =
    TURNS ? TILE_M : TILE_M / CONSUMERS;  // rows of a tile that a warpgroup makes
constexpr int BOX = 64 * 128;             // bytes: 64 rows of 128
constexpr int LINE = 128 / sizeof(out);   // columns of C
// A thread may have 168 registers at the start: 65,536 by 384. 128 of them are sums.
constexpr int FEW = 40, MANY = 232;
static_assert(128 * (FEW + CONSUMERS * MANY) <= 65536, "a multiprocessor has 65,536 registers");

// A tile of one operand, SIZE along m or n, DEPTH along k. ALONG_K: K-major, its rows run along k
// and one box is all of it; else MN-major, a box for each 64 of m or n.
template <int SIZE, bool ALONG_K>
struct Operand {
    static constexpr int BYTES = SIZE * 128;

    // Asks for the tile that begins at `first` and k; one thread.
    static __device__ __forceinline__ void load(char* slot, const TensorMap* map, int first, int k,
                                                int inner, int outer, mbarrier* full) {
        if (ALONG_K) {
            copy_tensor(slot, map, k, first, inner, outer, full);
        } else {
            for (int i = 0; i < SIZE / 64; i++)
                copy_tensor(slot + i * BOX, map, first + 64 * i, k, inner, outer, full);
        }
    }

    // The descriptor of what begins at `first`, a multiple of 64, and 16 · step of k.
    static __device__ __forceinline__ unsigned long long part(const char* slot, int first,
                                                              int step) {
        return ALONG_K ? describe(slot + first * 128 + step * 32, 16, 1024)
                       : describe(slot + first / 64 * BOX + step * 2048, BOX, 1024);
    }
};
using Left = Operand<TILE_M, !TRANSPOSE_A>;
using Right = Operand<TILE_N, bool(TRANSPOSE_B)>;
constexpr int SLOT = Left::BYTES + Right::BYTES;

// Tile number `item` of all parts: its place, and the part of k that is summed there.
struct Work {
    Tile tile;
    int part, start, steps;
};
__device__ __forceinline__ Work choose_work(int item, int tiles, int m, int n, int k, int k_part) {
    int part = item / tiles, start = part * k_part, end = k - start < k_part ? k : start + k_part;
    return {choose_tile(item % tiles, TILE_M, TILE_N, m, n), part, start,
            (end - start + DEPTH - 1) / DEPTH};
}

// One line of each of 16 rows of C, of which `rows` rows and `columns` columns are left:
// v[4 j + 2 half], and the next, are row lane / 4 + 8 half, columns 8 j + 2 (lane % 4), and the
// next. A warp; `stage` is 16 lines of its own, whose 16-byte chunks change places by the row, so
// that neither writing nor reading meets a bank twice.
__device__ __forceinline__ void write_lines(out* to, const float* v, char* stage, int rows,
                                            int columns, long long ldc, int lane) {
    auto swizzle = [](int r) { return (sizeof(out) == 2 ? r % 8 : r % 4 * 2) * 16; };
    constexpr int SIZE = sizeof(out);
    int place = lane / 4 * 128 + ((lane % 4 * 2 * SIZE) ^ swizzle(lane / 4));
    __syncwarp();  // all have read what was here before
#pragma unroll
    for (int j = 0; j < LINE / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            store_pair((out*)(stage + half * 1024 + (place ^ (8 * j * SIZE))), v[4 * j + 2 * half],
                       v[4 * j + 2 * half + 1]);
    __syncwarp();
    if (WHAT & LINES && rows >= 16 && columns >= LINE) {
        int r = lane / 8, chunk = lane % 8;
        uint4 part[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[i] =
                *(const uint4*)(stage + (r + 4 * i) * 128 + ((chunk * 16) ^ swizzle(r + 4 * i)));
        out* at = to + r * ldc + chunk * (LINE / 8);
#pragma unroll
        for (int i = 0; i < 4; i++, at += 4 * ldc) *(uint4*)at = part[i];
    } else {
#pragma unroll 1
        for (int i = lane; i < 16 * LINE; i += 32) {
            int r = i / LINE, s = i % LINE;
            if (r < rows && s < columns)
                to[r * ldc + s] = *(const out*)(stage + r * 128 + ((s * SIZE) ^ swizzle(r)));
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul_wgmma(out* c, out* before, const __grid_constant__ TensorMap a,
                 const __grid_constant__ TensorMap b, const bf16* bias, int m, int n, int k,
                 int tiles, int parts, int inner, int step_a_outer, int step_a_inner,
                 int step_b_outer, int step_b_inner, long long ldc, long long c_outer,
                 long long c_inner, int k_part, long long part_stride) {
    DYNAMIC_SHARED(char, slots);
    char* stage = slots + STAGES * SLOT;  // 16 lines of each multiplying warp
    mbarrier *full = (mbarrier*)(stage + 4 * CONSUMERS * 16 * 128), *empty = full + STAGES;
    mbarrier* turns = empty + STAGES;  // of the two consumers, with TURNS
    if (threadIdx.x == 0) {
        prefetch_tensor_map(&a), prefetch_tensor_map(&b);
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(full + i, 1);
            mbarrier_init(empty + i, TURNS ? 4 : 4 * CONSUMERS);  // the warps that read a slot
        }
        for (int i = 0; i < CONSUMERS; i++) mbarrier_init(turns + i, 4);
        fence_mbarrier_init();
    }
    __syncthreads();
    int group = threadIdx.x / 128 - 1, items = tiles * parts;  // group -1 produces
    int use = 0;                                               // of slots, by all tiles so far

    if (group < 0) {
        setmaxnreg_dec<FEW>();
        if (threadIdx.x == 0) {
            for (int item = blockIdx.x; item < items; item += gridDim.x) {
                Work work = choose_work(item, tiles, m, n, k, k_part);
                int i = work.tile.batch % inner, o = work.tile.batch / inner;
#pragma unroll 1
                for (int step = 0; step < work.steps; step++, use++) {
                    char* slot = slots + use % STAGES * SLOT;
                    mbarrier* arrived = full + use % STAGES;
                    int at = work.start + step * DEPTH;
                    mbarrier_wait(empty + use % STAGES, use / STAGES % 2 ^ 1);
                    mbarrier_arrive_expect_tx(arrived, SLOT);
                    Left::load(slot, &a, work.tile.row, at, i * step_a_inner, o * step_a_outer,
                               arrived);
                    Right::load(slot + Left::BYTES, &b, work.tile.column, at, i * step_b_inner,
                                o * step_b_outer, arrived);
                }
            }
        }
    } else {
        setmaxnreg_inc<MANY>();
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        int first = TURNS ? 0 : group * HEIGHT;  // row of the tile
        stage += (4 * group + warp) * 16 * 128;
        float sums[HEIGHT / 64][TILE_N / 2];
        for (int item = blockIdx.x, turn = 0; item < items; item += gridDim.x, turn++) {
            Work work = choose_work(item, tiles, m, n, k, k_part);
            if (TURNS && turn % CONSUMERS != group) {
                use += work.steps;
                continue;
            }
            // A parity cannot tell a use of a slot from the one after the next: whoever waits for
            // its first slot while the other waits for earlier ones might take an old step for its
            // own.
            if (TURNS) mbarrier_wait(turns + group, turn / CONSUMERS % 2 ^ (group == 0));
#pragma unroll 1
            for (int step = 0; step < work.steps; step++, use++) {
                const char* slot = slots + use % STAGES * SLOT;
                mbarrier_wait(full + use % STAGES, use / STAGES % 2);
                wgmma_fence();
#pragma unroll
                for (int inside = 0; inside < DEPTH / 16; inside++)
#pragma unroll
                    for (int i = 0; i < HEIGHT / 64; i++)
                        wgmma<TILE_N, TRANSPOSE_A, !TRANSPOSE_B>(
                            sums[i], Left::part(slot, first + 64 * i, inside),
                            Right::part(slot + Left::BYTES, 0, inside), step > 0 || inside > 0);
                wgmma_commit_group();
                wgmma_wait_group<1>();  // the step before this is done with its slot
                if (step > 0 && lane == 0) mbarrier_arrive(empty + (use - 1) % STAGES);
            }
            if (TURNS && lane == 0) mbarrier_arrive(turns + 1 - group);
            wgmma_wait_group<0>();
            if (lane == 0) mbarrier_arrive(empty + (use - 1) % STAGES);

            long long offset = work.tile.batch / inner * c_outer +
                               work.tile.batch % inner * c_inner + work.part * part_stride;
            out *to = c + offset, *saved = before + (WHAT & SAVE ? offset : 0);
#pragma unroll
            for (int i = 0; i < HEIGHT / 64; i++) {
                pin_registers(sums[i]);
                int row = work.tile.row + first + 64 * i + 16 * warp;
                if (row >= m) continue;
                long long corner = row * ldc + work.tile.column;
#pragma unroll
                for (int line = 0; line < TILE_N / LINE; line++) {
                    int column = work.tile.column + line * LINE;
                    if (column >= n) continue;
                    float* v = sums[i] + line * (LINE / 2);
#pragma unroll
                    for (int j = 0; j < LINE / 2; j++) {
                        int s = column + j / 4 * 8 + lane % 4 * 2 + j % 2;
                        if (WHAT & BIAS) v[j] += s < n ? to_float(bias[s]) : 0.0f;
                    }
                    if (WHAT & SAVE)
                        write_lines(saved + corner + line * LINE, v, stage, m - row, n - column,
                                    ldc, lane);
#pragma unroll
                    for (int j = 0; j < LINE / 2; j++) {
                        int r = row + lane / 4 + j / 2 % 2 * 8;
                        int s = column + j / 4 * 8 + lane % 4 * 2 + j % 2;
                        if (WHAT & GELU) v[j] = gelu_tanh(v[j]);
                        if (WHAT & ADD_TO_C && r < m && s < n) v[j] += to_float(to[r * ldc + s]);
                    }
                    write_lines(to + corner + line * LINE, v, stage, m - row, n - column, ldc,
                                lane);
                }
            }
        }
    }
}
