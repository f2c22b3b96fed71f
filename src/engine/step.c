/* Training: gradients through the tree, statistics between segments, the update. */
#include <string.h>

#include "base/clock.h"
#include "engine/state.h"

/* ---- gradients ---- */

/* Of the share's statistics or, where they are exchanged, of those of the whole batch. */
static tn_status merge(const tn_batch_run *run, const tn_segment *segment) {
    tn_engine *e = run->engine;
    const tn_batch_share *share = &run->share;
    bool whole = e->ranks && e->config.sync_bn, host = e->backend->ops->host_memory;
    int chunks = whole ? share->chunks : share->count, rows = whole ? share->rows : run->batch->rows;
    double start = tn_now();
    if (whole) TN_TRY((host ? tn_ranks_gather_sums : tn_device_sums_moments)(run, segment->merge_node));
    if (rows > 0)
        TN_TRY(tn_executor_merge(e->executor, run->segment, chunks, rows, &e->flat,
                                 tn_engine_flags(e, TN_FLAG_STATISTICS, 0)));
    if (whole && !host) TN_TRY(tn_device_sums_keep_one(run, segment));
    tn_engine_trace_work(e, e->config.threads, e->model->nodes[segment->merge_node].name, "merge", start);
    return TN_OK;
}

static tn_status run_segment(tn_batch_run *run) {
    tn_engine *e = run->engine;
    const tn_segment *segment = &tn_executor_program(e->executor, true)->segments[run->segment];
    TN_TRY(tn_sums_begin(run));
    TN_TRY(tn_pool_run_beside(e->pool, run->share.count, tn_engine_run_chunk, e->ranks ? tn_sums_aside : NULL,
                              run));
    TN_TRY(tn_sums_end(run));
    if (run->share.count == 0) TN_TRY(tn_device_sums_passed(run, segment->first + segment->count - 1));
    return segment->merge == TN_MERGE_NONE ? TN_OK : merge(run, segment);
}

static tn_status issue_gradients(tn_engine *e, const tn_batch *batch) {
    const tn_program *program = tn_executor_program(e->executor, true);
    const tn_backend_ops *ops = e->backend->ops;
    tn_batch_run run = {.engine = e, .batch = batch, .training = true, .share = tn_engine_share(e, batch)};
    TN_TRY(tn_device_sums_begin(&run));
    if (ops->settle) TN_TRY(ops->settle(e->backend, false));
    for (; run.segment < program->segment_count; run.segment++) TN_TRY(run_segment(&run));
    if (ops->settle) TN_TRY(ops->settle(e->backend, true));
    TN_TRY(tn_sums_finish(e));
    TN_TRY(ops->host_memory ? tn_ranks_sum_norms(e, batch) : tn_device_sums_finish(&run));
    /* The stop flag follows from those of parameters too: a step may be issued before anybody has seen that
     * the last one spoiled them. */
    if (ops->finish_all) return ops->finish_all(e->backend);
    TN_TRY(ops->scalar_gradients(e->backend, e->model, &e->flat,
                                 tn_engine_flags(e, TN_FLAG_GRADIENT, 0) + e->model->node_count));
    TN_TRY(tn_ranks_share_flags(e));
    return ops->any(e->backend, e->report.flags, (int)(e->report.stop - e->report.flags), e->report.stop);
}

static tn_status check_gradients(const tn_engine *e) {
    const char *where = "a value that is not finite first appeared in the";
    int nodes = e->model->node_count;
    if (!*e->seen.stop) return TN_OK;
    if (tn_engine_flagged(e, TN_FLAG_OUTPUT, nodes))
        return tn_fail(TN_ERR_DIVERGED, "a value that is not finite in the input images");
    for (int i = 0; i < nodes; i++) {
        const char *name = e->model->nodes[i].name;
        if (tn_engine_flagged(e, TN_FLAG_STATISTICS, i))
            return tn_fail(TN_ERR_DIVERGED, "%s input of layer %s", where, name);
        if (tn_engine_flagged(e, TN_FLAG_OUTPUT, i))
            return tn_fail(TN_ERR_DIVERGED, "%s output of layer %s", where, name);
    }
    for (int i = nodes - 1; i >= 0; i--)
        if (tn_engine_flagged(e, TN_FLAG_GRADIENT, i))
            return tn_fail(TN_ERR_DIVERGED, "%s gradient of layer %s", where, e->model->nodes[i].name);
    return tn_fail(TN_ERR_DIVERGED, "%s gradient of a scalar parameter", where);
}

/* ---- the update ---- */

typedef struct update_run {
    tn_engine *engine;
    const tn_sgd *sgd;
    int pieces; /* of each group */
} update_run;

/* One piece of one optimizer group and, where averages are kept, of their average; the last piece is the
 * statistics'. */
