/* Theorem 1 of [S]: spectral norms of products of layers at initialisation. */
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "theory/fc_network.h"
#include "theory/layer_product.h"
#include "theory/linear_algebra.h"
#include "theory/separated_data.h"
#include "theory/sweep.h"

static const double kappas[] = {1, 0.5, 0.25};
enum { KAPPAS = 3, GRID = 7, INPUTS = 32, ROOM = GRID * (GRID + 1) / 2 };

typedef struct study {
    tn_lab *lab;
    int width, samples, trials, depths[TN_SWEEP_POINTS], points;
    int control_depths[TN_SWEEP_POINTS], control_points; /* tau = 1 */
    tn_sweep norm[KAPPAS], control;
    tn_layer_product *products; /* of each (point, kappa, trial): ROOM x samples */
    int *counts;
} study;

/* All a <= b on a grid from 1 to L-1, for each sample; returns how many. */
static int choose_products(int depth, int samples, tn_layer_product *out) {
    int grid[GRID] = {0}, n = 0, count = 0; /* layers count from 1 */
    for (int i = 0; i < GRID; i++) {
        int l = 1 + (int)lround(i * (depth - 2.0) / (GRID - 1));
        if (l != grid[n > 0 ? n - 1 : 0]) grid[n++] = l;
    }
    for (int i = 0; i < n; i++)
        for (int j = i; j < n; j++)
            for (int k = 0; k < samples; k++)
                out[count++] = (tn_layer_product){.first = grid[i], .last = grid[j], .sample = k};
    return count;
}

static size_t slot(const study *s, int point, int kappa, int trial) {
    return ((size_t)point * KAPPAS + (size_t)kappa) * (size_t)s->trials + (size_t)trial;
}

static tn_status measure(study *s, const tn_fc_network *deep, int depth, double tau, const double *x,
                         tn_layer_product *products, int *count, double *largest) {
    tn_fc_network net = *deep;
    tn_fc_pass pass;
    net.depth = depth;
    net.tau = tau;
    TN_TRY(tn_lab_check_stop(s->lab));
    TN_TRY(tn_fc_pass_create(&net, s->samples, &pass));
    tn_fc_forward(&net, x, &pass);
    *count = choose_products(depth, s->samples, products);
    tn_status status = tn_layer_product_norms(&net, &pass, products, *count, 1e-4, 300);
    *largest = 0;
    for (int i = 0; i < *count; i++) *largest = fmax(*largest, products[i].norm);
    tn_fc_pass_free(&pass);
    return status;
}

static tn_status measure_all(study *s, const tn_fc_network *net, const double *x, int trial) {
    tn_layer_product *spare;
    int count;
    double largest;
    for (int p = 0; p < s->points; p++)
        for (int k = 0; k < KAPPAS; k++) {
            size_t at = slot(s, p, k, trial);
            TN_TRY(measure(s, net, s->depths[p], kappas[k] / sqrt(s->depths[p]), x,
                           s->products + at * ROOM * (size_t)s->samples, &s->counts[at], &largest));
            tn_sweep_set(&s->norm[k], trial, p, largest);
        }
    TN_TRY(tn_alloc(&spare, ROOM * (size_t)s->samples, sizeof *spare, "products of layers"));
    tn_status status = TN_OK;
    for (int p = 0; p < s->control_points && status == TN_OK; p++) {
        status = measure(s, net, s->control_depths[p], 1, x, spare, &count, &largest);
        tn_sweep_set(&s->control, trial, p, largest);
    }
    tn_free(spare);
    return status;
}

static tn_status run_trial(void *context, int trial, int worker) {
    study *s = context;
    tn_fc_network net;
    double *x;
    int deepest = s->depths[s->points - 1], control = s->control_depths[s->control_points - 1];
    (void)worker;
    TN_TRY(tn_fc_create(INPUTS, s->width, deepest > control ? deepest : control, 1, &net));
    tn_status status = tn_alloc(&x, (size_t)s->samples * INPUTS, sizeof *x, "data points");
    if (status == TN_OK) status = tn_separated_points(tn_lab_seed(s->lab), trial, s->samples, INPUTS, 1, x);
    if (status == TN_OK) {
        tn_fc_initialise(&net, tn_lab_seed(s->lab), trial);
        status = measure_all(s, &net, x, trial);
    }
    tn_free(x);
    tn_fc_free(&net);
    tn_lab_progress(s->lab, "trial %d of %d done", trial + 1, s->trials);
    return status;
}

