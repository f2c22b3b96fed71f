/* Kernels without matrix products, against plain double loops: epilogue, sums, pools, shortcuts, columns,
 * conversion.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32
#define B TN_STORE_BF16

/* ---- epilogue ---- */

typedef struct epilogue_case {
    size_t pixels;
    int channels, bits;
    tn_storage x_store, y_store;
} epilogue_case;

static void run_epilogue(void *argument) {
    const epilogue_case *t = argument;
    size_t count = t->pixels * (size_t)t->channels;
    bool relu = t->bits & 1, has_r = t->bits & 2, has_c = t->bits & 4, has_d = t->bits & 8,
         has_bias = t->bits & 16;
    bool has_s = t->bits & 32;
    tensor x = tensor_random(count, t->x_store, 1), r = tensor_random(count, t->y_store, 2);
    tensor bias = tensor_random((size_t)t->channels, F, 3), scalars = tensor_random(3, F, 4);
    /* y takes the place of x or r where it may. */
    tensor y = t->bits % 3 == 0 ? tensor_empty(count, t->y_store) : t->x_store == t->y_store ? x : r;
    uint32_t *mask = device_raw(mask_bytes(count));
    int *flag = device_zeros(sizeof *flag);
    double *z = host_doubles(count), *wanted = host_doubles(count);
    for (size_t i = 0; i < count; i++) {
        z[i] = (has_s ? scalars.host[0] : 1) * x.host[i] + (has_c ? scalars.host[1] : 0) +
               (has_bias ? bias.host[i % (size_t)t->channels] : 0) + (has_r ? r.host[i] : 0);
        wanted[i] = (relu && z[i] < 0 ? 0 : z[i]) + (has_d ? scalars.host[2] : 0);
    }
    tn_epilogue e = {.s = has_s ? floats(scalars) : NULL,
                     .c = has_c ? floats(scalars) + 1 : NULL,
                     .bias = has_bias ? floats(bias) : NULL,
                     .d = has_d ? floats(scalars) + 2 : NULL,
                     .r = has_r ? r.device : NULL,
                     .relu = relu,
                     .mask = relu ? mask : NULL,
                     .nonfinite = flag};
    OK(tn_launch_epilogue_forward(t->pixels, t->channels, t->x_store, x.device, e, t->y_store, y.device, 0));
    check_tensor("y", &y, wanted);
    if (relu) check_mask("mask", mask, z, count);
    check_flag("epilogue", flag, 0);
}

static void test_epilogue(void **unused) {
    static const struct {
        size_t pixels;
        int channels;
    } sizes[] = {{40, 16}, {7, 10}, {3, 3}, {1, 1}, {513, 5}};
    (void)unused;
    for (int i = 0; i < 5; i++)
        for (int bits = 0; bits < 64; bits += i < 2 ? 1 : 7) {
            epilogue_case t = {sizes[i].pixels, sizes[i].channels, bits, bits & 1 ? B : F, bits & 2 ? B : F};
            char name[64];
            snprintf(name, sizeof name, "epilogue %d of size %d", bits, i);
            check_case(name, run_epilogue, &t);
        }
}

typedef struct backward_case {
    size_t count;
    tn_storage store;
    int parts;
    bool mask, in_place, sums, poison;
} backward_case;

