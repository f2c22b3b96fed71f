/* Device memory and pinned host memory. Device memory lies in one range of addresses that are never used
 * twice; each allocation has pages of its own with unmapped pages around it, ends at a 256-byte boundary
 * before the page behind it, and has marked bytes in the rest of its pages. Host code cannot touch it: it is
 * readable only while the machine executes stream operations. */
#ifndef SIMT_MEMORY_H
#define SIMT_MEMORY_H

#include <cstddef>
#include <cstdint>

namespace simt {

struct Allocation {
    uintptr_t base, pages, pages_end; /* pages: where its own pages begin */
    size_t size;
    int device;
    unsigned number;
    bool freed, open;
};

bool is_device_address(const void *address);
/* The allocation, live or freed, whose pages hold the address; null if none ever did. */
const Allocation *allocation_at(uintptr_t address);
void *device_allocate(size_t bytes, int device); /* null: no room */
enum class FreeResult { Done, Unknown, Twice };
FreeResult device_free(void *pointer);
size_t device_used(int device);
/* Device and pinned allocations that are not freed. */
size_t live_memories();
/* Complains about marked bytes that have changed. */
void check_red_zones();
/* Lets the machine (and with it everybody) at device memory, and closes it again. */
void device_open();
void device_close();
/* A fault at this address: makes its allocation accessible if device memory is open; false if the fault has
 * another reason. */
bool device_touch(uintptr_t address);

void *pinned_allocate(size_t bytes);
bool pinned_free(void *pointer);
bool pinned_register(void *pointer, size_t bytes, bool add);
bool is_pinned(const void *pointer, size_t bytes);
/* A copy that will read or write this host memory is under way; until it ends host code may not write, or
 * touch it. */
void pending_begin(const void *memory, size_t bytes, bool write);
void pending_end(const void *memory, size_t bytes, bool write);
/* The machine itself is about to use host memory of an operation, or has done so. */
void pending_allow(const void *memory, size_t bytes, bool allow);
/* memcpy of host code that was pointed here (simt.mk). Pending copies keep whole pages closed: bytes beside
 * theirs are copied with those pages open, instead of a fault at each instruction. */
extern "C" void *simt_host_memcpy(void *dst, const void *src, size_t bytes);
/* What a fault at this address on pinned memory means. */
enum class PendingFault { None, Neighbour, Reads, Writes };
PendingFault pending_fault(uintptr_t address, bool write);
void pending_step(uintptr_t address, bool before); /* lets one instruction pass */

constexpr uintptr_t kArenaBytes = (uintptr_t)1 << 38;
extern uintptr_t arena_base;

} // namespace simt

#endif
