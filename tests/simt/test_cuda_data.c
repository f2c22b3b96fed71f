/* Batches that the device makes of bytes, through the engine: the floats that the loader makes on the host,
 * bit for bit - images in memory, and images of any size in files and decoded shards. Runs on the SIMT
 * machine and on a device. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "base/philox.h"
#include "tests/support/engine_check.h"
#include "tests/unit/temp_folder.h"

#define BATCH 5

static const engine_target fp32 = {.device = "cuda"};

static bool small(void) {
    return getenv("SIMT_SMALL") != NULL;
}

static tn_model *network(const tn_dataset_info *info) {
    tn_model *model;
    tn_model_config config = {.model = "resnet8",
                              .variant = "tau",
                              .channels = info->channels,
                              .height = info->height,
                              .width = info->width,
                              .classes = info->classes,
                              .base_width = 8};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

static tn_loader *loader(const tn_dataset *dataset, tn_loader_config config, bool raw) {
    tn_loader *out;
    config.raw = raw;
    if (tn_loader_open(dataset, &config, &out) != TN_OK) fail_msg("%s", tn_error());
    return out;
}

/* The images of a batch on the device against those of the same batch in floats, padding included. */
static void check_images(tn_engine *engine, const tn_batch *raw, const tn_batch *wanted, const char *name,
                         int number, XXH64_state_t *sum) {
    size_t image = (size_t)wanted->channels * (size_t)wanted->height * (size_t)wanted->width,
           chunk = (size_t)engine->config.micro_batch;
    float *got = malloc(chunk * image * sizeof *got);
    assert_null(raw->images);
    assert_int_equal(raw->rows, wanted->rows);
    assert_memory_equal(raw->labels, wanted->labels, (size_t)raw->rows * sizeof(int));
    assert_memory_equal(raw->targets, wanted->targets,
                        (size_t)raw->rows * (size_t)raw->classes * sizeof(float));
    if (tn_engine_begin(engine, raw) != TN_OK) fail_msg("%s: %s", name, tn_error());
    for (size_t row = 0; row < ((size_t)raw->rows + chunk - 1) / chunk * chunk; row++) {
        float zeros[3 * 16 * 16] = {0};
        if (row % chunk == 0 &&
            engine->backend->ops->download(engine->backend, got,
                                           engine->inputs.images + row / chunk * engine->inputs.chunk_floats,
                                           chunk * image * sizeof *got) != TN_OK)
            fail_msg("%s: %s", name, tn_error());
        const float *as = row < (size_t)raw->rows ? wanted->images + row * image : zeros;
        for (size_t i = 0; i < image; i++)
            if (memcmp(&got[row % chunk * image + i], &as[i], sizeof *as))
                fail_msg("%s, batch %d, row %zu: value %zu is %.9g, on the host %.9g", name, number, row, i,
                         (double)got[row % chunk * image + i], (double)as[i]);
        XXH64_update(sum, got + row % chunk * image, image * sizeof *got);
    }
    free(got);
}

/* All batches of two epochs. */
static void check_loader(const tn_dataset *dataset, tn_loader_config config, int micro_batch,
                         const char *name) {
    tn_dataset_info info = tn_dataset_describe(dataset);
    tn_model *model = network(&info);
    tn_engine *engine;
    tn_engine_config wanted = {.device = "cuda", .max_batch = BATCH, .micro_batch = micro_batch};
    size_t bytes;
    const uint8_t *pixels = tn_dataset_pixels(dataset, config.split, &bytes);
    if (tn_engine_create(model, &wanted, &engine) != TN_OK) fail_msg("%s", tn_error());
    assert_true(tn_engine_takes_raw(engine));
    for (int i = 0; pixels && i < 2; i++) {
        size_t before = tn_engine_bytes(engine);
        assert_int_equal(tn_engine_hold_images(engine, pixels, bytes), TN_OK);
        assert_int_equal(tn_engine_bytes(engine) - before, i ? 0 : bytes);
    }
    tn_loader *raw = loader(dataset, config, true), *floats = loader(dataset, config, false);
    int batches = tn_loader_batches(raw);
    XXH64_state_t *sum = XXH64_createState();
    XXH64_reset(sum, 0);
    for (int i = 0; i < (small() ? batches : 2 * batches); i++) {
        const tn_batch *a, *b;
        if (tn_loader_next(raw, &a, NULL) != TN_OK || tn_loader_next(floats, &b, NULL) != TN_OK)
            fail_msg("%s: %s", name, tn_error());
        check_images(engine, a, b, name, i, sum);
    }
    /* Three batches under way, and the one behind them is right. */
    for (int i = 0; i < 4; i++) {
        const tn_batch *a, *b;
        if (tn_loader_next(raw, &a, NULL) != TN_OK || tn_loader_next(floats, &b, NULL) != TN_OK)
            fail_msg("%s: %s", name, tn_error());
        if (i == 3)
            check_images(engine, a, b, name, -1, sum);
        else if (tn_engine_begin(engine, a) != TN_OK)
            fail_msg("%s: %s", name, tn_error());
    }
    printf("checksum of %s: %016llx\n", name, (unsigned long long)XXH64_digest(sum));
    XXH64_freeState(sum);
    tn_loader_close(raw);
    tn_loader_close(floats);
    tn_engine_free(engine);
    tn_model_free(model);
}

