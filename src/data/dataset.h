/* A data set in memory, and what its readers fill in. */
#ifndef TN_DATA_DATASET_H
#define TN_DATA_DATASET_H

#include <stdint.h>

#include "base/fail.h"
#include "data/image_store.h"
#include "taunet/data.h"

/* Longest side of an image, so that sizes of one image fit an int. */
#define TN_SIDE_MAX 4096

/* One split. Images are [count][height][width][channels] in uint8: rows of a crop are then contiguous both
 * here and in a batch. Or they are of any size, encoded, and in the store; the info's height and width are
 * then those of the views that batches are made of (data/view.h). */
typedef struct tn_samples {
    uint8_t *pixels; /* NULL: in the store */
    int *labels;     /* [count], in [0, classes) */
    tn_image_store store;
} tn_samples;

/* Freed by tn_dataset_close, however much of it a reader has filled in. */
struct tn_dataset {
    tn_dataset_info info;
    tn_samples split[2]; /* by tn_split; counts are in info */
    int resize;          /* stored images: what the short side becomes for evaluation */
};

/* Bytes of one image. */
size_t tn_dataset_image_size(const tn_dataset_info *info);

/* Allocates the pixels and labels of a split of `count` samples of the shape in dataset->info and sets its
 * count. TN_ERR_MEMORY also when that is more than the machine's memory, where an allocation would succeed
 * and the process would be killed later. `source` is for messages. */
tn_status tn_dataset_alloc_split(tn_dataset *dataset, tn_split split, int count, const char *source);

#endif
