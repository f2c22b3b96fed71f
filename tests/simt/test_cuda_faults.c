/* The CUDA backend where something is missing or fails: no driver, no device, every call of the runtime and
 * of cuBLAS failing once, device and host memory running out, a recording that breaks off. Needs the SIMT
 * machine: a device does not fail to order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>
#include <simt.h>

#include "backend/cuda_device.h"
#include "base/memory.h"
#include "tests/support/engine_check.h"
#include "train/setup.h"

#define ROWS 3

static int seed(void) {
    const char *text = getenv("SIMT_SEED");
    return text ? atoi(text) : 0;
}

/* Which of the failures to try: all under one order of threads, a part of them under each other one, and
 * fewer in the instrumented build, which is many times slower. */
static int stride(void) {
    return getenv("SIMT_SMALL") ? 23 : seed() ? 9 : 1;
}

static int first_failure(void) {
    return 1 + seed() % stride();
}

static tn_model *network(void) {
    tn_model *model;
    /* 8 channels so that there are fused convolutions, 3 of the images for im2col. */
    tn_model_config config = {.model = "resnet8",
                              .variant = "bn-tau",
                              .channels = 3,
                              .height = 6,
                              .width = 6,
                              .classes = 4,
                              .base_width = 8};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static const op_case *case_named(const char *name) {
    for (int i = 0; i < op_case_count(); i++)
        if (!strcmp(op_case_at(i)->name, name)) return op_case_at(i);
    fail_msg("there is no op case '%s'", name);
    return NULL;
}

/* One convolution, batch norm and a linear layer. */
static tn_model *small_network(void) {
    return op_case_model(case_named("norm relu"));
}

static tn_status create(const tn_model *model, const char *device, tn_engine **engine) {
    tn_engine_config config = {.device = device, .precision = TN_PRECISION_FP32, .max_batch = ROWS};
    config.training = true;
    if (!strcmp(device, "cuda")) config.precision = TN_PRECISION_BF16; /* has conversions too */
    return tn_engine_create(model, &config, engine);
}

static void check_error(tn_status status, tn_status wanted, const char *part) {
    const char *text = tn_error();
    if (status != wanted || !strstr(text, part) || strchr(text, '\n') || strlen(text) < 20)
        fail_msg("status %d (not %d), '%s' should be one line with '%s'", (int)status, (int)wanted, text,
                 part);
}

static void use_device(const char *mode, int count) {
    const char *given = getenv("SIMT_DEVICE");
    simt_set_device(mode ? mode : given ? given : "sm_90", count);
}

/* ---- no device ---- */

static void test_without_a_device(void **unused) {
    static const char *const modes[][2] = {
        {"none", "no CUDA device on this machine"},
        {"driver", "driver version is insufficient"},
        {"broken", "driver does not start"},
    };
    (void)unused;
    tn_model *model = network();
    for (int i = 0; i < 3; i++) {
        const tn_backend_ops *ops;
        tn_engine *engine;
        int number;
        use_device(modes[i][0], 1);
        assert_int_equal(tn_backend_find("auto", TN_PRECISION_FP32, &ops, &number), TN_OK);
        assert_string_equal(ops->name, "cpu");
        check_error(tn_backend_find("cuda", TN_PRECISION_FP32, &ops, &number), TN_ERR_DEVICE, modes[i][1]);
        assert_int_equal(ops->device_count(), 0);
        check_error(create(model, "cuda", &engine), TN_ERR_DEVICE, "--device cuda: ");
        assert_null(engine);
        assert_int_equal(create(model, "auto", &engine), TN_OK);
        assert_memory_equal(tn_engine_device(engine), "cpu", 3);
        tn_engine_free(engine);
    }
    use_device(NULL, 1);
    tn_model_free(model);
}

static void test_numbers_of_devices(void **unused) {
    static const char *const unknown[] = {"cuda:",           "cuda:x", "cuda:-1", "cuda:1x",
                                          "cuda:4294967296", "cud",    "cpu:0"};
    (void)unused;
    tn_model *model = network();
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_batch batch = engine_batch(model, ROWS, &data);
    tn_engine *engines[2], *none;
    tn_result results[2];
    use_device(NULL, 2);
    check_error(create(model, "cuda:2", &none), TN_ERR_DEVICE, "no device of this number");
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        check_error(create(model, unknown[i], &none), TN_ERR_USAGE, "unknown device");
    /* In turn: what one device does is not sent to the other. */
    for (int i = 0; i < 2; i++) {
        engine_target target = {.device = i ? "cuda:1" : "cuda:0"};
        engines[i] = engine_make(&target, model, ROWS, 0, &data);
        if (!strstr(tn_engine_device(engines[i]), i ? "cuda (1: " : "cuda (0: "))
            fail_msg("device %d is called '%s'", i, tn_engine_device(engines[i]));
    }
    for (int step = 0; step < 3; step++)
        for (int i = 0; i < 2; i++) {
            tn_sgd sgd = {.lr = 0.1, .momentum = 0.9};
            if (tn_engine_step(engines[i], &batch, &sgd, &results[i]) != TN_OK) fail_msg("%s", tn_error());
            if (i) assert_true(results[0].loss == results[1].loss);
        }
    for (int i = 0; i < 2; i++) tn_engine_free(engines[i]);
    use_device(NULL, 1);
    op_data_free(&data);
    tn_model_free(model);
}

/* ---- calls that fail ---- */

/* Calls whose failure changes nothing that matters: facts about the device, and freeing, after which nobody
 * could do anything. What is freed in vain stays allocated. */
static bool harmless(const char *call) {
    return !strcmp(call, "cudaGetDeviceProperties") || !strcmp(call, "cudaDriverGetVersion") ||
           !strcmp(call, "cudaRuntimeGetVersion");
}

static bool frees(const char *call) {
    return !strcmp(call, "cudaFree") || !strcmp(call, "cudaGraphDestroy") ||
           !strcmp(call, "cudaGraphExecDestroy");
}

/* After work whose N-th call was to fail: false when it made fewer calls. */
static bool judge_failure(tn_status status, int n, const char *what) {
    char call[96], failed[64];
    const char *text = tn_error();
    snprintf(failed, sizeof failed, "%s", simt_failed_call() ? simt_failed_call() : "");
    simt_fail_call("", 0, 0);
    if (!failed[0]) return false;
    snprintf(call, sizeof call, "%s failed at src/", !strcmp(failed, "launch") ? "" : failed);
    bool named =
        strstr(text, call) && strstr(text, ".c:") &&
        (strstr(text, "unknown error (cudaErrorUnknown)") || strstr(text, "failed to launch on the GPU"));
    if (status == TN_OK ? !harmless(failed) && !frees(failed)
                        : status != TN_ERR_DEVICE || !named || strchr(text, '\n'))
        fail_msg("%s, call %d (%s): status %d, '%s'", what, n, failed, (int)status, status ? text : "");
    return true;
}

static void test_creation_with_a_failing_call(void **unused) {
    (void)unused;
    tn_model *model = small_network();
    int failures = 0;
    for (int n = first_failure();; n += stride()) {
        size_t memory = tn_memory_in_use(), objects = simt_objects();
        tn_engine *engine;
        simt_fail_call("*", n, cudaErrorUnknown);
        tn_status status = create(model, "cuda", &engine);
        bool freed = simt_failed_call() && frees(simt_failed_call());
        bool more = judge_failure(status, n, "creation");
        assert_true((engine != NULL) == (status == TN_OK));
        tn_engine_free(engine);
        assert_int_equal(tn_memory_in_use(), memory);
        if (!freed && simt_objects() != objects)
            fail_msg("creation, call %d: %zu objects are left", n, simt_objects() - objects);
        if (!more) break;
        failures++;
    }
    assert_true(failures * stride() > 60);
    tn_model_free(model);
}

/* What an engine is asked to do, and the state that it starts from. */
typedef struct work {
    tn_engine *engine;
    tn_batch batch;
    const op_data *data;
    float momentum; /* another value for each recording */
    double norms;
    float logits[ROWS * 5];
} work;

/* Back to where the engine started, without what it made for images. */
static void restore(const work *w) {
    tn_engine *e = w->engine;
    tn_cuda_free_images((tn_cuda *)(void *)e->backend);
    const tn_backend_ops *ops = e->backend->ops;
    size_t bytes = e->model->param_floats * sizeof(float);
    e->packed = e->eval_loaded = false;
    if (ops->upload(e->backend, e->flat.values, w->data->values, bytes) != TN_OK ||
        ops->clear(e->backend, e->flat.momentum, bytes) != TN_OK ||
        ops->upload(e->backend, e->flat.state, w->data->state, e->model->state_floats * sizeof(float)) !=
            TN_OK)
        fail_msg("%s", tn_error());
}

static tn_status do_step(work *w, double *out) {
    tn_result result;
    tn_sgd sgd = {.lr = 0.1, .momentum = (double)w->momentum, .weight_decay = 1e-4, .scalar_lr = 0.1};
    TN_TRY(tn_engine_step(w->engine, &w->batch, &sgd, &result));
    *out = result.loss;
    return TN_OK;
}

static tn_status do_eval(work *w, double *out) {
    tn_result result;
    TN_TRY(tn_engine_eval(w->engine, &w->batch, &result, w->logits));
    *out = result.loss + (double)w->logits[5];
    return TN_OK;
}

static tn_status do_probe(work *w, double *out) {
    const int layer = 0;
    tn_norms norms;
    tn_result result;
    TN_TRY(tn_engine_probe(w->engine, &w->batch, 1, &layer, &result, &norms));
    *out = result.loss + norms.output + norms.gradient;
    return TN_OK;
}

/* The sum of the images that a batch of bytes becomes. */
static tn_status do_raw(work *w, const tn_raw_batch *raw, double *out) {
    tn_engine *e = w->engine;
    tn_batch batch = w->batch;
    size_t count = (size_t)ROWS * (size_t)batch.channels * (size_t)batch.height * (size_t)batch.width;
    batch.images = NULL;
    batch.raw = raw;
    TN_TRY(tn_engine_begin(e, &batch));
    float *images = malloc(count * sizeof *images);
    tn_status status =
        e->backend->ops->download(e->backend, images, e->inputs.images, count * sizeof *images);
    *out = 0;
    for (size_t i = 0; status == TN_OK && i < count; i++) *out += (double)images[i] * (double)(i + 1);
    free(images);
    return status;
}

static const float table[TN_CHANNELS_MAX][256] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}};

