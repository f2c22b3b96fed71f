/* Spans on CUDA: stages (cuda_stage.c) and the head (cuda_head.c), which begins with an average pool. */
#include "backend/cuda_device.h"

static const tn_node_ops *ops_of(const tn_node *first) {
    return first->kind == TN_NODE_AVGPOOL ? &tn_cuda_head : &tn_cuda_stage;
}

int tn_cuda_span(const tn_backend *backend, const tn_model *model, int node, int chunk_rows) {
    const tn_cuda *cuda = (const tn_cuda *)(const void *)backend;
    const tn_cuda_choice choice = tn_cuda_choose(&cuda->arch, cuda->precision, model, node, chunk_rows);
    return tn_cuda_choice_span(&choice);
}

tn_status tn_cuda_span_plan(tn_backend *backend, const tn_model *model, int node, int count, int chunks,
                            bool training, tn_plan *const *plans, tn_plan **out) {
    if (ops_of(&model->nodes[node]) == &tn_cuda_head)
        return tn_cuda_head_plan(backend, model, node, training, plans, out);
    return tn_cuda_stage_plan(backend, model, node, count, chunks, training, plans, out);
}

static void span_free(tn_plan *plan) {
    if (plan) ops_of(plan->node)->free(plan);
}

static tn_status span_forward(tn_plan *plan, const tn_args *args) {
    return ops_of(plan->node)->forward(plan, args);
}

static tn_status span_backward(tn_plan *plan, const tn_args *args) {
    return ops_of(plan->node)->backward(plan, args);
}

const tn_node_ops tn_cuda_spans = {.free = span_free, .forward = span_forward, .backward = span_backward};
