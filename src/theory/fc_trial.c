#include "theory/fc_trial.h"

#include <string.h>

#include "base/memory.h"
#include "theory/linear_algebra.h"
#include "theory/separated_data.h"

tn_status tn_fc_trial_open(uint64_t seed, int trial, int inputs, int width, int depth, int outputs,
                           int samples, double delta, bool with_other, tn_fc_trial *out) {
    size_t n = (size_t)samples;
    *out = (tn_fc_trial){.samples = samples};
    TN_TRY(tn_fc_create(inputs, width, depth, outputs, &out->net));
    if (with_other) TN_TRY(tn_fc_create(inputs, width, depth, outputs, &out->other));
    TN_TRY(tn_alloc(&out->x, n * (size_t)(inputs + outputs), sizeof *out->x, "data points"));
    out->targets = out->x + n * (size_t)inputs;
    TN_TRY(tn_separated_points(seed, trial, samples, inputs, delta, out->x));
    tn_random_targets(seed, trial, samples, outputs, out->targets);
    tn_fc_initialise(&out->net, seed, trial);
    return TN_OK;
}

void tn_fc_trial_close(tn_fc_trial *trial) {
    tn_fc_free(&trial->net);
    tn_fc_free(&trial->other);
    tn_free(trial->x);
    trial->x = NULL;
}

tn_fc_network tn_fc_at_depth(const tn_fc_network *net, int depth, double tau) {
    tn_fc_network view = *net;
    TN_ASSERT(depth <= net->depth);
    view.depth = depth;
    view.tau = tau;
    return view;
}

const char *tn_direction_name(tn_direction direction) {
    static const char *const names[] = {"random", "ascent", "descent", "coherent"};
    return names[direction];
}

/* w = u u^T / |u|^2 */
static void fill_coherent(size_t m, const double *u, double *w) {
    double square = tn_dot(m, u, u);
    for (size_t r = 0; r < m; r++)
        for (size_t s = 0; s < m; s++) w[r * m + s] = square > 0 ? u[r] * u[s] / square : 0;
}

tn_status tn_fc_perturbation(const tn_fc_network *net, const tn_fc_pass *pass, tn_direction direction,
                             double inner, double last, uint64_t seed, int trial, tn_fc_network *out) {
    size_t m = (size_t)net->width;
    double *work;
    TN_TRY(tn_alloc(&work, 3 * m, sizeof *work, "a perturbation"));
    for (int l = 1; l <= net->depth; l++) {
        double *w = tn_fc_weight(out, l), radius = l < net->depth ? inner : last;
        /* The weights themselves use the same purpose with smaller numbers. */
        tn_rng rng = tn_rng_open(seed, TN_RNG_INIT, (uint32_t)l + (1u << 30), (uint32_t)trial);
        if (direction == TN_RANDOM)
            tn_fill_normal(&rng, m * m, 1, w);
        else if (direction == TN_COHERENT)
            fill_coherent(m, tn_fc_h(pass, l - 1), w);
        else
            tn_fc_weight_gradient(net, pass, l, w);
        double norm = direction == TN_COHERENT ? 1 : tn_spectral_norm(net->width, net->width, w, 1e-3, work);
        tn_scale(m * m, norm > 0 ? (direction == TN_DESCENT ? -radius : radius) / norm : 0, w);
    }
    tn_free(work);
    return TN_OK;
}

void tn_fc_add(tn_fc_network *net, double factor, const tn_fc_network *change) {
    size_t m = (size_t)net->width;
    tn_axpy((size_t)net->depth * m * m, factor, change->w, net->w);
}

tn_status tn_fc_slope(const tn_fc_network *net, const tn_fc_pass *pass, const tn_fc_network *change,
                      double *out) {
    size_t square = (size_t)net->width * (size_t)net->width;
    double *gradient;
    TN_TRY(tn_alloc(&gradient, square, sizeof *gradient, "a gradient"));
    *out = 0;
    for (int l = 1; l <= net->depth; l++) {
        tn_fc_weight_gradient(net, pass, l, gradient);
        *out += tn_dot(square, gradient, tn_fc_weight(change, l));
    }
    tn_free(gradient);
    return TN_OK;
}
