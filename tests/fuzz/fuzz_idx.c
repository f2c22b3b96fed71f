/* Fuzz target of the IDX reader. The first byte of an input chooses labels (even: 1 dimension) or images
 * (odd: 3), the rest is the file, plain or gzip. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/idx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    int ndims = data[0] & 1 ? 3 : 1;
    size_t before = tn_memory_in_use(), elements = 1;
    tn_idx idx;
    if (tn_idx_parse("input", data + 1, size - 1, ndims, &idx) == TN_OK) {
        for (int d = 0; d < ndims; d++) elements *= (size_t)idx.dims[d];
        if (elements == 0 || elements != idx.size) abort();
        /* Reads all of it, for the sanitizer. */
        volatile uint8_t sum = 0;
        for (size_t i = 0; i < idx.size; i++) sum = (uint8_t)(sum + idx.data[i]);
    } else if (idx.data || tn_error()[0] == 0 || strchr(tn_error(), '\n')) {
        abort();
    }
    tn_free(idx.data);
    if (tn_memory_in_use() != before) abort();
    return 0;
}
