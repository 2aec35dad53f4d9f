// SGD over a flat stretch of numbers: g' = g + decay x; m = keep m + rest g'; the step is m, or
// Nesterov's g' + ahead m, or, without momentum, g'; x = x - lr step. The formula of optim/sgd.py,
// in its order of operations, each rounded by itself, so that float32 results are the CPU's bit for
// bit.
//
// `factors` lies on the device (adamw.cu's set_factors writes it), so that a captured step can be
// given another learning rate: lr, decay, keep (the momentum; 0 at the first update), rest
// (1 - dampening; 1 at the first), ahead (the momentum, or 0: not Nesterov's). KEEP, for bfloat16:
// MASTER, the float32 weights are kept beside and rounded (and take over a value that somebody else
// wrote).
//
// Layout: count numbers each, contiguous; m and master float32. A thread has 8 neighbours. Bytes an
// element in float32: 12, with momentum 20; bfloat16 with a master, 14 and 22.
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef gradient_type
#define gradient_type real
#endif
#define PLAIN 0
#define MASTER 1
#ifndef KEEP
#define KEEP PLAIN
#endif
#ifndef MOMENTUM
#define MOMENTUM 0
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

extern "C" __global__ void __launch_bounds__(256)
    sgd(real* x, float* master, float* m, const gradient_type* gradient, const float* factors,
        long long count) {
    constexpr int N = 8;
    long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= count) return;
    int left = (int)min((long long)N, count - at);
    float value[N], g[N], sum[N] = {}, kept[N];
    load(value, x + at, left, ALIGNED);
    load(g, gradient + at, left, ALIGNED);
    if (MOMENTUM) load(sum, m + at, left, ALIGNED);
    if (KEEP == MASTER) load(kept, master + at, left, ALIGNED);
    float lr = factors[0], decay = factors[1];
    float keep = factors[2], rest = factors[3], ahead = factors[4];
#pragma unroll
    for (int j = 0; j < N; j++) {
        bool same =
            __float_as_uint(to_float(from_float<real>(kept[j]))) == __float_as_uint(value[j]);
        if (KEEP == MASTER && same) value[j] = kept[j];
        float step = g[j];
        if (decay != 0.0f) step = __fadd_rn(__fmul_rn(value[j], decay), step);
        if (MOMENTUM) {
            sum[j] = __fadd_rn(__fmul_rn(sum[j], keep), __fmul_rn(step, rest));
            step = ahead != 0.0f ? __fadd_rn(__fmul_rn(sum[j], ahead), step) : sum[j];
        }
        value[j] = kept[j] = __fsub_rn(value[j], __fmul_rn(step, lr));
    }
    store(x + at, value, left, ALIGNED);
    if (MOMENTUM) store(m + at, sum, left, ALIGNED);
    if (KEEP == MASTER) store(master + at, kept, left, ALIGNED);
}
