#include "theory/norm_growth.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/statistics.h"

enum { CURVES_MAX = 5 };

/* What the official code shows at initialisation, ResNet-110: first and last block of each stage relative to
 * the first of all. */
static const double official[2][6] = {{1, 3.63, 0.59, 2.56, 0.42, 1.79}, {1, 1.26, 0.59, 0.79, 0.42, 0.56}};

typedef struct judgement {
    tn_lab *lab;
    const tn_norm_study *study;
} judgement;

/* Exponent of the squared norm in the block's number within a stage, without the first quarter of the blocks,
 * where the stage's input still counts. NaN for fewer than four blocks. */
static tn_fit growth(const tn_norm_series *s, int stage) {
    int from = s->first[stage], to = s->first[stage + 1], skip = (to - from) / 4;
    double x[2000], y[2000];
    int count = 0;
    for (int i = from + skip; i < to && count < 2000; i++, count++) {
        x[count] = i - from + 1;
        y[count] = s->output[i] * s->output[i];
    }
    if (to - from < 4) count = 0;
    return tn_fit_power(x, y, count);
}

static double ratio(const tn_norm_series *s, int stage) {
    return s->output[s->first[stage + 1] - 1] / s->output[s->first[stage]];
}

static tn_status fill_tables(const judgement *s) {
    tn_number_table *blocks, *stages;
    TN_TRY(tn_lab_table(s->lab, "blocks",
                        "depth,tau,stage,block,output_norm,relative,gradient_norm,run,epoch", &blocks));
    TN_TRY(tn_lab_table(s->lab, "stages", "depth,tau,stage,first,last,ratio,exponent,half_width,run,epoch",
                        &stages));
    for (int i = 0; i < s->study->count; i++) {
        const tn_norm_series *v = &s->study->series[i];
        double tau = strcmp(v->variant, "bn") ? 1 : 0, one = v->output[0];
        for (int stage = 0; stage < v->stages; stage++) {
            tn_fit fit = growth(v, stage);
            int from = v->first[stage], to = v->first[stage + 1];
            TN_TRY(TN_TABLE_ADD(stages, v->depth, tau, stage + 1, v->output[from] / one,
                                v->output[to - 1] / one, ratio(v, stage), fit.slope, fit.half_width, v->run,
                                v->epoch));
            for (int b = from; b < to; b++)
                TN_TRY(TN_TABLE_ADD(blocks, v->depth, tau, stage + 1, b + 1, v->output[b], v->output[b] / one,
                                    v->gradient[b], v->run, v->epoch));
        }
    }
    return TN_OK;
}

static tn_status draw_series(tn_plot *plot, int panel, const tn_norm_series *v, const char *label,
                             int colour) {
    double *x;
    TN_TRY(tn_alloc(&x, 2 * (size_t)v->blocks, sizeof *x, "a plot"));
    for (int b = 0; b < v->blocks; b++) {
        x[b] = b + 1;
        x[v->blocks + b] = v->output[b] / v->output[0];
    }
    tn_status status =
        tn_plot_series(plot, panel, label, colour, TN_MARK_LINE, v->blocks, x, x + v->blocks, NULL, NULL);
    tn_free(x);
    return status;
}

/* One panel for each run, with at most CURVES_MAX of its epochs. */
static tn_status draw_runs(const judgement *s, tn_plot *plot) {
    for (int from = 0, to; from < s->study->count; from = to) {
        int panel, curves;
        for (to = from; to < s->study->count && s->study->series[to].run == s->study->series[from].run;
             to++) {
        }
        TN_TRY(tn_plot_panel(plot, s->study->series[from].name, "block", "norm / norm of block 1", false,
                             false, &panel));
        curves = to - from < CURVES_MAX ? to - from : CURVES_MAX;
        for (int c = 0; c < curves; c++) {
            const tn_norm_series *v =
                &s->study->series[curves > 1 ? from + c * (to - from - 1) / (curves - 1) : from];
            char label[48];
            snprintf(label, sizeof label, "after epoch %d", v->epoch + 1);
            TN_TRY(draw_series(plot, panel, v, v->epoch < 0 ? "at the start" : label, c));
        }
    }
    return TN_OK;
}

static tn_status draw(const judgement *s) {
    tn_plot *plot;
    int panel = 0;
    TN_TRY(tn_lab_plot(s->lab, "bn", "Norm of each block's output relative to the first block's.", &plot));
    if (s->study->runs) return draw_runs(s, plot);
    for (int i = 0; i < s->study->count; i++) {
        const tn_norm_series *v = &s->study->series[i];
        bool second = i > 0 && !strcmp(v->model, s->study->series[i - 1].model);
        if (!second)
            TN_TRY(tn_plot_panel(plot, v->model, "block", "norm / norm of block 1", false, false, &panel));
        TN_TRY(draw_series(plot, panel, v, v->variant, second));
    }
    return TN_OK;
}

