/* Batch normalisation on CUDA. The whole batch is one chunk. */
#include <string.h>

#include "backend/cuda_device.h"
#include "base/memory.h"

typedef struct norm_plan {
    tn_cuda_plan base;
    int channels;
    double *moments; /* [2][channels] */
    float *floats;   /* the vectors below */
    tn_norm_vectors vectors;
    float *slopes; /* [2][channels] */
    uint32_t *mask;
} norm_plan;

static void norm_free(tn_plan *head) {
    norm_plan *plan = (norm_plan *)(void *)head;
    if (!plan) return;
    tn_backend *backend = &plan->base.cuda->head;
    tn_cuda_release(backend, plan->moments);
    tn_cuda_release(backend, plan->floats);
    tn_cuda_release(backend, plan->mask);
    tn_free(plan);
}

static tn_status allocate(norm_plan *plan) {
    tn_backend *backend = &plan->base.cuda->head;
    size_t c = (size_t)plan->channels, elements = tn_cuda_floats(plan->base.out) * (size_t)plan->base.rows,
           mask_bytes = (elements + 31) / 32 * sizeof(uint32_t);
    TN_TRY(tn_cuda_alloc(backend, &plan->moments, 2 * c * sizeof(double), "batch statistics"));
    TN_TRY(tn_cuda_alloc(backend, &plan->floats, 6 * c * sizeof(float), "batch statistics"));
    float *f = plan->floats;
    plan->vectors = (tn_norm_vectors){.mean = f, .inv_std = f + c, .factor = f + 2 * c, .shift = f + 3 * c};
    plan->slopes = f + 4 * c;
    plan->base.head.bytes = 2 * c * sizeof(double) + 6 * c * sizeof(float);
    plan->base.head.scratch_bytes =
        tn_norm_workspace(tn_cuda_pixels(&plan->base, plan->base.rows), plan->channels);
    if (!plan->base.training || !plan->base.head.node->relu) return TN_OK;
    plan->base.head.bytes += mask_bytes;
    return tn_cuda_alloc(backend, &plan->mask, mask_bytes, "masks");
}

static tn_status norm_plan_make(tn_backend *backend, const tn_model *model, int index, int chunk_rows,
                                int chunks, bool training, tn_plan **out) {
    norm_plan *plan;
    const tn_node *node = &model->nodes[index];
    if (training && chunks > 1)
        return tn_fail(
            TN_ERR_USAGE,
            "--micro-batch: on a CUDA device batch norm takes its batch in one piece; leave it out");
    TN_TRY(tn_cuda_plan_make(backend, model, index, chunk_rows, training, sizeof *plan, &plan));
    plan->channels = plan->base.in.channels;
    tn_status status = allocate(plan);
    if (status != TN_OK) {
        norm_free(&plan->base.head);
        return tn_fail_prefix(status, "layer %s", node->name);
    }
    memcpy(plan->base.head.implementation[0], "fused", 6);
    if (training) memcpy(plan->base.head.implementation[1], "fused", 6);
    *out = &plan->base.head;
    return TN_OK;
}

static const float *value(const norm_plan *plan, const tn_flat *flat, int param) {
    return flat->values + plan->base.head.model->params[param].offset;
}

/* Zeros in the rows behind those that count. */
static tn_status clear_padding(const norm_plan *plan, void *x, tn_storage store, int rows) {
    size_t image = tn_cuda_floats(plan->base.out) * tn_cuda_store_bytes(store);
    if (rows < plan->base.rows)
        TN_CUDA(cudaMemsetAsync((char *)x + (size_t)rows * image, 0, (size_t)(plan->base.rows - rows) * image,
                                plan->base.cuda->stream));
    return TN_OK;
}

static tn_status norm_statistics(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    TN_CUDA(tn_launch_norm_statistics(tn_cuda_pixels(&plan->base, a->rows), plan->channels,
                                      plan->base.x_store, a->x, a->scratch, plan->moments,
                                      plan->base.cuda->stream));
    return TN_OK;
}