static tn_dataset *open_data(const char *spec, int image_size, int resize) {
    tn_dataset *dataset;
    if (tn_dataset_open_sized(spec, image_size, resize, &dataset) != TN_OK) fail_msg("%s", tn_error());
    return dataset;
}

static void test_images_in_memory(void **unused) {
    (void)unused;
    tn_dataset *dataset = open_data("synthetic:3x8x7:4:13", 0, 0);
    tn_loader_config train = {.batch = BATCH, .seed = 5, .shuffle = true, .augment = true},
                     val = {.batch = 4};
    val.split = TN_SPLIT_VAL;
    check_loader(dataset, train, 0, "images in memory");
    check_loader(dataset, val, 3, "images in memory, validation in chunks");
    train.mixup = 0.7;
    train.label_smoothing = 0.1;
    check_loader(dataset, train, 2, "images in memory, mixed, in chunks");
    tn_dataset_close(dataset);
}

/* ---- images of any size ---- */

/* PPM files of FOLDER/SPLIT/CLASS, some so large that the host resizes them. */
static void write_images(const temp_folder *folder) {
    static const int sizes[][2] = {{9, 8},   {30, 21}, {8, 8},  {17, 20}, {12, 7},
                                   {64, 48}, {5, 3},   {19, 9}, {3, 70},  {16, 15}};
    for (int i = 0; i < 24; i++) {
        static const char *const splits[] = {"train", "val"};
        char name[64];
        int width = sizes[i % 10][0], height = sizes[i % 10][1], first;
        uint8_t *bytes = malloc((size_t)(3 * width * height) + 32);
        for (int depth = 1; depth <= 3; depth++) {
            snprintf(name, sizeof name,
                     depth == 1   ? "%s"
                     : depth == 2 ? "%s/c%d"
                                  : "%s/c%d/%02d.ppm",
                     splits[i % 2], i / 2 % 3, i);
            if (depth < 3) mkdir(temp_path_of(folder, name).text, 0777);
        }
        first = sprintf((char *)bytes, "P6 %d %d 255\n", width, height);
        tn_rng rng = tn_rng_open(9, TN_RNG_SYNTHETIC, (uint32_t)i, 0);
        for (int k = 0; k < 3 * width * height; k++) bytes[first + k] = (uint8_t)tn_rng_below(&rng, 256);
        temp_write(temp_path_of(folder, name).text, bytes, (size_t)(first + 3 * width * height));
        free(bytes);
    }
}

static void test_images_of_any_size(void **unused) {
    (void)unused;
    temp_folder folder = temp_folder_make(), shards = temp_folder_make();
    char spec[512];
    write_images(&folder);
    tn_pack_config pack = {.from = folder.path,
                           .to = shards.path,
                           .samples_per_shard = 5,
                           .decoded = true,
                           .quality = 90,
                           .threads = 1};
    tn_pack_result packed;
    if (tn_dataset_pack(&pack, &packed) != TN_OK) fail_msg("%s", tn_error());
    tn_loader_config train = {.batch = BATCH, .seed = 3, .shuffle = true, .augment = true, .threads = 2},
                     val = {.split = TN_SPLIT_VAL, .batch = 4, .threads = 1};
    snprintf(spec, sizeof spec, "webdataset:%s", shards.path);
    tn_dataset *dataset = open_data(spec, 8, 9);
    check_loader(dataset, train, 0, "decoded shards");
    check_loader(dataset, val, 3, "decoded shards, validation in chunks");
    train.mixup = 1.0;
    check_loader(dataset, train, 2, "decoded shards, mixed, in chunks");
    tn_dataset_close(dataset);
    snprintf(spec, sizeof spec, "folder:%s", folder.path);
    dataset = open_data(spec, 11, 13);
    check_loader(dataset, val, 0, "files");
    tn_dataset_close(dataset);
    temp_folder_remove(&folder);
    temp_folder_remove(&shards);
}

/* ---- steps ---- */

