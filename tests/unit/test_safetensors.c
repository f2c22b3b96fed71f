/* The safetensors reader, rejection by rejection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sys/syscall.h>

#include "io/safetensors.h"
#include "temp_folder.h"
#include "tests/support/unit_fixture.h"

/* Takes the place of the C library's function in this program, to be interrupted, to give little, or to fail.
 */
static int reads_to_trouble = -1, trouble_errno;
static size_t read_limit = SIZE_MAX;

ssize_t read(int fd, void *bytes, size_t count) {
    if (reads_to_trouble >= 0 && reads_to_trouble-- == 0) {
        errno = trouble_errno;
        return trouble_errno == 0 ? 0 : -1;
    }
    return syscall(SYS_read, fd, bytes, count < read_limit ? count : read_limit);
}

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

/* A file in memory: the header's length, the header, and data 0, 1, 2, ... */
typedef struct file_image {
    unsigned char bytes[4096];
    size_t count;
} file_image;

static file_image image_of(const char *header, size_t header_bytes, size_t data_bytes) {
    file_image image = {.count = 8 + header_bytes + data_bytes};
    assert_true(image.count <= sizeof image.bytes);
    for (int i = 0; i < 8; i++) image.bytes[i] = (unsigned char)(header_bytes >> (8 * i));
    memcpy(image.bytes + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++) image.bytes[8 + header_bytes + i] = (unsigned char)i;
    return image;
}

/* The bytes are refused, from memory and from a file, and the message names the source and says `reason`. */
static void refuse_image(const file_image *image, const char *reason) {
    tn_safetensors *file;
    assert_int_equal(tn_safetensors_parse(image->bytes, image->count, "here.safetensors", &file),
                     TN_ERR_DATA);
    assert_null(file);
    assert_error("here.safetensors: ", reason);
    temp_write(path.text, image->bytes, image->count);
    assert_int_equal(tn_safetensors_open(path.text, &file), TN_ERR_DATA);
    assert_null(file);
    assert_error(path.text, reason);
}

static void refuse(const char *header, size_t data_bytes, const char *reason) {
    file_image image = image_of(header, strlen(header), data_bytes);
    refuse_image(&image, reason);
}

/* The bytes are accepted; close the file. `image` must outlive it. */
static tn_safetensors *accept(const file_image *image) {
    tn_safetensors *file;
    if (tn_safetensors_parse(image->bytes, image->count, "here", &file) != TN_OK)
        fail_msg("refused: %s", tn_error());
    return file;
}

/* Rejections */

static void refuses_less_than_8_bytes(void **state) {
    (void)state;
    for (size_t count = 0; count < 8; count++) {
        file_image image = {.count = count};
        refuse_image(&image, "at least 8");
    }
}

static void refuses_header_beyond_100_million(void **state) {
    (void)state;
    file_image image = image_of("{}", 2, 0);
    image.bytes[0] = 0x01, image.bytes[1] = 0xe1, image.bytes[2] = 0xf5,
    image.bytes[3] = 0x05; /* 100,000,001 */
    refuse_image(&image, "header of 100000001 bytes, more than 100000000");
    memset(image.bytes, 0xff, 8);
    refuse_image(&image, "more than 100000000");
}

static void refuses_header_beyond_the_file(void **state) {
    (void)state;
    file_image image = image_of("{}", 2, 0);
    image.bytes[0] = 3;
    refuse_image(&image, "header of 3 bytes ends beyond the file's 10");
    image.bytes[0] = 0x00, image.bytes[1] = 0xe1, image.bytes[2] = 0xf5,
    image.bytes[3] = 0x05; /* 100,000,000 */
    refuse_image(&image, "cut short");
}

static void refuses_header_that_is_no_object(void **state) {
    (void)state;
    refuse("", 0, "header is not");
    refuse("    ", 0, "header is not");
    refuse(" {}", 0, "header is not");
    refuse("[]", 0, "header is not");
    refuse("{} x", 0, "header is not");
    refuse("{}\n", 0, "header is not");
    refuse("{}{}", 0, "not valid JSON");
    file_image zero = image_of("{}\0", 3, 0);
    refuse_image(&zero, "header is not");
}

