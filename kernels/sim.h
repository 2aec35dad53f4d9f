// CUDA C++ for a C++ compiler: what a .cu file needs to be compiled for the simulator.
//
// Included before a kernel's source. A CUDA thread is a fiber; the words of the language are below,
// and what they mean (the order of threads, barriers, guards, checks) is in sim.cpp, which is
// linked to the compiled kernel. Declare __shared__ variables in kernels, not in functions that are
// templates or inline. DYNAMIC_SHARED(type, name) declares the block's dynamic shared memory, on
// the GPU (gpu.h) as here.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>
#include <vector>

#define __global__
#define __device__ inline
#define __host__
#define __forceinline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __constant__ static
#define __shared__ static __attribute__((section("sim_shared")))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC_SHARED(type, name) type* name = (type*)sim::dynamic_shared

struct dim3 {
    unsigned int x, y, z;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// --- the simulator, for the functions below and for wrappers of instructions such as mma ---------

namespace sim {
extern char* dynamic_shared;  // aligned to 1,024 bytes
extern unsigned blocks_run;   // counts blocks, over all launches of this library
// Ends the launch with an exception that has this sentence in it.
[[noreturn]] void fail(const char* sentence);
void block_barrier(int line);
// The lanes in `mask` of this thread's warp meet, and each lays 8 bytes open to the others.
void warp_barrier(uint64_t shown, unsigned mask, int line);
uint64_t shown_by(unsigned lane);  // after a meeting, until this thread's next
unsigned warp_mask();              // the lanes that this thread's warp has
int thread_number();               // in the block: its warp is number / 32, its lane number % 32
// What the hooks on loads and stores do, for functions that are not compiled with the hooks.
void touch(const void* address, size_t bytes, bool write);

template <typename T>
inline T exchange(T value, unsigned lane, unsigned mask, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof(T));
    warp_barrier(word, mask, line);
    word = shown_by(lane);
    memcpy(&value, &word, sizeof(T));
    return value;
}
}  // namespace sim

// --- barriers, shuffles, votes
// --------------------------------------------------------------------

inline void __syncthreads(int line = __builtin_LINE()) {
    sim::block_barrier(line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    sim::warp_barrier(0, mask, line);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned __activemask() {
    return sim::warp_mask();
}
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                     int line = __builtin_LINE()) {
    int me = sim::thread_number() % 32;
    return sim::exchange(value, (me & -width) | (lane & (width - 1)), mask, line);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                         int line = __builtin_LINE()) {
    int me = sim::thread_number() % 32, lane = me ^ bits;
    return sim::exchange(value, lane < (me & -width) + width ? lane : me, mask, line);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, int by, int width = 32,
                          int line = __builtin_LINE()) {
    int me = sim::thread_number() % 32, lane = me + by;
    return sim::exchange(value, lane < (me & -width) + width ? lane : me, mask, line);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, int by, int width = 32,
                        int line = __builtin_LINE()) {
    int me = sim::thread_number() % 32, lane = me - by;
    return sim::exchange(value, lane >= (me & -width) ? lane : me, mask, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    sim::warp_barrier(predicate != 0, mask, line);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++)
        if (mask & sim::warp_mask() & 1u << lane) votes |= (unsigned)sim::shown_by(lane) << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return __ballot_sync(mask, predicate, line) == (mask & sim::warp_mask());
}
namespace sim {
int count_votes(int predicate, int line);  // a block barrier; how many threads said yes
}
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
    return sim::count_votes(predicate, line);
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
    return sim::count_votes(predicate, line) > 0;
}
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
    return sim::count_votes(!predicate, line) == 0;
}

// --- atomics: no two threads run at the same time
// --------------------------------------------------

namespace sim {
// One access, and no load and store of its own for the hooks: atomics of a block do not race.
template <typename T, typename Change>
__attribute__((no_sanitize("thread"))) inline T update(T* place, Change change) {
    touch(place, sizeof(T), true);
    T old;
    memcpy(&old, place, sizeof(T));
    T now = change(old);
    memcpy(place, &now, sizeof(T));
    return old;
}
template <typename T>
struct Same {
    typedef T type;
};
template <typename T>
using same = typename Same<T>::type;  // a parameter that does not take part in deduction
}  // namespace sim
template <typename T>
inline T atomicAdd(T* place, sim::same<T> value) {
    return sim::update(place, [=](T old) { return (T)(old + value); });
}
template <typename T>
inline T atomicSub(T* place, sim::same<T> value) {
    return sim::update(place, [=](T old) { return (T)(old - value); });
}
template <typename T>
inline T atomicMax(T* place, sim::same<T> value) {
    return sim::update(place, [=](T old) { return old < value ? value : old; });
}
template <typename T>
inline T atomicMin(T* place, sim::same<T> value) {
    return sim::update(place, [=](T old) { return value < old ? value : old; });
}
template <typename T>
inline T atomicAnd(T* place, sim::same<T> value) {
    return sim::update(place, [=](T old) { return (T)(old & value); });
}
template <typename T>
inline T atomicOr(T* place, sim::same<T> value) {
    return sim::update(place, [=](T old) { return (T)(old | value); });
}
template <typename T>
inline T atomicExch(T* place, sim::same<T> value) {
    return sim::update(place, [=](T) { return value; });
}
template <typename T>
inline T atomicCAS(T* place, sim::same<T> expected, sim::same<T> value) {
    return sim::update(place, [=](T old) { return old == expected ? value : old; });
}

