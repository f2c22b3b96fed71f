/* Programs: every step finds in its buffers what it needs, buffers that live together do not overlap, and
 * segments end where chunks have to wait for each other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "engine/program.h"

#define ROWS 4

static const char *const variants[] = {"bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain"};

typedef struct compiled {
    tn_model *model;
    size_t *grad_floats;
    tn_program program;
    bool training;
} compiled;

/* Every third tensor has values of two bytes, where wanted. */
static bool short_values;
static size_t element_bytes(const tn_backend *backend, const tn_model *model, int tensor) {
    (void)backend;
    (void)model;
    return short_values && tensor % 3 == 1 ? 2 : 4;
}

/* Whether programs compute the inside of blocks again; whether convolutions make the dz of those before. */
static bool recompute, gating;

static bool may_gate(const tn_model *model, int node) {
    const int maker = model->tensors[model->nodes[node].input].producer;
    return gating && model->nodes[node].kind == TN_NODE_CONV && maker >= 0 &&
           model->nodes[maker].kind == TN_NODE_CONV;
}

/* Whether average pool, linear layer and loss are one operation. */
static bool heads;
#define HEAD 3

static tn_status program_of(const tn_model *model, bool training, const size_t *grad_floats,
                            tn_program *out) {
    const tn_backend_ops ops = {.element_bytes = element_bytes};
    tn_backend backend = {.ops = &ops};
    bool *gates = calloc((size_t)model->node_count, sizeof *gates);
    for (int i = 0; i < model->node_count; i++) gates[i] = may_gate(model, i);
    tn_program_config config = {.backend = &backend,
                                .rows = ROWS,
                                .training = training,
                                .recompute = recompute,
                                .gates = gating ? gates : NULL,
                                .grad_floats = grad_floats};
    int *spans = calloc((size_t)model->node_count, sizeof *spans);
    for (int i = 0; i < model->node_count; i++) spans[i] = heads && i == model->node_count - HEAD ? HEAD : 1;
    config.spans = spans;
    tn_status status = tn_program_compile(model, &config, out);
    free(gates);
    free(spans);
    return status;
}

static compiled compile(tn_model_config config, bool training) {
    compiled c = {.training = training};
    if (tn_model_build(&config, &c.model) != TN_OK) fail_msg("%s", tn_error());
    c.grad_floats = calloc((size_t)c.model->node_count, sizeof *c.grad_floats);
    for (int i = 0; i < c.model->node_count; i++) {
        tn_node_kind kind = c.model->nodes[i].kind;
        bool has = kind == TN_NODE_CONV || kind == TN_NODE_LINEAR;
        c.grad_floats[i] = has ? 3 + (size_t)(i * 37 % 100) : 0;
    }
    if (program_of(c.model, training, c.grad_floats, &c.program) != TN_OK) fail_msg("%s", tn_error());
    return c;
}

static void compiled_free(compiled *c) {
    tn_program_free(&c->program);
    tn_model_free(c->model);
    free(c->grad_floats);
}

/* Training of networks with all kinds of nodes, with and without computing the inside of blocks again. */
static void for_recomputed(void (*check)(compiled *c)) {
    static const char *const models[] = {"resnet14", "resnet18", "resnet50"};
    for (int way = 0; way < 4; way++)
        for (int m = 0; m < 3; m++)
            for (int v = 0; v < 7; v++) {
                recompute = way % 2;
                gating = way / 2;
                compiled c = compile((tn_model_config){.model = models[m],
                                                       .variant = variants[v],
                                                       .height = 40,
                                                       .width = 33,
                                                       .no_bn_shortcut = v == 1 && m != 1},
                                     true);
                check(&c);
                recompute = gating = false;
                compiled_free(&c);
            }
}

