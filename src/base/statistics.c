#include "base/statistics.h"

#include <math.h>

tn_summary tn_summarise(const double *values, int count) {
    tn_summary s = {0, NAN, NAN, NAN, 0, INFINITY};
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++) {
        if (!isfinite(values[i])) continue;
        s.count++;
        sum += values[i];
        s.minimum = fmin(s.minimum, values[i]);
        s.maximum = fmax(s.maximum, values[i]);
    }
    if (s.count == 0) s.deviation = s.half_width = NAN;
    if (s.count > 0) s.mean = sum / s.count;
    if (s.count < 2) return s;
    for (int i = 0; i < count; i++)
        if (isfinite(values[i])) squares += (values[i] - s.mean) * (values[i] - s.mean);
    s.deviation = sqrt(squares / (s.count - 1));
    s.half_width = tn_student_95(s.count - 1) * s.deviation / sqrt(s.count);
    return s;
}

tn_difference tn_subtract(const tn_summary *a, const tn_summary *b) {
    tn_difference d = {a->mean - b->mean, INFINITY};
    if (a->count < 2 || b->count < 2) return d;
    double va = a->deviation * a->deviation / a->count, vb = b->deviation * b->deviation / b->count;
    if (!(va + vb > 0)) return d;
    double freedom = (va + vb) * (va + vb) / (va * va / (a->count - 1) + vb * vb / (b->count - 1));
    d.half_width = tn_student_95((int)(freedom + 1e-9)) * sqrt(va + vb);
    return d;
}

const char *tn_verdict_name(tn_verdict verdict) {
    static const char *const names[] = {"holds", "does not hold", "inconclusive"};
    return names[verdict];
}

/* A point of a fit, through logarithms when asked; false when it has to be left out. */
static bool point(const double *x, const double *y, int i, bool logarithmic, double *px, double *py) {
    *px = logarithmic ? log(x[i]) : x[i];
    *py = logarithmic ? log(y[i]) : y[i];
    return isfinite(*px) && isfinite(*py);
}

static tn_fit fit(const double *x, const double *y, int count, bool logarithmic) {
    tn_fit f = {0, NAN, NAN, NAN, NAN};
    double mean_x = 0, mean_y = 0, xx = 0, xy = 0, yy = 0, px, py;
    for (int i = 0; i < count; i++) {
        if (!point(x, y, i, logarithmic, &px, &py)) continue;
        f.count++;
        mean_x += px;
        mean_y += py;
    }
    mean_x /= f.count;
    mean_y /= f.count;
    for (int i = 0; i < count; i++) {
        if (!point(x, y, i, logarithmic, &px, &py)) continue;
        xx += (px - mean_x) * (px - mean_x);
        xy += (px - mean_x) * (py - mean_y);
        yy += (py - mean_y) * (py - mean_y);
    }
    if (f.count < 2 || !(xx > 0)) return f;
    f.slope = xy / xx;
    f.intercept = mean_y - f.slope * mean_x;
    double rest = fmax(0, yy - f.slope * xy);
    f.r2 = yy > 0 ? 1 - rest / yy : 1;
    f.half_width = f.count > 2 ? tn_student_95(f.count - 2) * sqrt(rest / (f.count - 2) / xx) : INFINITY;
    return f;
}

tn_fit tn_fit_line(const double *x, const double *y, int count) {
    return fit(x, y, count, false);
}

tn_fit tn_fit_power(const double *x, const double *y, int count) {
    return fit(x, y, count, true);
}

/* The closed forms for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4. */
double tn_student_cdf(double t, int freedom) {
    double theta = atan(t / sqrt(freedom)), c2 = cos(theta) * cos(theta), sum = 0, term;
    if (freedom % 2 == 0) {
        term = 1;
        for (int k = 1; k <= freedom / 2; k++) {
            sum += term;
            term *= c2 * (2 * k - 1) / (2 * k);
        }
        return 0.5 + 0.5 * sin(theta) * sum;
    }
    term = cos(theta);
    for (int k = 1; k <= (freedom - 1) / 2; k++) {
        sum += term;
        term *= c2 * (2 * k) / (2 * k + 1);
    }
    return 0.5 + (theta + sin(theta) * sum) / 3.14159265358979323846;
}

double tn_student_95(int freedom) {
    if (freedom < 1) return INFINITY;
    double low = 1.9, high = 13; /* 1.96 for many degrees of freedom, 12.7 for one */
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (tn_student_cdf(middle, freedom) < 0.975)
            low = middle;
        else
            high = middle;
    }
    return low;
}
