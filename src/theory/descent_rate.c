/* Theorem 5 of [S]: gradient descent converges linearly, at a speed that hardly depends on depth. */
#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "base/statistics.h"
#include "theory/fc_trial.h"
#include "theory/linear_algebra.h"
#include "theory/sweep.h"

/* What is compared over depth. */
typedef enum kind { ROOT, INVERSE, FEEDFORWARD, KINDS } kind;
static const char *const kind_names[KINDS] = {"τ = 1/√L", "τ = 1/L", "feedforward"};
static const double deltas[] = {0.25, 0.4, 0.63, 1}, counts[] = {2, 4, 8, 16};
enum { INPUTS = 32, OUTPUTS = 2, FIXED_DEPTH = 10, FIXED_SAMPLES = 4, SIDES = 4 };
static const double step_factor = 0.125; /* eta = step_factor d / (n m), for all networks */
static const double target = 1e-2;       /* of the loss at the start */

typedef struct study {
    tn_lab *lab;
    int width, trials, limit, depths[TN_SWEEP_POINTS], points;
    tn_sweep steps[KINDS], rate[KINDS], straight[KINDS],
        sharp[KINDS]; /* straight: R^2; sharp: eta lambda_max */
    tn_sweep steps_by_delta, steps_by_count;
    double *curves; /* trial 0: kinds x points x (limit + 1) */
    int converged[KINDS], diverged[KINDS], control_rose, control_late;
    int *outcomes; /* of each (kind, trial, point): 1 reached the target, -1 diverged, 0 neither */
    int *control; /* of each trial: 0 the first step lowers the loss, 1 raises it, 2 and the target is reached
                   */
} study;

typedef struct course {
    double steps; /* to the target, NaN when it was not reached */
    tn_fit fit;   /* log F against the step in the second half of the steps */
    double sharpness;
    bool diverged;
} course;

static tn_status largest_eigenvalue(const tn_fc_network *net, const tn_fc_pass *pass, double *out) {
    size_t side = (size_t)(pass->samples * net->outputs);
    double *gram;
    TN_TRY(tn_alloc(&gram, side * side + side, sizeof *gram, "a Gram matrix"));
    tn_status status = tn_fc_gram(net, pass, 1, gram);
    if (status == TN_OK) status = tn_symmetric_eigenvalues((int)side, gram, gram + side * side);
    *out = gram[side * side + side - 1];
    tn_free(gram);
    return status;
}

/* Descends from the network's weights. rate 0: eta as above; else that many times 1/lambda_max. `losses` has
 * limit + 1 places, NaN beyond the end. */
static tn_status descend(study *s, tn_fc_trial *t, tn_fc_network *net, double rate, double *losses,
                         course *out) {
    double *x, first = 0;
    int end = s->limit;
    tn_fc_pass pass;
    TN_TRY(tn_fc_pass_create(net, t->samples, &pass));
    tn_status status = tn_alloc(&x, 2 * ((size_t)s->limit + 1), sizeof *x, "a curve");
    double eta = step_factor * net->outputs / ((double)t->samples * net->width),
           *logarithm = x ? x + s->limit + 1 : x;
    *out = (course){.steps = NAN};
    for (int k = 0; k <= s->limit; k++) losses[k] = NAN;
    for (int k = 0; k <= end && status == TN_OK; k++) {
        tn_fc_forward(net, t->x, &pass);
        losses[k] = tn_fc_squared_loss(&pass, t->targets);
        if (k == 0) {
            status = largest_eigenvalue(net, &pass, &out->sharpness);
            if (rate > 0) eta = rate / out->sharpness;
            out->sharpness *= eta;
            first = losses[0];
        }
        x[k] = k;
        logarithm[k] = log(losses[k]);
        out->diverged = !(losses[k] < 100 * first);
        if (losses[k] <= target * first) out->steps = k;
        if (out->diverged || losses[k] <= target * first) end = k;
        if (k % 64 == 0 && status == TN_OK) status = tn_lab_check_stop(s->lab);
        if (k == end) break;
        tn_fc_backward(net, &pass);
        tn_fc_descend(net, &pass, eta);
    }
    if (status == TN_OK) out->fit = tn_fit_line(x + end / 2, logarithm + end / 2, end + 1 - end / 2);
    tn_free(x);
    tn_fc_pass_free(&pass);
    return status;
}

