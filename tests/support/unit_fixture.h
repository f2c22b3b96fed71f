/* What many unit tests share: calls that must succeed, errors that say why, and memory that must have been
 * given back when a test ends. To be included behind <cmocka.h>. */
#ifndef TN_TESTS_UNIT_FIXTURE_H
#define TN_TESTS_UNIT_FIXTURE_H

#include <string.h>

#include "base/memory.h"

static inline void must(tn_status status) {
    if (status != TN_OK) fail_msg("%s", tn_error());
}

/* The last error is one line that says both. */
static inline void assert_error(const char *a, const char *b) {
    if (!strstr(tn_error(), a) || !strstr(tn_error(), b) || strchr(tn_error(), '\n'))
        fail_msg("'%s' does not say '%s' and '%s'", tn_error(), a, b);
}

static inline size_t *unit_memory_before(void) {
    static size_t bytes;
    return &bytes;
}

static inline int unit_setup(void **state) {
    (void)state;
    *unit_memory_before() = tn_memory_in_use();
    return 0;
}

static inline int unit_teardown(void **state) {
    (void)state;
    return tn_memory_in_use() == *unit_memory_before() ? 0 : -1;
}

/* A test that fails where it keeps memory. */
#define UNIT_TEST(name) cmocka_unit_test_setup_teardown(name, unit_setup, unit_teardown)

#endif
