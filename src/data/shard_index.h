/* What is in one tar shard of a WebDataset: consecutive members with the same name up to the first dot of
 * its last part are one sample; `.cls` holds its class, a decimal number, and `.jpg`, `.jpeg`, `.png` or
 * `.ppm` the image (upper case too). Other members are passed over.
 *
 * Finding this out takes a walk through the shard; the result is kept beside it, in SHARD.index, a text:
 *
 *   taunet-index 1 SIZE MTIME SAMPLES XXH64
 *   OFFSET BYTES CLASS                         a line for each sample: where its image lies
 *
 * SIZE and MTIME (nanoseconds since 1970) are the shard's when it was read: with others the index is out of
 * date and is made again. XXH64, of the whole shard, is there when datasets/pack wrote it, else "-". */
#ifndef TN_DATA_SHARD_INDEX_H
#define TN_DATA_SHARD_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/text.h"

#define TN_LABEL_MAX 999999

typedef struct tn_shard_sample {
    uint64_t offset, bytes;
    int label; /* 0 .. TN_LABEL_MAX */
} tn_shard_sample;

/* Zero-initialise; free with tn_shard_index_free. */
typedef struct tn_shard_index {
    int count;
    size_t capacity;
    tn_shard_sample *samples;
    uint64_t size; /* of the shard */
    int64_t mtime;
    bool has_hash;
    uint64_t hash;
} tn_shard_index;

void tn_shard_index_free(tn_shard_index *index);

tn_status tn_shard_index_add(tn_shard_index *index, tn_shard_sample sample);

/* Walks through a shard in memory and adds its samples. TN_ERR_DATA names the shard and the sample: a class
 * without image, two images, a class that is no number, an image of no bytes, or what tar.h refuses. */
tn_status tn_shard_index_scan(tn_shard_index *index, const char *file, const uint8_t *bytes, size_t size);

/* The text of an index, and back. TN_ERR_DATA, with the line, for what is not one, or lies outside the
 * shard's size. */
tn_status tn_shard_index_print(const tn_shard_index *index, tn_string *out);
tn_status tn_shard_index_parse(tn_shard_index *index, const char *file, const char *text, size_t size);

/* Reads the index of the shard at `path`, of this size and time; *found is false, and the index empty, where
 * there is none or it is out of date. TN_ERR_DATA for one that is damaged. */
tn_status tn_shard_index_load(tn_shard_index *index, const char *path, uint64_t size, int64_t mtime,
                              bool *found);

/* Writes the index of the shard at `path` (io/atomic_file.h). In a folder that must not be written to nothing
 * happens: the index only saves time. */
tn_status tn_shard_index_save(const tn_shard_index *index, const char *path);

/* When a file was changed, as an index notes it. */
int64_t tn_shard_mtime(const struct stat *info);

/* Reads a class: a number of at most 6 digits, white space around it allowed; -1 when it is none. */
int tn_shard_label(const uint8_t *text, size_t size);

#endif
