#include <math.h>

#include "backend/cpu/cpu.h"
#include "base/simd.h"

/* Sums are taken in float within a block and in double across blocks: exact enough for gradients of scalars
 * that add up a million terms, and still one pass at memory speed. */
#define BLOCK 1024

typedef struct block_sums {
    float dy, dz, poison; /* poison turns NaN when some y is not finite */
} block_sums;

TN_SIMD static block_sums relu_block_1(size_t n, const float *y, float threshold, const float *a, float *dz) {
    float sum_dy = 0, sum_dz = 0, poison = 0;
#pragma omp simd reduction(+ : sum_dy, sum_dz, poison)
    for (size_t i = 0; i < n; i++) {
        float g = a[i], masked = y[i] > threshold ? g : 0.0f;
        sum_dy += g;
        sum_dz += masked;
        poison += y[i] * 0.0f;
        dz[i] = masked;
    }
    return (block_sums){sum_dy, sum_dz, poison};
}

TN_SIMD static block_sums relu_block_2(size_t n, const float *y, float threshold, const float *a,
                                       const float *b, float *dz) {
    float sum_dy = 0, sum_dz = 0, poison = 0;
#pragma omp simd reduction(+ : sum_dy, sum_dz, poison)
    for (size_t i = 0; i < n; i++) {
        float g = a[i] + b[i], masked = y[i] > threshold ? g : 0.0f;
        sum_dy += g;
        sum_dz += masked;
        poison += y[i] * 0.0f;
        dz[i] = masked;
    }
    return (block_sums){sum_dy, sum_dz, poison};
}

TN_SIMD static block_sums linear_block(size_t n, const float *y, const float *a, float *dz) {
    float sum_dy = 0, poison = 0;
#pragma omp simd reduction(+ : sum_dy, poison)
    for (size_t i = 0; i < n; i++) {
        float g = a[i];
        sum_dy += g;
        poison += y[i] * 0.0f;
        dz[i] = g;
    }
    return (block_sums){sum_dy, sum_dy, poison};
}

TN_SIMD void tn_cpu_sum(float *to, const float *a, const float *b, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = a[i] + b[i];
}

tn_cpu_sums tn_cpu_activation_backward(size_t count, const float *y, bool relu, float threshold,
                                       const float *const *dy, int parts, float *dz) {
    tn_cpu_sums sums = {0, 0, true};
    double poison = 0;
    float folded[BLOCK];
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t n = count - at < BLOCK ? count - at : BLOCK;
        const float *first = dy[0] + at;
        int left = parts;
        /* All but the last two parts are folded into a small buffer. */
        for (; left > 2 || (left == 2 && !relu); left--) {
            tn_cpu_sum(folded, first, dy[left - 1] + at, n);
            first = folded;
        }
        block_sums b = !relu       ? linear_block(n, y + at, first, dz + at)
                       : left == 2 ? relu_block_2(n, y + at, threshold, first, dy[1] + at, dz + at)
                                   : relu_block_1(n, y + at, threshold, first, dz + at);
        sums.dy += b.dy;
        sums.dz += b.dz;
        poison += b.poison;
    }
    sums.finite = poison == 0.0;
    return sums;
}

TN_SIMD void tn_cpu_activation(float *y, size_t count, bool relu, float carry) {
    float least = relu ? 0.0f : -INFINITY;
#pragma omp simd
    for (size_t i = 0; i < count; i++) y[i] = (y[i] < least ? least : y[i]) + carry;
}

TN_SIMD void tn_cpu_add(float *to, const float *from, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] += from[i];
}

TN_SIMD void tn_cpu_scale(float *to, const float *from, float factor, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = factor * from[i];
}

TN_SIMD double tn_cpu_dot(const float *a, const float *b, size_t count) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

TN_SIMD static double square_block(const double *values, size_t n) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += values[i] * values[i];
    return sum;
}

double tn_cpu_square_sum(const float *const *parts, int count, float shift, size_t floats) {
    double sum = 0, values[BLOCK];
    for (size_t at = 0; at < floats; at += BLOCK) {
        size_t n = floats - at < BLOCK ? floats - at : BLOCK;
        for (size_t i = 0; i < n; i++) values[i] = (double)parts[0][at + i] - (double)shift;
        for (int p = 1; p < count; p++)
            for (size_t i = 0; i < n; i++) values[i] += (double)parts[p][at + i];
        sum += square_block(values, n);
    }
    return sum;
}

TN_SIMD bool tn_cpu_finite(const float *x, size_t count) {
    float poison = 0;
#pragma omp simd reduction(+ : poison)
    for (size_t i = 0; i < count; i++) poison += x[i] * 0.0f;
    return poison == 0.0f;
}
