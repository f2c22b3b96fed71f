/* Batch normalisation over [pixels][channels], in steps between which sums may be added over ranks.
 *
 *   statistics   moments: sum of x, sum of x^2                   (two kernels)
 *   finish       moments -> mean, 1/sqrt(var + eps), factor, shift; running mean and variance
 *   load         the same vectors from running mean and variance
 *   apply        y = act((x - mean) * factor + shift + r), mask
 *   reduce       dz = mask * sum of parts; moments: sum of dz, sum of dz (x - mean)   (two kernels)
 *   gradients    moments -> dgamma, dbeta, ds, slopes
 *   backward     dx = factor * (dz - mean(dz) - xhat mean(dz xhat))
 *
 * Outputs are overwritten, except the running values. y may be x (same storage) or r, dz one of the parts, dx
 * dz or x. Sums: a thread adds RANGE / rows values of one channel in float, of x less the channel's first
 * value, so that a large mean costs no digits; everything after that is in double, in a fixed order. */
#include "kernels/device.cuh"

#define EPSILON  1e-5
#define MOMENTUM 0.1
#define RANGE    512 /* pixels that a block sums */

/* Channels side by side in a block, 8, 16 or 32; the block's other threads take further pixels. */
static unsigned lanes_of(int channels) {
    return channels <= 8 ? 8 : channels <= 16 ? 16 : 32;
}

static unsigned ranges_of(size_t pixels) {
    return (unsigned)((pixels + RANGE - 1) / RANGE);
}

size_t tn_norm_workspace(size_t pixels, int channels) {
    return (size_t)ranges_of(pixels) * 2 * (size_t)channels * sizeof(double);
}

/* Adds a and b of all threads with the same lane, pixel row after pixel row; the result is in row 0. */
__device__ __forceinline__ void add_rows(unsigned lanes, double *a, double *b) {
    __shared__ double sums[2][THREADS];
    sums[0][threadIdx.x] = *a;
    sums[1][threadIdx.x] = *b;
    __syncthreads();
    if (threadIdx.x >= lanes) return;
    for (unsigned i = threadIdx.x + lanes; i < THREADS; i += lanes) {
        *a += sums[0][i];
        *b += sums[1][i];
    }
}

/* partial[range][2][channels] */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    statistics_kernel(unsigned pixels, unsigned channels, unsigned lanes, const T *__restrict__ x,
                      double *__restrict__ partial) {
    const unsigned channel = blockIdx.y * lanes + threadIdx.x % lanes;
    const unsigned first = blockIdx.x * RANGE, last = min(first + RANGE, pixels);
    double sum = 0, square = 0;
    if (channel < channels) {
        const float pivot = to_float(x[channel]);
        float s = 0, q = 0, n = 0;
        for (unsigned p = first + threadIdx.x / lanes; p < last; p += THREADS / lanes) {
            float v = to_float(x[(size_t)p * channels + channel]) - pivot;
            s += v;
            q += v * v;
            n += 1.0f;
        }
        sum = (double)s + (double)n * (double)pivot;
        square = (double)q + (double)pivot * (2.0 * (double)s + (double)n * (double)pivot);
    }
    add_rows(lanes, &sum, &square);
    if (threadIdx.x >= lanes || channel >= channels) return;
    partial[((size_t)blockIdx.x * 2) * channels + channel] = sum;
    partial[((size_t)blockIdx.x * 2 + 1) * channels + channel] = square;
}

/* moments[2][channels] = sums over ranges. A block for each of 32 columns of the 2 * channels; 8 threads a
 * column. */
static __global__ void __launch_bounds__(THREADS)
    merge_kernel(unsigned ranges, unsigned columns, const double *__restrict__ partial,
                 double *__restrict__ moments) {
    __shared__ double sums[THREADS];
    const unsigned column = blockIdx.x * 32 + threadIdx.x % 32;
    double sum = 0;
    if (column < columns)
        for (unsigned i = threadIdx.x / 32; i < ranges; i += 8) sum += partial[(size_t)i * columns + column];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= 32 || column >= columns) return;
    for (unsigned i = threadIdx.x + 32; i < THREADS; i += 32) sum += sums[i];
    moments[column] = sum;
}

static dim3 range_grid(size_t pixels, int channels) {
    unsigned lanes = lanes_of(channels);
    return dim3(ranges_of(pixels), ((unsigned)channels + lanes - 1) / lanes);
}

