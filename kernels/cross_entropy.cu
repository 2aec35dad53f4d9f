// Cross-entropy: of a row of logits z with target t, share w = weight[t] and smoothing ε,
// log p = z - log Σ exp z, loss = -(1 - ε) w log p[t] - ε/V Σ weight[v] log p[v];
// dlogits = scale · (p Σq - q), q = (1 - ε) w at t, plus ε/V weight everywhere.
// A row whose target is `ignored` has loss 0 and gradient 0. Without weights they are all 1.
//
// cross_entropy makes the losses and the log-sum-exps, and with `dlogits` the gradient too, in the
// same launch: each row is gone over a second time, in shared memory or the L2 cache.
// cross_entropy_gradient makes the gradient alone, from the log-sum-exps. Gradients may be written
// over the logits. `scale` has one number a row, or one for all if scale_step is 0: the incoming
// gradient, over Σ w for a mean.
//
// Layout: rows × V, contiguous; a row belongs to a warp or a block (rows.cuh), and one too wide to
// be held is read with a running maximum and sum. Bytes: logits once, and dlogits if asked for.
// Arithmetic: 1 or 2 exponentials and about 6 operations an element.
#include "rows.cuh"

// Σ q is (1 - ε) w + ε/V Σ weight.
struct Target {
    const real* weight;
    int target;
    float hot, smooth;

    // scale · (p Σq - q) in place of the p of the classes from `at`. One piece of a row has the
    // target, and the others are not to ask for it class by class.
    __device__ __forceinline__ void gradient(float (&p)[PIECE], int at, int V, float q_sum,
                                             float scale) {
#pragma unroll
        for (int j = 0; j < PIECE; j++) p[j] *= scale * q_sum;
        if (smooth != 0.0f) {
#pragma unroll
            for (int j = 0; j < PIECE; j++)
                if (at + j < V) p[j] -= scale * smooth * (weight ? to_float(weight[at + j]) : 1.0f);
        }
        if ((unsigned int)(target - at) < PIECE) {
#pragma unroll
            for (int j = 0; j < PIECE; j++)
                if (at + j == target) p[j] -= scale * hot;
        }
    }
};

extern "C" __global__ void __launch_bounds__(BLOCK)
    cross_entropy(float* loss, float* log_sum_exp, real* dlogits, const real* logits,
                  const long long* targets, const real* weight, const float* scale, int scale_step,
                  int rows, int V, long long ignored, float smoothing) {
    __shared__ float partial[32];
    long long row = (long long)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (row >= rows) return;
    long long t = targets[row];
    bool counts = t != ignored, known = counts && t >= 0 && t < V;
    logits += row * V;
    float share = known ? (weight ? to_float(weight[t]) : 1.0f) : 0.0f;
    Target target = {weight, (int)t, (1.0f - smoothing) * share, smoothing / V};
    Rows<1> r = {{logits}, V, V, -INFINITE};
    r.begin();
    Exponentials sums = {-INFINITE, 0.0f};
    float weighted = 0.0f, weights = 0.0f;  // Σ weight z, Σ weight
    r.each([&](float (&v)[1][PIECE], int at, int) {
        sums.add(v[0]);
        if (smoothing == 0.0f) return;
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            if (!ALIGNED && at + j >= V) continue;
            float w = weight ? to_float(weight[at + j]) : 1.0f;
            weighted += w * v[0][j], weights += w;
        }
    });
    sums.merge_team(partial);
    float log_sum = logf(sums.total), log_total = sums.largest + log_sum;
    if (smoothing != 0.0f) {
        weighted = team_sum(weighted, partial);
        weights = team_sum(weights, partial);
    }
    if (rank_in_team() == 0) {
        float value = 0.0f;
        if (counts) {  // a target that is no class: nan, as an exception would mean waiting
            value = known ? target.hot * (sums.largest - to_float(logits[t]) + log_sum)
                          : __uint_as_float(0x7fc00000u);
            if (smoothing != 0.0f) value += target.smooth * (weights * log_total - weighted);
        }
        loss[row] = value;
        if (log_sum_exp) log_sum_exp[row] = log_total;
    }
    if (!dlogits) return;
    if (dlogits == logits - row * V) {  // thread 0 has read the target's logit before it is written
        if (TEAM == 32)
            __syncwarp();
        else
            __syncthreads();
    }
    float factor = scale[row * scale_step];
    float q_sum = target.hot + (smoothing == 0.0f ? 0.0f : target.smooth * weights);
    r.each([&](float (&v)[1][PIECE], int at, int) {
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            v[0][j] = counts ? exponential(v[0][j] - sums.largest - log_sum) : 0.0f;
        if (counts) target.gradient(v[0], at, V, q_sum, factor);
        put(dlogits + row * V, v[0], at, V);
    });
}

// weights: Σ weight, or V without weights.
extern "C" __global__ void __launch_bounds__(BLOCK)
    cross_entropy_gradient(real* dlogits, const real* logits, const float* log_sum_exp,
                           const long long* targets, const real* weight, const float* scale,
                           int scale_step, int rows, int V, long long ignored, float smoothing,
                           float weights) {
    long long row = (long long)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (row >= rows) return;
    long long t = targets[row];
    bool counts = t != ignored, known = counts && t >= 0 && t < V;
    float share = known ? (weight ? to_float(weight[t]) : 1.0f) : 0.0f;
    Target target = {weight, (int)t, (1.0f - smoothing) * share, smoothing / V};
    float q_sum = target.hot + target.smooth * weights, factor = scale[row * scale_step];
    float log_total = log_sum_exp[row];
    Rows<1> r = {{logits + row * V}, V, V, -INFINITE};
    r.begin();
    r.each([&](float (&v)[1][PIECE], int at, int) {
#pragma unroll
        for (int j = 0; j < PIECE; j++) v[0][j] = counts ? exponential(v[0][j] - log_total) : 0.0f;
        if (counts) target.gradient(v[0], at, V, q_sum, factor);
        put(dlogits + row * V, v[0], at, V);
    });
}
