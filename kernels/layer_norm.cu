// Layer norm over the last axis: n = (x - mean) · rstd, y = n · weight + bias.
// dx = rstd (dn - mean(dn) - n mean(dn n)) with dn = dy weight; dweight = Σ dy n, dbias = Σ dy.
//
// RESIDUAL: x is what a layer adds to the residual stream of a transformer. residual + x is written
// to `total`, rounded to its type before it is normalised, so that backward sees the same numbers.
// Backward adds `dtotal`, the gradient of the stream that goes by the norm, to what comes through
// it; the sum is the gradient of residual and of x. weight and bias may be absent.
//
// The stream, weight and bias are of type `stream_type`, x, y and their gradients of type `real`: a
// stream of float32 between layers that compute in bf16 needs no pass of its own for converting.
//
// Layout: rows × C, contiguous; mean and rstd are kept, one a row, for backward. A row belongs to a
// warp or a block and stays in registers (rows.cuh). The variance is a second pass over them:
// Σ x² - C mean² would cancel. Backward: a fixed number of teams, team t takes rows t, t + teams,
// …, and adds up its share of dweight and dbias in registers, since a thread has the same columns
// in every row; the shares (teams, C) are then summed by column_sum (bias.cu). No atomics: the same
// sum every time.
// Bytes: forward reads x (and residual) and writes y (and total); backward reads total and dy (and
// dtotal) and writes dresidual (and, where the types differ, dx); the shares stay in the L2 cache.
// Arithmetic: about 8 and 15 operations an element.
#ifndef stream_type
#define stream_type real
#endif
#define widest stream_type
#include "rows.cuh"

#ifndef RESIDUAL
#define RESIDUAL 0
#endif

// total may be absent without RESIDUAL, where x is of type `stream_type`.
extern "C" __global__ void __launch_bounds__(BLOCK)
    layer_norm_forward(real* y, stream_type* total, float* mean, float* rstd, const real* x,
                       const stream_type* residual, const stream_type* weight,
                       const stream_type* bias, int rows, int C, float eps) {
    __shared__ float partial[32];
    long long row = (long long)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (row >= rows) return;
    x += row * C, y += row * C;
    // v[0]: the stream, and with RESIDUAL, v[1]: x.
    auto add = [](float (&v)[1 + RESIDUAL][PIECE], int) {
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            if (RESIDUAL) v[0][j] = to_float(from_float<stream_type>(v[0][j] + v[RESIDUAL][j]));
    };
    Rows<1 + RESIDUAL, decltype(add), stream_type> r = {{x}, C, C, 0.0f, add};
    if (RESIDUAL) r.from[0] = residual + row * C, r.from[RESIDUAL] = x;
    r.begin();
    float sum = 0.0f, squares = 0.0f;
    r.each([&](float (&v)[1 + RESIDUAL][PIECE], int at, int) {
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum += v[0][j];
        if (RESIDUAL) store(total + row * C + at, v[0], pieces_left(C, at), ALIGNED);
    });
    float m = team_sum(sum, partial) / C;
    r.each([&](float (&v)[1 + RESIDUAL][PIECE], int at, int) {
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            if (ALIGNED || at + j < C) squares += (v[0][j] - m) * (v[0][j] - m);
    });
    float s = 1.0f / sqrtf(team_sum(squares, partial) / C + eps);
    r.each([&](float (&v)[1 + RESIDUAL][PIECE], int at, int) {
        float out[PIECE], scale[PIECE], shift[PIECE];
        if (weight) load(scale, weight + at, pieces_left(C, at), ALIGNED);
        if (bias) load(shift, bias + at, pieces_left(C, at), ALIGNED);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            out[j] = (v[0][j] - m) * s;
            if (weight) out[j] *= scale[j];
            if (bias) out[j] += shift[j];
        }
        put(y, out, at, C);
    });
    if (rank_in_team() == 0) mean[row] = m, rstd[row] = s;
}

