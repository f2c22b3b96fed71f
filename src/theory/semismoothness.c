/* Theorems 6 and 8 of [S]: the loss near the initial weights is almost smooth. */
#include <math.h>
#include <stdio.h>

#include "theory/fc_trial.h"
#include "theory/linear_algebra.h"
#include "theory/sweep.h"

static const double kappas[] = {1, 0.5, 0.25}, omegas[] = {0.1, 0.5}, lengths[] = {1, 0.1, 0.01};
enum { KAPPAS = 3, OMEGAS = 2, LENGTHS = 3, INPUTS = 32, OUTPUTS = 4 };

typedef struct study {
    tn_lab *lab;
    int width, samples, trials, depths[TN_SWEEP_POINTS], points, control_points;
    /* Largest (F(W + W') - F(W) - <dF, W'>) / bound over directions, lengths and omega; per direction for the
     * table, and over all of them. */
    tn_sweep ratio[KAPPAS][TN_DIRECTIONS], worst[KAPPAS], control;
} study;

static double loss(const tn_fc_network *net, const tn_fc_trial *t, tn_fc_pass *pass) {
    tn_fc_forward(net, t->x, pass);
    return tn_fc_squared_loss(pass, t->targets);
}

/* The two terms behind the linear one, with 1 for what O() hides. */
static double bound_of(const tn_fc_network *net, int samples, double omega, double loss_before, double norm) {
    double n = samples, m = net->width, d = net->outputs, depth = net->depth;
    return n * m / d * norm * norm + sqrt(m * n * depth * pow(omega, 2.0 / 3) / d) *
                                         pow(net->tau * depth, 4.0 / 3) * norm * sqrt(loss_before);
}

/* The largest ratio over lengths of W' in one direction; `net` is at W and comes back there. */
static tn_status measure(study *s, const tn_fc_trial *t, tn_fc_network *net, tn_fc_pass *pass,
                         tn_direction direction, double omega, int trial, double *ratio) {
    tn_fc_network change = tn_fc_at_depth(&t->other, net->depth, net->tau);
    size_t count = (size_t)net->depth * (size_t)net->width * (size_t)net->width;
    double before = loss(net, t, pass), slope;
    tn_fc_backward(net, pass);
    TN_TRY(tn_fc_perturbation(net, pass, direction, net->tau * omega, omega, tn_lab_seed(s->lab) + 1, trial,
                              &change));
    TN_TRY(tn_fc_slope(net, pass, &change, &slope));
    double norm = tn_norm(count, change.w);
    *ratio = 0;
    for (int i = 0; i < LENGTHS; i++) {
        tn_fc_add(net, lengths[i], &change);
        double rest = loss(net, t, pass) - before - lengths[i] * slope;
        tn_fc_add(net, -lengths[i], &change);
        *ratio = fmax(*ratio, rest / bound_of(net, t->samples, omega, before, lengths[i] * norm));
    }
    return TN_OK;
}

/* W is omega away from W(0) in a random direction, in the region of the theorem. */
static tn_status measure_omega(study *s, const tn_fc_trial *t, tn_fc_network *net, tn_fc_pass *pass,
                               double omega, int trial, int point, int kappa) {
    tn_fc_network change = tn_fc_at_depth(&t->other, net->depth, net->tau);
    for (int d = 0; d < TN_DIRECTIONS; d++) {
        double ratio;
        TN_TRY(tn_lab_check_stop(s->lab));
        TN_TRY(tn_fc_perturbation(net, pass, TN_RANDOM, net->tau * omega, omega, tn_lab_seed(s->lab), trial,
                                  &change));
        tn_fc_add(net, 1, &change);
        TN_TRY(measure(s, t, net, pass, (tn_direction)d, omega, trial, &ratio));
        TN_TRY(tn_fc_perturbation(net, pass, TN_RANDOM, net->tau * omega, omega, tn_lab_seed(s->lab), trial,
                                  &change));
        tn_fc_add(net, -1, &change);
        if (kappa < KAPPAS) {
            tn_sweep_raise(&s->ratio[kappa][d], trial, point, ratio);
            tn_sweep_raise(&s->worst[kappa], trial, point, ratio);
        } else {
            tn_sweep_raise(&s->control, trial, point, ratio);
        }
    }
    return TN_OK;
}

static tn_status run_depth(study *s, const tn_fc_trial *t, int trial, int point) {
    tn_fc_network net = tn_fc_at_depth(&t->net, s->depths[point], 1);
    tn_fc_pass pass;
    tn_status status = tn_fc_pass_create(&net, t->samples, &pass);
    int cases = point < s->control_points ? KAPPAS + 1 : KAPPAS; /* the last one: tau = 1 */
    for (int k = 0; k < cases && status == TN_OK; k++)
        for (int o = 0; o < OMEGAS && status == TN_OK; o++) {
            net.tau = k < KAPPAS ? kappas[k] / sqrt(net.depth) : 1;
            status = measure_omega(s, t, &net, &pass, omegas[o], trial, point, k);
        }
    tn_fc_pass_free(&pass);
    return status;
}

static tn_status run_trial(void *context, int trial, int worker) {
    study *s = context;
    tn_fc_trial t;
    (void)worker;
    tn_status status = tn_fc_trial_open(tn_lab_seed(s->lab), trial, INPUTS, s->width,
                                        s->depths[s->points - 1], OUTPUTS, s->samples, 1, true, &t);
    for (int p = 0; p < s->points && status == TN_OK; p++) status = run_depth(s, &t, trial, p);
    tn_fc_trial_close(&t);
    return status;
}

