/* Antialiased bilinear resizing of 8-bit RGB images.
 *
 * The result is that of Pillow's Image.resize(size, BILINEAR, box), bit for bit up to its version 12 and
 * within 1 later: a triangle filter whose support grows with the reduction, columns first, weights in 22-bit
 * fixed point, each pass rounded to 8 bits. (Pillow 13 begins with rows where that is less work.) It is also
 * what torchvision's Resize and RandomResizedCrop do to a PIL image. */
#ifndef TN_DATA_RESIZE_H
#define TN_DATA_RESIZE_H

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

/* Pixels [height][width][3] of an image or of a part of one; rows are `stride` bytes apart. */
typedef struct tn_pixels {
    const uint8_t *at;
    size_t stride;
    int height, width;
} tn_pixels;

/* One direction of a resizing. The source is thought of as `full` pixels long, of which those from `origin`
 * on are at hand; the stretch from `low` to `high` of it becomes `size` pixels, and of these `count` are
 * made, beginning with number `from`. Pixels that these depend on must be at hand. */
typedef struct tn_resize_axis {
    double low, high;
    int full, origin;
    int size, from, count;
} tn_resize_axis;

typedef struct tn_resize {
    tn_resize_axis rows, columns;
} tn_resize;

/* Weights are integers in units of 2^-TN_RESIZE_BITS. */
#define TN_RESIZE_BITS 22

/* Inputs that one output of a direction is made of, at most. */
int tn_resize_taps(const tn_resize_axis *how);

/* How one direction is computed, plan[how->count][2 + taps]: of each output the first input, counted from the
 * first at hand, the number of inputs, and their weights; what is left of the row is not set. */
void tn_resize_plan(const tn_resize_axis *how, int taps, int32_t *plan);

/* Memory that is used again from image to image. Zero-initialise; free with tn_resizer_free. Used by one
 * thread at a time. */
typedef struct tn_resizer {
    int32_t *plan[2]; /* of rows and columns */
    uint8_t *tile[2], *middle, *out;
    size_t capacity[6];
} tn_resizer;

void tn_resizer_free(tn_resizer *resizer);

/* Resizes. *out points to pixels [how->rows.count][how->columns.count][3] without gaps, which belong to the
 * resizer and are valid until its next use. TN_ERR_MEMORY. */
tn_status tn_resizer_run(tn_resizer *resizer, const tn_pixels *source, const tn_resize *how, uint8_t **out);

#endif
