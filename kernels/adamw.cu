// AdamW over a flat stretch of numbers: m = β₁ m + (1 - β₁) g, v = β₂ v + (1 - β₂) g²,
// x = x (1 - lr decay) - rate m / (√v + eps'), where rate = lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) and
// eps' = eps √(1 - β₂ᵗ): the formula of optim/adamw.py, in its order of operations, each rounded by
// itself, so that float32 results are NumPy's bit for bit (BLAS, where optim/adamw.py calls it, may
// round a product and its sum as one).
//
// `factors` lies on the device, so that a captured step can be given another learning rate: β₁,
// 1 - β₁, β₂, 1 - β₂, eps', rate, 1 - lr decay, and coupled: Adam's g is first g + coupled x.
// `scale`, where given, is what gradients are multiplied with first (clipping). KEEP, for bfloat16:
// MASTER, the float32 weights are kept beside and rounded (and take over a value that somebody else
// wrote); STOCHASTIC, there are none, and x is rounded up or down with the probability of its
// distance: 16 bits of 32-bit word i of the draw.
//
// Layout: count numbers each, contiguous; m, v and master float32. A warp has 256 numbers, a thread
// four of the first 128 and four of the rest: 16 bytes of float32 each, beside its neighbour's.
// Bytes an element: 28 in float32 (4 read, 3 written, 4 bytes each), 30 with a master, 22
// stochastic. Arithmetic: 12 operations, one root, one division.
//
// set_factors: eight numbers, passed by value, to where an update (adamw, or sgd.cu's) reads them.
#include "philox.cuh"
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef gradient_type
#define gradient_type real
#endif
#define PLAIN 0
#define MASTER 1
#define STOCHASTIC 2
#ifndef KEEP
#define KEEP PLAIN
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

// The eight numbers of a thread; number j of them is at(j).
struct Share {
    long long first, count;

    __device__ __forceinline__ long long at(int j) const { return first + j / 4 * 128 + j % 4; }
    template <typename T>
    __device__ __forceinline__ void read(float (&x)[8], const T* from) const {
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            float four[4];
            load(four, from + at(j), left(j), ALIGNED);
            x[j] = four[0], x[j + 1] = four[1], x[j + 2] = four[2], x[j + 3] = four[3];
        }
    }
    template <typename T>
    __device__ __forceinline__ void write(T* to, const float (&x)[8]) const {
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            float four[4] = {x[j], x[j + 1], x[j + 2], x[j + 3]};
            store(to + at(j), four, left(j), ALIGNED);
        }
    }
    __device__ __forceinline__ int left(int j) const {
        return (int)max(0ll, min(4ll, count - at(j)));
    }
};

extern "C" __global__ void __launch_bounds__(256)
    adamw(real* x, float* master, float* m, float* v, const gradient_type* gradient,
          const float* factors, const float* scale, long long count, unsigned long long key,
          unsigned long long counter, const unsigned long long* origin) {
    constexpr int N = 8;
    long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    Share share = {thread / 32 * 256 + thread % 32 * 4, count};
    if (share.first >= count) return;
    float value[N], g[N], mean[N], square[N], kept[N];
    share.read(value, x);
    share.read(g, gradient);
    share.read(mean, m);
    share.read(square, v);
    if (KEEP == MASTER) share.read(kept, master);
    float beta1 = factors[0], rest1 = factors[1], beta2 = factors[2], rest2 = factors[3];
    float eps = factors[4], rate = factors[5], decay = factors[6], coupled = factors[7];
    float clip = scale ? *scale : 1.0f;
    unsigned long long words[2][4];
    if (KEEP == STOCHASTIC) {
        begin_draw(origin, key, counter);
        philox(words[0], key, counter + share.at(0) / 8);
        philox(words[1], key, counter + share.at(4) / 8);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        bool same =
            __float_as_uint(to_float(from_float<real>(kept[j]))) == __float_as_uint(value[j]);
        if (KEEP == MASTER && same) value[j] = kept[j];
        float d = g[j];
        if (clip != 1.0f) d = to_float(from_float<gradient_type>(__fmul_rn(d, clip)));
        if (KEEP != STOCHASTIC && coupled != 0.0f) d = __fadd_rn(__fmul_rn(value[j], coupled), d);
        mean[j] = __fadd_rn(__fmul_rn(mean[j], beta1), __fmul_rn(d, rest1));
        square[j] = __fadd_rn(__fmul_rn(square[j], beta2), __fmul_rn(__fmul_rn(d, d), rest2));
        float step = __fdiv_rn(mean[j], __fadd_rn(__fsqrt_rn(square[j]), eps));
        if (decay != 1.0f) value[j] = __fmul_rn(value[j], decay);
        value[j] = __fsub_rn(value[j], __fmul_rn(step, rate));
        kept[j] = value[j];
        if (KEEP == STOCHASTIC) {
            unsigned long long low = words[j / 4][j % 4 / 2], high = words[j / 4][2 + j % 4 / 2];
            unsigned long long pair = share.first % 8 ? high : low;
            unsigned int word = (unsigned int)(pair >> (32 * (j % 2))) >> 16;
            unsigned int bits = __float_as_uint(value[j]);
            // An infinity or a NaN must not be carried into.
            if ((bits & 0x7f800000u) != 0x7f800000u)
                value[j] = __uint_as_float((bits + word) & 0xffff0000u);
        }
    }
    share.write(x, value);
    share.write(m, mean);
    share.write(v, square);
    if (KEEP == MASTER) share.write(master, kept);
}

extern "C" __global__ void set_factors(float* factors, float a, float b, float c, float d, float e,
                                       float f, float g, float h) {
    if (threadIdx.x > 0) return;
    factors[0] = a, factors[1] = b, factors[2] = c, factors[3] = d;
    factors[4] = e, factors[5] = f, factors[6] = g, factors[7] = h;
}
