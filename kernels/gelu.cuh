// GELU in its tanh form by one exponential: (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)).
//
// Nothing cancels where u is negative, as 1 + tanh u would, and the two approximate instructions
// are good to some 1e-6 of the result; tanhf and a division take three times as many.
#pragma once
#include "fast.cuh"

// gelu(x) / x for u = √(2/π) (x + 0.044715 x³); the factors are 2 log₂ e · √(2/π), and 0.044715 of
// it.
__device__ __forceinline__ float gelu_share(float x) {
    float exponent = x * (2.3022082f + 0.1029432f * (x * x));
    return fast_reciprocal(1.0f + fast_exp2(-exponent));
}
__device__ __forceinline__ float gelu_tanh(float x) {
    return x * gelu_share(x);
}
