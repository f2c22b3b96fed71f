/* Lemmas 1 to 3 and Theorems 1 and 2 of [N]: full-batch gradient descent on the normalization-free network.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/statistics.h"
#include "theory/linear_algebra.h"
#include "theory/nf_network.h"
#include "theory/separated_data.h"
#include "theory/sweep.h"

enum { INPUTS = 40, COUNTS = 4, WIDTHS = 5, EVERY = 5 }; /* EVERY: steps between looks at the spectrum */
static const double counts[COUNTS] = {4, 8, 16, 32};

/* The course of one run. */
typedef struct course {
    double least_gram;     /* least lambda_min(G(k)) over the run, G of equation (2) */
    double first_gram;     /* lambda_min(G(0)) */
    double bound_excess;   /* largest ||y-u(k)||^2 / ((1 - eta lambda_0/2)^k ||y-u(0)||^2) */
    double rate;           /* fitted: ||y-u(k)||^2 falls by this share a step */
    double weights, alpha; /* largest ||W(k)-W(0)||_F and |alpha_h(k)-alpha_h(0)| */
    double least_gradient, largest_gradient; /* ||du_i/dtheta|| over samples and steps */
    double final;                            /* last loss / first loss */
    double eta;
} course;

typedef struct study {
    tn_lab *lab;
    int width, depth, samples, trials, limit, wide, repeats;
    double widths[WIDTHS];
    double lambda_0[TN_ACTIVATIONS][COUNTS]; /* of the data of all trials: the same points */
    double lambda_half[TN_ACTIVATIONS];      /* from half the width, at the middle count */
    double *x;                               /* counts x points: 32 x INPUTS, shared */
    tn_sweep start[TN_ACTIVATIONS];          /* lambda_min(G(0)) / lambda_0 against width */
    tn_sweep least[TN_ACTIVATIONS], excess[TN_ACTIVATIONS], rate[TN_ACTIVATIONS], weights[TN_ACTIVATIONS],
        alpha[TN_ACTIVATIONS], begin[TN_ACTIVATIONS], low[TN_ACTIVATIONS], high[TN_ACTIVATIONS],
        final[TN_ACTIVATIONS];        /* against n */
    tn_sweep control[TN_ACTIVATIONS]; /* loss after one step that is ten times too long, over the first */
    double *curves; /* trial 0, the second count: activations x 3 x (limit + 1): loss, bound, lambda_min(G) /
                       lambda_0 */
    double *wide_grams; /* activations x repeats x 2 (whole, half width) x 32 x 32 */
} study;

enum { MOST = 32 };

static double *wide_gram(const study *s, int activation, int repeat, int half) {
    return s->wide_grams + (size_t)((activation * s->repeats + repeat) * 2 + half) * MOST * MOST;
}

/* G(0) of equation (2) for `samples` points. */
static tn_status start_gram(const study *s, int activation, int width, int samples, int trial, double *gram) {
    tn_nf_network net;
    tn_nf_pass pass = {0};
    double *work = NULL;
    size_t n = (size_t)samples;
    TN_TRY(tn_nf_create(INPUTS, width, s->depth, (tn_activation)activation, true, &net));
    tn_status status = tn_nf_pass_create(&net, samples, s->x, &pass);
    if (status == TN_OK) status = tn_alloc(&work, n * (size_t)width + n * n, sizeof *work, "a Gram matrix");
    if (status == TN_OK) {
        tn_nf_initialise(&net, tn_lab_seed(s->lab), trial);
        tn_nf_forward(&net, &pass);
        tn_nf_gram_last(&net, &pass, gram, work);
    }
    tn_free(work);
    tn_nf_pass_free(&pass);
    tn_nf_free(&net);
    return status;
}

/* Trials of the wide networks have numbers of their own. */
static tn_status run_wide(void *context, int index, int worker) {
    study *s = context;
    int activation = index / (2 * s->repeats), repeat = index / 2 % s->repeats, half = index % 2;
    (void)worker;
    return start_gram(s, activation, half ? s->wide / 2 : s->wide, MOST, 1000 + repeat,
                      wide_gram(s, activation, repeat, half));
}

