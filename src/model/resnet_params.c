/* Parameters of the residual networks, in the order PyTorch's modules list them: a module's own before its
 * children's. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/resnet.h"

void tn_resnet_name(char name[TN_NAME_MAX], const tn_resnet_block *block, const char *last) {
    snprintf(name, TN_NAME_MAX, "layer%d.%d.%s", block->stage, block->index, last);
}

bool tn_resnet_changes_shape(const tn_resnet_block *block) {
    return block->stride != 1 || block->in != block->out;
}

int tn_resnet_stem_kernel(const tn_resnet *net) {
    return net->plan.imagenet ? 7 : 3;
}

const char *tn_resnet_projection_name(const tn_resnet *net) {
    return net->variant->fixup ? "downsample" : "downsample.0";
}

static tn_status add_scalar(tn_resnet *net, const char *name, double value, int *out) {
    return tn_graph_param(net->model, name, 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, value, out);
}

static tn_status add_block_scalar(tn_resnet *net, const tn_resnet_block *k, const char *last, double value,
                                  int *out) {
    char name[TN_NAME_MAX];
    tn_resnet_name(name, k, last);
    return add_scalar(net, name, value, out);
}

typedef struct initial {
    tn_init_kind kind;
    double value;
} initial;

static tn_status add_conv_weight(tn_resnet *net, const char *name, int in, int out_channels, int kernel,
                                 initial init, int *out) {
    char full[TN_NAME_MAX];
    snprintf(full, sizeof full, "%.40s.weight", name);
    return tn_graph_param(net->model, full, 4, (int[]){out_channels, in, kernel, kernel}, TN_GROUP_WEIGHTS,
                          init.kind, init.value, out);
}

static tn_status add_norm_params(tn_resnet *net, const char *name, int channels, double gamma,
                                 tn_resnet_norm *out) {
    char full[TN_NAME_MAX];
    snprintf(full, sizeof full, "%.40s.weight", name);
    TN_TRY(tn_graph_param(net->model, full, 1, &channels, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, gamma,
                          &out->gamma));
    snprintf(full, sizeof full, "%.40s.bias", name);
    TN_TRY(tn_graph_param(net->model, full, 1, &channels, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, 0, &out->beta));
    return tn_graph_state(net->model, name, channels, &out->state);
}

/* He's initialisation, fan-out. */
static initial he(int kernel, int out_channels) {
    return (initial){TN_INIT_NORMAL, sqrt(2.0 / ((double)kernel * kernel * out_channels))};
}

static tn_status add_root_params(tn_resnet *net) {
    const tn_resnet_variant *v = net->variant;
    int width = net->config.base_width, channels = net->config.channels, kernel = tn_resnet_stem_kernel(net);
    net->tau = net->bias1 = net->bias2 = -1;
    if (v->scale && v->tau && !net->config.tau_per_block) {
        TN_TRY(add_scalar(net, "tau", net->model->tau, &net->tau));
        net->model->params[net->tau].grad_factor = (float)(1.0 / net->model->blocks);
    }
    if (v->fixup) {
        TN_TRY(add_scalar(net, "bias1", 0, &net->bias1));
        TN_TRY(add_scalar(net, "bias2", 0, &net->bias2));
    }
    initial init = he(kernel, width);
    if (v->fixup) init = (initial){TN_INIT_UNIFORM, 1.0 / sqrt((double)kernel * kernel * channels)};
    TN_TRY(add_conv_weight(net, "conv1", channels, width, kernel, init, &net->stem));
    return v->norm ? add_norm_params(net, "bn1", width, 1, &net->stem_norm) : TN_OK;
}

static tn_status add_block_scalars(tn_resnet *net, tn_resnet_block *k) {
    const tn_resnet_variant *v = net->variant;
    char name[TN_NAME_MAX];
    k->scale = -1;
    for (int i = 0; i < k->convs; i++) k->conv[i].bias_before = k->conv[i].bias_after = -1;
    if (v->norm) return TN_OK;
    for (int i = 0; i < k->convs; i++) {
        snprintf(name, sizeof name, "bias%da", i + 1);
        TN_TRY(add_block_scalar(net, k, name, 0, &k->conv[i].bias_before));
        snprintf(name, sizeof name, "bias%db", i + 1);
        TN_TRY(add_block_scalar(net, k, name, 0, &k->conv[i].bias_after));
    }
    if (net->tau >= 0) {
        k->scale = net->tau;
        tn_resnet_name(name, k, "tau");
        return tn_graph_alias(net->model, name, net->tau);
    }
    if (!v->scale) return TN_OK;
    return add_block_scalar(net, k, v->scale, v->tau ? net->model->tau : v->scale_init, &k->scale);
}

