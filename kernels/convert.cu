/* Layout and precision: float <-> bf16, packed weights, unpacked gradients, and the sum of squares of a
 * tensor.
 *
 * Outputs are overwritten; only convert and square_sum see activations. Packing runs over the elements of
 * what is written, for all tensors of a network in one launch. */
#include <mma.h>

#include "kernels/device.cuh"

template <typename A, typename B>
static __global__ void __launch_bounds__(THREADS)
    convert_kernel(unsigned count, const A *__restrict__ from, B *__restrict__ to) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= count) return;
    float v[8];
    load_group(from, i, count, v);
    store_group(to, i, count, v);
}

template <typename A, typename B>
static void convert(unsigned count, const void *from, void *to, cudaStream_t stream) {
    TN_LAUNCH((convert_kernel<A, B>), blocks_for(groups_of(count)), THREADS, 0, stream, count,
              static_cast<const A *>(from), static_cast<B *>(to));
}

cudaError_t tn_launch_convert(size_t count, tn_storage from_store, const void *from, tn_storage to_store,
                              void *to, cudaStream_t stream) {
    if (too_large(count)) return cudaErrorInvalidValue;
    if (misaligned(from) || misaligned(to)) return cudaErrorMisalignedAddress;
    if (count == 0) return cudaSuccess;
    TN_PICK2(convert, from_store, to_store)((unsigned)count, from, to, stream);
    return cudaGetLastError();
}

/* ---- packing ---- */

size_t tn_pack_count(const tn_pack_item *item) {
    return item->layout == TN_PACK_GEMM ? (size_t)item->out * item->ld
                                        : (size_t)item->out * item->in * item->taps;
}

/* Element i of a packed tensor, with s and identity. */
__device__ __forceinline__ float packed_value(const tn_pack_item &p, float s, unsigned i) {
    unsigned out, in, tap;
    if (p.layout == TN_PACK_CONV_FORWARD) {
        out = i % p.out;
        tap = i / p.out % p.taps;
        in = i / p.out / p.taps;
    } else if (p.layout == TN_PACK_CONV_BACKWARD) {
        in = i % p.in;
        tap = p.taps - 1 - i / p.in % p.taps;
        out = i / p.in / p.taps;
    } else if (p.layout == TN_PACK_TAPS_FORWARD) {
        out = i % p.out;
        in = i / p.out % p.in;
        tap = i / p.out / p.in;
    } else if (p.layout == TN_PACK_TAPS_BACKWARD) {
        in = i % p.in;
        out = i / p.in % p.out;
        tap = p.taps - 1 - i / p.in / p.out;
    } else if (p.layout == TN_PACK_STAGE_FORWARD) {
        out = i % p.out;
        tap = i / p.out / 16 % p.taps;
        in = i / p.out / 16 / p.taps * 16 + i / p.out % 16;
    } else if (p.layout == TN_PACK_STAGE_BACKWARD) {
        in = i % p.in;
        tap = p.taps - 1 - i / p.in / 16 % p.taps;
        out = i / p.in / 16 / p.taps * 16 + i / p.in % 16;
    } else {
        out = i / p.ld;
        tap = i % p.ld / p.in;
        in = i % p.ld % p.in;
        if (tap >= (unsigned)p.taps) return 0.0f;
    }
    const float v = s * p.from[((size_t)out * p.in + in) * p.taps + tap];
    return p.identity && out == in ? v + 1.0f : v;
}

static __global__ void __launch_bounds__(THREADS)
    pack_kernel(const tn_pack_item *__restrict__ items, const tn_piece *__restrict__ pieces) {
    const tn_piece piece = pieces[blockIdx.x];
    const tn_pack_item item = items[piece.item];
    const bool gemm = item.layout == TN_PACK_GEMM,
               taps = item.layout == TN_PACK_TAPS_FORWARD || item.layout == TN_PACK_TAPS_BACKWARD;
    const unsigned count = gemm ? item.out * item.ld : item.out * item.in * item.taps,
                   first = (unsigned)piece.first;
    const unsigned last = min(first + TN_PIECE, count);
    const float s = value_or(item.s, 1.0f);
    bool bad = false;
    for (unsigned i = first + threadIdx.x; i < last; i += THREADS) {
        const float v = packed_value(item, s, i);
        bad = bad || !is_finite(v);
        if (item.store == TN_STORE_BF16)
            static_cast<bf16 *>(item.to)[i] = from_float<bf16>(v);
        else
            static_cast<float *>(item.to)[i] = taps ? nvcuda::wmma::__float_to_tf32(v) : v;
    }
    raise_flag(item.nonfinite, bad);
}