/* lambda_min of the mean of the wide networks' Gram matrices, of its leading samples x samples part. */
static tn_status limit_eigenvalue(const study *s, int activation, int half, int samples, double *out) {
    double mean[MOST * MOST] = {0}, values[MOST];
    for (int r = 0; r < s->repeats; r++)
        for (int i = 0; i < samples; i++)
            for (int j = 0; j < samples; j++)
                mean[i * samples + j] += wide_gram(s, activation, r, half)[i * MOST + j] / s->repeats;
    TN_TRY(tn_symmetric_eigenvalues(samples, mean, values));
    *out = values[0];
    return TN_OK;
}

static tn_status estimate_limits(study *s) {
    size_t each = (size_t)MOST * MOST;
    TN_TRY(tn_alloc(&s->wide_grams, (size_t)(TN_ACTIVATIONS * s->repeats * 2) * each, sizeof(double),
                    "Gram matrices"));
    TN_TRY(tn_lab_parallel(s->lab, TN_ACTIVATIONS * s->repeats * 2, run_wide, s));
    for (int a = 0; a < TN_ACTIVATIONS; a++) {
        for (int c = 0; c < COUNTS; c++)
            TN_TRY(limit_eigenvalue(s, a, 0, (int)counts[c], &s->lambda_0[a][c]));
        TN_TRY(limit_eigenvalue(s, a, 1, (int)counts[1], &s->lambda_half[a]));
        TN_TRY(tn_lab_remark(s->lab,
                             "%s: λ_0 = %.3g for n = %g from %d networks of width %d (%.3g from width %d).",
                             tn_activation_name((tn_activation)a), s->lambda_0[a][1], counts[1], s->repeats,
                             s->wide, s->lambda_half[a], s->wide / 2));
    }
    return TN_OK;
}

typedef struct workshop {
    tn_nf_network net, first; /* first: the weights at the start */
    tn_nf_pass pass;
    double *gram, *work, *values, *y;
} workshop;

static tn_status open_workshop(workshop *w, const study *s, int activation, int samples, int trial) {
    size_t n = (size_t)samples, m = (size_t)s->width;
    *w = (workshop){0};
    TN_TRY(tn_nf_create(INPUTS, s->width, s->depth, (tn_activation)activation, true, &w->net));
    TN_TRY(tn_nf_create(INPUTS, s->width, s->depth, (tn_activation)activation, true, &w->first));
    TN_TRY(tn_nf_pass_create(&w->net, samples, s->x, &w->pass));
    TN_TRY(tn_alloc(&w->gram, 3 * n * n + n * m + 2 * n, sizeof(double), "a Gram matrix"));
    w->work = w->gram + n * n;
    w->values = w->work + 2 * n * n + n * m;
    w->y = w->values + n;
    tn_random_targets(tn_lab_seed(s->lab), trial, samples, 1, w->y);
    tn_nf_initialise(&w->net, tn_lab_seed(s->lab), trial);
    memcpy(w->first.w, w->net.w, w->net.count * sizeof(double));
    return TN_OK;
}

static void close_workshop(workshop *w) {
    tn_nf_free(&w->net);
    tn_nf_free(&w->first);
    tn_nf_pass_free(&w->pass);
    tn_free(w->gram);
}

/* eta = 1 / lambda_max(J J^T) at the start. */
static tn_status choose_rate(workshop *w, double *eta) {
    int n = w->pass.samples;
    tn_nf_gram(&w->net, &w->pass, w->gram, w->work);
    TN_TRY(tn_symmetric_eigenvalues(n, w->gram, w->values));
    *eta = 1 / w->values[n - 1];
    return TN_OK;
}

/* Spectrum, movement and gradient norms at the present weights. */
static tn_status inspect(workshop *w, course *c, double *least) {
    int n = w->pass.samples;
    tn_nf_gram_last(&w->net, &w->pass, w->gram, w->work);
    TN_TRY(tn_symmetric_eigenvalues(n, w->gram, w->values));
    *least = w->values[0];
    if (isinf(c->least_gram)) c->first_gram = w->values[0];
    c->least_gram = fmin(c->least_gram, w->values[0]);
    tn_nf_gram(&w->net, &w->pass, w->gram, w->work);
    for (int i = 0; i < n; i++) {
        double norm = sqrt(w->gram[i * n + i]);
        c->least_gradient = fmin(c->least_gradient, norm);
        c->largest_gradient = fmax(c->largest_gradient, norm);
    }
    double square = 0;
    for (size_t k = 0; k < w->net.weights; k++) square += pow(w->net.w[k] - w->first.w[k], 2);
    c->weights = fmax(c->weights, sqrt(square));
    for (int h = 1; h < w->net.depth; h++)
        c->alpha = fmax(c->alpha, fabs(w->net.alpha[h] - w->first.alpha[h]));
    return TN_OK;
}