static tn_status judge(study *s) {
    int last = s->points - 1;
    for (int k = 0; k < KAPPAS; k++) {
        char claim[160];
        tn_exponent e = tn_sweep_exponent(&s->norm[k]);
        snprintf(claim, sizeof claim,
                 "Thm 1, κ = %g: the norm of every product of layers is at most 1 + c at every depth",
                 kappas[k]);
        TN_TRY(tn_lab_verdict(
            s->lab, tn_judge_below(e, 0.05), claim, "exponent of the largest norm in L below 0.05",
            "%.3f ± %.3f; largest norm %.3f at L = %d, %.3f at L = %d", e.value, e.half_width,
            tn_sweep_mean(&s->norm[k], 0), s->depths[0], tn_sweep_mean(&s->norm[k], last), s->depths[last]));
    }
    tn_sweep by_kappa;
    TN_TRY(tn_sweep_create(KAPPAS, kappas, s->trials, &by_kappa));
    for (int t = 0; t < s->trials; t++)
        for (int k = 0; k < KAPPAS; k++) tn_sweep_set(&by_kappa, t, k, tn_sweep_at(&s->norm[k], t, last) - 1);
    tn_exponent e = tn_sweep_exponent(&by_kappa), control = tn_sweep_exponent(&s->control);
    tn_status status =
        tn_lab_verdict(s->lab, tn_judge_above(e, 0.5), "Thm 1: the excess c shrinks with κ = τ√L",
                       "exponent of the excess in κ above 0.5",
                       "%.2f ± %.2f; c = %.2f, %.2f, %.2f at κ = 1, 0.5, 0.25", e.value, e.half_width,
                       tn_sweep_mean(&by_kappa, 0), tn_sweep_mean(&by_kappa, 1), tn_sweep_mean(&by_kappa, 2));
    tn_sweep_free(&by_kappa);
    TN_TRY(status);
    return tn_lab_verdict(s->lab, tn_judge_above(control, 0.05), "Control, τ = 1: the norm grows with depth",
                          "exponent in L above 0.05", "%.2f ± %.2f; largest norm %.3g at L = %d",
                          control.value, control.half_width,
                          tn_sweep_mean(&s->control, s->control_points - 1),
                          s->control_depths[s->control_points - 1]);
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(tn_lab_table(s->lab, "spectral", "kappa,L,trial,sample,a,b,norm,iterations", &table));
    for (int p = 0; p < s->points; p++)
        for (int k = 0; k < KAPPAS; k++)
            for (int t = 0; t < s->trials; t++) {
                size_t at = slot(s, p, k, t);
                const tn_layer_product *product = s->products + at * ROOM * (size_t)s->samples;
                for (int i = 0; i < s->counts[at]; i++, product++)
                    TN_TRY(TN_TABLE_ADD(table, kappas[k], s->depths[p], t, product->sample, product->first,
                                        product->last, product->norm, product->iterations));
            }
    TN_TRY(tn_lab_table(s->lab, "control", "L,trial,norm", &table));
    for (int p = 0; p < s->control_points; p++)
        for (int t = 0; t < s->trials; t++)
            TN_TRY(TN_TABLE_ADD(table, s->control_depths[p], t, tn_sweep_at(&s->control, t, p)));
    return TN_OK;
}

/* Norms of the products of the deepest network against their length. */
static tn_status draw_lengths(study *s, tn_plot *plot, int panel) {
    double *x, depth = s->depths[s->points - 1];
    size_t room = ROOM * (size_t)s->samples * (size_t)s->trials;
    TN_TRY(tn_alloc(&x, 2 * room, sizeof *x, "a plot"));
    tn_status status = TN_OK;
    for (int k = 0; k < KAPPAS && status == TN_OK; k++) {
        char label[32];
        int n = 0;
        for (int t = 0; t < s->trials; t++) {
            size_t at = slot(s, s->points - 1, k, t);
            const tn_layer_product *product = s->products + at * ROOM * (size_t)s->samples;
            for (int i = 0; i < s->counts[at]; i++, product++, n++) {
                x[n] = (product->last - product->first + 1) / depth;
                x[room + (size_t)n] = product->norm;
            }
        }
        snprintf(label, sizeof label, "κ = %g", kappas[k]);
        status = tn_plot_series(plot, panel, label, k, TN_MARK_POINTS, n, x, x + room, NULL, NULL);
    }
    tn_free(x);
    return status;
}

