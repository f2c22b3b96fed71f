/* The ring between the producer thread and the consumer.
 *
 * Slots are used in order. `ready` slots from `head` on hold batches not yet delivered; the slot before
 * `head` is the consumer's while `held`. The producer fills the slot behind the ready ones without the lock,
 * which is safe because only it adds slots and a seek only takes them away: a batch begun before a seek is
 * dropped by its generation. */
#include "taunet/data.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "data/batcher.h"

#define RING 4

struct tn_loader {
    tn_batcher batcher;
    tn_batch_buffer ring[RING];
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex;
    pthread_cond_t to_producer, to_consumer;
    /* Under the mutex from here on. */
    int head, ready;
    bool held, stop;
    int epoch, batch;      /* next to produce */
    atomic_bool cancelled; /* the batch in the making is not wanted; also read without the mutex */
    unsigned generation;   /* counts seeks */
    tn_status status; /* the producer's failure, delivered after the ready batches, until the next seek */
    char message[1024];
};

static void note_failure(tn_loader *loader, tn_status status) {
    loader->status = status;
    snprintf(loader->message, sizeof loader->message, "%s", tn_error());
}

/* Moves the position behind the batch just made; after the last batch of the last epoch that can be counted
 * there is nothing left to make. */
static void advance(tn_loader *loader) {
    loader->batch++;
    if (loader->batch < loader->batcher.batches) return;
    if (loader->epoch == INT_MAX) {
        note_failure(
            loader,
            tn_fail(TN_ERR_USAGE, "epoch %d is the last that can be counted; train fewer epochs", INT_MAX));
        return;
    }
    loader->batch = 0;
    loader->epoch++;
}

static bool may_produce(const tn_loader *loader) {
    return loader->status == TN_OK && loader->ready + (loader->held ? 1 : 0) < RING;
}

static void *produce(void *argument) {
    tn_loader *loader = argument;
    pthread_mutex_lock(&loader->mutex);
    for (;;) {
        while (!loader->stop && !may_produce(loader)) pthread_cond_wait(&loader->to_producer, &loader->mutex);
        if (loader->stop) break;
        int slot = (loader->head + loader->ready) % RING, epoch = loader->epoch, batch = loader->batch;
        unsigned generation = loader->generation;
        atomic_store(&loader->cancelled, false);
        pthread_mutex_unlock(&loader->mutex);
        tn_status status =
            tn_batcher_make(&loader->batcher, epoch, batch, &loader->cancelled, &loader->ring[slot]);
        pthread_mutex_lock(&loader->mutex);
        if (loader->stop || generation != loader->generation) continue;
        if (status == TN_OK) {
            loader->ready++;
            advance(loader);
        } else {
            note_failure(loader, status);
        }
        pthread_cond_signal(&loader->to_consumer);
    }
    pthread_mutex_unlock(&loader->mutex);
    return NULL;
}

/* Signals are the business of the program's own threads. */
static tn_status start_thread(tn_loader *loader) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&loader->thread, NULL, produce, loader);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return tn_fail(TN_ERR_MEMORY,
                       "cannot start the loader's thread: %s; allow more threads or memory (ulimit -u, -v)",
                       strerror(error));
    loader->started = true;
    return TN_OK;
}

static tn_status open_parts(tn_loader *loader, const tn_dataset *dataset, const tn_loader_config *config) {
    TN_TRY(tn_batcher_open(dataset, config, &loader->batcher));
    for (int i = 0; i < RING; i++) TN_TRY(tn_batch_buffer_alloc(&loader->batcher, &loader->ring[i]));
    return start_thread(loader);
}

tn_status tn_loader_open(const tn_dataset *dataset, const tn_loader_config *config, tn_loader **out) {
    tn_loader *loader;
    *out = NULL;
    TN_TRY(tn_alloc(&loader, 1, sizeof *loader, "loader"));
    TN_ASSERT(pthread_mutex_init(&loader->mutex, NULL) == 0);
    TN_ASSERT(pthread_cond_init(&loader->to_producer, NULL) == 0);
    TN_ASSERT(pthread_cond_init(&loader->to_consumer, NULL) == 0);
    tn_status status = open_parts(loader, dataset, config);
    if (status != TN_OK) {
        tn_loader_close(loader);
        return status;
    }
    *out = loader;
    return TN_OK;
}

void tn_loader_close(tn_loader *loader) {
    if (!loader) return;
    if (loader->started) {
        pthread_mutex_lock(&loader->mutex);
        loader->stop = true;
        atomic_store(&loader->cancelled, true);
        pthread_cond_signal(&loader->to_producer);
        pthread_mutex_unlock(&loader->mutex);
        TN_ASSERT(pthread_join(loader->thread, NULL) == 0);
    }
    pthread_cond_destroy(&loader->to_consumer);
    pthread_cond_destroy(&loader->to_producer);
    pthread_mutex_destroy(&loader->mutex);
    for (int i = 0; i < RING; i++) tn_batch_buffer_free(&loader->ring[i]);
    tn_batcher_close(&loader->batcher);
    tn_free(loader);
}

int tn_loader_batches(const tn_loader *loader) {
    return loader->batcher.batches;
}

tn_status tn_loader_seek(tn_loader *loader, int epoch, int batch) {
    int batches = loader->batcher.batches;
    if (epoch < 0 || batch < 0 || batch >= batches)
        return tn_fail(TN_ERR_USAGE, "there is no batch %d in epoch %d: an epoch has batches 0..%d", batch,
                       epoch, batches - 1);
    pthread_mutex_lock(&loader->mutex);
    loader->generation++;
    atomic_store(&loader->cancelled, true);
    loader->ready = 0;
    loader->held = false;
    loader->epoch = epoch;
    loader->batch = batch;
    loader->status = TN_OK;
    pthread_cond_signal(&loader->to_producer);
    pthread_mutex_unlock(&loader->mutex);
    return TN_OK;
}

tn_status tn_loader_next(tn_loader *loader, const tn_batch **out, double *waited) {
    tn_status status = TN_OK;
    *out = NULL;
    pthread_mutex_lock(&loader->mutex);
    loader->held = false;
    pthread_cond_signal(&loader->to_producer);
    if (loader->ready == 0 && loader->status == TN_OK) {
        double begin = tn_now();
        while (loader->ready == 0 && loader->status == TN_OK)
            pthread_cond_wait(&loader->to_consumer, &loader->mutex);
        if (waited) *waited += tn_now() - begin;
    }
    if (loader->ready > 0) {
        *out = &loader->ring[loader->head].batch;
        loader->head = (loader->head + 1) % RING;
        loader->ready--;
        loader->held = true;
    } else {
        status = tn_fail(loader->status, "%s", loader->message);
    }
    pthread_mutex_unlock(&loader->mutex);
    return status;
}

int tn_loader_bad_samples(tn_loader *loader) {
    return loader->batcher.decoder ? tn_row_decoder_bad_samples(loader->batcher.decoder) : 0;
}

const char *tn_loader_bad_sample(tn_loader *loader, int index) {
    return loader->batcher.decoder ? tn_row_decoder_bad_sample(loader->batcher.decoder, index) : NULL;
}
