/* Fuzz target: the safetensors reader on arbitrary bytes. What is accepted must keep the promises of the
 * header. */
#include <stdint.h>
#include <string.h>

#include "base/memory.h"
#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

/* Touches all that the reader hands out, so that a sanitizer sees what is out of bounds. */
static void check_entry(const tn_safetensors *file, const tn_safetensors_entry *entry, const uint8_t *bytes,
                        size_t count) {
    uint64_t size = 0;
    TN_ASSERT(tn_safetensors_size(entry->dtype, entry->rank, entry->dims, &size) == NULL);
    TN_ASSERT(size == entry->bytes);
    const uint8_t *data = entry->data;
    TN_ASSERT(data >= bytes && data + entry->bytes <= bytes + count);
    TN_ASSERT(tn_safetensors_find(file, entry->name) == entry);
    TN_ASSERT(strlen(entry->name) < count);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count) {
    tn_safetensors *file;
    size_t before = tn_memory_in_use();
    tn_status status = tn_safetensors_parse(bytes, count, "input", &file);
    TN_ASSERT((status == TN_OK) == (file != NULL));
    if (status == TN_OK) {
        size_t total = 0;
        for (int i = 0; i < tn_safetensors_count(file); i++) {
            check_entry(file, tn_safetensors_at(file, i), bytes, count);
            total += tn_safetensors_at(file, i)->bytes;
        }
        TN_ASSERT(total < count);
        for (int i = 0; i < tn_safetensors_metadata_count(file); i++) {
            const tn_safetensors_meta *meta = tn_safetensors_metadata_at(file, i);
            TN_ASSERT(tn_safetensors_metadata(file, meta->key) == meta->value);
        }
    } else {
        TN_ASSERT(status == TN_ERR_DATA && strncmp(tn_error(), "input: ", 7) == 0 &&
                  !strchr(tn_error(), '\n'));
    }
    tn_safetensors_close(file);
    TN_ASSERT(tn_memory_in_use() == before);
    return 0;
}
