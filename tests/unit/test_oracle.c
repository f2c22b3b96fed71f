/* The engine repeats the trainings that PyTorch computed in float64: every file of tests/oracle/fixtures,
 * whose README.md says what is in them. Run from the root of the repository. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "io/safetensors.h"
#include "taunet/engine.h"
#include "tests/support/oracle_values.h"

#define FOLDER         "tests/oracle/fixtures"
#define FIXTURES_MAX   256
#define PARAMETERS_MAX 1024
#define SAMPLES        64 /* of a digest, unless the file says otherwise */

/* Relative to the norm of what is compared. */
#define LOSS_TOLERANCE   1e-4
#define WEIGHT_TOLERANCE 1e-3 /* and gradients */
#define STATE_TOLERANCE  1e-4
#define LOGIT_TOLERANCE  1e-3

typedef struct training {
    const char *name;
    tn_safetensors *file;
    tn_model *model;
    tn_engine *engine;
    int rows, channels, height, width, classes;
    size_t samples;
    tn_batch batches[2];
    float *images[2], *targets[2];
    int *labels[2];
    double worst[3]; /* of losses, gradients, weights */
} training;

static const char *text(const training *t, const char *key) {
    const char *value = tn_safetensors_metadata(t->file, key);
    if (!value) fail_msg("%s: no '%s' in the metadata", t->name, key);
    return value;
}

static double number(const training *t, const char *key) {
    char *end;
    double value = strtod(text(t, key), &end);
    if (*end || end == text(t, key)) fail_msg("%s: '%s' is not a number", t->name, key);
    return value;
}

static const tn_safetensors_entry *tensor(const training *t, const char *kind, const char *name) {
    char key[256];
    snprintf(key, sizeof key, "%s%s", kind, name);
    const tn_safetensors_entry *entry = tn_safetensors_find(t->file, key);
    if (!entry) fail_msg("%s: no tensor %s", t->name, key);
    assert_int_equal(entry->dtype, TN_DTYPE_F32);
    return entry;
}

static float stored(const tn_safetensors_entry *entry, size_t index) {
    float value;
    assert_true((index + 1) * sizeof value <= entry->bytes);
    memcpy(&value, (const char *)entry->data + index * sizeof value, sizeof value);
    return value;
}

/* ---- starting values ---- */

static void test_first_values(void **state) {
    (void)state;
    assert_true(oracle_value(0, 0, 0, 1) == 0.76662159f);
    assert_true(oracle_value(0, 1, 0, 1) == 0.13312304f);
    assert_true(oracle_value(0, 2, 0, 1) == 0.182379365f);
    assert_true(oracle_value(1000, 0, 0, 1.7f) == 1.25013077f);
    assert_true(oracle_value(1000, 1, 0, 1.7f) == -0.56116122f);
    assert_true(oracle_value(1000, 2, 0, 1.7f) == 1.25091398f);
}

typedef struct range {
    double offset, halfwidth;
} range;

static range range_of(const training *t, tn_parameter_info p) {
    const char *dot = strrchr(p.name, '.'), *leaf = dot ? dot + 1 : p.name;
    if (p.rank == 4) return (range){0, sqrt(6.0 / ((double)p.dims[2] * p.dims[3] * p.dims[0]))};
    if (!strncmp(p.name, "fc.", 3)) {
        int fc = tn_engine_find_parameter(t->engine, "fc.weight");
        return (range){0, 1 / sqrt((double)tn_engine_parameter(t->engine, fc).dims[1])};
    }
    if (!strcmp(leaf, "tau")) {
        double tau = number(t, "tau");
        return (range){tau, 0.1 * tau};
    }
    bool one = !strcmp(leaf, "scale") || !strcmp(leaf, "alpha") || !strcmp(leaf, "weight");
    return one ? (range){1, 0.2} : (range){0, 0.1};
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const tn_parameter_info *)a)->name, ((const tn_parameter_info *)b)->name);
}

