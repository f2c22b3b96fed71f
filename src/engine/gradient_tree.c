#include "engine/gradient_tree.h"

#include <pthread.h>
#include <string.h>

#include "base/memory.h"

#define LEVELS 30

struct tn_gradient_tree {
    tn_backend *backend;
    pthread_mutex_t mutex;
    size_t floats, bounds[TN_BUCKETS_MAX + 1];
    int buckets;
    int buffer_count, free_count, max_chunks, chunks;
    float **buffers, **free_buffers;
    /* By parent position, in LEVELS rows; row l starts at parked_row[l]. */
    float *(*parked)[TN_BUCKETS_MAX]; /* sums left behind */
    int *merged;                      /* buckets that were added to their sibling's */
    int parked_row[LEVELS];
    tn_sum_part parts[TN_SUM_PARTS_MAX];
    float *sums[TN_SUM_PARTS_MAX];            /* of the parts; NULL until a bucket is finished */
    int part_count, finished[TN_BUCKETS_MAX]; /* parts of each bucket */
    float *other; /* to be added to the sum: where all chunks are here, the root's second child */
    bool alone;   /* no other process has chunks */
};

#define WORKERS_MAX 256

/* Dynamic programming over the height of a full subtree. done[m]: most sums that can be parked in it with m
 * chunks still in work and all others finished; front[m]: the same when everything from some leaf on has not
 * been started. */
int tn_gradient_tree_buffers(int chunks, int workers) {
    int done[WORKERS_MAX] = {1}, front[WORKERS_MAX] = {0};
    /* The last chunk taken is in work and stands at the frontier; the others may be anywhere before it. */
    int others = workers - 1;
    if (workers >= chunks || workers > WORKERS_MAX) return chunks;
    for (int height = 0; 1 << height < chunks; height++) {
        int next_done[WORKERS_MAX] = {0}, next_front[WORKERS_MAX] = {0};
        for (int m = 0; m <= others; m++) {
            next_done[m] = m == 0;
            next_front[m] = front[m];
            for (int left = 0; left <= m; left++) {
                int both = done[left] + done[m - left], partly = done[left] + front[m - left];
                if (m > 0 && both > next_done[m]) next_done[m] = both;
                if (partly > next_front[m]) next_front[m] = partly;
            }
        }
        memcpy(done, next_done, (size_t)workers * sizeof(int));
        memcpy(front, next_front, (size_t)workers * sizeof(int));
    }
    int bound = workers + front[others];
    return bound < chunks ? bound : chunks;
}

/* Parts of a share are finished without being added to each other: each may keep a buffer. */
static int shared_buffers(int share, int workers) {
    int leaves = 1, levels = 0;
    for (; leaves < share; leaves *= 2) levels++;
    int bound = tn_gradient_tree_buffers(2 * leaves, workers) + 2 * levels;
    return bound < share ? bound : share > 0 ? share : 1;
}

tn_status tn_gradient_tree_create(tn_backend *backend, int chunks, int share, int workers, size_t floats,
                                  tn_gradient_tree **out) {
    tn_gradient_tree *t;
    *out = NULL;
    TN_TRY(tn_alloc(&t, 1, sizeof *t, "gradients"));
    pthread_mutex_init(&t->mutex, NULL);
    t->backend = backend;
    t->floats = floats;
    t->max_chunks = chunks;
    t->alone = share >= chunks;
    int rows = 0;
    for (int level = 0; level < LEVELS; level++) {
        t->parked_row[level] = rows;
        rows += (chunks >> (level + 1)) + 1;
    }
    t->buffer_count =
        share < chunks ? shared_buffers(share, workers) : tn_gradient_tree_buffers(chunks, workers);
    tn_status status = tn_alloc(&t->parked, (size_t)rows, sizeof *t->parked, "gradients");
    if (status == TN_OK) status = tn_alloc(&t->merged, (size_t)rows, sizeof *t->merged, "gradients");
    if (status == TN_OK)
        status = tn_alloc(&t->buffers, (size_t)t->buffer_count, sizeof(float *), "gradients");
    if (status == TN_OK)
        status = tn_alloc(&t->free_buffers, (size_t)t->buffer_count, sizeof(float *), "gradients");
    for (int i = 0; status == TN_OK && i < t->buffer_count; i++)
        status = backend->ops->alloc(backend, &t->buffers[i], floats * sizeof(float), "gradients of a chunk");
    if (status != TN_OK) {
        tn_gradient_tree_free(t);
        return status;
    }
    *out = t;
    return TN_OK;
}

