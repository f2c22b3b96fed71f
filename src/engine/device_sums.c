/* Sums over processes that compute on a device each. Gradients are summed where they are, in the flat buffer,
 * bucket by bucket from the last layers on, as soon as the last chunk has made them; what else must be known
 * of all (sums of nodes, flags, running statistics) goes with the last bucket. Everything here is issued, and
 * recorded with the rest of a step. */
#include <string.h>

#include "base/memory.h"
#include "engine/state.h"

/* A smaller bucket would be latency, most of all; more of them than that hide nothing more. */
#define BUCKET_FLOATS  ((size_t)1 << 16)
#define BUCKETS_WANTED 8

static bool together(const tn_engine *e) {
    return e->ranks && !e->backend->ops->host_memory;
}

/* ---- buckets ---- */

/* For each parameter the last step of the training program that makes a gradient of it, or -1. */
static void last_steps(const tn_engine *e, int *last) {
    const tn_program *program = tn_executor_program(e->executor, true);
    for (int p = 0; p < e->model->param_count; p++) last[p] = -1;
    for (int i = 0; i < program->step_count; i++) {
        const tn_step *step = &program->steps[i];
        for (int k = 0; step->kind == TN_STEP_BACKWARD && k < step->span; k++) {
            const tn_node *node = &e->model->nodes[step->node + k];
            const int params[] = {node->weight, node->bias, node->gamma, node->beta};
            for (int p = 0; p < 4; p++)
                if (params[p] >= 0) last[params[p]] = i;
        }
    }
}

/* Cuts the weights from the end of the flat buffer, where the last layers are, to its beginning. */
static tn_status cut(tn_engine *e, const int *last) {
    const tn_model *m = e->model;
    size_t limit = m->weight_floats / BUCKETS_WANTED + 1, capacity = 0, end = m->weight_floats;
    if (limit < BUCKET_FLOATS) limit = BUCKET_FLOATS;
    int step = 0;
    for (int p = m->param_count - 1; p >= 0; p--) {
        if (m->params[p].group != TN_GROUP_WEIGHTS) continue;
        if (last[p] > step) step = last[p];
        size_t first = m->params[p].offset;
        if (end - first < limit && first > 0) continue;
        TN_TRY(tn_grow(&e->device_buckets, &capacity, (size_t)e->device_bucket_count + 1,
                       sizeof *e->device_buckets, "gradients"));
        e->device_buckets[e->device_bucket_count++] =
            (tn_device_bucket){.last_step = step, .first = first, .count = end - first};
        end = first;
    }
    return TN_OK;
}

tn_status tn_device_sums_create(tn_engine *e) {
    int *last;
    if (!together(e)) return TN_OK;
    TN_TRY(tn_alloc(&last, (size_t)e->model->param_count, sizeof *last, "gradients"));
    last_steps(e, last);
    tn_status status = cut(e, last);
    tn_free(last);
    return status;
}

tn_status tn_device_sums_connect(tn_engine *e) {
    void *stream;
    if (!e->ranks || e->connected) return TN_OK;
    TN_TRY(tn_comm_compare(e->config.comm, e->backend->ops->name, "the kind of device"));
    e->connected = !together(e);
    if (e->connected) return TN_OK;
    TN_TRY(e->backend->ops->stream(e->backend, &stream));
    TN_TRY(tn_comm_device_open(e->config.comm));
    e->stream = stream;
    e->connected = true;
    return TN_OK;
}

/* ---- a batch ---- */

static tn_status sum(tn_engine *e, const tn_device_range *ranges, int count, const char *what) {
    return tn_comm_device_sum(e->config.comm, e->stream, ranges, count, what);
}

static tn_device_range gradients_of(const tn_engine *e, int bucket) {
    const tn_device_bucket *b = &e->device_buckets[bucket];
    return (tn_device_range){e->flat.grads + b->first, b->count, TN_DEVICE_FLOATS};
}

