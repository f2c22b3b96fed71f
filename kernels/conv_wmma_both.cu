/* Backward of the 3x3 convolution of stride 1 in one pass over dz, for images that fit into shared memory as
 * a whole: bf16, as many input as output channels, 16 or 32.
 *
 *   dx = gate * (conv(dz, reversed w) + r) and its sums, as backward data of conv_wmma.cu
 *   dw[co][ci][tap] = sum over pixels of dz[pixel][co] * x[pixel + tap - 1][ci]
 *
 * Both tensors stand in shared memory with their halo of zeros, so that dz serves as input of the one product
 * and, moved by one row and one pixel, as the gradient of the other. A block goes through its images: while
 * dx is computed, x and the next dz are on their way. Each block leaves one partial gradient, which are added
 * in a fixed order; their number depends on the shape alone, and there are at most half as many as images,
 * since writing and reading a partial gradient costs as much as half an image of 16 channels. Outputs are
 * overwritten; dx may be r. */
#include "kernels/wmma_end.cuh"

#define BLOCKS 128 /* at most */

typedef struct both_job {
    wmma_tiles t; /* of dz */
    int blocks, tile_bytes, weights_bytes, shared;
} both_job;

template <int C> struct both_of {
    static constexpr int PITCH = wmma_pitch<bf16>(C), GROUPS = C / 16, PAIRS = GROUPS * GROUPS,
                         SHARES = THREADS / 32 / PAIRS, NT = GROUPS, MT = 2;
};

/* Shared memory: two buffers of dz, x, weights, staging; at the end the partial gradients. */
template <typename X, typename Y, int C>
static __global__ void __launch_bounds__(THREADS, C == 16 ? 2 : 1)
    conv_backward(both_job job, const Y *__restrict__ dz, const X *__restrict__ x, const bf16 *__restrict__ w,
                  conv_end end, X *dx, float *__restrict__ partial) {
    typedef both_of<C> B;
    TN_DYNAMIC_SHARED(char, shared);
    const wmma_tiles &t = job.t;
    const int warp = threadIdx.x / 32, pair = warp % B::PAIRS, share = warp / B::PAIRS,
              ci = pair % B::GROUPS * 16, co = pair / B::GROUPS * 16;
    bf16 *const x_tile = reinterpret_cast<bf16 *>(shared + 2 * job.tile_bytes);
    bf16 *const weights = reinterpret_cast<bf16 *>(shared + 3 * job.tile_bytes);
    float *const staging =
        reinterpret_cast<float *>(shared + 3 * job.tile_bytes + job.weights_bytes + warp * STAGING_BYTES);
    const wmma_class all = {-1, -1};
    conv_seen seen = {};
    typename fragments<in_bf16>::sums sums[9];
#pragma unroll
    for (int tap = 0; tap < 9; tap++) wmma::fill_fragment(sums[tap], 0.0f);

    clear_shared(shared, 3 * job.tile_bytes);
    load_weights(w, C, C, 0, C, 0, C, all, weights, B::PITCH);
    __syncthreads();
    load_input(t, blockIdx.x, dz, 0, C, reinterpret_cast<bf16 *>(shared), B::PITCH);
    commit_loads();
    load_input(t, blockIdx.x, x, 0, C, x_tile, B::PITCH);
    commit_loads();
    int buffer = 0;
    for (int image = blockIdx.x; image < t.rows; image += gridDim.x, buffer ^= 1) {
        const bf16 *const dz_tile = reinterpret_cast<const bf16 *>(shared + buffer * job.tile_bytes);
        const int next = image + gridDim.x;
        if (next < t.rows)
            load_input(t, next, dz, 0, C, reinterpret_cast<bf16 *>(shared + (buffer ^ 1) * job.tile_bytes),
                       B::PITCH);
        commit_loads();
        wait_loads<2>(); /* dz, but not yet x */
        __syncthreads();
        for (int q = warp * 16 * B::MT; q < t.positions; q += THREADS / 32 * 16 * B::MT)
            convolve_strip<in_bf16, B::MT, B::NT>(t, all, image, q, 0, dz_tile + q * B::PITCH, B::PITCH,
                                                  weights, B::PITCH, C, end, staging, seen, dx);
        wait_loads<1>();
        __syncthreads();
        const bf16 *const gradient = dz_tile + (t.pitch + 1) * B::PITCH + co;
        for (int q = share * 16; q < t.positions; q += B::SHARES * 16)
            multiply_gradient<in_bf16>(sums, t, x_tile + q * B::PITCH + ci, B::PITCH, gradient + q * B::PITCH,
                                       B::PITCH);
        __syncthreads();
        if (next < t.rows) load_input(t, next, x, 0, C, x_tile, B::PITCH);
        commit_loads();
    }
    report(end, seen);
    add_shares<in_bf16, B::SHARES>(sums, reinterpret_cast<float *>(shared) + pair * SHARED_GRADIENT, share);
    if (share != B::SHARES - 1) return;
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
        wmma::store_matrix_sync(partial + ((size_t)(blockIdx.x * 9 + tap) * C + co) * C + ci, sums[tap], C,
                                wmma::mem_row_major);
}

