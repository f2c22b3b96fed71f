/* Theorems 2 and 4 of [S]: norms of the layers at initialisation for tau = kappa L^-p. */
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "base/statistics.h"
#include "theory/fc_network.h"
#include "theory/linear_algebra.h"
#include "theory/separated_data.h"
#include "theory/sweep.h"

/* The last four belong to Theorem 4 and the control: what falls slower than 1/sqrt(L) must grow. */
static const struct scaling {
    double kappa, power;
    const char *label;
} scalings[] = {
    {1, 0.5, "1/√L"},     {0.5, 0.5, "0.5/√L"}, {0.25, 0.5, "0.25/√L"}, {1, 1, "1/L"},
    {1, 0.45, "L^-0.45"}, {1, 0.4, "L^-0.4"},   {1, 0.25, "L^-0.25"},   {1, 0, "1"},
};
enum {
    SCALINGS = sizeof scalings / sizeof *scalings,
    KAPPAS = 3,
    FIRST_GROWING = 4,
    CONTROL = 7,
    INPUTS = 32
};

typedef struct study {
    tn_lab *lab;
    int width, samples, trials, depths[TN_SWEEP_POINTS], points;
    /* Over samples and layers: largest and least norm; mean over samples of the largest and the least norm of
     * a layer, and of the largest one relative to h_0, less 1; mean square of h_L. */
    tn_sweep largest[SCALINGS], least[SCALINGS], top[SCALINGS], bottom[SCALINGS], excess[SCALINGS],
        square[SCALINGS];
    double *profile; /* of trial 0 and the greatest depth: mean norm of each layer, scalings x (L + 1) */
} study;

static void measure(study *s, const tn_fc_pass *pass, int scaling, int trial, int point) {
    int deepest = s->depths[s->points - 1];
    double excess = 0, square = 0, highest = 0, lowest = 0;
    size_t m = (size_t)pass->width;
    for (int i = 0; i < pass->samples; i++) {
        double first = tn_norm(m, tn_fc_h(pass, 0) + (size_t)i * m), top = 0, high = 0, low = INFINITY,
               norm = 0;
        for (int l = 0; l <= pass->depth; l++) {
            norm = tn_norm(m, tn_fc_h(pass, l) + (size_t)i * m);
            tn_sweep_raise(&s->largest[scaling], trial, point, norm);
            tn_sweep_lower(&s->least[scaling], trial, point, norm);
            high = fmax(high, norm);
            low = fmin(low, norm);
            if (l < pass->depth) top = fmax(top, norm);
            if (trial == 0 && pass->depth == deepest)
                s->profile[scaling * (deepest + 1) + l] += norm / pass->samples;
        }
        excess += (top / first - 1) / pass->samples;
        highest += high / pass->samples;
        lowest += low / pass->samples;
        square += norm * norm / pass->samples;
    }
    tn_sweep_set(&s->excess[scaling], trial, point, excess);
    tn_sweep_set(&s->top[scaling], trial, point, highest);
    tn_sweep_set(&s->bottom[scaling], trial, point, lowest);
    tn_sweep_set(&s->square[scaling], trial, point, square);
}

static tn_status run_depth(study *s, const tn_fc_network *deep, const double *x, int trial, int point) {
    tn_fc_network net = *deep;
    tn_fc_pass pass;
    net.depth = s->depths[point];
    TN_TRY(tn_fc_pass_create(&net, s->samples, &pass));
    for (int k = 0; k < SCALINGS; k++) {
        net.tau = scalings[k].kappa * pow(net.depth, -scalings[k].power);
        tn_fc_forward(&net, x, &pass);
        measure(s, &pass, k, trial, point);
    }
    tn_fc_pass_free(&pass);
    return TN_OK;
}

static tn_status run_trial(void *context, int trial, int worker) {
    study *s = context;
    tn_fc_network net;
    double *x;
    (void)worker;
    TN_TRY(tn_fc_create(INPUTS, s->width, s->depths[s->points - 1], 1, &net));
    tn_status status = tn_alloc(&x, (size_t)s->samples * INPUTS, sizeof *x, "data points");
    if (status == TN_OK) status = tn_separated_points(tn_lab_seed(s->lab), trial, s->samples, INPUTS, 1, x);
    if (status == TN_OK) tn_fc_initialise(&net, tn_lab_seed(s->lab), trial);
    for (int k = 0; status == TN_OK && k < s->points; k++) status = run_depth(s, &net, x, trial, k);
    tn_free(x);
    tn_fc_free(&net);
    return status;
}

