/* The first convolution against plain double loops: channels of images, output channels, sizes that are no
 * multiple of a tile, every epilogue, gradients of several parts. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32
#define B TN_STORE_BF16

typedef struct stem_case {
    int rows, height, width, in, out;
    tn_storage store; /* of y */
    bool s, c, bias, r, relu, d;
    int parts;
} stem_case;

static tn_conv_shape shape_of(const stem_case *t) {
    return conv3x3_shape(t->rows, t->height, t->width, t->in, t->out, 1);
}

/* What is made of y and dw, weights being OIHW. */
typedef struct arrays {
    const double *x, *w, *dz;
    double *y, *dw;
} arrays;

static void products(const stem_case *t, arrays *a) {
    size_t y = 0;
    for (int n = 0; n < t->rows; n++)
        for (int oh = 0; oh < t->height; oh++)
            for (int ow = 0; ow < t->width; ow++)
                for (int co = 0; co < t->out; co++, y++)
                    for (int tap = 0; tap < 9; tap++) {
                        int h = oh - 1 + tap / 3, v = ow - 1 + tap % 3;
                        if (h < 0 || v < 0 || h >= t->height || v >= t->width) continue;
                        size_t x = (size_t)((n * t->height + h) * t->width + v) * (size_t)t->in;
                        for (int ci = 0; ci < t->in; ci++) {
                            size_t w = (size_t)((co * t->in + ci) * 9 + tap);
                            if (a->y) a->y[y] += a->x[x + (size_t)ci] * a->w[w];
                            if (a->dw) a->dw[w] += a->dz[y] * a->x[x + (size_t)ci];
                        }
                    }
}

/* w as TN_PACK_CONV_FORWARD. */
static tensor packed(const stem_case *t, const double *w) {
    double *to = host_doubles((size_t)(t->out * t->in * 9));
    for (int co = 0; co < t->out; co++)
        for (int ci = 0; ci < t->in; ci++)
            for (int tap = 0; tap < 9; tap++)
                to[(ci * 9 + tap) * t->out + co] = w[(co * t->in + ci) * 9 + tap];
    return tensor_of(to, (size_t)(t->out * t->in * 9), F);
}

static void run_forward(void *argument) {
    const stem_case *t = argument;
    const tn_conv_shape s = shape_of(t);
    size_t pixels = (size_t)(t->rows * t->height * t->width), count = pixels * (size_t)t->out;
    tensor x = tensor_random(pixels * (size_t)t->in, F, 1),
           w = tensor_random((size_t)(t->out * t->in * 9), F, 2), scalars = tensor_random(3, F, 3),
           bias = tensor_random((size_t)t->out, F, 4), r = tensor_random(count, t->store, 5),
           y = tensor_empty(count, t->store), packs = packed(t, w.host);
    arrays a = {.x = x.host, .w = w.host, .y = host_doubles(count)};
    double *wanted = host_doubles(count);
    uint32_t *mask = device_raw(mask_bytes(count));
    int *flags = device_zeros(2 * sizeof *flags);
    products(t, &a);
    for (size_t i = 0; i < count; i++) {
        a.y[i] = (t->s ? scalars.host[0] : 1) * a.y[i] + (t->c ? scalars.host[1] : 0) +
                 (t->bias ? bias.host[i % (size_t)t->out] : 0) + (t->r ? r.host[i] : 0);
        wanted[i] = (t->relu && a.y[i] < 0 ? 0 : a.y[i]) + (t->d ? scalars.host[2] : 0);
    }
    tn_epilogue e = {.s = t->s ? floats(scalars) : NULL,
                     .c = t->c ? floats(scalars) + 1 : NULL,
                     .bias = t->bias ? floats(bias) : NULL,
                     .d = t->d ? floats(scalars) + 2 : NULL,
                     .r = t->r ? r.device : NULL,
                     .relu = t->relu,
                     .mask = t->relu ? mask : NULL,
                     .nonfinite = flags};
    OK(tn_launch_stem_forward(&s, floats(x), floats(packs), e, t->store, y.device, flags + 1, 0));
    check_tensor("y", &y, wanted);
    if (t->relu) check_mask("mask", mask, a.y, count);
    check_flag("forward", flags, 0);
    check_flag("x", flags + 1, 0);
}

static void run_backward(void *argument) {
    const stem_case *t = argument;
    const tn_conv_shape s = shape_of(t);
    size_t pixels = (size_t)(t->rows * t->height * t->width), count = pixels * (size_t)t->out,
           weights = (size_t)(t->out * t->in * 9);
    tensor x = tensor_random(pixels * (size_t)t->in, F, 1), dw = tensor_empty(weights, F),
           sums = tensor_empty(2, F);
    uint32_t *mask = host_zeros(mask_bytes(count));
    double *dz = host_doubles(count), total[2] = {0}, size[2] = {0};
    tn_parts dy = {.count = t->parts};
    for (int p = 0; p < t->parts; p++) {
        tensor part = tensor_random(count, t->store, 10 + (uint32_t)p);
        dy.part[p] = part.device;
        for (size_t i = 0; i < count; i++) dz[i] += part.host[i];
    }
    for (size_t i = 0; i < count; i++) {
        total[1] += dz[i];
        if (t->relu && draw_real(20, (uint32_t)i) < 0)
            dz[i] = 0;
        else
            mask[i / 32] |= 1u << i % 32;
        total[0] += dz[i];
        size[0] += fabs(dz[i]);
    }
    size[1] = 2 * size[0];
    arrays a = {.x = x.host, .dz = dz, .dw = host_doubles(weights)};
    products(t, &a);
    const uint32_t *bits = t->relu ? device_copy(mask, mask_bytes(count)) : NULL;
    const int left = tn_stem_parts(&s), left_sums = tn_stem_sum_parts(&s);
    for (int with_sums = 0; with_sums < 2; with_sums++) {
        float *parts = device_raw((size_t)left * weights * sizeof *parts);
        double *sum_parts = device_raw(2 * (size_t)left_sums * sizeof *sum_parts);
        OK(tn_launch_stem_backward(&s, floats(x), t->store, dy, bits, parts, with_sums ? sum_parts : NULL,
                                   0));
        merge_weights(parts, left, t->out * t->in, floats(dw));
        check_tensor("dw", &dw, a.dw);
        if (with_sums) merge_sums(sum_parts, left_sums, floats(sums));
    }
    tensor_read(&sums);
    for (int i = 0; i < 2; i++) check_number("sums", sums.host[i], total[i], size[i] + 1e-3, 1e-6);
}

