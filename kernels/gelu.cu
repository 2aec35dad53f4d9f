// GELU of x + bias: with FORM TANH, y = a/2 (1 + t), t = tanh(√(2/π) (a + 0.044715 a³)), and
// dx = dy ((1 + t)/2 + a/2 (1 - t²) √(2/π) (1 + 3 · 0.044715 a²)); with FORM ERF, y = a Φ(a),
// Φ(a) = (1 + erf(a/√2))/2, and dx = dy (Φ(a) + a exp(-a²/2)/√(2π)). The bias may be absent.
//
// Layout: count contiguous numbers, of which element i takes bias[i % columns]. One thread
// 16 bytes.
// Bytes: x and y forward, x, dy and dx backward. Arithmetic: about 7 and 13 operations and the two
// of gelu.cuh, or erf and exp, an element: at 4 bytes an element (bfloat16) both count.
#include "gelu.cuh"
#include "types.cuh"

#ifndef real
#define real float
#endif
#define TANH 0
#define ERF 1
#ifndef FORM
#define FORM TANH
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif

constexpr int PIECE = WIDTH<real>;

// The piece of this thread, bias added: false if there is none.
__device__ __forceinline__ bool read(float (&a)[PIECE], long long& at, int& left, const real* x,
                                     const real* bias, long long count, int columns) {
    at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * PIECE;
    if (at >= count) return false;
    left = (int)min((long long)PIECE, count - at);
    load(a, x + at, left, ALIGNED);
    if (bias) {
        int c = (int)(at % columns);
#pragma unroll
        for (int j = 0; j < PIECE; j++) {
            if (j < left) a[j] += to_float(bias[c]);
            c = c + 1 == columns ? 0 : c + 1;
        }
    }
    return true;
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_forward(real* y, const real* x, const real* bias, long long count, int columns) {
    float a[PIECE];
    long long at;
    int left;
    if (!read(a, at, left, x, bias, count, columns)) return;
#pragma unroll
    for (int j = 0; j < PIECE; j++) {
        float b = a[j];
        if (FORM == TANH)
            a[j] = gelu_tanh(b);
        else
            a[j] = 0.5f * b * erfcf(-0.7071067812f * b);
    }
    store(y + at, a, left, ALIGNED);
}

extern "C" __global__ void __launch_bounds__(256)
    gelu_backward(real* dx, const real* dy, const real* x, const real* bias, long long count,
                  int columns) {
    float a[PIECE], d[PIECE];
    long long at;
    int left;
    if (!read(a, at, left, x, bias, count, columns)) return;
    load(d, dy + at, left, ALIGNED);
#pragma unroll
    for (int j = 0; j < PIECE; j++) {
        float b = a[j], slope;
        if (FORM == TANH) {
            // With s = (1 + t)/2 the slope is s + 2 s (1 - s) b u'. Where b² overflows s (1 - s) is
            // 0, and what would be 0 · ∞ is left out.
            float s = gelu_share(b), rest = s * (1.0f - s);
            float inner = 1.5957691216f * b * (1.0f + 0.134145f * b * b);
            slope = s + (rest == 0.0f ? 0.0f : rest * inner);
        } else {
            slope = 0.5f * erfcf(-0.7071067812f * b) + b * 0.3989422804f * expf(-0.5f * b * b);
        }
        d[j] *= slope;
    }
    store(dx + at, d, left, ALIGNED);
}
