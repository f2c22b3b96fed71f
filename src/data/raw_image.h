/* Images as bytes on their way to a device, which resizes them (data.h, tn_raw_image). */
#ifndef TN_DATA_RAW_IMAGE_H
#define TN_DATA_RAW_IMAGE_H

#include "data/resize.h"
#include "taunet/data.h"

/* A source that has more pixels than this many views is resized on the host, so that batches stay small. */
#define TN_RAW_VIEWS_MAX 8

/* Memory for one image. Zero-initialise; free with tn_raw_slot_free. */
typedef struct tn_raw_slot {
    tn_raw_image image; /* its bytes are `memory` */
    void *memory;
    size_t capacity;
} tn_raw_slot;

void tn_raw_slot_free(tn_raw_slot *slot);

/* Bytes that one image of height x width takes at most, nearly: the plans of extremely long images are not
 * counted. */
size_t tn_raw_image_bytes(int height, int width);

/* Copies what `how` makes of `source`: the pixels and the plans; or, of a large source, the result and plans
 * that leave it as it is. */
tn_status tn_raw_slot_fill(tn_raw_slot *slot, const tn_pixels *source, const tn_resize *how, bool flip,
                           tn_resizer *resizer);

#endif