static tn_status update_piece(void *context, int index, int worker) {
    const update_run *run = context;
    tn_engine *e = run->engine;
    const tn_model *m = e->model;
    int group = index / run->pieces;
    size_t first = group ? m->weight_floats : 0, last = group ? m->trained_floats : m->weight_floats;
    size_t piece = (size_t)(index % run->pieces),
           width = (last - first + (size_t)run->pieces - 1) / (size_t)run->pieces;
    size_t from = first + piece * width, to = from + width < last ? from + width : last;
    if (index == 2 * run->pieces) return tn_engine_average(e, m->param_floats, m->state_floats);
    if (from >= to) return TN_OK;
    double start = tn_now();
    TN_TRY(e->backend->ops->sgd(e->backend, e->flat.values + from, e->flat.grads + from,
                                e->flat.momentum + from, to - from, e->inputs.rates + group,
                                (float)run->sgd->momentum, (float)run->sgd->weight_decay, e->report.stop));
    TN_TRY(tn_engine_average(e, from, to - from));
    tn_engine_trace_work(e, worker, "sgd", "update", start);
    return TN_OK;
}

static tn_status set_rates(tn_engine *e, const tn_sgd *sgd) {
    float rates[] = {(float)sgd->lr, (float)(sgd->lr * sgd->scalar_lr)};
    return e->backend->ops->upload(e->backend, e->inputs.rates, rates, sizeof rates);
}

/* Where the backend does it at once, for all parameters. Flags of parameters that are up stay so until others
 * are packed. */
static tn_status update_at_once(tn_engine *e, const tn_sgd *sgd) {
    const tn_model *m = e->model;
    double start = tn_now();
    TN_TRY(e->backend->ops->update_all(e->backend, (float)sgd->momentum, (float)sgd->weight_decay));
    TN_TRY(tn_engine_average(e, 0, m->trained_floats));
    TN_TRY(tn_engine_average(e, m->param_floats, m->state_floats));
    tn_engine_trace_work(e, 0, "sgd", "update", start);
    return TN_OK;
}

static tn_status issue_update(tn_engine *e, const tn_sgd *sgd) {
    if (e->backend->ops->update_all) return update_at_once(e, sgd);
    update_run run = {.engine = e, .sgd = sgd, .pieces = e->config.threads};
    TN_TRY(tn_pool_run(e->pool, 2 * run.pieces + 1, update_piece, &run));
    return tn_engine_issue_pack(e);
}

tn_status tn_engine_update(tn_engine *e, const tn_sgd *sgd) {
    if (!e->config.training) return tn_fail(TN_ERR_USAGE, "this engine was not made for training");
    TN_TRY(tn_engine_check_idle(e));
    TN_TRY(tn_engine_begin_average(e));
    TN_TRY(set_rates(e, sgd));
    TN_TRY(issue_update(e, sgd));
    TN_TRY(tn_engine_read_report(e));
    e->packed = true;
    return e->bad_node >= 0 ? tn_engine_fail_weights(e) : TN_OK;
}

/* ---- a whole step ---- */

static bool has_norms(const tn_model *m) {
    for (int i = 0; i < m->node_count; i++)
        if (m->nodes[i].kind == TN_NODE_NORM) return true;
    return false;
}

static bool same_recording(const tn_recording *a, const tn_recording *b) {
    return a->rows == b->rows && a->chunks == b->chunks && a->raw == b->raw && a->labels == b->labels &&
           a->update == b->update && a->momentum == b->momentum && a->decay == b->decay;
}

/* The slot for this kind of step. Without norms a step does not depend on how many rows of its chunks count.
 * All processes of a run choose alike: what one has recorded with others' sums in it, all have. */
static int slot_of(tn_engine *e, const tn_batch *b, const tn_sgd *sgd, bool *fresh) {
    tn_batch_share share = tn_engine_share(e, b);
    tn_recording wanted = {.rows = has_norms(e->model) ? share.rows : 0,
                           .chunks = share.chunks,
                           .raw = b->raw != NULL,
                           .labels = b->labels != NULL,
                           .update = sgd != NULL,
                           .momentum = sgd ? (float)sgd->momentum : 0,
                           .decay = sgd ? (float)sgd->weight_decay : 0};
    *fresh = false;
    for (int i = 0; i < TN_RECORD_SLOTS && i < e->recording_count; i++)
        if (same_recording(&e->recordings[i], &wanted)) return i;
    int slot = e->recording_count++ % TN_RECORD_SLOTS;
    e->recordings[slot] = wanted;
    *fresh = true;
    return slot;
}

static void begin_phase(const tn_engine *e, const char *name) {
    if (e->backend->ops->range_begin) e->backend->ops->range_begin("step:", name);
}

static void end_phase(const tn_engine *e) {
    if (e->backend->ops->range_end) e->backend->ops->range_end();
}

static tn_status issue(tn_engine *e, const tn_batch *batch, const tn_sgd *sgd) {
    begin_phase(e, "gradients");
    tn_status status = issue_gradients(e, batch);
    end_phase(e);
    if (status != TN_OK || !sgd) return status;
    begin_phase(e, "update and packing");
    status = issue_update(e, sgd);
    end_phase(e);
    return status;
}

