#include "base/philox.h"

#include <math.h>
#include <string.h>

void tn_philox(const uint32_t in[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = in[0], c1 = in[1], c2 = in[2], c3 = in[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

tn_rng tn_rng_open(uint64_t seed, tn_purpose purpose, uint32_t a, uint32_t b) {
    tn_rng rng = {
        .counter = {0, b, a, (uint32_t)purpose}, .key = {(uint32_t)seed, (uint32_t)(seed >> 32)}, .used = 4};
    return rng;
}

uint32_t tn_rng_bits(tn_rng *rng) {
    if (rng->used == 4) {
        tn_philox(rng->counter, rng->key, rng->block);
        rng->counter[0]++;
        rng->used = 0;
    }
    return rng->block[rng->used++];
}

uint32_t tn_rng_below(tn_rng *rng, uint32_t n) {
    uint64_t product = (uint64_t)tn_rng_bits(rng) * n;
    if ((uint32_t)product < n) {
        uint32_t threshold = -n % n;
        while ((uint32_t)product < threshold) product = (uint64_t)tn_rng_bits(rng) * n;
    }
    return (uint32_t)(product >> 32);
}

double tn_rng_uniform(tn_rng *rng) {
    return ((double)tn_rng_bits(rng) + 0.5) * 0x1p-32;
}

double tn_rng_normal(tn_rng *rng) {
    double radius = sqrt(-2.0 * log(tn_rng_uniform(rng)));
    return radius * cos(6.283185307179586477 * tn_rng_uniform(rng));
}

static double gamma_draw(tn_rng *rng, double shape) {
    /* For shape < 1: Gamma(a) = Gamma(a + 1) * U^(1/a). */
    double boost = 1.0;
    if (shape < 1.0) {
        boost = pow(tn_rng_uniform(rng), 1.0 / shape);
        shape += 1.0;
    }
    double d = shape - 1.0 / 3.0, c = 1.0 / sqrt(9.0 * d);
    for (;;) {
        double x = tn_rng_normal(rng), v = 1.0 + c * x;
        if (v <= 0.0) continue;
        v = v * v * v;
        if (log(tn_rng_uniform(rng)) < 0.5 * x * x + d - d * v + d * log(v)) return boost * d * v;
    }
}

double tn_rng_beta(tn_rng *rng, double alpha) {
    double x = gamma_draw(rng, alpha), y = gamma_draw(rng, alpha);
    /* Both underflow only for tiny alpha, where Beta is a coin toss between the ends. */
    if (x + y <= 0.0) return tn_rng_uniform(rng) < 0.5 ? 0.0 : 1.0;
    return x / (x + y);
}
