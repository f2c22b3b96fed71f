/* The file beside a shard that holds its index. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "data/input.h"
#include "data/shard_index.h"
#include "io/atomic_file.h"

int64_t tn_shard_mtime(const struct stat *info) {
    return (int64_t)info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec;
}

static tn_status index_path(const char *shard, char path[TN_PATH_MAX]) {
    if (snprintf(path, TN_PATH_MAX, "%s.index", shard) < TN_PATH_MAX) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "the path of %s.index is too long; move the data to a shorter path", shard);
}

tn_status tn_shard_index_load(tn_shard_index *index, const char *shard, uint64_t size, int64_t mtime,
                              bool *found) {
    char path[TN_PATH_MAX];
    uint8_t *text;
    size_t length;
    *found = false;
    TN_TRY(index_path(shard, path));
    if (!tn_input_exists(path)) return TN_OK;
    TN_TRY(tn_input_read(path, &text, &length));
    tn_status status = tn_shard_index_parse(index, path, (const char *)text, length);
    tn_free(text);
    TN_TRY(status);
    *found = index->size == size && index->mtime == mtime;
    if (!*found) tn_shard_index_free(index);
    return TN_OK;
}

static tn_status write_text(const char *path, const tn_string *text) {
    tn_atomic_file *file;
    TN_TRY(tn_atomic_begin(path, &file));
    tn_status status = tn_atomic_write(file, text->data, text->length);
    if (status == TN_OK) return tn_atomic_commit(file);
    tn_atomic_abort(file);
    return status;
}

tn_status tn_shard_index_save(const tn_shard_index *index, const char *shard) {
    char path[TN_PATH_MAX], folder[TN_PATH_MAX];
    const char *slash = strrchr(shard, '/');
    tn_string text = {0};
    TN_TRY(index_path(shard, path));
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - shard) : 1, slash ? shard : ".");
    if (access(folder, W_OK) != 0 && (errno == EACCES || errno == EROFS)) return TN_OK;
    tn_status status = tn_shard_index_print(index, &text);
    if (status == TN_OK) status = write_text(path, &text);
    tn_string_free(&text);
    return status;
}
