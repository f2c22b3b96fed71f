/* Loss, flat buffers and the end of backward against plain double loops. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32
#define B TN_STORE_BF16

/* ---- loss ---- */

typedef struct loss_case {
    tn_kernel_loss kind;
    int rows, classes;
    tn_storage store;
    bool in_place;
} loss_case;

static int rank_row(const double *x, int classes, int label) {
    int rank = 0;
    for (int k = 0; k < classes; k++) rank += x[k] > x[label] || (x[k] == x[label] && k < label);
    return rank;
}

static void run_loss(void *argument) {
    const loss_case *t = argument;
    size_t classes = (size_t)t->classes, rows = (size_t)t->rows, count = rows * classes;
    double *values = host_doubles(count), *soft = host_doubles(count), *weight = host_doubles(rows);
    int *labels = host_zeros(rows * sizeof *labels);
    for (size_t i = 0; i < count; i++) {
        values[i] = 3 * round(4 * draw_real(1, (uint32_t)i)) / 4; /* ties */
        soft[i] = fabs(draw_real(2, (uint32_t)i)) / (double)classes;
    }
    for (size_t i = 0; i < rows; i++) {
        weight[i] = i % 3 == 2 ? 0 : draw_real(3, (uint32_t)i);
        labels[i] = draw_below(4, (uint32_t)i, t->classes);
    }
    if (rows > 2) values[2 * classes] = NAN; /* its weight is 0 */
    tensor x = tensor_of(values, count, t->store), target = tensor_of(soft, count, F);
    tensor weights = tensor_of(weight, rows, F), loss = tensor_empty(rows, F);
    tensor dx = t->in_place ? x : tensor_empty(count, t->store);
    int *rank = device_raw(rows * sizeof *rank), *flag = device_zeros(sizeof *flag);
    double *wanted = host_doubles(rows), *wanted_dx = host_doubles(count);
    for (size_t i = 0; i < rows; i++) {
        wanted[i] = loss_of_row(t->kind, x.host + i * classes, target.host + i * classes, t->classes,
                                wanted_dx + i * classes);
        for (size_t k = 0; k < classes; k++)
            wanted_dx[i * classes + k] =
                weights.host[i] == 0 ? 0 : wanted_dx[i * classes + k] * weights.host[i];
    }
    OK(tn_launch_loss(t->kind, t->rows, t->classes, t->store, x.device, floats(target), floats(weights),
                      device_copy(labels, rows * sizeof *labels), floats(loss), rank, dx.device, flag, 0));
    check_flag("loss", flag, 0);
    check_tensor("dx", &dx, wanted_dx);
    const int *ranks = host_copy(rank, rows * sizeof *ranks);
    tensor_read(&loss);
    for (size_t i = 0; i < rows; i++) {
        if (i == 2) {
            assert_true(isnan(loss.host[i]));
            if (labels[i] == 0) assert_int_equal(ranks[i], t->classes);
            continue;
        }
        check_number("row loss", loss.host[i], wanted[i], fabs(wanted[i]) + 1e-3, 1e-6);
        assert_int_equal(ranks[i], rank_row(x.host + i * classes, t->classes, labels[i]));
    }
}

static void run_loss_alone(void *argument) {
    double values[6] = {1, 2, INFINITY, 0, 0, 0};
    tensor x = tensor_of(values, 6, F), target = tensor_random(6, F, 1), loss = tensor_empty(2, F);
    int *flag = device_zeros(sizeof *flag);
    (void)argument;
    OK(tn_launch_loss(TN_KERNEL_CROSS_ENTROPY, 2, 3, F, x.device, floats(target), NULL, NULL, floats(loss),
                      NULL, NULL, flag, 0));
    check_flag("infinite score", flag, 1);
}

static void test_loss(void **unused) {
    static const loss_case cases[] = {{TN_KERNEL_CROSS_ENTROPY, 11, 10, F, false},
                                      {TN_KERNEL_CROSS_ENTROPY, 5, 1000, B, false},
                                      {TN_KERNEL_CROSS_ENTROPY, 2, 33, F, true},
                                      {TN_KERNEL_SQUARED, 9, 3, F, false},
                                      {TN_KERNEL_SQUARED, 1, 1, F, true}};
    (void)unused;
    for (int i = 0; i < 5; i++) {
        loss_case t = cases[i];
        char name[32];
        snprintf(name, sizeof name, "loss %d", i);
        check_case(name, run_loss, &t);
    }
    check_case("loss alone", run_loss_alone, NULL);
}

