/* Gradients of chunks on their way to the flat buffers: through the tree of this process, in buckets over the
 * other processes while later layers still compute, and then collected.
 *
 * The gradients of a segment stand in its buffers in the order in which backward makes them, last layers
 * first, and are cut into buckets in that order. A bucket of the whole process is complete when its last
 * chunk has passed those layers; from then on the calling thread moves it over the processes (comm.h: all
 * communication is its own), beside the workers. Networks with batch norm have a segment for each norm: there
 * the sum of one segment goes on while the next one is computed, in two lanes that take turns. */
#include "base/clock.h"
#include "base/memory.h"
#include "engine/state.h"

/* A smaller message would be latency, most of all. */
#define BUCKET_FLOATS ((size_t)1 << 16)
/* Between looks at sums that are under way. */
#define PROGRESS_SECONDS 1e-4

/* ---- life ---- */

/* Cuts a segment's gradients behind the steps that make them. */
static tn_buckets cut(const tn_program *program, const tn_segment *segment, size_t limit) {
    tn_buckets b = {.count = 0};
    for (int i = segment->first; i < segment->first + segment->count; i++) {
        if (program->steps[i].kind != TN_STEP_BACKWARD) continue;
        size_t end = segment->grad_floats;
        for (int k = segment->first + segment->count - 1; k > i; k--)
            if (program->steps[k].kind == TN_STEP_BACKWARD) end = program->steps[k].grad_offset;
        size_t floats = end - b.bounds[b.count];
        if (floats == 0 || (floats < limit && end < segment->grad_floats)) continue;
        b.last_step[b.count++] = i;
        b.bounds[b.count] = end;
    }
    return b;
}

static tn_status create_lane(tn_engine *e, tn_gradient_lane *lane, const size_t *most, size_t floats) {
    lane->segment = -1;
    TN_TRY(tn_gradient_tree_create(e->backend, e->whole_chunks, e->chunks, e->config.threads, floats,
                                   &lane->tree));
    e->memory[TN_MEMORY_SUMS] += tn_gradient_tree_bytes(lane->tree);
    for (int i = 0; e->ranks && i < TN_BUCKETS_MAX && most[i] > 0; i++) {
        TN_TRY(
            tn_reduction_create(e->config.comm, e->whole_chunks, most[i], "gradients", &lane->reductions[i]));
        e->memory[TN_MEMORY_SUMS] += tn_reduction_bytes(lane->reductions[i]);
    }
    return TN_OK;
}

tn_status tn_sums_create(tn_engine *e) {
    const tn_program *program = tn_executor_program(e->executor, true);
    size_t floats = 0, most[TN_BUCKETS_MAX] = {0};
    int segments = 0;
    TN_TRY(tn_alloc(&e->buckets, (size_t)program->segment_count, sizeof *e->buckets, "gradients"));
    for (int i = 0; i < program->segment_count; i++) {
        size_t all = program->segments[i].grad_floats, limit = all;
        if (e->ranks) limit = all / TN_BUCKETS_MAX + 1;
        if (e->ranks && limit < BUCKET_FLOATS) limit = BUCKET_FLOATS;
        tn_buckets *b = &e->buckets[i];
        *b = cut(program, &program->segments[i], limit);
        segments += all > 0;
        if (all > floats) floats = all;
        for (int k = 0; k < b->count; k++)
            if (b->bounds[k + 1] - b->bounds[k] > most[k]) most[k] = b->bounds[k + 1] - b->bounds[k];
    }
    e->lane_count = floats == 0 ? 0 : e->ranks && segments > 1 ? 2 : 1;
    for (int i = 0; i < e->lane_count; i++) TN_TRY(create_lane(e, &e->lanes[i], most, floats));
    return TN_OK;
}

void tn_sums_free(tn_engine *e) {
    for (int i = 0; i < TN_LANES; i++) {
        tn_gradient_tree_free(e->lanes[i].tree);
        for (int k = 0; k < TN_BUCKETS_MAX; k++) tn_reduction_free(e->lanes[i].reductions[k]);
    }
    tn_free(e->buckets);
}

/* ---- over the processes ---- */

/* Begins the sums of buckets that are ready, in their order, which is that of all processes. */
static tn_status start_ready(const tn_batch_run *run, tn_gradient_lane *lane) {
    tn_engine *e = run->engine;
    const tn_buckets *b = &e->buckets[lane->segment];
    const float *parts[TN_SUM_PARTS_MAX], *other;
    for (; lane->started < b->count && tn_gradient_tree_ready(lane->tree, lane->started); lane->started++) {
        int i = lane->started;
        tn_gradient_tree_parts(lane->tree, i, parts);
        TN_TRY(tn_reduction_start(lane->reductions[i], run->share.chunks, b->bounds[i + 1] - b->bounds[i],
                                  parts, tn_gradient_tree_sum(lane->tree, &other) + b->bounds[i]));
    }
    return TN_OK;
}

