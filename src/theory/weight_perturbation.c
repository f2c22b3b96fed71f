/* Lemmas 3, 4 and 7 of [S]: how far states move, and how many units switch, when the weights move. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "theory/fc_trial.h"
#include "theory/linear_algebra.h"
#include "theory/sweep.h"

static const double kappas[] = {1, 0.5, 0.25}, omegas[] = {1e-4, 1e-3, 1e-2, 1e-1};
static const tn_direction directions[] = {TN_RANDOM, TN_ASCENT, TN_COHERENT};
enum { KAPPAS = 3, OMEGAS = 4, MIDDLE = 2, DIRECTIONS = 3, INPUTS = 32, OUTPUTS = 4 };

typedef struct study {
    tn_lab *lab;
    int width, samples, trials, depths[TN_SWEEP_POINTS], points, control_points;
    /* Largest over samples and layers l < L: ||h'_l|| / (tau^2 L omega) and share of switched units / (omega
     * tau L)^(2/3), where that is below 1. The worst over directions against L at each omega; and each
     * direction. */
    tn_sweep shift[KAPPAS][OMEGAS][DIRECTIONS], switched[KAPPAS][OMEGAS][DIRECTIONS];
    tn_sweep last,
        control; /* at kappa = 1 and the middle omega: ||h'_L|| / omega; tau = 1: ||h'_l|| / (L omega) */
} study;

typedef struct change {
    double shift, switched, last;
} change;

/* Compares the states of two passes. */
static change compare(const tn_fc_pass *before, const tn_fc_pass *after, double *difference) {
    change c = {0, 0, 0};
    size_t m = (size_t)before->width;
    for (int l = 1; l <= before->depth; l++)
        for (int i = 0; i < before->samples; i++) {
            const double *h = tn_fc_h(before, l) + (size_t)i * m, *g = tn_fc_h(after, l) + (size_t)i * m;
            int switches = 0;
            for (size_t k = 0; k < m; k++) {
                difference[k] = g[k] - h[k];
                switches += (h[k] > 0) != (g[k] > 0);
            }
            double norm = tn_norm(m, difference);
            if (l == before->depth) {
                c.last = fmax(c.last, norm);
            } else {
                c.shift = fmax(c.shift, norm);
                c.switched = fmax(c.switched, (double)switches / (double)m);
            }
        }
    return c;
}

typedef struct bench {
    study *study;
    tn_fc_trial trial;
    tn_fc_pass before, after;
    double *difference;
    int number, point;
} bench;

static tn_status measure(bench *b, tn_fc_network *net, tn_direction direction, double omega, change *out) {
    tn_fc_network moved = tn_fc_at_depth(&b->trial.other, net->depth, net->tau);
    TN_TRY(tn_lab_check_stop(b->study->lab));
    TN_TRY(tn_fc_perturbation(net, &b->before, direction, net->tau * omega, omega, tn_lab_seed(b->study->lab),
                              b->number, &moved));
    tn_fc_add(&moved, 1, net); /* W + W' */
    moved.a = net->a;
    moved.b = net->b;
    tn_fc_forward(&moved, b->trial.x, &b->after);
    *out = compare(&b->before, &b->after, b->difference);
    return TN_OK;
}

static void start(bench *b, tn_fc_network *net, double tau) {
    net->tau = tau;
    tn_fc_forward(net, b->trial.x, &b->before);
    (void)tn_fc_squared_loss(&b->before, b->trial.targets);
    tn_fc_backward(net, &b->before);
}

static tn_status measure_kappa(bench *b, tn_fc_network *net, int k) {
    study *s = b->study;
    start(b, net, kappas[k] / sqrt(net->depth));
    for (int o = 0; o < OMEGAS; o++)
        for (int d = 0; d < DIRECTIONS; d++) {
            change c;
            double omega = omegas[o], spread = pow(omega * net->tau * net->depth, 2.0 / 3);
            TN_TRY(measure(b, net, directions[d], omega, &c));
            tn_sweep_set(&s->shift[k][o][d], b->number, b->point,
                         c.shift / (net->tau * net->tau * net->depth * omega));
            if (spread < 1) tn_sweep_set(&s->switched[k][o][d], b->number, b->point, c.switched / spread);
            if (k == 0 && o == MIDDLE) tn_sweep_raise(&s->last, b->number, b->point, c.last / omega);
        }
    return TN_OK;
}

static tn_status measure_depth(bench *b) {
    study *s = b->study;
    tn_fc_network net = tn_fc_at_depth(&b->trial.net, s->depths[b->point], 1);
    tn_status status = tn_fc_pass_create(&net, s->samples, &b->before);
    if (status == TN_OK) status = tn_fc_pass_create(&net, s->samples, &b->after);
    for (int k = 0; k < KAPPAS && status == TN_OK; k++) status = measure_kappa(b, &net, k);
    if (status == TN_OK && b->point < s->control_points) {
        change c;
        start(b, &net, 1);
        status = measure(b, &net, TN_RANDOM, omegas[MIDDLE], &c);
        tn_sweep_set(&s->control, b->number, b->point, c.shift / (net.depth * omegas[MIDDLE]));
    }
    tn_fc_pass_free(&b->before);
    tn_fc_pass_free(&b->after);
    return status;
}

