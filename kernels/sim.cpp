// The simulator's engine: runs the blocks of a kernel on the CPU and watches what its threads
// touch.
//
// Blocks run one after the other in an order drawn from the seed. In a block each thread is a fiber
// that runs until a barrier or a shuffle; the seed draws which warp goes next and in which order
// its lanes do.
//
// The kernel (not this file) is compiled with -fsanitize=thread, which calls a function before
// every load and store: __tsan_read4(address) and so on. Here they are ours. Of global memory they
// check that the address is inside the array, to the byte, and that no const array is written. Of
// shared memory: that the address is inside what the block has, and that no two threads touch the
// same two bytes, one of them writing, without a barrier between (writes by one instruction are let
// pass: any may win). On request they write a log of every access, which counters.py reads.
//
// Indices of declared arrays are checked by -fsanitize=bounds. Arrays are copied between pages that
// may not be touched, as a second net; shared memory holds NaN (0xff) when a block begins. An error
// ends the launch with a sentence, never the process.
//
// What sm_90a has beside (mbarriers, tensor copies, wgmma) is in sim_hopper.cpp, a part of this
// file.
//
// Compiled twice: with -DSIM_END only the room behind the shared variables, to be linked last.
#ifdef SIM_END
__attribute__((section("sim_shared"), used)) static char sim_after[4096];
#else
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sim_hopper.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

struct dim3 {
    unsigned int x, y, z;
};
dim3 threadIdx, blockIdx, blockDim, gridDim;

extern char __start_sim_shared[], __stop_sim_shared[];
// At least one variable is in the section, and an array has room on both sides to be overrun.
__attribute__((section("sim_shared"), used, aligned(1024))) static char sim_before[4096];
extern "C" const char __ehdr_start[];  // where this library is mapped

