/* What happens to parameters and their gradients between backward and the next step.
 *
 *   sgd                v = mu v + g + decay w, w -= lr v, unless the stop flag is set
 *   add                to += from
 *   average            mean += rate (value - mean), unless the stop flag is set
 *   node scalars       s, c, d of every node from the flat values
 *   weight gradients   G = dL/d(sW) -> dW = s G in place, and <G, W> for dL/ds
 *   scalar gradients   scalar parameters from the sums of nodes (architecture.md 3.3)
 *
 * Dots and scalar gradients are summed in double in a fixed order. Learning rates, scalars and flags are read
 * from device memory, so that a captured graph follows them. */
#include "kernels/device.cuh"

static __global__ void __launch_bounds__(THREADS)
    sgd_kernel(size_t count, float *__restrict__ values, const float *__restrict__ grads,
               float *__restrict__ momentum, const float *lr, float mu, float decay, const int *stop) {
    if (stop && *stop) return;
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    float v = mu * momentum[i] + grads[i] + decay * values[i];
    momentum[i] = v;
    values[i] -= *lr * v;
}

cudaError_t tn_launch_sgd(size_t count, float *values, const float *grads, float *momentum, const float *lr,
                          float mu, float decay, const int *stop, cudaStream_t stream) {
    if (too_large(count)) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    TN_LAUNCH(sgd_kernel, blocks_for((unsigned)count), THREADS, 0, stream, count, values, grads, momentum, lr,
              mu, decay, stop);
    return cudaGetLastError();
}

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

static __global__ void __launch_bounds__(THREADS)
    any_flag_kernel(int count, const int *__restrict__ flags, int *stop) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    raise_flag(stop, i < count && flags[i] != 0);
}

cudaError_t tn_launch_any_flag(int count, const int *flags, int *stop, cudaStream_t stream) {
    if (count < 0) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    TN_LAUNCH(any_flag_kernel, blocks_for((unsigned)count), THREADS, 0, stream, count, flags, stop);
    return cudaGetLastError();
}

/* ---- scalars ---- */

static __global__ void __launch_bounds__(THREADS)
    node_scalars_kernel(int nodes, const tn_node_terms *__restrict__ table, const float *__restrict__ values,
                        float *__restrict__ scalars, int *flags) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= nodes) return;
    const tn_node_terms *n = &table[i];
    const float s = n->scale_factor * (n->scale >= 0 ? values[n->scale] : 1.0f);
    const float d = n->carry >= 0 ? values[n->carry] : 0.0f;
    float c = 0, inside = 0;
    for (int t = 0; t < n->term_count; t++) {
        float term = n->terms[t].factor * values[n->terms[t].place];
        c += n->terms[t].scaled ? s * term : term;
        if (n->terms[t].scaled) inside += term;
    }
    scalars[4 * i] = s;
    scalars[4 * i + 1] = c;
    scalars[4 * i + 2] = d;
    scalars[4 * i + 3] = inside;
    if (flags) raise_flag(flags + i, !is_finite(s) || !is_finite(c) || !is_finite(d));
}

cudaError_t tn_launch_node_scalars(int nodes, const tn_node_terms *terms, const float *values, float *scalars,
                                   int *flags, cudaStream_t stream) {
    if (nodes < 0) return cudaErrorInvalidValue;
    if (nodes == 0) return cudaSuccess;
    TN_LAUNCH(node_scalars_kernel, blocks_for((unsigned)nodes), THREADS, 0, stream, nodes, terms, values,
              scalars, flags);
    return cudaGetLastError();
}

/* A warp for each scalar parameter: lanes take every 32nd share, so that a tau shared by 600 blocks takes no
 * longer than it must. */
