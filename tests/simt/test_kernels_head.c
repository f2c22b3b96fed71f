/* Average pool, linear layer and loss as one operation against plain double loops: channels and classes, both
 * losses, rows of weight 0, with and without what is optional, gradients that are added. */
#include <math.h>
#include <stdio.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32
#define B TN_STORE_BF16

typedef struct head_case {
    int rows, pixels, channels, classes;
    tn_kernel_loss kind;
    tn_storage store;
    bool bias, scalars, labels, add;
} head_case;

typedef struct expected {
    double *pooled, *logits, *loss, *dx, *dw, *db, sums[2], sizes[2];
    int *rank;
} expected;

typedef struct inputs {
    tensor x, w, bias, scalars, targets, weights;
    int *labels; /* of the host */
} inputs;

static void forward_row(const head_case *t, const inputs *in, size_t row, expected *e) {
    const size_t channels = (size_t)t->channels, classes = (size_t)t->classes, pixels = (size_t)t->pixels;
    double *pooled = e->pooled + row * channels, *logits = e->logits + row * classes;
    for (size_t c = 0; c < channels; c++) {
        for (size_t p = 0; p < pixels; p++) pooled[c] += in->x.host[(row * pixels + p) * channels + c];
        pooled[c] = pooled[c] / t->pixels + (t->scalars ? in->scalars.host[1] : 0);
    }
    for (size_t k = 0; k < classes; k++) {
        logits[k] = (t->scalars ? in->scalars.host[0] : 0) + (t->bias ? in->bias.host[k] : 0);
        for (size_t c = 0; c < channels; c++) logits[k] += in->w.host[k * channels + c] * pooled[c];
    }
}

static expected expect(const head_case *t, const inputs *in) {
    const size_t channels = (size_t)t->channels, classes = (size_t)t->classes, pixels = (size_t)t->pixels,
                 rows = (size_t)t->rows;
    expected e = {.pooled = host_doubles(rows * channels),
                  .logits = host_doubles(rows * classes),
                  .loss = host_doubles(rows),
                  .dx = host_doubles(rows * pixels * channels),
                  .dw = host_doubles(classes * channels),
                  .db = host_doubles(classes)};
    double *slopes = host_doubles(classes);
    for (size_t row = 0; row < rows; row++) {
        forward_row(t, in, row, &e);
        e.loss[row] = loss_of_row(t->kind, e.logits + row * classes, in->targets.host + row * classes,
                                  t->classes, slopes);
        for (size_t k = 0; k < classes; k++) {
            double slope = slopes[k] * in->weights.host[row];
            e.db[k] += slope;
            e.sums[0] += slope;
            e.sizes[0] += fabs(slope);
            for (size_t c = 0; c < channels; c++) {
                double back = slope * in->w.host[k * channels + c];
                e.dw[k * channels + c] += slope * e.pooled[row * channels + c];
                e.sums[1] += back;
                e.sizes[1] += fabs(back);
                for (size_t p = 0; p < pixels; p++)
                    e.dx[(row * pixels + p) * channels + c] += back / t->pixels;
            }
        }
    }
    return e;
}

static inputs draw(const head_case *t) {
    const size_t channels = (size_t)t->channels, classes = (size_t)t->classes, rows = (size_t)t->rows;
    double *soft = host_doubles(rows * classes), *weight = host_doubles(rows);
    inputs in = {.x = tensor_random(rows * (size_t)t->pixels * channels, t->store, 1),
                 .w = tensor_random(classes * channels, F, 2),
                 .bias = tensor_random(classes, F, 3),
                 .scalars = tensor_random(2, F, 4),
                 .labels = host_zeros(rows * sizeof(int))};
    for (size_t i = 0; i < rows * classes; i++) soft[i] = fabs(draw_real(5, (uint32_t)i)) / (double)classes;
    for (size_t i = 0; i < rows; i++) {
        weight[i] = i % 3 == 2 ? 0 : draw_real(6, (uint32_t)i);
        in.labels[i] = draw_below(7, (uint32_t)i, t->classes);
    }
    in.targets = tensor_of(soft, rows * classes, F);
    in.weights = tensor_of(weight, rows, F);
    return in;
}