/* One network from its initial weights. */
static tn_status run_case(study *s, int trial, int depth, kind what, int samples, double delta, double rate,
                          double *losses, course *out) {
    tn_fc_trial t;
    tn_status status = tn_fc_trial_open(tn_lab_seed(s->lab), trial, INPUTS, s->width, depth, OUTPUTS, samples,
                                        delta, false, &t);
    t.net.skip = what != FEEDFORWARD;
    t.net.tau = what == INVERSE ? 1.0 / depth : 1 / sqrt(depth);
    if (status == TN_OK) status = descend(s, &t, &t.net, rate, losses, out);
    tn_fc_trial_close(&t);
    return status;
}

static double *curve(const study *s, int what, int point) {
    return s->curves + ((size_t)what * (size_t)s->points + (size_t)point) * ((size_t)s->limit + 1);
}

static tn_status run_depth(study *s, int trial, int what, int point, int samples, double *losses) {
    course c;
    TN_TRY(run_case(s, trial, s->depths[point], (kind)what, samples, 1, 0, losses, &c));
    tn_sweep_set(&s->steps[what], trial, point, c.steps);
    tn_sweep_set(&s->rate[what], trial, point, isnan(c.steps) ? NAN : -c.fit.slope);
    tn_sweep_set(&s->straight[what], trial, point, isnan(c.steps) ? NAN : c.fit.r2);
    tn_sweep_set(&s->sharp[what], trial, point, c.sharpness);
    s->outcomes[(what * s->trials + trial) * s->points + point] = c.diverged ? -1 : !isnan(c.steps);
    for (int k = 0; trial == 0 && k <= s->limit; k++) curve(s, what, point)[k] = losses[k];
    return TN_OK;
}

static tn_status run_all(study *s, int trial, double *losses) {
    int samples = tn_lab_samples(s->lab, FIXED_SAMPLES, FIXED_SAMPLES);
    course c;
    for (int what = 0; what < KINDS; what++)
        for (int p = 0; p < s->points; p++) TN_TRY(run_depth(s, trial, what, p, samples, losses));
    for (int p = 0; p < SIDES; p++) {
        TN_TRY(run_case(s, trial, FIXED_DEPTH, ROOT, samples, deltas[p], 0, losses, &c));
        tn_sweep_set(&s->steps_by_delta, trial, p, c.steps);
        TN_TRY(run_case(s, trial, FIXED_DEPTH, ROOT, (int)counts[p], 1, 0, losses, &c));
        tn_sweep_set(&s->steps_by_count, trial, p, c.steps);
    }
    TN_TRY(run_case(s, trial, FIXED_DEPTH, ROOT, samples, 1, 20, losses, &c));
    s->control[trial] = losses[1] <= losses[0] ? 0 : isnan(c.steps) ? 1 : 2;
    return TN_OK;
}

static tn_status run_trial(void *context, int trial, int worker) {
    study *s = context;
    double *losses;
    (void)worker;
    TN_TRY(tn_alloc(&losses, (size_t)s->limit + 1, sizeof *losses, "a curve"));
    tn_status status = run_all(s, trial, losses);
    tn_free(losses);
    tn_lab_progress(s->lab, "trial %d of %d done", trial + 1, s->trials);
    return status;
}

static void count_outcomes(study *s) {
    for (int what = 0; what < KINDS; what++)
        for (int i = 0; i < s->trials * s->points; i++) {
            int outcome = s->outcomes[what * s->trials * s->points + i];
            s->converged[what] += outcome == 1;
            s->diverged[what] += outcome == -1;
        }
    for (int t = 0; t < s->trials; t++) {
        s->control_rose += s->control[t] > 0;
        s->control_late += s->control[t] > 1;
    }
}

