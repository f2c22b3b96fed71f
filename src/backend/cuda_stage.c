/* Stages on CUDA: successive residual blocks without norms that run as one kernel (kernels/stage.cu), in
 * bf16. Which nodes are one, cuda_plan.c decides; all but the shortcut of an entry, which comes first, are
 * convs. */
#include <stdio.h>

#include "backend/cuda_device.h"
#include "base/memory.h"

typedef struct stage_plan {
    tn_plan head;
    tn_cuda *cuda;
    tn_stage_shape shape;
    bool training;
    void *forward_weights, *backward_weights; /* [convs], one behind the other */
    char *masks;                              /* [chunks][convs] */
    size_t mask_bytes;                        /* of all convs */
    tn_cuda_need need;                        /* of parts, which alloc_parts finds with the first conv */
    bool
        defers; /* leaves its weight gradients to the launch of the stage before it, whose backward is next */
    size_t dz_at; /* in the scratch memory, bytes */
} stage_plan;

/* ---- planning ---- */

static void stage_free(tn_plan *head) {
    stage_plan *plan = (stage_plan *)(void *)head;
    if (!plan) return;
    tn_cuda_release(&plan->cuda->head, plan->forward_weights);
    tn_cuda_release(&plan->cuda->head, plan->backward_weights);
    tn_cuda_release(&plan->cuda->head, plan->masks);
    tn_free(plan);
}

/* The node's own plan from then on only packs. */
static void yield_node(tn_plan *plan) {
    if (plan->node->kind == TN_NODE_CONV) {
        tn_cuda_conv_yield(plan, "stage");
        return;
    }
    plan->scratch_bytes = 0;
    snprintf(plan->implementation[0], sizeof plan->implementation[0], "stage");
}

static int first_conv(const stage_plan *plan) {
    return (int)(plan->head.node - plan->head.model->nodes) + (plan->shape.in_height > 0 ? 2 : 0);
}

static const tn_param *weight_of(const stage_plan *plan, int conv) {
    const tn_model *m = plan->head.model;
    return &m->params[m->nodes[first_conv(plan) + conv].weight];
}

/* Packed copies of all convs' weights, one behind the other. */
static tn_status pack_convs(stage_plan *plan, tn_plan *const *plans, int layout, void **memory) {
    const int convs = 2 * plan->shape.blocks;
    const tn_param *last = weight_of(plan, convs - 1);
    const size_t bytes =
        (last->offset + last->count - weight_of(plan, 0)->offset) * tn_cuda_store_bytes(TN_STORE_BF16);
    TN_TRY(tn_cuda_alloc(&plan->cuda->head, memory, bytes, "packed weights"));
    plan->head.bytes += bytes;
    char *to = *memory;
    for (int i = 0; i < convs; i++) {
        tn_plan *conv = plans[first_conv(plan) + i];
        tn_pack_item item = {.layout = layout,
                             .store = TN_STORE_BF16,
                             .out = weight_of(plan, i)->dims[0],
                             .in = weight_of(plan, i)->dims[1],
                             .taps = 9};
        TN_TRY(tn_cuda_plan_pack((tn_cuda_plan *)(void *)conv, item, conv->node->weight, true, to));
        to += tn_pack_count(&item) * tn_cuda_store_bytes(TN_STORE_BF16);
    }
    return TN_OK;
}

/* ---- what is left in parts ---- */

/* Weight gradients of all convs but the first of an entry, ... */
static tn_merge_item weights_item(const stage_plan *plan, const tn_flat *flat) {
    const tn_stage_shape *s = &plan->shape;
    const int first = s->in_height > 0;
    return (tn_merge_item){.to = flat ? flat->grads + weight_of(plan, first)->offset : NULL,
                           .count = tn_stage_weight_parts(s),
                           .groups = 2 * s->blocks - first,
                           .pairs = s->channels * s->channels,
                           .taps = 9};
}