static void refuses_invalid_json(void **state) {
    (void)state;
    refuse("{\"a\":{}", 0, "tensor 'a': its dtype is missing");
    refuse("{\"a\" {}}", 0, "not valid JSON: byte 5: expected ':'");
    refuse("{,}", 0, "not valid JSON: byte 1: expected '\"'");
    refuse("{'a':1}", 0, "not valid JSON: byte 1: expected '\"'");
    refuse("{\"__metadata__\":{\"a\":\"b\",}}", 0, "not valid JSON: byte 25: expected '\"'");
    refuse("{\"__metadata__\":{\"a\":\"b\"]}", 0, "not valid JSON: byte 24: expected ',' or '}'");
    refuse("{\"__metadata__\":{} \"a\":1}", 0, "not valid JSON: byte 19: expected ',' or '}'");
    refuse("{\"__metadata__\":{}}}", 0, "not valid JSON: byte 19: something follows");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1 1],\"data_offsets\":[0,1]}}", 1,
           "byte 30: expected ',' or ']'");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[01],\"data_offsets\":[0,1]}}", 1,
           "byte 29: expected ',' or ']'");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1,],\"data_offsets\":[0,1]}}", 1, "other than whole numbers");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]", 1, "header is not");
}

static void refuses_invalid_strings(void **state) {
    (void)state;
    refuse("{\"a\n\":1}", 0, "not valid JSON: byte 3: a control character");
    refuse("{\"a}", 0, "not valid JSON: byte 4: a string does not end");
    refuse("{\"a\\}", 0, "not valid JSON: byte 4: unknown escape");
    refuse("{\"a\\x41\":1}", 0, "unknown escape");
    refuse("{\"a\\u12g4\":1}", 0, "four hexadecimal digits");
    refuse("{\"a\\u12}", 0, "four hexadecimal digits");
    refuse("{\"a\\ud83d\":1}", 0, "half of a surrogate pair");
    refuse("{\"a\\ud83d\\u0041\":1}", 0, "half of a surrogate pair");
    refuse("{\"a\\ud83d\\ud83d\":1}", 0, "half of a surrogate pair");
    refuse("{\"a\\ude00\":1}", 0, "half of a surrogate pair");
    file_image zero = image_of("{\"a\0b\":1}", 9, 0);
    refuse_image(&zero, "a control character");
}

static void refuses_invalid_utf8(void **state) {
    (void)state;
    static const char *const bad[] = {"\xff",
                                      "\x80",
                                      "\xc0\x80",
                                      "\xc3",
                                      "\xe2\x82",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xc3\xc3",
                                      "\xf0\x9f\x98"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char header[100];
        snprintf(header, sizeof header, "{\"__metadata__\":{\"a\":\"%s\"}}", bad[i]);
        refuse(header, 0, "its header is not valid JSON: byte 22: not UTF-8");
        snprintf(header, sizeof header, "{\"%s\":1}", bad[i]);
        refuse(header, 0, "its header is not valid JSON: byte 2: not UTF-8");
    }
}

static void refuses_zero_characters_in_strings(void **state) {
    (void)state;
    refuse("{\"__metadata__\":{\"a\":\"x\\u0000y\"}}", 0, "zero character");
    refuse("{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "zero character");
}

static void refuses_duplicate_keys(void **state) {
    (void)state;
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
           "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
           2, "duplicate");
    refuse("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate");
    refuse("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
           "duplicate");
    refuse("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate");
}

static void refuses_metadata_that_is_not_strings(void **state) {
    (void)state;
    refuse("{\"__metadata__\":{\"epoch\":3}}", 0, "the value of 'epoch' is not a string");
    refuse("{\"__metadata__\":{\"a\":\"x\",\"b\":null}}", 0, "the value of 'b' is not a string");
    refuse("{\"__metadata__\":{\"a\":{}}}", 0, "the value of 'a' is not a string");
    refuse("{\"__metadata__\":[\"a\"]}", 0, "__metadata__ is not an object");
    refuse("{\"__metadata__\":null}", 0, "__metadata__ is not an object");
}

static void refuses_unknown_dtype(void **state) {
    (void)state;
    refuse("{\"w\":{\"dtype\":\"F33\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
           "tensor 'w': dtype 'F33' is unknown");
    refuse("{\"w\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
           "tensor 'w': dtype 'f32' is unknown");
    refuse("{\"w\":{\"dtype\":\"\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "is unknown");
    refuse("{\"w\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "its dtype is not a string");
}

static void refuses_missing_and_foreign_fields(void **state) {
    (void)state;
    refuse("{\"w\":3}", 0, "tensor 'w': its description is not an object");
    refuse("{\"w\":{}}", 0, "tensor 'w': its dtype is missing");
    refuse("{\"w\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "tensor 'w': its shape is missing");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 1,
           "tensor 'w': its shape is not a list");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "tensor 'w': its data_offsets is missing");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"strides\":[1]}}", 1,
           "tensor 'w': it has a field other than");
}

