#include "data/jpeg_encode.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

/* jpeglib.h wants stdio.h first. */
#include <jpeglib.h>

typedef struct encoder {
    struct jpeg_compress_struct info;
    struct jpeg_error_mgr errors;
    jmp_buf escape;
    unsigned char *bytes;
    unsigned long size;
} encoder;

static _Noreturn void on_error(j_common_ptr info) {
    char message[JMSG_LENGTH_MAX];
    encoder *e = info->client_data;
    info->err->format_message(info, message);
    tn_fail(TN_ERR_MEMORY, "encoding a JPEG: %s", message);
    longjmp(e->escape, 1);
}

static void encode(encoder *e, const tn_pixels *pixels, int quality) {
    struct jpeg_compress_struct *info = &e->info;
    jpeg_create_compress(info);
    jpeg_mem_dest(info, &e->bytes, &e->size);
    info->image_width = (JDIMENSION)pixels->width;
    info->image_height = (JDIMENSION)pixels->height;
    info->input_components = 3;
    info->in_color_space = JCS_RGB;
    jpeg_set_defaults(info);
    jpeg_set_quality(info, quality, TRUE);
    jpeg_start_compress(info, TRUE);
    for (int y = 0; y < pixels->height; y++) {
        /* The library only reads what it calls writable. */
        JSAMPROW row = (JSAMPROW)(uintptr_t)(pixels->at + (size_t)y * pixels->stride);
        jpeg_write_scanlines(info, &row, 1);
    }
    jpeg_finish_compress(info);
}

tn_status tn_jpeg_encode(const tn_pixels *pixels, int quality, uint8_t **bytes, size_t *size) {
    encoder e = {.bytes = NULL};
    e.info.err = jpeg_std_error(&e.errors);
    e.errors.error_exit = on_error;
    e.info.client_data = &e;
    *bytes = NULL;
    *size = 0;
    if (setjmp(e.escape)) {
        jpeg_destroy_compress(&e.info);
        free(e.bytes);
        return TN_ERR_MEMORY;
    }
    encode(&e, pixels, quality);
    jpeg_destroy_compress(&e.info);
    *bytes = e.bytes;
    *size = e.size;
    return TN_OK;
}

void tn_jpeg_encode_free(uint8_t *bytes) {
    free(bytes);
}
