/* Layout and precision: float <-> bf16, unpacked gradients, and what is asked of whole tensors: whether all
 * is finite, the sum of squares. Outputs are overwritten. */
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

/* ---- gradients of matrix products ---- */

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

/* ---- whole tensors ---- */

static __global__ void __launch_bounds__(THREADS)
    check_kernel(unsigned count, const float *__restrict__ x, int *nonfinite) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= count) return;
    float v[8];
    load_group(x, i, count, v);
    raise_flag(nonfinite, !all_finite8(v));
}

cudaError_t tn_launch_check(size_t count, const float *x, int *nonfinite, cudaStream_t stream) {
    if (too_large(count)) return cudaErrorInvalidValue;
    if (misaligned(x)) return cudaErrorMisalignedAddress;
    if (count == 0) return cudaSuccess;
    TN_LAUNCH(check_kernel, blocks_for(groups_of((unsigned)count)), THREADS, 0, stream, (unsigned)count, x,
              nonfinite);
    return cudaGetLastError();
}

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
