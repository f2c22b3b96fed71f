/* Theorem 3 of [S]: gradients of the layers at initialisation and at a distance from it. */
#include <math.h>
#include <stdio.h>

#include "theory/fc_trial.h"
#include "theory/sweep.h"

static const double kappas[] = {1, 0.5, 0.25};
/* Where the gradient is taken. RADIUS: all matrices omega away, also those inside tau; the others: tau omega
 * away for l < L, as in Theorem 6. */
typedef enum place { AT_START, RANDOM, ASCENT, COHERENT, RADIUS, PLACES } place;
enum { KAPPAS = 3, INPUTS = 32, OUTPUTS = 10 };
static const double omega = 0.1;

typedef struct study {
    tn_lab *lab;
    int width, samples, trials, depths[TN_SWEEP_POINTS], points, control_points;
    /* Mean over samples of the largest ratio of a layer; and the largest ratio of all samples. */
    tn_sweep inner[KAPPAS][PLACES], last[KAPPAS][PLACES], control;
    tn_sweep peak[KAPPAS][PLACES], peak_last[KAPPAS][PLACES];
} study;

typedef struct ratios {
    double inner, last, peak, peak_last; /* as in study */
} ratios;

/* Of ||dF_i/dW_l||_F / sqrt(F_i m / d), over tau for l < L. */
static ratios measure(const tn_fc_network *net, const tn_fc_trial *trial, tn_fc_pass *pass) {
    ratios r = {0, 0, 0, 0};
    tn_fc_forward(net, trial->x, pass);
    (void)tn_fc_squared_loss(pass, trial->targets);
    tn_fc_backward(net, pass);
    for (int i = 0; i < trial->samples; i++) {
        double inner = 0, last = 0, unit = sqrt(pass->losses[i] * net->width / net->outputs);
        for (int l = 1; l <= net->depth; l++) {
            double norm = tn_fc_sample_gradient_norm(net, pass, l, i) / tn_fc_factor(net, l);
            double *most = l < net->depth ? &inner : &last;
            *most = fmax(*most, norm / unit);
        }
        r.inner += inner / trial->samples;
        r.last += last / trial->samples;
        r.peak = fmax(r.peak, inner);
        r.peak_last = fmax(r.peak_last, last);
    }
    return r;
}

static tn_status measure_place(study *s, tn_fc_trial *t, tn_fc_network *net, tn_fc_pass *pass, int trial,
                               int kappa, int point, place where) {
    static const tn_direction directions[] = {TN_RANDOM, TN_RANDOM, TN_ASCENT, TN_COHERENT, TN_RANDOM};
    tn_fc_network change = tn_fc_at_depth(&t->other, net->depth, net->tau);
    double radius = where == RADIUS ? omega : net->tau * omega;
    ratios r = measure(net, t, pass);
    if (where != AT_START) {
        TN_TRY(tn_fc_perturbation(net, pass, directions[where], radius, omega, tn_lab_seed(s->lab), trial,
                                  &change));
        tn_fc_add(net, 1, &change);
        r = measure(net, t, pass);
        tn_fc_add(net, -1, &change);
    }
    tn_sweep_set(&s->inner[kappa][where], trial, point, r.inner);
    tn_sweep_set(&s->last[kappa][where], trial, point, r.last);
    tn_sweep_set(&s->peak[kappa][where], trial, point, r.peak);
    tn_sweep_set(&s->peak_last[kappa][where], trial, point, r.peak_last);
    return TN_OK;
}