static tn_status draw(study *s) {
    tn_plot *plot;
    int norms, lengths, control;
    char title[80];
    TN_TRY(tn_lab_plot(
        s->lab, "spectral",
        "Spectral norms of D_b (I + τ W_b) ... D_a (I + τ W_a) at initialisation, τ = κ/√L. Left: the "
        "largest over a ≤ b and samples. Middle: each product of the deepest network. Right: the same "
        "network with τ = 1. Bands: all trials.",
        &plot));
    TN_TRY(tn_plot_panel(plot, "largest norm of a product", "depth L", "spectral norm", true, false, &norms));
    snprintf(title, sizeof title, "all products, L = %d", s->depths[s->points - 1]);
    TN_TRY(tn_plot_panel(plot, title, "length (b - a + 1) / L", "spectral norm", false, false, &lengths));
    TN_TRY(tn_plot_panel(plot, "control: τ = 1", "depth L", "spectral norm", true, true, &control));
    for (int k = 0; k < KAPPAS; k++) {
        char label[32];
        snprintf(label, sizeof label, "κ = %g", kappas[k]);
        TN_TRY(tn_sweep_plot(&s->norm[k], plot, norms, label, k));
    }
    TN_TRY(draw_lengths(s, plot, lengths));
    return tn_sweep_plot(&s->control, plot, control, "τ = 1", 3);
}

static tn_status conclude(study *s) {
    size_t slots = slot(s, s->points, 0, 0);
    TN_TRY(
        tn_alloc(&s->products, slots * ROOM * (size_t)s->samples, sizeof *s->products, "products of layers"));
    TN_TRY(tn_alloc(&s->counts, slots, sizeof *s->counts, "products of layers"));
    for (int k = 0; k < KAPPAS; k++)
        TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->norm[k]));
    TN_TRY(tn_sweep_create_depths(s->control_points, s->control_depths, s->trials, &s->control));
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(
        s->lab,
        "Width m = %d, %d samples, %d trials; all pairs a ≤ b of a grid of %d layers; power iteration "
        "to a relative change of 1e-4.",
        s->width, s->samples, s->trials, GRID));
    TN_TRY(judge(s));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {30, 100, 300, 1000, 0}, quick[] = {30, 60, 120, 0};
    static const int control[] = {5, 10, 20, 40};
    study s = {.lab = lab, .control_points = 4};
    (void)options;
    s.width = tn_lab_width(lab, 128, 64);
    s.samples = tn_lab_samples(lab, 2, 2);
    s.trials = tn_lab_trials(lab, 6, 4);
    for (int i = 0; i < s.control_points; i++) s.control_depths[i] = control[i];
    TN_TRY(tn_lab_depths(lab, standard, quick, 3, s.depths, TN_SWEEP_POINTS, &s.points));
    tn_status status = conclude(&s);
    for (int k = 0; k < KAPPAS; k++) tn_sweep_free(&s.norm[k]);
    tn_sweep_free(&s.control);
    tn_free(s.products);
    tn_free(s.counts);
    return status;
}

const tn_experiment tn_experiment_spectral = {"spectral", "Spectral norms of products of layers (Theorem 1)",
                                              "Theorem 1: at initialisation the spectral norm of D_b (I + τ "
                                              "W_b) ... D_a (I + τ W_a) is at most 1 + c for all 1 ≤ "
                                              "a ≤ b < L when τ = κ/√L, where D_l marks the units of layer l "
                                              "that are on. Measured by power iteration for all "
                                              "pairs of a grid of layers. The constant is not given by the "
                                              "theorem, so the checks are that it does not grow with "
                                              "L and that the excess over 1 shrinks with κ.",
                                              " width depths trials samples ", run};