// --- vectors
// -----------------------------------------------------------------------------------------

#define SIM_VECTOR2(name, T)             \
    struct alignas(2 * sizeof(T)) name { \
        T x, y;                          \
    };                                   \
    inline name make_##name(T x, T y) {  \
        return {x, y};                   \
    }
#define SIM_VECTOR4(name, T)                                       \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name { \
        T x, y, z, w;                                              \
    };                                                             \
    inline name make_##name(T x, T y, T z, T w) {                  \
        return {x, y, z, w};                                       \
    }
SIM_VECTOR2(float2, float)
SIM_VECTOR2(double2, double)
SIM_VECTOR2(int2, int)
SIM_VECTOR2(uint2, unsigned int)
SIM_VECTOR2(longlong2, long long)
SIM_VECTOR2(ulonglong2, unsigned long long)
SIM_VECTOR2(short2, short)
SIM_VECTOR2(ushort2, unsigned short)
SIM_VECTOR4(float4, float)
SIM_VECTOR4(int4, int)
SIM_VECTOR4(uint4, unsigned int)
SIM_VECTOR4(short4, short)
SIM_VECTOR4(ushort4, unsigned short)
SIM_VECTOR4(char4, signed char)
SIM_VECTOR4(uchar4, unsigned char)

// --- arithmetic
// ----------------------------------------------------------------------------------------

template <typename T>
inline T __ldg(const T* place) {
    return *place;
}
template <typename T>
inline T __ldcs(const T* place) {
    return *place;
}
template <typename T>
inline T __ldcg(const T* place) {
    return *place;
}
template <typename T>
inline void __stcs(T* place, sim::same<T> value) {
    *place = value;
}
template <typename T>
inline void __stcg(T* place, sim::same<T> value) {
    *place = value;
}

// glibc has functions of these names; the GPU's are less exact than what stands here.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
inline float __fdividef(float x, float y) {
    return x / y;
}
inline float __fdiv_rn(float x, float y) {
    return x / y;
}
inline float __frcp_rn(float x) {
    return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __frsqrt_rn(float x) {
    return 1.0f / sqrtf(x);
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline float __fadd_rn(float x, float y) {
    return x + y;
}
inline float __fsub_rn(float x, float y) {
    return x - y;
}
inline float __fmul_rn(float x, float y) {
    return x * y;
}
inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
inline float __saturatef(float x) {
    return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = (float)sin(M_PI * x), *cosine = (float)cos(M_PI * x);
}
inline float __int_as_float(int x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
inline float __uint_as_float(unsigned int x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
inline int __float_as_int(float x) {
    int y;
    memcpy(&y, &x, 4);
    return y;
}
inline unsigned int __float_as_uint(float x) {
    unsigned int y;
    memcpy(&y, &x, 4);
    return y;
}
inline long long __double_as_longlong(double x) {
    long long y;
    memcpy(&y, &x, 8);
    return y;
}
inline double __longlong_as_double(long long x) {
    double y;
    memcpy(&y, &x, 8);
    return y;
}
inline int __float2int_rn(float x) {
    return (int)nearbyintf(x);
}
inline unsigned int __float2uint_rn(float x) {
    return (unsigned int)nearbyintf(x);
}
inline float __int2float_rn(int x) {
    return (float)x;
}
inline float __uint2float_rn(unsigned int x) {
    return (float)x;
}
inline float __ull2float_rn(unsigned long long x) {
    return (float)x;
}
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return (unsigned int)((unsigned long long)a * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __popc(unsigned int x) {
    return __builtin_popcount(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz((unsigned int)x) : 32;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline unsigned int __brev(unsigned int x) {
    unsigned int y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1) << (31 - i);
    return y;
}
[[noreturn]] inline void __trap() {
    sim::fail("the kernel called __trap()");
}

#define SIM_MIN_MAX(T)        \
    inline T min(T a, T b) {  \
        return b < a ? b : a; \
    }                         \
    inline T max(T a, T b) {  \
        return a < b ? b : a; \
    }
SIM_MIN_MAX(int)
SIM_MIN_MAX(unsigned int)
SIM_MIN_MAX(long)
SIM_MIN_MAX(unsigned long)
SIM_MIN_MAX(long long)
SIM_MIN_MAX(unsigned long long)
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}
inline double min(double a, double b) {
    return fmin(a, b);
}
inline double max(double a, double b) {
    return fmax(a, b);
}

// Copies are checked like loads and stores.
namespace sim {
inline void* copy(void* to, const void* from, size_t bytes) {
    if (bytes) touch(from, bytes, false), touch(to, bytes, true);
    return memcpy(to, from, bytes);
}
inline void* fill(void* to, int byte, size_t bytes) {
    if (bytes) touch(to, bytes, true);
    return memset(to, byte, bytes);
}
}  // namespace sim
#define memcpy(to, from, bytes) sim::copy(to, from, bytes)
#define memset(to, byte, bytes) sim::fill(to, byte, bytes)