/* *work: what the processes' devices do together in it. */
static tn_status issue_counted(tn_engine *e, const tn_batch *batch, const tn_sgd *sgd, tn_device_work *work) {
    tn_status status = issue(e, batch, sgd);
    if (e->stream) *work = tn_comm_device_work(e->config.comm);
    return status;
}

static tn_status issue_or_replay(tn_engine *e, const tn_batch *batch, const tn_sgd *sgd,
                                 tn_device_work *work) {
    const tn_backend_ops *ops = e->backend->ops;
    bool fresh, replay = false;
    if (e->stream) tn_comm_device_begin(e->config.comm);
    /* A probe's sums go to the host while the batch runs. */
    if (!ops->record || e->probe) return issue_counted(e, batch, sgd, work);
    int slot = slot_of(e, batch, sgd, &fresh);
    TN_TRY(ops->record(e->backend, slot, fresh, &replay));
    tn_status status = replay ? TN_OK : issue_counted(e, batch, sgd, &e->recordings[slot].work);
    tn_status submitted = ops->submit(e->backend, slot, status == TN_OK);
    *work = e->recordings[slot].work;
    return status != TN_OK ? status : submitted;
}

/* Waits for a step's report, and with it for what the processes' devices do together. */
static tn_status take_report(tn_engine *e, const tn_flight *flight, double *watched) {
    if (!e->stream) return tn_engine_take_report(e, flight->slot, watched);
    tn_comm_device_enter(e->config.comm, flight->work, "gradients");
    return tn_comm_device_leave(e->config.comm, flight->work,
                                tn_engine_take_report(e, flight->slot, watched));
}

/* Issues a step and, behind it, the way of its report to the host. */
static tn_status start(tn_engine *e, const tn_batch *batch, const tn_sgd *sgd) {
    tn_device_work work = {0, 0};
    if (!e->config.training) return tn_fail(TN_ERR_USAGE, "this engine was not made for training");
    if (e->flight_count == tn_engine_depth(e)) return tn_engine_check_idle(e);
    TN_TRY(tn_device_sums_connect(e));
    TN_TRY(tn_engine_begin_average(e));
    if (sgd) TN_TRY(set_rates(e, sgd));
    begin_phase(e, "batch");
    tn_status status = tn_engine_begin(e, batch);
    end_phase(e);
    TN_TRY(status);
    e->eval_loaded = false;
    begin_phase(e, "work");
    status = issue_or_replay(e, batch, sgd, &work);
    if (status == TN_OK) status = tn_engine_fetch_report(e, e->next_fetch);
    end_phase(e);
    if (status != TN_OK) e->packed = false; /* who knows how far the update came */
    TN_TRY(status);
    e->flights[e->flight_count++] =
        (tn_flight){.batch = *batch, .update = sgd != NULL, .slot = e->next_fetch, .work = work};
    e->next_fetch = (e->next_fetch + 1) % TN_FETCH_SLOTS;
    return TN_OK;
}

static tn_status conclude(tn_engine *e, const tn_flight *flight, tn_result *result) {
    double watched;
    begin_phase(e, "report");
    tn_status status = take_report(e, flight, &watched);
    end_phase(e);
    if (status != TN_OK) e->packed = false;
    TN_TRY(status);
    TN_TRY(check_gradients(e));
    for (int i = 0; i < e->model->state_count; i++) e->norm_batches[i]++;
    TN_TRY(tn_engine_add_results(e, &flight->batch, result));
    result->watched = watched;
    return flight->update && e->bad_node >= 0 ? tn_engine_fail_weights(e) : TN_OK;
}

/* A failure takes the steps behind along. */
static tn_status finish(tn_engine *e, tn_result *result) {
    tn_flight flight = e->flights[0];
    e->flights[0] = e->flights[1];
    e->flight_count--;
    tn_status status = conclude(e, &flight, result);
    if (status != TN_OK) e->flight_count = 0;
    return status;
}

static tn_status step(tn_engine *e, const tn_batch *batch, const tn_sgd *sgd, tn_result *result) {
    TN_TRY(tn_engine_check_idle(e));
    TN_TRY(start(e, batch, sgd));
    return finish(e, result);
}

tn_status tn_engine_gradients(tn_engine *e, const tn_batch *batch, tn_result *result) {
    return step(e, batch, NULL, result);
}

tn_status tn_engine_step(tn_engine *e, const tn_batch *batch, const tn_sgd *sgd, tn_result *result) {
    return step(e, batch, sgd, result);
}

int tn_engine_depth(const tn_engine *e) {
    /* Of what devices do together, one step at a time is counted (comm.h). */
    return e->backend->ops->host_memory || e->ranks ? 1 : TN_FETCH_SLOTS;
}

tn_status tn_engine_issue(tn_engine *e, const tn_batch *batch, const tn_sgd *sgd) {
    return start(e, batch, sgd);
}

tn_status tn_engine_finish(tn_engine *e, tn_result *result) {
    if (e->flight_count == 0) return tn_fail(TN_ERR_USAGE, "no training step is on its way");
    return finish(e, result);
}
