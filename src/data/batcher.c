#include "data/batcher.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/simd.h"
#include "base/sum_tree.h"

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

static tn_status check_config(const tn_dataset_info *info, const tn_loader_config *config, int count) {
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
    if (config->limit_batches < 0)
        return tn_fail(TN_ERR_USAGE, "limit-batches %d: must be at least 1, or 0 for all",
                       config->limit_batches);
    if (!(config->mixup >= 0.0) || isinf(config->mixup))
        return tn_fail(TN_ERR_USAGE, "mixup %g: must be positive, or 0 for none", config->mixup);
    if (!(config->label_smoothing >= 0.0 && config->label_smoothing < 1.0))
        return tn_fail(TN_ERR_USAGE, "label-smoothing %g: must be at least 0 and below 1",
                       config->label_smoothing);
    for (int c = 0; c < info->channels; c++) {
        if (config->mean && !isfinite(config->mean[c]))
            return tn_fail(TN_ERR_USAGE, "mean %g of channel %d: must be finite", (double)config->mean[c], c);
        if (config->std && !(config->std[c] > 0.0f && isfinite(config->std[c])))
            return tn_fail(TN_ERR_USAGE, "std %g of channel %d: must be positive", (double)config->std[c], c);
    }
    return TN_OK;
}

tn_status tn_batcher_open(const tn_dataset *dataset, const tn_loader_config *config, tn_batcher *out) {
    const tn_dataset_info *info = &dataset->info;
    int count = config->split == TN_SPLIT_TRAIN ? info->train_count : info->val_count;
    TN_TRY(check_config(info, config, count));
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
    out->order_epoch = -1;
    if (config->shuffle)
        TN_TRY(tn_alloc(&out->order, (size_t)count, sizeof *out->order, "order of an epoch"));
    if (config->mixup > 0.0) {
        size_t pixels = (size_t)config->batch * tn_dataset_image_size(info);
        TN_TRY(tn_alloc(&out->unmixed, pixels, sizeof *out->unmixed, "images before mixup"));
        TN_TRY(tn_alloc(&out->partner, (size_t)config->batch, sizeof *out->partner, "partners of mixup"));
        TN_TRY(tn_alloc(&out->labels, (size_t)config->batch, sizeof *out->labels, "labels before mixup"));
        TN_TRY(tn_alloc(&out->needed, (size_t)config->batch, sizeof *out->needed, "partners of mixup"));
    }
    if (config->ranks > 0)
        TN_TRY(tn_alloc(&out->first_chunk, (size_t)config->ranks + 1, sizeof(int), "share of a batch"));
    return TN_OK;
}