/* Calls `check` for networks of all variants and both kinds of program. */
static void for_all(void (*check)(compiled *c)) {
    for_recomputed(check);
    for (int run = 0; run < 8; run++)
        for (int v = 0; v < 7; v++) {
            const char *models[] = {"resnet8", "resnet20"};
            for (int m = 0; m < 2; m++) {
                short_values = run / 2 % 2;
                heads = run / 4;
                compiled c = compile((tn_model_config){.model = models[m], .variant = variants[v]}, run % 2);
                check(&c);
                short_values = heads = false;
                compiled_free(&c);
            }
        }
    for (int training = 0; training < 2; training++) {
        compiled c = compile((tn_model_config){.model = "resnet14", .tau_per_block = true}, training);
        check(&c);
        compiled_free(&c);
        c = compile((tn_model_config){.model = "resnet14", .variant = "bn", .no_bn_shortcut = true},
                    training);
        check(&c);
        compiled_free(&c);
    }
}

static int norms_of(const tn_model *model) {
    int norms = 0;
    for (int i = 0; i < model->node_count; i++) norms += model->nodes[i].kind == TN_NODE_NORM;
    return norms;
}

/* ---- segments ---- */

static void check_segments(compiled *c) {
    const tn_program *p = &c->program;
    int norms = norms_of(c->model), next = 0;
    assert_int_equal(p->segment_count, c->training ? 1 + 2 * norms : 1);
    for (int s = 0; s < p->segment_count; s++) {
        const tn_segment *segment = &p->segments[s];
        assert_int_equal(segment->first, next);
        assert_true(segment->count > 0);
        next += segment->count;
        size_t end = 0;
        for (int i = segment->first; i < next; i++) {
            const tn_step *step = &p->steps[i];
            bool waits = step->kind == TN_STEP_STATISTICS || step->kind == TN_STEP_REDUCE;
            /* What other chunks must add to is the last step of its segment. */
            assert_int_equal(waits, i == next - 1 && segment->merge != TN_MERGE_NONE);
            if (step->kind != TN_STEP_BACKWARD) continue;
            assert_true(step->grad_offset >= end);
            end = step->grad_offset + c->grad_floats[step->node];
        }
        assert_true(segment->grad_floats >= end && segment->grad_floats < end + 16);
        const tn_step *last = &p->steps[next - 1];
        if (s == p->segment_count - 1) {
            assert_int_equal(segment->merge, TN_MERGE_NONE);
        } else {
            assert_int_equal(segment->merge,
                             last->kind == TN_STEP_STATISTICS ? TN_MERGE_STATISTICS : TN_MERGE_REDUCE);
            assert_int_equal(segment->merge_node, last->node);
        }
    }
    assert_int_equal(next, p->step_count);
}

static void test_segments(void **state) {
    (void)state;
    for_all(check_segments);
}

static void test_one_segment_without_norms(void **state) {
    (void)state;
    for (int v = 2; v < 7; v++) {
        compiled c = compile((tn_model_config){.model = "resnet32", .variant = variants[v]}, true);
        assert_int_equal(norms_of(c.model), 0);
        assert_int_equal(c.program.segment_count, 1);
        assert_int_equal(c.program.chunk_bytes, 0);
        for (int i = 0; i < c.program.buffer_count; i++) assert_false(c.program.buffers[i].per_chunk);
        compiled_free(&c);
    }
}

/* ---- memory ---- */

static int segment_of(const tn_program *p, int step) {
    int s = 0;
    while (step >= p->segments[s].first + p->segments[s].count) s++;
    return s;
}

static int operands_of(const tn_step *step, int *out) {
    int count = 0, all[] = {step->x, step->r, step->y, step->dz, step->dx};
    for (int i = 0; i < 5; i++)
        if (all[i] >= 0) out[count++] = all[i];
    for (int i = 0; i < step->dy_count; i++) out[count++] = step->dy[i];
    return count;
}

/* Lifetimes are those of the steps that name a buffer, and lifetimes across segments mean memory of the
 * chunk. */
static void check_lifetimes(compiled *c) {
    const tn_program *p = &c->program;
    int *first = malloc((size_t)p->buffer_count * sizeof *first),
        *last = calloc((size_t)p->buffer_count, sizeof *last);
    for (int b = 0; b < p->buffer_count; b++) first[b] = p->step_count;
    for (int i = 0; i < p->step_count; i++) {
        int operands[8 + TN_PARTS_MAX], count = operands_of(&p->steps[i], operands);
        for (int k = 0; k < count; k++) {
            assert_in_range(operands[k], 0, p->buffer_count - 1);
            if (first[operands[k]] > i) first[operands[k]] = i;
            last[operands[k]] = i;
        }
    }
    last[p->output] = p->step_count - 1;
    for (int b = 1; b < p->buffer_count; b++) {
        assert_int_equal(p->buffers[b].first, first[b]);
        assert_int_equal(p->buffers[b].last, last[b]);
        assert_int_equal(p->buffers[b].per_chunk, segment_of(p, first[b]) != segment_of(p, last[b]));
    }
    free(first);
    free(last);
}

