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
#include "tags.h"

namespace simt {

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
static uint64_t
    ordered_below; /* tags of operations that are then known to have come before; 0: ask their clocks */
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
    ordered_below = all_ordered ? (uint64_t)op.first_serial << kSerialAt : 0;
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

/* What is known of a word's readers after this one. */
static inline uint64_t read_by(uint64_t r, uint64_t mask, uint64_t me, bool shared) {
    if (same_tag(r, me)) return r | mask;
    uint64_t keep = 0;
    if (serial_of(r) == serial_of(me)) {
        keep = r & (kBlocks | kBytes);
        if (epoch_of(r) == epoch_of(me)) {
            if (thread_of(r) >> 5 != thread_of(me) >> 5) keep |= kWarps;
            keep |= r & kWarps;
            if (sync_of(r) == sync_of(me)) keep |= thread_of(r) != thread_of(me) ? kLanes : r & kLanes;
        }
    } else if (!shared && serial_of(r) >= current->first_serial) {
        keep = kBlocks | (r & kBytes);
    }
    return (me & ~kFlags) | keep | mask;
}

static inline void touch_load(Cell &c, uint64_t mask, uint64_t me, const Touch &a) {
    uint64_t w = c.written;
    bool stale = a.shared && serial_of(w) != serial_of(me);
    if (stale || (mask & ~(w >> kValueAt))) complain("UNINITIALISED", a, ", which nobody has written");
    if ((w ^ me) & ~kFlags && (w & mask) && serial_of(w)) check_order(a, me, w, true, 0);
    c.read = read_by(c.read, mask, me, a.shared);
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
    c.written = written_by(w, mask, me) | (atomic ? kAtomic : 0);
    c.read = r;
}

/* Words that are alike before an access are alike after it: what has been found out for one holds for its
 * neighbours. */
static inline void touch(Cell *cells, uintptr_t offset, size_t bytes, uint64_t me, const Touch &a) {
    uintptr_t end = offset + bytes;
    Cell before{0, 0}, after{0, 0};
    for (uintptr_t g = offset / 2; g * 2 < end; g++) {
        Cell &c = cells[g];
        uint64_t mask = 3;
        if (g * 2 < offset) mask &= 2;
        if (g * 2 + 2 > end) mask &= 1;
        if (after.written && mask == 3 && c.written == before.written && c.read == before.read) {
            c = after;
            continue;
        }
        before = c;
        if (a.kind == Access::Load)
            touch_load(c, mask, me, a);
        else
            touch_store(c, mask, me, a);
        after = mask == 3 ? c : Cell{0, 0};
    }
}

/* ---- the usual case, without a complaint or a look at clocks ---- */

/* An access of this block, or of an operation that is known to have come before. */
static inline bool plainly_ordered(uint64_t other, uint64_t me, bool shared) {
    if (serial_of(other) == serial_of(me)) return same_tag(other, me) || epoch_of(other) != epoch_of(me);
    return !shared && other < ordered_below;
}

/* What touch_load and touch_store would make of a word, if that takes no thought; false: ask them. */
static inline bool quick_load(Cell &c, uint64_t mask, uint64_t me, bool shared) {
    if ((mask & ~(c.written >> kValueAt)) || !plainly_ordered(c.written, me, shared)) return false;
    c.read = read_by(c.read, mask, me, shared);
    return true;
}

static inline bool quick_store(Cell &c, uint64_t mask, uint64_t me, bool shared) {
    uint64_t w = c.written, r = c.read;
    if (shared && serial_of(w) != serial_of(me)) w = 0;
    if (shared && serial_of(r) != serial_of(me)) r = 0;
    if (w && !plainly_ordered(w, me, shared)) return false;
    if (r & mask) {
        bool ordered = !shared && r < ordered_below;
        if (serial_of(r) == serial_of(me))
            ordered = !(r & kBlocks) &&
                      (epoch_of(r) != epoch_of(me) || (!(r & (kLanes | kWarps)) && same_tag(r, me)));
        if (!ordered) return false;
    }
    c.written = written_by(w, mask, me);
    c.read = r;
    return true;
}

template <Access kind>
static inline __attribute__((always_inline)) bool quick_touch(Cell *cells, uintptr_t offset, size_t bytes,
                                                              uint64_t me, bool shared) {
    auto one = [&](Cell &c, uint64_t mask) {
        return kind == Access::Load ? quick_load(c, mask, me, shared) : quick_store(c, mask, me, shared);
    };
    Cell *c = cells + offset / 2;
    if (bytes == 1) return one(*c, offset & 1 ? 2 : 1);
    if (offset & 1 || bytes & 1) return false;
    const Cell before = *c;
    if (!one(*c, 3)) return false;
    const Cell after = *c;
    for (size_t i = 1; i < bytes / 2; i++) {
        if (c[i].written == before.written && c[i].read == before.read)
            c[i] = after;
        else if (!one(c[i], 3))
            return false;
    }
    return true;
}

static inline uint64_t my_tag() {
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

static inline bool in_recent(uintptr_t address, size_t bytes) {
    for (const Span &s : recent)
        if (address - s.base < s.size && bytes <= s.size - (address - s.base)) return true;
    return false;
}

static void check_bounds(const Touch &a) {
    if (in_recent(a.address, a.bytes)) return;
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

/* Shared variables that were used last. */
static const SharedSymbol no_symbol{"", 0, 0, false};
static const SharedSymbol *recent_symbols[4] = {&no_symbol, &no_symbol, &no_symbol, &no_symbol};
static unsigned recent_symbol_next;

static inline const SharedSymbol *recent_symbol_at(uintptr_t in_static) {
    for (const SharedSymbol *s : recent_symbols)
        if (in_static - s->offset < s->size) return s;
    return nullptr;
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
        const SharedSymbol *symbol = recent_symbol_at(in_static);
        if (!symbol && (symbol = shared_symbol_at(in_static)))
            recent_symbols[recent_symbol_next++ % 4] = symbol;
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

/* The access is checked and noted, or concerns nobody; false: it takes shadow_access to say. */
template <Access kind>
static inline __attribute__((always_inline)) bool quick_access(uintptr_t address, size_t bytes,
                                                               bool aligned) {
    if (!simt_self || !current) return true;
    const Settings &s = settings();
    if (s.counting || s.sample || (aligned && address % bytes)) return false;
    Worker &w = *worker;
    uintptr_t offset = address - arena_base;
    if (offset < kArenaBytes)
        return in_recent(address, bytes) && quick_touch<kind>(global_cells, offset, bytes, my_tag(), false);
    if (address - (uintptr_t)&w < sizeof w) return true;
    offset = address - (uintptr_t)w.dynamic;
    size_t dynamic = w.launch->request.shared;
    if (offset < dynamic)
        return bytes <= dynamic - offset && quick_touch<kind>(dynamic_cells, offset, bytes, my_tag(), true);
    offset = address - static_base;
    const SharedSymbol *symbol = recent_symbol_at(offset);
    return symbol && !symbol->guard && bytes <= symbol->offset + symbol->size - offset &&
           quick_touch<kind>(static_cells, offset, bytes, my_tag(), true);
}

template <size_t bytes, Access kind, bool aligned> void shadow_hook(uintptr_t address, const void *pc) {
    if (!quick_access<kind>(address, bytes, aligned))
        shadow_access(address, bytes, kind, aligned, Site{}, pc);
}
#define HOOKS(n)                                                                                             \
    template void shadow_hook<n, Access::Load, true>(uintptr_t, const void *);                               \
    template void shadow_hook<n, Access::Load, false>(uintptr_t, const void *);                              \
    template void shadow_hook<n, Access::Store, true>(uintptr_t, const void *);                              \
    template void shadow_hook<n, Access::Store, false>(uintptr_t, const void *);
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

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
    for (size_t i = 0, end; i < bytes; i = end) {
        bool value = has_value(src, i);
        for (end = i + 1; end < bytes && has_value(src, end) == value;) end++;
        if (value)
            shadow_range_load(static_cast<const char *>(src) + i, end - i);
        else
            for (size_t b = to + i; b < to + end; b++) forget_value(global_cells[b / 2], 1u << (b & 1));
    }
}

void shadow_release(uintptr_t begin, size_t bytes) {
    for (Span &s : recent) s = Span{0, 0};
    if (!global_cells) return;
    madvise(global_cells + (begin - arena_base) / 2, bytes / 2 * sizeof(Cell), MADV_DONTNEED);
}

void check_load(const void *address, size_t bytes, Site site, const void *pc) {
    if (!quick_access<Access::Load>((uintptr_t)address, bytes, false))
        shadow_access((uintptr_t)address, bytes, Access::Load, false, site, pc);
}

void check_store(const void *address, size_t bytes, Site site, const void *pc) {
    if (!quick_access<Access::Store>((uintptr_t)address, bytes, false))
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
