#include "tests/support/op_cases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fail.h"
#include "base/philox.h"

/* Epilogue of the node under test, as far as its kind has it. */
#define RELU       0x0001u
#define RESIDUAL   0x0002u /* adds the input (norm: of the conv before it); takes a carried bias away */
#define PROJECTION 0x0004u /* instead: a conv of the same geometry makes the residual */
#define CARRY_IN   0x0008u /* the stored input includes a bias */
#define CARRY_OUT  0x0010u
#define BIAS       0x0020u /* a scalar bias outside the bracket (linear: the vector bias) */
#define BRACKET    0x0040u /* a scalar bias inside the bracket that s multiplies */
#define TAU_FIXED  0x0080u /* s is a constant */
#define TAU        0x0100u /* s is a learnable scalar */
#define DIVIDED    0x0200u /* s is a learnable scalar / 9 */
#define TAU_ZERO   0x0400u /* the learnable scalar is exactly 0 */
/* The rest of the model. */
#define TWICE     0x0800u /* the node stands twice in a row, with the same tau */
#define PER_BLOCK 0x1000u /* ... each with its own */
#define DIRECT    0x2000u /* the node reads the image: no gradient of its input is needed by anyone */
#define SQUARED   0x4000u
#define UNEVEN    0x8000u  /* row weights differ, some are zero */
#define HARD      0x10000u /* targets are one class each */
#define FROZEN    0x40000u /* the node's weight is fixed: it has no gradient */
#define KEEP      0x20000u /* subsample: the bias in the stored input is not taken away */

#define JOIN (BRACKET | TAU | RESIDUAL | CARRY_IN | RELU | CARRY_OUT)

/* ---- parts of models ---- */

static tn_status add_weight(tn_model *model, const char *name, int rank, const int *dims, int *out) {
    double fan_in = dims[1];
    for (int i = 2; i < rank; i++) fan_in *= dims[i];
    return tn_graph_param(model, name, rank, dims, TN_GROUP_WEIGHTS, TN_INIT_NORMAL, sqrt(2 / fan_in), out);
}

static tn_status add_vector(tn_model *model, const char *name, int count, double value, int *out) {
    return tn_graph_param(model, name, 1, &count, TN_GROUP_WEIGHTS, TN_INIT_CONSTANT, value, out);
}

static tn_status add_scalar(tn_model *model, const char *name, double value, int *out) {
    return tn_graph_param(model, name, 1, (int[]){1}, TN_GROUP_SCALARS, TN_INIT_CONSTANT, value, out);
}

static tn_status conv_node(const op_case *self, tn_model *model, const char *name, int x, tn_node *node) {
    *node = tn_node_init(TN_NODE_CONV, name, x);
    node->kernel = self->kernel;
    node->stride = self->stride ? self->stride : 1;
    node->padding = self->padding;
    int in = model->tensors[x].shape.channels;
    return add_weight(model, name, 4, (int[]){self->out, in, self->kernel, self->kernel}, &node->weight);
}

static tn_status linear_node(tn_model *model, const char *name, int x, int out, tn_node *node) {
    *node = tn_node_init(TN_NODE_LINEAR, name, x);
    tn_shape s = model->tensors[x].shape;
    return add_weight(model, name, 2, (int[]){out, s.channels * s.height * s.width}, &node->weight);
}

static tn_status norm_node(tn_model *model, const char *name, int x, tn_node *node) {
    *node = tn_node_init(TN_NODE_NORM, name, x);
    int channels = model->tensors[x].shape.channels;
    TN_TRY(add_vector(model, "gamma", channels, 1, &node->gamma));
    TN_TRY(add_vector(model, "beta", channels, 0, &node->beta));
    return tn_graph_state(model, name, channels, &node->state);
}

/* Model with the image as tensor 0. */
static tn_status start(const op_case *self, tn_model **out) {
    int channels = self->flags & DIRECT ? self->in : 3;
    return tn_graph_create(out, (tn_shape){channels, self->height, self->width},
                           self->classes ? self->classes : 5);
}

/* The tensor that the node under test reads: with DIRECT the image, else a 1x1 conv with ReLU of it. *carry
 * is the bias its stored values include, or -1. */
static tn_status add_stem(const op_case *self, tn_model *model, int *x, int *carry) {
    *x = 0;
    *carry = -1;
    if (self->flags & DIRECT) return TN_OK;
    if (self->flags & CARRY_IN) TN_TRY(add_scalar(model, "carry_in", 0.3, carry));
    tn_node stem = tn_node_init(TN_NODE_CONV, "stem", 0);
    stem.kernel = 1;
    stem.relu = true;
    stem.carry = *carry;
    int dims[4] = {self->in, model->tensors[0].shape.channels, 1, 1};
    TN_TRY(add_weight(model, "stem", 4, dims, &stem.weight));
    return tn_graph_add(model, stem, x);
}