static void test_lifetimes(void **state) {
    (void)state;
    for_all(check_lifetimes);
}

static void check_places(compiled *c) {
    const tn_program *p = &c->program;
    for (int a = 1; a < p->buffer_count; a++) {
        const tn_buffer *x = &p->buffers[a];
        tn_shape shape = c->model->tensors[x->tensor].shape;
        assert_int_equal(x->bytes, (size_t)(ROWS * shape.channels * shape.height * shape.width) *
                                       element_bytes(NULL, c->model, x->tensor));
        assert_int_equal(x->offset % 64, 0);
        assert_true(x->offset + x->bytes <= (x->per_chunk ? p->chunk_bytes : p->worker_bytes));
        for (int b = 1; b < a; b++) {
            const tn_buffer *y = &p->buffers[b];
            bool together = x->per_chunk == y->per_chunk && x->first <= y->last && y->first <= x->last;
            bool apart = x->offset + x->bytes <= y->offset || y->offset + y->bytes <= x->offset;
            if (together && !apart)
                fail_msg("%s %s: buffers %d and %d are alive together and overlap", c->model->model_name,
                         c->model->variant, a, b);
        }
    }
}

static void test_buffers_do_not_overlap(void **state) {
    (void)state;
    for_all(check_places);
}

/* Arenas are hardly larger than what is alive at once. */
static void check_sizes(compiled *c) {
    const tn_program *p = &c->program;
    for (int per_chunk = 0; per_chunk < 2; per_chunk++) {
        size_t most = 0, sum = 0;
        for (int i = 0; i < p->step_count; i++) {
            size_t alive = 0;
            for (int b = 1; b < p->buffer_count; b++)
                if (p->buffers[b].per_chunk == per_chunk && p->buffers[b].first <= i &&
                    i <= p->buffers[b].last)
                    alive += (p->buffers[b].bytes + 63) / 64 * 64;
            if (alive > most) most = alive;
        }
        for (int b = 1; b < p->buffer_count; b++)
            if (p->buffers[b].per_chunk == per_chunk) sum += p->buffers[b].bytes;
        size_t arena = per_chunk ? p->chunk_bytes : p->worker_bytes;
        assert_true(arena >= most);
        if (arena > most + most / 4)
            fail_msg("%s %s: an arena of %zu bytes where at most %zu are alive", c->model->model_name,
                     c->model->variant, arena, most);
        if (!per_chunk) assert_true(arena < sum);
    }
}

static void test_arenas_are_tight(void **state) {
    (void)state;
    for_all(check_sizes);
}

/* ---- what the steps compute ---- */

typedef enum content_kind { NOTHING, ACTIVATION, GRADIENT } content_kind;

/* What a buffer holds: a tensor, or a part of the gradient of one. */
typedef struct content {
    content_kind kind;
    int tensor;
} content;

typedef struct machine {
    const compiled *c;
    content *buffers;
    int *parts_made;                                /* [tensors] gradients that were made of each */
    int *gated;                                     /* [nodes] the buffer in which a gate made dz, or 0 */
    bool *backward_done, *reduced, *has_statistics; /* [nodes] */
} machine;

static void expect(const machine *m, int step, const char *what, int buffer, content_kind kind, int tensor) {
    const tn_step *s = &m->c->program.steps[step];
    const char *name = m->c->model->nodes[s->node].name;
    if (buffer < 0) fail_msg("%s: step %d of %s has no %s", m->c->model->variant, step, name, what);
    if (m->buffers[buffer].kind != kind || m->buffers[buffer].tensor != tensor)
        fail_msg("%s: step %d of %s: %s does not hold what it should", m->c->model->variant, step, name,
                 what);
}

