/* Device mathematics: intrinsics and the overloads that CUDA puts into the global namespace. */
#ifndef SIMT_MATH_H
#define SIMT_MATH_H

#include <algorithm>
#include <cmath>

#include "simt_device.h"

#define SIMT_INLINE static inline __attribute__((unused))

#define SIMT_MIN_MAX(T)                                                                                      \
    SIMT_INLINE T min(T a, T b) {                                                                            \
        return b < a ? b : a;                                                                                \
    }                                                                                                        \
    SIMT_INLINE T max(T a, T b) {                                                                            \
        return a < b ? b : a;                                                                                \
    }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(unsigned long)
SIMT_MIN_MAX(long long)
SIMT_MIN_MAX(unsigned long long)
#undef SIMT_MIN_MAX
SIMT_INLINE unsigned min(int a, unsigned b) {
    return min((unsigned)a, b);
}
SIMT_INLINE unsigned min(unsigned a, int b) {
    return min(a, (unsigned)b);
}
SIMT_INLINE unsigned max(int a, unsigned b) {
    return max((unsigned)a, b);
}
SIMT_INLINE unsigned max(unsigned a, int b) {
    return max(a, (unsigned)b);
}
/* Like fminf: a NaN loses against a number. */
SIMT_INLINE float min(float a, float b) {
    return fminf(a, b);
}
SIMT_INLINE float max(float a, float b) {
    return fmaxf(a, b);
}
SIMT_INLINE double min(double a, double b) {
    return fmin(a, b);
}
SIMT_INLINE double max(double a, double b) {
    return fmax(a, b);
}

SIMT_INLINE float __int_as_float(int v) {
    float r;
    std::memcpy(&r, &v, 4);
    return r;
}
SIMT_INLINE float __uint_as_float(unsigned v) {
    float r;
    std::memcpy(&r, &v, 4);
    return r;
}
SIMT_INLINE int __float_as_int(float v) {
    int r;
    std::memcpy(&r, &v, 4);
    return r;
}
SIMT_INLINE unsigned __float_as_uint(float v) {
    unsigned r;
    std::memcpy(&r, &v, 4);
    return r;
}
SIMT_INLINE long long __double_as_longlong(double v) {
    long long r;
    std::memcpy(&r, &v, 8);
    return r;
}
SIMT_INLINE double __longlong_as_double(long long v) {
    double r;
    std::memcpy(&r, &v, 8);
    return r;
}

SIMT_INLINE float __fadd_rn(float a, float b) {
    volatile float r = a + b;
    return r;
}
SIMT_INLINE float __fsub_rn(float a, float b) {
    volatile float r = a - b;
    return r;
}
SIMT_INLINE float __fmul_rn(float a, float b) {
    volatile float r = a * b;
    return r;
}
SIMT_INLINE float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
SIMT_INLINE float __fdiv_rn(float a, float b) {
    return a / b;
}
SIMT_INLINE float __frcp_rn(float a) {
    return 1.0f / a;
}
SIMT_INLINE float __fsqrt_rn(float a) {
    return sqrtf(a);
}
SIMT_INLINE float __frsqrt_rn(float a) {
    return (float)(1.0 / sqrt((double)a));
}
SIMT_INLINE float __fdividef(float a, float b) {
    return a / b;
}
/* glibc has these names for itself. */
#define __expf(a)    expf(a)
#define __logf(a)    logf(a)
#define __log2f(a)   log2f(a)
#define __powf(a, b) powf(a, b)
#define __sinf(a)    sinf(a)
#define __cosf(a)    cosf(a)
SIMT_INLINE float __saturatef(float a) {
    return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f;
}
SIMT_INLINE float rsqrtf(float a) {
    return 1.0f / sqrtf(a);
}
SIMT_INLINE double rsqrt(double a) {
    return 1.0 / sqrt(a);
}
SIMT_INLINE void sincospif(float a, float *s, float *c) {
    *s = (float)sin(3.14159265358979323846 * a);
    *c = (float)cos(3.14159265358979323846 * a);
}

/* Conversions saturate and turn NaN into 0, as the device's do. */
SIMT_INLINE int simt_to_int(double v) {
    return v != v ? 0 : v >= 2147483647.0 ? 2147483647 : v <= -2147483648.0 ? -2147483647 - 1 : (int)v;
}
SIMT_INLINE unsigned simt_to_unsigned(double v) {
    return v != v || v <= 0.0 ? 0u : v >= 4294967295.0 ? 4294967295u : (unsigned)v;
}
SIMT_INLINE int __float2int_rn(float v) {
    return simt_to_int(nearbyintf(v));
}
SIMT_INLINE int __float2int_rz(float v) {
    return simt_to_int(truncf(v));
}
SIMT_INLINE int __float2int_rd(float v) {
    return simt_to_int(floorf(v));
}
SIMT_INLINE int __float2int_ru(float v) {
    return simt_to_int(ceilf(v));
}
SIMT_INLINE unsigned __float2uint_rn(float v) {
    return simt_to_unsigned(nearbyintf(v));
}
SIMT_INLINE unsigned __float2uint_rz(float v) {
    return simt_to_unsigned(truncf(v));
}
SIMT_INLINE float __int2float_rn(int v) {
    return (float)v;
}
SIMT_INLINE float __uint2float_rn(unsigned v) {
    return (float)v;
}

SIMT_INLINE int __popc(unsigned v) {
    return __builtin_popcount(v);
}
SIMT_INLINE int __popcll(unsigned long long v) {
    return __builtin_popcountll(v);
}
SIMT_INLINE int __clz(int v) {
    return v ? __builtin_clz((unsigned)v) : 32;
}
SIMT_INLINE int __clzll(long long v) {
    return v ? __builtin_clzll((unsigned long long)v) : 64;
}
SIMT_INLINE int __ffs(int v) {
    return __builtin_ffs(v);
}
SIMT_INLINE int __ffsll(long long v) {
    return __builtin_ffsll(v);
}
SIMT_INLINE unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= ((v >> i) & 1u) << (31 - i);
    return r;
}
SIMT_INLINE unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)(((uint64_t)a * b) >> 32);
}
SIMT_INLINE int __mulhi(int a, int b) {
    return (int)(((int64_t)a * b) >> 32);
}
SIMT_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
SIMT_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    uint64_t both = ((uint64_t)y << 32) | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = (s >> (4 * i)) & 15u, byte = (unsigned)(both >> (8 * (pick & 7u))) & 255u;
        if (pick & 8u) byte = byte & 128u ? 255u : 0u;
        r |= byte << (8 * i);
    }
    return r;
}
SIMT_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
    return (unsigned)(((((uint64_t)high << 32) | low) << (n & 31u)) >> 32);
}
SIMT_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
    return (unsigned)((((uint64_t)high << 32) | low) >> (n & 31u));
}

/* Cache hints. */
template <class T> T __ldg(const T *p) {
    return *p;
}
template <class T> T __ldca(const T *p) {
    return *p;
}
template <class T> T __ldcg(const T *p) {
    return *p;
}
template <class T> T __ldcs(const T *p) {
    return *p;
}
template <class T> T __ldlu(const T *p) {
    return *p;
}
template <class T> void __stcg(T *p, T v) {
    *p = v;
}
template <class T> void __stcs(T *p, T v) {
    *p = v;
}
template <class T> void __stwb(T *p, T v) {
    *p = v;
}
template <class T> void __stwt(T *p, T v) {
    *p = v;
}

using std::isfinite;
using std::isinf;
using std::isnan;

#endif
