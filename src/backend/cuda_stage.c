/* Stages on CUDA: successive residual blocks without norms that run as one kernel (kernels/stage.cu), in
 * bf16. Which nodes are one, cuda_plan.c decides. */
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
    tn_cuda_need need;
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

static tn_status pack_conv(const stage_plan *plan, tn_plan *conv, int layout, void *all, int index) {
    tn_pack_item item = {.layout = layout,
                         .store = TN_STORE_BF16,
                         .out = plan->shape.channels,
                         .in = plan->shape.channels,
                         .taps = 9};
    void *to = (char *)all + (size_t)index * tn_pack_count(&item) * tn_cuda_store_bytes(TN_STORE_BF16);
    return tn_cuda_plan_pack((tn_cuda_plan *)(void *)conv, item, conv->node->weight, true, to);
}

/* What backward leaves in parts: gradients of the weights, and sums of all nodes. */
static tn_merge_item weights_item(const stage_plan *plan, const tn_flat *flat) {
    const tn_model *m = plan->head.model;
    return (tn_merge_item){.to = flat ? flat->grads + m->params[plan->head.node->weight].offset : NULL,
                           .count = tn_stage_weight_parts(&plan->shape),
                           .groups = 2 * plan->shape.blocks,
                           .pairs = plan->shape.channels * plan->shape.channels,
                           .taps = 9};
}

static tn_merge_item sums_item(const stage_plan *plan, const tn_flat *flat) {
    tn_merge_item item = tn_cuda_sums_item(&plan->head, flat, tn_stage_sum_parts(&plan->shape));
    item.groups = 4 * plan->shape.blocks;
    return item;
}

static tn_status allocate(stage_plan *plan, int chunks, tn_plan *const *plans) {
    tn_backend *backend = &plan->cuda->head;
    const int first = (int)(plan->head.node - plan->head.model->nodes), convs = 2 * plan->shape.blocks;
    const size_t weights = (size_t)convs * plan->head.model->params[plan->head.node->weight].count *
                           tn_cuda_store_bytes(TN_STORE_BF16);
    TN_TRY(tn_cuda_alloc(backend, &plan->forward_weights, weights, "packed weights"));
    plan->head.bytes = weights;
    for (int i = 0; i < convs; i++) {
        tn_cuda_conv_yield(plans[first + i], "stage");
        TN_TRY(pack_conv(plan, plans[first + i], TN_PACK_STAGE_FORWARD, plan->forward_weights, i));
    }
    if (!plan->training) return TN_OK;
    TN_TRY(tn_cuda_alloc(backend, &plan->backward_weights, weights, "packed weights"));
    for (int i = 0; i < convs; i++)
        TN_TRY(pack_conv(plan, plans[first + i], TN_PACK_STAGE_BACKWARD, plan->backward_weights, i));
    plan->mask_bytes = (size_t)convs * (size_t)plan->shape.rows * (size_t)plan->shape.height *
                       (size_t)plan->shape.width * (size_t)plan->shape.channels / 8;
    /* Masks of every chunk are read as vectors. */
    plan->mask_bytes = (plan->mask_bytes + 15) / 16 * 16;
    plan->head.bytes += weights + (size_t)chunks * plan->mask_bytes;
    plan->head.scratch_bytes = tn_stage_workspace(&plan->shape);
    tn_cuda_expect_parts(&plan->need, weights_item(plan, NULL));
    tn_cuda_expect_parts(&plan->need, sums_item(plan, NULL));
    ((tn_cuda_plan *)(void *)plans[first])->need = plan->need; /* which is where it is counted */
    return tn_cuda_alloc(backend, &plan->masks, (size_t)chunks * plan->mask_bytes, "masks");
}

tn_status tn_cuda_stage_plan(tn_backend *backend, const tn_model *model, int node, int count, int chunks,
                             bool training, tn_plan *const *plans, tn_plan **out) {
    stage_plan *plan;
    const tn_cuda_plan *first = (const tn_cuda_plan *)(const void *)plans[node];
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "stage plan"));
    *plan = (stage_plan){.head = {.model = model, .node = &model->nodes[node]},
                         .cuda = tn_cuda_of(backend),
                         .shape =
                             tn_cuda_stage_shape(first->cuda->precision, model, node, first->rows, count / 2),
                         .training = training};
    tn_status status = allocate(plan, chunks, plans);
    if (status != TN_OK) {
        stage_free(&plan->head);
        return tn_fail_prefix(status, "stage of layer %s", model->nodes[node].name);
    }
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

static tn_status stage_backward(tn_plan *head, const tn_args *a) {
    const stage_plan *plan = (const stage_plan *)(const void *)head;
    TN_TRY(tn_cuda_open_parts(plan->cuda, a, &plan->need));
    tn_stage_gradient gradient = {
        .x = a->x,
        .inner = a->inner,
        .masks = (const uint32_t *)(const void *)(plan->masks + (size_t)a->chunk * plan->mask_bytes),
        .weights = plan->backward_weights,
        .dy = tn_cuda_parts(a),
        .dx = a->dx,
        .weight_parts = tn_cuda_leave_parts(plan->cuda, weights_item(plan, a->flat)),
        .sum_parts = tn_cuda_leave_parts(plan->cuda, sums_item(plan, a->flat))};
    TN_CUDA(tn_launch_stage_backward(&plan->shape, gradient, a->scratch, plan->cuda->stream));
    return TN_OK;
}

const tn_node_ops tn_cuda_stage = {.free = stage_free, .forward = stage_forward, .backward = stage_backward};
