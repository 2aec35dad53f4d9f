// Part of sim.cpp: mbarriers, tensor copies and wgmma, as wgmma.cuh describes them.
//
// A tensor copy is made at some time after it was asked for, drawn from the seed, at the latest
// when no thread can go on; a wgmma reads its factors at once and gives its sums back at the wait,
// the registers hold NaN meanwhile. What makes a missing or wrong wait an error at every seed is
// not that but a clock: each thread knows how many phases of each barrier are over, and how many
// wgmma of each warp. It learns this by waiting, from a barrier what those knew who arrived there,
// and from __syncthreads what all knew. A wgmma may read a byte that a copy wrote only where all
// lanes know the phase that counted the copy; a copy may write a byte only where the thread that
// asks knows all wgmma that read it.
//
// Also errors, each a sentence: a phase that ends while its copies are under way (too few bytes
// announced), threads that wait for ever (a wrong parity, too many bytes, a missing arrival),
// descriptors outside shared memory or of another kind than 32-, 64- or 128-byte swizzle, the warps
// of a group or the lanes of a warp in disagreement, a wgmma without the fence, registers changed
// while it is at work, a block that ends before its copies and products have.
//
// Not caught: shared memory written by ordinary stores and read by the copy engine or by wgmma
// without fence.proxy.async.

constexpr int MOST_BARRIERS = 64, MOST_WARPS = MOST_THREADS / 32;
constexpr unsigned GRANULE = 128, GRANULES = (SHARED_LIMIT + GRANULE - 1) / GRANULE;

struct Clock {  // what a thread knows to be over
    uint32_t phases[MOST_BARRIERS], products[MOST_WARPS];
    void learn(const Clock& other) {
        for (int i = 0; i < MOST_BARRIERS; i++)
            if (other.phases[i] > phases[i]) phases[i] = other.phases[i];
        for (int i = 0; i < MOST_WARPS; i++)
            if (other.products[i] > products[i]) products[i] = other.products[i];
    }
};
struct Barrier {
    unsigned offset;  // in dynamic shared memory
    int arrivals, missing;
    long long bytes;     // announced and not arrived
    uint32_t phase;      // the one that runs, from 0
    uint32_t set_up_at;  // the block barriers so far
    int set_up_by;
    bool fenced;
    uint32_t counted;  // one more than the last phase that counts a copy
    const void* copied_at;
    Clock arrived;
};
struct TensorCopy {
    char* to;
    TensorMap map;
    int at[4], barrier, thread;
    uint32_t phase;
    const void* pc;
    size_t bytes() const {
        return (size_t)map.box[0] * map.box[1] * map.box[2] * map.box[3] * map.element_bytes;
    }
};
struct
    Written {  // the last copy to 128 bytes of shared memory, and the last wgmma of each warp there
    int barrier;  // -1: none
    uint32_t phase, read[MOST_WARPS];
    bool under_way;
};
struct Product {  // sums of a warp that wgmma are at work on
    float* d[32];
    int n;
    unsigned group, given_back;  // lanes
    float sums[16][256];
};
struct WarpProducts {
    unsigned issued, committed;   // wgmma; groups
    unsigned issued_at[1 << 16];  // the wgmma before the end of group i, i modulo the length
    Product at_work[4];
    int at_work_count;
};
struct Call {  // of wgmma, by a lane
    float* d;
    int n;
    uint64_t a, b;
    bool add, mn_a, mn_b, made;
};
struct Lane {
    unsigned groups, last_product;
    bool fenced;
    int waits_for, parity;
    const void* waits_at;
    Call call;
};

static Barrier barriers[MOST_BARRIERS];
static int barrier_count, copy_count;
static TensorCopy copies_under_way[256];
static Clock clocks[MOST_THREADS];
static Lane lanes[MOST_THREADS];
static WarpProducts products[MOST_WARPS];
static Written written[GRANULES];
static bool hopper_used;

// --- beginning, end, and what the scheduler asks -------------------------------------------------

