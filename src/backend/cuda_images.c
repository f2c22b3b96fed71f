/* Batches made of bytes on the device: of images that it holds, or of images of any size that come with each
 * batch. The latter travel on a stream of their own, to two pieces of memory in turn, so that those of the
 * next batch arrive while the device computes. */
#include <string.h>

#include "backend/cuda_device.h"
#include "base/memory.h"

/* Training and validation images. */
#define HELD_MAX 2

/* Device memory that grows. */
typedef struct grown {
    void *memory;
    size_t bytes;
} grown;

/* Bytes of a batch on the device. */
typedef struct delivery {
    grown bytes;
    cudaEvent_t arrived, used; /* on the stream of copies; on that of the work */
} delivery;

struct tn_cuda_images {
    const uint8_t *held[HELD_MAX]; /* of the host: names only */
    void *copies[HELD_MAX];
    grown recipe; /* table, order, partners, states of chunks */
    bool opened;  /* what follows is there */
    cudaStream_t stream;
    tn_cuda_staging stage;
    delivery deliveries[2];
    int next;
    grown middle, views;
    /* On the host. */
    void *scratch;
    size_t scratch_bytes;
};

static tn_status images_of(tn_cuda *cuda, struct tn_cuda_images **out) {
    if (!cuda->images) TN_TRY(tn_alloc(&cuda->images, 1, sizeof *cuda->images, "images"));
    *out = cuda->images;
    return TN_OK;
}

void tn_cuda_free_images(tn_cuda *cuda) {
    struct tn_cuda_images *m = cuda->images;
    if (!m) return;
    if (m->stream) (void)cudaStreamSynchronize(m->stream);
    void *memories[] = {m->copies[0],     m->copies[1],
                        m->recipe.memory, m->deliveries[0].bytes.memory,
                        m->middle.memory, m->deliveries[1].bytes.memory,
                        m->views.memory};
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++) tn_cuda_release(&cuda->head, memories[i]);
    tn_cuda_staging_close(&m->stage);
    for (int i = 0; i < 2; i++) {
        if (m->deliveries[i].arrived) (void)cudaEventDestroy(m->deliveries[i].arrived);
        if (m->deliveries[i].used) (void)cudaEventDestroy(m->deliveries[i].used);
    }
    if (m->stream) (void)cudaStreamDestroy(m->stream);
    tn_free(m->scratch);
    tn_free(m);
    cuda->images = NULL;
}

/* Rare: everything stands still meanwhile. */
static tn_status grow(tn_cuda *cuda, grown *g, size_t needed, const char *what) {
    if (needed <= g->bytes) return TN_OK;
    TN_CUDA(cudaDeviceSynchronize());
    tn_cuda_release(&cuda->head, g->memory);
    *g = (grown){0};
    TN_TRY(tn_cuda_alloc(&cuda->head, &g->memory, needed + needed / 4, what));
    g->bytes = needed + needed / 4;
    TN_CUDA(cudaStreamSynchronize(cuda->stream)); /* it is cleared there, and may be used elsewhere */
    return TN_OK;
}

/* ---- images that the device holds ---- */

tn_status tn_cuda_hold(tn_backend *backend, const uint8_t *pixels, size_t bytes, size_t *added) {
    tn_cuda *cuda = tn_cuda_of(backend);
    struct tn_cuda_images *m;
    int place = 0;
    void *copy;
    *added = 0;
    TN_TRY(images_of(cuda, &m));
    while (place < HELD_MAX && m->held[place] && m->held[place] != pixels) place++;
    if (place == HELD_MAX)
        return tn_fail(TN_ERR_USAGE, "a device holds the images of %d splits at most", HELD_MAX);
    if (m->held[place]) return TN_OK;
    TN_TRY(tn_cuda_alloc(backend, &copy, bytes, "images of a data set"));
    tn_status status = tn_cuda_upload(backend, copy, pixels, bytes);
    if (status != TN_OK) {
        tn_cuda_release(backend, copy);
        return status;
    }
    m->held[place] = pixels;
    m->copies[place] = copy;
    *added = bytes;
    return TN_OK;
}