static tn_status do_held(work *w, double *out) {
    static const uint8_t pixels[1 << 16] = {0, 1, 2, 3, 3, 2, 1, 0, 1};
    static const int order[ROWS] = {0, 1, 0};
    const tn_raw_batch raw = {
        .table = table[0], .pixels = pixels, .count = 2, .order = order, .order_count = ROWS};
    TN_TRY(tn_engine_hold_images(w->engine, pixels, sizeof pixels));
    return do_raw(w, &raw, out);
}

/* Views of one pixel. */
static tn_status do_views(work *w, double *out) {
    const int height = w->batch.height, width = w->batch.width;
    int32_t *bytes = calloc((size_t)(height + width) * 3 + 1, sizeof *bytes);
    for (int i = 0; i < height + width; i++) bytes[3 * i + 1] = 1, bytes[3 * i + 2] = 1 << 22;
    bytes[(height + width) * 3] = 0x030201;
    tn_raw_image images[ROWS];
    for (int i = 0; i < ROWS; i++)
        images[i] = (tn_raw_image){.bytes = bytes,
                                   .size = ((size_t)(height + width) * 3 + 1) * sizeof *bytes,
                                   .from_height = 1,
                                   .from_width = 1,
                                   .taps = {1, 1}};
    const tn_raw_batch raw = {.table = table[0], .images = images, .count = ROWS};
    tn_status status = do_raw(w, &raw, out);
    free(bytes);
    return status;
}

