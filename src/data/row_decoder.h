/* Rows of a batch from stored images: a pool of threads loads, decodes and augments them, each thread with
 * its own memory. Which thread makes a row has no influence on it. */
#ifndef TN_DATA_ROW_DECODER_H
#define TN_DATA_ROW_DECODER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/pool.h"
#include "data/augment.h"
#include "data/dataset.h"
#include "data/raw_image.h"

/* Messages that are kept of samples that were left out. */
#define TN_BAD_MESSAGES_MAX 1000

typedef struct tn_row_decoder tn_row_decoder;

/* config: split, seed, augment, threads and skip_bad; `format` holds the normalisation. Both data set and
 * format must outlive it. Free with tn_row_decoder_free, NULL is allowed. */
tn_status tn_row_decoder_create(const tn_dataset *dataset, const tn_loader_config *config,
                                const tn_image_format *format, tn_row_decoder **out);
void tn_row_decoder_free(tn_row_decoder *decoder);

/* Where rows go: to floats, or as bytes to slots; the other is NULL. */
typedef struct tn_row_target {
    float *images;
    tn_raw_slot *slots;
} tn_row_target;

/* Makes `count` (at most config->batch) rows of `epoch`: samples[i] to images + i * size of an image, or to
 * slots[i]. Where skip_bad leaves some out, those behind move up; *rows is how many there are and kept[0 ..
 * *rows-1] which samples they show. TN_ERR_STOPPED, at once, when *cancelled becomes true. */
tn_status tn_row_decoder_run(tn_row_decoder *decoder, int epoch, const int *samples, int count,
                             const atomic_bool *cancelled, tn_row_target target, int *kept, int *rows);

/* As tn_loader_bad_samples and tn_loader_bad_sample; from any thread. */
int tn_row_decoder_bad_samples(tn_row_decoder *decoder);
const char *tn_row_decoder_bad_sample(tn_row_decoder *decoder, int index);

#endif
