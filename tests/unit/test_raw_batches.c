/* Batches of bytes: made into images here in plain loops as data.h says, they are the batches of floats, bit
 * for bit - of images in memory and in files, mixed, dealt to several processes, and with images left out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/philox.h"
#include "data/augment.h"
#include "taunet/data.h"
#include "tests/unit/temp_folder.h"

#define SIZE_MAX_OF_IMAGE (3 * 16 * 16)

/* ---- what a device does ---- */

static int resized(const int32_t *plan, int step, int output, const uint8_t *from, int stride) {
    const int32_t *p = plan + output * step;
    int64_t sum = 1 << 21;
    for (int t = 0; t < p[1]; t++) sum += (int64_t)p[2 + t] * from[(p[0] + t) * stride];
    return sum >> 22 > 255 ? 255 : (int)(sum >> 22);
}

static void make_view(const tn_raw_image *image, int height, int width, uint8_t *out) {
    int steps[2] = {2 + image->taps[0], 2 + image->taps[1]};
    const int32_t *rows = image->bytes, *columns = rows + height * steps[0];
    const uint8_t *pixels = (const uint8_t *)(columns + width * steps[1]);
    uint8_t *middle = malloc((size_t)(3 * image->from_height * width));
    assert_true(pixels + 3 * image->from_height * image->from_width ==
                (const uint8_t *)image->bytes + image->size);
    for (int y = 0; y < image->from_height; y++)
        for (int i = 0; i < 3 * width; i++)
            middle[y * 3 * width + i] =
                (uint8_t)resized(columns, steps[1], i / 3, pixels + y * 3 * image->from_width + i % 3, 3);
    for (int y = 0; y < height; y++)
        for (int i = 0; i < 3 * width; i++) {
            int x = image->flip ? width - 1 - i / 3 : i / 3;
            out[y * 3 * width + 3 * x + i % 3] = (uint8_t)resized(rows, steps[0], y, middle + i, 3 * width);
        }
    free(middle);
}

/* The image at `place` of the order. */
static void make_image(const tn_batch *b, const tn_image_format *format, int place, float *out) {
    const tn_raw_batch *raw = b->raw;
    size_t size = (size_t)b->channels * (size_t)b->height * (size_t)b->width;
    int sample = raw->order ? raw->order[place] : place;
    uint8_t view[SIZE_MAX_OF_IMAGE];
    tn_augmentation how = {0, 0, false};
    assert_true(sample >= 0 && sample < raw->count && size <= SIZE_MAX_OF_IMAGE);
    assert_true(!raw->order || (place >= 0 && place < raw->order_count));
    if (raw->pixels && raw->draw)
        how = tn_augment_draw(raw->seed, raw->epoch, sample, raw->padding, raw->may_flip);
    if (!raw->pixels) make_view(&raw->images[sample], b->height, b->width, view);
    tn_augment_apply(format, raw->pixels ? raw->pixels + (size_t)sample * size : view, how, out);
}

static void check_row(const tn_batch *b, const tn_image_format *format, int row, const float *wanted) {
    const tn_raw_batch *raw = b->raw;
    size_t size = (size_t)b->channels * (size_t)b->height * (size_t)b->width;
    float own[SIZE_MAX_OF_IMAGE], other[SIZE_MAX_OF_IMAGE];
    make_image(b, format, raw->first + row, own);
    if (raw->partner) {
        make_image(b, format, raw->partner[row], other);
        for (size_t i = 0; i < size; i++) own[i] = raw->own * own[i] + (1.0f - raw->own) * other[i];
    }
    assert_memory_equal(own, wanted, size * sizeof *own);
}

/* ---- loaders ---- */

static tn_loader *open_loader(const tn_dataset *dataset, tn_loader_config config, bool raw) {
    tn_loader *loader;
    config.raw = raw;
    if (tn_loader_open(dataset, &config, &loader) != TN_OK) fail_msg("%s", tn_error());
    return loader;
}