cudaError_t tn_launch_pack(const tn_pack_item *items, int piece_count, const tn_piece *pieces,
                           cudaStream_t stream) {
    if (piece_count < 0) return cudaErrorInvalidValue;
    if (piece_count == 0) return cudaSuccess;
    TN_LAUNCH(pack_kernel, (unsigned)piece_count, THREADS, 0, stream, items, pieces);
    return cudaGetLastError();
}

static __global__ void __launch_bounds__(THREADS)
    unpack_kernel(unsigned count, unsigned in, unsigned taps, unsigned ld, const float *__restrict__ g,
                  float *__restrict__ dw) {
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const unsigned tap = i % taps, k = i / taps % in, out = i / taps / in;
    dw[i] = g[(size_t)out * ld + tap * in + k];
}

cudaError_t tn_launch_unpack_gradient(int out, int in, int taps, int ld, const float *g, float *dw,
                                      cudaStream_t stream) {
    if (out < 1 || in < 1 || taps < 1 || ld < in * taps || too_large((size_t)out, (size_t)ld))
        return cudaErrorInvalidValue;
    const unsigned count = (unsigned)(out * in * taps);
    TN_LAUNCH(unpack_kernel, blocks_for(count), THREADS, 0, stream, count, (unsigned)in, (unsigned)taps,
              (unsigned)ld, g, dw);
    return cudaGetLastError();
}

/* ---- sum of squares ---- */

#define SQUARE_BLOCKS (TN_SUM_WORKSPACE / (int)sizeof(double))

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    square_kernel(unsigned count, const T *__restrict__ x, double *__restrict__ partial, int *nonfinite) {
    const unsigned groups = (count + 7) / 8;
    double sum = 0;
    bool bad = false;
    for (unsigned group = blockIdx.x * THREADS + threadIdx.x; group < groups; group += gridDim.x * THREADS) {
        float v[8], square = 0;
        load_group(x, group * 8, count, v);
        bad = bad || !all_finite8(v);
#pragma unroll
        for (int j = 0; j < 8; j++) square += v[j] * v[j];
        sum += (double)square;
    }
    raise_flag(nonfinite, bad);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(THREADS)
    add_blocks(int blocks, const double *__restrict__ partial, double *sum) {
    double total = 0;
    for (int i = threadIdx.x; i < blocks; i += THREADS) total += partial[i];
    total = block_sum(total);
    if (threadIdx.x == 0) *sum = total;
}

template <typename T>
static void square(unsigned count, unsigned blocks, const void *x, double *partial, int *nonfinite,
                   cudaStream_t stream) {
    TN_LAUNCH(square_kernel<T>, blocks, THREADS, 0, stream, count, static_cast<const T *>(x), partial,
              nonfinite);
}

cudaError_t tn_launch_square_sum(size_t count, tn_storage store, const void *x, void *workspace, double *sum,
                                 int *nonfinite, cudaStream_t stream) {
    if (count == 0 || too_large(count)) return cudaErrorInvalidValue;
    if (misaligned(x)) return cudaErrorMisalignedAddress;
    unsigned blocks = blocks_for(groups_of((unsigned)count));
    if (blocks > SQUARE_BLOCKS) blocks = SQUARE_BLOCKS;
    double *partial = static_cast<double *>(workspace);
    TN_PICK1(square, store)((unsigned)count, blocks, x, partial, nonfinite, stream);
    TN_LAUNCH(add_blocks, 1, THREADS, 0, stream, (int)blocks, partial, sum);
    return cudaGetLastError();
}
