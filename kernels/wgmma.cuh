// What Hopper (sm_90a) has for matrix products: the tensor-memory accelerator, mbarriers and wgmma,
// an instruction a function, as PTX on the GPU and through sim_hopper.cpp in the simulator. Read
// matmul_wgmma.cu for their use; the names in quotes are sections of the PTX ISA.
//
// Tensor copies ("cp.async.bulk.tensor"): one thread asks for a box of a matrix; the copy engine
// computes the addresses from a tensor map (made on the host, cuda/tensor_map.py), writes zeros for
// what lies outside the matrix, and counts the bytes that have arrived at an mbarrier.
//
// mbarrier ("Parallel Synchronization: mbarrier"): 8 bytes of shared memory. A phase is over when
// as many threads have arrived as mbarrier_init said and all bytes that they announced have
// arrived; then the next begins. mbarrier_wait(barrier, p) waits for the end of a phase of parity
// p: 0 for the first, third, …; 1 for the second, fourth, … and for the one before the first, which
// is over.
//
// 128-byte swizzle ("Tensor Swizzling Modes"): rows of 128 bytes, eight of them 1,024 bytes, which
// begin at a multiple of 1,024. 16-byte chunk c of row r lies at chunk c ^ (r % 8): bits 4 to 6 of
// an address are changed by bits 7 to 9. A column of chunks then lies in all banks.
//
// Descriptor of a matrix in shared memory ("Asynchronous Warpgroup Level Matrix Shared Memory
// Layout: Matrix Descriptor Format"), 64 bits, each distance in units of 16 bytes:
//   0-13 start   16-29 leading dimension offset   32-45 stride dimension offset   49-51 base offset
//   62-63 swizzle: 1 is 128 bytes
// For 16-bit elements and this swizzle ("Strides"):
//   K-major (k runs along a row, 64 of it): stride offset = from 8 rows of m or n to the next 8;
//     leading offset not used. The next 16 of k: 32 bytes further, the swizzle is of addresses.
//   MN-major (m or n runs along a row, 64 of it): leading offset = from 64 of m or n to the next;
//     stride offset = from 8 of k (8 rows) to the next 8. The next 16 of k: 2,048 bytes further.
//
// wgmma ("Register Fragments and Shared Memory Matrix Layouts" of wgmma.mma_async): a warpgroup,
// four warps from one whose number is a multiple of 4, multiplies a 64 × 16 by a 16 × N matrix and
// adds to a 64 × N matrix of float32. Warp w has rows 16 w … 16 w + 15; lane l, with g = l / 4 and
// t = l % 4:
//   d[4 j], d[4 j + 1]: row g, columns 8 j + 2 t and the next;   d[4 j + 2], d[4 j + 3]: row g + 8
// It runs on while the threads do: wgmma_fence before the first and after any access to d,
// wgmma_commit_group ends a group, wgmma_wait_group<n> waits for all groups but the newest n; only
// then may d be read, and the memory of the factors written.
#pragma once

#ifdef __CUDACC__
#ifndef __CUDA_ARCH_FEAT_SM90_ALL
#error "wgmma.cuh needs --gpu-architecture=sm_90a"
#endif
struct alignas(64) TensorMap {
    unsigned char opaque[128];
};
#define SHARED(pointer) "r"((unsigned)__cvta_generic_to_shared(pointer))
#else
#include "sim_hopper.h"
#endif

typedef unsigned long long mbarrier;

// --- mbarriers -----------------------------------------------------------------------------------

// Sets a barrier up for `arrivals` a phase: one thread, then fence_mbarrier_init, then a barrier.
__device__ __forceinline__ void mbarrier_init(mbarrier* barrier, int arrivals) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::SHARED(barrier), "r"(arrivals)
                 : "memory");
#else
    sim::mbarrier_init(barrier, arrivals);
#endif
}

// Lets the copy engine see the barriers that this thread has set up.
__device__ __forceinline__ void fence_mbarrier_init() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    sim::fence_mbarrier_init();
#endif
}

// Arrives: what this thread has read and written before is done for those who wait.
__device__ __forceinline__ void mbarrier_arrive(mbarrier* barrier) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::SHARED(barrier) : "memory");
#else
    sim::mbarrier_arrive(barrier, 0);
#endif
}

// Announces `bytes` of copies, which the phase waits for as well, and arrives.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(mbarrier* barrier, int bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::SHARED(barrier),
                 "r"(bytes)
                 : "memory");
#else
    sim::mbarrier_arrive(barrier, bytes);
#endif
}

