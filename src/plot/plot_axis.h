/* The axes of a plot: range, ticks and their labels. */
#ifndef TN_PLOT_PLOT_AXIS_H
#define TN_PLOT_PLOT_AXIS_H

#include <stdbool.h>

enum { TN_AXIS_TICKS = 16, TN_TICK_LABEL = 32 };

typedef struct tn_axis {
    bool logarithmic;
    double low, high; /* of the values, then of the axis; logarithms on a logarithmic axis */
    int ticks;
    double tick[TN_AXIS_TICKS]; /* values */
} tn_axis;

/* An axis without values; then include them; then end it with about `wanted` ticks, more or less. */
void tn_axis_begin(tn_axis *axis, bool logarithmic);
void tn_axis_include(tn_axis *axis, double value); /* ignores what cannot be shown */
void tn_axis_end(tn_axis *axis, int wanted);

/* Finite, and positive on a logarithmic axis. */
bool tn_axis_can_show(const tn_axis *axis, double value);

/* 0 at the low end, 1 at the high end. */
double tn_axis_place(const tn_axis *axis, double value);

/* A tick's label: plain digits, or 1e5 for numbers far from 1. */
void tn_axis_label(const tn_axis *axis, double value, char out[TN_TICK_LABEL]);

#endif
