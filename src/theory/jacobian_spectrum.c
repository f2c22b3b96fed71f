/* Theorem 3 of [N]: extreme eigenvalues of J J^T against depth, with and without the factor 1/H. */
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "base/statistics.h"
#include "theory/linear_algebra.h"
#include "theory/nf_network.h"
#include "theory/separated_data.h"
#include "theory/sweep.h"

enum { INPUTS = 20, SCALES = 2 };
static const char *const scale_names[SCALES] = {"standard", "1/H"};

typedef struct study {
    tn_lab *lab;
    int width, samples, trials, depths[TN_SWEEP_POINTS], points;
    tn_sweep largest[TN_ACTIVATIONS][SCALES], least[TN_ACTIVATIONS][SCALES],
        condition[TN_ACTIVATIONS][SCALES];
} study;

static tn_status measure(study *s, int activation, int scale, int trial, int point, const double *x) {
    size_t square = (size_t)s->samples * (size_t)s->samples;
    tn_nf_network net;
    tn_nf_pass pass = {0};
    double *gram = NULL;
    TN_TRY(tn_lab_check_stop(s->lab));
    TN_TRY(tn_nf_create(INPUTS, s->width, s->depths[point], (tn_activation)activation, scale == 1, &net));
    tn_status status = tn_nf_pass_create(&net, s->samples, x, &pass);
    if (status == TN_OK)
        status = tn_alloc(&gram, 3 * square + (size_t)s->samples, sizeof *gram, "a Gram matrix");
    if (status == TN_OK) {
        tn_nf_initialise(&net, tn_lab_seed(s->lab), trial);
        tn_nf_forward(&net, &pass);
        tn_nf_backward(&net, &pass);
        tn_nf_gram(&net, &pass, gram, gram + square);
        double *values = gram + 3 * square;
        status = tn_symmetric_eigenvalues(s->samples, gram, values);
        double top = values[s->samples - 1];
        tn_sweep_set(&s->largest[activation][scale], trial, point, top);
        tn_sweep_set(&s->least[activation][scale], trial, point, values[0]);
        tn_sweep_set(&s->condition[activation][scale], trial, point, top / values[0]);
    }
    tn_free(gram);
    tn_nf_pass_free(&pass);
    tn_nf_free(&net);
    return status;
}

static tn_status run_trial(void *context, int trial, int worker) {
    study *s = context;
    double *x;
    (void)worker;
    TN_TRY(tn_alloc(&x, (size_t)s->samples * INPUTS, sizeof *x, "data points"));
    tn_status status = tn_separated_points(tn_lab_seed(s->lab), trial, s->samples, INPUTS, 1, x);
    for (int a = 0; a < TN_ACTIVATIONS; a++)
        for (int k = 0; k < SCALES; k++)
            for (int p = 0; p < s->points && status == TN_OK; p++) status = measure(s, a, k, trial, p, x);
    tn_free(x);
    return status;
}

/* log value against H in place of log H: the growth of each further layer. */
static double growth_per_layer(const tn_sweep *sweep) {
    double y[TN_SWEEP_POINTS];
    for (int p = 0; p < sweep->points; p++) y[p] = log(tn_sweep_mean(sweep, p));
    return exp(tn_fit_line(sweep->x, y, sweep->points).slope);
}

static tn_status judge_activation(study *s, int a) {
    const char *name = tn_activation_name((tn_activation)a);
    char claim[200];
    tn_exponent top = tn_sweep_exponent(&s->largest[a][0]), low = tn_sweep_exponent(&s->least[a][0]);
    tn_exponent condition = tn_sweep_exponent(&s->condition[a][0]);
    int last = s->points - 1;
    snprintf(claim, sizeof claim, "[N] Thm 3, %s, standard initialisation: λ_max(JJᵀ) = Ω(H)", name);
    TN_TRY(tn_lab_verdict(s->lab, tn_judge_above(top, 1), claim, "exponent of λ_max in H above 1",
                          "%.2f ± %.2f; %.3g at H = %d, %.3g at H = %d; a factor of %.2f a layer", top.value,
                          top.half_width, tn_sweep_mean(&s->largest[a][0], 0), s->depths[0],
                          tn_sweep_mean(&s->largest[a][0], last), s->depths[last],
                          growth_per_layer(&s->largest[a][0])));
    snprintf(claim, sizeof claim, "[N] Thm 3, %s, standard initialisation: λ_min(JJᵀ) = O(1)", name);
    TN_TRY(tn_lab_verdict(s->lab, tn_judge_below(low, 0.05), claim, "exponent of λ_min in H below 0.05",
                          "%.2f ± %.2f; %.3g at H = %d, %.3g at H = %d", low.value, low.half_width,
                          tn_sweep_mean(&s->least[a][0], 0), s->depths[0],
                          tn_sweep_mean(&s->least[a][0], last), s->depths[last]));
    snprintf(claim, sizeof claim,
             "[N] Thm 3, %s, standard initialisation: the condition number grows at least linearly", name);
    TN_TRY(tn_lab_verdict(s->lab, tn_judge_above(condition, 1), claim, "exponent of λ_max/λ_min in H above 1",
                          "%.2f ± %.2f; %.3g at H = %d, %.3g at H = %d", condition.value,
                          condition.half_width, tn_sweep_mean(&s->condition[a][0], 0), s->depths[0],
                          tn_sweep_mean(&s->condition[a][0], last), s->depths[last]));
    tn_exponent scaled_top = tn_sweep_exponent(&s->largest[a][1]),
                scaled = tn_sweep_exponent(&s->condition[a][1]);
    snprintf(claim, sizeof claim, "[N], %s, with 1/H: extreme eigenvalues and condition number stay bounded",
             name);
    return tn_lab_verdict(
        s->lab, tn_judge_both(tn_judge_below(scaled_top, 0.05), tn_judge_below(scaled, 0.05)), claim,
        "exponents of λ_max and λ_max/λ_min in H below 0.05",
        "λ_max %.3f ± %.3f, condition %.3f ± %.3f; λ_max %.3g, λ_min %.3g, condition %.3g at H = %d",
        scaled_top.value, scaled_top.half_width, scaled.value, scaled.half_width,
        tn_sweep_mean(&s->largest[a][1], last), tn_sweep_mean(&s->least[a][1], last),
        tn_sweep_mean(&s->condition[a][1], last), s->depths[last]);
}

