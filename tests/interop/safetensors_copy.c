/* safetensors_copy IN OUT: reads a file with our reader and writes its tensors and metadata with our writer.
 */
#include <stdio.h>

#include "base/memory.h"
#include "io/safetensors.h"

static tn_status copy(const tn_safetensors *file, const char *out) {
    int count = tn_safetensors_count(file), metadata_count = tn_safetensors_metadata_count(file);
    tn_safetensors_entry *entries;
    tn_safetensors_meta *metadata = NULL;
    TN_TRY(tn_alloc(&entries, (size_t)count, sizeof *entries, "tensors"));
    tn_status status = tn_alloc(&metadata, (size_t)metadata_count, sizeof *metadata, "metadata");
    for (int i = 0; i < count && status == TN_OK; i++) entries[i] = *tn_safetensors_at(file, i);
    for (int i = 0; i < metadata_count && status == TN_OK; i++)
        metadata[i] = *tn_safetensors_metadata_at(file, i);
    if (status == TN_OK) status = tn_safetensors_write(out, entries, count, metadata, metadata_count);
    tn_free(metadata);
    tn_free(entries);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: safetensors_copy IN OUT\n");
        return 2;
    }
    tn_safetensors *file;
    tn_status status = tn_safetensors_open(argv[1], &file);
    if (status == TN_OK) status = copy(file, argv[2]);
    tn_safetensors_close(file);
    if (status == TN_OK) return 0;
    fprintf(stderr, "error: %s\n", tn_error());
    return 1;
}
