/* The CPU backend and the engine on it against the float64 reference: every op case, whole networks of every
 * variant, for several chunk sizes; and the same bits for any number of threads. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "tests/support/engine_check.h"

static const engine_target cpu = {.device = "cpu", .threads = 2};

static tn_engine *make_engine(const tn_model *model, int rows, int micro_batch, int threads,
                              const op_data *data) {
    engine_target target = cpu;
    target.threads = threads;
    return engine_make(&target, model, rows, micro_batch, data);
}

static void test_op_cases(void **unused) {
    (void)unused;
    engine_check_op_cases(&cpu, true);
}

static tn_model *network_of_size(const char *name, const char *variant, int width, bool per_block, int height,
                                 int columns) {
    tn_model *model;
    tn_model_config config = {.model = name,
                              .variant = variant,
                              .channels = 3,
                              .height = height,
                              .width = columns,
                              .classes = 7,
                              .base_width = width,
                              .tau_per_block = per_block};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static tn_model *network(const char *name, const char *variant, int width, bool per_block) {
    return network_of_size(name, variant, width, per_block, 12, 12);
}

static const char *const variants[] = {"bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain"};

static void test_networks(void **unused) {
    (void)unused;
    for (int v = 0; v < 8; v++) {
        tn_model *model = network("resnet14", variants[v < 7 ? v : 2], 16, v == 7);
        op_data data = op_data_draw(model, 7, 1, true, false);
        engine_check_reference(&cpu, variants[v < 7 ? v : 2], model, 7, 4, &data, 1e-4);
        op_data_free(&data);
        tn_model_free(model);
    }
}

/* ImageNet's networks, narrow, on images with an odd side. */
static void test_imagenet_networks(void **unused) {
    (void)unused;
    for (int bottleneck = 0; bottleneck < 2; bottleneck++)
        for (int v = 0; v < 8; v++) {
            const char *variant = variants[v < 7 ? v : 2];
            tn_model *model =
                network_of_size(bottleneck ? "resnet50" : "resnet18", variant, 8, v == 7, 47, 34);
            op_data data = op_data_draw(model, 5, 1, true, false);
            engine_check_reference(&cpu, variant, model, 5, 2, &data, 1e-4);
            op_data_free(&data);
            tn_model_free(model);
        }
}

