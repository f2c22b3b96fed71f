/* Theorem 7 and Lemma 6 of [S]: the gradient of the last layer cannot vanish before the loss does, and points
 * that are apart stay apart through the layers. */
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "theory/fc_trial.h"
#include "theory/linear_algebra.h"
#include "theory/separated_data.h"
#include "theory/sweep.h"

enum { INPUTS = 64, OUTPUTS = 2, FIXED_DEPTH = 30, FIXED_SAMPLES = 8, AXES = 3, CONTROLS = 4 };
static const double fixed_delta = 0.5;
static const double deltas[] = {0.05, 0.1, 0.2, 0.5, 1}, sample_counts[] = {2, 4, 8, 16, 32};
enum { DELTAS = 5, COUNTS = 5 };
static const char *const axis_names[AXES] = {"L", "δ", "n"};
typedef enum axis { BY_DEPTH, BY_DELTA, BY_COUNT } axis;

typedef struct study {
    tn_lab *lab;
    int width, trials, depths[TN_SWEEP_POINTS], points;
    /* ||dF/dW_L||^2 d n / (F m delta), at the random residual and at the worst one; least ||h_i - h_j|| /
     * delta. */
    tn_sweep gradient[AXES], worst[AXES], separation[AXES];
    tn_sweep control; /* least distance over delta and the layer's norm, without skips, against depth */
} study;

static double least_separation(const tn_fc_pass *pass) {
    double least = INFINITY;
    for (int l = 0; l <= pass->depth; l++)
        least = fmin(least, tn_separation(pass->samples, pass->width, tn_fc_h(pass, l)));
    return least;
}

/* Norms of the states of a layer, root mean square over samples. */
static double layer_norm(const tn_fc_pass *pass, int layer) {
    size_t count = (size_t)pass->samples * (size_t)pass->width;
    return tn_norm(count, tn_fc_h(pass, layer)) / sqrt(pass->samples);
}

/* Without skips the states of all samples turn the same way. How fast is a matter of chance: the value of a
 * trial is the geometric mean over some networks. */
static tn_status add_without_skips(study *s, int number, int depth, int samples, double *sum) {
    tn_fc_trial t;
    tn_fc_pass pass;
    TN_TRY(tn_lab_check_stop(s->lab));
    tn_status status = tn_fc_trial_open(tn_lab_seed(s->lab), number, INPUTS, s->width, depth, OUTPUTS,
                                        samples, fixed_delta, false, &t);
    t.net.skip = false;
    if (status == TN_OK) status = tn_fc_pass_create(&t.net, samples, &pass);
    if (status == TN_OK) {
        tn_fc_forward(&t.net, t.x, &pass);
        *sum += log(tn_separation(samples, s->width, tn_fc_h(&pass, depth)) /
                    (fixed_delta * layer_norm(&pass, depth)));
        tn_fc_pass_free(&pass);
    }
    tn_fc_trial_close(&t);
    return status;
}

static tn_status measure_control(study *s, int trial, int point, int samples) {
    double sum = 0;
    for (int i = 0; i < CONTROLS; i++)
        TN_TRY(add_without_skips(s, s->trials + trial * CONTROLS + i, s->depths[point], samples, &sum));
    tn_sweep_set(&s->control, trial, point, exp(sum / CONTROLS));
    return TN_OK;
}

static tn_status measure(study *s, const tn_fc_trial *t, double delta, int trial, axis a, int point) {
    const tn_fc_network *net = &t->net;
    size_t m2 = (size_t)net->width * (size_t)net->width, side = (size_t)(t->samples * OUTPUTS);
    double *gradient, *gram, *values, unit = net->width * delta / ((double)OUTPUTS * t->samples);
    tn_fc_pass pass;
    TN_TRY(tn_alloc(&gradient, m2 + side * side + side, sizeof *gradient, "a gradient"));
    gram = gradient + m2;
    values = gram + side * side;
    tn_status status = tn_fc_pass_create(net, t->samples, &pass);
    if (status == TN_OK) {
        tn_fc_forward(net, t->x, &pass);
        double loss = tn_fc_squared_loss(&pass, t->targets);
        tn_fc_backward(net, &pass);
        tn_fc_weight_gradient(net, &pass, net->depth, gradient);
        tn_sweep_set(&s->gradient[a], trial, point, pow(tn_norm(m2, gradient), 2) / (loss * unit));
        tn_sweep_set(&s->separation[a], trial, point, least_separation(&pass) / delta);
        status = tn_fc_gram(net, &pass, net->depth, gram);
    }
    if (status == TN_OK) status = tn_symmetric_eigenvalues((int)side, gram, values);
    /* ||dF/dW_L||^2 = r^T G r and F = ||r||^2 / 2, so the worst residual r has the least eigenvalue. */
    if (status == TN_OK) tn_sweep_set(&s->worst[a], trial, point, 2 * values[0] / unit);
    tn_fc_pass_free(&pass);
    tn_free(gradient);
    return status;
}