static void hopper_begin() {
    if (!hopper_used) return;
    hopper_used = false, barrier_count = copy_count = 0;
    memset(clocks, 0, sizeof clocks), memset(lanes, 0, sizeof lanes);
    for (WarpProducts& warp : products) warp.issued = warp.committed = warp.at_work_count = 0;
    memset(written, 0, sizeof written);
}
static void hopper_use() {
    if (hopper_used) return;
    hopper_used = true;
    for (Written& w : written) w.barrier = -1;
}
// All threads met at a block barrier: each knows what any knew.
static void hopper_meet() {
    if (!hopper_used) return;
    static Clock all;
    memset(&all, 0, sizeof all);
    for (int i = 0; i < thread_count; i++) all.learn(clocks[i]);
    for (int i = 0; i < thread_count; i++) clocks[i] = all;
}

static void end_phase(int index) {
    Barrier& b = barriers[index];
    if (b.missing || b.bytes) return;
    for (int i = 0; i < copy_count; i++)
        if (copies_under_way[i].barrier == index && copies_under_way[i].phase == b.phase) {
            snprintf(job->message, job->room,
                     "the phase of the mbarrier at byte %u ends while a copy that it counts is "
                     "under way: too few bytes were announced (expect_tx)",
                     b.offset);
            fault(0, 0, true, job->message, copies_under_way[i].pc);
        }
    b.phase++, b.missing = b.arrivals;
    b.arrived.phases[index] = b.phase;
    for (int i = 0; i < thread_count; i++)
        if (fibers[i].state == AT_MBARRIER && lanes[i].waits_for == index &&
            (int)(b.phase & 1) != lanes[i].parity)
            wake(i);
}

static unsigned swizzled(unsigned address, unsigned width) {
    return address ^ (address >> 7 & (width / 16 - 1)) << 4;
}

static void make_copy(int i) {
    TensorCopy copy = copies_under_way[i];
    current = copy.thread, threadIdx = fibers[current].index;  // where an error is told
    copies_under_way[i] = copies_under_way[--copy_count];
    const TensorMap& map = copy.map;
    unsigned row_bytes = map.box[0] * map.element_bytes;
    unsigned to = copy.to - dynamic_shared, rows = copy.bytes() / row_bytes;
    for (unsigned row = 0; row < rows; row++) {
        unsigned index[3] = {row % map.box[1], row / map.box[1] % map.box[2],
                             row / map.box[1] / map.box[2]};
        const char* from = map.base;
        bool inside = true;
        for (int axis = 0; axis < 3; axis++) {
            long long at = (long long)copy.at[axis + 1] + index[axis];
            inside &= at >= 0 && at < (long long)map.sizes[axis + 1];
            from += at * map.strides[axis];
        }
        for (unsigned x = 0; x < map.box[0]; x++) {
            long long at = (long long)copy.at[0] + x;
            unsigned byte = row * row_bytes + x * map.element_bytes;
            char* place = dynamic_shared + swizzled(to + byte, map.swizzle_bytes);
            if (inside && at >= 0 && at < (long long)map.sizes[0])
                memcpy(place, from + at * map.element_bytes, map.element_bytes);
            else
                memset(place, 0, map.element_bytes);
        }
    }
    for (unsigned g = to / GRANULE; g < (to + copy.bytes() + GRANULE - 1) / GRANULE; g++)
        written[g].under_way = false;
    barriers[copy.barrier].bytes -= copy.bytes();
    end_phase(copy.barrier);
}
// Now and then a copy arrives; `all_wait`: one must, or nothing goes on. False if there is none.
static bool hopper_copies(bool all_wait) {
    if (!copy_count) return false;
    if (all_wait || draw(4) == 0) make_copy(draw(copy_count));
    return true;
}
// No thread can go on: an error if one waits at an mbarrier.
static void hopper_deadlock() {
    for (int i = 0; i < thread_count; i++) {
        if (fibers[i].state != AT_MBARRIER) continue;
        Barrier& b = barriers[lanes[i].waits_for];
        current = i, threadIdx = fibers[i].index;
        snprintf(job->message, job->room,
                 "deadlock: waits for the end of phase %u (parity %d) of the mbarrier at byte %u, "
                 "which lacks %d of %d arrivals and %lld bytes of copies; nothing can go on",
                 b.phase, lanes[i].parity, b.offset, b.missing, b.arrivals, b.bytes);
        fault(0, 0, false, job->message, lanes[i].waits_at);
    }
}
static void hopper_end() {
    if (!hopper_used) return;
    for (int i = 0; i < barrier_count; i++) {
        bool waited = false;
        for (int thread = 0; thread < thread_count; thread++)
            waited |= clocks[thread].phases[i] >= barriers[i].counted;
        if (!waited)
            fault(0, 0, true, "the block may end while a tensor copy is under way: nobody waited",
                  barriers[i].copied_at);
    }
    for (int w = 0; w < (thread_count + 31) / 32; w++) {
        if (products[w].at_work_count) fail("the block ends while a wgmma is at work");
        if (products[w].issued != products[w & ~3].issued)
            fail("the four warps of a warpgroup have not made the same number of wgmma");
    }
}