static void launch_merge(size_t pixels, int channels, const double *partial, double *moments,
                         cudaStream_t stream) {
    unsigned columns = 2 * (unsigned)channels;
    TN_LAUNCH(merge_kernel, (columns + 31) / 32, THREADS, 0, stream, ranges_of(pixels), columns, partial,
              moments);
}

template <typename T>
static void statistics(size_t pixels, int channels, const void *x, double *partial, cudaStream_t stream) {
    TN_LAUNCH(statistics_kernel<T>, range_grid(pixels, channels), THREADS, 0, stream, (unsigned)pixels,
              (unsigned)channels, lanes_of(channels), static_cast<const T *>(x), partial);
}

static bool bad_size(size_t pixels, int channels) {
    return pixels < 1 || channels < 1 || too_large(pixels, (size_t)channels);
}

cudaError_t tn_launch_norm_statistics(size_t pixels, int channels, tn_storage store, const void *x,
                                      void *workspace, double *moments, cudaStream_t stream) {
    if (bad_size(pixels, channels)) return cudaErrorInvalidValue;
    double *partial = static_cast<double *>(workspace);
    TN_PICK1(statistics, store)(pixels, channels, x, partial, stream);
    launch_merge(pixels, channels, partial, moments, stream);
    return cudaGetLastError();
}

/* ---- vectors ---- */

__device__ __forceinline__ void set_vectors(tn_norm_vectors v, int c, double mean, double variance,
                                            const float *gamma, const float *beta, double s) {
    const double inv_std = 1.0 / sqrt(variance + EPSILON);
    v.mean[c] = (float)mean;
    v.inv_std[c] = (float)inv_std;
    v.factor[c] = (float)(s * (double)gamma[c] * inv_std);
    v.shift[c] = (float)(s * (double)beta[c]);
}

static __global__ void __launch_bounds__(THREADS)
    finish_kernel(double count, int channels, const double *moments, const float *gamma, const float *beta,
                  const float *s, float *running_mean, float *running_var, tn_norm_vectors vectors,
                  int *nonfinite) {
    const int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    const double mean = moments[c] / count;
    double variance = moments[channels + c] / count - mean * mean;
    const bool finite = is_finite((float)mean) && is_finite((float)variance);
    raise_flag(nonfinite, !finite);
    if (variance < 0) variance = 0;
    if (finite) {
        double unbiased = count > 1 ? variance * count / (count - 1) : variance;
        running_mean[c] = (float)((1 - MOMENTUM) * (double)running_mean[c] + MOMENTUM * mean);
        running_var[c] = (float)((1 - MOMENTUM) * (double)running_var[c] + MOMENTUM * unbiased);
    }
    set_vectors(vectors, c, mean, variance, gamma, beta, (double)value_or(s, 1.0f));
}

static __global__ void __launch_bounds__(THREADS)
    load_kernel(int channels, const float *gamma, const float *beta, const float *s,
                const float *running_mean, const float *running_var, tn_norm_vectors vectors) {
    const int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= channels) return;
    set_vectors(vectors, c, (double)running_mean[c], (double)running_var[c], gamma, beta,
                (double)value_or(s, 1.0f));
}

cudaError_t tn_launch_norm_finish(double count, int channels, const double *moments, const float *gamma,
                                  const float *beta, const float *s, float *running_mean, float *running_var,
                                  tn_norm_vectors vectors, int *nonfinite, cudaStream_t stream) {
    if (count < 1 || channels < 1) return cudaErrorInvalidValue;
    TN_LAUNCH(finish_kernel, blocks_for((unsigned)channels), THREADS, 0, stream, count, channels, moments,
              gamma, beta, s, running_mean, running_var, vectors, nonfinite);
    return cudaGetLastError();
}

cudaError_t tn_launch_norm_load(int channels, const float *gamma, const float *beta, const float *s,
                                const float *running_mean, const float *running_var, tn_norm_vectors vectors,
                                cudaStream_t stream) {
    if (channels < 1) return cudaErrorInvalidValue;
    TN_LAUNCH(load_kernel, blocks_for((unsigned)channels), THREADS, 0, stream, channels, gamma, beta, s,
              running_mean, running_var, vectors);
    return cudaGetLastError();
}

/* ---- apply ---- */

/* values[] of eight successive channels from c on, the first following the last. */
__device__ __forceinline__ void load_channels(const float *__restrict__ values, unsigned c, unsigned channels,
                                              float v[8]) {
    if (channels % 8 == 0 && reinterpret_cast<size_t>(values) % 16 == 0) {
        load8(values + c, v);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        v[j] = values[c];
        if (++c == channels) c = 0;
    }
}