static double distance(const workshop *w) {
    double square = 0;
    for (int i = 0; i < w->pass.samples; i++) square += pow(w->y[i] - w->pass.u[i], 2);
    return square;
}

/* Descends; curves: NULL, or loss, bound and lambda_min(G) / lambda_0 of each step, NaN beyond the end. */
static tn_status descend(const study *s, workshop *w, double lambda_0, double *curves, course *c) {
    double first = 0, x[512], y[512], least = NAN;
    size_t row = (size_t)s->limit + 1;
    int points = 0;
    *c = (course){.least_gram = INFINITY, .least_gradient = INFINITY};
    for (int k = 0; k <= s->limit; k++) {
        tn_nf_forward(&w->net, &w->pass);
        tn_nf_backward(&w->net, &w->pass);
        double square = distance(w);
        if (k == 0) {
            first = square;
            TN_TRY(choose_rate(w, &c->eta));
        }
        double bound = first * pow(1 - c->eta * lambda_0 / 2, k);
        c->bound_excess = fmax(c->bound_excess, square / bound);
        c->final = square / first;
        if (k % EVERY == 0) {
            TN_TRY(tn_lab_check_stop(s->lab));
            TN_TRY(inspect(w, c, &least));
            if (points < 512 && c->final > 1e-20) {
                x[points] = k;
                y[points++] = log(square);
            }
        }
        if (curves) {
            curves[k] = square;
            curves[row + (size_t)k] = bound;
            curves[2 * row + (size_t)k] = least / lambda_0;
        }
        if (k < s->limit) tn_nf_descend(&w->net, &w->pass, w->y, c->eta, w->work);
    }
    c->rate = 1 - exp(tn_fit_line(x, y, points).slope);
    return TN_OK;
}

static tn_status run_count(study *s, int activation, int trial, int point) {
    workshop w;
    course c;
    double *curves =
        trial == 0 && point == 1 ? s->curves + (size_t)activation * 3 * ((size_t)s->limit + 1) : NULL;
    tn_status status = open_workshop(&w, s, activation, (int)counts[point], trial);
    if (status == TN_OK) status = descend(s, &w, s->lambda_0[activation][point], curves, &c);
    close_workshop(&w);
    TN_TRY(status);
    tn_sweep_set(&s->least[activation], trial, point, c.least_gram / s->lambda_0[activation][point]);
    tn_sweep_set(&s->begin[activation], trial, point, c.first_gram / s->lambda_0[activation][point]);
    tn_sweep_set(&s->excess[activation], trial, point, c.bound_excess);
    tn_sweep_set(&s->rate[activation], trial, point, c.rate / (c.eta * s->lambda_0[activation][point] / 2));
    tn_sweep_set(&s->weights[activation], trial, point, c.weights);
    tn_sweep_set(&s->alpha[activation], trial, point, c.alpha);
    tn_sweep_set(&s->low[activation], trial, point, c.least_gradient);
    tn_sweep_set(&s->high[activation], trial, point, c.largest_gradient);
    tn_sweep_set(&s->final[activation], trial, point, c.final);
    return TN_OK;
}

static tn_status run_start(study *s, int activation, int trial) {
    double gram[MOST * MOST], values[MOST];
    int n = (int)counts[1];
    for (int p = 0; p < WIDTHS; p++) {
        TN_TRY(start_gram(s, activation, (int)s->widths[p], n, trial, gram));
        TN_TRY(tn_symmetric_eigenvalues(n, gram, values));
        tn_sweep_set(&s->start[activation], trial, p, values[0] / s->lambda_0[activation][1]);
    }
    return TN_OK;
}

