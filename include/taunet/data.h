/* Data sets and the loader that turns them into batches.
 *
 * Everything random is a pure function of (seed, epoch, sample): order, crops, flips and mixup do not depend
 * on the number of threads or on where a run was resumed. */
#ifndef TAUNET_DATA_H
#define TAUNET_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "taunet/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* An image of any size on its way into a batch, for a device that resizes it (src/data/resize.h). `bytes`
 * holds int32 [height][2 + taps[0]]  for each row of the batch's image the first row of the source that it is
 * made of, the number of rows, and their weights in units of 2^-22, int32 [width][2 + taps[1]]   the same for
 * columns, uint8 [from_height][from_width][3]  the source. */
typedef struct tn_raw_image {
    const void *bytes;
    size_t size;
    int from_height, from_width, taps[2];
    bool flip; /* then mirrored from left to right */
} tn_raw_image;

/* The images of a batch as bytes, for an engine that makes them on its device: bit for bit those that
 * tn_batch.images would hold. Row i shows image order[first + i], mixed, where there are partners, with image
 * order[partner[i]]: own * this + (1 - own) * that. */
typedef struct tn_raw_batch {
    const float *table; /* [channels][256]: the normalised value of each byte, a finite number */
    /* All images of the split [count][height][width][channels], as they were given to tn_engine_hold_images,
     * and how each is augmented (src/data/augment.h); or NULL, and `count` images that are resized. */
    const uint8_t *pixels;
    bool draw, may_flip;
    int padding, epoch;
    uint64_t seed;
    const tn_raw_image *images;
    int count;
    const int *order; /* [order_count]; NULL: as they are */
    int order_count, first;
    const int *partner; /* [rows]; NULL: nothing is mixed */
    float own;
} tn_raw_batch;

/* What an engine consumes. All arrays belong to whoever made the batch. */
typedef struct tn_batch {
    int rows, channels, height, width, classes;
    const float *images;     /* [rows][height][width][channels], normalised */
    const tn_raw_batch *raw; /* in the place of images, which are NULL then */
    const float *targets;    /* [rows][classes]; for classification a distribution per row */
    const int *labels;    /* [rows], the class counted for top-1 and top-5; with mixup the heavier of the two.
                           * NULL: nothing is counted */
    const float *weights; /* [rows], of each row in the loss that is differentiated; NULL means 1 / rows */
    /* A share of a batch that several processes work on: its place, in rows, and the rows of the whole, which
     * then stand in "1 / rows". 0 and 0: these rows are the whole batch. A share may have no rows. */
    int first_row, whole_rows;
} tn_batch;

typedef enum tn_split { TN_SPLIT_TRAIN, TN_SPLIT_VAL } tn_split;

typedef struct tn_dataset tn_dataset;

#define TN_CHANNELS_MAX 16

typedef struct tn_dataset_info {
    const char
        *name; /* "cifar10", "cifar100", "mnist", "fashion-mnist", "folder", "webdataset", "synthetic" */
    int channels, height, width, classes;
    int train_count, val_count;
    float mean[TN_CHANNELS_MAX], std[TN_CHANNELS_MAX]; /* of pixel / 255, models.md 1.4 */
    int crop_padding; /* zero pixels around an image before the random crop: 4 for CIFAR, 2 for MNIST, an
                       * eighth of the shorter side for synthetic images, 0 for images of any size */
    bool flip;        /* horizontal flips are part of the standard augmentation */
} tn_dataset_info;

/* Opens a data set from its specification. The first four kinds are read into memory, one byte a pixel and
 * channel:
 *   "cifar10:DIR"   data_batch_1.bin .. data_batch_5.bin (or the first of them alone) and test_batch.bin
 *   "cifar100:DIR"  train.bin and test.bin; the labels are the 100 fine ones
 *   "mnist:DIR"     the four IDX files of MNIST or Fashion-MNIST, each plain or .gz; the mean of the training
 *                   pixels tells which of the two it is
 *   "synthetic:CxHxW:CLASSES:COUNT"
 *                   made-up images that are easy to learn, COUNT of them for training and COUNT others for
 *                   validation; an image depends on nothing but its shape, class and number
 * Of the other two, JPEG, PNG and PPM images of any size, only names or an index are read now; the images are
 * decoded when a batch needs them. Training sees a random part of each at image_size x image_size, and its
 * mirror image; evaluation resizes the short side to `resize` and takes the centre (src/data/view.h):
 *   "folder:DIR"      DIR/train and DIR/val, one folder a class (src/data/image_folder.h)
 *   "webdataset:DIR"  tar shards of images and classes (src/data/image_folder.h, shard_index.h)
 *
 * All of it is checked: sizes, magic numbers, labels in range. TN_ERR_USAGE for a specification that does not
 * parse, TN_ERR_IO for a file that cannot be read, TN_ERR_DATA for one that is damaged (the message names the
 * file and the record), TN_ERR_MEMORY. Close with tn_dataset_close after the last loader is closed; closing
 * NULL does nothing. */
tn_status tn_dataset_open(const char *spec, tn_dataset **out);

/* The same with the sizes of folder and webdataset; 0 stands for the default, 224 and 8/7 of image_size
 * (256). TN_ERR_USAGE also for sizes given to another kind, and for resize < image_size. */
tn_status tn_dataset_open_sized(const char *spec, int image_size, int resize, tn_dataset **out);

/* Whether the specification is of a kind that has these sizes. */
bool tn_dataset_is_sized(const char *spec);

