/* The residual networks for small images (CIFAR), depth 6n+2, in all variants (models.md 1.1).
 *
 * First all parameters, in the order PyTorch's modules list them (a module's own before its children's), then
 * the nodes. A block without norms is two convs: the first ends in ReLU, the second is the whole join. The
 * input bias of each conv travels with the stored activation, so
 *
 *   inner = ReLU(conv1(x') + b1b) + b2a                              x' = x + b1a as stored
 *   y'    = ReLU(s (conv2(inner) + b2b) + x' - b1a) + b1a of the next block
 *
 * (`fixup`: b2b outside the bracket). At a stage change x' - b1a, subsampled and with zeros appended, takes
 * the place of x' - b1a; `fixup` takes x' itself. A block with norms is conv, norm + ReLU, conv, and a norm
 * that is the join. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/expression.h"
#include "base/memory.h"
#include "base/text.h"
#include "model/graph.h"

/* Bounds that keep every count and name within its type; far beyond what trains. */
#define DEPTH_MAX 600002
#define WIDTH_MAX 65536

typedef struct variant {
    const char *name;
    bool norm, fixup;
    const char *tau;     /* default expression of the variants that have a tau */
    const char *scale;   /* learnable factor of the branch: its last name, or NULL */
    double scale_init;   /* unless it is tau */
    bool scale_by_depth; /* the factor is divided by L_all */
} variant;

static const variant variants[] = {
    {.name = "bn", .norm = true},
    {.name = "bn-tau", .norm = true, .tau = "1/sqrt(L)"},
    {.name = "tau", .tau = "1/sqrt(L)", .scale = "tau"},
    {.name = "fixup", .fixup = true, .scale = "scale", .scale_init = 1},
    {.name = "alpha", .scale = "alpha", .scale_init = 1, .scale_by_depth = true},
    {.name = "skipinit", .scale = "alpha", .scale_init = 0},
    {.name = "plain"},
};
#define VARIANTS ((int)(sizeof variants / sizeof variants[0]))

/* Indices into the parameter and state tables. */
typedef struct norm_params {
    int gamma, beta, state;
} norm_params;

typedef struct block {
    int bias1a, bias1b, bias2a, bias2b, scale; /* -1 where the variant has none */
    int conv1, conv2;
    norm_params bn1, bn2, shortcut;
    int stage, index; /* for names: stage from 1, index from 0 */
    int stride;
} block;

typedef struct builder {
    tn_model_config config; /* with defaults filled in */
    const variant *variant;
    int n; /* blocks of a stage */
    tn_model *model;
    block *blocks;
    int stem, fc_weight, fc_bias;
    int tau, bias1, bias2; /* -1 where there is none */
    norm_params stem_norm;
} builder;

static void block_name(char name[TN_NAME_MAX], const block *b, const char *last) {
    snprintf(name, TN_NAME_MAX, "layer%d.%d.%s", b->stage, b->index, last);
}

static tn_status add_scalar(builder *b, const char *name, double value, int *out) {
    return tn_graph_param(b->model, name, 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, value, out);
}

static tn_status add_block_scalar(builder *b, const block *k, const char *last, double value, int *out) {
    char name[TN_NAME_MAX];
    block_name(name, k, last);
    return add_scalar(b, name, value, out);
}

static tn_status add_conv_weight(builder *b, const char *name, int in, int out_channels, tn_init_kind init,
                                 double init_value, int *out) {
    char full[TN_NAME_MAX];
    snprintf(full, sizeof full, "%.40s.weight", name);
    return tn_graph_param(b->model, full, 4, (int[]){out_channels, in, 3, 3}, TN_GROUP_WEIGHTS, init,
                          init_value, out);
}

static tn_status add_norm_params(builder *b, const char *name, int channels, double gamma, norm_params *out) {
    char full[TN_NAME_MAX];
    snprintf(full, sizeof full, "%.40s.weight", name);
    TN_TRY(
        tn_graph_param(b->model, full, 1, &channels, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, gamma, &out->gamma));
    snprintf(full, sizeof full, "%.40s.bias", name);
    TN_TRY(tn_graph_param(b->model, full, 1, &channels, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 0, &out->beta));
    return tn_graph_state(b->model, name, channels, &out->state);
}

/* Standard deviation of He's initialisation for a 3x3 conv, fan-out. */
static double he(int out_channels) {
    return sqrt(2.0 / (9.0 * out_channels));
}

