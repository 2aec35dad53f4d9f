// The softmax part of cross-entropy where the logits are made some classes at a time: of the
// classes first … first + columns - 1, `logits` is rows × columns, and nothing of size rows × V is
// ever kept.
//
// linear_cross_entropy_part brings what is known of each row up to date: largest logit,
// Σ exp(logit - largest), and the logit of the target. After the last part the loss is
// largest + log total - at_target (linear_cross_entropy_loss). Backward makes each part's logits
// again, and linear_cross_entropy_gradient turns them, in place, into scale · (p - [class is the
// target]).
//
// Layout and bytes as cross_entropy.cu: each part is read once forward, and read and written
// backward.
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK)
    linear_cross_entropy_part(float* largest, float* total, float* at_target, const real* logits,
                              const long long* targets, int rows, int columns, int first) {
    __shared__ float partial[32];
    long long row = (long long)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (row >= rows) return;
    logits += row * columns;
    Rows<1> r = {{logits}, columns, columns, -INFINITE};
    r.begin();
    Exponentials sums = {-INFINITE, 0.0f};
    r.each([&](float (&v)[1][PIECE], int, int) { sums.add(v[0]); });
    sums.merge_team(partial);
    if (rank_in_team() > 0) return;
    if (first > 0) sums.merge(largest[row], total[row]);
    largest[row] = sums.largest, total[row] = sums.total;
    long long column = targets[row] - first;
    if (column >= 0 && column < columns) at_target[row] = to_float(logits[column]);
}

extern "C" __global__ void linear_cross_entropy_loss(float* loss, float* log_sum_exp,
                                                     const float* largest, const float* total,
                                                     const float* at_target,
                                                     const long long* targets, int rows,
                                                     long long ignored) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float log_total = logf(total[row]);
    log_sum_exp[row] = largest[row] + log_total;
    loss[row] = targets[row] == ignored ? 0.0f : largest[row] - at_target[row] + log_total;
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    linear_cross_entropy_gradient(real* logits, const float* log_sum_exp, const long long* targets,
                                  const float* scale, int scale_step, int rows, int columns,
                                  int first, long long ignored) {
    long long row = (long long)blockIdx.x * TEAMS + threadIdx.x / TEAM;
    if (row >= rows) return;
    long long target = targets[row];
    float log_total = log_sum_exp[row];
    float factor = target == ignored ? 0.0f : scale[row * scale_step];
    logits += row * columns;
    Rows<1> r = {{logits}, columns, columns, -INFINITE};
    r.begin();
    r.each([&](float (&v)[1][PIECE], int at, int) {
        long long hot = target - first - at;  // in this piece, if it is there
#pragma unroll
        for (int j = 0; j < PIECE; j++)
            v[0][j] = factor == 0.0f ? 0.0f : factor * exponential(v[0][j] - log_total);
        if (hot >= 0 && hot < PIECE) {
#pragma unroll
            for (int j = 0; j < PIECE; j++)
                if (j == hot) v[0][j] -= factor;
        }
        put(logits, v[0], at, columns);
    });
}
