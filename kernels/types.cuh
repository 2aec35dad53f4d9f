// The two element types of the kernels, float and bf16, and 16-byte access to both.
//
// A kernel that serves both is written for `real`, which the launcher defines. Arithmetic is always
// float: to_float on the way in, from_float<real> on the way out (to the nearest, ties to even; a NaN
// stays one, an overflow becomes infinite). There is no CUDA header behind this: NVRTC brings none.
#pragma once

struct bf16 {
    unsigned short bits;  // the upper half of a float
};

template <typename T>
struct Element;
template <>
struct Element<float> {
    static __device__ __forceinline__ float widen(float x) {
        return x;
    }
    static __device__ __forceinline__ float round(float x) {
        return x;
    }
};
template <>
struct Element<bf16> {
    static __device__ __forceinline__ float widen(bf16 x) {
        return __uint_as_float((unsigned int)x.bits << 16);
    }
    static __device__ __forceinline__ bf16 round(float x) {
        unsigned int bits = __float_as_uint(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return {(unsigned short)(bits >> 16 | 0x40u)};
        return {(unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
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

// WIDTH<T> elements are 16 bytes: what one instruction moves, and what a thread works on at a time.
template <typename T>
constexpr int WIDTH = 16 / sizeof(T);

// The first `count` elements at `from`, the rest `pad`. In one instruction if `aligned` says that
// `from` is a multiple of 16 bytes and they are all there; else one by one.
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
                uint4 bytes;
                T elements[STEP];
            } word;
#pragma unroll
            for (int j = 0; j < STEP; j++) word.elements[j] = from_float<T>(x[i + j]);
            *(uint4*)(to + i) = word.bytes;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < count) to[i] = from_float<T>(x[i]);
    }
}