/* "1 -> 3.63, 0.59 -> 2.56, ..." */
static tn_status describe(const tn_norm_series *v, tn_string *out) {
    for (int stage = 0; stage < v->stages; stage++)
        TN_TRY(tn_string_printf(out, "%s%.2f -> %.2f", stage ? ", " : "",
                                v->output[v->first[stage]] / v->output[0],
                                v->output[v->first[stage + 1] - 1] / v->output[0]));
    return TN_OK;
}

static tn_status judge_growth(const judgement *s, const tn_norm_series *v) {
    double low = INFINITY, high = -INFINITY;
    char claim[160];
    tn_string text = {0};
    for (int stage = 0; stage < v->stages; stage++) {
        double slope = growth(v, stage).slope;
        /* These leave out NaN: stages of fewer than four blocks. */
        low = fmin(low, slope);
        high = fmax(high, slope);
    }
    snprintf(claim, sizeof claim, "Claim 1: in %s the squared norm grows in proportion to the block's number",
             v->name);
    tn_status status = describe(v, &text);
    if (status == TN_OK)
        status = tn_lab_verdict(s->lab,
                                isinf(low)                  ? TN_INCONCLUSIVE
                                : low >= 0.8 && high <= 1.2 ? TN_HOLDS
                                                            : TN_DOES_NOT_HOLD,
                                claim, "exponent from 0.8 to 1.2 within every stage, first quarter left out",
                                "exponents %.3f to %.3f; norm in each stage, relative to block 1: %s", low,
                                high, text.data);
    tn_string_free(&text);
    return status;
}

static tn_status judge_flatness(const judgement *s, const tn_norm_series *v, const tn_norm_series *bn) {
    double worst = 0, least = INFINITY;
    char claim[160];
    tn_string text = {0};
    for (int stage = 0; stage < v->stages; stage++) {
        worst = fmax(worst, ratio(v, stage));
        least = fmin(least, ratio(bn, stage));
    }
    snprintf(claim, sizeof claim, "Figure 3: in %s the norm hardly grows, other than without tau", v->name);
    tn_status status = describe(v, &text);
    if (status == TN_OK)
        status = tn_lab_verdict(
            s->lab, worst <= 1.5 && least > worst ? TN_HOLDS : TN_DOES_NOT_HOLD, claim,
            "growth within a stage by at most 1.5, and less than without tau in any stage",
            "at most %.3f (without tau at least %.3f); relative to block 1: %s", worst, least, text.data);
    tn_string_free(&text);
    return status;
}

/* Of the epochs of a run, those before the first step or all later ones: extremes of exponents and growth. */
typedef struct extremes {
    double low, high;           /* exponents within stages */
    double least, most;         /* ratio of last to first norm of a stage */
    const tn_norm_series *last; /* NULL: there is no such epoch with finite norms */
} extremes;

static bool is_later(const tn_norm_series *v) {
    return v->epoch >= 0;
}

static void extend(extremes *e, const tn_norm_series *v) {
    if (!e->last) *e = (extremes){INFINITY, -INFINITY, INFINITY, 0, v};
    for (int stage = 0; stage < v->stages; stage++) {
        double slope = growth(v, stage).slope; /* NaN, which fmin and fmax leave out, for short stages */
        e->low = fmin(e->low, slope);
        e->high = fmax(e->high, slope);
        e->least = fmin(e->least, ratio(v, stage));
        e->most = fmax(e->most, ratio(v, stage));
    }
    e->last = v;
}

/* Of the network without tau in any run of the same depth. */
static extremes without_tau(const judgement *s, const tn_norm_series *like) {
    extremes e = {0};
    for (int i = 0; i < s->study->count; i++) {
        const tn_norm_series *v = &s->study->series[i];
        if (v->finite && !strcmp(v->variant, "bn") && !strcmp(v->model, like->model) &&
            is_later(v) == is_later(like))
            extend(&e, v);
    }
    return e;
}

