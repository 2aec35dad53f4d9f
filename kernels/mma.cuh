// Tensor cores and asynchronous copies: a handful of instructions, each as PTX on the GPU and as
// the same thing in words in the simulator. Read matmul_mma.cu for their use.
//
// mma: a warp multiplies a 16 × K by a K × 8 matrix and adds to a 16 × 8 matrix in float32, K = 16
// of bfloat16 or 8 of TF32 (32 bytes a row either way). Lane l holds, with g = l / 4 and t = l % 4:
//   c[0], c[1]: row g, columns 2t, 2t + 1;     c[2], c[3]: row g + 8, the same columns
//   a[0]: row g, word t;      a[1]: row g + 8, word t
//   a[2]: row g, word t + 4;  a[3]: row g + 8, word t + 4
//   b[0]: column g, word t;  b[1]: column g, word t + 4
// where a word is 4 bytes along k: two bfloat16 or one TF32.
//
// ldmatrix: four 8 × 16-byte matrices from shared memory, lane l gives the address of row l % 8 of
// matrix l / 8 and receives in r[i] word l % 4 of row l / 4 of matrix i: just what mma wants of a
// matrix whose rows run along k. The transposed form does that for 16-bit elements stored the other
// way.
//
// cp.async: 16 bytes (or 4) from global to shared memory, of which those after `bytes` become
// zeros; they have arrived for the thread that asked once it has waited, for others after a barrier
// as well.
#pragma once
#include "types.cuh"

#ifdef __CUDACC__
#define MMA_PTX __CUDA_ARCH__ >= 800
#else
#define MMA_PTX 0

namespace sim {
// What the lanes of each warp of a block lay open to one another during one instruction.
struct Shown {
    unsigned words[6];
    const void* address;
};
static Shown shown[32][32];
// Copies that were asked for and not waited for. Every other one is made as late as the rules
// allow, so that a missing wait shows, and the rest at once, so that a slot filled too early shows.
struct Copy {
    char* to;
    const char* from;
    int bytes, size, group;
};
struct Copies {
    std::vector<Copy> pending;
    int group = 0;
    unsigned asked = 0, block = 0;
};
static Copies copies[1024];
static Copies& my_copies() {
    Copies& mine = copies[thread_number()];
    if (mine.block != blocks_run) mine.pending.clear(), mine.group = 0, mine.block = blocks_run;
    return mine;
}
static void make(const Copy& c) {
    touch(c.to, c.size, true);
    if (c.bytes) touch(c.from, c.bytes, false);
    memcpy(c.to, c.from, c.bytes), memset(c.to + c.bytes, 0, c.size - c.bytes);
}
static void arrive(int newest_allowed) {
    Copies& mine = my_copies();
    size_t kept = 0;
    for (Copy& c : mine.pending)
        if (c.group < mine.group - newest_allowed)
            make(c);
        else
            mine.pending[kept++] = c;
    mine.pending.resize(kept);
}
static void ask(void* to, const void* from, int bytes, int size) {
    if ((size_t)to % size || (bytes && (size_t)from % size))
        fail(size == 16 ? "copy_async: an address is no multiple of 16"
                        : "copy_async: an address is no multiple of 4");
    Copies& mine = my_copies();
    Copy copy = {(char*)to, (const char*)from, bytes, size, mine.group};
    if (mine.asked++ * 2654435761u >> 31)
        make(copy);
    else
        mine.pending.push_back(copy);
}
}  // namespace sim
#endif

__device__ __forceinline__ float bf16_word_low(unsigned word) {
    return __uint_as_float(word << 16);
}
__device__ __forceinline__ float bf16_word_high(unsigned word) {
    return __uint_as_float(word & 0xffff0000u);
}

// A float rounded to TF32's 10 bits of fraction (to nearest, ties away from zero), as its word.
__device__ __forceinline__ unsigned to_tf32(unsigned word) {
#if MMA_PTX
    unsigned rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "r"(word));
    return rounded;
#else
    bool finite = (word & 0x7f800000u) != 0x7f800000u;
    return finite ? (word + 0x1000u) & 0xffffe000u : word;