/* ---- host ---- */

static bool plan(const tn_conv_shape *s, both_job *job) {
    const int c = s->in_channels, pitch = wmma_pitch<bf16>(c), pairs = c / 16 * (c / 16);
    if (bad_wmma3x3(s) || s->stride != 1 || c != s->out_channels || c > 32 || s->rows < 1) return false;
    const int pixels = (s->out_height + 2) * (s->out_width + 2) + 32;
    if (pixels > 64 * 1024 / (pitch * 2)) return false;
    job->t = wmma_tiles_of(s, s->out_height, 1, 32);
    job->tile_bytes = (job->t.pixels * pitch * 2 + 127) / 128 * 128;
    job->weights_bytes = (9 * c * pitch * 2 + 127) / 128 * 128;
    job->shared = 3 * job->tile_bytes + job->weights_bytes + THREADS / 32 * STAGING_BYTES;
    const int merged = pairs * SHARED_GRADIENT * (int)sizeof(float);
    if (job->shared < merged) job->shared = merged;
    job->blocks = s->rows / 2 < BLOCKS ? s->rows / 2 : BLOCKS;
    if (job->blocks < 1) job->blocks = 1;
    return job->shared <= WMMA_SHARED_BYTES;
}

int tn_wmma3x3_both_takes(const tn_conv_shape *shape, tn_wmma unit) {
    both_job job;
    return unit == TN_WMMA_BF16 && plan(shape, &job);
}

size_t tn_wmma3x3_both_workspace(const tn_conv_shape *shape) {
    both_job job;
    if (!plan(shape, &job)) return 0;
    const size_t weights = (size_t)9 * shape->in_channels * shape->out_channels;
    return (size_t)job.blocks * (weights * sizeof(float) + 2 * sizeof(double));
}

template <typename X, typename Y, int C>
static cudaError_t start(const both_job *job, const void *dz, const void *x, const void *w,
                         const conv_end &end, void *dx, float *partial, cudaStream_t stream) {
    cudaError_t error = cudaFuncSetAttribute(conv_backward<X, Y, C>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, job->shared);
    if (error != cudaSuccess) return error;
    TN_LAUNCH((conv_backward<X, Y, C>), (unsigned)job->blocks, THREADS, (size_t)job->shared, stream, *job,
              static_cast<const Y *>(dz), static_cast<const X *>(x), static_cast<const bf16 *>(w), end,
              static_cast<X *>(dx), partial);
    return cudaGetLastError();
}

template <typename X, typename Y>
static cudaError_t launch(const both_job *job, const void *dz, const void *x, const void *w,
                          const conv_end &end, void *dx, float *partial, cudaStream_t stream) {
    if (job->t.in_channels == 16) return start<X, Y, 16>(job, dz, x, w, end, dx, partial, stream);
    return start<X, Y, 32>(job, dz, x, w, end, dx, partial, stream);
}

cudaError_t tn_launch_wmma3x3_backward(const tn_conv_shape *shape, tn_storage x_store, const void *x,
                                       tn_storage y_store, const void *dz, const void *w, tn_gate gate,
                                       void *dx, void *workspace, float *dw, cudaStream_t stream) {
    const size_t pairs = (size_t)shape->out_channels * shape->in_channels;
    both_job job;
    if (!plan(shape, &job)) return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(dz) || misaligned(w) || misaligned(dx) || misaligned(gate.r) ||
        reinterpret_cast<uintptr_t>(workspace) % 32)
        return cudaErrorMisalignedAddress;
    float *partial = static_cast<float *>(workspace);
    conv_end end = {};
    end.e.r = gate.r;
    end.e.nonfinite = gate.nonfinite;
    end.gate = gate.mask;
    if (gate.sums) end.partial = reinterpret_cast<double *>(partial + (size_t)job.blocks * 9 * pairs);
    cudaError_t error = TN_PICK2(launch, x_store, y_store)(&job, dz, x, w, end, dx, partial, stream);
    if (error != cudaSuccess) return error;
    tn_add_splits((unsigned)pairs, job.blocks, partial, dw, stream);
    if (gate.sums) tn_merge_sums(job.blocks, end.partial, gate.sums, stream);
    return cudaGetLastError();
}
