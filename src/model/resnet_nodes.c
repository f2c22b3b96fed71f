/* Nodes of the residual networks.
 *
 * In a block without norms every conv but the last ends in ReLU, the last is the whole join. The input bias
 * of each conv travels with the stored activation, so for two convs
 *
 *   inner = ReLU(conv1(x') + b1b) + b2a                              x' = x + b1a as stored
 *   y'    = ReLU(s (conv2(inner) + b2b) + x' - b1a) + b1a of the next block
 *
 * (`fixup`: b2b outside the bracket). Where the shape changes, a subsampled x' - b1a takes the place of
 * x' - b1a, with zeros appended (CIFAR) or projected by a 1x1 conv (ImageNet); `fixup` takes x' itself. A max
 * pool after the stem passes the first block's bias on as it is. A block with norms is convs and norms with
 * ReLU in turn, and a last norm that is the join. */
#include <stdio.h>

#include "model/resnet.h"

static void add_term(tn_node *node, int param, float factor, bool scaled) {
    if (param < 0) return;
    node->terms[node->term_count++] = (tn_term){.param = param, .factor = factor, .scaled = scaled};
}

static tn_node conv_node(const char *name, int input, int weight, int kernel, int stride) {
    tn_node node = tn_node_init(TN_NODE_CONV, name, input);
    node.weight = weight;
    node.kernel = kernel;
    node.padding = kernel / 2;
    node.stride = stride;
    return node;
}

static tn_node block_conv(const tn_resnet_block *k, int index, int input) {
    const tn_resnet_conv *conv = &k->conv[index];
    char name[TN_NAME_MAX];
    tn_resnet_name(name, k, conv->name);
    return conv_node(name, input, conv->weight, conv->kernel, conv->stride);
}

static tn_node norm_node(const char *name, int input, tn_resnet_norm params, bool relu) {
    tn_node node = tn_node_init(TN_NODE_NORM, name, input);
    node.gamma = params.gamma;
    node.beta = params.beta;
    node.state = params.state;
    node.relu = relu;
    return node;
}

/* Factor and parameter of the branch. */
static tn_scale branch_scale(const tn_resnet *net, const tn_resnet_block *k) {
    const tn_resnet_variant *v = net->variant;
    float factor = 1;
    if (v->tau && !v->scale) factor = (float)net->model->tau;
    if (v->scale_by_depth) factor = (float)(1.0 / net->model->blocks);
    return (tn_scale){.factor = factor, .param = k->scale};
}

/* Every stride-th row and column of x', with the bias in it taken away. */
static tn_status subsample(const tn_resnet *net, const tn_resnet_block *k, int *x) {
    char name[TN_NAME_MAX];
    tn_resnet_name(name, k, "subsample");
    tn_node node = tn_node_init(TN_NODE_SUBSAMPLE, name, *x);
    node.stride = k->stride;
    if (!net->variant->fixup) add_term(&node, k->conv[0].bias_before, -1, false);
    return tn_graph_add(net->model, node, x);
}

static tn_status shortcut_norm(const tn_resnet *net, const tn_resnet_block *k, int *x) {
    char name[TN_NAME_MAX];
    if (!net->variant->norm || net->config.no_bn_shortcut) return TN_OK;
    tn_resnet_name(name, k, "downsample.1");
    return tn_graph_add(net->model, norm_node(name, *x, k->shortcut, false), x);
}

/* CIFAR: subsampled, normalised (norms only), zeros appended. */
static tn_status add_padded_shortcut(const tn_resnet *net, const tn_resnet_block *k, int *x) {
    char name[TN_NAME_MAX];
    TN_TRY(subsample(net, k, x));
    TN_TRY(shortcut_norm(net, k, x));
    tn_resnet_name(name, k, "append");
    tn_node node = tn_node_init(TN_NODE_APPEND, name, *x);
    node.channels = k->out;
    return tn_graph_add(net->model, node, x);
}

/* ImageNet: projected, normalised (norms only). What the conv must not see of x' goes while it is subsampled,
 * which leaves the conv a stride of 1. */
static tn_status add_projection(const tn_resnet *net, const tn_resnet_block *k, int *x) {
    char name[TN_NAME_MAX];
    int stride = k->stride;
    if (!net->variant->norm && !net->variant->fixup) {
        TN_TRY(subsample(net, k, x));
        stride = 1;
    }
    tn_resnet_name(name, k, tn_resnet_projection_name(net));
    TN_TRY(tn_graph_add(net->model, conv_node(name, *x, k->projection, 1, stride), x));
    return shortcut_norm(net, k, x);
}