static void set_start(training *t) {
    tn_parameter_info sorted[PARAMETERS_MAX];
    int count = tn_engine_parameter_count(t->engine);
    assert_in_range(count, 1, PARAMETERS_MAX);
    for (int i = 0; i < count; i++) sorted[i] = tn_engine_parameter(t->engine, i);
    qsort(sorted, (size_t)count, sizeof *sorted, by_name);
    for (int stream = 0; stream < count; stream++) {
        range r = range_of(t, sorted[stream]);
        float *values = malloc(sorted[stream].count * sizeof *values);
        for (size_t i = 0; i < sorted[stream].count; i++)
            values[i] = oracle_value((uint64_t)stream, i, (float)r.offset, (float)r.halfwidth);
        int index = tn_engine_find_parameter(t->engine, sorted[stream].name);
        assert_int_equal(tn_engine_set(t->engine, TN_VALUES, index, values), TN_OK);
        free(values);
    }
}

static void make_batch(training *t, int b) {
    size_t rows = (size_t)t->rows, plane = (size_t)t->height * (size_t)t->width,
           channels = (size_t)t->channels;
    uint64_t stream = (uint64_t)number(t, "image_stream") + (uint64_t)b;
    t->images[b] = malloc(rows * plane * channels * sizeof(float));
    t->targets[b] = calloc(rows * (size_t)t->classes, sizeof(float));
    t->labels[b] = malloc(rows * sizeof(int));
    for (size_t row = 0; row < rows; row++) {
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < plane; i++)
                t->images[b][(row * plane + i) * channels + c] =
                    oracle_value(stream, (row * channels + c) * plane + i, 0, 1.7f);
        t->labels[b][row] = (7 * (int)row + 3 * b) % 10;
        t->targets[b][row * (size_t)t->classes + (size_t)t->labels[b][row]] = 1;
    }
    t->batches[b] = (tn_batch){.rows = t->rows,
                               .channels = t->channels,
                               .height = t->height,
                               .width = t->width,
                               .classes = t->classes,
                               .images = t->images[b],
                               .targets = t->targets[b],
                               .labels = t->labels[b]};
}

/* ---- comparisons ---- */

static void check(training *t, const char *what, const char *name, double error, double tolerance) {
    if (!(error <= tolerance))
        fail_msg("%s: %s%s is off by %.3g, %.0e is allowed", t->name, what, name, error, tolerance);
}

static double larger(double a, double b) {
    return a > b ? a : b;
}

/* Against a digest: norm, sum, samples. Gives the largest relative error. */
static double digest_error(const tn_safetensors_entry *wanted, const float *values, size_t count,
                           size_t most) {
    double norm = (double)stored(wanted, 0), squares = 0, sum = 0, error = 0;
    size_t samples = count < most ? count : most, stride = count / most > 1 ? count / most : 1;
    assert_int_equal(wanted->bytes, (2 + samples) * sizeof(float));
    assert_true(norm > 0);
    for (size_t i = 0; i < count; i++) {
        squares += (double)values[i] * (double)values[i];
        sum += (double)values[i];
    }
    for (size_t i = 0; i < samples; i++)
        error = larger(error, fabs((double)values[i * stride] - (double)stored(wanted, 2 + i)) / norm);
    error = larger(error, fabs(sqrt(squares) - norm) / norm);
    return larger(error, fabs(sum - (double)stored(wanted, 1)) / (sqrt((double)count) * norm));
}

/* Against a whole tensor. */
static double full_error(const tn_safetensors_entry *wanted, const float *values, size_t count) {
    double squares = 0, worst = 0;
    assert_int_equal(wanted->bytes, count * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        double value = (double)stored(wanted, i);
        squares += value * value;
        worst = larger(worst, fabs((double)values[i] - value));
    }
    assert_true(squares > 0);
    return worst / sqrt(squares);
}

