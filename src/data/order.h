/* The order in which an epoch goes through the samples: a pure function of seed and epoch. */
#ifndef TN_DATA_ORDER_H
#define TN_DATA_ORDER_H

#include "base/philox.h"
#include "data/image_store.h"

/* Samples of a WebDataset that are waiting to be drawn while an epoch goes through its shards. */
#define TN_SHUFFLE_BUFFER 16384

/* Fisher and Yates: for i = count-1 .. 1, element i is swapped with element tn_rng_below(i + 1). */
void tn_shuffle(tn_rng *rng, int *values, int count);

/* Order of the samples in an epoch: 0 .. count-1 permuted by tn_shuffle with the stream
 * (seed, TN_RNG_SHUFFLE, epoch, 0). */
void tn_epoch_order(uint64_t seed, int epoch, int count, int *order);

/* The same for samples in shards, of which few are far apart in the same shards at any time. With the stream
 * (seed, TN_RNG_SHUFFLE, epoch, 0): the shards are permuted by tn_shuffle; their samples, shard after shard,
 * pass through a buffer of `buffer` places (all samples, if there are fewer): as long as samples are left,
 * place tn_rng_below(places) is emptied into the order and filled with the next sample; then tn_shuffle
 * permutes what is left in the buffer. `sequence` [shard_count] receives the permuted shards. */
tn_status tn_shard_order(uint64_t seed, int epoch, const tn_shard *shards, int shard_count, int count,
                         int buffer, int *sequence, int *order);

#endif
