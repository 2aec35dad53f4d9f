// What the attention kernels share: base-2 exponentials, the causal rule, and dropout by counter.
//
// Scores are kept times log₂ e, so that exp is exp2. A query that sees no finite score has weights
// 0 and a log-sum-exp of +∞. Layouts: q, k, v and dy are (B, H, time, D) with strides for the first
// three axes and contiguous D; y, dq, dk and dv are written as contiguous (B, time, H, D), so that
// joining the heads is free; log_sum_exp and delta are contiguous (B, H, L) float32.
#pragma once
#include "fast.cuh"
#include "philox.cuh"
#include "types.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
#define INFINITE __uint_as_float(0x7f800000u)

#ifndef DROPOUT
#define DROPOUT 0
#endif

// Element i of the (B, H, L, S) weights is kept where 32-bit word i of the draw reaches the
// threshold. Without -DDROPOUT=1 every element is, and what the draw would need is not compiled.
struct Dropout {
    unsigned long long key, counter;
    unsigned threshold;
    float scale;

    __device__ __forceinline__ unsigned word(const unsigned long long words[4], int i) {
        unsigned long long low = i & 4 ? words[2] : words[0], high = i & 4 ? words[3] : words[1];
        return (unsigned)((i & 2 ? high : low) >> (i & 1) * 32);
    }
    // What weights i and i + 1 are multiplied with.
    __device__ __forceinline__ void factors(float out[2], unsigned long long i) {
        if (!DROPOUT) {
            out[0] = out[1] = 1.0f;
            return;
        }
        unsigned long long words[4];
        philox(words, key, counter + i / 8);
        out[0] = word(words, i % 8) >= threshold ? scale : 0.0f;
        if (i % 8 == 7) philox(words, key, counter + i / 8 + 1);
        out[1] = word(words, (i + 1) % 8) >= threshold ? scale : 0.0f;
    }
    __device__ __forceinline__ float factor(unsigned long long i) {
        if (!DROPOUT) return 1.0f;
        unsigned long long words[4];
        philox(words, key, counter + i / 8);
        return word(words, i % 8) >= threshold ? scale : 0.0f;
    }
};

__device__ __forceinline__ bool visible(int query, int key, int L, int S, int causal) {
    return query < L && key < S && (!causal || key <= query);
}
// How many keys the queries before `end` see, and the first query that sees the keys from `first`.
__device__ __forceinline__ int keys_seen(int end, int S, int causal) {
    return causal && end < S ? end : S;
}
__device__ __forceinline__ int first_query(int first, int causal, int step) {
    return causal ? first / step * step : 0;
}