#endif
}

__device__ __forceinline__ void ldmatrix(unsigned r[4], const void* row) {
#if MMA_PTX
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#elif defined(__CUDACC__)
    __trap();
#else
    int me = sim::thread_number(), lane = me % 32;
    sim::Shown* warp = sim::shown[me / 32];
    warp[lane].address = row;
    __syncwarp();
    for (int i = 0; i < 4; i++) r[i] = ((const unsigned*)warp[8 * i + lane / 4].address)[lane % 4];
    __syncwarp();
#endif
}

__device__ __forceinline__ void ldmatrix_transposed(unsigned r[4], const void* row) {
#if MMA_PTX
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#elif defined(__CUDACC__)
    __trap();
#else
    int me = sim::thread_number(), lane = me % 32;
    sim::Shown* warp = sim::shown[me / 32];
    warp[lane].address = row;
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        const sim::Shown* row = &warp[8 * i + 2 * (lane % 4)];
        unsigned low = ((const unsigned short*)row[0].address)[lane / 4];
        unsigned high = ((const unsigned short*)row[1].address)[lane / 4];
        r[i] = low | high << 16;
    }
    __syncwarp();
#endif
}

#ifndef __CUDACC__
namespace sim {
// c += a b of one warp; k_of(word, i) is element i of a word along k.
template <int PER_WORD, typename Value>
static void multiply(float c[4], const unsigned a[4], const unsigned b[2], Value value) {
    int me = thread_number(), lane = me % 32, g = lane / 4, t = lane % 4;
    Shown* warp = shown[me / 32];
    memcpy(warp[lane].words, a, 16), memcpy(warp[lane].words + 4, b, 8);
    __syncwarp();
    for (int k = 0; k < 8; k++)  // the 8 words along k
        for (int i = 0; i < PER_WORD; i++)
            for (int j = 0; j < 4; j++) {
                int row = j / 2, column = 2 * t + j % 2;
                unsigned left = warp[4 * g + k % 4].words[2 * (k / 4) + row];
                unsigned right = warp[4 * column + k % 4].words[4 + k / 4];
                c[j] += value(left, i) * value(right, i);
            }
    __syncwarp();
}
}  // namespace sim
#endif

__device__ __forceinline__ void mma_bf16(float c[4], const unsigned a[4], const unsigned b[2]) {
#if MMA_PTX
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDACC__)
    __trap();
#else
    sim::multiply<2>(c, a, b, [](unsigned word, int i) {
        return i ? bf16_word_high(word) : bf16_word_low(word);
    });
#endif
}

__device__ __forceinline__ void mma_tf32(float c[4], const unsigned a[4], const unsigned b[2]) {
#if MMA_PTX
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDACC__)
    __trap();
#else
    sim::multiply<1>(c, a, b, [](unsigned word, int) {
        return __uint_as_float(word & 0xffffe000u);  // the tensor core ignores the other bits
    });
#endif
}

// Both addresses must be multiples of 16; where `bytes` is 0 `from` may be any.
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes) {
#if MMA_PTX
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(bytes)
                 : "memory");
#elif defined(__CUDACC__)
    __trap();
#else
    sim::ask(to, from, bytes, 16);
#endif
}

// The same for one word, which becomes zero unless it is `there`.
__device__ __forceinline__ void copy_word_async(float* to, const float* from, bool there) {
#if MMA_PTX
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from),
                 "r"(there ? 4 : 0)
                 : "memory");
#elif defined(__CUDACC__)
    __trap();
#else
    sim::ask(to, from, there ? 4 : 0, 4);
#endif
}

// Ends a group of copies; wait_for_copies<N> waits for all groups but the newest N.
__device__ __forceinline__ void end_copy_group() {
#if MMA_PTX
    asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
    sim::my_copies().group++;
#endif
}
template <int N>
__device__ __forceinline__ void wait_for_copies() {
#if MMA_PTX
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#elif !defined(__CUDACC__)
    sim::arrive(N);
#endif
}