static tn_status run_trial(void *context, int trial, int worker) {
    study *s = context;
    bench b = {.study = s, .number = trial};
    (void)worker;
    tn_status status = tn_fc_trial_open(tn_lab_seed(s->lab), trial, INPUTS, s->width,
                                        s->depths[s->points - 1], OUTPUTS, s->samples, 1, true, &b.trial);
    if (status == TN_OK) status = tn_alloc(&b.difference, (size_t)s->width, sizeof(double), "a difference");
    for (; b.point < s->points && status == TN_OK; b.point++) status = measure_depth(&b);
    tn_fc_trial_close(&b.trial);
    tn_free(b.difference);
    return status;
}

/* The exponent in omega at the greatest depth. */
static tn_status omega_exponent(study *s, tn_sweep sweeps[OMEGAS][DIRECTIONS], int direction,
                                tn_exponent *out) {
    tn_sweep by_omega;
    TN_TRY(tn_sweep_create(OMEGAS, omegas, s->trials, &by_omega));
    for (int o = 0; o < OMEGAS; o++)
        for (int t = 0; t < s->trials; t++)
            tn_sweep_set(&by_omega, t, o, tn_sweep_at(&sweeps[o][direction], t, s->points - 1));
    *out = tn_sweep_exponent(&by_omega);
    tn_sweep_free(&by_omega);
    return TN_OK;
}

/* A row: exponents of the ratio in L at the middle omega and in omega at the greatest depth, the worst of the
 * directions, and the largest ratio of all. */
static tn_status judge_ratio(study *s, tn_sweep sweeps[OMEGAS][DIRECTIONS], const char *claim) {
    tn_exponent in_depth = {-INFINITY, 0}, in_omega = {-INFINITY, 0};
    tn_verdict verdict = TN_HOLDS;
    double most = 0;
    for (int d = 0; d < DIRECTIONS; d++) {
        tn_exponent e = tn_sweep_exponent(&sweeps[MIDDLE][d]), f;
        TN_TRY(omega_exponent(s, sweeps, d, &f));
        verdict = tn_judge_both(verdict, tn_judge_both(tn_judge_below(e, 0.05), tn_judge_below(f, 0.05)));
        if (e.value > in_depth.value) in_depth = e;
        if (f.value > in_omega.value) in_omega = f;
        for (int o = 0; o < OMEGAS; o++) most = fmax(most, tn_sweep_maximum(&sweeps[o][d]));
    }
    return tn_lab_verdict(s->lab, verdict, claim,
                          "exponents of the ratio in L and in ω below 0.05, worst direction",
                          "in L (ω = %g): %.3f ± %.3f; in ω (L = %d): %.3f ± %.3f; ratio at most %.3g",
                          omegas[MIDDLE], in_depth.value, in_depth.half_width, s->depths[s->points - 1],
                          in_omega.value, in_omega.half_width, most);
}

static tn_status judge(study *s) {
    char claim[200];
    for (int k = 0; k < KAPPAS; k++) {
        snprintf(claim, sizeof claim, "Lemmas 3, 4, 7, κ = %g: the states of layers l < L move by O(τ²Lω)",
                 kappas[k]);
        TN_TRY(judge_ratio(s, s->shift[k], claim));
    }
    for (int k = 0; k < KAPPAS; k++) {
        snprintf(claim, sizeof claim, "Lemmas 3, 4, 7, κ = %g: O(m (ωτL)^(2/3)) units of a layer switch",
                 kappas[k]);
        TN_TRY(judge_ratio(s, s->switched[k], claim));
    }
    tn_exponent e = tn_sweep_exponent(&s->last), c = tn_sweep_exponent(&s->control);
    TN_TRY(tn_lab_remark(s->lab,
                         "Last layer, κ = 1, ω = %g: ||h'_L|| is at most %.2f ω, exponent in L %.3f ± %.3f.",
                         omegas[MIDDLE], tn_sweep_maximum(&s->last), e.value, e.half_width));
    return tn_lab_verdict(s->lab, tn_judge_above(c, 0.05), "Control, τ = 1: the ratio grows with depth",
                          "exponent of ||h'_l|| / (τ²Lω) in L above 0.05", "%.2f ± %.2f; up to %.3g", c.value,
                          c.half_width, tn_sweep_maximum(&s->control));
}

