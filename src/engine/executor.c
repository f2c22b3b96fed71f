#include "engine/executor.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

struct tn_executor {
    const tn_model *model;
    tn_backend *backend;
    tn_executor_config config;
    tn_plan **plans;
    tn_program train, eval;
    float **worker_arenas, **chunk_arenas; /* [workers], [chunks] */
    void **scratch;                        /* [workers] */
    size_t bytes;
};

static tn_status plan_nodes(tn_executor *e, size_t *grad_floats, size_t *scratch_bytes) {
    const tn_model *model = e->model;
    for (int i = 0; i < model->node_count; i++) {
        const tn_node_ops *ops = e->backend->ops->nodes[model->nodes[i].kind];
        TN_TRY(ops->plan(e->backend, model, i, e->config.chunk_rows, e->config.chunks, e->config.training,
                         &e->plans[i]));
        const tn_plan *plan = e->plans[i];
        grad_floats[i] = plan->grad_floats;
        e->bytes += plan->bytes;
        if (plan->scratch_bytes > *scratch_bytes) *scratch_bytes = plan->scratch_bytes;
    }
    return TN_OK;
}

static tn_status allocate(tn_executor *e, size_t scratch_bytes) {
    tn_backend *b = e->backend;
    size_t worker =
        e->eval.worker_floats > e->train.worker_floats ? e->eval.worker_floats : e->train.worker_floats;
    TN_TRY(tn_alloc(&e->worker_arenas, (size_t)e->config.workers, sizeof(float *), "executor"));
    TN_TRY(tn_alloc(&e->scratch, (size_t)e->config.workers, sizeof(void *), "executor"));
    TN_TRY(tn_alloc(&e->chunk_arenas, (size_t)e->config.chunks, sizeof(float *), "executor"));
    for (int i = 0; i < e->config.workers; i++) {
        TN_TRY(b->ops->alloc(b, &e->worker_arenas[i], worker * sizeof(float), "activations of a worker"));
        TN_TRY(b->ops->alloc(b, &e->scratch[i], scratch_bytes, "scratch of a worker"));
        e->bytes += worker * sizeof(float) + scratch_bytes;
    }
    size_t chunk = e->train.chunk_floats * sizeof(float);
    for (int i = 0; chunk && i < e->config.chunks; i++) {
        TN_TRY(b->ops->alloc(b, &e->chunk_arenas[i], chunk, "activations of a chunk"));
        e->bytes += chunk;
    }
    return TN_OK;
}

static tn_status create(tn_executor *e, size_t *grad_floats) {
    size_t scratch_bytes = 0;
    TN_TRY(plan_nodes(e, grad_floats, &scratch_bytes));
    TN_TRY(tn_program_compile(e->model, e->config.chunk_rows, false, grad_floats, &e->eval));
    if (e->config.training)
        TN_TRY(tn_program_compile(e->model, e->config.chunk_rows, true, grad_floats, &e->train));
    return allocate(e, scratch_bytes);
}

tn_status tn_executor_create(const tn_model *model, tn_backend *backend, const tn_executor_config *config,
                             tn_executor **out) {
    tn_executor *e;
    size_t *grad_floats = NULL;
    *out = NULL;
    TN_TRY(tn_alloc(&e, 1, sizeof *e, "executor"));
    e->model = model;
    e->backend = backend;
    e->config = *config;
    tn_status status = tn_alloc(&e->plans, (size_t)model->node_count, sizeof *e->plans, "executor");
    if (status == TN_OK)
        status = tn_alloc(&grad_floats, (size_t)model->node_count, sizeof(size_t), "executor");
    if (status == TN_OK) status = create(e, grad_floats);
    tn_free(grad_floats);
    if (status != TN_OK) {
        tn_executor_free(e);
        return status;
    }
    *out = e;
    return TN_OK;
}

static void release_all(tn_backend *backend, void **memories, int count) {
    for (int i = 0; memories && i < count; i++)
        if (memories[i]) backend->ops->release(backend, memories[i]);
    tn_free(memories);
}

void tn_executor_free(tn_executor *e) {
    if (!e) return;
    for (int i = 0; e->plans && i < e->model->node_count; i++)
        if (e->plans[i]) e->backend->ops->nodes[e->model->nodes[i].kind]->free(e->plans[i]);
    tn_free(e->plans);
    release_all(e->backend, (void **)e->worker_arenas, e->config.workers);
    release_all(e->backend, (void **)e->chunk_arenas, e->config.chunks);
    release_all(e->backend, e->scratch, e->config.workers);
    tn_program_free(&e->train);
    tn_program_free(&e->eval);
    tn_free(e);
}

const tn_program *tn_executor_program(const tn_executor *e, bool training) {
    return training ? &e->train : &e->eval;
}

tn_plan *tn_executor_plan(const tn_executor *e, int node) {
    return e->plans[node];
}

size_t tn_executor_bytes(const tn_executor *e) {
    return e->bytes;
}

const float *tn_executor_logits(const tn_executor *e, int worker) {
    return e->worker_arenas[worker] + e->eval.buffers[e->eval.output].offset;
}

/* ---- running ---- */