// --- mbarriers -----------------------------------------------------------------------------------

unsigned shared_address(const void* place) {
    return (unsigned)((const char*)place - dynamic_shared);
}

static int find(void* barrier, const void* pc) {
    unsigned offset = shared_address(barrier);
    for (int i = 0; i < barrier_count; i++) {
        Barrier& b = barriers[i];
        if (b.offset != offset) continue;
        if (b.set_up_by != current && b.set_up_at == epoch)
            fault(0, 0, false, "an mbarrier that another thread sets up, with no barrier between",
                  pc);
        if (!b.fenced) fault(0, 0, false, "an mbarrier is used before fence_mbarrier_init", pc);
        return i;
    }
    fault(0, 0, false, "an mbarrier that was not set up by mbarrier_init", pc);
}

void mbarrier_init(void* barrier, int arrivals) {
    const void* pc = __builtin_return_address(0);
    hopper_use();
    touch(barrier, 8, true);
    if (barrier_count == MOST_BARRIERS)
        fault(0, 0, true, "the simulator has room for 64 mbarriers a block", pc);
    if (arrivals < 1) fault(0, 0, true, "an mbarrier of no arrivals", pc);
    Barrier& b = barriers[barrier_count++];
    b = {};
    b.offset = shared_address(barrier), b.arrivals = b.missing = arrivals;
    b.set_up_at = epoch, b.set_up_by = current;
}
void fence_mbarrier_init() {
    for (int i = 0; i < barrier_count; i++) barriers[i].fenced |= barriers[i].set_up_by == current;
}
void mbarrier_arrive(void* barrier, int bytes) {
    const void* pc = __builtin_return_address(0);
    int index = find(barrier, pc);
    Barrier& b = barriers[index];
    if (bytes < 0 || bytes >= 1 << 20)
        fault(0, 0, false, "an mbarrier counts less than 2^20 bytes a phase", pc);
    if (b.missing == 0)
        fault(0, 0, false, "more threads arrive at an mbarrier than it was set up for", pc);
    b.bytes += bytes, b.missing--;
    b.arrived.learn(clocks[current]);
    end_phase(index);
}
void mbarrier_wait(void* barrier, int parity) {
    const void* pc = __builtin_return_address(0);
    int index = find(barrier, pc);
    if (parity != 0 && parity != 1) fault(0, 0, false, "a parity is 0 or 1", pc);
    Lane& me = lanes[current];
    me.waits_for = index, me.parity = parity, me.waits_at = pc;
    while ((int)(barriers[index].phase & 1) == parity) leave(AT_MBARRIER, 0);
    clocks[current].learn(barriers[index].arrived);
}

// --- tensor copies -------------------------------------------------------------------------------

