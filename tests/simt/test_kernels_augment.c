/* Batches made on the device against the host's augmentation: the same floats, bit for bit. */
#include <stdio.h>
#include <string.h>

#include "base/philox.h"
#include "data/augment.h"
#include "tests/simt/kernel_check.h"

typedef struct augment_case {
    int rows, used, channels, height, width, padding;
    bool draw, flip, ordered, mixup;
    float own;
    double smoothing;
    tn_storage store;
} augment_case;

#define SAMPLES 40
#define CLASSES 7
#define SEED    0x123456789abcdefu
#define EPOCH   37
#define FIRST   11

typedef struct augment_data {
    tn_image_format format;
    uint8_t *pixels;
    int *labels, *order, *partner;
    size_t size; /* of an image */
} augment_data;

static augment_data make(const augment_case *t) {
    augment_data d = {
        .format = {.channels = t->channels, .height = t->height, .width = t->width, .padding = t->padding},
        .size = (size_t)t->channels * t->height * t->width};
    float mean[16], deviation[16];
    for (int c = 0; c < 16; c++) {
        mean[c] = 0.4f + 0.02f * (float)c;
        deviation[c] = 0.2f + 0.01f * (float)c;
    }
    tn_image_format_normalise(&d.format, mean, deviation);
    d.pixels = host_zeros(SAMPLES * d.size);
    d.labels = host_zeros(SAMPLES * sizeof(int));
    d.order = host_zeros(SAMPLES * sizeof(int));
    d.partner = host_zeros((size_t)t->rows * sizeof(int));
    for (size_t i = 0; i < SAMPLES * d.size; i++) d.pixels[i] = (uint8_t)draw_below(1, (uint32_t)i, 256);
    for (int i = 0; i < SAMPLES; i++) {
        d.labels[i] = draw_below(2, (uint32_t)i, CLASSES);
        d.order[i] = t->ordered ? i * 7 % SAMPLES : i;
    }
    for (int i = 0; i < t->rows; i++) d.partner[i] = FIRST + (t->used > 0 ? (i * 3 + 1) % t->used : 0);
    return d;
}

static void one_image(const augment_case *t, const augment_data *d, int sample, float *out) {
    tn_augmentation how = {t->padding, t->padding, false};
    if (t->draw) how = tn_augment_draw(SEED, EPOCH, sample, t->padding, t->flip);
    tn_augment_apply(&d->format, d->pixels + (size_t)sample * d->size, how, out);
}

/* Compiled without contraction, as the host's mixup is. */
static float mix(float own, float a, float b) {
    volatile float x = own * a, y = (1.0f - own) * b;
    return x + y;
}

static void check_images(const augment_case *t, const augment_data *d, const void *device) {
    float *own = host_zeros(d->size * 4), *other = host_zeros(d->size * 4);
    double *wanted = host_doubles((size_t)t->rows * d->size);
    tensor images = {
        .count = (size_t)t->rows * d->size, .store = t->store, .device = (void *)(uintptr_t)device};
    for (int i = 0; i < t->used; i++) {
        one_image(t, d, d->order[FIRST + i], own);
        if (t->mixup) one_image(t, d, d->order[d->partner[i]], other);
        for (size_t k = 0; k < d->size; k++)
            wanted[(size_t)i * d->size + k] = (double)(t->mixup ? mix(t->own, own[k], other[k]) : own[k]);
    }
    tensor_read(&images);
    tensor exact = tensor_of(wanted, images.count, t->store);
    for (size_t k = 0; k < images.count; k++)
        if (images.host[k] != exact.host[k])
            fail_msg("value %zu of image %zu is %.9g, wanted %.9g", k % d->size, k / d->size, images.host[k],
                     exact.host[k]);
}