void tn_gradient_tree_free(tn_gradient_tree *t) {
    if (!t) return;
    for (int i = 0; t->buffers && i < t->buffer_count; i++)
        if (t->buffers[i]) t->backend->ops->release(t->backend, t->buffers[i]);
    tn_free(t->buffers);
    tn_free(t->free_buffers);
    tn_free(t->parked);
    tn_free(t->merged);
    pthread_mutex_destroy(&t->mutex);
    tn_free(t);
}

void tn_gradient_tree_begin(tn_gradient_tree *t, int chunks, int first, int count, int buckets,
                            const size_t *bounds) {
    TN_ASSERT(chunks <= t->max_chunks && buckets >= 1 && buckets <= TN_BUCKETS_MAX &&
              bounds[buckets] <= t->floats);
    t->chunks = chunks;
    t->buckets = buckets;
    memcpy(t->bounds, bounds, ((size_t)buckets + 1) * sizeof *bounds);
    memset(t->finished, 0, sizeof t->finished);
    t->part_count = tn_sum_parts(first, count, chunks, t->parts);
    memset(t->sums, 0, sizeof t->sums);
    t->other = NULL;
    t->free_count = t->buffer_count;
    memcpy(t->free_buffers, t->buffers, (size_t)t->buffer_count * sizeof *t->buffers);
    size_t rows = (size_t)t->parked_row[LEVELS - 1] + 1;
    memset(t->parked, 0, rows * sizeof *t->parked);
    memset(t->merged, 0, rows * sizeof *t->merged);
}

float *tn_gradient_tree_take(tn_gradient_tree *t) {
    pthread_mutex_lock(&t->mutex);
    TN_ASSERT(t->free_count > 0);
    float *buffer = t->free_buffers[--t->free_count];
    pthread_mutex_unlock(&t->mutex);
    return buffer;
}

/* Leaves `buffer` at the parent, or takes what the sibling left there. */
static float *meet(tn_gradient_tree *t, int parent, int bucket, float *buffer) {
    float **slot = &t->parked[parent][bucket];
    pthread_mutex_lock(&t->mutex);
    float *other = *slot;
    *slot = other ? NULL : buffer;
    pthread_mutex_unlock(&t->mutex);
    return other;
}

/* Adds a bucket of the right sibling to the left one's, in which other buckets may still be computed. */
static void add(tn_gradient_tree *t, int parent, int bucket, float *left, float *right) {
    size_t from = t->bounds[bucket];
    t->backend->ops->add(t->backend, left + from, right + from, t->bounds[bucket + 1] - from);
    pthread_mutex_lock(&t->mutex);
    if (++t->merged[parent] == t->buckets) t->free_buffers[t->free_count++] = right;
    pthread_mutex_unlock(&t->mutex);
}

bool tn_gradient_tree_bring(tn_gradient_tree *t, int chunk, int bucket, float *buffer) {
    int at = chunk, part = 0;
    float *second = NULL;
    while (chunk >> t->parts[part].level != t->parts[part].position) part++;
    for (int level = 0; level < t->parts[part].level; level++, at >>= 1) {
        /* A subtree without a single chunk adds nothing. */
        if (tn_sum_is_alone((tn_sum_part){level, at}, t->chunks)) continue;
        int parent = t->parked_row[level] + (at >> 1);
        float *other = meet(t, parent, bucket, buffer);
        if (!other) return false;
        float *left = at % 2 ? other : buffer, *right = at % 2 ? buffer : other;
        buffer = left;
        if (t->alone && level + 1 == t->parts[part].level)
            second = right;
        else
            add(t, parent, bucket, left, right);
    }
    pthread_mutex_lock(&t->mutex);
    t->sums[part] = buffer; /* these two are the same for all buckets */
    t->other = second;
    bool ready = ++t->finished[bucket] == t->part_count;
    pthread_mutex_unlock(&t->mutex);
    return ready;
}

bool tn_gradient_tree_ready(tn_gradient_tree *t, int bucket) {
    pthread_mutex_lock(&t->mutex);
    bool ready = t->finished[bucket] == t->part_count;
    pthread_mutex_unlock(&t->mutex);
    return ready;
}

int tn_gradient_tree_parts(const tn_gradient_tree *t, int bucket, const float *parts[TN_SUM_PARTS_MAX]) {
    for (int i = 0; i < t->part_count; i++) {
        TN_ASSERT(t->sums[i] && !t->other);
        parts[i] = t->sums[i] + t->bounds[bucket];
    }
    return t->part_count;
}

float *tn_gradient_tree_sum(const tn_gradient_tree *t, const float **other) {
    TN_ASSERT(t->part_count == 0 || t->sums[0]);
    *other = t->other;
    return t->part_count ? t->sums[0] : t->buffers[0];
}

size_t tn_gradient_tree_bytes(const tn_gradient_tree *t) {
    return (size_t)t->buffer_count * t->floats * sizeof(float);
}