typedef tn_status (*task)(work *w, double *out);

/* Does the task `before` times, then once with the N-th call failing, then again: it must work then, with the
 * same result as on an engine where nothing ever failed. */
static void check_task(const tn_model *model, const op_data *data, task body, int before, const char *what) {
    engine_target target = {.device = "cuda", .precision = TN_PRECISION_BF16};
    work w = {.batch = engine_batch(model, ROWS, data), .data = data, .momentum = 0.5f};
    size_t memory = tn_memory_in_use(), objects = simt_objects();
    double wanted, got;
    int failures = 0;
    bool more = true, freed = false;
    w.engine = engine_make(&target, model, ROWS, 0, data);
    assert_int_equal(body(&w, &wanted), TN_OK);
    for (int n = first_failure(); more; n += stride(), failures++) {
        /* A new recording, unless it is the replay that is to fail. */
        if (before < 2) w.momentum += 1.0f / 4096;
        for (int i = 0; i < (before < 2 || n == first_failure() ? before : 0); i++) {
            restore(&w);
            if (body(&w, &got) != TN_OK) fail_msg("%s before call %d: %s", what, n, tn_error());
        }
        restore(&w);
        simt_fail_call("*", n, cudaErrorUnknown);
        tn_status status = body(&w, &got);
        freed = freed || (simt_failed_call() && frees(simt_failed_call()));
        more = judge_failure(status, n, what);
        for (int i = 0; i < 2; i++) {
            restore(&w);
            if (body(&w, &got) != TN_OK) fail_msg("%s, %d after call %d: %s", what, i, n, tn_error());
            if (got != wanted) fail_msg("%s, %d after call %d: %.9g, not %.9g", what, i, n, got, wanted);
        }
    }
    assert_true(failures * stride() > 20);
    tn_engine_free(w.engine);
    assert_int_equal(tn_memory_in_use(), memory);
    if (!freed) assert_int_equal(simt_objects(), objects);
}

