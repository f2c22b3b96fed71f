/* What the host side of the CUDA backend promises beyond right gradients, against the CPU backend: values
 * that are not finite are named and stop the update, probes, access to parameters, large copies, im2col in
 * slices. Runs on the SIMT machine and on a device. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cuda_device.h"
#include "tests/support/engine_check.h"

#define ROWS   4
#define LAYERS 64

static const engine_target cpu = {.device = "cpu", .threads = 1}, fp32 = {.device = "cuda"},
                           bf16 = {.device = "cuda", .precision = TN_PRECISION_BF16, .separate_layers = true};

static bool small(void) {
    return getenv("SIMT_SMALL") != NULL;
}

static tn_model *network_of_width(const char *variant, int width) {
    tn_model *model;
    tn_model_config config = {.model = "resnet8",
                              .variant = variant,
                              .channels = 3,
                              .height = 8,
                              .width = 7,
                              .classes = 4,
                              .base_width = width};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static tn_model *network(const char *variant) {
    return network_of_width(variant, 8);
}

static void set(tn_engine *engine, int param, float *values, size_t place, float value) {
    values[place] = value;
    if (tn_engine_set(engine, TN_VALUES, param, values) != TN_OK) fail_msg("%s", tn_error());
}

/* ---- values that are not finite ---- */

/* A step, which must fail and leave weights and momentum as they are; its message into text. */
static void diverge(tn_engine *engine, const tn_batch *batch, char *text, size_t size) {
    const tn_model *m = engine->model;
    const tn_sgd sgd = {.lr = 0.1, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};
    size_t bytes = m->param_floats * sizeof(float);
    tn_result result;
    float *before = engine_values(engine);
    tn_status status = tn_engine_step(engine, batch, &sgd, &result);
    snprintf(text, size, "%s", status == TN_OK ? "" : tn_error());
    assert_int_equal(status, TN_ERR_DIVERGED);
    float *after = engine_values(engine);
    assert_memory_equal(before, after, bytes);
    free(before);
    free(after);
}

/* The same message from both. */
static void diverge_alike(tn_engine *const engines[2], const tn_batch *batch, const char *what) {
    char texts[2][256];
    for (int k = 0; k < 2; k++) diverge(engines[k], batch, texts[k], sizeof texts[k]);
    if (strcmp(texts[0], texts[1])) fail_msg("%s: '%s', on the CPU '%s'", what, texts[1], texts[0]);
}

/* The CPU first sees it in the statistics behind the convolution, the device's kernel in its output. */
static void overflow_before_norm(tn_engine *const engines[2], const tn_batch *batch) {
    char text[256];
    diverge(engines[0], batch, text, sizeof text);
    assert_non_null(strstr(text, "the input of layer layer1.0.bn1"));
    diverge(engines[1], batch, text, sizeof text);
    assert_non_null(strstr(text, "the output of layer layer1.0.conv1"));
}

static void one_step(tn_engine *engine, const tn_batch *batch, tn_result *result) {
    const tn_sgd still = {.lr = 0.0, .momentum = 0.9};
    if (tn_engine_step(engine, batch, &still, result) != TN_OK) fail_msg("%s", tn_error());
}

/* A NaN in the middle of each parameter, then it is as it was. */
static void nan_in_parameters(tn_engine *const engines[2], const tn_batch *batch, const op_data *data) {
    const tn_model *m = engines[0]->model;
    tn_result results[2];
    for (int p = 0; p < m->param_count; p += small() ? 5 : 1) {
        float *values = malloc(m->params[p].count * sizeof *values);
        size_t place = m->params[p].count / 2;
        memcpy(values, data->values + m->params[p].offset, m->params[p].count * sizeof *values);
        float saved = values[place];
        for (int k = 0; k < 2; k++) set(engines[k], p, values, place, NAN);
        diverge_alike(engines, batch, m->params[p].name);
        for (int k = 0; k < 2; k++) {
            set(engines[k], p, values, place, saved);
            one_step(engines[k], batch, &results[k]);
        }
        if (!(fabs(results[1].loss - results[0].loss) <= 1e-4 * results[0].loss))
            fail_msg("after a NaN in %s: loss %.7g, on the CPU %.7g", m->params[p].name, results[1].loss,
                     results[0].loss);
        free(values);
    }
}