static tn_status judge_residual(study *s, int what) {
    char claim[200];
    int runs = s->trials * s->points;
    bool all = s->converged[what] == runs;
    double straightest = tn_sweep_minimum(&s->straight[what]);
    snprintf(claim, sizeof claim,
             "Thm 5, %s: gradient descent with one η = Θ(d/(nm)) converges linearly at every depth",
             kind_names[what]);
    TN_TRY(tn_lab_verdict(
        s->lab,
        all && straightest > 0.9 ? TN_HOLDS
        : all                    ? TN_INCONCLUSIVE
                                 : TN_DOES_NOT_HOLD,
        claim,
        "all runs reach a hundredth of the first loss; log F against the step is straight in the "
        "second half, R² above 0.9",
        "%d of %d runs; least R² %.3f; rate per step %.2g to %.2g", s->converged[what], runs, straightest,
        tn_sweep_minimum(&s->rate[what]), tn_sweep_maximum(&s->rate[what])));
    tn_exponent e = tn_sweep_exponent(&s->steps[what]);
    snprintf(claim, sizeof claim, "Thm 5, %s: the number of steps depends only weakly on depth",
             kind_names[what]);
    tn_verdict weak = tn_judge_both(tn_judge_below(e, 0.2), tn_judge_above(e, -1));
    return tn_lab_verdict(s->lab, all ? weak : TN_INCONCLUSIVE, claim,
                          "exponent in L of the steps to a hundredth of the first loss below 0.2",
                          "%.3f ± %.3f; mean steps %.0f at L = %d, %.0f at L = %d", e.value, e.half_width,
                          tn_sweep_mean(&s->steps[what], 0), s->depths[0],
                          tn_sweep_mean(&s->steps[what], s->points - 1), s->depths[s->points - 1]);
}

/* Whether every run reached the target: a fit to the others alone would flatter. */
static bool is_complete(const tn_sweep *sweep) {
    for (int i = 0; i < sweep->points * sweep->trials; i++)
        if (isnan(sweep->values[i])) return false;
    return true;
}

static tn_status judge(study *s) {
    int runs = s->trials * s->points;
    TN_TRY(judge_residual(s, ROOT));
    TN_TRY(judge_residual(s, INVERSE));
    tn_exponent d = tn_sweep_exponent(&s->steps_by_delta), n = tn_sweep_exponent(&s->steps_by_count);
    TN_TRY(tn_lab_verdict(s->lab, is_complete(&s->steps_by_delta) ? tn_judge_above(d, -1) : TN_INCONCLUSIVE,
                          "Thm 5: steps grow no faster than 1/δ", "exponent of the steps in δ above -1",
                          "%.2f ± %.2f; %.0f steps at δ = %g, %.0f at δ = 1", d.value, d.half_width,
                          tn_sweep_mean(&s->steps_by_delta, 0), deltas[0],
                          tn_sweep_mean(&s->steps_by_delta, SIDES - 1)));
    TN_TRY(tn_lab_verdict(s->lab, is_complete(&s->steps_by_count) ? tn_judge_below(n, 2) : TN_INCONCLUSIVE,
                          "Thm 5: steps grow no faster than n² (up to logarithms)",
                          "exponent of the steps in n below 2",
                          "%.2f ± %.2f; %.0f steps at n = %g, %.0f at n = %g", n.value, n.half_width,
                          tn_sweep_mean(&s->steps_by_count, 0), counts[0],
                          tn_sweep_mean(&s->steps_by_count, SIDES - 1), counts[SIDES - 1]));
    tn_exponent f = tn_sweep_exponent(&s->steps[FEEDFORWARD]), e = tn_sweep_exponent(&s->steps[ROOT]);
    double worse =
        tn_sweep_mean(&s->steps[FEEDFORWARD], s->points - 1) / tn_sweep_mean(&s->steps[ROOT], s->points - 1);
    bool harder = s->converged[FEEDFORWARD] < runs || f.value - f.half_width > e.value + e.half_width;
    TN_TRY(tn_lab_verdict(
        s->lab, harder ? TN_HOLDS : TN_INCONCLUSIVE,
        "Feedforward gets harder with depth under the same η, other than τ = 1/√L",
        "a run misses the target, or the exponent of its steps lies above that of τ = 1/√L",
        "%d of %d runs converge, %d diverge; exponent %.2f ± %.2f against %.2f ± %.2f; %.1f times the "
        "steps at the greatest depth",
        s->converged[FEEDFORWARD], runs, s->diverged[FEEDFORWARD], f.value, f.half_width, e.value,
        e.half_width, worse));
    return tn_lab_verdict(s->lab, s->control_rose == s->trials ? TN_HOLDS : TN_DOES_NOT_HOLD,
                          "Control, η = 10 · 2/λ_max: no linear convergence from the start",
                          "in every run the first step raises the loss",
                          "%d of %d runs; %d of them come down to the target later, in a flatter place",
                          s->control_rose, s->trials, s->control_late);
}