template <typename X, typename Y>
static __global__ void __launch_bounds__(THREADS) apply_kernel(unsigned count, unsigned channels, const X *x,
                                                               tn_norm_vectors vectors, tn_epilogue e, Y *y) {
    const unsigned group = blockIdx.x * THREADS + threadIdx.x, i = group * 8;
    if (i >= count) return;
    float z[8], r[8] = {}, mean[8], factor[8], shift[8];
    load_group(x, i, count, z);
    if (e.r) load_group(static_cast<const Y *>(e.r), i, count, r);
    load_channels(vectors.mean, i % channels, channels, mean);
    load_channels(vectors.factor, i % channels, channels, factor);
    load_channels(vectors.shift, i % channels, channels, shift);
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (i + j < count) z[j] = (z[j] - mean[j]) * factor[j] + shift[j] + r[j];
    raise_flag(e.nonfinite, !all_finite8(z));
    const unsigned bits = activate8(z, e.relu != 0, 0.0f);
    if (e.mask) store_mask(e.mask, group, bits);
    store_group(y, i, count, z);
}

template <typename X, typename Y>
static void apply(unsigned count, int channels, const void *x, tn_norm_vectors vectors, tn_epilogue e,
                  void *y, cudaStream_t stream) {
    TN_LAUNCH((apply_kernel<X, Y>), blocks_for(groups_of(count)), THREADS, 0, stream, count,
              (unsigned)channels, static_cast<const X *>(x), vectors, e, static_cast<Y *>(y));
}

cudaError_t tn_launch_norm_apply(size_t pixels, int channels, tn_storage x_store, const void *x,
                                 tn_norm_vectors vectors, tn_epilogue epilogue, tn_storage y_store, void *y,
                                 cudaStream_t stream) {
    if (bad_size(pixels, channels)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(y) || misaligned(epilogue.r)) return cudaErrorMisalignedAddress;
    TN_PICK2(apply, x_store, y_store)
    ((unsigned)pixels * (unsigned)channels, channels, x, vectors, epilogue, y, stream);
    return cudaGetLastError();
}

/* ---- backward ---- */

template <typename X, typename Y>
static __global__ void __launch_bounds__(THREADS)
    reduce_kernel(unsigned pixels, unsigned channels, unsigned lanes, const X *__restrict__ x,
                  const float *__restrict__ mean, tn_parts dy, const uint32_t *__restrict__ mask, Y *dz,
                  double *__restrict__ partial, int *nonfinite) {
    const unsigned channel = blockIdx.y * lanes + threadIdx.x % lanes;
    const unsigned first = blockIdx.x * RANGE, last = min(first + RANGE, pixels);
    float s = 0, q = 0;
    bool bad = false;
    if (channel < channels) {
        const float centre = mean[channel];
        for (unsigned p = first + threadIdx.x / lanes; p < last; p += THREADS / lanes) {
            const unsigned i = p * channels + channel;
            float v = to_float(static_cast<const Y *>(dy.part[0])[i]);
#pragma unroll /* an index that is not constant would move the parts to local memory */
            for (int k = 1; k < TN_KERNEL_PARTS; k++)
                if (k < dy.count) v += to_float(static_cast<const Y *>(dy.part[k])[i]);
            bad = bad || !is_finite(v);
            if (mask && !(load_mask(mask, i / 8) >> i % 8 & 1)) v = 0.0f;
            dz[i] = from_float<Y>(v);
            s += v;
            q += v * (to_float(x[i]) - centre);
        }
    }
    raise_flag(nonfinite, bad);
    double sum = (double)s, product = (double)q;
    add_rows(lanes, &sum, &product);
    if (threadIdx.x >= lanes || channel >= channels) return;
    partial[((size_t)blockIdx.x * 2) * channels + channel] = sum;
    partial[((size_t)blockIdx.x * 2 + 1) * channels + channel] = product;
}

template <typename X, typename Y>
static void reduce(size_t pixels, int channels, const void *x, const float *mean, tn_parts dy,
                   const uint32_t *mask, void *dz, double *partial, int *nonfinite, cudaStream_t stream) {
    TN_LAUNCH((reduce_kernel<X, Y>), range_grid(pixels, channels), THREADS, 0, stream, (unsigned)pixels,
              (unsigned)channels, lanes_of(channels), static_cast<const X *>(x), mean, dy, mask,
              static_cast<Y *>(dz), partial, nonfinite);
}

