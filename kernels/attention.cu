// Causal attention on tensor cores, bfloat16 in and out, sums in float32: the production kernels,
// sm_80 up.
//
// The mathematics, the layouts and the division into kernels are those of attention_plain.cu; here
// the products are mma.sync (mma.cuh). What makes it fast is FlashAttention-2's arrangement (T.
// Dao, arXiv 2307.08691): the weights of a warp never leave its registers. The c registers of one
// mma hold row g, columns 2t and 2t + 1, which is where the a registers of the next want them, so
// that scores become weights and weights the left factor of p v by rounding alone. The kernel of dk
// and dv makes the transposed scores k qᵀ, whose rows are keys, for the same reason.
//
// Split: 4 warps, each with BLOCKS · 16 rows (queries; keys in the kernel of dk and dv), walk
// together over tiles of COLUMNS of the other axis, which pass through two slots of shared memory,
// filled by cp.async one tile ahead: one barrier a tile. blockIdx.x = b · H + h, blockIdx.y counts
// row tiles, the longest first. Rows in shared memory are HEAD / 8 + 1 chunks of 16 bytes apart: an
// odd number, so that the eight rows of an ldmatrix lie in different banks. A warp alone reads its
// own rows there, and in the end writes its results over them, to store whole lines.
//
// Bytes: q and y once, k and v L / (64 · BLOCKS) times, from L2. Arithmetic: forward 4 L S D
// operations, backward 14 (the kernel of dk and dv 8, that of dq 6; one kernel with atomics would
// do 10), half of it if causal; one exp2 a weight and pass. At 2 · 16 rows a warp, an ldmatrix of
// 512 bytes serves 4 mma.
//
// Instructions: at HEAD 64 a tile is 128 mma a warp forward, and in the machine code for sm_90a 630
// others. They must not take longer to issue than the mma to be done: tiles that all rows see have
// no masks; the scale and the largest score meet in the one fma of the exponent, for which the
// scale must be positive; a thread's addresses of the tiles are worked out once (Stream).
//
// HEAD is D rounded up to a multiple of 16, at most 128. ALIGNED: the arrays begin at multiples of
// 16 bytes, and D and all strides are multiples of 8 elements; without, elements are loaded one by
// one.
#include "attention.cuh"
#include "mma.cuh"

#ifndef HEAD
#define HEAD 64
#endif
#ifndef ALIGNED
#define ALIGNED 1
#endif

constexpr int WARPS = 4, PITCH = HEAD / 8 + 1, TILES = HEAD / 8;
constexpr int BLOCKS = HEAD <= 64 && !DROPOUT ? 2 : 1;  // of 16 rows a warp, as registers allow
constexpr int ROWS = WARPS * BLOCKS * 16;               // a thread block
constexpr int COLUMNS = HEAD <= 64 ? 64 : 32;           // a step, forward
constexpr int BACK = 32;                                // a step, backward

// A thread's part in copying tiles of x (rows × D): one chunk of 16 bytes of every ABREAST-th row.
struct Stream {
    static constexpr int ABREAST = 32 * WARPS / TILES;
    const bf16* from;
    long long stride;  // of rows
    int row, chunk, count;

