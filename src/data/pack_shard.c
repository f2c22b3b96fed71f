#include "data/pack_shard.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/memory.h"
#include "data/jpeg_encode.h"
#include "data/tar.h"
#include "data/view.h"
#include "io/atomic_file.h"
#include "io/file_io.h"

void tn_packer_free(tn_packer *packer) {
    tn_image_free(&packer->image);
    tn_resizer_free(&packer->resizer);
}

/* A shard on its way to the disk. */
typedef struct shard_writer {
    tn_atomic_file *file;
    XXH64_state_t *hash;
    tn_shard_index index;
    uint64_t at;
} shard_writer;

static tn_status put(shard_writer *w, const void *bytes, size_t size) {
    TN_TRY(tn_atomic_write(w->file, bytes, size));
    if (size > 0 && XXH64_update(w->hash, bytes, size) != XXH_OK)
        return tn_fail(TN_ERR_MEMORY, "hash of a shard: out of memory");
    w->at += size;
    return TN_OK;
}

/* A member from one or two pieces of content. */
static tn_status put_member(shard_writer *w, int sample, const char *extension, const void *head,
                            size_t head_size, const void *rest, size_t rest_size) {
    uint8_t block[TN_TAR_BLOCK];
    char name[32];
    snprintf(name, sizeof name, "%08d.%s", sample, extension);
    tn_tar_header(name, head_size + rest_size, block);
    TN_TRY(put(w, block, sizeof block));
    TN_TRY(put(w, head, head_size));
    TN_TRY(put(w, rest, rest_size));
    size_t over = (head_size + rest_size) % TN_TAR_BLOCK;
    memset(block, 0, sizeof block);
    return over ? put(w, block, TN_TAR_BLOCK - over) : TN_OK;
}

static tn_status put_image(shard_writer *w, int sample, int label, const char *extension, const void *head,
                           size_t head_size, const void *rest, size_t rest_size) {
    char text[16];
    int length = snprintf(text, sizeof text, "%d", label);
    TN_TRY(put_member(w, sample, "cls", text, (size_t)length, NULL, 0));
    tn_shard_sample entry = {w->at + TN_TAR_BLOCK, head_size + rest_size, label};
    TN_TRY(put_member(w, sample, extension, head, head_size, rest, rest_size));
    return tn_shard_index_add(&w->index, entry);
}

/* Decodes the image just opened, smaller when the short side is longer than config->resize. A damaged one is
 * found here, before anything of it is written. */
static tn_status decode(tn_packer *p, const tn_pack_config *config, tn_pixels *out, bool *changed) {
    int width = p->image.width, height = p->image.height, factor;
    tn_view view = {.part = {0, 0, width, height}};
    *changed = config->resize > 0 && (width < height ? width : height) > config->resize;
    if (!*changed) return tn_image_decode(&p->image, &view.part, NULL, out, &factor);
    tn_view whole = tn_view_centre(width, height, config->resize, config->resize);
    view.rows = view.height = whole.height;
    view.columns = view.width = whole.width;
    uint8_t *pixels;
    TN_TRY(tn_view_make(&view, false, &p->image, &p->resizer, &pixels));
    *out = (tn_pixels){pixels, 3 * (size_t)view.width, view.height, view.width};
    return TN_OK;
}

static tn_status put_decoded(shard_writer *w, int sample, int label, const tn_pixels *pixels) {
    char head[64];
    int length = snprintf(head, sizeof head, "P6\n%d %d\n255\n", pixels->width, pixels->height);
    size_t row = 3 * (size_t)pixels->width;
    uint8_t *packed;
    TN_TRY(tn_alloc(&packed, row, (size_t)pixels->height, "decoded image"));
    for (int y = 0; y < pixels->height; y++)
        memcpy(packed + (size_t)y * row, pixels->at + (size_t)y * pixels->stride, row);
    tn_status status =
        put_image(w, sample, label, "ppm", head, (size_t)length, packed, row * (size_t)pixels->height);
    tn_free(packed);
    return status;
}

