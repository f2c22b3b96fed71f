/* The update of all parameters, with packed copies and scalars of nodes, against plain double loops. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32
#define B TN_STORE_BF16

/* ---- scalars of nodes ---- */

#define NODES  300 /* more than a block */
#define PARAMS 40  /* scalars, the first of which is a scale that many nodes share */

/* Terms, scale and carry of a node, drawn at random; scalars stand in `values` from `first` on. */
static tn_node_terms draw_terms(uint32_t i, int first) {
    tn_node_terms t = {.scale_factor = (float)draw_real(30, i),
                       .scale = i % 4 ? first + (i % 3 ? 0 : draw_below(31, i, PARAMS)) : -1,
                       .carry = i % 2 ? first + draw_below(32, i, PARAMS) : -1,
                       .term_count = draw_below(33, i, 4)};
    for (int k = 0; k < t.term_count; k++) {
        t.terms[k].place = first + draw_below(34, 4 * i + (uint32_t)k, PARAMS);
        t.terms[k].factor = (float)draw_real(35, 4 * i + (uint32_t)k);
        t.terms[k].scaled = draw_below(36, 4 * i + (uint32_t)k, 2);
    }
    return t;
}

/* scalars[node][4] in double. */
static void node_scalars(const tn_node_terms *nodes, const double *values, double *scalars) {
    for (int i = 0; i < NODES; i++) {
        const tn_node_terms *n = &nodes[i];
        double s = (double)n->scale_factor * (n->scale >= 0 ? values[n->scale] : 1), c = 0, inside = 0;
        for (int k = 0; k < n->term_count; k++) {
            double term = (double)n->terms[k].factor * values[n->terms[k].place];
            c += n->terms[k].scaled ? s * term : term;
            if (n->terms[k].scaled) inside += term;
        }
        scalars[4 * i] = s;
        scalars[4 * i + 1] = c;
        scalars[4 * i + 2] = n->carry >= 0 ? values[n->carry] : 0;
        scalars[4 * i + 3] = inside;
    }
}

/* ---- what is updated ---- */

/* Weights, then scalars, then what is not trained: one weight and one scalar. */
#define TENSORS 11
static const tn_weight drawn[TENSORS] = {
    {.out = 16, .in = 3, .taps = 9, .pack_count = 1, .packs = {{TN_PACK_CONV_FORWARD, F, 0, NULL}}},
    {.out = 24,
     .in = 20,
     .taps = 9,
     .pack_count = 2,
     .packs = {{TN_PACK_CONV_FORWARD, F, 0, NULL}, {TN_PACK_CONV_BACKWARD, F, 0, NULL}}},
    {.out = 10, .in = 3, .taps = 49, .pack_count = 1, .packs = {{TN_PACK_GEMM, B, 152, NULL}}},
    {.out = 70, .in = 70, .taps = 1, .identity = 1, .pack_count = 1, .packs = {{TN_PACK_GEMM, F, 70, NULL}}},
    {.out = 5, .in = 7, .taps = 1, .pack_count = 1, .packs = {{TN_PACK_GEMM, B, 8, NULL}}},
    {.out = 32,
     .in = 16,
     .taps = 9,
     .pack_count = 2,
     .packs = {{TN_PACK_STAGE_FORWARD, B, 0, NULL}, {TN_PACK_STAGE_BACKWARD, B, 0, NULL}}},
    {.out = 16, .in = 32, .taps = 9, .pack_count = 1, .packs = {{TN_PACK_STAGE_FORWARD, B, 0, NULL}}},
    {.out = 24,
     .in = 20,
     .taps = 9,
     .pack_count = 2,
     .packs = {{TN_PACK_TAPS_FORWARD, B, 0, NULL}, {TN_PACK_TAPS_BACKWARD, B, 0, NULL}}},
    {.out = 7, .in = 6, .taps = 9, .pack_count = 1, .packs = {{TN_PACK_TAPS_BACKWARD, F, 0, NULL}}},
    {.out = 1, .in = 130, .taps = 1},
    {.out = 6, .in = 18, .taps = 400, .pack_count = 1, .packs = {{TN_PACK_GEMM, F, 7200, NULL}}}};
#define FIXED (TENSORS - 1)

typedef enum update_mode { STEP, STOPPED, PACK, MODES } update_mode;