typedef struct frame {
    const tn_executor *executor;
    const tn_program *program;
    const tn_chunk *chunk;
    int worker;
} frame;

static float *address(const frame *f, int buffer) {
    if (buffer < 0) return NULL;
    const tn_buffer *b = &f->program->buffers[buffer];
    return (b->per_chunk ? f->executor->chunk_arenas[f->chunk->index]
                         : f->executor->worker_arenas[f->worker]) +
           b->offset;
}

static const float *input_address(const frame *f, int buffer) {
    return buffer == 0 ? f->chunk->images : address(f, buffer);
}

static tn_status run_step(const frame *f, const tn_step *step, int *nonfinite) {
    const tn_executor *e = f->executor;
    const tn_chunk *chunk = f->chunk;
    tn_plan *plan = e->plans[step->node];
    const tn_node_ops *ops = e->backend->ops->nodes[plan->node->kind];
    tn_args args = {.worker = f->worker,
                    .chunk = chunk->index,
                    .rows = chunk->rows,
                    .x = input_address(f, step->x),
                    .r = input_address(f, step->r),
                    .y = address(f, step->y),
                    .dy_count = step->dy_count,
                    .dz = address(f, step->dz),
                    .dx = address(f, step->dx),
                    .grad = chunk->grads ? chunk->grads + step->grad_offset : NULL,
                    .scratch = e->scratch[f->worker],
                    .nonfinite = &nonfinite[step->node],
                    .targets = chunk->targets,
                    .row_weights = chunk->row_weights,
                    .row_loss = chunk->row_loss,
                    .labels = chunk->labels,
                    .row_rank = chunk->row_rank};
    for (int i = 0; i < step->dy_count; i++) args.dy[i] = address(f, step->dy[i]);
    switch (step->kind) {
    case TN_STEP_FORWARD:
        return ops->forward(plan, &args);
    case TN_STEP_STATISTICS:
        return ops->statistics(plan, &args);
    case TN_STEP_REDUCE:
        return ops->reduce(plan, &args);
    case TN_STEP_BACKWARD:
        return ops->backward(plan, &args);
    }
    return TN_OK;
}

/* Squares of what `parts` add up to, of the rows that count; `which` is 0 for an output, 1 for its gradient.
 */
static tn_status measure(const frame *f, const tn_step *step, const float *const *parts, int count,
                         int which) {
    const tn_executor *e = f->executor;
    const tn_probe *probe = f->chunk->probe;
    int place = probe->place[step->node];
    if (place < 0 || count == 0) return TN_OK;
    tn_shape s = e->model->tensors[e->model->nodes[step->node].output].shape;
    size_t floats = (size_t)f->chunk->rows * (size_t)s.channels * (size_t)s.height * (size_t)s.width;
    double *sums = probe->sums + 2 * ((size_t)f->chunk->index * (size_t)probe->count + (size_t)place);
    return e->backend->ops->square_sum(e->backend, parts, count, which ? 0.0f : probe->carried[place], floats,
                                       &sums[which]);
}

/* Gradients are read before the step that may overwrite them, outputs after the step that makes them. */
static tn_status probe_before(const frame *f, const tn_step *step) {
    const float *dy[TN_PARTS_MAX];
    for (int i = 0; i < step->dy_count; i++) dy[i] = address(f, step->dy[i]);
    return measure(f, step, dy, step->dy_count, 1);
}

static tn_status probe_after(const frame *f, const tn_step *step) {
    if (step->kind != TN_STEP_FORWARD) return TN_OK;
    const float *y = address(f, step->y);
    return measure(f, step, &y, 1, 0);
}

tn_status tn_executor_run(tn_executor *e, bool training, int segment, const tn_chunk *chunk, int worker,
                          int *nonfinite, tn_trace *trace) {
    static const char *const categories[] = {"forward", "statistics", "reduce", "backward"};
    frame f = {.executor = e, .program = tn_executor_program(e, training), .chunk = chunk, .worker = worker};
    const tn_segment *s = &f.program->segments[segment];
    for (int i = s->first; i < s->first + s->count; i++) {
        const tn_step *step = &f.program->steps[i];
        double start = trace ? tn_now() : 0;
        if (chunk->probe) TN_TRY(probe_before(&f, step));
        TN_TRY(run_step(&f, step, nonfinite));
        if (chunk->probe) TN_TRY(probe_after(&f, step));
        if (trace)
            tn_trace_add(trace, worker, e->model->nodes[step->node].name, categories[step->kind], start,
                         tn_now());
    }
    return TN_OK;
}

tn_status tn_executor_merge(tn_executor *e, int segment, int chunks, int rows, const tn_flat *flat,
                            bool *finite) {
    const tn_segment *s = &e->train.segments[segment];
    *finite = true;
    if (s->merge == TN_MERGE_NONE) return TN_OK;
    tn_plan *plan = e->plans[s->merge_node];
    const tn_node_ops *ops = e->backend->ops->nodes[TN_NODE_NORM];
    if (s->merge == TN_MERGE_STATISTICS) return ops->merge_statistics(plan, chunks, rows, flat, finite);
    return ops->merge_reduce(plan, chunks, rows, flat);
}
