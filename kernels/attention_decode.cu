// Attention of one query row a head, for generating with a cache of keys and values: many keys, no
// reuse, so the work is reading k and v once.
//
// Split: blockIdx.x = b · H + h, blockIdx.y a part of the keys, so that a few heads still fill the
// device; 16 groups of 8 lanes, each with its own running maximum, sum of exponentials and weighted
// sum of values (the online softmax of attention_plain.cu), take every 16th key of the part, a lane
// HEAD / 8 neighbouring elements. The groups are joined in shared memory and the parts by
// attention_join, both in a fixed order. Layouts: attention.cuh, L = 1; partial results are
// float32, (B · H, parts, HEAD + 2): the weighted sum, the maximum (base 2), the sum of
// exponentials.
// Bytes: k and v once. Arithmetic: 4 S D operations.
#include "attention.cuh"

#ifndef real
#define real float
#endif
#ifndef HEAD
#define HEAD 64
#endif

constexpr int EACH = HEAD / 8, GROUPS = 16;

extern "C" __global__ void __launch_bounds__(128)
    attention_decode(float* partial, const real* q, const real* k, const real* v, int H, int S,
                     int D, long long q_b, long long q_h, long long k_b, long long k_h,
                     long long k_t, long long v_b, long long v_h, long long v_t, float scale,
                     int part_length) {
    __shared__ float states[GROUPS][HEAD + 2];
    int lane = threadIdx.x % 8, group = threadIdx.x / 8, bh = blockIdx.x, b = bh / H, h = bh % H;
    int start = blockIdx.y * part_length, end = S - start < part_length ? S : start + part_length;
    q += b * q_b + h * q_h, k += b * k_b + h * k_h, v += b * v_b + h * v_h;
    float query[EACH], sums[EACH] = {}, highest = -INFINITE, total = 0.0f;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        int d = lane * EACH + e;
        query[e] = d < D ? to_float(q[d]) * (scale * LOG2_E) : 0.0f;
    }
    for (int round = start; round < end; round += GROUPS) {  // all lanes together, for the shuffles
        int at = round + group;
        float score = 0.0f;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int d = lane * EACH + e;
            if (at < end && d < D) score += query[e] * to_float(k[at * k_t + d]);
        }
        for (int other = 4; other > 0; other /= 2)
            score += __shfl_xor_sync(0xffffffffu, score, other);
        if (at >= end) continue;
        float most = fmaxf(highest, score), shift = most == -INFINITE ? 0.0f : most;
        float correction = exp2f(highest - shift), weight = exp2f(score - shift);
        highest = most, total = total * correction + weight;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            int d = lane * EACH + e;
            sums[e] = sums[e] * correction + (d < D ? weight * to_float(v[at * v_t + d]) : 0.0f);
        }
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) states[group][lane * EACH + e] = sums[e];
    if (lane == 0) states[group][HEAD] = highest, states[group][HEAD + 1] = total;
    __syncthreads();
    float most = -INFINITE, joined = 0.0f, sum = 0.0f;
    for (int i = 0; i < GROUPS; i++) most = fmaxf(most, states[i][HEAD]);
    float shift = most == -INFINITE ? 0.0f : most;
    for (int i = 0; i < GROUPS; i++) {
        float factor = exp2f(states[i][HEAD] - shift);
        sum += factor * states[i][HEAD + 1];
        if (threadIdx.x < HEAD) joined += factor * states[i][threadIdx.x];
    }
    partial += ((long long)bh * gridDim.y + blockIdx.y) * (HEAD + 2);
    if (threadIdx.x < HEAD) partial[threadIdx.x] = joined;
    if (threadIdx.x == 0) partial[HEAD] = most, partial[HEAD + 1] = sum;
}

// y and log_sum_exp from the parts: blockIdx.x = b · H + h, a thread an element of y.
extern "C" __global__ void attention_join(real* y, float* log_sum_exp, const float* partial,
                                          int parts, int D) {
    int bh = blockIdx.x, d = threadIdx.x;
    partial += (long long)bh * parts * (HEAD + 2);
    float most = -INFINITE, joined = 0.0f, sum = 0.0f;
    for (int i = 0; i < parts; i++) most = fmaxf(most, partial[i * (HEAD + 2) + HEAD]);
    float shift = most == -INFINITE ? 0.0f : most;
    for (int i = 0; i < parts; i++) {
        const float* part = partial + i * (HEAD + 2);
        float factor = exp2f(part[HEAD] - shift);
        sum += factor * part[HEAD + 1];
        if (d < D) joined += factor * part[d];
    }
    if (d < D) y[(long long)bh * D + d] = from_float<real>(sum == 0.0f ? 0.0f : joined / sum);
    if (d == 0) log_sum_exp[bh] = sum == 0.0f ? INFINITE : (most + log2f(sum)) * LN_2;
}
