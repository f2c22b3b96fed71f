/* The epilogue of operators whose output a library call made, and the backward step that all nodes share.
 *
 *   forward    z = s * x + c + bias[channel] + r,  y = act(z) + d,  and the ReLU mask
 *   backward   dL/dy = sum of up to four parts,  dz = mask * dL/dy,  and the sums of both
 *
 * Outputs are overwritten. y may be x (same storage) or r; dz may be one of the parts: a thread reads its
 * elements of all tensors before it writes. Sums run over a number of blocks that depends on the element
 * count alone: each block adds its share in float, thread by thread, then in double, and leaves it as a part
 * (merge.cu). */
#include "kernels/device.cuh"

template <typename X, typename Y>
static __global__ void __launch_bounds__(THREADS)
    forward_kernel(unsigned count, unsigned channels, const X *x, tn_epilogue e, Y *y) {
    const unsigned group = blockIdx.x * THREADS + threadIdx.x, i = group * 8;
    if (i >= count) return;
    const float s = value_or(e.s, 1.0f), c = value_or(e.c, 0.0f), d = value_or(e.d, 0.0f);
    float z[8], r[8] = {};
    load_group(x, i, count, z);
    if (e.r) load_group(static_cast<const Y *>(e.r), i, count, r);
    unsigned channel = i % channels;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (i + j >= count) break; /* zeros beyond the end stay zeros: they must not look like results */
        z[j] = s * z[j] + c + r[j];
        if (e.bias) z[j] += e.bias[channel];
        if (++channel == channels) channel = 0;
    }
    raise_flag(e.nonfinite, !all_finite8(z));
    const unsigned bits = activate8(z, e.relu != 0, d);
    if (e.mask) store_mask(e.mask, group, bits);
    store_group(y, i, count, z);
}

template <typename X, typename Y>
static void forward(unsigned count, int channels, const void *x, tn_epilogue e, void *y,
                    cudaStream_t stream) {
    TN_LAUNCH((forward_kernel<X, Y>), blocks_for(groups_of(count)), THREADS, 0, stream, count,
              (unsigned)channels, static_cast<const X *>(x), e, static_cast<Y *>(y));
}

cudaError_t tn_launch_epilogue_forward(size_t pixels, int channels, tn_storage x_store, const void *x,
                                       tn_epilogue epilogue, tn_storage y_store, void *y,
                                       cudaStream_t stream) {
    if (channels < 1 || too_large(pixels, (size_t)channels)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(y) || misaligned(epilogue.r)) return cudaErrorMisalignedAddress;
    if (pixels == 0) return cudaSuccess;
    TN_PICK2(forward, x_store, y_store)
    ((unsigned)(pixels * (size_t)channels), channels, x, epilogue, y, stream);
    return cudaGetLastError();
}

/* ---- backward ---- */

#define SUM_BLOCKS 512 /* at most */

/* partial[block] = sum of dz, partial[blocks + block] = sum of dL/dy. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    backward_kernel(unsigned count, tn_parts dy, const uint32_t *mask, T *dz, double *partial,
                    int *nonfinite) {
    const unsigned groups = (count + 7) / 8;
    float dy_sum = 0, dz_sum = 0;
    bool bad = false;
    for (unsigned group = blockIdx.x * THREADS + threadIdx.x; group < groups; group += gridDim.x * THREADS) {
        float v[8];
        load_parts<T>(dy, group * 8, count, v);
        const unsigned bits = load_mask(mask, group);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            bad = bad || !is_finite(v[j]);
            dy_sum += v[j];
            if (!(bits >> j & 1)) v[j] = 0.0f;
            dz_sum += v[j];
        }
        store_group(dz, group * 8, count, v);
    }
    raise_flag(nonfinite, bad);
    if (!partial) return;
    const double dz_total = block_sum((double)dz_sum), dy_total = block_sum((double)dy_sum);
    if (threadIdx.x) return;
    partial[blockIdx.x] = dz_total;
    partial[gridDim.x + blockIdx.x] = dy_total;
}

template <typename T>
static void backward(unsigned count, tn_parts dy, const uint32_t *mask, void *dz, double *partial,
                     unsigned blocks, int *nonfinite, cudaStream_t stream) {
    TN_LAUNCH(backward_kernel<T>, blocks, THREADS, 0, stream, count, dy, mask, static_cast<T *>(dz), partial,
              nonfinite);
}

int tn_epilogue_sum_parts(size_t count) {
    const unsigned blocks = blocks_for(groups_of((unsigned)count));
    return blocks > SUM_BLOCKS ? SUM_BLOCKS : (int)blocks;
}

cudaError_t tn_launch_epilogue_backward(size_t count, tn_storage store, tn_parts dy, const uint32_t *mask,
                                        void *dz, double *sums, int *nonfinite, cudaStream_t stream) {
    if (dy.count < 1 || dy.count > TN_KERNEL_PARTS || (sums && count == 0) || too_large(count))
        return cudaErrorInvalidValue;
    if (misaligned(dy) || misaligned(dz)) return cudaErrorMisalignedAddress;
    if (count == 0) return cudaSuccess;
    const unsigned blocks =
        sums ? (unsigned)tn_epilogue_sum_parts(count) : blocks_for(groups_of((unsigned)count));
    TN_PICK1(backward, store)((unsigned)count, dy, mask, dz, sums, blocks, nonfinite, stream);
    return cudaGetLastError();
}

/* ---- column sums ---- */

/* 32 columns a block; 8 threads each add every eighth row, then their sums are added in order. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    column_sums_kernel(int rows, int channels, const T *__restrict__ x, float *__restrict__ sums) {
    __shared__ double parts[8][32];
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, channel = blockIdx.x * 32 + lane;
    double sum = 0;
    if (channel < channels)
        for (int row = part; row < rows; row += 8)
            sum += (double)to_float(x[(size_t)row * channels + channel]);
    parts[part][lane] = sum;
    __syncthreads();
    if (part || channel >= channels) return;
    for (int k = 1; k < 8; k++) sum += parts[k][lane];
    sums[channel] = (float)sum;
}

template <typename T>
static void column_sums(int rows, int channels, const void *x, float *sums, cudaStream_t stream) {
    TN_LAUNCH(column_sums_kernel<T>, (unsigned)((channels + 31) / 32), THREADS, 0, stream, rows, channels,
              static_cast<const T *>(x), sums);
}

cudaError_t tn_launch_column_sums(int rows, int channels, tn_storage store, const void *x, float *sums,
                                  cudaStream_t stream) {
    if (rows < 0 || channels < 1) return cudaErrorInvalidValue;
    TN_PICK1(column_sums, store)(rows, channels, x, sums, stream);
    return cudaGetLastError();
}
