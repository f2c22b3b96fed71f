/* Host memory: zeroed, 64-byte aligned, overflow-checked, with a hook that makes a chosen allocation fail.
 * Failures are reported as TN_ERR_MEMORY with the size asked for and what it was for. */
#ifndef TN_BASE_MEMORY_H
#define TN_BASE_MEMORY_H

#include <stddef.h>

#include "base/fail.h"

/* Allocates count * size zeroed bytes into *out (NULL on failure). Zero bytes yield a valid pointer. `what`
 * names the use in the message. Free with tn_free. */
tn_status tn_alloc(void *out, size_t count, size_t size, const char *what);

/* Grows the array at *array (NULL or from this module, `*capacity` elements) to hold at least `needed`
 * elements of `size` bytes; doubles, keeps the contents, zeroes the rest. */
tn_status tn_grow(void *array, size_t *capacity, size_t needed, size_t size, const char *what);

/* Frees memory from tn_alloc or tn_grow; NULL is allowed. */
void tn_free(void *memory);

/* Copies a string into fresh memory. */
tn_status tn_strdup(char **out, const char *text);

/* Bytes currently allocated through this module, in the whole process. */
size_t tn_memory_in_use(void);

/* Test hook: the n-th allocation from now on (1 = the next) fails, once. 0 switches the hook off. */
void tn_memory_fail_at(long n);

#endif
