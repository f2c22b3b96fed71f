#include "theory/sweep.h"

#include <math.h>

#include "base/memory.h"
#include "base/statistics.h"

tn_status tn_sweep_create(int points, const double *x, int trials, tn_sweep *out) {
    TN_ASSERT(points >= 1 && points <= TN_SWEEP_POINTS && trials >= 1);
    *out = (tn_sweep){.points = points, .trials = trials};
    TN_TRY(tn_alloc(&out->values, (size_t)points * (size_t)trials, sizeof *out->values, "a sweep"));
    for (int i = 0; i < points; i++) out->x[i] = x[i];
    for (int i = 0; i < points * trials; i++) out->values[i] = NAN;
    return TN_OK;
}

tn_status tn_sweep_create_depths(int points, const int *depths, int trials, tn_sweep *out) {
    double x[TN_SWEEP_POINTS];
    TN_ASSERT(points <= TN_SWEEP_POINTS);
    for (int i = 0; i < points; i++) x[i] = depths[i];
    return tn_sweep_create(points, x, trials, out);
}

void tn_sweep_free(tn_sweep *sweep) {
    tn_free(sweep->values);
    sweep->values = NULL;
}

static double *place(const tn_sweep *sweep, int trial, int point) {
    TN_ASSERT(trial >= 0 && trial < sweep->trials && point >= 0 && point < sweep->points);
    return &sweep->values[trial * sweep->points + point];
}

void tn_sweep_set(tn_sweep *sweep, int trial, int point, double value) {
    *place(sweep, trial, point) = value;
}

double tn_sweep_at(const tn_sweep *sweep, int trial, int point) {
    return *place(sweep, trial, point);
}

void tn_sweep_raise(tn_sweep *sweep, int trial, int point, double value) {
    double *v = place(sweep, trial, point);
    *v = isnan(*v) || value > *v ? value : *v;
}

void tn_sweep_lower(tn_sweep *sweep, int trial, int point, double value) {
    double *v = place(sweep, trial, point);
    *v = isnan(*v) || value < *v ? value : *v;
}

static tn_summary at_point(const tn_sweep *sweep, int point) {
    double values[1024];
    int count = sweep->trials < 1024 ? sweep->trials : 1024;
    for (int t = 0; t < count; t++) values[t] = tn_sweep_at(sweep, t, point);
    return tn_summarise(values, count);
}

double tn_sweep_mean(const tn_sweep *sweep, int point) {
    return at_point(sweep, point).mean;
}

double tn_sweep_maximum(const tn_sweep *sweep) {
    return tn_summarise(sweep->values, sweep->points * sweep->trials).maximum;
}

double tn_sweep_minimum(const tn_sweep *sweep) {
    return tn_summarise(sweep->values, sweep->points * sweep->trials).minimum;
}

static tn_exponent exponent_of(const tn_sweep *sweep, bool of_logarithm) {
    double slopes[1024], y[TN_SWEEP_POINTS];
    int count = sweep->trials < 1024 ? sweep->trials : 1024;
    tn_fit fit = {0};
    for (int t = 0; t < count; t++) {
        for (int k = 0; k < sweep->points; k++) {
            y[k] = tn_sweep_at(sweep, t, k);
            if (of_logarithm) y[k] = log(y[k]);
        }
        fit = tn_fit_power(sweep->x, y, sweep->points);
        slopes[t] = fit.slope;
    }
    tn_summary s = tn_summarise(slopes, count);
    tn_exponent result = {s.mean, s.half_width};
    if (count == 1) result.half_width = fit.half_width;
    return result;
}

tn_exponent tn_sweep_exponent(const tn_sweep *sweep) {
    return exponent_of(sweep, false);
}

tn_exponent tn_sweep_log_exponent(const tn_sweep *sweep) {
    return exponent_of(sweep, true);
}

tn_verdict tn_judge_below(tn_exponent e, double bound) {
    if (e.value + e.half_width < bound) return TN_HOLDS;
    return e.value - e.half_width > bound ? TN_DOES_NOT_HOLD : TN_INCONCLUSIVE;
}

tn_verdict tn_judge_above(tn_exponent e, double bound) {
    return tn_judge_below((tn_exponent){-e.value, e.half_width}, -bound);
}

tn_verdict tn_judge_both(tn_verdict a, tn_verdict b) {
    if (a == TN_DOES_NOT_HOLD || b == TN_DOES_NOT_HOLD) return TN_DOES_NOT_HOLD;
    return a == TN_HOLDS ? b : a;
}

tn_status tn_sweep_plot(const tn_sweep *sweep, tn_plot *plot, int panel, const char *label, int colour) {
    double mean[TN_SWEEP_POINTS], low[TN_SWEEP_POINTS], high[TN_SWEEP_POINTS];
    for (int k = 0; k < sweep->points; k++) {
        tn_summary s = at_point(sweep, k);
        mean[k] = s.mean;
        low[k] = s.minimum;
        high[k] = s.maximum;
    }
    return tn_plot_series(plot, panel, label, colour, TN_MARK_BOTH, sweep->points, sweep->x, mean, low, high);
}
