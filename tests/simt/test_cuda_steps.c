/* Steps that overlap: issued one ahead of the report that the host reads, through the engine and through
 * whole training runs. Runs on the SIMT machine and on a device. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "taunet/run.h"
#include "tests/support/engine_check.h"
#include "tests/unit/temp_folder.h"

/* Of the SIMT machine: operations that its device has executed. It executes none but those that somebody
 * waits for; a device has no such promise to check. */
extern uint64_t simt_operations(void) __attribute__((weak));

#define ROWS  2
#define STEPS 5

/* The instrumented build is many times slower: it takes part of the cases. */
static bool small(void) {
    return getenv("SIMT_SMALL") != NULL;
}

static const engine_target fp32 = {.device = "cuda"};
static const tn_sgd sgd = {.lr = 0.05, .momentum = 0.9, .weight_decay = 1e-4, .scalar_lr = 0.1};

static tn_model *network(const char *variant) {
    tn_model *model;
    tn_model_config config = {.model = "resnet8",
                              .variant = variant,
                              .channels = 3,
                              .height = 6,
                              .width = 5,
                              .classes = 4,
                              .base_width = 8};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static tn_engine *make(const tn_model *model, const op_data *data) {
    tn_engine *engine = engine_make(&fp32, model, ROWS, 0, data);
    tn_engine_watch(engine, tn_engine_find_parameter(engine, "tau"));
    return engine;
}

static double tau_of(tn_engine *engine) {
    float tau;
    assert_int_equal(tn_engine_get(engine, TN_VALUES, tn_engine_find_parameter(engine, "tau"), &tau), TN_OK);
    return (double)tau;
}

static void same_weights(tn_engine *a, tn_engine *b, const char *what) {
    const tn_model *m = a->model;
    size_t bytes = m->param_floats * sizeof(float);
    float *values[2] = {engine_values(a), engine_values(b)};
    if (memcmp(values[0], values[1], bytes)) fail_msg("%s: the weights differ", what);
    for (int p = 0; p < m->param_count; p++) {
        float *momentum[2];
        for (int k = 0; k < 2; k++) {
            momentum[k] = malloc(m->params[p].count * sizeof(float));
            assert_int_equal(tn_engine_get(k ? b : a, TN_MOMENTUM, p, momentum[k]), TN_OK);
        }
        if (memcmp(momentum[0], momentum[1], m->params[p].count * sizeof(float)))
            fail_msg("%s: the momentum of %s differs", what, m->params[p].name);
        free(momentum[0]);
        free(momentum[1]);
    }
    free(values[0]);
    free(values[1]);
}

/* ---- the engine ---- */

/* Nothing is waited for between two steps, whether they are issued, recorded or replayed, and the results are
 * those of one step after the other. */
static void test_steps_overlap(void **unused) {
    (void)unused;
    tn_model *model = network("tau");
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_engine *plain = make(model, &data), *engine = make(model, &data);
    tn_batch batch = engine_batch(model, ROWS, &data);
    tn_result wanted[STEPS], got;
    double taus[STEPS];
    const int steps = small() ? 3 : STEPS;
    for (int i = 0; i < steps; i++) {
        assert_int_equal(tn_engine_step(plain, &batch, &sgd, &wanted[i]), TN_OK);
        taus[i] = tau_of(plain);
        assert_true(wanted[i].watched == taus[i]);
    }
    assert_int_equal(tn_engine_depth(engine), 2);
    assert_int_equal(tn_engine_issue(engine, &batch, &sgd), TN_OK);
    for (int i = 0; i < steps; i++) {
        uint64_t before = simt_operations ? simt_operations() : 0;
        if (i + 1 < steps && tn_engine_issue(engine, &batch, &sgd) != TN_OK) fail_msg("%s", tn_error());
        if (simt_operations && simt_operations() != before)
            fail_msg("issuing step %d ran %d operations of the device", i + 2,
                     (int)(simt_operations() - before));
        if (tn_engine_finish(engine, &got) != TN_OK) fail_msg("step %d: %s", i + 1, tn_error());
        assert_true(got.loss == wanted[i].loss && got.rows == ROWS && got.top1 == wanted[i].top1);
        assert_true(got.watched == taus[i]);
    }
    same_weights(engine, plain, "steps that overlap");
    tn_engine_free(plain);
    tn_engine_free(engine);
    op_data_free(&data);
    tn_model_free(model);
}

/* An update of gradients that are there is that of a step, and gradients alone change nothing. */
static void test_update_alone(void **unused) {
    (void)unused;
    tn_model *model = network("tau");
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_engine *plain = make(model, &data), *engine = make(model, &data), *untouched = make(model, &data);
    tn_batch batch = engine_batch(model, ROWS, &data);
    tn_result wanted, got;
    for (int i = 0; i < (small() ? 2 : 3); i++) {
        assert_int_equal(tn_engine_step(plain, &batch, &sgd, &wanted), TN_OK);
        assert_int_equal(tn_engine_gradients(engine, &batch, &got), TN_OK);
        assert_true(got.loss == wanted.loss);
        if (i == 0) same_weights(engine, untouched, "gradients alone");
        assert_int_equal(tn_engine_update(engine, &sgd), TN_OK);
        same_weights(engine, plain, "an update alone");
        assert_true(tau_of(engine) == tau_of(plain));
    }
    tn_engine_free(plain);
    tn_engine_free(engine);
    tn_engine_free(untouched);
    op_data_free(&data);
    tn_model_free(model);
}

/* A step of `bad` between good ones, and one that was issued behind it; then good ones again. */
static void check_failure(const tn_batch *good, const tn_batch *bad, const tn_sgd *rate, const char *part) {
    tn_model *model = network("tau");
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_engine *plain = make(model, &data), *engine = make(model, &data);
    tn_result wanted, got;
    for (int i = 0; i < 2; i++) assert_int_equal(tn_engine_step(plain, good, &sgd, &wanted), TN_OK);
    assert_int_equal(tn_engine_step(plain, bad, rate, &wanted), TN_ERR_DIVERGED);
    char *message = strdup(tn_error());
    assert_int_equal(tn_engine_issue(engine, good, &sgd), TN_OK);
    assert_int_equal(tn_engine_issue(engine, good, &sgd), TN_OK);
    assert_int_equal(tn_engine_finish(engine, &got), TN_OK);
    assert_int_equal(tn_engine_issue(engine, bad, rate), TN_OK);
    assert_int_equal(tn_engine_finish(engine, &got), TN_OK);
    assert_int_equal(tn_engine_issue(engine, good, &sgd), TN_OK);
    assert_int_equal(tn_engine_finish(engine, &got), TN_ERR_DIVERGED);
    if (strcmp(tn_error(), message) || !strstr(message, part))
        fail_msg("'%s', not '%s' with '%s'", tn_error(), message, part);
    assert_int_equal(tn_engine_finish(engine, &got), TN_ERR_USAGE); /* the step behind went along */
    same_weights(engine, plain, part);
    if (bad != good) {
        assert_int_equal(tn_engine_step(plain, good, &sgd, &wanted), TN_OK);
        assert_int_equal(tn_engine_step(engine, good, &sgd, &got), TN_OK);
        assert_true(got.loss == wanted.loss);
        same_weights(engine, plain, "after the failure");
    }
    free(message);
    tn_engine_free(plain);
    tn_engine_free(engine);
    op_data_free(&data);
    tn_model_free(model);
}

static void test_failures_take_the_next_step_along(void **unused) {
    (void)unused;
    tn_model *model = network("tau");
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_batch good = engine_batch(model, ROWS, &data), bad = good;
    size_t image = 3 * 6 * 5;
    float *images = malloc(ROWS * image * sizeof *images);
    memcpy(images, good.images, ROWS * image * sizeof *images);
    images[5] = NAN;
    bad.images = images;
    check_failure(&good, &bad, &sgd, "input images");
    /* Sound gradients, and a rate that takes the weights beyond all numbers. */
    const tn_sgd huge = {.lr = 3e38, .momentum = 0.9, .weight_decay = 1e38, .scalar_lr = 1};
    if (!small()) check_failure(&good, &good, &huge, "in the parameters of layer");
    free(images);
    op_data_free(&data);
    tn_model_free(model);
}

static void test_what_must_wait(void **unused) {
    (void)unused;
    if (small()) skip();
    tn_model *model = network("tau");
    op_data data = op_data_draw(model, ROWS, 1, false, true);
    tn_batch batch = engine_batch(model, ROWS, &data);
    const engine_target cpu = {.device = "cpu", .threads = 1};
    for (int k = 0; k < 2; k++) {
        tn_engine *engine = engine_make(k ? &fp32 : &cpu, model, ROWS, 0, &data);
        tn_result result;
        tn_norms norms;
        const int layer = 0;
        int depth = tn_engine_depth(engine);
        assert_int_equal(depth, k ? 2 : 1);
        assert_int_equal(tn_engine_finish(engine, &result), TN_ERR_USAGE);
        for (int i = 0; i < depth; i++) assert_int_equal(tn_engine_issue(engine, &batch, &sgd), TN_OK);
        assert_int_equal(tn_engine_issue(engine, &batch, &sgd), TN_ERR_USAGE);
        assert_int_equal(tn_engine_step(engine, &batch, &sgd, &result), TN_ERR_USAGE);
        assert_int_equal(tn_engine_gradients(engine, &batch, &result), TN_ERR_USAGE);
        assert_int_equal(tn_engine_update(engine, &sgd), TN_ERR_USAGE);
        assert_int_equal(tn_engine_eval(engine, &batch, &result, NULL), TN_ERR_USAGE);
        assert_int_equal(tn_engine_probe(engine, &batch, 1, &layer, &result, &norms), TN_ERR_USAGE);
        for (int i = 0; i < depth; i++) assert_int_equal(tn_engine_finish(engine, &result), TN_OK);
        assert_int_equal(tn_engine_eval(engine, &batch, &result, NULL), TN_OK);
        tn_engine_free(engine);
    }
    op_data_free(&data);
    tn_model_free(model);
}

/* ---- whole runs ---- */

typedef struct watcher {
    volatile sig_atomic_t stop;
    int stop_at;
} watcher;

static void on_event(void *context, const tn_event *event) {
    watcher *w = context;
    if (event->kind == TN_EVENT_STEP && event->step == w->stop_at) w->stop = SIGINT;
}

/* Two epochs of three steps, the last of an epoch smaller. */
static tn_status run(const temp_folder *folder, const char *device, const char *name, const char *more,
                     int stop_at) {
    char text[2048];
    tn_options *options;
    watcher w = {.stop_at = stop_at};
    tn_run_hooks hooks = {.event = on_event, .context = &w, .stop = &w.stop};
    snprintf(
        text, sizeof text,
        "model = \"resnet8\"\nvariant = \"tau\"\ndata = \"synthetic:3x8x8:3:10\"\nbatch = 4\nepochs = 2\n"
        "mixup = 0.5\nlog-every = 1\nthreads = 1\ndevice = \"%s\"\n%s",
        device, more);
    assert_int_equal(tn_options_create("train", &options), TN_OK);
    if (tn_options_load_text(options, text, strlen(text), "test") != TN_OK ||
        tn_options_set(options, "out", temp_path_of(folder, name).text) != TN_OK ||
        (stop_at < 0 && tn_options_set(options, "resume", "yes") != TN_OK))
        fail_msg("%s", tn_error());
    tn_status status = tn_run_train(options, &hooks);
    tn_options_free(options);
    return status;
}

static json_t *log_of(const temp_folder *folder, const char *name) {
    char path[64], *text, *line, *rest = NULL;
    snprintf(path, sizeof path, "%s/log.jsonl", name);
    json_t *lines = json_array();
    text = temp_read(temp_path_of(folder, path).text, NULL);
    assert_non_null(text);
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        json_array_append_new(lines, json_loads(line, 0, NULL));
    free(text);
    return lines;
}

/* The same lines with the same keys; what is counted is equal, what is computed nearly. */
static void same_log(const temp_folder *folder, const char *a, const char *b) {
    static const char *const counted[] = {"event", "step", "epoch", "lr", "status"}, *const computed[] = {
                                                                                         "loss", "tau",
                                                                                         "train_loss",
                                                                                         "val_loss"};
    json_t *logs[2] = {log_of(folder, a), log_of(folder, b)};
    assert_int_equal(json_array_size(logs[0]), json_array_size(logs[1]));
    for (size_t i = 0; i < json_array_size(logs[0]); i++) {
        const json_t *x = json_array_get(logs[0], i), *y = json_array_get(logs[1], i);
        const char *key;
        json_t *value;
        assert_int_equal(json_object_size(x), json_object_size(y));
        json_object_foreach((json_t *)(uintptr_t)x, key, value) assert_non_null(json_object_get(y, key));
        for (size_t k = 0; k < sizeof counted / sizeof *counted; k++)
            assert_true(json_equal(json_object_get(x, counted[k]), json_object_get(y, counted[k])) ||
                        !json_object_get(x, counted[k]));
        for (size_t k = 0; k < sizeof computed / sizeof *computed; k++) {
            double u = json_number_value(json_object_get(x, computed[k])),
                   v = json_number_value(json_object_get(y, computed[k]));
            if (!(fabs(u - v) <= 1e-3 * (1 + fabs(u))))
                fail_msg("line %zu: %s is %.9g in %s, %.9g in %s", i + 1, computed[k], u, a, v, b);
        }
    }
    json_decref(logs[0]);
    json_decref(logs[1]);
}

/* The tensors of two checkpoints; their metadata has lengths of logs, in which there are times. */
static void same_tensors(const temp_folder *folder, const char *a, const char *b) {
    size_t sizes[2] = {0};
    char *bytes[2] = {temp_read(temp_path_of(folder, a).text, &sizes[0]),
                      temp_read(temp_path_of(folder, b).text, &sizes[1])};
    assert_true(bytes[0] && bytes[1]);
    uint64_t headers[2];
    for (int k = 0; k < 2; k++) {
        memcpy(&headers[k], bytes[k], sizeof headers[k]);
        headers[k] += sizeof headers[k];
    }
    assert_true(sizes[0] - headers[0] == sizes[1] - headers[1]);
    assert_memory_equal(bytes[0] + headers[0], bytes[1] + headers[1], sizes[0] - headers[0]);
    free(bytes[0]);
    free(bytes[1]);
}

static void test_runs_are_logged_as_on_the_cpu(void **unused) {
    (void)unused;
    const char *seed = getenv("SIMT_SEED");
    if (small() || (seed && atoi(seed) > 1))
        skip(); /* orders make no difference that tests of kernels miss */
    temp_folder folder = temp_folder_make();
    if (run(&folder, "cpu", "cpu", "", 0) != TN_OK || run(&folder, "cuda", "cuda", "", 0) != TN_OK)
        fail_msg("%s", tn_error());
    same_log(&folder, "cpu", "cuda");
    /* Stopped at step 4, behind which step 5 is on its way; then to the end. */
    assert_int_equal(run(&folder, "cuda", "stopped", "", 4), TN_ERR_STOPPED);
    json_t *lines = log_of(&folder, "stopped");
    const json_t *end = json_array_get(lines, json_array_size(lines) - 1);
    assert_string_equal(json_string_value(json_object_get(end, "status")), "stopped");
    assert_int_equal(json_integer_value(json_object_get(end, "step")), 5);
    json_decref(lines);
    if (run(&folder, "cuda", "stopped", "", -1) != TN_OK) fail_msg("%s", tn_error());
    same_tensors(&folder, "cuda/last.safetensors", "stopped/last.safetensors");
    /* A rate that spoils the weights in the first step of the second epoch. */
    for (int k = 0; k < 2; k++) {
        assert_int_equal(
            run(&folder, k ? "cuda" : "cpu", k ? "bad1" : "bad0", "schedule = \"step:1:1e38\"\n", 0),
            TN_ERR_DIVERGED);
        if (strncmp(tn_error(), "step 4: ", 8)) fail_msg("%s", tn_error());
    }
    same_log(&folder, "bad0", "bad1");
    temp_folder_remove(&folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_overlap),
        cmocka_unit_test(test_update_alone),
        cmocka_unit_test(test_failures_take_the_next_step_along),
        cmocka_unit_test(test_what_must_wait),
        cmocka_unit_test(test_runs_are_logged_as_on_the_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