static tn_status judge_epochs(const judgement *s, const extremes *e, const char *when) {
    const tn_norm_series *v = e->last;
    char claim[256];
    tn_string text = {0};
    tn_status status = describe(v, &text);
    if (status == TN_OK && !strcmp(v->variant, "bn")) {
        snprintf(claim, sizeof claim,
                 "Claim 1: in %s, %s, the squared norm grows in proportion to the block's number", v->name,
                 when);
        status = tn_lab_verdict(s->lab,
                                isinf(e->low)                     ? TN_INCONCLUSIVE
                                : e->low >= 0.8 && e->high <= 1.2 ? TN_HOLDS
                                                                  : TN_DOES_NOT_HOLD,
                                claim, "exponent from 0.8 to 1.2 within every stage, first quarter left out",
                                "exponents %.3f to %.3f; norm in each stage, relative to block 1: %s", e->low,
                                e->high, text.data);
    } else if (status == TN_OK && !strcmp(v->variant, "bn-tau")) {
        extremes bn = without_tau(s, v);
        bool less = !bn.last || bn.least > e->most;
        char than[64] = "";
        snprintf(claim, sizeof claim, "Figure 3: in %s, %s, the norm hardly grows%s", v->name, when,
                 bn.last ? ", other than without tau" : "");
        if (bn.last) snprintf(than, sizeof than, " (without tau at least %.3f)", bn.least);
        status =
            tn_lab_verdict(s->lab, e->most <= 1.5 && less ? TN_HOLDS : TN_DOES_NOT_HOLD, claim,
                           bn.last ? "growth within a stage by at most 1.5, and less than without tau in any"
                                   : "growth within a stage by at most 1.5",
                           "at most %.3f%s; relative to block 1: %s", e->most, than, text.data);
    } else if (status == TN_OK) {
        status = tn_lab_remark(s->lab, "%s, %s: growth within the stages by %.3f to %.3f.", v->name, when,
                               e->least, e->most);
    }
    tn_string_free(&text);
    return status;
}

static tn_status judge_run(const judgement *s, int run) {
    for (int later = 0; later < 2; later++) {
        extremes e = {0};
        char when[64] = "at the start";
        int first = -1;
        for (int i = 0; i < s->study->count; i++) {
            const tn_norm_series *v = &s->study->series[i];
            if (v->run != run || is_later(v) != later) continue;
            if (!v->finite) {
                TN_TRY(tn_lab_remark(s->lab, "%s: norms after epoch %d are not finite and left out.", v->name,
                                     v->epoch + 1));
                continue;
            }
            if (!e.last) first = v->epoch + 1;
            extend(&e, v);
        }
        if (!e.last) continue;
        if (later && first < e.last->epoch + 1)
            snprintf(when, sizeof when, "after epochs %d to %d", first, e.last->epoch + 1);
        else if (later)
            snprintf(when, sizeof when, "after epoch %d", first);
        TN_TRY(judge_epochs(s, &e, when));
    }
    return TN_OK;
}

static tn_status compare_official(const judgement *s, const tn_norm_series *v) {
    const double *expected = official[strcmp(v->variant, "bn") != 0];
    double worst = 0;
    char claim[160], bound[160];
    tn_string text = {0};
    for (int stage = 0; stage < 3; stage++) {
        int ends[] = {v->first[stage], v->first[stage + 1] - 1};
        for (int i = 0; i < 2; i++)
            worst = fmax(worst, fabs(v->output[ends[i]] / v->output[0] / expected[2 * stage + i] - 1));
    }
    snprintf(claim, sizeof claim, "%s at initialisation has the norms of the official code", v->name);
    snprintf(bound, sizeof bound, "within 10 %% of %g -> %.2f, %.2f -> %.2f, %.2f -> %.2f", expected[0],
             expected[1], expected[2], expected[3], expected[4], expected[5]);
    tn_status status = describe(v, &text);
    if (status == TN_OK)
        status = tn_lab_verdict(s->lab, worst <= 0.1 ? TN_HOLDS : TN_DOES_NOT_HOLD, claim, bound,
                                "%s: at most %.1f %% off", text.data, 100 * worst);
    tn_string_free(&text);
    return status;
}

tn_status tn_norm_report(tn_lab *lab, const tn_norm_study *study) {
    const judgement judge = {lab, study}, *s = &judge;
    TN_TRY(fill_tables(s));
    TN_TRY(draw(s));
    for (int run = 1; run <= s->study->runs; run++) TN_TRY(judge_run(s, run));
    for (int i = 0; i < s->study->count && !s->study->runs; i++) {
        const tn_norm_series *v = &s->study->series[i];
        if (strcmp(v->variant, "bn-tau") != 0)
            TN_TRY(judge_growth(s, v));
        else if (i > 0)
            TN_TRY(judge_flatness(s, v, &s->study->series[i - 1]));
        else /* from a checkpoint: nothing to compare it with */
            TN_TRY(tn_lab_remark(s->lab, "%s: growth within the stages by at most %.3f.", v->name,
                                 fmax(ratio(v, 0), ratio(v, v->stages - 1))));
        if (v->depth == 110) TN_TRY(compare_official(s, v));
    }
    return TN_OK;
}