static tn_status judge_theorem_2(study *s) {
    for (int k = 0; k < KAPPAS; k++) {
        char claim[160];
        tn_exponent up = tn_sweep_exponent(&s->top[k]), down = tn_sweep_exponent(&s->bottom[k]);
        snprintf(claim, sizeof claim,
                 "Thm 2, τ = %s: the norms of all layers stay in [1-c, 1+c] at every depth",
                 scalings[k].label);
        TN_TRY(tn_lab_verdict(
            s->lab, tn_judge_both(tn_judge_below(up, 0.05), tn_judge_above(down, -0.05)), claim,
            "exponents in L, means over samples: largest norm of a layer below 0.05, least above -0.05",
            "largest %.3f ± %.3f, least %.3f ± %.3f; all norms in [%.2f, %.2f]; mean growth over "
            "h_0 at L = %d: %.1f %%",
            up.value, up.half_width, down.value, down.half_width, tn_sweep_minimum(&s->least[k]),
            tn_sweep_maximum(&s->largest[k]), s->depths[s->points - 1],
            100 * tn_sweep_mean(&s->excess[k], s->points - 1)));
    }
    double kappas[KAPPAS];
    for (int k = 0; k < KAPPAS; k++) kappas[k] = scalings[k].kappa;
    tn_sweep by_kappa;
    TN_TRY(tn_sweep_create(KAPPAS, kappas, s->trials, &by_kappa));
    for (int t = 0; t < s->trials; t++)
        for (int k = 0; k < KAPPAS; k++)
            tn_sweep_set(&by_kappa, t, k, tn_sweep_at(&s->excess[k], t, s->points - 1));
    tn_exponent e = tn_sweep_exponent(&by_kappa);
    tn_status status =
        tn_lab_verdict(s->lab, tn_judge_above(e, 0.5), "Thm 2: the excess c over 1 shrinks with κ = τ√L",
                       "exponent of the mean growth over h_0 in κ above 0.5",
                       "%.2f ± %.2f; growth %.1f, %.1f, %.1f %% at κ = 1, 0.5, 0.25", e.value, e.half_width,
                       100 * tn_sweep_mean(&by_kappa, 0), 100 * tn_sweep_mean(&by_kappa, 1),
                       100 * tn_sweep_mean(&by_kappa, 2));
    tn_sweep_free(&by_kappa);
    return status;
}

static tn_status judge_theorem_4(study *s) {
    for (int k = FIRST_GROWING; k < CONTROL; k++) {
        char claim[160], bound[80];
        double c = 0.5 - scalings[k].power, least = INFINITY;
        int at = 0;
        for (int p = 0; p < s->points; p++) {
            double ratio = tn_sweep_mean(&s->square[k], p) / pow(s->depths[p], 2 * c);
            if (ratio >= least) continue;
            least = ratio;
            at = s->depths[p];
        }
        tn_exponent q = tn_sweep_log_exponent(&s->square[k]);
        snprintf(claim, sizeof claim, "Thm 4, τ = %s: E||h_L||² > L^%.2g", scalings[k].label, 2 * c);
        snprintf(bound, sizeof bound, "E||h_L||² / L^%.2g above 1 at every depth", 2 * c);
        TN_TRY(tn_lab_verdict(
            s->lab, least > 1 ? TN_HOLDS : TN_DOES_NOT_HOLD, claim, bound,
            "least ratio %.3g (L = %d); E||h_L||² = %.3g at L = %d; log E||h_L||² grows as L^(%.2f ± "
            "%.2f)",
            least, at, tn_sweep_mean(&s->square[k], s->points - 1), s->depths[s->points - 1], q.value,
            q.half_width));
    }
    tn_exponent e = tn_sweep_exponent(&s->largest[CONTROL]);
    return tn_lab_verdict(s->lab, tn_judge_above(e, 0.05), "Control, τ = 1: norms grow with depth",
                          "exponent of the largest norm in L above 0.05",
                          "%.3g ± %.2g; largest norm %.3g at L = %d", e.value, e.half_width,
                          tn_sweep_mean(&s->largest[CONTROL], s->points - 1), s->depths[s->points - 1]);
}