static tn_status draw(study *s) {
    tn_plot *plot;
    int panels[3];
    static const char *const titles[] = {"λ_max(JJᵀ)", "λ_min(JJᵀ)", "condition number"};
    TN_TRY(tn_lab_plot(s->lab, "jacobian",
                       "Extreme eigenvalues of JJᵀ, J = du/d(W, a, α), at initialisation: standard, and with "
                       "the factor 1/H. "
                       "Dashed: proportional to H. Bands: all trials.",
                       &plot));
    for (int i = 0; i < 3; i++)
        TN_TRY(tn_plot_panel(plot, titles[i], "depth H", titles[i], true, true, &panels[i]));
    for (int a = 0; a < TN_ACTIVATIONS; a++)
        for (int k = 0; k < SCALES; k++) {
            char label[64];
            int colour = a + k * TN_ACTIVATIONS;
            snprintf(label, sizeof label, "%s, %s", tn_activation_name((tn_activation)a), scale_names[k]);
            TN_TRY(tn_sweep_plot(&s->largest[a][k], plot, panels[0], label, colour));
            TN_TRY(tn_sweep_plot(&s->least[a][k], plot, panels[1], label, colour));
            TN_TRY(tn_sweep_plot(&s->condition[a][k], plot, panels[2], label, colour));
        }
    double x[2] = {s->depths[0], s->depths[s->points - 1]};
    const tn_sweep *starts[] = {&s->largest[0][0], NULL, &s->condition[0][0]};
    for (int i = 0; i < 3; i++) {
        if (!starts[i]) continue;
        double y[2] = {tn_sweep_mean(starts[i], 0), tn_sweep_mean(starts[i], 0) * x[1] / x[0]};
        TN_TRY(tn_plot_series(plot, panels[i], "∝ H", -1, TN_MARK_DASHED, 2, x, y, NULL, NULL));
    }
    return TN_OK;
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(tn_lab_table(s->lab, "jacobian", "activation,scaled,H,trial,lambda_max,lambda_min,condition",
                        &table));
    TN_TRY(tn_lab_remark(
        s->lab, "In jacobian.csv, activation is 0 for softplus, 1 for tanh, 2 for ReLU; scaled is 1 with the "
                "factor 1/H."));
    for (int a = 0; a < TN_ACTIVATIONS; a++)
        for (int k = 0; k < SCALES; k++)
            for (int p = 0; p < s->points; p++)
                for (int t = 0; t < s->trials; t++)
                    TN_TRY(TN_TABLE_ADD(table, a, k, s->depths[p], t, tn_sweep_at(&s->largest[a][k], t, p),
                                        tn_sweep_at(&s->least[a][k], t, p),
                                        tn_sweep_at(&s->condition[a][k], t, p)));
    return TN_OK;
}

static tn_status conclude(study *s) {
    for (int a = 0; a < TN_ACTIVATIONS; a++)
        for (int k = 0; k < SCALES; k++) {
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->largest[a][k]));
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->least[a][k]));
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->condition[a][k]));
        }
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(s->lab, "Width m = %d, n = %d samples at distance 1, %d trials.", s->width,
                         s->samples, s->trials));
    for (int a = 0; a < TN_ACTIVATIONS; a++) TN_TRY(judge_activation(s, a));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {8, 16, 32, 64, 0}, quick[] = {8, 16, 32, 0};
    study s = {.lab = lab};
    (void)options;
    s.width = tn_lab_width(lab, 128, 64);
    s.samples = tn_lab_samples(lab, 8, 6);
    s.trials = tn_lab_trials(lab, 8, 4);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, s.depths, TN_SWEEP_POINTS, &s.points));
    tn_status status = conclude(&s);
    for (int a = 0; a < TN_ACTIVATIONS; a++)
        for (int k = 0; k < SCALES; k++) {
            tn_sweep_free(&s.largest[a][k]);
            tn_sweep_free(&s.least[a][k]);
            tn_sweep_free(&s.condition[a][k]);
        }
    return status;
}

const tn_experiment tn_experiment_jacobian = {
    "jacobian", "Eigenvalues of the Jacobian's Gram matrix against depth ([N], Theorem 3)",
    "The normalization-free network of [N] and the same network without the factor 1/H, at initialisation. "
    "Theorem 3: "
    "with standard initialisation λ_max(JJᵀ) grows at least as H while λ_min(JJᵀ) stays bounded, so that the "
    "condition "
    "number grows at least linearly; J is the derivative of the outputs by all parameters.",
    " width depths trials samples ", run};
