/* Nodes without weights on CUDA: subsample, append, maxpool, avgpool, loss. */
#include <string.h>

#include "backend/cuda_device.h"
#include "base/memory.h"

typedef struct shape_plan {
    tn_cuda_plan base;
    tn_conv_shape shape;
    bool needs_sums;
    uint8_t *winners; /* maxpool: [chunks][elements of y] */
    size_t elements;
} shape_plan;

static void shape_free(tn_plan *head) {
    shape_plan *plan = (shape_plan *)(void *)head;
    if (!plan) return;
    tn_cuda_release(&plan->base.cuda->head, plan->winners);
    tn_free(plan);
}

/* A shortcut makes its sums while it makes dx, others where parts of dL/dy are added. */
static bool sums_with_dx(const shape_plan *plan) {
    const tn_node *node = plan->base.head.node;
    return (node->kind == TN_NODE_SUBSAMPLE || node->kind == TN_NODE_APPEND) && node->input > 0;
}

static tn_merge_item sums_of(const shape_plan *plan, const tn_flat *flat) {
    return tn_cuda_sums_item(&plan->base.head, flat,
                             sums_with_dx(plan) ? tn_shortcut_sum_parts(&plan->shape)
                                                : tn_epilogue_sum_parts(plan->elements));
}

static tn_status shape_plan_make(tn_backend *backend, const tn_model *model, int index, int chunk_rows,
                                 int chunks, bool training, tn_plan **out) {
    shape_plan *plan;
    const tn_node *node = &model->nodes[index];
    TN_TRY(tn_cuda_plan_make(backend, model, index, chunk_rows, training, sizeof *plan, &plan));
    const tn_cuda_plan *b = &plan->base;
    plan->shape = (tn_conv_shape){.rows = chunk_rows,
                                  .in_height = b->in.height,
                                  .in_width = b->in.width,
                                  .in_channels = b->in.channels,
                                  .out_height = b->out.height,
                                  .out_width = b->out.width,
                                  .out_channels = b->out.channels,
                                  .kernel = node->kernel,
                                  .stride = node->stride,
                                  .padding = node->padding};
    plan->needs_sums = node->term_count > 0 || node->carry >= 0;
    plan->elements = (size_t)chunk_rows * tn_cuda_floats(b->out);
    if (training && plan->needs_sums) tn_cuda_expect_parts(&plan->base.need, sums_of(plan, NULL));
    memcpy(plan->base.head.implementation[0], "fused", 6);
    tn_status status = TN_OK;
    if (node->kind == TN_NODE_MAXPOOL && training) {
        plan->base.head.bytes = (size_t)chunks * plan->elements;
        status = tn_cuda_alloc(backend, &plan->winners, plan->base.head.bytes, "winners of a max pool");
    }
    if (status != TN_OK) {
        shape_free(&plan->base.head);
        return tn_fail_prefix(status, "layer %s", node->name);
    }
    *out = &plan->base.head;
    return TN_OK;
}

/* dL/dy in one buffer, and the node's own sums unless they are made with dx. */
static tn_status output_gradient(const shape_plan *plan, const tn_args *a, const float **dy) {
    tn_cuda *cuda = plan->base.cuda;
    double *sums = NULL;
    *dy = a->dy[0];
    const bool here = plan->needs_sums && !sums_with_dx(plan);
    TN_TRY(tn_cuda_open_parts(cuda, a, &plan->base.need));
    if (a->dy_count == 1 && !here) return TN_OK;
    *dy = a->dz;
    if (here) sums = tn_cuda_leave_parts(cuda, sums_of(plan, a->flat));
    TN_CUDA(tn_launch_epilogue_backward(plan->elements, plan->base.y_store, tn_cuda_parts(a), NULL, a->dz,
                                        sums, NULL, cuda->stream));
    return TN_OK;
}

/* ---- subsample, append ---- */

