/* Only what the part needs is decoded: rows above it are entropy-decoded but not transformed, columns beside
 * it neither, and what follows its last row is not read. */
#include "data/image_jpeg.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

/* jpeglib.h wants stdio.h first. */
#include <jerror.h>
#include <jpeglib.h>

#include "base/memory.h"

/* The coefficients of a progressive image of the most pixels, four components and full resolution, fit. */
#define LIBRARY_MEMORY (768L << 20)

/* Columns decoded on either side beyond the part: the upsampling filter of the chroma looks at neighbours. */
#define MARGIN 16

struct tn_jpeg {
    struct jpeg_decompress_struct info;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape; /* where the library's failures go; set by each function that calls it */
    tn_status status;
    uint8_t *row; /* four components of a row */
    size_t row_capacity;
};

static _Noreturn void leave(tn_jpeg *jpeg, tn_status status) {
    jpeg->status = status;
    longjmp(jpeg->escape, 1);
}

static _Noreturn void on_error(j_common_ptr info) {
    char message[JMSG_LENGTH_MAX];
    info->err->format_message(info, message);
    if (info->err->msg_code == JERR_OUT_OF_MEMORY || info->err->msg_code == JERR_NO_BACKING_STORE)
        leave(info->client_data, tn_fail(TN_ERR_MEMORY, "JPEG: out of memory while it was decoded"));
    leave(info->client_data, tn_fail(TN_ERR_DATA, "JPEG: %s; replace or remove the file", message));
}

/* level < 0 is a warning: data that is wrong, but that the library can get by. */
static void on_message(j_common_ptr info, int level) {
    if (level >= 0) return;
    switch (info->err->msg_code) {
    case JWRN_EXTRANEOUS_DATA:
    case JWRN_ADOBE_XFORM:
    case JWRN_BOGUS_ICC:
    case JWRN_JFIF_MAJOR:
    case JWRN_TOO_MUCH_DATA:
        return;
    default:
        on_error(info);
    }
}

static void on_progress(j_common_ptr info) {
    if (((j_decompress_ptr)info)->input_scan_number > TN_IMAGE_SCANS_MAX)
        leave(info->client_data, tn_fail(TN_ERR_DATA, "JPEG: more than %d scans; convert or remove the file",
                                         TN_IMAGE_SCANS_MAX));
}

tn_status tn_jpeg_create(tn_jpeg **out) {
    tn_jpeg *jpeg;
    *out = NULL;
    TN_TRY(tn_alloc(&jpeg, 1, sizeof *jpeg, "JPEG decoder"));
    jpeg->info.err = jpeg_std_error(&jpeg->errors);
    jpeg->errors.error_exit = on_error;
    jpeg->errors.emit_message = on_message;
    jpeg->info.client_data = jpeg;
    if (setjmp(jpeg->escape)) {
        jpeg_destroy_decompress(&jpeg->info);
        tn_status status = jpeg->status;
        tn_free(jpeg);
        return status;
    }
    jpeg_create_decompress(&jpeg->info);
    jpeg->info.client_data = jpeg;
    jpeg->info.mem->max_memory_to_use = LIBRARY_MEMORY;
    jpeg->progress.progress_monitor = on_progress;
    jpeg->info.progress = &jpeg->progress;
    *out = jpeg;
    return TN_OK;
}

void tn_jpeg_free(tn_jpeg *jpeg) {
    if (!jpeg) return;
    jpeg_destroy_decompress(&jpeg->info);
    tn_free(jpeg->row);
    tn_free(jpeg);
}

/* Whether the end marker is there. It is looked for before decoding, as the end need not be reached then. */
static bool has_end(const uint8_t *bytes, size_t size) {
    while (size >= 2) {
        const uint8_t *last = memrchr(bytes, 0xd9, size);
        if (!last || last == bytes) return false;
        if (last[-1] == 0xff) return true;
        size = (size_t)(last - bytes);
    }
    return false;
}

