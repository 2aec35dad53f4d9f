// Sums and maxima over the threads of a block whose size is a multiple of 32 (at most 1,024).
// Every thread of the block must call them; every thread receives the result.
#pragma once

__device__ float warp_sum(float x) {
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}
__device__ float warp_max(float x) {
    for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// partial: 32 floats of shared memory. The first barrier lets its previous readers finish.
__device__ float block_sum(float x, float* partial) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32] : 0.0f);
}
__device__ float block_max(float x, float* partial) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? partial[threadIdx.x % 32]
                                                       : __uint_as_float(0xff800000u));
}
