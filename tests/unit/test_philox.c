/* The generator: Random123's published vectors, streams, and the distributions drawn from it. All seeds are
 * fixed, so each test passes always or never; the bounds are those of a test at the 0.1 % level or wider. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/philox.h"

/* Random123, kat_vectors, philox4x32 with 10 rounds: counter, key, output. */
static void known_answers(void **state) {
    (void)state;
    static const uint32_t vectors[][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e,
         0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb,
         0x5001e420, 0x24126ea1},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        uint32_t block[4];
        tn_philox(vectors[i], vectors[i] + 4, block);
        assert_memory_equal(block, vectors[i] + 6, sizeof block);
        memcpy(block, vectors[i], sizeof block); /* in place */
        tn_philox(block, vectors[i] + 4, block);
        assert_memory_equal(block, vectors[i] + 6, sizeof block);
    }
}

/* The stream is the blocks of counters (0, b, a, purpose), (1, b, a, purpose), ... under the seed. */
static void streams_are_counted_blocks(void **state) {
    (void)state;
    tn_rng rng = tn_rng_open(0x0123456789abcdefu, TN_RNG_AUGMENT, 7, 9);
    const uint32_t key[2] = {0x89abcdef, 0x01234567};
    for (uint32_t n = 0; n < 5; n++) {
        const uint32_t counter[4] = {n, 9, 7, TN_RNG_AUGMENT};
        uint32_t block[4];
        tn_philox(counter, key, block);
        for (int i = 0; i < 4; i++) assert_int_equal(tn_rng_bits(&rng), block[i]);
    }
}

static void purposes_keep_their_numbers(void **state) {
    (void)state;
    assert_int_equal(TN_RNG_INIT, 1);
    assert_int_equal(TN_RNG_SHUFFLE, 2);
    assert_int_equal(TN_RNG_AUGMENT, 3);
    assert_int_equal(TN_RNG_MIXUP, 4);
    assert_int_equal(TN_RNG_SYNTHETIC, 5);
}

static void streams_differ(void **state) {
    (void)state;
    const tn_rng open[] = {tn_rng_open(1, TN_RNG_INIT, 0, 0),         tn_rng_open(2, TN_RNG_INIT, 0, 0),
                           tn_rng_open(1, TN_RNG_SHUFFLE, 0, 0),      tn_rng_open(1, TN_RNG_INIT, 1, 0),
                           tn_rng_open(1, TN_RNG_INIT, 0, 1),         tn_rng_open(1, TN_RNG_INIT, 1, 1),
                           tn_rng_open(1ull << 32, TN_RNG_INIT, 0, 0)};
    enum { STREAMS = sizeof open / sizeof *open };
    uint32_t first[STREAMS][2];
    for (int i = 0; i < STREAMS; i++) {
        tn_rng rng = open[i];
        first[i][0] = tn_rng_bits(&rng);
        first[i][1] = tn_rng_bits(&rng);
        for (int j = 0; j < i; j++) assert_memory_not_equal(first[i], first[j], sizeof first[i]);
    }
}

/* Chi-square over n cells; with k = n - 1 degrees of freedom it is about k +- sqrt(2 k). */
static void below_is_even(void **state) {
    (void)state;
    static const uint32_t sizes[] = {2, 3, 7, 10, 97, 1000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint32_t n = sizes[s], draws = 1000 * n;
        uint32_t counts[1000] = {0};
        tn_rng rng = tn_rng_open(5, TN_RNG_SHUFFLE, n, 0);
        for (uint32_t i = 0; i < draws; i++) {
            uint32_t x = tn_rng_below(&rng, n);
            assert_true(x < n);
            counts[x]++;
        }
        double chi = 0;
        for (uint32_t i = 0; i < n; i++) chi += (counts[i] - 1000.0) * (counts[i] - 1000.0) / 1000.0;
        double k = n - 1;
        if (chi > k + 4 * sqrt(2 * k) + 8)
            fail_msg("n = %u: chi-square %g for %g degrees of freedom", n, chi, k);
    }
}

/* Without rejection, thirds of 3 * 2^30 would come out as 1/2, 1/4, 1/4. */
static void below_is_even_for_large_ranges(void **state) {
    (void)state;
    const uint32_t n = 3u << 30;
    double counts[3] = {0}, chi = 0;
    tn_rng rng = tn_rng_open(6, TN_RNG_SHUFFLE, 0, 0);
    for (int i = 0; i < 30000; i++) counts[tn_rng_below(&rng, n) % 3]++;
    for (int i = 0; i < 3; i++) chi += (counts[i] - 10000) * (counts[i] - 10000) / 10000;
    assert_true(chi < 13.8);
    for (int i = 0; i < 100; i++) assert_int_equal(tn_rng_below(&rng, 1), 0);
}