static tn_status add_root_params(builder *b) {
    const variant *v = b->variant;
    int width = b->config.base_width;
    b->tau = b->bias1 = b->bias2 = -1;
    if (v->scale && v->tau && !b->config.tau_per_block) {
        TN_TRY(add_scalar(b, "tau", b->model->tau, &b->tau));
        b->model->params[b->tau].grad_factor = (float)(1.0 / b->model->blocks);
    }
    if (v->fixup) {
        TN_TRY(add_scalar(b, "bias1", 0, &b->bias1));
        TN_TRY(add_scalar(b, "bias2", 0, &b->bias2));
    }
    double half_width = 1.0 / sqrt(9.0 * b->config.channels);
    TN_TRY(add_conv_weight(b, "conv1", b->config.channels, width, v->fixup ? TN_INIT_UNIFORM : TN_INIT_NORMAL,
                           v->fixup ? half_width : he(width), &b->stem));
    if (v->norm) TN_TRY(add_norm_params(b, "bn1", width, 1, &b->stem_norm));
    return TN_OK;
}

static tn_status add_block_scalars(builder *b, block *k) {
    const variant *v = b->variant;
    k->bias1a = k->bias1b = k->bias2a = k->bias2b = k->scale = -1;
    if (v->norm) return TN_OK;
    TN_TRY(add_block_scalar(b, k, "bias1a", 0, &k->bias1a));
    TN_TRY(add_block_scalar(b, k, "bias1b", 0, &k->bias1b));
    TN_TRY(add_block_scalar(b, k, "bias2a", 0, &k->bias2a));
    TN_TRY(add_block_scalar(b, k, "bias2b", 0, &k->bias2b));
    if (b->tau >= 0) {
        char name[TN_NAME_MAX];
        block_name(name, k, "tau");
        k->scale = b->tau;
        return tn_graph_alias(b->model, name, b->tau);
    }
    if (v->scale) TN_TRY(add_block_scalar(b, k, v->scale, v->tau ? b->model->tau : v->scale_init, &k->scale));
    return TN_OK;
}

static tn_status add_block_params(builder *b, block *k, int in, int out) {
    const variant *v = b->variant;
    char name[TN_NAME_MAX];
    TN_TRY(add_block_scalars(b, k));
    block_name(name, k, "conv1");
    double std1 = v->fixup ? he(out) / sqrt(b->model->blocks) : he(out);
    TN_TRY(add_conv_weight(b, name, in, out, TN_INIT_NORMAL, std1, &k->conv1));
    block_name(name, k, "bn1");
    if (v->norm) TN_TRY(add_norm_params(b, name, out, 1, &k->bn1));
    block_name(name, k, "conv2");
    TN_TRY(add_conv_weight(b, name, out, out, v->fixup ? TN_INIT_CONSTANT : TN_INIT_NORMAL,
                           v->fixup ? 0 : he(out), &k->conv2));
    block_name(name, k, "bn2");
    if (v->norm) TN_TRY(add_norm_params(b, name, out, b->config.zero_init_last_gamma ? 0 : 1, &k->bn2));
    block_name(name, k, "downsample.1");
    if (v->norm && in != out && !b->config.no_bn_shortcut)
        TN_TRY(add_norm_params(b, name, in, 1, &k->shortcut));
    return TN_OK;
}

static tn_status add_params(builder *b) {
    TN_TRY(add_root_params(b));
    int in = b->config.base_width;
    for (int i = 0; i < b->model->blocks; i++) {
        block *k = &b->blocks[i];
        k->stage = i / b->n + 1;
        k->index = i % b->n;
        int out = b->config.base_width << (k->stage - 1);
        k->stride = in == out ? 1 : 2;
        TN_TRY(add_block_params(b, k, in, out));
        in = out;
    }
    bool zeros = b->variant->fixup;
    tn_init_kind init = zeros ? TN_INIT_CONSTANT : TN_INIT_UNIFORM;
    double init_value = zeros ? 0 : 1.0 / sqrt(in);
    TN_TRY(tn_graph_param(b->model, "fc.weight", 2, (int[]){b->config.classes, in}, TN_GROUP_WEIGHTS, init,
                          init_value, &b->fc_weight));
    return tn_graph_param(b->model, "fc.bias", 1, &b->config.classes, TN_GROUP_WEIGHTS, init, init_value,
                          &b->fc_bias);
}

