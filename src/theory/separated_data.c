#include "theory/separated_data.h"

#include <math.h>
#include <stdbool.h>

#include "base/memory.h"
#include "base/philox.h"
#include "theory/linear_algebra.h"

/* Removes from `v` what it has of the `count` orthonormal rows, twice for the sake of rounding; unit norm. */
static void orthonormalise(double *v, const double *rows, int count, size_t size) {
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < count; i++) {
            const double *row = rows + (size_t)i * size;
            tn_axpy(size, -tn_dot(size, row, v), row, v);
        }
    tn_scale(size, 1 / tn_norm(size, v), v);
}

tn_status tn_separated_points(uint64_t seed, int trial, int samples, int inputs, double delta, double *x) {
    size_t size = (size_t)inputs - 1;
    double *centre, *directions;
    TN_ASSERT(inputs >= 3 && delta > 0 && delta <= 1);
    TN_TRY(tn_alloc(&centre, size * ((size_t)samples + 1), sizeof *centre, "data points"));
    directions = centre + size; /* centre and directions are one list of rows */
    tn_rng rng = tn_rng_open(seed, TN_RNG_SYNTHETIC, (uint32_t)trial, 1);
    bool room = samples <= inputs - 2;
    tn_fill_normal(&rng, size * ((size_t)samples + 1), 1, centre);
    orthonormalise(centre, NULL, 0, size);
    for (int i = 0; i < samples; i++) {
        double *direction = directions + (size_t)i * size, *row = x + (size_t)i * (size_t)inputs;
        orthonormalise(direction, centre, room ? i + 1 : 1, size);
        /* Two points sqrt(1/2) (cos a c + sin a e_i) with orthogonal e_i are sin a apart. */
        for (size_t k = 0; k < size; k++)
            row[k] = sqrt(0.5) * (sqrt(1 - delta * delta) * centre[k] + delta * direction[k]);
        row[size] = sqrt(0.5);
    }
    tn_free(centre);
    return TN_OK;
}

double tn_separation(int samples, int inputs, const double *x) {
    double least = INFINITY;
    for (int i = 0; i < samples; i++)
        for (int j = 0; j < i; j++) {
            double sum = 0;
            for (int k = 0; k < inputs; k++) {
                double d =
                    x[(size_t)i * (size_t)inputs + (size_t)k] - x[(size_t)j * (size_t)inputs + (size_t)k];
                sum += d * d;
            }
            least = fmin(least, sqrt(sum));
        }
    return least;
}

void tn_random_targets(uint64_t seed, int trial, int samples, int outputs, double *targets) {
    tn_rng rng = tn_rng_open(seed, TN_RNG_SYNTHETIC, (uint32_t)trial, 2);
    tn_fill_normal(&rng, (size_t)samples * (size_t)outputs, sqrt(1.0 / outputs), targets);
}
