/* Views of images of any size made on the device against the host's resizing and augmentation: the same
 * bytes, and behind augment.cu the same floats. */
#include <stdio.h>
#include <string.h>

#include "data/augment.h"
#include "data/resize.h"
#include "tests/simt/kernel_check.h"

/* One image: `source` pixels, of which the stretch from `low` to `high` becomes `size`, and of these a
 * window. */
typedef struct direction {
    int source;
    double low, high;
    int size, from;
} direction;

typedef struct image_case {
    direction rows, columns;
    bool flip;
} image_case;

typedef struct batch_case {
    int height, width, count;
    tn_storage store;
    bool mixup;
    image_case images[8];
} batch_case;

typedef struct built {
    size_t size, highest; /* of bytes */
    uint8_t *bytes;
    size_t middle;
    tn_view_image images[8];
    uint8_t *views; /* what the host makes */
} built;

#define OWN 0.3f

static tn_resize_axis axis_of(const direction *d, int count) {
    return (tn_resize_axis){
        .low = d->low, .high = d->high, .full = d->source, .size = d->size, .from = d->from, .count = count};
}

static size_t add_plan(built *b, const tn_resize_axis *how, int *taps) {
    size_t at = b->size;
    *taps = tn_resize_taps(how);
    tn_resize_plan(how, *taps, (int32_t *)(void *)(b->bytes + at));
    b->size += (size_t)how->count * (2 + (size_t)*taps) * 4;
    return at;
}

static void build_image(built *b, const batch_case *t, int i, tn_resizer *resizer) {
    const image_case *c = &t->images[i];
    tn_view_image *image = &b->images[i];
    tn_resize how = {axis_of(&c->rows, t->height), axis_of(&c->columns, t->width)};
    size_t row = 3 * (size_t)t->width, size = 3 * (size_t)c->rows.source * (size_t)c->columns.source;
    *image = (tn_view_image){
        .height = c->rows.source, .width = c->columns.source, .flip = c->flip, .middle = b->middle};
    image->rows = add_plan(b, &how.rows, &image->row_taps);
    image->columns = add_plan(b, &how.columns, &image->column_taps);
    image->pixels = b->size;
    for (size_t k = 0; k < size; k++) {
        int v = draw_below((uint32_t)(5 + i), (uint32_t)k, 400) - 70; /* often black or white */
        b->bytes[b->size++] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
    }
    tn_pixels pixels = {b->bytes + image->pixels, 3 * (size_t)c->columns.source, c->rows.source,
                        c->columns.source};
    uint8_t *out, *to = b->views + (size_t)i * (size_t)t->height * row;
    if (tn_resizer_run(resizer, &pixels, &how, &out) != TN_OK) fail_msg("%s", tn_error());
    for (int y = 0; y < t->height; y++)
        for (int x = 0; x < t->width; x++)
            memcpy(to + (size_t)y * row + 3 * x, out + (size_t)y * row + 3 * (c->flip ? t->width - 1 - x : x),
                   3);
    b->size = (b->size + 3) / 4 * 4;
    b->middle += (size_t)c->rows.source * row;
    if ((size_t)c->rows.source > b->highest) b->highest = (size_t)c->rows.source;
}

static built build(const batch_case *t) {
    built b = {.bytes = host_zeros((size_t)1 << 20),
               .views = host_zeros((size_t)t->count * 3 * (size_t)t->height * (size_t)t->width)};
    tn_resizer resizer = {0};
    for (int i = 0; i < t->count; i++) build_image(&b, t, i, &resizer);
    tn_resizer_free(&resizer);
    return b;
}

/* Compiled without contraction, as the host's mixup is. */
static float mix(float a, float b) {
    volatile float x = OWN * a, y = (1.0f - OWN) * b;
    return x + y;
}