/* `fixup` scales all convs of a branch but the last by L_all^(-1 / (2 convs - 2)) and starts the last at 0.
 */
static initial conv_init(const tn_resnet *net, const tn_resnet_block *k, int index) {
    initial init = he(k->conv[index].kernel, k->conv[index].out);
    if (!net->variant->fixup) return init;
    if (index == k->convs - 1) return (initial){TN_INIT_CONSTANT, 0};
    init.value *= pow(net->model->blocks, -1.0 / (2 * k->convs - 2));
    return init;
}

/* The norm of a CIFAR shortcut sees the subsampled input, that of a projection what was projected. */
static tn_status add_shortcut_params(tn_resnet *net, tn_resnet_block *k) {
    char name[TN_NAME_MAX];
    bool imagenet = net->plan.imagenet;
    if (!tn_resnet_changes_shape(k)) return TN_OK;
    tn_resnet_name(name, k, tn_resnet_projection_name(net));
    if (imagenet) TN_TRY(add_conv_weight(net, name, k->in, k->out, 1, he(1, k->out), &k->projection));
    if (!net->variant->norm || net->config.no_bn_shortcut) return TN_OK;
    tn_resnet_name(name, k, "downsample.1");
    return add_norm_params(net, name, imagenet ? k->out : k->in, 1, &k->shortcut);
}

static tn_status add_block_params(tn_resnet *net, tn_resnet_block *k) {
    char name[TN_NAME_MAX], last[16];
    TN_TRY(add_block_scalars(net, k));
    for (int i = 0; i < k->convs; i++) {
        tn_resnet_conv *conv = &k->conv[i];
        tn_resnet_name(name, k, conv->name);
        TN_TRY(add_conv_weight(net, name, conv->in, conv->out, conv->kernel, conv_init(net, k, i),
                               &conv->weight));
        snprintf(last, sizeof last, "bn%d", i + 1);
        tn_resnet_name(name, k, last);
        bool zero = net->config.zero_init_last_gamma && i == k->convs - 1;
        if (net->variant->norm) TN_TRY(add_norm_params(net, name, conv->out, zero ? 0 : 1, &conv->norm));
    }
    return add_shortcut_params(net, k);
}

static void set_conv(tn_resnet_block *k, int in, int out, int kernel, int stride) {
    tn_resnet_conv *conv = &k->conv[k->convs++];
    *conv = (tn_resnet_conv){.in = in, .out = out, .kernel = kernel, .stride = stride};
    snprintf(conv->name, sizeof conv->name, "conv%d", k->convs);
}

/* A block of `width` channels (a bottleneck has four times as many outside) on `in` channels. */
static void set_geometry(const tn_resnet *net, tn_resnet_block *k, int in, int width) {
    k->in = in;
    k->out = net->plan.bottleneck ? 4 * width : width;
    k->stride = k->stage > 1 && k->index == 0 ? 2 : 1;
    if (net->plan.bottleneck) {
        set_conv(k, in, width, 1, 1);
        set_conv(k, width, width, 3, k->stride);
        set_conv(k, width, k->out, 1, 1);
    } else {
        set_conv(k, in, width, 3, k->stride);
        set_conv(k, width, width, 3, 1);
    }
}

tn_status tn_resnet_add_params(tn_resnet *net) {
    TN_TRY(add_root_params(net));
    int channels = net->config.base_width;
    tn_resnet_block *k = net->blocks;
    for (int stage = 0; stage < net->plan.stages; stage++)
        for (int i = 0; i < net->plan.blocks[stage]; i++, k++) {
            k->stage = stage + 1;
            k->index = i;
            set_geometry(net, k, channels, net->config.base_width << stage);
            TN_TRY(add_block_params(net, k));
            channels = k->out;
        }
    initial init = {TN_INIT_UNIFORM, 1.0 / sqrt(channels)};
    if (net->variant->fixup) init = (initial){TN_INIT_CONSTANT, 0};
    TN_TRY(tn_graph_param(net->model, "fc.weight", 2, (int[]){net->config.classes, channels},
                          TN_GROUP_WEIGHTS, init.kind, init.value, &net->fc_weight));
    return tn_graph_param(net->model, "fc.bias", 1, &net->config.classes, TN_GROUP_WEIGHTS, init.kind,
                          init.value, &net->fc_bias);
}
