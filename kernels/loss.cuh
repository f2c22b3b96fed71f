/* The loss of one row by one warp, its lanes each every 32nd class; all in double, as the CPU does, since
 * this is the smallest tensor of a network and the number people look at. dx may be x: a lane overwrites only
 * its own classes, after every lane has read the label's score. */
#ifndef TN_KERNELS_LOSS_CUH
#define TN_KERNELS_LOSS_CUH

#include "kernels/device.cuh"

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

/* All of a row, as tn_launch_loss says; label is NULL where no rank is wanted. */
template <typename T>
__device__ __forceinline__ void loss_of_row(tn_kernel_loss kind, int classes, int lane, const T *x,
                                            const float *target, double weight, const int *label, float *loss,
                                            int *rank, T *dx, int *nonfinite) {
    if (label) {
        int higher = rank_of(x, classes, lane, *label);
        if (lane == 0) *rank = higher;
    }
    const bool gradient = dx && weight != 0.0;
    double value = kind == TN_KERNEL_SQUARED ? squared(x, target, classes, lane, gradient, weight, dx)
                                             : cross_entropy(x, target, classes, lane, gradient, weight, dx);
    for (int k = lane; dx && !gradient && k < classes; k += 32) dx[k] = from_float<T>(0.0f);
    if (lane) return;
    *loss = (float)value;
    raise_flag(nonfinite, weight != 0.0 && !is_finite((float)value));
}

#endif