typedef double (*draw)(tn_rng *rng, double parameter);

static double draw_uniform(tn_rng *rng, double unused) {
    (void)unused;
    return tn_rng_uniform(rng);
}

static double draw_normal(tn_rng *rng, double unused) {
    (void)unused;
    return tn_rng_normal(rng);
}

enum { DRAWS = 200000 };

/* Mean, variance, third and fourth central moments of DRAWS numbers. */
static void moments(draw function, double parameter, double out[4], double *low, double *high) {
    tn_rng rng = tn_rng_open(7, TN_RNG_INIT, (uint32_t)(parameter * 1000), 0);
    static double x[DRAWS];
    double mean = 0;
    *low = INFINITY;
    *high = -INFINITY;
    for (int i = 0; i < DRAWS; i++) {
        x[i] = function(&rng, parameter);
        mean += x[i] / DRAWS;
        *low = fmin(*low, x[i]);
        *high = fmax(*high, x[i]);
    }
    memset(out, 0, 4 * sizeof *out);
    out[0] = mean;
    for (int i = 0; i < DRAWS; i++)
        for (int p = 1; p < 4; p++) out[p] += pow(x[i] - mean, p + 1) / DRAWS;
}

static void near(const char *what, double value, double expected, double tolerance) {
    if (!(fabs(value - expected) <= tolerance))
        fail_msg("%s: %g, not %g +- %g", what, value, expected, tolerance);
}

static void uniform_numbers(void **state) {
    (void)state;
    double m[4], low, high;
    moments(draw_uniform, 0, m, &low, &high);
    assert_true(low > 0 && high < 1);
    near("mean", m[0], 0.5, 4 * sqrt(1.0 / 12 / DRAWS));
    near("variance", m[1], 1.0 / 12, 4 * sqrt(1.0 / 180 / DRAWS));
    near("lowest", low, 0, 1e-4);
    near("highest", high, 1, 1e-4);
}

static void normal_numbers(void **state) {
    (void)state;
    double m[4], low, high;
    moments(draw_normal, 0, m, &low, &high);
    near("mean", m[0], 0, 4 * sqrt(1.0 / DRAWS));
    near("variance", m[1], 1, 4 * sqrt(2.0 / DRAWS));
    near("third moment", m[2], 0, 4 * sqrt(6.0 / DRAWS));
    near("fourth moment", m[3], 3, 4 * sqrt(96.0 / DRAWS));
    assert_true(low < -4 && low > -6 && high > 4 && high < 6);
}

/* Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)), no skew, fourth central moment 3 / (16 (2a + 1) (2a + 3)).
 */
static void beta_numbers(void **state) {
    (void)state;
    static const double alphas[] = {0.1, 0.2, 0.7, 1, 2, 10};
    for (size_t i = 0; i < sizeof alphas / sizeof *alphas; i++) {
        double a = alphas[i], m[4], low, high;
        double variance = 1 / (4 * (2 * a + 1)), fourth = 3 / (16 * (2 * a + 1) * (2 * a + 3));
        moments(tn_rng_beta, a, m, &low, &high);
        assert_true(low >= 0 && high <= 1);
        near("mean", m[0], 0.5, 4 * sqrt(variance / DRAWS));
        near("variance", m[1], variance, 4 * sqrt((fourth - variance * variance) / DRAWS));
        near("third moment", m[2], 0, 0.05 * pow(variance, 1.5));
        near("fourth moment", m[3], fourth, 0.03 * fourth);
    }
}

/* Both gamma draws underflow to zero for tiny alpha; the result must still be a number at one of the ends. */
static void beta_of_tiny_alpha(void **state) {
    (void)state;
    tn_rng rng = tn_rng_open(8, TN_RNG_MIXUP, 0, 0);
    int ones = 0;
    for (int i = 0; i < 1000; i++) {
        double x = tn_rng_beta(&rng, 1e-6);
        assert_true(x >= 0 && x <= 1 && (x < 0.001 || x > 0.999));
        ones += x > 0.5;
    }
    assert_in_range(ones, 437, 563); /* 4 standard deviations */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(streams_are_counted_blocks),
        cmocka_unit_test(purposes_keep_their_numbers),
        cmocka_unit_test(streams_differ),
        cmocka_unit_test(below_is_even),
        cmocka_unit_test(below_is_even_for_large_ranges),
        cmocka_unit_test(uniform_numbers),
        cmocka_unit_test(normal_numbers),
        cmocka_unit_test(beta_numbers),
        cmocka_unit_test(beta_of_tiny_alpha),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
