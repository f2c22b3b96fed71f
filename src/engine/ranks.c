/* What several processes that share each batch exchange: gradients, statistics, flags and results. Every
 * function here is called by all of them in the same order, also by one whose share of a batch is empty. */
#include <string.h>
#include <xxhash.h>

#include "base/memory.h"
#include "base/sum_tree.h"
#include "comm/comm.h"
#include "engine/state.h"

tn_batch_share tn_engine_share(const tn_engine *e, const tn_batch *b) {
    int rows = e->config.micro_batch, whole = b->whole_rows ? b->whole_rows : b->rows;
    return (tn_batch_share){.first = (b->first_row + rows - 1) / rows,
                            .count = (b->rows + rows - 1) / rows,
                            .chunks = (whole + rows - 1) / rows,
                            .rows = whole};
}

static int rank_of(const tn_engine *e) {
    return tn_comm_rank(e->config.comm);
}

tn_status tn_ranks_check_share(const tn_engine *e, const tn_batch *b) {
    tn_batch_share share = tn_engine_share(e, b);
    if (!e->ranks) {
        if (b->first_row == 0 && share.rows == b->rows) return TN_OK;
        return tn_fail(TN_ERR_USAGE, "a share of a batch for an engine that works alone");
    }
    tn_sum_deal(share.chunks, e->ranks, e->first_chunk);
    if ((b->rows == 0 || b->first_row % e->config.micro_batch == 0) &&
        share.first == e->first_chunk[rank_of(e)] &&
        share.count == e->first_chunk[rank_of(e) + 1] - share.first)
        return TN_OK;
    return tn_fail(TN_ERR_USAGE, "rows %d to %d of a batch of %d are not the share of rank %d of %d",
                   b->first_row, b->first_row + b->rows, share.rows, rank_of(e), e->ranks);
}

/* ---- batch norm ---- */

/* Collects the sums of all chunks, so that a merge sees what it would see in a single process. */
tn_status tn_ranks_gather_sums(const tn_batch_run *run, int node) {
    tn_engine *e = run->engine;
    size_t doubles;
    double *sums = tn_engine_node_ops(e, node)->sums(tn_executor_plan(e->executor, node), &doubles);
    return tn_comm_gather_ranges(e->config.comm, sums, doubles * sizeof *sums, e->first_chunk,
                                 "batch statistics");
}

/* Moves what a merge computed from this share between the flat buffers and one array: of each norm the
 * gradients of gamma, beta and scale, then the running statistics. Returns its length. */
static size_t move_norms(tn_engine *e, float *array, bool back) {
    const tn_model *m = e->model;
    size_t at = 0;
    for (int i = 0; i < m->node_count; i++) {
        const tn_node *node = &m->nodes[i];
        if (node->kind != TN_NODE_NORM) continue;
        size_t channels = m->params[node->gamma].count;
        float *places[] = {e->flat.grads + m->params[node->gamma].offset,
                           e->flat.grads + m->params[node->beta].offset, e->flat.sums + 3 * (size_t)i + 2};
        size_t counts[] = {channels, channels, 1};
        for (int k = 0; k < 3; at += counts[k], k++) {
            if (array && back) memcpy(places[k], array + at, counts[k] * sizeof(float));
            if (array && !back) memcpy(array + at, places[k], counts[k] * sizeof(float));
        }
    }
    if (array && back) memcpy(e->flat.state, array + at, m->state_floats * sizeof(float));
    if (array && !back) memcpy(array + at, e->flat.state, m->state_floats * sizeof(float));
    return at + m->state_floats;
}

/* Local statistics: gradients add up; running statistics become their mean, weighted by rows. A process
 * without rows has nothing to add. */
tn_status tn_ranks_sum_norms(tn_engine *e, const tn_batch *batch) {
    float *array, weight = (float)((double)batch->rows / (double)tn_engine_share(e, batch).rows);
    size_t count = move_norms(e, NULL, false), state = e->model->state_floats;
    if (!e->ranks || e->config.sync_bn || state == 0) return TN_OK;
    TN_TRY(tn_alloc(&array, count, sizeof *array, "batch-norm gradients"));
    if (batch->rows > 0) move_norms(e, array, false);
    for (size_t i = count - state; i < count; i++) array[i] *= weight;
    tn_status status = tn_comm_sum_floats(e->config.comm, array, count, "batch-norm gradients");
    if (status == TN_OK) move_norms(e, array, true);
    tn_free(array);
    return status;
}

/* ---- flags and results ---- */

/* Flags of this process, of all its workers: [kinds][node_count + 1] bytes. Returns whether one is set. */
static bool pack_flags(const tn_engine *e, unsigned char *bytes) {
    int nodes = e->model->node_count + 1;
    bool any = false;
    for (int kind = 0; kind < TN_FLAG_PARAMETER; kind++)
        for (int i = 0; i < nodes; i++) {
            bytes[kind * nodes + i] = tn_engine_flagged(e, (tn_flag_kind)kind, i);
            any |= bytes[kind * nodes + i];
        }
    return any;
}

