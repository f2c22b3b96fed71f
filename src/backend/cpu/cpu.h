/* The CPU backend: oneDNN for convolutions and linear layers, plain loops for the rest. One chunk runs on one
 * worker thread from start to end; nothing here starts threads. */
#ifndef TN_CPU_CPU_H
#define TN_CPU_CPU_H

#include "backend/backend.h"

extern const tn_backend_ops tn_cpu_backend;

extern const tn_node_ops tn_cpu_conv, tn_cpu_norm, tn_cpu_subsample, tn_cpu_append, tn_cpu_maxpool,
    tn_cpu_avgpool, tn_cpu_loss;

typedef struct tn_cpu {
    tn_backend head;
    /* For each worker, room for the largest scaled weight tensor. */
    float **weight_scratch;
    size_t weight_scratch_floats;
} tn_cpu;

/* Makes every worker's weight scratch hold at least `floats`. Only while planning. */
tn_status tn_cpu_reserve_weights(tn_cpu *cpu, size_t floats);

/* ---- loops shared by node kinds (elementwise.c) ---- */

typedef struct tn_cpu_sums {
    double dy, dz;
    bool finite; /* every y was */
} tn_cpu_sums;

/* y[i] = act(y[i]) + carry, where act is ReLU or nothing. NaN stays NaN. */
void tn_cpu_activation(float *y, size_t count, bool relu, float carry);

/* dz[i] = sum of parts dy[.][i] where y[i] > threshold (everywhere without relu). dz may be one of the parts.
 */
tn_cpu_sums tn_cpu_activation_backward(size_t count, const float *y, bool relu, float threshold,
                                       const float *const *dy, int parts, float *dz);

/* to[i] += from[i]; to[i] = a[i] + b[i]; to[i] = factor * from[i] */
void tn_cpu_add(float *to, const float *from, size_t count);
void tn_cpu_sum(float *to, const float *a, const float *b, size_t count);
void tn_cpu_scale(float *to, const float *from, float factor, size_t count);

/* Sum of a[i] * b[i] in double, in a fixed order. */
double tn_cpu_dot(const float *a, const float *b, size_t count);

/* Sum of (parts[0][i] + parts[1][i] + ... - shift)^2 in double, in a fixed order. */
double tn_cpu_square_sum(const float *const *parts, int count, float shift, size_t floats);

bool tn_cpu_finite(const float *x, size_t count);

#endif