/* ---- flat buffers ---- */

static void run_add(void *argument) {
    const size_t count = 1030;
    (void)argument;
    tensor to = tensor_random(count, F, 1), from = tensor_random(count, F, 2);
    double *wanted = host_doubles(count);
    for (size_t i = 0; i < count; i++) wanted[i] = to.host[i] + (i ? from.host[i] : 0);
    OK(tn_launch_add(count - 1, floats(to) + 1, floats(from) + 1, 0));
    check_tensor("sum", &to, wanted);
}

static void test_add(void **unused) {
    (void)unused;
    check_case("add", run_add, NULL);
}

static void run_scale(void *argument) {
    const size_t count = 1030;
    (void)argument;
    tensor x = tensor_random(count, F, 1);
    double *wanted = host_doubles(count);
    for (size_t i = 0; i < count; i++) wanted[i] = x.host[i] * (i ? 0.375 : 1);
    OK(tn_launch_scale(count - 1, floats(x) + 1, 0.375f, 0));
    check_tensor("scaled", &x, wanted);
}

static void test_scale(void **unused) {
    (void)unused;
    check_case("scale", run_scale, NULL);
}

/* ---- scalars ---- */

#define NODES  600
#define PARAMS 280 /* scalars, the first of which is a scale that many nodes share */

/* Terms, scale and carry of a node, drawn at random. */
static tn_node_terms draw_terms(uint32_t i) {
    tn_node_terms t = {.scale_factor = (float)draw_real(30, i),
                       .scale = i % 4 ? (i % 3 ? 0 : draw_below(31, i, PARAMS)) : -1,
                       .carry = i % 2 ? draw_below(32, i, PARAMS) : -1,
                       .term_count = draw_below(33, i, 4)};
    for (int k = 0; k < t.term_count; k++) {
        t.terms[k].place = draw_below(34, 4 * i + (uint32_t)k, PARAMS);
        t.terms[k].factor = (float)draw_real(35, 4 * i + (uint32_t)k);
        t.terms[k].scaled = draw_below(36, 4 * i + (uint32_t)k, 2);
    }
    return t;
}

/* The formula of the engine, node by node, in double. */
static void node_gradients(const tn_node_terms *nodes, const double *scalars, const double *sums,
                           double *grads) {
    for (int i = 0; i < NODES; i++) {
        const tn_node_terms *n = &nodes[i];
        for (int k = 0; k < n->term_count; k++)
            grads[n->terms[k].place] +=
                (double)n->terms[k].factor * (n->terms[k].scaled ? scalars[4 * i] : 1) * sums[3 * i];
        if (n->carry >= 0) grads[n->carry] += sums[3 * i + 1];
        if (n->scale >= 0)
            grads[n->scale] += (double)n->scale_factor * (sums[3 * i + 2] + scalars[4 * i + 3] * sums[3 * i]);
    }
}

/* The tables of scalar gradients for parameter p; returns the number of shares. */
static int list_shares(const tn_node_terms *nodes, int p, tn_share *out) {
    int count = 0;
    for (int i = 0; i < NODES; i++) {
        const tn_node_terms *n = &nodes[i];
        for (int k = 0; k < n->term_count; k++)
            if (n->terms[k].place == p)
                out[count++] = (tn_share){TN_SHARE_TERM, i, n->terms[k].scaled, n->terms[k].factor};
        if (n->carry == p) out[count++] = (tn_share){TN_SHARE_CARRY, i, 0, 0};
        if (n->scale == p) out[count++] = (tn_share){TN_SHARE_SCALE, i, 0, n->scale_factor};
    }
    return count;
}

/* ---- the end of backward ---- */

enum poison { CLEAN, IN_WEIGHT, IN_DOT, IN_SUMS, BEFORE, POISONS };

