// Dropout: y = x · scale where 32-bit word i of the draw is at least threshold, else 0. Its
// gradient is the same kernel on dy: the mask is made again, not stored.
//
// Layout: count contiguous numbers. One thread makes one Philox block, the words of 8 elements.
// Bytes: x and y. Arithmetic: 5 wide multiplications an element, about 40 instructions: on a fast
// card, in bfloat16, this bounds the kernel and not the bytes.
#include "philox.cuh"
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

extern "C" __global__ void __launch_bounds__(256)
    dropout(real* y, const real* x, long long count, unsigned int threshold, float scale,
            unsigned long long key, unsigned long long counter, const unsigned long long* origin) {
    long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (8 * block >= count) return;
    unsigned long long words[4];
    int left = (int)min(8ll, count - 8 * block);
    float v[8];
    load(v, x + 8 * block, left, ALIGNED);
    begin_draw(origin, key, counter);
    philox(words, key, counter + block);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        unsigned int word = (unsigned int)(words[j / 2] >> (32 * (j % 2)));
        v[j] = word >= threshold ? v[j] * scale : 0.0f;
    }
    store(y + 8 * block, v, left, ALIGNED);
}