/* ... and of that; ... */
static tn_merge_item entry_item(const stage_plan *plan, const tn_flat *flat) {
    const tn_stage_shape *s = &plan->shape;
    return (tn_merge_item){.to = flat ? flat->grads + weight_of(plan, 0)->offset : NULL,
                           .count = tn_stage_weight_parts(s),
                           .groups = 1,
                           .pairs = s->channels * s->channels / 2,
                           .taps = 9};
}

/* ... sums of the convs, and of the shortcut. */
static tn_merge_item sums_item(const stage_plan *plan, const tn_flat *flat, bool shortcut) {
    const int node = shortcut ? (int)(plan->head.node - plan->head.model->nodes) : first_conv(plan);
    return (tn_merge_item){.to = flat ? flat->sums + 3 * (size_t)node : NULL,
                           .count = tn_stage_sum_parts(&plan->shape),
                           .groups = shortcut ? 2 : 4 * plan->shape.blocks};
}

static void expect_parts(stage_plan *plan, tn_plan *conv) {
    tn_cuda_expect_parts(&plan->need, weights_item(plan, NULL));
    tn_cuda_expect_parts(&plan->need, sums_item(plan, NULL, false));
    if (plan->shape.in_height > 0) {
        tn_cuda_expect_parts(&plan->need, entry_item(plan, NULL));
        tn_cuda_expect_parts(&plan->need, sums_item(plan, NULL, true));
    }
    ((tn_cuda_plan *)(void *)conv)->need = plan->need;
}

/* ---- plans ---- */

static tn_status allocate(stage_plan *plan, int nodes, int chunks, tn_plan *const *plans) {
    const tn_stage_shape *s = &plan->shape;
    for (int i = 0; i < nodes; i++) yield_node(plans[plan->head.node - plan->head.model->nodes + i]);
    TN_TRY(pack_convs(plan, plans, TN_PACK_STAGE_FORWARD, &plan->forward_weights));
    if (!plan->training) return TN_OK;
    TN_TRY(pack_convs(plan, plans, TN_PACK_STAGE_BACKWARD, &plan->backward_weights));
    const size_t tensor = (size_t)s->rows * (size_t)s->height * (size_t)s->width * (size_t)s->channels,
                 stream = tn_cuda_store_bytes(s->wide ? TN_STORE_F32 : TN_STORE_BF16);
    plan->head.inner_bytes =
        tensor * ((size_t)s->blocks * tn_cuda_store_bytes(TN_STORE_BF16) + (size_t)(s->blocks - 1) * stream);
    /* Masks of every chunk are read as vectors. */
    plan->mask_bytes = (2 * (size_t)s->blocks * tensor / 8 + 15) / 16 * 16;
    plan->head.bytes += (size_t)chunks * plan->mask_bytes;
    plan->head.scratch_bytes = tn_stage_dz_bytes(s);
    expect_parts(plan, plans[first_conv(plan)]);
    return tn_cuda_alloc(&plan->cuda->head, &plan->masks, (size_t)chunks * plan->mask_bytes, "masks");
}

/* Where two stages follow each other whose weight gradients are a launch of their own, one is enough: it
 * comes with the backward of the earlier one, in the scratch memory of which dz of the later one still
 * stands. */
static void pair(stage_plan *plan, const tn_cuda_plan *before) {
    stage_plan *earlier = (stage_plan *)(void *)before->span;
    if (!plan->training || !earlier || earlier->defers || earlier->shape.channels == 16 ||
        plan->shape.channels == 16 || earlier->shape.wide != plan->shape.wide)
        return;
    plan->defers = true;
    earlier->dz_at = (plan->head.scratch_bytes + 255) / 256 * 256;
    earlier->head.scratch_bytes += earlier->dz_at;
}