// dweight_shares and dbias_shares: (teams, C), where teams = gridDim.x · TEAMS. Either may be
// absent, and so may dx, where it would be dresidual over again.
// (One block a multiprocessor would do: without the 1 the compiler saves registers, and spills.)
extern "C" __global__ void __launch_bounds__(BLOCK, 1)
    layer_norm_backward(real* dx, stream_type* dresidual, float* dweight_shares,
                        float* dbias_shares, const real* dy, const stream_type* dtotal,
                        const stream_type* total, const stream_type* weight, const float* mean,
                        const float* rstd, int rows, int C) {
    __shared__ float partial[32];
    int team = blockIdx.x * TEAMS + threadIdx.x / TEAM;
    float dweight[BATCH][PIECE] = {}, dbias[BATCH][PIECE] = {};
    if (dweight_shares) dweight_shares += (long long)team * C;
    if (dbias_shares) dbias_shares += (long long)team * C;
    for (long long row = team; row < rows; row += gridDim.x * TEAMS) {
        float m = mean[row], s = rstd[row], sum = 0.0f, dot = 0.0f;
        // v[0]: total, then n; v[1]: dy, then dn.
        auto normalise = [&](float (&v)[2][PIECE], int at) {
            if (at >= C) return;
#pragma unroll
            for (int j = 0; j < PIECE; j++)
                v[0][j] = ALIGNED || at + j < C ? (v[0][j] - m) * s : 0.0f;
        };
        Rows<2, decltype(normalise), stream_type> r = {
            {total + row * C, dy + row * C}, C, C, 0.0f, normalise};
        r.begin();
        r.each([&](float (&v)[2][PIECE], int at, int e) {
            if (EACH) {
#pragma unroll
                for (int j = 0; j < PIECE; j++)
                    dweight[e][j] += v[1][j] * v[0][j], dbias[e][j] += v[1][j];
            } else {
                bool first = row == team;
                for (int j = 0; j < PIECE && at + j < C; j++) {
                    int c = at + j;
                    float d = v[1][j] * v[0][j];
                    if (dweight_shares) dweight_shares[c] = first ? d : dweight_shares[c] + d;
                    if (dbias_shares) dbias_shares[c] = first ? v[1][j] : dbias_shares[c] + v[1][j];
                }
            }
            float scale[PIECE];
            if (weight) load(scale, weight + at, pieces_left(C, at), ALIGNED);
#pragma unroll
            for (int j = 0; j < PIECE; j++) {
                if (weight) v[1][j] *= scale[j];
                sum += v[1][j], dot += v[1][j] * v[0][j];
            }
        });
        sum = team_sum(sum, partial) / C;
        dot = team_sum(dot, partial) / C;
        r.each([&](float (&v)[2][PIECE], int at, int) {
            float out[PIECE], past[PIECE], scale[PIECE];
            if (!EACH && weight) load(scale, weight + at, pieces_left(C, at), ALIGNED);
            if (dtotal) load(past, dtotal + row * C + at, pieces_left(C, at), ALIGNED);
#pragma unroll
            for (int j = 0; j < PIECE; j++) {
                float dn = !EACH && weight ? v[1][j] * scale[j] : v[1][j];
                out[j] = s * (dn - sum - v[0][j] * dot);
                if (dtotal) out[j] += past[j];
            }
            store(dresidual + row * C + at, out, pieces_left(C, at), ALIGNED);
            if (dx) put(dx + row * C, out, at, C);
        });
    }
    if (EACH) {
#pragma unroll
        for (int e = 0; e < BATCH; e++) {
            int at = (rank_in_team() + e * TEAM) * PIECE;
#pragma unroll
            for (int j = 0; j < PIECE; j++) {
                if (at + j < C && dweight_shares) dweight_shares[at + j] = dweight[e][j];
                if (at + j < C && dbias_shares) dbias_shares[at + j] = dbias[e][j];
            }
        }
    }
}
