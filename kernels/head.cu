/* The end of a network with few channels and classes, forward and backward: average pool, linear layer and
 * loss.
 *
 *   pooled = mean over pixels of x + d,   logits = w pooled + c + bias,   loss and its gradient (loss.cuh),
 *   dx = w^T dlogits / pixels;   then dw = sum over rows of dlogits pooled^T, and the other sums over rows
 *
 * An image needs no other until gradients are summed: a block of threads has one image and does all of the
 * first line. A second kernel makes the sums over rows, every sum by the same threads in a fixed order, from
 * pooled and dlogits, which the first leaves in the workspace. Sums of products are float32 whatever x is
 * stored as. Outputs are overwritten, gradients added to where that is asked for; nothing aliases. */
#include "kernels/loss.cuh"

#define CHANNELS 512   /* at most */
#define CLASSES  256   /* at most */
#define WEIGHTS  16384 /* at most: every block reads them twice */
#define WARPS    (THREADS / 32)

/* What the first kernel leaves to the second, in the workspace: totals are sums over channels of the gradient
 * of pooled. */
typedef struct head_rows {
    double *totals; /* [rows] */
    float *pooled;  /* [rows][channels] */
    float *slopes;  /* [rows][classes]: gradients of the logits */
} head_rows;

/* sums[channel] = sum over rows of factors[row] * matrix[row][channel], factors NULL being ones: a thread
 * adds every lanes-th row of eight channels, then these sums are added in order. */
template <typename T>
__device__ __forceinline__ void add_rows(const T *__restrict__ matrix, int rows, int channels,
                                         const float *factors, float *parts, float *sums) {
    const int groups = channels / 8, lanes = THREADS / groups, channel = threadIdx.x % groups * 8,
              lane = threadIdx.x / groups;
    if (lane < lanes) {
        float part[8] = {};
#pragma unroll 4
        for (int row = lane; row < rows; row += lanes) {
            float v[8];
            load8(matrix + (size_t)row * channels + channel, v);
            const float factor = factors ? factors[row] : 1.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) part[j] += factor * v[j];
        }
        store8(parts + lane * channels + channel, part);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < channels; c += THREADS) {
        float sum = parts[c];
#pragma unroll 8
        for (int k = 1; k < lanes; k++) sum += parts[k * channels + c];
        sums[c] = sum;
    }
    __syncthreads();
}

/* scores[class] = w pooled, of eight classes a warp at a time. */
__device__ __forceinline__ void multiply(const tn_head_shape &s, const float *__restrict__ w,
                                         const float *pooled, float *scores) {
    const int lane = threadIdx.x % 32;
    for (int first = threadIdx.x / 32 * 8; first < s.classes; first += 8 * WARPS) {
        float sums[8] = {};
        for (int c = lane; c < s.channels; c += 32) {
            const float v = pooled[c];
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (first + j < s.classes) sums[j] += w[(size_t)(first + j) * s.channels + c] * v;
        }
        const float sum = warp_sum8(sums);
        if (lane % 4 == 0 && first + lane / 4 < s.classes) scores[first + lane / 4] = sum;
    }
    __syncthreads();
}

/* dx[pixel][channel] = slopes[channel] / pixels. */
template <typename X>
__device__ __forceinline__ void spread(const tn_head_shape &s, const float *slopes, X *dx) {
    const int groups = s.channels / 8, lanes = THREADS / groups, channel = threadIdx.x % groups * 8,
              lane = threadIdx.x / groups;
    const float factor = 1.0f / (float)s.pixels;
    float v[8];
    if (lane >= lanes) return;
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = factor * slopes[channel + j];
    for (int pixel = lane; pixel < s.pixels; pixel += lanes)
        store8(dx + (size_t)pixel * s.channels + channel, v);
}

/* Block `row`. What is NULL outside training: dx, and what `rows` points to. */
template <typename X>
static __global__ void __launch_bounds__(THREADS)
    head_kernel(tn_head_shape s, tn_head h, const X *__restrict__ x, X *dx, head_rows rows) {
    __shared__ __align__(16) float parts[8 * THREADS], pooled[CHANNELS];
    __shared__ float logits[CLASSES], slopes[CLASSES];
    const int row = blockIdx.x, lane = threadIdx.x % 32;
    const size_t image = (size_t)row * s.pixels * s.channels;
    int *const flags[3] = {h.nonfinite, h.nonfinite ? h.nonfinite + 1 : NULL,
                           h.nonfinite ? h.nonfinite + 2 : NULL};

    add_rows(x + image, s.pixels, s.channels, NULL, parts, pooled);
    const float d = value_or(h.d, 0.0f), c = value_or(h.c, 0.0f);
    for (int i = threadIdx.x; i < s.channels; i += THREADS) {
        const float v = pooled[i] / (float)s.pixels + d;
        raise_flag(flags[0], !is_finite(v));
        pooled[i] = v;
        if (dx) rows.pooled[(size_t)row * s.channels + i] = v;
    }
    __syncthreads();

    multiply(s, h.weights, pooled, logits);
    for (int k = threadIdx.x; k < s.classes; k += THREADS) {
        const float v = logits[k] + c + (h.bias ? h.bias[k] : 0.0f);
        raise_flag(flags[1], !is_finite(v));
        logits[k] = v;
        h.logits[(size_t)row * s.classes + k] = v;
    }
    __syncthreads();

    if (threadIdx.x < 32)
        loss_of_row(h.kind, s.classes, lane, logits, h.targets + (size_t)row * s.classes,
                    dx ? (double)h.row_weights[row] : 1.0, h.labels ? h.labels + row : NULL, h.row_loss + row,
                    h.labels ? h.row_rank + row : NULL, dx ? slopes : NULL, flags[2]);
    if (!dx) return;
    __syncthreads();

    for (int k = threadIdx.x; k < s.classes; k += THREADS)
        rows.slopes[(size_t)row * s.classes + k] = slopes[k];
    add_rows(h.weights, s.classes, s.channels, slopes, parts, pooled);
    spread(s, pooled, dx + image);
    double total = 0;
    for (int i = threadIdx.x; i < s.channels; i += THREADS) total += (double)pooled[i];
    total = block_sum(total);
    if (threadIdx.x == 0) rows.totals[row] = total;
}

