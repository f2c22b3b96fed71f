#include "engine/program.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* Buffers and gradients start on a cache line. */
#define ALIGN_BYTES  64
#define ALIGN_FLOATS 16
/* A shortcut has fewer nodes: what stands between a node and that which made its input. */
#define NODES_BETWEEN 4

/* Gradients that flow into one tensor, as buffers. Each buffer is in one list at a time, so whoever consumes
 * the list may overwrite them. */
typedef struct parts {
    int buffers[TN_PARTS_MAX], count;
    int readers; /* of the tensor, each of which brings one */
    bool gated;  /* the first is dz of the tensor's producer, if the step that made it could gate */
} parts;

typedef struct compiler {
    const tn_model *model;
    const tn_program_config *config;
    tn_program *program;
    int *activations; /* tensor -> buffer, -1 when it has to be computed again */
    parts *gradients; /* tensor -> */
    int segment_first;
    size_t segment_grads;
} compiler;

static size_t tensor_bytes(const compiler *c, int tensor) {
    tn_shape s = c->model->tensors[tensor].shape;
    const tn_backend *b = c->config->backend;
    size_t element = b->ops->element_bytes ? b->ops->element_bytes(b, c->model, tensor) : sizeof(float);
    return (size_t)c->config->rows * (size_t)s.channels * (size_t)s.height * (size_t)s.width * element;
}

static tn_status new_buffer(compiler *c, int tensor, int *out) {
    tn_program *p = c->program;
    TN_TRY(tn_grow(&p->buffers, &p->buffer_capacity, (size_t)p->buffer_count + 1, sizeof *p->buffers,
                   "program"));
    p->buffers[p->buffer_count] = (tn_buffer){
        .tensor = tensor, .bytes = tensor_bytes(c, tensor), .first = p->step_count, .last = p->step_count};
    *out = p->buffer_count++;
    return TN_OK;
}

static void touch(compiler *c, int buffer) {
    if (buffer >= 0) c->program->buffers[buffer].last = c->program->step_count;
}

static tn_step step_init(tn_step_kind kind, int node) {
    return (tn_step){.kind = kind,
                     .node = node,
                     .span = 1,
                     .x = -1,
                     .r = -1,
                     .y = -1,
                     .dz = -1,
                     .dx = -1,
                     .inner = -1,
                     .gate = -1};
}

/* What a span read in backward stays while a span that follows it runs (tn_backend_ops.spans). */
static void keep_for_span(compiler *c, const tn_step *step) {
    const tn_program *p = c->program;
    const tn_step *before = p->step_count > 0 ? &p->steps[p->step_count - 1] : NULL;
    if (!before || before->kind != TN_STEP_BACKWARD || before->span == 1 || step->span == 1) return;
    touch(c, before->x);
    touch(c, before->inner);
}

