/* bfloat16 as in CUDA: conversions round to nearest even, arithmetic rounds after each operation. */
#ifndef SIMT_CUDA_BF16_H
#define SIMT_CUDA_BF16_H

#ifdef __cplusplus
#include "cuda_runtime.h"

typedef struct __nv_bfloat16_raw {
    unsigned short x;
} __nv_bfloat16_raw;

SIMT_INLINE unsigned short simt_bf16_bits(float f) {
    unsigned bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff; /* the device's NaN */
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
SIMT_INLINE float simt_bf16_value(unsigned short bits) {
    return __uint_as_float((unsigned)bits << 16);
}

struct alignas(2) __nv_bfloat16 {
    unsigned short __x;
    __nv_bfloat16() = default;
    __nv_bfloat16(float f) : __x(simt_bf16_bits(f)) {}
    __nv_bfloat16(double f) : __x(simt_bf16_bits((float)f)) {}
    __nv_bfloat16(int v) : __x(simt_bf16_bits((float)v)) {}
    __nv_bfloat16(unsigned v) : __x(simt_bf16_bits((float)v)) {}
    __nv_bfloat16(const __nv_bfloat16_raw &r) : __x(r.x) {}
    operator float() const {
        return simt_bf16_value(__x);
    }
    operator __nv_bfloat16_raw() const {
        return __nv_bfloat16_raw{__x};
    }
    __nv_bfloat16 &operator=(float f) {
        __x = simt_bf16_bits(f);
        return *this;
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) : x(a), y(b) {}
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

SIMT_INLINE __nv_bfloat16 __float2bfloat16(float f) {
    return __nv_bfloat16(f);
}
SIMT_INLINE __nv_bfloat16 __float2bfloat16_rn(float f) {
    return __nv_bfloat16(f);
}
SIMT_INLINE __nv_bfloat16 __double2bfloat16(double f) {
    return __nv_bfloat16((float)f);
}
SIMT_INLINE float __bfloat162float(__nv_bfloat16 v) {
    return simt_bf16_value(v.__x);
}
SIMT_INLINE unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) {
    return v.__x;
}
SIMT_INLINE __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
    return __nv_bfloat16(__nv_bfloat16_raw{v});
}
SIMT_INLINE __nv_bfloat16 __float2bfloat16_rz(float f) {
    return __ushort_as_bfloat16((unsigned short)(__float_as_uint(f) >> 16));
}
SIMT_INLINE __nv_bfloat162 __floats2bfloat162_rn(float a, float b) {
    return __nv_bfloat162(a, b);
}
SIMT_INLINE __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return __nv_bfloat162(v.x, v.y);
}
SIMT_INLINE __nv_bfloat162 __float2bfloat162_rn(float a) {
    return __nv_bfloat162(a, a);
}
SIMT_INLINE float2 __bfloat1622float2(__nv_bfloat162 v) {
    return make_float2(v.x, v.y);
}
SIMT_INLINE __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __nv_bfloat162(a, b);
}
SIMT_INLINE __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) {
    return __nv_bfloat162(a, a);
}
SIMT_INLINE __nv_bfloat162 make_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __nv_bfloat162(a, b);
}
SIMT_INLINE __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) {
    return v.x;
}
SIMT_INLINE __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) {
    return v.y;
}
SIMT_INLINE float __low2float(__nv_bfloat162 v) {
    return v.x;
}
SIMT_INLINE float __high2float(__nv_bfloat162 v) {
    return v.y;
}

#define SIMT_BF16_BINARY(name, op)                                                                           \
    SIMT_INLINE __nv_bfloat16 name(__nv_bfloat16 a, __nv_bfloat16 b) {                                       \
        return __nv_bfloat16((float)a op(float) b);                                                          \
    }                                                                                                        \
    SIMT_INLINE __nv_bfloat162 name##2(__nv_bfloat162 a, __nv_bfloat162 b) {                                 \
        return __nv_bfloat162(name(a.x, b.x), name(a.y, b.y));                                               \
    }
SIMT_BF16_BINARY(__hadd, +)
SIMT_BF16_BINARY(__hsub, -)
SIMT_BF16_BINARY(__hmul, *)
#undef SIMT_BF16_BINARY
SIMT_INLINE __nv_bfloat16 __hdiv(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __nv_bfloat16((float)a / (float)b);
}
SIMT_INLINE __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    return __nv_bfloat16(fmaf(a, b, c));
}
SIMT_INLINE __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
SIMT_INLINE __nv_bfloat16 __hneg(__nv_bfloat16 a) {
    return __ushort_as_bfloat16((unsigned short)(a.__x ^ 0x8000u));
}
SIMT_INLINE __nv_bfloat16 __habs(__nv_bfloat16 a) {
    return __ushort_as_bfloat16((unsigned short)(a.__x & 0x7fffu));
}
SIMT_INLINE __nv_bfloat16 __hmax(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __nv_bfloat16(fmaxf(a, b));
}
SIMT_INLINE __nv_bfloat16 __hmin(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __nv_bfloat16(fminf(a, b));
}
SIMT_INLINE __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __nv_bfloat162(__hmax(a.x, b.x), __hmax(a.y, b.y));
}
SIMT_INLINE __nv_bfloat162 __hmin2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return __nv_bfloat162(__hmin(a.x, b.x), __hmin(a.y, b.y));
}
SIMT_INLINE bool __hisnan(__nv_bfloat16 a) {
    return (a.__x & 0x7fffu) > 0x7f80u;
}
SIMT_INLINE bool __hisinf(__nv_bfloat16 a) {
    return (a.__x & 0x7fffu) == 0x7f80u;
}
SIMT_INLINE bool __hgt(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a > (float)b;
}
SIMT_INLINE bool __hge(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a >= (float)b;
}
SIMT_INLINE bool __hlt(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a < (float)b;
}
SIMT_INLINE bool __hle(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a <= (float)b;
}
SIMT_INLINE bool __heq(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a == (float)b;
}
SIMT_INLINE bool __hne(__nv_bfloat16 a, __nv_bfloat16 b) {
    return (float)a != (float)b;
}

SIMT_INLINE __nv_bfloat16 operator+(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hadd(a, b);
}
SIMT_INLINE __nv_bfloat16 operator-(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hsub(a, b);
}
SIMT_INLINE __nv_bfloat16 operator*(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hmul(a, b);
}
SIMT_INLINE __nv_bfloat16 operator/(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hdiv(a, b);
}
SIMT_INLINE __nv_bfloat16 operator-(__nv_bfloat16 a) {
    return __hneg(a);
}
SIMT_INLINE bool operator>(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hgt(a, b);
}
SIMT_INLINE bool operator<(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __hlt(a, b);
}

#endif
#endif
