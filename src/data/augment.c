#include "data/augment.h"

#include <stddef.h>

#include "base/philox.h"

tn_augmentation tn_augment_draw(uint64_t seed, int epoch, int sample, int padding, bool may_flip) {
    tn_rng rng = tn_rng_open(seed, TN_RNG_AUGMENT, (uint32_t)epoch, (uint32_t)sample);
    tn_augmentation how;
    uint32_t places = 2 * (uint32_t)padding + 1;
    how.dy = (int)tn_rng_below(&rng, places);
    how.dx = (int)tn_rng_below(&rng, places);
    how.flip = (tn_rng_bits(&rng) >> 31) != 0 && may_flip;
    return how;
}

void tn_image_format_normalise(tn_image_format *format, const float *mean, const float *std) {
    for (int c = 0; c < format->channels; c++)
        for (int p = 0; p < 256; p++)
            format->table[c][p] = (float)((p / 255.0 - (double)mean[c]) / (double)std[c]);
}

/* The three loops below are the loader's hot spot; channel counts of real data sets get their own so that the
 * inner loop over channels disappears. `step` is +channels or, for a flip, -channels. */
static float *write_pixels(const tn_image_format *format, const uint8_t *from, ptrdiff_t step, int count,
                           float *to) {
    const float(*table)[256] = format->table;
    int channels = format->channels;
    if (channels == 3) {
        for (int i = 0; i < count; i++, from += step, to += 3) {
            float r = table[0][from[0]], g = table[1][from[1]], b = table[2][from[2]];
            to[0] = r;
            to[1] = g;
            to[2] = b;
        }
    } else if (channels == 1) {
        for (int i = 0; i < count; i++, from += step) *to++ = table[0][*from];
    } else {
        for (int i = 0; i < count; i++, from += step)
            for (int c = 0; c < channels; c++) *to++ = table[c][from[c]];
    }
    return to;
}

static float *write_padding(const tn_image_format *format, int count, float *to) {
    for (int i = 0; i < count; i++)
        for (int c = 0; c < format->channels; c++) *to++ = format->table[c][0];
    return to;
}

void tn_augment_apply(const tn_image_format *format, const uint8_t *image, tn_augmentation how, float *out) {
    int height = format->height, width = format->width, channels = format->channels;
    int down = how.dy - format->padding, right = how.dx - format->padding;
    /* Columns of the window that lie inside the image. */
    int begin = right < 0 ? -right : 0, end = right > 0 ? width - right : width;
    int inside = end > begin ? end - begin : 0;
    int before = how.flip ? width - end : begin;
    ptrdiff_t step = how.flip ? -channels : channels;
    for (int y = 0; y < height; y++) {
        int row = y + down;
        if (row < 0 || row >= height || inside == 0) {
            out = write_padding(format, width, out);
            continue;
        }
        ptrdiff_t first = how.flip ? end - 1 + right : begin + right;
        const uint8_t *from = image + ((ptrdiff_t)row * width + first) * channels;
        out = write_padding(format, before, out);
        out = write_pixels(format, from, step, inside, out);
        out = write_padding(format, width - before - inside, out);
    }
}
