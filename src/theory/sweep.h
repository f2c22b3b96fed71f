/* A quantity measured at several depths (or other sizes) in independent trials, and what is said about it.
 *
 * Exponents are fitted in each trial (log value against log x); their mean over trials is given with its 95 %
 * interval, so that what the points of a trial have in common does not count as precision. */
#ifndef TN_THEORY_SWEEP_H
#define TN_THEORY_SWEEP_H

#include "theory/laboratory.h"

enum { TN_SWEEP_POINTS = 16 };

typedef struct tn_sweep {
    int points, trials;
    double x[TN_SWEEP_POINTS];
    double *values; /* trial t at point k: values[t * points + k]; NaN until it is set */
} tn_sweep;

/* Free with tn_sweep_free. */
tn_status tn_sweep_create(int points, const double *x, int trials, tn_sweep *out);
tn_status tn_sweep_create_depths(int points, const int *depths, int trials, tn_sweep *out);
void tn_sweep_free(tn_sweep *sweep);

void tn_sweep_set(tn_sweep *sweep, int trial, int point, double value);
double tn_sweep_at(const tn_sweep *sweep, int trial, int point);

/* Raises the value to `value` where that is larger or none was set; tn_sweep_lower likewise. */
void tn_sweep_raise(tn_sweep *sweep, int trial, int point, double value);
void tn_sweep_lower(tn_sweep *sweep, int trial, int point, double value);

double tn_sweep_mean(const tn_sweep *sweep, int point);
double tn_sweep_maximum(const tn_sweep *sweep); /* over all trials and points */
double tn_sweep_minimum(const tn_sweep *sweep);

typedef struct tn_exponent {
    double value, half_width; /* NaN when no trial determines it */
} tn_exponent;

tn_exponent tn_sweep_exponent(const tn_sweep *sweep);

/* The exponent of log(value) instead: for what grows like exp(x^q). Values at or below 1 are left out. */
tn_exponent tn_sweep_log_exponent(const tn_sweep *sweep);

/* Below (above) the bound with its whole interval: holds; on the other side: does not; else inconclusive. */
tn_verdict tn_judge_below(tn_exponent exponent, double bound);
tn_verdict tn_judge_above(tn_exponent exponent, double bound);

/* Holds when all do; does not hold when one does not. */
tn_verdict tn_judge_both(tn_verdict a, tn_verdict b);

/* The mean over trials as a line, with a band from the least to the largest. */
tn_status tn_sweep_plot(const tn_sweep *sweep, tn_plot *plot, int panel, const char *label, int colour);

#endif
