#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/memory.h"
#include "io/atomic_file.h"
#include "io/json_text.h"
#include "io/safetensors.h"

static tn_status bad_entry(const char *name, const char *problem) {
    return tn_fail(TN_ERR_USAGE, "tensor '%s': %s", tn_make_legible(name).text, problem);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Checks that no name stands twice. */
static tn_status check_names(const tn_safetensors_entry *entries, int count) {
    const char **names;
    TN_TRY(tn_alloc(&names, (size_t)count, sizeof *names, "tensor names"));
    for (int i = 0; i < count; i++) names[i] = entries[i].name;
    if (count > 0) qsort(names, (size_t)count, sizeof *names, compare_names);
    tn_status status = TN_OK;
    for (int i = 1; i < count && status == TN_OK; i++)
        if (strcmp(names[i - 1], names[i]) == 0) status = bad_entry(names[i], "the name stands twice");
    tn_free(names);
    return status;
}

/* Checks one tensor and finds its size. */
static tn_status check_entry(const tn_safetensors_entry *entry, uint64_t *bytes) {
    if (!tn_is_utf8(entry->name)) return bad_entry(entry->name, "the name is not UTF-8");
    if (strcmp(entry->name, TN_SAFETENSORS_METADATA) == 0)
        return bad_entry(entry->name, "the name is reserved");
    if ((unsigned)entry->dtype >= TN_DTYPES || entry->rank < 0)
        return bad_entry(entry->name, "there is no such dtype or rank");
    const char *problem = tn_safetensors_size(entry->dtype, entry->rank, entry->dims, bytes);
    if (problem) return bad_entry(entry->name, problem);
    if (*bytes > 0 && !entry->data) return bad_entry(entry->name, "it has no data");
    return TN_OK;
}

static tn_status check_metadata(const tn_safetensors_meta *metadata, int count) {
    for (int i = 0; i < count; i++) {
        const char *key = metadata[i].key;
        if (!tn_is_utf8(key) || !tn_is_utf8(metadata[i].value))
            return tn_fail(TN_ERR_USAGE, "metadata '%s' is not UTF-8", tn_make_legible(key).text);
        for (int j = 0; j < i; j++)
            if (strcmp(metadata[j].key, key) == 0)
                return tn_fail(TN_ERR_USAGE, "metadata '%s' stands twice", tn_make_legible(key).text);
    }
    return TN_OK;
}

/* XXH64 of the data as it will stand in the file. */
static tn_status hash_data(const tn_safetensors_entry *entries, int count, const uint64_t *bytes,
                           uint64_t *hash) {
    XXH64_state_t *state = XXH64_createState();
    if (!state) return tn_fail(TN_ERR_MEMORY, "out of memory for a hash");
    XXH64_reset(state, 0);
    for (int i = 0; i < count; i++)
        if (bytes[i] > 0) XXH64_update(state, entries[i].data, (size_t)bytes[i]);
    *hash = XXH64_digest(state);
    XXH64_freeState(state);
    return TN_OK;
}

static tn_status add_metadata(tn_string *header, const tn_safetensors_meta *metadata, int count,
                              uint64_t hash) {
    TN_TRY(tn_string_printf(header, "{\"" TN_SAFETENSORS_METADATA "\":{"));
    for (int i = 0; i < count; i++) {
        if (strcmp(metadata[i].key, TN_SAFETENSORS_HASH) == 0) continue;
        TN_TRY(tn_json_quote(header, metadata[i].key));
        TN_TRY(tn_string_append(header, ":", 1));
        TN_TRY(tn_json_quote(header, metadata[i].value));
        TN_TRY(tn_string_append(header, ",", 1));
    }
    return tn_string_printf(header, "\"" TN_SAFETENSORS_HASH "\":\"%016llx\"}", (unsigned long long)hash);
}

static tn_status add_entry(tn_string *header, const tn_safetensors_entry *entry, uint64_t begin,
                           uint64_t end) {
    TN_TRY(tn_string_append(header, ",", 1));
    TN_TRY(tn_json_quote(header, entry->name));
    TN_TRY(tn_string_printf(header, ":{\"dtype\":\"%s\",\"shape\":[", tn_dtype_name(entry->dtype)));
    for (int i = 0; i < entry->rank; i++)
        TN_TRY(tn_string_printf(header, "%s%lld", i > 0 ? "," : "", (long long)entry->dims[i]));
    return tn_string_printf(header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                            (unsigned long long)end);
}

/* Builds everything in front of the data: the size, the header and its padding. */
static tn_status build_header(const tn_safetensors_entry *entries, int count,
                              const tn_safetensors_meta *metadata, int metadata_count, const uint64_t *bytes,
                              tn_string *header) {
    uint64_t hash = 0, end = 0;
    TN_TRY(hash_data(entries, count, bytes, &hash));
    TN_TRY(tn_string_append(header, "\0\0\0\0\0\0\0", 8));
    TN_TRY(add_metadata(header, metadata, metadata_count, hash));
    for (int i = 0; i < count; i++) {
        TN_TRY(add_entry(header, &entries[i], end, end + bytes[i]));
        end += bytes[i];
    }
    TN_TRY(tn_string_append(header, "}", 1));
    while (header->length % 8 != 0) TN_TRY(tn_string_append(header, " ", 1));
    uint64_t size = header->length - 8;
    if (size > TN_SAFETENSORS_HEADER_MAX)
        return tn_fail(TN_ERR_USAGE, "the names and metadata take %llu bytes, more than the format's %u",
                       (unsigned long long)size, TN_SAFETENSORS_HEADER_MAX);
    for (int i = 0; i < 8; i++) header->data[i] = (char)(size >> (8 * i));
    return TN_OK;
}

static tn_status write_file(const char *path, const tn_safetensors_entry *entries, int count,
                            const uint64_t *bytes, const tn_string *header) {
    tn_atomic_file *file;
    TN_TRY(tn_atomic_begin(path, &file));
    tn_status status = tn_atomic_write(file, header->data, header->length);
    for (int i = 0; i < count && status == TN_OK; i++)
        status = tn_atomic_write(file, entries[i].data, (size_t)bytes[i]);
    if (status == TN_OK) return tn_atomic_commit(file);
    tn_atomic_abort(file);
    return status;
}

/* Checks all that is to be written and finds each tensor's size. */
static tn_status check_all(const tn_safetensors_entry *entries, int count,
                           const tn_safetensors_meta *metadata, int metadata_count, uint64_t *bytes) {
    uint64_t total = 0;
    for (int i = 0; i < count; i++) {
        TN_TRY(check_entry(&entries[i], &bytes[i]));
        if (bytes[i] > INT64_MAX - total) return bad_entry(entries[i].name, "no file can be so large");
        total += bytes[i];
    }
    TN_TRY(check_names(entries, count));
    return check_metadata(metadata, metadata_count);
}

tn_status tn_safetensors_write(const char *path, const tn_safetensors_entry *entries, int count,
                               const tn_safetensors_meta *metadata, int metadata_count) {
    tn_string header = {0};
    uint64_t *bytes;
    TN_TRY(tn_alloc(&bytes, (size_t)count, sizeof *bytes, "tensor sizes"));
    tn_status status = check_all(entries, count, metadata, metadata_count, bytes);
    if (status == TN_OK) status = build_header(entries, count, metadata, metadata_count, bytes, &header);
    if (status != TN_OK)
        tn_fail_prefix(status, "cannot write %s", path);
    else
        status = write_file(path, entries, count, bytes, &header);
    tn_string_free(&header);
    tn_free(bytes);
    return status;
}
