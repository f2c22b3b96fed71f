/* Fuzz target of the image decoders, JPEG, PNG and PPM told apart by their first bytes. The first two bytes
 * of an input choose the part that is decoded and whether it may be reduced; the rest is the file. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/view.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Time goes with pixels; the limits that count are tested elsewhere. */
#define PIXELS_MAX (1 << 20)

static void decode(tn_image *image, tn_resizer *resizer, unsigned choice) {
    tn_view view = tn_view_random(choice >> 2, 0, 0, image->width, image->height, 9);
    uint8_t *pixels;
    if (choice & 1) view = tn_view_centre(image->width, image->height, 13, 9);
    if (tn_view_make(&view, choice & 2, image, resizer, &pixels) != TN_OK) {
        if (tn_error()[0] == 0 || strchr(tn_error(), '\n')) abort();
        return;
    }
    /* Reads all of it, for the sanitizer. */
    volatile uint8_t sum = 0;
    for (int i = 0; i < 9 * 9 * 3; i++) sum = (uint8_t)(sum + pixels[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    size_t before = tn_memory_in_use();
    tn_image image = {0};
    tn_resizer resizer = {0};
    if (tn_image_open(&image, data + 2, size - 2) == TN_OK) {
        if (image.width < 1 || image.height < 1 || image.width > TN_IMAGE_SIDE_MAX ||
            image.height > TN_IMAGE_SIDE_MAX || (int64_t)image.width * image.height > TN_IMAGE_PIXELS_MAX)
            abort();
        if ((int64_t)image.width * image.height <= PIXELS_MAX)
            decode(&image, &resizer, data[0] + 256u * data[1]);
    } else if (tn_error()[0] == 0 || strchr(tn_error(), '\n')) {
        abort();
    }
    tn_image_free(&image);
    tn_resizer_free(&resizer);
    if (tn_memory_in_use() != before) abort();
    return 0;
}
