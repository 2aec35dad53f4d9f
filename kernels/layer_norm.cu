// Layer norm over the last axis: n = (x - mean) · rstd, y = n · weight + bias.
// dx = rstd (dn - mean(dn) - n mean(dn n)) with dn = dy weight; dweight = Σ dy n, dbias = Σ dy.
//
// Layout: rows × C, contiguous float32; mean and rstd are kept, one a row, for backward. Forward and
// dx: one block a row. dweight and dbias: one thread a column, rows in order, so deterministic.
// Bytes: x read three times (twice from cache), y written; about 8 operations an element.
#include "reduce.cuh"

extern "C" __global__ void layer_norm_forward(float* y, float* mean, float* rstd, const float* x,
                                              const float* weight, const float* bias, int rows,
                                              int C, float eps) {
    __shared__ float partial[32];
    x += (long long)blockIdx.x * C, y += (long long)blockIdx.x * C;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < C; i += blockDim.x) sum += x[i];
    float m = block_sum(sum, partial) / C;
    for (int i = threadIdx.x; i < C; i += blockDim.x) squares += (x[i] - m) * (x[i] - m);
    float r = 1.0f / sqrtf(block_sum(squares, partial) / C + eps);
    for (int i = threadIdx.x; i < C; i += blockDim.x) y[i] = (x[i] - m) * r * weight[i] + bias[i];
    if (threadIdx.x == 0) mean[blockIdx.x] = m, rstd[blockIdx.x] = r;
}

extern "C" __global__ void layer_norm_dx(float* dx, const float* dy, const float* x,
                                         const float* weight, const float* mean, const float* rstd,
                                         int rows, int C) {
    __shared__ float partial[32];
    long long row = (long long)blockIdx.x * C;
    dx += row, dy += row, x += row;
    float m = mean[blockIdx.x], r = rstd[blockIdx.x], sum = 0.0f, dot = 0.0f;
    for (int i = threadIdx.x; i < C; i += blockDim.x) {
        float dn = dy[i] * weight[i];
        sum += dn, dot += dn * (x[i] - m) * r;
    }
    sum = block_sum(sum, partial) / C;
    dot = block_sum(dot, partial) / C;
    for (int i = threadIdx.x; i < C; i += blockDim.x)
        dx[i] = r * (dy[i] * weight[i] - sum - (x[i] - m) * r * dot);
}

extern "C" __global__ void layer_norm_dparameters(float* dweight, float* dbias, const float* dy,
                                                  const float* x, const float* mean,
                                                  const float* rstd, int rows, int C) {
    int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float scale = 0.0f, shift = 0.0f;
    for (int row = 0; row < rows; row++) {
        float d = dy[(long long)row * C + c];
        scale += d * (x[(long long)row * C + c] - mean[row]) * rstd[row], shift += d;
    }
    dweight[c] = scale, dbias[c] = shift;
}
