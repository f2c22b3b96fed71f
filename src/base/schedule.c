#include "base/schedule.h"

#include <math.h>
#include <string.h>

#include "base/number.h"
#include "base/text.h"

#define FORMS "use constant, cosine or step:EPOCH,EPOCH,...:FACTOR such as step:100,150:0.1"

static tn_status refuse(const char *text, const char *what) {
    return tn_fail(TN_ERR_USAGE, "--schedule \"%s\": %s; %s", tn_make_legible(text).text, what, FORMS);
}

static tn_status parse_step(const char *text, const char *at, tn_schedule *out) {
    for (;;) {
        size_t length = tn_number_scan(at);
        if (length == 0) return refuse(text, "a milestone is not a number");
        if (out->count == TN_MILESTONES_MAX) return refuse(text, "more than 32 milestones");
        double milestone = tn_number_value(at);
        if (!isfinite(milestone)) return refuse(text, "a milestone is too large");
        if (milestone <= 0) return refuse(text, "a milestone is not above 0");
        if (out->count > 0 && milestone <= out->milestones[out->count - 1])
            return refuse(text, "the milestones do not rise");
        out->milestones[out->count++] = milestone;
        at += length;
        if (*at == ':') break;
        if (*at == 0) return refuse(text, "the factor is missing");
        if (*at != ',') return refuse(text, "a milestone is not a number");
        at++;
    }
    if (!tn_number_parse(at + 1, &out->factor)) return refuse(text, "the factor is not a number");
    if (out->factor <= 0) return refuse(text, "the factor is not above 0");
    return TN_OK;
}

tn_status tn_schedule_parse(const char *text, tn_schedule *out) {
    *out = (tn_schedule){.kind = TN_SCHEDULE_CONSTANT, .factor = 1};
    if (strcmp(text, "constant") == 0) return TN_OK;
    if (strcmp(text, "cosine") == 0) {
        out->kind = TN_SCHEDULE_COSINE;
        return TN_OK;
    }
    if (strncmp(text, "step:", 5) != 0) return refuse(text, "no such schedule");
    out->kind = TN_SCHEDULE_STEP;
    return parse_step(text, text + 5, out);
}

double tn_schedule_lr(const tn_schedule *schedule, double base_lr, double warmup_epochs, int epoch,
                      int step_in_epoch, int steps_per_epoch, double total_epochs) {
    double t = (double)epoch * steps_per_epoch + step_in_epoch;
    double warm = round(warmup_epochs * steps_per_epoch), total = round(total_epochs * steps_per_epoch);
    double lr = base_lr;
    for (int i = 0; i < schedule->count && schedule->milestones[i] * steps_per_epoch <= t; i++)
        lr *= schedule->factor;
    if (t < warm) return lr * (t + 1) / warm;
    if (schedule->kind != TN_SCHEDULE_COSINE) return lr;
    if (t >= total) return 0;
    return lr * 0.5 * (1 + cos(3.141592653589793238 * (t - warm) / (total - warm)));
}