static tn_status judge(study *s) {
    for (int k = 0; k < KAPPAS; k++) {
        char claim[200];
        tn_exponent e = tn_sweep_exponent(&s->worst[k]);
        snprintf(claim, sizeof claim,
                 "Thm 6/8, κ = %g: F(W+W') ≤ F(W) + <dF, W'> + O(nm/d)||W'||² + O(√(mnLω^(2/3)/d) "
                 "(τL)^(4/3)) ||W'|| √F",
                 kappas[k]);
        TN_TRY(tn_lab_verdict(s->lab, tn_judge_below(e, 0.05), claim,
                              "exponent in L of the largest ratio (rest / bound with constants 1) below 0.05",
                              "%.2f ± %.2f; ratio at most %.3g", e.value, e.half_width,
                              tn_sweep_maximum(&s->worst[k])));
    }
    tn_exponent e = tn_sweep_exponent(&s->control);
    return tn_lab_verdict(s->lab, tn_judge_above(e, 0.05), "Control, τ = 1: the ratio grows with depth",
                          "exponent in L above 0.05", "%.2f ± %.2f; up to %.3g", e.value, e.half_width,
                          tn_sweep_maximum(&s->control));
}

static tn_status draw(study *s) {
    tn_plot *plot;
    int all, directions, control;
    TN_TRY(tn_lab_plot(
        s->lab, "smoothness",
        "What the linear approximation of the loss leaves, divided by the bound of Theorems 6 and 8 with "
        "constants 1; the largest over ω, lengths and directions. Bands: all trials.",
        &plot));
    TN_TRY(tn_plot_panel(plot, "all directions", "depth L", "rest / bound", true, true, &all));
    TN_TRY(tn_plot_panel(plot, "by direction, κ = 1", "depth L", "rest / bound", true, true, &directions));
    TN_TRY(tn_plot_panel(plot, "control: τ = 1", "depth L", "rest / bound", true, true, &control));
    for (int k = 0; k < KAPPAS; k++) {
        char label[32];
        snprintf(label, sizeof label, "κ = %g", kappas[k]);
        TN_TRY(tn_sweep_plot(&s->worst[k], plot, all, label, k));
    }
    for (int d = 0; d < TN_DIRECTIONS; d++)
        TN_TRY(tn_sweep_plot(&s->ratio[0][d], plot, directions, tn_direction_name((tn_direction)d), d));
    return tn_sweep_plot(&s->control, plot, control, "τ = 1", 3);
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(tn_lab_table(s->lab, "smoothness", "kappa,L,trial,random,ascent,descent,coherent", &table));
    for (int k = 0; k < KAPPAS; k++)
        for (int p = 0; p < s->points; p++)
            for (int t = 0; t < s->trials; t++)
                TN_TRY(TN_TABLE_ADD(table, kappas[k], s->depths[p], t, tn_sweep_at(&s->ratio[k][0], t, p),
                                    tn_sweep_at(&s->ratio[k][1], t, p), tn_sweep_at(&s->ratio[k][2], t, p),
                                    tn_sweep_at(&s->ratio[k][3], t, p)));
    return TN_OK;
}

static tn_status conclude(study *s) {
    for (int k = 0; k < KAPPAS; k++) {
        TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->worst[k]));
        for (int d = 0; d < TN_DIRECTIONS; d++)
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->ratio[k][d]));
    }
    TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->control));
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(
        s->lab,
        "Width m = %d, d = %d outputs, n = %d samples, %d trials; ω = %g and %g; W at a random point of "
        "the region, W' as long as the region allows, a tenth and a hundredth of that.",
        s->width, OUTPUTS, s->samples, s->trials, omegas[0], omegas[1]));
    TN_TRY(judge(s));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {30, 100, 300, 600, 0}, quick[] = {30, 60, 120, 0};
    study s = {.lab = lab};
    (void)options;
    s.width = tn_lab_width(lab, 64, 32);
    s.samples = tn_lab_samples(lab, 8, 4);
    s.trials = tn_lab_trials(lab, 6, 4);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, s.depths, TN_SWEEP_POINTS, &s.points));
    while (s.control_points < s.points && s.depths[s.control_points] <= 100) s.control_points++;
    tn_status status = conclude(&s);
    for (int k = 0; k < KAPPAS; k++) {
        tn_sweep_free(&s.worst[k]);
        for (int d = 0; d < TN_DIRECTIONS; d++) tn_sweep_free(&s.ratio[k][d]);
    }
    tn_sweep_free(&s.control);
    return status;
}

const tn_experiment tn_experiment_smoothness = {
    "smoothness", "Near-smoothness of the loss around the initial weights (Theorems 6 and 8)",
    "Theorems 6 and 8: for W and W' within τω (l < L) and ω (l = L) of the initial weights and of zero, the "
    "loss F = "
    "sum_i F_i exceeds its linear approximation by no more than a quadratic term and one that is linear in "
    "||W'||_F. "
    "Measured: what the linear approximation leaves, divided by both terms with constants 1, in random "
    "directions, along "
    "and against the gradient, and with all layers pushing one sample the same way. The check is that the "
    "ratio does not "
    "grow with L.",
    " width depths trials samples ", run};