/* Losses of steps that are issued, recorded and replayed, with bytes and with floats. */
static void test_steps(void **unused) {
    (void)unused;
    if (small()) skip();
    tn_dataset *dataset = open_data("synthetic:3x8x7:4:20", 0, 0);
    tn_dataset_info info = tn_dataset_describe(dataset);
    tn_model *model = network(&info);
    op_data data = op_data_draw(model, BATCH, 5, false, true);
    tn_loader_config config = {.batch = BATCH, .seed = 5, .shuffle = true, .augment = true, .mixup = 1};
    double losses[2][4];
    size_t bytes;
    const uint8_t *pixels = tn_dataset_pixels(dataset, TN_SPLIT_TRAIN, &bytes);
    for (int k = 0; k < 2; k++) {
        tn_engine *engine = engine_make(&fp32, model, BATCH, 0, &data);
        tn_loader *batches = loader(dataset, config, k);
        assert_int_equal(tn_engine_hold_images(engine, pixels, bytes), TN_OK);
        for (int i = 0; i < 4; i++) {
            const tn_sgd sgd = {.lr = 0.05, .momentum = 0.9, .scalar_lr = 0.1};
            const tn_batch *batch;
            tn_result result;
            if (tn_loader_next(batches, &batch, NULL) != TN_OK ||
                tn_engine_step(engine, batch, &sgd, &result) != TN_OK)
                fail_msg("%s", tn_error());
            losses[k][i] = result.loss;
        }
        tn_loader_close(batches);
        tn_engine_free(engine);
    }
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
    op_data_free(&data);
    tn_model_free(model);
    tn_dataset_close(dataset);
}

/* Images made of bytes are not looked at, those that come as floats are: also behind a recorded step of the
 * other kind. */
static void test_floats_behind_bytes(void **unused) {
    (void)unused;
    if (small()) skip();
    tn_dataset *dataset = open_data("synthetic:5x8x7:4:20", 0, 0); /* no stem, which looks at all */
    tn_dataset_info info = tn_dataset_describe(dataset);
    tn_model *model = network(&info);
    op_data data = op_data_draw(model, BATCH, 5, false, true);
    tn_engine *engine = engine_make(&fp32, model, BATCH, 0, &data);
    tn_loader *batches = loader(dataset, (tn_loader_config){.batch = BATCH, .seed = 5}, true);
    const tn_sgd sgd = {.lr = 0.05, .momentum = 0.9};
    tn_batch floats = engine_batch(model, BATCH, &data);
    tn_result result;
    size_t bytes;
    const uint8_t *pixels = tn_dataset_pixels(dataset, TN_SPLIT_TRAIN, &bytes);
    assert_int_equal(tn_engine_hold_images(engine, pixels, bytes), TN_OK);
    for (int i = 0; i < 3; i++) {
        const tn_batch *batch;
        if (tn_loader_next(batches, &batch, NULL) != TN_OK ||
            tn_engine_step(engine, batch, &sgd, &result) != TN_OK)
            fail_msg("%s", tn_error());
    }
    data.images[7] = NAN;
    assert_int_equal(tn_engine_step(engine, &floats, &sgd, &result), TN_ERR_DIVERGED);
    if (!strstr(tn_error(), "in the input images")) fail_msg("%s", tn_error());
    tn_loader_close(batches);
    tn_engine_free(engine);
    op_data_free(&data);
    tn_model_free(model);
    tn_dataset_close(dataset);
}

/* What an engine does not take. */
static void test_refusals(void **unused) {
    (void)unused;
    tn_dataset *dataset = open_data("synthetic:3x8x7:4:20", 0, 0);
    tn_dataset_info info = tn_dataset_describe(dataset);
    tn_model *model = network(&info);
    tn_loader_config config = {.batch = BATCH};
    tn_loader *batches = loader(dataset, config, true);
    const tn_batch *batch;
    assert_int_equal(tn_loader_next(batches, &batch, NULL), TN_OK);
    for (int k = 0; k < 2; k++) {
        tn_engine *engine;
        tn_result result;
        tn_engine_config wanted = {.device = k ? "cuda" : "cpu", .max_batch = BATCH, .threads = 1};
        if (tn_engine_create(model, &wanted, &engine) != TN_OK) fail_msg("%s", tn_error());
        assert_int_equal(tn_engine_takes_raw(engine), k);
        assert_int_equal(tn_engine_eval(engine, batch, &result, NULL), TN_ERR_USAGE);
        if (!k) assert_int_equal(tn_engine_hold_images(engine, (const uint8_t *)"", 1), TN_ERR_USAGE);
        tn_engine_free(engine);
    }
    tn_loader_close(batches);
    tn_model_free(model);
    tn_dataset_close(dataset);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images_in_memory),
        cmocka_unit_test(test_images_of_any_size),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_floats_behind_bytes),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