static tn_status measure_at(study *s, int trial, axis a, int point, int depth, double delta, int samples) {
    tn_fc_trial t;
    TN_TRY(tn_lab_check_stop(s->lab));
    tn_status status = tn_fc_trial_open(tn_lab_seed(s->lab), trial, INPUTS, s->width, depth, OUTPUTS, samples,
                                        delta, false, &t);
    t.net.tau = 1 / sqrt(depth);
    if (status == TN_OK) status = measure(s, &t, delta, trial, a, point);
    tn_fc_trial_close(&t);
    return status;
}

static tn_status run_trial(void *context, int trial, int worker) {
    study *s = context;
    int samples = tn_lab_samples(s->lab, FIXED_SAMPLES, FIXED_SAMPLES);
    (void)worker;
    for (int p = 0; p < s->points; p++)
        TN_TRY(measure_at(s, trial, BY_DEPTH, p, s->depths[p], fixed_delta, samples));
    for (int p = 0; p < s->points; p++) TN_TRY(measure_control(s, trial, p, samples));
    for (int p = 0; p < DELTAS; p++)
        TN_TRY(measure_at(s, trial, BY_DELTA, p, FIXED_DEPTH, deltas[p], samples));
    for (int p = 0; p < COUNTS; p++)
        TN_TRY(measure_at(s, trial, BY_COUNT, p, FIXED_DEPTH, fixed_delta, (int)sample_counts[p]));
    return TN_OK;
}

/* The ratio must be bounded below: not fall as L and n grow and as delta shrinks. */
static tn_status judge_lower(study *s, const tn_sweep sweeps[AXES], const char *claim) {
    tn_exponent e[AXES];
    double least = INFINITY;
    for (int a = 0; a < AXES; a++) {
        e[a] = tn_sweep_exponent(&sweeps[a]);
        least = fmin(least, tn_sweep_minimum(&sweeps[a]));
    }
    tn_verdict verdict = tn_judge_both(tn_judge_above(e[BY_DEPTH], -0.05), tn_judge_below(e[BY_DELTA], 0.05));
    return tn_lab_verdict(s->lab, tn_judge_both(verdict, tn_judge_above(e[BY_COUNT], -0.05)), claim,
                          "exponents of the ratio: in L above -0.05, in δ below 0.05, in n above -0.05",
                          "L: %.3f ± %.3f; δ: %.3f ± %.3f; n: %.3f ± %.3f; least ratio %.3g",
                          e[BY_DEPTH].value, e[BY_DEPTH].half_width, e[BY_DELTA].value,
                          e[BY_DELTA].half_width, e[BY_COUNT].value, e[BY_COUNT].half_width, least);
}

static tn_status judge(study *s) {
    TN_TRY(
        judge_lower(s, s->gradient, "Thm 7: ||dF/dW_L||² ≥ Ω(F mδ/(dn)) at initialisation, random targets"));
    TN_TRY(judge_lower(
        s, s->worst,
        "Thm 7, for the worst residuals (more than the theorem says): ||dF/dW_L||² ≥ Ω(F mδ/(dn))"));
    tn_exponent depth = tn_sweep_exponent(&s->separation[BY_DEPTH]),
                delta = tn_sweep_exponent(&s->separation[BY_DELTA]);
    TN_TRY(tn_lab_verdict(
        s->lab, tn_judge_both(tn_judge_above(depth, -0.05), tn_judge_below(delta, 0.05)),
        "Lemma 6: ||h_i,l - h_j,l|| ≥ Ω(δ) for all layers: separation survives depth",
        "exponents of least distance / δ: in L above -0.05, in δ below 0.05",
        "L: %.3f ± %.3f; δ: %.3f ± %.3f; least %.3f", depth.value, depth.half_width, delta.value,
        delta.half_width,
        fmin(tn_sweep_minimum(&s->separation[BY_DEPTH]), tn_sweep_minimum(&s->separation[BY_DELTA]))));
    tn_exponent control = tn_sweep_exponent(&s->control);
    return tn_lab_verdict(
        s->lab, tn_judge_below(control, -0.05), "Control, without skips: separation is lost with depth",
        "exponent in L of the last layer's least distance, over δ and norm, below -0.05",
        "%.3f ± %.3f; least %.3g", control.value, control.half_width, tn_sweep_minimum(&s->control));
}

