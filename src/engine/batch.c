/* Batches in, results out: memory of a batch, chunks on workers, evaluation. */
#include <string.h>

#include "base/clock.h"
#include "engine/state.h"

const tn_node_ops *tn_engine_node_ops(const tn_engine *e, int node) {
    return e->backend->ops->nodes[e->model->nodes[node].kind];
}

void tn_engine_trace_work(tn_engine *e, int worker, const char *name, const char *category, double start) {
    if (e->trace) tn_trace_add(e->trace, worker, name, category, start, tn_now());
}

/* ---- flags ---- */

static size_t flag_offset(const tn_engine *e, tn_flag_kind kind, int worker) {
    return ((size_t)kind * (size_t)e->config.threads + (size_t)worker) * (size_t)(e->model->node_count + 1);
}

int *tn_engine_flags(const tn_engine *e, tn_flag_kind kind, int worker) {
    return e->report.flags + flag_offset(e, kind, worker);
}

bool tn_engine_flagged(const tn_engine *e, tn_flag_kind kind, int node) {
    for (int w = 0; w < e->config.threads; w++)
        if (e->seen.flags[flag_offset(e, kind, w) + (size_t)node]) return true;
    return false;
}

static tn_status clear_flags(tn_engine *e, tn_flag_kind first, tn_flag_kind end) {
    int *from = tn_engine_flags(e, first, 0), *to = tn_engine_flags(e, end, 0);
    return e->backend->ops->clear(e->backend, from, (size_t)(to - from) * sizeof(int));
}

/* ---- parameters ---- */

static tn_status pack_node(void *context, int node, int worker) {
    tn_engine *e = context;
    const tn_node_ops *ops = tn_engine_node_ops(e, node);
    if (!ops->pack) return TN_OK;
    double start = tn_now();
    TN_TRY(ops->pack(tn_executor_plan(e->executor, node), worker, &e->flat,
                     tn_engine_flags(e, TN_FLAG_PARAMETER, worker) + node));
    tn_engine_trace_work(e, worker, e->model->nodes[node].name, "pack", start);
    return TN_OK;
}

tn_status tn_engine_issue_pack(tn_engine *e) {
    const tn_backend_ops *ops = e->backend->ops;
    TN_TRY(clear_flags(e, TN_FLAG_PARAMETER, TN_FLAG_KINDS));
    if (ops->pack_all) return ops->pack_all(e->backend);
    return tn_pool_run(e->pool, e->model->node_count, pack_node, e);
}

tn_status tn_engine_pack(tn_engine *e) {
    if (e->packed) return TN_OK;
    TN_TRY(tn_engine_issue_pack(e));
    TN_TRY(tn_engine_read_report(e));
    e->packed = true;
    return TN_OK;
}

tn_status tn_engine_fail_weights(const tn_engine *e) {
    return tn_fail(TN_ERR_DIVERGED, "a value that is not finite in the parameters of layer %s",
                   e->model->nodes[e->bad_node].name);
}

/* ---- a batch comes in ---- */

static size_t image_floats(const tn_batch *b) {
    return (size_t)b->channels * (size_t)b->height * (size_t)b->width;
}

static tn_status check_batch(const tn_engine *e, const tn_batch *b) {
    const tn_shape in = e->model->tensors[0].shape;
    int rows = tn_engine_share(e, b).rows;
    if (b->rows < 0 || rows < 1 || rows > e->config.max_batch)
        return tn_fail(TN_ERR_USAGE, "a batch of %d rows for an engine made for 1 to %d", rows,
                       e->config.max_batch);
    if (b->channels != in.channels || b->height != in.height || b->width != in.width ||
        b->classes != e->model->classes)
        return tn_fail(TN_ERR_USAGE,
                       "a batch of %dx%dx%d images and %d classes for a model of %dx%dx%d and %d",
                       b->channels, b->height, b->width, b->classes, in.channels, in.height, in.width,
                       e->model->classes);
    if (b->raw && !e->backend->ops->make_images)
        return tn_fail(TN_ERR_USAGE, "a batch of bytes for a device that does not make images of them");
    return tn_ranks_check_share(e, b);
}

/* The host's memory is used where it is; only the images of a short last chunk are copied, behind zeros. */
static void stage(tn_engine *e, const tn_batch *b) {
    size_t chunk_rows = (size_t)e->config.micro_batch, rest = (size_t)b->rows % chunk_rows,
           image = image_floats(b);
    if (rest == 0) return;
    memcpy(e->inputs.images, b->images + ((size_t)b->rows - rest) * image, rest * image * sizeof(float));
    memset(e->inputs.images + rest * image, 0, (chunk_rows - rest) * image * sizeof(float));
}