typedef struct update_case {
    tn_weight weights[TENSORS];
    tn_node_terms nodes[NODES];
    size_t count;
    tensor values, grads, momentum, scalars, copies[TENSORS][TN_PACKS];
    tn_update tables;
    int *flags; /* [TENSORS], then of nodes */
} update_case;

static size_t elements(const tn_weight *w) {
    return (size_t)(w->out * w->in * w->taps);
}

static size_t pack_elements(const tn_weight *w, const tn_pack *p) {
    return p->layout == TN_PACK_GEMM ? (size_t)(w->out * p->ld) : elements(w);
}

static void make_tensors(update_case *c) {
    tn_tile tiles[256];
    int n = 0;
    c->count = 0;
    for (int i = 0; i < TENSORS; i++) {
        tn_weight *w = &c->weights[i];
        *w = drawn[i];
        if (i == FIXED) c->tables.scalar_first = (int)c->count;
        if (i == FIXED) c->count += PARAMS + 1;
        w->first = c->count;
        c->count += elements(w);
        w->trained = i != FIXED;
        w->nonfinite = c->flags + i;
        assert_true(tn_update_tile(w));
        for (int k = 0; k < w->pack_count; k++) {
            tn_pack *p = &w->packs[k];
            size_t count = pack_elements(w, p);
            c->copies[i][k] = tensor_of(host_doubles(count), count, (tn_storage)p->store);
            p->to = c->copies[i][k].device;
        }
        for (int out = 0; out < w->out; out += w->tile_out)
            for (int in = 0; in < w->in; in += w->tile_in) tiles[n++] = (tn_tile){i, out, in};
    }
    assert_true(n <= 256);
    c->tables.scalar_end = c->tables.scalar_first + PARAMS;
    for (int i = 0; i < TENSORS; i++) { /* in turn: none, one that is stepped, one that is not */
        c->weights[i].scale_factor = i % 3 ? (float)draw_real(40, (uint32_t)i) : 1;
        c->weights[i].scale = i % 3 == 0 ? -1 : c->tables.scalar_first + (i % 3 == 1 ? i : PARAMS);
    }
    c->tables.weights = device_copy(c->weights, sizeof c->weights);
    c->tables.tiles = device_copy(tiles, (size_t)n * sizeof *tiles);
    c->tables.tile_count = n;
}

static update_case make_update(update_mode mode) {
    update_case c;
    const int stop = mode == STOPPED;
    double rates[2] = {0.125, 0.5};
    memset(&c, 0, sizeof c);
    c.flags = device_zeros((TENSORS + NODES) * sizeof *c.flags);
    make_tensors(&c);
    for (uint32_t i = 0; i < NODES; i++) c.nodes[i] = draw_terms(i, c.tables.scalar_first);
    c.values = tensor_random(c.count, F, 1);
    c.grads = tensor_random(c.count, F, 2);
    c.momentum = tensor_random(c.count, F, 3);
    c.scalars = tensor_empty(4 * NODES, F);
    c.tables.nodes = device_copy(c.nodes, sizeof c.nodes);
    c.tables.node_count = NODES;
    c.tables.values = floats(c.values);
    c.tables.grads = floats(c.grads);
    c.tables.momentum = floats(c.momentum);
    c.tables.node_scalars = floats(c.scalars);
    c.tables.node_flags = c.flags + TENSORS;
    c.tables.rates = mode == PACK ? NULL : floats(tensor_of(rates, 2, F));
    c.tables.mu = 0.9f;
    c.tables.decay = 1e-2f;
    c.tables.stop = device_copy(&stop, sizeof stop);
    c.tables.arrived = device_zeros(sizeof(unsigned));
    return c;
}

static double packed(const tn_weight *w, const tn_pack *p, const double *values, double s, size_t i) {
    size_t out = (size_t)w->out, in = (size_t)w->in, taps = (size_t)w->taps, ld = (size_t)p->ld, o, k, tap;
    if (p->layout == TN_PACK_CONV_FORWARD)
        o = i % out, tap = i / out % taps, k = i / out / taps;
    else if (p->layout == TN_PACK_CONV_BACKWARD)
        k = i % in, tap = taps - 1 - i / in % taps, o = i / in / taps;
    else if (p->layout == TN_PACK_STAGE_FORWARD)
        o = i % out, k = i / out % 16, tap = i / out / 16 % taps, k += i / out / 16 / taps * 16;
    else if (p->layout == TN_PACK_STAGE_BACKWARD)
        k = i % in, o = i / in % 16, tap = taps - 1 - i / in / 16 % taps, o += i / in / 16 / taps * 16;
    else if (p->layout == TN_PACK_TAPS_FORWARD)
        o = i % out, k = i / out % in, tap = i / out / in;
    else if (p->layout == TN_PACK_TAPS_BACKWARD)
        k = i % in, o = i / in % out, tap = taps - 1 - i / in / out;
    else {
        o = i / ld, tap = i % ld / in, k = i % ld % in;
        if (tap >= taps) return 0;
    }
    return s * values[w->first + (o * in + k) * taps + tap] + (w->identity && o == k ? 1 : 0);
}