static void run_backward(void *argument) {
    const backward_case *t = argument;
    tn_parts dy = {.count = t->parts};
    double *total = host_doubles(t->count), dy_sum = 0, dz_sum = 0, scale = 0;
    uint32_t *bits = host_zeros(mask_bytes(t->count));
    for (size_t i = 0; i < t->count; i++)
        if (draw_real(99, (uint32_t)i) > 0) bits[i / 32] |= 1u << (i % 32);
    tensor parts[4];
    for (int k = 0; k < t->parts; k++) {
        parts[k] = tensor_random(t->count, t->store, (uint32_t)k);
        if (t->poison && k == t->parts - 1) {
            double *values = host_doubles(t->count);
            memcpy(values, parts[k].host, t->count * sizeof *values);
            values[t->count - 1] = INFINITY;
            parts[k] = tensor_of(values, t->count, t->store);
        }
        dy.part[k] = parts[k].device;
        for (size_t i = 0; i < t->count; i++) total[i] += parts[k].host[i];
    }
    uint32_t *mask = t->mask ? device_copy(bits, mask_bytes(t->count)) : NULL;
    for (size_t i = 0; i < t->count; i++) {
        dy_sum += total[i];
        scale += fabs(total[i]);
        if (t->mask && !(bits[i / 32] >> (i % 32) & 1)) total[i] = 0;
        dz_sum += total[i];
    }
    tensor dz = t->in_place ? parts[0] : tensor_empty(t->count, t->store);
    float *sums = t->sums ? device_raw(2 * sizeof *sums) : NULL;
    int *flag = device_zeros(sizeof *flag);
    const int left = tn_epilogue_sum_parts(t->count);
    double *sum_parts = t->sums ? device_raw(2 * (size_t)left * sizeof *sum_parts) : NULL;
    OK(tn_launch_epilogue_backward(t->count, t->store, dy, mask, dz.device, sum_parts, flag, 0));
    check_flag("backward", flag, t->poison);
    if (t->poison) return;
    check_tensor("dz", &dz, total);
    if (!t->sums) return;
    merge_sums(sum_parts, left, sums);
    const float *got = host_copy(sums, 2 * sizeof *sums);
    check_number("sum of dz", (double)got[0], dz_sum, scale, 1e-6);
    check_number("sum of dy", (double)got[1], dy_sum, scale, 1e-6);
}

static void test_backward(void **unused) {
    static const size_t counts[] = {1, 7, 8, 33, 2049, 70000};
    (void)unused;
    for (int i = 0; i < 6; i++)
        for (int bits = 0; bits < 16; bits++) {
            backward_case t = {counts[i], bits & 1 ? B : F, 1 + bits / 4, bits & 2, bits & 4, true, false};
            char name[64];
            snprintf(name, sizeof name, "backward %d of %zu", bits, t.count);
            if (i == 5 && bits % 5) continue;
            check_case(name, run_backward, &t);
            t.sums = false;
            t.poison = bits % 3 == 0;
            check_case(name, run_backward, &t);
        }
    /* More elements than the blocks of a sum take at once. */
    backward_case large = {1100003, F, 1, true, true, true, false};
    check_case("backward of a large tensor", run_backward, &large);
}

typedef struct size_case {
    int rows, channels;
    tn_storage store;
} size_case;

static void run_column_sums(void *argument) {
    const size_case *t = argument;
    tensor x = tensor_random((size_t)t->rows * t->channels, t->store, 1),
           sums = tensor_empty((size_t)t->channels, F);
    double *wanted = host_doubles((size_t)t->channels);
    for (size_t i = 0; i < x.count; i++) wanted[i % (size_t)t->channels] += x.host[i];
    OK(tn_launch_column_sums(t->rows, t->channels, t->store, x.device, floats(sums), 0));
    check_tensor("column sums", &sums, wanted);
}

static void test_column_sums(void **unused) {
    size_case cases[] = {{128, 10, F}, {3, 100, B}, {1, 1, F}, {37, 33, F}};
    (void)unused;
    for (int i = 0; i < 4; i++) check_case("column sums", run_column_sums, &cases[i]);
}

/* ---- shapes ---- */

typedef struct shape_case {
    tn_conv_shape s;
    tn_storage x_store, y_store;
    int extra; /* columns: padding of a row; shortcut: whether c is given */
} shape_case;

static tn_conv_shape shape(int rows, int height, int width, int in, int out, int kernel, int stride,
                           int padding) {
    tn_conv_shape s = {rows,
                       height,
                       width,
                       in,
                       (height + 2 * padding - kernel) / stride + 1,
                       (width + 2 * padding - kernel) / stride + 1,
                       out,
                       kernel,
                       stride,
                       padding};
    return s;
}

static size_t in_count(const tn_conv_shape *s) {
    return (size_t)s->rows * s->in_height * s->in_width * s->in_channels;
}

static size_t out_pixels(const tn_conv_shape *s) {
    return (size_t)s->rows * s->out_height * s->out_width;
}

/* Index in x of tap `tap` of output pixel `pixel`, channel 0; -1 outside. */
static long source(const tn_conv_shape *s, size_t pixel, int tap) {
    int ow = (int)(pixel % (size_t)s->out_width),
        oh = (int)(pixel / (size_t)s->out_width % (size_t)s->out_height);
    int n = (int)(pixel / (size_t)s->out_width / (size_t)s->out_height);
    int h = oh * s->stride - s->padding + tap / s->kernel, w = ow * s->stride - s->padding + tap % s->kernel;
    if (h < 0 || w < 0 || h >= s->in_height || w >= s->in_width) return -1;
    return ((long)(n * s->in_height + h) * s->in_width + w) * s->in_channels;
}