static void add_term(tn_node *node, int param, float factor, bool scaled) {
    if (param < 0) return;
    node->terms[node->term_count++] = (tn_term){.param = param, .factor = factor, .scaled = scaled};
}

static tn_node conv_node(const char *name, int input, int weight, int stride) {
    tn_node node = tn_node_init(TN_NODE_CONV, name, input);
    node.weight = weight;
    node.kernel = 3;
    node.padding = 1;
    node.stride = stride;
    return node;
}

static tn_node norm_node(const char *name, int input, norm_params params, bool relu) {
    tn_node node = tn_node_init(TN_NODE_NORM, name, input);
    node.gamma = params.gamma;
    node.beta = params.beta;
    node.state = params.state;
    node.relu = relu;
    return node;
}

/* Factor and parameter of the branch. */
static tn_scale branch_scale(const builder *b, const block *k) {
    const variant *v = b->variant;
    float factor = 1;
    if (v->tau && !v->scale) factor = (float)b->model->tau;
    if (v->scale_by_depth) factor = (float)(1.0 / b->model->blocks);
    return (tn_scale){.factor = factor, .param = k->scale};
}

/* The shortcut of a stage change: every second row and column, a norm of its own (norms only), zeros
 * appended. */
static tn_status add_stage_change(builder *b, const block *k, int x, int *out) {
    char name[TN_NAME_MAX];
    block_name(name, k, "subsample");
    tn_node node = tn_node_init(TN_NODE_SUBSAMPLE, name, x);
    node.stride = k->stride;
    if (!b->variant->fixup) add_term(&node, k->bias1a, -1, false);
    int channels = b->model->tensors[x].shape.channels;
    TN_TRY(tn_graph_add(b->model, node, &x));
    if (b->variant->norm && !b->config.no_bn_shortcut) {
        block_name(name, k, "downsample.1");
        TN_TRY(tn_graph_add(b->model, norm_node(name, x, k->shortcut, false), &x));
    }
    block_name(name, k, "append");
    node = tn_node_init(TN_NODE_APPEND, name, x);
    node.channels = 2 * channels;
    return tn_graph_add(b->model, node, out);
}

static tn_status add_norm_block(builder *b, const block *k, int x, int shortcut, int *out) {
    char name[TN_NAME_MAX];
    block_name(name, k, "conv1");
    TN_TRY(tn_graph_add(b->model, conv_node(name, x, k->conv1, k->stride), &x));
    block_name(name, k, "bn1");
    TN_TRY(tn_graph_add(b->model, norm_node(name, x, k->bn1, true), &x));
    block_name(name, k, "conv2");
    TN_TRY(tn_graph_add(b->model, conv_node(name, x, k->conv2, 1), &x));
    block_name(name, k, "bn2");
    tn_node join = norm_node(name, x, k->bn2, true);
    join.scale = branch_scale(b, k);
    join.residual = shortcut;
    join.block = true;
    return tn_graph_add(b->model, join, out);
}

/* `carry` is the input bias of the next block, -1 after the last. */
static tn_status add_free_block(builder *b, const block *k, int x, int shortcut, int carry, int *out) {
    char name[TN_NAME_MAX];
    bool identity = shortcut == x;
    block_name(name, k, "conv1");
    tn_node inner = conv_node(name, x, k->conv1, k->stride);
    add_term(&inner, k->bias1b, 1, false);
    inner.relu = true;
    inner.carry = k->bias2a;
    TN_TRY(tn_graph_add(b->model, inner, &x));

    block_name(name, k, "conv2");
    tn_node join = conv_node(name, x, k->conv2, 1);
    join.scale = branch_scale(b, k);
    add_term(&join, k->bias2b, 1, !b->variant->fixup);
    if (identity) add_term(&join, k->bias1a, -1, false);
    join.residual = shortcut;
    join.relu = join.block = true;
    join.carry = carry;
    return tn_graph_add(b->model, join, out);
}

static tn_status add_stem(builder *b, int *out) {
    tn_node conv = conv_node("conv1", 0, b->stem, 1);
    if (!b->variant->norm) {
        add_term(&conv, b->bias1, 1, false);
        conv.relu = true;
        conv.carry = b->blocks[0].bias1a;
        conv.block = true;
        return tn_graph_add(b->model, conv, out);
    }
    int x;
    TN_TRY(tn_graph_add(b->model, conv, &x));
    tn_node norm = norm_node("bn1", x, b->stem_norm, true);
    norm.block = true;
    return tn_graph_add(b->model, norm, out);
}

