/* Figure 1 of [S]: training curves of the fully connected ResNet for tau = 1/L, 1/sqrt(L) and 1/L^0.25, and
 * of the feedforward network, over depths from 3 to 1000.
 *
 * Each cell of the grid is trained by the engine and kept in a file of its own, fig1-NAME-L.csv, in --out: a
 * grid that was stopped goes on with the cell in which it was. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "theory/training_cell.h"

enum { DEPTHS_MAX = 16, KINDS = 4, BATCH = 256, PLOT_POINTS = 120 };
#define LR   0.001
#define DATA "mnist:../shared/data/mnist"
/* Losses are compared as means over this share of the steps at the end. */
#define LAST_SHARE 0.1
/* A network trains when its loss falls below this share of the first. */
#define TRAINED 0.5

static const struct {
    const char *name, *model, *tau, *title;
    double exponent; /* p of tau = L^-p; NaN without tau */
} kinds[KINDS] = {{"tau-L-1", "fcresnet", "1/L", "tau = 1/L", 1},
                  {"tau-L-0.5", "fcresnet", "1/sqrt(L)", "tau = 1/sqrt(L)", 0.5},
                  {"tau-L-0.25", "fcresnet", "L^-0.25", "tau = 1/L^0.25", 0.25},
                  {"feedforward", "feedforward", "", "feedforward", NAN}};

typedef struct grid {
    tn_lab *lab;
    tn_dataset *dataset;
    const char *data_spec;
    int depths[DEPTHS_MAX], depth_count;
    int steps, batch, width;
    tn_cell cells[KINDS][DEPTHS_MAX];
} grid;

/* ---- cells ---- */

static tn_status one_cell(grid *g, const tn_options *o, int kind, int d) {
    char name[64];
    tn_cell *cell = &g->cells[kind][d];
    snprintf(name, sizeof name, "fig1-%s-%d", kinds[kind].name, g->depths[d]);
    tn_cell_plan plan = {.name = name,
                         .model = kinds[kind].model,
                         .tau = kinds[kind].tau,
                         .depth = g->depths[d],
                         .width = g->width,
                         .batch = g->batch,
                         .steps = g->steps,
                         .lr = LR,
                         .seed = tn_lab_seed(g->lab),
                         .threads = o->threads,
                         .data_spec = g->data_spec,
                         .dataset = g->dataset};
    bool found = false;
    if (!o->overwrite) TN_TRY(tn_cell_load(g->lab, &plan, cell, &found));
    if (!found) {
        TN_TRY(tn_cell_train(g->lab, &plan, cell));
        TN_TRY(tn_cell_save(g->lab, &plan, cell));
    }
    if (cell->nonfinite)
        tn_lab_progress(g->lab, "%s, L = %d: not finite in step %d%s", kinds[kind].title, g->depths[d],
                        cell->nonfinite, found ? " (read back)" : "");
    else
        tn_lab_progress(g->lab, "%s, L = %d: loss %.4g -> %.4g in %d steps%s", kinds[kind].title,
                        g->depths[d], cell->losses[0], cell->losses[cell->finished - 1], cell->finished,
                        found ? " (read back)" : "");
    return TN_OK;
}

/* Before the first cell is computed anew, old ones go, so that a stopped run leaves no mixture. */
static tn_status remove_cells(const grid *g) {
    for (int kind = 0; kind < KINDS; kind++)
        for (int d = 0; d < g->depth_count; d++) {
            char name[64];
            snprintf(name, sizeof name, "fig1-%s-%d", kinds[kind].name, g->depths[d]);
            TN_TRY(tn_cell_remove(g->lab, &(tn_cell_plan){.name = name}));
        }
    return TN_OK;
}

static tn_status all_cells(grid *g, const tn_options *o) {
    if (o->overwrite) TN_TRY(remove_cells(g));
    for (int d = 0; d < g->depth_count; d++)
        for (int kind = 0; kind < KINDS; kind++) TN_TRY(one_cell(g, o, kind, d));
    return TN_OK;
}

/* ---- numbers of a cell ---- */

static double mean(const double *values, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += values[i];
    return count > 0 ? sum / count : NAN;
}

/* Mean loss over the last steps of a cell that was finite to the end; NaN for others. */
static double last_loss(const grid *g, const tn_cell *cell) {
    int count = (int)fmax(1, LAST_SHARE * g->steps);
    if (cell->nonfinite) return NAN;
    return mean(cell->losses + cell->finished - count, count);
}

static double first_loss(const tn_cell *cell) {
    return cell->finished > 0 ? cell->losses[0] : NAN;
}

static double largest_loss(const tn_cell *cell) {
    double largest = -INFINITY;
    for (int i = 0; i < cell->finished; i++) largest = fmax(largest, cell->losses[i]);
    return cell->finished > 0 ? largest : NAN;
}

static bool trains(const grid *g, const tn_cell *cell) {
    return last_loss(g, cell) < TRAINED * first_loss(cell);
}

