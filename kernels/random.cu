// Random numbers by counter, as tinytensor.random makes them: element i of a draw depends on the
// key, the counter and i alone.
//
// random_words: the 64-bit words themselves, four a thread; all other numbers are made of them.
// random_uniform: u_i = (32-bit word i >> 8) · 2⁻²⁴, then low + u (high - low): the CPU's bits.
// random_normal: √(-2 ln(1 - u_i)) times cos(2π u_(pairs + i)), and in the second half sin: the
// CPU's formula and words; logarithm, sine and cosine differ from its library's by units in the
// last place.
//
// Layout: count contiguous float32; a thread makes 8 uniform numbers, or 8 pairs of normal ones,
// which takes one or two Philox blocks (three where the second half begins inside one). Bytes: the
// output.
//
// set_origin: what the draws of a captured step are counted from, written before each replay.
#include "philox.cuh"

__device__ __forceinline__ float unit(const unsigned long long (&words)[4], int i) {
    // Chosen, not indexed: an array that is indexed by a variable lies in memory.
    unsigned long long low = i & 4 ? words[2] : words[0], high = i & 4 ? words[3] : words[1];
    unsigned int word = (unsigned int)((i & 2 ? high : low) >> (32 * (i & 1)));
    return (float)(word >> 8) * 5.9604644775390625e-8f;
}

extern "C" __global__ void __launch_bounds__(256)
    random_words(unsigned long long* x, long long count, unsigned long long key,
                 unsigned long long counter, const unsigned long long* origin) {
    long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (4 * block >= count) return;
    unsigned long long words[4];
    begin_draw(origin, key, counter);
    philox(words, key, counter + block);
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (4 * block + j < count) x[4 * block + j] = words[j];
}

extern "C" __global__ void __launch_bounds__(256)
    random_uniform(float* x, long long count, unsigned long long key, unsigned long long counter,
                   float low, float width, int plain, const unsigned long long* origin) {
    long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (8 * block >= count) return;
    unsigned long long words[4];
    begin_draw(origin, key, counter);
    philox(words, key, counter + block);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (8 * block + j >= count) break;
        float u = unit(words, j);
        x[8 * block + j] = plain ? u : __fadd_rn(__fmul_rn(u, width), low);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    random_normal(float* x, long long count, unsigned long long key, unsigned long long counter,
                  float mean, float std, int plain, const unsigned long long* origin) {
    long long pairs = (count + 1) / 2;
    long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (first >= pairs) return;
    unsigned long long radii[4], angles[4], next[4];
    begin_draw(origin, key, counter);
    philox(radii, key, counter + first / 8);
    philox(angles, key, counter + (pairs + first) / 8);
    int shift = (int)((pairs + first) % 8);
    if (shift) philox(next, key, counter + (pairs + first) / 8 + 1);
    for (int j = 0; j < 8 && first + j < pairs; j++) {
        float u = unit(radii, j);
        float v = shift + j < 8 ? unit(angles, shift + j) : unit(next, shift + j - 8);
        float radius = sqrtf(__fmul_rn(-2.0f, log1pf(-u))), angle = __fmul_rn(6.283185307f, v);
        float one = __fmul_rn(radius, cosf(angle)), two = __fmul_rn(radius, sinf(angle));
        long long i = first + j;
        x[i] = plain ? one : __fadd_rn(__fmul_rn(one, std), mean);
        if (pairs + i < count) x[pairs + i] = plain ? two : __fadd_rn(__fmul_rn(two, std), mean);
    }
}

extern "C" __global__ void set_origin(unsigned long long* origin, unsigned long long key,
                                      unsigned long long counter) {
    if (threadIdx.x == 0) origin[0] = key, origin[1] = counter;
}
