#include "data/image.h"

#include <spng.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "data/image_jpeg.h"

/* Text and profiles of a PNG: skipped, but a compressed one may be a bomb. */
#define PNG_CHUNK_MAX (1u << 20)
#define PNG_CACHE_MAX (4u << 20)

static const uint8_t png_signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

static tn_status check_size(const char *kind, unsigned long width, unsigned long height) {
    if (width < 1 || height < 1)
        return tn_fail(TN_ERR_DATA, "%s: the header says %lux%lu pixels; the file is damaged", kind, width,
                       height);
    if (width <= TN_IMAGE_SIDE_MAX && height <= TN_IMAGE_SIDE_MAX && width * height <= TN_IMAGE_PIXELS_MAX)
        return TN_OK;
    return tn_fail(TN_ERR_DATA,
                   "%s: %lux%lu pixels are more than this program decodes (sides up to %d, %d in all); make "
                   "it smaller or remove it",
                   kind, width, height, TN_IMAGE_SIDE_MAX, TN_IMAGE_PIXELS_MAX);
}

static tn_status png_failure(int code) {
    if (code == SPNG_EMEM) return tn_fail(TN_ERR_MEMORY, "PNG: out of memory");
    return tn_fail(TN_ERR_DATA, "PNG: %s; replace or remove the file", spng_strerror(code));
}

/* Opens the PNG and reads its header; the context is freed on failure. */
static tn_status png_open(const tn_image *image, spng_ctx **out, struct spng_ihdr *header) {
    spng_ctx *png = spng_ctx_new(0);
    if (!png) return png_failure(SPNG_EMEM);
    int code = spng_set_chunk_limits(png, PNG_CHUNK_MAX, PNG_CACHE_MAX);
    if (code == 0) code = spng_set_png_buffer(png, image->bytes, image->size);
    if (code == 0) code = spng_get_ihdr(png, header);
    *out = png;
    if (code == 0) return TN_OK;
    spng_ctx_free(png);
    return png_failure(code);
}

static tn_status png_header(tn_image *image) {
    struct spng_ihdr header;
    spng_ctx *png;
    TN_TRY(png_open(image, &png, &header));
    spng_ctx_free(png);
    TN_TRY(check_size("PNG", header.width, header.height));
    image->width = (int)header.width;
    image->height = (int)header.height;
    return TN_OK;
}

static tn_status png_decode(tn_image *image) {
    size_t bytes = 3 * (size_t)image->width * (size_t)image->height;
    struct spng_ihdr header;
    spng_ctx *png;
    TN_TRY(tn_grow(&image->pixels, &image->capacity, bytes, 1, "decoded image"));
    TN_TRY(png_open(image, &png, &header));
    int code = spng_decode_image(png, image->pixels, bytes, SPNG_FMT_RGB8, 0);
    spng_ctx_free(png);
    return code == 0 ? TN_OK : png_failure(code);
}

/* Reads one number of a PPM header and the single white space behind it. */
static bool ppm_number(const tn_image *image, size_t *at, unsigned long *out) {
    size_t begin = *at;
    for (*out = 0; *at < image->size && *at - begin < 6; ++*at) {
        unsigned digit = (unsigned)image->bytes[*at] - '0';
        if (digit > 9) break;
        *out = 10 * *out + digit;
    }
    if (*at == begin || *at >= image->size || !strchr(" \t\r\n", image->bytes[*at])) return false;
    ++*at;
    return true;
}

/* Sets *at to where the pixels are. */
static tn_status ppm_header(tn_image *image, size_t *at) {
    unsigned long width, height, levels;
    *at = 3;
    if (!ppm_number(image, at, &width) || !ppm_number(image, at, &height) ||
        !ppm_number(image, at, &levels) || levels != 255)
        return tn_fail(TN_ERR_DATA,
                       "PPM: the header is not 'P6 WIDTH HEIGHT 255'; convert or remove the file");
    TN_TRY(check_size("PPM", width, height));
    if (image->size - *at < 3 * width * height)
        return tn_fail(TN_ERR_DATA,
                       "PPM: %zu of %lu bytes of pixels: the file is cut short; replace or remove it",
                       image->size - *at, 3 * width * height);
    image->width = (int)width;
    image->height = (int)height;
    return TN_OK;
}

