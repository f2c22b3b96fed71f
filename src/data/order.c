#include "data/order.h"

#include <string.h>

#include "base/memory.h"

void tn_shuffle(tn_rng *rng, int *values, int count) {
    for (int i = count - 1; i > 0; i--) {
        int j = (int)tn_rng_below(rng, (uint32_t)i + 1);
        int swapped = values[i];
        values[i] = values[j];
        values[j] = swapped;
    }
}

void tn_epoch_order(uint64_t seed, int epoch, int count, int *order) {
    tn_rng rng = tn_rng_open(seed, TN_RNG_SHUFFLE, (uint32_t)epoch, 0);
    for (int i = 0; i < count; i++) order[i] = i;
    tn_shuffle(&rng, order, count);
}

tn_status tn_shard_order(uint64_t seed, int epoch, const tn_shard *shards, int shard_count, int count,
                         int buffer, int *sequence, int *order) {
    tn_rng rng = tn_rng_open(seed, TN_RNG_SHUFFLE, (uint32_t)epoch, 0);
    int *waiting, places = buffer < count ? buffer : count, filled = 0, done = 0;
    TN_TRY(tn_alloc(&waiting, (size_t)places, sizeof *waiting, "shuffle buffer"));
    for (int s = 0; s < shard_count; s++) sequence[s] = s;
    tn_shuffle(&rng, sequence, shard_count);
    for (int s = 0; s < shard_count; s++) {
        int shard = sequence[s], end = shard + 1 < shard_count ? shards[shard + 1].first : count;
        for (int sample = shards[shard].first; sample < end; sample++) {
            if (filled < places) {
                waiting[filled++] = sample;
                continue;
            }
            int place = (int)tn_rng_below(&rng, (uint32_t)places);
            order[done++] = waiting[place];
            waiting[place] = sample;
        }
    }
    tn_shuffle(&rng, waiting, filled);
    memcpy(order + done, waiting, (size_t)filled * sizeof *order);
    tn_free(waiting);
    return TN_OK;
}