static tn_status add_norm_block(const tn_resnet *net, const tn_resnet_block *k, int x, int shortcut,
                                int *out) {
    char name[TN_NAME_MAX], last[16];
    for (int i = 0; i < k->convs; i++) {
        bool join = i == k->convs - 1;
        TN_TRY(tn_graph_add(net->model, block_conv(k, i, x), &x));
        snprintf(last, sizeof last, "bn%d", i + 1);
        tn_resnet_name(name, k, last);
        tn_node norm = norm_node(name, x, k->conv[i].norm, true);
        if (join) {
            norm.scale = branch_scale(net, k);
            norm.residual = shortcut;
            norm.block = true;
        }
        TN_TRY(tn_graph_add(net->model, norm, &x));
    }
    *out = x;
    return TN_OK;
}

/* `carry` is the input bias of the next block, -1 after the last. */
static tn_status add_free_block(const tn_resnet *net, const tn_resnet_block *k, int x, int shortcut,
                                int carry, int *out) {
    bool identity = shortcut == x;
    int last = k->convs - 1;
    for (int i = 0; i < last; i++) {
        tn_node inner = block_conv(k, i, x);
        add_term(&inner, k->conv[i].bias_after, 1, false);
        inner.relu = true;
        inner.carry = k->conv[i + 1].bias_before;
        TN_TRY(tn_graph_add(net->model, inner, &x));
    }
    tn_node join = block_conv(k, last, x);
    join.scale = branch_scale(net, k);
    add_term(&join, k->conv[last].bias_after, 1, !net->variant->fixup);
    if (identity) add_term(&join, k->conv[0].bias_before, -1, false);
    join.residual = shortcut;
    join.relu = join.block = true;
    join.carry = carry;
    return tn_graph_add(net->model, join, out);
}

static tn_status add_stem(const tn_resnet *net, int *x) {
    tn_node conv = conv_node("conv1", 0, net->stem, tn_resnet_stem_kernel(net), net->plan.imagenet ? 2 : 1);
    if (net->variant->norm) {
        TN_TRY(tn_graph_add(net->model, conv, x));
        tn_node norm = norm_node("bn1", *x, net->stem_norm, true);
        norm.block = true;
        TN_TRY(tn_graph_add(net->model, norm, x));
    } else {
        add_term(&conv, net->bias1, 1, false);
        conv.relu = conv.block = true;
        conv.carry = net->blocks[0].conv[0].bias_before;
        TN_TRY(tn_graph_add(net->model, conv, x));
    }
    if (!net->plan.imagenet) return TN_OK;
    tn_node pool = tn_node_init(TN_NODE_MAXPOOL, "maxpool", *x);
    pool.kernel = 3;
    pool.stride = 2;
    pool.padding = 1;
    return tn_graph_add(net->model, pool, x);
}

static tn_status add_block(const tn_resnet *net, int index, int *x) {
    const tn_resnet_block *k = &net->blocks[index];
    int shortcut = *x;
    if (tn_resnet_changes_shape(k))
        TN_TRY((net->plan.imagenet ? add_projection : add_padded_shortcut)(net, k, &shortcut));
    if (net->variant->norm) return add_norm_block(net, k, *x, shortcut, x);
    int next = index + 1 < net->model->blocks ? net->blocks[index + 1].conv[0].bias_before : -1;
    return add_free_block(net, k, *x, shortcut, next, x);
}

tn_status tn_resnet_add_nodes(tn_resnet *net) {
    int x;
    TN_TRY(add_stem(net, &x));
    for (int i = 0; i < net->model->blocks; i++) TN_TRY(add_block(net, i, &x));
    tn_node pool = tn_node_init(TN_NODE_AVGPOOL, "avgpool", x);
    pool.carry = net->bias2;
    TN_TRY(tn_graph_add(net->model, pool, &x));
    tn_node fc = tn_node_init(TN_NODE_LINEAR, "fc", x);
    fc.weight = net->fc_weight;
    fc.bias = net->fc_bias;
    TN_TRY(tn_graph_add(net->model, fc, &x));
    tn_node loss = tn_node_init(TN_NODE_LOSS, "loss", x);
    TN_TRY(tn_loss_find(net->config.loss, &loss.loss));
    return tn_graph_add(net->model, loss, NULL);
}