static tn_status draw_curves(study *s, tn_plot *plot) {
    double *x;
    TN_TRY(tn_alloc(&x, (size_t)s->limit + 1, sizeof *x, "a plot"));
    for (int k = 0; k <= s->limit; k++) x[k] = k;
    tn_status status = TN_OK;
    for (int what = 0; what < KINDS && status == TN_OK; what++) {
        int panel;
        status = tn_plot_panel(plot, kind_names[what], "step", "F", false, true, &panel);
        for (int p = 0; p < s->points && status == TN_OK; p++) {
            char label[32];
            snprintf(label, sizeof label, "L = %d", s->depths[p]);
            status = tn_plot_series(plot, panel, label, p, TN_MARK_LINE, s->limit + 1, x, curve(s, what, p),
                                    NULL, NULL);
        }
    }
    tn_free(x);
    return status;
}

static tn_status draw(study *s) {
    tn_plot *plot;
    int depth, delta, count;
    TN_TRY(tn_lab_plot(
        s->lab, "convergence",
        "Gradient descent on the squared loss of n separated points. Above: the loss of the first trial. "
        "Below: steps to a hundredth of the first loss; missing points did not get there. Bands: all trials.",
        &plot));
    TN_TRY(draw_curves(s, plot));
    TN_TRY(tn_plot_panel(plot, "against depth", "depth L", "steps", true, true, &depth));
    TN_TRY(tn_plot_panel(plot, "against separation, τ = 1/√L", "separation δ", "steps", true, true, &delta));
    TN_TRY(tn_plot_panel(plot, "against samples, τ = 1/√L", "samples n", "steps", true, true, &count));
    for (int what = 0; what < KINDS; what++)
        TN_TRY(tn_sweep_plot(&s->steps[what], plot, depth, kind_names[what], what));
    TN_TRY(tn_sweep_plot(&s->steps_by_delta, plot, delta, "", 0));
    return tn_sweep_plot(&s->steps_by_count, plot, count, "", 0);
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(
        tn_lab_table(s->lab, "convergence", "network,L,trial,steps,rate,r2,eta_lambda_max,outcome", &table));
    TN_TRY(tn_lab_remark(
        s->lab, "In convergence.csv, network is 0 for τ = 1/√L, 1 for τ = 1/L, 2 for feedforward; outcome is "
                "1 when the target was reached, -1 when the run diverged, else 0."));
    for (int what = 0; what < KINDS; what++)
        for (int p = 0; p < s->points; p++)
            for (int t = 0; t < s->trials; t++)
                TN_TRY(TN_TABLE_ADD(table, what, s->depths[p], t, tn_sweep_at(&s->steps[what], t, p),
                                    tn_sweep_at(&s->rate[what], t, p), tn_sweep_at(&s->straight[what], t, p),
                                    tn_sweep_at(&s->sharp[what], t, p),
                                    s->outcomes[(what * s->trials + t) * s->points + p]));
    TN_TRY(tn_lab_table(s->lab, "convergence_data", "delta,steps_delta,n,steps_n,trial", &table));
    for (int p = 0; p < SIDES; p++)
        for (int t = 0; t < s->trials; t++)
            TN_TRY(TN_TABLE_ADD(table, deltas[p], tn_sweep_at(&s->steps_by_delta, t, p), counts[p],
                                tn_sweep_at(&s->steps_by_count, t, p), t));
    return TN_OK;
}

