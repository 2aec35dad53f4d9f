// Softmax over the last axis: y = exp(x - max x) / Σ exp(x - max x), dx = y (dy - Σ y dy).
//
// Layout: rows × columns, contiguous float32. One block a row, its threads stride over the columns.
// Bytes: forward reads x three times (twice from cache) and writes y; backward reads y and dy twice
// and writes dx. Arithmetic: about 5 operations and 2 exponentials an element.
#include "reduce.cuh"

extern "C" __global__ void softmax_forward(float* y, const float* x, int rows, int columns) {
    __shared__ float partial[32];
    x += (long long)blockIdx.x * columns, y += (long long)blockIdx.x * columns;
    float largest = -3.402823466e38f, total = 0.0f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) largest = fmaxf(largest, x[i]);
    largest = block_max(largest, partial);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) total += expf(x[i] - largest);
    total = block_sum(total, partial);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) y[i] = expf(x[i] - largest) / total;
}

extern "C" __global__ void softmax_backward(float* dx, const float* dy, const float* y, int rows,
                                            int columns) {
    __shared__ float partial[32];
    long long row = (long long)blockIdx.x * columns;
    dx += row, dy += row, y += row;
    float dot = 0.0f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) dot += y[i] * dy[i];
    dot = block_sum(dot, partial);
    for (int i = threadIdx.x; i < columns; i += blockDim.x) dx[i] = y[i] * (dy[i] - dot);
}