static void test_values_that_are_not_finite(void **unused) {
    (void)unused;
    static const char *const variants[] = {"bn-tau", "tau", "fixup"};
    for (int v = 0; v < (small() ? 1 : 3); v++) {
        tn_model *model = network(variants[v]);
        op_data data = op_data_draw(model, ROWS, 5, false, true);
        tn_engine *engines[] = {engine_make(&cpu, model, ROWS, ROWS, &data),
                                engine_make(&fp32, model, ROWS, 0, &data)};
        tn_batch batch = engine_batch(model, ROWS, &data);
        nan_in_parameters(engines, &batch, &data);
        float saved = data.images[17];
        data.images[17] = NAN;
        diverge_alike(engines, &batch, "a NaN in the images");
        data.images[17] = saved;
        /* An overflow inside: a ReLU behind it would hide the NaN that follows. */
        int p = tn_engine_find_parameter(engines[0], "layer1.0.conv1.weight");
        float *large = malloc(model->params[p].count * sizeof *large);
        for (size_t i = 0; i < model->params[p].count; i++) large[i] = 1e38f;
        for (int k = 0; k < 2; k++) set(engines[k], p, large, 0, 1e38f);
        if (v)
            diverge_alike(engines, &batch, "an overflow");
        else
            overflow_before_norm(engines, &batch);
        free(large);
        for (int k = 0; k < 2; k++) tn_engine_free(engines[k]);
        op_data_free(&data);
        tn_model_free(model);
    }
}

/* ---- probes ---- */

static int probe(const engine_target *target, const tn_model *model, const op_data *data, tn_norms *norms) {
    int layers[LAYERS], count = 0;
    tn_result result;
    for (int i = 0; i < tn_model_layer_count(model) - 1; i++) layers[count++] = i;
    assert_true(count <= LAYERS);
    engine_target apart = *target;
    apart.separate_layers = true;
    tn_engine *engine = engine_make(&apart, model, ROWS, 0, data);
    tn_batch batch = engine_batch(model, ROWS, data);
    batch.rows = ROWS - 1; /* padding is not counted */
    if (tn_engine_probe(engine, &batch, count, layers, &result, norms) != TN_OK) fail_msg("%s", tn_error());
    float *values = engine_values(engine), *state = engine_state(engine);
    assert_memory_equal(values, data->values, model->param_floats * sizeof *values);
    assert_memory_equal(state, data->state, model->state_floats * sizeof *state);
    free(values);
    free(state);
    tn_engine_free(engine);
    return count;
}

static void test_probes(void **unused) {
    (void)unused;
    static const char *const variants[] = {"tau", "bn-tau", "fixup"};
    for (int v = 0; v < (small() ? 1 : 3); v++) {
        tn_model *model = network_of_width(variants[v], v == 1 ? 8 : 16);
        op_data data = op_data_draw(model, ROWS, 3, false, false);
        tn_norms wanted[LAYERS], norms[LAYERS];
        int count = probe(&cpu, model, &data, wanted);
        for (int k = 0; k < 2; k++) {
            double tolerance = k ? 5e-2 : 1e-4;
            probe(k ? &bf16 : &fp32, model, &data, norms);
            for (int i = 0; i < count; i++)
                if (!(fabs(norms[i].output - wanted[i].output) <= tolerance * wanted[i].output) ||
                    !(fabs(norms[i].gradient - wanted[i].gradient) <= 5 * tolerance * wanted[i].gradient))
                    fail_msg("%s, %s: norms %g and %g, on the CPU %g and %g", variants[v],
                             model->nodes[i].name, norms[i].output, norms[i].gradient, wanted[i].output,
                             wanted[i].gradient);
        }
        op_data_free(&data);
        tn_model_free(model);
    }
}

