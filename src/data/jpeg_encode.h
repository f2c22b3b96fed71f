/* RGB pixels to baseline JPEG, with libjpeg-turbo. */
#ifndef TN_DATA_JPEG_ENCODE_H
#define TN_DATA_JPEG_ENCODE_H

#include "data/resize.h"

/* Encodes with 4:2:0 chroma at `quality` (1 to 100) into fresh memory; free with tn_jpeg_encode_free. */
tn_status tn_jpeg_encode(const tn_pixels *pixels, int quality, uint8_t **bytes, size_t *size);
void tn_jpeg_encode_free(uint8_t *bytes);

#endif