/* The step of the control is ten times the longest at which descent is stable. */
static tn_status run_control(study *s, int activation, int trial) {
    workshop w;
    double eta = 0, first = NAN;
    tn_status status = open_workshop(&w, s, activation, (int)counts[1], trial);
    if (status == TN_OK) {
        tn_nf_forward(&w.net, &w.pass);
        tn_nf_backward(&w.net, &w.pass);
        first = distance(&w);
        status = choose_rate(&w, &eta);
    }
    if (status == TN_OK) {
        tn_nf_descend(&w.net, &w.pass, w.y, 20 * eta, w.work);
        tn_nf_forward(&w.net, &w.pass);
        tn_sweep_set(&s->control[activation], trial, 0, distance(&w) / first);
    }
    close_workshop(&w);
    return status;
}

static tn_status run_trial(void *context, int index, int worker) {
    study *s = context;
    int activation = index % TN_ACTIVATIONS, trial = index / TN_ACTIVATIONS;
    (void)worker;
    TN_TRY(run_start(s, activation, trial));
    for (int p = 0; p < COUNTS; p++) TN_TRY(run_count(s, activation, trial, p));
    TN_TRY(run_control(s, activation, trial));
    if (activation == TN_ACTIVATIONS - 1)
        tn_lab_progress(s->lab, "trial %d of %d done", trial + 1, s->trials);
    return TN_OK;
}

/* Lemma 1 speaks of wide networks: the least width from which on all trials satisfy it. */
static tn_status judge_start(study *s, int a) {
    char claim[160];
    int from = WIDTHS;
    double least = INFINITY;
    for (int p = WIDTHS - 1; p >= 0; p--) {
        double low = INFINITY;
        for (int t = 0; t < s->trials; t++) low = fmin(low, tn_sweep_at(&s->start[a], t, p));
        if (p == WIDTHS - 1) least = low;
        if (low < 0.75) break;
        from = p;
    }
    snprintf(claim, sizeof claim, "[N] Lemma 1, %s: λ_min(G(0)) ≥ 3/4 λ_0 for wide networks",
             tn_activation_name((tn_activation)a));
    return tn_lab_verdict(
        s->lab, from < WIDTHS ? TN_HOLDS : TN_INCONCLUSIVE, claim, "in all trials from some width on",
        "from width %.0f on (inf: none); least ratio %.2f at width %.0f, n = %g",
        from < WIDTHS ? s->widths[from] : INFINITY, least, s->widths[WIDTHS - 1], counts[1]);
}

/* Lemma 2 builds on Lemma 1: only runs that start as that says are held to it. */
static tn_status judge_along(study *s, int a) {
    char claim[160];
    double least = INFINITY, of_all = tn_sweep_minimum(&s->least[a]);
    int runs = 0;
    for (int i = 0; i < COUNTS * s->trials; i++) {
        if (!(s->begin[a].values[i] >= 0.75)) continue;
        runs++;
        least = fmin(least, s->least[a].values[i]);
    }
    snprintf(claim, sizeof claim, "[N] Lemma 2, %s: λ_min(G(k)) ≥ λ_0/4 at every step",
             tn_activation_name((tn_activation)a));
    return tn_lab_verdict(s->lab,
                          runs == 0       ? TN_INCONCLUSIVE
                          : least >= 0.25 ? TN_HOLDS
                                          : TN_DOES_NOT_HOLD,
                          claim, "λ_min(G(k)) / λ_0 at least 0.25 in the runs with λ_min(G(0)) ≥ 3/4 λ_0",
                          "%.3f in %d of %d runs; %.3f in all of them (m = %d, n = %g to %g)", least, runs,
                          COUNTS * s->trials, of_all, s->width, counts[0], counts[COUNTS - 1]);
}

