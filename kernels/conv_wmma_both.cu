/* Both gradients of the 3x3 convolution in one launch: bf16, stride 1 or 2, padding 1, up to 64 output
 * channels (those of dz, whose weights then stay in shared memory).
 *
 *   dx = gate * (conv(dz, reversed w) + r) and its sums, as backward data of conv_wmma.cu
 *   dw[co][ci][tap] = sum over pixels of dz[pixel][co] * x[pixel * stride + tap - 1][ci]
 *
 * The first blocks of the grid have shares of dw: 16 x 16 channels, one row of taps, and a few large shares
 * of the pixels, because every share costs the bytes of a whole gradient twice. The others have tiles of dx.
 * Both kinds run at the same time, so that dz comes from memory once and from the cache afterwards. The parts
 * of dw and of the sums are added by merge.cu; their number depends on the shape alone. Outputs are
 * overwritten; dx may be r. */
#include "kernels/wmma_end.cuh"
#include "kernels/wmma_gradient.cuh"

#define SIDE            16
#define GRADIENT_BLOCKS 84          /* at most, where one share of the pixels has not more */
#define TILE_BYTES      (24 * 1024) /* of x and dz; small, since every block of the launch gets as much memory */

typedef struct both_job {
    conv_job data;
    gradient_job weights;
    int gradient_blocks, data_blocks, data_columns; /* data_blocks: for each group of output channels */
} both_job;

typedef struct both_launch {
    both_job job;
    int blocks, shared;
} both_launch;

template <typename X, typename Y, int NT>
static __global__ void __launch_bounds__(THREADS, 2)
    conv_backward(both_job job, const Y *__restrict__ dz, const X *__restrict__ x, const bf16 *__restrict__ w,
                  conv_end end, X *dx, float *__restrict__ partial) {
    TN_DYNAMIC_SHARED(char, shared);
    if ((int)blockIdx.x < job.gradient_blocks) {
        const int split = blockIdx.x % job.weights.splits, place = blockIdx.x / job.weights.splits,
                  across = (job.weights.t.in_channels + SIDE - 1) / SIDE;
        gradient_tiles<in_bf16, X, Y, SIDE, 3>(job.weights, split, place / 3 % across * SIDE,
                                               place / 3 / across * SIDE, place % 3 * 3, x, dz, partial,
                                               shared);
        return;
    }
    const int block = blockIdx.x - job.gradient_blocks;
    const conv_seen seen =
        convolve_tiles<in_bf16, Y, X, NT>(job.data, block % job.data_blocks, job.data_blocks,
                                          block / job.data_blocks * COLUMNS, dz, w, end, dx, shared);
    report(end, seen, block);
}

static bool plan(const tn_conv_shape *s, both_launch *l) {
    const tn_conv_shape back = reversed(s);
    conv_launch data;
    both_job *job = &l->job;
    if (bad_wmma3x3(s) || s->rows < 1 || !tn_wmma_plan_conv(&back, TN_WMMA_BF16, &data) || !data.resident ||
        !tn_wmma_plan_gradient(s, TN_WMMA_BF16, SIDE, 1, GRADIENT_BLOCKS, TILE_BYTES, &job->weights))
        return false;
    job->data = data.job;
    job->data_blocks = (int)data.grid.x;
    job->data_columns = (int)data.grid.y;
    job->gradient_blocks = job->weights.splits * 3 * (s->in_channels / SIDE) * (s->out_channels / SIDE);
    l->blocks = job->gradient_blocks + job->data_blocks * job->data_columns;
    l->shared = data.shared > job->weights.shared ? data.shared : job->weights.shared;
    return true;
}

int tn_wmma3x3_both_takes(const tn_conv_shape *shape, tn_wmma unit) {
    both_launch l;
    return unit == TN_WMMA_BF16 && plan(shape, &l);
}

int tn_wmma3x3_both_parts(const tn_conv_shape *shape) {
    both_launch l;
    return plan(shape, &l) ? l.job.weights.splits : 0;
}

int tn_wmma3x3_both_sum_parts(const tn_conv_shape *shape) {
    both_launch l;
    return plan(shape, &l) ? l.job.data_blocks * l.job.data_columns : 0;
}

template <typename X, typename Y, int NT>
static cudaError_t start(const both_launch *l, const void *dz, const void *x, const void *w,
                         const conv_end &end, void *dx, float *partial, cudaStream_t stream) {
    cudaError_t error =
        cudaFuncSetAttribute(conv_backward<X, Y, NT>, cudaFuncAttributeMaxDynamicSharedMemorySize, l->shared);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((conv_backward<X, Y, NT>), (unsigned)l->blocks, THREADS, (size_t)l->shared, stream, l->job,
              static_cast<const Y *>(dz), static_cast<const X *>(x), static_cast<const bf16 *>(w), end,
              static_cast<X *>(dx), partial);
    return cudaGetLastError();
}

template <typename X, typename Y>
static cudaError_t launch(const both_launch *l, const void *dz, const void *x, const void *w,
                          const conv_end &end, void *dx, float *partial, cudaStream_t stream) {
    if (l->job.data.columns % 32) return start<X, Y, 1>(l, dz, x, w, end, dx, partial, stream);
    return start<X, Y, 2>(l, dz, x, w, end, dx, partial, stream);
}

cudaError_t tn_launch_wmma3x3_backward(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                       tn_storage y_store, const void *dz, const void *w, tn_gate gate,
                                       void *dx, float *parts, cudaStream_t stream) {
    both_launch l;
    if (!plan(shape, &l)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(dz) || misaligned(w) || misaligned(dx) || misaligned(gate.r) ||
        reinterpret_cast<uintptr_t>(parts) % 32)
        return cudaErrorMisalignedAddress;
    const conv_end end = end_of(gate, l.job.data_blocks * l.job.data_columns);
    return TN_PICK2(launch, x_store, y_store)(&l, dz, x, w, end, dx, parts, stream);
}