void tn_dataset_close(tn_dataset *dataset);

/* The images of a split that are in memory, [count][height][width][channels], valid until the data set is
 * closed, and their bytes; NULL for folder and webdataset. */
const uint8_t *tn_dataset_pixels(const tn_dataset *dataset, tn_split split, size_t *bytes);

tn_dataset_info tn_dataset_describe(const tn_dataset *dataset);

/* Zero-initialise, then set. Each random choice is drawn from its own stream of the seed (src/data/augment.h
 * and batcher.h give the draws): the order from the epoch, crop and flip from epoch and sample, mixup from
 * epoch and batch. */
typedef struct tn_loader_config {
    tn_split split;
    int batch; /* rows of a full batch; the last batch of an epoch may be smaller and is kept */
    uint64_t seed;
    bool shuffle, augment;  /* for training; leave false for validation */
    double mixup;           /* alpha of Beta(alpha, alpha), one draw a batch; 0 = off */
    double label_smoothing; /* e: targets become (1 - e) * target + e / classes, after mixup */
    int limit_batches;      /* at most so many batches an epoch; 0 = all */
    /* Of each batch only the share of process `rank` of `ranks`, dealt in chunks of so many rows (as
     * tn_engine_chunk_rows says); 0 ranks: all of it. What is random stays that of the whole batch. */
    int chunk_rows, rank, ranks;
    const float *mean, *std; /* [channels] in place of the data set's, or NULL; copied */
    int threads;             /* that decode images; 0 = one a processor. Images in memory need none */
    bool raw;                /* batches have bytes in the place of images: tn_batch.raw */
    bool skip_bad; /* images that cannot be read or decoded are left out of their batch, and counted,
                    * in place of being the loader's failure */
} tn_loader_config;

typedef struct tn_loader tn_loader;

/* Opens a loader with one prefetching thread (and, for folder and webdataset, a pool that decodes the images
 * of a batch) that keeps three batches ready, from epoch 0, batch 0 on. The order of a webdataset's training
 * samples is src/data/order.h's; everything else is shuffled as a whole. Any
 * number of loaders may share a data set; they do not own it. TN_ERR_USAGE when the batch is larger than
 * the split or a value of the configuration is out of range; TN_ERR_MEMORY also when the thread cannot be
 * started. A loader is for one thread at a time. It may be closed at any moment; closing NULL does nothing.
 */
tn_status tn_loader_open(const tn_dataset *dataset, const tn_loader_config *config, tn_loader **out);
void tn_loader_close(tn_loader *loader);

/* Batches in one epoch. */
int tn_loader_batches(const tn_loader *loader);

/* Makes `batch` (0 .. tn_loader_batches - 1) of `epoch` (>= 0) the next batch to be delivered; TN_ERR_USAGE,
 * and no change, for others. The batch in the caller's hands becomes invalid. */
tn_status tn_loader_seek(tn_loader *loader, int epoch, int batch);

/* Delivers the next batch, valid until the next call on this loader; after the last batch of an epoch the
 * first of the next epoch follows. With skip_bad a batch may have fewer rows; none at all is a failure. Adds
 * the seconds spent waiting to *waited when not NULL. On failure *out is NULL, and the same failure is
 * returned until the next seek. */
tn_status tn_loader_next(tn_loader *loader, const tn_batch **out, double *waited);

/* Samples that skip_bad has left out so far, each counted once however often it came up; batches that are
 * still in the making may have added some. */
int tn_loader_bad_samples(tn_loader *loader);

/* What was wrong with the index-th of them, naming it; NULL beyond the last and beyond the first 1000. Valid
 * until the loader is closed. */
const char *tn_loader_bad_sample(tn_loader *loader, int index);

/* How tn_dataset_pack makes shards. Zero-initialise, then set. */
typedef struct tn_pack_config {
    const char *from; /* what "folder:" names */
    const char *to;   /* an existing folder, empty or with an unfinished packing of the same images */
    int samples_per_shard;
    int resize; /* images with a longer short side are resized to this one, and encoded again; 0: none are */
    bool decoded;  /* store pixels (PPM) in place of JPEG and PNG: larger, but nothing is left to decode */
    int quality;   /* of images that are encoded again, 1 to 100 */
    int threads;   /* 0 = one a processor */
    bool skip_bad; /* leave out images that cannot be decoded, in place of failing */
    void (*progress)(void *context, int done, int shards); /* after each shard, one at a time; may be NULL */
    void *context;
} tn_pack_config;

typedef struct tn_pack_result {
    int samples, shards, reused; /* reused: shards that were there already */
    int bad_samples;
    char bad_sample[1024]; /* what was wrong with one of them */
} tn_pack_result;

/* Packs an image folder into a WebDataset for "webdataset:TO": shards train-000000.tar, ... and
 * val-000000.tar,
 * ..., each with its index, classes.txt, checksums.xxh64 (for `xxhsum -c`) and pack.txt, which says how they
 * were made. The samples of a split are permuted once, so that a shard has images of all classes; apart from
 * that the shards depend on nothing but the images and the configuration, on no thread and no clock. All
 * images are decoded, so damaged ones are found. A packing that failed or was killed goes on when it is
 * called again. TN_ERR_USAGE also for a folder with another packing; TN_ERR_IO; TN_ERR_DATA names the image;
 * TN_ERR_MEMORY. */
tn_status tn_dataset_pack(const tn_pack_config *config, tn_pack_result *result);

#ifdef __cplusplus
}
#endif
#endif
