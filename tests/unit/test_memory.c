/* Host memory: alignment, zeroing, growth, accounting, overflow and planned failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"

static void assert_zero(const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) assert_int_equal(bytes[i], 0);
}

static void blocks_are_aligned_and_zero(void **state) {
    (void)state;
    for (size_t size = 0; size < 300; size += 7) {
        unsigned char *block;
        assert_int_equal(tn_alloc(&block, size, 1, "test"), TN_OK);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        assert_zero(block, size);
        memset(block, 0xFF, size); /* the next block may be the same memory */
        tn_free(block);
    }
    tn_free(NULL);
}

static void use_is_counted(void **state) {
    (void)state;
    size_t before = tn_memory_in_use();
    void *a, *b;
    assert_int_equal(tn_alloc(&a, 100, 8, "test"), TN_OK);
    assert_int_equal(tn_memory_in_use(), before + 800);
    assert_int_equal(tn_alloc(&b, 3, 1, "test"), TN_OK);
    assert_int_equal(tn_memory_in_use(), before + 803);
    tn_free(a);
    assert_int_equal(tn_memory_in_use(), before + 3);
    tn_free(b);
    assert_int_equal(tn_memory_in_use(), before);
}

static void too_much_is_refused(void **state) {
    (void)state;
    size_t before = tn_memory_in_use();
    static const size_t cases[][2] = {
        {SIZE_MAX, 1}, {SIZE_MAX, 2}, {SIZE_MAX / 2 + 1, 2}, {(size_t)1 << 62, 8}, {SIZE_MAX - 127, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int anything = 0;
        void *block = &anything;
        assert_int_equal(tn_alloc(&block, cases[i][0], cases[i][1], "activations"), TN_ERR_MEMORY);
        assert_null(block);
        assert_non_null(strstr(tn_error(), "activations"));
    }
    void *block;
    assert_int_equal(tn_alloc(&block, SIZE_MAX / 4, 1, "weights"), TN_ERR_MEMORY);
    assert_non_null(strstr(tn_error(), "weights: out of memory: asked for"));
    assert_int_equal(tn_memory_in_use(), before);
}

static void the_chosen_allocation_fails(void **state) {
    (void)state;
    void *block;
    size_t before = tn_memory_in_use();
    tn_memory_fail_at(3);
    for (int i = 1; i <= 5; i++) {
        assert_int_equal(tn_alloc(&block, 1, 1, "test"), i == 3 ? TN_ERR_MEMORY : TN_OK);
        assert_int_equal(block == NULL, i == 3);
        tn_free(block);
    }
    tn_memory_fail_at(1);
    tn_memory_fail_at(0);
    assert_int_equal(tn_alloc(&block, 1, 1, "test"), TN_OK);
    tn_free(block);
    assert_int_equal(tn_memory_in_use(), before);
}

static void arrays_grow(void **state) {
    (void)state;
    size_t before = tn_memory_in_use();
    uint32_t *array = NULL;
    size_t capacity = 0, moves = 0;
    for (size_t n = 0; n < 10000; n++) {
        size_t old = capacity;
        assert_int_equal(tn_grow(&array, &capacity, n + 1, sizeof *array, "test"), TN_OK);
        assert_true(capacity >= n + 1);
        moves += capacity != old;
        for (size_t i = n; i < capacity && i < n + 3; i++) assert_int_equal(array[i], 0);
        array[n] = (uint32_t)(n * n);
    }
    for (size_t n = 0; n < 10000; n++) assert_int_equal(array[n], (uint32_t)(n * n));
    assert_true(moves <= 12); /* doubling from 8 */
    assert_int_equal(tn_memory_in_use(), before + capacity * sizeof *array);

    /* A failure leaves the array as it was. */
    uint32_t *old_array = array;
    size_t old_capacity = capacity;
    tn_memory_fail_at(1);
    assert_int_equal(tn_grow(&array, &capacity, capacity + 1, sizeof *array, "test"), TN_ERR_MEMORY);
    assert_int_equal(tn_grow(&array, &capacity, SIZE_MAX, sizeof *array, "test"), TN_ERR_MEMORY);
    assert_ptr_equal(array, old_array);
    assert_int_equal(capacity, old_capacity);
    assert_int_equal(array[9999], 9999 * 9999);
    tn_free(array);
    assert_int_equal(tn_memory_in_use(), before);
}

static void strings_are_copied(void **state) {
    (void)state;
    char text[] = "tau", *copy;
    assert_int_equal(tn_strdup(&copy, text), TN_OK);
    text[0] = 'x';
    assert_string_equal(copy, "tau");
    tn_free(copy);
    tn_memory_fail_at(1);
    assert_int_equal(tn_strdup(&copy, text), TN_ERR_MEMORY);
    assert_null(copy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_aligned_and_zero),
        cmocka_unit_test(use_is_counted),
        cmocka_unit_test(too_much_is_refused),
        cmocka_unit_test(the_chosen_allocation_fails),
        cmocka_unit_test(arrays_grow),
        cmocka_unit_test(strings_are_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