static tn_status draw(study *s) {
    static const char *const axis[] = {"||h'_l|| / (τ²Lω)", "share switched / (ωτL)^(2/3)"};
    tn_plot *plot;
    int depth[2], omega;
    char title[80];
    TN_TRY(tn_lab_plot(
        s->lab, "perturbation",
        "Left: movement of the states l < L over τ²Lω. Middle: share of units that switch over (ωτL)^(2/3). "
        "Right: the share itself against ω, with slope 2/3 dashed. Largest over samples and layers; bands: "
        "all trials. κ = 1.",
        &plot));
    snprintf(title, sizeof title, "movement of states, ω = %g", omegas[MIDDLE]);
    TN_TRY(tn_plot_panel(plot, title, "depth L", axis[0], true, true, &depth[0]));
    snprintf(title, sizeof title, "switched units, ω = %g", omegas[MIDDLE]);
    TN_TRY(tn_plot_panel(plot, title, "depth L", axis[1], true, true, &depth[1]));
    snprintf(title, sizeof title, "switched units, L = %d", s->depths[s->points - 1]);
    TN_TRY(tn_plot_panel(plot, title, "ω", "share of the units of a layer", true, true, &omega));
    double x[OMEGAS], y[OMEGAS], bound[OMEGAS], deepest = s->depths[s->points - 1];
    for (int d = 0; d < DIRECTIONS; d++) {
        const char *label = tn_direction_name(directions[d]);
        TN_TRY(tn_sweep_plot(&s->shift[0][MIDDLE][d], plot, depth[0], label, d));
        TN_TRY(tn_sweep_plot(&s->switched[0][MIDDLE][d], plot, depth[1], label, d));
        for (int o = 0; o < OMEGAS; o++) {
            x[o] = omegas[o];
            bound[o] = pow(omegas[o] * sqrt(deepest), 2.0 / 3);
            y[o] = tn_sweep_mean(&s->switched[0][o][d], s->points - 1) * bound[o];
        }
        TN_TRY(tn_plot_series(plot, omega, label, d, TN_MARK_BOTH, OMEGAS, x, y, NULL, NULL));
    }
    return tn_plot_series(plot, omega, "(ωτL)^(2/3)", -1, TN_MARK_DASHED, OMEGAS, x, bound, NULL, NULL);
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(tn_lab_table(s->lab, "perturbation", "kappa,omega,direction,L,trial,shift_ratio,switched_ratio",
                        &table));
    TN_TRY(tn_lab_remark(s->lab,
                         "In perturbation.csv, direction is 0 random, 1 along the gradient, 2 coherent; "
                         "switched_ratio is nan where (ωτL)^(2/3) is 1 or more and the bound says nothing."));
    for (int k = 0; k < KAPPAS; k++)
        for (int o = 0; o < OMEGAS; o++)
            for (int d = 0; d < DIRECTIONS; d++)
                for (int p = 0; p < s->points; p++)
                    for (int t = 0; t < s->trials; t++)
                        TN_TRY(TN_TABLE_ADD(table, kappas[k], omegas[o], d, s->depths[p], t,
                                            tn_sweep_at(&s->shift[k][o][d], t, p),
                                            tn_sweep_at(&s->switched[k][o][d], t, p)));
    return TN_OK;
}

static tn_status conclude(study *s) {
    for (int k = 0; k < KAPPAS; k++)
        for (int o = 0; o < OMEGAS; o++)
            for (int d = 0; d < DIRECTIONS; d++) {
                TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->shift[k][o][d]));
                TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->switched[k][o][d]));
            }
    TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->last));
    TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->control));
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(s->lab, "Width m = %d, %d samples, %d trials.", s->width, s->samples, s->trials));
    TN_TRY(judge(s));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {30, 100, 300, 1000, 0}, quick[] = {30, 60, 120, 0};
    study s = {.lab = lab};
    (void)options;
    s.width = tn_lab_width(lab, 128, 64);
    s.samples = tn_lab_samples(lab, 8, 4);
    s.trials = tn_lab_trials(lab, 6, 5);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, s.depths, TN_SWEEP_POINTS, &s.points));
    while (s.control_points < s.points && s.depths[s.control_points] <= 100) s.control_points++;
    tn_status status = conclude(&s);
    for (int k = 0; k < KAPPAS; k++)
        for (int o = 0; o < OMEGAS; o++)
            for (int d = 0; d < DIRECTIONS; d++) {
                tn_sweep_free(&s.shift[k][o][d]);
                tn_sweep_free(&s.switched[k][o][d]);
            }
    tn_sweep_free(&s.last);
    tn_sweep_free(&s.control);
    return status;
}

const tn_experiment tn_experiment_perturbation = {
    "perturbation", "States and switched units under a change of the weights (Lemmas 3, 4 and 7)",
    "When every W_l moves by τω in spectral norm (ω for l = L), the lemmas say that the states of the layers "
    "l < L move "
    "by O(τ²Lω) and that at most O(m (ωτL)^(2/3)) units of a layer switch on or off. Measured for random "
    "directions, "
    "along the gradient, and with all layers pushing the first sample the same way. The check is that the "
    "ratios to these "
    "bounds grow neither with L nor with ω.",
    " width depths trials samples ", run};
