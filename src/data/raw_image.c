#include "data/raw_image.h"

#include <string.h>

#include "base/memory.h"

void tn_raw_slot_free(tn_raw_slot *slot) {
    tn_free(slot->memory);
    *slot = (tn_raw_slot){.memory = NULL};
}

size_t tn_raw_image_bytes(int height, int width) {
    const size_t weights = 2 + 2 * TN_RAW_VIEWS_MAX;
    return TN_RAW_VIEWS_MAX * 3 * (size_t)height * (size_t)width +
           4 * weights * ((size_t)height + (size_t)width);
}

static size_t plan_bytes(const tn_resize_axis *how, int *taps) {
    *taps = tn_resize_taps(how);
    return (size_t)how->count * (2 + (size_t)*taps) * sizeof(int32_t);
}

static tn_status fill(tn_raw_slot *slot, const tn_pixels *source, const tn_resize *how, bool flip) {
    tn_raw_image *image = &slot->image;
    *image = (tn_raw_image){.from_height = source->height, .from_width = source->width, .flip = flip};
    size_t rows = plan_bytes(&how->rows, &image->taps[0]),
           columns = plan_bytes(&how->columns, &image->taps[1]), row = 3 * (size_t)source->width;
    image->size = rows + columns + (size_t)source->height * row;
    TN_TRY(tn_grow(&slot->memory, &slot->capacity, image->size, 1, "bytes of an image"));
    char *to = slot->memory;
    image->bytes = to;
    memset(to, 0, rows + columns);
    tn_resize_plan(&how->rows, image->taps[0], (int32_t *)(void *)to);
    tn_resize_plan(&how->columns, image->taps[1], (int32_t *)(void *)(to + rows));
    for (int y = 0; y < source->height; y++)
        memcpy(to + rows + columns + (size_t)y * row, source->at + (size_t)y * source->stride, row);
    return TN_OK;
}

static tn_resize_axis as_it_is(int count) {
    return (tn_resize_axis){.low = 0, .high = count, .full = count, .size = count, .count = count};
}

tn_status tn_raw_slot_fill(tn_raw_slot *slot, const tn_pixels *source, const tn_resize *how, bool flip,
                           tn_resizer *resizer) {
    int height = how->rows.count, width = how->columns.count,
        widest = source->width > width ? source->width : width;
    size_t most = TN_RAW_VIEWS_MAX * (size_t)height * (size_t)width;
    if ((size_t)source->height * (size_t)widest <= most) return fill(slot, source, how, flip);
    tn_resize same = {as_it_is(height), as_it_is(width)};
    tn_pixels made = {.stride = 3 * (size_t)width, .height = height, .width = width};
    uint8_t *out;
    TN_TRY(tn_resizer_run(resizer, source, how, &out));
    made.at = out;
    return fill(slot, &made, &same, flip);
}