    __device__ __forceinline__ Stream(const bf16* x, long long stride, int D) : stride(stride) {
        row = threadIdx.x / TILES, chunk = threadIdx.x % TILES;
        count = D - 8 * chunk;
        count = count < 0 ? 0 : count > 8 ? 8 : count;
        from = x + row * stride + (count ? 8 * chunk : 0);
    }
    // The tile that begins at row `first` of `rows`; zeros behind the last.
    template <int ROWS_OF_TILE>
    __device__ __forceinline__ void load(char* tile, int first, int rows) const {
        const bf16* at = from + first * stride;
        char* to = tile + (row * PITCH + chunk) * 16;
        int left = rows - first - row;
        if (32 * WARPS % TILES && row >= ABREAST) return;  // some threads too many
#pragma unroll
        for (int i = 0; i < ROWS_OF_TILE; i += ABREAST) {
            if (ROWS_OF_TILE % ABREAST && i + row >= ROWS_OF_TILE) break;
            int there = i < left ? count : 0;
            if (ALIGNED) {
                copy_async(to + i * PITCH * 16, at, 2 * there);
            } else {
                for (int j = 0; j < 8; j++)
                    ((bf16*)(to + i * PITCH * 16))[j] = j < there ? at[j] : from_float<bf16>(0.0f);
            }
            at += ABREAST * stride;
        }
    }
};
// c = rows of `left` from `first` times the WIDE rows of `right`: sums over HEAD.
template <int WIDE>
__device__ __forceinline__ void dots(float (&c)[BLOCKS][WIDE / 8][4], const char* left, int first,
                                     const char* right, int lane) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int j = 0; j < WIDE / 8; j++) c[i][j][0] = c[i][j][1] = c[i][j][2] = c[i][j][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++) {
        unsigned a[BLOCKS][4], b[4];
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
            ldmatrix(a[i],
                     left + ((first + 16 * i + lane % 16) * PITCH + 2 * step + lane / 16) * 16);
#pragma unroll
        for (int j = 0; j < WIDE / 16; j++) {
            int row = 16 * j + lane / 16 * 8 + lane % 8;
            ldmatrix(b, right + (row * PITCH + 2 * step + lane / 8 % 2) * 16);
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                mma_bf16(c[i][2 * j], a[i], b);
                mma_bf16(c[i][2 * j + 1], a[i], b + 2);
            }
        }
    }
}
// sums += weights times the DEEP rows of `rows`.
template <int DEEP>
__device__ __forceinline__ void mix(float (&sums)[BLOCKS][TILES][4],
                                    const float (&weights)[BLOCKS][DEEP / 8][4], const char* rows,
                                    int lane) {
#pragma unroll
    for (int step = 0; step < DEEP / 16; step++) {
        unsigned a[BLOCKS][4], b[4];
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float* pair = weights[i][2 * step + j / 2] + j % 2 * 2;
                a[i][j] = pack_bf16(pair[0], pair[1]);
            }
#pragma unroll
        for (int j = 0; j < HEAD / 16; j++) {
            ldmatrix_transposed(b,
                                rows + ((16 * step + lane % 16) * PITCH + 2 * j + lane / 16) * 16);
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                mma_bf16(sums[i][2 * j], a[i], b);
                mma_bf16(sums[i][2 * j + 1], a[i], b + 2);
            }
        }
    }
}
// -∞ where a row of c is not to see a column: the row of register c[i][…][2 half + …] sees those
// from begin[i][half] to end[i][half], counted from the tile's first.
template <int WIDE>
__device__ __forceinline__ void hide(float (&c)[BLOCKS][WIDE / 8][4], const int (&begin)[BLOCKS][2],
                                     const int (&end)[BLOCKS][2], int lane) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int low = begin[i][half] - lane % 4 * 2, high = end[i][half] - lane % 4 * 2;
