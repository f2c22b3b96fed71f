#include "data/shard_index.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/memory.h"
#include "data/tar.h"

#define MAGIC "taunet-index 1 "

void tn_shard_index_free(tn_shard_index *index) {
    tn_free(index->samples);
    *index = (tn_shard_index){0};
}

tn_status tn_shard_index_add(tn_shard_index *index, tn_shard_sample sample) {
    if (index->count == INT_MAX) return tn_fail(TN_ERR_DATA, "more samples than can be counted");
    TN_TRY(tn_grow(&index->samples, &index->capacity, (size_t)index->count + 1, sizeof sample, "index"));
    index->samples[index->count++] = sample;
    return TN_OK;
}

int tn_shard_label(const uint8_t *text, size_t size) {
    static const char blanks[] = " \t\r\n";
    size_t i = 0, begin;
    int value = 0;
    while (i < size && memchr(blanks, text[i], 4)) i++;
    for (begin = i; i < size && i - begin < 6 && text[i] >= '0' && text[i] <= '9'; i++)
        value = 10 * value + (text[i] - '0');
    if (i == begin) return -1;
    while (i < size && memchr(blanks, text[i], 4)) i++;
    return i == size ? value : -1;
}

/* ---- a shard's members to samples ---- */

/* The sample that is being gathered. */
typedef struct gathering {
    tn_shard_index *index;
    const char *file;
    const uint8_t *bytes;
    char key[TN_TAR_NAME_MAX];
    bool has_label, has_image;
    tn_shard_sample sample;
} gathering;

static tn_status fail_sample(const gathering *g, const char *problem) {
    return tn_fail(TN_ERR_DATA, "%s: sample %s: %s; make the shard again", g->file,
                   tn_make_legible(g->key).text, problem);
}

static tn_status finish(gathering *g) {
    bool label = g->has_label, image = g->has_image;
    if (label && !image) return fail_sample(g, "a .cls without a .jpg, .jpeg, .png or .ppm");
    if (image && !label) return fail_sample(g, "an image without a .cls");
    g->has_label = g->has_image = false;
    return label ? tn_shard_index_add(g->index, g->sample) : TN_OK;
}

static bool is_image(const char *extension) {
    return !strcasecmp(extension, "jpg") || !strcasecmp(extension, "jpeg") || !strcasecmp(extension, "png") ||
           !strcasecmp(extension, "ppm");
}

static tn_status gather(gathering *g, tn_tar_member *member) {
    char *slash = strrchr(member->name, '/'), *dot = strchr(slash ? slash : member->name, '.');
    if (!dot) return TN_OK;
    *dot = 0;
    if (strcmp(member->name, g->key) != 0) {
        TN_TRY(finish(g));
        memcpy(g->key, member->name, strlen(member->name) + 1);
    }
    if (!strcasecmp(dot + 1, "cls")) {
        if (g->has_label) return fail_sample(g, "two .cls");
        g->has_label = true;
        g->sample.label = tn_shard_label(g->bytes + member->offset, member->size);
        if (g->sample.label < 0) return fail_sample(g, "its .cls is not a number from 0 to 999999");
    } else if (is_image(dot + 1)) {
        if (g->has_image) return fail_sample(g, "two images");
        if (member->size == 0) return fail_sample(g, "an image of 0 bytes");
        g->has_image = true;
        g->sample.offset = member->offset;
        g->sample.bytes = member->size;
    }
    return TN_OK;
}

static tn_status scan(gathering *g, tn_tar *tar, tn_tar_member *member) {
    bool more;
    for (;;) {
        TN_TRY(tn_tar_next(tar, member, &more));
        if (!more) return finish(g);
        TN_TRY(gather(g, member));
    }
}

tn_status tn_shard_index_scan(tn_shard_index *index, const char *file, const uint8_t *bytes, size_t size) {
    gathering g = {.index = index, .file = file, .bytes = bytes};
    tn_tar tar = {.bytes = bytes, .size = size, .file = file};
    tn_tar_member member;
    return scan(&g, &tar, &member);
}

/* ---- the file ---- */

tn_status tn_shard_index_print(const tn_shard_index *index, tn_string *out) {
    char hash[17] = "-";
    if (index->has_hash) snprintf(hash, sizeof hash, "%016llx", (unsigned long long)index->hash);
    TN_TRY(tn_string_printf(out, MAGIC "%llu %lld %d %s\n", (unsigned long long)index->size,
                            (long long)index->mtime, index->count, hash));
    for (int i = 0; i < index->count; i++)
        TN_TRY(tn_string_printf(out, "%llu %llu %d\n", (unsigned long long)index->samples[i].offset,
                                (unsigned long long)index->samples[i].bytes, index->samples[i].label));
    return TN_OK;
}

/* Reads a number up to `most` and the character behind it. */
static bool number(const char **at, const char *end, uint64_t most, char behind, uint64_t *out) {
    const char *p = *at;
    for (*out = 0; p < end && *p >= '0' && *p <= '9'; p++) {
        if (*out > most / 10) return false;
        *out = 10 * *out + (uint64_t)(*p - '0');
    }
    if (p == *at || p == end || *p != behind || *out > most) return false;
    *at = p + 1;
    return true;
}

/* Reads "-" or 16 hexadecimal digits, and the end of the line. */
static bool read_hash(const char **at, const char *end, tn_shard_index *index) {
    static const char digits[] = "0123456789abcdef";
    const char *p = *at;
    if (end - p >= 2 && p[0] == '-' && p[1] == '\n') {
        *at = p + 2;
        return true;
    }
    if (end - p < 17 || p[16] != '\n') return false;
    for (int i = 0; i < 16; i++) {
        const char *digit = p[i] ? strchr(digits, p[i]) : NULL;
        if (!digit) return false;
        index->hash = index->hash << 4 | (uint64_t)(digit - digits);
    }
    index->has_hash = true;
    *at = p + 17;
    return true;
}

tn_status tn_shard_index_parse(tn_shard_index *index, const char *file, const char *text, size_t size) {
    const char *at = text, *end = text + size;
    uint64_t mtime, count, label;
    tn_shard_sample sample;
    if (size < strlen(MAGIC) || memcmp(text, MAGIC, strlen(MAGIC)) != 0)
        return tn_fail(TN_ERR_DATA, "%s: not an index that taunet wrote; remove it", file);
    at += strlen(MAGIC);
    if (!number(&at, end, INT64_MAX, ' ', &index->size) || !number(&at, end, INT64_MAX, ' ', &mtime) ||
        !number(&at, end, INT_MAX, ' ', &count) || !read_hash(&at, end, index))
        return tn_fail(TN_ERR_DATA, "%s: line 1 is damaged; remove the file", file);
    index->mtime = (int64_t)mtime;
    while (at < end) {
        if (!number(&at, end, index->size, ' ', &sample.offset) ||
            !number(&at, end, index->size, ' ', &sample.bytes) ||
            !number(&at, end, TN_LABEL_MAX, '\n', &label) || sample.bytes < 1 ||
            sample.bytes > index->size - sample.offset)
            return tn_fail(TN_ERR_DATA, "%s: line %d is damaged; remove the file", file, index->count + 2);
        sample.label = (int)label;
        TN_TRY(tn_shard_index_add(index, sample));
    }
    if ((uint64_t)index->count != count)
        return tn_fail(TN_ERR_DATA, "%s: %d samples where the first line says %llu; remove the file", file,
                       index->count, (unsigned long long)count);
    return TN_OK;
}
