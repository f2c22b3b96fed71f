/* Means, differences, straight-line fits and their 95 % confidence intervals; verdicts on claims.
 *
 * Intervals assume independent, normally distributed errors (Student's t). Values that are not finite are
 * left out. */
#ifndef TN_BASE_STATISTICS_H
#define TN_BASE_STATISTICS_H

#include <stdbool.h>

typedef struct tn_summary {
    int count; /* finite values; with none the rest is NaN */
    double mean, minimum, maximum;
    double deviation;  /* sample standard deviation, 0 for one value */
    double half_width; /* of the 95 % interval of the mean, infinite for one value */
} tn_summary;

tn_summary tn_summarise(const double *values, int count);

/* `a` less `b`: the difference of their means and half the width of its 95 % interval (Welch; degrees of
 * freedom rounded down). Infinite when one of them has fewer than two values, or when none of the values
 * differ, which says nothing of the noise. NaN and infinite when one has none. */
typedef struct tn_difference {
    double mean, half_width;
} tn_difference;

tn_difference tn_subtract(const tn_summary *a, const tn_summary *b);

/* What a measurement says of a claim. */
typedef enum tn_verdict { TN_HOLDS, TN_DOES_NOT_HOLD, TN_INCONCLUSIVE } tn_verdict;
const char *tn_verdict_name(tn_verdict verdict); /* "holds", "does not hold", "inconclusive" */

/* y = intercept + slope * x by least squares. */
typedef struct tn_fit {
    int count; /* points used; NaN below when they do not determine a line */
    double slope, intercept;
    double half_width; /* of the 95 % interval of the slope; infinite for two points */
    double r2;         /* share of the variance that the line explains; 1 where there is no variance */
} tn_fit;

tn_fit tn_fit_line(const double *x, const double *y, int count);

/* log y against log x: the slope is an exponent. Points that are not positive are left out. */
tn_fit tn_fit_power(const double *x, const double *y, int count);

/* t with P(|T| <= t) = 0.95 for T of Student's distribution; infinite for 0 degrees of freedom. */
double tn_student_95(int freedom);

/* P(T <= t) of Student's distribution, freedom >= 1. */
double tn_student_cdf(double t, int freedom);

#endif