static tn_status find_held(const struct tn_cuda_images *m, const uint8_t *pixels, const void **out) {
    for (int i = 0; i < HELD_MAX; i++) {
        *out = m->copies[i];
        if (m->held[i] == pixels) return TN_OK;
    }
    return tn_fail(TN_ERR_USAGE, "a batch of images that were not given to tn_engine_hold_images");
}

/* ---- images that come with a batch ---- */

static tn_status open_copies(struct tn_cuda_images *m) {
    if (m->opened) return TN_OK;
    if (!m->stream) TN_CUDA(cudaStreamCreateWithFlags(&m->stream, cudaStreamNonBlocking));
    for (int i = 0; i < 2; i++) {
        cudaEvent_t *events[] = {&m->deliveries[i].arrived, &m->deliveries[i].used};
        for (int k = 0; k < 2; k++)
            if (!*events[k]) TN_CUDA(cudaEventCreateWithFlags(events[k], cudaEventDisableTiming));
    }
    tn_cuda_staging_close(&m->stage); /* of an attempt that failed */
    TN_TRY(tn_cuda_staging_open(&m->stage, m->stream));
    m->opened = true;
    return TN_OK;
}

static size_t aligned(size_t bytes) {
    return (bytes + 15) / 16 * 16;
}

/* Where everything of a batch's images is: descriptions first, then the bytes of one after the other. */
typedef struct layout {
    tn_view_image *images; /* of the host */
    size_t described, bytes, middle;
    int highest;
} layout;

static tn_status lay_out(struct tn_cuda_images *m, const tn_raw_batch *raw, int height, int width,
                         layout *out) {
    size_t count = (size_t)raw->count;
    *out = (layout){.described = count * sizeof *out->images, .highest = 1};
    TN_TRY(tn_grow(&m->scratch, &m->scratch_bytes, out->described, 1, "images of a batch"));
    out->images = m->scratch;
    out->bytes = aligned(out->described);
    for (size_t i = 0; i < count; i++) {
        const tn_raw_image *image = &raw->images[i];
        tn_view_image *v = &out->images[i];
        *v = (tn_view_image){.rows = out->bytes,
                             .middle = out->middle,
                             .height = image->from_height,
                             .width = image->from_width,
                             .row_taps = image->taps[0],
                             .column_taps = image->taps[1],
                             .flip = image->flip};
        v->columns = v->rows + (size_t)height * (2 + (size_t)v->row_taps) * sizeof(int);
        v->pixels = v->columns + (size_t)width * (2 + (size_t)v->column_taps) * sizeof(int);
        out->bytes += aligned(image->size);
        out->middle += 3 * (size_t)v->height * (size_t)width;
        if (v->height > out->highest) out->highest = v->height;
    }
    return TN_OK;
}

static tn_status deliver(const struct tn_cuda_images *m, tn_cuda_staging *stage, const delivery *d,
                         const tn_raw_batch *raw, const layout *l) {
    char *to = d->bytes.memory;
    TN_CUDA(cudaStreamWaitEvent(m->stream, d->used, 0));
    TN_TRY(tn_cuda_send(stage, to, l->images, l->described));
    for (int i = 0; i < raw->count; i++)
        TN_TRY(tn_cuda_send(stage, to + l->images[i].rows, raw->images[i].bytes, raw->images[i].size));
    TN_CUDA(cudaEventRecord(d->arrived, m->stream));
    return TN_OK;
}

/* The images of a batch at its size, in m->views. */
static tn_status make_views(tn_cuda *cuda, struct tn_cuda_images *m, const tn_batch *batch) {
    const tn_raw_batch *raw = batch->raw;
    layout l;
    if (batch->channels != 3)
        return tn_fail(TN_ERR_USAGE, "images of %d channels cannot be resized: they must have 3",
                       batch->channels);
    TN_TRY(open_copies(m));
    TN_TRY(lay_out(m, raw, batch->height, batch->width, &l));
    delivery *d = &m->deliveries[m->next];
    m->next = !m->next;
    TN_TRY(grow(cuda, &d->bytes, l.bytes, "images of a batch"));
    TN_TRY(grow(cuda, &m->middle, l.middle, "images of a batch"));
    TN_TRY(grow(cuda, &m->views, (size_t)raw->count * 3 * (size_t)batch->height * (size_t)batch->width,
                "images of a batch"));
    TN_TRY(deliver(m, &m->stage, d, raw, &l));
    TN_CUDA(cudaStreamWaitEvent(cuda->stream, d->arrived, 0));
    TN_CUDA(tn_launch_views(raw->count, d->bytes.memory, l.highest, batch->height, batch->width,
                            d->bytes.memory, m->middle.memory, m->views.memory, cuda->stream));
    TN_CUDA(cudaEventRecord(d->used, cuda->stream));
    return TN_OK;
}

