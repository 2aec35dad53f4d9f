// The two element types of the kernels, float and bf16, and 16-byte access to both.
//
// A kernel that serves both is written for `real`, which the launcher defines. Arithmetic is always
// float: to_float on the way in, from_float<real> on the way out (to the nearest, ties to even; a
// NaN stays one, an overflow becomes infinite). There is no CUDA header behind this: NVRTC brings
// none.
#pragma once

struct bf16 {
    unsigned short bits;  // the upper half of a float
};

#if defined(__CUDACC__)
#define ROUNDING_PTX __CUDA_ARCH__ >= 800
#else
#define ROUNDING_PTX 0
#endif

template <typename T>
struct Element;
template <>
struct Element<float> {
    static __device__ __forceinline__ float widen(float x) { return x; }
    static __device__ __forceinline__ float round(float x) { return x; }
};
template <>
struct Element<bf16> {
    static __device__ __forceinline__ float widen(bf16 x) {
        return __uint_as_float((unsigned int)x.bits << 16);
    }
    static __device__ __forceinline__ bf16 round(float x) {
#if ROUNDING_PTX
        unsigned short rounded;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
        return {rounded};
#else
        unsigned int bits = __float_as_uint(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return {(unsigned short)(bits >> 16 | 0x40u)};
        return {(unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
    }
};

template <typename T>
__device__ __forceinline__ float to_float(T x) {
    return Element<T>::widen(x);
}
template <typename T>
__device__ __forceinline__ T from_float(float x) {
    return Element<T>::round(x);
}

// Two floats as bfloat16, the first in the low half.
__device__ __forceinline__ unsigned int pack_bf16(float low, float high) {
#if ROUNDING_PTX
    unsigned int word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return from_float<bf16>(low).bits | (unsigned int)from_float<bf16>(high).bits << 16;
#endif
}

// WIDTH<T> elements are 16 bytes: what one instruction moves, and what a thread works on at a time.
template <typename T>
constexpr int WIDTH = 16 / sizeof(T);

// The first `count` elements at `from`, the rest `pad`. In one instruction if `aligned` says that
// `from` is a multiple of 16 bytes (or of 8, if they are no more) and they are all there; else one
// by one.
template <typename T, int N>
__device__ __forceinline__ void load(float (&x)[N], const T* from, int count, bool aligned,
                                     float pad = 0.0f) {
    constexpr int STEP = WIDTH<T> < N ? WIDTH<T> : N;
    if (aligned && count >= N && N % WIDTH<T> == 0) {
#pragma unroll
        for (int i = 0; i < N; i += STEP) {
            union {
                uint4 bytes;
                T elements[STEP];
            } word;
            word.bytes = *(const uint4*)(from + i);
#pragma unroll
            for (int j = 0; j < STEP; j++) x[i + j] = to_float(word.elements[j]);
        }
    } else if (aligned && count >= N && N * sizeof(T) == 8) {
        union {
            uint2 bytes;
            T elements[N];
        } word;
        word.bytes = *(const uint2*)from;
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = to_float(word.elements[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = i < count ? to_float(from[i]) : pad;
    }
}
template <typename T, int N>
__device__ __forceinline__ void store(T* to, const float (&x)[N], int count, bool aligned) {
    constexpr int STEP = WIDTH<T> < N ? WIDTH<T> : N;
    if (aligned && count >= N && N % WIDTH<T> == 0) {
#pragma unroll
        for (int i = 0; i < N; i += STEP) {
            union {
                unsigned int words[4];
                uint4 bytes;
            } piece;
#pragma unroll
            for (int j = 0; j < 4; j++)
                piece.words[j] = sizeof(T) == 2
                                     ? pack_bf16(x[i + 2 * j % STEP], x[i + (2 * j + 1) % STEP])
                                     : __float_as_uint(x[i + j % STEP]);
            *(uint4*)(to + i) = piece.bytes;
        }
    } else if (aligned && count >= N && N * sizeof(T) == 8) {
        union {
            uint2 bytes;
            T elements[N];
        } word;
#pragma unroll
        for (int i = 0; i < N; i++) word.elements[i] = from_float<T>(x[i]);
        *(uint2*)to = word.bytes;
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < count) to[i] = from_float<T>(x[i]);
    }
}