static tn_status draw(study *s) {
    static const char *const titles[AXES] = {"against depth", "against separation", "against samples"};
    static const char *const labels[AXES] = {"depth L", "separation δ", "samples n"};
    tn_plot *plot;
    TN_TRY(tn_lab_plot(
        s->lab, "lower",
        "||dF/dW_L||² over F mδ/(dn) for random targets and for the worst residual, and the least distance "
        "of "
        "two samples over δ. The claims are that none of them falls towards the right of the first and third "
        "panel and the left of the second. Bands: all trials.",
        &plot));
    for (int a = 0; a < AXES; a++) {
        int panel;
        TN_TRY(tn_plot_panel(plot, titles[a], labels[a], "ratio to the bound", true, true, &panel));
        TN_TRY(tn_sweep_plot(&s->gradient[a], plot, panel, "random targets", 0));
        TN_TRY(tn_sweep_plot(&s->worst[a], plot, panel, "worst residual", 1));
        TN_TRY(tn_sweep_plot(&s->separation[a], plot, panel, "separation", 2));
    }
    return TN_OK;
}

static tn_status tabulate(study *s) {
    static const char *const names[AXES] = {"lower_depth", "lower_delta", "lower_samples"};
    static const char *const columns[AXES] = {"L,trial,gradient_ratio,worst_ratio,separation_ratio",
                                              "delta,trial,gradient_ratio,worst_ratio,separation_ratio",
                                              "n,trial,gradient_ratio,worst_ratio,separation_ratio"};
    for (int a = 0; a < AXES; a++) {
        tn_number_table *table;
        TN_TRY(tn_lab_table(s->lab, names[a], columns[a], &table));
        for (int p = 0; p < s->gradient[a].points; p++)
            for (int t = 0; t < s->trials; t++)
                TN_TRY(TN_TABLE_ADD(table, s->gradient[a].x[p], t, tn_sweep_at(&s->gradient[a], t, p),
                                    tn_sweep_at(&s->worst[a], t, p), tn_sweep_at(&s->separation[a], t, p)));
    }
    return TN_OK;
}

static tn_status conclude(study *s) {
    double depths[TN_SWEEP_POINTS];
    for (int p = 0; p < s->points; p++) depths[p] = s->depths[p];
    const double *const x[AXES] = {depths, deltas, sample_counts};
    const int points[AXES] = {s->points, DELTAS, COUNTS};
    for (int a = 0; a < AXES; a++) {
        TN_TRY(tn_sweep_create(points[a], x[a], s->trials, &s->gradient[a]));
        TN_TRY(tn_sweep_create(points[a], x[a], s->trials, &s->worst[a]));
        TN_TRY(tn_sweep_create(points[a], x[a], s->trials, &s->separation[a]));
    }
    TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->control));
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(
        s->lab,
        "Width m = %d, d = %d outputs, %d trials, τ = 1/√L; where they are not varied L = %d, δ = %g, n = "
        "%d. The exponents are in %s, %s and %s.",
        s->width, OUTPUTS, s->trials, FIXED_DEPTH, fixed_delta,
        tn_lab_samples(s->lab, FIXED_SAMPLES, FIXED_SAMPLES), axis_names[0], axis_names[1], axis_names[2]));
    TN_TRY(judge(s));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {10, 30, 100, 300, 0}, quick[] = {30, 60, 120, 0};
    study s = {.lab = lab};
    (void)options;
    s.width = tn_lab_width(lab, 256, 96);
    s.trials = tn_lab_trials(lab, 10, 5);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, s.depths, TN_SWEEP_POINTS, &s.points));
    tn_status status = conclude(&s);
    for (int a = 0; a < AXES; a++) {
        tn_sweep_free(&s.gradient[a]);
        tn_sweep_free(&s.worst[a]);
        tn_sweep_free(&s.separation[a]);
    }
    tn_sweep_free(&s.control);
    return status;
}

const tn_experiment tn_experiment_lower = {
    "lower", "A lower bound on the gradient, and separation through depth (Theorem 7, Lemma 6)",
    "Theorem 7: near initialisation the gradient of the last layer satisfies ||dF/dW_L||² ≥ Ω(F m δ/(d n)), "
    "δ being the "
    "separation of the n data points: no flat spots while there is loss. Lemma 6: two samples that are δ "
    "apart stay Ω(δ) "
    "apart in every layer. Measured against depth, separation and number of samples, for random targets, and "
    "also for the "
    "residual with the least gradient of all, which is an eigenvalue of the Gram matrix of the last layer.",
    " width depths trials samples ", run};
