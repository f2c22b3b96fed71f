/* Loss, optimizer and packing against plain double loops. */
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

/* The loss of one row and dloss/dx. */
static double loss_row(tn_kernel_loss kind, const double *x, const double *target, int classes, double *dx) {
    double loss = 0, sum = 0, mass = 0, largest = x[0];
    for (int k = 0; k < classes; k++) largest = fmax(largest, x[k]);
    for (int k = 0; k < classes; k++) {
        sum += exp(x[k] - largest);
        mass += target[k];
    }
    for (int k = 0; k < classes; k++) {
        double log_p = x[k] - largest - log(sum), difference = x[k] - target[k];
        loss += kind == TN_KERNEL_SQUARED ? difference * difference / 2 : -target[k] * log_p;
        dx[k] = kind == TN_KERNEL_SQUARED ? difference : mass * exp(log_p) - target[k];
    }
    return loss;
}

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
        wanted[i] = loss_row(t->kind, x.host + i * classes, target.host + i * classes, t->classes,
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

/* ---- optimizer ---- */

static void run_sgd(void *argument) {
    const size_t count = 1031;
    (void)argument;
    for (int stopped = 0; stopped < 2; stopped++) {
        tensor w = tensor_random(count, F, 1), g = tensor_random(count, F, 2), v = tensor_random(count, F, 3);
        double rate = 0.125, *values = host_doubles(count), *momentum = host_doubles(count);
        tensor lr = tensor_of(&rate, 1, F);
        int flags[5] = {0, 0, 0, stopped, 0}, *stop = device_zeros(sizeof *stop);
        for (size_t i = 0; i < count; i++) {
            momentum[i] = stopped ? v.host[i] : 0.9 * v.host[i] + g.host[i] + 1e-2 * w.host[i];
            values[i] = w.host[i] - (stopped ? 0 : rate * momentum[i]);
        }
        OK(tn_launch_any_flag(5, device_copy(flags, sizeof flags), stop, 0));
        check_flag("stop", stop, stopped);
        OK(tn_launch_sgd(count, floats(w), floats(g), floats(v), floats(lr), 0.9f, 1e-2f, stop, 0));
        check_tensor("values", &w, values);
        check_tensor("momentum", &v, momentum);
    }
}

static void test_sgd(void **unused) {
    (void)unused;
    check_case("sgd", run_sgd, NULL);
}

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

#define NODES  70
#define PARAMS 40

/* Terms, scale and carry of a node, drawn at random; a scale that all nodes share stands in values[0]. */
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
static void node_gradients(const tn_node_terms *nodes, const double *values, const double *sums,
                           double *scalars, double *grads) {
    for (int i = 0; i < NODES; i++) {
        const tn_node_terms *n = &nodes[i];
        double s = (double)n->scale_factor * (n->scale >= 0 ? values[n->scale] : 1), c = 0, inside = 0;
        for (int k = 0; k < n->term_count; k++) {
            double term = (double)n->terms[k].factor * values[n->terms[k].place];
            c += n->terms[k].scaled ? s * term : term;
            if (n->terms[k].scaled) inside += term;
            grads[n->terms[k].place] +=
                (double)n->terms[k].factor * (n->terms[k].scaled ? s : 1) * sums[3 * i];
        }
        if (n->carry >= 0) grads[n->carry] += sums[3 * i + 1];
        if (n->scale >= 0)
            grads[n->scale] += (double)n->scale_factor * (sums[3 * i + 2] + inside * sums[3 * i]);
        scalars[4 * i] = s;
        scalars[4 * i + 1] = c;
        scalars[4 * i + 2] = n->carry >= 0 ? values[n->carry] : 0;
        scalars[4 * i + 3] = inside;
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

static void run_scalars(void *argument) {
    tn_node_terms nodes[NODES];
    tn_share shares[NODES * 5];
    tn_scalar table[PARAMS];
    int first = 0, *flags = device_zeros(NODES * sizeof *flags);
    double *wanted = host_doubles(4 * NODES), *grads = host_doubles(PARAMS);
    tensor values = tensor_random(PARAMS, F, 1), sums = tensor_random(3 * NODES, F, 2);
    tensor scalars = tensor_empty(4 * NODES, F), got = tensor_random(PARAMS, F, 3);
    (void)argument;
    for (uint32_t i = 0; i < NODES; i++) nodes[i] = draw_terms(i);
    node_gradients(nodes, values.host, sums.host, wanted, grads);
    for (int p = 0; p < PARAMS; p++) {
        int count = list_shares(nodes, p, shares + first);
        table[p] = (tn_scalar){p, first, count, p == 0 ? 1.0f / 54 : 1.0f};
        first += count;
    }
    grads[0] *= (double)(1.0f / 54);
    OK(tn_launch_node_scalars(NODES, device_copy(nodes, sizeof nodes), floats(values), floats(scalars), flags,
                              0));
    check_tensor("scalars", &scalars, wanted);
    OK(tn_launch_scalar_gradients(PARAMS, device_copy(table, sizeof table),
                                  device_copy(shares, sizeof shares), floats(scalars), floats(sums),
                                  floats(got), flags, 0));
    check_tensor("scalar gradients", &got, grads);
    check_flag("scalars", flags, 0);
}

static void test_scalars(void **unused) {
    (void)unused;
    check_case("scalars", run_scalars, NULL);
}

/* Pieces that cut `items` tensors of the given sizes. */
static int cut(const size_t *counts, int items, tn_piece *pieces, int *first) {
    int n = 0;
    for (int i = 0; i < items; i++) {
        first[i] = n;
        for (size_t at = 0; at < counts[i]; at += TN_PIECE) pieces[n++] = (tn_piece){i, at};
    }
    first[items] = n;
    return n;
}

static void run_weight_gradients(void *argument) {
    static const size_t counts[4] = {5, 9000, 4096, 37};
    tn_weight_gradient items[4];
    tn_piece pieces[8];
    int first[5], n = cut(counts, 4, pieces, first), poison = *(int *)argument;
    tensor g[4], w[4], s = tensor_random(4, F, 9), dots = tensor_random(4, F, 10);
    double *dot = host_doubles(4);
    int *flags = device_zeros(4 * sizeof *flags);
    memset(items, 0, sizeof items);
    for (int i = 0; i < 4; i++) {
        double *values = host_doubles(counts[i]);
        for (size_t k = 0; k < counts[i]; k++) values[k] = draw_real((uint32_t)i, (uint32_t)k);
        if (poison && i == 1) values[8999] = NAN;
        g[i] = tensor_of(values, counts[i], F);
        w[i] = tensor_random(counts[i], F, (uint32_t)(50 + i));
        items[i] = (tn_weight_gradient){floats(g[i]),
                                        floats(w[i]),
                                        counts[i],
                                        i == 2 ? NULL : floats(s) + i,
                                        i == 3 ? NULL : floats(dots) + i,
                                        flags + i,
                                        first[i],
                                        first[i + 1] - first[i]};
        for (size_t k = 0; k < counts[i]; k++) dot[i] += g[i].host[k] * w[i].host[k];
    }
    dot[3] = dots.host[3];
    OK(tn_launch_weight_gradients(4, device_copy(items, sizeof items), n, device_copy(pieces, sizeof pieces),
                                  device_raw((size_t)n * sizeof(double)), 0));
    check_flag("first", flags, 0);
    check_flag("second", flags + 1, poison);
    if (poison) return;
    for (int i = 0; i < 4; i++) {
        double *wanted = host_doubles(counts[i]);
        for (size_t k = 0; k < counts[i]; k++) wanted[k] = g[i].host[k] * (i == 2 ? 1 : s.host[i]);
        check_tensor("dW", &g[i], wanted);
    }
    check_tensor("dots", &dots, dot);
}

static void test_weight_gradients(void **unused) {
    int clean = 0, poison = 1;
    (void)unused;
    check_case("weight gradients", run_weight_gradients, &clean);
    check_case("weight gradients with NaN", run_weight_gradients, &poison);
}

/* ---- packing ---- */

static double packed(const tn_pack_item *p, const double *w, double s, size_t i) {
    size_t out = (size_t)p->out, in = (size_t)p->in, taps = (size_t)p->taps, ld = (size_t)p->ld, o, k, tap;
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
    return s * w[(o * in + k) * taps + tap] + (p->identity && o == k ? 1 : 0);
}

static void run_pack(void *argument) {
    tn_pack_item items[] = {{TN_PACK_CONV_FORWARD, F, 16, 3, 9, 0, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_CONV_BACKWARD, F, 24, 20, 9, 0, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_GEMM, B, 10, 3, 49, 152, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_GEMM, F, 70, 70, 1, 70, 1, NULL, NULL, NULL, NULL},
                            {TN_PACK_GEMM, B, 5, 7, 1, 8, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_STAGE_FORWARD, B, 16, 32, 9, 0, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_STAGE_BACKWARD, B, 32, 16, 9, 0, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_TAPS_FORWARD, B, 24, 20, 9, 0, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_TAPS_BACKWARD, B, 24, 20, 9, 0, 0, NULL, NULL, NULL, NULL},
                            {TN_PACK_TAPS_BACKWARD, F, 7, 6, 9, 0, 0, NULL, NULL, NULL, NULL}};
    enum { ITEMS = sizeof items / sizeof *items };
    size_t counts[ITEMS];
    tensor w[ITEMS], to[ITEMS], s = tensor_random(ITEMS, F, 70);
    tn_piece pieces[32];
    int first[ITEMS + 1], *flags = device_zeros(ITEMS * sizeof *flags);
    (void)argument;
    for (int i = 0; i < ITEMS; i++) {
        tn_pack_item *p = &items[i];
        counts[i] = tn_pack_count(p);
        w[i] = tensor_random((size_t)(p->out * p->in * p->taps), F, (uint32_t)i);
        to[i] = tensor_empty(counts[i], (tn_storage)p->store);
        p->from = floats(w[i]);
        p->s = i == 2 ? NULL : floats(s) + i;
        p->to = to[i].device;
        p->nonfinite = flags + i;
    }
    int n = cut(counts, ITEMS, pieces, first);
    OK(tn_launch_pack(device_copy(items, sizeof items), n, device_copy(pieces, sizeof pieces), 0));
    for (int i = 0; i < ITEMS; i++) {
        double *wanted = host_doubles(counts[i]);
        for (size_t k = 0; k < counts[i]; k++)
            wanted[k] = packed(&items[i], w[i].host, i == 2 ? 1 : s.host[i], k);
        if (items[i].layout != TN_PACK_TAPS_BACKWARD || items[i].store != F) {
            check_tensor("packed", &to[i], wanted);
            continue;
        }
        tensor_read(&to[i]); /* tf32: the lower 13 bits are gone */
        check_values("packed", to[i].host, wanted, counts[i], 0x1p-11);
        for (size_t k = 0; k < counts[i]; k++) {
            float v = (float)to[i].host[k];
            uint32_t bits;
            memcpy(&bits, &v, 4);
            assert_int_equal(bits & 0x1fff, 0);
        }
    }
    check_flag("pack", flags, 0);
    const tn_pack_item *p = &items[2]; /* a gradient in this order goes back to OIHW */
    tensor g = tensor_random(counts[2], F, 80), dw = tensor_empty((size_t)(p->out * p->in * p->taps), F);
    double *wanted = host_doubles(dw.count);
    for (size_t i = 0; i < dw.count; i++) {
        size_t tap = i % 49, k = i / 49 % 3, o = i / 49 / 3;
        wanted[i] = g.host[o * 152 + tap * 3 + k];
    }
    OK(tn_launch_unpack_gradient(p->out, p->in, p->taps, p->ld, floats(g), floats(dw), 0));
    check_tensor("unpacked", &dw, wanted);
}

static void test_pack(void **unused) {
    (void)unused;
    check_case("pack", run_pack, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss),  cmocka_unit_test(test_sgd),     cmocka_unit_test(test_add),
        cmocka_unit_test(test_scale), cmocka_unit_test(test_scalars), cmocka_unit_test(test_weight_gradients),
        cmocka_unit_test(test_pack)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