static tn_status run_depth(study *s, tn_fc_trial *t, int trial, int point) {
    tn_fc_network net = tn_fc_at_depth(&t->net, s->depths[point], 1);
    tn_fc_pass pass;
    tn_status status = tn_fc_pass_create(&net, t->samples, &pass);
    for (int k = 0; k < KAPPAS; k++)
        for (int where = 0; where < PLACES && status == TN_OK; where++) {
            net.tau = kappas[k] / sqrt(net.depth);
            status = tn_lab_check_stop(s->lab);
            if (status == TN_OK) status = measure_place(s, t, &net, &pass, trial, k, point, (place)where);
        }
    if (status == TN_OK && point < s->control_points) {
        net.tau = 1;
        ratios r = measure(&net, t, &pass);
        tn_sweep_set(&s->control, trial, point, fmax(r.inner, r.last));
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

/* A row for the worst of some places. */
static tn_status judge_places(study *s, int kappa, place first, place last, const char *where) {
    char claim[200];
    tn_verdict verdict = TN_HOLDS;
    tn_exponent worst[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
    double most[2] = {0, 0};
    for (int k = first; k <= (int)last; k++) {
        const tn_sweep *sweeps[] = {&s->inner[kappa][k], &s->last[kappa][k]};
        const tn_sweep *peaks[] = {&s->peak[kappa][k], &s->peak_last[kappa][k]};
        for (int i = 0; i < 2; i++) {
            tn_exponent e = tn_sweep_exponent(sweeps[i]);
            verdict = tn_judge_both(verdict, tn_judge_below(e, 0.05));
            if (e.value > worst[i].value) worst[i] = e;
            most[i] = fmax(most[i], tn_sweep_maximum(peaks[i]));
        }
    }
    snprintf(claim, sizeof claim,
             "Thm 3, κ = %g, %s: ||dF_i/dW_l||² is O(F_i m/d τ²) for l < L, O(F_i m/d) for l = L",
             kappas[kappa], where);
    return tn_lab_verdict(
        s->lab, verdict, claim,
        "exponents in L below 0.05: mean over samples of the largest ratio of norms, ||dF_i/dW_l|| / √bound",
        "l < L: %.3f ± %.3f, ratio at most %.1f; l = L: %.3f ± %.3f, ratio at most %.1f", worst[0].value,
        worst[0].half_width, most[0], worst[1].value, worst[1].half_width, most[1]);
}

static tn_status judge(study *s) {
    for (int k = 0; k < KAPPAS; k++) {
        TN_TRY(judge_places(s, k, AT_START, AT_START, "at initialisation"));
        TN_TRY(judge_places(s, k, RANDOM, COHERENT,
                            "W_l at τω (l < L) and ω (l = L), worst of three directions"));
        TN_TRY(judge_places(s, k, RADIUS, RADIUS, "every W_l at ω, random directions"));
    }
    tn_exponent e = tn_sweep_exponent(&s->control);
    return tn_lab_verdict(s->lab, tn_judge_above(e, 0.05), "Control, τ = 1: the ratio grows with depth",
                          "exponent of the largest ratio in L above 0.05", "%.2f ± %.2f; up to %.3g", e.value,
                          e.half_width, tn_sweep_maximum(&s->control));
}

static tn_status draw(study *s) {
    static const char *const titles[] = {"at initialisation, l < L", "at initialisation, l = L",
                                         "l < L, κ = 1, away from W(0)"};
    static const char *const places[] = {"W(0)", "random τω", "ascent τω", "coherent τω", "random ω"};
    tn_plot *plot;
    int panels[3];
    TN_TRY(tn_lab_plot(
        s->lab, "backward",
        "Largest ||dF_i/dW_l|| over layers (mean over samples), divided by the root of F_i τ² m/d (l "
        "< L) or F_i m/d (l = L). "
        "Bands: all trials.",
        &plot));
    for (int i = 0; i < 3; i++)
        TN_TRY(tn_plot_panel(plot, titles[i], "depth L", "ratio of norms", true, false, &panels[i]));
    for (int k = 0; k < KAPPAS; k++) {
        char label[32];
        snprintf(label, sizeof label, "κ = %g", kappas[k]);
        TN_TRY(tn_sweep_plot(&s->inner[k][AT_START], plot, panels[0], label, k));
        TN_TRY(tn_sweep_plot(&s->last[k][AT_START], plot, panels[1], label, k));
    }
    for (int w = 0; w < PLACES; w++) TN_TRY(tn_sweep_plot(&s->inner[0][w], plot, panels[2], places[w], w));
    return TN_OK;
}

static tn_status tabulate(study *s) {
    tn_number_table *table;
    TN_TRY(tn_lab_table(s->lab, "backward",
                        "kappa,place,L,trial,ratio_inner,ratio_last,largest_inner,largest_last", &table));
    TN_TRY(tn_lab_remark(
        s->lab, "In backward.csv, place is 0 for W(0), 1 random, 2 along the gradient, 3 coherent, all at "
                "τω, and 4 random at ω."));
    for (int k = 0; k < KAPPAS; k++)
        for (int w = 0; w < PLACES; w++)
            for (int p = 0; p < s->points; p++)
                for (int t = 0; t < s->trials; t++)
                    TN_TRY(TN_TABLE_ADD(table, kappas[k], w, s->depths[p], t,
                                        tn_sweep_at(&s->inner[k][w], t, p), tn_sweep_at(&s->last[k][w], t, p),
                                        tn_sweep_at(&s->peak[k][w], t, p),
                                        tn_sweep_at(&s->peak_last[k][w], t, p)));
    return TN_OK;
}

static tn_status conclude(study *s) {
    for (int k = 0; k < KAPPAS; k++)
        for (int w = 0; w < PLACES; w++) {
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->peak[k][w]));
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->peak_last[k][w]));
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->inner[k][w]));
            TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->last[k][w]));
        }
    TN_TRY(tn_sweep_create_depths(s->points, s->depths, s->trials, &s->control));
    TN_TRY(tn_lab_parallel(s->lab, s->trials, run_trial, s));
    TN_TRY(tn_lab_remark(s->lab, "Width m = %d, d = %d outputs, %d samples, %d trials, ω = %g.", s->width,
                         OUTPUTS, s->samples, s->trials, omega));
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
    s.trials = tn_lab_trials(lab, 16, 6);
    TN_TRY(tn_lab_depths(lab, standard, quick, 2, s.depths, TN_SWEEP_POINTS, &s.points));
    while (s.control_points < s.points && s.depths[s.control_points] <= 300) s.control_points++;
    tn_status status = conclude(&s);
    for (int k = 0; k < KAPPAS; k++)
        for (int w = 0; w < PLACES; w++) {
            tn_sweep_free(&s.peak[k][w]);
            tn_sweep_free(&s.peak_last[k][w]);
            tn_sweep_free(&s.inner[k][w]);
            tn_sweep_free(&s.last[k][w]);
        }
    tn_sweep_free(&s.control);
    return status;
}

const tn_experiment tn_experiment_backward = {
    "backward", "Gradients of the layers (Theorem 3)",
    "Theorem 3: for τ = κ/√L the gradient of the squared loss F_i of a sample satisfies ||dF_i/dW_l||² ≤ "
    "O(F_i m/d τ²) "
    "for l < L and O(F_i m/d) for l = L, for all weights near the initial ones. Measured at initialisation "
    "and at "
    "weights a distance away in spectral norm: τω for l < L and ω for l = L, as in Theorem 6, in a random "
    "direction, "
    "along the gradient, and with all layers pushing the first sample the same way; and at the larger "
    "distance ω for "
    "every layer. The check is that the largest ratio does not grow with L.",
    " width depths trials samples ", run};