static tn_status add_loss(const op_case *self, tn_model *model, int x) {
    tn_node loss = tn_node_init(TN_NODE_LOSS, "loss", x);
    loss.loss = self->flags & SQUARED ? TN_LOSS_SQUARED : TN_LOSS_CROSS_ENTROPY;
    TN_TRY(tn_graph_add(model, loss, NULL));
    return tn_graph_finish(model);
}

/* Adds a linear layer over all values of x, so that every value has a gradient of its own, and the loss. */
static tn_status finish(const op_case *self, tn_model *model, int x) {
    tn_node fc;
    TN_TRY(linear_node(model, "fc", x, model->classes, &fc));
    TN_TRY(add_vector(model, "fc.bias", model->classes, 0, &fc.bias));
    TN_TRY(tn_graph_add(model, fc, &x));
    return add_loss(self, model, x);
}

static void add_term(tn_node *node, int param, float factor, bool scaled) {
    node->terms[node->term_count++] = (tn_term){.param = param, .factor = factor, .scaled = scaled};
}

/* Gives the node its s. *tau is the learnable scalar of an earlier node to share, or -1. */
static tn_status add_scale(const op_case *self, tn_model *model, tn_node *node, int *tau) {
    if (self->flags & TAU_FIXED) node->scale.factor = 0.6f;
    if (self->flags & DIVIDED) node->scale.factor = (float)(1.0 / 9);
    if (!(self->flags & (TAU | DIVIDED | TAU_ZERO))) return TN_OK;
    if (*tau < 0 || self->flags & PER_BLOCK) {
        TN_TRY(add_scalar(model, "tau", 0.7, tau));
        /* A uniform draw from an empty range: op_data leaves it alone, as it does not start at a constant. */
        if (self->flags & TAU_ZERO) model->params[*tau].init = TN_INIT_UNIFORM;
        if (self->flags & TAU_ZERO) model->params[*tau].init_value = 0;
        if (self->flags & TWICE && !(self->flags & PER_BLOCK)) model->params[*tau].grad_factor = 0.5f;
    }
    node->scale.param = *tau;
    return TN_OK;
}

/* Gives a conv or linear node its whole epilogue, and adds it. *carry is the bias in its input and becomes
 * that in its output. */
static tn_status add_with_epilogue(const op_case *self, tn_model *model, tn_node node, int *x, int *carry,
                                   int *tau) {
    int param;
    TN_TRY(add_scale(self, model, &node, tau));
    node.relu = self->flags & RELU;
    if (self->flags & BIAS && node.kind == TN_NODE_CONV) {
        TN_TRY(add_scalar(model, "bias", -0.2, &param));
        add_term(&node, param, 1, false);
    }
    if (self->flags & BRACKET) {
        TN_TRY(add_scalar(model, "bracket", 0.2, &param));
        add_term(&node, param, 1, true);
    }
    if (self->flags & RESIDUAL) {
        node.residual = *x;
        if (*carry >= 0) add_term(&node, *carry, -1, false);
    }
    *carry = -1;
    if (self->flags & CARRY_OUT) TN_TRY(add_scalar(model, "carry_out", 0.25, carry));
    node.carry = *carry;
    return tn_graph_add(model, node, x);
}

/* ---- models ---- */

static void freeze(tn_model *model, int param) {
    model->params[param].group = TN_GROUP_FIXED;
    model->params[param].grad_factor = 0;
}

static tn_status conv_model(const op_case *self, tn_model *model) {
    int x, carry, tau = -1;
    TN_TRY(add_stem(self, model, &x, &carry));
    for (int i = 0; i < (self->flags & TWICE ? 2 : 1); i++) {
        tn_node node, projection;
        int residual = -1;
        if (self->flags & PROJECTION) {
            TN_TRY(conv_node(self, model, "projection", x, &projection));
            TN_TRY(tn_graph_add(model, projection, &residual));
        }
        TN_TRY(conv_node(self, model, "conv", x, &node));
        node.residual = residual;
        if (self->flags & FROZEN) freeze(model, node.weight);
        TN_TRY(add_with_epilogue(self, model, node, &x, &carry, &tau));
    }
    return finish(self, model, x);
}

