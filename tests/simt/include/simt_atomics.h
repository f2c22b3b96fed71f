/* Atomic operations: relaxed, as on a device. They live in the machine so that it can tell them from plain
 * accesses. */
#ifndef SIMT_ATOMICS_H
#define SIMT_ATOMICS_H

#include "simt_device.h"

/* Notes an atomic access by the running thread; the instrumented build checks it. */
void simt_note_atomic(const void *address, size_t bytes, const void *pc);

#define SIMT_ATOMIC_NOTE(p) simt_note_atomic(p, sizeof *(p), __builtin_return_address(0))
#define SIMT_NO_CHECK       __attribute__((noinline, no_sanitize("thread")))

/* Applies `next` to *p until nobody was in between; returns the old value. */
template <class T, class F> SIMT_NO_CHECK T simt_atomic(T *p, F next) {
    SIMT_ATOMIC_NOTE(p);
    T old;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    for (;;) {
        T wanted = next(old);
        if (__atomic_compare_exchange(p, &old, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return old;
    }
}
#define SIMT_ATOMIC_OP(name, T, expression)                                                                  \
    static inline T name(T *p, T v) {                                                                        \
        return simt_atomic(                                                                                  \
            p, [v](T old) __attribute__((no_sanitize("thread")))->T { return expression; });                 \
    }
#define SIMT_ATOMIC_INTEGER(T)                                                                               \
    SIMT_ATOMIC_OP(atomicAdd, T, old + v)                                                                    \
    SIMT_ATOMIC_OP(atomicMin, T, v < old ? v : old)                                                          \
    SIMT_ATOMIC_OP(atomicMax, T, v > old ? v : old)                                                          \
    SIMT_ATOMIC_OP(atomicAnd, T, old &v)                                                                     \
    SIMT_ATOMIC_OP(atomicOr, T, old | v)                                                                     \
    SIMT_ATOMIC_OP(atomicXor, T, old ^ v)                                                                    \
    SIMT_ATOMIC_OP(atomicExch, T, ((void)old, v))                                                            \
    static inline T atomicCAS(T *p, T compare, T v) {                                                        \
        return simt_atomic(                                                                                  \
            p, [=](T old) __attribute__((no_sanitize("thread")))->T { return old == compare ? v : old; });   \
    }
SIMT_ATOMIC_INTEGER(int)
SIMT_ATOMIC_INTEGER(unsigned)
SIMT_ATOMIC_INTEGER(unsigned long long)
SIMT_ATOMIC_OP(atomicSub, int, old - v)
SIMT_ATOMIC_OP(atomicSub, unsigned, old - v)
SIMT_ATOMIC_OP(atomicInc, unsigned, old >= v ? 0u : old + 1u)
SIMT_ATOMIC_OP(atomicDec, unsigned, (old == 0u || old > v) ? v : old - 1u)
SIMT_ATOMIC_OP(atomicAdd, float, old + v)
SIMT_ATOMIC_OP(atomicAdd, double, old + v)
SIMT_ATOMIC_OP(atomicExch, float, ((void)old, v))
#undef SIMT_ATOMIC_OP
#undef SIMT_ATOMIC_INTEGER

#endif
