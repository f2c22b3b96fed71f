/* im2col and its transpose, NHWC, any square kernel, stride and padding, for convolutions through a matrix
 * product.
 *
 * With W packed as TN_PACK_GEMM, [out][ld], the products are, row-major,
 *   forward            y[pixels][out]    = columns[pixels][ld] W^T
 *   backward data      columns           = dz[pixels][out] W,  then col2im
 *   backward weights   g[out][ld]        = dz^T columns,       then tn_launch_unpack_gradient
 * A 1x1 convolution of stride 1 needs no columns: x itself is the matrix.
 *
 * Outputs are overwritten, nothing aliases. A thread writes eight consecutive values: one vector where
 * channels and ld are multiples of 8, one by one otherwise. */
#include "kernels/device.cuh"

/* Where element i of the columns comes from in x, or -1 where it is zero. */
__device__ __forceinline__ int source(const tn_conv_shape &s, int ld, int i) {
    const int pixel = i / ld, k = i % ld, tap = k / s.in_channels, c = k % s.in_channels;
    const int image = pixel / s.out_width / s.out_height, oh = pixel / s.out_width % s.out_height;
    const int ow = pixel % s.out_width;
    const int h = oh * s.stride - s.padding + tap / s.kernel, w = ow * s.stride - s.padding + tap % s.kernel;
    if (tap >= s.kernel * s.kernel || h < 0 || w < 0 || h >= s.in_height || w >= s.in_width) return -1;
    return ((image * s.in_height + h) * s.in_width + w) * s.in_channels + c;
}

template <typename X, typename C>
static __global__ void __launch_bounds__(THREADS)
    im2col_kernel(tn_conv_shape s, unsigned count, int ld, const X *__restrict__ x, C *__restrict__ columns) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= count) return;
    if (s.in_channels % 8 == 0 && ld % 8 == 0) {
        const int from = source(s, ld, (int)i);
        float v[8] = {};
        if (from >= 0) load8(x + from, v);
        store8(columns + i, v);
        return;
    }
    for (unsigned j = i; j < i + 8 && j < count; j++) {
        const int from = source(s, ld, (int)j);
        columns[j] = from >= 0 ? from_float<C>(to_float(x[from])) : from_float<C>(0.0f);
    }
}

/* sum[WIDE] = elements [i, i + WIDE) of dx, WIDE channels of a pixel: over the columns made from them. */
template <int WIDE, typename C>
__device__ __forceinline__ void gather(const tn_conv_shape &s, int ld, const C *__restrict__ columns, int i,
                                       float *sum) {
    const int pixel = i / s.in_channels, c = i % s.in_channels;
    const int image = pixel / s.in_width / s.in_height, h = pixel / s.in_width % s.in_height,
              w = pixel % s.in_width;
    for (int tap = 0; tap < s.kernel * s.kernel; tap++) {
        int down = h + s.padding - tap / s.kernel, right = w + s.padding - tap % s.kernel;
        if (down < 0 || right < 0 || down % s.stride || right % s.stride) continue;
        int oh = down / s.stride, ow = right / s.stride;
        if (oh >= s.out_height || ow >= s.out_width) continue;
        const C *from =
            columns + (((size_t)image * s.out_height + oh) * s.out_width + ow) * ld + tap * s.in_channels + c;
        if (WIDE == 8) {
            float v[8];
            load8(from, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += v[j];
        } else {
            sum[0] += to_float(*from);
        }
    }
}

template <typename C, typename X>
static __global__ void __launch_bounds__(THREADS)
    col2im_kernel(tn_conv_shape s, unsigned count, int ld, const C *__restrict__ columns,
                  X *__restrict__ dx) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= count) return;
    if (s.in_channels % 8 == 0 && ld % 8 == 0) {
        float sum[8] = {};
        gather<8>(s, ld, columns, (int)i, sum);
        store8(dx + i, sum);
        return;
    }
    for (unsigned j = i; j < i + 8 && j < count; j++) {
        float sum = 0;
        gather<1>(s, ld, columns, (int)j, &sum);
        dx[j] = from_float<X>(sum);
    }
}

template <typename X, typename C>
static void im2col(const tn_conv_shape *s, const void *x, void *columns, int ld, cudaStream_t stream) {
    const unsigned count = (unsigned)(s->rows * s->out_height * s->out_width * ld);
    TN_LAUNCH((im2col_kernel<X, C>), blocks_for(groups_of(count)), THREADS, 0, stream, *s, count, ld,
              static_cast<const X *>(x), static_cast<C *>(columns));
}

template <typename C, typename X>
static void col2im(const tn_conv_shape *s, const void *columns, int ld, void *dx, cudaStream_t stream) {
    const unsigned count = (unsigned)in_elements(s);
    TN_LAUNCH((col2im_kernel<C, X>), blocks_for(groups_of(count)), THREADS, 0, stream, *s, count, ld,
              static_cast<const C *>(columns), static_cast<X *>(dx));
}

static bool bad_columns(const tn_conv_shape *s, int ld) {
    return bad_sizes(s) || s->kernel < 1 || s->padding < 0 || ld < s->kernel * s->kernel * s->in_channels ||
           too_large((size_t)s->rows * s->out_height * s->out_width, (size_t)ld);
}

cudaError_t tn_launch_im2col(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                             tn_storage columns_store, void *columns, int ld, cudaStream_t stream) {
    if (bad_columns(shape, ld)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(columns)) return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK2(im2col, x_store, columns_store)(shape, x, columns, ld, stream);
    return cudaGetLastError();
}

cudaError_t tn_launch_col2im(const tn_conv_shape *shape, tn_storage columns_store, const void *columns,
                             int ld, tn_storage x_store, void *dx, cudaStream_t stream) {
    if (bad_columns(shape, ld)) return cudaErrorInvalidValue;
    if (misaligned(columns) || misaligned(dx)) return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK2(col2im, columns_store, x_store)(shape, columns, ld, dx, stream);
    return cudaGetLastError();
}
