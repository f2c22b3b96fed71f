/* What all kernels share: storage types, groups of eight elements, flags, and sums in a fixed order.
 *
 * Elementwise kernels give every thread eight consecutive elements: one 32- or 16-byte access for each tensor
 * and one byte of the mask. */
#ifndef TN_KERNELS_DEVICE_CUH
#define TN_KERNELS_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <float.h>

#include "kernels/kernels.h"
#include "kernels/launch.h"

typedef __nv_bfloat16 bf16;

#define THREADS 256 /* of a block, where nothing else is said */

__device__ __forceinline__ float to_float(float v) {
    return v;
}

__device__ __forceinline__ float to_float(bf16 v) {
    return __bfloat162float(v);
}

template <typename T> __device__ __forceinline__ T from_float(float v);

template <> __device__ __forceinline__ float from_float<float>(float v) {
    return v;
}

template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) {
    return __float2bfloat16(v);
}

__device__ __forceinline__ bool is_finite(float v) {
    return fabsf(v) <= FLT_MAX;
}

/* Writers may race for the flag, always with the same value; the atomic makes that well defined. */
__device__ __forceinline__ void raise_flag(int *flag, bool bad) {
    if (bad && flag) atomicExch(flag, 1);
}

__device__ __forceinline__ float value_or(const float *p, float otherwise) {
    return p ? *p : otherwise;
}

/* ---- vectors; pointers aligned to the vector's size ---- */

__device__ __forceinline__ void load4(const float *p, float v[4]) {
    float4 a = *reinterpret_cast<const float4 *>(p);
    v[0] = a.x;
    v[1] = a.y;
    v[2] = a.z;
    v[3] = a.w;
}

/* Two bf16 in a word, the first in the low half. */
__device__ __forceinline__ void unpack2(unsigned word, float v[2]) {
    v[0] = __uint_as_float(word << 16);
    v[1] = __uint_as_float(word & 0xffff0000u);
}

__device__ __forceinline__ unsigned pack2(float a, float b) {
    return (unsigned)__bfloat16_as_ushort(__float2bfloat16(a)) |
           (unsigned)__bfloat16_as_ushort(__float2bfloat16(b)) << 16;
}

__device__ __forceinline__ void load4(const bf16 *p, float v[4]) {
    uint2 a = *reinterpret_cast<const uint2 *>(p);
    unpack2(a.x, v);
    unpack2(a.y, v + 2);
}

__device__ __forceinline__ void load8(const float *p, float v[8]) {
    load4(p, v);
    load4(p + 4, v + 4);
}

__device__ __forceinline__ void load8(const bf16 *p, float v[8]) {
    uint4 a = *reinterpret_cast<const uint4 *>(p);
    unpack2(a.x, v);
    unpack2(a.y, v + 2);
    unpack2(a.z, v + 4);
    unpack2(a.w, v + 6);
}

__device__ __forceinline__ void store8(float *p, const float v[8]) {
    reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

__device__ __forceinline__ void store8(bf16 *p, const float v[8]) {
    *reinterpret_cast<uint4 *>(p) =
        make_uint4(pack2(v[0], v[1]), pack2(v[2], v[3]), pack2(v[4], v[5]), pack2(v[6], v[7]));
}

/* Elements [first, first + 8) of an array of `count`, zeros beyond its end. */
template <typename T>
__device__ __forceinline__ void load_group(const T *p, unsigned first, unsigned count, float v[8]) {
    if (first + 8 <= count) {
        load8(p + first, v);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = first + j < count ? to_float(p[first + j]) : 0.0f;
}

template <typename T>
__device__ __forceinline__ void store_group(T *p, unsigned first, unsigned count, const float v[8]) {
    if (first + 8 <= count) {
        store8(p + first, v);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (first + j < count) p[first + j] = from_float<T>(v[j]);
}

/* v = sum of the parts. */
template <typename T>
__device__ __forceinline__ void load_parts(const tn_parts &parts, unsigned first, unsigned count,
                                           float v[8]) {
    load_group(static_cast<const T *>(parts.part[0]), first, count, v);
#pragma unroll /* an index that is not constant would move the parts to local memory */
    for (int i = 1; i < TN_KERNEL_PARTS; i++) {
        if (i >= parts.count) break;
        float w[8];
        load_group(static_cast<const T *>(parts.part[i]), first, count, w);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += w[j];
    }
}

/* Byte `group` of a mask holds the bits of elements [8 * group, 8 * group + 8): devices are little-endian. */
__device__ __forceinline__ unsigned load_mask(const uint32_t *mask, unsigned group) {
    return mask ? reinterpret_cast<const uint8_t *>(mask)[group] : 0xffu;
}

__device__ __forceinline__ void store_mask(uint32_t *mask, size_t group, unsigned bits) {
    reinterpret_cast<uint8_t *>(mask)[group] = (uint8_t)bits;
}

/* ---- the activation ---- */

/* z becomes act(z) + d for eight elements; returns their mask bits. NaN stays NaN. */
__device__ __forceinline__ unsigned activate8(float z[8], bool relu, float d) {
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (z[j] > 0.0f) bits |= 1u << j;
        if (relu && z[j] < 0.0f) z[j] = 0.0f;
        z[j] += d;
    }
    return bits;
}

__device__ __forceinline__ bool all_finite8(const float v[8]) {
    bool finite = true;
#pragma unroll
    for (int j = 0; j < 8; j++) finite = finite && is_finite(v[j]);
    return finite;
}

/* What follows an operator, for eight channels from `channel` on of one pixel, whose first stands at `at` of
 * y. Returns whether z is finite. */
template <typename Y> struct epilogue_of {
    const tn_epilogue &e;
    const float factor, c, d;

    __device__ __forceinline__ explicit epilogue_of(const tn_epilogue &from)
        : e(from), factor(value_or(from.s, 1.0f)), c(value_or(from.c, 0.0f)), d(value_or(from.d, 0.0f)) {}

    __device__ __forceinline__ bool finish8(float z[8], int channel, size_t at, Y *y) const {
        const Y *r = static_cast<const Y *>(e.r);
#pragma unroll
        for (int k = 0; k < 8; k++) z[k] = factor * z[k] + c + (e.bias ? e.bias[channel + k] : 0.0f);
        if (r) {
            float v[8];
            load8(r + at, v);
#pragma unroll
            for (int k = 0; k < 8; k++) z[k] += v[k];
        }
        const bool finite = all_finite8(z);
        const unsigned bits = activate8(z, e.relu != 0, d);
        if (e.mask) store_mask(e.mask, at / 8, bits);
        store8(y + at, z);
        return finite;
    }
};

/* ---- sums ---- */

__device__ __forceinline__ double warp_sum(double v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(0xffffffffu, v, offset);
    return v;
}

/* Eight sums over the warp at once: lane l returns that of v[l / 4]. v is scratch. */
__device__ __forceinline__ float warp_sum8(float v[8]) {
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
        const bool upper = (threadIdx.x & (4 * half)) != 0;
#pragma unroll
        for (int j = 0; j < half; j++) {
            const float mine = upper ? v[j + half] : v[j], other = upper ? v[j] : v[j + half];
            v[j] = mine + __shfl_xor_sync(0xffffffffu, other, 4 * half);
        }
    }
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], 2);
    return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 1);
}