static void check_copies(update_case *c, const double *values) {
    for (int i = 0; i < TENSORS; i++)
        for (int k = 0; k < drawn[i].pack_count; k++) {
            const tn_weight *w = &c->weights[i];
            tensor *copy = &c->copies[i][k];
            double *wanted = host_doubles(copy->count),
                   s = (double)w->scale_factor * (w->scale >= 0 ? values[w->scale] : 1);
            for (size_t j = 0; j < copy->count; j++) wanted[j] = packed(w, &w->packs[k], values, s, j);
            if (w->packs[k].layout != TN_PACK_TAPS_BACKWARD || w->packs[k].store != F) {
                check_tensor("packed", copy, wanted);
                continue;
            }
            tensor_read(copy); /* tf32: the lower 13 bits are gone */
            check_values("packed", copy->host, wanted, copy->count, 0x1p-11);
            for (size_t j = 0; j < copy->count; j++) {
                float v = (float)copy->host[j];
                uint32_t bits;
                memcpy(&bits, &v, 4);
                assert_int_equal(bits & 0x1fff, 0);
            }
        }
}

static void run_update(void *argument) {
    const update_mode mode = *(update_mode *)argument;
    update_case c = make_update(mode);
    const size_t first = (size_t)c.tables.scalar_first, end = (size_t)c.tables.scalar_end;
    double *values = host_doubles(c.count), *momentum = host_doubles(c.count),
           *scalars = host_doubles(4 * NODES);
    memcpy(values, c.values.host, c.count * sizeof *values);
    memcpy(momentum, c.momentum.host, c.count * sizeof *momentum);
    for (int launch = 0; launch < 2; launch++) {
        for (size_t i = 0; mode == STEP && i < end; i++) {
            momentum[i] = 0.9 * momentum[i] + c.grads.host[i] + 1e-2 * values[i];
            values[i] -= (i < first ? 0.125 : 0.5) * momentum[i];
        }
        node_scalars(c.nodes, values, scalars);
        OK(tn_launch_update(&c.tables, 0));
        check_tensor("values", &c.values, values);
        check_tensor("momentum", &c.momentum, momentum);
        check_tensor("scalars", &c.scalars, scalars);
        check_copies(&c, values);
        for (int i = 0; i < TENSORS + NODES; i++) check_flag("update", c.flags + i, 0);
    }
}

/* Each flag for itself: a weight with copies, one without, and a node by its carry. */
static void run_update_flags(void *argument) {
    update_case c = make_update(PACK);
    float bad = INFINITY;
    int carried = 1;
    (void)argument;
    while (c.nodes[carried].carry <= c.tables.scalar_first) carried += 2;
    const size_t places[] = {c.weights[1].first + 4000, c.weights[9].first + 129,
                             (size_t)c.nodes[carried].carry};
    const int flags[] = {1, 9, TENSORS + carried};
    for (int i = 0; i < 3; i++) {
        float *to = floats(c.values) + places[i];
        OK(cudaMemset(c.flags, 0, (TENSORS + NODES) * sizeof *c.flags));
        OK(cudaMemcpy(to, &bad, sizeof bad, cudaMemcpyHostToDevice));
        OK(tn_launch_update(&c.tables, 0));
        check_flag("what is not finite", c.flags + flags[i], 1);
        if (i < 2)
            for (int k = 0; k < TENSORS + NODES; k++) check_flag("the others", c.flags + k, k == flags[i]);
        OK(cudaMemset(to, 0, sizeof bad));
    }
}

static void test_update(void **unused) {
    (void)unused;
    for (update_mode mode = STEP; mode < MODES; mode++) {
        char name[32];
        snprintf(name, sizeof name, "update %d", (int)mode);
        check_case(name, run_update, &mode);
    }
    check_case("flags of parameters", run_update_flags, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_update)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
