/* cp.async: a copy is noted when it is asked for, and made when its batch is waited for, not before. */
#include <cstring>

#include "cuda_pipeline_primitives.h"
#include "machine.h"
#include "memory.h"

namespace simt {

static void make_copies(Lane &me, int before) {
    size_t kept = 0;
    for (AsyncCopy &c : me.copies) {
        if ((int)c.batch >= before) {
            me.copies[kept++] = c;
            continue;
        }
        check_store(c.dst, c.size, c.site, nullptr);
        memcpy(c.dst, c.src, c.size - c.zfill);
        memset(static_cast<char *>(c.dst) + c.size - c.zfill, 0, c.zfill);
    }
    me.copies.resize(kept);
}

void finish_copies(Lane &me) {
    make_copies(me, 1 << 30);
}

[[noreturn]] static void refuse(Lane &me, const void *dst, const void *src, size_t size, bool size_ok,
                                Site site) {
    char who[96];
    describe_thread(*worker, me.linear, who, sizeof who);
    if (!size_ok)
        report("BAD CALL", site, nullptr, "%s: __pipeline_memcpy_async copies 4, 8 or 16 bytes, not %zu", who,
               size);
    if ((uintptr_t)dst % size || (uintptr_t)src % size)
        report("MISALIGNED", site, nullptr, "%s: __pipeline_memcpy_async of %zu bytes from %p to %p", who,
               size, src, dst);
    report("BAD CALL", site, nullptr,
           "%s: __pipeline_memcpy_async copies from global (%p) to shared memory (%p)", who, src, dst);
}

} // namespace simt

using namespace simt;

void simt_copy_async(void *dst, const void *src, size_t size, size_t zfill, const char *file, int line) {
    Site site{file, line};
    Lane &me = *self();
    bool size_ok = (size == 4 || size == 8 || size == 16) && zfill <= size;
    if (!size_ok || (uintptr_t)dst % size || (uintptr_t)src % size || is_device_address(dst) ||
        (zfill < size && !is_device_address(src)))
        refuse(me, dst, src, size, size_ok, site);
    count_copy(dst, size, src, size - zfill, site);
    if (zfill < size) check_load(src, size - zfill, site, nullptr);
    /* From now on the target is neither its old nor its new contents. */
    check_store(dst, size, site, nullptr);
    check_forget(dst, size);
    memset(dst, 0xff, size);
    me.copies.push_back(AsyncCopy{dst, src, (unsigned)size, (unsigned)zfill, (unsigned)me.copy_batch, site});
}

void simt_copy_commit() {
    self()->copy_batch++;
}

void simt_copy_wait(size_t prior) {
    Lane &me = *self();
    make_copies(me, me.copy_batch - (int)prior);
}
