/* One image on its way into a batch: the draw of its crop and flip, and their application together with the
 * normalisation. The two are apart because another backend applies the same draw on its own device.
 *
 * The random crop is torchvision's RandomCrop(size, padding): the image is padded with pixel value 0 on all
 * sides, a window of the image's own size is cut out, and only then are pixels normalised, so padding shows
 * as table[c][0]. */
#ifndef TN_DATA_AUGMENT_H
#define TN_DATA_AUGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "taunet/data.h"

/* What happens to one image. {padding, padding, false} leaves it as it is. */
typedef struct tn_augmentation {
    int dy, dx; /* top left corner of the window inside the padded image, each in [0, 2 * padding] */
    bool flip;  /* then mirrored from left to right */
} tn_augmentation;

/* What all images of a data set share. */
typedef struct tn_image_format {
    int channels, height, width;
    int padding;                       /* pixels on each side, >= 0 */
    float table[TN_CHANNELS_MAX][256]; /* normalised value of each pixel value, per channel */
} tn_image_format;

/* The augmentation of a sample in an epoch: the stream tn_rng_open(seed, TN_RNG_AUGMENT, epoch, sample) gives
 *   dy   = tn_rng_below(2 * padding + 1),
 *   dx   = tn_rng_below(2 * padding + 1),
 *   flip = may_flip and the top bit of the next word,
 * in this order. `sample` is the index in the data set, not the position in the epoch. */
tn_augmentation tn_augment_draw(uint64_t seed, int epoch, int sample, int padding, bool may_flip);

/* table[c][p] = (p / 255 - mean[c]) / std[c], computed in double and rounded once. */
void tn_image_format_normalise(tn_image_format *format, const float *mean, const float *std);

/* Writes one augmented and normalised image to `out`; both `image` and `out` are [height][width][channels].
 * Output pixel (y, x) is image pixel (y + dy - padding, u + dx - padding), where u is x, or width - 1 - x
 * when flipped; pixel value 0 where that lies outside the image. */
void tn_augment_apply(const tn_image_format *format, const uint8_t *image, tn_augmentation how, float *out);

#endif
