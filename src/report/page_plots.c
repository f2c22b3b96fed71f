/* Figures of the page. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "plot/plot.h"
#include "report/page.h"

enum { POINTS_MAX = 400 };

/* One figure is one plot with one panel. */
typedef struct figure {
    tn_plot *plot;
    int panel, drawn;
    const char *title;
} figure;

static tn_status begin(figure *f, const char *title, const char *x, const char *y, bool log) {
    *f = (figure){.title = title};
    TN_TRY(tn_plot_create(&f->plot));
    return tn_plot_panel(f->plot, title, x, y, false, log, &f->panel);
}

/* Ends the figure, which is left out when nothing was drawn into it. */
static tn_status end(figure *f, tn_status status, tn_string *out) {
    if (status == TN_OK && f->drawn > 0) {
        status = tn_string_printf(out, "<figure>\n");
        if (status == TN_OK) status = tn_plot_print(f->plot, f->title, out);
        if (status == TN_OK) status = tn_string_printf(out, "</figure>\n");
    }
    tn_plot_free(f->plot);
    return status;
}

/* Changes x and y. */
static tn_status draw(figure *f, const tn_page *page, size_t run, double *x, double *y, int count) {
    char css_class[32];
    count = tn_plot_thin(x, y, NULL, NULL, count, POINTS_MAX);
    if (count == 0) return TN_OK;
    /* Runs beyond the palette take its colours again, dashed every other time. */
    bool dashed = run / TN_PLOT_COLOURS % 2;
    tn_mark mark = count <= 12 ? TN_MARK_BOTH : dashed ? TN_MARK_DASHED : TN_MARK_LINE;
    snprintf(css_class, sizeof css_class, "run-%zu", run);
    TN_TRY(
        tn_plot_series(f->plot, f->panel, "", (int)(run % TN_PLOT_COLOURS), mark, count, x, y, NULL, NULL));
    f->drawn++;
    return tn_plot_mark_series(f->plot, f->panel, css_class, page->runs[run].label);
}

static tn_status draw_curve(figure *f, const tn_page *page, size_t run, tn_curve_kind kind) {
    const tn_curve *c = &page->runs[run].record->curves[kind];
    double *copy;
    if (c->count == 0) return TN_OK;
    TN_TRY(tn_alloc(&copy, 2 * c->count, sizeof *copy, "a figure"));
    memcpy(copy, c->x, c->count * sizeof *copy);
    memcpy(copy + c->count, c->y, c->count * sizeof *copy);
    tn_status status = draw(f, page, run, copy, copy + c->count, (int)c->count);
    tn_free(copy);
    return status;
}

/* Losses of runs that differ by orders of magnitude want a logarithmic axis. */
static bool wants_logarithm(const tn_page *page, tn_curve_kind kind) {
    double least = INFINITY, greatest = 0;
    for (size_t i = 0; i < page->run_count; i++) {
        const tn_curve *c = &page->runs[i].record->curves[kind];
        for (size_t k = 0; k < c->count; k++) {
            least = fmin(least, c->y[k]);
            greatest = fmax(greatest, c->y[k]);
        }
    }
    return least > 0 && greatest > 30 * least;
}

tn_status tn_page_print_curves(const tn_page *page, tn_string *out) {
    static const tn_curve_kind kinds[] = {TN_CURVE_VAL_ERROR,  TN_CURVE_TRAIN_ERROR, TN_CURVE_VAL_LOSS,
                                          TN_CURVE_TRAIN_LOSS, TN_CURVE_STEP_LOSS,   TN_CURVE_STEP_LR,
                                          TN_CURVE_STEP_TAU,   TN_CURVE_RATE};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        tn_curve_info info = tn_curve_describe(kinds[i]);
        char title[64];
        figure f;
        snprintf(title, sizeof title, "%s%s%s", info.label, *info.unit ? ", " : "", info.unit);
        bool loss = kinds[i] == TN_CURVE_STEP_LOSS || kinds[i] == TN_CURVE_TRAIN_LOSS;
        tn_status status = begin(&f, title, info.steps ? "step" : "epoch", info.label,
                                 loss && wants_logarithm(page, kinds[i]));
        for (size_t run = 0; run < page->run_count && status == TN_OK; run++)
            status = draw_curve(&f, page, run, kinds[i]);
        TN_TRY(end(&f, status, out));
    }
    return TN_OK;
}

/* ---- probes ---- */

bool tn_page_has_probes(const tn_page *page) {
    for (size_t i = 0; i < page->run_count; i++)
        if (page->runs[i].record->probes.count > 0) return true;
    return false;
}

/* Norms over blocks in the first or the last epoch that was probed. */
static tn_status draw_probe(figure *f, const tn_page *page, size_t run, bool last, bool gradient) {
    const tn_run_record *r = page->runs[run].record;
    double *x;
    int count = 0;
    if (r->probes.count == 0) return TN_OK;
    int epoch = r->probes.rows[last ? r->probes.count - 1 : 0].epoch;
    TN_TRY(tn_alloc(&x, 2 * r->probes.count, sizeof *x, "a figure"));
    double *y = x + r->probes.count;
    for (size_t i = 0; i < r->probes.count; i++) {
        if (r->probes.rows[i].epoch != epoch) continue;
        x[count] = r->probes.rows[i].block;
        y[count++] = gradient ? r->probes.rows[i].gradient : r->probes.rows[i].output;
    }
    tn_status status = draw(f, page, run, x, y, count);
    tn_free(x);
    return status;
}

tn_status tn_page_print_probes(const tn_page *page, tn_string *out) {
    static const char *const titles[] = {
        "norm of block outputs, before training", "norm of block outputs, at the end",
        "norm of block gradients, before training", "norm of block gradients, at the end"};
    for (int i = 0; i < 4; i++) {
        figure f;
        tn_status status = begin(&f, titles[i], "block", "norm", true);
        for (size_t run = 0; run < page->run_count && status == TN_OK; run++)
            status = draw_probe(&f, page, run, i % 2, i / 2);
        TN_TRY(end(&f, status, out));
    }
    return TN_OK;
}