static void run_columns(void *argument) {
    const shape_case *t = argument;
    const tn_conv_shape *s = &t->s;
    int taps = s->kernel * s->kernel, ld = taps * s->in_channels + t->extra;
    size_t count = out_pixels(s) * (size_t)ld;
    tensor x = tensor_random(in_count(s), t->x_store, 1), columns = tensor_empty(count, t->y_store);
    tensor back = tensor_random(count, t->y_store, 2), dx = tensor_empty(in_count(s), t->x_store);
    double *wanted = host_doubles(count), *wanted_dx = host_doubles(in_count(s));
    for (size_t p = 0; p < out_pixels(s); p++)
        for (int tap = 0; tap < taps; tap++) {
            long from = source(s, p, tap);
            for (int c = 0; from >= 0 && c < s->in_channels; c++) {
                size_t at = p * (size_t)ld + (size_t)(tap * s->in_channels + c);
                wanted[at] = x.host[from + c];
                wanted_dx[from + c] += back.host[at];
            }
        }
    OK(tn_launch_im2col(s, t->x_store, x.device, t->y_store, columns.device, ld, 0));
    check_tensor("columns", &columns, wanted);
    OK(tn_launch_col2im(s, t->y_store, back.device, ld, t->x_store, dx.device, 0));
    check_tensor("dx", &dx, wanted_dx);
}

