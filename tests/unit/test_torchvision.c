/* A state dict as torchvision's ResNets save it, evaluated here: the logits are those that torchvision
 * computed in float64. tests/oracle/make_torchvision.py made the fixtures and says how every value is drawn.
 * Run from the root of the repository. */
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
#include "tests/support/oracle_values.h"
#include "tests/unit/temp_folder.h"
#include "train/checkpoint.h"

#define ENTRIES_MAX 400
#define TOLERANCE   1e-4 /* relative to the norm of an image's logits */
#define ROWS        2

/* The entries of a state dict. Names and data are allocated. */
typedef struct state_dict {
    tn_safetensors_entry entries[ENTRIES_MAX];
    char *names[ENTRIES_MAX];
    int64_t dims[ENTRIES_MAX][4];
    void *data[ENTRIES_MAX];
    int count;
} state_dict;

static bool ends_with(const char *name, const char *end) {
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && !strcmp(name + length - tail, end);
}

static float *draw(const char *name, const tn_safetensors_entry *e, int stream, int64_t features) {
    size_t count = 1;
    double offset = 0, halfwidth = 0.1;
    for (int i = 0; i < e->rank; i++) count *= (size_t)e->dims[i];
    if (e->rank == 4)
        halfwidth = sqrt(6.0 / ((double)e->dims[2] * (double)e->dims[3] * (double)e->dims[0]));
    else if (!strncmp(name, "fc.", 3))
        halfwidth = 1 / sqrt((double)features);
    else if (ends_with(name, ".running_mean"))
        halfwidth = 0.2;
    else if (ends_with(name, ".running_var"))
        offset = 1, halfwidth = 0.5;
    else if (ends_with(name, ".weight"))
        offset = 1, halfwidth = 0.2;
    float *values = malloc(count * sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = oracle_value((uint64_t)stream, i, (float)offset, (float)halfwidth);
    return values;
}

/* One line of the fixture's list: "layer1.0.conv1.weight [64, 64, 1, 1]". */
static void add_entry(state_dict *dict, const char *line, int64_t features) {
    int stream = dict->count++;
    assert_in_range(stream, 0, ENTRIES_MAX - 1);
    const char *space = strchr(line, ' ');
    assert_non_null(space);
    char *name = dict->names[stream] = strndup(line, (size_t)(space - line));
    tn_safetensors_entry *e = &dict->entries[stream];
    *e = (tn_safetensors_entry){.name = name, .dtype = TN_DTYPE_F32, .dims = dict->dims[stream]};
    for (const char *at = space + 2; *at && *at != ']';) {
        char *end;
        dict->dims[stream][e->rank++] = strtol(at, &end, 10);
        at = end + strspn(end, ", ");
    }
    if (ends_with(name, ".num_batches_tracked")) {
        int64_t *batches = malloc(sizeof *batches);
        *batches = stream;
        e->dtype = TN_DTYPE_I64;
        dict->data[stream] = batches;
    } else {
        dict->data[stream] = draw(name, e, stream, features);
    }
    e->data = dict->data[stream];
}

static void dict_free(state_dict *dict) {
    for (int i = 0; i < dict->count; i++) {
        free(dict->names[i]);
        free(dict->data[i]);
    }
    free(dict);
}

static const char *text(const tn_safetensors *file, const char *key) {
    const char *value = tn_safetensors_metadata(file, key);
    if (!value) fail_msg("no '%s' in the metadata", key);
    return value;
}

static state_dict *read_dict(const tn_safetensors *fixture, int64_t features) {
    state_dict *dict = calloc(1, sizeof *dict);
    char *list = strdup(text(fixture, "entries")), *rest = list;
    for (char *line = strtok_r(list, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        add_entry(dict, line, features);
    free(list);
    return dict;
}

static float *draw_images(const tn_safetensors *fixture, int height, int width) {
    size_t plane = (size_t)height * (size_t)width;
    uint64_t stream = (uint64_t)atol(text(fixture, "image_stream"));
    float *images = malloc(ROWS * plane * 3 * sizeof *images);
    for (size_t row = 0; row < ROWS; row++)
        for (size_t c = 0; c < 3; c++)
            for (size_t i = 0; i < plane; i++)
                images[(row * plane + i) * 3 + c] = oracle_value(stream, (row * 3 + c) * plane + i, 0, 1.7f);
    return images;
}

static void check_logits(const tn_safetensors *fixture, tn_engine *engine, int height, int width) {
    float logits[ROWS * 1000], targets[ROWS * 1000] = {0}, wanted[ROWS * 1000];
    int labels[ROWS] = {0};
    tn_result result;
    float *images = draw_images(fixture, height, width);
    tn_batch batch = {.rows = ROWS,
                      .channels = 3,
                      .height = height,
                      .width = width,
                      .classes = 1000,
                      .images = images,
                      .targets = targets,
                      .labels = labels};
    if (tn_engine_eval(engine, &batch, &result, logits) != TN_OK) fail_msg("%s", tn_error());
    const tn_safetensors_entry *stored = tn_safetensors_find(fixture, "logits");
    assert_non_null(stored);
    assert_int_equal(stored->bytes, sizeof wanted);
    memcpy(wanted, stored->data, sizeof wanted);
    for (int row = 0; row < ROWS; row++) {
        double difference = 0, norm = 0;
        for (int k = row * 1000; k < (row + 1) * 1000; k++) {
            difference += pow((double)logits[k] - (double)wanted[k], 2);
            norm += pow((double)wanted[k], 2);
        }
        double error = sqrt(difference / norm);
        print_message("  image %d: logits off by %.1e\n", row, error);
        if (!(error <= TOLERANCE)) fail_msg("logits are off by %.3g", error);
    }
    free(images);
}

/* What is written here has torchvision's names and shapes again. */
static void check_saved(tn_engine *engine, const state_dict *dict, const char *path) {
    tn_options *options;
    tn_safetensors *file;
    assert_int_equal(tn_options_create("init", &options), TN_OK);
    tn_checkpoint_info info = {.options = options, .input = {3, 64, 64}, .classes = 1000, .dataset = ""};
    if (tn_checkpoint_save(engine, &info, NULL, path) != TN_OK) fail_msg("%s", tn_error());
    assert_int_equal(tn_safetensors_open(path, &file), TN_OK);
    assert_int_equal(tn_safetensors_count(file), dict->count);
    for (int i = 0; i < dict->count; i++) {
        const tn_safetensors_entry *wanted = &dict->entries[i],
                                   *found = tn_safetensors_find(file, wanted->name);
        if (!found) fail_msg("%s is not saved", wanted->name);
        assert_int_equal(found->dtype, wanted->dtype);
        assert_int_equal(found->rank, wanted->rank);
        for (int d = 0; d < found->rank; d++) assert_int_equal(found->dims[d], wanted->dims[d]);
        assert_memory_equal(found->data, wanted->data, found->bytes);
    }
    tn_safetensors_close(file);
    tn_options_free(options);
}

static void test_state_dict(void **state) {
    const char *name = *state;
    char path[128];
    tn_safetensors *fixture, *file;
    snprintf(path, sizeof path, "tests/oracle/torchvision/%s.safetensors", name);
    if (tn_safetensors_open(path, &fixture) != TN_OK) fail_msg("%s", tn_error());
    int height = atoi(text(fixture, "height")), width = atoi(text(fixture, "width"));
    tn_model_config config = {.model = name, .variant = "bn", .height = height, .width = width};
    tn_model *model;
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    bool bottleneck = !strcmp(name, "resnet50");
    state_dict *dict = read_dict(fixture, bottleneck ? 2048 : 512);
    assert_int_equal(dict->count, bottleneck ? 320 : 122);

    temp_folder folder = temp_folder_make();
    temp_path saved = temp_path_of(&folder, "state.safetensors");
    if (tn_safetensors_write(saved.text, dict->entries, dict->count, NULL, 0) != TN_OK)
        fail_msg("%s", tn_error());
    tn_engine *engine;
    tn_engine_config engine_config = {.device = "cpu", .threads = 2, .max_batch = ROWS};
    if (tn_engine_create(model, &engine_config, &engine) != TN_OK) fail_msg("%s", tn_error());
    if (tn_safetensors_open(saved.text, &file) != TN_OK) fail_msg("%s", tn_error());
    if (tn_checkpoint_load(engine, file, saved.text, false) != TN_OK) fail_msg("%s", tn_error());
    tn_safetensors_close(file);
    check_logits(fixture, engine, height, width);
    check_saved(engine, dict, saved.text);
    tn_engine_free(engine);
    tn_model_free(model);
    tn_safetensors_close(fixture);
    dict_free(dict);
    temp_folder_remove(&folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        {.name = "test_state_dict resnet18", .test_func = test_state_dict, .initial_state = "resnet18"},
        {.name = "test_state_dict resnet50", .test_func = test_state_dict, .initial_state = "resnet50"},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
