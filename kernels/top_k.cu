// The k largest numbers of each row: where they are, and the next token drawn among them.
//
// Of equal numbers the one with the lower id counts as larger, so exactly k are kept; nan is the
// largest number there is. SMALLEST looks for the k smallest instead, nan last.
//
// The k-th largest is found digit by digit (a radix selection): a number and its id make one
// unsigned integer, their *place*, of the same order and unlike any other. Of the places that begin
// like the one looked for, a histogram of the next 8 bits tells where it lies; as soon as all that
// begin alike are kept, the search is over: after about log256 V passes, 4 if many numbers are
// close, 8 if equal.
//
// top_k: ids of the k largest, largest first. The places kept are sorted in shared memory
// (bitonic).
//
// sample_top_k: a token drawn from softmax(logits / temperature) over the k largest. With
// w_i = exp((logit_i - largest) / temperature) of those kept and u uniform on [0, 1), it is the
// first id whose Σ w up to itself exceeds u Σ w. Sums and exponentials are double; u is the 53
// upper bits of the first word of the row's Philox block, so the CPU draws the same token from the
// same key and counter, unless u Σ w comes within rounding of a step. A row whose largest logit is
// not finite gets -1.
//
// Layout: rows × V, `stride` elements from row to row. A row belongs to a block; in sample_top_k a
// warp's share of it is one stretch of ids. Bytes: the row once from memory, and from the L2 cache
// once for each pass; 8 k (or 8) bytes out.
#include "philox.cuh"
#include "reduce.cuh"
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef THREADS
#define THREADS 1024
#endif
#ifndef SMALLEST
#define SMALLEST 0
#endif
constexpr int WARPS = THREADS / 32;

// Unsigned integers in the order of the numbers: -∞ lowest, nan highest, -0 like 0.
__device__ __forceinline__ unsigned int order_of(float x) {
    unsigned int bits = __float_as_uint(x + 0.0f);
    if (x != x) return 0xffffffffu;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

typedef unsigned long long Place;

__device__ __forceinline__ Place place_of(float x, int id) {
    unsigned int order = SMALLEST ? ~order_of(x) : order_of(x);
    return (Place)order << 32 | ~(unsigned int)id;
}
__device__ __forceinline__ int id_of(Place place) {
    return (int)~(unsigned int)place;
}

// The digit of the k-th largest among those counted, and how many of its numbers are wanted.
struct Digit {
    int value, wanted;
};
__device__ Digit digit_of(const int* histogram, int k) {
    int digit = 255;
    while (histogram[digit] < k) k -= histogram[digit--];
    return {digit, k};
}

// A place such that k of the row's numbers have it or a higher one. All threads of a block call
// this; `histogram` is 256 numbers of shared memory.
__device__ Place lowest_kept(const real* x, int V, int k, int* histogram) {
    Place found = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += THREADS) histogram[i] = 0;
        __syncthreads();
#pragma unroll 4
        for (int id = threadIdx.x; id < V; id += THREADS) {
            Place place = place_of(to_float(x[id]), id);
            bool begins_like_it = shift == 56 || (place ^ found) >> (shift + 8) == 0;
            if (begins_like_it) atomicAdd(&histogram[place >> shift & 255u], 1);
        }
        __syncthreads();
        Digit digit = digit_of(histogram, k);  // every thread reads the same
        found |= (Place)digit.value << shift, k = digit.wanted;
        bool all = histogram[digit.value] == k;
        __syncthreads();
        if (all) break;
    }
    return found;
}

// `size` places in shared memory, a power of two, highest first.
__device__ void sort_places(Place* places, int size) {
    for (int run = 2; run <= size; run *= 2)
        for (int step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size / 2; i += THREADS) {
                int low = i / step * 2 * step + i % step, high = low + step;
                Place a = places[low], b = places[high];
                bool falling = (low & run) == 0;
                if ((a < b) == falling) places[low] = b, places[high] = a;
            }
        }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    top_k(long long* ids, const real* rows, int V, long long stride, int k, int size) {
    DYNAMIC_SHARED(Place, places);  // `size` of them, the power of two from k on
    __shared__ int histogram[256];
    __shared__ int count;
    const real* x = rows + blockIdx.x * stride;
    Place lowest = k < V ? lowest_kept(x, V, k, histogram) : 0;
    if (threadIdx.x == 0) count = 0;
    for (int i = threadIdx.x; i < size; i += THREADS) places[i] = 0;
    __syncthreads();
    for (int id = threadIdx.x; id < V; id += THREADS) {
        Place place = place_of(to_float(x[id]), id);
        if (place >= lowest) places[atomicAdd(&count, 1)] = place;
    }
    sort_places(places, size);
    for (int i = threadIdx.x; i < k; i += THREADS)
        ids[(long long)blockIdx.x * k + i] = id_of(places[i]);
}

// The kept weights of a warp's stretch, 32 ids at a time.
struct Stretch {
    const real* x;
    Place lowest;
    double largest, temperature;

    __device__ __forceinline__ double next(int id, int last) const {
        if (id >= last) return 0.0;
        float value = to_float(x[id]);
        if (place_of(value, id) < lowest) return 0.0;
        return exp((value - largest) / temperature);
    }
};

// (One block a multiprocessor will do: without the 1 the compiler saves registers, and spills.)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_top_k(long long* token, const real* logits, const unsigned long long* draws, int V,
                 long long stride, int k, double temperature) {
    __shared__ int histogram[256];
    __shared__ float partial[32];
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

    Place lowest = k < V ? lowest_kept(x, V, k, histogram) : 0;
    int length = (V + WARPS - 1) / WARPS;
    length = (length + 31) / 32 * 32;
    int first = min(V, warp * length), last = min(V, first + length);
    Stretch weights = {x, lowest, largest, temperature};
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