static double compare_parameters(training *t, tn_tensor_kind kind, const char *prefix) {
    double worst = 0;
    int count = tn_engine_parameter_count(t->engine);
    for (int i = 0; i < count; i++) {
        tn_parameter_info p = tn_engine_parameter(t->engine, i);
        float *values = malloc(p.count * sizeof *values);
        assert_int_equal(tn_engine_get(t->engine, kind, i, values), TN_OK);
        double error = digest_error(tensor(t, prefix, p.name), values, p.count, t->samples);
        free(values);
        check(t, prefix, p.name, error, WEIGHT_TOLERANCE);
        worst = larger(worst, error);
    }
    return worst;
}

static void compare_norms(training *t) {
    for (int i = 0; i < tn_engine_norm_count(t->engine); i++) {
        tn_norm_info norm = tn_engine_norm(t->engine, i);
        size_t channels = (size_t)norm.channels;
        float *mean = malloc(2 * channels * sizeof *mean), *var = mean + channels;
        char name[128];
        int64_t batches;
        assert_int_equal(tn_engine_get_norm(t->engine, i, mean, var, &batches), TN_OK);
        assert_int_equal(batches, 5);
        snprintf(name, sizeof name, "%s.running_mean", norm.name);
        check(t, "state.", name, full_error(tensor(t, "state.", name), mean, channels), STATE_TOLERANCE);
        snprintf(name, sizeof name, "%s.running_var", norm.name);
        check(t, "state.", name, full_error(tensor(t, "state.", name), var, channels), STATE_TOLERANCE);
        free(mean);
    }
}

static void compare_logits(training *t) {
    tn_result result;
    size_t count = (size_t)t->rows * (size_t)t->classes;
    float *logits = malloc(count * sizeof *logits);
    assert_int_equal(tn_engine_eval(t->engine, &t->batches[0], &result, logits), TN_OK);
    check(t, "logits", "", full_error(tensor(t, "logits", ""), logits, count), LOGIT_TOLERANCE);
    free(logits);
}

/* ---- a training ---- */

static void open_training(training *t, int micro_batch) {
    char path[512];
    snprintf(path, sizeof path, FOLDER "/%s", t->name);
    if (tn_safetensors_open(path, &t->file) != TN_OK) fail_msg("%s", tn_error());
    assert_string_equal(text(t, "format"), "taunet-oracle-1");
    t->rows = (int)number(t, "rows");
    t->channels = (int)number(t, "channels");
    t->height = (int)number(t, "height");
    t->width = (int)number(t, "width");
    t->classes = (int)number(t, "classes");
    t->samples = tn_safetensors_metadata(t->file, "samples") ? (size_t)number(t, "samples") : SAMPLES;
    tn_model_config config = {.model = text(t, "model"),
                              .variant = text(t, "variant"),
                              .channels = t->channels,
                              .height = t->height,
                              .width = t->width,
                              .classes = t->classes,
                              .base_width = (int)number(t, "base_width"),
                              .tau_per_block = !strcmp(text(t, "tau_sharing"), "per-block"),
                              .no_bn_shortcut = !strcmp(text(t, "bn_shortcut"), "no")};
    if (tn_model_build(&config, &t->model) != TN_OK) fail_msg("%s: %s", t->name, tn_error());
    tn_engine_config engine = {
        .device = "cpu", .threads = 2, .micro_batch = micro_batch, .max_batch = t->rows, .training = true};
    if (tn_engine_create(t->model, &engine, &t->engine) != TN_OK) fail_msg("%s: %s", t->name, tn_error());
    if (tn_engine_initialise(t->engine, 0) != TN_OK) fail_msg("%s: %s", t->name, tn_error());
    set_start(t);
    for (int b = 0; b < 2; b++) make_batch(t, b);
}

