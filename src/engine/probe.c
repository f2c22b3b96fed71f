/* Norms of activations and of their gradients in one batch. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "engine/state.h"

typedef struct probe_run {
    int *place;
    float *carried, *state;
    double *sums;
    int64_t *batches;
} probe_run;

static tn_status allocate(const tn_engine *e, int count, probe_run *run) {
    const tn_model *m = e->model;
    TN_TRY(tn_alloc(&run->place, (size_t)m->node_count, sizeof *run->place, "probe"));
    TN_TRY(tn_alloc(&run->carried, (size_t)count, sizeof *run->carried, "probe"));
    TN_TRY(tn_alloc(&run->sums, 2 * (size_t)e->whole_chunks * (size_t)count, sizeof *run->sums, "probe"));
    TN_TRY(tn_alloc(&run->state, m->state_floats, sizeof *run->state, "probe"));
    return tn_alloc(&run->batches, (size_t)m->state_count, sizeof *run->batches, "probe");
}

static tn_status choose(tn_engine *e, int count, const int *layers, const probe_run *run) {
    const tn_model *m = e->model;
    for (int i = 0; i < m->node_count; i++) run->place[i] = -1;
    for (int i = 0; i < count; i++) {
        if (layers[i] < 0 || layers[i] >= m->node_count || m->nodes[layers[i]].output < 0 ||
            run->place[layers[i]] >= 0)
            return tn_fail(TN_ERR_USAGE, "layer %d cannot be probed: no such layer, a loss, or named twice",
                           layers[i]);
        run->place[layers[i]] = i;
        int carry = m->nodes[layers[i]].carry;
        if (carry >= 0) TN_TRY(tn_engine_get(e, TN_VALUES, carry, &run->carried[i]));
    }
    return TN_OK;
}

/* The batch, with the running statistics put back behind it. */
static tn_status measure(tn_engine *e, const tn_batch *batch, int count, probe_run *run, tn_result *result) {
    const tn_model *m = e->model;
    const tn_backend_ops *ops = e->backend->ops;
    size_t bytes = m->state_floats * sizeof *run->state;
    tn_probe probe = {.count = count, .place = run->place, .carried = run->carried, .sums = run->sums};
    TN_TRY(ops->download(e->backend, run->state, e->flat.state, bytes));
    memcpy(run->batches, e->norm_batches, (size_t)m->state_count * sizeof *run->batches);
    e->probe = &probe;
    tn_status status = tn_engine_gradients(e, batch, result);
    e->probe = NULL;
    if (status == TN_OK) status = tn_ranks_gather_probe(e, run->sums, 2 * (size_t)count);
    memcpy(e->norm_batches, run->batches, (size_t)m->state_count * sizeof *run->batches);
    TN_TRY(ops->upload(e->backend, e->flat.state, run->state, bytes));
    return status;
}

static double norm(const tn_engine *e, const probe_run *run, int count, int layer, int which) {
    double sum = 0;
    for (int chunk = 0; chunk < e->whole_chunks; chunk++)
        sum += run->sums[2 * (chunk * count + layer) + which];
    return sqrt(sum);
}

tn_status tn_engine_probe(tn_engine *e, const tn_batch *batch, int count, const int *layers,
                          tn_result *result, tn_norms *norms) {
    probe_run run = {0};
    if (tn_executor_has_spans(e->executor))
        return tn_fail(TN_ERR_USAGE,
                       "layers of this engine run together and cannot be measured one by one; create it with "
                       "separate_layers");
    tn_status status = allocate(e, count, &run);
    if (status == TN_OK) status = choose(e, count, layers, &run);
    if (status == TN_OK) status = measure(e, batch, count, &run, result);
    for (int i = 0; status == TN_OK && i < count; i++)
        norms[i] = (tn_norms){norm(e, &run, count, i, 0), norm(e, &run, count, i, 1)};
    tn_free(run.place);
    tn_free(run.carried);
    tn_free(run.sums);
    tn_free(run.state);
    tn_free(run.batches);
    return status;
}
