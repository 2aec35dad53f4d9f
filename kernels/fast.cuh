// Approximate instructions, for where what they leave out cannot show: results below 2^-126 are 0,
// which exp2f and division keep for two or three times as many instructions.
#pragma once

// 2^x, to some 2 units in the last place.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
#endif
}
// 1 / x, to 1 unit in the last place.
__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef __CUDACC__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    float y = 1.0f / x;
    return y > -1.17549435e-38f && y < 1.17549435e-38f ? 0.0f : y;
#endif
}
