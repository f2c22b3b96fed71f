/* What an engine does with a batch: chunks to workers, gradients through the tree, statistics between
 * segments. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "engine/state.h"

static const tn_node_ops *ops_of(const tn_engine *e, int node) {
    return e->backend->ops->nodes[e->model->nodes[node].kind];
}

static void trace_add(tn_engine *e, int worker, const char *name, const char *category, double start) {
    if (e->trace) tn_trace_add(e->trace, worker, name, category, start, tn_now());
}

/* ---- parameters ---- */

static tn_status pack_node(void *context, int node, int worker) {
    tn_engine *e = context;
    const tn_node_ops *ops = ops_of(e, node);
    e->node_finite[node] = true;
    if (!ops->pack) return TN_OK;
    double start = tn_now();
    TN_TRY(ops->pack(tn_executor_plan(e->executor, node), worker, &e->flat, &e->node_finite[node]));
    trace_add(e, worker, e->model->nodes[node].name, "pack", start);
    return TN_OK;
}

tn_status tn_engine_pack(tn_engine *e) {
    if (e->packed) return TN_OK;
    TN_TRY(tn_pool_run(e->pool, e->model->node_count, pack_node, e));
    e->bad_node = -1;
    for (int i = e->model->node_count - 1; i >= 0; i--)
        if (!e->node_finite[i]) e->bad_node = i;
    e->packed = true;
    return TN_OK;
}

static tn_status fail_weights(const tn_engine *e) {
    return tn_fail(TN_ERR_DIVERGED, "a value that is not finite in the parameters of layer %s",
                   e->model->nodes[e->bad_node].name);
}

/* ---- running chunks ---- */

typedef struct batch_run {
    tn_engine *engine;
    const tn_batch *batch;
    bool training;
    int segment;
    float *logits;
} batch_run;

static int chunk_count(const tn_engine *e, const tn_batch *batch) {
    return (batch->rows + e->config.micro_batch - 1) / e->config.micro_batch;
}

/* NaN and infinity in the images; a comparison would miss NaN. */
static bool images_finite(const float *images, size_t count) {
    float poison = 0;
    for (size_t i = 0; i < count; i++) poison += images[i] * 0.0f;
    return poison == 0.0f;
}

static tn_chunk chunk_of(const batch_run *run, int index) {
    tn_engine *e = run->engine;
    const tn_batch *b = run->batch;
    size_t image = (size_t)b->channels * (size_t)b->height * (size_t)b->width;
    int first = index * e->config.micro_batch, left = b->rows - first;
    tn_chunk chunk = {.index = index,
                      .rows = left < e->config.micro_batch ? left : e->config.micro_batch,
                      .images = b->images + (size_t)first * image,
                      .targets = b->targets + (size_t)first * (size_t)b->classes,
                      .row_weights = e->row_weights + first,
                      .labels = b->labels ? b->labels + first : NULL,
                      .row_loss = e->row_loss + first,
                      .row_rank = e->row_rank + first};
    if (run->training) chunk.probe = e->probe;
    /* Only the last chunk can be short; its rows are staged before the workers start. */
    if (chunk.rows < e->config.micro_batch) chunk.images = e->staging;
    return chunk;
}

static tn_status run_chunk(void *context, int index, int worker) {
    const batch_run *run = context;
    tn_engine *e = run->engine;
    const tn_batch *b = run->batch;
    int nodes = e->model->node_count, *nonfinite = e->nonfinite + worker * (nodes + 1);
    tn_chunk chunk = chunk_of(run, index);
    size_t image = (size_t)b->channels * (size_t)b->height * (size_t)b->width;
    if (run->segment == 0 && run->training && !images_finite(chunk.images, (size_t)chunk.rows * image))
        nonfinite[nodes] = 1;
    const tn_segment *segment = &tn_executor_program(e->executor, run->training)->segments[run->segment];
    if (segment->grad_floats) chunk.grads = tn_gradient_tree_take(e->tree);
    TN_TRY(tn_executor_run(e->executor, run->training, run->segment, &chunk, worker, nonfinite, e->trace));
    if (chunk.grads) {
        double start = tn_now();
        tn_gradient_tree_bring(e->tree, index, chunk.grads);
        trace_add(e, worker, "sum gradients", "reduction", start);
    }
    if (!run->logits) return TN_OK;
    size_t classes = (size_t)b->classes;
    return e->backend->ops->download(
        e->backend, run->logits + (size_t)index * (size_t)e->config.micro_batch * classes,
        tn_executor_logits(e->executor, worker), (size_t)chunk.rows * classes * sizeof(float));
}