static void refuses_negative_shape(void **state) {
    (void)state;
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 1,
           "tensor 'w': its shape has a negative");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[-2,-2],\"data_offsets\":[0,4]}}", 4, "negative");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[-0],\"data_offsets\":[0,0]}}", 0, "negative");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[0,-2],\"data_offsets\":[0,0]}}", 0, "negative");
}

static void refuses_fractional_shape(void **state) {
    (void)state;
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", 1,
           "tensor 'w': its shape has something other than whole numbers");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, "whole numbers");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[1e0],\"data_offsets\":[0,1]}}", 1, "whole numbers");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]}}", 1, "whole numbers");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[true],\"data_offsets\":[0,1]}}", 1, "whole numbers");
}

static void refuses_overflowing_shape(void **state) {
    (void)state;
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
           "tensor 'w': its shape overflows");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
           "overflows");
    refuse("{\"w\":{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,1]}}", 1,
           "too large");
    refuse("{\"w\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "do not fill whole bytes");
}

static void refuses_offsets_that_are_not_offsets(void **state) {
    (void)state;
    static const char *const offsets[] = {"[0]",       "[0,1,1]",   "[-1,0]", "[1,0]",
                                          "[0.0,1.0]", "[0,\"1\"]", "{}",     "3"};
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        char header[200];
        snprintf(header, sizeof header, "{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":%s}}",
                 offsets[i]);
        refuse(header, 1, "tensor 'w': its data_offsets are not two whole numbers");
    }
}

static void refuses_length_other_than_the_shapes(void **state) {
    (void)state;
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,23]}}", 23,
           "tensor 'w': its shape takes 24 bytes, its data_offsets hold 23");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,8]}}", 8,
           "takes 4 bytes, its data_offsets hold 8");
    refuse("{\"w\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,4]}}", 4, "takes 0 bytes");
}

static void refuses_overlapping_tensors(void **state) {
    (void)state;
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[3,6]}}",
           6, "tensor 'b': its data overlaps");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
           4, "tensor 'b': its data overlaps");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}",
           4, "tensor 'b': its data overlaps");
}

static void refuses_holes(void **state) {
    (void)state;
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
           "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]}}",
           5, "tensor 'b': there is a hole in front of its data");
}

static void refuses_data_that_does_not_start_at_0(void **state) {
    (void)state;
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 3,
           "tensor 'a': it is the first, but its data does not start at 0");
}

static void refuses_data_that_does_not_end_at_the_end(void **state) {
    (void)state;
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 3,
           "1 bytes of data follow the last tensor");
    refuse("{}", 1, "1 bytes of data follow");
    refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}", 8,
           "tensor 'a' ends at byte 9 of the data, but the file holds 8: it was cut short");
}

static void refuses_a_wrong_hash(void **state) {
    (void)state;
    /* XXH64 of nothing is ef46db3751d8e999. */
    refuse("{\"__metadata__\":{\"xxh64\":\"ef46db3751d8e998\"}}", 0, "damaged: the hash is ef46db3751d8e999");
    refuse("{\"__metadata__\":{\"xxh64\":\"\"}}", 0, "not 16 lower-case hexadecimal digits");
    refuse("{\"__metadata__\":{\"xxh64\":\"0xef46db3751d8e9\"}}", 0, "not 16 lower-case hexadecimal digits");
    refuse("{\"__metadata__\":{\"xxh64\":\"ef46db3751d8e9990\"}}", 0, "not 16 lower-case hexadecimal digits");
}

static void messages_stay_one_short_line(void **state) {
    (void)state;
    char header[1000], name[600];
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = 0;
    snprintf(header, sizeof header, "{\"a\\n\\u001b[31m\":{\"dtype\":\"%s\"}}", name);
    refuse(header, 0, "tensor 'a??[31m': dtype 'nnn");
    assert_true(strlen(tn_error()) < 400);
    assert_error("n...'", "");
}

/* What is accepted */

