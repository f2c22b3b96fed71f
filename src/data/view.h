/* Which part of an image of any size a network sees, and at what size: random crops for training, the centre
 * for evaluation. Drawn from the image's size alone, so that a host or device that has the pixels applies the
 * same view. */
#ifndef TN_DATA_VIEW_H
#define TN_DATA_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "data/image.h"
#include "data/resize.h"

/* `part` of the image is resized to height x width pixels; the window of rows x columns at (y, x) of that is
 * seen, mirrored from left to right when `flip`. */
typedef struct tn_view {
    tn_rectangle part;
    int height, width;
    int y, x, rows, columns;
    bool flip;
} tn_view;

/* torchvision's RandomResizedCrop(size, scale=(0.08, 1), ratio=(3/4, 4/3)) and RandomHorizontalFlip, from the
 * stream tn_rng_open(seed, TN_RNG_AUGMENT, epoch, sample):
 *   up to ten times: area = width * height * (.08 + .92 u), ratio = exp((2 u' - 1) log(4/3)), u and u' from
 *     tn_rng_uniform; w = sqrt(area * ratio), h = sqrt(area / ratio), rounded half to even; when both fit:
 *     top = tn_rng_below(height - h + 1), left = tn_rng_below(width - w + 1), and done;
 *   else the largest central part whose ratio is within the bounds;
 *   flip = the top bit of the next word. */
tn_view tn_view_random(uint64_t seed, int epoch, int sample, int width, int height, int size);

/* torchvision's Resize(resize) and CenterCrop(size), resize >= size: the short side becomes `resize`, the
 * long one in proportion, rounded down. */
tn_view tn_view_centre(int width, int height, int resize, int size);

/* The evaluation resize that goes with a crop of `size` when none is asked for: 8/7 of it, 256 for 224. */
int tn_view_default_resize(int size);

/* Decodes the image just opened, as far as the view needs it, and makes the view: *out is [rows][columns][3]
 * without gaps, not mirrored, valid until the next use of image or resizer. With `reduce` a large JPEG may
 * come reduced from the decoder, as long as it still has at least the view's pixels: faster, but a little
 * different from resizing all of them. */
tn_status tn_view_make(const tn_view *view, bool reduce, tn_image *image, tn_resizer *resizer, uint8_t **out);

/* The first half of tn_view_make: decodes, and says how *pixels, which are valid until the next use of the
 * image, are to be resized. */
tn_status tn_view_decode(const tn_view *view, bool reduce, tn_image *image, tn_pixels *pixels,
                         tn_resize *how);

#endif