tn_status tn_jpeg_header(tn_jpeg *jpeg, const uint8_t *bytes, size_t size, unsigned *width,
                         unsigned *height) {
    struct jpeg_decompress_struct *info = &jpeg->info;
    if (!has_end(bytes, size))
        return tn_fail(TN_ERR_DATA, "JPEG: no end marker: the file is cut short; replace or remove it");
    if (setjmp(jpeg->escape)) return jpeg->status;
    jpeg_abort_decompress(info);
    jpeg_mem_src(info, bytes, size);
    jpeg_read_header(info, TRUE);
    *width = info->image_width;
    *height = info->image_height;
    return TN_OK;
}

/* Pillow's conversion of stored, that is inverted, CMYK: (1 - C)(1 - K) with its rounding. */
static void cmyk_to_rgb(const uint8_t *from, uint8_t *to, int count) {
    for (int i = 0; i < count; i++, from += 4, to += 3)
        for (int c = 0; c < 3; c++) {
            int product = (255 - from[c]) * from[3] + 128;
            to[c] = (uint8_t)(from[3] - (((product >> 8) + product) >> 8));
        }
}

/* Reads the part's rows to `pixels`, `stride` bytes apart. `skipped` is the number of columns before the part
 * in what the library delivers. */
static void read_rows(tn_jpeg *jpeg, const tn_rectangle *part, int skipped, uint8_t *pixels, size_t stride) {
    struct jpeg_decompress_struct *info = &jpeg->info;
    bool four = info->output_components == 4;
    if (part->top > 0) jpeg_skip_scanlines(info, (JDIMENSION)part->top);
    for (int y = 0; y < part->height; y++, pixels += stride) {
        JSAMPROW row = four ? jpeg->row : pixels;
        jpeg_read_scanlines(info, &row, 1);
        if (four) cmyk_to_rgb(jpeg->row + 4 * (size_t)skipped, pixels + 3 * (size_t)skipped, part->width);
    }
}

/* Starts the library, and tells it which columns are wanted: *first and *count are those it delivers. */
static void start(tn_jpeg *jpeg, int factor, const tn_rectangle *part, JDIMENSION *first, JDIMENSION *count) {
    struct jpeg_decompress_struct *info = &jpeg->info;
    info->scale_num = 1;
    info->scale_denom = (unsigned)factor;
    info->out_color_space = info->num_components == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(info);
    JDIMENSION left = (JDIMENSION)part->left, right = left + (JDIMENSION)part->width;
    *first = left > MARGIN ? left - MARGIN : 0;
    *count = (info->output_width - right > MARGIN ? right + MARGIN : info->output_width) - *first;
    if (*count < info->output_width)
        jpeg_crop_scanline(info, first, count);
    else
        *first = 0;
}

static tn_status decode(tn_jpeg *jpeg, int factor, const tn_rectangle *part, uint8_t **memory,
                        size_t *capacity, tn_pixels *out) {
    JDIMENSION first, count;
    start(jpeg, factor, part, &first, &count);
    int skipped = part->left - (int)first;
    size_t stride = 3 * (size_t)count;
    TN_ASSERT(skipped >= 0 && skipped + part->width <= (int)count);
    TN_TRY(tn_grow(memory, capacity, stride * (size_t)part->height, 1, "decoded image"));
    TN_TRY(tn_grow(&jpeg->row, &jpeg->row_capacity, 4 * (size_t)count, 1, "decoded image"));
    read_rows(jpeg, part, skipped, *memory, stride);
    *out = (tn_pixels){*memory + 3 * (size_t)skipped, stride, part->height, part->width};
    return TN_OK;
}

tn_status tn_jpeg_decode(tn_jpeg *jpeg, int factor, const tn_rectangle *part, uint8_t **memory,
                         size_t *capacity, tn_pixels *out) {
    if (setjmp(jpeg->escape)) {
        jpeg_abort_decompress(&jpeg->info);
        return jpeg->status;
    }
    tn_status status = decode(jpeg, factor, part, memory, capacity, out);
    jpeg_abort_decompress(&jpeg->info);
    return status;
}