#pragma unroll
            for (int j = 0; j < WIDE / 8; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float& x = c[i][j][2 * half + e];
                    x = 8 * j + e < low || 8 * j + e >= high ? -INFINITE : x;
                }
        }
}
// Before a tile that all threads have filled is written over, also where there was no step.
__device__ __forceinline__ void leave_copies() {
    wait_for_copies<0>();
    __syncthreads();
}
// Rows first … of out (B, rows, H, D) = sums · factors, through this warp's rows of `tile`.
__device__ __forceinline__ void store(bf16* out, const float (&sums)[BLOCKS][TILES][4],
                                      const float (&factors)[BLOCKS][2], char* tile, int b, int h,
                                      int first, int rows, int H, int D, int lane) {
    __syncwarp();  // all lanes have read what stood there
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned* row = (unsigned*)(tile + (16 * i + lane / 4 + 8 * half) * PITCH * 16);
#pragma unroll
            for (int j = 0; j < TILES; j++)
                row[4 * j + lane % 4] = pack_bf16(sums[i][j][2 * half] * factors[i][half],
                                                  sums[i][j][2 * half + 1] * factors[i][half]);
        }
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < BLOCKS * 16 * TILES; i += 32) {
        int row = i / TILES, chunk = i % TILES;
        if (first + row >= rows) break;
        bf16* to = out + (((long long)b * rows + first + row) * H + h) * D + 8 * chunk;
        const char* from = tile + (row * PITCH + chunk) * 16;
        if (ALIGNED) {
            if (8 * chunk < D) *(uint4*)to = *(const uint4*)from;
        } else {
            for (int j = 0; j < 8 && 8 * chunk + j < D; j++) to[j] = ((const bf16*)from)[j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
    attention_forward(bf16* y, float* log_sum_exp, const bf16* q, const bf16* k, const bf16* v,
                      int H, int L, int S, int D, long long q_b, long long q_h, long long q_t,
                      long long k_b, long long k_h, long long k_t, long long v_b, long long v_h,
                      long long v_t, float scale, int causal, unsigned int threshold,
                      float keep_scale, unsigned long long key, unsigned long long counter,
                      const unsigned long long* origin) {
    DYNAMIC_SHARED(char, shared);
    char *q_tile = shared, *slots = shared + ROWS * PITCH * 16;
    constexpr int SLOT = COLUMNS * PITCH * 16;  // of k; v lies behind it
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bh = blockIdx.x, b = bh / H, h = bh % H;
    int first = (gridDim.y - 1 - blockIdx.y) * ROWS, mine = first + warp * BLOCKS * 16;
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    if (DROPOUT) begin_draw(origin, key, counter);
    Dropout dropout{key, counter, threshold, keep_scale};
    int seen = keys_seen(first + ROWS, S, causal), steps = (seen + COLUMNS - 1) / COLUMNS;
    float unit = scale * LOG2_E;  // of a score, to the power of 2

    Stream from_k(k, k_t, D), from_v(v, v_t, D);
    auto load = [&](int step) {
        if (step >= steps) return;
        char* slot = slots + step % 2 * 2 * SLOT;
        from_k.load<COLUMNS>(slot, step * COLUMNS, S);
        from_v.load<COLUMNS>(slot + SLOT, step * COLUMNS, S);
    };
    float sums[BLOCKS][TILES][4] = {}, highest[BLOCKS][2], total[BLOCKS][2];
    for (int i = 0; i < BLOCKS; i++)
        for (int half = 0; half < 2; half++) highest[i][half] = -INFINITE, total[i][half] = 0.0f;
    Stream(q, q_t, D).load<ROWS>(q_tile, first, L);
    load(0);
    end_copy_group();
    for (int step = 0; step < steps; step++) {
        wait_for_copies<0>();
        __syncthreads();  // this tile has arrived, and all have left the other slot
        load(step + 1);
        end_copy_group();
        const char* slot = slots + step % 2 * 2 * SLOT;
        int start = step * COLUMNS;
        if (causal && start > mine + BLOCKS * 16 - 1) continue;  // nothing this warp may see
        float s[BLOCKS][COLUMNS / 8][4];
        dots<COLUMNS>(s, q_tile, warp * BLOCKS * 16, slot, lane);
        if (start + COLUMNS > S || (causal && start + COLUMNS > mine)) {
            int begin[BLOCKS][2] = {}, end[BLOCKS][2];
            for (int i = 0; i < BLOCKS; i++)
                for (int half = 0; half < 2; half++)
                    end[i][half] =
                        keys_seen(mine + 16 * i + lane / 4 + 8 * half + 1, S, causal) - start;
            hide<COLUMNS>(s, begin, end, lane);
        }
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = highest[i][half];
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; j++)
                    most = fmaxf(most, fmaxf(s[i][j][2 * half], s[i][j][2 * half + 1]));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                float shift = most == -INFINITE ? 0.0f : most * unit;
                float correction = fast_exp2(highest[i][half] * unit - shift), sum = 0.0f;
                highest[i][half] = most;
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; j++) {
                    float* pair = s[i][j] + 2 * half;
                    pair[0] = fast_exp2(pair[0] * unit - shift);
                    pair[1] = fast_exp2(pair[1] * unit - shift);
                    sum += pair[0] + pair[1];
                    if (DROPOUT) {
                        float factors[2];
                        int query = mine + 16 * i + lane / 4 + 8 * half;
                        unsigned long long row = (unsigned long long)bh * L + query;
                        dropout.factors(factors, row * S + start + 8 * j + lane % 4 * 2);
                        pair[0] *= factors[0], pair[1] *= factors[1];
                    }
                }
                total[i][half] = total[i][half] * correction + sum;  // this lane's share
#pragma unroll
                for (int j = 0; j < TILES; j++)
                    sums[i][j][2 * half] *= correction, sums[i][j][2 * half + 1] *= correction;
            }
        mix<COLUMNS>(sums, s, slot + SLOT, lane);
    }
    leave_copies();
    float factors[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = total[i][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            int query = mine + 16 * i + lane / 4 + 8 * half;
            factors[i][half] = sum == 0.0f ? 0.0f : 1.0f / sum;
            if (lane % 4 == 0 && query < L)
                log_sum_exp[(long long)bh * L + query] =
                    sum == 0.0f ? INFINITE : (highest[i][half] * unit + log2f(sum)) * LN_2;
        }
    char* own = q_tile + warp * BLOCKS * 16 * PITCH * 16;
    store(y, sums, factors, own, b, h, mine, L, H, D, lane);
}

extern "C" __global__ void __launch_bounds__(128)
    attention_dkdv(bf16* dk, bf16* dv, const bf16* dy, const bf16* q, const bf16* k, const bf16* v,
                   const float* log_sum_exp, const float* delta, int H, int L, int S, int D,
                   long long dy_b, long long dy_h, long long dy_t, long long q_b, long long q_h,
                   long long q_t, long long k_b, long long k_h, long long k_t, long long v_b,
                   long long v_h, long long v_t, float scale, int causal, unsigned int threshold,
                   float keep_scale, unsigned long long key, unsigned long long counter,
                   const unsigned long long* origin) {
    DYNAMIC_SHARED(char, shared);
    char *k_tile = shared, *v_tile = shared + ROWS * PITCH * 16,
         *slots = v_tile + ROWS * PITCH * 16;
    constexpr int SLOT = BACK * PITCH * 16;          // of q; dy lies behind it
    float* statistics = (float*)(slots + 4 * SLOT);  // of each slot's queries: log-sum-exp, delta
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bh = blockIdx.x, b = bh / H, h = bh % H;
    int first = blockIdx.y * ROWS, mine = first + warp * BLOCKS * 16;
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    dy += b * dy_b + h * dy_h;
    log_sum_exp += (long long)bh * L, delta += (long long)bh * L;
    if (DROPOUT) begin_draw(origin, key, counter);
    Dropout dropout{key, counter, threshold, keep_scale};
    int begin = first_query(first, causal, BACK),
        steps = L > begin ? (L - begin + BACK - 1) / BACK : 0;
    float unit = scale * LOG2_E;

    Stream from_q(q, q_t, D), from_dy(dy, dy_t, D);
    // Queries behind the last are zeros, and so is what they add to dk and dv.
    auto load = [&](int step) {
        if (step >= steps) return;
        char* slot = slots + step % 2 * 2 * SLOT;
        int start = begin + step * BACK, i = start + threadIdx.x % BACK;
        from_q.load<BACK>(slot, start, L);
        from_dy.load<BACK>(slot + SLOT, start, L);
        if (threadIdx.x < 2 * BACK)
            copy_word_async(statistics + step % 2 * 2 * BACK + threadIdx.x,
                            (threadIdx.x < BACK ? log_sum_exp : delta) + (i < L ? i : 0), i < L);
    };
    float dk_sums[BLOCKS][TILES][4] = {}, dv_sums[BLOCKS][TILES][4] = {};
    Stream(k, k_t, D).load<ROWS>(k_tile, first, S);
    Stream(v, v_t, D).load<ROWS>(v_tile, first, S);
    load(0);
    end_copy_group();
    for (int step = 0; step < steps; step++) {
        wait_for_copies<0>();
        __syncthreads();
        load(step + 1);
        end_copy_group();
        const char* slot = slots + step % 2 * 2 * SLOT;
        const float* of_queries = statistics + step % 2 * 2 * BACK;
        int start = begin + step * BACK;
        if (causal && start + BACK <= mine) continue;  // nobody sees this warp's keys
        float w[BLOCKS][BACK / 8][4], dw[BLOCKS][BACK / 8][4];
        dots<BACK>(w, k_tile, warp * BLOCKS * 16, slot, lane);
        dots<BACK>(dw, v_tile, warp * BLOCKS * 16, slot + SLOT, lane);
        if (causal && start < mine + BLOCKS * 16 - 1) {  // some query does not see some key
            int from[BLOCKS][2], to[BLOCKS][2];
            for (int i = 0; i < BLOCKS; i++)
                for (int half = 0; half < 2; half++)
                    from[i][half] = mine + 16 * i + lane / 4 + 8 * half - start, to[i][half] = BACK;
            hide<BACK>(w, from, to, lane);
        }
#pragma unroll
        for (int j = 0; j < BACK / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int query = 8 * j + lane % 4 * 2 + e;
                float shift = of_queries[query] * LOG2_E, along = of_queries[BACK + query];
                unsigned long long row = ((unsigned long long)bh * L + start + query) * S;
#pragma unroll
                for (int i = 0; i < BLOCKS; i++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int at = mine + 16 * i + lane / 4 + 8 * half;
                        float &x = w[i][j][2 * half + e], &dx = dw[i][j][2 * half + e];
                        float p = fast_exp2(x * unit - shift), factor = dropout.factor(row + at);
                        x = p * factor;
                        dx = p * (dx * factor - along);
                    }
            }
        mix<BACK>(dv_sums, w, slot + SLOT, lane);
        mix<BACK>(dk_sums, dw, slot, lane);
    }
    leave_copies();
    float ones[BLOCKS][2], scales[BLOCKS][2];
    for (int i = 0; i < BLOCKS; i++)
        for (int half = 0; half < 2; half++) ones[i][half] = 1.0f, scales[i][half] = scale;
    int own = warp * BLOCKS * 16 * PITCH * 16;
    store(dk, dk_sums, scales, k_tile + own, b, h, mine, S, H, D, lane);
    store(dv, dv_sums, ones, v_tile + own, b, h, mine, S, H, D, lane);
}

extern "C" __global__ void __launch_bounds__(128)
    attention_dq(bf16* dq, const bf16* dy, const bf16* q, const bf16* k, const bf16* v,
                 const float* log_sum_exp, const float* delta, int H, int L, int S, int D,
                 long long dy_b, long long dy_h, long long dy_t, long long q_b, long long q_h,
                 long long q_t, long long k_b, long long k_h, long long k_t, long long v_b,
                 long long v_h, long long v_t, float scale, int causal, unsigned int threshold,
                 float keep_scale, unsigned long long key, unsigned long long counter,
                 const unsigned long long* origin) {
    DYNAMIC_SHARED(char, shared);
    char *q_tile = shared, *dy_tile = shared + ROWS * PITCH * 16;
    char* slots = dy_tile + ROWS * PITCH * 16;
    constexpr int SLOT = BACK * PITCH * 16;  // of k; v lies behind it
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bh = blockIdx.x, b = bh / H, h = bh % H;
    int first = (gridDim.y - 1 - blockIdx.y) * ROWS, mine = first + warp * BLOCKS * 16;
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    dy += b * dy_b + h * dy_h;
    log_sum_exp += (long long)bh * L, delta += (long long)bh * L;
    if (DROPOUT) begin_draw(origin, key, counter);
    Dropout dropout{key, counter, threshold, keep_scale};
    int seen = keys_seen(first + ROWS, S, causal), steps = (seen + BACK - 1) / BACK;

    float unit = scale * LOG2_E;
    Stream from_k(k, k_t, D), from_v(v, v_t, D);
    auto load = [&](int step) {
        if (step >= steps) return;
        char* slot = slots + step % 2 * 2 * SLOT;
        from_k.load<BACK>(slot, step * BACK, S);
        from_v.load<BACK>(slot + SLOT, step * BACK, S);
    };
    float sums[BLOCKS][TILES][4] = {}, shift[BLOCKS][2], along[BLOCKS][2], scales[BLOCKS][2];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = mine + 16 * i + lane / 4 + 8 * half;
            shift[i][half] = query < L ? log_sum_exp[query] * LOG2_E : INFINITE;
            along[i][half] = query < L ? delta[query] : 0.0f, scales[i][half] = scale;
        }
    Stream(q, q_t, D).load<ROWS>(q_tile, first, L);
    Stream(dy, dy_t, D).load<ROWS>(dy_tile, first, L);
    load(0);
    end_copy_group();
    for (int step = 0; step < steps; step++) {
        wait_for_copies<0>();
        __syncthreads();
        load(step + 1);
        end_copy_group();
        const char* slot = slots + step % 2 * 2 * SLOT;
        int start = step * BACK;
        if (causal && start > mine + BLOCKS * 16 - 1) continue;
        float w[BLOCKS][BACK / 8][4], dw[BLOCKS][BACK / 8][4];
        dots<BACK>(w, q_tile, warp * BLOCKS * 16, slot, lane);
        dots<BACK>(dw, dy_tile, warp * BLOCKS * 16, slot + SLOT, lane);
        if (start + BACK > S || (causal && start + BACK > mine)) {
            int begin[BLOCKS][2] = {}, end[BLOCKS][2];
            for (int i = 0; i < BLOCKS; i++)
                for (int half = 0; half < 2; half++)
                    end[i][half] =
                        keys_seen(mine + 16 * i + lane / 4 + 8 * half + 1, S, causal) - start;
            hide<BACK>(w, begin, end, lane);
        }
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = mine + 16 * i + lane / 4 + 8 * half;
                unsigned long long row = ((unsigned long long)bh * L + query) * S;
#pragma unroll
                for (int j = 0; j < BACK / 8; j++) {
                    float factors[2];
                    dropout.factors(factors, row + start + 8 * j + lane % 4 * 2);
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& dx = dw[i][j][2 * half + e];
                        float p = fast_exp2(w[i][j][2 * half + e] * unit - shift[i][half]);
                        dx = p * (dx * factors[e] - along[i][half]);
                    }
                }
            }
        mix<BACK>(sums, dw, slot, lane);
    }
    leave_copies();
    char* own = q_tile + warp * BLOCKS * 16 * PITCH * 16;
    store(dq, sums, scales, own, b, h, mine, L, H, D, lane);
}
