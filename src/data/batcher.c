#include "data/batcher.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/simd.h"
#include "base/sum_tree.h"

static tn_status check_config(const tn_dataset_info *info, const tn_loader_config *config, int count,
                              bool stored) {
    const char *split = config->split == TN_SPLIT_TRAIN ? "training" : "validation";
    if (count == 0)
        return tn_fail(TN_ERR_USAGE, "%s: 0 images in the %s split; nothing can be loaded", info->name,
                       split);
    if (config->batch < 1) return tn_fail(TN_ERR_USAGE, "batch %d: must be at least 1", config->batch);
    if (config->batch > count)
        return tn_fail(TN_ERR_USAGE,
                       "batch %d is larger than the %s split of %s, which has %d images; use at most %d",
                       config->batch, split, info->name, count, count);
    if (config->ranks > 0 && (config->chunk_rows < 1 || config->rank < 0 || config->rank >= config->ranks))
        return tn_fail(TN_ERR_USAGE, "there is no share of rank %d of %d in chunks of %d", config->rank,
                       config->ranks, config->chunk_rows);
    if (config->ranks > 0 && config->skip_bad)
        return tn_fail(TN_ERR_USAGE,
                       "--on-bad-sample skip works in a single process: several could not agree on "
                       "the rows of a batch; use stop");
    if (config->limit_batches < 0)
        return tn_fail(TN_ERR_USAGE, "limit-batches %d: must be at least 1, or 0 for all",
                       config->limit_batches);
    if (!(config->mixup >= 0.0) || isinf(config->mixup))
        return tn_fail(TN_ERR_USAGE, "mixup %g: must be positive, or 0 for none", config->mixup);
    if (!(config->label_smoothing >= 0.0 && config->label_smoothing < 1.0))
        return tn_fail(TN_ERR_USAGE, "label-smoothing %g: must be at least 0 and below 1",
                       config->label_smoothing);
    if (config->skip_bad && !stored)
        return tn_fail(
            TN_ERR_USAGE,
            "--on-bad-sample skip has no effect on %s, which is checked when it is opened; leave it out",
            info->name);
    for (int c = 0; c < info->channels; c++) {
        if (config->mean && !isfinite(config->mean[c]))
            return tn_fail(TN_ERR_USAGE, "mean %g of channel %d: must be finite", (double)config->mean[c], c);
        if (config->std && !(config->std[c] > 0.0f && isfinite(config->std[c])))
            return tn_fail(TN_ERR_USAGE, "std %g of channel %d: must be positive", (double)config->std[c], c);
    }
    return TN_OK;
}

/* The order of samples; that of an epoch follows when its first batch is made. */
static tn_status open_order(tn_batcher *b, const tn_image_store *store) {
    b->order_epoch = -1;
    TN_TRY(tn_alloc(&b->order, (size_t)b->count, sizeof *b->order, "order of an epoch"));
    for (int i = 0; i < b->count; i++) b->order[i] = i;
    if (!b->config.shuffle || store->shard_count == 0) return TN_OK;
    return tn_alloc(&b->shards, (size_t)store->shard_count, sizeof *b->shards, "order of shards");
}

tn_status tn_batcher_open(const tn_dataset *dataset, const tn_loader_config *config, tn_batcher *out) {
    const tn_dataset_info *info = &dataset->info;
    const tn_samples *samples = &dataset->split[config->split];
    int count = config->split == TN_SPLIT_TRAIN ? info->train_count : info->val_count;
    TN_TRY(check_config(info, config, count, !samples->pixels));
    out->dataset = dataset;
    out->config = *config;
    out->config.mean = out->config.std = NULL; /* in the table from here on */
    out->count = count;
    out->batches = (count - 1) / config->batch + 1;
    if (config->limit_batches > 0 && config->limit_batches < out->batches)
        out->batches = config->limit_batches;
    out->format = (tn_image_format){.channels = info->channels,
                                    .height = info->height,
                                    .width = info->width,
                                    .padding = config->augment ? info->crop_padding : 0};
    tn_image_format_normalise(&out->format, config->mean ? config->mean : info->mean,
                              config->std ? config->std : info->std);
    TN_TRY(open_order(out, &samples->store));
    if (config->mixup > 0.0) {
        size_t pixels = config->raw ? 0 : (size_t)config->batch * tn_dataset_image_size(info);
        TN_TRY(tn_alloc(&out->unmixed, pixels, sizeof *out->unmixed, "images before mixup"));
        int **arrays[] = {&out->partner, &out->slot, &out->wanted, &out->labels};
        for (int i = 0; i < 4; i++)
            TN_TRY(tn_alloc(arrays[i], (size_t)config->batch, sizeof(int), "partners of mixup"));
    }
    if (config->ranks > 0)
        TN_TRY(tn_alloc(&out->first_chunk, (size_t)config->ranks + 1, sizeof(int), "share of a batch"));
    return samples->pixels ? TN_OK
                           : tn_row_decoder_create(dataset, &out->config, &out->format, &out->decoder);
}

