/* Finds, at each access: memory that is not allocated, values that nobody has written, and two accesses that
 * nothing orders. Two accesses of one block are ordered by a barrier between them (or, in one warp, a full
 * __syncwarp); of two blocks, by a fence and an atomic on the way (release_at, acquire_at); of two stream
 * operations, by their clocks. */
#include "shadow.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "memory.h"

namespace simt {

/* 26 bits serial number of the block | 12 thread | 12 barriers | 8 warp barriers | 6 flags. A written word
 * has in its flags: 2 bits which bytes, 2 bits which bytes have a value, atomic. A read one: 2 bits which
 * bytes, and whether more than one lane, warp, or block has read since. */
struct Cell {
    uint64_t written, read;
};
constexpr int kSerialAt = 38, kThreadAt = 26, kEpochAt = 14, kSyncAt = 6;
constexpr uint64_t kFlags = 63, kBytes = 3, kValueAt = 2, kAtomic = 16, kLanes = 4, kWarps = 8, kBlocks = 16;
constexpr unsigned kOutside = 4095; /* thread number of copies and library calls */
constexpr uint32_t kMaxSerial = (1u << 26) - 1;

static uint32_t serial_of(uint64_t tag) {
    return (uint32_t)(tag >> kSerialAt);
}
static unsigned thread_of(uint64_t tag) {
    return (unsigned)(tag >> kThreadAt) & 4095u;
}
static unsigned epoch_of(uint64_t tag) {
    return (unsigned)(tag >> kEpochAt) & 4095u;
}
static unsigned sync_of(uint64_t tag) {
    return (unsigned)(tag >> kSyncAt) & 255u;
}

struct OpInfo {
    uint32_t first;
    uint64_t blocks;
    int stream;
    uint64_t seq;
    std::string what;
};
struct Release {
    uint32_t serial;
    unsigned thread, epoch;
};
struct Acquire {
    Release from;
    unsigned thread, epoch;
};

static Cell *global_cells, *dynamic_cells, *static_cells;
static std::vector<OpInfo> ops;
static uint32_t next_serial = 1;
static Op *current;
static bool all_ordered; /* the current operation comes after everything executed so far */
static std::map<uintptr_t, std::vector<Release>> releases; /* of the current operation */
static std::vector<Acquire> acquired;                      /* of the current block */
static uint32_t acquired_by;
static uintptr_t program_begin, program_end, static_base;
static size_t static_bytes, self_offset, here_offset;

static Cell *reserve_cells(size_t bytes) {
    void *p = mmap(nullptr, (bytes / 2 + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) report("LIMIT", Site{}, nullptr, "no address space for shadow memory");
    return static_cast<Cell *>(p);
}

static int program_range(dl_phdr_info *info, size_t, void *) {
    program_begin = UINTPTR_MAX;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto &segment = info->dlpi_phdr[i];
        if (segment.p_type != PT_LOAD) continue;
        program_begin = std::min(program_begin, (uintptr_t)(info->dlpi_addr + segment.p_vaddr));
        program_end = std::max(program_end, (uintptr_t)(info->dlpi_addr + segment.p_vaddr + segment.p_memsz));
    }
    return 1;
}

/* The instrumented build runs all blocks on the thread that executes operations; static shared memory is its.
 */
static void locate() {
    if (!global_cells) {
        global_cells = reserve_cells(kArenaBytes);
        dynamic_cells = reserve_cells(own_worker().dynamic_capacity + 8192);
        dl_iterate_phdr(program_range, nullptr);
    }
    static __thread uintptr_t base;
    static __thread size_t bytes;
    if (!base) base = (uintptr_t)shared_base(&bytes);
    if (!static_cells) static_cells = reserve_cells(bytes);
    static_base = base;
    static_bytes = bytes;
    self_offset = (uintptr_t)&simt_self - base;
    here_offset = (uintptr_t)&simt_here - base;
}

void shadow_begin_op(Op &op) {
    locate();
    current = &op;
    releases.clear();
    if (!op.first_serial && !settings().sample) {
        if (next_serial + op.blocks > kMaxSerial)
            report("LIMIT", Site{}, nullptr, "more than %u blocks in one run of the instrumented build",
                   kMaxSerial);
        op.first_serial = next_serial;
        next_serial += (uint32_t)op.blocks;
        ops.push_back(OpInfo{op.first_serial, op.blocks, op.stream->id, op.seq, op.what});
    }
    all_ordered = true;
    for (Stream *s : all_streams()) {
        uint64_t known = s->id < (int)op.clock.size() ? op.clock[(size_t)s->id] : 0;
        if (known < s->completed) all_ordered = false;
    }
}

void shadow_end_op() {
    current = nullptr;
}

static const OpInfo &op_of(uint32_t serial) {
    auto after = std::upper_bound(ops.begin(), ops.end(), serial,
                                  [](uint32_t s, const OpInfo &o) { return s < o.first; });
    return *(after - 1);
}

struct Touch {
    uintptr_t address;
    size_t bytes;
    Access kind;
    bool shared;
    Site site;
    const void *pc;
};

static const char *verb(Access kind) {
    return kind == Access::Load ? "reads" : kind == Access::Store ? "writes" : "updates atomically";
}

static void describe_shared(uintptr_t address, char *text, size_t size) {
    Worker &w = *worker;
    uintptr_t dynamic = (uintptr_t)w.dynamic;
    const SharedSymbol *symbol = shared_symbol_at(address - static_base);
    if (address - static_base < static_bytes && symbol)
        snprintf(text, size, "0x%zx, byte %zu of shared variable %s", (size_t)address,
                 (size_t)(address - static_base - symbol->offset), symbol->name);
    else
        snprintf(text, size, "0x%zx, byte %zd of dynamic shared memory", (size_t)address,
                 (ssize_t)(address - dynamic));
}

static void describe(const Touch &a, char *who, char *where) {
    if (simt_self)
        describe_thread(*worker, self()->linear, who, 96);
    else
        snprintf(who, 96, "%s", current ? current->what.c_str() : "the host");
    if (a.shared)
        describe_shared(a.address, where, 256);
    else
        describe_address(a.address, where, 256);
}

[[noreturn]] static void complain(const char *what, const Touch &a, const char *rest) {
    char who[96], where[256];
    describe(a, who, where);
    report(what, a.site, a.pc, "%s %s %zu bytes at %s%s", who, verb(a.kind), a.bytes, where, rest);
}

[[noreturn]] static void race(const Touch &a, uint64_t other, bool other_wrote, const char *between) {
    char rest[512], thread[64] = "";
    const OpInfo &op = op_of(serial_of(other));
    uint64_t block = serial_of(other) - op.first;
    if (thread_of(other) != kOutside) {
        unsigned t = thread_of(other);
        if (simt_self) {
            const uint3 &i = worker->index_of[t < (unsigned)worker->threads ? t : 0];
            snprintf(thread, sizeof thread, " thread (%u,%u,%u) of block number %llu of", i.x, i.y, i.z,
                     (unsigned long long)block);
        } else {
            snprintf(thread, sizeof thread, " thread %u of block number %llu of", t,
                     (unsigned long long)block);
        }
    }
    snprintf(rest, sizeof rest, ", which%s %s has %s, and %s", thread, op.what.c_str(),
             other_wrote ? "written" : "read", between);
    complain("RACE", a, rest);
}

static bool is_ordered_op(const OpInfo &op) {
    return (int)current->clock.size() > op.stream && current->clock[(size_t)op.stream] >= op.seq;
}

static bool is_acquired(uint64_t me, uint64_t other) {
    if (acquired_by != serial_of(me)) return false;
    for (const Acquire &a : acquired) {
        if (a.from.serial != serial_of(other)) continue;
        bool before = thread_of(other) == a.from.thread || epoch_of(other) < a.from.epoch;
        bool after = thread_of(me) == a.thread || epoch_of(me) > a.epoch;
        if (before && after) return true;
    }
    return false;
}

/* All other blocks of the launch have released what this thread may go on from. A release behind no barrier
 * speaks for its own thread alone. */
static bool is_last_block(uint64_t me) {
    if (acquired_by != serial_of(me)) return false;
    std::set<uint32_t> blocks;
    for (const Acquire &a : acquired)
        if (a.from.epoch > 0 && (thread_of(me) == a.thread || epoch_of(me) > a.epoch))
            blocks.insert(a.from.serial);
    return blocks.size() + 1 >= op_of(serial_of(me)).blocks;
}

/* Another access was the last one; is it ordered before mine? `flags`: the reader flags of a read cell. */
static void check_order(const Touch &a, uint64_t me, uint64_t other, bool other_wrote, uint64_t flags) {
    uint32_t mine = serial_of(me), its = serial_of(other);
    if (its == mine) {
        if (flags & kBlocks && !is_last_block(me)) race(a, other, other_wrote, "another block has too");
        if (epoch_of(other) != epoch_of(me)) return;
        bool same_warp = thread_of(other) >> 5 == thread_of(me) >> 5 && !(flags & kWarps);
        if (same_warp && thread_of(other) == thread_of(me) && !(flags & kLanes)) return;
        if (same_warp && sync_of(other) != sync_of(me)) return;
        race(a, other, other_wrote,
             flags ? "so have other threads, and no barrier is between" : "no barrier is between");
    } else if (its >= current->first_serial) {
        if (!is_acquired(me, other)) race(a, other, other_wrote, "nothing orders the two blocks");
    } else if (!all_ordered && !is_ordered_op(op_of(its))) {
        race(a, other, other_wrote, "no event or synchronisation orders the two operations");
    }
}

static inline void touch_load(Cell &c, uint64_t mask, uint64_t me, const Touch &a) {
    uint64_t w = c.written;
    bool stale = a.shared && serial_of(w) != serial_of(me);
    if (stale || (mask & ~(w >> kValueAt))) complain("UNINITIALISED", a, ", which nobody has written");
    if ((w ^ me) & ~kFlags && (w & mask) && serial_of(w)) check_order(a, me, w, true, 0);
    uint64_t r = c.read;
    if (((r ^ me) & ~kFlags) == 0) {
        c.read = r | mask;
        return;
    }
    uint64_t keep = 0;
    if (serial_of(r) == serial_of(me)) {
        keep = r & (kBlocks | kBytes);
        if (epoch_of(r) == epoch_of(me)) {
            if (thread_of(r) >> 5 != thread_of(me) >> 5) keep |= kWarps;
            keep |= r & kWarps;
            if (sync_of(r) == sync_of(me)) keep |= thread_of(r) != thread_of(me) ? kLanes : r & kLanes;
        }
    } else if (!a.shared && serial_of(r) >= current->first_serial) {
        keep = kBlocks | (r & kBytes);
    }
    c.read = (me & ~kFlags) | keep | mask;
}

static inline void touch_store(Cell &c, uint64_t mask, uint64_t me, const Touch &a) {
    uint64_t w = c.written, r = c.read;
    bool stale = a.shared && serial_of(w) != serial_of(me), atomic = a.kind == Access::Atomic;
    if (atomic && (stale || (mask & ~(w >> kValueAt))))
        complain("UNINITIALISED", a, ", which nobody has written");
    if (stale) w = 0;
    if ((w ^ me) & ~kFlags && (w & mask) && serial_of(w) && !(atomic && (w & kAtomic)))
        check_order(a, me, w, true, 0);
    if (a.shared && serial_of(r) != serial_of(me)) r = 0;
    if (serial_of(r) && (r & mask)) {
        uint64_t flags = r & (kLanes | kWarps | kBlocks);
        if (flags || ((r ^ me) & ~kFlags)) check_order(a, me, r, false, flags);
    }
    uint64_t value = ((w >> kValueAt) & kBytes) | mask;
    uint64_t bytes = ((w ^ me) & ~kFlags) == 0 ? (w & kBytes) | mask : mask;
    c.written = (me & ~kFlags) | bytes | value << kValueAt | (atomic ? kAtomic : 0);
    c.read = r;
}

static inline void touch(Cell *cells, uintptr_t offset, size_t bytes, uint64_t me, const Touch &a) {
    uintptr_t end = offset + bytes;
    for (uintptr_t g = offset / 2; g * 2 < end; g++) {
        uint64_t mask = 3;
        if (g * 2 < offset) mask &= 2;
        if (g * 2 + 2 > end) mask &= 1;
        if (a.kind == Access::Load)
            touch_load(cells[g], mask, me, a);
        else
            touch_store(cells[g], mask, me, a);
    }
}

static uint64_t my_tag() {
    Worker &w = *worker;
    Lane &me = *self();
    return (uint64_t)w.serial << kSerialAt | (uint64_t)me.linear << kThreadAt |
           (uint64_t)(w.epoch & 4095) << kEpochAt | (uint64_t)(w.warps[me.warp].sync_epoch & 255) << kSyncAt;
}

/* Allocations that were used last: kernels stay with a few. */
struct Span {
    uintptr_t base;
    size_t size;
};
static Span recent[4];
static unsigned recent_next;

static void check_bounds(const Touch &a) {
    for (const Span &s : recent)
        if (a.address - s.base < s.size && a.bytes <= s.size - (a.address - s.base)) return;
    const Allocation *found = allocation_at(a.address);
    if (found && found->freed) complain("USE AFTER FREE", a, "");
    if (!found || a.address < found->base || a.address + a.bytes > found->base + found->size)
        complain("OUT OF BOUNDS", a, "");
    recent[recent_next++ % 4] = Span{found->base, found->size};
}

/* What is neither device nor shared memory: the thread's own, or a mistake. */
static void other_memory(const Touch &a) {
    if (a.address >= program_begin && a.address < program_end) return;
    if (is_pinned((const void *)a.address, a.bytes)) return;
    complain("HOST POINTER", a, ", which is host memory or another thread's");
}

static void atomic_order(uint64_t me, uintptr_t address) {
    std::vector<Release> &list = releases[address];
    if (acquired_by != serial_of(me)) {
        acquired.clear();
        acquired_by = serial_of(me);
    }
    for (const Release &r : list)
        if (r.serial != serial_of(me)) acquired.push_back(Acquire{r, thread_of(me), epoch_of(me)});
    if (self()->fenced) list.push_back(Release{serial_of(me), thread_of(me), epoch_of(me)});
}

/* The cells of shared memory; null for other memory, and (then a.shared is set) for a guard variable. */
static Cell *shared_cells(Touch &a, uintptr_t *offset) {
    Worker &w = *worker;
    uintptr_t in_dynamic = a.address - (uintptr_t)w.dynamic;
    a.shared = true;
    if (in_dynamic < w.launch->request.shared) {
        if (in_dynamic + a.bytes > w.launch->request.shared) complain("OUT OF BOUNDS", a, "");
        *offset = in_dynamic;
        return dynamic_cells;
    }
    uintptr_t in_static = a.address - static_base;
    if (in_static < static_bytes) {
        static const SharedSymbol *last;
        const SharedSymbol *symbol = last;
        if (!symbol || in_static - symbol->offset >= symbol->size)
            symbol = last = shared_symbol_at(in_static);
        if (symbol && symbol->guard) {
            *offset = 0;
            return nullptr;
        }
        if (!symbol) complain("OUT OF BOUNDS", a, ", behind or before a shared variable");
        if (in_static + a.bytes > symbol->offset + symbol->size) complain("OUT OF BOUNDS", a, "");
        *offset = in_static;
        return static_cells;
    }
    if (in_dynamic + 4096 < w.dynamic_capacity + 8192)
        complain("OUT OF BOUNDS", a, ": the launch has asked for less");
    a.shared = false;
    return nullptr;
}

/* The thread's own stack and variables, and what the machine itself keeps in reach of inlined code. */
static bool is_private(Worker &w, uintptr_t address) {
    if (address - (uintptr_t)w.current->stack < w.current->size || address - (uintptr_t)&w < sizeof w)
        return true;
    if (address - (uintptr_t)w.launch->request.arguments.get() < w.launch->request.arguments_size)
        return true;
    uintptr_t in_static = address - static_base;
    return in_static - self_offset < sizeof simt_self || in_static - here_offset < sizeof simt_here;
}

void shadow_access(uintptr_t address, size_t bytes, Access kind, bool aligned, Site site, const void *pc) {
    Lane *lane = self();
    if (!lane || !current) return;
    Worker &w = *worker;
    uintptr_t offset = address - arena_base;
    bool global = offset < kArenaBytes;
    if (!global && is_private(w, address)) return;
    Touch a{address, bytes, kind, false, site, pc};
    Cell *cells = global_cells;
    if (global) {
        check_bounds(a);
    } else if (!(cells = shared_cells(a, &offset))) {
        if (a.shared) return;
        other_memory(a);
        return;
    }
    if (aligned && (bytes & (bytes - 1)) == 0 && address % bytes) complain("MISALIGNED", a, "");
    if (!settings().sample) {
        uint64_t me = my_tag();
        touch(cells, offset, bytes, me, a);
        if (kind == Access::Atomic) atomic_order(me, address);
    }
    if (settings().counting) count_access(w, *lane, pc, address, bytes, kind, a.shared);
}

static void range(const void *memory, size_t bytes, Access kind) {
    Touch a{(uintptr_t)memory, bytes, kind, false, Site{}, nullptr};
    check_bounds(a);
    if (settings().sample) return;
    uint64_t me = (uint64_t)current->first_serial << kSerialAt | (uint64_t)kOutside << kThreadAt;
    touch(global_cells, a.address - arena_base, bytes, me, a);
}

void shadow_range_load(const void *memory, size_t bytes) {
    if (is_device_address(memory)) range(memory, bytes, Access::Load);
}

void shadow_range_store(const void *memory, size_t bytes) {
    if (is_device_address(memory)) range(memory, bytes, Access::Store);
}

static void forget_value(Cell &c, uint64_t mask) {
    c.written &= ~(mask << kValueAt);
}

static bool has_value(const void *memory, size_t i) {
    uintptr_t offset = (uintptr_t)memory - arena_base + i;
    return global_cells[offset / 2].written >> (kValueAt + (offset & 1)) & 1;
}

void shadow_copy(void *dst, const void *src, size_t bytes) {
    if (src && !dst) shadow_range_load(src, bytes);
    if (dst) shadow_range_store(dst, bytes);
    if (!src || !dst || settings().sample) return;
    uintptr_t to = (uintptr_t)dst - arena_base;
    for (size_t i = 0; i < bytes; i++) {
        if (has_value(src, i))
            shadow_range_load(static_cast<const char *>(src) + i, 1);
        else
            forget_value(global_cells[(to + i) / 2], 1u << ((to + i) & 1));
    }
}

void shadow_release(uintptr_t begin, size_t bytes) {
    for (Span &s : recent) s = Span{0, 0};
    if (!global_cells) return;
    madvise(global_cells + (begin - arena_base) / 2, bytes / 2 * sizeof(Cell), MADV_DONTNEED);
}

void check_load(const void *address, size_t bytes, Site site, const void *pc) {
    shadow_access((uintptr_t)address, bytes, Access::Load, false, site, pc);
}

void check_store(const void *address, size_t bytes, Site site, const void *pc) {
    shadow_access((uintptr_t)address, bytes, Access::Store, false, site, pc);
}

void check_atomic(const void *address, size_t bytes, const void *pc) {
    shadow_access((uintptr_t)address, bytes, Access::Atomic, true, Site{}, pc);
}

void check_fence() {
    self()->fenced = true;
}

void check_forget(const void *address, size_t bytes) {
    if (settings().sample) return;
    Touch a{(uintptr_t)address, bytes, Access::Store, false, Site{}, nullptr};
    uintptr_t offset;
    if (Cell *cells = shared_cells(a, &offset))
        for (size_t i = 0; i < bytes; i++) forget_value(cells[(offset + i) / 2], 1u << ((offset + i) & 1));
}

} // namespace simt