static tn_status norm_merge_statistics(tn_plan *head, int chunks, int total_rows, const tn_flat *flat,
                                       int *nonfinite) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_state *state = &head->model->states[head->node->state];
    (void)chunks;
    TN_CUDA(tn_launch_norm_finish((double)tn_cuda_pixels(&plan->base, total_rows), plan->channels,
                                  plan->moments, value(plan, flat, head->node->gamma),
                                  value(plan, flat, head->node->beta), tn_cuda_s(plan->base.cuda, head),
                                  flat->state + state->mean_offset, flat->state + state->var_offset,
                                  plan->vectors, nonfinite, plan->base.cuda->stream));
    return TN_OK;
}

static tn_status norm_load_statistics(tn_plan *head, const tn_flat *flat) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_state *state = &head->model->states[head->node->state];
    TN_CUDA(tn_launch_norm_load(plan->channels, value(plan, flat, head->node->gamma),
                                value(plan, flat, head->node->beta), tn_cuda_s(plan->base.cuda, head),
                                flat->state + state->mean_offset, flat->state + state->var_offset,
                                plan->vectors, plan->base.cuda->stream));
    return TN_OK;
}

static tn_status norm_forward(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_node *node = head->node;
    tn_epilogue e = {.r = node->residual >= 0 ? a->r : NULL,
                     .relu = node->relu,
                     .mask = plan->mask,
                     .nonfinite = a->nonfinite};
    TN_CUDA(tn_launch_norm_apply(tn_cuda_pixels(&plan->base, plan->base.rows), plan->channels,
                                 plan->base.x_store, a->x, plan->vectors, e, plan->base.y_store, a->y,
                                 plan->base.cuda->stream));
    return TN_OK;
}

static tn_status norm_reduce(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    TN_CUDA(tn_launch_norm_reduce(tn_cuda_pixels(&plan->base, a->rows), plan->channels, plan->base.x_store,
                                  a->x, plan->vectors.mean, plan->base.y_store, tn_cuda_parts(a), plan->mask,
                                  a->dz, a->scratch, plan->moments, NULL, plan->base.cuda->stream));
    return clear_padding(plan, a->dz, plan->base.y_store, a->rows);
}

static tn_status norm_merge_reduce(tn_plan *head, int chunks, int total_rows, const tn_flat *flat) {
    norm_plan *plan = (norm_plan *)(void *)head;
    const tn_node *node = head->node;
    const tn_param *params = head->model->params;
    (void)chunks;
    float *ds = node->scale.param >= 0 ? flat->sums + 3 * (node - head->model->nodes) + 2 : NULL;
    TN_CUDA(tn_launch_norm_gradients(
        (double)tn_cuda_pixels(&plan->base, total_rows), plan->channels, plan->moments, plan->vectors.inv_std,
        value(plan, flat, node->gamma), value(plan, flat, node->beta), tn_cuda_s(plan->base.cuda, head),
        flat->grads + params[node->gamma].offset, flat->grads + params[node->beta].offset, ds, plan->slopes,
        plan->base.cuda->stream));
    return TN_OK;
}

static tn_status norm_backward(tn_plan *head, const tn_args *a) {
    norm_plan *plan = (norm_plan *)(void *)head;
    if (!a->dx) return TN_OK;
    TN_CUDA(tn_launch_norm_backward(tn_cuda_pixels(&plan->base, a->rows), plan->channels, plan->base.x_store,
                                    a->x, plan->vectors, plan->slopes, plan->base.y_store, a->dz, a->dx,
                                    plan->base.cuda->stream));
    return clear_padding(plan, a->dx, plan->base.x_store, a->rows);
}

static double *norm_sums(tn_plan *head, size_t *doubles) {
    norm_plan *plan = (norm_plan *)(void *)head;
    *doubles = 2 * (size_t)plan->channels;
    return plan->moments;
}

const tn_node_ops tn_cuda_norm = {.plan = norm_plan_make,
                                  .free = norm_free,
                                  .forward = norm_forward,
                                  .backward = norm_backward,
                                  .statistics = norm_statistics,
                                  .merge_statistics = norm_merge_statistics,
                                  .reduce = norm_reduce,
                                  .merge_reduce = norm_merge_reduce,
                                  .sums = norm_sums,
                                  .load_statistics = norm_load_statistics};
