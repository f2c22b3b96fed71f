/* Shortcuts at a stage change: every stride-th pixel, plus c, with zeros appended as upper channels.
 *
 *   forward    y[n, h, w, k] = x[n, h * stride, w * stride, k] + c for k < in_channels, else 0
 *   backward   dx[n, h, w, k] = dy[n, h / stride, w / stride, k] where both divide, else 0
 *
 * Outputs are overwritten, nothing aliases. The gradient of c is the sum of dL/dy over what c reaches, which
 * backward leaves in parts, one of each block (merge.cu). A thread writes eight consecutive values. */
#include "kernels/device.cuh"

template <typename X, typename Y>
static __global__ void __launch_bounds__(THREADS)
    forward_kernel(tn_conv_shape s, unsigned count, const X *__restrict__ x, const float *c,
                   Y *__restrict__ y) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= count) return;
    const float term = value_or(c, 0.0f);
    const bool vector = s.in_channels % 8 == 0 && s.out_channels % 8 == 0;
    for (unsigned j = i; j < i + 8 && j < count; j++) {
        const int k = (int)j % s.out_channels, pixel = (int)j / s.out_channels;
        int w = pixel % s.out_width, h = pixel / s.out_width % s.out_height,
            n = pixel / s.out_width / s.out_height;
        const X *from =
            x + (((size_t)n * s.in_height + h * s.stride) * s.in_width + w * s.stride) * s.in_channels + k;
        if (vector) {
            float v[8] = {};
            if (k < s.in_channels) {
                load8(from, v);
#pragma unroll
                for (int m = 0; m < 8; m++) v[m] += term;
            }
            store8(y + i, v);
            return;
        }
        y[j] = from_float<Y>(k < s.in_channels ? to_float(*from) + term : 0.0f);
    }
}

template <typename Y, typename X>
static __global__ void __launch_bounds__(THREADS)
    backward_kernel(tn_conv_shape s, unsigned count, const Y *__restrict__ dy, X *__restrict__ dx,
                    double *sums) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    float sum = 0;
    const bool vector = s.in_channels % 8 == 0 && s.out_channels % 8 == 0;
    for (unsigned j = i; j < i + 8 && j < count; j++) {
        const int k = (int)j % s.in_channels, pixel = (int)j / s.in_channels;
        int w = pixel % s.in_width, h = pixel / s.in_width % s.in_height,
            n = pixel / s.in_width / s.in_height;
        bool read = h % s.stride == 0 && w % s.stride == 0;
        const Y *from =
            dy + (((size_t)n * s.out_height + h / s.stride) * s.out_width + w / s.stride) * s.out_channels +
            k;
        if (vector) {
            float v[8] = {};
            if (read) load8(from, v);
#pragma unroll
            for (int m = 0; m < 8; m++) sum += v[m];
            store8(dx + i, v);
            break;
        }
        const float v = read ? to_float(*from) : 0.0f;
        sum += v;
        dx[j] = from_float<X>(v);
    }
    if (!sums) return;
    const double total = block_sum((double)sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sums[gridDim.x + blockIdx.x] = total;
}

template <typename X, typename Y>
static void forward(const tn_conv_shape *s, const void *x, const float *c, void *y, cudaStream_t stream) {
    const unsigned count = (unsigned)out_elements(s);
    TN_LAUNCH((forward_kernel<X, Y>), blocks_for(groups_of(count)), THREADS, 0, stream, *s, count,
              static_cast<const X *>(x), c, static_cast<Y *>(y));
}

template <typename Y, typename X>
static void backward(const tn_conv_shape *s, const void *dy, void *dx, double *sums, cudaStream_t stream) {
    TN_LAUNCH((backward_kernel<Y, X>), (unsigned)tn_shortcut_sum_parts(s), THREADS, 0, stream, *s,
              (unsigned)in_elements(s), static_cast<const Y *>(dy), static_cast<X *>(dx), sums);
}

static bool bad_shape(const tn_conv_shape *s) {
    return bad_sizes(s) || s->out_channels < s->in_channels ||
           s->out_height != (s->in_height - 1) / s->stride + 1 ||
           s->out_width != (s->in_width - 1) / s->stride + 1;
}

cudaError_t tn_launch_shortcut_forward(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                       const float *c, tn_storage y_store, void *y, cudaStream_t stream) {
    if (bad_shape(shape)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(y)) return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK2(forward, x_store, y_store)(shape, x, c, y, stream);
    return cudaGetLastError();
}

int tn_shortcut_sum_parts(const tn_conv_shape *shape) {
    return (int)blocks_for(groups_of((unsigned)in_elements(shape)));
}

cudaError_t tn_launch_shortcut_backward(const tn_conv_shape *shape, tn_storage y_store, const void *dy,
                                        tn_storage x_store, void *dx, double *sums, cudaStream_t stream) {
    if (bad_shape(shape)) return cudaErrorInvalidValue;
    if (misaligned(dy) || misaligned(dx)) return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK2(backward, y_store, x_store)(shape, dy, dx, sums, stream);
    return cudaGetLastError();
}