cudaError_t tn_launch_norm_reduce(size_t pixels, int channels, tn_storage x_store, const void *x,
                                  const float *mean, tn_storage y_store, tn_parts dy, const uint32_t *mask,
                                  void *dz, void *workspace, double *moments, int *nonfinite,
                                  cudaStream_t stream) {
    if (bad_size(pixels, channels) || dy.count < 1 || dy.count > TN_KERNEL_PARTS)
        return cudaErrorInvalidValue;
    double *partial = static_cast<double *>(workspace);
    TN_PICK2(reduce, x_store, y_store)(pixels, channels, x, mean, dy, mask, dz, partial, nonfinite, stream);
    launch_merge(pixels, channels, partial, moments, stream);
    return cudaGetLastError();
}

/* One block, since ds sums over channels. */
static __global__ void __launch_bounds__(THREADS)
    gradients_kernel(double count, int channels, const double *__restrict__ moments,
                     const float *__restrict__ inv_std, const float *__restrict__ gamma,
                     const float *__restrict__ beta, const float *s, float *dgamma, float *dbeta, float *ds,
                     float *slopes) {
    const double scale = (double)value_or(s, 1.0f);
    double total = 0;
    for (int c = threadIdx.x; c < channels; c += THREADS) {
        const double sum = moments[c], dz_xhat = moments[channels + c] * (double)inv_std[c];
        dgamma[c] = (float)(scale * dz_xhat);
        dbeta[c] = (float)(scale * sum);
        slopes[c] = (float)(sum / count);
        slopes[channels + c] = (float)(dz_xhat / count * (double)inv_std[c]);
        total += (double)gamma[c] * dz_xhat + (double)beta[c] * sum;
    }
    total = block_sum(total);
    if (threadIdx.x == 0 && ds) *ds = (float)total;
}

cudaError_t tn_launch_norm_gradients(double count, int channels, const double *moments, const float *inv_std,
                                     const float *gamma, const float *beta, const float *s, float *dgamma,
                                     float *dbeta, float *ds, float *slopes, cudaStream_t stream) {
    if (count < 1 || channels < 1) return cudaErrorInvalidValue;
    TN_LAUNCH(gradients_kernel, 1, THREADS, 0, stream, count, channels, moments, inv_std, gamma, beta, s,
              dgamma, dbeta, ds, slopes);
    return cudaGetLastError();
}

template <typename X, typename Y>
static __global__ void __launch_bounds__(THREADS)
    backward_kernel(unsigned count, unsigned channels, const X *x, tn_norm_vectors vectors,
                    const float *__restrict__ slopes, const Y *dz, X *dx) {
    const unsigned i = (blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= count) return;
    const unsigned c = i % channels;
    float v[8], g[8], mean[8], factor[8], slope[8], slope_x[8];
    load_group(x, i, count, v);
    load_group(dz, i, count, g);
    load_channels(vectors.mean, c, channels, mean);
    load_channels(vectors.factor, c, channels, factor);
    load_channels(slopes, c, channels, slope);
    load_channels(slopes + channels, c, channels, slope_x);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = factor[j] * (g[j] - slope[j] - (v[j] - mean[j]) * slope_x[j]);
    store_group(dx, i, count, v);
}

template <typename X, typename Y>
static void backward(unsigned count, int channels, const void *x, tn_norm_vectors vectors,
                     const float *slopes, const void *dz, void *dx, cudaStream_t stream) {
    TN_LAUNCH((backward_kernel<X, Y>), blocks_for(groups_of(count)), THREADS, 0, stream, count,
              (unsigned)channels, static_cast<const X *>(x), vectors, slopes, static_cast<const Y *>(dz),
              static_cast<X *>(dx));
}

cudaError_t tn_launch_norm_backward(size_t pixels, int channels, tn_storage x_store, const void *x,
                                    tn_norm_vectors vectors, const float *slopes, tn_storage y_store,
                                    const void *dz, void *dx, cudaStream_t stream) {
    if (bad_size(pixels, channels)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(dz) || misaligned(dx)) return cudaErrorMisalignedAddress;
    TN_PICK2(backward, x_store, y_store)
    ((unsigned)pixels * (unsigned)channels, channels, x, vectors, slopes, dz, dx, stream);
    return cudaGetLastError();
}
