/* What gcc -fsanitize=thread makes kernels call at every access: here it is the machine that listens. */
#include <cstring>

#include "shadow.h"

using namespace simt;

#define PC __builtin_return_address(0)
#define HOOK(name, bytes, kind, aligned)                                                                           \
    void name(void *p) { shadow_access((uintptr_t)p, bytes, Access::kind, aligned, Site{}, PC); }
#define HOOKS(n)                                                                                                   \
    HOOK(__tsan_read##n, n, Load, true)                                                                            \
    HOOK(__tsan_write##n, n, Store, true)                                                                          \
    HOOK(__tsan_volatile_read##n, n, Load, true)                                                                   \
    HOOK(__tsan_volatile_write##n, n, Store, true)                                                                 \
    HOOK(__tsan_unaligned_read##n, n, Load, false)                                                                 \
    HOOK(__tsan_unaligned_write##n, n, Store, false)

extern "C" {

void __tsan_init() {
}
void __tsan_func_entry(void *) {
}
void __tsan_func_exit() {
}
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void *p, size_t bytes) {
    shadow_access((uintptr_t)p, bytes, Access::Load, false, Site{}, PC);
}
void __tsan_write_range(void *p, size_t bytes) {
    shadow_access((uintptr_t)p, bytes, Access::Store, false, Site{}, PC);
}
void __tsan_vptr_update(void **p, void *) {
    shadow_access((uintptr_t)p, sizeof *p, Access::Store, true, Site{}, PC);
}
void __tsan_vptr_read(void **p) {
    shadow_access((uintptr_t)p, sizeof *p, Access::Load, true, Site{}, PC);
}
void __tsan_atomic_thread_fence(int) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
void __tsan_atomic_signal_fence(int) {
}

/* Calls that the compiler leaves as calls; objcopy points kernels here. */
void *simt_memcpy(void *dst, const void *src, size_t bytes) {
    if (bytes) {
        shadow_access((uintptr_t)src, bytes, Access::Load, false, Site{}, PC);
        shadow_access((uintptr_t)dst, bytes, Access::Store, false, Site{}, PC);
    }
    return memcpy(dst, src, bytes);
}
void *simt_memmove(void *dst, const void *src, size_t bytes) {
    if (bytes) {
        shadow_access((uintptr_t)src, bytes, Access::Load, false, Site{}, PC);
        shadow_access((uintptr_t)dst, bytes, Access::Store, false, Site{}, PC);
    }
    return memmove(dst, src, bytes);
}
void *simt_memset(void *dst, int value, size_t bytes) {
    if (bytes) shadow_access((uintptr_t)dst, bytes, Access::Store, false, Site{}, PC);
    return memset(dst, value, bytes);
}

} // extern "C"
