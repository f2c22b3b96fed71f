/* Learning rate as a function of the position in a run. */
#ifndef TN_BASE_SCHEDULE_H
#define TN_BASE_SCHEDULE_H

#include "base/fail.h"

#define TN_MILESTONES_MAX 32

typedef enum tn_schedule_kind { TN_SCHEDULE_CONSTANT, TN_SCHEDULE_STEP, TN_SCHEDULE_COSINE } tn_schedule_kind;

typedef struct tn_schedule {
    tn_schedule_kind kind;
    int count;                            /* step: milestones */
    double milestones[TN_MILESTONES_MAX]; /* step: in epochs, rising; fractions are allowed */
    double factor;                        /* step: multiplies the rate at each milestone */
} tn_schedule;

/* Parses "constant", "cosine" or "step:100,150:0.1". TN_ERR_USAGE names what is wrong. */
tn_status tn_schedule_parse(const char *text, tn_schedule *out);

/* Learning rate of step `step_in_epoch` (from 0) of `epoch` (from 0). With t = epoch * steps_per_epoch +
 * step_in_epoch, T = total_epochs * steps_per_epoch and w = warmup_epochs * steps_per_epoch, both rounded to
 * whole steps: t < w      base_lr * (t + 1) / w, times what `step` has decayed by then constant   base_lr
 *   step       base_lr * factor ^ (milestones m with m * steps_per_epoch <= t)
 *   cosine     base_lr * (1 + cos(pi (t - w) / (T - w))) / 2; 0 from t = T on
 * total_epochs may be fractional (a run whose length is given in steps). Pure: no state. */
double tn_schedule_lr(const tn_schedule *schedule, double base_lr, double warmup_epochs, int epoch,
                      int step_in_epoch, int steps_per_epoch, double total_epochs);

#endif