static tn_status begin_batch(tn_engine *e, const tn_batch *b) {
    const tn_shape in = e->model->tensors[0].shape;
    if (b->rows < 1 || b->rows > e->config.max_batch)
        return tn_fail(TN_ERR_USAGE, "a batch of %d rows for an engine made for 1 to %d", b->rows,
                       e->config.max_batch);
    if (b->channels != in.channels || b->height != in.height || b->width != in.width ||
        b->classes != e->model->classes)
        return tn_fail(TN_ERR_USAGE,
                       "a batch of %dx%dx%d images and %d classes for a model of %dx%dx%d and %d",
                       b->channels, b->height, b->width, b->classes, in.channels, in.height, in.width,
                       e->model->classes);
    int chunk_rows = e->config.micro_batch, rest = b->rows % chunk_rows;
    size_t image = (size_t)in.channels * (size_t)in.height * (size_t)in.width;
    if (rest) {
        memcpy(e->staging, b->images + (size_t)(b->rows - rest) * image,
               (size_t)rest * image * sizeof(float));
        memset(e->staging + (size_t)rest * image, 0, (size_t)(chunk_rows - rest) * image * sizeof(float));
    }
    for (int i = 0; i < b->rows; i++) e->row_weights[i] = b->weights ? b->weights[i] : (float)(1.0 / b->rows);
    memset(e->nonfinite, 0, (size_t)e->config.threads * (size_t)(e->model->node_count + 1) * sizeof(int));
    return tn_engine_pack(e);
}

static void add_results(const tn_engine *e, const tn_batch *b, tn_result *result) {
    *result = (tn_result){.rows = b->rows};
    for (int i = 0; i < b->rows; i++) {
        result->loss += (double)e->row_loss[i];
        if (!b->labels) continue;
        result->top1 += e->row_rank[i] < 1;
        result->top5 += e->row_rank[i] < 5;
    }
}

/* ---- training ---- */

static tn_status fail_if_nonfinite(const tn_engine *e) {
    int nodes = e->model->node_count;
    for (int w = 0; w < e->config.threads; w++)
        if (e->nonfinite[w * (nodes + 1) + nodes])
            return tn_fail(TN_ERR_DIVERGED, "a value that is not finite in the input images");
    for (int i = 0; i < nodes; i++)
        for (int w = 0; w < e->config.threads; w++)
            if (e->nonfinite[w * (nodes + 1) + i])
                return tn_fail(TN_ERR_DIVERGED,
                               "a value that is not finite first appeared in the output of layer %s",
                               e->model->nodes[i].name);
    return TN_OK;
}

static tn_status collect_step(void *context, int index, int worker) {
    const batch_run *run = context;
    tn_engine *e = run->engine;
    const tn_program *program = tn_executor_program(e->executor, true);
    const tn_step *step = &program->steps[program->segments[run->segment].first + index];
    const tn_node_ops *ops = ops_of(e, step->node);
    const tn_plan *plan = tn_executor_plan(e->executor, step->node);
    if (step->kind != TN_STEP_BACKWARD || plan->grad_floats == 0) return TN_OK;
    double start = tn_now();
    const float *sum = tn_gradient_tree_sum(e->tree) + step->grad_offset;
    TN_TRY(ops->collect(tn_executor_plan(e->executor, step->node), worker, sum, &e->flat));
    trace_add(e, worker, e->model->nodes[step->node].name, "collect", start);
    return TN_OK;
}

static tn_status run_segment(batch_run *run) {
    tn_engine *e = run->engine;
    const tn_segment *segment = &tn_executor_program(e->executor, true)->segments[run->segment];
    int chunks = chunk_count(e, run->batch);
    if (segment->grad_floats) tn_gradient_tree_begin(e->tree, chunks, segment->grad_floats);
    TN_TRY(tn_pool_run(e->pool, chunks, run_chunk, run));
    if (segment->grad_floats) TN_TRY(tn_pool_run(e->pool, segment->count, collect_step, run));
    bool finite;
    double start = tn_now();
    TN_TRY(tn_executor_merge(e->executor, run->segment, chunks, run->batch->rows, &e->flat, &finite));
    if (segment->merge != TN_MERGE_NONE)
        trace_add(e, e->config.threads, e->model->nodes[segment->merge_node].name, "merge", start);
    if (finite) return TN_OK;
    TN_TRY(fail_if_nonfinite(e));
    return tn_fail(TN_ERR_DIVERGED, "a value that is not finite first appeared in the input of layer %s",
                   e->model->nodes[segment->merge_node].name);
}

static tn_status finish_node(void *context, int node, int worker) {
    tn_engine *e = context;
    const tn_node_ops *ops = ops_of(e, node);
    (void)worker;
    e->node_finite[node] = true;
    if (!ops->finish) return TN_OK;
    return ops->finish(tn_executor_plan(e->executor, node), &e->flat, &e->node_finite[node]);
}

/* Gradients of scalar parameters from the sums of nodes, in node order (architecture.md 3.3):
 *   terms  dparam += factor * (scaled ? s : 1) * sum dz,     carry  dparam += sum dy,
 *   scale  dparam += factor * (<G, W> + sum over scaled terms of value * sum dz). */
