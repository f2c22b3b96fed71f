#include "engine/executor.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"

/* Memory of all buffers that one worker or one chunk owns; with separate_buffers each has its own. */
typedef struct arena {
    char *memory;
    char **apart[2]; /* [training]: [buffer_count] */
} arena;

struct tn_executor {
    const tn_model *model;
    tn_backend *backend;
    tn_executor_config config;
    tn_plan **plans;
    int *spans;           /* [node_count]: nodes of the operation that begins there */
    tn_plan **span_plans; /* [node_count]: where there is more than one */
    bool *gates;          /* [node_count]: see tn_program_config */
    tn_program train, eval;
    arena *worker_arenas, *chunk_arenas;          /* [workers], [chunks] */
    void **scratch;                               /* [workers] */
    size_t plan_bytes, worker_bytes, chunk_bytes; /* held in total */
};

/* With recompute, the inside of a block is forgotten, which a span keeps. */
static tn_status plan_spans(tn_executor *e) {
    const tn_backend_ops *ops = e->backend->ops;
    const int nodes = e->model->node_count;
    for (int i = 0; i < nodes; i++) e->spans[i] = 1;
    if (!ops->span || e->config.separate_layers || e->config.recompute) return TN_OK;
    for (int i = 0; i < nodes; i += e->spans[i]) {
        e->spans[i] = ops->span(e->backend, e->model, i, e->config.chunk_rows);
        if (e->spans[i] > 1)
            TN_TRY(ops->span_plan(e->backend, e->model, i, e->spans[i], e->config.statistics,
                                  e->config.training, e->plans, &e->span_plans[i]));
    }
    return TN_OK;
}

static void plan_gates(tn_executor *e) {
    for (int i = 0; i < e->model->node_count; i++) {
        const tn_node *node = &e->model->nodes[i];
        const tn_node_ops *ops = e->backend->ops->nodes[node->kind];
        const int maker = e->model->tensors[node->input].producer;
        e->gates[i] = ops->gates && maker >= 0 && ops->gates(e->plans[i], e->plans[maker]);
    }
}

static void count_memory(tn_executor *e, const tn_plan *plan, size_t *scratch_bytes) {
    if (!plan) return;
    e->plan_bytes += plan->bytes;
    if (plan->scratch_bytes > *scratch_bytes) *scratch_bytes = plan->scratch_bytes;
}

static tn_status plan_nodes(tn_executor *e, size_t *grad_floats, size_t *inner_bytes, size_t *scratch_bytes) {
    const tn_model *model = e->model;
    for (int i = 0; i < model->node_count; i++) {
        const tn_node_ops *ops = e->backend->ops->nodes[model->nodes[i].kind];
        TN_TRY(ops->plan(e->backend, model, i, e->config.chunk_rows, e->config.statistics, e->config.training,
                         &e->plans[i]));
        grad_floats[i] = e->plans[i]->grad_floats;
    }
    TN_TRY(plan_spans(e));
    plan_gates(e);
    for (int i = 0; i < model->node_count; i++) {
        count_memory(e, e->plans[i], scratch_bytes);
        count_memory(e, e->span_plans[i], scratch_bytes);
        if (e->span_plans[i]) inner_bytes[i] = e->span_plans[i]->inner_bytes;
    }
    return TN_OK;
}

static tn_status allocate_apart(tn_executor *e, const tn_program *program, bool per_chunk, char ***out) {
    tn_backend *b = e->backend;
    TN_TRY(tn_alloc(out, (size_t)program->buffer_count, sizeof(char *), "executor"));
    for (int i = 1; i < program->buffer_count; i++)
        if (program->buffers[i].per_chunk == per_chunk)
            TN_TRY(b->ops->alloc(b, &(*out)[i], program->buffers[i].bytes, "an activation"));
    return TN_OK;
}

static tn_status allocate_arenas(tn_executor *e, int count, bool per_chunk, const char *what, arena **out) {
    tn_backend *b = e->backend;
    const tn_program *programs[] = {&e->eval, &e->train};
    size_t bytes = 0;
    for (int i = 0; i < 2; i++) {
        size_t wanted = per_chunk ? programs[i]->chunk_bytes : programs[i]->worker_bytes;
        if (wanted > bytes) bytes = wanted;
    }
    TN_TRY(tn_alloc(out, (size_t)count, sizeof **out, "executor"));
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < 2 && e->config.separate_buffers; k++)
            TN_TRY(allocate_apart(e, programs[k], per_chunk, &(*out)[i].apart[k]));
        if (bytes > 0 && !e->config.separate_buffers)
            TN_TRY(b->ops->alloc(b, &(*out)[i].memory, bytes, what));
        *(per_chunk ? &e->chunk_bytes : &e->worker_bytes) += bytes;
    }
    return TN_OK;
}

