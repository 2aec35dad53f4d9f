// Matrix product, C = A B: A is m × k, B is k × n, C is m × n, row-major float32. Rungs of a ladder
// for study, all of 16 × 16 threads; the top rung, on tensor cores, is matmul_mma.cu, and what runs
// where there are none is matmul_plain.cu.
//
// naive: one thread an element of C reads a row of A and a column of B: 2k floats for 2k
// operations.
// tiled: a 16 × 16 block loads 16 × 16 tiles of A and B into shared memory, so each float that is
// read from memory serves 16 threads: k/8 floats for 2k operations. But each operation still reads
// two floats of shared memory, and that is now the limit.
//
// register_tiled: a block makes 64 × 64 of C and a thread 4 × 4 of it, in registers: 8 floats read
// from shared memory serve 16 multiplications; k/32 floats from memory for 2k operations.
//
// vectorised: 128 × 128 of C and 8 × 8 a thread, four neighbours at a time: a load of 16 bytes is
// one instruction instead of four. 16 floats (4 loads) serve 64 multiplications; k/64 floats from
// memory.

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

extern "C" __global__ void matmul_register_tiled(float* c, const float* a, const float* b, int m,
                                                 int n, int k) {
    __shared__ float a_tile[16][65];  // [k][row]; 65 keeps the columns that are written apart
    __shared__ float b_tile[16][64];
    int tx = threadIdx.x, ty = threadIdx.y, thread = ty * 16 + tx;
    int row = blockIdx.y * 64, column = blockIdx.x * 64;
    float sums[4][4] = {};
    for (int start = 0; start < k; start += 16) {
        for (int i = thread; i < 64 * 16; i += 256) {
            int r = row + i / 16, at = start + i % 16;
            a_tile[i % 16][i / 16] = r < m && at < k ? a[(long long)r * k + at] : 0.0f;
            at = start + i / 64, r = column + i % 64;
            b_tile[i / 64][i % 64] = r < n && at < k ? b[(long long)at * n + r] : 0.0f;
        }
        __syncthreads();
        for (int i = 0; i < 16; i++) {
            float x[4], y[4];
            for (int j = 0; j < 4; j++)
                x[j] = a_tile[i][ty + 16 * j], y[j] = b_tile[i][tx + 16 * j];
            for (int p = 0; p < 4; p++)
                for (int q = 0; q < 4; q++) sums[p][q] += x[p] * y[q];
        }
        __syncthreads();
    }
    for (int p = 0; p < 4; p++)
        for (int q = 0; q < 4; q++) {
            int r = row + ty + 16 * p, s = column + tx + 16 * q;
            if (r < m && s < n) c[(long long)r * n + s] = sums[p][q];
        }
}

// Four floats of a row of which `count` are inside; `whole`: rows begin at multiples of 16 bytes.
__device__ __forceinline__ float4 load_four(const float* x, int count, bool whole) {
    if (whole && count >= 4) return *(const float4*)x;
    return make_float4(count > 0 ? x[0] : 0.0f, count > 1 ? x[1] : 0.0f, count > 2 ? x[2] : 0.0f,
                       count > 3 ? x[3] : 0.0f);
}

extern "C" __global__ void matmul_vectorised(float* c, const float* a, const float* b, int m, int n,
                                             int k) {
    __shared__ float4 a_tile[8][33];  // [k][row / 4]
    __shared__ float4 b_tile[8][32];
    int tx = threadIdx.x, ty = threadIdx.y, thread = ty * 16 + tx;
    int row = blockIdx.y * 128, column = blockIdx.x * 128;
    bool whole_a = k % 4 == 0 && (size_t)a % 16 == 0, whole_b = n % 4 == 0 && (size_t)b % 16 == 0;
    float sums[8][8] = {};
    for (int start = 0; start < k; start += 8) {
        int r = row + thread / 2, at = start + thread % 2 * 4;
        float4 x = load_four(a + (long long)r * k + at, r < m ? k - at : 0, whole_a);
        for (int i = 0; i < 4; i++)
            ((float*)a_tile[thread % 2 * 4 + i])[thread / 2] = ((float*)&x)[i];
        at = start + thread / 32, r = column + thread % 32 * 4;
        b_tile[thread / 32][thread % 32] =
            load_four(b + (long long)at * n + r, at < k ? n - r : 0, whole_b);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float4 x4[2] = {a_tile[i][ty], a_tile[i][16 + ty]};
            float4 y4[2] = {b_tile[i][tx], b_tile[i][16 + tx]};
            const float *x = (float*)x4, *y = (float*)y4;
#pragma unroll
            for (int p = 0; p < 8; p++)
#pragma unroll
                for (int q = 0; q < 8; q++) sums[p][q] += x[p] * y[q];
        }
        __syncthreads();
    }
#pragma unroll
    for (int p = 0; p < 8; p++)
#pragma unroll
        for (int q = 0; q < 8; q += 4) {
            int r = row + p / 4 * 64 + ty * 4 + p % 4, s = column + q / 4 * 64 + tx * 4;
            if (r >= m) continue;
            float* to = c + (long long)r * n + s;
            if (n % 4 == 0 && (size_t)c % 16 == 0 && s < n)
                *(float4*)to =
                    make_float4(sums[p][q], sums[p][q + 1], sums[p][q + 2], sums[p][q + 3]);
            else
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (s + i < n) to[i] = sums[p][q + i];
        }
}