tn_status tn_sums_aside(void *context, double *pause) {
    const tn_batch_run *run = context;
    bool done;
    for (int l = 0; l < run->engine->lane_count; l++) {
        tn_gradient_lane *lane = &run->engine->lanes[l];
        if (lane->segment < 0) continue;
        TN_TRY(start_ready(run, lane));
        for (int i = 0; i < lane->started; i++) {
            TN_TRY(tn_reduction_progress(lane->reductions[i], &done));
            if (!done) *pause = PROGRESS_SECONDS;
        }
    }
    return TN_OK;
}

/* ---- to the flat buffers ---- */

typedef struct collection {
    tn_engine *engine;
    const tn_gradient_lane *lane;
} collection;

static tn_status collect_step(void *context, int index, int worker) {
    const collection *c = context;
    tn_engine *e = c->engine;
    const tn_program *program = tn_executor_program(e->executor, true);
    const tn_step *step = &program->steps[program->segments[c->lane->segment].first + index];
    const tn_node_ops *ops = tn_engine_node_ops(e, step->node);
    tn_plan *plan = tn_executor_plan(e->executor, step->node);
    if (step->kind != TN_STEP_BACKWARD || plan->grad_floats == 0) return TN_OK;
    double start = tn_now();
    const float *other;
    float *sum = tn_gradient_tree_sum(c->lane->tree, &other);
    TN_TRY(ops->collect(plan, worker, sum + step->grad_offset, other ? other + step->grad_offset : NULL,
                        &e->flat, tn_engine_flags(e, TN_FLAG_GRADIENT, worker) + step->node));
    tn_engine_trace_work(e, worker, e->model->nodes[step->node].name, "collect", start);
    return TN_OK;
}

static tn_status finish_lane(tn_engine *e, tn_gradient_lane *lane) {
    collection c = {e, lane};
    double start = tn_now();
    if (lane->segment < 0) return TN_OK;
    for (int i = 0; e->ranks && i < e->buckets[lane->segment].count; i++)
        TN_TRY(tn_reduction_finish(lane->reductions[i]));
    if (e->ranks) tn_engine_trace_work(e, e->config.threads, "sum over processes", "communication", start);
    const tn_segment *segment = &tn_executor_program(e->executor, true)->segments[lane->segment];
    TN_TRY(tn_pool_run(e->pool, segment->count, collect_step, &c));
    lane->segment = -1;
    return TN_OK;
}

/* ---- a batch ---- */

tn_status tn_sums_begin(tn_batch_run *run) {
    tn_engine *e = run->engine;
    const tn_buckets *b = &e->buckets[run->segment];
    tn_batch_share share = run->share;
    run->lane = NULL;
    if (b->count == 0) return TN_OK;
    e->next_lane = (e->next_lane + 1) % e->lane_count;
    run->lane = &e->lanes[e->next_lane];
    TN_TRY(finish_lane(e, run->lane));
    run->lane->segment = run->segment;
    run->lane->started = 0;
    tn_gradient_tree_begin(run->lane->tree, share.chunks, share.first, share.count, b->count, b->bounds);
    return TN_OK;
}

void tn_sums_bring(const tn_batch_run *run, const tn_chunk *chunk, int step, int worker) {
    tn_engine *e = run->engine;
    const tn_buckets *b = &e->buckets[run->segment];
    for (int i = 0; i < b->count; i++) {
        if (b->last_step[i] != step) continue;
        double start = tn_now();
        if (tn_gradient_tree_bring(run->lane->tree, chunk->place, i, chunk->grads) && e->ranks)
            tn_pool_wake(e->pool);
        tn_engine_trace_work(e, worker, "sum gradients", "reduction", start);
    }
}

tn_status tn_sums_end(tn_batch_run *run) {
    if (!run->lane) return TN_OK;
    return run->engine->ranks ? start_ready(run, run->lane) : finish_lane(run->engine, run->lane);
}

tn_status tn_sums_finish(tn_engine *e) {
    for (int i = 1; i <= e->lane_count; i++)
        TN_TRY(finish_lane(e, &e->lanes[(e->next_lane + i) % e->lane_count]));
    return TN_OK;
}
