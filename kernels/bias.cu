// Sums over rows, in a fixed order: the gradient of a bias, and the last step of other gradients.
// sums[s, c] (= or +=) Σ over rows of slice s of x[row, c].
//
// Layout: x is rows × C, contiguous. A block sums 32 pieces of 16 bytes of columns over the rows of
// one slice (blockIdx.y): warp w takes rows w, w + 8, …, and the eight sums are added in order.
// Where there are many rows, a first launch makes one sum a slice, and a second adds up the slices.
// Bytes: x once, and the slices, which are few. Arithmetic: 1 addition an element.
#include "types.cuh"

#ifndef real
#define real float
#endif
#ifndef into
#define into float
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

extern "C" __global__ void __launch_bounds__(256)
    column_sum(into* sums, const real* x, int rows, int C, int rows_of_slice, int accumulate) {
    constexpr int PIECE = WIDTH<real>;
    __shared__ float shares[8][33 * PIECE];  // 33: neighbouring columns in different banks
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int at = (blockIdx.x * 32 + lane) * PIECE;
    float sum[PIECE] = {};
    int first = blockIdx.y * rows_of_slice, last = min(rows, first + rows_of_slice);
    if (at < C) {
#pragma unroll 4
        for (int row = first + warp; row < last; row += 8) {
            float v[PIECE];
            load(v, x + (long long)row * C + at, ALIGNED ? PIECE : C - at, ALIGNED);
#pragma unroll
            for (int j = 0; j < PIECE; j++) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < PIECE; j++) shares[warp][j * 33 + lane] = sum[j];
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * PIECE; i += 256) {
        int c = blockIdx.x * 32 * PIECE + i, share = i % PIECE * 33 + i / PIECE;
        if (c >= C) continue;
        float total = 0.0f;
        for (int w = 0; w < 8; w++) total += shares[w][share];
        into* place = sums + (long long)blockIdx.y * C + c;
        *place = from_float<into>(accumulate ? to_float(*place) + total : total);
    }
}