/* Writing to a buffer ends what others held in the same memory. */
static void put(machine *m, int buffer, content_kind kind, int tensor) {
    const tn_program *p = &m->c->program;
    const tn_buffer *x = &p->buffers[buffer];
    assert_true(buffer > 0);
    for (int b = 1; b < p->buffer_count; b++) {
        const tn_buffer *y = &p->buffers[b];
        bool shares = x->per_chunk == y->per_chunk && x->offset < y->offset + y->bytes &&
                      y->offset < x->offset + x->bytes;
        if (b != buffer && shares) m->buffers[b].kind = NOTHING;
    }
    tn_shape shape = m->c->model->tensors[tensor].shape;
    assert_int_equal(x->bytes, (size_t)(ROWS * shape.channels * shape.height * shape.width) *
                                   element_bytes(NULL, m->c->model, tensor));
    m->buffers[buffer] = (content){kind, tensor};
    if (kind == GRADIENT) m->parts_made[tensor]++;
}

/* Nodes that read a tensor, a node that reads it twice counting twice. */
static int readers(const tn_model *model, int tensor) {
    int count = 0;
    for (int i = 0; i < model->node_count; i++)
        count += (model->nodes[i].input == tensor) + (model->nodes[i].residual == tensor);
    return count;
}

static void run_forward(machine *m, int i) {
    const tn_step *s = &m->c->program.steps[i];
    const tn_node *node = &m->c->model->nodes[s->node];
    expect(m, i, "x", s->x, ACTIVATION, node->input);
    if (node->residual >= 0) expect(m, i, "r", s->r, ACTIVATION, node->residual);
    if (m->c->training && node->kind == TN_NODE_NORM) assert_true(m->has_statistics[s->node]);
    if (node->kind == TN_NODE_LOSS) return;
    assert_true(s->y != s->x && s->y != s->r);
    put(m, s->y, ACTIVATION, node->output);
}

/* dy holds every part of the gradient of the node's output; dz takes the place of the first. */
static void take_gradient(machine *m, int i) {
    const tn_step *s = &m->c->program.steps[i];
    const tn_node *node = &m->c->model->nodes[s->node];
    assert_int_equal(s->dy_count, readers(m->c->model, node->output));
    assert_int_equal(m->parts_made[node->output], s->dy_count);
    for (int k = 0; k < s->dy_count; k++) {
        expect(m, i, "dy", s->dy[k], GRADIENT, node->output);
        for (int j = 0; j < k; j++) assert_true(s->dy[j] != s->dy[k]);
    }
    assert_int_equal(s->dz, s->dy[0]);
    assert_int_equal(s->made, m->gated[s->node] > 0);
    if (s->made) assert_int_equal(s->dz, m->gated[s->node]);
    if (node->residual < 0) return;
    m->buffers[s->dz] = (content){GRADIENT, node->residual};
    m->parts_made[node->residual]++;
}

/* A gate closes behind all gradients of the tensor, of which this node's own is the last. */
static void check_gate(machine *m, const tn_step *s, int i) {
    const tn_node *node = &m->c->model->nodes[s->node];
    const int maker = m->c->model->tensors[node->input].producer,
              others = readers(m->c->model, node->input) - 1;
    if (s->gate < 0) {
        assert_int_equal(s->r, -1);
        return;
    }
    assert_true(may_gate(m->c->model, s->node));
    assert_int_equal(s->gate, maker);
    assert_int_equal(m->parts_made[node->input], others);
    if (others)
        expect(m, i, "r", s->r, GRADIENT, node->input);
    else
        assert_int_equal(s->r, -1);
    m->gated[maker] = s->dx;
}

static void run_backward(machine *m, int i) {
    const tn_step *s = &m->c->program.steps[i];
    const tn_node *node = &m->c->model->nodes[s->node];
    bool norm = node->kind == TN_NODE_NORM,
         matrix = node->kind == TN_NODE_CONV || node->kind == TN_NODE_LINEAR;
    assert_false(m->backward_done[s->node]);
    m->backward_done[s->node] = true;
    if (matrix || norm || node->kind == TN_NODE_MAXPOOL || node->kind == TN_NODE_LOSS)
        expect(m, i, "x", s->x, ACTIVATION, node->input);
    if (matrix) expect(m, i, "y", s->y, ACTIVATION, node->output);
    if (norm)
        assert_true(m->reduced[s->node]);
    else if (node->kind != TN_NODE_LOSS)
        take_gradient(m, i);
    if (node->input == 0) {
        assert_int_equal(s->dx, -1);
        return;
    }
    check_gate(m, s, i);
    /* In place only where nobody else reads dz. */
    assert_true(s->dx != s->dz || (norm && node->residual < 0));
    put(m, s->dx, GRADIENT, node->input);
}

