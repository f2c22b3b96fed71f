/* The loss: softmax cross-entropy with soft targets, or 1/2 |x - target|^2; a weight per row, the rank of the
 * label.
 *
 * A warp takes a row, its lanes every 32nd class; all in double, as the CPU does, since this is the smallest
 * tensor of a network and the number people look at. Outputs are overwritten; dx may be x: a lane overwrites
 * only its own classes, after every lane has read the label's score. */
#include "kernels/device.cuh"

#define WARPS 8 /* rows of a block */

__device__ __forceinline__ double all_lanes_sum(double v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

template <typename T>
__device__ __forceinline__ double cross_entropy(const T *x, const float *target, int classes, int lane,
                                                bool gradient, double weight, T *dx) {
    /* NaN never is the largest; it reaches the sum instead. */
    float largest = -INFINITY;
    for (int k = lane; k < classes; k += 32) largest = fmaxf(largest, to_float(x[k]));
    for (int offset = 16; offset > 0; offset /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    double sum = 0, mass = 0, dot = 0;
    for (int k = lane; k < classes; k += 32) {
        double v = (double)to_float(x[k]) - (double)largest, t = (double)target[k];
        sum += exp(v);
        mass += t;
        dot += t * v;
    }
    sum = all_lanes_sum(sum);
    mass = all_lanes_sum(mass);
    dot = all_lanes_sum(dot);
    for (int k = lane; gradient && k < classes; k += 32) {
        double p = exp((double)to_float(x[k]) - (double)largest) / sum;
        dx[k] = from_float<T>((float)(weight * (mass * p - (double)target[k])));
    }
    return mass * log(sum) - dot;
}

template <typename T>
__device__ __forceinline__ double squared(const T *x, const float *target, int classes, int lane,
                                          bool gradient, double weight, T *dx) {
    double sum = 0;
    for (int k = lane; k < classes; k += 32) {
        double difference = (double)to_float(x[k]) - (double)target[k];
        sum += 0.5 * difference * difference;
        if (gradient) dx[k] = from_float<T>((float)(weight * difference));
    }
    return all_lanes_sum(sum);
}

/* How many classes score higher than the label; `classes` where its score is not finite. */
template <typename T> __device__ __forceinline__ int rank_of(const T *x, int classes, int lane, int label) {
    const float score = to_float(x[label]);
    int rank = 0;
    for (int k = lane; k < classes; k += 32) {
        float v = to_float(x[k]);
        if (k < label ? v >= score : k > label && v > score) rank++;
    }
    for (int offset = 16; offset > 0; offset /= 2) rank += __shfl_xor_sync(0xffffffffu, rank, offset);
    __syncwarp(); /* every lane has read the label's score; another may overwrite it now */
    return is_finite(score) ? rank : classes;
}

template <typename T>
static __global__ void __launch_bounds__(WARPS * 32, 2)
    loss_kernel(tn_kernel_loss kind, int rows, int classes, const T *x, const float *__restrict__ targets,
                const float *__restrict__ weights, const int *__restrict__ labels, float *__restrict__ loss,
                int *__restrict__ rank, T *dx, int *nonfinite) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    const size_t at = (size_t)row * classes;
    if (labels) {
        int higher = rank_of(x + at, classes, lane, labels[row]);
        if (lane == 0) rank[row] = higher;
    }
    const double weight = weights ? (double)weights[row] : 1.0;
    const bool gradient = dx && weight != 0.0;
    T *row_dx = dx ? dx + at : NULL;
    double value = kind == TN_KERNEL_SQUARED
                       ? squared(x + at, targets + at, classes, lane, gradient, weight, row_dx)
                       : cross_entropy(x + at, targets + at, classes, lane, gradient, weight, row_dx);
    for (int k = lane; dx && !gradient && k < classes; k += 32) row_dx[k] = from_float<T>(0.0f);
    if (lane) return;
    loss[row] = (float)value;
    raise_flag(nonfinite, weight != 0.0 && !is_finite((float)value));
}

template <typename T>
static void run(tn_kernel_loss kind, int rows, int classes, const void *x, const float *targets,
                const float *weights, const int *labels, float *loss, int *rank, void *dx, int *nonfinite,
                cudaStream_t stream) {
    TN_LAUNCH(loss_kernel<T>, (unsigned)((rows + WARPS - 1) / WARPS), WARPS * 32, 0, stream, kind, rows,
              classes, static_cast<const T *>(x), targets, weights, labels, loss, rank, static_cast<T *>(dx),
              nonfinite);
}

cudaError_t tn_launch_loss(tn_kernel_loss kind, int rows, int classes, tn_storage store, const void *x,
                           const float *targets, const float *weights, const int *labels, float *loss,
                           int *rank, void *dx, int *nonfinite, cudaStream_t stream) {
    if (rows < 0 || classes < 1 || (dx && !weights) || (labels && !rank)) return cudaErrorInvalidValue;
    if (rows == 0) return cudaSuccess;
    TN_PICK1(run, store)(kind, rows, classes, x, targets, weights, labels, loss, rank, dx, nonfinite, stream);
    return cudaGetLastError();
}
