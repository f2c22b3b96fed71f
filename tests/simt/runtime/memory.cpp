#include "memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "machine.h"
#if SIMT_INSTRUMENTED
#include "shadow.h"
#endif

namespace simt {

static constexpr size_t kPage = 4096, kAlign = 256;
static constexpr unsigned char kMark = 0xcb, kPoison = 0xff;

uintptr_t arena_base;
static uintptr_t arena_next;
static uint32_t *page_owner; /* number of the allocation that has the page */
static std::vector<Allocation> allocations;
static std::recursive_mutex memory_lock;
static int open_depth;
static size_t used[64];

struct Range {
    uintptr_t begin, end;
    bool write;
};
static std::vector<Range> pinned, registered, pending;

static size_t round_up(size_t n, size_t step) {
    return (n + step - 1) / step * step;
}

static void *reserve(size_t bytes, int protection) {
    void *p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

static void arena_init() {
    if (arena_base) return;
    page_owner =
        static_cast<uint32_t *>(reserve(kArenaBytes / kPage * sizeof(uint32_t), PROT_READ | PROT_WRITE));
    arena_next = arena_base = reinterpret_cast<uintptr_t>(reserve(kArenaBytes, PROT_NONE));
    allocations.emplace_back();
}

bool is_device_address(const void *address) {
    return arena_base && reinterpret_cast<uintptr_t>(address) - arena_base < kArenaBytes;
}

const Allocation *allocation_at(uintptr_t address) {
    if (!arena_base || address - arena_base >= kArenaBytes) return nullptr;
    uint32_t number = page_owner[(address - arena_base) / kPage];
    return number ? &allocations[number] : nullptr;
}

static std::vector<unsigned> opened; /* allocations that are accessible now */

static void *at(uintptr_t address) {
    return reinterpret_cast<void *>(address);
}

void *device_allocate(size_t bytes, int device) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    arena_init();
    size_t rounded = round_up(bytes, kAlign), pages = round_up(rounded, kPage);
    if (arena_next + pages + 2 * kPage > arena_base + kArenaBytes) return nullptr;
    uintptr_t first = arena_next + kPage, end = first + pages;
    arena_next = end;
    if (mprotect(at(first), pages, PROT_READ | PROT_WRITE)) return nullptr;
    Allocation a{end - rounded, first, end, bytes, device, (unsigned)allocations.size(), false, false};
    if (settings().sample) { /* pages that nobody touches take no memory */
        memset(at(first), kMark, a.base - first);
        memset(at(a.base + bytes), kMark, end - a.base - bytes);
    } else {
        memset(at(first), kMark, pages);
        memset(at(a.base), kPoison, bytes);
    }
    for (uintptr_t p = first; p < end; p += kPage) page_owner[(p - arena_base) / kPage] = a.number;
    allocations.push_back(a);
    used[device] += bytes;
    mprotect(at(first), pages, PROT_NONE);
    return at(a.base);
}

static void check_red_zone(const Allocation &a) {
    auto look = [&](uintptr_t from, uintptr_t to) {
        for (uintptr_t p = from; p < to; p++)
            if (*static_cast<unsigned char *>(at(p)) != kMark)
                report("OUT OF BOUNDS", Site{}, nullptr,
                       "somebody has written %s device allocation %u of %zu bytes, %zu bytes from its start",
                       p < a.base ? "before" : "behind", a.number, a.size,
                       (size_t)(p < a.base ? a.base - p : p - a.base));
    };
    look(a.pages, a.base);
    look(a.base + a.size, a.pages_end);
}

void check_red_zones() {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    device_open();
    for (size_t i = 1; i < allocations.size(); i++)
        if (!allocations[i].freed) check_red_zone(allocations[i]);
    device_close();
}

FreeResult device_free(void *pointer) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    const Allocation *found = allocation_at(address);
    if (!found || found->base != address) return FreeResult::Unknown;
    if (found->freed) return FreeResult::Twice;
    Allocation &a = allocations[found->number];
    mprotect(at(a.pages), a.pages_end - a.pages, PROT_READ | PROT_WRITE);
    check_red_zone(a);
#if SIMT_INSTRUMENTED
    shadow_release(a.pages, a.pages_end - a.pages);
#endif
    a.freed = true;
    used[a.device] -= a.size;
    madvise(at(a.pages), a.pages_end - a.pages, MADV_DONTNEED);
    mprotect(at(a.pages), a.pages_end - a.pages, PROT_NONE);
    return FreeResult::Done;
}

size_t device_used(int device) {
    return used[device];
}

size_t live_memories() {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    size_t live = pinned.size();
    for (const Allocation &a : allocations) live += a.number && !a.freed;
    return live;
}

/* Allocations open up when they are first touched: most operations touch few of many. */
void device_open() {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    /* Test frameworks put handlers of their own in its place. */
    if (open_depth++ == 0) install_fault_handler();
}

bool device_touch(uintptr_t address) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    const Allocation *found = open_depth ? allocation_at(address) : nullptr;
    if (!found || found->freed) return false;
    Allocation &a = allocations[found->number];
    if (a.open) return true;
    a.open = true;
    opened.push_back(a.number);
    return mprotect(at(a.pages), a.pages_end - a.pages, PROT_READ | PROT_WRITE) == 0;
}

void device_close() {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    if (--open_depth > 0) return;
    for (unsigned number : opened) {
        Allocation &a = allocations[number];
        a.open = false;
        if (!a.freed) mprotect(at(a.pages), a.pages_end - a.pages, PROT_NONE);
    }
    opened.clear();
}