/* ---- sums over rows ---- */

__device__ __forceinline__ void put(float *to, double sum, int add) {
    *to = (float)sum + (add ? *to : 0.0f);
}

/* The gradient of the bias, class by class, and the sums of both layers; all by one block. */
__device__ __forceinline__ void add_vectors(const tn_head_shape &s, const head_rows &rows,
                                            const tn_head_gradient &g, double (*parts)[32]) {
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
    double all = 0, pool = 0;
    for (int first = 0; first < s.classes; first += 32) {
        const int k = first + lane;
        double sum = 0;
        for (int row = part; k < s.classes && row < s.rows; row += WARPS)
            sum += (double)rows.slopes[(size_t)row * s.classes + k];
        all += sum;
        parts[part][lane] = sum;
        __syncthreads();
        if (part == 0 && k < s.classes && g.bias) {
            for (int i = 1; i < WARPS; i++) sum += parts[i][lane];
            put(g.bias + k, sum, g.add);
        }
        __syncthreads();
    }
    for (int row = threadIdx.x; row < s.rows; row += THREADS) pool += rows.totals[row];
    all = block_sum(all);
    pool = block_sum(pool);
    if (threadIdx.x) return;
    for (int i = 0; i < 2; i++) {
        put(g.sums + i, all, g.add);
        put(g.pool_sums + i, pool, g.add);
    }
}

/* A block adds 32 elements of dw, 8 threads each every eighth row; the last block has the vectors. */
static __global__ void __launch_bounds__(THREADS)
    head_gradients(tn_head_shape s, head_rows rows, tn_head_gradient g) {
    __shared__ double vectors[WARPS][32];
    __shared__ float parts[WARPS][32];
    if (blockIdx.x == gridDim.x - 1) {
        add_vectors(s, rows, g, vectors);
        return;
    }
    const int lane = threadIdx.x % 32, part = threadIdx.x / 32, i = blockIdx.x * 32 + lane,
              k = i / s.channels, c = i % s.channels;
    float sum = 0;
    if (k < s.classes)
#pragma unroll 4
        for (int row = part; row < s.rows; row += WARPS)
            sum += rows.slopes[(size_t)row * s.classes + k] * rows.pooled[(size_t)row * s.channels + c];
    parts[part][lane] = sum;
    __syncthreads();
    if (part || k >= s.classes) return;
#pragma unroll
    for (int j = 1; j < WARPS; j++) sum += parts[j][lane];
    g.weights[i] = sum + (g.add ? g.weights[i] : 0.0f);
}

/* ---- host ---- */

int tn_head_takes(const tn_head_shape *shape) {
    return shape->rows >= 0 && shape->pixels > 0 && shape->channels > 0 && shape->channels % 8 == 0 &&
           shape->channels <= CHANNELS && shape->classes > 0 && shape->classes <= CLASSES &&
           shape->channels * shape->classes <= WEIGHTS &&
           !too_large((size_t)shape->rows * shape->pixels, (size_t)shape->channels);
}

size_t tn_head_workspace(const tn_head_shape *shape) {
    return (size_t)shape->rows *
           (sizeof(double) + (size_t)(shape->channels + shape->classes) * sizeof(float));
}

static head_rows rows_in(const tn_head_shape *s, void *workspace) {
    head_rows rows = {static_cast<double *>(workspace), NULL, NULL};
    rows.pooled = reinterpret_cast<float *>(rows.totals + s->rows);
    rows.slopes = rows.pooled + (size_t)s->rows * s->channels;
    return rows;
}

template <typename X>
static void head(const tn_head_shape *s, const tn_head *h, const void *x, void *dx, head_rows rows,
                 cudaStream_t stream) {
    TN_LAUNCH(head_kernel<X>, (unsigned)s->rows, THREADS, 0, stream, *s, *h, static_cast<const X *>(x),
              static_cast<X *>(dx), rows);
}

cudaError_t tn_launch_head(const tn_head_shape *shape, const tn_head *h, tn_storage x_store, const void *x,
                           void *dx, void *workspace, cudaStream_t stream) {
    if (!tn_head_takes(shape) || (dx && (!h->row_weights || !workspace)) || (h->labels && !h->row_rank))
        return cudaErrorInvalidValue;
    if (misaligned(x) || misaligned(dx) || misaligned(workspace) || misaligned(h->weights))
        return cudaErrorMisalignedAddress;
    if (shape->rows == 0) return cudaSuccess;
    const head_rows rows = dx ? rows_in(shape, workspace) : head_rows{NULL, NULL, NULL};
    TN_PICK1(head, x_store)(shape, h, x, dx, rows, stream);
    return cudaGetLastError();
}

cudaError_t tn_launch_head_gradients(const tn_head_shape *shape, void *workspace, tn_head_gradient gradient,
                                     cudaStream_t stream) {
    if (!tn_head_takes(shape)) return cudaErrorInvalidValue;
    if (misaligned(workspace)) return cudaErrorMisalignedAddress;
    const unsigned weights = (unsigned)(shape->channels * shape->classes);
    TN_LAUNCH(head_gradients, (weights + 31) / 32 + 1, THREADS, 0, stream, *shape, rows_in(shape, workspace),
              gradient);
    return cudaGetLastError();
}