static void close_training(training *t) {
    for (int b = 0; b < 2; b++) {
        free(t->images[b]);
        free(t->targets[b]);
        free(t->labels[b]);
    }
    tn_engine_free(t->engine);
    tn_model_free(t->model);
    tn_safetensors_close(t->file);
}

static void train(training *t) {
    const tn_safetensors_entry *losses = tensor(t, "losses", "");
    int steps = (int)number(t, "steps");
    tn_sgd sgd = {.lr = number(t, "lr"),
                  .momentum = number(t, "momentum"),
                  .weight_decay = number(t, "weight_decay"),
                  .scalar_lr = number(t, "scalar_lr")};
    assert_int_equal(losses->bytes, (size_t)steps * sizeof(float));
    for (int step = 0; step < steps; step++) {
        tn_result result;
        if (tn_engine_gradients(t->engine, &t->batches[step % 2], &result) != TN_OK)
            fail_msg("%s: step %d: %s", t->name, step + 1, tn_error());
        double wanted = (double)stored(losses, (size_t)step),
               error = fabs(result.loss / result.rows - wanted) / wanted;
        check(t, "loss", "", error, LOSS_TOLERANCE);
        t->worst[0] = larger(t->worst[0], error);
        if (step == 0) t->worst[1] = compare_parameters(t, TN_GRADIENTS, "grad.");
        if (tn_engine_update(t->engine, &sgd) != TN_OK)
            fail_msg("%s: step %d: %s", t->name, step + 1, tn_error());
    }
    t->worst[2] = compare_parameters(t, TN_VALUES, "after.");
}

/* In chunks as the engine chooses them, and in chunks of three rows, of which the last is short. */
static void test_fixture(void **state) {
    for (int micro_batch = 0; micro_batch <= 3; micro_batch += 3) {
        training t = {.name = *state};
        open_training(&t, micro_batch);
        train(&t);
        compare_norms(&t);
        compare_logits(&t);
        print_message("  chunks of %2d: losses %.0e, gradients %.0e, weights %.0e\n",
                      tn_engine_chunk_rows(t.engine), t.worst[0], t.worst[1], t.worst[2]);
        close_training(&t);
    }
}

/* ---- which fixtures there are ---- */

static int safetensors_only(const struct dirent *entry) {
    const char *dot = strrchr(entry->d_name, '.');
    return dot && !strcmp(dot, ".safetensors");
}

static struct dirent **fixtures;
static int fixture_count;

static void test_there_are_fixtures(void **state) {
    (void)state;
    static const char *const variants[] = {"bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain"};
    if (fixture_count < 1) fail_msg("no fixtures in " FOLDER "; run from the root of the repository");
    assert_true(fixture_count < FIXTURES_MAX);
    for (int v = 0; v < 7; v++) {
        char name[64];
        snprintf(name, sizeof name, "%s.safetensors", variants[v]);
        int found = 0;
        for (int i = 0; i < fixture_count; i++) found += !strcmp(fixtures[i]->d_name, name);
        if (!found) fail_msg("no fixture %s", name);
    }
}

int main(void) {
    struct CMUnitTest tests[FIXTURES_MAX + 2] = {cmocka_unit_test(test_first_values),
                                                 cmocka_unit_test(test_there_are_fixtures)};
    static char names[FIXTURES_MAX][300];
    size_t count = 2;
    fixture_count = scandir(FOLDER, &fixtures, safetensors_only, alphasort);
    for (int i = 0; i < fixture_count && i < FIXTURES_MAX; i++) {
        snprintf(names[i], sizeof names[i], "test_fixture %s", fixtures[i]->d_name);
        tests[count++] = (struct CMUnitTest){
            .name = names[i], .test_func = test_fixture, .initial_state = fixtures[i]->d_name};
    }
    int failed = _cmocka_run_group_tests("oracle", tests, count, NULL, NULL);
    for (int i = 0; i < fixture_count; i++) free(fixtures[i]);
    if (fixture_count >= 0) free(fixtures);
    return failed;
}
