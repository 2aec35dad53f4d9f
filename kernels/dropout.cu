// Dropout: y = x · scale where 32-bit word i of the draw is at least threshold, else 0. Its gradient
// is the same kernel on dy: the mask is made again, not stored.
//
// Layout: count contiguous float32. One thread makes one Philox block, the words of 8 elements.
// Bytes: 8 an element; 5 wide multiplications an element.
#include "philox.cuh"

extern "C" __global__ void dropout(float* y, const float* x, int count, unsigned int threshold,
                                   float scale, unsigned long long key,
                                   unsigned long long counter) {
    int block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= (count + 7) / 8) return;
    unsigned long long words[4];
    philox(words, key, counter + block);
    for (int j = 0; j < 8; j++) {
        int i = 8 * block + j;
        unsigned int word = (unsigned int)(words[j / 2] >> (32 * (j % 2)));
        if (i < count) y[i] = word >= threshold ? x[i] * scale : 0.0f;
    }
}