/* Chunks overwrite what the last batch left; a process that has none brings zeros. */
tn_status tn_device_sums_begin(const tn_batch_run *run) {
    tn_engine *e = run->engine;
    const tn_backend_ops *ops = e->backend->ops;
    e->next_bucket = 0;
    if (!together(e) || run->share.count > 0) return TN_OK;
    TN_TRY(ops->clear(e->backend, e->flat.grads, e->model->weight_floats * sizeof(float)));
    return ops->clear(e->backend, e->flat.sums, 3 * (size_t)e->model->node_count * sizeof(float));
}

/* The last bucket waits for what goes with it. */
tn_status tn_device_sums_passed(const tn_batch_run *run, int step) {
    tn_engine *e = run->engine;
    if (!run->training || !together(e)) return TN_OK;
    for (; e->next_bucket < e->device_bucket_count - 1; e->next_bucket++) {
        if (e->device_buckets[e->next_bucket].last_step > step) return TN_OK;
        tn_device_range range = gradients_of(e, e->next_bucket);
        if (e->backend->ops->settle) TN_TRY(e->backend->ops->settle(e->backend, true));
        TN_TRY(sum(e, &range, 1, "gradients"));
    }
    return TN_OK;
}

tn_status tn_device_sums_finish(const tn_batch_run *run) {
    tn_engine *e = run->engine;
    const tn_model *m = e->model;
    if (!together(e)) return TN_OK;
    int *flags = tn_engine_flags(e, TN_FLAG_OUTPUT, 0), *end = tn_engine_flags(e, TN_FLAG_GRADIENT, 0);
    bool local = m->state_floats > 0 && !e->config.sync_bn;
    float weight = (float)((double)run->batch->rows / (double)run->share.rows);
    tn_device_range ranges[] = {{e->flat.sums, 3 * (size_t)m->node_count, TN_DEVICE_FLOATS},
                                {flags, (size_t)(end - flags), TN_DEVICE_FLAGS},
                                {e->flat.state, local ? m->state_floats : 0, TN_DEVICE_FLOATS},
                                {e->flat.grads, 0, TN_DEVICE_FLOATS}};
    if (e->device_bucket_count > 0) ranges[3] = gradients_of(e, e->device_bucket_count - 1);
    /* Running statistics become the mean of the processes', weighted by rows. */
    if (local) TN_TRY(e->backend->ops->scale(e->backend, e->flat.state, m->state_floats, weight));
    TN_TRY(sum(e, ranges, 4, "gradients"));
    return tn_comm_device_join(e->config.comm, e->stream);
}

/* ---- batch norm over all processes ---- */

tn_status tn_device_sums_moments(const tn_batch_run *run, int node) {
    tn_engine *e = run->engine;
    size_t doubles;
    double *moments = tn_engine_node_ops(e, node)->sums(tn_executor_plan(e->executor, node), &doubles);
    tn_device_range range = {moments, doubles, TN_DEVICE_DOUBLES};
    if (run->share.count == 0) TN_TRY(e->backend->ops->clear(e->backend, moments, doubles * sizeof *moments));
    TN_TRY(sum(e, &range, 1, "batch statistics"));
    return tn_comm_device_join(e->config.comm, e->stream);
}

/* The merge of a norm's gradients gave the whole batch's to every process. */
tn_status tn_device_sums_keep_one(const tn_batch_run *run, const tn_segment *segment) {
    tn_engine *e = run->engine;
    const tn_backend_ops *ops = e->backend->ops;
    const tn_node *node = &e->model->nodes[segment->merge_node];
    const tn_param *params[] = {&e->model->params[node->gamma], &e->model->params[node->beta]};
    if (segment->merge != TN_MERGE_REDUCE || tn_comm_rank(e->config.comm) == 0) return TN_OK;
    for (int i = 0; i < 2; i++)
        TN_TRY(ops->clear(e->backend, e->flat.grads + params[i]->offset, params[i]->count * sizeof(float)));
    return ops->clear(e->backend, e->flat.sums + 3 * (size_t)segment->merge_node + 2, sizeof(float));
}