void tn_batcher_close(tn_batcher *batcher) {
    tn_row_decoder_free(batcher->decoder);
    tn_free(batcher->order);
    tn_free(batcher->shards);
    tn_free(batcher->unmixed);
    tn_free(batcher->partner);
    tn_free(batcher->slot);
    tn_free(batcher->wanted);
    tn_free(batcher->labels);
    tn_free(batcher->first_chunk);
    *batcher = (tn_batcher){.order = NULL};
}

int tn_batcher_share_rows(const tn_batcher *batcher) {
    const tn_loader_config *c = &batcher->config;
    if (c->ranks == 0) return c->batch;
    int chunks = (c->batch + c->chunk_rows - 1) / c->chunk_rows;
    long rows = (long)((chunks + c->ranks - 1) / c->ranks) * c->chunk_rows;
    return rows < c->batch ? (int)rows : c->batch;
}

/* Memory for bytes in the place of images. */
static tn_status alloc_raw(const tn_batcher *b, size_t rows, tn_batch_buffer *out) {
    const tn_loader_config *c = &b->config;
    const bool mixed = c->mixup > 0.0;
    TN_TRY(tn_alloc(&out->order, (size_t)c->batch, sizeof *out->order, "rows of a batch"));
    if (mixed) TN_TRY(tn_alloc(&out->partner, rows, sizeof *out->partner, "partners of mixup"));
    out->batch.raw = &out->raw;
    out->raw = (tn_raw_batch){.table = b->format.table[0],
                              .pixels = b->dataset->split[c->split].pixels,
                              .draw = c->augment,
                              .may_flip = b->dataset->info.flip,
                              .padding = b->format.padding,
                              .seed = c->seed,
                              .partner = out->partner};
    if (!b->decoder) return TN_OK;
    out->slot_count = mixed ? c->batch : (int)rows;
    TN_TRY(tn_alloc(&out->slots, (size_t)out->slot_count, sizeof *out->slots, "images of a batch"));
    TN_TRY(tn_alloc(&out->raw_images, (size_t)out->slot_count, sizeof *out->raw_images, "images of a batch"));
    out->raw.images = out->raw_images;
    return TN_OK;
}

tn_status tn_batch_buffer_alloc(const tn_batcher *batcher, tn_batch_buffer *out) {
    const tn_dataset_info *info = &batcher->dataset->info;
    size_t rows = (size_t)tn_batcher_share_rows(batcher);
    TN_TRY(tn_alloc(&out->targets, rows * (size_t)info->classes, sizeof *out->targets, "targets of a batch"));
    TN_TRY(tn_alloc(&out->labels, rows, sizeof *out->labels, "labels of a batch"));
    out->batch = (tn_batch){.channels = info->channels,
                            .height = info->height,
                            .width = info->width,
                            .classes = info->classes,
                            .targets = out->targets,
                            .labels = out->labels};
    if (batcher->config.raw) return alloc_raw(batcher, rows, out);
    TN_TRY(
        tn_alloc(&out->images, rows * tn_dataset_image_size(info), sizeof *out->images, "images of a batch"));
    out->batch.images = out->images;
    return TN_OK;
}

void tn_batch_buffer_free(tn_batch_buffer *buffer) {
    for (int i = 0; buffer->slots && i < buffer->slot_count; i++) tn_raw_slot_free(&buffer->slots[i]);
    tn_free(buffer->slots);
    tn_free(buffer->raw_images);
    tn_free(buffer->order);
    tn_free(buffer->partner);
    tn_free(buffer->images);
    tn_free(buffer->targets);
    tn_free(buffer->labels);
    *buffer = (tn_batch_buffer){.images = NULL};
}

/* Augments images that are in memory. */
static void copy_rows(const tn_batcher *batcher, int epoch, const int *wanted, int count, float *images) {
    const tn_loader_config *config = &batcher->config;
    const tn_samples *samples = &batcher->dataset->split[config->split];
    size_t size = tn_dataset_image_size(&batcher->dataset->info);
    tn_augmentation how = {0, 0, false};
    for (int i = 0; i < count; i++) {
        if (config->augment)
            how = tn_augment_draw(config->seed, epoch, wanted[i], batcher->format.padding,
                                  batcher->dataset->info.flip);
        tn_augment_apply(&batcher->format, samples->pixels + (size_t)wanted[i] * size, how,
                         images + (size_t)i * size);
    }
}