static tn_status put_encoded(shard_writer *w, int sample, int label, const tn_pixels *pixels, int quality) {
    uint8_t *bytes;
    size_t size;
    TN_TRY(tn_jpeg_encode(pixels, quality, &bytes, &size));
    tn_status status = put_image(w, sample, label, "jpg", bytes, size, NULL, 0);
    tn_jpeg_encode_free(bytes);
    return status;
}

static tn_status put_sample(tn_packer *p, const tn_pack_config *config, shard_writer *w, int sample,
                            int label, const tn_pixels *pixels, bool changed, const tn_encoded *encoded) {
    static const char *const extensions[] = {"jpg", "png", "ppm"}; /* by tn_image_kind */
    if (config->decoded) return put_decoded(w, sample, label, pixels);
    if (changed) return put_encoded(w, sample, label, pixels, config->quality);
    return put_image(w, sample, label, extensions[p->image.kind], encoded->bytes, encoded->size, NULL, 0);
}

/* Only what is wrong with the image itself may be left out. */
static tn_status pack_sample(tn_packer *p, const tn_pack_config *config, const tn_image_store *store,
                             int sample, int label, shard_writer *w, tn_pack_losses *losses) {
    tn_encoded encoded;
    tn_pixels pixels;
    bool changed = false;
    tn_status status = tn_image_store_load(store, sample, &encoded);
    if (status == TN_OK) {
        status = tn_image_open(&p->image, encoded.bytes, encoded.size);
        if (status == TN_OK) status = decode(p, config, &pixels, &changed);
        if (status != TN_OK) status = tn_image_store_fail(store, sample, status);
    }
    if (status == TN_OK) {
        status = put_sample(p, config, w, sample, label, &pixels, changed, &encoded);
    } else if (config->skip_bad && (status == TN_ERR_DATA || status == TN_ERR_IO)) {
        if (losses->count++ == 0) snprintf(losses->message, sizeof losses->message, "%s", tn_error());
        status = TN_OK;
    }
    tn_free(encoded.owned);
    return status;
}

static tn_status write_index(shard_writer *w, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) return tn_fail_errno("read", path);
    w->index.size = (uint64_t)info.st_size;
    w->index.mtime = tn_shard_mtime(&info);
    w->index.has_hash = true;
    w->index.hash = XXH64_digest(w->hash);
    return tn_shard_index_save(&w->index, path);
}

static tn_status write_shard(tn_packer *p, const tn_pack_config *config, const tn_image_store *store,
                             const int *labels, const int *samples, int count, shard_writer *w,
                             tn_pack_losses *losses) {
    static const uint8_t end[2 * TN_TAR_BLOCK];
    for (int i = 0; i < count; i++)
        TN_TRY(pack_sample(p, config, store, samples[i], labels[samples[i]], w, losses));
    return put(w, end, sizeof end);
}

tn_status tn_pack_shard(tn_packer *packer, const tn_pack_config *config, const tn_image_store *store,
                        const int *labels, const int *samples, int count, const char *path,
                        tn_pack_losses *losses, uint64_t *hash) {
    shard_writer w = {.hash = XXH64_createState()};
    if (!w.hash || XXH64_reset(w.hash, 0) != XXH_OK)
        return tn_fail(TN_ERR_MEMORY, "hash of a shard: out of memory");
    tn_status status = tn_atomic_begin(path, &w.file);
    if (status == TN_OK) {
        status = write_shard(packer, config, store, labels, samples, count, &w, losses);
        if (status == TN_OK)
            status = tn_atomic_commit(w.file);
        else
            tn_atomic_abort(w.file);
    }
    if (status == TN_OK) status = write_index(&w, path);
    *hash = w.index.hash;
    XXH64_freeState(w.hash);
    tn_shard_index_free(&w.index);
    return status;
}