static tn_status allocate(tn_executor *e, size_t scratch_bytes) {
    tn_backend *b = e->backend;
    TN_TRY(allocate_arenas(e, e->config.workers, false, "activations of a worker", &e->worker_arenas));
    TN_TRY(allocate_arenas(e, e->config.chunks, true, "activations of a chunk", &e->chunk_arenas));
    TN_TRY(tn_alloc(&e->scratch, (size_t)e->config.workers, sizeof(void *), "executor"));
    for (int i = 0; i < e->config.workers; i++) {
        TN_TRY(b->ops->alloc(b, &e->scratch[i], scratch_bytes, "scratch of a worker"));
        e->worker_bytes += scratch_bytes;
    }
    return TN_OK;
}

/* Both arrays are zeros, [node_count]. */
static tn_status create(tn_executor *e, size_t *grad_floats, size_t *inner_bytes) {
    size_t scratch_bytes = 0;
    TN_TRY(plan_nodes(e, grad_floats, inner_bytes, &scratch_bytes));
    tn_program_config config = {.backend = e->backend,
                                .rows = e->config.chunk_rows,
                                .grad_floats = grad_floats,
                                .spans = e->spans,
                                .inner_bytes = inner_bytes};
    TN_TRY(tn_program_compile(e->model, &config, &e->eval));
    config.training = true;
    config.gates = e->gates;
    config.recompute = e->config.recompute;
    if (e->config.training) TN_TRY(tn_program_compile(e->model, &config, &e->train));
    return allocate(e, scratch_bytes);
}

tn_status tn_executor_create(const tn_model *model, tn_backend *backend, const tn_executor_config *config,
                             tn_executor **out) {
    tn_executor *e;
    size_t *sizes = NULL; /* of each node gradients, then what spans keep */
    *out = NULL;
    TN_TRY(tn_alloc(&e, 1, sizeof *e, "executor"));
    e->model = model;
    e->backend = backend;
    e->config = *config;
    TN_ASSERT(config->chunks >= 1 && config->statistics >= config->chunks);
    tn_status status = tn_alloc(&e->plans, (size_t)model->node_count, sizeof *e->plans, "executor");
    if (status == TN_OK)
        status = tn_alloc(&e->spans, (size_t)model->node_count, sizeof *e->spans, "executor");
    if (status == TN_OK)
        status = tn_alloc(&e->span_plans, (size_t)model->node_count, sizeof *e->span_plans, "executor");
    if (status == TN_OK)
        status = tn_alloc(&e->gates, (size_t)model->node_count, sizeof *e->gates, "executor");
    if (status == TN_OK) status = tn_alloc(&sizes, 2 * (size_t)model->node_count, sizeof(size_t), "executor");
    if (status == TN_OK) status = create(e, sizes, sizes + model->node_count);
    tn_free(sizes);
    if (status != TN_OK) {
        tn_executor_free(e);
        return status;
    }
    *out = e;
    return TN_OK;
}

static void release(const tn_executor *e, void *memory) {
    if (memory) e->backend->ops->release(e->backend, memory);
}

static void release_arenas(const tn_executor *e, arena *arenas, int count) {
    for (int i = 0; arenas && i < count; i++) {
        release(e, arenas[i].memory);
        for (int k = 0; k < 2; k++) {
            int buffers = k ? e->train.buffer_count : e->eval.buffer_count;
            for (int j = 0; arenas[i].apart[k] && j < buffers; j++) release(e, arenas[i].apart[k][j]);
            tn_free(arenas[i].apart[k]);
        }
    }
    tn_free(arenas);
}

void tn_executor_free(tn_executor *e) {
    if (!e) return;
    for (int i = 0; e->plans && i < e->model->node_count; i++)
        if (e->plans[i]) e->backend->ops->nodes[e->model->nodes[i].kind]->free(e->plans[i]);
    for (int i = 0; e->span_plans && i < e->model->node_count; i++)
        if (e->span_plans[i]) e->backend->ops->spans->free(e->span_plans[i]);
    tn_free(e->plans);
    tn_free(e->spans);
    tn_free(e->span_plans);
    tn_free(e->gates);
    release_arenas(e, e->worker_arenas, e->config.workers);
    release_arenas(e, e->chunk_arenas, e->config.chunks);
    for (int i = 0; e->scratch && i < e->config.workers; i++) release(e, e->scratch[i]);
    tn_free(e->scratch);
    tn_program_free(&e->train);
    tn_program_free(&e->eval);
    tn_free(e);
}

const tn_program *tn_executor_program(const tn_executor *e, bool training) {
    return training ? &e->train : &e->eval;
}

tn_plan *const *tn_executor_plans(const tn_executor *e) {
    return e->plans;
}

tn_plan *tn_executor_plan(const tn_executor *e, int node) {
    return e->plans[node];
}

bool tn_executor_has_spans(const tn_executor *e) {
    for (int i = 0; i < e->model->node_count; i++)
        if (e->span_plans[i]) return true;
    return false;
}

