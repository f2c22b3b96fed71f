#include "data/image_store.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "data/input.h"
#include "data/tar.h"
#include "io/file_io.h"

void tn_image_store_free(tn_image_store *store) {
    for (int i = 0; i < store->shard_count; i++)
        /* Cannot fail on a mapping that was made; const was added here. */
        if (store->shards[i].bytes) munmap((void *)(uintptr_t)store->shards[i].bytes, store->shards[i].size);
    tn_free(store->folder);
    tn_free(store->shards);
    tn_free(store->images);
    tn_name_list_free(&store->names);
    *store = (tn_image_store){.folder = NULL};
}

/* ---- shards ---- */

/* Maps an open file; empty files are refused, which cannot be mapped. */
static tn_status map_descriptor(int fd, const char *path, tn_shard *shard, int64_t *mtime) {
    struct stat info;
    if (fstat(fd, &info) != 0) return tn_fail_errno("read", path);
    if (!S_ISREG(info.st_mode))
        return tn_fail(TN_ERR_IO, "%s is not a regular file; give a file on disk", path);
    if (info.st_size == 0)
        return tn_fail(TN_ERR_DATA, "%s: the shard is empty; make or fetch it again", path);
    void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) return tn_fail_errno("map", path);
    shard->bytes = bytes;
    shard->size = (size_t)info.st_size;
    *mtime = tn_shard_mtime(&info);
    return TN_OK;
}

static tn_status map_shard(const char *path, tn_shard *shard, int64_t *mtime) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return tn_fail_errno("open", path);
    tn_status status = map_descriptor(fd, path, shard, mtime);
    close(fd); /* only read from: nothing can be lost */
    return status;
}

static tn_status index_shard(const char *path, const tn_shard *shard, int64_t mtime, tn_shard_index *index) {
    bool found;
    TN_TRY(tn_shard_index_load(index, path, shard->size, mtime, &found));
    if (found) return TN_OK;
    /* Only headers are looked at: reading ahead would read the whole shard. */
    (void)madvise((void *)(uintptr_t)shard->bytes, shard->size, MADV_RANDOM);
    TN_TRY(tn_shard_index_scan(index, path, shard->bytes, shard->size));
    (void)madvise((void *)(uintptr_t)shard->bytes, shard->size, MADV_NORMAL);
    index->size = shard->size;
    index->mtime = mtime;
    return tn_shard_index_save(index, path);
}

/* Appends a shard's samples to those of the store. */
static tn_status take_samples(tn_image_store *store, int shard, const char *path, const tn_shard_index *index,
                              int **labels, int *count, size_t capacity[2]) {
    store->shards[shard].first = *count;
    if (index->count > INT_MAX - *count)
        return tn_fail(TN_ERR_DATA, "%s: more samples than can be counted; use fewer shards", path);
    size_t needed = (size_t)(*count + index->count);
    TN_TRY(tn_grow(labels, &capacity[0], needed, sizeof **labels, "labels"));
    TN_TRY(tn_grow(&store->images, &capacity[1], needed, sizeof *store->images, "places of images"));
    for (int i = 0; i < index->count; i++, ++*count) {
        const tn_shard_sample *sample = &index->samples[i];
        if (sample->bytes > TN_IMAGE_BYTES_MAX)
            return tn_fail(TN_ERR_DATA, "%s: offset %llu: an image of %llu bytes; at most %zu are read", path,
                           (unsigned long long)sample->offset, (unsigned long long)sample->bytes,
                           TN_IMAGE_BYTES_MAX);
        (*labels)[*count] = sample->label;
        store->images[*count] = (tn_stored_image){sample->offset, (uint32_t)sample->bytes, (uint32_t)shard};
    }
    return TN_OK;
}

tn_status tn_image_store_open_shards(tn_image_store *store, int **labels, int *count) {
    char path[TN_PATH_MAX];
    size_t capacity[2] = {0};
    *labels = NULL;
    *count = 0;
    TN_TRY(tn_alloc(&store->shards, (size_t)store->names.count, sizeof *store->shards, "shards"));
    store->shard_count = store->names.count;
    for (int s = 0; s < store->shard_count; s++) {
        tn_shard_index index = {0};
        int64_t mtime = 0;
        TN_TRY(tn_input_path(path, store->folder, tn_name_list_get(&store->names, s)));
        TN_TRY(map_shard(path, &store->shards[s], &mtime));
        tn_status status = index_shard(path, &store->shards[s], mtime, &index);
        if (status == TN_OK) status = take_samples(store, s, path, &index, labels, count, capacity);
        tn_shard_index_free(&index);
        TN_TRY(status);
    }
    return TN_OK;
}

/* ---- images ---- */

static tn_status load_file(const tn_image_store *store, int sample, tn_encoded *out) {
    char path[TN_PATH_MAX];
    size_t size;
    TN_TRY(tn_input_path(path, store->folder, tn_name_list_get(&store->names, sample)));
    TN_TRY(tn_input_size(path, &size));
    if (size > TN_IMAGE_BYTES_MAX)
        return tn_fail(TN_ERR_DATA, "%s: an image of %zu bytes; at most %zu are read", path, size,
                       TN_IMAGE_BYTES_MAX);
    TN_TRY(tn_input_read(path, &out->owned, &out->size));
    out->bytes = out->owned;
    return TN_OK;
}

tn_status tn_image_store_load(const tn_image_store *store, int sample, tn_encoded *out) {
    *out = (tn_encoded){.bytes = NULL};
    if (store->shard_count == 0) return load_file(store, sample, out);
    const tn_stored_image *image = &store->images[sample];
    out->bytes = store->shards[image->shard].bytes + image->offset;
    out->size = image->bytes;
    return TN_OK;
}

void tn_image_store_advise(const tn_image_store *store, const int *samples, int count) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; store->shard_count > 0 && i < count; i++) {
        const tn_stored_image *image = &store->images[samples[i]];
        uintptr_t begin = (uintptr_t)(store->shards[image->shard].bytes + image->offset),
                  first = begin / page * page;
        /* Advice that is not taken changes nothing but the time. */
        (void)madvise((void *)first, begin - first + image->bytes, MADV_WILLNEED);
    }
}

tn_status tn_image_store_fail(const tn_image_store *store, int sample, tn_status status) {
    if (store->shard_count == 0)
        return tn_fail_prefix(status, "%s/%s", store->folder,
                              tn_make_legible(tn_name_list_get(&store->names, sample)).text);
    const tn_stored_image *image = &store->images[sample];
    char name[101] = "";
    /* Its header stands right before the image, unless the index came from elsewhere. */
    if (image->offset >= TN_TAR_BLOCK)
        memcpy(name, store->shards[image->shard].bytes + image->offset - TN_TAR_BLOCK, sizeof name - 1);
    return tn_fail_prefix(status, "%s/%s: offset %llu: %s", store->folder,
                          tn_name_list_get(&store->names, (int)image->shard),
                          (unsigned long long)image->offset, tn_make_legible(name).text);
}
