// Rows of a table: y[i] = weight[ids[i]]. Gradient: dweight[v] (= or +=) Σ dy[i] over the i with id
// v.
//
// Forward: a warp copies a row; an id that is no row gives a row of nan. Backward takes the ids
// sorted, with the positions they came from (stable, so in order), and adds without atomics: a warp
// has a chunk of CHUNK sorted positions and 32 pieces of 16 bytes of channels. Runs of one id that
// begin and end in the chunk are finished there. The sum of what a chunk's first and last run have
// in it is set down in `edges` (chunks, 2, C), and embedding_join adds these in order for ids that
// go over an edge. The sums depend on the ids alone, not on the order in which blocks run.
//
// Layout: weight V × C, y and dy n × C, contiguous. Bytes: forward reads and writes n C numbers;
// backward reads dy once and writes the rows that occur (dweight is to be zero elsewhere), and
// 2/CHUNK more.
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
#ifndef CHUNK
#define CHUNK 64
#endif

constexpr int PIECE = WIDTH<real>;

extern "C" __global__ void __launch_bounds__(128)
    embedding_forward(real* y, const real* weight, const long long* ids, long long n, int V,
                      int C) {
    long long i = (long long)blockIdx.x * 4 + threadIdx.x / 32;
    if (i >= n) return;
    long long id = ids[i];
    bool known = id >= 0 && id < V;
    for (int at = threadIdx.x % 32 * PIECE; at < C; at += 32 * PIECE) {
        float v[PIECE];
        int left = ALIGNED ? PIECE : C - at;
        if (known) {
            load(v, weight + id * C + at, left, ALIGNED);
        } else {
#pragma unroll
            for (int j = 0; j < PIECE; j++) v[j] = __uint_as_float(0x7fc00000u);
        }
        store(y + i * C + at, v, left, ALIGNED);
    }
}

__device__ __forceinline__ void finish(into* dweight, const float (&sum)[PIECE], long long id,
                                       int C, int at, int accumulate) {
    into* place = dweight + id * C + at;
    int left = ALIGNED ? PIECE : C - at;
    float whole[PIECE] = {};
    if (accumulate) load(whole, place, left, ALIGNED);
#pragma unroll
    for (int j = 0; j < PIECE; j++) whole[j] += sum[j];
    store(place, whole, left, ALIGNED);
}

// edge 0: the run that came in from the chunk before (all of the chunk, if it also goes on); edge
// 1: the run that goes on into the next.
extern "C" __global__ void __launch_bounds__(128)
    embedding_backward(into* dweight, float* edges, const real* dy, const long long* sorted_ids,
                       const long long* positions, int n, int V, int C, long long padding,
                       int accumulate) {
    int chunk = blockIdx.x * 4 + threadIdx.x / 32;
    int first = chunk * CHUNK, last = min(n, first + CHUNK);
    int at = (blockIdx.y * 32 + threadIdx.x % 32) * PIECE;
    if (first >= n || at >= C) return;
    float sum[PIECE] = {};
    bool came_in = first > 0 && sorted_ids[first - 1] == sorted_ids[first];
    for (int i = first; i < last; i++) {
        long long id = sorted_ids[i];
        float v[PIECE];
        load(v, dy + positions[i] * C + at, ALIGNED ? PIECE : C - at, ALIGNED);
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum[j] += v[j];
        bool ends = i + 1 == n || sorted_ids[i + 1] != id;
        if (!ends && i + 1 < last) continue;
        if (!ends || came_in) {
            store(edges + (2ll * chunk + (came_in ? 0 : 1)) * C + at, sum, ALIGNED ? PIECE : C - at,
                  ALIGNED);
        } else if (id != padding && id >= 0 && id < V) {
            finish(dweight, sum, id, C, at, accumulate);
        }
        came_in = false;
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum[j] = 0.0f;
    }
}

// The chunk in which such a run began adds what the following ones set down.
extern "C" __global__ void __launch_bounds__(128)
    embedding_join(into* dweight, const float* edges, const long long* sorted_ids, int n, int V,
                   int C, long long padding, int accumulate) {
    int chunk = blockIdx.x * 4 + threadIdx.x / 32;
    int first = chunk * CHUNK, end = first + CHUNK;
    int at = (blockIdx.y * 32 + threadIdx.x % 32) * PIECE;
    if (end >= n || at >= C) return;
    long long id = sorted_ids[end - 1];
    if (sorted_ids[end] != id || id == padding || id < 0 || id >= V) return;
    // A run that fills the chunk and came in is another chunk's to add.
    if (first > 0 && sorted_ids[first - 1] == id) return;
    float sum[PIECE] = {};
    for (int next = chunk; next == chunk || (next * CHUNK < n && sorted_ids[next * CHUNK] == id);
         next++) {
        float edge[PIECE];
        load(edge, edges + (2ll * next + (next == chunk ? 1 : 0)) * C + at,
             ALIGNED ? PIECE : C - at, ALIGNED);
#pragma unroll
        for (int j = 0; j < PIECE; j++) sum[j] += edge[j];
    }
    finish(dweight, sum, id, C, at, accumulate);
}
