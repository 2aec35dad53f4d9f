// One pass over contiguous arrays: y = EXPRESSION of a, b, c (elements), s and t (scalars).
//
// The family is the table in cuda/elementwise.py: each entry is this file, compiled with its
// EXPRESSION and its number of INPUTS. Expressions add and multiply by __fadd_rn and __fmul_rn
// where the CPU rounds in between. y may be one of the inputs. Layout: count numbers of `real`; one
// thread 16 bytes of each.
// Bytes: each input and y once.
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef EXPRESSION
#define EXPRESSION __fadd_rn(__fmul_rn(s, a), b)
#define INPUTS 2
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

__device__ __forceinline__ float value(float a, float b, float c, float s, float t) {
    return EXPRESSION;
}

extern "C" __global__ void __launch_bounds__(256)
    elementwise(real* y, const real* first, const real* second, const real* third, long long count,
                float s, float t) {
    constexpr int PIECE = WIDTH<real>;
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * PIECE;
    if (at >= count) return;
    int left = (int)min((long long)PIECE, count - at);
    float a[PIECE] = {}, b[PIECE] = {}, c[PIECE] = {};
    load(a, first + at, left, ALIGNED);
    if (INPUTS > 1) load(b, second + at, left, ALIGNED);
    if (INPUTS > 2) load(c, third + at, left, ALIGNED);
#pragma unroll
    for (int j = 0; j < PIECE; j++) a[j] = value(a[j], b[j], c[j], s, t);
    store(y + at, a, left, ALIGNED);
}