static tn_status judge_descent(study *s, int a) {
    const char *name = tn_activation_name((tn_activation)a);
    char claim[160];
    double excess = tn_sweep_maximum(&s->excess[a]);
    TN_TRY(judge_along(s, a));

    snprintf(claim, sizeof claim, "[N] Thm 1, %s: ||y-u(k)||² ≤ (1 - ηλ_0/2)^k ||y-u(0)||²", name);
    TN_TRY(tn_lab_verdict(
        s->lab, excess <= 1 + 1e-9 ? TN_HOLDS : TN_DOES_NOT_HOLD, claim,
        "largest ratio of both sides at most 1",
        "%.6f; the fitted rate is %.3g to %.3g times ηλ_0/2; last loss at most %.2g of the first", excess,
        tn_sweep_minimum(&s->rate[a]), tn_sweep_maximum(&s->rate[a]), tn_sweep_maximum(&s->final[a])));
    tn_exponent weights = tn_sweep_exponent(&s->weights[a]), alpha = tn_sweep_exponent(&s->alpha[a]);
    snprintf(claim, sizeof claim, "[N] Lemma 3, %s: ||W(k)-W(0)||_F = O(√n)", name);
    TN_TRY(tn_lab_verdict(s->lab, tn_judge_below(weights, 0.55), claim, "exponent in n below 0.55",
                          "%.2f ± %.2f; at most %.2f", weights.value, weights.half_width,
                          tn_sweep_maximum(&s->weights[a])));
    snprintf(claim, sizeof claim, "[N] Lemma 3, %s: |α_h(k)-α_h(0)| = O(1)", name);
    TN_TRY(tn_lab_verdict(s->lab, tn_judge_below(alpha, 0.05), claim, "exponent in n below 0.05",
                          "%.2f ± %.2f; at most %.3f", alpha.value, alpha.half_width,
                          tn_sweep_maximum(&s->alpha[a])));
    tn_exponent high = tn_sweep_exponent(&s->high[a]), low = tn_sweep_exponent(&s->low[a]);
    snprintf(claim, sizeof claim, "[N] Thm 2, %s: m_1 ≤ ||du_i/dθ|| ≤ M = O(√n) at every step", name);
    return tn_lab_verdict(s->lab, tn_judge_both(tn_judge_below(high, 0.55), tn_judge_above(low, -0.05)),
                          claim, "exponents in n: largest norm below 0.55, least norm above -0.05",
                          "largest %.3f ± %.3f, least %.3f ± %.3f; all norms in [%.2f, %.2f]", high.value,
                          high.half_width, low.value, low.half_width, tn_sweep_minimum(&s->low[a]),
                          tn_sweep_maximum(&s->high[a]));
}

/* Theorem 1 must fail where the step is too long. */
static tn_status judge_control(study *s, int a) {
    char claim[160];
    double least = tn_sweep_minimum(&s->control[a]);
    snprintf(claim, sizeof claim,
             "Control, %s, η = 10 · 2/λ_max: the bound of [N] Thm 1 fails in the first step",
             tn_activation_name((tn_activation)a));
    return tn_lab_verdict(s->lab, least > 1 ? TN_HOLDS : TN_DOES_NOT_HOLD, claim,
                          "the loss rises in every trial", "by a factor of %.3g to %.3g (n = %g)", least,
                          tn_sweep_maximum(&s->control[a]), counts[1]);
}

static tn_status draw_course(study *s, tn_plot *plot, int loss, int gram) {
    size_t row = (size_t)s->limit + 1;
    double *x;
    TN_TRY(tn_alloc(&x, row, sizeof *x, "a plot"));
    for (size_t k = 0; k < row; k++) x[k] = (double)k;
    tn_status status = TN_OK;
    for (int a = 0; a < TN_ACTIVATIONS && status == TN_OK; a++) {
        const double *curve = s->curves + (size_t)a * 3 * row;
        const char *name = tn_activation_name((tn_activation)a);
        status = tn_plot_series(plot, loss, name, a, TN_MARK_LINE, (int)row, x, curve, NULL, NULL);
        if (status == TN_OK)
            status = tn_plot_series(plot, loss, "", a, TN_MARK_DASHED, (int)row, x, curve + row, NULL, NULL);
        if (status == TN_OK)
            status =
                tn_plot_series(plot, gram, name, a, TN_MARK_LINE, (int)row, x, curve + 2 * row, NULL, NULL);
    }
    double ends[2] = {0, s->limit}, quarter[2] = {0.25, 0.25};
    if (status == TN_OK)
        status = tn_plot_series(plot, gram, "1/4", -1, TN_MARK_DASHED, 2, ends, quarter, NULL, NULL);
    tn_free(x);
    return status;
}