void copy_tensor(void* to, const TensorMap* map, int x, int y, int z, int w, void* barrier) {
    const void* pc = __builtin_return_address(0);
    int index = find(barrier, pc);
    TensorCopy copy = {(char*)to, *map, {x, y, z, w}, index, current, barriers[index].phase, pc};
    unsigned start = shared_address(to), end = start + copy.bytes();
    if (start % 128) fault(0, 0, true, "a tensor copy goes to a multiple of 128 bytes", pc);
    if (start >= job->shared_bytes || end > job->shared_bytes) {
        snprintf(job->message, job->room,
                 "access out of bounds of shared memory: a tensor copy to bytes %u to %u of %u",
                 start, end, job->shared_bytes);
        fault(0, 0, true, job->message, pc);
    }
    if (copy_count == 256) fault(0, 0, true, "the simulator has room for 256 tensor copies", pc);
    for (unsigned g = start / GRANULE; g < (end + GRANULE - 1) / GRANULE; g++) {
        if (written[g].under_way)
            fault(0, 0, true, "two tensor copies to the same shared memory are under way", pc);
        for (int warp = 0; warp < MOST_WARPS; warp++)
            if (written[g].read[warp] > clocks[current].products[warp]) {
                snprintf(job->message, job->room,
                         "race: a tensor copy writes shared memory at byte %u, which a wgmma of "
                         "warp %d may still read: this thread has not waited for an arrival of "
                         "that warp after its wgmma_wait_group",
                         g * GRANULE, warp);
                fault(0, 0, true, job->message, pc);
            }
        written[g].barrier = index, written[g].phase = copy.phase, written[g].under_way = true;
    }
    // The rows that lie inside are reads of global memory by this thread.
    int thread = current;
    unsigned sectors = 0;
    for (unsigned row = 0; row < end - start; row += map->box[0] * map->element_bytes) {
        unsigned r = row / (map->box[0] * map->element_bytes);
        long long at[3] = {(long long)y + r % map->box[1],
                           (long long)z + r / map->box[1] % map->box[2],
                           (long long)w + r / map->box[1] / map->box[2]};
        long long first = x < 0 ? 0 : x, last = (long long)x + map->box[0];
        if (last > map->sizes[0]) last = map->sizes[0];
        bool inside = first < last;
        uintptr_t from = (uintptr_t)map->base + first * map->element_bytes;
        for (int axis = 0; axis < 3; axis++) {
            inside &= at[axis] >= 0 && at[axis] < (long long)map->sizes[axis + 1];
            from += at[axis] * map->strides[axis];
        }
        if (!inside) continue;
        size_t bytes = (last - first) * map->element_bytes;
        check_global(from, bytes, false, pc);
        // Counted like loads of a warp, 32 bytes a lane.
        for (size_t done = 0; job->counted_blocks && done < bytes; done += 32) {
            current = (thread & ~31) + sectors++ % 32;
            note(from + done, bytes - done < 32 ? bytes - done : 32, 0, pc);
        }
    }
    current = thread;
    copies_under_way[copy_count++] = copy;
    barriers[index].counted = copy.phase + 1, barriers[index].copied_at = pc;
}

// --- wgmma ---------------------------------------------------------------------------------------

constexpr uint32_t AT_WORK = 0x7fbadbad;  // a NaN: what the registers hold until the wait

struct Tile {  // a decoded descriptor
    unsigned start, leading, stride, width;
    bool mn_major;
    // Where element k of row (or column) i lies.
    unsigned place(int i, int k) const {
        int along = width / 2;
        unsigned byte =
            mn_major ? start + i / along * leading + k / 8 * stride + k % 8 * width + i % along * 2
                     : start + i / 8 * stride + i % 8 * width + k * 2;
        return swizzled(byte, width);
    }
};
static Tile decode(uint64_t bits, bool mn_major, const void* pc) {
    unsigned mode = bits >> 62;
    if (mode == 0)
        fault(0, 0, false, "a wgmma descriptor without swizzle; the simulator knows 128, 64, 32",
              pc);
    if (bits & (0x3ull << 14 | 0x3ull << 30 | 0xffffull << 46))
        fault(0, 0, false, "a wgmma descriptor has reserved bits or a base offset set", pc);
    return {(unsigned)(bits & 0x3fff) << 4, (unsigned)(bits >> 16 & 0x3fff) << 4,
            (unsigned)(bits >> 32 & 0x3fff) << 4, 256u >> mode, mn_major};
}