static tn_status add_nodes(builder *b) {
    int x;
    TN_TRY(add_stem(b, &x));
    for (int i = 0; i < b->model->blocks; i++) {
        const block *k = &b->blocks[i];
        int shortcut = x;
        if (k->stride != 1) TN_TRY(add_stage_change(b, k, x, &shortcut));
        if (b->variant->norm) {
            TN_TRY(add_norm_block(b, k, x, shortcut, &x));
        } else {
            int next = i + 1 < b->model->blocks ? b->blocks[i + 1].bias1a : -1;
            TN_TRY(add_free_block(b, k, x, shortcut, next, &x));
        }
    }
    tn_node pool = tn_node_init(TN_NODE_AVGPOOL, "avgpool", x);
    pool.carry = b->bias2;
    TN_TRY(tn_graph_add(b->model, pool, &x));
    tn_node fc = tn_node_init(TN_NODE_LINEAR, "fc", x);
    fc.weight = b->fc_weight;
    fc.bias = b->fc_bias;
    TN_TRY(tn_graph_add(b->model, fc, &x));
    tn_node loss = tn_node_init(TN_NODE_LOSS, "loss", x);
    TN_TRY(tn_loss_find(b->config.loss, &loss.loss));
    return tn_graph_add(b->model, loss, NULL);
}

tn_status tn_loss_find(const char *name, tn_loss_kind *out) {
    bool squared = !strcmp(name, "squared");
    *out = squared ? TN_LOSS_SQUARED : TN_LOSS_CROSS_ENTROPY;
    if (squared || !strcmp(name, "cross-entropy")) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "--loss \"%s\" is unknown; there are cross-entropy and squared",
                   tn_make_legible(name).text);
}

static tn_status find_variant(const char *name, const variant **out) {
    for (int i = 0; i < VARIANTS; i++) {
        if (strcmp(variants[i].name, name) != 0) continue;
        *out = &variants[i];
        return TN_OK;
    }
    char list[128] = "";
    for (int i = 0; i < VARIANTS; i++) {
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", i == 0 ? "" : ", ", variants[i].name);
    }
    return tn_fail(TN_ERR_USAGE, "--variant \"%s\" is unknown; there are %s", tn_make_legible(name).text,
                   list);
}

/* Depths of the form 6n+2 that name networks for ImageNet instead. */
static bool reserved_depth(long depth) {
    return depth == 50 || depth == 152;
}

/* The nearest depth that exists, going down (step -6) or up from one of the form 6n+2. */
static long existing_depth(long depth, int step) {
    while (reserved_depth(depth)) depth += step;
    return depth;
}

static tn_status parse_depth(const char *name, int *n) {
    const char *digits = name + strlen("resnet");
    size_t count = strncmp(name, "resnet", strlen("resnet")) == 0 ? strspn(digits, "0123456789") : 0;
    if (count == 0 || digits[count] != 0 || digits[0] == '0')
        return tn_fail(
            TN_ERR_USAGE,
            "--model \"%s\" is unknown; there are resnet<depth> with a depth of 6n+2, such as resnet20, "
            "fcresnet and feedforward",
            tn_make_legible(name).text);
    if (count > 6 || strtol(digits, NULL, 10) > DEPTH_MAX)
        return tn_fail(TN_ERR_USAGE, "--model %.40s is too deep; the deepest is resnet%d", name, DEPTH_MAX);
    long depth = strtol(digits, NULL, 10);
    if (depth >= 8 && depth % 6 == 2 && !reserved_depth(depth)) {
        *n = (int)(depth - 2) / 6;
        return TN_OK;
    }
    long below = depth - (depth + 4) % 6, above = below + 6;
    if (below < 8) {
        below = 8;
        above = 14;
    }
    if (above > DEPTH_MAX) above = DEPTH_MAX;
    below = existing_depth(below, -6);
    above = existing_depth(above, 6);
    return tn_fail(TN_ERR_USAGE, "--model %s: %s; the nearest depths are resnet%ld and resnet%ld", name,
                   reserved_depth(depth) ? "this name stands for an ImageNet network, which is not available"
                                         : "its depth is not 6n+2",
                   below, above);
}