static tn_status draw(study *s) {
    tn_plot *plot;
    int loss, gram, start, weights, alpha, gradient;
    char title[80];
    TN_TRY(tn_lab_plot(
        s->lab, "nf",
        "Gradient descent on the normalization-free network. Above: one run with n = 8; the loss with the "
        "bound "
        "of Theorem 1 (dashed), λ_min(G(k)) over λ_0, and λ_min(G(0)) over λ_0 against width. Below: "
        "movement of W and α and gradient norms against the number of samples (dashed: proportional to √n). "
        "Bands: all trials.",
        &plot));
    snprintf(title, sizeof title, "loss, m = %d, n = %g", s->width, counts[1]);
    TN_TRY(tn_plot_panel(plot, title, "step", "||y - u(k)||²", false, true, &loss));
    TN_TRY(tn_plot_panel(plot, "spectrum along the run", "step", "λ_min(G(k)) / λ_0", false, false, &gram));
    TN_TRY(tn_plot_panel(plot, "spectrum at the start", "width m", "λ_min(G(0)) / λ_0", true, false, &start));
    TN_TRY(tn_plot_panel(plot, "movement of W", "samples n", "max ||W(k) - W(0)||", true, true, &weights));
    TN_TRY(tn_plot_panel(plot, "movement of α", "samples n", "max |α(k) - α(0)|", true, true, &alpha));
    TN_TRY(tn_plot_panel(plot, "gradient norms", "samples n", "||du_i/dθ||, least and largest", true, true,
                         &gradient));
    TN_TRY(draw_course(s, plot, loss, gram));
    for (int a = 0; a < TN_ACTIVATIONS; a++) {
        const char *name = tn_activation_name((tn_activation)a);
        TN_TRY(tn_sweep_plot(&s->start[a], plot, start, name, a));
        TN_TRY(tn_sweep_plot(&s->weights[a], plot, weights, name, a));
        TN_TRY(tn_sweep_plot(&s->alpha[a], plot, alpha, name, a));
        TN_TRY(tn_sweep_plot(&s->high[a], plot, gradient, name, a));
        TN_TRY(tn_sweep_plot(&s->low[a], plot, gradient, "", a));
    }
    double root[COUNTS], three[WIDTHS] = {0.75, 0.75, 0.75, 0.75, 0.75};
    for (int p = 0; p < COUNTS; p++) root[p] = tn_sweep_mean(&s->weights[0], 0) * sqrt(counts[p] / counts[0]);
    TN_TRY(tn_plot_series(plot, weights, "∝ √n", -1, TN_MARK_DASHED, COUNTS, counts, root, NULL, NULL));
    return tn_plot_series(plot, start, "3/4", -1, TN_MARK_DASHED, WIDTHS, s->widths, three, NULL, NULL);
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(tn_lab_table(s->lab, "nf_start", "activation,m,trial,lambda_min_over_lambda_0", &table));
    for (int a = 0; a < TN_ACTIVATIONS; a++)
        for (int p = 0; p < WIDTHS; p++)
            for (int t = 0; t < s->trials; t++)
                TN_TRY(TN_TABLE_ADD(table, a, s->widths[p], t, tn_sweep_at(&s->start[a], t, p)));
    TN_TRY(tn_lab_table(s->lab, "nf_runs",
                        "activation,n,trial,first_gram_over_lambda_0,least_gram_over_lambda_0,bound_ratio,"
                        "rate_over_bound,weights,alpha,"
                        "least_gradient,largest_gradient,last_loss_over_first",
                        &table));
    for (int a = 0; a < TN_ACTIVATIONS; a++)
        for (int p = 0; p < COUNTS; p++)
            for (int t = 0; t < s->trials; t++)
                TN_TRY(TN_TABLE_ADD(table, a, counts[p], t, tn_sweep_at(&s->begin[a], t, p),
                                    tn_sweep_at(&s->least[a], t, p), tn_sweep_at(&s->excess[a], t, p),
                                    tn_sweep_at(&s->rate[a], t, p), tn_sweep_at(&s->weights[a], t, p),
                                    tn_sweep_at(&s->alpha[a], t, p), tn_sweep_at(&s->low[a], t, p),
                                    tn_sweep_at(&s->high[a], t, p), tn_sweep_at(&s->final[a], t, p)));
    return tn_lab_remark(s->lab, "In the tables, activation is 0 for softplus, 1 for tanh, 2 for ReLU.");
}