static void check_targets(const augment_case *t, const augment_data *d, const float *targets,
                          const int *labels, const float *weights) {
    float keep = (float)(1.0 - t->smoothing), spread = (float)(t->smoothing / CLASSES);
    float own = t->mixup ? t->own : 1.0f;
    for (int i = 0; i < t->rows; i++) {
        float wanted[CLASSES] = {0};
        bool inside = i < t->used;
        int label = inside ? d->labels[d->order[FIRST + i]] : 0, second = label;
        if (t->mixup && inside) second = d->labels[d->order[d->partner[i]]];
        if (inside) wanted[label] = own;
        if (t->mixup && inside) wanted[second] += 1.0f - own;
        for (int k = 0; k < CLASSES; k++) {
            volatile float product = keep * wanted[k];
            if (inside && t->smoothing > 0) wanted[k] = product + spread;
        }
        assert_memory_equal(targets + i * CLASSES, wanted, sizeof wanted);
        assert_int_equal(labels[i], own < 0.5f ? second : label);
        assert_true(weights[i] == (inside ? (float)(1.0 / t->used) : 0.0f));
    }
}

static void run_case(void *argument) {
    const augment_case *t = argument;
    augment_data d = make(t);
    size_t rows = (size_t)t->rows, ints = SAMPLES * sizeof(int);
    float *table = host_zeros((size_t)t->channels * 256 * 4);
    for (int c = 0; c < t->channels; c++) memcpy(table + c * 256, d.format.table[c], 256 * 4);
    tn_augment_config config = {.rows = t->rows,
                                .channels = t->channels,
                                .height = t->height,
                                .width = t->width,
                                .padding = t->padding,
                                .draw = t->draw,
                                .may_flip = t->flip,
                                .classes = CLASSES,
                                .smoothing = t->smoothing,
                                .table = device_copy(table, (size_t)t->channels * 256 * 4),
                                .pixels = device_copy(d.pixels, SAMPLES * d.size),
                                .labels = device_copy(d.labels, ints),
                                .order = t->ordered ? device_copy(d.order, ints) : NULL,
                                .partner = t->mixup ? device_copy(d.partner, rows * sizeof(int)) : NULL};
    tn_batch_state state = {
        .seed = SEED, .epoch = EPOCH, .first = FIRST, .rows = t->used, .own = t->mixup ? t->own : 1.0f};
    tn_batch_state *on_device = device_copy(&state, sizeof state);
    void *images = device_raw(rows * d.size * 4);
    float *targets = device_raw(rows * CLASSES * 4), *weights = device_raw(rows * 4);
    int *labels = device_raw(rows * 4);
    OK(tn_launch_augment(&config, on_device, t->store, images, 0));
    OK(tn_launch_targets(&config, on_device, targets, labels, weights, 0));
    check_images(t, &d, images);
    check_targets(t, &d, host_copy(targets, rows * CLASSES * 4), host_copy(labels, rows * 4),
                  host_copy(weights, rows * 4));
}

static void test_augment(void **unused) {
    static const augment_case cases[] = {
        {20, 20, 3, 8, 8, 4, .draw = true, .flip = true, .ordered = true, .store = TN_STORE_F32},
        {9, 6, 3, 7, 12, 2, .draw = true, .flip = true, .mixup = true, .own = 0.3f, .store = TN_STORE_F32},
        {4, 4, 1, 28, 28, 2, .draw = true, .smoothing = 0.1, .store = TN_STORE_F32},
        {5, 3, 16, 5, 3, 7, .draw = true, .flip = true, .mixup = true, .own = 0.75f, .smoothing = 0.2,
         .ordered = true, .store = TN_STORE_BF16},
        {3, 3, 2, 4, 5, 0, .draw = true, .flip = true, .store = TN_STORE_F32},
        {6, 5, 3, 6, 6, 4, .store = TN_STORE_F32},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        augment_case t = cases[i];
        char name[32];
        snprintf(name, sizeof name, "augment %zu", i);
        check_case(name, run_case, &t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_augment)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