static __global__ void __launch_bounds__(THREADS)
    scalar_gradients_kernel(int count, const tn_scalar *__restrict__ table,
                            const tn_share *__restrict__ shares, const float *__restrict__ scalars,
                            const float *__restrict__ sums, float *grads, int *nonfinite) {
    const int lane = threadIdx.x % 32, i = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (i >= count) return;
    const tn_scalar p = table[i];
    double total = 0;
    for (int k = lane; k < p.count; k += 32) {
        const tn_share share = shares[p.first + k];
        const float *of = sums + 3 * (size_t)share.node, *own = scalars + 4 * (size_t)share.node;
        if (share.kind == TN_SHARE_TERM)
            total += (double)share.factor * (share.scaled ? (double)own[0] : 1.0) * (double)of[0];
        else if (share.kind == TN_SHARE_CARRY)
            total += (double)of[1];
        else
            total += (double)share.factor * ((double)of[2] + (double)own[3] * (double)of[0]);
    }
    total = warp_sum(total) * (double)p.grad_factor;
    if (lane) return;
    grads[p.place] = (float)total;
    raise_flag(nonfinite, !is_finite((float)total));
}

cudaError_t tn_launch_scalar_gradients(int count, const tn_scalar *scalars_table, const tn_share *shares,
                                       const float *scalars, const float *sums, float *grads, int *nonfinite,
                                       cudaStream_t stream) {
    if (count < 0) return cudaErrorInvalidValue;
    if (count == 0) return cudaSuccess;
    TN_LAUNCH(scalar_gradients_kernel, (unsigned)((count + THREADS / 32 - 1) / (THREADS / 32)), THREADS, 0,
              stream, count, scalars_table, shares, scalars, sums, grads, nonfinite);
    return cudaGetLastError();
}

/* ---- weight gradients ---- */

/* A block for each piece: scales it in place, leaves its part of the dot in partial[piece]. */
static __global__ void __launch_bounds__(THREADS)
    scale_kernel(const tn_weight_gradient *__restrict__ items, const tn_piece *__restrict__ pieces,
                 double *__restrict__ partial) {
    const tn_piece piece = pieces[blockIdx.x];
    const tn_weight_gradient item = items[piece.item];
    const size_t last = piece.first + TN_PIECE < item.count ? piece.first + TN_PIECE : item.count;
    const float s = value_or(item.s, 1.0f);
    double dot = 0;
    bool bad = false;
    for (size_t i = piece.first + threadIdx.x; i < last; i += THREADS) {
        const float g = item.grad[i], scaled = s * g;
        if (item.dot) dot += (double)g * (double)item.value[i];
        bad = bad || !is_finite(scaled);
        item.grad[i] = scaled;
    }
    raise_flag(item.nonfinite, bad);
    dot = block_sum(dot);
    if (threadIdx.x == 0) partial[blockIdx.x] = dot;
}

/* A warp for each item. */
static __global__ void __launch_bounds__(THREADS)
    dots_kernel(int count, const tn_weight_gradient *__restrict__ items, const double *__restrict__ partial) {
    const int lane = threadIdx.x % 32, i = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (i >= count || !items[i].dot) return;
    const tn_weight_gradient item = items[i];
    double dot = 0;
    for (int k = lane; k < item.pieces; k += 32) dot += partial[item.first_piece + k];
    dot = warp_sum(dot);
    if (lane) return;
    *item.dot = (float)dot;
    raise_flag(item.nonfinite, !is_finite((float)dot));
}

cudaError_t tn_launch_weight_gradients(int item_count, const tn_weight_gradient *items, int piece_count,
                                       const tn_piece *pieces, double *workspace, cudaStream_t stream) {
    if (item_count < 0 || piece_count < 0) return cudaErrorInvalidValue;
    if (item_count == 0) return cudaSuccess;
    if (piece_count > 0)
        TN_LAUNCH(scale_kernel, (unsigned)piece_count, THREADS, 0, stream, items, pieces, workspace);
    TN_LAUNCH(dots_kernel, (unsigned)((item_count + THREADS / 32 - 1) / (THREADS / 32)), THREADS, 0, stream,
              item_count, items, workspace);
    return cudaGetLastError();
}
