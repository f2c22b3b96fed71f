/* Encoded images in memory - JPEG, PNG, PPM - to 8-bit RGB.
 *
 * Which of the three it is follows from the first bytes, whatever the file is called. Pixels are those of
 * Pillow's Image.open(...).convert("RGB"), bit for bit where the JPEG library is of the same family: grey is
 * repeated, CMYK and YCCK are converted from Adobe's inverted form, palettes are looked up, alpha is dropped,
 * 16-bit PNG samples keep their upper byte (Pillow clips those of grey images). EXIF, and so its orientation,
 * is ignored. PPM is the binary form with 255 levels ("P6"), as datasets/pack writes decoded images: its
 * pixels are used where they lie.
 *
 * Width, height and their product are checked before anything of that size is allocated. Failures are
 * TN_ERR_DATA with a message that starts with the kind of image (the caller puts the file's name in front) or
 * TN_ERR_MEMORY. A JPEG whose data the library calls damaged is an error; bytes that are skipped without
 * effect on the pixels (before a marker, in a header) are not. */
#ifndef TN_DATA_IMAGE_H
#define TN_DATA_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/resize.h"

/* Longest side, that of JPEG, and most pixels, those that Pillow opens without a warning. */
#define TN_IMAGE_SIDE_MAX   65500
#define TN_IMAGE_PIXELS_MAX 89478485

/* Scans of a progressive JPEG; each goes through the whole image, however few bytes it has. */
#define TN_IMAGE_SCANS_MAX 100

typedef enum tn_image_kind { TN_IMAGE_JPEG, TN_IMAGE_PNG, TN_IMAGE_PPM } tn_image_kind;

/* An image whose header has been read, and the memory to decode it. Zero-initialise; open any number of
 * images one after the other; free with tn_image_free. Used by one thread at a time. */
typedef struct tn_image {
    tn_image_kind kind;
    int width, height;
    const uint8_t *bytes; /* the caller's */
    size_t size;
    struct tn_jpeg *jpeg; /* libjpeg's state, kept from image to image */
    uint8_t *pixels;      /* decoded */
    size_t capacity;
} tn_image;

/* A rectangle of whole pixels. */
typedef struct tn_rectangle {
    int left, top, width, height;
} tn_rectangle;

/* Reads the header of an image in memory, which must stay until it is decoded. */
tn_status tn_image_open(tn_image *image, const uint8_t *bytes, size_t size);

/* Decodes the pixels of `part` of the image just opened, once. `least` = {width, height}: a JPEG may come
 * reduced by 2, 4 or 8 in both directions, by the decoder's scaled inverse DCT, as long as the reduced part
 * is not smaller than that; NULL: never. *out covers the part, its edges rounded outwards to whole pixels,
 * and *factor is 1 or by how much it was reduced. *out is valid until the next use of `image`, or of the
 * caller's bytes. */
tn_status tn_image_decode(tn_image *image, const tn_rectangle *part, const int least[2], tn_pixels *out,
                          int *factor);

void tn_image_free(tn_image *image);

#endif