static tn_status shortcut_forward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    tn_cuda *cuda = plan->base.cuda;
    TN_CUDA(tn_launch_shortcut_forward(&plan->shape, plan->base.x_store, a->x, tn_cuda_c(cuda, head),
                                       plan->base.y_store, a->y, cuda->stream));
    return TN_OK;
}

static tn_status shortcut_backward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    const float *dy;
    double *sums = NULL;
    TN_TRY(output_gradient(plan, a, &dy));
    if (!a->dx) return TN_OK;
    if (plan->needs_sums) sums = tn_cuda_leave_parts(plan->base.cuda, sums_of(plan, a->flat));
    TN_CUDA(tn_launch_shortcut_backward(&plan->shape, plan->base.y_store, dy, plan->base.x_store, a->dx, sums,
                                        plan->base.cuda->stream));
    return TN_OK;
}

/* ---- pools ---- */

static uint8_t *winners_of(const shape_plan *plan, const tn_args *a) {
    return plan->winners ? plan->winners + (size_t)a->chunk * plan->elements : NULL;
}

static tn_status maxpool_forward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    TN_CUDA(tn_launch_maxpool_forward(&plan->shape, plan->base.x_store, a->x, a->y, winners_of(plan, a),
                                      plan->base.cuda->stream));
    return TN_OK;
}

static tn_status maxpool_backward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    const float *dy;
    TN_TRY(output_gradient(plan, a, &dy));
    if (a->dx)
        TN_CUDA(tn_launch_maxpool_backward(&plan->shape, plan->base.y_store, dy, winners_of(plan, a), a->dx,
                                           plan->base.cuda->stream));
    return TN_OK;
}

static tn_status avgpool_forward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    tn_cuda *cuda = plan->base.cuda;
    TN_CUDA(tn_launch_avgpool_forward(plan->base.rows, plan->base.in.height * plan->base.in.width,
                                      plan->base.in.channels, plan->base.x_store, a->x, tn_cuda_d(cuda, head),
                                      plan->base.y_store, a->y, a->nonfinite, cuda->stream));
    return TN_OK;
}

static tn_status avgpool_backward(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    const float *dy;
    TN_TRY(output_gradient(plan, a, &dy));
    if (a->dx)
        TN_CUDA(tn_launch_avgpool_backward(plan->base.rows, plan->base.in.height * plan->base.in.width,
                                           plan->base.in.channels, plan->base.y_store, dy, plan->base.x_store,
                                           a->dx, plan->base.cuda->stream));
    return TN_OK;
}

/* ---- loss ---- */

static tn_status loss_rows(tn_plan *head, const tn_args *a) {
    shape_plan *plan = (shape_plan *)(void *)head;
    tn_kernel_loss kind = head->node->loss == TN_LOSS_SQUARED ? TN_KERNEL_SQUARED : TN_KERNEL_CROSS_ENTROPY;
    TN_CUDA(tn_launch_loss(kind, plan->base.rows, plan->base.in.channels, plan->base.x_store, a->x,
                           a->targets, a->dx ? a->row_weights : NULL, a->labels, a->row_loss,
                           a->labels ? a->row_rank : NULL, a->dx, a->nonfinite, plan->base.cuda->stream));
    return TN_OK;
}

const tn_node_ops tn_cuda_subsample = {
    .plan = shape_plan_make, .free = shape_free, .forward = shortcut_forward, .backward = shortcut_backward};
const tn_node_ops tn_cuda_append = {
    .plan = shape_plan_make, .free = shape_free, .forward = shortcut_forward, .backward = shortcut_backward};
const tn_node_ops tn_cuda_maxpool = {
    .plan = shape_plan_make, .free = shape_free, .forward = maxpool_forward, .backward = maxpool_backward};
const tn_node_ops tn_cuda_avgpool = {
    .plan = shape_plan_make, .free = shape_free, .forward = avgpool_forward, .backward = avgpool_backward};
const tn_node_ops tn_cuda_loss = {
    .plan = shape_plan_make, .free = shape_free, .forward = loss_rows, .backward = loss_rows};