/* ---- access and copies ---- */

static void test_parameters_come_back(void **unused) {
    (void)unused;
    tn_model *model = network("bn-tau");
    op_data data = op_data_draw(model, ROWS, 5, false, true);
    tn_engine *engine = engine_make(&bf16, model, ROWS, 0, &data);
    for (int kind = TN_VALUES; kind <= TN_MOMENTUM; kind++)
        for (int p = 0; p < model->param_count; p++) {
            size_t count = model->params[p].count;
            float *to = malloc(2 * count * sizeof *to), *back = to + count;
            for (size_t i = 0; i < count; i++) to[i] = (float)(kind * 1000 + p) + (float)i / 1024;
            assert_int_equal(tn_engine_set(engine, kind, p, to), TN_OK);
            assert_int_equal(tn_engine_get(engine, kind, p, back), TN_OK);
            assert_memory_equal(to, back, count * sizeof *to);
            free(to);
        }
    /* Neighbours are not touched: all are still as they were set. */
    float *values = engine_values(engine);
    for (int p = 0; p < model->param_count; p++) assert_true(values[model->params[p].offset] == (float)p);
    free(values);
    for (int i = 0; i < tn_engine_norm_count(engine); i++) {
        float mean[64], var[64], got[2][64];
        int64_t batches;
        int channels = tn_engine_norm(engine, i).channels;
        for (int c = 0; c < channels; c++) mean[c] = (float)(i + c), var[c] = (float)(i + 2 * c);
        assert_int_equal(tn_engine_set_norm(engine, i, mean, var, 40 + i), TN_OK);
        assert_int_equal(tn_engine_get_norm(engine, i, got[0], got[1], &batches), TN_OK);
        assert_memory_equal(mean, got[0], (size_t)channels * sizeof *mean);
        assert_memory_equal(var, got[1], (size_t)channels * sizeof *var);
        assert_int_equal(batches, 40 + i);
    }
    tn_engine_free(engine);
    op_data_free(&data);
    tn_model_free(model);
}

/* More than all pinned memory holds; the source may be overwritten at once. */
static void test_large_copies(void **unused) {
    (void)unused;
    const tn_backend_ops *ops = &tn_cuda_backend;
    tn_backend *backend;
    size_t count = ((size_t)9 << 18) + 77, bytes = count * sizeof(uint32_t);
    uint32_t *from = malloc(bytes), *back = calloc(count, sizeof *back), *memory;
    assert_int_equal(ops->open(0, 1, TN_PRECISION_FP32, &backend), TN_OK);
    assert_int_equal(ops->alloc(backend, &memory, bytes, "test"), TN_OK);
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < count; i++) from[i] = (uint32_t)i * 2654435761u + (uint32_t)round;
        assert_int_equal(ops->upload(backend, memory, from, bytes), TN_OK);
        memset(from, 0, bytes);
        assert_int_equal(ops->download(backend, back, memory, bytes), TN_OK);
        for (size_t i = 0; i < count; i++)
            if (back[i] != (uint32_t)i * 2654435761u + (uint32_t)round) fail_msg("value %zu is wrong", i);
    }
    assert_int_equal(ops->clear(backend, memory, bytes), TN_OK);
    assert_int_equal(ops->download(backend, back, memory, bytes), TN_OK);
    for (size_t i = 0; i < count; i++) assert_int_equal(back[i], 0);
    ops->release(backend, memory);
    ops->close(backend);
    free(from);
    free(back);
}

/* ---- im2col in slices ---- */