#define WEIGHTS 4
/* Flags: of weights, of scalars, and some that others set. */
#define FLAGS (WEIGHTS + 1 + 600)

static const size_t counts[WEIGHTS] = {5, 9000, 4096, 37};

typedef struct finish_case {
    tn_node_terms nodes[NODES];
    tensor node_scalars, g[WEIGHTS], w[WEIGHTS], sums, grads;
    tn_finish tables;
    int *flags, *stop;
} finish_case;

static const float *node_s(const tn_finish *tables, int node) {
    return node == 2 ? NULL : tables->node_scalars + 4 * node;
}

static void make_weights(finish_case *c, enum poison poison) {
    tn_weight_gradient items[WEIGHTS];
    tn_piece pieces[8];
    int n = 0;
    memset(items, 0, sizeof items);
    for (int i = 0; i < WEIGHTS; i++) {
        double *values = host_doubles(counts[i]), *weights = host_doubles(counts[i]);
        for (size_t k = 0; k < counts[i]; k++) {
            values[k] = draw_real((uint32_t)i, (uint32_t)k);
            weights[k] = draw_real((uint32_t)(50 + i), (uint32_t)k);
        }
        if (poison == IN_WEIGHT && i == 1) values[8999] = NAN;
        if (poison == IN_DOT && i == 1) values[4096] = 1e38, weights[4096] = 10;
        c->g[i] = tensor_of(values, counts[i], F);
        c->w[i] = tensor_of(weights, counts[i], F);
        items[i] = (tn_weight_gradient){.grad = floats(c->g[i]),
                                        .value = floats(c->w[i]),
                                        .count = counts[i],
                                        .s = node_s(&c->tables, i),
                                        .dot = i == 3 ? NULL : floats(c->sums) + 3 * i + 2,
                                        .nonfinite = c->flags + i,
                                        .first_piece = n};
        for (size_t at = 0; at < counts[i]; at += TN_PIECE) pieces[n++] = (tn_piece){i, at};
        items[i].pieces = n - items[i].first_piece;
    }
    c->tables.weights = device_copy(items, sizeof items);
    c->tables.weight_count = WEIGHTS;
    c->tables.pieces = device_copy(pieces, (size_t)n * sizeof *pieces);
    c->tables.piece_count = n;
    c->tables.partial = device_raw((size_t)n * sizeof(double));
    c->tables.arrived = device_zeros((WEIGHTS + 1) * sizeof(unsigned));
}

/* Wide scalars first. */
static void make_scalars(finish_case *c) {
    tn_share shares[NODES * 5];
    tn_scalar table[PARAMS];
    int share_count = 0, count = 0;
    for (int wide = 1; wide >= 0; wide--) {
        for (int p = 0; p < PARAMS; p++) {
            int n = list_shares(c->nodes, p, shares + share_count);
            if ((n > TN_SHARES_NARROW) != wide) continue;
            table[count++] = (tn_scalar){p, share_count, n, p == 0 ? 1.0f / 54 : 1.0f};
            share_count += n;
        }
        if (wide) c->tables.wide_count = count;
    }
    assert_true(c->tables.wide_count > 0 && count == PARAMS);
    c->tables.scalars = device_copy(table, sizeof table);
    c->tables.scalar_count = count;
    c->tables.shares = device_copy(shares, (size_t)share_count * sizeof *shares);
}

static finish_case make_finish(enum poison poison) {
    finish_case c;
    int flags[FLAGS] = {0};
    double *sums = host_doubles(3 * NODES);
    memset(&c, 0, sizeof c);
    for (uint32_t i = 0; i < 3 * NODES; i++) sums[i] = draw_real(2, i);
    if (poison == IN_SUMS) sums[3 * 20 + 1] = sums[3 * 21 + 1] = INFINITY;
    if (poison == BEFORE) flags[FLAGS - 1] = 1;
    for (uint32_t i = 0; i < NODES; i++) c.nodes[i] = draw_terms(i);
    c.node_scalars = tensor_random(4 * NODES, F, 1);
    c.sums = tensor_of(sums, 3 * NODES, F);
    c.grads = tensor_random(PARAMS, F, 3);
    c.flags = device_copy(flags, sizeof flags);
    c.stop = device_zeros(sizeof *c.stop);
    c.tables = (tn_finish){.node_scalars = floats(c.node_scalars),
                           .sums = floats(c.sums),
                           .grads = floats(c.grads),
                           .nonfinite = c.flags + WEIGHTS,
                           .flags = c.flags,
                           .flag_count = FLAGS,
                           .stop = c.stop};
    make_weights(&c, poison);
    make_scalars(&c);
    return c;
}

