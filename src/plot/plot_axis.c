#include "plot/plot_axis.h"

#include <math.h>
#include <stdio.h>

void tn_axis_begin(tn_axis *axis, bool logarithmic) {
    *axis = (tn_axis){.logarithmic = logarithmic, .low = INFINITY, .high = -INFINITY};
}

bool tn_axis_can_show(const tn_axis *axis, double value) {
    return isfinite(value) && (!axis->logarithmic || value > 0);
}

void tn_axis_include(tn_axis *axis, double value) {
    if (!tn_axis_can_show(axis, value)) return;
    double place = axis->logarithmic ? log10(value) : value;
    axis->low = fmin(axis->low, place);
    axis->high = fmax(axis->high, place);
}

static void add_tick(tn_axis *axis, double value) {
    double place = axis->logarithmic ? log10(value) : value, slack = 1e-9 * (axis->high - axis->low);
    if (place < axis->low - slack || place > axis->high + slack || axis->ticks == TN_AXIS_TICKS) return;
    axis->tick[axis->ticks++] = value;
}

/* Multiples of 1, 2 or 5 times a power of ten between two values. */
static void linear_ticks(tn_axis *axis, double low, double high, int wanted) {
    double rough = (high - low) / wanted, power = pow(10, floor(log10(rough)));
    double step = rough / power < 1.5   ? power
                  : rough / power < 3.5 ? 2 * power
                  : rough / power < 7.5 ? 5 * power
                                        : 10 * power;
    for (double k = ceil(low / step - 1e-9); k * step <= high + 1e-9 * step && axis->ticks < TN_AXIS_TICKS;
         k++)
        add_tick(axis, fabs(k) < 0.5 ? 0 : k * step);
}

static void log_ticks(tn_axis *axis, int wanted) {
    double decades = axis->high - axis->low;
    if (decades < 0.7) {
        linear_ticks(axis, pow(10, axis->low), pow(10, axis->high), wanted);
        return;
    }
    static const double thirds[] = {1, 2, 5};
    double stride = fmax(1, ceil(decades / wanted));
    double first = ceil(axis->low / stride - 1) * stride;
    for (double k = first; k <= axis->high && axis->ticks < TN_AXIS_TICKS; k += stride)
        for (int i = 0; i < (decades < 2.2 ? 3 : 1); i++) add_tick(axis, thirds[i] * pow(10, k));
}

void tn_axis_end(tn_axis *axis, int wanted) {
    if (!(axis->low <= axis->high)) axis->low = axis->high = 0;
    double span = axis->high - axis->low,
           least = axis->logarithmic ? 0.1 : (span > 0 ? 1e-3 : 0.2) * fmax(1e-9, fabs(axis->high));
    if (span < least) {
        axis->low -= least / 2;
        axis->high += least / 2;
        span = axis->high - axis->low;
    }
    bool from_zero = !axis->logarithmic && axis->low >= 0 && axis->low < 0.4 * axis->high;
    axis->low = from_zero ? 0 : axis->low - 0.04 * span;
    axis->high += 0.04 * span;
    if (axis->logarithmic)
        log_ticks(axis, wanted);
    else
        linear_ticks(axis, axis->low, axis->high, wanted);
}

double tn_axis_place(const tn_axis *axis, double value) {
    double place = axis->logarithmic ? log10(value) : value;
    return (place - axis->low) / (axis->high - axis->low);
}

void tn_axis_label(const tn_axis *axis, double value, char out[TN_TICK_LABEL]) {
    double size = fabs(value);
    if (value == 0 || (size >= 1e-3 && size < 99999) || !axis->logarithmic)
        snprintf(out, TN_TICK_LABEL, "%.5g", value);
    else
        snprintf(out, TN_TICK_LABEL, "%.0e", value);
}
