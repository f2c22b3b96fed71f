/* What gcc -fsanitize=thread makes kernels call at every access: here it is the machine that listens. */
#include <cstring>

#include "shadow.h"

using namespace simt;

/* Most accesses are to variables of the thread itself. */
static inline bool on_own_stack(uintptr_t address) {
    uintptr_t top;
    asm("mov %%rsp, %0" : "=r"(top));
    return (address ^ top) < stack_span;
}

#define PC __builtin_return_address(0)
#define HOOK(name, bytes, kind, aligned)                                                                     \
    void name(void *p) {                                                                                     \
        if (!on_own_stack((uintptr_t)p)) shadow_hook<bytes, Access::kind, aligned>((uintptr_t)p, PC);        \
    }
#define HOOKS(n)                                                                                             \
    HOOK(__tsan_read##n, n, Load, true)                                                                      \
    HOOK(__tsan_write##n, n, Store, true)                                                                    \
    HOOK(__tsan_volatile_read##n, n, Load, true)                                                             \
    HOOK(__tsan_volatile_write##n, n, Store, true)                                                           \
    HOOK(__tsan_unaligned_read##n, n, Load, false)                                                           \
    HOOK(__tsan_unaligned_write##n, n, Store, false)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
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
void __tsan_atomic_signal_fence(int) {}

/* Atomic operations of the C++ library in launchers (reference counts), or written by hand in kernels. */
#define ATOMIC(n, T)                                                                                         \
    T __tsan_atomic##n##_load(const volatile T *p, int) {                                                    \
        check_atomic((const void *)p, sizeof *p, PC);                                                        \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                         \
    }                                                                                                        \
    void __tsan_atomic##n##_store(volatile T *p, T v, int) {                                                 \
        check_atomic((const void *)p, sizeof *p, PC);                                                        \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                            \
    }                                                                                                        \
    ATOMIC_CHANGE(n, T, exchange, __atomic_exchange_n)                                                       \
    ATOMIC_CHANGE(n, T, fetch_add, __atomic_fetch_add)                                                       \
    ATOMIC_CHANGE(n, T, fetch_sub, __atomic_fetch_sub)                                                       \
    ATOMIC_CHANGE(n, T, fetch_and, __atomic_fetch_and)                                                       \
    ATOMIC_CHANGE(n, T, fetch_or, __atomic_fetch_or)                                                         \
    ATOMIC_CHANGE(n, T, fetch_xor, __atomic_fetch_xor)                                                       \
    ATOMIC_COMPARE(n, T, strong)                                                                             \
    ATOMIC_COMPARE(n, T, weak)
#define ATOMIC_CHANGE(n, T, name, builtin)                                                                   \
    T __tsan_atomic##n##_##name(volatile T *p, T v, int) {                                                   \
        check_atomic((const void *)p, sizeof *p, PC);                                                        \
        return builtin(p, v, __ATOMIC_SEQ_CST);                                                              \
    }
#define ATOMIC_COMPARE(n, T, kind)                                                                           \
    int __tsan_atomic##n##_compare_exchange_##kind(volatile T *p, T *expected, T v, int, int) {              \
        check_atomic((const void *)p, sizeof *p, PC);                                                        \
        return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);       \
    }
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)

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