static tn_status draw(study *s) {
    tn_plot *plot;
    int norms, layers, growth, deepest = s->depths[s->points - 1];
    char title[80];
    double *l;
    snprintf(title, sizeof title, "mean norm of layer l, L = %d", deepest);
    TN_TRY(tn_lab_plot(
        s->lab, "forward",
        "Norms of the layers at initialisation. Left: the largest over samples and layers against depth. "
        "Middle: along the deepest network. Right: E||h_L||² against the lower bound of Theorem 4 "
        "(dashed). Bands: all trials.",
        &plot));
    TN_TRY(tn_plot_panel(plot, "largest norm of a layer", "depth L", "max ||h_l||", true, true, &norms));
    TN_TRY(tn_plot_panel(plot, title, "l / L", "||h_l||", false, true, &layers));
    TN_TRY(tn_plot_panel(plot, "square of the last norm", "depth L", "E||h_L||²", true, true, &growth));
    TN_TRY(tn_alloc(&l, (size_t)deepest + 1, sizeof *l, "a plot"));
    for (int i = 0; i <= deepest; i++) l[i] = (double)i / deepest;
    tn_status status = TN_OK;
    for (int k = 0; status == TN_OK && k < CONTROL; k++) {
        status = tn_sweep_plot(&s->largest[k], plot, norms, scalings[k].label, k);
        if (status == TN_OK)
            status = tn_plot_series(plot, layers, scalings[k].label, k, TN_MARK_LINE, deepest + 1, l,
                                    s->profile + k * (deepest + 1), NULL, NULL);
        if (status != TN_OK || k < FIRST_GROWING) continue;
        double y[TN_SWEEP_POINTS];
        for (int p = 0; p < s->points; p++) y[p] = pow(s->depths[p], 1 - 2 * scalings[k].power);
        status = tn_sweep_plot(&s->square[k], plot, growth, scalings[k].label, k);
        if (status == TN_OK)
            status =
                tn_plot_series(plot, growth, "", k, TN_MARK_DASHED, s->points, s->square[k].x, y, NULL, NULL);
    }
    tn_free(l);
    return status;
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(tn_lab_table(s->lab, "forward",
                        "kappa,p,L,trial,largest_norm,least_norm,mean_largest_norm,mean_least_norm,mean_"
                        "growth,mean_square_last",
                        &table));
    for (int k = 0; k < SCALINGS; k++)
        for (int p = 0; p < s->points; p++)
            for (int t = 0; t < s->trials; t++)
                TN_TRY(TN_TABLE_ADD(table, scalings[k].kappa, scalings[k].power, s->depths[p], t,
                                    tn_sweep_at(&s->largest[k], t, p), tn_sweep_at(&s->least[k], t, p),
                                    tn_sweep_at(&s->top[k], t, p), tn_sweep_at(&s->bottom[k], t, p),
                                    tn_sweep_at(&s->excess[k], t, p), tn_sweep_at(&s->square[k], t, p)));
    return TN_OK;
}

static tn_status conclude(study *s) {
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(s->lab, "Width m = %d, %d samples of unit norm at distance 1, %d trials.", s->width,
                         s->samples, s->trials));
    TN_TRY(judge_theorem_2(s));
    TN_TRY(judge_theorem_4(s));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {30, 100, 300, 1000, 0}, quick[] = {30, 60, 120, 0};
    study s = {.lab = lab};
    (void)options;
    s.width = tn_lab_width(lab, 128, 64);
    s.samples = tn_lab_samples(lab, 8, 4);
    s.trials = tn_lab_trials(lab, 40, 6);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, s.depths, TN_SWEEP_POINTS, &s.points));
    tn_status status =
        tn_alloc(&s.profile, SCALINGS * ((size_t)s.depths[s.points - 1] + 1), sizeof *s.profile, "a profile");
    for (int k = 0; k < SCALINGS && status == TN_OK; k++) {
        tn_sweep *all[] = {&s.largest[k], &s.least[k], &s.excess[k], &s.square[k], &s.top[k], &s.bottom[k]};
        for (int i = 0; i < 6 && status == TN_OK; i++)
            status = tn_sweep_create_depths(s.points, s.depths, s.trials, all[i]);
    }
    if (status == TN_OK) status = conclude(&s);
    for (int k = 0; k < SCALINGS; k++) {
        tn_sweep_free(&s.largest[k]);
        tn_sweep_free(&s.least[k]);
        tn_sweep_free(&s.top[k]);
        tn_sweep_free(&s.bottom[k]);
        tn_sweep_free(&s.excess[k]);
        tn_sweep_free(&s.square[k]);
    }
    tn_free(s.profile);
    return status;
}

const tn_experiment tn_experiment_forward = {
    "forward", "Norms of the layers against depth (Theorems 2 and 4)",
    "The fully connected ResNet h_l = ReLU(h_{l-1} + τ W_l h_{l-1}) at initialisation, in float64. Theorem "
    "2: for τ = "
    "κ/√L the norm of every layer stays within a constant of 1 whatever the depth, and the constant shrinks "
    "with κ. "
    "Theorem 4: for τ = L^(-1/2+c) the expected square of the last norm exceeds L^(2c). Exponents are slopes "
    "of "
    "logarithms, fitted in each trial, with the 95 % interval of their mean over trials.",
    " width depths trials samples ", run};