/* The images of one chunk, with zeros behind a short one. */
static tn_status upload_images(tn_engine *e, const tn_batch *b, int chunk) {
    tn_backend *backend = e->backend;
    size_t image = image_floats(b), chunk_rows = (size_t)e->config.micro_batch,
           first = (size_t)chunk * chunk_rows, left = (size_t)b->rows - first,
           rows = left < chunk_rows ? left : chunk_rows;
    float *to = e->inputs.images + (size_t)chunk * e->inputs.chunk_floats;
    TN_TRY(backend->ops->upload(backend, to, b->images + first * image, rows * image * sizeof(float)));
    return backend->ops->clear(backend, to + rows * image, (chunk_rows - rows) * image * sizeof(float));
}

static tn_status upload(tn_engine *e, const tn_batch *b) {
    tn_backend *backend = e->backend;
    const tn_backend_ops *ops = backend->ops;
    size_t rows = (size_t)b->rows, classes = (size_t)b->classes;
    int chunks = tn_engine_share(e, b).count;
    size_t padded = (size_t)chunks * (size_t)e->config.micro_batch;
    if (b->raw)
        TN_TRY(ops->make_images(backend, b, e->config.micro_batch, e->inputs.chunk_floats, e->inputs.images));
    for (int i = 0; !b->raw && i < chunks; i++) TN_TRY(upload_images(e, b, i));
    TN_TRY(ops->upload(backend, e->inputs.targets, b->targets, rows * classes * sizeof(float)));
    TN_TRY(ops->upload(backend, e->inputs.row_weights, e->row_weights, padded * sizeof(float)));
    if (b->labels) TN_TRY(ops->upload(backend, e->inputs.labels, b->labels, rows * sizeof(int)));
    if (rows == padded) return TN_OK;
    TN_TRY(
        ops->clear(backend, e->inputs.targets + rows * classes, (padded - rows) * classes * sizeof(float)));
    return ops->clear(backend, e->inputs.labels + rows, (padded - rows) * sizeof(int));
}

tn_status tn_engine_begin(tn_engine *e, const tn_batch *b) {
    TN_TRY(check_batch(e, b));
    TN_TRY(tn_engine_pack(e));
    if (e->bad_node >= 0) return tn_engine_fail_weights(e);
    memset(e->row_weights, 0, (size_t)e->chunks * (size_t)e->config.micro_batch * sizeof(float));
    float weight = (float)(1.0 / tn_engine_share(e, b).rows);
    for (int i = 0; i < b->rows; i++) e->row_weights[i] = b->weights ? b->weights[i] : weight;
    if (e->backend->ops->host_memory)
        stage(e, b);
    else
        TN_TRY(upload(e, b));
    TN_TRY(clear_flags(e, TN_FLAG_OUTPUT, TN_FLAG_PARAMETER));
    /* Behind a step whose report nobody has read, what it stopped stays stopped. */
    return e->flight_count ? TN_OK : e->backend->ops->clear(e->backend, e->report.stop, sizeof(int));
}

/* ---- chunks ---- */

static tn_chunk chunk_of(const tn_batch_run *run, int index) {
    tn_engine *e = run->engine;
    const tn_batch *b = run->batch;
    bool host = e->backend->ops->host_memory;
    int first = index * e->config.micro_batch, left = b->rows - first;
    int place = b->first_row / e->config.micro_batch + index;
    size_t row = (size_t)first;
    tn_chunk chunk = {.index = index,
                      .statistics = e->config.sync_bn && host ? place : index,
                      .place = place,
                      .rows = left < e->config.micro_batch ? left : e->config.micro_batch,
                      .images = host ? b->images + row * image_floats(b)
                                     : e->inputs.images + (size_t)index * e->inputs.chunk_floats,
                      .targets = (host ? b->targets : e->inputs.targets) + row * (size_t)b->classes,
                      .row_weights = e->inputs.row_weights + first,
                      .row_loss = e->report.row_loss + first,
                      .row_rank = e->report.row_rank + first,
                      .flat = &e->flat};
    if (b->labels) chunk.labels = (host ? b->labels : e->inputs.labels) + first;
    if (run->training) chunk.probe = e->probe;
    if (host && chunk.rows < e->config.micro_batch) chunk.images = e->inputs.images;
    return chunk;
}

static tn_status passed(void *context, const tn_chunk *chunk, int step, int worker) {
    const tn_batch_run *run = context;
    if (chunk->grads) tn_sums_bring(run, chunk, step, worker);
    return chunk->index + 1 == run->share.count ? tn_device_sums_passed(run, step) : TN_OK;
}

