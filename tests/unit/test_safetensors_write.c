/* The safetensors writer: what it writes is read back, and nothing is left half-written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>

#include "base/memory.h"
#include "io/safetensors.h"
#include "temp_folder.h"
#include "tests/support/unit_fixture.h"

static temp_folder folder;
static temp_path path;

static int setup(void **state) {
    folder = temp_folder_make();
    path = temp_path_of(&folder, "x.safetensors");
    return unit_setup(state);
}

static int teardown(void **state) {
    temp_folder_remove(&folder);
    return unit_teardown(state);
}

static const float weights[6] = {1.5f, -2.0f, 0.0f, 1e-30f, 3e38f, -0.0f};
static const int64_t steps = 12345678901;
static const int64_t weights_dims[] = {2, 3}, empty_dims[] = {4, 0};
static const tn_safetensors_entry entries[] = {
    {.name = "layer1.0.conv1.weight",
     .dtype = TN_DTYPE_F32,
     .rank = 2,
     .dims = weights_dims,
     .data = weights},
    {.name = "empty", .dtype = TN_DTYPE_F32, .rank = 2, .dims = empty_dims},
    {.name = "bn.num_batches_tracked \"\\\x01\xe2\x82\xac", .dtype = TN_DTYPE_I64, .data = &steps}};
static const tn_safetensors_meta metadata[] = {{"epoch", "17"},
                                               {"text", "a \"quoted\" \\ line\nand \xe2\x82\xac"}};

static tn_status write_example(void) {
    return tn_safetensors_write(path.text, entries, 3, metadata, 2);
}

static void writes_what_it_reads(void **state) {
    (void)state;
    assert_int_equal(write_example(), TN_OK);
    tn_safetensors *file;
    assert_int_equal(tn_safetensors_open(path.text, &file), TN_OK);
    assert_int_equal(tn_safetensors_count(file), 3);
    for (int i = 0; i < 3; i++) {
        const tn_safetensors_entry *entry = tn_safetensors_at(file, i);
        assert_string_equal(entry->name, entries[i].name);
        assert_int_equal(entry->dtype, entries[i].dtype);
        assert_int_equal(entry->rank, entries[i].rank);
        for (int d = 0; d < entry->rank; d++) assert_int_equal(entry->dims[d], entries[i].dims[d]);
        assert_int_equal(entry->bytes, i == 0 ? 24 : i == 1 ? 0 : 8);
        if (entry->bytes > 0) assert_memory_equal(entry->data, entries[i].data, entry->bytes);
        assert_int_equal((uintptr_t)entry->data % 8, 0);
    }
    assert_int_equal(tn_safetensors_metadata_count(file), 3);
    for (int i = 0; i < 2; i++)
        assert_string_equal(tn_safetensors_metadata(file, metadata[i].key), metadata[i].value);
    tn_safetensors_close(file);
    assert_int_equal(temp_count(&folder), 1);
}

/* Byte for byte; the hash of "abc" is XXH64's published test value. */
static void writes_exactly_this(void **state) {
    (void)state;
    static const int64_t dims[] = {3};
    tn_safetensors_entry abc = {.name = "t", .dtype = TN_DTYPE_U8, .rank = 1, .dims = dims, .data = "abc"};
    tn_safetensors_meta old_hash = {"xxh64", "of another file"};
    assert_int_equal(tn_safetensors_write(path.text, &abc, 1, &old_hash, 1), TN_OK);
    static const char expected[] = "\x68\0\0\0\0\0\0\0{\"__metadata__\":{\"xxh64\":\"44bc2cf5ad770999\"},"
                                   "\"t\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}       abc";
    size_t count = 0;
    char *bytes = temp_read(path.text, &count);
    assert_int_equal(count, sizeof expected - 1);
    assert_memory_equal(bytes, expected, count);
    free(bytes);
}

