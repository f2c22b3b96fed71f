/* The safetensors format: tensors by name in one file (https://github.com/huggingface/safetensors, "Format").
 *
 *   u64 little-endian N | N bytes of JSON, '{' first, padded with spaces | data
 *   {"__metadata__": {"key": "text", ...}, "NAME": {"dtype": "F32", "shape": [16, 3, 3, 3], "data_offsets":
 * [BEGIN, END]}, ...}
 *
 * Offsets count from the start of the data. Tensors are row-major and little-endian and fill the data without
 * overlaps or holes. The reader is strict: what breaks these rules is TN_ERR_DATA, with a message that names
 * the file and the tensor. Beyond the rules it refuses fields that it does not know and zero characters in
 * strings.
 *
 * Files written here carry the XXH64 (seed 0) of the data as "xxh64" in __metadata__, 16 hexadecimal digits;
 * the reader checks it when it is there. */
#ifndef TN_IO_SAFETENSORS_H
#define TN_IO_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

/* The format's element types. The names in a file are those after TN_DTYPE_. */
typedef enum tn_dtype {
    TN_DTYPE_BOOL,
    TN_DTYPE_F4,
    TN_DTYPE_F6_E2M3,
    TN_DTYPE_F6_E3M2,
    TN_DTYPE_U8,
    TN_DTYPE_I8,
    TN_DTYPE_F8_E5M2,
    TN_DTYPE_F8_E4M3,
    TN_DTYPE_F8_E8M0,
    TN_DTYPE_F8_E4M3FNUZ,
    TN_DTYPE_F8_E5M2FNUZ,
    TN_DTYPE_I16,
    TN_DTYPE_U16,
    TN_DTYPE_F16,
    TN_DTYPE_BF16,
    TN_DTYPE_I32,
    TN_DTYPE_U32,
    TN_DTYPE_F32,
    TN_DTYPE_C64,
    TN_DTYPE_F64,
    TN_DTYPE_I64,
    TN_DTYPE_U64,
    TN_DTYPES
} tn_dtype;

/* "F32" */
const char *tn_dtype_name(tn_dtype dtype);
/* 32 for F32; F4 and F6 take less than a byte and are packed. */
int tn_dtype_bits(tn_dtype dtype);

/* One tensor, as it is read or to be written. */
typedef struct tn_safetensors_entry {
    const char *name;
    tn_dtype dtype;
    int rank;            /* 0: one element */
    const int64_t *dims; /* [rank], each >= 0 */
    const void
        *data; /* row-major; as read, aligned to 8 bytes only in files whose tensors are: copy with memcpy */
    size_t bytes; /* of data; set by the reader, ignored by the writer */
} tn_safetensors_entry;

typedef struct tn_safetensors_meta {
    const char *key, *value;
} tn_safetensors_meta;

/* A file that was read, whole, with everything checked. Entries and texts belong to it. */
typedef struct tn_safetensors tn_safetensors;

/* Reads the file at `path` into memory. TN_ERR_IO, TN_ERR_DATA or TN_ERR_MEMORY; *out is NULL then. */
tn_status tn_safetensors_open(const char *path, tn_safetensors **out);

/* The same for a file in memory, which must stay as it is until tn_safetensors_close. `source` names it in
 * messages. */
tn_status tn_safetensors_parse(const void *bytes, size_t count, const char *source, tn_safetensors **out);

/* Frees everything; NULL is allowed. */
void tn_safetensors_close(tn_safetensors *file);

/* Tensors in the order of their data. */
int tn_safetensors_count(const tn_safetensors *file);
const tn_safetensors_entry *tn_safetensors_at(const tn_safetensors *file, int index);

/* The tensor of that name, or NULL. */
const tn_safetensors_entry *tn_safetensors_find(const tn_safetensors *file, const char *name);

/* Metadata in the order of its keys (strcmp), "xxh64" included. */
int tn_safetensors_metadata_count(const tn_safetensors *file);
const tn_safetensors_meta *tn_safetensors_metadata_at(const tn_safetensors *file, int index);

/* The metadata's text under `key`, or NULL. */
const char *tn_safetensors_metadata(const tn_safetensors *file, const char *key);

/* Writes a file with `count` tensors, in the order given, and `metadata_count` pairs of metadata; the file at
 * `path` is replaced as a whole or not at all (io/atomic_file.h). A pair "xxh64" is replaced by the hash of
 * what is written. The data of the file starts at a multiple of 8 bytes. TN_ERR_USAGE for entries that the
 * format cannot hold (a name twice or not UTF-8, a size that overflows, ...); TN_ERR_IO; TN_ERR_MEMORY. */
tn_status tn_safetensors_write(const char *path, const tn_safetensors_entry *entries, int count,
                               const tn_safetensors_meta *metadata, int metadata_count);

/* What reader and writer share. Bytes of a tensor of this type and shape into *bytes; NULL, or what is wrong
 * with it. */
const char *tn_safetensors_size(tn_dtype dtype, int rank, const int64_t *dims, uint64_t *bytes);

#define TN_SAFETENSORS_HEADER_MAX 100000000u
#define TN_SAFETENSORS_METADATA   "__metadata__"
#define TN_SAFETENSORS_HASH       "xxh64"

#endif
