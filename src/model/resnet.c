/* The residual networks: CIFAR's, depth 6n+2, and ImageNet's, in all variants (models.md 1.1 and 1.2). From a
 * configuration to a plan, then to a model. */
#include "model/resnet.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/expression.h"
#include "base/memory.h"
#include "base/text.h"

/* Bounds that keep every count and name within its type; far beyond what trains. */
#define DEPTH_MAX 600002
#define WIDTH_MAX 65536

static const tn_resnet_variant variants[] = {
    {.name = "bn", .norm = true},
    {.name = "bn-tau", .norm = true, .tau = true},
    {.name = "tau", .tau = true, .scale = "tau"},
    {.name = "fixup", .fixup = true, .scale = "scale", .scale_init = 1},
    {.name = "alpha", .scale = "alpha", .scale_init = 1, .scale_by_depth = true},
    {.name = "skipinit", .scale = "alpha", .scale_init = 0},
    {.name = "plain"},
};
#define VARIANTS ((int)(sizeof variants / sizeof variants[0]))

static const struct {
    const char *name;
    tn_resnet_plan plan;
} imagenet_networks[] = {
    {"resnet18", {.imagenet = true, .stages = 4, .blocks = {2, 2, 2, 2}}},
    {"resnet34", {.imagenet = true, .stages = 4, .blocks = {3, 4, 6, 3}}},
    {"resnet50", {.imagenet = true, .bottleneck = true, .stages = 4, .blocks = {3, 4, 6, 3}}},
    {"resnet101", {.imagenet = true, .bottleneck = true, .stages = 4, .blocks = {3, 4, 23, 3}}},
    {"resnet152", {.imagenet = true, .bottleneck = true, .stages = 4, .blocks = {3, 8, 36, 3}}},
};
#define IMAGENET_NETWORKS ((int)(sizeof imagenet_networks / sizeof imagenet_networks[0]))

static const tn_resnet_plan *find_imagenet(const char *name) {
    for (int i = 0; i < IMAGENET_NETWORKS; i++)
        if (!strcmp(imagenet_networks[i].name, name)) return &imagenet_networks[i].plan;
    return NULL;
}

tn_status tn_loss_find(const char *name, tn_loss_kind *out) {
    bool squared = !strcmp(name, "squared");
    *out = squared ? TN_LOSS_SQUARED : TN_LOSS_CROSS_ENTROPY;
    if (squared || !strcmp(name, "cross-entropy")) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "--loss \"%s\" is unknown; there are cross-entropy and squared",
                   tn_make_legible(name).text);
}