/* Values after some steps, with their bits. */
static float *trained(const tn_model *model, int rows, int threads, const op_data *data) {
    tn_engine *engine = make_engine(model, rows, 2, threads, data);
    tn_batch batch = engine_batch(model, rows, data);
    tn_sgd sgd = {.lr = 0.05, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    tn_result result;
    for (int step = 0; step < 3; step++) {
        batch.rows = step == 1 ? rows - 3 : rows; /* a shorter batch in between */
        if (tn_engine_gradients(engine, &batch, &result) != TN_OK) fail_msg("%s", tn_error());
        if (tn_engine_update(engine, &sgd) != TN_OK) fail_msg("%s", tn_error());
    }
    size_t count = model->param_floats + model->state_floats;
    float *all = malloc((count + 1) * sizeof *all);
    memcpy(all, engine->flat.values, model->param_floats * sizeof *all);
    memcpy(all + model->param_floats, engine->flat.state, model->state_floats * sizeof *all);
    all[count] = (float)result.loss;
    tn_engine_free(engine);
    return all;
}

static void test_same_bits_for_any_threads(void **unused) {
    (void)unused;
    static const char *const two[] = {"tau", "bn-tau"};
    for (int v = 0; v < 2; v++) {
        tn_model *model = network("resnet14", two[v], 16, false);
        op_data data = op_data_draw(model, 23, 3, false, false);
        size_t bytes = (model->param_floats + model->state_floats + 1) * sizeof(float);
        float *one = trained(model, 23, 1, &data);
        for (int repeat = 0; repeat < 3; repeat++)
            for (int threads = 2; threads <= 4; threads++) {
                float *many = trained(model, 23, threads, &data);
                assert_memory_equal(one, many, bytes);
                free(many);
            }
        free(one);
        op_data_free(&data);
        tn_model_free(model);
    }
}

/* A reference implementation would be a hundred times slower: it is a bug wherever it appears. */
static void test_no_slow_implementation(void **unused) {
    (void)unused;
    for (int v = 0; v < 14; v++) {
        tn_model *model;
        tn_model_config config = {.model = v < 7 ? "resnet20" : "resnet50", .variant = variants[v % 7]};
        assert_int_equal(tn_model_build(&config, &model), TN_OK);
        tn_engine *engine;
        tn_engine_config engine_config = {.threads = 1, .max_batch = 8, .training = true};
        assert_int_equal(tn_engine_create(model, &engine_config, &engine), TN_OK);
        for (int i = 0; i < model->node_count; i++)
            for (int which = 0; which < 3; which++) {
                const char *name = tn_engine_implementation(engine, i, which);
                bool conv = model->nodes[i].kind == TN_NODE_CONV;
                if (strstr(name, "ref") || (conv && strstr(name, "gemm:")))
                    fail_msg("%s %s: implementation %s", variants[v % 7], model->nodes[i].name, name);
            }
        tn_engine_free(engine);
        tn_model_free(model);
    }
}

/* ---- values that are not finite ---- */

static void expect_diverged(tn_engine *engine, const tn_batch *batch, const char *layer) {
    tn_result result;
    assert_int_equal(tn_engine_gradients(engine, batch, &result), TN_ERR_DIVERGED);
    size_t length = strlen(layer), message = strlen(tn_error());
    if (message < length || strcmp(tn_error() + message - length, layer))
        fail_msg("'%s' does not name %s", tn_error(), layer);
}

static void test_nan_in_weights_and_input(void **unused) {
    (void)unused;
    for (int v = 0; v < 7; v++) {
        tn_model *model = network("resnet8", variants[v], 16, false);
        op_data data = op_data_draw(model, 4, 5, false, true);
        tn_engine *engine = make_engine(model, 4, 2, 2, &data);
        tn_batch batch = engine_batch(model, 4, &data);
        for (int i = 0; i < model->node_count; i++) {
            const tn_node *node = &model->nodes[i];
            int parameter = node->weight >= 0 ? node->weight : node->gamma;
            if (parameter < 0) continue;
            const tn_param *p = &model->params[parameter];
            float *poisoned = malloc(p->count * sizeof *poisoned);
            assert_int_equal(tn_engine_get(engine, TN_VALUES, parameter, poisoned), TN_OK);
            float saved = poisoned[p->count / 2];
            poisoned[p->count / 2] = NAN;
            assert_int_equal(tn_engine_set(engine, TN_VALUES, parameter, poisoned), TN_OK);
            expect_diverged(engine, &batch, node->name);
            tn_result ignored;
            assert_int_equal(tn_engine_eval(engine, &batch, &ignored, NULL), TN_ERR_DIVERGED);
            poisoned[p->count / 2] = saved;
            assert_int_equal(tn_engine_set(engine, TN_VALUES, parameter, poisoned), TN_OK);
            free(poisoned);
        }
        tn_result result;
        assert_int_equal(tn_engine_gradients(engine, &batch, &result), TN_OK);
        data.images[17] = NAN;
        expect_diverged(engine, &batch, "the input images");
        tn_engine_free(engine);
        op_data_free(&data);
        tn_model_free(model);
    }
}

/* An overflow inside the network: the ReLU behind it would hide the NaN that follows. */
static void test_overflow_is_found_where_it_starts(void **unused) {
    (void)unused;
    static const char *const two[] = {"tau", "bn"};
    for (int v = 0; v < 2; v++) {
        tn_model *model = network("resnet8", two[v], 16, false);
        op_data data = op_data_draw(model, 4, 5, false, true);
        tn_engine *engine = make_engine(model, 4, 2, 2, &data);
        tn_batch batch = engine_batch(model, 4, &data);
        int p = tn_engine_find_parameter(engine, "layer1.0.conv1.weight");
        for (size_t i = 0; i < model->params[p].count; i++)
            engine->flat.values[model->params[p].offset + i] = 1e38f;
        engine->packed = false;
        expect_diverged(engine, &batch,
                        v ? "the input of layer layer1.0.bn1" : "the output of layer layer1.0.conv1");
        tn_engine_free(engine);
        op_data_free(&data);
        tn_model_free(model);
    }
}

static void test_allocation_failures(void **unused) {
    (void)unused;
    tn_model *model = network("resnet8", "bn", 16, false);
    tn_engine_config config = {.threads = 2, .micro_batch = 2, .max_batch = 6, .training = true};
    size_t before = tn_memory_in_use();
    tn_engine *engine;
    int failures = 0;
    for (long n = 1;; n++) {
        tn_memory_fail_at(n);
        tn_status status = tn_engine_create(model, &config, &engine);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        failures++;
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_null(engine);
        assert_int_equal(tn_memory_in_use(), before);
    }
    assert_true(failures > 50);
    tn_engine_free(engine);
    assert_int_equal(tn_memory_in_use(), before);
    tn_model_free(model);
}

static void test_wrong_batches(void **unused) {
    (void)unused;
    tn_model *model = network("resnet8", "tau", 16, false);
    op_data data = op_data_draw(model, 4, 5, false, true);
    tn_engine *engine = make_engine(model, 4, 2, 1, &data);
    tn_batch batch = engine_batch(model, 4, &data);
    tn_result result;
    batch.rows = 5;
    assert_int_equal(tn_engine_gradients(engine, &batch, &result), TN_ERR_USAGE);
    batch.rows = 4;
    batch.height = 13;
    assert_int_equal(tn_engine_eval(engine, &batch, &result, NULL), TN_ERR_USAGE);
    tn_engine_free(engine);
    op_data_free(&data);
    tn_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_op_cases),
        cmocka_unit_test(test_networks),
        cmocka_unit_test(test_imagenet_networks),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_no_slow_implementation),
        cmocka_unit_test(test_nan_in_weights_and_input),
        cmocka_unit_test(test_overflow_is_found_where_it_starts),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_wrong_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