static void accepts_no_tensors_and_padding(void **state) {
    (void)state;
    file_image image = image_of("{}      ", 8, 0);
    tn_safetensors *file = accept(&image);
    assert_int_equal(tn_safetensors_count(file), 0);
    assert_int_equal(tn_safetensors_metadata_count(file), 0);
    assert_null(tn_safetensors_find(file, "a"));
    assert_null(tn_safetensors_metadata(file, "a"));
    tn_safetensors_close(file);
    tn_safetensors_close(NULL);
}

static void accepts_scalars_and_empty_tensors(void **state) {
    (void)state;
    const char *header = "{\"empty\":{\"dtype\":\"I64\",\"shape\":[3,0],\"data_offsets\":[4,4]},"
                         "\"scalar\":{\"data_offsets\":[0,4],\"shape\":[],\"dtype\":\"F32\"},"
                         "\"first\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    file_image image = image_of(header, strlen(header), 4);
    tn_safetensors *file = accept(&image);
    assert_int_equal(tn_safetensors_count(file), 3);
    assert_string_equal(tn_safetensors_at(file, 0)->name, "first");
    assert_string_equal(tn_safetensors_at(file, 1)->name, "scalar");
    assert_string_equal(tn_safetensors_at(file, 2)->name, "empty");
    const tn_safetensors_entry *scalar = tn_safetensors_find(file, "scalar");
    assert_int_equal(scalar->rank, 0);
    assert_int_equal(scalar->bytes, 4);
    assert_int_equal(scalar->dtype, TN_DTYPE_F32);
    assert_memory_equal(scalar->data, "\0\1\2\3", 4);
    const tn_safetensors_entry *empty = tn_safetensors_find(file, "empty");
    assert_int_equal(empty->rank, 2);
    assert_int_equal(empty->dims[0], 3);
    assert_int_equal(empty->dims[1], 0);
    assert_int_equal(empty->bytes, 0);
    tn_safetensors_close(file);
}

static void decodes_strings(void **state) {
    (void)state;
    const char *header = "{ \t\r\n\"__metadata__\" : { \"\\\"\\\\\\/\\b\\f\\n\\r\\t\" : "
                         "\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00|A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\" } }";
    file_image image = image_of(header, strlen(header), 0);
    tn_safetensors *file = accept(&image);
    assert_string_equal(tn_safetensors_metadata(file, "\"\\/\b\f\n\r\t"),
                        "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80|A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    tn_safetensors_close(file);
}

static void finds_tensors_in_any_order(void **state) {
    (void)state;
    const char *header =
        "{\"__metadata__\":{\"epoch\":\"3\",\"\":\"\",\"\xc3\xa9\":\"\\u00e9\\n\"},"
        "\"c\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]},"
        "\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5,6]},"
        "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
        "\"b.w\":{\"dtype\":\"I16\",\"shape\":[1,1,1,1,1,1,1,1,1,1],\"data_offsets\":[3,5]}}";
    file_image image = image_of(header, strlen(header), 6);
    tn_safetensors *file = accept(&image);
    static const char *const names[] = {"a", "c", "b.w", ""};
    for (int i = 0; i < 4; i++) {
        assert_string_equal(tn_safetensors_at(file, i)->name, names[i]);
        assert_ptr_equal(tn_safetensors_find(file, names[i]), tn_safetensors_at(file, i));
    }
    assert_int_equal(tn_safetensors_find(file, "b.w")->rank, 10);
    assert_memory_equal(tn_safetensors_find(file, "c")->data, "\1\2", 2);
    assert_null(tn_safetensors_find(file, "b"));
    assert_null(tn_safetensors_find(file, "__metadata__"));
    assert_int_equal(tn_safetensors_metadata_count(file), 3);
    assert_string_equal(tn_safetensors_metadata_at(file, 1)->key, "epoch");
    assert_string_equal(tn_safetensors_metadata(file, "epoch"), "3");
    assert_string_equal(tn_safetensors_metadata(file, "\xc3\xa9"), "\xc3\xa9\n");
    assert_null(tn_safetensors_metadata(file, "missing"));
    tn_safetensors_close(file);
}

static void knows_all_dtypes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int bits;
    } expected[] = {{"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
                    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
                    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
                    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
                    {"I64", 64},        {"U64", 64}};
    assert_int_equal(sizeof expected / sizeof *expected, TN_DTYPES);
    for (int i = 0; i < TN_DTYPES; i++) {
        char header[200];
        snprintf(header, sizeof header, "{\"w\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%d]}}",
                 expected[i].name, expected[i].bits);
        file_image image = image_of(header, strlen(header), (size_t)expected[i].bits);
        tn_safetensors *file = accept(&image);
        const tn_safetensors_entry *entry = tn_safetensors_find(file, "w");
        assert_string_equal(tn_dtype_name(entry->dtype), expected[i].name);
        assert_int_equal(tn_dtype_bits(entry->dtype), expected[i].bits);
        tn_safetensors_close(file);
    }
}