static bool diverges(const grid *g, const tn_cell *cell) {
    return cell->nonfinite || last_loss(g, cell) > first_loss(cell);
}

/* ---- results ---- */

static tn_status fill_tables(grid *g) {
    tn_number_table *cells, *curves;
    TN_TRY(tn_lab_table(g->lab, "cells",
                        "p,L,tau,first_loss,maximum_loss,first_nonfinite_step,loss_at_end,steps", &cells));
    TN_TRY(tn_lab_table(g->lab, "curves", "p,L,step,loss", &curves));
    for (int kind = 0; kind < KINDS; kind++)
        for (int d = 0; d < g->depth_count; d++) {
            const tn_cell *c = &g->cells[kind][d];
            double p = kinds[kind].exponent, depth = g->depths[d];
            TN_TRY(TN_TABLE_ADD(cells, p, depth, pow(depth, -p), first_loss(c), largest_loss(c),
                                c->nonfinite ? c->nonfinite : (double)NAN, last_loss(g, c), c->finished));
            for (int i = 0; i < c->finished; i++) TN_TRY(TN_TABLE_ADD(curves, p, depth, i + 1, c->losses[i]));
        }
    return TN_OK;
}

/* A curve with at most PLOT_POINTS points, each the mean over as many steps as it stands for. */
static tn_status draw_curve(tn_plot *plot, int panel, const grid *g, const tn_cell *cell, int d) {
    double x[PLOT_POINTS + 1], y[PLOT_POINTS + 1];
    int window = (cell->finished + PLOT_POINTS - 1) / PLOT_POINTS, count = 0;
    char label[32];
    for (int i = 0; i < cell->finished; i += window, count++) {
        int size = cell->finished - i < window ? cell->finished - i : window;
        x[count] = i + 0.5 * (size + 1);
        y[count] = mean(cell->losses + i, size);
    }
    snprintf(label, sizeof label, "L = %d", g->depths[d]);
    return tn_plot_series(plot, panel, label, d, count > 1 ? TN_MARK_LINE : TN_MARK_POINTS, count, x, y, NULL,
                          NULL);
}

static tn_status draw(grid *g) {
    tn_plot *plot;
    TN_TRY(tn_lab_plot(
        g->lab, "fig1",
        "Training loss of the fully connected network, each point the mean over some steps. A curve "
        "that ends early met a value that was not finite.",
        &plot));
    for (int kind = 0; kind < KINDS; kind++) {
        int panel;
        TN_TRY(tn_plot_panel(plot, kinds[kind].title, "step", "training loss", false, true, &panel));
        for (int d = 0; d < g->depth_count; d++) TN_TRY(draw_curve(plot, panel, g, &g->cells[kind][d], d));
    }
    return TN_OK;
}

/* "3: 0.21, 10: 0.22, ..." for one kind of network. */
static tn_status describe(const grid *g, int kind, tn_string *out) {
    for (int d = 0; d < g->depth_count; d++) {
        const tn_cell *c = &g->cells[kind][d];
        TN_TRY(tn_string_printf(out, "%sL = %d: ", d ? "; " : "", g->depths[d]));
        if (c->nonfinite)
            TN_TRY(tn_string_printf(out, "not finite in step %d", c->nonfinite));
        else
            TN_TRY(tn_string_printf(out, "%.3g -> %.3g", first_loss(c), last_loss(g, c)));
    }
    return TN_OK;
}

static tn_status judge_training(grid *g, int kind, const char *claim) {
    tn_string text = {0};
    bool all = true;
    for (int d = 0; d < g->depth_count; d++) all = all && trains(g, &g->cells[kind][d]);
    tn_status status = describe(g, kind, &text);
    if (status == TN_OK)
        status =
            tn_lab_verdict(g->lab, all ? TN_HOLDS : TN_DOES_NOT_HOLD, claim,
                           "the loss ends below half of where it began, at every depth", "%s", text.data);
    tn_string_free(&text);
    return status;
}

static tn_status judge_spread(grid *g, int kind, const char *claim) {
    double low = INFINITY, high = -INFINITY;
    for (int d = 0; d < g->depth_count; d++) {
        double loss = last_loss(g, &g->cells[kind][d]);
        low = fmin(low, loss);
        high = fmax(high, loss);
        if (isnan(loss)) high = INFINITY;
    }
    tn_verdict verdict = high <= 1.5 * low ? TN_HOLDS : high <= 3 * low ? TN_INCONCLUSIVE : TN_DOES_NOT_HOLD;
    return tn_lab_verdict(g->lab, verdict, claim,
                          "largest final loss over all depths <= 1.5 times the smallest",
                          "%.3g to %.3g, a factor of %.3g", low, high, high / low);
}

