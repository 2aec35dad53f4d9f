// Attention without tensor cores, y = dropout(softmax(scale q kᵀ)) v and its gradient: any GPU.
//
// After T. Dao, FlashAttention-2 (arXiv 2307.08691): tiles of 32 queries and 32 keys in shared
// memory, running maximum m and sum of exponentials s of each query, y rescaled when m grows;
// nothing of size L × S in memory, key tiles beyond the diagonal skipped. Layouts: attention.cuh. D
// <= HEAD.
//   forward:  p = exp(scale q·k - m), y = Σ p v / s, log_sum_exp = m + log s
//   delta:    delta = Σ dy y = Σ_keys w dw, the row sum that the softmax gradient needs
//   backward: w = exp(scale q·k - log_sum_exp), dw = dropout(dy vᵀ), ds = w (dw - delta),
//             dq = scale ds k, dk = scale dsᵀ q, dv = dropout(w)ᵀ dy
// dk and dv in one kernel whose blocks own keys, dq in another whose blocks own queries: each sum
// has one owner and one order, so there are no atomics and the result is the same every time. The
// price is that the weights are made twice.
//
// Split: a block of 16 × 16 threads owns 32 rows of (blockIdx.x = b · H + h); a thread makes 2 × 2
// of the weights and, of 2 rows, every 16th column of the result. Bytes: q and y once, k and v L /
// 32 times from L2. Arithmetic: 4 L S D operations forward (half if causal), 14 backward.
#include "attention.cuh"

#ifndef real
#define real float
#endif
#ifndef HEAD
#define HEAD 64
#endif

constexpr int ROWS = 32, PITCH = HEAD + 1, EACH = HEAD / 16;

// 32 rows of x from `first` as float32; zeros beyond the last row and beyond D.
__device__ __forceinline__ void load_rows(float* tile, const real* x, long long stride, int first,
                                          int rows, int D) {
    for (int i = threadIdx.x; i < ROWS * HEAD; i += 256) {
        int r = i / HEAD, d = i % HEAD;
        tile[r * PITCH + d] =
            first + r < rows && d < D ? to_float(x[(first + r) * stride + d]) : 0.0f;
    }
}
// c[i][j] = row (2 ty + i) of a · row (tx + 16 j) of b.
__device__ __forceinline__ void dots(float c[2][2], const float* a, const float* b, int ty,
                                     int tx) {
    c[0][0] = c[0][1] = c[1][0] = c[1][1] = 0.0f;
    for (int d = 0; d < HEAD; d++) {
        float x[2] = {a[2 * ty * PITCH + d], a[(2 * ty + 1) * PITCH + d]};
        float y[2] = {b[tx * PITCH + d], b[(tx + 16) * PITCH + d]};
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) c[i][j] += x[i] * y[j];
    }
}
// sums[i][e] += Σ_j weights[2 ty + i][j] · rows[j][tx + 16 e].
__device__ __forceinline__ void mix(float sums[2][EACH], const float* weights, const float* rows,
                                    int ty, int tx) {
    for (int j = 0; j < ROWS; j++) {
        float w[2] = {weights[2 * ty * (ROWS + 1) + j], weights[(2 * ty + 1) * (ROWS + 1) + j]};
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            float x = rows[j * PITCH + tx + 16 * e];
            sums[0][e] += w[0] * x, sums[1][e] += w[1] * x;
        }
    }
}
__device__ __forceinline__ void store(real* out, const float sums[2][EACH], float factor, int b,
                                      int h, int first, int rows, int H, int D, int ty, int tx) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int r = first + 2 * ty + i, d = tx + 16 * e;
            if (r < rows && d < D)
                out[(((long long)b * rows + r) * H + h) * D + d] =
                    from_float<real>(sums[i][e] * factor);
        }
}

