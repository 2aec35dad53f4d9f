// Rows that are read once: how softmax, layer norm and cross-entropy go over the last axis.
//
// TEAM threads share a row: a warp (TEAM 32, several rows a block) or the block. Each thread holds
// EACH pieces of 16 bytes, neighbours beside neighbours, so that a warp's load is one run of
// 512 bytes and EACH loads are under way at once. EACH 0 is for rows too wide for that: every pass
// reads the row again, the later ones from the L2 cache, or with STAGED from dynamic shared memory,
// where each thread keeps what it has read: K rows of each team, each a whole number of pieces.
// ALIGNED says that every row begins at a multiple of 16 bytes and is a multiple long. cuda/rows.py
// chooses them.
#pragma once
#include "fast.cuh"
#include "reduce.cuh"
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef TEAM
#define TEAM 32
#endif
#ifndef EACH
#define EACH 1
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif
#ifndef STAGED
#define STAGED 0
#endif
#ifndef widest
#define widest real  // of the types in a row, that of which 16 bytes are a piece
#endif

constexpr int PIECE = WIDTH<widest>;
constexpr int BLOCK = TEAM == 32 ? 128 : TEAM;  // threads
constexpr int TEAMS = BLOCK / TEAM;             // rows that a block works on at a time
constexpr int BATCH = EACH ? EACH : 4;          // loads of one row under way in a thread
#define INFINITE __uint_as_float(0x7f800000u)

__device__ __forceinline__ float team_sum(float x, float* partial) {
    return TEAM == 32 ? warp_sum(x) : block_sum(x, partial);
}
__device__ __forceinline__ float team_max(float x, float* partial) {
    return TEAM == 32 ? warp_max(x) : block_max(x, partial);
}
__device__ __forceinline__ int rank_in_team() {
    return threadIdx.x % TEAM;
}
__device__ __forceinline__ int pieces_left(int columns, int at) {
    return ALIGNED ? PIECE : columns - at;
}

// exp(x). For bfloat16 in one instruction: at 4 bytes an element a multiprocessor has some 25 to
// issue for each. Where x is small and the result counts, it is as good as expf.
__device__ __forceinline__ float exponential(float x) {
    return sizeof(real) == 2 ? fast_exp2(x * 1.4426950408889634f) : expf(x);
}

struct Nothing {
    template <typename X>
    __device__ __forceinline__ void operator()(X&, int) const {}
};

// The same row of K arrays. each(f) calls f(x, at, e) with x[k][j] = element at + j of array k, for
// every piece e of this thread: elements from `limit` on are `pad` and are not read, then
// prepare(x, at) may change what was read. What f writes into x is there in the next pass if the
// row is held. Array 0 is of type First, the others of `real`.
template <int K, typename Prepare = Nothing, typename First = real>
struct Rows {
    const void* from[K];
    int columns, limit;
    float pad;
    Prepare prepare;
    float held[BATCH][K][PIECE];
    bool staged = false;

    // Where this thread keeps a piece of array k.
    __device__ __forceinline__ real* slot(int k, int at) const {
        DYNAMIC_SHARED(real, rows);
        int row = threadIdx.x / TEAM * K + k;
        return rows + row * ((columns + PIECE - 1) / PIECE * PIECE) + at;
    }
    __device__ __forceinline__ void fill(int first) {
#pragma unroll
        for (int e = 0; e < BATCH; e++) {
            int at = first + e * TEAM * PIECE;
#pragma unroll
            for (int k = 0; k < K; k++) {
                if (STAGED && staged && at < columns) {
                    load(held[e][k], slot(k, at), PIECE, true);
                } else if (at < limit && k == 0) {
                    load(held[e][k], (const First*)from[k] + at, pieces_left(columns, at), ALIGNED,
                         pad);
                } else if (at < limit) {
                    load(held[e][k], (const real*)from[k] + at, pieces_left(columns, at), ALIGNED,
                         pad);
                } else {
#pragma unroll
                    for (int j = 0; j < PIECE; j++) held[e][k][j] = pad;
                }
            }
        }
        if (STAGED && !staged) {
#pragma unroll
            for (int e = 0; e < BATCH; e++)
#pragma unroll
                for (int k = 0; k < K; k++)
                    if (first + e * TEAM * PIECE < columns)
                        store(slot(k, first + e * TEAM * PIECE), held[e][k], PIECE, true);
        }
#pragma unroll
        for (int e = 0; e < BATCH; e++) prepare(held[e], first + e * TEAM * PIECE);
    }
    __device__ __forceinline__ void begin() {
        if (EACH) fill(rank_in_team() * PIECE);
    }
    template <typename F>
    __device__ __forceinline__ void each(F f) {
        for (int first = rank_in_team() * PIECE; EACH || first < columns;
             first += BATCH * TEAM * PIECE) {
            if (!EACH) fill(first);
#pragma unroll
            for (int e = 0; e < BATCH; e++) {
                int at = first + e * TEAM * PIECE;
                if (at < columns) f(held[e], at, e);
            }
            if (EACH) break;
        }
        staged = true;
    }
};

// Writes a piece of a row at `to`.
__device__ __forceinline__ void put(real* to, const float (&x)[PIECE], int at, int columns) {
    store(to + at, x, pieces_left(columns, at), ALIGNED);
}

// The largest x and Σ exp(x - largest) of the elements added so far, in one pass.
struct Exponentials {
    float largest, total;

    template <int N>
    __device__ __forceinline__ void add(const float (&x)[N]) {
        float top = x[0];
#pragma unroll
        for (int j = 1; j < N; j++) top = fmaxf(top, x[j]);
        if (top > largest) total *= exponential(largest - top), largest = top;
        float base = largest == -INFINITE ? 0.0f : largest;  // exp(-∞ - -∞) is not a number
#pragma unroll
        for (int j = 0; j < N; j++) total += exponential(x[j] - base);
    }
    // Together with another's.
    __device__ __forceinline__ void merge(float other_largest, float other_total) {
        float top = fmaxf(largest, other_largest), base = top == -INFINITE ? 0.0f : top;
        total = total * expf(largest - base) + other_total * expf(other_largest - base);
        largest = top;
    }
    __device__ __forceinline__ void merge_team(float* partial) {
        float top = team_max(largest, partial), base = top == -INFINITE ? 0.0f : top;
        total = team_sum(total * expf(largest - base), partial);
        largest = top;
    }
};