/* The sum of v over a block of WARPS warps, in thread 0; all threads must call it. */
template <int WARPS = THREADS / 32> __device__ __forceinline__ double block_sum(double v) {
    __shared__ double warps[WARPS];
    v = warp_sum(v);
    __syncthreads(); /* the last call may still be reading */
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int i = 1; i < WARPS; i++) v += warps[i];
    return v;
}

/* ---- between blocks ---- */

/* Whether this is the last of `blocks` blocks to come here, which then sees what the others wrote before (and
 * reads it with __ldcg). *arrived is 0 before the launch, and again behind the last; all threads must call
 * it. */
__device__ __forceinline__ bool last_to_arrive(unsigned *arrived, unsigned blocks) {
    __threadfence();
    __syncthreads();
    const bool last = threadIdx.x == 0 && atomicInc(arrived, blocks - 1) == blocks - 1;
    const bool chosen = __syncthreads_or(last) != 0;
    __threadfence();
    return chosen;
}

/* ---- host ---- */

/* Tensors have fewer than 2^31 elements, so that kernels can divide indices in 32 bits. */
static inline bool too_large(size_t a, size_t b = 1) {
    return b != 0 && a > (size_t)INT32_MAX / b;
}

/* Blocks of THREADS threads for `count` threads. */
static inline unsigned blocks_for(unsigned count) {
    return (count + THREADS - 1) / THREADS;
}

static inline unsigned groups_of(unsigned count) {
    return (count + 7) / 8;
}

static inline size_t in_elements(const tn_conv_shape *s) {
    return (size_t)s->rows * (size_t)s->in_height * (size_t)s->in_width * (size_t)s->in_channels;
}

static inline size_t out_elements(const tn_conv_shape *s) {
    return (size_t)s->rows * (size_t)s->out_height * (size_t)s->out_width * (size_t)s->out_channels;
}

/* Sizes that no kernel takes. */
static inline bool bad_sizes(const tn_conv_shape *s) {
    return s->rows < 0 || s->in_height < 1 || s->in_width < 1 || s->in_channels < 1 || s->out_height < 1 ||
           s->out_width < 1 || s->out_channels < 1 || s->stride < 1 || too_large(in_elements(s)) ||
           too_large(out_elements(s));
}

/* What the direct convolution does not take. */
static inline bool bad_conv3x3(const tn_conv_shape *s) {
    return bad_sizes(s) || s->kernel != 3 || s->padding != 1 || s->stride > 2 ||
           s->out_height != (s->in_height - 1) / s->stride + 1 ||
           s->out_width != (s->in_width - 1) / s->stride + 1;
}

static inline bool misaligned(const void *p) {
    return reinterpret_cast<uintptr_t>(p) % 16 != 0;
}

static inline bool misaligned(const tn_parts &parts) {
    bool bad = false;
    for (int i = 0; i < parts.count; i++) bad = bad || misaligned(parts.part[i]);
    return bad;
}

/* function<X, Y> for two storages, function<T> for one. */
#define TN_PICK2(function, x, y)                                                                             \
    ((x) == TN_STORE_F32 ? ((y) == TN_STORE_F32 ? function<float, float> : function<float, bf16>)            \
                         : ((y) == TN_STORE_F32 ? function<bf16, float> : function<bf16, bf16>))
#define TN_PICK1(function, x) ((x) == TN_STORE_F32 ? function<float> : function<bf16>)

#endif
