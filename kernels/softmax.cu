// Softmax over the last axis: y = exp(x - max x) / Σ exp(x - max x), dx = y (dy - Σ y dy).
// LOG: y = x - max x - log Σ exp(x - max x), dx = dy - exp(y) Σ dy.
//
// The numbers are multiplied by `scale` first. MASK 0: none. 1, causal: row r is query r % queries
// and sees columns 0 … r % queries; the others are not even read. 2, boolean: sees columns where
// visible[r % mask_rows] is not 0. 3, additive: bias (mask_rows, columns) is added. What is not
// seen weighs 0. A row that sees nothing is nan, as softmax of nothing but -∞ is, or with `zeros`
// 0, as attention has it.
//
// Layout: rows × columns, contiguous. A row belongs to a warp or a block, and stays in registers:
// rows.cuh. A row too wide for that is gone over twice, the first time with a running maximum and
// sum.
// Bytes: forward reads x once and writes y; backward reads y and dy and writes dx. Arithmetic:
// about 4 operations and 1 exponential an element; at 4 bytes an element (bfloat16) that is still
// bound by bytes.
#include "rows.cuh"

#ifndef LOG
#define LOG 0
#endif
#ifndef MASK
#define MASK 0
#endif

extern "C" __global__ void __launch_bounds__(BLOCK)
    softmax_forward(real* y, const real* x, const unsigned char* visible, const real* bias,
                    int rows, int columns, int queries, int mask_rows, float scale, int zeros) {
    __shared__ float partial[32];
    long long row = (long long)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (row >= rows) return;  // whole warps: a block of one row is never cut short
    int seen = MASK == 1 ? min(columns, (int)(row % queries) + 1) : columns;
    long long mask_row = MASK > 1 ? row % mask_rows * columns : 0;
    y += row * columns, x += row * columns;
    auto hide = [=](float (&values)[1][PIECE], int at) {
        if (at >= seen) return;  // all of them are padding, -∞
        float added[PIECE];
        if (MASK == 3) load(added, bias + mask_row + at, pieces_left(columns, at), ALIGNED);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            bool hidden = at + j >= seen || (MASK == 2 && !visible[mask_row + at + j]);
            float score = values[0][j] * scale + (MASK == 3 ? added[j] : 0.0f);
            values[0][j] = hidden ? -INFINITE : score;
        }
    };
    Rows<1, decltype(hide)> r = {{x}, columns, seen, -INFINITE, hide};
    r.begin();
    Exponentials sums = {-INFINITE, 0.0f};
    if (EACH) {
        r.each([&](float (&v)[1][PIECE], int, int) {
#pragma unroll
            for (int j = 0; j < PIECE; j++) sums.largest = fmaxf(sums.largest, v[0][j]);
        });
        sums.largest = team_max(sums.largest, partial);
        if (zeros && sums.largest == -INFINITE) sums.largest = 0.0f;
        r.each([&](float (&v)[1][PIECE], int, int) {
#pragma unroll
            for (int j = 0; j < PIECE; j++) {
                float e = exponential(v[0][j] - sums.largest);
                sums.total += e;
                if (!LOG) v[0][j] = e;
            }
        });
        sums.total = team_sum(sums.total, partial);
    } else {
        r.each([&](float (&v)[1][PIECE], int, int) { sums.add(v[0]); });
        sums.merge_team(partial);
        if (zeros && sums.largest == -INFINITE) sums.largest = 0.0f;
    }
    float rest = LOG ? logf(sums.total) : zeros && sums.total == 0.0f ? 0.0f : 1.0f / sums.total;
    r.each([&](float (&v)[1][PIECE], int at, int) {
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            if (LOG)
                v[0][j] = v[0][j] - sums.largest - rest;
            else
                v[0][j] = (EACH ? v[0][j] : exponential(v[0][j] - sums.largest)) * rest;
        }
        put(y, v[0], at, columns);
    });
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    softmax_backward(real* dx, const real* dy, const real* y, int rows, int columns) {
    __shared__ float partial[32];
    long long row = (long long)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (row >= rows) return;
    row *= columns;
    Rows<2> r = {{y + row, dy + row}, columns, columns, 0.0f};
    r.begin();
    float dot = 0.0f;
    r.each([&](float (&v)[2][PIECE], int, int) {
#pragma unroll
        for (int j = 0; j < PIECE; j++) dot += LOG ? v[1][j] : v[0][j] * v[1][j];
    });
    dot = team_sum(dot, partial);
    r.each([&](float (&v)[2][PIECE], int at, int) {
        float out[PIECE];
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            out[j] = LOG ? v[1][j] - exponential(v[0][j]) * dot : v[0][j] * (v[1][j] - dot);
        put(dx + row, out, at, columns);
    });
}