/* ---- batches ---- */

/* What a batch is made by, in one piece of memory: table, order, partners, states of chunks. */
typedef struct recipe {
    size_t table, order, partner, bytes; /* ends of the parts */
} recipe;

static recipe recipe_of(const tn_batch *b, int chunks) {
    recipe r = {.table = (size_t)b->channels * 256 * sizeof(float)};
    r.order = r.table + aligned((size_t)b->raw->order_count * sizeof(int));
    r.partner = r.order + aligned((size_t)b->rows * sizeof(int));
    r.bytes = r.partner + (size_t)chunks * sizeof(tn_batch_state);
    return r;
}

static tn_status send_recipe(tn_cuda *cuda, struct tn_cuda_images *m, const tn_batch *b, int chunk_rows,
                             int chunks, const recipe *r) {
    const tn_raw_batch *raw = b->raw;
    TN_TRY(tn_grow(&m->scratch, &m->scratch_bytes, r->bytes, 1, "images of a batch"));
    TN_TRY(grow(cuda, &m->recipe, r->bytes, "images of a batch"));
    char *to = m->scratch;
    memcpy(to, raw->table, r->table);
    if (raw->order) memcpy(to + r->table, raw->order, (size_t)raw->order_count * sizeof(int));
    if (raw->partner) memcpy(to + r->order, raw->partner, (size_t)b->rows * sizeof(int));
    tn_batch_state *states = (tn_batch_state *)(void *)(to + r->partner);
    for (int i = 0; i < chunks; i++) {
        int first = i * chunk_rows, left = b->rows - first;
        states[i] = (tn_batch_state){.seed = raw->seed,
                                     .epoch = raw->epoch,
                                     .first = raw->first + first,
                                     .rows = left < chunk_rows ? left : chunk_rows,
                                     .own = raw->partner ? raw->own : 1.0f};
    }
    return tn_cuda_upload(&cuda->head, m->recipe.memory, to, r->bytes);
}

tn_status tn_cuda_make_images(tn_backend *backend, const tn_batch *b, int chunk_rows, size_t chunk_floats,
                              float *images) {
    tn_cuda *cuda = tn_cuda_of(backend);
    const tn_raw_batch *raw = b->raw;
    int chunks = (b->rows + chunk_rows - 1) / chunk_rows;
    struct tn_cuda_images *m;
    const recipe r = recipe_of(b, chunks);
    const void *pixels = NULL;
    TN_CUDA(cudaSetDevice(cuda->device));
    TN_TRY(images_of(cuda, &m));
    if (raw->pixels)
        TN_TRY(find_held(m, raw->pixels, &pixels));
    else
        TN_TRY(make_views(cuda, m, b));
    TN_TRY(send_recipe(cuda, m, b, chunk_rows, chunks, &r));
    const char *at = m->recipe.memory;
    const int *partner = (const int *)(const void *)(at + r.order);
    const tn_batch_state *states = (const tn_batch_state *)(const void *)(at + r.partner);
    tn_augment_config config = {.rows = chunk_rows,
                                .channels = b->channels,
                                .height = b->height,
                                .width = b->width,
                                .table = (const float *)(const void *)at,
                                .pixels = raw->pixels ? pixels : m->views.memory,
                                .order = raw->order ? (const int *)(const void *)(at + r.table) : NULL};
    if (raw->pixels && raw->draw) {
        config.draw = true;
        config.may_flip = raw->may_flip;
        config.padding = raw->padding;
    }
    for (int i = 0; i < chunks; i++) {
        config.partner = raw->partner ? partner + (size_t)i * (size_t)chunk_rows : NULL;
        TN_CUDA(tn_launch_augment(&config, states + i, TN_STORE_F32, images + (size_t)i * chunk_floats,
                                  cuda->stream));
    }
    return TN_OK;
}