void *pinned_allocate(size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    size_t pages = round_up(bytes, kPage);
    char *p = static_cast<char *>(reserve(pages + 2 * kPage, PROT_NONE)) + kPage;
    mprotect(p, pages, PROT_READ | PROT_WRITE);
    memset(p, kPoison, pages);
    pinned.push_back(Range{(uintptr_t)p, (uintptr_t)p + bytes, false});
    return p;
}

static bool remove(std::vector<Range> &list, uintptr_t begin, Range *out) {
    for (size_t i = 0; i < list.size(); i++)
        if (list[i].begin == begin) {
            *out = list[i];
            list.erase(list.begin() + (long)i);
            return true;
        }
    return false;
}

bool pinned_free(void *pointer) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    Range r;
    if (!remove(pinned, (uintptr_t)pointer, &r)) return false;
    /* Stays reserved, so that a use after the free faults. */
    mprotect(pointer, round_up(r.end - r.begin, kPage), PROT_NONE);
    madvise(pointer, round_up(r.end - r.begin, kPage), MADV_DONTNEED);
    return true;
}

bool pinned_register(void *pointer, size_t bytes, bool add) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    Range r;
    if (!add) return remove(registered, (uintptr_t)pointer, &r);
    if (is_pinned(pointer, bytes)) return false;
    registered.push_back(Range{(uintptr_t)pointer, (uintptr_t)pointer + bytes, false});
    return true;
}

static bool inside(const std::vector<Range> &list, uintptr_t begin, uintptr_t end) {
    for (const Range &r : list)
        if (begin >= r.begin && end <= r.end) return true;
    return false;
}

bool is_pinned(const void *pointer, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    uintptr_t begin = (uintptr_t)pointer;
    return inside(pinned, begin, begin + bytes) || inside(registered, begin, begin + bytes);
}

/* Only whole pages that belong to pinned allocations can be protected. */
static void protect_range(uintptr_t begin, uintptr_t end, int protection) {
    if (inside(pinned, begin, end)) {
        begin &= ~(uintptr_t)(kPage - 1);
        end = round_up(end, kPage);
    } else {
        begin = round_up(begin, kPage);
        end &= ~(uintptr_t)(kPage - 1);
    }
    if (begin < end) mprotect(at(begin), end - begin, protection);
}

static void protect_pending(uintptr_t begin, uintptr_t end) {
    begin &= ~(uintptr_t)(kPage - 1);
    end = round_up(end, kPage);
    for (int pass = 0; pass < 2; pass++)
        for (const Range &r : pending)
            if (r.write == (pass == 1) && r.begin < end && r.end > begin)
                protect_range(r.begin, r.end, r.write ? PROT_NONE : PROT_READ);
}

void pending_begin(const void *memory, size_t bytes, bool write) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    if (!bytes || !is_pinned(memory, bytes)) return;
    pending.push_back(Range{(uintptr_t)memory, (uintptr_t)memory + bytes, write});
    protect_pending((uintptr_t)memory, (uintptr_t)memory + bytes);
}

void pending_end(const void *memory, size_t bytes, bool write) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    uintptr_t begin = (uintptr_t)memory, end = begin + bytes;
    for (size_t i = 0; i < pending.size(); i++)
        if (pending[i].begin == begin && pending[i].end == end && pending[i].write == write) {
            pending.erase(pending.begin() + (long)i);
            protect_range(begin, end, PROT_READ | PROT_WRITE);
            protect_pending(begin, end);
            return;
        }
}

void pending_allow(const void *memory, size_t bytes, bool allow) {
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    uintptr_t begin = (uintptr_t)memory, end = begin + bytes;
    if (!bytes || !is_pinned(memory, bytes)) return;
    if (allow)
        protect_range(begin, end, PROT_READ | PROT_WRITE);
    else
        protect_pending(begin, end);
}

static bool overlaps(const Range &r, uintptr_t begin, size_t bytes) {
    return r.begin < begin + bytes && r.end > begin;
}

/* Of the pages of these bytes, opens those that are closed for the sake of bytes beside them; false: for
 * none. */
static bool open_shared_pages(uintptr_t begin, size_t bytes, bool write) {
    uintptr_t first = begin & ~(uintptr_t)(kPage - 1), size = round_up(begin + bytes, kPage) - first;
    bool closed = false;
    for (const Range &r : pending) {
        if ((r.write || write) && overlaps(r, begin, bytes)) return false; /* let it fault */
        closed = closed || overlaps(r, first, size);
    }
    return closed && is_pinned(at(begin), bytes) && mprotect(at(first), size, PROT_READ | PROT_WRITE) == 0;
}

PendingFault pending_fault(uintptr_t address, bool write) {
    uintptr_t page = address & ~(uintptr_t)(kPage - 1);
    PendingFault result = PendingFault::None;
    for (const Range &r : pending) {
        if (r.begin >= page + kPage || r.end <= page) continue;
        if (address >= r.begin && address < r.end && (r.write || write))
            return r.write ? PendingFault::Writes : PendingFault::Reads;
        result = PendingFault::Neighbour;
    }
    return result;
}

void pending_step(uintptr_t address, bool before) {
    uintptr_t page = address & ~(uintptr_t)(kPage - 1);
    if (before)
        mprotect(at(page), kPage, PROT_READ | PROT_WRITE);
    else
        protect_pending(page, page + kPage);
}

void *simt_host_memcpy(void *dst, const void *src, size_t bytes) {
    if (!bytes) return dst;
    std::lock_guard<std::recursive_mutex> lock(memory_lock);
    bool to = open_shared_pages((uintptr_t)dst, bytes, true);
    bool from = open_shared_pages((uintptr_t)src, bytes, false);
    memcpy(dst, src, bytes);
    if (to) protect_pending((uintptr_t)dst, (uintptr_t)dst + bytes);
    if (from) protect_pending((uintptr_t)src, (uintptr_t)src + bytes);
    return dst;
}

} // namespace simt
