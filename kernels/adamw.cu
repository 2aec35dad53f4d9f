// AdamW over a flat stretch of numbers: m = β₁ m + (1 - β₁) g, v = β₂ v + (1 - β₂) g²,
// x = x (1 - lr decay) - rate m / (√v + eps'), where rate = lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) and
// eps' = eps √(1 - β₂ᵗ): the formula of optim/adamw.py, in its order of operations, each rounded by
// itself, so that float32 results are the CPU's bit for bit.
//
// `factors` lies on the device, so that a captured step can be given another learning rate:
// β₁, 1 - β₁, β₂, 1 - β₂, eps', rate, 1 - lr decay. `scale`, where given, is what gradients are
// multiplied with first (clipping). KEEP, for bfloat16: MASTER, the float32 weights are kept beside and
// rounded (and take over a value that somebody else wrote); STOCHASTIC, there are none, and x is rounded
// up or down with the probability of its distance: 16 bits of 32-bit word i of the draw.
//
// Layout: count numbers each, contiguous; m, v and master float32. A thread has 8 neighbours, so its
// loads of m and v are two of 16 bytes. Bytes an element: 28 in float32 (4 read, 3 written, 4 bytes
// each), 30 with a master, 22 stochastic. Arithmetic: 12 operations, one root, one division.
//
// set_factors: the seven numbers, passed by value, to where adamw reads them.
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

extern "C" __global__ void __launch_bounds__(256)
    adamw(real* x, float* master, float* m, float* v, const gradient_type* gradient,
          const float* factors, const float* scale, long long count, unsigned long long key,
          unsigned long long counter, const unsigned long long* origin) {
    constexpr int N = 8;
    long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x, at = block * N;
    if (at >= count) return;
    int left = (int)min((long long)N, count - at);
    float value[N], g[N], mean[N], square[N], kept[N];
    load(value, x + at, left, ALIGNED);
    load(g, gradient + at, left, ALIGNED);
    load(mean, m + at, left, ALIGNED);
    load(square, v + at, left, ALIGNED);
    if (KEEP == MASTER) load(kept, master + at, left, ALIGNED);
    float beta1 = factors[0], rest1 = factors[1], beta2 = factors[2], rest2 = factors[3];
    float eps = factors[4], rate = factors[5], decay = factors[6];
    float clip = scale ? *scale : 1.0f;
    unsigned long long words[4];
    if (KEEP == STOCHASTIC) {
        begin_draw(origin, key, counter);
        philox(words, key, counter + block);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        bool same = __float_as_uint(to_float(from_float<real>(kept[j]))) == __float_as_uint(value[j]);
        if (KEEP == MASTER && same) value[j] = kept[j];
        float d = g[j];
        if (clip != 1.0f) d = to_float(from_float<gradient_type>(__fmul_rn(d, clip)));
        mean[j] = __fadd_rn(__fmul_rn(mean[j], beta1), __fmul_rn(d, rest1));
        square[j] = __fadd_rn(__fmul_rn(square[j], beta2), __fmul_rn(__fmul_rn(d, d), rest2));
        float step = __fdiv_rn(mean[j], __fadd_rn(__fsqrt_rn(square[j]), eps));
        if (decay != 1.0f) value[j] = __fmul_rn(value[j], decay);
        value[j] = __fsub_rn(value[j], __fmul_rn(step, rate));
        kept[j] = value[j];
        if (KEEP == STOCHASTIC) {
            unsigned int word = (unsigned int)(words[j / 2] >> (32 * (j % 2))) >> 16;
            unsigned int bits = __float_as_uint(value[j]);
            // An infinity or a NaN must not be carried into.
            if ((bits & 0x7f800000u) != 0x7f800000u)
                value[j] = __uint_as_float((bits + word) & 0xffff0000u);
        }
    }
    store(x + at, value, left, ALIGNED);
    store(m + at, mean, left, ALIGNED);
    store(v + at, square, left, ALIGNED);
    if (KEEP == MASTER) store(master + at, kept, left, ALIGNED);
}

extern "C" __global__ void set_factors(float* factors, float beta1, float rest1, float beta2,
                                       float rest2, float eps, float rate, float decay) {
    if (threadIdx.x > 0) return;
    factors[0] = beta1, factors[1] = rest1, factors[2] = beta2, factors[3] = rest2;
    factors[4] = eps, factors[5] = rate, factors[6] = decay;
}