/* In training a head is one step, which makes all gradients. */
static void run_head(machine *m, int i) {
    const tn_step *s = &m->c->program.steps[i];
    const tn_node *node = &m->c->model->nodes[s->node];
    assert_int_equal(s->span, HEAD);
    assert_int_equal(s->kind, m->c->training ? TN_STEP_BACKWARD : TN_STEP_FORWARD);
    expect(m, i, "x", s->x, ACTIVATION, node->input);
    assert_int_equal(s->inner, -1);
    assert_int_equal(s->dy_count, 0);
    put(m, s->y, ACTIVATION, node[HEAD - 1].input);
    assert_int_equal(s->dx >= 0, m->c->training);
    if (!m->c->training) return;
    for (int k = 0; k < HEAD; k++) m->backward_done[s->node + k] = true;
    put(m, s->dx, GRADIENT, node->input);
    expect(m, i, "x", s->x, ACTIVATION, node->input);
    expect(m, i, "y", s->y, ACTIVATION, node[HEAD - 1].input);
}

static void run_step(machine *m, int i) {
    const tn_step *s = &m->c->program.steps[i];
    const tn_node *node = &m->c->model->nodes[s->node];
    if (s->span > 1) {
        run_head(m, i);
        return;
    }
    switch (s->kind) {
    case TN_STEP_FORWARD:
        run_forward(m, i);
        break;
    case TN_STEP_STATISTICS:
        expect(m, i, "x", s->x, ACTIVATION, node->input);
        m->has_statistics[s->node] = true;
        break;
    case TN_STEP_REDUCE:
        expect(m, i, "x", s->x, ACTIVATION, node->input);
        if (node->relu) expect(m, i, "y", s->y, ACTIVATION, node->output);
        take_gradient(m, i);
        m->reduced[s->node] = true;
        break;
    case TN_STEP_BACKWARD:
        run_backward(m, i);
        break;
    }
}

static void check_steps(compiled *c) {
    const tn_program *p = &c->program;
    size_t nodes = (size_t)c->model->node_count;
    machine m = {.c = c,
                 .buffers = calloc((size_t)p->buffer_count, sizeof *m.buffers),
                 .parts_made = calloc((size_t)c->model->tensor_count, sizeof *m.parts_made),
                 .gated = calloc(nodes, sizeof(int)),
                 .backward_done = calloc(nodes, sizeof(bool)),
                 .reduced = calloc(nodes, sizeof(bool)),
                 .has_statistics = calloc(nodes, sizeof(bool))};
    m.buffers[0] = (content){ACTIVATION, 0};
    for (int i = 0; i < p->step_count; i++) run_step(&m, i);
    const tn_node *loss = &c->model->nodes[c->model->node_count - 1];
    assert_int_equal(loss->kind, TN_NODE_LOSS);
    expect(&m, p->step_count - 1, "output", p->output, ACTIVATION, loss->input);
    for (size_t i = 0; i < nodes; i++) assert_int_equal(m.backward_done[i], c->training);
    /* Wherever a convolution reads the output of another, one does. */
    for (int i = 0; i < (int)nodes; i++)
        if (c->training && may_gate(c->model, i))
            assert_true(m.gated[c->model->tensors[c->model->nodes[i].input].producer] > 0);
    free(m.buffers);
    free(m.parts_made);
    free(m.gated);
    free(m.backward_done);
    free(m.reduced);
    free(m.has_statistics);
}

static void test_steps_find_what_they_need(void **state) {
    (void)state;
    for_all(check_steps);
}

