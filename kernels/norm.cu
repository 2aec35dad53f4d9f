// The joint norm of arrays, and scaling them down by it, with nothing read back to the host.
//
// sum_of_squares: block b adds up its stretch of x and writes shares[b]; the launches for several
// arrays write one after the other. norm_and_scale: norm = √Σ shares, scale = min(1,
// largest / (norm + 1e-6)), as clip_grad_norm_. scale_in_place: x *= scale, and nothing is touched
// if scale is 1.
//
// The grid is given, not derived from the card, and every sum has its order, so the same numbers
// give the same norm everywhere. Threads add in float32, blocks and the end in float64. Bytes: x
// once, and twice more where it is scaled. Arithmetic: 1 multiplication and addition an element.
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

constexpr int PIECE = WIDTH<real>;

__device__ __forceinline__ double sum_of_block(double x, double* partial) {
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0.0;
    for (int w = 0; w < 8; w++) sum += partial[w];
    return sum;
}

extern "C" __global__ void __launch_bounds__(256)
    sum_of_squares(double* shares, const real* x, long long count) {
    __shared__ double partial[8];
    float sums[4] = {};
    long long step = (long long)gridDim.x * 256 * PIECE;
    long long start = ((long long)blockIdx.x * 256 + threadIdx.x) * PIECE;
    for (long long first = start; first < count; first += 4 * step) {
        float v[4][PIECE];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            long long at = first + i * step;
            int left = (int)max(0ll, min((long long)PIECE, count - at));
            load(v[i], x + at, left, ALIGNED);
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < PIECE; j++) sums[i] += v[i][j] * v[i][j];
    }
    double sum = (double)sums[0] + sums[1] + ((double)sums[2] + sums[3]);
    sum = sum_of_block(sum, partial);
    if (threadIdx.x == 0) shares[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
    norm_and_scale(float* norm, float* scale, const double* shares, int count, float largest) {
    __shared__ double partial[8];
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += 256) sum += shares[i];
    sum = sum_of_block(sum, partial);
    if (threadIdx.x > 0) return;
    float whole = (float)sqrt(sum), factor = largest / (whole + 1e-6f);
    *norm = whole;
    *scale = factor > 1.0f ? 1.0f : factor;  // nan stays nan, and shows
}

extern "C" __global__ void __launch_bounds__(256)
    scale_in_place(real* x, const float* scale, long long count) {
    float factor = *scale;
    if (factor == 1.0f) return;
    long long at = ((long long)blockIdx.x * 256 + threadIdx.x) * PIECE;
    if (at >= count) return;
    int left = (int)min((long long)PIECE, count - at);
    float v[PIECE];
    load(v, x + at, left, ALIGNED);
#pragma unroll
    for (int j = 0; j < PIECE; j++) v[j] *= factor;
    store(x + at, v, left, ALIGNED);
}
