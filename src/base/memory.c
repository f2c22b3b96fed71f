#include "base/memory.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

/* Stands right in front of every block. */
typedef struct header {
    void *start; /* of the memory that the C library gave */
    size_t bytes;
} header;

static atomic_size_t in_use;
static atomic_long fail_countdown;

void tn_memory_fail_at(long n) {
    atomic_store(&fail_countdown, n);
}

size_t tn_memory_in_use(void) {
    return atomic_load(&in_use);
}

static int planned_failure(void) {
    if (atomic_load(&fail_countdown) <= 0) return 0;
    return atomic_fetch_sub(&fail_countdown, 1) == 1;
}

tn_status tn_alloc(void *out, size_t count, size_t size, const char *what) {
    void **slot = out;
    *slot = NULL;
    size_t limit = SIZE_MAX - 2 * ALIGNMENT;
    if (size != 0 && count > limit / size)
        return tn_fail(TN_ERR_MEMORY, "%s: %zu x %zu bytes is more than can be addressed", what, count, size);
    size_t bytes = count * size;
    /* calloc leaves large blocks untouched until they are used, where a memset would fetch every page now. */
    void *start = planned_failure() ? NULL : calloc(1, bytes + sizeof(header) + ALIGNMENT);
    if (!start)
        return tn_fail(
            TN_ERR_MEMORY,
            "%s: out of memory: asked for %.1f MiB with %.1f MiB in use; use a smaller model, batch or "
            "data set, or fewer threads",
            what, (double)bytes / 1048576.0, (double)atomic_load(&in_use) / 1048576.0);
    uintptr_t first = (uintptr_t)start + sizeof(header);
    void *block = (unsigned char *)start + (sizeof(header) + (ALIGNMENT - first % ALIGNMENT) % ALIGNMENT);
    ((header *)block)[-1] = (header){.start = start, .bytes = bytes};
    atomic_fetch_add(&in_use, bytes);
    *slot = block;
    return TN_OK;
}

void tn_free(void *memory) {
    if (!memory) return;
    header h = ((header *)memory)[-1];
    atomic_fetch_sub(&in_use, h.bytes);
    free(h.start);
}

tn_status tn_grow(void *array, size_t *capacity, size_t needed, size_t size, const char *what) {
    void **slot = array;
    if (needed <= *capacity) return TN_OK;
    size_t grown = *capacity < 8 ? 8 : *capacity;
    while (grown < needed && grown <= SIZE_MAX / 2) grown *= 2;
    if (grown < needed) grown = needed;
    void *bigger;
    TN_TRY(tn_alloc(&bigger, grown, size, what));
    if (*slot) memcpy(bigger, *slot, *capacity * size);
    tn_free(*slot);
    *slot = bigger;
    *capacity = grown;
    return TN_OK;
}

tn_status tn_strdup(char **out, const char *text) {
    size_t bytes = strlen(text) + 1;
    TN_TRY(tn_alloc(out, bytes, 1, "text"));
    memcpy(*out, text, bytes);
    return TN_OK;
}