static void test_columns(void **unused) {
    shape_case cases[] = {
        {shape(2, 5, 6, 8, 1, 3, 1, 1), F, F, 0},  {shape(1, 7, 5, 16, 1, 3, 2, 1), F, B, 8},
        {shape(2, 9, 8, 3, 1, 7, 2, 3), F, B, 5},  {shape(2, 5, 5, 24, 1, 1, 2, 0), B, B, 0},
        {shape(1, 4, 4, 5, 1, 1, 1, 0), B, F, 3},  {shape(1, 1, 1, 1, 1, 3, 1, 1), F, F, 0},
        {shape(3, 11, 3, 8, 1, 7, 2, 3), F, F, 0}, {shape(1, 6, 7, 12, 1, 3, 2, 1), B, B, 4}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case("columns", run_columns, &cases[i]);
}

static void run_shortcut(void *argument) {
    const shape_case *t = argument;
    const tn_conv_shape *s = &t->s;
    size_t pixels = out_pixels(s), in = (size_t)s->in_channels, out = (size_t)s->out_channels;
    tensor x = tensor_random(in_count(s), t->x_store, 1), y = tensor_empty(pixels * out, t->y_store);
    tensor dy = tensor_random(pixels * out, t->y_store, 2), dx = tensor_empty(in_count(s), t->x_store);
    tensor c = tensor_random(1, F, 3);
    double *wanted = host_doubles(pixels * out), *wanted_dx = host_doubles(in_count(s));
    for (size_t p = 0; p < pixels; p++) {
        long from = source(s, p, 0);
        for (size_t k = 0; k < in; k++) {
            wanted[p * out + k] = x.host[(size_t)from + k] + (t->extra ? c.host[0] : 0);
            wanted_dx[(size_t)from + k] = dy.host[p * out + k];
        }
    }
    OK(tn_launch_shortcut_forward(s, t->x_store, x.device, t->extra ? floats(c) : NULL, t->y_store, y.device,
                                  0));
    check_tensor("y", &y, wanted);
    const int left = tn_shortcut_sum_parts(s);
    double *parts = t->extra ? device_raw(2 * (size_t)left * sizeof *parts) : NULL, sum = 0, scale = 0;
    OK(tn_launch_shortcut_backward(s, t->y_store, dy.device, t->x_store, dx.device, parts, 0));
    check_tensor("dx", &dx, wanted_dx);
    if (!parts) return;
    float *sums = device_raw(2 * sizeof *sums);
    merge_sums(parts, left, sums);
    for (size_t i = 0; i < in_count(s); i++) {
        sum += wanted_dx[i];
        scale += fabs(wanted_dx[i]);
    }
    const float *got = host_copy(sums, 2 * sizeof *sums);
    for (int k = 0; k < 2; k++) check_number("sum", (double)got[k], sum, scale, 1e-6);
}

static void test_shortcut(void **unused) {
    shape_case cases[] = {{shape(2, 8, 8, 16, 16, 1, 2, 0), F, F, 1},
                          {shape(2, 4, 4, 16, 32, 1, 1, 0), F, B, 0},
                          {shape(1, 7, 5, 8, 24, 1, 2, 0), B, F, 1},
                          {shape(1, 7, 5, 3, 7, 1, 3, 0), F, F, 1},
                          {shape(1, 1, 1, 1, 2, 1, 2, 0), B, B, 0}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case("shortcut", run_shortcut, &cases[i]);
}

static void run_maxpool(void *argument) {
    const shape_case *t = argument;
    const tn_conv_shape *s = &t->s;
    size_t count = out_pixels(s) * (size_t)s->out_channels;
    double *values = host_doubles(in_count(s)); /* many ties */
    for (size_t i = 0; i < in_count(s); i++) values[i] = draw_below(5, (uint32_t)i, 5) - 2;
    if (t->extra) values[3] = NAN;
    tensor x = tensor_of(values, in_count(s), t->x_store), y = tensor_empty(count, t->x_store);
    tensor dy = tensor_random(count, t->x_store, 2), dx = tensor_empty(in_count(s), t->x_store);
    uint8_t *winner = device_raw(count);
    double *wanted = host_doubles(count), *wanted_dx = host_doubles(in_count(s));
    for (size_t i = 0; i < count; i++) {
        long best = -1;
        for (int tap = 0; tap < s->kernel * s->kernel; tap++) {
            long from = source(s, i / (size_t)s->out_channels, tap);
            if (from < 0) continue;
            from += (long)(i % (size_t)s->out_channels);
            if (best < 0 || x.host[from] > x.host[best] || isnan(x.host[from])) best = from;
        }
        wanted[i] = x.host[best];
        wanted_dx[best] += dy.host[i];
    }
    OK(tn_launch_maxpool_forward(s, t->x_store, x.device, y.device, winner, 0));
    if (!t->extra) check_tensor("y", &y, wanted);
    tensor_read(&y);
    for (size_t i = 0; i < count; i++) assert_true(isnan(y.host[i]) == isnan(wanted[i]));
    OK(tn_launch_maxpool_backward(s, t->x_store, dy.device, winner, dx.device, 0));
    check_tensor("dx", &dx, wanted_dx);
    OK(tn_launch_maxpool_forward(s, t->x_store, x.device, y.device, NULL, 0));
}

static void test_maxpool(void **unused) {
    shape_case cases[] = {
        {shape(2, 8, 7, 5, 5, 3, 2, 1), F, F, 0}, {shape(1, 9, 9, 16, 16, 3, 2, 1), B, B, 0},
        {shape(1, 6, 6, 3, 3, 2, 2, 0), F, F, 0}, {shape(1, 5, 8, 2, 2, 3, 1, 1), F, F, 1},
        {shape(1, 7, 7, 4, 4, 2, 3, 0), F, F, 0}, {shape(1, 16, 17, 1, 1, 15, 2, 7), F, F, 0}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case("maxpool", run_maxpool, &cases[i]);
}

static void test_pool_refusals(void **unused) {
    static _Alignas(16) float memory[4];
    static const tn_conv_shape bad[] = {
        {1, 4, 4, 1, 3, 2, 1, 2, 2, 0}, /* a window beyond the end */
        {1, 1, 4, 1, 1, 2, 1, 3, 2, 0}, /* smaller than a window */
        {1, 4, 4, 1, 3, 3, 1, 2, 2, 2}, /* windows of padding alone */
        {1, 4, 4, 1, 2, 2, 2, 2, 2, 0}, /* other channels */
    };
    (void)unused;
    for (int i = 0; i < 4; i++)
        assert_int_equal(tn_launch_maxpool_forward(&bad[i], F, memory, memory, NULL, 0),
                         cudaErrorInvalidValue);
}

static void run_avgpool(void *argument) {
    const shape_case *t = argument;
    size_t rows = (size_t)t->s.rows, pixels = (size_t)t->s.in_height, channels = (size_t)t->s.in_channels;
    tensor x = tensor_random(rows * pixels * channels, t->x_store, 1),
           y = tensor_empty(rows * channels, t->y_store);
    tensor dy = tensor_random(rows * channels, t->y_store, 2), dx = tensor_empty(x.count, t->x_store);
    tensor d = tensor_random(1, F, 3);
    double *wanted = host_doubles(y.count), *wanted_dx = host_doubles(x.count);
    for (size_t i = 0; i < x.count; i++) {
        size_t at = i / channels / pixels * channels + i % channels;
        wanted[at] += x.host[i] / (double)pixels;
        wanted_dx[i] = dy.host[at] / (double)pixels;
    }
    for (size_t i = 0; i < y.count; i++) wanted[i] += t->extra ? d.host[0] : 0;
    int *flag = device_zeros(sizeof *flag);
    OK(tn_launch_avgpool_forward((int)rows, (int)pixels, (int)channels, t->x_store, x.device,
                                 t->extra ? floats(d) : NULL, t->y_store, y.device, flag, 0));
    check_tensor("y", &y, wanted);
    check_flag("avgpool", flag, 0);
    OK(tn_launch_avgpool_backward((int)rows, (int)pixels, (int)channels, t->y_store, dy.device, t->x_store,
                                  dx.device, 0));
    check_tensor("dx", &dx, wanted_dx);
}

static void test_avgpool(void **unused) {
    shape_case cases[] = {{shape(3, 64, 1, 64, 1, 1, 1, 0), F, F, 1},
                          {shape(2, 49, 1, 40, 1, 1, 1, 0), B, F, 0},
                          {shape(1, 1, 1, 1, 1, 1, 1, 0), F, B, 1},
                          {shape(2, 5, 1, 7, 1, 1, 1, 0), F, F, 1}};
    (void)unused;
    for (size_t i = 0; i < 4; i++) check_case("avgpool", run_avgpool, &cases[i]);
}

/* ---- conversion and sums of squares ---- */

static void run_square_sum(void *argument) {
    const size_case *t = argument;
    size_t count = (size_t)t->rows;
    for (int bad = 0; bad < 2; bad++) {
        double *values = host_doubles(count), square = 0;
        for (size_t i = 0; i < count; i++) values[i] = draw_real(8, (uint32_t)i);
        if (bad) values[count / 2] = NAN;
        tensor x = tensor_of(values, count, t->store);
        for (size_t i = 0; i < count; i++) square += x.host[i] * x.host[i];
        double *sum = device_raw(sizeof *sum);
        int *flag = device_zeros(sizeof *flag);
        OK(tn_launch_square_sum(count, t->store, x.device, device_raw(TN_SUM_WORKSPACE), sum, flag, 0));
        check_flag("square sum", flag, bad);
        if (!bad) check_number("square sum", *(double *)host_copy(sum, sizeof *sum), square, square, 1e-6);
    }
}

static void run_convert(void *argument) {
    const size_case *t = argument;
    size_t count = (size_t)t->rows;
    for (int storage = 0; storage < 4; storage++) {
        tensor from = tensor_random(count, storage & 1 ? B : F, 1),
               to = tensor_empty(count, storage & 2 ? B : F);
        OK(tn_launch_convert(count, from.store, from.device, to.store, to.device, 0));
        tensor wanted = tensor_of(from.host, count, to.store); /* bitwise */
        tensor_read(&to);
        for (size_t i = 0; i < count; i++) assert_true(to.host[i] == wanted.host[i]);
    }
}

static void test_convert(void **unused) {
    size_case cases[] = {{1, 0, F}, {8, 0, B}, {2051, 0, F}, {2560, 0, B}};
    (void)unused;
    size_case large = {2100001, 0, B}; /* more than the blocks take at once */
    for (int i = 0; i < 4; i++) {
        check_case("convert", run_convert, &cases[i]);
        check_case("sum of squares", run_square_sum, &cases[i]);
    }
    check_case("sum of squares of a large tensor", run_square_sum, &large);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_epilogue),      cmocka_unit_test(test_backward),
                                       cmocka_unit_test(test_column_sums),   cmocka_unit_test(test_columns),
                                       cmocka_unit_test(test_shortcut),      cmocka_unit_test(test_maxpool),
                                       cmocka_unit_test(test_pool_refusals), cmocka_unit_test(test_avgpool),
                                       cmocka_unit_test(test_convert)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
