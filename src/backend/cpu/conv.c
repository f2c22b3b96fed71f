/* Convolution and linear layers on the CPU, with the epilogue of graph.h fused into oneDNN's kernels.
 *
 * s is folded into the packed weights; a linear layer that adds its own input computes with s W + I. c and a
 * vector bias go into the bias vector; r is a binary add, the activation an eltwise, d a binary add of one
 * scalar. Those three are loops of ours behind a linear layer.
 *
 * A chunk's own gradients are the packed dL/d(sW), the vector bias (linear), the sum of dz, the sum of dy. */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/cpu/dnn.h"
#include "base/memory.h"

#define PIECE 2048 /* floats */

typedef struct conv_plan {
    tn_plan head;
    tn_cpu *cpu;
    tn_dnn_conv dnn;
    size_t chunk_floats; /* of y, whole chunk */
    int chunk_rows, outputs;
    bool has_bias, own_backward_weights;
    float *forward_weights, *backward_weights, *bias, *carry;
} conv_plan;

static const tn_param *weight_of(const conv_plan *plan) {
    return &plan->head.model->params[plan->head.node->weight];
}

/* A fixed weight gets no gradient; its place in the flat buffer stays zero. */
static bool is_fixed(const conv_plan *plan) {
    return weight_of(plan)->group == TN_GROUP_FIXED;
}

static void conv_free(tn_plan *head) {
    conv_plan *plan = (conv_plan *)(void *)head;
    if (!plan) return;
    tn_dnn_conv_free(&plan->dnn);
    tn_free(plan->forward_weights);
    tn_free(plan->backward_weights);
    tn_free(plan->bias);
    tn_free(plan->carry);
    tn_free(plan);
}

static tn_dnn_shape dnn_shape(const conv_plan *plan, bool training) {
    const tn_node *node = plan->head.node;
    const tn_shape in = plan->head.model->tensors[node->input].shape;
    const tn_shape out = plan->head.model->tensors[node->output].shape;
    bool linear = node->kind == TN_NODE_LINEAR;
    tn_dnn_shape s = {.linear = linear,
                      .rows = plan->chunk_rows,
                      .in_channels = linear ? in.channels * in.height * in.width : in.channels,
                      .out_channels = out.channels,
                      .in_height = linear ? 1 : in.height,
                      .in_width = linear ? 1 : in.width,
                      .out_height = out.height,
                      .out_width = out.width,
                      .kernel = linear ? 1 : node->kernel,
                      .stride = linear ? 1 : node->stride,
                      .padding = linear ? 0 : node->padding,
                      .bias = plan->has_bias,
                      .residual = !linear && node->residual >= 0,
                      .relu = !linear && node->relu,
                      .carry = !linear && node->carry >= 0,
                      .need_weight_gradient = training && !is_fixed(plan),
                      .need_data_gradient = training && node->input != 0};
    return s;
}

static tn_status allocate(conv_plan *plan) {
    tn_dnn_conv *d = &plan->dnn;
    TN_TRY(tn_alloc(&plan->forward_weights, d->forward_weight_floats, sizeof(float), "packed weights"));
    TN_TRY(tn_alloc(&plan->backward_weights, d->backward_weight_floats, sizeof(float), "packed weights"));
    TN_TRY(tn_alloc(&plan->bias, (size_t)plan->outputs, sizeof(float), "bias"));
    TN_TRY(tn_alloc(&plan->carry, 1, sizeof(float), "carried bias"));
    plan->head.bytes =
        (d->forward_weight_floats + d->backward_weight_floats + (size_t)plan->outputs) * sizeof(float);
    return tn_cpu_reserve_weights(plan->cpu, weight_of(plan)->count);
}

static tn_status conv_plan_make(tn_backend *backend, const tn_model *model, int index, int chunk_rows,
                                int chunks, bool training, tn_plan **out) {
    (void)chunks;
    conv_plan *plan;
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "layer plan"));
    const tn_node *node = &model->nodes[index];
    const tn_shape y = model->tensors[node->output].shape;
    plan->head.model = model;
    plan->head.node = node;
    plan->cpu = (tn_cpu *)(void *)backend;
    plan->chunk_rows = chunk_rows;
    plan->outputs = y.channels;
    plan->chunk_floats = (size_t)chunk_rows * (size_t)y.channels * (size_t)y.height * (size_t)y.width;
    plan->has_bias = node->bias >= 0 || node->term_count > 0;
    tn_dnn_shape shape = dnn_shape(plan, training);
    tn_status status = tn_dnn_conv_plan(&shape, backend->workers, &plan->dnn);
    if (status == TN_OK) status = allocate(plan);
    if (status != TN_OK) {
        conv_free(&plan->head);
        return tn_fail_prefix(status, "layer %s", node->name);
    }
    const tn_dnn_conv *d = &plan->dnn;
    const tn_dnn_kernel *kernels[3] = {&d->forward, &d->backward_data, &d->backward_weights};
    for (int i = 0; i < 3; i++) {
        memcpy(plan->head.implementation[i], kernels[i]->implementation, sizeof plan->head.implementation[i]);
        if (kernels[i]->scratch_bytes > plan->head.scratch_bytes)
            plan->head.scratch_bytes = kernels[i]->scratch_bytes;
    }
    if (training) plan->head.grad_floats = d->grad_floats + (node->bias >= 0 ? (size_t)plan->outputs : 0) + 2;
    *out = &plan->head;
    return TN_OK;
}

