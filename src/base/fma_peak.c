#include "base/fma_peak.h"

#include "base/clock.h"

#define ITERATIONS 20000

#if defined(__x86_64__)
#include <immintrin.h>

/* Twelve independent chains hide the latency of the multiply-add units of any current core. */
__attribute__((target("avx2,fma"))) static float chains_256(float seed) {
    __m256 a[12], x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(seed);
    for (int i = 0; i < 12; i++) a[i] = _mm256_set1_ps((float)i);
    for (int n = 0; n < ITERATIONS; n++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) a[i] = _mm256_fmadd_ps(a[i], x, y);
    }
    for (int i = 1; i < 12; i++) a[0] = _mm256_add_ps(a[0], a[i]);
    return _mm256_cvtss_f32(a[0]);
}

__attribute__((target("avx512f"))) static float chains_512(float seed) {
    __m512 a[12], x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(seed);
    for (int i = 0; i < 12; i++) a[i] = _mm512_set1_ps((float)i);
    for (int n = 0; n < ITERATIONS; n++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++) a[i] = _mm512_fmadd_ps(a[i], x, y);
    }
    for (int i = 1; i < 12; i++) a[0] = _mm512_add_ps(a[0], a[i]);
    return _mm512_cvtss_f32(a[0]);
}
#endif

static float chains_plain(float seed) {
    float a[12];
    for (int i = 0; i < 12; i++) a[i] = (float)i;
    for (int n = 0; n < ITERATIONS; n++)
        for (int i = 0; i < 12; i++) a[i] = a[i] * 0.999f + seed;
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += a[i];
    return sum;
}

static double rate(float (*chains)(float), double operations, double seconds) {
    double best = 0, end = tn_now() + seconds;
    volatile float sink = 1e-3f;
    while (tn_now() < end) {
        double start = tn_now();
        sink = chains(sink * 0.0f + 1e-3f);
        double speed = operations * ITERATIONS / (tn_now() - start);
        if (speed > best) best = speed;
    }
    return best;
}

double tn_fma_peak(double seconds) {
#if defined(__x86_64__)
    double narrow = 0, wide = 0;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        narrow = rate(chains_256, 12 * 16, seconds / 2);
    if (__builtin_cpu_supports("avx512f")) wide = rate(chains_512, 12 * 32, seconds / 2);
    if (wide > narrow) return wide;
    if (narrow > 0) return narrow;
#endif
    return rate(chains_plain, 12 * 2, seconds);
}