static void test_shapes(void **unused) {
    static const stem_case cases[] = {
        {.rows = 2, .height = 32, .width = 32, .in = 3, .out = 16, .relu = true, .c = true, .d = true},
        {.rows = 1, .height = 28, .width = 28, .in = 1, .out = 16, .relu = true, .d = true},
        {.rows = 3, .height = 5, .width = 7, .in = 2, .out = 8, .s = true},
        {.rows = 1, .height = 9, .width = 33, .in = 4, .out = 24, .relu = true, .bias = true},
        {.rows = 2, .height = 8, .width = 64, .in = 3, .out = 64, .relu = true, .r = true, .c = true},
        {.rows = 1, .height = 17, .width = 31, .in = 1, .out = 40, .relu = true},
        {.rows = 1, .height = 1, .width = 1, .in = 3, .out = 8, .relu = true},
        /* More tiles than shares of the gradient, not as many in each. */
        {.rows = 300, .height = 3, .width = 4, .in = 3, .out = 16, .relu = true},
        {.rows = 131, .height = 9, .width = 2, .in = 2, .out = 56},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int store = 0; store < 2; store++) {
            stem_case t = cases[i];
            char name[64];
            t.store = store ? B : F;
            t.parts = 1 + (int)(i + (size_t)store) % 4;
            if (check_is_slow() && ((int)i + store) % 2) continue;
            snprintf(name, sizeof name, "forward %zu, storage %d", i, store);
            check_case(name, run_forward, &t);
            snprintf(name, sizeof name, "backward %zu, storage %d", i, store);
            check_case(name, run_backward, &t);
        }
}

/* A NaN in the last pixel of an image. */
static void run_nonfinite(void *argument) {
    const stem_case t = {.rows = 2, .height = 9, .width = 35, .in = 3, .out = 8, .store = F};
    const tn_conv_shape s = shape_of(&t);
    size_t pixels = 2 * 9 * 35;
    double *values = host_doubles(3 * pixels);
    tensor w = tensor_random(8 * 27, F, 1), y = tensor_empty(8 * pixels, F);
    int *flags = device_zeros(2 * sizeof *flags);
    (void)argument;
    values[3 * pixels - 1] = NAN;
    tensor x = tensor_of(values, 3 * pixels, F);
    tn_epilogue e = {.relu = 1, .nonfinite = flags};
    OK(tn_launch_stem_forward(&s, floats(x), floats(w), e, F, y.device, flags + 1, 0));
    check_flag("y", flags, 1);
    check_flag("x", flags + 1, 1);
    tensor_read(&y);
    assert_true(isnan(y.host[8 * pixels - 1])); /* ReLU keeps NaN */
    assert_false(isnan(y.host[0]));
    int *apart = device_zeros(2 * sizeof *apart);
    double large = 3e38;
    tensor c = tensor_of(&large, 1, F), fine = tensor_random(3 * pixels, F, 2);
    tn_epilogue overflow = {.c = floats(c), .s = floats(c), .nonfinite = apart};
    OK(tn_launch_stem_forward(&s, floats(fine), floats(w), overflow, F, y.device, apart + 1, 0));
    check_flag("overflow of y", apart, 1);
    check_flag("images behind an overflow", apart + 1, 0);
}

static void test_nonfinite(void **unused) {
    (void)unused;
    check_case("not finite", run_nonfinite, NULL);
}

static void test_refusals(void **unused) {
    stem_case t = {.rows = 1, .height = 4, .width = 4, .in = 3, .out = 8};
    tn_conv_shape s = shape_of(&t);
    tn_parts none = {.count = 0};
    static _Alignas(16) float memory[4];
    (void)unused;
    assert_int_equal(tn_launch_stem_backward(&s, memory, F, none, NULL, memory, NULL, 0),
                     cudaErrorInvalidValue);
    assert_int_equal(tn_launch_stem_forward(&s, memory, memory + 1, (tn_epilogue){0}, F, memory, NULL, 0),
                     cudaErrorMisalignedAddress);
    s.in_channels = 5;
    assert_int_equal(tn_stem_takes(&s), 0);
    s.in_channels = 3;
    s.out_channels = 12;
    assert_int_equal(tn_stem_takes(&s), 0);
    s.out_channels = 72;
    assert_int_equal(tn_stem_takes(&s), 0);
    assert_int_equal(tn_launch_stem_forward(&s, memory, memory, (tn_epilogue){0}, F, memory, NULL, 0),
                     cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_nonfinite),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