void tn_batcher_close(tn_batcher *batcher) {
    tn_free(batcher->order);
    tn_free(batcher->unmixed);
    tn_free(batcher->partner);
    tn_free(batcher->labels);
    tn_free(batcher->needed);
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

tn_status tn_batch_buffer_alloc(const tn_batcher *batcher, tn_batch_buffer *out) {
    const tn_dataset_info *info = &batcher->dataset->info;
    size_t rows = (size_t)tn_batcher_share_rows(batcher);
    TN_TRY(
        tn_alloc(&out->images, rows * tn_dataset_image_size(info), sizeof *out->images, "images of a batch"));
    TN_TRY(tn_alloc(&out->targets, rows * (size_t)info->classes, sizeof *out->targets, "targets of a batch"));
    TN_TRY(tn_alloc(&out->labels, rows, sizeof *out->labels, "labels of a batch"));
    out->batch = (tn_batch){.channels = info->channels,
                            .height = info->height,
                            .width = info->width,
                            .classes = info->classes,
                            .images = out->images,
                            .targets = out->targets,
                            .labels = out->labels};
    return TN_OK;
}

void tn_batch_buffer_free(tn_batch_buffer *buffer) {
    tn_free(buffer->images);
    tn_free(buffer->targets);
    tn_free(buffer->labels);
    *buffer = (tn_batch_buffer){.images = NULL};
}

/* Writes the augmented images of samples first, first + 1, ... of the epoch, and their labels; only those
 * that are `needed` (NULL: all). */
static void load_rows(tn_batcher *batcher, int epoch, int first, int rows, const bool *needed, float *images,
                      int *labels) {
    const tn_loader_config *config = &batcher->config;
    const tn_samples *samples = &batcher->dataset->split[config->split];
    size_t size = tn_dataset_image_size(&batcher->dataset->info);
    tn_augmentation how = {0, 0, false};
    for (int i = 0; i < rows; i++) {
        int sample = batcher->order ? batcher->order[first + i] : first + i;
        if (needed && !needed[i]) continue;
        if (config->augment)
            how = tn_augment_draw(config->seed, epoch, sample, batcher->format.padding,
                                  batcher->dataset->info.flip);
        tn_augment_apply(&batcher->format, samples->pixels + (size_t)sample * size, how,
                         images + (size_t)i * size);
        labels[i] = samples->labels[sample];
    }
}

/* The rounding of a * x + b * y must not depend on the machine: no fused multiply-add (see the Makefile). */
TN_SIMD static void mix(float *restrict out, const float *restrict x, const float *restrict y, float a,
                        float b, size_t count) {
    for (size_t i = 0; i < count; i++) out[i] = a * x[i] + b * y[i];
}

/* Loads the rows that are mixed into rows begin .. end - 1 of a batch of `rows`, and mixes them. */
static void mix_rows(tn_batcher *batcher, int epoch, int number, int rows, int begin, int end,
                     tn_batch_buffer *buffer) {
    size_t size = tn_dataset_image_size(&batcher->dataset->info), classes = (size_t)buffer->batch.classes;
    tn_rng rng = tn_rng_open(batcher->config.seed, TN_RNG_MIXUP, (uint32_t)epoch, (uint32_t)number);
    float own = (float)tn_rng_beta(&rng, batcher->config.mixup), other = 1.0f - own;
    const float *images = batcher->unmixed;
    int *partner = batcher->partner;
    for (int i = 0; i < rows; i++) partner[i] = i;
    tn_shuffle(&rng, partner, rows);
    memset(batcher->needed, 0, (size_t)rows * sizeof *batcher->needed);
    for (int i = begin; i < end; i++) batcher->needed[i] = batcher->needed[partner[i]] = true;
    load_rows(batcher, epoch, number * batcher->config.batch, rows, batcher->needed, batcher->unmixed,
              batcher->labels);
    for (int i = begin; i < end; i++) {
        int label = batcher->labels[i], second = batcher->labels[partner[i]];
        mix(buffer->images + (size_t)(i - begin) * size, images + (size_t)i * size,
            images + (size_t)partner[i] * size, own, other, size);
        float *target = buffer->targets + (size_t)(i - begin) * classes;
        target[label] = own;
        target[second] += other;
        buffer->labels[i - begin] = own < 0.5f ? second : label; /* the heavier counts */
    }
}

static void smooth(float *targets, size_t count, double amount, int classes) {
    float keep = (float)(1.0 - amount), spread = (float)(amount / classes);
    for (size_t i = 0; i < count; i++) targets[i] = keep * targets[i] + spread;
}

/* The rows of a batch of `rows` that are this process's: *begin .. *end - 1. */
static void find_share(tn_batcher *batcher, int rows, int *begin, int *end) {
    const tn_loader_config *c = &batcher->config;
    *begin = 0;
    *end = rows;
    if (c->ranks == 0) return;
    tn_sum_deal((rows + c->chunk_rows - 1) / c->chunk_rows, c->ranks, batcher->first_chunk);
    long first = (long)batcher->first_chunk[c->rank] * c->chunk_rows,
         last = (long)batcher->first_chunk[c->rank + 1] * c->chunk_rows;
    *begin = first < rows ? (int)first : rows;
    *end = last < rows ? (int)last : rows;
}

void tn_batcher_make(tn_batcher *batcher, int epoch, int number, tn_batch_buffer *buffer) {
    TN_ASSERT(epoch >= 0 && number >= 0 && number < batcher->batches);
    const tn_loader_config *config = &batcher->config;
    int first = number * config->batch, left = batcher->count - first, begin, end;
    int rows = left < config->batch ? left : config->batch;
    find_share(batcher, rows, &begin, &end);
    size_t classes = (size_t)buffer->batch.classes, own = (size_t)(end - begin);
    if (batcher->order && batcher->order_epoch != epoch) {
        tn_epoch_order(config->seed, epoch, batcher->count, batcher->order);
        batcher->order_epoch = epoch;
    }
    buffer->batch.rows = end - begin;
    buffer->batch.first_row = begin;
    buffer->batch.whole_rows = config->ranks > 0 ? rows : 0;
    memset(buffer->targets, 0, own * classes * sizeof *buffer->targets);
    if (config->mixup > 0.0) {
        mix_rows(batcher, epoch, number, rows, begin, end, buffer);
    } else {
        load_rows(batcher, epoch, first + begin, end - begin, NULL, buffer->images, buffer->labels);
        for (size_t i = 0; i < own; i++) buffer->targets[i * classes + (size_t)buffer->labels[i]] = 1.0f;
    }
    if (config->label_smoothing > 0.0)
        smooth(buffer->targets, own * classes, config->label_smoothing, buffer->batch.classes);
}