/* Normalised, and mixed with the image before. */
static void check_batch(const batch_case *t, const built *b, const uint8_t *views) {
    tn_image_format format = {.channels = 3, .height = t->height, .width = t->width};
    const float mean[] = {.485f, .456f, .406f}, deviation[] = {.229f, .224f, .225f};
    size_t size = 3 * (size_t)t->height * (size_t)t->width, count = (size_t)t->count * size;
    tn_image_format_normalise(&format, mean, deviation);
    int partner[8];
    for (int i = 0; i < t->count; i++) partner[i] = i ? i - 1 : t->count - 1;
    tn_augment_config config = {.rows = t->count,
                                .channels = 3,
                                .height = t->height,
                                .width = t->width,
                                .table = device_copy(format.table, 3 * sizeof format.table[0]),
                                .pixels = views,
                                .partner = t->mixup ? device_copy(partner, sizeof partner) : NULL};
    tn_batch_state state = {.rows = t->count, .own = t->mixup ? OWN : 1.0f};
    tensor images = tensor_empty(count, t->store);
    OK(tn_launch_augment(&config, device_copy(&state, sizeof state), t->store, images.device, 0));
    float *made = host_zeros(count * sizeof *made);
    double *wanted = host_doubles(count);
    for (int i = 0; i < t->count; i++)
        tn_augment_apply(&format, b->views + (size_t)i * size, (tn_augmentation){0, 0, false},
                         made + (size_t)i * size);
    for (size_t k = 0; k < count; k++)
        wanted[k] =
            (double)(t->mixup ? mix(made[k], made[(size_t)partner[k / size] * size + k % size]) : made[k]);
    tensor_read(&images);
    tensor exact = tensor_of(wanted, count, t->store);
    for (size_t k = 0; k < count; k++)
        if (images.host[k] != exact.host[k])
            fail_msg("value %zu of image %zu is %.9g, wanted %.9g", k % size, k / size, images.host[k],
                     exact.host[k]);
}

static void run_case(void *argument) {
    const batch_case *t = argument;
    built b = build(t);
    size_t size = 3 * (size_t)t->height * (size_t)t->width;
    uint8_t *views = device_raw((size_t)t->count * size);
    OK(tn_launch_views(t->count, device_copy(b.images, (size_t)t->count * sizeof b.images[0]), (int)b.highest,
                       t->height, t->width, device_copy(b.bytes, b.size), device_raw(b.middle), views, 0));
    const uint8_t *got = host_copy(views, (size_t)t->count * size);
    for (size_t k = 0; k < (size_t)t->count * size; k++)
        if (got[k] != b.views[k])
            fail_msg("byte %zu of image %zu is %d, wanted %d", k % size, k / size, got[k], b.views[k]);
    check_batch(t, &b, views);
}

static void test_views(void **unused) {
    static const batch_case cases[] = {
        /* smaller, a window of a larger one, larger, one pixel, as it is, a stretch between whole pixels */
        {12,
         9,
         6,
         TN_STORE_F32,
         false,
         {{{31, 0, 31, 12, 0}, {40, 0, 40, 9, 0}, false},
          {{40, 0, 40, 17, 3}, {26, 0, 26, 15, 4}, true},
          {{5, 0, 5, 12, 0}, {7, 0, 7, 9, 0}, true},
          {{1, 0, 1, 12, 0}, {1, 0, 1, 9, 0}, true},
          {{12, 0, 12, 12, 0}, {9, 0, 9, 9, 0}, true},
          {{20, 1.25, 17.5, 12, 0}, {23, 0.5, 22.25, 9, 0}, false}}},
        {7,
         7,
         3,
         TN_STORE_BF16,
         true,
         {{{90, 0, 90, 7, 0}, {3, 0, 3, 7, 0}, true},
          {{7, 0, 7, 7, 0}, {64, 3, 60, 7, 0}, false},
          {{16, 0, 16, 8, 1}, {16, 0, 16, 8, 0}, true}}},
        {3,
         100,
         2,
         TN_STORE_F32,
         true,
         {{{200, 0, 200, 3, 0}, {101, 0, 101, 100, 0}, true}, {{3, 0, 3, 3, 0}, {50, 0, 50, 100, 0}, false}}},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        batch_case t = cases[i];
        char name[32];
        snprintf(name, sizeof name, "views %zu", i);
        check_case(name, run_case, &t);
    }
}

static void test_sizes_that_are_refused(void **unused) {
    (void)unused;
    assert_int_equal(tn_launch_views(0, NULL, 1, 1, 1, NULL, NULL, NULL, 0), cudaSuccess);
    assert_int_equal(tn_launch_views(65536, NULL, 1, 1, 1, NULL, NULL, NULL, 0), cudaErrorInvalidValue);
    assert_int_equal(tn_launch_views(1, NULL, 1 << 16, 1, 1 << 15, NULL, NULL, NULL, 0),
                     cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_views),
                                       cmocka_unit_test(test_sizes_that_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
