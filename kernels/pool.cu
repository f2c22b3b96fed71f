/* Max pool and global average pool, NHWC.
 *
 * - maxpool: y = the window's first largest value, or its last NaN. Forward notes the winner's place in the
 *   window, one byte an output, and backward gathers: an input pixel asks the windows that contain it.
 * - avgpool: y[n][c] = mean over pixels of x[n][.][c], + d
 *
 * Outputs are overwritten, nothing aliases. */
#include "kernels/device.cuh"

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    maxpool_forward_kernel(tn_conv_shape s, unsigned count, const T *__restrict__ x, T *__restrict__ y,
                           uint8_t *__restrict__ winner) {
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const int c = (int)i % s.out_channels, pixel = (int)i / s.out_channels;
    const int ow = pixel % s.out_width, oh = pixel / s.out_width % s.out_height;
    const T *image =
        x + (size_t)(pixel / s.out_width / s.out_height) * s.in_height * s.in_width * s.in_channels + c;
    float best = 0.0f;
    int place = -1;
    for (int tap = 0; tap < s.kernel * s.kernel; tap++) {
        int h = oh * s.stride - s.padding + tap / s.kernel, w = ow * s.stride - s.padding + tap % s.kernel;
        if (h < 0 || w < 0 || h >= s.in_height || w >= s.in_width) continue;
        float v = to_float(image[((size_t)h * s.in_width + w) * s.in_channels]);
        if (place < 0 || v > best || v != v) {
            best = v;
            place = tap;
        }
    }
    y[i] = from_float<T>(best);
    if (winner) winner[i] = (uint8_t)place;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    maxpool_backward_kernel(tn_conv_shape s, unsigned count, const T *__restrict__ dy,
                            const uint8_t *__restrict__ winner, T *__restrict__ dx) {
    const unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    const int c = (int)i % s.in_channels, pixel = (int)i / s.in_channels;
    const int w = pixel % s.in_width + s.padding, h = pixel / s.in_width % s.in_height + s.padding;
    const size_t image =
        (size_t)(pixel / s.in_width / s.in_height) * s.out_height * s.out_width * s.out_channels + c;
    /* Windows whose rows contain h start at oh * stride in (h - kernel, h]. */
    const int oh0 = h < s.kernel ? 0 : (h - s.kernel) / s.stride + 1,
              ow0 = w < s.kernel ? 0 : (w - s.kernel) / s.stride + 1;
    float sum = 0;
    for (int oh = oh0; oh * s.stride <= h && oh < s.out_height; oh++)
        for (int ow = ow0; ow * s.stride <= w && ow < s.out_width; ow++) {
            size_t at = image + ((size_t)oh * s.out_width + ow) * s.out_channels;
            if (winner[at] == (h - oh * s.stride) * s.kernel + w - ow * s.stride) sum += to_float(dy[at]);
        }
    dx[i] = from_float<T>(sum);
}

template <typename T>
static void maxpool_forward(const tn_conv_shape *s, const void *x, void *y, uint8_t *winner,
                            cudaStream_t stream) {
    const unsigned count = (unsigned)out_elements(s);
    TN_LAUNCH(maxpool_forward_kernel<T>, blocks_for(count), THREADS, 0, stream, *s, count,
              static_cast<const T *>(x), static_cast<T *>(y), winner);
}

template <typename T>
static void maxpool_backward(const tn_conv_shape *s, const void *dy, const uint8_t *winner, void *dx,
                             cudaStream_t stream) {
    const unsigned count = (unsigned)in_elements(s);
    TN_LAUNCH(maxpool_backward_kernel<T>, blocks_for(count), THREADS, 0, stream, *s, count,
              static_cast<const T *>(dy), winner, static_cast<T *>(dx));
}

static bool bad_shape(const tn_conv_shape *s) {
    return bad_sizes(s) || s->kernel < 1 || s->kernel > 15 || s->padding < 0 || s->padding >= s->kernel ||
           s->in_channels != s->out_channels || s->in_height + 2 * s->padding < s->kernel ||
           s->in_width + 2 * s->padding < s->kernel ||
           s->out_height != (s->in_height + 2 * s->padding - s->kernel) / s->stride + 1 ||
           s->out_width != (s->in_width + 2 * s->padding - s->kernel) / s->stride + 1;
}

cudaError_t tn_launch_maxpool_forward(const tn_conv_shape *shape, tn_storage store, const void *x, void *y,
                                      uint8_t *winner, cudaStream_t stream) {
    if (bad_shape(shape)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK1(maxpool_forward, store)(shape, x, y, winner, stream);
    return cudaGetLastError();
}

cudaError_t tn_launch_maxpool_backward(const tn_conv_shape *shape, tn_storage store, const void *dy,
                                       const uint8_t *winner, void *dx, cudaStream_t stream) {
    if (bad_shape(shape)) return cudaErrorInvalidValue;
    if (shape->rows == 0) return cudaSuccess;
    TN_PICK1(maxpool_backward, store)(shape, dy, winner, dx, stream);
    return cudaGetLastError();
}

/* ---- average over all pixels ---- */

/* A block for 32 channels of an image; 8 threads each add every eighth pixel, then their sums are added in
 * order. */
template <typename X, typename Y>
static __global__ void __launch_bounds__(THREADS)
    avgpool_forward_kernel(int pixels, int channels, const X *__restrict__ x, const float *d,
                           Y *__restrict__ y, int *nonfinite) {
    __shared__ float parts[8][32];
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, channel = blockIdx.y * 32 + lane;
    const X *image = x + (size_t)blockIdx.x * pixels * channels;
    float sum = 0;
    if (channel < channels)
        for (int p = part; p < pixels; p += 8) sum += to_float(image[(size_t)p * channels + channel]);
    parts[part][lane] = sum;
    __syncthreads();
    if (part || channel >= channels) return;
#pragma unroll
    for (int k = 1; k < 8; k++) sum += parts[k][lane];
    sum = sum / (float)pixels + value_or(d, 0.0f);
    raise_flag(nonfinite, !is_finite(sum));
    y[(size_t)blockIdx.x * channels + channel] = from_float<Y>(sum);
}

template <typename Y, typename X>
static __global__ void __launch_bounds__(THREADS)
    avgpool_backward_kernel(unsigned count, unsigned pixels, unsigned channels, const Y *__restrict__ dy,
                            X *__restrict__ dx) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= count) return;
    const float factor = 1.0f / (float)pixels;
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const unsigned k = i + j < count ? i + j : i, row = k / channels / pixels;
        v[j] = factor * to_float(dy[row * channels + k % channels]);
    }
    store_group(dx, i, count, v);
}

