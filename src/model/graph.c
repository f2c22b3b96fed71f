/* The flat node list: building it, checking it, and reading it for summaries. */
#include "model/graph.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

/* Indices and sizes of one image's activations are ints everywhere, with room for padding. */
#define ACTIVATION_MAX (1 << 30)
#define PARAM_MAX      ((size_t)1 << 40)

static void copy_name(char to[TN_NAME_MAX], const char *from) {
    TN_ASSERT(strlen(from) < TN_NAME_MAX);
    snprintf(to, TN_NAME_MAX, "%s", from);
}

static bool is_scalar(const tn_model *model, int param) {
    return param >= 0 && param < model->param_count && model->params[param].count == 1;
}

static bool is_scalar_or_none(const tn_model *model, int param) {
    return param == -1 || is_scalar(model, param);
}

static bool same_shape(tn_shape a, tn_shape b) {
    return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

static tn_status check_size(const char *name, tn_shape shape) {
    if ((double)shape.channels * shape.height * shape.width > ACTIVATION_MAX)
        return tn_fail(
            TN_ERR_USAGE,
            "%s: %d x %d x %d values are too many for one image; use smaller images or a smaller width", name,
            shape.channels, shape.height, shape.width);
    return TN_OK;
}

static tn_status add_tensor(tn_model *model, const char *name, tn_shape shape, int producer, int *out) {
    TN_TRY(check_size(name, shape));
    TN_TRY(tn_grow(&model->tensors, &model->tensor_capacity, (size_t)model->tensor_count + 1,
                   sizeof(tn_tensor), "tensor table"));
    tn_tensor *tensor = &model->tensors[model->tensor_count];
    copy_name(tensor->name, name);
    tensor->shape = shape;
    tensor->producer = producer;
    *out = model->tensor_count++;
    return TN_OK;
}

tn_status tn_graph_create(tn_model **out, tn_shape input, int classes) {
    *out = NULL;
    if (input.channels < 1 || input.height < 1 || input.width < 1)
        return tn_fail(TN_ERR_USAGE, "images of %d x %d x %d: channels, height and width must be at least 1",
                       input.channels, input.height, input.width);
    if (classes < 1) return tn_fail(TN_ERR_USAGE, "%d classes: there must be at least 1", classes);
    tn_model *model;
    TN_TRY(tn_alloc(&model, 1, sizeof *model, "model"));
    model->classes = classes;
    model->tau = 1;
    int tensor;
    tn_status status = add_tensor(model, "input", input, -1, &tensor);
    if (status != TN_OK) {
        tn_model_free(model);
        return status;
    }
    *out = model;
    return TN_OK;
}

void tn_model_free(tn_model *model) {
    if (!model) return;
    tn_free(model->nodes);
    tn_free(model->tensors);
    tn_free(model->params);
    tn_free(model->states);
    tn_free(model->aliases);
    tn_free(model);
}

tn_node tn_node_init(tn_node_kind kind, const char *name, int input) {
    tn_node node;
    memset(&node, 0, sizeof node);
    node.kind = kind;
    copy_name(node.name, name);
    node.input = input;
    node.output = node.residual = -1;
    node.stride = 1;
    node.weight = node.bias = node.gamma = node.beta = node.state = -1;
    node.scale.factor = 1;
    node.scale.param = -1;
    node.carry = -1;
    return node;
}

static void check_epilogue(const tn_model *model, const tn_node *node) {
    bool scales = node->kind == TN_NODE_CONV || node->kind == TN_NODE_LINEAR || node->kind == TN_NODE_NORM;
    bool conv_like = scales && node->kind != TN_NODE_NORM;
    TN_ASSERT(scales || (node->scale.factor == 1 && node->scale.param == -1));
    TN_ASSERT(scales || (node->residual == -1 && !node->relu));
    TN_ASSERT(conv_like || node->kind == TN_NODE_SUBSAMPLE || node->term_count == 0);
    TN_ASSERT(conv_like || node->kind == TN_NODE_AVGPOOL || node->carry == -1);
    TN_ASSERT(is_scalar_or_none(model, node->scale.param));
    TN_ASSERT(is_scalar_or_none(model, node->carry));
    TN_ASSERT(node->term_count >= 0 && node->term_count <= TN_TERMS_MAX);
    for (int i = 0; i < node->term_count; i++) {
        TN_ASSERT(is_scalar(model, node->terms[i].param));
        TN_ASSERT(conv_like || !node->terms[i].scaled);
    }
}

/* Length of a convolution's or pool's output along one axis; below 1 when the window does not fit. */
static int windows(int length, const tn_node *node) {
    int room = length + 2 * node->padding - node->kernel;
    return room < 0 ? 0 : room / node->stride + 1;
}

static int subsampled(int length, int stride) {
    return (length - 1) / stride + 1;
}

static void check_conv(const tn_model *model, const tn_node *node, tn_shape in) {
    TN_ASSERT(node->weight >= 0 && node->weight < model->param_count);
    const tn_param *weight = &model->params[node->weight];
    TN_ASSERT(weight->rank == 4 && weight->dims[1] == in.channels);
    TN_ASSERT(weight->dims[2] == node->kernel && weight->dims[3] == node->kernel);
    TN_ASSERT(node->padding >= 0 && node->bias == -1);
}

static void check_linear(const tn_model *model, const tn_node *node, tn_shape in) {
    TN_ASSERT(node->weight >= 0 && node->weight < model->param_count);
    const tn_param *weight = &model->params[node->weight];
    TN_ASSERT(weight->rank == 2 && weight->dims[1] == in.channels * in.height * in.width);
    TN_ASSERT(node->bias >= -1 && node->bias < model->param_count);
    if (node->bias >= 0) TN_ASSERT(model->params[node->bias].count == (size_t)weight->dims[0]);
}

static void check_norm(const tn_model *model, const tn_node *node, tn_shape in) {
    TN_ASSERT(node->gamma >= 0 && node->gamma < model->param_count);
    TN_ASSERT(node->beta >= 0 && node->beta < model->param_count);
    TN_ASSERT(model->params[node->gamma].count == (size_t)in.channels);
    TN_ASSERT(model->params[node->beta].count == (size_t)in.channels);
    TN_ASSERT(node->state >= 0 && node->state < model->state_count);
    TN_ASSERT(model->states[node->state].count == in.channels);
}

/* Shape of the node's output, with its kind's own fields checked. */
static tn_shape output_shape(const tn_model *model, const tn_node *node, tn_shape in) {
    tn_shape out = in;
    switch (node->kind) {
    case TN_NODE_CONV:
        check_conv(model, node, in);
        out.channels = model->params[node->weight].dims[0];
        out.height = windows(in.height, node);
        out.width = windows(in.width, node);
        break;
    case TN_NODE_MAXPOOL:
        TN_ASSERT(node->kernel >= 1 && node->padding >= 0 && 2 * node->padding <= node->kernel);
        out.height = windows(in.height, node);
        out.width = windows(in.width, node);
        break;
    case TN_NODE_LINEAR:
        check_linear(model, node, in);
        out = (tn_shape){model->params[node->weight].dims[0], 1, 1};
        break;
    case TN_NODE_NORM:
        check_norm(model, node, in);
        break;
    case TN_NODE_SUBSAMPLE:
        out.height = subsampled(in.height, node->stride);
        out.width = subsampled(in.width, node->stride);
        break;
    case TN_NODE_APPEND:
        TN_ASSERT(node->channels > in.channels && node->stride == 1);
        out.channels = node->channels;
        break;
    case TN_NODE_AVGPOOL:
        out.height = out.width = 1;
        break;
    case TN_NODE_LOSS:
        TN_ASSERT(same_shape(in, (tn_shape){model->classes, 1, 1}));
        break;
    case TN_NODE_KINDS:
        TN_ASSERT(node->kind != TN_NODE_KINDS);
    }
    return out;
}

tn_status tn_graph_add(tn_model *model, tn_node node, int *out_tensor) {
    TN_ASSERT(node.input >= 0 && node.input < model->tensor_count);
    TN_ASSERT(node.residual >= -1 && node.residual < model->tensor_count);
    TN_ASSERT(node.stride >= 1);
    check_epilogue(model, &node);
    tn_shape in = model->tensors[node.input].shape;
    tn_shape out = output_shape(model, &node, in);
    if (out.height < 1 || out.width < 1)
        return tn_fail(TN_ERR_USAGE, "%s: %d x %d pixels are too few for a window of %d; use larger images",
                       node.name, in.height, in.width, node.kernel);
    if (node.residual >= 0) TN_ASSERT(same_shape(model->tensors[node.residual].shape, out));

    TN_TRY(tn_grow(&model->nodes, &model->node_capacity, (size_t)model->node_count + 1, sizeof(tn_node),
                   "node table"));
    if (node.kind != TN_NODE_LOSS) TN_TRY(add_tensor(model, node.name, out, model->node_count, &node.output));
    model->nodes[model->node_count++] = node;
    if (out_tensor) *out_tensor = node.output;
    return TN_OK;
}

tn_status tn_graph_param(tn_model *model, const char *name, int rank, const int *dims, tn_group group,
                         tn_init_kind init, double init_value, int *out) {
    TN_ASSERT(rank >= 1 && rank <= 4);
    size_t count = 1;
    for (int i = 0; i < rank; i++) {
        TN_ASSERT(dims[i] >= 1);
        if (count > PARAM_MAX / (size_t)dims[i])
            return tn_fail(TN_ERR_USAGE,
                           "%s: more values than can be counted; use a smaller width or smaller images",
                           name);
        count *= (size_t)dims[i];
    }
    TN_TRY(tn_grow(&model->params, &model->param_capacity, (size_t)model->param_count + 1, sizeof(tn_param),
                   "parameter table"));
    tn_param *param = &model->params[model->param_count];
    copy_name(param->name, name);
    param->rank = rank;
    for (int i = 0; i < rank; i++) param->dims[i] = dims[i];
    param->count = count;
    param->group = group;
    param->init = init;
    param->init_value = init_value;
    param->grad_factor = group == TN_GROUP_FIXED ? 0 : 1;
    if (out) *out = model->param_count;
    model->param_count++;
    return TN_OK;
}

tn_status tn_graph_state(tn_model *model, const char *name, int channels, int *out) {
    TN_ASSERT(channels >= 1);
    TN_TRY(tn_grow(&model->states, &model->state_capacity, (size_t)model->state_count + 1, sizeof(tn_state),
                   "state table"));
    tn_state *state = &model->states[model->state_count];
    copy_name(state->name, name);
    state->count = channels;
    state->mean_offset = model->state_floats;
    state->var_offset = model->state_floats + (size_t)channels;
    model->state_floats += 2 * (size_t)channels;
    if (out) *out = model->state_count;
    model->state_count++;
    return TN_OK;
}

tn_status tn_graph_alias(tn_model *model, const char *name, int param) {
    TN_ASSERT(param >= 0 && param < model->param_count);
    TN_TRY(tn_grow(&model->aliases, &model->alias_capacity, (size_t)model->alias_count + 1, sizeof(tn_alias),
                   "alias table"));
    tn_alias *alias = &model->aliases[model->alias_count++];
    copy_name(alias->name, name);
    alias->param = param;
    return TN_OK;
}

static void claim(const tn_model *model, bool *claimed, int param, tn_node *node) {
    if (param < 0 || claimed[param]) return;
    claimed[param] = true;
    node->parameters += model->params[param].count;
}

/* Gives every parameter to one layer. What a layer only passes on (carry, and the terms of a subsample, which
 * take a carried bias away) belongs to the layer that reads it. */
static void count_layers(tn_model *model, bool *claimed) {
    for (int i = 0; i < model->node_count; i++) {
        tn_node *node = &model->nodes[i];
        claim(model, claimed, node->weight, node);
        claim(model, claimed, node->bias, node);
        claim(model, claimed, node->gamma, node);
        claim(model, claimed, node->beta, node);
        claim(model, claimed, node->scale.param, node);
        if (node->kind != TN_NODE_CONV && node->kind != TN_NODE_LINEAR) continue;
        int producer = model->tensors[node->input].producer;
        /* A max pool leaves the bias in what it passes on. */
        while (producer >= 0 && model->nodes[producer].kind == TN_NODE_MAXPOOL)
            producer = model->tensors[model->nodes[producer].input].producer;
        if (producer >= 0) claim(model, claimed, model->nodes[producer].carry, node);
        for (int t = 0; t < node->term_count; t++) claim(model, claimed, node->terms[t].param, node);
    }
    /* Whatever nobody reads counts where it is added. */
    for (int i = 0; i < model->node_count; i++) {
        tn_node *node = &model->nodes[i];
        claim(model, claimed, node->carry, node);
        for (int t = 0; t < node->term_count; t++) claim(model, claimed, node->terms[t].param, node);
    }
}

tn_status tn_graph_finish(tn_model *model) {
    TN_ASSERT(model->node_count > 0 && model->param_floats == 0);
    bool *claimed;
    TN_TRY(tn_alloc(&claimed, (size_t)model->param_count, sizeof *claimed, "parameter table"));
    count_layers(model, claimed);
    for (int i = 0; i < model->param_count; i++) TN_ASSERT(claimed[i]);
    tn_free(claimed);

    size_t offset = 0;
    for (int group = 0; group < TN_GROUPS; group++) {
        for (int i = 0; i < model->param_count; i++) {
            if (model->params[i].group != (tn_group)group) continue;
            model->params[i].offset = offset;
            offset += model->params[i].count;
        }
        if (group == TN_GROUP_WEIGHTS) model->weight_floats = offset;
        if (group == TN_GROUP_SCALARS) model->trained_floats = offset;
    }
    model->param_floats = offset;
    return TN_OK;
}

bool tn_node_adds_own_input(const tn_node *node) {
    return node->kind == TN_NODE_LINEAR && node->residual >= 0 && node->residual == node->input;
}

float tn_node_scale(const tn_node *node, const tn_model *model, const float *values) {
    if (node->scale.param < 0) return node->scale.factor;
    return node->scale.factor * values[model->params[node->scale.param].offset];
}

const char *tn_node_kind_name(tn_node_kind kind) {
    static const char *const names[TN_NODE_KINDS] = {
        [TN_NODE_CONV] = "conv",           [TN_NODE_LINEAR] = "linear", [TN_NODE_NORM] = "norm",
        [TN_NODE_SUBSAMPLE] = "subsample", [TN_NODE_APPEND] = "append", [TN_NODE_MAXPOOL] = "maxpool",
        [TN_NODE_AVGPOOL] = "avgpool",     [TN_NODE_LOSS] = "loss",
    };
    TN_ASSERT(kind >= 0 && kind < TN_NODE_KINDS);
    return names[kind];
}

double tn_node_multiply_adds(const tn_model *model, const tn_node *node) {
    if (node->kind != TN_NODE_CONV && node->kind != TN_NODE_LINEAR) return 0;
    tn_shape out = model->tensors[node->output].shape;
    return (double)model->params[node->weight].count * out.height * out.width;
}

size_t tn_model_parameter_count(const tn_model *model) {
    return model->param_floats;
}

double tn_model_multiply_adds(const tn_model *model) {
    double sum = 0;
    for (int i = 0; i < model->node_count; i++) sum += tn_node_multiply_adds(model, &model->nodes[i]);
    return sum;
}

int tn_model_classes(const tn_model *model) {
    return model->classes;
}

int tn_model_layer_count(const tn_model *model) {
    return model->node_count;
}

tn_layer_info tn_model_layer(const tn_model *model, int index) {
    TN_ASSERT(index >= 0 && index < model->node_count);
    const tn_node *node = &model->nodes[index];
    tn_shape shape = {1, 1, 1};
    if (node->output >= 0) shape = model->tensors[node->output].shape;
    return (tn_layer_info){.name = node->name,
                           .kind = tn_node_kind_name(node->kind),
                           .channels = shape.channels,
                           .height = shape.height,
                           .width = shape.width,
                           .block = node->block,
                           .parameters = node->parameters,
                           .multiply_adds = tn_node_multiply_adds(model, node)};
}