// Waits for the end of a phase of this parity (0 or 1).
__device__ __forceinline__ void mbarrier_wait(mbarrier* barrier, int parity) {
#ifdef __CUDACC__
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@over bra OVER;\n"
        "bra AGAIN;\n"
        "OVER:\n"
        "}" ::SHARED(barrier),
        "r"(parity)
        : "memory");
#else
    sim::mbarrier_wait(barrier, parity);
#endif
}

// --- tensor copies -------------------------------------------------------------------------------

// Fetches a tensor map, a __grid_constant__ parameter of the kernel, before its first use.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
#ifdef __CUDACC__
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}

// Copies the box of `map` that begins at element (x, y, z, w), x the contiguous axis, to shared
// memory; its bytes, those outside the matrix too, are counted by `barrier`. One thread asks.
__device__ __forceinline__ void copy_tensor(void* to, const TensorMap* map, int x, int y, int z,
                                            int w, mbarrier* barrier) {
#ifdef __CUDACC__
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::SHARED(to),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), SHARED(barrier)
        : "memory");
#else
    sim::copy_tensor(to, map, x, y, z, w, barrier);
#endif
}

// --- registers -----------------------------------------------------------------------------------

// Takes or gives registers until each thread of this warpgroup has COUNT, a multiple of 8.
template <int COUNT>
__device__ __forceinline__ void setmaxnreg_inc() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "24 to 256, a multiple of 8");
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ __forceinline__ void setmaxnreg_dec() {
    static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "24 to 256, a multiple of 8");
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// --- wgmma ---------------------------------------------------------------------------------------

// The descriptor of a tile with 128-byte swizzle; distances in bytes, see above.
__device__ __forceinline__ unsigned long long describe(const void* start, int leading, int stride) {
#ifdef __CUDACC__
    unsigned address = (unsigned)__cvta_generic_to_shared(start);
#else
    unsigned address = sim::shared_address(start);
#endif
    return (unsigned long long)(address >> 4 & 0x3fff) |
           (unsigned long long)(leading >> 4 & 0x3fff) << 16 |
           (unsigned long long)(stride >> 4 & 0x3fff) << 32 | 1ull << 62;
}

// Orders this warpgroup's accesses to registers before the wgmma that follow.
__device__ __forceinline__ void wgmma_fence() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    sim::wgmma_fence();
#endif
}
// Ends a group of wgmma.
__device__ __forceinline__ void wgmma_commit_group() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    sim::wgmma_commit_group();
#endif
}
// Waits until no more than the newest NEWEST groups are at work.
template <int NEWEST>
__device__ __forceinline__ void wgmma_wait_group() {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NEWEST) : "memory");
#else
    sim::wgmma_wait_group(NEWEST);
#endif
}

// Tells the compiler that d changes here: it moves no access to d across.
template <int COUNT>
__device__ __forceinline__ void pin_registers(float (&d)[COUNT]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

#ifdef __CUDACC__
// Operands of an asm statement: "+f"(d[i]) for 8, 64 registers; "%t0, … , %t9" for ten of their
// names.
#define D8(i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define D64(i) \
    D8(i), D8(i + 8), D8(i + 16), D8(i + 24), D8(i + 32), D8(i + 40), D8(i + 48), D8(i + 56)
#define TEN(t)                                                                             \
    "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t \
    "8, %" #t "9, "
#define SIXTY "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " TEN(1) TEN(2) TEN(3) TEN(4) TEN(5)
#endif

// d = a b, or d += a b with `add`: a 64 × 16, b 16 × N, bfloat16, N 128 or 256. MN_A, MN_B: 1 if
// the tile in shared memory is MN-major, 0 if K-major.
template <int N, int MN_A, int MN_B>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], unsigned long long a, unsigned long long b,
                                      bool add) {
    static_assert(N == 128 || N == 256, "N is 128 or 256 here");
#ifdef __CUDACC__
    if constexpr (N == 128) {
        asm volatile(
            "{\n"
            ".reg .pred add;\n"
            "setp.ne.b32 add, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SIXTY
            "%60, %61, %62, %63}, %64, %65, add, 1, 1, %67, %68;\n"
            "}"
            : D64(0)
            : "l"(a), "l"(b), "r"((int)add), "n"(MN_A), "n"(MN_B));
    } else {
        asm volatile(
            "{\n"
            ".reg .pred add;\n"
            "setp.ne.b32 add, %130, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" SIXTY TEN(6) TEN(7) TEN(8)
                TEN(9) TEN(10) TEN(11)
            "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, add, 1, 1, %131, %132;\n"
            "}"
            : D64(0), D64(64)
            : "l"(a), "l"(b), "r"((int)add), "n"(MN_A), "n"(MN_B));
    }
#else
    sim::wgmma(d, N, a, b, add, MN_A, MN_B);
#endif
}