static tn_status jpeg_header(tn_image *image) {
    unsigned width, height;
    if (!image->jpeg) TN_TRY(tn_jpeg_create(&image->jpeg));
    TN_TRY(tn_jpeg_header(image->jpeg, image->bytes, image->size, &width, &height));
    TN_TRY(check_size("JPEG", width, height));
    image->width = (int)width;
    image->height = (int)height;
    return TN_OK;
}

tn_status tn_image_open(tn_image *image, const uint8_t *bytes, size_t size) {
    size_t at;
    image->bytes = bytes;
    image->size = size;
    if (size == 0) return tn_fail(TN_ERR_DATA, "the file is empty; replace or remove it");
    if (size >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff) {
        image->kind = TN_IMAGE_JPEG;
        return jpeg_header(image);
    }
    if (size >= sizeof png_signature && memcmp(bytes, png_signature, sizeof png_signature) == 0) {
        image->kind = TN_IMAGE_PNG;
        return png_header(image);
    }
    if (size >= 3 && bytes[0] == 'P' && bytes[1] == '6' && bytes[2] != 0 && strchr(" \t\r\n", bytes[2])) {
        image->kind = TN_IMAGE_PPM;
        return ppm_header(image, &at);
    }
    return tn_fail(TN_ERR_DATA,
                   "neither JPEG, PNG nor PPM (it starts with %02x %02x); convert or remove the file",
                   bytes[0], size > 1 ? bytes[1] : 0);
}

/* The part of pixels that are all there. */
static void whole_part(const tn_image *image, const uint8_t *pixels, const tn_rectangle *part,
                       tn_pixels *out) {
    size_t stride = 3 * (size_t)image->width;
    *out = (tn_pixels){pixels + (size_t)part->top * stride + 3 * (size_t)part->left, stride, part->height,
                       part->width};
}

/* How far the image may be reduced. */
static int reduction(const tn_rectangle *part, const int least[2]) {
    int factor = 1;
    while (least && factor < 8 && part->width / (2 * factor) >= least[0] &&
           part->height / (2 * factor) >= least[1])
        factor *= 2;
    return factor;
}

static tn_status jpeg_decode(tn_image *image, const tn_rectangle *part, int factor, tn_pixels *out) {
    tn_rectangle reduced = {.left = part->left / factor, .top = part->top / factor};
    reduced.width = (part->left + part->width - 1) / factor + 1 - reduced.left;
    reduced.height = (part->top + part->height - 1) / factor + 1 - reduced.top;
    return tn_jpeg_decode(image->jpeg, factor, &reduced, &image->pixels, &image->capacity, out);
}

tn_status tn_image_decode(tn_image *image, const tn_rectangle *part, const int least[2], tn_pixels *out,
                          int *factor) {
    TN_ASSERT(part->left >= 0 && part->top >= 0 && part->width > 0 && part->height > 0 &&
              part->width <= image->width - part->left && part->height <= image->height - part->top);
    *factor = 1;
    if (image->kind == TN_IMAGE_JPEG) {
        *factor = reduction(part, least);
        return jpeg_decode(image, part, *factor, out);
    }
    size_t at = 0;
    if (image->kind == TN_IMAGE_PNG)
        TN_TRY(png_decode(image));
    else
        TN_TRY(ppm_header(image, &at));
    whole_part(image, image->kind == TN_IMAGE_PNG ? image->pixels : image->bytes + at, part, out);
    return TN_OK;
}

void tn_image_free(tn_image *image) {
    tn_jpeg_free(image->jpeg);
    tn_free(image->pixels);
    *image = (tn_image){.jpeg = NULL};
}
