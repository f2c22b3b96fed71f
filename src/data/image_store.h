/* Encoded images of one split where they lie: files of a folder, read when they are wanted, or members of
 * tar shards, which are mapped into memory. Images may have any size and are decoded for each epoch anew. */
#ifndef TN_DATA_IMAGE_STORE_H
#define TN_DATA_IMAGE_STORE_H

#include <stddef.h>
#include <stdint.h>

#include "data/name_list.h"
#include "data/shard_index.h"

/* Most bytes of an encoded image: what the most pixels take undecoded, and some. */
#define TN_IMAGE_BYTES_MAX ((size_t)1 << 29)

typedef struct tn_shard {
    const uint8_t *bytes; /* mapped; a shard must not be cut short while it is in use */
    size_t size;
    int first; /* sample; the next shard's first is the end of this one's */
} tn_shard;

typedef struct tn_stored_image {
    uint64_t offset;
    uint32_t bytes, shard;
} tn_stored_image;

/* Zero-initialise; free with tn_image_store_free. Loading from it changes nothing, so that any number of
 * threads may do so. */
typedef struct tn_image_store {
    char *folder;       /* what names are relative to; NULL: the store is empty */
    tn_name_list names; /* of files, [samples], or of shards, [shard_count] */
    int shard_count;    /* 0: files */
    tn_shard *shards;   /* [shard_count] */
    tn_stored_image *images;
} tn_image_store;

void tn_image_store_free(tn_image_store *store);

/* Maps the shards named so far (store->names, which are in their order) and reads or makes their indices; the
 * labels of all samples go to *labels (tn_free) and their number to *count. An index that is missing or out
 * of date is made and written beside its shard; where the folder does not allow that, it is made each time.
 * TN_ERR_IO, TN_ERR_DATA, TN_ERR_MEMORY. */
tn_status tn_image_store_open_shards(tn_image_store *store, int **labels, int *count);

/* The bytes of one encoded image. `owned` is NULL where they are mapped; free it with tn_free. */
typedef struct tn_encoded {
    const uint8_t *bytes;
    size_t size;
    uint8_t *owned;
} tn_encoded;

tn_status tn_image_store_load(const tn_image_store *store, int sample, tn_encoded *out);

/* Says that these samples of shards will be wanted soon, so that the system reads them meanwhile. */
void tn_image_store_advise(const tn_image_store *store, const int *samples, int count);

/* Puts the place of a sample in front of the message of a failure, and returns `status`. */
tn_status tn_image_store_fail(const tn_image_store *store, int sample, tn_status status);

#endif
