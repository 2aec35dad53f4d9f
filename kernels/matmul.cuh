// What every production matmul does with a finished sum: bias, GELU, old value, rounding, storing.
#pragma once
#include "gelu.cuh"
#include "types.cuh"

constexpr int ADD_TO_C = 1;  // c += instead of c =
constexpr int BIAS = 2;      // add bias[column]
constexpr int GELU = 4;      // c = gelu(sum), tanh form
constexpr int SAVE = 8;      // before = the sum that gelu is given, for the backward pass
constexpr int PAIRS = 16;    // c and before allow stores of two elements: even strides, aligned
constexpr int LINES = 32;    // … of 16 bytes

// One element: index is its place in c and in before.
template <typename Out, typename In>
__device__ __forceinline__ void finish(Out* c, Out* before, const In* bias, long long index,
                                       int column, float sum, int what) {
    if (what & BIAS) sum += to_float(bias[column]);
    if (what & SAVE) before[index] = from_float<Out>(sum);
    if (what & GELU) sum = gelu_tanh(sum);
    if (what & ADD_TO_C) sum += to_float(c[index]);
    c[index] = from_float<Out>(sum);
}

__device__ __forceinline__ void store_pair(float* to, float x, float y) {
    *(float2*)to = make_float2(x, y);
}
__device__ __forceinline__ void store_pair(bf16* to, float x, float y) {
    *(unsigned*)to = from_float<bf16>(x).bits | (unsigned)from_float<bf16>(y).bits << 16;
}
// Two neighbours in a row at once, stored as one word if the launcher found that c allows it
// (PAIRS).
template <typename Out, typename In>
__device__ __forceinline__ void finish_pair(Out* c, Out* before, const In* bias, long long index,
                                            int column, float x, float y, int what) {
    if (!(what & PAIRS)) {
        finish(c, before, bias, index, column, x, what);
        finish(c, before, bias, index + 1, column + 1, y, what);
        return;
    }
    if (what & BIAS) x += to_float(bias[column]), y += to_float(bias[column + 1]);
    if (what & SAVE) store_pair(before + index, x, y);
    if (what & GELU) x = gelu_tanh(x), y = gelu_tanh(y);
    if (what & ADD_TO_C) x += to_float(c[index]), y += to_float(c[index + 1]);
    store_pair(c + index, x, y);
}

// Matrix of the batch and tile of the block with this number: neighbouring blocks take tiles of 8
// rows of tiles, column by column, so that what runs at the same time shares rows of A and columns
// of B in the L2 cache.
struct Tile {
    int batch, row, column;
};
__device__ __forceinline__ Tile choose_tile(int block, int tile_rows, int tile_columns, int m,
                                            int n) {
    int down = (m + tile_rows - 1) / tile_rows, across = (n + tile_columns - 1) / tile_columns;
    int batch = block / (down * across), tile = block % (down * across);
    int group = tile / (8 * across), rest = tile % (8 * across);
    int height = down - 8 * group < 8 ? down - 8 * group : 8;
    return {batch, (8 * group + rest % height) * tile_rows, rest / height * tile_columns};
}
