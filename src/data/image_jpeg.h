/* libjpeg-turbo, with its errors as statuses (image.h says what is decoded and what is refused). */
#ifndef TN_DATA_IMAGE_JPEG_H
#define TN_DATA_IMAGE_JPEG_H

#include "data/image.h"

typedef struct tn_jpeg tn_jpeg;

/* Free with tn_jpeg_free; NULL is allowed there. */
tn_status tn_jpeg_create(tn_jpeg **out);
void tn_jpeg_free(tn_jpeg *jpeg);

/* Reads the header of a JPEG in memory. */
tn_status tn_jpeg_header(tn_jpeg *jpeg, const uint8_t *bytes, size_t size, unsigned *width, unsigned *height);

/* Decodes `part` of the image whose header was read last, reduced by `factor` (1, 2, 4, 8): the part is in
 * reduced pixels and at most the reduced image, whose sides are rounded up. The pixels go to *memory, which
 * grows as needed (tn_grow). */
tn_status tn_jpeg_decode(tn_jpeg *jpeg, int factor, const tn_rectangle *part, uint8_t **memory,
                         size_t *capacity, tn_pixels *out);

#endif