extern "C" __global__ void __launch_bounds__(256)
    attention_plain_forward(real* y, float* log_sum_exp, const real* q, const real* k,
                            const real* v, int H, int L, int S, int D, long long q_b, long long q_h,
                            long long q_t, long long k_b, long long k_h, long long k_t,
                            long long v_b, long long v_h, long long v_t, float scale, int causal,
                            unsigned int threshold, float keep_scale, unsigned long long key,
                            unsigned long long counter, const unsigned long long* origin) {
    __shared__ float q_tile[ROWS * PITCH], kv_tile[ROWS * PITCH], weights[ROWS * (ROWS + 1)];
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16, bh = blockIdx.x, b = bh / H, h = bh % H;
    int first = (gridDim.y - 1 - blockIdx.y) * ROWS;  // the longest rows start first
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    if (DROPOUT) begin_draw(origin, key, counter);
    Dropout dropout{key, counter, threshold, keep_scale};
    float sums[2][EACH] = {}, highest[2] = {-INFINITE, -INFINITE}, total[2] = {};
    load_rows(q_tile, q, q_t, first, L, D);
    int seen = keys_seen(first + ROWS, S, causal);
    for (int start = 0; start < seen; start += ROWS) {
        load_rows(kv_tile, k, k_t, start, S, D);
        __syncthreads();
        float s[2][2];
        dots(s, q_tile, kv_tile, ty, tx);
        __syncthreads();  // all have read k: its place is for v now
        load_rows(kv_tile, v, v_t, start, S, D);
        for (int i = 0; i < 2; i++) {
            int query = first + 2 * ty + i;
            float most = highest[i];
            for (int j = 0; j < 2; j++) {
                bool seen_here = visible(query, start + tx + 16 * j, L, S, causal);
                s[i][j] = seen_here ? s[i][j] * (scale * LOG2_E) : -INFINITE;
                most = fmaxf(most, s[i][j]);
            }
            for (int lane = 8; lane > 0; lane /= 2)
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, lane));
            float shift = most == -INFINITE ? 0.0f : most;
            float correction = exp2f(highest[i] - shift), sum = 0.0f;
            highest[i] = most;
            for (int j = 0; j < 2; j++) {
                float p = exp2f(s[i][j] - shift);
                unsigned long long index = (unsigned long long)bh * L + query;
                float factor = dropout.factor(index * S + start + tx + 16 * j);
                weights[(2 * ty + i) * (ROWS + 1) + tx + 16 * j] = p * factor;
                sum += p;
            }
            for (int lane = 8; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
            total[i] = total[i] * correction + sum;
#pragma unroll
            for (int e = 0; e < EACH; e++) sums[i][e] *= correction;
        }
        __syncthreads();
        mix(sums, weights, kv_tile, ty, tx);
        __syncthreads();
    }
    for (int i = 0; i < 2; i++) {
        int query = first + 2 * ty + i;
#pragma unroll
        for (int e = 0; e < EACH; e++)
            sums[i][e] = total[i] > 0.0f ? sums[i][e] / total[i] : total[i];
        if (tx == 0 && query < L)
            log_sum_exp[(long long)bh * L + query] =
                total[i] == 0.0f ? INFINITE : (highest[i] + log2f(total[i])) * LN_2;
    }
    store(y, sums, 1.0f, b, h, first, L, H, D, ty, tx);
}