static tn_status check_options(const builder *b) {
    const tn_model_config *c = &b->config;
    const char *name = b->variant->name;
    if (c->tau[0] && !b->variant->tau)
        return tn_fail(
            TN_ERR_USAGE,
            "--tau \"%s\" is given, but --variant %s has no tau; leave it out or use tau or bn-tau",
            tn_make_legible(c->tau).text, name);
    if (c->tau_per_block && !(b->variant->tau && b->variant->scale))
        return tn_fail(TN_ERR_USAGE,
                       "--tau-sharing per-block: --variant %s has no learnable tau; use --variant tau", name);
    if (c->zero_init_last_gamma && !b->variant->norm)
        return tn_fail(TN_ERR_USAGE,
                       "--zero-init-last-gamma: --variant %s has no batch norm; use bn or bn-tau", name);
    if (c->hidden || c->depth || c->train_ends)
        return tn_fail(TN_ERR_USAGE, "--%s is an option of fcresnet and feedforward, not of %s; leave it out",
                       c->hidden  ? "width"
                       : c->depth ? "depth"
                                  : "train-ends",
                       c->model);
    if (c->base_width < 1 || c->base_width > WIDTH_MAX)
        return tn_fail(TN_ERR_USAGE, "base width %d is out of range; it must be between 1 and %d",
                       c->base_width, WIDTH_MAX);
    if (c->classes > WIDTH_MAX)
        return tn_fail(TN_ERR_USAGE, "%d classes are out of range; there may be %d", c->classes, WIDTH_MAX);
    return TN_OK;
}

static void fill_defaults(tn_model_config *c) {
    if (!c->model) c->model = "resnet20";
    if (!c->variant) c->variant = "tau";
    if (!c->tau) c->tau = "";
    if (c->channels == 0) c->channels = 3;
    if (c->height == 0) c->height = 32;
    if (c->width == 0) c->width = 32;
    if (c->classes == 0) c->classes = 10;
    if (c->base_width == 0) c->base_width = 16;
    if (!c->loss) c->loss = "cross-entropy";
    if (!tn_fcresnet_is(c->model)) return;
    if (c->hidden == 0) c->hidden = 128;
    if (c->depth == 0) c->depth = 10;
}

static tn_status evaluate_tau(const builder *b, double *tau) {
    *tau = 1;
    if (!b->variant->tau) return TN_OK;
    const char *text = b->config.tau[0] ? b->config.tau : b->variant->tau;
    TN_TRY(tn_expression_evaluate(text, 3.0 * b->n, tau));
    if (fabs(*tau) > (double)FLT_MAX)
        return tn_fail(TN_ERR_USAGE, "--tau \"%s\": is %g for L = %d, which is no float; use a smaller one",
                       tn_make_legible(text).text, *tau, 3 * b->n);
    return TN_OK;
}

static tn_status build(builder *b) {
    double tau;
    TN_TRY(parse_depth(b->config.model, &b->n));
    TN_TRY(find_variant(b->config.variant, &b->variant));
    TN_TRY(check_options(b));
    TN_TRY(evaluate_tau(b, &tau));
    tn_shape input = {b->config.channels, b->config.height, b->config.width};
    TN_TRY(tn_graph_create(&b->model, input, b->config.classes));
    snprintf(b->model->model_name, sizeof b->model->model_name, "%s", b->config.model);
    snprintf(b->model->variant, sizeof b->model->variant, "%s", b->variant->name);
    b->model->blocks = 3 * b->n;
    b->model->tau = tau;
    b->model->tau_constant = b->variant->tau && !b->variant->scale;
    TN_TRY(tn_alloc(&b->blocks, (size_t)b->model->blocks, sizeof *b->blocks, "block table"));
    TN_TRY(add_params(b));
    TN_TRY(add_nodes(b));
    return tn_graph_finish(b->model);
}

tn_status tn_model_build(const tn_model_config *config, tn_model **out) {
    *out = NULL;
    builder b;
    memset(&b, 0, sizeof b);
    b.config = *config;
    fill_defaults(&b.config);
    tn_status status = tn_fcresnet_is(b.config.model) ? tn_fcresnet_build(&b.config, &b.model) : build(&b);
    tn_free(b.blocks);
    if (status != TN_OK)
        tn_model_free(b.model);
    else
        *out = b.model;
    return status;
}