tn_status tn_cuda_stage_plan(tn_backend *backend, const tn_model *model, int node, int count, int chunks,
                             bool training, tn_plan *const *plans, tn_plan **out) {
    stage_plan *plan;
    const tn_cuda_plan *first = (const tn_cuda_plan *)(const void *)plans[node];
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "stage plan"));
    *plan =
        (stage_plan){.head = {.model = model, .node = &model->nodes[node]},
                     .cuda = tn_cuda_of(backend),
                     .shape = tn_cuda_stage_shape(first->cuda->precision, model, node, first->rows, count),
                     .training = training};
    tn_status status = allocate(plan, count, chunks, plans);
    if (status != TN_OK) {
        stage_free(&plan->head);
        return tn_fail_prefix(status, "stage of layer %s", model->nodes[node].name);
    }
    if (node > 0) pair(plan, (const tn_cuda_plan *)(const void *)plans[node - 1]);
    ((tn_cuda_plan *)(void *)plans[node + count - 1])->span = &plan->head;
    *out = &plan->head;
    return TN_OK;
}

/* ---- work ---- */

static tn_status stage_forward(tn_plan *head, const tn_args *a) {
    const stage_plan *plan = (const stage_plan *)(const void *)head;
    const size_t node = (size_t)(head->node - head->model->nodes);
    void *masks = a->inner ? plan->masks + (size_t)a->chunk * plan->mask_bytes : NULL;
    TN_CUDA(tn_launch_stage_forward(&plan->shape, a->x, plan->forward_weights, plan->cuda->scalars + 4 * node,
                                    a->inner, masks, a->y, a->nonfinite, plan->cuda->stream));
    return TN_OK;
}

tn_status tn_cuda_stage_flush(tn_cuda *cuda) {
    const int count = cuda->pending_count;
    cuda->pending_count = 0;
    if (count > 0) TN_CUDA(tn_launch_stage_products(count, cuda->pending, cuda->stream));
    return TN_OK;
}

/* Weight gradients of more than 16 channels. */
static tn_status multiply(const stage_plan *plan, const tn_args *a, const void *dz) {
    tn_cuda *cuda = plan->cuda;
    tn_stage_products products = {.shape = plan->shape,
                                  .x = a->x,
                                  .inner = a->inner,
                                  .dz = dz,
                                  .weight_parts = tn_cuda_leave_parts(cuda, weights_item(plan, a->flat))};
    if (plan->shape.in_height > 0)
        products.entry_parts = tn_cuda_leave_parts(cuda, entry_item(plan, a->flat));
    TN_ASSERT(cuda->pending_count < TN_STAGE_PRODUCTS);
    cuda->pending[cuda->pending_count++] = products;
    return plan->defers ? TN_OK : tn_cuda_stage_flush(cuda);
}

static tn_status stage_backward(tn_plan *head, const tn_args *a) {
    const stage_plan *plan = (const stage_plan *)(const void *)head;
    const bool inside = plan->shape.channels == 16; /* where weight gradients are made with the others */
    tn_cuda *cuda = plan->cuda;
    TN_TRY(tn_cuda_open_parts(cuda, a, &plan->need));
    tn_stage_gradient gradient = {
        .x = a->x,
        .inner = a->inner,
        .masks = (const uint32_t *)(const void *)(plan->masks + (size_t)a->chunk * plan->mask_bytes),
        .weights = plan->backward_weights,
        .dy = tn_cuda_parts(a),
        .dx = a->dx,
        .dz = (char *)a->scratch + plan->dz_at,
        .sum_parts = tn_cuda_leave_parts(cuda, sums_item(plan, a->flat, false))};
    if (plan->shape.in_height > 0)
        gradient.shortcut_parts = tn_cuda_leave_parts(cuda, sums_item(plan, a->flat, true));
    if (inside) gradient.weight_parts = tn_cuda_leave_parts(cuda, weights_item(plan, a->flat));
    TN_CUDA(tn_launch_stage_backward(&plan->shape, gradient, cuda->stream));
    return inside ? TN_OK : multiply(plan, a, gradient.dz);
}

const tn_node_ops tn_cuda_stage = {.free = stage_free, .forward = stage_forward, .backward = stage_backward};
