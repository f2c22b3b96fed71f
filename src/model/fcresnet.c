/* The fully connected networks of the theory (models.md 2; "Stability and Convergence Theory for Learning
 * ResNet", section 2). For x in R^p (the pixels in stored order), width m, depth L, d classes:
 *
 *   fcresnet      h_0 = ReLU(A x),  h_l = ReLU(h_{l-1} + tau W_l h_{l-1}) for l = 1..L-1,
 *                 h_L = ReLU(W_L h_{L-1}),  y = B h_L
 *   feedforward   the same without the skip: h_l = ReLU(W_l h_{l-1})
 *
 * A (m x p) and W_l (m x m) start as N(0, 2/m), B (d x m) as N(0, 2/d); there are no biases. W_l is the
 * parameter `W.<l-1>.weight`, so that they load as the list of layers of a PyTorch module. Each layer is one
 * linear node: skip, tau and ReLU are its epilogue. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/expression.h"
#include "base/text.h"
#include "model/graph.h"

#define DEPTH_MAX 20000
#define WIDTH_MAX 65536

bool tn_fcresnet_is(const char *model_name) {
    return !strcmp(model_name, "fcresnet") || !strcmp(model_name, "feedforward");
}

static tn_status check_options(const tn_model_config *c, bool residual) {
    if (strcmp(c->variant, "tau") != 0)
        return tn_fail(TN_ERR_USAGE, "--variant \"%s\": %s has no variants; leave it out",
                       tn_make_legible(c->variant).text, c->model);
    if (!residual && c->tau[0])
        return tn_fail(TN_ERR_USAGE,
                       "--tau \"%s\" is given, but feedforward has no tau; leave it out or use fcresnet",
                       tn_make_legible(c->tau).text);
    if (c->tau_per_block)
        return tn_fail(TN_ERR_USAGE, "--tau-sharing per-block: tau is a constant in %s; leave it out",
                       c->model);
    if (c->zero_init_last_gamma || c->no_bn_shortcut)
        return tn_fail(TN_ERR_USAGE, "--%s: %s has no batch norm; leave it out",
                       c->no_bn_shortcut ? "bn-shortcut no" : "zero-init-last-gamma", c->model);
    if (c->hidden < 1 || c->hidden > WIDTH_MAX)
        return tn_fail(TN_ERR_USAGE, "--width %d is out of range; it must be from 1 to %d", c->hidden,
                       WIDTH_MAX);
    if (c->depth < 1 || c->depth > DEPTH_MAX)
        return tn_fail(TN_ERR_USAGE, "--depth %d is out of range; it must be from 1 to %d", c->depth,
                       DEPTH_MAX);
    if (c->classes > WIDTH_MAX)
        return tn_fail(TN_ERR_USAGE, "%d classes are out of range; there may be %d", c->classes, WIDTH_MAX);
    return TN_OK;
}

static tn_status evaluate_tau(const tn_model_config *c, double *tau) {
    const char *text = c->tau[0] ? c->tau : "1/sqrt(L)";
    TN_TRY(tn_expression_evaluate(text, c->depth, tau));
    if (fabs(*tau) > (double)FLT_MAX)
        return tn_fail(TN_ERR_USAGE, "--tau \"%s\": is %g for L = %d, which is no float; use a smaller one",
                       tn_make_legible(text).text, *tau, c->depth);
    return TN_OK;
}

/* Appends a linear node `name` and its out x in weight `name`.weight; the caller fills in the epilogue. */
static tn_status matrix(tn_model *m, const char *name, int in, int out, double variance, bool trained,
                        int input, tn_node *node) {
    char full[TN_NAME_MAX];
    snprintf(full, sizeof full, "%.30s.weight", name);
    *node = tn_node_init(TN_NODE_LINEAR, name, input);
    return tn_graph_param(m, full, 2, (int[]){out, in}, trained ? TN_GROUP_WEIGHTS : TN_GROUP_FIXED,
                          TN_INIT_NORMAL, sqrt(variance), &node->weight);
}

static tn_status add_layers(const tn_model_config *c, tn_model *m, bool residual) {
    int x = 0, pixels = c->channels * c->height * c->width;
    tn_node node;
    TN_TRY(matrix(m, "A", pixels, c->hidden, 2.0 / c->hidden, c->train_ends, x, &node));
    node.relu = node.block = true;
    TN_TRY(tn_graph_add(m, node, &x));
    for (int l = 1; l <= c->depth; l++) {
        char name[TN_NAME_MAX];
        snprintf(name, sizeof name, "W.%d", l - 1);
        TN_TRY(matrix(m, name, c->hidden, c->hidden, 2.0 / c->hidden, true, x, &node));
        node.relu = node.block = true;
        if (residual && l < c->depth) {
            node.residual = x;
            node.scale.factor = (float)m->tau;
        }
        TN_TRY(tn_graph_add(m, node, &x));
    }
    TN_TRY(matrix(m, "B", c->hidden, c->classes, 2.0 / c->classes, c->train_ends, x, &node));
    TN_TRY(tn_graph_add(m, node, &x));
    node = tn_node_init(TN_NODE_LOSS, "loss", x);
    TN_TRY(tn_loss_find(c->loss, &node.loss));
    return tn_graph_add(m, node, NULL);
}

tn_status tn_fcresnet_build(const tn_model_config *c, tn_model **out) {
    bool residual = !strcmp(c->model, "fcresnet");
    double tau = 1;
    TN_TRY(check_options(c, residual));
    if (residual) TN_TRY(evaluate_tau(c, &tau));
    TN_TRY(tn_graph_create(out, (tn_shape){c->channels, c->height, c->width}, c->classes));
    tn_model *m = *out;
    snprintf(m->model_name, sizeof m->model_name, "%s", c->model);
    snprintf(m->variant, sizeof m->variant, "%s", c->variant);
    m->blocks = c->depth;
    m->tau = tau;
    m->tau_constant = residual;
    TN_TRY(add_layers(c, m, residual));
    return tn_graph_finish(m);
}