/* What follows the product of a linear layer. oneDNN's own epilogue would turn NaN into 0 in a ReLU. */
static void linear_epilogue(const conv_plan *plan, const tn_args *a) {
    const tn_node *node = plan->head.node;
    if (node->residual >= 0 && !tn_node_adds_own_input(node)) tn_cpu_add(a->y, a->r, plan->chunk_floats);
    if (node->relu || node->carry >= 0) tn_cpu_activation(a->y, plan->chunk_floats, node->relu, *plan->carry);
}

static tn_status conv_forward(tn_plan *head, const tn_args *a) {
    conv_plan *plan = (conv_plan *)(void *)head;
    const tn_node *node = head->node;
    bool linear = node->kind == TN_NODE_LINEAR;
    const void *data[DNN_ARGS_MAX];
    int n = 0;
    data[n++] = a->x;
    data[n++] = plan->forward_weights;
    if (plan->has_bias) data[n++] = plan->bias;
    data[n++] = a->y;
    if (!linear && node->residual >= 0) data[n++] = a->r;
    if (!linear && node->carry >= 0) data[n++] = plan->carry;
    data[n++] = a->scratch;
    TN_TRY(tn_dnn_run(&plan->dnn.forward, a->worker, data));
    if (linear) linear_epilogue(plan, a);
    return TN_OK;
}

static void column_sums(const float *dz, int rows, int columns, float *out) {
    memset(out, 0, (size_t)columns * sizeof *out);
    for (int i = 0; i < rows; i++) tn_cpu_add(out, dz + (size_t)i * (size_t)columns, (size_t)columns);
}

static tn_status conv_backward(tn_plan *head, const tn_args *a) {
    conv_plan *plan = (conv_plan *)(void *)head;
    const tn_node *node = head->node;
    float *grad = a->grad + plan->dnn.grad_floats;
    tn_cpu_sums sums = {0, 0, true};
    if (a->dy_count > 1 || node->relu || node->carry >= 0 || node->term_count > 0)
        sums = tn_cpu_activation_backward(plan->chunk_floats, a->y, node->relu,
                                          node->carry >= 0 ? *plan->carry : 0.0f, a->dy, a->dy_count, a->dz);
    else if (node->kind == TN_NODE_LINEAR)
        sums.finite = tn_cpu_finite(a->y, plan->chunk_floats);
    if (!sums.finite) *a->nonfinite = 1;
    if (node->bias >= 0) {
        column_sums(a->dz, plan->chunk_rows, plan->outputs, grad);
        grad += plan->outputs;
    }
    grad[0] = (float)sums.dz;
    grad[1] = (float)sums.dy;
    const void *weights[] = {a->x, a->dz, a->grad, a->scratch};
    if (!is_fixed(plan)) TN_TRY(tn_dnn_run(&plan->dnn.backward_weights, a->worker, weights));
    if (!a->dx) return TN_OK;
    bool same = !plan->dnn.pack_backward.primitive;
    const void *data[] = {a->dz, same ? plan->forward_weights : plan->backward_weights, a->dx, a->scratch};
    return tn_dnn_run(&plan->dnn.backward_data, a->worker, data);
}

/* (s W, or s W + I) to where forward reads it, and to where backward does if that is elsewhere. */
static tn_status pack_weights(conv_plan *plan, int worker, const float *weights, float s) {
    const tn_node *node = plan->head.node;
    bool plain = !plan->dnn.pack_forward.primitive;
    if (plain || s != 1.0f || tn_node_adds_own_input(node)) {
        float *scaled = plain ? plan->forward_weights : plan->cpu->weight_scratch[worker];
        tn_cpu_scale(scaled, weights, s, weight_of(plan)->count);
        for (int j = 0; tn_node_adds_own_input(node) && j < plan->outputs; j++)
            scaled[(size_t)j * (size_t)(plan->outputs + 1)] += 1.0f;
        weights = scaled;
    }
    const void *forward[] = {weights, plan->forward_weights, NULL};
    if (!plain) TN_TRY(tn_dnn_run(&plan->dnn.pack_forward, worker, forward));
    if (!plan->dnn.pack_backward.primitive) return TN_OK;
    const void *backward[] = {weights, plan->backward_weights, NULL};
    return tn_dnn_run(&plan->dnn.pack_backward, worker, backward);
}

