/* Shadow memory of the instrumented build: for every two bytes of device and shared memory, who wrote and who
 * read them last, and whether they have a value at all. */
#ifndef SIMT_SHADOW_H
#define SIMT_SHADOW_H

#include "stream.h"

namespace simt {

enum class Access { Load, Store, Atomic };

/* An access by the running thread. `aligned`: must be at a multiple of its size. */
void shadow_access(uintptr_t address, size_t bytes, Access kind, bool aligned, Site site, const void *pc);

/* The same where the size is known: 1, 2, 4, 8 or 16. */
template <size_t bytes, Access kind, bool aligned> void shadow_hook(uintptr_t address, const void *pc);

/* Stream operations. */
void shadow_begin_op(Op &op);
void shadow_end_op();
void shadow_range_load(const void *memory, size_t bytes);
void shadow_range_store(const void *memory, size_t bytes);
/* A copy between device memory (null: host memory); what has no value keeps having none. */
void shadow_copy(void *dst, const void *src, size_t bytes);
/* Device memory that was freed. */
void shadow_release(uintptr_t begin, size_t bytes);

/* counters.cpp */
void count_access(Worker &w, Lane &me, const void *pc, uintptr_t address, size_t bytes, Access kind,
                  bool shared);

} // namespace simt

#endif