// How many phases of a barrier all lanes of the warp know to be over; kept for the wgmma at hand.
static struct {
    int warp = -1, barrier;
    uint32_t phases;
} known;
static uint32_t all_know(int warp, int barrier) {
    if (known.warp == warp && known.barrier == barrier) return known.phases;
    known = {warp, barrier, UINT32_MAX};
    for (int lane = 0; lane < 32; lane++) {
        uint32_t phases = clocks[32 * warp + lane].phases[barrier];
        if (phases < known.phases) known.phases = phases;
    }
    return known.phases;
}

// Element k of row i as this warp reads it, and that it may.
static float read_factor(const Tile& tile, int i, int k, int warp, const void* pc) {
    unsigned at = tile.place(i, k);
    if (at + 2 > job->shared_bytes) {
        snprintf(job->message, job->room,
                 "access out of bounds of shared memory: a wgmma reads byte %u of %u (row %d, k %d "
                 "of a descriptor that begins at byte %u)",
                 at, job->shared_bytes, i, k, tile.start);
        fault(0, 0, false, job->message, pc);
    }
    Written& w = written[at / GRANULE];
    if (w.barrier >= 0) {
        if (w.under_way || all_know(warp, w.barrier) <= w.phase) {
            snprintf(job->message, job->room,
                     "race: a wgmma reads shared memory at byte %u, to which a tensor copy %s: its "
                     "warp has not waited for the end of phase %u of the mbarrier at byte %u",
                     at, w.under_way ? "is under way" : "was made", w.phase,
                     barriers[w.barrier].offset);
            fault(0, 0, false, job->message, pc);
        }
    }
    w.read[warp] = products[warp].issued;
    uint16_t half;
    memcpy(&half, dynamic_shared + at, 2);
    uint32_t word = (uint32_t)half << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

// Where lane `lane` keeps element (row, column) of its warp's 16 rows.
static int owner(int row, int column) {
    return row % 8 * 4 + column % 8 / 2;
}
static int register_of(int row, int column) {
    return column / 8 * 4 + row / 8 * 2 + column % 2;
}

static Product& product_of(int warp, const Call& call, const void* pc) {
    WarpProducts& mine = products[warp];
    for (int i = 0; i < mine.at_work_count; i++) {
        Product& p = mine.at_work[i];
        int same = 0;
        for (int lane = 0; lane < 32; lane++) same += p.d[lane] == lanes[32 * warp + lane].call.d;
        if (same == 32 && p.n == call.n && !p.given_back) return p;
        if (same) fault(0, 0, false, "a wgmma on registers that another shape is at work on", pc);
    }
    if (mine.at_work_count == 4)
        fault(0, 0, false, "the simulator has room for 4 tiles of sums a warp", pc);
    Product& p = mine.at_work[mine.at_work_count++];
    p.n = call.n, p.given_back = 0;
    for (int lane = 0; lane < 32; lane++) {
        p.d[lane] = lanes[32 * warp + lane].call.d;
        if (!lanes[32 * warp + lane].fenced)
            fault(0, 0, false, "a wgmma without wgmma_fence after its registers were free", pc);
    }
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < p.n; column++)
            p.sums[row][column] = p.d[owner(row, column)][register_of(row, column)];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < p.n / 2; i++) memcpy(p.d[lane] + i, &AT_WORK, 4);
    return p;
}

__attribute__((optimize("O3"))) static void multiply_add(float (*sums)[256], int n,
                                                         const float (*left)[16],
                                                         const float (*right)[256]) {
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++) {
            float x = left[i][k];
            for (int j = 0; j < n; j++) sums[i][j] += x * right[k][j];
        }
}

