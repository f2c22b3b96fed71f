/* Makes any batch of any epoch: a pure function of the data set, the configuration, the epoch and the batch's
 * number. */
#ifndef TN_DATA_BATCHER_H
#define TN_DATA_BATCHER_H

#include <stdatomic.h>

#include "data/augment.h"
#include "data/dataset.h"
#include "data/order.h"
#include "data/row_decoder.h"

/* Memory for one batch and the batch that is in it. */
typedef struct tn_batch_buffer {
    tn_batch batch; /* points into the arrays below */
    float *images, *targets;
    int *labels;
    /* With tn_loader_config.raw in the place of images: */
    tn_raw_batch raw;
    int *order, *partner;     /* [batch] each; partners with mixup */
    tn_raw_slot *slots;       /* [slot_count], of stored images; */
    tn_raw_image *raw_images; /* [slot_count], what is in the slots */
    int slot_count;
} tn_batch_buffer;

/* Zero-initialise before tn_batcher_open. Used by one thread at a time. */
typedef struct tn_batcher {
    const tn_dataset *dataset;
    tn_loader_config config;
    tn_image_format format;
    int count, batches; /* samples in the split, batches in an epoch */
    int *order;         /* [count] samples in the order of order_epoch, or of the data when not shuffled */
    int order_epoch;    /* -1: none yet */
    int *shards;        /* in the order of order_epoch; NULL when samples are shuffled as a whole */
    float *unmixed;     /* mixup: [batch][image] before mixing */
    int *partner;       /* mixup: [batch] */
    int *slot;          /* mixup: [batch] where in unmixed a row is */
    int *wanted;        /* mixup: [batch] samples in unmixed */
    int *labels;        /* mixup: [batch] of those */
    int *first_chunk;   /* [ranks + 1], when batches are shared */
    tn_row_decoder *decoder; /* of stored images; NULL for those in memory */
} tn_batcher;

/* Checks the configuration (TN_ERR_USAGE) and allocates. The data set must outlive the batcher. Call
 * tn_batcher_close also after a failure. */
tn_status tn_batcher_open(const tn_dataset *dataset, const tn_loader_config *config, tn_batcher *out);
void tn_batcher_close(tn_batcher *batcher);

/* Memory for a full batch; free with tn_batch_buffer_free, also after a failure. Zero-initialise before. */
tn_status tn_batch_buffer_alloc(const tn_batcher *batcher, tn_batch_buffer *out);
void tn_batch_buffer_free(tn_batch_buffer *buffer);

/* Rows of the largest share of a batch that this process gets. */
int tn_batcher_share_rows(const tn_batcher *batcher);

/* Makes batch `number`, in [0, batches), of `epoch` in `buffer`, or this process's share of it.
 *
 * With mixup (Zhang et al., ICLR 2018) the stream (seed, TN_RNG_MIXUP, epoch, number) gives lambda by
 * tn_rng_beta, then by tn_shuffle a permutation of the rows, the partners. With l = lambda rounded to float,
 * row i becomes l * image[i] + (1 - l) * image[partner[i]], the images being augmented and normalised;
 * targets likewise. Label smoothing comes last.
 *
 * Only stored images can fail: TN_ERR_IO, TN_ERR_DATA and TN_ERR_MEMORY name the sample; TN_ERR_STOPPED when
 * *cancelled became true. */
tn_status tn_batcher_make(tn_batcher *batcher, int epoch, int number, const atomic_bool *cancelled,
                          tn_batch_buffer *buffer);

#endif
