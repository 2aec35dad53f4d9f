// Runs a .cu file on the CPU: force-included by g++ before the kernel's source.
//
// Blocks run one after the other in an order shuffled by the seed. Inside a block each CUDA thread is
// a fiber (ucontext) that runs until a barrier or a shuffle; the seed chooses which goes next, so a
// missing barrier shows as a result that changes with the seed. Shared memory is filled with NaN
// before each block. Arrays are copied between pages that may not be touched (even seeds end an array
// at such a page, odd seeds begin it there); const arrays may not be written. A fault, or a barrier
// that not all threads reach, ends the launch with a sentence in `message`, not the process.
#pragma once
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#define __global__
#define __device__ static inline
#define __forceinline__
#define __shared__ static __attribute__((section("sim_shared")))
#define __launch_bounds__(...)
#define __syncthreads() sim::barrier(__LINE__)
#define __syncwarp(...) sim::exchange(0.0f, 0, __LINE__)
#define __shfl_xor_sync(mask, value, lane) \
    sim::exchange(value, (threadIdx.x & 31) ^ (lane), __LINE__)
#define __shfl_sync(mask, value, lane) sim::exchange(value, (lane), __LINE__)

struct dim3 {
    unsigned int x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static float sim_no_shared __attribute__((section("sim_shared"), used));
extern char __start_sim_shared[], __stop_sim_shared[];

static inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

namespace sim {
enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };
struct Fiber {
    ucontext_t context;
    State state;
    int line;
    dim3 index;
    uint64_t value;
};
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static int current;
static sigjmp_buf escape;
static void (*body)(void**);
static void** arguments;
static uintptr_t fault_address;
static constexpr size_t STACK = 64 * 1024;

static void wait(State state, int line) {
    Fiber& me = fibers[current];
    me.state = state, me.line = line;
    swapcontext(&me.context, &scheduler);
}
static void barrier(int line) {
    wait(AT_BLOCK_BARRIER, line);
}

template <typename T>
static T exchange(T value, unsigned lane, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    int me = current, source = (me & ~31) + (int)(lane & 31);
    memcpy(&fibers[me].value, &value, sizeof(T));
    wait(AT_WARP_BARRIER, line);
    T result = value;
    if (source < (int)fibers.size()) memcpy(&result, &fibers[source].value, sizeof(T));
    wait(AT_WARP_BARRIER, line);
    return result;
}
static void start() {
    body(arguments);
    fibers[current].state = DONE;
    swapcontext(&fibers[current].context, &scheduler);
}
static void on_fault(int, siginfo_t* info, void*) {
    fault_address = (uintptr_t)info->si_addr;
    siglongjmp(escape, 1);
}

// Threads first..last all wait for the same thing at the same line: let them go on.
static bool release(int first, int last, State state) {
    for (int i = first; i < last; i++)
        if (fibers[i].state != state || fibers[i].line != fibers[first].line) return false;
    for (int i = first; i < last; i++) fibers[i].state = READY;
    return true;
}

static bool run_block(std::mt19937& rng, char* stacks, char* message, size_t room) {
    int n = (int)fibers.size();
    memset(__start_sim_shared, 0xFF, __stop_sim_shared - __start_sim_shared);
    for (int i = 0; i < n; i++) {
        Fiber& f = fibers[i];
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = stacks + i * STACK;
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        f.state = READY;
        f.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
        makecontext(&f.context, start, 0);
    }
    std::vector<int> order(n);
    for (int i = 0; i < n; i++) order[i] = i;
    for (;;) {
        std::shuffle(order.begin(), order.end(), rng);
        bool moved = false, alive = false;
        for (int i : order)
            if (fibers[i].state == READY) {
                current = i, threadIdx = fibers[i].index, moved = true;
                swapcontext(&scheduler, &fibers[i].context);
            }
        for (int i = 0; i < n; i++) alive |= fibers[i].state != DONE;
        if (!alive) return true;
        if (release(0, n, AT_BLOCK_BARRIER)) continue;
        for (int i = 0; i < n; i += 32) moved |= release(i, std::min(n, i + 32), AT_WARP_BARRIER);
        if (moved) continue;
        int waiting = 0;
        while (fibers[waiting].state == DONE) waiting++;
        current = waiting, threadIdx = fibers[waiting].index;
        snprintf(message, room, "threads diverge at a barrier or shuffle: waiting at line %d",
                 fibers[waiting].line);
        return false;
    }
}

// Returns 0, or 1 with a sentence in message. sizes[i] < 0 marks an array that is only read.
static int launch(void (*kernel)(void**), const unsigned* shape, unsigned seed, int count,
                  void** arrays, const long long* sizes, void** slots, void** pointers,
                  char* message, size_t room) {
    const size_t page = sysconf(_SC_PAGESIZE);
    gridDim = {shape[0], shape[1], shape[2]}, blockDim = {shape[3], shape[4], shape[5]};
    static std::vector<char*> bases, data;
    static std::vector<size_t> spans;
    bases.assign(count, nullptr), data = bases, spans.assign(count, 0);
    for (int i = 0; i < count; i++) {
        size_t bytes = std::llabs(sizes[i]) - 1, inner = (bytes + page - 1) / page * page;
        spans[i] = inner + 2 * page;
        bases[i] = (char*)mmap(0, spans[i], PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (bases[i] == MAP_FAILED) return snprintf(message, room, "no memory for guards"), 2;
        data[i] = bases[i] + page + (seed % 2 ? 0 : inner - bytes);
        if (inner) mprotect(bases[i] + page, inner, PROT_READ | PROT_WRITE);
        memcpy(data[i], arrays[i], bytes);
        if (inner && sizes[i] < 0) mprotect(bases[i] + page, inner, PROT_READ);
        *(void**)pointers[i] = data[i];
    }
    static std::mt19937 rng;
    rng.seed(seed);
    size_t threads = (size_t)blockDim.x * blockDim.y * blockDim.z;
    fibers.resize(threads);
    static char* stacks;
    static std::vector<unsigned> order;
    order.resize((size_t)gridDim.x * gridDim.y * gridDim.z);
    for (size_t i = 0; i < order.size(); i++) order[i] = (unsigned)i;
    std::shuffle(order.begin(), order.end(), rng);
    stacks =
        (char*)mmap(0, threads * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static char handler_stack[64 * 1024];
    stack_t alternate = {}, previous_stack;
    alternate.ss_sp = handler_stack, alternate.ss_size = sizeof handler_stack;
    sigaltstack(&alternate, &previous_stack);
    struct sigaction action = {}, old_segv, old_bus;
    action.sa_sigaction = on_fault, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_segv), sigaction(SIGBUS, &action, &old_bus);
    volatile int failed = 0;
    if (sigsetjmp(escape, 1) == 0) {
        for (unsigned b : order) {
            blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
            body = kernel, arguments = slots;
            if (!run_block(rng, stacks, message, room)) {
                failed = 1;
                break;
            }
        }
    } else {
        failed = 1;
        int which = -1;
        for (int i = 0; i < count; i++)
            if (fault_address >= (uintptr_t)bases[i] &&
                fault_address < (uintptr_t)bases[i] + spans[i])
                which = i;
        snprintf(message, room,
                 "access out of bounds, or a write to a const array: array %d, "
                 "byte %lld",
                 which,
                 which < 0 ? (long long)fault_address
                           : (long long)(fault_address - (uintptr_t)data[which]));
    }
    sigaction(SIGSEGV, &old_segv, 0), sigaction(SIGBUS, &old_bus, 0);
    sigaltstack(&previous_stack, 0);
    if (failed) {
        size_t used = strlen(message);
        snprintf(message + used, room - used, "; block (%u, %u, %u), thread (%u, %u, %u)",
                 blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    }
    for (int i = 0; i < count; i++) {
        if (!failed && sizes[i] > 0) memcpy(arrays[i], data[i], sizes[i] - 1);
        munmap(bases[i], spans[i]);
    }
    munmap(stacks, threads * STACK);
    return failed;
}
}  // namespace sim