/* Small networks that together come by every kind of call. */
static void test_work_with_a_failing_call(void **unused) {
    (void)unused;
    static const char *const names[] = {"norm relu", "conv3x3/2 odd and even", "linear two joins shared tau"};
    for (int i = 0; i < 3; i++) {
        tn_model *model = op_case_model(case_named(names[i]));
        op_data data = op_data_draw(model, ROWS, 1, false, true);
        check_task(model, &data, do_step, 0, "a step that is issued");
        check_task(model, &data, do_step, 1, "a step that is recorded");
        check_task(model, &data, do_step, 2, "a step that is replayed");
        check_task(model, &data, do_eval, 0, "an evaluation");
        check_task(model, &data, do_probe, 0, "a probe");
        if (i == 1) check_task(model, &data, do_held, 0, "a batch of images that are held");
        if (i == 1) check_task(model, &data, do_views, 0, "a batch of views");
        op_data_free(&data);
        tn_model_free(model);
    }
}

/* ---- memory ---- */

static void test_too_little_device_memory(void **unused) {
    (void)unused;
    tn_model *model = small_network();
    size_t memory = tn_memory_in_use(), objects = simt_objects();
    tn_engine *engine;
    int failures = 0;
    simt_set_memory((size_t)1 << 20);
    check_error(create(model, "cuda", &engine), TN_ERR_MEMORY,
                " MiB asked for (workspace of cuBLAS), 1.0 of 1.0 MiB free; try a smaller --batch");
    simt_set_memory(0);
    for (int n = first_failure();; n += stride(), failures++) {
        simt_fail_call("cudaMalloc", n, cudaErrorMemoryAllocation);
        tn_status status = create(model, "cuda", &engine);
        simt_fail_call("", 0, 0);
        if (status == TN_OK) break;
        check_error(status, TN_ERR_MEMORY, " MiB asked for (");
        check_error(status, TN_ERR_MEMORY, " MiB free; try a smaller --batch");
        assert_null(engine);
        assert_int_equal(tn_memory_in_use(), memory);
        assert_int_equal(simt_objects(), objects);
    }
    tn_engine_free(engine);
    assert_int_equal(simt_objects(), objects);
    assert_true(failures * stride() > 20);
    tn_model_free(model);
}