static tn_status emit(compiler *c, tn_step step) {
    tn_program *p = c->program;
    TN_TRY(tn_grow(&p->steps, &p->step_capacity, (size_t)p->step_count + 1, sizeof *p->steps, "program"));
    int operands[] = {step.x, step.r, step.y, step.dz, step.dx, step.inner};
    for (int i = 0; i < 6; i++) touch(c, operands[i]);
    for (int i = 0; i < step.dy_count; i++) touch(c, step.dy[i]);
    keep_for_span(c, &step);
    if (step.kind == TN_STEP_BACKWARD) {
        step.grad_offset = c->segment_grads;
        c->segment_grads +=
            (c->config->grad_floats[step.node] + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
    }
    p->steps[p->step_count++] = step;
    return TN_OK;
}

static tn_status end_segment(compiler *c, tn_merge merge, int node) {
    tn_program *p = c->program;
    TN_TRY(tn_grow(&p->segments, &p->segment_capacity, (size_t)p->segment_count + 1, sizeof *p->segments,
                   "program"));
    p->segments[p->segment_count++] = (tn_segment){.first = c->segment_first,
                                                   .count = p->step_count - c->segment_first,
                                                   .merge = merge,
                                                   .merge_node = node,
                                                   .grad_floats = c->segment_grads};
    c->segment_first = p->step_count;
    c->segment_grads = 0;
    return TN_OK;
}

/* Whether backward computes a node's output again instead of finding it. */
static bool computed_again(const tn_node *node, bool recompute) {
    bool norm = node->kind == TN_NODE_NORM;
    if (!recompute) return norm && node->residual < 0;
    return !node->block && (norm || node->kind == TN_NODE_CONV || node->kind == TN_NODE_SUBSAMPLE ||
                            node->kind == TN_NODE_APPEND || node->kind == TN_NODE_MAXPOOL);
}

static tn_status forget(compiler *c) {
    bool recompute = c->config->recompute, gain = false;
    for (int i = 0; i < c->model->node_count; i++) {
        const tn_node *node = &c->model->nodes[i];
        if (!computed_again(node, recompute)) continue;
        c->activations[node->output] = -1;
        if (!computed_again(node, false)) gain = true;
    }
    if (!recompute || gain) return TN_OK;
    return tn_fail(TN_ERR_USAGE,
                   "--recompute: the blocks of %s have no inside to compute again; leave it out",
                   c->model->model_name);
}

static tn_status emit_forward(compiler *c, int index, int y) {
    const tn_node *node = &c->model->nodes[index];
    tn_step step = step_init(TN_STEP_FORWARD, index);
    step.x = c->activations[node->input];
    step.r = node->residual >= 0 && !tn_node_adds_own_input(node) ? c->activations[node->residual] : -1;
    step.y = y;
    return emit(c, step);
}

static tn_status add_part(compiler *c, int tensor, int buffer) {
    parts *list = &c->gradients[tensor];
    TN_ASSERT(list->count < TN_PARTS_MAX);
    list->buffers[list->count++] = buffer;
    return TN_OK;
}

static tn_status forward(compiler *c, int index) {
    const tn_node *node = &c->model->nodes[index];
    if (node->kind == TN_NODE_LOSS) {
        tn_step step = step_init(c->config->training ? TN_STEP_BACKWARD : TN_STEP_FORWARD, index);
        step.x = c->activations[node->input];
        c->program->output = step.x;
        if (c->config->training) {
            TN_TRY(new_buffer(c, node->input, &step.dx));
            TN_TRY(add_part(c, node->input, step.dx));
        }
        return emit(c, step);
    }
    if (node->kind == TN_NODE_NORM && c->config->training) {
        tn_step step = step_init(TN_STEP_STATISTICS, index);
        step.x = c->activations[node->input];
        TN_TRY(emit(c, step));
        TN_TRY(end_segment(c, TN_MERGE_STATISTICS, index));
    }
    int y;
    TN_TRY(new_buffer(c, node->output, &y));
    TN_TRY(emit_forward(c, index, y));
    c->activations[node->output] = y;
    return TN_OK;
}

/* The activation of a tensor for use in backward. */
static tn_status recall(compiler *c, int tensor, int *buffer) {
    if (c->activations[tensor] < 0) {
        const tn_node *node = &c->model->nodes[c->model->tensors[tensor].producer];
        int y;
        TN_TRY(recall(c, node->input, &y));
        if (node->residual >= 0) TN_TRY(recall(c, node->residual, &y));
        TN_TRY(new_buffer(c, tensor, &y));
        TN_TRY(emit_forward(c, c->model->tensors[tensor].producer, y));
        c->activations[tensor] = y;
    }
    *buffer = c->activations[tensor];
    return TN_OK;
}

/* dx becomes dz of the input's producer where all other readers' gradients, one at most, are there. */
static void gate(const compiler *c, const tn_node *node, tn_step *step) {
    const parts *list = &c->gradients[node->input];
    if (!c->config->gates || !c->config->gates[step->node] || node->residual == node->input ||
        list->count > 1 || list->count + 1 < list->readers)
        return;
    step->gate = c->model->tensors[node->input].producer;
    if (list->count > 0) step->r = list->buffers[0];
}

static tn_status add_gradient(compiler *c, int tensor, const tn_step *step) {
    parts *list = &c->gradients[tensor];
    TN_TRY(add_part(c, tensor, step->dx));
    if (step->gate < 0) return TN_OK;
    list->gated = true;
    list->buffers[list->count - 1] = list->buffers[0];
    list->buffers[0] = step->dx;
    return TN_OK;
}

static tn_status backward(compiler *c, int index) {
    const tn_node *node = &c->model->nodes[index];
    bool matrix = node->kind == TN_NODE_CONV || node->kind == TN_NODE_LINEAR,
         norm = node->kind == TN_NODE_NORM;
    const parts *dy = &c->gradients[node->output];
    if (dy->count == 0) return TN_OK; /* nothing depends on this node */
    tn_step step = step_init(norm ? TN_STEP_REDUCE : TN_STEP_BACKWARD, index);
    if (matrix || norm || node->kind == TN_NODE_MAXPOOL) TN_TRY(recall(c, node->input, &step.x));
    bool reads_y = matrix || (norm && node->relu);
    if (reads_y) TN_TRY(recall(c, node->output, &step.y));
    memcpy(step.dy, dy->buffers, sizeof step.dy);
    step.dy_count = dy->count;
    step.dz = dy->buffers[0];
    step.made = dy->gated;
    if (norm) {
        TN_TRY(emit(c, step));
        TN_TRY(end_segment(c, TN_MERGE_REDUCE, index));
        int x = step.x, dz = step.dz;
        step = step_init(TN_STEP_BACKWARD, index);
        step.x = x;
        step.dz = dz;
    }
    if (node->input != 0) {
        /* Only norm can work in place, and only when nobody else waits for dz and values are as long. */
        if (norm && node->residual < 0 && tensor_bytes(c, node->input) == tensor_bytes(c, node->output))
            step.dx = step.dz;
        else
            TN_TRY(new_buffer(c, node->input, &step.dx));
    }
    gate(c, node, &step);
    TN_TRY(emit(c, step));
    if (node->residual >= 0 && !tn_node_adds_own_input(node)) TN_TRY(add_part(c, node->residual, step.dz));
    return step.dx >= 0 ? add_gradient(c, node->input, &step) : TN_OK;
}

/* ---- spans ---- */

static int span_at(const compiler *c, int node) {
    return c->config->spans ? c->config->spans[node] : 1;
}

/* What lies between the first node and the last is nobody else's: what is kept of it is one buffer. */
static tn_status forward_span(compiler *c, int first, int count) {
    const tn_node *nodes = c->model->nodes + first;
    tn_step step = step_init(TN_STEP_FORWARD, first);
    step.span = count;
    step.x = c->activations[nodes[0].input];
    if (c->config->training) {
        TN_TRY(new_buffer(c, nodes[0].output, &step.inner));
        c->program->buffers[step.inner].bytes = c->config->inner_bytes[first];
        c->activations[nodes[0].output] = step.inner;
    }
    TN_TRY(new_buffer(c, nodes[count - 1].output, &step.y));
    c->activations[nodes[count - 1].output] = step.y;
    return emit(c, step);
}

/* A loss makes gradients at once: of all nodes of its span. */
static tn_status loss_span(compiler *c, int first, int count) {
    const tn_node *nodes = c->model->nodes + first;
    tn_step step = step_init(c->config->training ? TN_STEP_BACKWARD : TN_STEP_FORWARD, first);
    step.span = count;
    step.x = c->activations[nodes[0].input];
    TN_TRY(new_buffer(c, nodes[count - 1].input, &step.y));
    c->program->output = step.y;
    if (c->config->training) {
        TN_TRY(new_buffer(c, nodes[0].input, &step.dx));
        TN_TRY(add_part(c, nodes[0].input, step.dx));
    }
    return emit(c, step);
}

static tn_status backward_span(compiler *c, int first, int count) {
    const tn_node *nodes = c->model->nodes + first;
    const parts *dy = &c->gradients[nodes[count - 1].output];
    if (dy->count == 0) return TN_OK;
    tn_step step = step_init(TN_STEP_BACKWARD, first);
    step.span = count;
    step.inner = c->activations[nodes[0].output];
    TN_TRY(recall(c, nodes[0].input, &step.x));
    memcpy(step.dy, dy->buffers, sizeof step.dy);
    step.dy_count = dy->count;
    TN_TRY(new_buffer(c, nodes[0].input, &step.dx));
    TN_TRY(emit(c, step));
    return add_part(c, nodes[0].input, step.dx);
}

static tn_status compile_forward(compiler *c) {
    for (int i = 0, count; i < c->model->node_count; i += count) {
        count = span_at(c, i);
        const bool loss = c->model->nodes[i + count - 1].kind == TN_NODE_LOSS;
        TN_TRY(count == 1 ? forward(c, i) : (loss ? loss_span : forward_span)(c, i, count));
    }
    return TN_OK;
}

/* A node that could gate but for readers of its input which stand before it (a shortcut where a block changes
 * the shape): how many nodes go first, which do not wait for it. */
static int nodes_before(const compiler *c, const int *first, int index) {
    const tn_node *nodes = c->model->nodes, *node = &nodes[index];
    const int maker = c->model->tensors[node->input].producer;
    if (!c->config->gates || !c->config->gates[index]) return 0;
    for (int i = index - 1; i > maker; i--)
        if (first[i] < i || span_at(c, i) > 1 || nodes[i].kind == TN_NODE_NORM ||
            nodes[i].kind == TN_NODE_LOSS || nodes[i].output == node->residual ||
            index - maker > NODES_BETWEEN)
            return 0;
    return index - maker - 1;
}

static tn_status backward_from(compiler *c, const int *first) {
    for (int i = c->model->node_count - 1; i >= 0; i--) {
        const int before = first[i] < i ? 0 : nodes_before(c, first, i);
        if (first[i] < i) {
            if (c->model->nodes[i].kind != TN_NODE_LOSS) TN_TRY(backward_span(c, first[i], i - first[i] + 1));
            i = first[i];
            continue;
        }
        for (int k = 1; k <= before; k++) TN_TRY(backward(c, i - k));
        if (c->model->nodes[i].kind != TN_NODE_LOSS) TN_TRY(backward(c, i));
        i -= before;
    }
    return TN_OK;
}

static tn_status compile_backward(compiler *c) {
    int *first; /* [node]: where its span begins */
    const int nodes = c->model->node_count;
    TN_TRY(tn_alloc(&first, (size_t)nodes, sizeof *first, "program"));
    for (int i = 0; i < nodes; i += span_at(c, i))
        for (int k = 0; k < span_at(c, i); k++) first[i + k] = i;
    tn_status status = backward_from(c, first);
    tn_free(first);
    return status;
}

static tn_status compile_steps(compiler *c) {
    int input;
    for (int i = 0; i < c->model->node_count; i++) {
        const tn_node *node = &c->model->nodes[i];
        c->gradients[node->input].readers++;
        if (node->residual >= 0) c->gradients[node->residual].readers++;
    }
    TN_TRY(new_buffer(c, 0, &input));
    c->activations[0] = input;
    TN_TRY(compile_forward(c));
    if (c->config->training) {
        TN_TRY(forget(c));
        TN_TRY(compile_backward(c));
    }
    /* The logits are read after the last step. */
    c->program->buffers[c->program->output].last = c->program->step_count - 1;
    return end_segment(c, TN_MERGE_NONE, -1);
}

/* ---- placing buffers ---- */

static int segment_of(const tn_program *p, int step) {
    int low = 0, high = p->segment_count - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (step < p->segments[middle].first + p->segments[middle].count)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* A buffer being placed. */
typedef struct placement {
    size_t bytes, offset;
    int first, last, buffer;
} placement;

static int larger_first(const void *a, const void *b) {
    const placement *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->buffer - y->buffer;
}

/* Greedy by size: each buffer takes the lowest gap among those already placed that are alive at the same
 * time. `placed` is kept sorted by offset. Returns the size of the arena. */
static size_t place(placement *todo, int count, placement *placed) {
    size_t total = 0;
    qsort(todo, (size_t)count, sizeof *todo, larger_first);
    for (int i = 0; i < count; i++) {
        placement b = todo[i];
        b.offset = 0;
        for (int j = 0; j < i; j++) {
            const placement *q = &placed[j];
            if (q->last < b.first || b.last < q->first) continue;
            if (q->offset >= b.offset + b.bytes) break;
            if (q->offset + q->bytes > b.offset) b.offset = q->offset + q->bytes;
        }
        int at = i;
        for (; at > 0 && placed[at - 1].offset > b.offset; at--) placed[at] = placed[at - 1];
        placed[at] = b;
        if (b.offset + b.bytes > total) total = b.offset + b.bytes;
    }
    return total;
}

static tn_status place_buffers(tn_program *p) {
    placement *todo, *placed;
    size_t count = (size_t)p->buffer_count;
    TN_TRY(tn_alloc(&todo, 2 * count, sizeof *todo, "program"));
    placed = todo + count;
    for (int i = 1; i < p->buffer_count; i++)
        p->buffers[i].per_chunk = segment_of(p, p->buffers[i].first) != segment_of(p, p->buffers[i].last);
    for (int arena = 0; arena < 2; arena++) {
        int n = 0;
        for (int i = 1; i < p->buffer_count; i++) {
            const tn_buffer *b = &p->buffers[i];
            size_t bytes = (b->bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
            if (b->per_chunk == (arena == 1))
                todo[n++] = (placement){.bytes = bytes, .first = b->first, .last = b->last, .buffer = i};
        }
        size_t total = place(todo, n, placed);
        for (int i = 0; i < n; i++) p->buffers[placed[i].buffer].offset = placed[i].offset;
        *(arena ? &p->chunk_bytes : &p->worker_bytes) = total;
    }
    tn_free(todo);
    return TN_OK;
}

tn_status tn_program_compile(const tn_model *model, const tn_program_config *config, tn_program *out) {
    memset(out, 0, sizeof *out);
    compiler c = {.model = model, .config = config, .program = out};
    tn_status status =
        tn_alloc(&c.activations, (size_t)model->tensor_count, sizeof *c.activations, "program");
    if (status == TN_OK)
        status = tn_alloc(&c.gradients, (size_t)model->tensor_count, sizeof *c.gradients, "program");
    if (status == TN_OK) status = compile_steps(&c);
    if (status == TN_OK) status = place_buffers(out);
    tn_free(c.activations);
    tn_free(c.gradients);
    if (status != TN_OK) tn_program_free(out);
    return status;
}

void tn_program_free(tn_program *program) {
    tn_free(program->steps);
    tn_free(program->segments);
    tn_free(program->buffers);
    memset(program, 0, sizeof *program);
}
