/* Data as the theory wants it (Assumption 1 of [S]): unit norm, last coordinate 1/sqrt(2), separated. */
#ifndef TN_THEORY_SEPARATED_DATA_H
#define TN_THEORY_SEPARATED_DATA_H

#include <stdint.h>

#include "base/fail.h"

/* Fills x (samples x inputs). With samples <= inputs - 2 all pairs are exactly `delta` apart (0 < delta <=
 * 1); with more, about delta: the points are those of a cone around a random centre, in random directions
 * that are orthogonal where there is room. inputs >= 3. A pure function of (seed, trial). TN_ERR_MEMORY. */
tn_status tn_separated_points(uint64_t seed, int trial, int samples, int inputs, double delta, double *x);

/* Smallest distance between two rows. */
double tn_separation(int samples, int inputs, const double *x);

/* Targets of the squared loss (samples x outputs): independent N(0, 1 / outputs), so of norm 1 or so. */
void tn_random_targets(uint64_t seed, int trial, int samples, int outputs, double *targets);

#endif