tn_status tn_engine_run_chunk(void *context, int index, int worker) {
    tn_batch_run *run = context;
    tn_engine *e = run->engine;
    int *flags = tn_engine_flags(e, TN_FLAG_OUTPUT, worker);
    tn_chunk chunk = chunk_of(run, index);
    /* Images that a device makes of bytes are finite, as their table is (data.h). */
    if (run->segment == 0 && run->training && !run->batch->raw && !tn_executor_checks_images(e->executor))
        TN_TRY(e->backend->ops->check(e->backend, chunk.images,
                                      (size_t)e->config.micro_batch * image_floats(run->batch),
                                      flags + e->model->node_count));
    if (run->lane) chunk.grads = tn_gradient_tree_take(run->lane->tree);
    chunk.passed = passed;
    chunk.context = run;
    TN_TRY(tn_executor_run(e->executor, run->training, run->segment, &chunk, worker, flags, e->trace));
    if (!run->logits) return TN_OK;
    return tn_executor_logits(e->executor, worker, chunk.rows,
                              run->logits + (size_t)index * (size_t)e->config.micro_batch *
                                                (size_t)run->batch->classes);
}

/* ---- results ---- */

static void find_bad_node(tn_engine *e) {
    e->bad_node = -1;
    for (int i = e->model->node_count - 1; i >= 0; i--)
        if (tn_engine_flagged(e, TN_FLAG_PARAMETER, i)) e->bad_node = i;
}

tn_status tn_engine_read_report(tn_engine *e) {
    if (!e->backend->ops->host_memory)
        TN_TRY(e->backend->ops->download(e->backend, e->seen.row_loss, e->report.row_loss, e->report_bytes));
    find_bad_node(e);
    return TN_OK;
}

tn_status tn_engine_fetch_report(tn_engine *e, int slot) {
    const tn_backend_ops *ops = e->backend->ops;
    if (ops->host_memory) return TN_OK;
    TN_TRY(ops->fetch(e->backend, slot, 0, e->report.row_loss, e->report_bytes));
    if (e->watched < 0) return TN_OK;
    return ops->fetch(e->backend, slot, e->report_bytes, e->flat.values + e->model->params[e->watched].offset,
                      sizeof(float));
}

tn_status tn_engine_take_report(tn_engine *e, int slot, double *watched) {
    const tn_backend_ops *ops = e->backend->ops;
    const float *value = e->watched < 0 ? NULL : e->flat.values + e->model->params[e->watched].offset;
    if (!ops->host_memory) {
        const void *memory;
        TN_TRY(ops->fetched(e->backend, slot, &memory));
        memcpy(e->seen.row_loss, memory, e->report_bytes);
        if (value) value = (const float *)(const void *)((const char *)memory + e->report_bytes);
    }
    *watched = value ? (double)*value : 0;
    find_bad_node(e);
    return TN_OK;
}

tn_status tn_engine_check_idle(const tn_engine *e) {
    if (e->flight_count == 0) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "%d training steps are on their way: finish them first", e->flight_count);
}

tn_status tn_engine_add_results(tn_engine *e, const tn_batch *b, tn_result *result) {
    const tn_row *rows;
    TN_TRY(tn_ranks_gather_rows(e, b, &rows));
    *result = (tn_result){.rows = tn_engine_share(e, b).rows};
    for (int i = 0; i < result->rows; i++) {
        result->loss += (double)rows[i].loss;
        if (rows[i].rank < 0) continue;
        result->top1 += rows[i].rank < 1;
        result->top5 += rows[i].rank < 5;
    }
    return TN_OK;
}

/* ---- evaluation ---- */

static tn_status load_statistics(void *context, int node, int worker) {
    tn_engine *e = context;
    const tn_node_ops *ops = tn_engine_node_ops(e, node);
    (void)worker;
    return ops->load_statistics ? ops->load_statistics(tn_executor_plan(e->executor, node), &e->flat) : TN_OK;
}

tn_status tn_engine_eval(tn_engine *e, const tn_batch *batch, tn_result *result, float *logits) {
    TN_TRY(tn_engine_check_idle(e));
    TN_TRY(tn_engine_begin(e, batch));
    if (!e->eval_loaded) TN_TRY(tn_pool_run(e->pool, e->model->node_count, load_statistics, e));
    e->eval_loaded = true;
    tn_batch_run run = {.engine = e, .batch = batch, .share = tn_engine_share(e, batch), .logits = logits};
    TN_TRY(tn_pool_run(e->pool, run.share.count, tn_engine_run_chunk, &run));
    TN_TRY(tn_engine_read_report(e));
    return tn_engine_add_results(e, batch, result);
}