/* Makes the images of samples wanted[count], as floats or bytes, and their labels; *rows is how many. Bytes
 * of images in memory are where they are. */
static tn_status load_rows(tn_batcher *batcher, int epoch, const int *wanted, int count,
                           const atomic_bool *cancelled, tn_row_target target, int *labels, int *rows) {
    const tn_samples *samples = &batcher->dataset->split[batcher->config.split];
    *rows = count;
    if (batcher->decoder) {
        TN_TRY(tn_row_decoder_run(batcher->decoder, epoch, wanted, count, cancelled, target, labels, rows));
        if (*rows == 0)
            return tn_fail(TN_ERR_DATA, "none of the %d images of a batch can be decoded; the first: %s",
                           count, tn_row_decoder_bad_sample(batcher->decoder, 0));
    } else {
        if (target.images) copy_rows(batcher, epoch, wanted, count, target.images);
        memcpy(labels, wanted, (size_t)count * sizeof *labels);
    }
    for (int i = 0; i < *rows; i++) labels[i] = samples->labels[labels[i]];
    return TN_OK;
}

/* The rounding of a * x + b * y must not depend on the machine: no fused multiply-add (see the Makefile). */
TN_SIMD static void mix(float *restrict out, const float *restrict x, const float *restrict y, float a,
                        float b, size_t count) {
    for (size_t i = 0; i < count; i++) out[i] = a * x[i] + b * y[i];
}

/* Rows of a batch: of the whole, and those of this process. */
typedef struct share {
    int rows, begin, end;
} share;

/* Loads what is mixed into the rows of the share, to places in `unmixed` that `slot` names. */
static tn_status load_unmixed(tn_batcher *b, int epoch, const int *samples, tn_rng *rng,
                              const atomic_bool *cancelled, tn_raw_slot *slots, share *rows) {
    tn_row_target target = {b->config.raw ? NULL : b->unmixed, slots};
    int count = 0, loaded;
    for (int i = 0; i < rows->rows; i++) b->slot[i] = b->partner[i] = i;
    if (b->config.ranks == 0) { /* rows that cannot be decoded are left out before partners are drawn */
        TN_TRY(load_rows(b, epoch, samples, rows->rows, cancelled, target, b->labels, &loaded));
        rows->rows = rows->end = loaded;
        tn_shuffle(rng, b->partner, loaded);
        return TN_OK;
    }
    tn_shuffle(rng, b->partner, rows->rows);
    for (int i = 0; i < rows->rows; i++) b->slot[i] = -1;
    for (int i = rows->begin; i < rows->end; i++) b->slot[i] = b->slot[b->partner[i]] = 0;
    for (int i = 0; i < rows->rows; i++) {
        if (b->slot[i] < 0) continue;
        b->wanted[count] = samples[i];
        b->slot[i] = count++;
    }
    if (count == 0) return TN_OK;
    return load_rows(b, epoch, b->wanted, count, cancelled, target, b->labels, &loaded);
}

static tn_status mix_rows(tn_batcher *batcher, int epoch, int number, const int *samples,
                          const atomic_bool *cancelled, tn_batch_buffer *buffer, share *rows) {
    size_t size = tn_dataset_image_size(&batcher->dataset->info), classes = (size_t)buffer->batch.classes;
    tn_rng rng = tn_rng_open(batcher->config.seed, TN_RNG_MIXUP, (uint32_t)epoch, (uint32_t)number);
    float own = (float)tn_rng_beta(&rng, batcher->config.mixup), other = 1.0f - own;
    TN_TRY(load_unmixed(batcher, epoch, samples, &rng, cancelled, buffer->slots, rows));
    for (int i = rows->begin; i < rows->end; i++) {
        size_t first = (size_t)batcher->slot[i], second = (size_t)batcher->slot[batcher->partner[i]],
               row = (size_t)(i - rows->begin);
        int label = batcher->labels[first], other_label = batcher->labels[second];
        if (buffer->images)
            mix(buffer->images + row * size, batcher->unmixed + first * size,
                batcher->unmixed + second * size, own, other, size);
        else
            buffer->partner[row] = batcher->partner[i];
        float *target = buffer->targets + row * classes;
        target[label] = own;
        target[other_label] += other;
        buffer->labels[row] = own < 0.5f ? other_label : label; /* the heavier counts */
    }
    buffer->raw.own = own;
    return TN_OK;
}

