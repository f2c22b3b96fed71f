#include "data/resize.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/simd.h"

/* Columns are resized 16 rows at a time, which lie side by side in a tile: a lane for each row and channel,
 * so that both passes are the same sums over whole vectors. */
#define TILE_ROWS 16
#define LANES     (3 * TILE_ROWS)

/* One direction, with its plan (tn_resize_plan). */
typedef struct axis {
    int outputs, step; /* step: int32s of one output */
    int32_t *plan;
} axis;

enum { ROWS = 0, COLUMNS = 1 };
enum { PLAN = 0, TILE = 2, MIDDLE = 4, OUT = 5 }; /* places in capacity */

static int first_of(const axis *a, int output) {
    return a->plan[output * a->step];
}

static int end_of(const axis *a, int output) {
    return first_of(a, output) + a->plan[output * a->step + 1];
}

void tn_resizer_free(tn_resizer *r) {
    for (int i = 0; i < 2; i++) {
        tn_free(r->plan[i]);
        tn_free(r->tile[i]);
    }
    tn_free(r->middle);
    tn_free(r->out);
    *r = (tn_resizer){.middle = NULL};
}

/* The weights of one output: the triangle around `centre`, cut off at the ends of the source and scaled to a
 * sum of one; `support` >= 1 is half its base. */
static int triangle(double centre, double support, int size, int *first, int32_t *weights) {
    int begin = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
    if (begin < 0) begin = 0;
    if (end > size) end = size;
    double sum = 0.0, inverse = 1.0 / support;
    for (int pass = 0; pass < 2; pass++)
        for (int t = 0; t < end - begin; t++) {
            double distance = fabs((t + begin - centre + 0.5) * inverse);
            double weight = distance < 1.0 ? 1.0 - distance : 0.0;
            if (pass == 0)
                sum += weight;
            else
                weights[t] = (int32_t)(0.5 + weight / sum * (1 << TN_RESIZE_BITS));
        }
    *first = begin;
    return end - begin;
}

static double scale_of(const tn_resize_axis *how) {
    return (how->high - how->low) / how->size;
}

int tn_resize_taps(const tn_resize_axis *how) {
    double scale = scale_of(how);
    return (int)ceil(scale < 1.0 ? 1.0 : scale) * 2 + 1;
}

void tn_resize_plan(const tn_resize_axis *how, int taps, int32_t *plan) {
    double scale = scale_of(how), support = scale < 1.0 ? 1.0 : scale;
    for (int o = 0; o < how->count; o++, plan += 2 + taps) {
        double centre = how->low + (how->from + o + 0.5) * scale;
        int first;
        plan[1] = triangle(centre, support, how->full, &first, plan + 2);
        plan[0] = first - how->origin;
    }
}

static tn_status plan(tn_resizer *r, int which, const tn_resize_axis *how, axis *out) {
    int taps = tn_resize_taps(how);
    size_t step = 2 + (size_t)taps;
    TN_TRY(tn_grow(&r->plan[which], &r->capacity[PLAN + which], (size_t)how->count * step, sizeof(int32_t),
                   "resizing"));
    tn_resize_plan(how, taps, r->plan[which]);
    *out = (axis){how->count, (int)step, r->plan[which]};
    return TN_OK;
}

/* out[o][i] = the weighted sum over input rows, for i < width rounded up to LANES: rows of `in` and the last
 * of `out` have room for that. `origin` is the input row that `in` points to. */
TN_SIMD static void blend(const axis *a, const uint8_t *restrict in, size_t in_step, int origin,
                          uint8_t *restrict out, size_t out_step, size_t width) {
    for (int o = 0; o < a->outputs; o++) {
        const int32_t *weights = a->plan + (size_t)o * (size_t)a->step + 2;
        int taps = weights[-1];
        const uint8_t *rows = in + (size_t)(weights[-2] - origin) * in_step;
        for (size_t begin = 0; begin < width; begin += LANES) {
            int32_t sum[LANES];
            for (int i = 0; i < LANES; i++) sum[i] = 1 << (TN_RESIZE_BITS - 1);
            for (int t = 0; t < taps; t++) {
                const uint8_t *row = rows + (size_t)t * in_step + begin;
                for (int i = 0; i < LANES; i++) sum[i] += weights[t] * row[i];
            }
            uint8_t *to = out + (size_t)o * out_step + begin;
            for (int i = 0; i < LANES; i++) {
                int32_t value = sum[i] >> TN_RESIZE_BITS;
                to[i] = (uint8_t)(value > 255 ? 255 : value);
            }
        }
    }
}

/* Copies `count` pixels; their places are `from_step` and `to_step` bytes apart. */
static void copy_pixels(const uint8_t *from, size_t from_step, uint8_t *to, size_t to_step, int count) {
    for (int i = 0; i < count; i++, from += from_step, to += to_step) {
        memcpy(to, from, 2);
        to[2] = from[2];
    }
}

/* Rows begin .. end-1 of the source, resized in width, to r->middle. */
static void resize_columns(tn_resizer *r, const tn_pixels *source, const axis *columns, int begin, int end,
                           size_t middle_step) {
    for (int y = begin; y < end; y += TILE_ROWS) {
        int rows = end - y < TILE_ROWS ? end - y : TILE_ROWS;
        for (int i = 0; i < rows; i++)
            copy_pixels(source->at + (size_t)(y + i) * source->stride, 3, r->tile[0] + 3 * i, LANES,
                        source->width);
        blend(columns, r->tile[0], LANES, 0, r->tile[1], LANES, LANES);
        for (int i = 0; i < rows; i++)
            copy_pixels(r->tile[1] + 3 * i, LANES, r->middle + (size_t)(y - begin + i) * middle_step, 3,
                        columns->outputs);
    }
}

/* That all inputs of an axis are at hand. */
static void check_axis(const axis *a, int length) {
    TN_ASSERT(first_of(a, 0) >= 0 && end_of(a, a->outputs - 1) <= length);
}

tn_status tn_resizer_run(tn_resizer *r, const tn_pixels *source, const tn_resize *how, uint8_t **out) {
    axis rows, columns;
    TN_TRY(plan(r, ROWS, &how->rows, &rows));
    TN_TRY(plan(r, COLUMNS, &how->columns, &columns));
    check_axis(&rows, source->height);
    check_axis(&columns, source->width);
    int begin = first_of(&rows, 0), end = end_of(&rows, rows.outputs - 1);
    size_t width = 3 * (size_t)columns.outputs, step = (width + LANES - 1) / LANES * LANES;
    TN_TRY(tn_grow(&r->tile[0], &r->capacity[TILE], (size_t)source->width * LANES, 1, "resizing"));
    TN_TRY(tn_grow(&r->tile[1], &r->capacity[TILE + 1], (size_t)columns.outputs * LANES, 1, "resizing"));
    TN_TRY(tn_grow(&r->middle, &r->capacity[MIDDLE], (size_t)(end - begin) * step, 1, "resizing"));
    TN_TRY(tn_grow(&r->out, &r->capacity[OUT], (size_t)rows.outputs * width + LANES, 1, "resizing"));
    resize_columns(r, source, &columns, begin, end, step);
    blend(&rows, r->middle, step, begin, r->out, width, width);
    *out = r->out;
    return TN_OK;
}