/* Files that cannot be read */

static void names_files_that_cannot_be_read(void **state) {
    (void)state;
    tn_safetensors *file;
    assert_int_equal(tn_safetensors_open(path.text, &file), TN_ERR_IO);
    assert_null(file);
    assert_error(path.text, strerror(ENOENT));
    assert_int_equal(tn_safetensors_open(folder.path, &file), TN_ERR_IO);
    assert_error(folder.path, "a folder");
    assert_int_equal(mkfifo(path.text, 0666), 0);
    assert_int_equal(tn_safetensors_open(path.text, &file), TN_ERR_IO);
    assert_error(path.text, "device or pipe");
}

static void failed_reads_name_the_file(void **state) {
    (void)state;
    static const char *const parts[] = {"its first 8 bytes", "its header", "its data"};
    const char *header = "{\"w\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}";
    file_image image = image_of(header, strlen(header), 9);
    temp_write(path.text, image.bytes, image.count);
    tn_safetensors *file;
    for (int part = 0; part < 3; part++) {
        static const int errors[] = {EIO, 0, EINTR};
        for (int e = 0; e < 3; e++) {
            reads_to_trouble = part;
            trouble_errno = errors[e];
            tn_status status = tn_safetensors_open(path.text, &file);
            if (errors[e] == EINTR) {
                assert_int_equal(status, TN_OK);
                tn_safetensors_close(file);
                continue;
            }
            assert_int_equal(status, TN_ERR_IO);
            assert_null(file);
            assert_error(path.text, parts[part]);
            assert_error(errors[e] == EIO ? strerror(EIO) : "bytes early", "");
        }
    }
    read_limit = 5;
    tn_status status = tn_safetensors_open(path.text, &file);
    read_limit = SIZE_MAX;
    assert_int_equal(status, TN_OK);
    assert_memory_equal(tn_safetensors_find(file, "w")->data, image.bytes + image.count - 9, 9);
    tn_safetensors_close(file);
}

static void huge_files_of_another_kind_take_no_memory(void **state) {
    (void)state;
    temp_write(path.text, "{\"json\": \"a text, not tensors\"}", 31);
    assert_int_equal(truncate(path.text, (off_t)1 << 40), 0);
    tn_safetensors *file;
    assert_int_equal(tn_safetensors_open(path.text, &file), TN_ERR_DATA);
    assert_error(path.text, "no safetensors file");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(refuses_less_than_8_bytes),
        TEST(refuses_header_beyond_100_million),
        TEST(refuses_header_beyond_the_file),
        TEST(refuses_header_that_is_no_object),
        TEST(refuses_invalid_json),
        TEST(refuses_invalid_strings),
        TEST(refuses_invalid_utf8),
        TEST(refuses_zero_characters_in_strings),
        TEST(refuses_duplicate_keys),
        TEST(refuses_metadata_that_is_not_strings),
        TEST(refuses_unknown_dtype),
        TEST(refuses_missing_and_foreign_fields),
        TEST(refuses_negative_shape),
        TEST(refuses_fractional_shape),
        TEST(refuses_overflowing_shape),
        TEST(refuses_offsets_that_are_not_offsets),
        TEST(refuses_length_other_than_the_shapes),
        TEST(refuses_overlapping_tensors),
        TEST(refuses_holes),
        TEST(refuses_data_that_does_not_start_at_0),
        TEST(refuses_data_that_does_not_end_at_the_end),
        TEST(refuses_a_wrong_hash),
        TEST(messages_stay_one_short_line),
        TEST(accepts_no_tensors_and_padding),
        TEST(accepts_scalars_and_empty_tensors),
        TEST(decodes_strings),
        TEST(finds_tensors_in_any_order),
        TEST(knows_all_dtypes),
        TEST(names_files_that_cannot_be_read),
        TEST(failed_reads_name_the_file),
        TEST(huge_files_of_another_kind_take_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