/* Which images the rows show: of all samples, or of those in slots. Partners are rows of the whole batch. */
static void describe_raw(const tn_batcher *b, int epoch, const int *samples, const share *rows,
                         tn_batch_buffer *buffer) {
    tn_raw_batch *raw = &buffer->raw;
    const bool mixed = b->config.mixup > 0.0;
    const int begin = mixed ? 0 : rows->begin;
    raw->epoch = epoch;
    raw->first = rows->begin - begin;
    raw->order_count = (mixed ? rows->rows : rows->end) - begin;
    raw->order = buffer->order;
    raw->count = b->decoder ? 0 : b->count;
    for (int i = 0; i < raw->order_count; i++) {
        buffer->order[i] = !b->decoder ? samples[begin + i] : mixed ? b->slot[i] : i;
        if (b->decoder && raw->count <= buffer->order[i]) raw->count = buffer->order[i] + 1;
    }
    for (int i = 0; i < buffer->slot_count && i < raw->count; i++)
        buffer->raw_images[i] = buffer->slots[i].image;
}

static void smooth(float *targets, size_t count, double amount, int classes) {
    float keep = (float)(1.0 - amount), spread = (float)(amount / classes);
    for (size_t i = 0; i < count; i++) targets[i] = keep * targets[i] + spread;
}

/* Lets the system read what the batch after the one that begins at `first` needs. */
static void advise_next(const tn_batcher *b, int first) {
    int next = first + b->config.batch, left = b->count - next;
    tn_image_store_advise(&b->dataset->split[b->config.split].store, b->order + next,
                          left < b->config.batch ? left : b->config.batch);
}

static tn_status order_epoch(tn_batcher *b, int epoch) {
    const tn_image_store *store = &b->dataset->split[b->config.split].store;
    if (!b->config.shuffle || b->order_epoch == epoch) return TN_OK;
    if (b->shards)
        TN_TRY(tn_shard_order(b->config.seed, epoch, store->shards, store->shard_count, b->count,
                              TN_SHUFFLE_BUFFER, b->shards, b->order));
    else
        tn_epoch_order(b->config.seed, epoch, b->count, b->order);
    b->order_epoch = epoch;
    return TN_OK;
}

/* This process's part of a batch of `rows`. */
static share find_share(tn_batcher *batcher, int rows) {
    const tn_loader_config *c = &batcher->config;
    if (c->ranks == 0) return (share){rows, 0, rows};
    tn_sum_deal((rows + c->chunk_rows - 1) / c->chunk_rows, c->ranks, batcher->first_chunk);
    long first = (long)batcher->first_chunk[c->rank] * c->chunk_rows,
         last = (long)batcher->first_chunk[c->rank + 1] * c->chunk_rows;
    return (share){rows, first < rows ? (int)first : rows, last < rows ? (int)last : rows};
}

tn_status tn_batcher_make(tn_batcher *batcher, int epoch, int number, const atomic_bool *cancelled,
                          tn_batch_buffer *buffer) {
    TN_ASSERT(epoch >= 0 && number >= 0 && number < batcher->batches);
    const tn_loader_config *config = &batcher->config;
    int first = number * config->batch, left = batcher->count - first, loaded = 0;
    size_t classes = (size_t)buffer->batch.classes;
    const int *samples = batcher->order + first;
    share rows = find_share(batcher, left < config->batch ? left : config->batch);
    TN_TRY(order_epoch(batcher, epoch));
    if (batcher->decoder && left > config->batch) advise_next(batcher, first);
    memset(buffer->targets, 0, (size_t)(rows.end - rows.begin) * classes * sizeof *buffer->targets);
    if (config->mixup > 0.0) {
        TN_TRY(mix_rows(batcher, epoch, number, samples, cancelled, buffer, &rows));
    } else if (rows.end > rows.begin) {
        tn_row_target target = {buffer->images, buffer->slots};
        TN_TRY(load_rows(batcher, epoch, samples + rows.begin, rows.end - rows.begin, cancelled, target,
                         buffer->labels, &loaded));
        rows.end = rows.begin + loaded;
        for (int i = 0; i < loaded; i++)
            buffer->targets[(size_t)i * classes + (size_t)buffer->labels[i]] = 1.0f;
    }
    buffer->batch.rows = rows.end - rows.begin;
    buffer->batch.first_row = rows.begin;
    buffer->batch.whole_rows = config->ranks > 0 ? rows.rows : 0;
    if (config->raw) describe_raw(batcher, epoch, samples, &rows, buffer);
    if (config->label_smoothing > 0.0)
        smooth(buffer->targets, (size_t)buffer->batch.rows * classes, config->label_smoothing,
               buffer->batch.classes);
    return TN_OK;
}
