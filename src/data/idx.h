/* IDX, the file format of MNIST (http://yann.lecun.com/exdb/mnist): bytes 00 00, element type, number of
 * dimensions; the dimensions as big-endian 32-bit numbers; the elements, last dimension fastest. Plain or
 * compressed by gzip. */
#ifndef TN_DATA_IDX_H
#define TN_DATA_IDX_H

#include <stddef.h>
#include <stdint.h>

#include "data/dataset.h"

/* An array of unsigned bytes. */
typedef struct tn_idx {
    int dims[3];   /* of which the first `ndims` asked for are set; all >= 1 */
    size_t size;   /* their product */
    uint8_t *data; /* owned: free with tn_free */
} tn_idx;

/* Parses a file in memory, plain or gzip (told apart by its first bytes), that must hold unsigned bytes in
 * `ndims` (1 or 3) dimensions. TN_ERR_DATA for everything else: another type or rank, a dimension of 0 or
 * beyond what images may have, too few or too many bytes, damaged or cut gzip data, bytes behind it. Memory
 * asked for is bounded by the file's size. `file` is for messages. On failure out->data is NULL. */
tn_status tn_idx_parse(const char *file, const uint8_t *bytes, size_t size, int ndims, tn_idx *out);

#endif
