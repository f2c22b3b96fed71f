/* The end of a network as one span on CUDA: average pool, linear layer and loss (kernels/head.cu), in every
 * precision. Which heads are one, cuda_plan.c decides. */
#include <stdio.h>

#include "backend/cuda_device.h"
#include "base/memory.h"

typedef struct head_plan {
    tn_plan head; /* of the pool */
    const tn_plan *linear, *loss;
    tn_cuda *cuda;
    tn_head_shape shape;
    tn_storage x_store;
    float *weights, *bias;
} head_plan;

static void head_free(tn_plan *head) {
    head_plan *plan = (head_plan *)(void *)head;
    if (!plan) return;
    tn_cuda_release(&plan->cuda->head, plan->weights);
    tn_cuda_release(&plan->cuda->head, plan->bias);
    tn_free(plan);
}

/* A copy of a parameter of the linear layer, whose plan packs it. */
static tn_status pack(head_plan *plan, tn_plan *linear, int param, int out, int in, bool scaled, float **to) {
    tn_pack_item item = {
        .layout = TN_PACK_GEMM, .store = TN_STORE_F32, .out = out, .in = in, .taps = 1, .ld = in};
    const size_t bytes = (size_t)out * (size_t)in * sizeof(float);
    TN_TRY(tn_cuda_alloc(&plan->cuda->head, to, bytes, "packed weights"));
    plan->head.bytes += bytes;
    return tn_cuda_plan_pack((tn_cuda_plan *)(void *)linear, item, param, scaled, *to);
}

static tn_status allocate(head_plan *plan, tn_plan *linear) {
    const tn_node *node = linear->node;
    tn_cuda_conv_yield(linear, "head");
    TN_TRY(pack(plan, linear, node->weight, plan->shape.classes, plan->shape.channels, true, &plan->weights));
    if (node->bias < 0) return TN_OK;
    return pack(plan, linear, node->bias, 1, plan->shape.classes, false, &plan->bias);
}

tn_status tn_cuda_head_plan(tn_backend *backend, const tn_model *model, int node, bool training,
                            tn_plan *const *plans, tn_plan **out) {
    head_plan *plan;
    const tn_cuda_plan *pool = (const tn_cuda_plan *)(const void *)plans[node];
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "head plan"));
    *plan = (head_plan){.head = {.model = model, .node = &model->nodes[node]},
                        .linear = plans[node + 1],
                        .loss = plans[node + 2],
                        .cuda = tn_cuda_of(backend),
                        .shape = tn_cuda_head_shape(model, node, pool->rows),
                        .x_store = pool->x_store};
    tn_status status = allocate(plan, plans[node + 1]);
    if (status != TN_OK) {
        head_free(&plan->head);
        return tn_fail_prefix(status, "head of layer %s", model->nodes[node].name);
    }
    for (int i = 0; i < 3; i += 2)
        snprintf(plans[node + i]->implementation[0], sizeof plans[node + i]->implementation[0], "head");
    if (training) plan->head.scratch_bytes = tn_head_workspace(&plan->shape);
    *out = &plan->head;
    return TN_OK;
}

static tn_status run(const head_plan *plan, const tn_args *a) {
    const tn_head head = {.kind = plan->loss->node->loss == TN_LOSS_SQUARED ? TN_KERNEL_SQUARED
                                                                            : TN_KERNEL_CROSS_ENTROPY,
                          .weights = plan->weights,
                          .bias = plan->bias,
                          .c = tn_cuda_c(plan->cuda, plan->linear),
                          .d = tn_cuda_d(plan->cuda, &plan->head),
                          .targets = a->targets,
                          .row_weights = a->row_weights,
                          .labels = a->labels,
                          .logits = a->y,
                          .row_loss = a->row_loss,
                          .row_rank = a->row_rank,
                          .nonfinite = a->nonfinite};
    TN_CUDA(tn_launch_head(&plan->shape, &head, plan->x_store, a->x, a->dx, a->dx ? a->scratch : NULL,
                           plan->cuda->stream));
    return TN_OK;
}

static tn_status head_forward(tn_plan *head, const tn_args *a) {
    return run((const head_plan *)(const void *)head, a);
}

/* Forward too, as of a loss by itself. */
static tn_status head_backward(tn_plan *head, const tn_args *a) {
    const head_plan *plan = (const head_plan *)(const void *)head;
    const tn_node *linear = plan->linear->node;
    const tn_param *params = head->model->params;
    float *sums = a->flat->sums + 3 * (head->node - head->model->nodes);
    const tn_head_gradient gradient = {
        .weights = a->flat->grads + params[linear->weight].offset,
        .bias = linear->bias < 0 ? NULL : a->flat->grads + params[linear->bias].offset,
        .pool_sums = sums,
        .sums = sums + 3,
        .add = a->chunk > 0};
    TN_TRY(run(plan, a));
    TN_CUDA(tn_launch_head_gradients(&plan->shape, a->scratch, gradient, plan->cuda->stream));
    return TN_OK;
}

const tn_node_ops tn_cuda_head = {.free = head_free, .forward = head_forward, .backward = head_backward};
