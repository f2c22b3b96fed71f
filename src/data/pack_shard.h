/* One shard of a packed data set (taunet/data.h, tn_dataset_pack). */
#ifndef TN_DATA_PACK_SHARD_H
#define TN_DATA_PACK_SHARD_H

#include "data/image.h"
#include "data/image_store.h"
#include "taunet/data.h"

/* Memory of one thread. Zero-initialise; free with tn_packer_free. */
typedef struct tn_packer {
    tn_image image;
    tn_resizer resizer;
} tn_packer;

void tn_packer_free(tn_packer *packer);

/* Images that were left out; `message` is for the first. */
typedef struct tn_pack_losses {
    int count;
    char message[1024];
} tn_pack_losses;

/* Writes the shard at `path`, then its index with the shard's hash: samples[count] of the store, in this
 * order, as members NNNNNNNN.cls and NNNNNNNN.jpg (.png, .ppm), NNNNNNNN the sample's number. Both files
 * appear whole or not at all. *hash is the shard's XXH64. */
tn_status tn_pack_shard(tn_packer *packer, const tn_pack_config *config, const tn_image_store *store,
                        const int *labels, const int *samples, int count, const char *path,
                        tn_pack_losses *losses, uint64_t *hash);

#endif