static void run_finish(void *argument) {
    const enum poison poison = *(enum poison *)argument;
    finish_case c = make_finish(poison);
    /* The second launch finds the counters as they were; G has become s G. */
    for (int launch = 0; launch < (poison == CLEAN ? 2 : 1); launch++) {
        double *grads = host_doubles(PARAMS), *sums = host_doubles(3 * NODES);
        memcpy(sums, c.sums.host, 3 * NODES * sizeof *sums);
        for (int i = 0; i < WEIGHTS - 1; i++) {
            sums[3 * i + 2] = 0;
            for (size_t k = 0; k < counts[i]; k++) sums[3 * i + 2] += c.g[i].host[k] * c.w[i].host[k];
        }
        node_gradients(c.nodes, c.node_scalars.host, sums, grads);
        grads[0] *= (double)(1.0f / 54);
        OK(tn_launch_finish(&c.tables, 0));
        check_flag("another weight", c.flags, 0);
        check_flag("a weight", c.flags + 1, poison == IN_WEIGHT || poison == IN_DOT);
        check_flag("scalars", c.flags + WEIGHTS, poison != CLEAN && poison != BEFORE);
        check_flag("stop", c.stop, poison != CLEAN);
        if (poison != CLEAN) return;
        check_tensor("scalar gradients", &c.grads, grads);
        check_tensor("dots", &c.sums, sums);
        for (int i = 0; i < WEIGHTS; i++) {
            double *wanted = host_doubles(counts[i]);
            for (size_t k = 0; k < counts[i]; k++)
                wanted[k] = c.g[i].host[k] * (i == 2 ? 1 : c.node_scalars.host[4 * i]);
            check_tensor("dW", &c.g[i], wanted);
        }
    }
}

/* No weight is trained: scalars and flags alone. */
static void run_finish_scalars(void *argument) {
    finish_case c = make_finish(BEFORE);
    double *grads = host_doubles(PARAMS);
    (void)argument;
    c.tables.weight_count = c.tables.piece_count = 0;
    node_gradients(c.nodes, c.node_scalars.host, c.sums.host, grads);
    grads[0] *= (double)(1.0f / 54);
    OK(tn_launch_finish(&c.tables, 0));
    check_flag("stop", c.stop, 1);
    check_tensor("scalar gradients", &c.grads, grads);
}

static void test_finish(void **unused) {
    (void)unused;
    for (enum poison poison = CLEAN; poison < POISONS; poison++) {
        char name[32];
        snprintf(name, sizeof name, "finish %d", (int)poison);
        check_case(name, run_finish, &poison);
    }
    check_case("finish scalars", run_finish_scalars, NULL);
}

/* ---- gradients of matrix products ---- */

/* From the order of TN_PACK_GEMM back to OIHW. */
static void run_unpack(void *argument) {
    tensor g = tensor_random(10 * 152, F, 80), dw = tensor_empty(10 * 3 * 49, F);
    double *wanted = host_doubles(dw.count);
    (void)argument;
    for (size_t i = 0; i < dw.count; i++) {
        size_t tap = i % 49, k = i / 49 % 3, o = i / 49 / 3;
        wanted[i] = g.host[o * 152 + tap * 3 + k];
    }
    OK(tn_launch_unpack_gradient(10, 3, 49, 152, floats(g), floats(dw), 0));
    check_tensor("unpacked", &dw, wanted);
}

static void test_unpack(void **unused) {
    (void)unused;
    check_case("unpack", run_unpack, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_loss), cmocka_unit_test(test_add),
                                       cmocka_unit_test(test_scale), cmocka_unit_test(test_finish),
                                       cmocka_unit_test(test_unpack)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