static void pads_the_header_to_8_bytes(void **state) {
    (void)state;
    for (int extra = 0; extra < 9; extra++) {
        char value[16] = "xxxxxxxxxxxxxxx";
        value[extra] = 0;
        tn_safetensors_meta meta = {"m", value};
        assert_int_equal(tn_safetensors_write(path.text, entries, 3, &meta, 1), TN_OK);
        size_t count = 0;
        char *bytes = temp_read(path.text, &count);
        assert_int_equal(bytes[0] % 8, 0);
        assert_int_equal((count - 32) % 8, 0);
        free(bytes);
    }
    assert_int_equal(tn_safetensors_write(path.text, NULL, 0, NULL, 0), TN_OK);
    tn_safetensors *file;
    assert_int_equal(tn_safetensors_open(path.text, &file), TN_OK);
    assert_int_equal(tn_safetensors_count(file), 0);
    tn_safetensors_close(file);
}

static void finds_any_flipped_bit_and_any_cut(void **state) {
    (void)state;
    assert_int_equal(write_example(), TN_OK);
    size_t count = 0;
    char *bytes = temp_read(path.text, &count);
    tn_safetensors *file;
    for (size_t cut = 0; cut < count; cut++) {
        assert_int_equal(tn_safetensors_parse(bytes, cut, "cut", &file), TN_ERR_DATA);
        assert_error("cut: ", "");
    }
    for (size_t bit = 8 * (count - 32); bit < 8 * count; bit++) {
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        assert_int_equal(tn_safetensors_parse(bytes, count, "flipped", &file), TN_ERR_DATA);
        assert_error("flipped: ", "damaged");
        bytes[bit / 8] ^= (char)(1 << bit % 8);
    }
    assert_int_equal(tn_safetensors_parse(bytes, count, "whole", &file), TN_OK);
    tn_safetensors_close(file);
    free(bytes);
}

static void refuses_to_write(const tn_safetensors_entry *bad, int count, const tn_safetensors_meta *meta,
                             int metas, const char *reason) {
    assert_int_equal(tn_safetensors_write(path.text, bad, count, meta, metas), TN_ERR_USAGE);
    assert_error(path.text, reason);
    assert_int_equal(temp_count(&folder), 0);
}

static void refuses_to_write_what_cannot_be_read(void **state) {
    (void)state;
    static const int64_t negative[] = {-1}, huge[] = {INT64_MAX, 3}, large[] = {(int64_t)1 << 60},
                         three[] = {3};
    tn_safetensors_entry bad[2] = {entries[0], entries[0]};
    refuses_to_write(bad, 2, NULL, 0, "tensor 'layer1.0.conv1.weight': the name stands twice");
    bad[0].name = "__metadata__";
    refuses_to_write(bad, 1, NULL, 0, "reserved");
    bad[0].name = "\xff";
    refuses_to_write(bad, 1, NULL, 0, "not UTF-8");
    bad[0] = entries[0], bad[0].dtype = TN_DTYPES;
    refuses_to_write(bad, 1, NULL, 0, "no such dtype");
    bad[0] = entries[0], bad[0].rank = -1;
    refuses_to_write(bad, 1, NULL, 0, "no such dtype or rank");
    bad[0] = entries[0], bad[0].data = NULL;
    refuses_to_write(bad, 1, NULL, 0, "no data");
    bad[0] = entries[0], bad[0].rank = 1, bad[0].dims = negative;
    refuses_to_write(bad, 1, NULL, 0, "negative");
    bad[0].rank = 2, bad[0].dims = huge;
    refuses_to_write(bad, 1, NULL, 0, "overflows");
    bad[0] =
        (tn_safetensors_entry){.name = "f4", .dtype = TN_DTYPE_F4, .rank = 1, .dims = three, .data = "xx"};
    refuses_to_write(bad, 1, NULL, 0, "do not fill whole bytes");
    tn_safetensors_entry many[9];
    static const char *const names[] = {"1", "2", "3", "4", "5", "6", "7", "8", "9"};
    for (int i = 0; i < 9; i++)
        many[i] = (tn_safetensors_entry){
            .name = names[i], .dtype = TN_DTYPE_U8, .rank = 1, .dims = large, .data = "x"};
    refuses_to_write(many, 9, NULL, 0, "tensor '8': no file can be so large");
    tn_safetensors_meta meta[2] = {{"a", "1"}, {"a", "2"}};
    refuses_to_write(entries, 3, meta, 2, "metadata 'a' stands twice");
    meta[1] = (tn_safetensors_meta){"b", "\xc3"};
    refuses_to_write(entries, 3, meta, 2, "metadata 'b' is not UTF-8");
    meta[1] = (tn_safetensors_meta){"\xc3", "b"};
    refuses_to_write(entries, 3, meta, 2, "is not UTF-8");
}