static tn_status find_variant(const char *name, const tn_resnet_variant **out) {
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

/* Depths of the form 6n+2 that name networks for ImageNet. */
static bool reserved_depth(long depth) {
    return depth == 50 || depth == 152;
}

/* The nearest depth that exists, going down (step -6) or up from one of the form 6n+2. */
static long existing_depth(long depth, int step) {
    while (reserved_depth(depth)) depth += step;
    return depth;
}

/* n of resnet<6n+2>. */
static tn_status parse_depth(const char *name, int *n) {
    const char *digits = name + strlen("resnet");
    size_t count = strncmp(name, "resnet", strlen("resnet")) == 0 ? strspn(digits, "0123456789") : 0;
    if (count == 0 || digits[count] != 0 || digits[0] == '0')
        return tn_fail(TN_ERR_USAGE,
                       "--model \"%s\" is unknown; there are resnet18, 34, 50, 101 and 152 for ImageNet, "
                       "resnet<depth> with a depth of 6n+2, such as resnet20, fcresnet and feedforward",
                       tn_make_legible(name).text);
    if (count > 6 || strtol(digits, NULL, 10) > DEPTH_MAX)
        return tn_fail(TN_ERR_USAGE, "--model %.40s is too deep; the deepest is resnet%d", name, DEPTH_MAX);
    long depth = strtol(digits, NULL, 10);
    if (depth >= 8 && depth % 6 == 2) {
        *n = (int)(depth - 2) / 6;
        return TN_OK;
    }
    long below = depth - (depth + 4) % 6, above = below + 6;
    if (below < 8) {
        below = 8;
        above = 14;
    }
    if (above > DEPTH_MAX) above = DEPTH_MAX;
    return tn_fail(TN_ERR_USAGE,
                   "--model %s: its depth is not 6n+2; the nearest are resnet%ld and resnet%ld (ImageNet's "
                   "networks are resnet18, 34, 50, 101 and 152)",
                   name, existing_depth(below, -6), existing_depth(above, 6));
}

static tn_status find_plan(const char *name, tn_resnet_plan *out) {
    const tn_resnet_plan *imagenet = find_imagenet(name);
    int n = 0;
    if (imagenet) {
        *out = *imagenet;
        return TN_OK;
    }
    TN_TRY(parse_depth(name, &n));
    *out = (tn_resnet_plan){.stages = 3, .blocks = {n, n, n}};
    return TN_OK;
}

static tn_status check_options(const tn_resnet *net) {
    const tn_model_config *c = &net->config;
    const char *name = net->variant->name;
    if (c->tau[0] && !net->variant->tau)
        return tn_fail(
            TN_ERR_USAGE,
            "--tau \"%s\" is given, but --variant %s has no tau; leave it out or use tau or bn-tau",
            tn_make_legible(c->tau).text, name);
    if (c->tau_per_block && !(net->variant->tau && net->variant->scale))
        return tn_fail(TN_ERR_USAGE,
                       "--tau-sharing per-block: --variant %s has no learnable tau; use --variant tau", name);
    if (c->zero_init_last_gamma && !net->variant->norm)
        return tn_fail(TN_ERR_USAGE,
                       "--zero-init-last-gamma: --variant %s has no batch norm; use bn or bn-tau", name);
    if (c->no_bn_shortcut && !net->variant->norm)
        return tn_fail(TN_ERR_USAGE,
                       "--bn-shortcut no: --variant %s has no batch norm; leave it out or use bn or bn-tau",
                       name);
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
    bool imagenet = find_imagenet(c->model);
    if (!c->variant) c->variant = "tau";
    if (!c->tau) c->tau = "";
    if (c->channels == 0) c->channels = 3;
    if (c->height == 0) c->height = imagenet ? 224 : 32;
    if (c->width == 0) c->width = imagenet ? 224 : 32;
    if (c->classes == 0) c->classes = imagenet ? 1000 : 10;
    if (c->base_width == 0) c->base_width = imagenet ? 64 : 16;
    if (!c->loss) c->loss = "cross-entropy";
    if (!tn_fcresnet_is(c->model)) return;
    if (c->hidden == 0) c->hidden = 128;
    if (c->depth == 0) c->depth = 10;
}

static int count_blocks(const tn_resnet_plan *plan) {
    int count = 0;
    for (int i = 0; i < plan->stages; i++) count += plan->blocks[i];
    return count;
}

/* The count inside tau: of all blocks, in the bottleneck networks of the longest stage's. */
static int tau_count(const tn_resnet_plan *plan) {
    int most = 0;
    if (!plan->bottleneck) return count_blocks(plan);
    for (int i = 0; i < plan->stages; i++)
        if (plan->blocks[i] > most) most = plan->blocks[i];
    return most;
}

static tn_status evaluate_tau(const tn_resnet *net, double *tau) {
    int count = tau_count(&net->plan);
    *tau = 1;
    if (!net->variant->tau) return TN_OK;
    const char *text = net->config.tau;
    if (!text[0]) text = net->plan.bottleneck ? "2/sqrt(L)" : "1/sqrt(L)";
    TN_TRY(tn_expression_evaluate(text, count, tau));
    if (fabs(*tau) > (double)FLT_MAX)
        return tn_fail(TN_ERR_USAGE, "--tau \"%s\": is %g for L = %d, which is no float; use a smaller one",
                       tn_make_legible(text).text, *tau, count);
    return TN_OK;
}

static tn_status build(tn_resnet *net) {
    double tau;
    TN_TRY(find_plan(net->config.model, &net->plan));
    TN_TRY(find_variant(net->config.variant, &net->variant));
    TN_TRY(check_options(net));
    TN_TRY(evaluate_tau(net, &tau));
    tn_shape input = {net->config.channels, net->config.height, net->config.width};
    TN_TRY(tn_graph_create(&net->model, input, net->config.classes));
    tn_model *model = net->model;
    snprintf(model->model_name, sizeof model->model_name, "%s", net->config.model);
    snprintf(model->variant, sizeof model->variant, "%s", net->variant->name);
    model->blocks = count_blocks(&net->plan);
    model->tau = tau;
    model->tau_constant = net->variant->tau && !net->variant->scale;
    TN_TRY(tn_alloc(&net->blocks, (size_t)model->blocks, sizeof *net->blocks, "block table"));
    TN_TRY(tn_resnet_add_params(net));
    TN_TRY(tn_resnet_add_nodes(net));
    return tn_graph_finish(model);
}

tn_status tn_model_build(const tn_model_config *config, tn_model **out) {
    *out = NULL;
    tn_resnet net;
    memset(&net, 0, sizeof net);
    net.config = *config;
    fill_defaults(&net.config);
    tn_model_config *c = &net.config;
    tn_status status = tn_fcresnet_is(c->model) ? tn_fcresnet_build(c, &net.model) : build(&net);
    tn_free(net.blocks);
    if (status != TN_OK)
        tn_model_free(net.model);
    else
        *out = net.model;
    return status;
}
