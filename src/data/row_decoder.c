#include "data/row_decoder.h"

#include <pthread.h>
#include <string.h>

#include "base/memory.h"
#include "data/view.h"

/* A thread's own. */
typedef struct worker {
    tn_image image;
    tn_resizer resizer;
} worker;

struct tn_row_decoder {
    const tn_dataset *dataset;
    const tn_samples *samples;
    const tn_image_format *format;
    tn_loader_config config;
    tn_pool *pool;
    worker *workers;
    bool *bad; /* [batch] of the rows in the making */
    /* The rows in the making. */
    int epoch;
    const int *wanted;
    const atomic_bool *cancelled;
    tn_row_target target;
    /* Samples left out; under the mutex. */
    pthread_mutex_t mutex;
    uint8_t *seen; /* a bit for each sample */
    int bad_count;
    char *messages[TN_BAD_MESSAGES_MAX];
};

static tn_status create_parts(tn_row_decoder *d, int count) {
    int threads = d->config.threads > 0 ? d->config.threads : tn_processor_count();
    TN_TRY(tn_alloc(&d->workers, (size_t)threads, sizeof *d->workers, "decoder threads"));
    TN_TRY(tn_alloc(&d->bad, (size_t)d->config.batch, sizeof *d->bad, "rows of a batch"));
    TN_TRY(tn_alloc(&d->seen, (size_t)count / 8 + 1, 1, "samples left out"));
    return tn_pool_create(threads, NULL, &d->pool);
}

tn_status tn_row_decoder_create(const tn_dataset *dataset, const tn_loader_config *config,
                                const tn_image_format *format, tn_row_decoder **out) {
    const tn_dataset_info *info = &dataset->info;
    tn_row_decoder *d;
    *out = NULL;
    TN_TRY(tn_alloc(&d, 1, sizeof *d, "decoder"));
    TN_ASSERT(pthread_mutex_init(&d->mutex, NULL) == 0);
    d->dataset = dataset;
    d->samples = &dataset->split[config->split];
    d->format = format;
    d->config = *config;
    tn_status status = create_parts(d, config->split == TN_SPLIT_TRAIN ? info->train_count : info->val_count);
    if (status == TN_OK)
        *out = d;
    else
        tn_row_decoder_free(d);
    return status;
}

void tn_row_decoder_free(tn_row_decoder *d) {
    if (!d) return;
    for (int i = 0; d->pool && i < tn_pool_threads(d->pool); i++) {
        tn_image_free(&d->workers[i].image);
        tn_resizer_free(&d->workers[i].resizer);
    }
    tn_pool_free(d->pool);
    for (int i = 0; i < TN_BAD_MESSAGES_MAX; i++) tn_free(d->messages[i]);
    tn_free(d->workers);
    tn_free(d->bad);
    tn_free(d->seen);
    pthread_mutex_destroy(&d->mutex);
    tn_free(d);
}

/* Decodes an image that is in memory and makes row `index` of the view of it. */
static tn_status decode(const tn_row_decoder *d, worker *w, int index, const tn_encoded *encoded) {
    int size = d->dataset->info.width;
    uint8_t *pixels;
    tn_pixels source;
    tn_resize how;
    TN_TRY(tn_image_open(&w->image, encoded->bytes, encoded->size));
    tn_view view = d->config.augment
                       ? tn_view_random(d->config.seed, d->epoch, d->wanted[index], w->image.width,
                                        w->image.height, size)
                       : tn_view_centre(w->image.width, w->image.height, d->dataset->resize, size);
    TN_TRY(tn_view_decode(&view, d->config.augment, &w->image, &source, &how));
    if (d->target.slots)
        return tn_raw_slot_fill(&d->target.slots[index], &source, &how, view.flip, &w->resizer);
    TN_TRY(tn_resizer_run(&w->resizer, &source, &how, &pixels));
    tn_augment_apply(d->format, pixels, (tn_augmentation){0, 0, view.flip},
                     d->target.images + (size_t)index * tn_dataset_image_size(&d->dataset->info));
    return TN_OK;
}

static tn_status load(const tn_row_decoder *d, worker *w, int index) {
    tn_encoded encoded;
    int sample = d->wanted[index];
    tn_status status = tn_image_store_load(&d->samples->store, sample, &encoded);
    if (status != TN_OK) return status;
    status = decode(d, w, index, &encoded);
    tn_free(encoded.owned);
    return status == TN_OK ? TN_OK : tn_image_store_fail(&d->samples->store, sample, status);
}

/* Counts a sample that is left out, and keeps the message. */
static tn_status note_bad(tn_row_decoder *d, int sample) {
    tn_status status = TN_OK;
    uint8_t bit = (uint8_t)(1 << (sample & 7));
    pthread_mutex_lock(&d->mutex);
    if (!(d->seen[sample >> 3] & bit)) {
        if (d->bad_count < TN_BAD_MESSAGES_MAX) status = tn_strdup(&d->messages[d->bad_count], tn_error());
        d->seen[sample >> 3] |= bit;
        d->bad_count++;
    }
    pthread_mutex_unlock(&d->mutex);
    return status;
}

static tn_status make_row(void *context, int index, int number) {
    tn_row_decoder *d = context;
    int sample = d->wanted[index];
    d->bad[index] = false;
    if (atomic_load(d->cancelled)) return tn_fail(TN_ERR_STOPPED, "the batch is not wanted any more");
    tn_status status = load(d, &d->workers[number], index);
    if (!d->config.skip_bad || (status != TN_ERR_DATA && status != TN_ERR_IO)) return status;
    d->bad[index] = true;
    return note_bad(d, sample);
}

static void move_row(const tn_row_decoder *d, int to, int from) {
    size_t size = tn_dataset_image_size(&d->dataset->info);
    if (d->target.slots) {
        tn_raw_slot other = d->target.slots[to];
        d->target.slots[to] = d->target.slots[from];
        d->target.slots[from] = other;
    } else {
        memcpy(d->target.images + (size_t)to * size, d->target.images + (size_t)from * size,
               size * sizeof *d->target.images);
    }
}

tn_status tn_row_decoder_run(tn_row_decoder *d, int epoch, const int *samples, int count,
                             const atomic_bool *cancelled, tn_row_target target, int *kept, int *rows) {
    d->epoch = epoch;
    d->wanted = samples;
    d->cancelled = cancelled;
    d->target = target;
    TN_TRY(tn_pool_run(d->pool, count, make_row, d));
    *rows = 0;
    for (int i = 0; i < count; i++) {
        if (d->bad[i]) continue;
        if (*rows < i) move_row(d, *rows, i);
        kept[(*rows)++] = samples[i];
    }
    return TN_OK;
}

int tn_row_decoder_bad_samples(tn_row_decoder *d) {
    pthread_mutex_lock(&d->mutex);
    int count = d->bad_count;
    pthread_mutex_unlock(&d->mutex);
    return count;
}

const char *tn_row_decoder_bad_sample(tn_row_decoder *d, int index) {
    pthread_mutex_lock(&d->mutex);
    const char *message =
        index >= 0 && index < TN_BAD_MESSAGES_MAX && index < d->bad_count ? d->messages[index] : NULL;
    pthread_mutex_unlock(&d->mutex);
    return message;
}