static void check_batches(const tn_dataset *dataset, tn_loader_config config) {
    tn_loader *loaders[2] = {open_loader(dataset, config, false), open_loader(dataset, config, true)};
    tn_dataset_info info = tn_dataset_describe(dataset);
    for (int i = 0; i < 2 * tn_loader_batches(loaders[0]); i++) {
        const tn_batch *b[2];
        for (int k = 0; k < 2; k++)
            if (tn_loader_next(loaders[k], &b[k], NULL) != TN_OK) fail_msg("%s", tn_error());
        tn_image_format format = {.channels = info.channels, .height = info.height, .width = info.width};
        format.padding = b[1]->raw->pixels ? b[1]->raw->padding : 0;
        memcpy(format.table, b[1]->raw->table, (size_t)info.channels * sizeof format.table[0]);
        size_t rows = (size_t)b[0]->rows,
               size = (size_t)info.channels * (size_t)info.height * (size_t)info.width;
        assert_true(!b[0]->raw && !b[1]->images);
        assert_true(b[0]->rows == b[1]->rows && b[0]->first_row == b[1]->first_row &&
                    b[0]->whole_rows == b[1]->whole_rows);
        assert_memory_equal(b[0]->labels, b[1]->labels, rows * sizeof(int));
        assert_memory_equal(b[0]->targets, b[1]->targets, rows * (size_t)info.classes * sizeof(float));
        for (int row = 0; row < b[0]->rows; row++)
            check_row(b[1], &format, row, b[0]->images + (size_t)row * size);
    }
    assert_int_equal(tn_loader_bad_samples(loaders[0]), tn_loader_bad_samples(loaders[1]));
    for (int k = 0; k < 2; k++) tn_loader_close(loaders[k]);
}

/* Alone and as each of three processes; plain and mixed. */
static void check_all(const tn_dataset *dataset, tn_loader_config config) {
    for (int mixed = 0; mixed < 2; mixed++)
        for (int rank = -1; rank < 3; rank++) {
            tn_loader_config c = config;
            c.mixup = mixed ? 0.8 : 0;
            if (rank >= 0 && c.skip_bad) break;
            if (rank >= 0) c.ranks = 3, c.rank = rank, c.chunk_rows = 2;
            check_batches(dataset, c);
        }
}

static void images_in_memory(void **state) {
    (void)state;
    tn_dataset *dataset;
    assert_int_equal(tn_dataset_open("synthetic:3x9x7:4:23", &dataset), TN_OK);
    tn_loader_config config = {.batch = 7, .seed = 11, .shuffle = true, .augment = true};
    check_all(dataset, config);
    config.augment = config.shuffle = false;
    config.split = TN_SPLIT_VAL;
    check_all(dataset, config);
    tn_dataset_close(dataset);
}

/* ---- images of any size ---- */

static void write_image(const temp_folder *folder, const char *name, int width, int height, uint32_t key) {
    size_t size = (size_t)(3 * width * height);
    char *bytes = malloc(size + 32);
    int first = sprintf(bytes, "P6 %d %d 255\n", width, height);
    tn_rng rng = tn_rng_open(2, TN_RNG_SYNTHETIC, key, 0);
    for (size_t i = 0; i < size; i++) bytes[(size_t)first + i] = (char)tn_rng_below(&rng, 256);
    temp_write(temp_path_of(folder, name).text, bytes, (size_t)first + size);
    free(bytes);
}

static void write_folder(const temp_folder *folder, bool damaged) {
    static const int sizes[][2] = {{9, 8}, {40, 31}, {12, 12}, {17, 23}, {120, 4}, {3, 2}, {70, 90}};
    static const char *const folders[] = {"train", "train/a", "train/b", "val", "val/a", "val/b"};
    char name[64];
    for (int i = 0; i < 6; i++) mkdir(temp_path_of(folder, folders[i]).text, 0777);
    for (int i = 0; i < 26; i++) {
        snprintf(name, sizeof name, "%s/%02d.ppm", folders[1 + i % 2 + 3 * (i / 2 % 2)], i);
        write_image(folder, name, sizes[i % 7][0], sizes[i % 7][1], (uint32_t)i);
    }
    if (damaged) temp_write(temp_path_of(folder, "train/a/05.ppm").text, "P6 9 9 255\nshort", 16);
}

static void images_of_any_size(void **state) {
    (void)state;
    for (int damaged = 0; damaged < 2; damaged++) {
        temp_folder folder = temp_folder_make();
        char spec[512];
        tn_dataset *dataset;
        write_folder(&folder, damaged);
        snprintf(spec, sizeof spec, "folder:%s", folder.path);
        if (tn_dataset_open_sized(spec, 12, 14, &dataset) != TN_OK) fail_msg("%s", tn_error());
        tn_loader_config config = {.batch = 5, .seed = 4, .shuffle = true, .augment = true, .threads = 2};
        config.skip_bad = damaged;
        check_all(dataset, config);
        config = (tn_loader_config){.split = TN_SPLIT_VAL, .batch = 5, .threads = 1};
        if (!damaged) check_all(dataset, config);
        tn_dataset_close(dataset);
        temp_folder_remove(&folder);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(images_in_memory),
        cmocka_unit_test(images_of_any_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