static tn_status judge_explosion(grid *g) {
    const char *claim = "Figure 1: with tau = 1/L^0.25 training diverges for L >= 100";
    tn_string text = {0};
    int deep = 0, diverged = 0;
    tn_status status = TN_OK;
    for (int d = 0; d < g->depth_count && status == TN_OK; d++) {
        const tn_cell *c = &g->cells[2][d];
        if (g->depths[d] >= 100) {
            deep++;
            diverged += diverges(g, c);
        }
        if (g->depths[d] == 30) /* the paper speaks of explosion here too */
            status = tn_lab_remark(
                g->lab,
                "tau = 1/L^0.25 at L = 30, where the paper speaks of explosion: first loss %.4g, "
                "largest %.4g, %s %.4g.",
                first_loss(c), largest_loss(c),
                c->nonfinite ? "first step that is not finite" : "loss at the end",
                c->nonfinite ? c->nonfinite : last_loss(g, c));
    }
    if (status == TN_OK) status = describe(g, 2, &text);
    if (status == TN_OK)
        status = tn_lab_verdict(g->lab,
                                deep == 0          ? TN_INCONCLUSIVE
                                : diverged == deep ? TN_HOLDS
                                                   : TN_DOES_NOT_HOLD,
                                claim, "a value that is not finite, or a final loss above the first", "%s",
                                text.data);
    tn_string_free(&text);
    return status;
}

/* Depth against the loss where training ends, for the network without skips. */
static tn_status judge_feedforward(grid *g) {
    double shallow = last_loss(g, &g->cells[3][0]), deep = last_loss(g, &g->cells[3][g->depth_count - 1]);
    double residual = last_loss(g, &g->cells[1][g->depth_count - 1]);
    tn_verdict verdict = isnan(deep) || (deep > shallow && deep > residual) ? TN_HOLDS : TN_DOES_NOT_HOLD;
    if (g->depth_count < 2) verdict = TN_INCONCLUSIVE;
    return tn_lab_verdict(g->lab, verdict,
                          "Figure 1: the feedforward network gets harder to train with depth",
                          "final loss larger at the greatest depth than at the smallest, and than with "
                          "tau = 1/sqrt(L)",
                          "L = %d: %.3g; L = %d: %.3g, with tau = 1/sqrt(L) %.3g", g->depths[0], shallow,
                          g->depths[g->depth_count - 1], deep, residual);
}

static tn_status report(grid *g) {
    TN_TRY(tn_lab_remark(
        g->lab,
        "Data %s, width m = %d, SGD without momentum or weight decay, learning rate %g, batch %d, "
        "%d steps, cross-entropy; A and B fixed. Losses are of training batches; those at the end "
        "are means over the last tenth of the steps.",
        tn_make_legible(g->data_spec).text, g->width, LR, g->batch, g->steps));
    TN_TRY(fill_tables(g));
    TN_TRY(draw(g));
    TN_TRY(judge_training(g, 0, "Figure 1: tau = 1/L trains at every depth"));
    TN_TRY(judge_training(g, 1, "Figure 1: tau = 1/sqrt(L) trains at every depth"));
    TN_TRY(judge_spread(g, 0, "Figure 1: with tau = 1/L the curves hardly depend on depth"));
    TN_TRY(judge_spread(g, 1, "Figure 1: with tau = 1/sqrt(L) the curves hardly depend on depth"));
    TN_TRY(judge_explosion(g));
    return judge_feedforward(g);
}

static tn_status work(grid *g, const tn_options *o) {
    static const int standard[] = {3, 10, 30, 100, 500, 1000, 0}, quick[] = {3, 10, 100, 0};
    TN_TRY(tn_lab_depths(g->lab, standard, quick, 2, g->depths, DEPTHS_MAX, &g->depth_count));
    g->width = tn_lab_width(g->lab, 128, 32);
    g->steps = o->steps > 0 ? o->steps : tn_lab_is_quick(g->lab) ? 200 : 705;
    g->data_spec = *o->data ? o->data : DATA;
    TN_TRY(tn_dataset_open(g->data_spec, &g->dataset));
    int images = tn_dataset_describe(g->dataset).train_count;
    g->batch = images < BATCH ? images : BATCH;
    TN_TRY(all_cells(g, o));
    return report(g);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    grid *g;
    TN_TRY(tn_alloc(&g, 1, sizeof *g, "the grid"));
    g->lab = lab;
    tn_status status = work(g, options);
    for (int kind = 0; kind < KINDS; kind++)
        for (int d = 0; d < DEPTHS_MAX; d++) tn_cell_free(&g->cells[kind][d]);
    tn_dataset_close(g->dataset);
    tn_free(g);
    return status;
}

const tn_experiment tn_experiment_fig1 = {
    .name = "fig1",
    .summary = "Training curves against depth for four scalings (Figure 1)",
    .about =
        "Fully connected networks h_0 = ReLU(A x), h_l = ReLU(h_{l-1} + tau W_l h_{l-1}), h_L = ReLU(W_L "
        "h_{L-1}), y = B h_L are trained from the same seed on the same batches, for several depths L and "
        "four kinds of branch: tau = 1/L, 1/sqrt(L), 1/L^0.25, and none of the skips (feedforward). A run "
        "that meets a value that is not finite ends there and is recorded as such.",
    .takes = " width depths data steps ",
    .run = run};