static tn_status linear_model(const op_case *self, tn_model *model) {
    int x = 0, carry = -1, tau = -1;
    tn_node node;
    if (!(self->flags & DIRECT)) {
        TN_TRY(linear_node(model, "stem", 0, self->in, &node));
        node.relu = true;
        if (self->flags & CARRY_IN) TN_TRY(add_scalar(model, "carry_in", 0.3, &carry));
        node.carry = carry;
        TN_TRY(tn_graph_add(model, node, &x));
    }
    for (int i = 0; i < (self->flags & TWICE ? 2 : 1); i++) {
        int residual = -1;
        if (self->flags & PROJECTION) {
            TN_TRY(linear_node(model, "projection", x, self->out, &node));
            TN_TRY(tn_graph_add(model, node, &residual));
        }
        TN_TRY(linear_node(model, "linear", x, self->out, &node));
        node.residual = residual;
        if (self->flags & FROZEN) freeze(model, node.weight);
        if (self->flags & BIAS) TN_TRY(add_vector(model, "bias", self->out, 0, &node.bias));
        TN_TRY(add_with_epilogue(self, model, node, &x, &carry, &tau));
    }
    return finish(self, model, x);
}

/* Stem, conv, norm, with the stem's output as residual. */
static tn_status norm_model(const op_case *self, tn_model *model) {
    int stem, carry, x, tau = -1;
    TN_TRY(add_stem(self, model, &stem, &carry));
    tn_node conv, node;
    TN_TRY(conv_node(self, model, "conv", stem, &conv));
    TN_TRY(tn_graph_add(model, conv, &x));
    TN_TRY(norm_node(model, "norm", x, &node));
    TN_TRY(add_scale(self, model, &node, &tau));
    node.relu = self->flags & RELU;
    if (self->flags & RESIDUAL) node.residual = stem;
    TN_TRY(tn_graph_add(model, node, &x));
    return finish(self, model, x);
}

static tn_status subsample_model(const op_case *self, tn_model *model) {
    int x, carry;
    TN_TRY(add_stem(self, model, &x, &carry));
    tn_node node = tn_node_init(TN_NODE_SUBSAMPLE, "subsample", x);
    node.stride = 2;
    if (carry >= 0 && !(self->flags & KEEP)) add_term(&node, carry, -1, false);
    TN_TRY(tn_graph_add(model, node, &x));
    return finish(self, model, x);
}

static tn_status append_model(const op_case *self, tn_model *model) {
    int x, carry;
    TN_TRY(add_stem(self, model, &x, &carry));
    tn_node node = tn_node_init(TN_NODE_APPEND, "append", x);
    node.channels = self->out;
    TN_TRY(tn_graph_add(model, node, &x));
    return finish(self, model, x);
}

static tn_status maxpool_model(const op_case *self, tn_model *model) {
    int x, carry;
    TN_TRY(add_stem(self, model, &x, &carry));
    tn_node node = tn_node_init(TN_NODE_MAXPOOL, "maxpool", x);
    node.kernel = self->kernel;
    node.stride = self->stride;
    node.padding = self->padding;
    TN_TRY(tn_graph_add(model, node, &x));
    return finish(self, model, x);
}

/* The pool carries the bias out, the linear layer has the rest. */
static tn_status head_model(const op_case *self, tn_model *model) {
    int x, carry, tau = -1;
    op_case rest = *self;
    rest.flags &= ~CARRY_OUT;
    TN_TRY(add_stem(self, model, &x, &carry));
    tn_node pool = tn_node_init(TN_NODE_AVGPOOL, "avgpool", x), node;
    if (self->flags & CARRY_OUT) TN_TRY(add_scalar(model, "carry_out", 0.25, &pool.carry));
    TN_TRY(tn_graph_add(model, pool, &x));
    TN_TRY(linear_node(model, "fc", x, model->classes, &node));
    if (self->flags & BIAS) TN_TRY(add_vector(model, "fc.bias", model->classes, 0, &node.bias));
    TN_TRY(add_with_epilogue(&rest, model, node, &x, &carry, &tau));
    return add_loss(self, model, x);
}

/* The image through one linear layer into the loss; TAU_FIXED makes the logits large. */
static tn_status loss_model(const op_case *self, tn_model *model) {
    int x = 0;
    if (self->flags & TAU_FIXED) {
        tn_node node;
        TN_TRY(linear_node(model, "linear", x, self->in, &node));
        node.scale.factor = 40;
        TN_TRY(tn_graph_add(model, node, &x));
    }
    return finish(self, model, x);
}

