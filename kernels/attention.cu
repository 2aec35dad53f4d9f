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
// odd number, so that the eight rows of an ldmatrix lie in different banks.
//
// Bytes: q and y once, k and v L / (64 · BLOCKS) times, from L2. Arithmetic: forward 4 L S D
// operations, backward 14 (the kernel of dk and dv 8, that of dq 6; one kernel with atomics would
// do 10), half of it if causal; one exp2 a weight and pass. At 2 · 16 rows a warp, an ldmatrix of
// 512 bytes serves 4 mma.
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

template <int ROWS_OF_TILE>
__device__ __forceinline__ void load_rows(char* tile, const bf16* x, long long stride, int first,
                                          int rows, int D) {
    for (int i = threadIdx.x; i < ROWS_OF_TILE * TILES; i += 32 * WARPS) {
        int row = i / TILES, chunk = i % TILES;
        int count = first + row < rows ? D - 8 * chunk : 0;
        count = count < 0 ? 0 : count > 8 ? 8 : count;
        const bf16* from = x + (count ? (first + row) * stride + 8 * chunk : 0);
        char* to = tile + (row * PITCH + chunk) * 16;
        if (ALIGNED) {
            copy_async(to, from, 2 * count);
        } else {
            for (int j = 0; j < 8; j++)
                ((bf16*)to)[j] = j < count ? from[j] : from_float<bf16>(0.0f);
        }
    }
}
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
__device__ __forceinline__ void store(bf16* out, const float (&sums)[BLOCKS][TILES][4],
                                      const float (&factors)[BLOCKS][2], int b, int h, int first,
                                      int rows, int H, int D, int lane) {
    int pairs = D % 2 == 0;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 16 * i + lane / 4 + 8 * half;
            if (row >= rows) continue;
            bf16* to = out + (((long long)b * rows + row) * H + h) * D;
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                int d = 8 * j + lane % 4 * 2;
                unsigned word = pack_bf16(sums[i][j][2 * half] * factors[i][half],
                                          sums[i][j][2 * half + 1] * factors[i][half]);
                if (pairs && d < D) {
                    *(unsigned*)(to + d) = word;
                } else {
                    if (d < D) to[d] = bf16{(unsigned short)word};
                    if (d + 1 < D) to[d + 1] = bf16{(unsigned short)(word >> 16)};
                }
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

    auto load = [&](int step) {
        if (step >= steps) return;
        char* slot = slots + step % 2 * 2 * SLOT;
        load_rows<COLUMNS>(slot, k, k_t, step * COLUMNS, S, D);
        load_rows<COLUMNS>(slot + SLOT, v, v_t, step * COLUMNS, S, D);
    };
    float sums[BLOCKS][TILES][4] = {}, highest[BLOCKS][2], total[BLOCKS][2];
    for (int i = 0; i < BLOCKS; i++)
        for (int half = 0; half < 2; half++) highest[i][half] = -INFINITE, total[i][half] = 0.0f;
    load_rows<ROWS>(q_tile, q, q_t, first, L, D);
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
        bool edge = start + COLUMNS > S || (causal && start + COLUMNS > mine);
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = mine + 16 * i + lane / 4 + 8 * half;
                float most = highest[i][half];
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& x = s[i][j][2 * half + e];
                        int at = start + 8 * j + lane % 4 * 2 + e;
                        x = !edge || (at < S && (!causal || at <= query)) ? x * (scale * LOG2_E)
                                                                          : -INFINITE;
                        most = fmaxf(most, x);
                    }
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                float shift = most == -INFINITE ? 0.0f : most;
                float correction = exp2f(highest[i][half] - shift), sum = 0.0f;
                highest[i][half] = most;
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; j++) {
                    float* pair = s[i][j] + 2 * half;
                    pair[0] = exp2f(pair[0] - shift), pair[1] = exp2f(pair[1] - shift);
                    sum += pair[0] + pair[1];
                    if (DROPOUT) {
                        float factors[2];
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
    wait_for_copies<0>();
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
                    sum == 0.0f ? INFINITE : (highest[i][half] + log2f(sum)) * LN_2;
        }
    store(y, sums, factors, b, h, mine, L, H, D, lane);
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
    constexpr int SLOT = BACK * PITCH * 16;  // of q; dy lies behind it
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bh = blockIdx.x, b = bh / H, h = bh % H;
    int first = blockIdx.y * ROWS, mine = first + warp * BLOCKS * 16;
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    dy += b * dy_b + h * dy_h;
    log_sum_exp += (long long)bh * L, delta += (long long)bh * L;
    if (DROPOUT) begin_draw(origin, key, counter);
    Dropout dropout{key, counter, threshold, keep_scale};
    int begin = first_query(first, causal, BACK),
        steps = L > begin ? (L - begin + BACK - 1) / BACK : 0;

    auto load = [&](int step) {
        if (step >= steps) return;
        char* slot = slots + step % 2 * 2 * SLOT;
        load_rows<BACK>(slot, q, q_t, begin + step * BACK, L, D);
        load_rows<BACK>(slot + SLOT, dy, dy_t, begin + step * BACK, L, D);
    };
    float dk_sums[BLOCKS][TILES][4] = {}, dv_sums[BLOCKS][TILES][4] = {};
    load_rows<ROWS>(k_tile, k, k_t, first, S, D);
    load_rows<ROWS>(v_tile, v, v_t, first, S, D);
    load(0);
    end_copy_group();
    for (int step = 0; step < steps; step++) {
        wait_for_copies<0>();
        __syncthreads();
        load(step + 1);
        end_copy_group();
        const char* slot = slots + step % 2 * 2 * SLOT;
        int start = begin + step * BACK;
        float w[BLOCKS][BACK / 8][4], dw[BLOCKS][BACK / 8][4];
        dots<BACK>(w, k_tile, warp * BLOCKS * 16, slot, lane);
        bool edge = start + BACK > L || mine + BLOCKS * 16 > S ||
                    (causal && start < mine + BLOCKS * 16 - 1);
        dots<BACK>(dw, v_tile, warp * BLOCKS * 16, slot + SLOT, lane);
#pragma unroll
        for (int j = 0; j < BACK / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int query = start + 8 * j + lane % 4 * 2 + e;
                int inside = query < L ? query : L - 1;
                float shift = log_sum_exp[inside] * LOG2_E, along = delta[inside];
                unsigned long long row = ((unsigned long long)bh * L + query) * S;
#pragma unroll
                for (int i = 0; i < BLOCKS; i++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int at = mine + 16 * i + lane / 4 + 8 * half;
                        float &x = w[i][j][2 * half + e], &dx = dw[i][j][2 * half + e];
                        bool seen = !edge || visible(query, at, L, S, causal);
                        float p = seen ? exp2f(x * (scale * LOG2_E) - shift) : 0.0f;
                        float factor = dropout.factor(row + at);
                        x = p * factor;
                        dx = p * (dx * factor - along);
                    }
            }
        mix<BACK>(dv_sums, w, slot + SLOT, lane);
        mix<BACK>(dk_sums, dw, slot, lane);
    }
    wait_for_copies<0>();
    float ones[BLOCKS][2], scales[BLOCKS][2];
    for (int i = 0; i < BLOCKS; i++)
        for (int half = 0; half < 2; half++) ones[i][half] = 1.0f, scales[i][half] = scale;
    store(dk, dk_sums, scales, b, h, mine, S, H, D, lane);
    store(dv, dv_sums, ones, b, h, mine, S, H, D, lane);
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

    auto load = [&](int step) {
        if (step >= steps) return;
        char* slot = slots + step % 2 * 2 * SLOT;
        load_rows<BACK>(slot, k, k_t, step * BACK, S, D);
        load_rows<BACK>(slot + SLOT, v, v_t, step * BACK, S, D);
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
    load_rows<ROWS>(q_tile, q, q_t, first, L, D);
    load_rows<ROWS>(dy_tile, dy, dy_t, first, L, D);
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
#pragma unroll
        for (int i = 0; i < BLOCKS; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int query = mine + 16 * i + lane / 4 + 8 * half;
                unsigned long long row = ((unsigned long long)bh * L + query) * S;
#pragma unroll
                for (int j = 0; j < BACK / 8; j++) {
                    int at = start + 8 * j + lane % 4 * 2;
                    float factors[2];
                    dropout.factors(factors, row + at);
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float x = w[i][j][2 * half + e], &dx = dw[i][j][2 * half + e];
                        float p = visible(query, at + e, L, S, causal)
                                      ? exp2f(x * (scale * LOG2_E) - shift[i][half])
                                      : 0.0f;
                        dx = p * (dx * factors[e] - along[i][half]);
                    }
                }
            }
        mix<BACK>(sums, dw, slot, lane);
    }
    wait_for_copies<0>();
    store(dq, sums, scales, b, h, mine, L, H, D, lane);
}
