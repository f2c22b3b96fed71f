/* What happens to gradients between backward and the update, and to flat buffers.
 *
 *   add        to += from
 *   average    mean += rate (value - mean), unless the stop flag is set
 *   scale      values *= factor
 *   finish     weights: G = dL/d(sW) -> dW = s G in place, and <G, W> for dL/ds; then scalar parameters from
 *              the sums of nodes (architecture.md 3.3); then the stop flag from all flags
 *
 * Dots and scalar gradients are summed in double in a fixed order. Scalars and flags are read from device
 * memory, so that a captured graph follows them. */
#include "kernels/device.cuh"

static __global__ void __launch_bounds__(THREADS)
    add_kernel(size_t count, float *__restrict__ to, const float *__restrict__ from) {
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) to[i] += from[i];
}

cudaError_t tn_launch_add(size_t count, float *to, const float *from, cudaStream_t stream) {
    if (too_large(count)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    TN_LAUNCH(add_kernel, blocks_for((unsigned)count), THREADS, 0, stream, count, to, from);
    return cudaGetLastError();
}

static __global__ void __launch_bounds__(THREADS)
    average_kernel(size_t count, float *__restrict__ mean, const float *__restrict__ values, float rate,
                   const int *stop) {
    if (*stop) return;
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) mean[i] += rate * (values[i] - mean[i]);
}

cudaError_t tn_launch_average(size_t count, float *mean, const float *values, float rate, const int *stop,
                              cudaStream_t stream) {
    if (too_large(count)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    TN_LAUNCH(average_kernel, blocks_for((unsigned)count), THREADS, 0, stream, count, mean, values, rate,
              stop);
    return cudaGetLastError();
}

static __global__ void __launch_bounds__(THREADS)
    scale_floats_kernel(size_t count, float *__restrict__ values, float factor) {
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) values[i] *= factor;
}

cudaError_t tn_launch_scale(size_t count, float *values, float factor, cudaStream_t stream) {
    if (too_large(count)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    TN_LAUNCH(scale_floats_kernel, blocks_for((unsigned)count), THREADS, 0, stream, count, values, factor);
    return cudaGetLastError();
}

/* ---- the end of backward ---- */

#define AT_ONCE 4 /* elements that a thread asks memory for before it needs the first */

/* Scales a piece of a weight's gradient in place, and leaves its part of the dot in partial[piece]. */
static __device__ void finish_piece(const tn_finish &f, const tn_weight_gradient &w, size_t first) {
    const size_t last = first + TN_PIECE < w.count ? first + TN_PIECE : w.count;
    const float s = value_or(w.s, 1.0f);
    double dot = 0;
    bool bad = false;
    for (size_t i = first + threadIdx.x; i < last; i += AT_ONCE * THREADS) {
        float g[AT_ONCE], value[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const bool inside = i + j * THREADS < last;
            g[j] = inside ? w.grad[i + j * THREADS] : 0.0f;
            value[j] = inside && w.dot ? w.value[i + j * THREADS] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const float scaled = s * g[j];
            dot += (double)g[j] * (double)value[j];
            bad = bad || !is_finite(scaled);
            if (i + j * THREADS < last) w.grad[i + j * THREADS] = scaled;
        }
    }
    raise_flag(w.nonfinite, bad);
    dot = block_sum(dot);
    if (threadIdx.x == 0) f.partial[blockIdx.x] = dot;
}

static __device__ void finish_dot(const tn_finish &f, const tn_weight_gradient &w) {
    double dot = 0;
    for (int i = threadIdx.x; i < w.pieces; i += THREADS) dot += __ldcg(f.partial + w.first_piece + i);
    dot = block_sum(dot);
    if (threadIdx.x) return;
    *w.dot = (float)dot;
    raise_flag(w.nonfinite, !is_finite((float)dot));
}

static __device__ double share_value(const tn_finish &f, const tn_share &share) {
    const float *of = f.sums + 3 * (size_t)share.node, *own = f.node_scalars + 4 * (size_t)share.node;
    if (share.kind == TN_SHARE_TERM)
        return (double)share.factor * (share.scaled ? (double)own[0] : 1.0) * (double)__ldcg(of);
    if (share.kind == TN_SHARE_CARRY) return (double)__ldcg(of + 1);
    return (double)share.factor * ((double)__ldcg(of + 2) + (double)own[3] * (double)__ldcg(of));
}

static __device__ void finish_scalar(const tn_finish &f, const tn_scalar &p, double sum) {
    const float grad = (float)(sum * (double)p.grad_factor);
    f.grads[p.place] = grad;
    raise_flag(f.nonfinite, !is_finite(grad));
}

/* A tau that 600 blocks share is the work of the block, a bias that of a thread. */
static __device__ void finish_scalars(const tn_finish &f) {
    for (int i = 0; i < f.wide_count; i++) {
        const tn_scalar p = f.scalars[i];
        double sum = 0;
        for (int k = threadIdx.x; k < p.count; k += THREADS) sum += share_value(f, f.shares[p.first + k]);
        sum = block_sum(sum);
        if (threadIdx.x == 0) finish_scalar(f, p, sum);
    }
    for (int i = f.wide_count + threadIdx.x; i < f.scalar_count; i += THREADS) {
        const tn_scalar p = f.scalars[i];
        double sum = 0;
        for (int k = 0; k < p.count; k++) sum += share_value(f, f.shares[p.first + k]);
        finish_scalar(f, p, sum);
    }
}

/* A block for each piece. The last of a weight adds its dot, the last of all has what scalars and the stop
 * flag are made of. */
static __global__ void __launch_bounds__(THREADS) finish_kernel(const tn_finish f) {
    if ((int)blockIdx.x < f.piece_count) {
        const tn_piece piece = f.pieces[blockIdx.x];
        const tn_weight_gradient w = f.weights[piece.item];
        finish_piece(f, w, piece.first);
        if (!last_to_arrive(f.arrived + 1 + piece.item, (unsigned)w.pieces)) return;
        if (w.dot) finish_dot(f, w);
        if (!last_to_arrive(f.arrived, (unsigned)f.weight_count)) return;
    }
    finish_scalars(f);
    __syncthreads(); /* their flag is up */
    bool any = false;
    for (int i = threadIdx.x; i < f.flag_count; i += THREADS) any = any || __ldcg(f.flags + i) != 0;
    if (__syncthreads_or(any) && threadIdx.x == 0) *f.stop = 1;
}

cudaError_t tn_launch_finish(const tn_finish *finish, cudaStream_t stream) {
    const tn_finish f = *finish;
    if (f.weight_count < 0 || f.piece_count < f.weight_count || f.scalar_count < f.wide_count ||
        f.wide_count < 0 || f.flag_count < 0)
        return cudaErrorInvalidValue;
    TN_LAUNCH(finish_kernel, f.piece_count ? (unsigned)f.piece_count : 1u, THREADS, 0, stream, f);
    return cudaGetLastError();
}