static tn_status build(const op_case *self, tn_status (*fill)(const op_case *, tn_model *), tn_model **out) {
    TN_TRY(start(self, out));
    tn_status status = fill(self, *out);
    if (status == TN_OK) return TN_OK;
    tn_model_free(*out);
    *out = NULL;
    return status;
}

#define BUILDER(kind)                                                                                        \
    static tn_status build_##kind(const op_case *self, tn_model **out) {                                     \
        return build(self, kind##_model, out);                                                               \
    }
BUILDER(conv)
BUILDER(linear)
BUILDER(norm)
BUILDER(subsample)
BUILDER(append)
BUILDER(maxpool)
BUILDER(head)
BUILDER(loss)

/* ---- the list ---- */

#define CASE(label, kind, count) .name = label, .build = build_##kind, .rows = count, .tolerance = 1e-4
#define SIZE(c_in, c_out, h, w)  .in = c_in, .out = c_out, .height = h, .width = w
#define K1                       .kernel = 1
#define K3                       .kernel = 3, .padding = 1
#define K7                       .kernel = 7, .padding = 3

static const op_case cases[] = {
    {CASE("conv3x3 image", conv, 3), SIZE(3, 16, 8, 8), K3, .flags = DIRECT},
    {CASE("conv3x3 image 1 channel relu", conv, 2), SIZE(1, 8, 7, 6), K3, .flags = DIRECT | RELU},
    {CASE("conv3x3 image with all", conv, 3), SIZE(3, 24, 9, 34), K3,
     .flags = DIRECT | BIAS | BRACKET | TAU | RELU | CARRY_OUT},
    {CASE("conv3x3 image 4 channels", conv, 2), SIZE(4, 64, 5, 6), K3, .flags = DIRECT | TAU | BIAS},
    {CASE("conv3x3 image 2 channels carry out", conv, 3), SIZE(2, 8, 5, 3), K3, .flags = DIRECT | CARRY_OUT},
    {CASE("conv3x3 image frozen", conv, 2), SIZE(3, 8, 5, 5), K3, .flags = DIRECT | FROZEN | BIAS | RELU},
    {CASE("conv3x3 image of a projection", conv, 2), SIZE(3, 8, 5, 4), K3,
     .flags = DIRECT | PROJECTION | BIAS | RELU},
    {CASE("conv3x3", conv, 3), SIZE(8, 8, 6, 6), K3},
    {CASE("conv3x3 16", conv, 2), SIZE(16, 16, 6, 5), K3, .flags = RELU},
    {CASE("conv3x3 32", conv, 2), SIZE(32, 32, 4, 4), K3, .flags = RELU},
    {CASE("conv3x3 5 to 7", conv, 3), SIZE(5, 7, 5, 6), K3, .flags = RELU},
    {CASE("conv3x3 1 pixel", conv, 4), SIZE(8, 8, 1, 1), K3, .flags = RELU | CARRY_IN},
    {CASE("conv3x3/2 even", conv, 2), SIZE(16, 32, 6, 6), K3, .stride = 2, .flags = RELU},
    {CASE("conv3x3/2 odd", conv, 3), SIZE(8, 16, 7, 5), K3, .stride = 2, .flags = RELU},
    {CASE("conv3x3/2 odd and even", conv, 3), SIZE(3, 5, 5, 6), K3, .stride = 2},
    {CASE("conv1x1", conv, 3), SIZE(8, 16, 4, 5), K1, .flags = RELU},
    {CASE("conv1x1/2", conv, 2), SIZE(16, 32, 5, 5), K1, .stride = 2},
    {CASE("conv1x1 join", conv, 2), SIZE(16, 16, 5, 4), K1, .flags = JOIN},
    {CASE("conv7x7/2 image", conv, 2), SIZE(3, 8, 13, 12), K7, .stride = 2, .flags = DIRECT | RELU},
    {CASE("conv7x7/2", conv, 2), SIZE(8, 8, 9, 8), K7, .stride = 2, .flags = CARRY_IN | RELU},

    {CASE("carry in", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = CARRY_IN},
    {CASE("carry in stride 2", conv, 3), SIZE(8, 16, 6, 7), K3, .stride = 2, .flags = CARRY_IN | RELU},
    {CASE("carry out", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = CARRY_OUT},
    {CASE("carry out relu", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = CARRY_OUT | RELU},
    {CASE("bias", conv, 3), SIZE(8, 3, 5, 5), K3, .flags = BIAS},
    {CASE("first of block", conv, 3), SIZE(8, 8, 5, 6), K3, .flags = CARRY_IN | BIAS | RELU | CARRY_OUT},
    {CASE("first of stage", conv, 2), SIZE(8, 16, 6, 6), K3, .stride = 2,
     .flags = CARRY_IN | BIAS | RELU | CARRY_OUT},

    {CASE("residual", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = RESIDUAL},
    {CASE("residual relu", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = RESIDUAL | RELU},
    {CASE("residual carried", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = RESIDUAL | CARRY_IN | RELU},
    {CASE("tau fixed", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU_FIXED},
    {CASE("tau fixed bracket relu", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU_FIXED | BRACKET | RELU},
    {CASE("tau", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU},
    {CASE("tau bracket", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU | BRACKET},
    {CASE("tau bracket and bias", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU | BRACKET | BIAS | RELU},
    {CASE("tau relu carry out", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU | RELU | CARRY_OUT},
    {CASE("scale zero", conv, 3), SIZE(8, 8, 5, 5), K3,
     .flags = TAU_ZERO | BRACKET | RESIDUAL | CARRY_IN | CARRY_OUT},
    {CASE("join", conv, 3), SIZE(8, 8, 6, 5), K3, .flags = JOIN},
    {CASE("join 32", conv, 2), SIZE(32, 32, 4, 4), K3, .flags = JOIN},
    {CASE("join 7", conv, 3), SIZE(7, 7, 5, 3), K3, .flags = JOIN},
    {CASE("join uneven rows", conv, 5), SIZE(8, 8, 4, 4), K3, .flags = JOIN | UNEVEN},
    {CASE("join alpha", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = (JOIN & ~TAU) | DIVIDED},
    {CASE("join fixup", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = (JOIN & ~BRACKET) | BIAS},
    {CASE("join of a stage", conv, 2), SIZE(8, 16, 6, 5), K3, .stride = 2,
     .flags = (JOIN & ~RESIDUAL) | PROJECTION},
    {CASE("two joins shared tau", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = JOIN | TWICE},
    {CASE("two joins own tau", conv, 3), SIZE(8, 8, 5, 5), K3, .flags = JOIN | TWICE | PER_BLOCK},

    /* Layers of ResNet-20 and -110 on CIFAR, of ResNet-50 on ImageNet. */
    {CASE("cifar stem", conv, 2), SIZE(3, 16, 32, 32), K3, .large = true, .flags = DIRECT | RELU | CARRY_OUT},
    {CASE("cifar stage 1 first", conv, 2), SIZE(16, 16, 32, 32), K3, .large = true,
     .flags = CARRY_IN | BIAS | RELU | CARRY_OUT},
    {CASE("cifar stage 1 join", conv, 2), SIZE(16, 16, 32, 32), K3, .large = true, .flags = JOIN},
    {CASE("cifar stage 2 entry", conv, 2), SIZE(16, 32, 32, 32), K3, .stride = 2, .large = true,
     .flags = CARRY_IN | BIAS | RELU | CARRY_OUT},
    {CASE("cifar stage 2 join", conv, 2), SIZE(32, 32, 16, 16), K3, .large = true, .flags = JOIN},
    {CASE("cifar stage 3 entry", conv, 2), SIZE(32, 64, 16, 16), K3, .stride = 2, .large = true,
     .flags = CARRY_IN | BIAS | RELU | CARRY_OUT},
    {CASE("cifar stage 3 join", conv, 2), SIZE(64, 64, 8, 8), K3, .large = true, .flags = JOIN},
    {CASE("imagenet stem", conv, 1), SIZE(3, 64, 96, 96), K7, .stride = 2, .large = true,
     .flags = DIRECT | RELU | CARRY_OUT},
    {CASE("imagenet stage 1 middle", conv, 1), SIZE(64, 64, 56, 56), K3, .large = true,
     .flags = CARRY_IN | RELU | CARRY_OUT},
    {CASE("imagenet stage 1 expand", conv, 1), SIZE(64, 256, 28, 28), K1, .large = true,
     .flags = (JOIN & ~RESIDUAL) | PROJECTION},
    {CASE("imagenet stage 2 middle", conv, 1), SIZE(128, 128, 28, 28), K3, .stride = 2, .large = true,
     .flags = CARRY_IN | RELU | CARRY_OUT},
    {CASE("imagenet stage 3 shortcut", conv, 1), SIZE(512, 1024, 14, 14), K1, .stride = 2, .large = true},
    {CASE("imagenet stage 4 middle", conv, 1), SIZE(512, 512, 7, 7), K3, .large = true,
     .flags = CARRY_IN | RELU | CARRY_OUT},
    {CASE("imagenet stage 4 expand", conv, 2), SIZE(512, 2048, 7, 7), K1, .large = true,
     .flags = BIAS | TAU | RELU},
    {CASE("imagenet norm", norm, 1), SIZE(64, 256, 28, 28), K1, .large = true, .flags = RELU},
    {CASE("imagenet head", linear, 2), SIZE(2048, 1000, 1, 1), .large = true, .flags = BIAS},

    {CASE("linear image", linear, 3), SIZE(3, 6, 4, 3), .flags = DIRECT | BIAS},
    {CASE("linear", linear, 4), SIZE(16, 8, 3, 3)},
    {CASE("linear relu", linear, 4), SIZE(16, 16, 3, 3), .flags = RELU | BIAS},
    {CASE("linear carry", linear, 4), SIZE(17, 9, 3, 3), .flags = CARRY_IN | BIAS | RELU | CARRY_OUT},
    {CASE("linear residual tau fixed", linear, 4), SIZE(32, 32, 3, 3), .flags = TAU_FIXED | RESIDUAL | RELU},
    {CASE("linear join", linear, 4), SIZE(17, 17, 3, 3), .flags = JOIN | BIAS},
    {CASE("linear two joins shared tau", linear, 3), SIZE(16, 16, 3, 3), .flags = JOIN | TWICE},
    {CASE("linear projection", linear, 4), SIZE(12, 20, 3, 3), .flags = PROJECTION | TAU | RELU},
    {CASE("linear frozen", linear, 4), SIZE(16, 16, 3, 3), .flags = FROZEN | TAU_FIXED | RESIDUAL | RELU},
    {CASE("linear frozen image", linear, 3), SIZE(3, 6, 4, 3), .flags = FROZEN | DIRECT | BIAS | RELU},
    {CASE("linear uneven rows", linear, 7), SIZE(8, 8, 3, 3), .flags = BIAS | RELU | UNEVEN},

    {CASE("norm", norm, 3), SIZE(8, 8, 5, 5), K3},
    {CASE("norm relu", norm, 3), SIZE(8, 16, 4, 5), K3, .flags = RELU},
    {CASE("norm stride 2", norm, 3), SIZE(3, 8, 5, 5), K3, .stride = 2, .flags = RELU},
    {CASE("norm 7", norm, 3), SIZE(5, 7, 3, 5), K3, .flags = RELU},
    {CASE("norm 32", norm, 2), SIZE(16, 32, 4, 4), K3, .flags = RELU},
    {CASE("norm 1 row", norm, 1), SIZE(8, 8, 6, 6), K3, .flags = RELU},
    {CASE("norm 1 pixel", norm, 9), SIZE(8, 8, 1, 1), K3},
    {CASE("norm residual", norm, 3), SIZE(8, 8, 5, 5), K3, .flags = RESIDUAL},
    {CASE("norm residual relu", norm, 3), SIZE(8, 8, 5, 5), K3, .flags = RESIDUAL | RELU},
    {CASE("norm tau fixed", norm, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU_FIXED},
    {CASE("norm tau fixed join", norm, 3), SIZE(16, 16, 5, 4), K3, .flags = TAU_FIXED | RESIDUAL | RELU},
    {CASE("norm tau join", norm, 3), SIZE(8, 8, 5, 5), K3, .flags = TAU | RESIDUAL | RELU},
    {CASE("norm uneven rows", norm, 6), SIZE(8, 8, 4, 4), K3, .flags = TAU_FIXED | RESIDUAL | RELU | UNEVEN},

    {CASE("subsample", subsample, 3), SIZE(8, 8, 6, 4)},
    {CASE("subsample odd", subsample, 3), SIZE(16, 16, 7, 5)},
    {CASE("subsample carried", subsample, 3), SIZE(8, 8, 6, 6), .flags = CARRY_IN},
    {CASE("subsample carried odd", subsample, 3), SIZE(5, 5, 5, 6), .flags = CARRY_IN},
    {CASE("subsample carried kept", subsample, 3), SIZE(8, 8, 5, 6), .flags = CARRY_IN | KEEP},
    {CASE("append", append, 3), SIZE(8, 16, 4, 4)},
    {CASE("append 3 to 8", append, 3), SIZE(3, 8, 5, 3), .flags = CARRY_IN},
    {CASE("append 16 to 32", append, 2), SIZE(16, 32, 4, 3)},
    {CASE("maxpool 3x3/2", maxpool, 3), SIZE(8, 8, 8, 6), .kernel = 3, .stride = 2, .padding = 1},
    {CASE("maxpool 3x3/2 odd", maxpool, 3), SIZE(5, 5, 7, 5), .kernel = 3, .stride = 2, .padding = 1,
     .flags = CARRY_IN},
    {CASE("maxpool 2x2/2", maxpool, 3), SIZE(16, 16, 5, 4), .kernel = 2, .stride = 2},
    {CASE("avgpool", head, 3), SIZE(16, 0, 8, 8), .flags = BIAS},
    {CASE("avgpool carry", head, 3), SIZE(8, 0, 5, 3), .flags = BIAS | CARRY_IN | CARRY_OUT},
    {CASE("avgpool 1 pixel", head, 3), SIZE(32, 0, 1, 1), .flags = CARRY_OUT},
    {CASE("avgpool 13", head, 3), SIZE(13, 0, 3, 3), .classes = 4, .flags = BIAS | CARRY_OUT},
    {CASE("head", head, 5), SIZE(16, 0, 5, 3), .classes = 10, .flags = BIAS | UNEVEN},
    {CASE("head with all", head, 4), SIZE(64, 0, 4, 4), .classes = 33,
     .flags = CARRY_IN | BIAS | BRACKET | TAU | CARRY_OUT},
    {CASE("head squared", head, 3), SIZE(24, 0, 3, 3), .classes = 3, .flags = SQUARED | UNEVEN | TAU_FIXED},
    {CASE("head relu", head, 3), SIZE(16, 0, 3, 3), .classes = 6, .flags = BIAS | RELU | CARRY_OUT},

    {CASE("cross-entropy hard", loss, 4), SIZE(0, 0, 3, 3), .classes = 10, .flags = HARD},
    {CASE("cross-entropy soft", loss, 4), SIZE(0, 0, 3, 3), .classes = 10},
    {CASE("cross-entropy 2 classes", loss, 4), SIZE(0, 0, 3, 3), .classes = 2},
    {CASE("cross-entropy 101 classes uneven rows", loss, 7), SIZE(0, 0, 3, 3), .classes = 101,
     .flags = UNEVEN},
    {CASE("cross-entropy large logits", loss, 4), SIZE(8, 8, 3, 3), .flags = TAU_FIXED | HARD},
    {CASE("squared", loss, 4), SIZE(0, 0, 3, 3), .flags = SQUARED},
    {CASE("squared uneven rows", loss, 7), SIZE(0, 0, 3, 3), .classes = 9, .flags = SQUARED | UNEVEN},
};

int op_case_count(void) {
    return (int)(sizeof cases / sizeof cases[0]);
}

const op_case *op_case_at(int index) {
    TN_ASSERT(index >= 0 && index < op_case_count());
    return &cases[index];
}

void op_case_work(const tn_model *model, int rows, double *flops, double *bytes) {
    *flops = *bytes = 0;
    for (int i = 0; i < model->node_count; i++) {
        const tn_node *node = &model->nodes[i];
        int used[] = {node->input, node->residual, node->output};
        *flops += 2.0 * rows * tn_node_multiply_adds(model, node);
        for (int k = 0; k < 3; k++)
            if (used[k] >= 0) {
                tn_shape s = model->tensors[used[k]].shape;
                *bytes += (double)rows * s.channels * s.height * s.width * sizeof(float);
            }
        if (node->weight >= 0) *bytes += (double)model->params[node->weight].count * sizeof(float);
    }
}

tn_model *op_case_model(const op_case *self) {
    tn_model *model;
    TN_ASSERT(self->build(self, &model) == TN_OK);
    return model;
}

/* ---- data ---- */

/* Streams of one key, apart from each other and from initialisation. */
enum { STREAM_PARAMS = 1, STREAM_STATE, STREAM_IMAGES, STREAM_TARGETS, STREAM_WEIGHTS };

static float *floats(size_t count) {
    float *memory = calloc(count ? count : 1, sizeof *memory);
    TN_ASSERT(memory != NULL);
    return memory;
}

static void move_constants(const tn_model *model, uint64_t key, float *values) {
    for (int p = 0; p < model->param_count; p++) {
        const tn_param *param = &model->params[p];
        if (param->init != TN_INIT_CONSTANT) continue;
        tn_rng rng = tn_rng_open(key, TN_RNG_SYNTHETIC, STREAM_PARAMS, (uint32_t)p);
        for (size_t i = 0; i < param->count; i++)
            values[param->offset + i] += (float)(0.2 * tn_rng_normal(&rng));
    }
}

static void draw_state(const tn_model *model, uint64_t key, float *state) {
    for (int s = 0; s < model->state_count; s++) {
        tn_rng rng = tn_rng_open(key, TN_RNG_SYNTHETIC, STREAM_STATE, (uint32_t)s);
        for (size_t c = 0; c < (size_t)model->states[s].count; c++) {
            state[model->states[s].mean_offset + c] = (float)(0.3 * tn_rng_normal(&rng));
            state[model->states[s].var_offset + c] = (float)(0.5 + tn_rng_uniform(&rng));
        }
    }
}

static int heaviest(const float *target, int classes) {
    int best = 0;
    for (int k = 1; k < classes; k++)
        if (target[k] > target[best]) best = k;
    return best;
}

static void draw_target(tn_loss_kind loss, bool hard, tn_rng *rng, float *target, int classes) {
    double sum = 0, weight[1024];
    TN_ASSERT(classes <= 1024);
    if (loss == TN_LOSS_SQUARED) {
        for (int k = 0; k < classes; k++) target[k] = (float)tn_rng_normal(rng);
        return;
    }
    if (hard) {
        target[tn_rng_below(rng, (uint32_t)classes)] = 1;
        return;
    }
    for (int k = 0; k < classes; k++) sum += weight[k] = pow(tn_rng_uniform(rng), 3);
    for (int k = 0; k < classes; k++) target[k] = (float)(weight[k] / sum);
}

op_data op_data_draw(const tn_model *model, int rows, uint64_t key, bool uneven, bool hard) {
    tn_shape s = model->tensors[0].shape;
    size_t pixels = (size_t)s.channels * (size_t)s.height * (size_t)s.width, classes = (size_t)model->classes;
    op_data data = {.values = floats(model->param_floats),
                    .state = floats(model->state_floats),
                    .images = floats((size_t)rows * pixels),
                    .targets = floats((size_t)rows * classes),
                    .row_weights = floats((size_t)rows),
                    .labels = calloc((size_t)rows, sizeof(int))};
    TN_ASSERT(data.labels != NULL);
    tn_model_initialise(model, key, data.values, data.state);
    move_constants(model, key, data.values);
    draw_state(model, key, data.state);
    tn_rng weights = tn_rng_open(key, TN_RNG_SYNTHETIC, STREAM_WEIGHTS, 0);
    for (int row = 0; row < rows; row++) {
        tn_rng rng = tn_rng_open(key, TN_RNG_SYNTHETIC, STREAM_IMAGES, (uint32_t)row);
        for (size_t i = 0; i < pixels; i++)
            data.images[(size_t)row * pixels + i] = (float)tn_rng_normal(&rng);
        rng = tn_rng_open(key, TN_RNG_SYNTHETIC, STREAM_TARGETS, (uint32_t)row);
        float *target = data.targets + (size_t)row * classes;
        draw_target(model->nodes[model->node_count - 1].loss, hard, &rng, target, model->classes);
        data.labels[row] = heaviest(target, model->classes);
        double weight = tn_rng_uniform(&weights) + 0.25;
        data.row_weights[row] = uneven ? (row % 3 == 1 ? 0 : (float)weight) : 1 / (float)rows;
    }
    return data;
}

op_data op_case_data(const op_case *self, const tn_model *model) {
    uint64_t key = 1000 + (uint64_t)(self - cases);
    return op_data_draw(model, self->rows, key, self->flags & UNEVEN, self->flags & HARD);
}

void op_data_free(op_data *data) {
    free(data->values);
    free(data->state);
    free(data->images);
    free(data->targets);
    free(data->row_weights);
    free(data->labels);
    memset(data, 0, sizeof *data);
}

double *op_widen(const float *values, size_t count) {
    double *wide = calloc(count ? count : 1, sizeof *wide);
    TN_ASSERT(wide != NULL);
    for (size_t i = 0; i < count; i++) wide[i] = (double)values[i];
    return wide;
}

/* Euclidean norm of a parameter's gradient. */
static double gradient_norm(const tn_param *param, const double *grad) {
    double sum = 0;
    for (size_t i = 0; i < param->count; i++) sum += pow(grad[param->offset + i], 2);
    return sqrt(sum);
}

double op_gradient_error(const tn_model *model, int param, const double *expected, const float *grad) {
    const tn_param *p = &model->params[param];
    double largest = 0, sum = 0;
    for (int i = 0; i < model->param_count; i++)
        largest = fmax(largest, gradient_norm(&model->params[i], expected));
    for (size_t i = p->offset; i < p->offset + p->count; i++) sum += pow((double)grad[i] - expected[i], 2);
    TN_ASSERT(largest > 0);
    return sqrt(sum) / fmax(gradient_norm(p, expected), 0.01 * largest);
}