template <typename X, typename Y>
static void avgpool_forward(int rows, int pixels, int channels, const void *x, const float *d, void *y,
                            int *nonfinite, cudaStream_t stream) {
    dim3 grid((unsigned)rows, (unsigned)((channels + 31) / 32));
    TN_LAUNCH((avgpool_forward_kernel<X, Y>), grid, THREADS, 0, stream, pixels, channels,
              static_cast<const X *>(x), d, static_cast<Y *>(y), nonfinite);
}

template <typename Y, typename X>
static void avgpool_backward(int rows, int pixels, int channels, const void *dy, void *dx,
                             cudaStream_t stream) {
    const unsigned count = (unsigned)(rows * pixels * channels);
    TN_LAUNCH((avgpool_backward_kernel<Y, X>), blocks_for(groups_of(count)), THREADS, 0, stream, count,
              (unsigned)pixels, (unsigned)channels, static_cast<const Y *>(dy), static_cast<X *>(dx));
}

static bool bad_average(int rows, int pixels, int channels) {
    return rows < 0 || pixels < 1 || channels < 1 || too_large((size_t)rows * pixels, (size_t)channels);
}

cudaError_t tn_launch_avgpool_forward(int rows, int pixels, int channels, tn_storage x_store, const void *x,
                                      const float *d, tn_storage y_store, void *y, int *nonfinite,
                                      cudaStream_t stream) {
    if (bad_average(rows, pixels, channels)) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    TN_PICK2(avgpool_forward, x_store, y_store)(rows, pixels, channels, x, d, y, nonfinite, stream);
    return cudaGetLastError();
}

cudaError_t tn_launch_avgpool_backward(int rows, int pixels, int channels, tn_storage y_store, const void *dy,
                                       tn_storage x_store, void *dx, cudaStream_t stream) {
    if (bad_average(rows, pixels, channels)) return cudaErrorInvalidValue;
    if (misaligned(dx)) return cudaErrorMisalignedAddress;
    if (rows == 0) return cudaSuccess;
    TN_PICK2(avgpool_backward, y_store, x_store)(rows, pixels, channels, dy, dx, stream);
    return cudaGetLastError();
}
