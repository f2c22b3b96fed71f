/* Fuzz target of what a WebDataset brings: the first byte of an input chooses a tar shard (0), the text of an
 * index (1), a .cls (2) or a list of classes (3). */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/image_folder.h"
#include "data/shard_index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const tn_shard_index *index, uint64_t size) {
    for (int i = 0; i < index->count; i++) {
        const tn_shard_sample *s = &index->samples[i];
        if (s->bytes < 1 || s->offset > size || s->bytes > size - s->offset || s->label < 0 ||
            s->label > TN_LABEL_MAX)
            abort();
    }
}

/* What was parsed is printed and parsed again to the same. */
static void check_text(const tn_shard_index *index) {
    tn_string text = {0};
    tn_shard_index again = {0};
    if (tn_shard_index_print(index, &text) != TN_OK) abort();
    if (tn_shard_index_parse(&again, "again", text.data, text.length) != TN_OK) abort();
    if (again.count != index->count || again.size != index->size || again.mtime != index->mtime ||
        again.has_hash != index->has_hash || again.hash != index->hash)
        abort();
    for (int i = 0; i < index->count; i++)
        if (again.samples[i].offset != index->samples[i].offset ||
            again.samples[i].bytes != index->samples[i].bytes ||
            again.samples[i].label != index->samples[i].label)
            abort();
    tn_string_free(&text);
    tn_shard_index_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    const uint8_t *rest = data + 1;
    size_t before = tn_memory_in_use();
    tn_shard_index index = {0};
    tn_status status = TN_OK;
    size--;
    switch (data[0] & 3) {
    case 0:
        status = tn_shard_index_scan(&index, "input", rest, size);
        if (status == TN_OK) check(&index, size);
        break;
    case 1:
        status = tn_shard_index_parse(&index, "input", (const char *)rest, size);
        if (status == TN_OK) {
            check(&index, index.size);
            check_text(&index);
        }
        break;
    case 2:
        if (tn_shard_label(rest, size) > TN_LABEL_MAX) abort();
        break;
    default:
        if (tn_class_list_lines((const char *)rest, size) < 0) abort();
    }
    if (status != TN_OK && (tn_error()[0] == 0 || strchr(tn_error(), '\n'))) abort();
    tn_shard_index_free(&index);
    if (tn_memory_in_use() != before) abort();
    return 0;
}
