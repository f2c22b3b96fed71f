/* The starting values of the fixtures in tests/oracle: each a pure function of its stream and index, so that
 * no fixture stores them. README.md there defines it. */
#ifndef TN_TESTS_ORACLE_VALUES_H
#define TN_TESTS_ORACLE_VALUES_H

#include <stdint.h>

static inline float oracle_value(uint64_t stream, uint64_t index, float offset, float halfwidth) {
    uint64_t z = ((stream << 32) + index) + 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    float u = (float)(z >> 40) * 0x1p-24f, centred = 2.0f * u - 1.0f;
    volatile float product = centred * halfwidth; /* never fused with the addition */
    return offset + product;
}

#endif
