#include "data/view.h"

#include <math.h>

#include "base/philox.h"

#define TRIES     10
#define AREA_MIN  0.08
#define RATIO_MAX (4.0 / 3.0)
#define RATIO_MIN (3.0 / 4.0)

static bool draw_part(tn_rng *rng, int width, int height, tn_rectangle *out) {
    double area = (double)width * height * (AREA_MIN + (1.0 - AREA_MIN) * tn_rng_uniform(rng));
    double ratio = exp((2.0 * tn_rng_uniform(rng) - 1.0) * log(RATIO_MAX));
    double w = nearbyint(sqrt(area * ratio)), h = nearbyint(sqrt(area / ratio));
    if (!(w >= 1.0 && w <= width && h >= 1.0 && h <= height)) return false;
    out->width = (int)w;
    out->height = (int)h;
    out->top = (int)tn_rng_below(rng, (uint32_t)(height - out->height) + 1);
    out->left = (int)tn_rng_below(rng, (uint32_t)(width - out->width) + 1);
    return true;
}

static tn_rectangle central_part(int width, int height) {
    tn_rectangle part = {.width = width, .height = height};
    double ratio = (double)width / height;
    if (ratio < RATIO_MIN)
        part.height = (int)nearbyint(width / RATIO_MIN);
    else if (ratio > RATIO_MAX)
        part.width = (int)nearbyint(height * RATIO_MAX);
    part.top = (height - part.height) / 2;
    part.left = (width - part.width) / 2;
    return part;
}

tn_view tn_view_random(uint64_t seed, int epoch, int sample, int width, int height, int size) {
    tn_rng rng = tn_rng_open(seed, TN_RNG_AUGMENT, (uint32_t)epoch, (uint32_t)sample);
    tn_view view = {.height = size, .width = size, .rows = size, .columns = size};
    bool drawn = false;
    for (int i = 0; i < TRIES && !drawn; i++) drawn = draw_part(&rng, width, height, &view.part);
    if (!drawn) view.part = central_part(width, height);
    view.flip = tn_rng_bits(&rng) >> 31 != 0;
    return view;
}

int tn_view_default_resize(int size) {
    return (int)((int64_t)size * 8 / 7);
}

/* Where a window of `size` begins in the middle of `length`: half the rest, rounded half to even. */
static int middle(int length, int size) {
    return (int)nearbyint((length - size) / 2.0);
}

tn_view tn_view_centre(int width, int height, int resize, int size) {
    tn_view view = {
        .part = {0, 0, width, height}, .height = resize, .width = resize, .rows = size, .columns = size};
    if (width < height)
        view.height = (int)((int64_t)resize * height / width);
    else
        view.width = (int)((int64_t)resize * width / height);
    view.y = middle(view.height, size);
    view.x = middle(view.width, size);
    return view;
}

/* The pixels of a part of `length` pixels that the window depends on: the filter reaches `support` beyond. */
static void needed(int length, const tn_resize_axis *how, int *begin, int *end) {
    double scale = (double)length / how->size, support = scale < 1.0 ? 1.0 : scale;
    *begin = (int)floor((how->from + 0.5) * scale - support) - 1;
    *end = (int)ceil((how->from + how->count - 0.5) * scale + support) + 1;
    if (*begin < 0) *begin = 0;
    if (*end > length) *end = length;
}

/* Source coordinates of a direction, in pixels of the image reduced by `factor` that count from the one in
 * which the part begins; the pixels at hand begin with `decoded` of the whole image. */
static void locate(int begin, int length, int decoded, int factor, tn_resize_axis *how) {
    int zero = begin / factor;
    how->low = (double)begin / factor - zero;
    how->high = how->low + (double)length / factor;
    how->full = (begin + length - 1) / factor + 1 - zero;
    how->origin = decoded / factor - zero;
}

tn_status tn_view_decode(const tn_view *view, bool reduce, tn_image *image, tn_pixels *pixels,
                         tn_resize *how) {
    *how = (tn_resize){.rows = {.size = view->height, .from = view->y, .count = view->rows},
                       .columns = {.size = view->width, .from = view->x, .count = view->columns}};
    int top, bottom, left, right, factor;
    needed(view->part.height, &how->rows, &top, &bottom);
    needed(view->part.width, &how->columns, &left, &right);
    tn_rectangle part = {view->part.left + left, view->part.top + top, right - left, bottom - top};
    const int least[2] = {view->columns, view->rows};
    TN_TRY(tn_image_decode(image, &part, reduce ? least : NULL, pixels, &factor));
    locate(view->part.top, view->part.height, part.top, factor, &how->rows);
    locate(view->part.left, view->part.width, part.left, factor, &how->columns);
    return TN_OK;
}

tn_status tn_view_make(const tn_view *view, bool reduce, tn_image *image, tn_resizer *resizer,
                       uint8_t **out) {
    tn_resize how;
    tn_pixels pixels;
    TN_TRY(tn_view_decode(view, reduce, image, &pixels, &how));
    return tn_resizer_run(resizer, &pixels, &how, out);
}
