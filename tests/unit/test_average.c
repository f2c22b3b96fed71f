/* Averages of weights and batch-norm statistics over the steps, against the same in double precision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/state.h"
#include "tests/support/op_cases.h"

#define ROWS  9
#define STEPS 4
#define SHARE 0.75

typedef struct bench {
    tn_model *model;
    tn_engine *engine;
    op_data data;
    tn_batch batch;
    size_t floats; /* parameters and statistics */
} bench;

static tn_status create(bench *b, const char *variant, double average, bool training) {
    tn_model_config config = {
        .model = "resnet8", .variant = variant, .height = 9, .width = 9, .classes = 5, .base_width = 4};
    if (tn_model_build(&config, &b->model) != TN_OK) fail_msg("%s", tn_error());
    tn_engine_config engine = {
        .threads = 2, .micro_batch = 4, .max_batch = ROWS, .training = training, .average = average};
    return tn_engine_create(b->model, &engine, &b->engine);
}

static bench open_bench(const char *variant) {
    bench b = {0};
    if (create(&b, variant, SHARE, true) != TN_OK) fail_msg("%s", tn_error());
    b.data = op_data_draw(b.model, ROWS, 21, false, true);
    b.floats = b.model->param_floats + b.model->state_floats;
    assert_int_equal(tn_engine_initialise(b.engine, 3), TN_OK);
    tn_shape in = b.model->tensors[0].shape;
    b.batch = (tn_batch){.rows = ROWS,
                         .channels = in.channels,
                         .height = in.height,
                         .width = in.width,
                         .classes = 5,
                         .images = b.data.images,
                         .targets = b.data.targets,
                         .labels = b.data.labels};
    return b;
}

static void close_bench(bench *b) {
    tn_engine_free(b->engine);
    tn_model_free(b->model);
    if (b->data.values) op_data_free(&b->data);
}

/* Parameters, then statistics, as the engine shows them. */
static float *visible(const bench *b) {
    float *all = calloc(b->floats, sizeof *all), *state = all + b->model->param_floats;
    for (int p = 0; p < b->model->param_count; p++)
        assert_int_equal(tn_engine_get(b->engine, TN_VALUES, p, all + b->model->params[p].offset), TN_OK);
    for (int s = 0; s < b->model->state_count; s++) {
        int64_t batches;
        const tn_state *at = &b->model->states[s];
        assert_int_equal(
            tn_engine_get_norm(b->engine, s, state + at->mean_offset, state + at->var_offset, &batches),
            TN_OK);
    }
    return all;
}

static void step(bench *b) {
    tn_sgd sgd = {.lr = 0.1, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    tn_result result;
    if (tn_engine_step(b->engine, &b->batch, &sgd, &result) != TN_OK) fail_msg("%s", tn_error());
}

static void use(bench *b, bool average) {
    if (tn_engine_use_average(b->engine, average) != TN_OK) fail_msg("%s", tn_error());
}

static void test_definition(void **unused) {
    (void)unused;
    static const char *const variants[] = {"tau", "bn"};
    for (int v = 0; v < 2; v++) {
        bench b = open_bench(variants[v]);
        float *weights = visible(&b), *before = weights;
        double *wanted = op_widen(weights, b.floats);
        for (int i = 0; i < STEPS; i++) {
            step(&b);
            weights = visible(&b);
            for (size_t k = 0; k < b.floats; k++)
                wanted[k] = SHARE * wanted[k] + (1 - SHARE) * (double)weights[k];
            if (i + 1 < STEPS) free(weights);
        }
        use(&b, true);
        use(&b, true); /* once is enough */
        float *average = visible(&b);
        double moved = 0;
        for (size_t k = 0; k < b.floats; k++) {
            if (!(fabs((double)average[k] - wanted[k]) <= 1e-6 * (1 + fabs(wanted[k]))))
                fail_msg("%s: value %zu is %.9g, not %.9g", variants[v], k, (double)average[k], wanted[k]);
            moved += fabs(wanted[k] - (double)weights[k]) + fabs(wanted[k] - (double)before[k]);
        }
        assert_true(moved > 0.1);
        use(&b, false);
        float *again = visible(&b);
        assert_memory_equal(again, weights, b.floats * sizeof *again);
        free(before);
        free(weights);
        free(average);
        free(again);
        free(wanted);
        close_bench(&b);
    }
}

/* Logits differ while averages are in use, and come back with their bits; so does the training. */
static void test_evaluation_in_between(void **unused) {
    (void)unused;
    bench b = open_bench("bn-tau"), other = open_bench("bn-tau");
    float raw[ROWS * 5], average[ROWS * 5], again[ROWS * 5];
    tn_result result;
    step(&b);
    step(&other);
    assert_int_equal(tn_engine_eval(b.engine, &b.batch, &result, raw), TN_OK);
    use(&b, true);
    assert_int_equal(tn_engine_eval(b.engine, &b.batch, &result, average), TN_OK);
    tn_sgd sgd = {.lr = 0.1};
    assert_int_equal(tn_engine_step(b.engine, &b.batch, &sgd, &result), TN_ERR_USAGE);
    assert_int_equal(tn_engine_gradients(b.engine, &b.batch, &result), TN_ERR_USAGE);
    assert_int_equal(tn_engine_update(b.engine, &sgd), TN_ERR_USAGE);
    use(&b, false);
    assert_int_equal(tn_engine_eval(b.engine, &b.batch, &result, again), TN_OK);
    assert_memory_equal(raw, again, sizeof raw);
    assert_memory_not_equal(raw, average, sizeof raw);
    for (int i = 0; i < 2; i++) step(&b), step(&other);
    for (int k = 0; k < 2; k++) {
        float *one = visible(&b), *two = visible(&other);
        assert_memory_equal(one, two, b.floats * sizeof *one);
        free(one);
        free(two);
        use(&b, true);
        use(&other, true);
    }
    close_bench(&b);
    close_bench(&other);
}

/* A step in which something was not finite moves neither weights nor averages. */
static void test_stopped_update(void **unused) {
    (void)unused;
    bench b = open_bench("tau");
    step(&b);
    use(&b, true);
    float *before = visible(&b);
    use(&b, false);
    b.data.images[5] = NAN;
    tn_sgd sgd = {.lr = 0.1};
    tn_result result;
    assert_int_equal(tn_engine_step(b.engine, &b.batch, &sgd, &result), TN_ERR_DIVERGED);
    use(&b, true);
    float *after = visible(&b);
    assert_memory_equal(before, after, b.floats * sizeof *after);
    free(before);
    free(after);
    close_bench(&b);
}

static void test_refusals(void **unused) {
    (void)unused;
    static const double bad[] = {1, 1.5, -0.1};
    bench b = {0};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(create(&b, "tau", bad[i], true), TN_ERR_USAGE);
        close_bench(&b);
    }
    assert_int_equal(create(&b, "tau", 0.5, false), TN_ERR_USAGE);
    close_bench(&b);
    assert_int_equal(create(&b, "tau", 0, true), TN_OK);
    assert_int_equal(tn_engine_use_average(b.engine, true), TN_ERR_USAGE);
    close_bench(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_evaluation_in_between),
        cmocka_unit_test(test_stopped_update),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