bool tn_executor_checks_images(const tn_executor *e) {
    for (int i = 0; i < e->model->node_count; i++)
        if (e->model->nodes[i].input == 0 && e->plans[i]->checks_input) return true;
    return false;
}

void tn_executor_memory(const tn_executor *e, size_t bytes[TN_MEMORY_USES]) {
    bytes[TN_MEMORY_LAYERS] = e->plan_bytes;
    bytes[TN_MEMORY_WORKERS] = e->worker_bytes;
    bytes[TN_MEMORY_CHUNKS] = e->chunk_bytes;
}

static char *place_of(const tn_executor *e, const arena *owner, const tn_program *program, int buffer) {
    char **apart = owner->apart[program == &e->train];
    return apart ? apart[buffer] : owner->memory + program->buffers[buffer].offset;
}

tn_status tn_executor_logits(const tn_executor *e, int worker, int rows, float *logits) {
    const tn_buffer *b = &e->eval.buffers[e->eval.output];
    const void *from = place_of(e, &e->worker_arenas[worker], &e->eval, e->eval.output);
    size_t count = (size_t)rows * (size_t)e->model->classes;
    return e->backend->ops->read(e->backend, e->model, b->tensor, logits, from, count);
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
    const arena *owner =
        b->per_chunk ? &f->executor->chunk_arenas[f->chunk->index] : &f->executor->worker_arenas[f->worker];
    return (float *)(void *)place_of(f->executor, owner, f->program, buffer);
}

static const float *input_address(const frame *f, int buffer) {
    return buffer == 0 ? f->chunk->images : address(f, buffer);
}

static tn_status run_step(const frame *f, const tn_step *step, int *nonfinite) {
    const tn_executor *e = f->executor;
    const tn_chunk *chunk = f->chunk;
    /* A probe wants dL/dy, which a gate does not leave. */
    const bool span = step->span > 1, gated = !chunk->probe;
    tn_plan *plan = span ? e->span_plans[step->node] : e->plans[step->node];
    const tn_node_ops *ops = span ? e->backend->ops->spans : e->backend->ops->nodes[plan->node->kind];
    tn_args args = {.worker = f->worker,
                    .chunk = chunk->statistics,
                    .rows = chunk->rows,
                    .x = input_address(f, step->x),
                    .r = gated || step->kind == TN_STEP_FORWARD ? input_address(f, step->r) : NULL,
                    .y = address(f, step->y),
                    .inner = address(f, step->inner),
                    .dy_count = gated && step->made ? 0 : step->dy_count,
                    .gate = gated && step->gate >= 0 ? e->plans[step->gate] : NULL,
                    .dz = address(f, step->dz),
                    .dx = address(f, step->dx),
                    .grad = chunk->grads ? chunk->grads + step->grad_offset : NULL,
                    .scratch = e->scratch[f->worker],
                    .nonfinite = &nonfinite[step->node],
                    .x_nonfinite = step->x == 0 ? &nonfinite[e->model->node_count] : NULL,
                    .flat = chunk->flat,
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
    double *sums = probe->sums + 2 * ((size_t)f->chunk->place * (size_t)probe->count + (size_t)place);
    return e->backend->ops->square_sum(e->backend, e->model, e->model->nodes[step->node].output, parts, count,
                                       which ? 0.0f : probe->carried[place], floats, &sums[which]);
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
    const tn_backend_ops *ops = e->backend->ops;
    for (int i = s->first; i < s->first + s->count; i++) {
        const tn_step *step = &f.program->steps[i];
        double start = trace ? tn_now() : 0;
        if (chunk->probe) TN_TRY(probe_before(&f, step));
        if (ops->range_begin) ops->range_begin(categories[step->kind], e->model->nodes[step->node].name);
        tn_status status = run_step(&f, step, nonfinite);
        if (ops->range_end) ops->range_end();
        TN_TRY(status);
        if (chunk->probe) TN_TRY(probe_after(&f, step));
        if (step->kind == TN_STEP_BACKWARD) TN_TRY(chunk->passed(chunk->context, chunk, i, worker));
        if (trace)
            tn_trace_add(trace, worker, e->model->nodes[step->node].name, categories[step->kind], start,
                         tn_now());
    }
    return TN_OK;
}

tn_status tn_executor_merge(tn_executor *e, int segment, int chunks, int rows, const tn_flat *flat,
                            int *nonfinite) {
    const tn_segment *s = &e->train.segments[segment];
    if (s->merge == TN_MERGE_NONE) return TN_OK;
    tn_plan *plan = e->plans[s->merge_node];
    const tn_node_ops *ops = e->backend->ops->nodes[TN_NODE_NORM];
    if (s->merge == TN_MERGE_STATISTICS)
        return ops->merge_statistics(plan, chunks, rows, flat, &nonfinite[s->merge_node]);
    return ops->merge_reduce(plan, chunks, rows, flat);
}