// delta of one query: a warp a row of dy and y.
extern "C" __global__ void attention_delta(float* delta, const real* dy, const real* y, int H,
                                           int L, int D, int rows, long long dy_b, long long dy_h,
                                           long long dy_t) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    int b = row / L / H, h = row / L % H, t = row % L;
    float sum = 0.0f;
    if (row < rows)
        for (int d = lane; d < D; d += 32)
            sum += to_float(dy[b * dy_b + h * dy_h + t * dy_t + d]) *
                   to_float(y[(((long long)b * L + t) * H + h) * D + d]);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (row < rows && lane == 0) delta[row] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
    attention_plain_dkdv(real* dk, real* dv, const real* dy, const real* q, const real* k,
                         const real* v, const float* log_sum_exp, const float* delta, int H, int L,
                         int S, int D, long long dy_b, long long dy_h, long long dy_t,
                         long long q_b, long long q_h, long long q_t, long long k_b, long long k_h,
                         long long k_t, long long v_b, long long v_h, long long v_t, float scale,
                         int causal, unsigned int threshold, float keep_scale,
                         unsigned long long key, unsigned long long counter,
                         const unsigned long long* origin) {
    DYNAMIC_SHARED(float, shared);
    float *k_tile = shared, *v_tile = k_tile + ROWS * PITCH, *q_tile = v_tile + ROWS * PITCH;
    float *dy_tile = q_tile + ROWS * PITCH, *dropped = dy_tile + ROWS * PITCH;
    float* ds_tile = dropped + ROWS * (ROWS + 1);
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16, bh = blockIdx.x, b = bh / H, h = bh % H;
    int first = blockIdx.y * ROWS;
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    dy += b * dy_b + h * dy_h;
    if (DROPOUT) begin_draw(origin, key, counter);
    Dropout dropout{key, counter, threshold, keep_scale};
    float dk_sums[2][EACH] = {}, dv_sums[2][EACH] = {};
    load_rows(k_tile, k, k_t, first, S, D);
    load_rows(v_tile, v, v_t, first, S, D);
    for (int start = first_query(first, causal, ROWS); start < L; start += ROWS) {
        load_rows(q_tile, q, q_t, start, L, D);
        load_rows(dy_tile, dy, dy_t, start, L, D);
        __syncthreads();
        float s[2][2], dw[2][2];
        dots(s, k_tile, q_tile, ty, tx);
        dots(dw, v_tile, dy_tile, ty, tx);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) {
                int query = start + tx + 16 * j, at = first + 2 * ty + i;
                float w = 0.0f, factor = 0.0f, along = 0.0f;
                if (visible(query, at, L, S, causal)) {
                    long long row = (long long)bh * L + query;
                    w = exp2f(LOG2_E * (s[i][j] * scale - log_sum_exp[row]));
                    factor = dropout.factor((unsigned long long)row * S + at), along = delta[row];
                }
                int place = (2 * ty + i) * (ROWS + 1) + tx + 16 * j;
                dropped[place] = w * factor, ds_tile[place] = w * (dw[i][j] * factor - along);
            }
        __syncthreads();
        mix(dv_sums, dropped, dy_tile, ty, tx);
        mix(dk_sums, ds_tile, q_tile, ty, tx);
        __syncthreads();
    }
    store(dk, dk_sums, scale, b, h, first, S, H, D, ty, tx);
    store(dv, dv_sums, 1.0f, b, h, first, S, H, D, ty, tx);
}

extern "C" __global__ void __launch_bounds__(256)
    attention_plain_dq(real* dq, const real* dy, const real* q, const real* k, const real* v,
                       const float* log_sum_exp, const float* delta, int H, int L, int S, int D,
                       long long dy_b, long long dy_h, long long dy_t, long long q_b, long long q_h,
                       long long q_t, long long k_b, long long k_h, long long k_t, long long v_b,
                       long long v_h, long long v_t, float scale, int causal,
                       unsigned int threshold, float keep_scale, unsigned long long key,
                       unsigned long long counter, const unsigned long long* origin) {
    DYNAMIC_SHARED(float, shared);
    float *k_tile = shared, *v_tile = k_tile + ROWS * PITCH, *q_tile = v_tile + ROWS * PITCH;
    float *dy_tile = q_tile + ROWS * PITCH, *ds_tile = dy_tile + ROWS * PITCH;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16, bh = blockIdx.x, b = bh / H, h = bh % H;
    int first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    dy += b * dy_b + h * dy_h;
    if (DROPOUT) begin_draw(origin, key, counter);
    Dropout dropout{key, counter, threshold, keep_scale};
    float sums[2][EACH] = {};
    load_rows(q_tile, q, q_t, first, L, D);
    load_rows(dy_tile, dy, dy_t, first, L, D);
    int seen = keys_seen(first + ROWS, S, causal);
    for (int start = 0; start < seen; start += ROWS) {
        load_rows(k_tile, k, k_t, start, S, D);
        load_rows(v_tile, v, v_t, start, S, D);
        __syncthreads();
        float s[2][2], dw[2][2];
        dots(s, q_tile, k_tile, ty, tx);
        dots(dw, dy_tile, v_tile, ty, tx);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) {
                int query = first + 2 * ty + i, at = start + tx + 16 * j;
                float ds = 0.0f;
                if (visible(query, at, L, S, causal)) {
                    long long row = (long long)bh * L + query;
                    float w = exp2f(LOG2_E * (s[i][j] * scale - log_sum_exp[row]));
                    float factor = dropout.factor((unsigned long long)row * S + at);
                    ds = w * (dw[i][j] * factor - delta[row]);
                }
                ds_tile[(2 * ty + i) * (ROWS + 1) + tx + 16 * j] = ds;
            }
        __syncthreads();
        mix(sums, ds_tile, k_tile, ty, tx);
        __syncthreads();
    }
    store(dq, sums, scale, b, h, first, L, H, D, ty, tx);
}