/* A data set for which the device has not the room goes there batch by batch. */
static void test_images_that_do_not_fit(void **unused) {
    (void)unused;
    tn_model *model = network();
    tn_dataset *dataset;
    tn_engine *engine;
    tn_loader_config config = {.batch = ROWS};
    assert_int_equal(tn_dataset_open("synthetic:3x6x6:4:12", &dataset), TN_OK);
    assert_int_equal(create(model, "cuda", &engine), TN_OK);
    for (int fits = 0; fits < 2; fits++) {
        const tn_batch *batch;
        tn_loader *loader;
        size_t before = tn_engine_bytes(engine);
        if (!fits) simt_fail_call("cudaMalloc", 1, cudaErrorMemoryAllocation);
        if (tn_setup_loader(dataset, &config, engine, &loader) != TN_OK ||
            tn_loader_next(loader, &batch, NULL) != TN_OK)
            fail_msg("%s", tn_error());
        simt_fail_call("", 0, 0);
        assert_true((batch->raw != NULL) == fits && (batch->images == NULL) == fits);
        assert_int_equal(tn_engine_bytes(engine) - before, fits ? 12 * 3 * 6 * 6 : 0);
        tn_loader_close(loader);
    }
    tn_engine_free(engine);
    tn_dataset_close(dataset);
    tn_model_free(model);
}

static void test_too_little_host_memory(void **unused) {
    (void)unused;
    tn_model *model = small_network();
    size_t memory = tn_memory_in_use(), objects = simt_objects();
    tn_engine *engine = NULL;
    int failures = 0;
    for (long n = first_failure(); !engine; n += stride(), failures++) {
        tn_memory_fail_at(n);
        tn_status status = create(model, "cuda", &engine);
        tn_memory_fail_at(0);
        if (status == TN_OK) break;
        check_error(status, TN_ERR_MEMORY, "memory");
        assert_int_equal(tn_memory_in_use(), memory);
        assert_int_equal(simt_objects(), objects);
    }
    assert_true(failures * stride() > 30);
    tn_engine_free(engine);
    tn_model_free(model);
}

/* ---- the end ---- */

/* An error that stays, as after a fault in a kernel: all that follows fails, and nothing crashes. Spoils the
 * process for others: the last test. */
static void test_an_error_that_stays(void **unused) {
    (void)unused;
    tn_model *model = network();
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    engine_target target = {.device = "cuda", .separate_layers = true}; /* as probes want */
    size_t memory = tn_memory_in_use();
    work w = {.batch = engine_batch(model, ROWS, &data), .data = &data, .momentum = 0.5f};
    double got;
    w.engine = engine_make(&target, model, ROWS, 0, &data);
    assert_int_equal(do_step(&w, &got), TN_OK);
    simt_fail_call("launch", 20, cudaErrorIllegalAddress);
    for (int i = 0; i < 3; i++)
        check_error(do_step(&w, &got), TN_ERR_DEVICE, "an illegal memory access was encountered");
    check_error(do_eval(&w, &got), TN_ERR_DEVICE, "an illegal memory access was encountered");
    check_error(do_probe(&w, &got), TN_ERR_DEVICE, "an illegal memory access was encountered");
    tn_engine_free(w.engine);
    assert_int_equal(tn_memory_in_use(), memory);
    op_data_free(&data);
    tn_model_free(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_device),
        cmocka_unit_test(test_numbers_of_devices),
        cmocka_unit_test(test_creation_with_a_failing_call),
        cmocka_unit_test(test_work_with_a_failing_call),
        cmocka_unit_test(test_too_little_device_memory),
        cmocka_unit_test(test_images_that_do_not_fit),
        cmocka_unit_test(test_too_little_host_memory),
        cmocka_unit_test(test_an_error_that_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