static void check_ranks(const head_case *t, const inputs *in, const expected *e, const int *device_ranks) {
    const int *ranks = host_copy(device_ranks, (size_t)t->rows * sizeof *ranks);
    for (int row = 0; row < t->rows; row++) {
        const double *logits = e->logits + (size_t)row * (size_t)t->classes;
        int label = in->labels[row], least = 0, most = 0; /* scores may be too near to tell */
        for (int k = 0; k < t->classes; k++) {
            least += logits[k] > logits[label] + 1e-4;
            most += k != label && logits[k] > logits[label] - 1e-4;
        }
        if (ranks[row] < least || ranks[row] > most)
            fail_msg("row %d has rank %d, wanted %d", row, ranks[row], least);
    }
}

/* Gradients, from zeros or added to what is there. */
static void check_gradients(const head_case *t, const tn_head_shape *s, const expected *e, void *workspace) {
    tensor dw = tensor_random((size_t)(t->channels * t->classes), F, 11),
           db = tensor_random((size_t)t->classes, F, 12), sums = tensor_random(4, F, 13);
    for (size_t i = 0; i < dw.count; i++) e->dw[i] += t->add ? dw.host[i] : 0;
    for (size_t i = 0; i < db.count; i++) e->db[i] += t->add ? db.host[i] : 0;
    double wanted[4];
    for (int i = 0; i < 4; i++) wanted[i] = e->sums[i / 2] + (t->add ? sums.host[i] : 0);
    tn_head_gradient g = {.weights = floats(dw),
                          .bias = t->bias ? floats(db) : NULL,
                          .sums = floats(sums),
                          .pool_sums = floats(sums) + 2,
                          .add = t->add};
    OK(tn_launch_head_gradients(s, workspace, g, 0));
    check_tensor("dw", &dw, e->dw);
    if (t->bias) check_tensor("db", &db, e->db);
    tensor_read(&sums);
    for (int i = 0; i < 4; i++)
        check_number("sums", sums.host[i], wanted[i], e->sizes[i / 2] + fabs(wanted[i]) + 1e-3, 1e-5);
}

static void run_head(void *argument) {
    const head_case *t = argument;
    const tn_head_shape s = {t->rows, t->pixels, t->channels, t->classes};
    const size_t rows = (size_t)t->rows;
    const inputs in = draw(t);
    const expected e = expect(t, &in);
    tensor logits = tensor_empty(rows * (size_t)t->classes, F), loss = tensor_empty(rows, F),
           dx = tensor_empty(in.x.count, t->store);
    int *ranks = device_raw(rows * sizeof(int)), *flags = device_zeros(3 * sizeof(int));
    void *workspace = device_raw(tn_head_workspace(&s));
    tn_head h = {.kind = t->kind,
                 .weights = floats(in.w),
                 .bias = t->bias ? floats(in.bias) : NULL,
                 .c = t->scalars ? floats(in.scalars) : NULL,
                 .d = t->scalars ? floats(in.scalars) + 1 : NULL,
                 .targets = floats(in.targets),
                 .row_weights = floats(in.weights),
                 .labels = t->labels ? device_copy(in.labels, rows * sizeof(int)) : NULL,
                 .logits = floats(logits),
                 .row_loss = floats(loss),
                 .row_rank = ranks,
                 .nonfinite = flags};
    for (int training = 0; training < 2; training++) {
        OK(tn_launch_head(&s, &h, t->store, in.x.device, training ? dx.device : NULL,
                          training ? workspace : NULL, 0));
        check_tensor("logits", &logits, e.logits);
        check_tensor("row loss", &loss, e.loss);
        if (t->labels) check_ranks(t, &in, &e, ranks);
        for (int i = 0; i < 3; i++) check_flag("head", flags + i, 0);
    }
    check_tensor("dx", &dx, e.dx);
    for (size_t i = 0; i < dx.count; i++)
        if (in.weights.host[i / (dx.count / rows)] == 0) assert_true(dx.host[i] == 0);
    check_gradients(t, &s, &e, workspace);
}

