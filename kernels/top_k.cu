// The next token of each row: drawn from softmax(logits / temperature) over the row's k largest logits.
//
// Of equal logits the one with the lower id counts as larger, so exactly k are kept. With w_i =
// exp((logit_i - largest) / temperature) of those kept and u uniform on [0, 1), the token is the first id
// whose Σ w up to itself exceeds u Σ w. Sums and exponentials are double; u is the 53 upper bits of the
// first word of the row's Philox block, so the CPU draws the same token from the same key and counter,
// unless u Σ w comes within rounding of a step. A row whose largest logit is not finite gets -1.
//
// The k-th largest is found digit by digit (a radix selection): logits are mapped to unsigned integers of
// the same order, and of the numbers that begin like the one looked for, a histogram of the next 8 bits
// tells where it lies. Four passes, whatever k is.
//
// Layout: rows × V, `stride` elements from row to row. A row belongs to a block; a warp's share of it is
// one stretch of ids. Bytes: the row once from memory and six times from the L2 cache; 4 bytes out.
#include "philox.cuh"
#include "reduce.cuh"
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef THREADS
#define THREADS 1024
#endif
constexpr int WARPS = THREADS / 32;

// Unsigned integers in the order of the numbers: -∞ lowest, nan highest, -0 like 0.
__device__ __forceinline__ unsigned int order_of(float x) {
    unsigned int bits = __float_as_uint(x + 0.0f);
    if (x != x) return 0xffffffffu;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// What is kept of a row: all above the threshold, and of those equal to it the first `ties`.
struct Kept {
    unsigned int threshold;
    int ties;
};

// The digit of the k-th largest among those counted, and how many of its numbers are wanted.
__device__ Kept digit_of(const int* histogram, int k) {
    int digit = 255;
    while (histogram[digit] < k) k -= histogram[digit--];
    return {(unsigned int)digit, k};
}

// The kept weights of a warp's stretch, 32 ids at a time.
struct Stretch {
    const real* x;
    Kept kept;
    double largest, temperature;
    int equal_before;  // numbers equal to the threshold before the next 32 ids

    __device__ __forceinline__ double next(int id, int last) {
        unsigned int order = id < last ? order_of(to_float(x[id])) : 0;
        unsigned int equal = __ballot_sync(0xffffffffu, id < last && order == kept.threshold);
        int rank = equal_before + __popc(equal & ((1u << threadIdx.x % 32) - 1));
        equal_before += __popc(equal);
        bool keeps = order > kept.threshold || (order == kept.threshold && rank < kept.ties);
        if (id >= last || !keeps) return 0.0;
        return exp((to_float(x[id]) - largest) / temperature);
    }
};

// (One block a multiprocessor will do: without the 1 the compiler saves registers, and spills.)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_top_k(long long* token, const real* logits, const unsigned long long* draws, int V,
                 long long stride, int k, double temperature) {
    __shared__ int histogram[256];
    __shared__ float partial[32];
    __shared__ int equals[WARPS];
    __shared__ double sums[WARPS];
    const real* x = logits + blockIdx.x * stride;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    float largest = __uint_as_float(0xff800000u);
    int strange = 0;
#pragma unroll 4
    for (int id = threadIdx.x; id < V; id += THREADS) {
        float value = to_float(x[id]);
        largest = fmaxf(largest, value), strange |= value != value;
    }
    largest = block_max(largest, partial);
    if (__syncthreads_or(strange) || largest - largest != 0.0f) {
        if (threadIdx.x == 0) token[blockIdx.x] = -1;
        return;
    }

    Kept kept = {0, 0};  // all of them
    if (k < V) {
        kept.ties = k;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (int i = threadIdx.x; i < 256; i += THREADS) histogram[i] = 0;
            __syncthreads();
#pragma unroll 4
            for (int id = threadIdx.x; id < V; id += THREADS) {
                unsigned int order = order_of(to_float(x[id]));
                bool begins_like_it = shift == 24 || (order ^ kept.threshold) >> (shift + 8) == 0;
                if (begins_like_it) atomicAdd(&histogram[order >> shift & 255u], 1);
            }
            __syncthreads();
            Kept found = digit_of(histogram, kept.ties);  // every thread reads the same
            kept = {kept.threshold | found.threshold << shift, found.ties};
            __syncthreads();
        }
    }

    int length = (V + WARPS - 1) / WARPS;
    length = (length + 31) / 32 * 32;
    int first = min(V, warp * length), last = min(V, first + length), equal = 0;
    if (k < V)
        for (int id = first + lane; id < last; id += 32)
            equal += order_of(to_float(x[id])) == kept.threshold;
    for (int step = 16; step > 0; step /= 2) equal += __shfl_xor_sync(0xffffffffu, equal, step);
    if (lane == 0) equals[warp] = equal;
    __syncthreads();
    int equal_before = 0;
    for (int w = 0; w < warp; w++) equal_before += equals[w];

    Stretch weights = {x, kept, largest, temperature, equal_before};
    double sum = 0.0;
    for (int id = first; id < last; id += 32) sum += weights.next(id + lane, last);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    double before = 0.0, total = 0.0;
    for (int w = 0; w < WARPS; w++) {
        if (w == warp) before = total;
        total += sums[w];
    }

    unsigned long long words[4];
    philox(words, draws[2 * blockIdx.x], draws[2 * blockIdx.x + 1]);
    double level = (double)(words[0] >> 11) * 1.1102230246251565e-16 * total;
    if (level >= total) level = nextafter(total, 0.0);  // u · total may round up to it
    if (level < before || level >= before + sum) return;
    weights.equal_before = equal_before;
    int chosen = -1;
    double reached = before;
    for (int id = first; id < last && reached <= level; id += 32) {
        double weight = weights.next(id + lane, last);
        for (int i = 0; i < 32 && reached <= level; i++) {
            double one = __shfl_sync(0xffffffffu, weight, i);
            // Added one by one the sum may stop short of the level: then the last of them it is.
            if (one > 0.0) chosen = id + i, reached += one;
        }
    }
    if (lane == 0) token[blockIdx.x] = chosen;
}