/* Plans anew with less room for columns and for parts of gradients. */
static void plan_again(tn_engine *engine, size_t columns_bytes, size_t parts_bytes) {
    tn_cuda *cuda = (tn_cuda *)(void *)engine->backend;
    const tn_engine_config *c = &engine->config;
    tn_executor_config config = {.chunk_rows = c->micro_batch,
                                 .chunks = engine->chunks,
                                 .statistics = engine->chunks,
                                 .workers = c->threads,
                                 .separate_layers = c->separate_layers,
                                 .training = true};
    const tn_step_memory memory = tn_engine_step_memory(engine);
    size_t held_bytes;
    tn_executor_free(engine->executor);
    tn_cuda_free_tables(cuda);
    cuda->columns_bytes = columns_bytes;
    cuda->parts_bytes = parts_bytes;
    engine->executor = NULL;
    if (tn_executor_create(engine->model, engine->backend, &config, &engine->executor) != TN_OK ||
        engine->backend->ops->prepare(engine->backend, engine->model, tn_executor_plans(engine->executor),
                                      &engine->flat, &memory, &held_bytes) != TN_OK)
        fail_msg("%s", tn_error());
    engine->packed = false;
}

static void check_slices(const engine_target *target, size_t columns_bytes, double tolerance) {
    tn_model *model;
    /* Of 12 channels: convolutions of and to them go through im2col. */
    tn_model_config config = {.model = "resnet8",
                              .variant = "tau",
                              .channels = 3,
                              .height = 7,
                              .width = 6,
                              .classes = 4,
                              .base_width = 12};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    op_data data = op_data_draw(model, ROWS + 1, 5, false, true);
    tn_batch batch = engine_batch(model, ROWS + 1, &data);
    float *grads[2];
    tn_result results[2];
    int columns = 0;
    for (int k = 0; k < 2; k++) {
        tn_engine *engine = engine_make(target, model, ROWS + 1, 0, &data);
        if (k) plan_again(engine, columns_bytes, 1);
        for (int i = 0; i < model->node_count; i++)
            columns += !strncmp(tn_engine_implementation(engine, i, 0), "im2col", 6);
        if (tn_engine_gradients(engine, &batch, &results[k]) != TN_OK) fail_msg("%s", tn_error());
        grads[k] = engine_grads(engine);
        tn_engine_free(engine);
    }
    assert_int_equal(columns, 2 * 4);
    assert_true(fabs(results[1].loss - results[0].loss) <= 1e-5 * results[0].loss);
    double *whole = op_widen(grads[0], model->param_floats);
    for (int p = 0; p < model->param_count; p++) {
        double error = op_gradient_error(model, p, whole, grads[1]);
        if (!(error <= tolerance))
            fail_msg("in slices, the gradient of %s is off by %g", model->params[p].name, error);
    }
    free(whole);
    free(grads[0]);
    free(grads[1]);
    op_data_free(&data);
    tn_model_free(model);
}

static void test_slices(void **unused) {
    (void)unused;
    check_slices(&fp32, 1, 1e-5);
    if (small()) return;
    check_slices(&fp32, (size_t)2 * 7 * 6 * 112 * 4, 1e-5); /* two rows of the widest columns, so 2 + 2 + 1 */
    check_slices(&bf16, 1, 1e-5);
}

/* ---- gates and parts ---- */

static float *gradients_of(tn_engine *engine, const tn_batch *batch) {
    tn_result result;
    if (tn_engine_gradients(engine, batch, &result) != TN_OK) fail_msg("%s", tn_error());
    return engine_grads(engine);
}

/* Makes the gradients again, after `change`, which may move no bit. */
static void same_again(tn_engine *engine, const tn_batch *batch, const float *wanted, const char *change) {
    float *grads = gradients_of(engine, batch);
    if (memcmp(grads, wanted, engine->model->trained_floats * sizeof *grads) != 0)
        fail_msg("%s: the gradients have other bits", change);
    free(grads);
}

/* Convolutions on tensor cores make the dz of those before them, and all parts of gradients wait for one
 * launch: a probe, for which gates stay open, leaves nothing behind; with room for the parts of one layer
 * alone, and with the inside of blocks computed again, bits are the same. */