static tn_status conclude(study *s) {
    for (int a = 0; a < TN_ACTIVATIONS; a++) {
        tn_sweep *all[] = {&s->least[a], &s->excess[a], &s->rate[a],  &s->weights[a], &s->alpha[a],
                           &s->low[a],   &s->high[a],   &s->final[a], &s->begin[a]};
        TN_TRY(tn_sweep_create(WIDTHS, s->widths, s->trials, &s->start[a]));
        TN_TRY(tn_sweep_create(1, &counts[1], s->trials, &s->control[a]));
        for (int i = 0; i < 9; i++) TN_TRY(tn_sweep_create(COUNTS, counts, s->trials, all[i]));
    }
    TN_TRY(tn_alloc(&s->x, (size_t)MOST * INPUTS, sizeof *s->x, "data points"));
    TN_TRY(tn_separated_points(tn_lab_seed(s->lab), 0, MOST, INPUTS, 1, s->x));
    TN_TRY(tn_alloc(&s->curves, TN_ACTIVATIONS * 3 * ((size_t)s->limit + 1), sizeof *s->curves, "curves"));
    TN_TRY(estimate_limits(s));
    tn_lab_progress(s->lab, "the wide networks are done");
    TN_TRY(tn_lab_parallel(s->lab, TN_ACTIVATIONS * s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(
        s->lab,
        "Depth H = %d, width m = %d, samples at distance 1, %d trials, %d steps with η = 1/λ_max(JJᵀ) of the "
        "start.",
        s->depth, s->width, s->trials, s->limit));
    for (int a = 0; a < TN_ACTIVATIONS; a++) TN_TRY(judge_start(s, a));
    for (int a = 0; a < TN_ACTIVATIONS; a++) TN_TRY(judge_descent(s, a));
    for (int a = 0; a < TN_ACTIVATIONS; a++) TN_TRY(judge_control(s, a));
    TN_TRY(draw(s));
    return tabulate(s);
}

static tn_status run(tn_lab *lab, const tn_options *options) {
    static const int standard[] = {5, 0}, quick[] = {3, 0};
    study s = {.lab = lab, .limit = tn_lab_is_quick(lab) ? 60 : 200};
    int points;
    (void)options;
    s.width = tn_lab_width(lab, 512, 64);
    s.trials = tn_lab_trials(lab, 4, 3);
    s.wide = tn_lab_is_quick(lab) ? 512 : 2048;
    if (s.wide < 4 * s.width) s.wide = 4 * s.width;
    s.repeats = 4;
    for (int p = 0; p < WIDTHS; p++) s.widths[p] = ldexp(tn_lab_is_quick(lab) ? 16 : 64, p);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, &s.depth, 1, &points));
    tn_status status = conclude(&s);
    for (int a = 0; a < TN_ACTIVATIONS; a++) {
        tn_sweep *all[] = {&s.least[a], &s.excess[a], &s.rate[a],  &s.weights[a], &s.alpha[a],
                           &s.low[a],   &s.high[a],   &s.final[a], &s.start[a],   &s.begin[a]};
        for (int i = 0; i < 10; i++) tn_sweep_free(all[i]);
        tn_sweep_free(&s.control[a]);
    }
    tn_free(s.x);
    tn_free(s.curves);
    tn_free(s.wide_grams);
    return status;
}

const tn_experiment tn_experiment_nf = {
    "nf", "Gradient descent on the normalization-free network ([N], Lemmas 1 to 3, Theorems 1 and 2)",
    "The network x^(h) = x^(h-1) + α_h/(H√m) s(W^(h) x^(h-1)) with softplus, tanh and ReLU, trained in W, a "
    "and α by "
    "full-batch gradient descent on 1/2 ||y - u||². G is the Gram matrix of the last layer, equation (2), "
    "and λ_0 the least "
    "eigenvalue of its limit for infinite width, estimated from much wider networks with weights of their "
    "own. Gradient "
    "norms are those by all parameters θ = (W, a, α).",
    " width depths trials ", run};