static tn_status conv_pack(tn_plan *head, int worker, const tn_flat *flat, int *nonfinite) {
    conv_plan *plan = (conv_plan *)(void *)head;
    const tn_node *node = head->node;
    const tn_param *params = head->model->params, *w = weight_of(plan);
    const float *values = flat->values, *weights = values + w->offset;
    float s = tn_node_scale(node, head->model, values), c = 0.0f;
    for (int i = 0; i < node->term_count; i++) {
        const tn_term *t = &node->terms[i];
        c += t->factor * (t->scaled ? s : 1.0f) * values[params[t->param].offset];
    }
    for (int j = 0; j < plan->outputs; j++)
        plan->bias[j] = c + (node->bias >= 0 ? values[params[node->bias].offset + (size_t)j] : 0.0f);
    *plan->carry = node->carry >= 0 ? values[params[node->carry].offset] : 0.0f;
    if (!tn_cpu_finite(weights, w->count) || !tn_cpu_finite(&s, 1) || !tn_cpu_finite(plan->carry, 1) ||
        !tn_cpu_finite(plan->bias, (size_t)plan->outputs))
        *nonfinite = 1;
    return pack_weights(plan, worker, weights, s);
}

/* The sum of the halves of a gradient (the second may be missing) becomes dW = s G; *product is <G, W> where
 * s is learned. A few passes over pieces that stay in the first cache. */
static tn_status collect_weights(conv_plan *plan, int worker, float *grad, const float *other,
                                 const tn_flat *flat, float *product, bool *finite) {
    const tn_node *node = plan->head.node;
    const tn_param *w = weight_of(plan);
    float *to = flat->grads + w->offset;
    float s = tn_node_scale(node, plan->head.model, flat->values);
    double sum = 0;
    if (plan->dnn.unpack.primitive) {
        if (other) tn_cpu_add(grad, other, plan->dnn.grad_floats);
        const void *data[] = {grad, to, NULL};
        TN_TRY(tn_dnn_run(&plan->dnn.unpack, worker, data));
        grad = to, other = NULL;
    }
    for (size_t at = 0; at < w->count; at += PIECE) {
        size_t n = w->count - at < PIECE ? w->count - at : PIECE;
        if (other)
            tn_cpu_sum(to + at, grad + at, other + at, n);
        else if (grad != to)
            memcpy(to + at, grad + at, n * sizeof *to);
        if (node->scale.param >= 0) sum += tn_cpu_dot(to + at, flat->values + w->offset + at, n);
        if (s != 1.0f) tn_cpu_scale(to + at, to + at, s, n);
        *finite &= tn_cpu_finite(to + at, n);
    }
    *product = (float)sum;
    return TN_OK;
}

static tn_status conv_collect(tn_plan *head, int worker, float *grad, const float *other, const tn_flat *flat,
                              int *nonfinite) {
    conv_plan *plan = (conv_plan *)(void *)head;
    const tn_node *node = head->node;
    float *sums = flat->sums + 3 * (node - head->model->nodes), *rest = grad + plan->dnn.grad_floats;
    size_t rest_floats = head->grad_floats - plan->dnn.grad_floats;
    bool finite = true;
    if (!is_fixed(plan)) TN_TRY(collect_weights(plan, worker, grad, other, flat, &sums[2], &finite));
    if (other) tn_cpu_add(rest, other + plan->dnn.grad_floats, rest_floats);
    if (node->bias >= 0)
        memcpy(flat->grads + head->model->params[node->bias].offset, rest,
               (size_t)plan->outputs * sizeof(float));
    sums[0] = rest[rest_floats - 2];
    sums[1] = rest[rest_floats - 1];
    if (!finite || !tn_cpu_finite(rest, rest_floats) || !tn_cpu_finite(sums, 3)) *nonfinite = 1;
    return TN_OK;
}

const tn_node_ops tn_cpu_conv = {.plan = conv_plan_make,
                                 .free = conv_free,
                                 .forward = conv_forward,
                                 .backward = conv_backward,
                                 .pack = conv_pack,
                                 .collect = conv_collect};
