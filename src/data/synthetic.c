#include "data/synthetic.h"

#include <limits.h>

#include "base/philox.h"
#include "base/text.h"

#define CELLS       4
#define CLASSES_MAX 100000
#define PATTERNS    2

/* Reads a decimal number in 1..limit and the character behind it. */
static bool number(const char **text, int limit, char behind, int *out) {
    long long value = 0;
    const char *p = *text;
    for (; *p >= '0' && *p <= '9' && value <= limit; p++) value = 10 * value + (*p - '0');
    if (p == *text || value < 1 || value > limit || *p != behind) return false;
    *text = behind ? p + 1 : p;
    *out = (int)value;
    return true;
}

static void draw_pattern(int label, int channels, uint8_t pattern[TN_CHANNELS_MAX * CELLS * CELLS]) {
    tn_rng rng = tn_rng_open(0, TN_RNG_SYNTHETIC, (uint32_t)label, PATTERNS);
    for (int i = 0; i < channels * CELLS * CELLS; i++) pattern[i] = (uint8_t)(64 + (tn_rng_bits(&rng) >> 25));
}

/* `column` holds the pattern's column of each x. */
static void draw_image(const tn_dataset_info *info, const uint8_t *column, tn_split split, int sample,
                       uint8_t *image) {
    uint8_t pattern[TN_CHANNELS_MAX * CELLS * CELLS];
    draw_pattern(sample % info->classes, info->channels, pattern);
    tn_rng rng = tn_rng_open(0, TN_RNG_SYNTHETIC, (uint32_t)sample, split == TN_SPLIT_TRAIN ? 0 : 1);
    uint32_t word = 0;
    int left = 0;
    for (int y = 0; y < info->height; y++) {
        const uint8_t *row = pattern + y * CELLS / info->height * CELLS;
        for (int x = 0; x < info->width; x++) {
            const uint8_t *cell = row + column[x];
            for (int c = 0; c < info->channels; c++, cell += CELLS * CELLS) {
                if (left == 0) {
                    word = tn_rng_bits(&rng);
                    left = 4;
                }
                *image++ = (uint8_t)(*cell + (int)(word & 127) - 64);
                word >>= 8;
                left--;
            }
        }
    }
}

static tn_status draw_split(tn_dataset *dataset, tn_split split, int count) {
    const tn_dataset_info *info = &dataset->info;
    uint8_t column[TN_SIDE_MAX];
    for (int x = 0; x < info->width; x++) column[x] = (uint8_t)(x * CELLS / info->width);
    TN_TRY(tn_dataset_alloc_split(dataset, split, count, "synthetic data"));
    tn_samples *samples = &dataset->split[split];
    for (int i = 0; i < count; i++) {
        samples->labels[i] = i % info->classes;
        draw_image(info, column, split, i, samples->pixels + (size_t)i * tn_dataset_image_size(info));
    }
    return TN_OK;
}

tn_status tn_synthetic_make(const char *shape, tn_dataset *dataset) {
    tn_dataset_info *info = &dataset->info;
    const char *text = shape;
    int count;
    *info = (tn_dataset_info){.name = "synthetic", .flip = true};
    if (!number(&text, TN_CHANNELS_MAX, 'x', &info->channels) ||
        !number(&text, TN_SIDE_MAX, 'x', &info->height) || !number(&text, TN_SIDE_MAX, ':', &info->width) ||
        !number(&text, CLASSES_MAX, ':', &info->classes) || !number(&text, INT_MAX, 0, &count))
        return tn_fail(TN_ERR_USAGE,
                       "data set synthetic:%s: expected CxHxW:CLASSES:COUNT, such as "
                       "synthetic:3x32x32:10:50000, with C in 1..%d, H and W in 1..%d, CLASSES in 1..%d",
                       tn_make_legible(shape).text, TN_CHANNELS_MAX, TN_SIDE_MAX, CLASSES_MAX);
    for (int c = 0; c < info->channels; c++) {
        info->mean[c] = .5f;
        info->std[c] = .25f;
    }
    info->crop_padding = (info->height < info->width ? info->height : info->width) / 8;
    TN_TRY(draw_split(dataset, TN_SPLIT_TRAIN, count));
    return draw_split(dataset, TN_SPLIT_VAL, count);
}