static void refuses_to_write_a_header_beyond_100_million(void **state) {
    (void)state;
    size_t count = 100000000;
    char *value = malloc(count + 1);
    assert_non_null(value);
    memset(value, 'v', count);
    value[count] = 0;
    tn_safetensors_meta meta = {"long", value};
    refuses_to_write(entries, 3, &meta, 1, "more than the format's 100000000");
    free(value);
}

static void failed_write_leaves_the_previous_file(void **state) {
    (void)state;
    assert_int_equal(write_example(), TN_OK);
    size_t count = 0, count_after = 0;
    char *before = temp_read(path.text, &count);
    /* Cut in the data, and in the header. */
    static const long limits[] = {300, 100};
    for (int i = 0; i < 2; i++) {
        temp_limit_files(limits[i]);
        tn_status status = write_example();
        temp_limit_files(-1);
        assert_int_equal(status, TN_ERR_IO);
        assert_error(path.text, strerror(EFBIG));
        char *after = temp_read(path.text, &count_after);
        assert_int_equal(count, count_after);
        assert_memory_equal(before, after, count);
        free(after);
        assert_int_equal(temp_count(&folder), 1);
    }
    assert_true(count > 300 && count < 400);
    free(before);
    assert_int_equal(tn_safetensors_write(temp_path_of(&folder, "x.safetensors/y").text, entries, 3, NULL, 0),
                     TN_ERR_IO);
    assert_error("x.safetensors", strerror(ENOTDIR));
}

/* Memory that runs out at every possible place */

static void survives_failing_allocations(void **state) {
    (void)state;
    int failures = 0;
    for (;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_safetensors *file = NULL;
        tn_status status = write_example();
        if (status == TN_OK) status = tn_safetensors_open(path.text, &file);
        tn_memory_fail_at(0);
        tn_safetensors_close(file);
        assert_int_equal(tn_memory_in_use(), *unit_memory_before());
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
        assert_null(file);
        assert_true(temp_count(&folder) <= 1);
    }
    assert_true(failures >= 12);

    size_t count = 0;
    char *bytes = temp_read(path.text, &count);
    for (failures = 0;; failures++) {
        tn_memory_fail_at(failures + 1);
        tn_safetensors *file;
        tn_status status = tn_safetensors_parse(bytes, count, "memory", &file);
        tn_memory_fail_at(0);
        tn_safetensors_close(file);
        assert_int_equal(tn_memory_in_use(), *unit_memory_before());
        if (status == TN_OK) break;
        assert_int_equal(status, TN_ERR_MEMORY);
    }
    assert_int_equal(failures, 6); /* file, header, metadata, dims, tensors, index */
    free(bytes);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(writes_what_it_reads),
        TEST(writes_exactly_this),
        TEST(pads_the_header_to_8_bytes),
        TEST(finds_any_flipped_bit_and_any_cut),
        TEST(refuses_to_write_what_cannot_be_read),
        TEST(refuses_to_write_a_header_beyond_100_million),
        TEST(failed_write_leaves_the_previous_file),
        TEST(survives_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