static tn_status conclude(study *s) {
    for (int k = 0; k < KINDS; k++) {
        tn_sweep *all[] = {&s->steps[k], &s->rate[k], &s->straight[k], &s->sharp[k]};
        for (int i = 0; i < 4; i++) TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, all[i]));
    }
    size_t runs = (size_t)KINDS * (size_t)s->trials * (size_t)s->points;
    TN_TRY(tn_sweep_create(SIDES, deltas, s->trials, &s->steps_by_delta));
    TN_TRY(tn_sweep_create(SIDES, counts, s->trials, &s->steps_by_count));
    TN_TRY(tn_alloc(&s->outcomes, runs + (size_t)s->trials, sizeof *s->outcomes, "outcomes"));
    s->control = s->outcomes + runs;
    TN_TRY(
        tn_alloc(&s->curves, (size_t)(KINDS * s->points) * ((size_t)s->limit + 1), sizeof(double), "curves"));
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    count_outcomes(s);
    TN_TRY(tn_lab_remark(
        s->lab,
        "Width m = %d, d = %d outputs, n = %d samples at distance 1, %d trials, η = %g d/(nm), at most %d "
        "steps. η λ_max at the start is %.2f to %.2f for τ = 1/√L and %.2f to %.2f for feedforward.",
        s->width, OUTPUTS, tn_lab_samples(s->lab, FIXED_SAMPLES, FIXED_SAMPLES), s->trials, step_factor,
        s->limit, tn_sweep_minimum(&s->sharp[ROOT]), tn_sweep_maximum(&s->sharp[ROOT]),
        tn_sweep_minimum(&s->sharp[FEEDFORWARD]), tn_sweep_maximum(&s->sharp[FEEDFORWARD])));
    TN_TRY(judge(s));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {3, 10, 30, 100, 0}, quick[] = {3, 6, 12, 0};
    study s = {.lab = lab, .limit = tn_lab_is_quick(lab) ? 600 : 1000};
    (void)options;
    s.width = tn_lab_width(lab, 128, 48);
    s.trials = tn_lab_trials(lab, 8, 4);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, s.depths, TN_SWEEP_POINTS, &s.points));
    tn_status status = conclude(&s);
    for (int k = 0; k < KINDS; k++) {
        tn_sweep_free(&s.steps[k]);
        tn_sweep_free(&s.rate[k]);
        tn_sweep_free(&s.straight[k]);
        tn_sweep_free(&s.sharp[k]);
    }
    tn_sweep_free(&s.steps_by_delta);
    tn_sweep_free(&s.steps_by_count);
    tn_free(s.outcomes);
    tn_free(s.curves);
    return status;
}

const tn_experiment tn_experiment_convergence = {"convergence",
                                                 "Gradient descent on separated points (Theorem 5)",
                                                 "Theorem 5: for τ = O(1/√L) gradient descent with η = "
                                                 "Θ(d/(nm)) converges linearly; the number of steps grows as "
                                                 "n²/δ up to logarithms and hardly with depth. Measured with "
                                                 "full-batch gradient descent on the squared loss of n "
                                                 "points at distance δ with random targets, all W_l trained, "
                                                 "one η for all networks: τ = 1/√L, τ = 1/L, and the same "
                                                 "network without skips.",
                                                 " width depths trials samples ", run};
