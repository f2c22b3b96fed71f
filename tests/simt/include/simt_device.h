/* Qualifiers, built-in variables, barriers and fences. */
#ifndef SIMT_DEVICE_H
#define SIMT_DEVICE_H

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
/* A block runs on one OS thread, so the block's memory is that thread's. Trivial types only, as in CUDA. */
#define __shared__      static __thread
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* The thread that is running, and its place. Null on a host thread. */
struct simt_lane {
    uint3 thread_idx;
};
struct simt_place {
    uint3 block_idx;
    dim3 block_dim, grid_dim;
};
extern __thread simt_lane *simt_self;
extern __thread simt_place simt_here;

#define threadIdx (simt_self->thread_idx)
#define blockIdx  (simt_here.block_idx)
#define blockDim  (simt_here.block_dim)
#define gridDim   (simt_here.grid_dim)
static constexpr int warpSize = 32;

#define SIMT_SITE  const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SIMT_PLACE file, line

void *simt_dynamic_shared();
int simt_barrier(int kind, int predicate, const char *file, int line);
void simt_fence();
void simt_device_assert(const char *text, const char *file, int line);

enum { SIMT_BARRIER_PLAIN, SIMT_BARRIER_COUNT, SIMT_BARRIER_AND, SIMT_BARRIER_OR };
static inline void __syncthreads(SIMT_SITE) {
    simt_barrier(SIMT_BARRIER_PLAIN, 0, SIMT_PLACE);
}
static inline int __syncthreads_count(int predicate, SIMT_SITE) {
    return simt_barrier(SIMT_BARRIER_COUNT, predicate, SIMT_PLACE);
}
static inline int __syncthreads_and(int predicate, SIMT_SITE) {
    return simt_barrier(SIMT_BARRIER_AND, predicate, SIMT_PLACE);
}
static inline int __syncthreads_or(int predicate, SIMT_SITE) {
    return simt_barrier(SIMT_BARRIER_OR, predicate, SIMT_PLACE);
}
static inline void __threadfence() {
    simt_fence();
}
static inline void __threadfence_block() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
static inline void __threadfence_system() {
    simt_fence();
}
static inline void __trap() {
    simt_device_assert("__trap()", __builtin_FILE(), __builtin_LINE());
}
static inline void __nanosleep(unsigned) {}
/* A counter that only grows; not a clock. */
long long clock64();

#define SIMT_MAKE2(V, T)                                                                                     \
    static inline V make_##V(T x, T y) {                                                                     \
        return V{x, y};                                                                                      \
    }
#define SIMT_MAKE3(V, T)                                                                                     \
    static inline V make_##V(T x, T y, T z) {                                                                \
        return V{x, y, z};                                                                                   \
    }
#define SIMT_MAKE4(V, T)                                                                                     \
    static inline V make_##V(T x, T y, T z, T w) {                                                           \
        return V{x, y, z, w};                                                                                \
    }
SIMT_MAKE2(char2, signed char)
SIMT_MAKE2(uchar2, unsigned char)
SIMT_MAKE2(short2, short)
SIMT_MAKE2(ushort2, unsigned short)
SIMT_MAKE2(int2, int)
SIMT_MAKE2(uint2, unsigned)
SIMT_MAKE2(float2, float)
SIMT_MAKE2(double2, double)
SIMT_MAKE2(longlong2, long long)
SIMT_MAKE2(ulonglong2, unsigned long long)
SIMT_MAKE3(uchar3, unsigned char)
SIMT_MAKE3(int3, int)
SIMT_MAKE3(uint3, unsigned)
SIMT_MAKE3(float3, float)
SIMT_MAKE4(char4, signed char)
SIMT_MAKE4(uchar4, unsigned char)
SIMT_MAKE4(short4, short)
SIMT_MAKE4(ushort4, unsigned short)
SIMT_MAKE4(int4, int)
SIMT_MAKE4(uint4, unsigned)
SIMT_MAKE4(float4, float)
#undef SIMT_MAKE2
#undef SIMT_MAKE3
#undef SIMT_MAKE4

#endif
