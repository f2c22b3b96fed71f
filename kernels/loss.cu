/* The loss: softmax cross-entropy with soft targets, or 1/2 |x - target|^2; a weight per row, the rank of the
 * label. A warp takes a row (loss.cuh). Outputs are overwritten; dx may be x. */
#include "kernels/loss.cuh"

#define WARPS 8 /* rows of a block */

template <typename T>
static __global__ void __launch_bounds__(WARPS * 32, 2)
    loss_kernel(tn_kernel_loss kind, int rows, int classes, const T *x, const float *__restrict__ targets,
                const float *__restrict__ weights, const int *__restrict__ labels, float *__restrict__ loss,
                int *__restrict__ rank, T *dx, int *nonfinite) {
    const int lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) return;
    const size_t at = (size_t)row * classes;
    loss_of_row(kind, classes, lane, x + at, targets + at, weights ? (double)weights[row] : 1.0,
                labels ? labels + row : NULL, loss + row, labels ? rank + row : NULL, dx ? dx + at : NULL,
                nonfinite);
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
