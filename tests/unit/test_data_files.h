/* Files made on the spot for the tests of the data layer, and checks of messages. */
#ifndef TEST_DATA_FILES_H
#define TEST_DATA_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <zlib.h>

#include "base/memory.h"
#include "taunet/data.h"
#include "tests/unit/temp_folder.h"

static inline void put_file(const temp_folder *in, const char *name, const uint8_t *bytes, size_t size) {
    temp_write(temp_path_of(in, name).text, bytes, size);
}

static inline void delete_file(const temp_folder *in, const char *name) {
    assert_int_equal(unlink(temp_path_of(in, name).text), 0);
}

/* Compresses to gzip in fresh memory (free with free). */
static inline uint8_t *gzip(const uint8_t *bytes, size_t size, size_t *packed_size) {
    z_stream stream = {.zalloc = Z_NULL};
    size_t room = size + 1000;
    uint8_t *packed = malloc(room), *input = malloc(size + 1);
    assert_non_null(packed);
    assert_non_null(input);
    memcpy(input, bytes, size);
    assert_int_equal(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    stream.next_in = input;
    stream.avail_in = (uInt)size;
    stream.next_out = packed;
    stream.avail_out = (uInt)room;
    assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
    *packed_size = room - stream.avail_out;
    deflateEnd(&stream);
    free(input);
    return packed;
}

static inline void put_gzip(const temp_folder *in, const char *name, const uint8_t *bytes, size_t size) {
    size_t packed_size;
    uint8_t *packed = gzip(bytes, size, &packed_size);
    put_file(in, name, packed, packed_size);
    free(packed);
}

/* Header of an IDX file of unsigned bytes; returns its length. */
static inline size_t idx_header(uint8_t *out, int ndims, const uint32_t *dims) {
    out[0] = out[1] = 0;
    out[2] = 8;
    out[3] = (uint8_t)ndims;
    for (int d = 0; d < ndims; d++)
        for (int b = 0; b < 4; b++) out[4 + 4 * d + b] = (uint8_t)(dims[d] >> (24 - 8 * b));
    return 4 + 4 * (size_t)ndims;
}

static inline tn_status open_data(const char *kind, const temp_folder *in, tn_dataset **out) {
    char spec[512];
    snprintf(spec, sizeof spec, "%s:%s", kind, in->path);
    return tn_dataset_open(spec, out);
}

/* The failure has this status and one line that contains the words. */
#define assert_fails(call, expected, ...)                                                                    \
    check_failure((call), (expected), (const char *const[]){__VA_ARGS__, NULL}, __FILE__, __LINE__)

static inline void check_failure(tn_status status, tn_status expected, const char *const *words,
                                 const char *file, int line) {
    if (status != expected) {
        print_error("%s:%d: status %d instead of %d: %s\n", file, line, (int)status, (int)expected,
                    tn_error());
        fail();
    }
    for (; *words; words++)
        if (!strstr(tn_error(), *words)) {
            print_error("%s:%d: no '%s' in '%s'\n", file, line, *words, tn_error());
            fail();
        }
    assert_null(strchr(tn_error(), '\n'));
}

#endif