// The 16 rows of one warp.
static void wgmma_of_warp(int warp, const Call& call, const void* pc) {
    static float left[16][16], right[16][256];
    products[warp].issued++, known.warp = -1;
    Product& p = product_of(warp, call, pc);
    p.group = products[warp].committed;
    Tile a = decode(call.a, call.mn_a, pc), b = decode(call.b, call.mn_b, pc);
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++) left[i][k] = read_factor(a, warp % 4 * 16 + i, k, warp, pc);
    for (int j = 0; j < p.n; j++)
        for (int k = 0; k < 16; k++) right[k][j] = read_factor(b, j, k, warp, pc);
    if (!call.add)
        for (int i = 0; i < 16; i++) memset(p.sums[i], 0, p.n * sizeof(float));
    multiply_add(p.sums, p.n, left, right);
}

void wgmma(float* d, int n, uint64_t a, uint64_t b, bool add, bool mn_a, bool mn_b) {
    const void* pc = __builtin_return_address(0);
    int warp = current / 32;
    hopper_use();
    if (thread_count % 128) fail("wgmma needs whole warpgroups: a multiple of 128 threads");
    lanes[current].call = {d, n, a, b, add, mn_a, mn_b, false};
    warp_barrier(0, ~0u, -1);
    Call& mine = lanes[current].call;
    if (mine.made) return;  // another lane has done it for all
    for (int lane = 0; lane < 32; lane++) {
        Call& other = lanes[32 * warp + lane].call;
        if (other.a != a || other.b != b || other.n != n || other.add != add ||
            other.mn_a != mn_a || other.mn_b != mn_b ||
            lanes[32 * warp + lane].groups != lanes[current].groups)
            fault(0, 0, false, "the lanes of a warp disagree about a wgmma", pc);
        other.made = true;
    }
    // The first warp of the group to come says what this wgmma is, the others agree.
    static struct {
        uint64_t a, b;
        int n;
        bool add;
        unsigned number;
    } said[MOST_WARPS / 4][1024];
    auto& first = said[warp / 4][products[warp].issued % 1024];
    unsigned furthest = 0;
    for (int i = warp & ~3; i < (warp | 3) + 1; i++)
        if (i != warp && products[i].issued > furthest) furthest = products[i].issued;
    if (products[warp].issued >= furthest)
        first = {a, b, n, add, products[warp].issued};
    else if (first.number == products[warp].issued &&
             (first.a != a || first.b != b || first.n != n || first.add != add))
        fault(0, 0, false, "the warps of a warpgroup disagree about a wgmma", pc);
    wgmma_of_warp(warp, mine, pc);
}

void wgmma_fence() {
    lanes[current].fenced = true;
}
void wgmma_commit_group() {
    WarpProducts& warp = products[current / 32];
    Lane& me = lanes[current];
    if (me.groups == warp.committed) {  // the first lane to come
        warp.issued_at[warp.committed % (1 << 16)] = warp.issued;
        warp.committed++;
    }
    me.groups++;
}
void wgmma_wait_group(int newest) {
    const void* pc = __builtin_return_address(0);
    int warp = current / 32, lane = current % 32;
    WarpProducts& mine = products[warp];
    Lane& me = lanes[current];
    if (me.groups <= (unsigned)newest) return;
    unsigned over = me.groups - newest;  // groups before this one
    clocks[current].products[warp] = mine.issued_at[(over - 1) % (1 << 16)];
    for (int i = 0; i < mine.at_work_count; i++) {
        Product& p = mine.at_work[i];
        if (p.group >= over || p.given_back >> lane & 1) continue;
        for (int row = lane / 4; row < 16; row += 8)
            for (int column = lane % 4 * 2; column < p.n; column += column % 2 ? 7 : 1) {
                float* place = p.d[lane] + register_of(row, column);
                if (memcmp(place, &AT_WORK, 4))
                    fault(0, 0, true, "a register of a wgmma at work was changed", pc);
                memcpy(place, &p.sums[row][column], 4);
            }
        me.fenced = false;
        p.given_back |= 1u << lane;
        if (p.given_back == ~0u) {
            p = mine.at_work[--mine.at_work_count];
            i--;
        }
    }
}