static tn_status exchange_flags(tn_engine *e, const unsigned char *own, unsigned char *all, size_t count) {
    int nodes = e->model->node_count + 1;
    TN_TRY(tn_comm_gather(e->config.comm, own, count, all, "flags"));
    for (size_t i = 0; i < count; i++)
        for (int rank = 0; rank < e->ranks; rank++)
            if (all[(size_t)rank * count + i])
                tn_engine_flags(e, (tn_flag_kind)(i / (size_t)nodes), 0)[i % (size_t)nodes] = 1;
    return TN_OK;
}

/* What one process saw, all know: each then stops, or does not, and says the same. */
tn_status tn_ranks_share_flags(tn_engine *e) {
    size_t count = (size_t)TN_FLAG_PARAMETER * (size_t)(e->model->node_count + 1);
    unsigned char *own, *all = NULL;
    int any;
    if (!e->ranks) return TN_OK;
    TN_TRY(tn_alloc(&own, count, 1, "flags"));
    tn_status status = tn_comm_any(e->config.comm, pack_flags(e, own), &any, "flags");
    if (status == TN_OK && any) status = tn_alloc(&all, count * (size_t)e->ranks, 1, "flags");
    if (status == TN_OK && any) status = exchange_flags(e, own, all, count);
    tn_free(own);
    tn_free(all);
    return status;
}

/* Losses and ranks of all rows, in their order, so that sums over rows do not depend on the shares. */
tn_status tn_ranks_gather_rows(tn_engine *e, const tn_batch *batch, const tn_row **out) {
    tn_batch_share share = tn_engine_share(e, batch);
    tn_row *rows = e->rows;
    *out = rows;
    for (int i = 0; i < batch->rows; i++)
        rows[batch->first_row + i] = (tn_row){e->seen.row_loss[i], batch->labels ? e->seen.row_rank[i] : -1};
    if (!e->ranks) return TN_OK;
    for (int i = 0; i <= e->ranks; i++) {
        long row = (long)e->first_chunk[i] * e->config.micro_batch;
        e->first_row[i] = row < share.rows ? (int)row : share.rows;
    }
    return tn_comm_gather_ranges(e->config.comm, rows, sizeof *rows, e->first_row, "results");
}

/* Sums that chunks left for a probe: [chunks][doubles]. */
tn_status tn_ranks_gather_probe(tn_engine *e, double *sums, size_t doubles) {
    if (!e->ranks) return TN_OK;
    return tn_comm_gather_ranges(e->config.comm, sums, doubles * sizeof *sums, e->first_chunk, "probe");
}

/* ---- the whole state ---- */

typedef tn_status (*visit)(tn_engine *engine, void *context, float *host, size_t floats);

/* Brings weights, momentum, running statistics and averages to the host, one after the other; and back when
 * `write`. */
static tn_status visit_state(tn_engine *e, visit what, void *context, bool write) {
    const tn_model *m = e->model;
    const tn_backend_ops *ops = e->backend->ops;
    float *flats[] = {e->flat.values, e->flat.momentum, e->flat.state, e->average}, *host;
    size_t floats[] = {m->param_floats, m->param_floats, m->state_floats, m->param_floats + m->state_floats};
    for (int i = 0; i < 4; i++) {
        if (!flats[i] || floats[i] == 0) continue;
        size_t bytes = floats[i] * sizeof(float);
        TN_TRY(tn_alloc(&host, floats[i], sizeof(float), "copy of the weights"));
        tn_status status = ops->download(e->backend, host, flats[i], bytes);
        if (status == TN_OK) status = what(e, context, host, floats[i]);
        if (status == TN_OK && write) status = ops->upload(e->backend, flats[i], host, bytes);
        tn_free(host);
        TN_TRY(status);
    }
    return TN_OK;
}

static tn_status broadcast_part(tn_engine *e, void *context, float *host, size_t floats) {
    (void)context;
    return tn_comm_broadcast(e->config.comm, host, floats * sizeof *host, "weights");
}

tn_status tn_engine_broadcast(tn_engine *e) {
    if (!e->ranks) return TN_OK;
    TN_TRY(tn_device_sums_connect(e));
    TN_TRY(visit_state(e, broadcast_part, NULL, true));
    e->packed = e->eval_loaded = false;
    TN_TRY(tn_comm_broadcast(e->config.comm, &e->average_begun, sizeof e->average_begun, "weights"));
    return tn_comm_broadcast(e->config.comm, e->norm_batches,
                             (size_t)e->model->state_count * sizeof *e->norm_batches, "weights");
}

static tn_status hash_part(tn_engine *e, void *context, float *host, size_t floats) {
    uint64_t *hash = context;
    (void)e;
    *hash = XXH64(host, floats * sizeof *host, *hash);
    return TN_OK;
}

tn_status tn_engine_hash(tn_engine *e, uint64_t *out) {
    *out = 0;
    return visit_state(e, hash_part, out, false);
}
