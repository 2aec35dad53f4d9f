// Matrix product, C = A B: A is m × k, B is k × n, C is m × n, row-major float32. Two rungs of a ladder.
//
// naive: one thread an element of C reads a row of A and a column of B: 2k floats for 2k operations.
// tiled: a 16 × 16 block loads 16 × 16 tiles of A and B into shared memory, so each float that is
// read from memory serves 16 threads: k/8 floats for 2k operations.

extern "C" __global__ void matmul_naive(float* c, const float* a, const float* b, int m, int n,
                                        int k) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= m || column >= n) return;
    float sum = 0.0f;
    for (int i = 0; i < k; i++) sum += a[(long long)row * k + i] * b[(long long)i * n + column];
    c[(long long)row * n + column] = sum;
}

extern "C" __global__ void matmul_tiled(float* c, const float* a, const float* b, int m, int n,
                                        int k) {
    __shared__ float a_tile[16][16];
    __shared__ float b_tile[16][16];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * 16 + ty, column = blockIdx.x * 16 + tx;
    float sum = 0.0f;
    for (int start = 0; start < k; start += 16) {
        a_tile[ty][tx] = row < m && start + tx < k ? a[(long long)row * k + start + tx] : 0.0f;
        b_tile[ty][tx] =
            column < n && start + ty < k ? b[(long long)(start + ty) * n + column] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; i++) sum += a_tile[ty][i] * b_tile[i][tx];
        __syncthreads();
    }
    if (row < m && column < n) c[(long long)row * n + column] = sum;
}