static void scalar_gradients(tn_engine *e) {
    const tn_model *m = e->model;
    float *grads = e->flat.grads, *values = e->flat.values;
    memset(grads + m->weight_floats, 0, (m->trained_floats - m->weight_floats) * sizeof(float));
    for (int i = 0; i < m->node_count; i++) {
        const tn_node *node = &m->nodes[i];
        const float *sums = e->flat.sums + 3 * (size_t)i;
        float s = tn_node_scale(node, m, values), inside = sums[2];
        for (int t = 0; t < node->term_count; t++) {
            const tn_term *term = &node->terms[t];
            size_t at = m->params[term->param].offset;
            grads[at] += term->factor * (term->scaled ? s : 1.0f) * sums[0];
            if (term->scaled) inside += term->factor * values[at] * sums[0];
        }
        if (node->carry >= 0) grads[m->params[node->carry].offset] += sums[1];
        if (node->scale.param >= 0) grads[m->params[node->scale.param].offset] += node->scale.factor * inside;
    }
    for (int i = 0; i < m->param_count; i++)
        for (size_t j = 0; m->params[i].grad_factor != 1.0f && j < m->params[i].count; j++)
            grads[m->params[i].offset + j] *= m->params[i].grad_factor;
}

static tn_status finish_gradients(tn_engine *e) {
    TN_TRY(tn_pool_run(e->pool, e->model->node_count, finish_node, e));
    scalar_gradients(e);
    for (int i = e->model->node_count - 1; i >= 0; i--)
        if (!e->node_finite[i])
            return tn_fail(TN_ERR_DIVERGED,
                           "a value that is not finite first appeared in the gradient of layer %s",
                           e->model->nodes[i].name);
    return TN_OK;
}

tn_status tn_engine_gradients(tn_engine *e, const tn_batch *batch, tn_result *result) {
    if (!e->config.training) return tn_fail(TN_ERR_USAGE, "this engine was not made for training");
    TN_TRY(begin_batch(e, batch));
    e->eval_loaded = false;
    if (e->bad_node >= 0) return fail_weights(e);
    const tn_program *program = tn_executor_program(e->executor, true);
    batch_run run = {.engine = e, .batch = batch, .training = true};
    for (; run.segment < program->segment_count; run.segment++) TN_TRY(run_segment(&run));
    TN_TRY(fail_if_nonfinite(e));
    TN_TRY(finish_gradients(e));
    for (int i = 0; i < e->model->state_count; i++) e->norm_batches[i]++;
    add_results(e, batch, result);
    return TN_OK;
}

typedef struct update_run {
    tn_engine *engine;
    const tn_sgd *sgd;
    int pieces; /* of each group */
} update_run;

/* One piece of one optimizer group. */
static tn_status update_piece(void *context, int index, int worker) {
    const update_run *run = context;
    tn_engine *e = run->engine;
    const tn_model *m = e->model;
    bool scalars = index >= run->pieces;
    size_t first = scalars ? m->weight_floats : 0, last = scalars ? m->trained_floats : m->weight_floats;
    size_t piece = (size_t)(index % run->pieces),
           width = (last - first + (size_t)run->pieces - 1) / (size_t)run->pieces;
    size_t from = first + piece * width, to = from + width < last ? from + width : last;
    if (from >= to) return TN_OK;
    double start = tn_now(), lr = run->sgd->lr * (scalars ? run->sgd->scalar_lr : 1.0);
    e->backend->ops->sgd(e->backend, e->flat.values + from, e->flat.grads + from, e->flat.momentum + from,
                         to - from, (float)lr, (float)run->sgd->momentum, (float)run->sgd->weight_decay);
    trace_add(e, worker, "sgd", "update", start);
    return TN_OK;
}

tn_status tn_engine_update(tn_engine *e, const tn_sgd *sgd) {
    if (!e->config.training) return tn_fail(TN_ERR_USAGE, "this engine was not made for training");
    update_run run = {.engine = e, .sgd = sgd, .pieces = e->config.threads};
    TN_TRY(tn_pool_run(e->pool, 2 * run.pieces, update_piece, &run));
    e->packed = false;
    TN_TRY(tn_engine_pack(e));
    return e->bad_node >= 0 ? fail_weights(e) : TN_OK;
}

/* ---- evaluation ---- */

static tn_status load_statistics(void *context, int node, int worker) {
    tn_engine *e = context;
    const tn_node_ops *ops = ops_of(e, node);
    (void)worker;
    return ops->load_statistics ? ops->load_statistics(tn_executor_plan(e->executor, node), &e->flat) : TN_OK;
}

tn_status tn_engine_eval(tn_engine *e, const tn_batch *batch, tn_result *result, float *logits) {
    TN_TRY(begin_batch(e, batch));
    if (e->bad_node >= 0) return fail_weights(e);
    if (!e->eval_loaded) TN_TRY(tn_pool_run(e->pool, e->model->node_count, load_statistics, e));
    e->eval_loaded = true;
    batch_run run = {.engine = e, .batch = batch, .logits = logits};
    TN_TRY(tn_pool_run(e->pool, chunk_count(e, batch), run_chunk, &run));
    add_results(e, batch, result);
    return TN_OK;
}