static void test_evaluation_only_goes_forward(void **state) {
    (void)state;
    for (int v = 0; v < 7; v++) {
        compiled c = compile((tn_model_config){.model = "resnet14", .variant = variants[v]}, false);
        assert_int_equal(c.program.step_count, c.model->node_count);
        for (int i = 0; i < c.program.step_count; i++) {
            assert_int_equal(c.program.steps[i].kind, TN_STEP_FORWARD);
            assert_int_equal(c.program.steps[i].node, i);
        }
        assert_int_equal(c.program.chunk_bytes, 0);
        compiled_free(&c);
    }
}

/* What backward needs of a block is two activations without norms, and three with them (of two convolutions
 * and of the block; that between the first norm and the second convolution is computed again). */
static void test_memory_of_deep_networks(void **state) {
    (void)state;
    const char *models[] = {"resnet56", "resnet110"}, *kinds[] = {"tau", "bn"};
    for (int k = 0; k < 2; k++) {
        size_t bytes[2];
        for (int m = 0; m < 2; m++) {
            compiled c = compile((tn_model_config){.model = models[m], .variant = kinds[k]}, true);
            bytes[m] = c.program.worker_bytes + c.program.chunk_bytes;
            compiled_free(&c);
        }
        /* 9 more blocks a stage, of 16 x 32 x 32, 32 x 16 x 16 and 64 x 8 x 8. */
        size_t activation = (size_t)ROWS * 9 * 16 * 1024 * 7 / 4,
               wanted = (2 + (size_t)k) * activation * sizeof(float);
        assert_in_range(bytes[1] - bytes[0], wanted - wanted / 100, wanted + wanted / 100);
    }
}

/* Of the inside of blocks only one block's is alive at a time. */
static void test_memory_of_recomputed_networks(void **state) {
    (void)state;
    static const char *const kinds[] = {"tau", "bn"};
    for (int k = 0; k < 2; k++) {
        size_t bytes[2];
        recompute = true;
        for (int m = 0; m < 2; m++) {
            compiled c =
                compile((tn_model_config){.model = m ? "resnet110" : "resnet56", .variant = kinds[k]}, true);
            bytes[m] = c.program.worker_bytes + c.program.chunk_bytes;
            compiled_free(&c);
        }
        recompute = false;
        size_t wanted = (size_t)ROWS * 9 * 16 * 1024 * 7 / 4 * sizeof(float);
        assert_in_range(bytes[1] - bytes[0], wanted - wanted / 100, wanted + wanted / 100);
    }
}

/* A network whose every layer is a block has nothing to compute again. */
static void test_nothing_to_recompute(void **state) {
    (void)state;
    tn_model *model;
    tn_program program;
    tn_model_config config = {.model = "fcresnet"};
    assert_int_equal(tn_model_build(&config, &model), TN_OK);
    size_t *grad_floats = calloc((size_t)model->node_count, sizeof *grad_floats);
    recompute = true;
    assert_int_equal(program_of(model, true, grad_floats, &program), TN_ERR_USAGE);
    assert_non_null(strstr(tn_error(), "--recompute"));
    recompute = false;
    free(grad_floats);
    tn_model_free(model);
}

static void test_allocation_failures(void **state) {
    (void)state;
    tn_model *model;
    tn_model_config config = {.model = "resnet8", .variant = "bn"};
    assert_int_equal(tn_model_build(&config, &model), TN_OK);
    size_t before = tn_memory_in_use(), *grad_floats = calloc((size_t)model->node_count, sizeof *grad_floats);
    tn_program program;
    for (long n = 1;; n++) {
        tn_memory_fail_at(n);
        tn_status status = program_of(model, true, grad_floats, &program);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_int_equal(tn_memory_in_use(), before);
    }
    tn_program_free(&program);
    assert_int_equal(tn_memory_in_use(), before);
    free(grad_floats);
    tn_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_one_segment_without_norms),
        cmocka_unit_test(test_lifetimes),
        cmocka_unit_test(test_buffers_do_not_overlap),
        cmocka_unit_test(test_arenas_are_tight),
        cmocka_unit_test(test_steps_find_what_they_need),
        cmocka_unit_test(test_evaluation_only_goes_forward),
        cmocka_unit_test(test_memory_of_deep_networks),
        cmocka_unit_test(test_memory_of_recomputed_networks),
        cmocka_unit_test(test_nothing_to_recompute),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