static void test_heads(void **unused) {
    static const head_case cases[] = {
        {.rows = 37,
         .pixels = 64,
         .channels = 64,
         .classes = 10,
         .bias = true,
         .scalars = true,
         .labels = true},
        {.rows = 9, .pixels = 49, .channels = 64, .classes = 100, .bias = true, .labels = true, .add = true},
        {.rows = 3, .pixels = 1, .channels = 8, .classes = 1, .kind = TN_KERNEL_SQUARED, .add = true},
        {.rows = 2, .pixels = 5, .channels = 512, .classes = 32, .scalars = true, .labels = true},
        {.rows = 5, .pixels = 300, .channels = 24, .classes = 33, .kind = TN_KERNEL_SQUARED, .bias = true},
        {.rows = 1, .pixels = 3, .channels = 64, .classes = 256, .labels = true, .bias = true},
        {.rows = 4, .pixels = 7, .channels = 136, .classes = 7, .labels = true, .add = true, .scalars = true},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int store = 0; store < 2; store++) {
            head_case t = cases[i];
            char name[64];
            t.store = store ? B : F;
            snprintf(name, sizeof name, "head %zu, storage %d", i, store);
            check_case(name, run_head, &t);
        }
}

/* What is not finite is seen where it first appears: in x, in the logits, in a loss of a row that counts. */
static void run_nonfinite(void *argument) {
    const tn_head_shape s = {.rows = 2, .pixels = 3, .channels = 8, .classes = 4};
    (void)argument;
    for (int where = 0; where < 3; where++)
        for (int counts = 0; counts < 2; counts++) {
            double x[48] = {0}, w[32] = {0}, target[8] = {0}, weights[2] = {1, counts};
            if (where == 0) x[47] = NAN;
            if (where == 1) w[31] = INFINITY;
            if (where == 2) target[7] = INFINITY;
            tensor tx = tensor_of(x, 48, F), tw = tensor_of(w, 32, F), tt = tensor_of(target, 8, F),
                   tr = tensor_of(weights, 2, F), logits = tensor_empty(8, F), loss = tensor_empty(2, F),
                   dx = tensor_empty(48, F);
            int *flags = device_zeros(3 * sizeof *flags);
            tn_head h = {.weights = floats(tw),
                         .targets = floats(tt),
                         .row_weights = floats(tr),
                         .logits = floats(logits),
                         .row_loss = floats(loss),
                         .nonfinite = flags};
            OK(tn_launch_head(&s, &h, F, tx.device, dx.device, device_raw(tn_head_workspace(&s)), 0));
            check_flag("pooled", flags, where == 0);
            check_flag("logits", flags + 1, where <= 1);
            /* With weights that are not finite the loss of the first row is none either. */
            check_flag("loss", flags + 2, where == 1 || counts);
        }
}

static void test_nonfinite(void **unused) {
    (void)unused;
    check_case("not finite", run_nonfinite, NULL);
}

static void test_refusals(void **unused) {
    static _Alignas(16) float memory[8];
    tn_head_shape s = {.rows = 1, .pixels = 1, .channels = 8, .classes = 2};
    tn_head h = {.weights = memory};
    (void)unused;
    assert_int_equal(tn_launch_head(&s, &h, F, memory, memory, memory, 0), cudaErrorInvalidValue);
    assert_int_equal(tn_launch_head(&s, &h, F, memory + 1, NULL, NULL, 0), cudaErrorMisalignedAddress);
    const tn_head_shape refused[] = {
        {1, 1, 12, 2}, {1, 1, 520, 2}, {1, 1, 8, 257}, {1, 1, 512, 33}, {1, 0, 8, 2}};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_int_equal(tn_head_takes(&refused[i]), 0);
    assert_int_equal(tn_launch_head_gradients(&refused[0], memory, (tn_head_gradient){0}, 0),
                     cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_heads), cmocka_unit_test(test_nonfinite),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