static void check_gates(const char *variant, tn_precision precision) {
    tn_model *model;
    tn_model_config config = {
        .model = "resnet14", .variant = variant, .channels = 3, .height = 8, .width = 7, .classes = 4};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    op_data data = op_data_draw(model, ROWS, 5, false, true);
    tn_batch batch = engine_batch(model, ROWS, &data);
    engine_target target = {.device = "cuda", .precision = precision, .separate_layers = true};
    tn_engine *engine = engine_make(&target, model, ROWS, 0, &data);
    const tn_cuda *cuda = (const tn_cuda *)(const void *)engine->backend;
    const size_t room = cuda->waiting.bytes;
    int layer = 2, wmma = 0;
    tn_result result;
    tn_norms norms;
    for (int i = 0; i < model->node_count; i++)
        wmma += !strncmp(tn_engine_implementation(engine, i, 1), "wmma", 4);
    assert_int_equal(wmma, 12);
    float *wanted = gradients_of(engine, &batch);
    assert_int_equal(tn_engine_probe(engine, &batch, 1, &layer, &result, &norms), TN_OK);
    same_again(engine, &batch, wanted, "a probe");
    tn_engine_free(engine);
    for (int recompute = 0; recompute < 2; recompute++) {
        target.recompute = recompute;
        engine = engine_make(&target, model, ROWS, 0, &data);
        if (!recompute) plan_again(engine, (size_t)1 << 20, 1);
        cuda = (const tn_cuda *)(const void *)engine->backend;
        assert_true(recompute || cuda->waiting.bytes < room / 4);
        same_again(engine, &batch, wanted, recompute ? "--recompute" : "less room for parts");
        tn_engine_free(engine);
    }
    free(wanted);
    op_data_free(&data);
    tn_model_free(model);
}

static void test_gates(void **unused) {
    (void)unused;
    check_gates("tau", TN_PRECISION_BF16);
    if (small()) return;
    check_gates("fixup", TN_PRECISION_TF32);
    check_gates("plain", TN_PRECISION_BF16);
}

/* What the plan prints is what the device holds; `slack` is for what a driver takes beside, for kernels and
 * to round up. */
static void check_memory(const char *variant, tn_precision precision, bool training, size_t slack) {
    tn_model *model = network(variant);
    tn_engine_config config = {
        .device = "cuda", .precision = precision, .training = training, .max_batch = ROWS};
    tn_engine *engine;
    size_t before, after, all;
    assert_int_equal(cudaMemGetInfo(&before, &all), cudaSuccess);
    if (tn_engine_create(model, &config, &engine) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(cudaMemGetInfo(&after, &all), cudaSuccess);
    assert_in_range(before - after, tn_engine_bytes(engine), tn_engine_bytes(engine) + slack);
    tn_engine_free(engine);
    tn_model_free(model);
}

static void test_memory(void **unused) {
    (void)unused;
    struct cudaDeviceProp p;
    assert_int_equal(cudaGetDeviceProperties(&p, 0), cudaSuccess);
    const size_t slack = strstr(p.name, "SIMT") ? 0 : (size_t)256 << 20;
    check_memory("bn", TN_PRECISION_FP32, true, slack);
    check_memory("tau", TN_PRECISION_BF16, true, slack);
    check_memory("tau", TN_PRECISION_BF16, false, slack);
}

/* One line with memory, compute capability and the versions of the libraries. */
static void test_description(void **unused) {
    (void)unused;
    const tn_backend_ops *ops;
    int device;
    char text[160], name[80];
    double gib;
    int sm, major[4], minor[4], end = 0;
    assert_int_equal(tn_backend_find("cuda", TN_PRECISION_FP32, &ops, &device), TN_OK);
    ops->describe(device, text, sizeof(text));
    sscanf(text, "0: %79[^,], %lf GiB, sm_%d, CUDA %d.%d, driver %d.%d, cuBLAS %d.%d, cuRAND %d.%d%n", name,
           &gib, &sm, &major[0], &minor[0], &major[1], &minor[1], &major[2], &minor[2], &major[3], &minor[3],
           &end);
    if (!end || text[end] || !(gib > 1) || sm < 80 || major[3] < 10) fail_msg("%s", text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_that_are_not_finite),
        cmocka_unit_test(test_probes),
        cmocka_unit_test(test_parameters_come_back),
        cmocka_unit_test(test_large_copies),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_description),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