namespace sim {

// What Python hands over; simulator.py has the same fields in the same order.
struct Access {
    uint64_t address;
    uint32_t pc, block;
    uint16_t thread;
    uint8_t bytes, kind;  // kind: 1 a write, 2 shared memory, 4 no access but a step
};
struct Region {  // memory that arrays lie in; arrays that overlap share one
    char* memory;
    uint64_t bytes;
    uint64_t writable;
};
struct Pointer {
    int64_t region;  // -1: a null pointer
    uint64_t offset;
    void** slot;
};
struct Launch {
    uint32_t grid[3], block[3];
    uint32_t seed, shared_bytes, region_count, pointer_count, counted_blocks, failed;
    Region* regions;
    Pointer* pointers;
    void** slots;
    char* message;
    uint64_t room;
    Access* log;
    uint64_t log_size, log_used, fault_pc, other_pc, switches;
    char* stacks;  // of a process: the first launch makes them, and every library uses them
};

constexpr size_t STACK = 96 * 1024, MOST_THREADS = 1024, SHARED_LIMIT = 227 * 1024;
constexpr size_t DYNAMIC_ROOM = 16 << 20;  // dynamic shared memory stands in the middle of it
constexpr size_t MARGIN = 64 << 20;  // around the arrays: far misses are ours to report as well

enum State : uint8_t { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, AT_MBARRIER, DONE };
struct Fiber {
    void* stack_pointer;
    State state;
    int line;
    unsigned mask;
    dim3 index;
    uint64_t publishing, shown;
};
struct Warp {
    unsigned lanes, ready, meeting, at_barrier, met;
    uint32_t epoch;  // counts meetings
    bool queued;     // is among the runnable
};
// The last write and the last read of two bytes of shared memory.
struct Cell {
    uint32_t write_epoch, write_warp_epoch, read_epoch, read_warp_epoch, write_pc, read_pc;
    int16_t writer, reader;  // reader: a thread, or -1 - warp for several of a warp, or MANY
};
constexpr int16_t MANY = INT16_MIN;

char* dynamic_shared;
unsigned blocks_run;
static Launch* job;
static bool running;  // blocks, and not the code around them
static Fiber fibers[MOST_THREADS];
static Warp warps[MOST_THREADS / 32];
static int current, thread_count;
static void* scheduler;
static sigjmp_buf escape;
static void (*body)(void**);
static char *stacks, *dynamic_base;
static Cell* cells;
static uint32_t epoch = 1;  // counts block barriers, and blocks
static uint64_t random_state;
static uintptr_t arena, arena_size, static_begin, static_size;
static uint16_t* page_region;
static uintptr_t region_begin[256], region_end[256];
static int runnable[MOST_THREADS / 32], runnable_count;  // warps with a lane that can go on

static unsigned draw(unsigned below) {  // xorshift64*
    random_state ^= random_state >> 12, random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (unsigned)((random_state * 0x2545F4914F6CDD1Dull >> 32) * below >> 32);
}

[[noreturn]] void fail(const char* sentence) {
    if (sentence != job->message) snprintf(job->message, job->room, "%s", sentence);
    job->failed = 1;
    siglongjmp(escape, 1);
}

// --- fibers
// -----------------------------------------------------------------------------------------

// Keeps this stack's registers and goes on where `to` stopped. No system call: ucontext makes two.
extern "C" void sim_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
    .text
    .hidden sim_switch
    .globl sim_switch
    .type sim_switch, @function
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size sim_switch, .-sim_switch
)");
constexpr int SAVED = 6, FRAME = 8;  // registers that are kept; then where to go on, and nothing
#elif defined(__aarch64__)
asm(R"(
    .text
    .hidden sim_switch
    .globl sim_switch
    .type sim_switch, %function
sim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp d8, d9, [sp, #80]
    stp d10, d11, [sp, #96]
    stp d12, d13, [sp, #112]
    stp d14, d15, [sp, #128]
    stp x29, x30, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp d8, d9, [sp, #80]
    ldp d10, d11, [sp, #96]
    ldp d12, d13, [sp, #112]
    ldp d14, d15, [sp, #128]
    ldp x29, x30, [sp, #144]
    add sp, sp, #160
    ret
    .size sim_switch, .-sim_switch
)");
constexpr int SAVED = 19, FRAME = 20;
#else
#error "the simulator switches stacks by hand and knows x86-64 and aarch64"
#endif

static void leave(State state, int line) {
    fibers[current].state = state, fibers[current].line = line;
    sim_switch(&fibers[current].stack_pointer, scheduler);
}
static void start() {
    body(job->slots);
    leave(DONE, 0);
}
static void prepare(int i) {
    void** top = (void**)(stacks + (i + 1) * STACK) - FRAME;
    memset(top, 0, FRAME * sizeof *top);
    top[SAVED] = (void*)start;
    Fiber& f = fibers[i];
    f.stack_pointer = top, f.state = READY;
    f.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
}

// --- barriers
// -----------------------------------------------------------------------------------------

int thread_number() {
    return current;
}
unsigned warp_mask() {
    return warps[current / 32].lanes;
}
void block_barrier(int line) {
    leave(AT_BLOCK_BARRIER, line);
}
void warp_barrier(uint64_t shown, unsigned mask, int line) {
    Fiber& me = fibers[current];
    if (!(mask >> current % 32 & 1))
        fail("a thread calls a shuffle, a vote or __syncwarp with a mask that it is not in");
    me.publishing = shown, me.mask = mask;
    leave(AT_WARP_BARRIER, line);
}
uint64_t shown_by(unsigned lane) {
    Warp& warp = warps[current / 32];
    if (!(fibers[current].mask & warp.lanes & 1u << lane)) {
        snprintf(job->message, job->room, "a shuffle reads lane %u, which takes no part in it",
                 lane);
        fail(job->message);
    }
    return fibers[(current & ~31) + lane].shown;
}
int count_votes(int predicate, int line) {
    fibers[current].publishing = predicate != 0;
    block_barrier(line);
    int count = 0;
    for (int i = 0; i < thread_count; i++) count += (int)fibers[i].publishing;
    block_barrier(line);
    return count;
}

// Lets the lanes go on that all wait at one line with one mask, where the mask is complete.
static void release_meetings(int w) {
    Warp& warp = warps[w];
    for (unsigned rest = warp.meeting; rest;) {
        Fiber* lane = fibers + 32 * w;
        int first = __builtin_ctz(rest);
        unsigned group = lane[first].mask & warp.lanes;
        rest &= ~(1u << first);
        if (group & ~warp.meeting) continue;
        bool agree = true;
        for (unsigned i = group; i; i &= i - 1) {
            Fiber& other = lane[__builtin_ctz(i)];
            agree &= other.line == lane[first].line && other.mask == lane[first].mask;
        }
        if (!agree) continue;
        for (unsigned i = group; i; i &= i - 1) {
            Fiber& other = lane[__builtin_ctz(i)];
            other.shown = other.publishing, other.state = READY;
        }
        warp.meeting &= ~group, warp.ready |= group, rest &= ~group;
        warp.epoch++;
    }
}

[[noreturn]] static void report_divergence() {
    int waiting = 0, other = -1;
    while (fibers[waiting].state == DONE) waiting++;
    for (int i = 0; i < thread_count; i++)
        if (fibers[i].line != fibers[waiting].line || fibers[i].state != fibers[waiting].state)
            other = i;
    current = waiting, threadIdx = fibers[waiting].index;
    const char* what =
        fibers[waiting].state == AT_BLOCK_BARRIER ? "barrier" : "shuffle or warp barrier";
    int used =
        snprintf(job->message, job->room, "threads diverge: this one waits at the %s in line %d",
                 what, fibers[waiting].line);
    if (other >= 0 && fibers[other].state == DONE)
        snprintf(job->message + used, job->room - used, ", but thread %d has returned", other);
    else if (other >= 0)
        snprintf(job->message + used, job->room - used, ", but thread %d waits in line %d", other,
                 fibers[other].line);
    fail(job->message);
}

static void queue(int w) {
    warps[w].queued = true, runnable[runnable_count++] = w;
}
// A thread that waited at an mbarrier goes on.
static void wake(int i) {
    Warp& warp = warps[i / 32];
    if (!warp.queued) queue(i / 32);
    warp.ready |= 1u << i % 32, fibers[i].state = READY;
}
// Mbarriers, tensor copies and wgmma: sim_hopper.cpp.
static void hopper_begin();
static void hopper_meet();
static bool hopper_copies(bool all_wait);
static void hopper_deadlock();
static void hopper_end();

static void run_block() {
    int warp_count = (thread_count + 31) / 32;
    memset(__start_sim_shared, 0xff, __stop_sim_shared - __start_sim_shared);
    memset(dynamic_shared, 0xff, job->shared_bytes);
    epoch++, blocks_run++;
    hopper_begin();
    for (int i = 0; i < thread_count; i++) prepare(i);
    runnable_count = 0;
    for (int w = 0; w < warp_count; w++) {
        int lanes = thread_count - 32 * w < 32 ? thread_count - 32 * w : 32;
        warps[w] = {lanes == 32 ? ~0u : (1u << lanes) - 1, 0, 0, 0, 0, warps[w].epoch + 1, false};
        warps[w].ready = warps[w].lanes;
        queue(w);
    }
    for (;;) {
        while (runnable_count) {
            hopper_copies(false);
            int at = draw(runnable_count), w = runnable[at];
            Warp& warp = warps[w];
            unsigned step = 2 * draw(16) + 1, first = draw(32);
            for (int i = 0; i < 32; i++) {
                unsigned lane = (step * i + first) % 32;
                if (!(warp.ready >> lane & 1)) continue;
                current = 32 * w + lane, threadIdx = fibers[current].index;
                job->switches++;
                sim_switch(&scheduler, fibers[current].stack_pointer);
                warp.ready &= ~(1u << lane);
                if (fibers[current].state == AT_WARP_BARRIER) warp.meeting |= 1u << lane;
                if (fibers[current].state == AT_BLOCK_BARRIER) warp.at_barrier |= 1u << lane;
            }
            release_meetings(w);
            if (!warp.ready) runnable[at] = runnable[--runnable_count], warp.queued = false;
        }
        bool done = true, barrier = true;
        for (int i = 0; i < thread_count; i++) {
            done &= fibers[i].state == DONE;
            barrier &= fibers[i].state == AT_BLOCK_BARRIER && fibers[i].line == fibers[0].line;
        }
        if (done) {
            hopper_end();
            return;
        }
        if (!barrier) {
            if (hopper_copies(true)) continue;
            hopper_deadlock();
            report_divergence();
        }
        epoch++;
        hopper_meet();
        for (int i = 0; i < thread_count; i++) fibers[i].state = READY;
        for (int w = 0; w < warp_count; w++) {
            warps[w].ready = warps[w].lanes, warps[w].at_barrier = 0;
            queue(w);
        }
    }
}

// --- what threads touch
// -------------------------------------------------------------------------------

[[noreturn]] static void fault(uintptr_t address, size_t bytes, bool write, const char* what,
                               const void* pc, uint32_t other = 0) {
    (void)address, (void)bytes, (void)write;
    if (what != job->message) snprintf(job->message, job->room, "%s", what);
    job->fault_pc = (const char*)pc - __ehdr_start, job->other_pc = other;
    fail(job->message);
}

static void note(uintptr_t address, size_t bytes, int kind, const void* pc) {
    if (job->log_used < job->log_size) {
        uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        job->log[job->log_used] = {address,        (uint32_t)((const char*)pc - __ehdr_start),
                                   block,          (uint16_t)current,
                                   (uint8_t)bytes, (uint8_t)kind};
    }
    job->log_used++;
}

static void check_global(uintptr_t address, size_t bytes, bool write, const void* pc) {
    unsigned i = page_region[(address - arena) / 4096];
    // A miss is told in terms of the nearest array.
    if (i == UINT16_MAX) {
        uintptr_t nearest = UINTPTR_MAX;
        for (unsigned r = 0; r < job->region_count; r++) {
            uintptr_t away =
                address < region_begin[r] ? region_begin[r] - address : address - region_end[r];
            if (away < nearest) nearest = away, i = r;
        }
    }
    if (address < region_begin[i] || address + bytes > region_end[i]) {
        int array = -1;
        for (unsigned p = 0; p < job->pointer_count; p++)
            if (job->pointers[p].region == (int64_t)i) {
                array = p;
                break;
            }
        snprintf(job->message, job->room,
                 "access out of bounds: %s %zu bytes at byte %lld of array %d, which has %llu",
                 write ? "writes" : "reads", bytes, (long long)(address - region_begin[i]), array,
                 (unsigned long long)(region_end[i] - region_begin[i]));
        fault(address, bytes, write, job->message, pc);
    }
    if (address % bytes && bytes <= 16 && (bytes & (bytes - 1)) == 0) {
        snprintf(job->message, job->room, "misaligned address: %s %zu bytes at byte %lld",
                 write ? "writes" : "reads", bytes, (long long)(address - region_begin[i]));
        fault(address, bytes, write, job->message, pc);
    }
    if (write && !job->regions[i].writable)
        fault(address, bytes, write, "a write to a const array", pc);
}

static void check_race(size_t offset, size_t bytes, bool write, const void* pc) {
    uint32_t here = (uint32_t)((const char*)pc - __ehdr_start);
    int warp = current / 32;
    uint32_t warp_epoch = warps[warp].epoch;
    for (Cell *c = cells + offset / 2, *end = cells + (offset + bytes + 1) / 2; c < end; c++) {
        if (c->write_epoch == epoch && c->writer != current &&
            !(c->writer / 32 == warp && c->write_warp_epoch != warp_epoch) &&
            !(write && c->write_pc == here)) {
            snprintf(job->message, job->room,
                     "race: %s shared memory that thread %d wrote, with no barrier between",
                     write ? "writes" : "reads", c->writer);
            fault(0, 0, write, job->message, pc, c->write_pc);
        }
        if (write) {
            bool ordered = c->read_epoch != epoch || c->reader == current ||
                           ((c->reader >= 0 ? c->reader / 32 : -1 - c->reader) == warp &&
                            c->read_warp_epoch != warp_epoch);
            if (!ordered) {
                snprintf(job->message, job->room,
                         "race: writes shared memory that another thread read, with no barrier "
                         "between");
                fault(0, 0, write, job->message, pc, c->read_pc);
            }
            c->write_epoch = epoch, c->write_warp_epoch = warp_epoch, c->write_pc = here;
            c->writer = (int16_t)current;
        } else {
            if (c->read_epoch != epoch)
                c->reader = (int16_t)current;
            else if (c->reader != current) {
                int reading = c->reader == MANY ? -1
                              : c->reader >= 0  ? c->reader / 32
                                                : -1 - c->reader;
                c->reader = reading == warp ? (int16_t)(-1 - warp) : MANY;
            }
            c->read_epoch = epoch, c->read_warp_epoch = warp_epoch, c->read_pc = here;
        }
    }
}

static inline __attribute__((always_inline)) void look(const void* p, size_t bytes, bool write,
                                                       const void* pc) {
    uintptr_t address = (uintptr_t)p;
    if (address - arena < arena_size) {
        check_global(address, bytes, write, pc);
        if (job->counted_blocks) note(address, bytes, write, pc);
        return;
    }
    size_t in_static = address - static_begin, in_dynamic = address - (uintptr_t)dynamic_base;
    if (in_static < static_size) {
        if (in_static < sizeof sim_before || in_static + bytes > static_size - sizeof sim_before)
            fault(address, bytes, write, "access out of bounds of shared memory", pc);
        check_race(in_static, bytes, write, pc);
        if (job->counted_blocks) note(in_static, bytes, write | 2, pc);
    } else if (in_dynamic < DYNAMIC_ROOM) {
        size_t offset = address - (uintptr_t)dynamic_shared;
        if (offset >= job->shared_bytes || offset + bytes > job->shared_bytes) {
            snprintf(job->message, job->room,
                     "access out of bounds of shared memory: byte %lld of %u dynamic ones",
                     (long long)offset, job->shared_bytes);
            fault(address, bytes, write, job->message, pc);
        }
        if (address % bytes && bytes <= 16 && (bytes & (bytes - 1)) == 0)
            fault(address, bytes, write, "misaligned address in shared memory", pc);
        check_race(static_size + offset, bytes, write, pc);
        if (job->counted_blocks) note(static_size + offset, bytes, write | 2, pc);
    }
}
void touch(const void* address, size_t bytes, bool write) {
    look(address, bytes, write, __builtin_return_address(0));
}

#include "sim_hopper.cpp"
}  // namespace sim

#define HOOK(name, bytes, write)                                       \
    extern "C" void name(void* address) {                              \
        sim::look(address, bytes, write, __builtin_return_address(0)); \
    }
#define HOOKS(bytes)                                 \
    HOOK(__tsan_read##bytes, bytes, false)           \
    HOOK(__tsan_write##bytes, bytes, true)           \
    HOOK(__tsan_unaligned_read##bytes, bytes, false) \
    HOOK(__tsan_unaligned_write##bytes, bytes, true)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
extern "C" void __tsan_read_range(void* address, long bytes) {
    sim::look(address, bytes, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, long bytes) {
    sim::look(address, bytes, true, __builtin_return_address(0));
}
// Called on the way into every stretch of code without branches, where the kernel is compiled to be
// traced.
extern "C" void __sanitizer_cov_trace_pc() {
    if (sim::running && sim::job->counted_blocks) sim::note(0, 0, 4, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_vptr_read(void*) {}

namespace sim {

// --- launching
// -------------------------------------------------------------------------------------------

static void on_signal(int signal, siginfo_t* info, void*) {
    uintptr_t address = (uintptr_t)info->si_addr;
    if (signal == SIGILL) {
        snprintf(job->message, job->room, "access out of bounds of a declared array");
        job->fault_pc = address - (uintptr_t)__ehdr_start;
    } else if (signal == SIGFPE) {
        snprintf(job->message, job->room, "an integer division by zero");
        job->fault_pc = address - (uintptr_t)__ehdr_start;
    } else if (address < 4096) {
        snprintf(job->message, job->room, "access out of bounds: through a null pointer");
    } else {
        snprintf(job->message, job->room, "access out of bounds: address %#llx is in no array",
                 (unsigned long long)address);
    }
    job->failed = 1;
    siglongjmp(escape, 1);
}

// Shared memory with forbidden room around it, and its cells: once a library. Stacks, with a page
// between them that stops an overflow: once a process.
static bool set_up() {
    constexpr int FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    constexpr int USABLE = PROT_READ | PROT_WRITE;
    if (!job->stacks) {
        void* made = mmap(0, MOST_THREADS * STACK, USABLE, FLAGS, -1, 0);
        if (made == MAP_FAILED) return false;
        for (size_t i = 0; i < MOST_THREADS; i++)
            if (mprotect((char*)made + i * STACK, 4096, PROT_NONE)) return false;
        job->stacks = (char*)made;
    }
    stacks = job->stacks;
    if (cells) return true;
    static_begin = (uintptr_t)__start_sim_shared;
    static_size = __stop_sim_shared - __start_sim_shared;
    constexpr size_t ROOM = (SHARED_LIMIT + 4095) / 4096 * 4096;
    void* around = mmap(0, DYNAMIC_ROOM, PROT_NONE, FLAGS, -1, 0);
    if (around == MAP_FAILED) return false;
    dynamic_base = (char*)around, dynamic_shared = dynamic_base + DYNAMIC_ROOM / 2;
    if (mprotect(dynamic_shared, ROOM, USABLE)) return false;
    size_t count = (static_size + SHARED_LIMIT) / 2 + 16;
    void* made = mmap(0, count * sizeof(Cell), USABLE, FLAGS, -1, 0);
    if (made == MAP_FAILED) return false;
    cells = (Cell*)made;
    return true;
}

// Copies the regions between forbidden pages; odd seeds put an array at the beginning of a page,
// even ones at the end, to 16 bytes.
static bool lay_out(char* (&copies)[256], size_t& total) {
    constexpr size_t PAGE = 4096;
    total = 2 * MARGIN;
    for (unsigned r = 0; r < job->region_count; r++)
        total += (job->regions[r].bytes + 32 + PAGE - 1) / PAGE * PAGE + PAGE;
    char* base =
        (char*)mmap(0, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    arena = (uintptr_t)base, arena_size = total;
    page_region = (uint16_t*)malloc(total / PAGE * sizeof(uint16_t));
    memset(page_region, 0xff, total / PAGE * sizeof(uint16_t));
    char* at = base + MARGIN;
    bool early = job->seed % 2 || job->counted_blocks;
    for (unsigned r = 0; r < job->region_count; r++) {
        Region& region = job->regions[r];
        size_t bytes = region.bytes, inner = (bytes + 32 + PAGE - 1) / PAGE * PAGE;
        size_t phase = (uintptr_t)region.memory % 16;  // a kernel may ask whether it is aligned
        if (mprotect(at, inner, PROT_READ | PROT_WRITE)) {
            munmap(base, total), free(page_region);
            return false;
        }
        copies[r] = at + phase + (early ? 0 : (inner - phase - bytes) / 16 * 16);
        memcpy(copies[r], region.memory, bytes);
        if (!region.writable) mprotect(at, inner, PROT_READ);
        region_begin[r] = (uintptr_t)copies[r], region_end[r] = region_begin[r] + bytes;
        for (size_t page = 0; page < inner / PAGE; page++)
            page_region[((uintptr_t)at - arena) / PAGE + page] = (uint16_t)r;
        at += inner + PAGE;
    }
    for (unsigned p = 0; p < job->pointer_count; p++) {
        Pointer& pointer = job->pointers[p];
        *pointer.slot = pointer.region < 0 ? nullptr : copies[pointer.region] + pointer.offset;
    }
    return true;
}

static void run_blocks() {
    size_t count = (size_t)gridDim.x * gridDim.y * gridDim.z;
    unsigned* order = (unsigned*)malloc(count * sizeof(unsigned));
    for (size_t i = 0; i < count; i++) {
        size_t j = draw((unsigned)(i + 1));
        order[i] = order[j], order[j] = (unsigned)i;
    }
    unsigned counted = job->counted_blocks;
    static unsigned* volatile kept;  // freed after an escape too
    kept = order;
    if (sigsetjmp(escape, 0) == 0) {
        for (size_t i = 0; i < count; i++) {
            unsigned b = order[i];
            blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / (gridDim.x * gridDim.y)};
            if (job->counted_blocks && i >= counted) job->counted_blocks = 0;
            run_block();
        }
    }
    free(kept);
}

// Fills job->message, and sets job->failed, where the kernel broke a rule.
__attribute__((visibility("default"))) void launch(void (*kernel)(void**), Launch* what) {
    job = what, body = kernel;
    job->failed = 1;
    if (!set_up()) {
        snprintf(job->message, job->room, "no memory for the stacks of the threads");
        return;
    }
    gridDim = {job->grid[0], job->grid[1], job->grid[2]};
    blockDim = {job->block[0], job->block[1], job->block[2]};
    size_t threads = (size_t)blockDim.x * blockDim.y * blockDim.z;
    size_t declared = static_size - 2 * sizeof sim_before;
    if (threads == 0 || threads > MOST_THREADS) {
        snprintf(job->message, job->room, "a block of %zu threads; 1 to 1,024 are allowed",
                 threads);
        return;
    }
    if (declared > 48 * 1024 || declared + job->shared_bytes > SHARED_LIMIT) {
        snprintf(job->message, job->room,
                 "%zu bytes of declared and %u of dynamic shared memory; 48 KB may be declared, "
                 "and 227 KB used in all",
                 declared, job->shared_bytes);
        return;
    }
    thread_count = (int)threads;
    random_state = (job->seed + 1) * 0x9E3779B97F4A7C15ull;
    for (int i = 0; i < 4; i++) draw(2);
    char* copies[256];
    size_t total;
    if (job->region_count > 255 || !lay_out(copies, total)) {
        snprintf(job->message, job->room, "no memory for the guarded copies of the arrays");
        return;
    }
    struct sigaction action = {}, old[4];
    constexpr int SIGNALS[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    static char handler_stack[64 * 1024];
    stack_t alternate = {}, previous_stack;
    alternate.ss_sp = handler_stack, alternate.ss_size = sizeof handler_stack;
    sigaltstack(&alternate, &previous_stack);
    action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &old[i]);
    job->failed = 0;
    running = true;
    run_blocks();
    running = false;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &old[i], nullptr);
    sigaltstack(&previous_stack, nullptr);
    if (job->failed) {
        size_t used = strlen(job->message);
        snprintf(job->message + used, job->room - used, "; block (%u, %u, %u), thread (%u, %u, %u)",
                 blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    } else {
        for (unsigned r = 0; r < job->region_count; r++)
            if (job->regions[r].writable)
                memcpy(job->regions[r].memory, copies[r], job->regions[r].bytes);
    }
    munmap((void*)arena, total);
    free(page_region);
    arena_size = 0;
}
}  // namespace sim
#endif
