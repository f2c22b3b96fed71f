/* The direct 3x3 convolution against plain double loops: widths of the networks, odd sizes and counts, both
 * strides, every storage, every epilogue. */
#include <math.h>
#include <stdio.h>

#include "tests/simt/kernel_check.h"

typedef struct conv_case {
    int rows, height, width, in, out, stride;
    tn_storage x_store, y_store;
    bool s, c, bias, r, relu, d, in_place;
} conv_case;

static tn_conv_shape shape_of(const conv_case *t) {
    return conv3x3_shape(t->rows, t->height, t->width, t->in, t->out, t->stride);
}

/* Calls `visit` for every product of the convolution: indices of y, x and w (OIHW). */
typedef void (*product)(size_t y, size_t x, size_t w, void *context);
static void each_product(const tn_conv_shape *s, product visit, void *context) {
    size_t y = 0;
    for (int n = 0; n < s->rows; n++)
        for (int oh = 0; oh < s->out_height; oh++)
            for (int ow = 0; ow < s->out_width; ow++)
                for (int co = 0; co < s->out_channels; co++, y++)
                    for (int tap = 0; tap < 9; tap++) {
                        int h = oh * s->stride - 1 + tap / 3, w = ow * s->stride - 1 + tap % 3;
                        if (h < 0 || w < 0 || h >= s->in_height || w >= s->in_width) continue;
                        size_t x = ((size_t)(n * s->in_height + h) * s->in_width + w) * s->in_channels;
                        for (int ci = 0; ci < s->in_channels; ci++)
                            visit(y, x + ci, ((size_t)co * s->in_channels + ci) * 9 + tap, context);
                    }
}

typedef struct arrays {
    const double *x, *w, *dz;
    double *y, *dx, *dw;
} arrays;

static void add_forward(size_t y, size_t x, size_t w, void *context) {
    arrays *a = context;
    a->y[y] += a->x[x] * a->w[w];
}

static void add_backward(size_t y, size_t x, size_t w, void *context) {
    arrays *a = context;
    a->dx[x] += a->dz[y] * a->w[w];
    a->dw[w] += a->dz[y] * a->x[x];
}

/* Weights OIHW and the two packings, without the kernels of convert.cu. */
static void pack(const tn_conv_shape *s, const double *w, tensor *forward, tensor *backward) {
    size_t count = (size_t)s->out_channels * s->in_channels * 9;
    double *f = host_doubles(count), *b = host_doubles(count);
    for (int co = 0; co < s->out_channels; co++)
        for (int ci = 0; ci < s->in_channels; ci++)
            for (int tap = 0; tap < 9; tap++) {
                double v = w[((size_t)co * s->in_channels + ci) * 9 + tap];
                f[((size_t)ci * 9 + tap) * s->out_channels + co] = v;
                b[((size_t)co * 9 + 8 - tap) * s->in_channels + ci] = v;
            }
    *forward = tensor_of(f, count, TN_STORE_F32);
    *backward = tensor_of(b, count, TN_STORE_F32);
}

static void run_forward(const conv_case *t, const tn_conv_shape *s, tensor x, tensor w,
                        const double *product_sums) {
    size_t count = conv_outputs(s);
    tensor scalars = tensor_random(3, TN_STORE_F32, 4), bias = tensor_random((size_t)t->out, TN_STORE_F32, 5);
    tensor r = tensor_random(count, t->y_store, 6), y = t->in_place ? r : tensor_empty(count, t->y_store);
    uint32_t *mask = device_raw(mask_bytes(count));
    int *flag = device_zeros(sizeof *flag);
    double *z = host_doubles(count), *wanted = host_doubles(count);
    for (size_t i = 0; i < count; i++) {
        z[i] = (t->s ? scalars.host[0] : 1.0) * product_sums[i] + (t->c ? scalars.host[1] : 0) +
               (t->bias ? bias.host[i % (size_t)t->out] : 0) + (t->r ? r.host[i] : 0);
        wanted[i] = (t->relu && z[i] < 0 ? 0 : z[i]) + (t->d ? scalars.host[2] : 0);
    }
    tn_epilogue e = {.s = t->s ? floats(scalars) : NULL,
                     .c = t->c ? floats(scalars) + 1 : NULL,
                     .bias = t->bias ? floats(bias) : NULL,
                     .d = t->d ? floats(scalars) + 2 : NULL,
                     .r = t->r ? r.device : NULL,
                     .relu = t->relu,
                     .mask = t->relu ? mask : NULL,
                     .nonfinite = flag};
    OK(tn_launch_conv3x3_forward(s, t->x_store, x.device, floats(w), e, t->y_store, y.device, 0));
    check_tensor("y", &y, wanted);
    if (t->relu) check_mask("mask", mask, z, count);
    check_flag("forward", flag, 0);
}

static void run_case(void *argument) {
    const conv_case *t = argument;
    tn_conv_shape s = shape_of(t);
    size_t weights = (size_t)t->out * t->in * 9;
    tensor x = tensor_random(conv_inputs(&s), t->x_store, 1), w = tensor_random(weights, TN_STORE_F32, 2);
    tensor dz = tensor_random(conv_outputs(&s), t->y_store, 3), forward, backward;
    tensor dx = tensor_empty(conv_inputs(&s), t->x_store), dw = tensor_empty(weights, TN_STORE_F32);
    arrays a = {.x = x.host,
                .w = w.host,
                .dz = dz.host,
                .y = host_doubles(conv_outputs(&s)),
                .dx = host_doubles(conv_inputs(&s)),
                .dw = host_doubles(weights)};
    each_product(&s, add_forward, &a);
    each_product(&s, add_backward, &a);
    pack(&s, w.host, &forward, &backward);
    run_forward(t, &s, x, forward, a.y);
    OK(tn_launch_conv3x3_backward_data(&s, t->y_store, dz.device, floats(backward), t->x_store, dx.device,
                                       0));
    check_tensor("dx", &dx, a.dx);
    const int left = tn_conv3x3_parts(&s);
    float *parts = device_raw((size_t)left * weights * sizeof *parts);
    OK(tn_launch_conv3x3_backward_weights(&s, t->x_store, x.device, t->y_store, dz.device, parts, 0));
    merge_weights(parts, left, t->out * t->in, floats(dw));
    check_tensor("dw", &dw, a.dw);
}

#define F TN_STORE_F32
#define B TN_STORE_BF16

static void test_shapes(void **unused) {
    static const conv_case cases[] = {
        {.rows = 1,
         .height = 18,
         .width = 17,
         .in = 16,
         .out = 16,
         .stride = 1,
         .relu = true,
         .r = true,
         .c = true,
         .d = true},
        {.rows = 2, .height = 9, .width = 17, .in = 32, .out = 32, .stride = 1, .relu = true, .c = true},
        {.rows = 2,
         .height = 8,
         .width = 8,
         .in = 64,
         .out = 64,
         .stride = 1,
         .r = true,
         .in_place = true,
         .relu = true},
        {.rows = 1, .height = 9, .width = 10, .in = 16, .out = 32, .stride = 2, .relu = true, .d = true},
        {.rows = 2, .height = 7, .width = 8, .in = 32, .out = 64, .stride = 2, .relu = true},
        {.rows = 1, .height = 5, .width = 6, .in = 64, .out = 72, .stride = 2, .bias = true},
        {.rows = 1, .height = 33, .width = 3, .in = 16, .out = 8, .stride = 2, .s = true},
        {.rows = 1, .height = 12, .width = 11, .in = 3, .out = 16, .stride = 1, .relu = true},
        {.rows = 1, .height = 5, .width = 5, .in = 5, .out = 24, .stride = 2, .relu = true, .bias = true},
        {.rows = 2,
         .height = 5,
         .width = 4,
         .in = 7,
         .out = 5,
         .stride = 1,
         .relu = true,
         .r = true,
         .c = true,
         .d = true,
         .s = true,
         .bias = true},
        {.rows = 3, .height = 5, .width = 7, .in = 8, .out = 3, .stride = 2, .relu = true, .d = true},
        {.rows = 1, .height = 1, .width = 1, .in = 1, .out = 1, .stride = 1},
        /* More tiles of pixels than a weight gradient has splits. */
        {.rows = 520, .height = 3, .width = 2, .in = 5, .out = 3, .stride = 1, .relu = true},
        {.rows = 520, .height = 2, .width = 3, .in = 4, .out = 3, .stride = 2},
        {.rows = 1, .height = 4, .width = 3, .in = 40, .out = 136, .stride = 1, .relu = true},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int storage = 0; storage < 4; storage++) {
            conv_case t = cases[i];
            char name[64];
            if (check_is_slow() && (size_t)storage != i % 4 && (t.rows > 500 || (size_t)storage != 3 - i % 4))
                continue;
            t.x_store = storage & 1 ? B : F;
            t.y_store = storage & 2 ? B : F;
            snprintf(name, sizeof name, "case %zu, storage %d", i, storage);
            check_case(name, run_case, &t);
        }
}

static void test_epilogues(void **unused) {
    (void)unused;
    for (int bits = 0; bits < 128; bits++) {
        conv_case t = {.rows = 1,
                       .height = 3,
                       .width = 5,
                       .in = 4,
                       .out = bits & 1 ? 8 : 3,
                       .stride = 1,
                       .x_store = F,
                       .y_store = F,
                       .relu = bits & 2,
                       .r = bits & 4,
                       .c = bits & 8,
                       .d = bits & 16,
                       .bias = bits & 32,
                       .s = bits & 64};
        char name[64];
        snprintf(name, sizeof name, "epilogue %d", bits);
        check_case(name, run_case, &t);
    }
}

static void run_nonfinite(void *argument) {
    conv_case t = {
        .rows = 1, .height = 4, .width = 4, .in = 4, .out = *(int *)argument, .stride = 1, .relu = true};
    tn_conv_shape s = shape_of(&t);
    double *values = host_doubles(conv_inputs(&s));
    values[5] = NAN;
    tensor x = tensor_of(values, conv_inputs(&s), F), w = tensor_random((size_t)t.out * 36, F, 1);
    tensor y = tensor_empty(conv_outputs(&s), F);
    int *flag = device_zeros(sizeof *flag);
    tn_epilogue e = {.relu = 1, .nonfinite = flag};
    OK(tn_launch_conv3x3_forward(&s, F, x.device, floats(w), e, F, y.device, 0));
    check_flag("NaN", flag, 1);
    tensor_read(&y);
    assert_true(y.host[0] != y.host[0]); /* ReLU keeps NaN */
}

static void test_nonfinite(void **unused) {
    int tiled = 8, plain = 3;
    (void)unused;
    check_case("tiled", run_nonfinite, &tiled);
    check_case("plain", run_nonfinite, &plain);
}

static void test_refusals(void **unused) {
    conv_case t = {.rows = 1, .height = 4, .width = 4, .in = 8, .out = 8, .stride = 1};
    tn_conv_shape s = shape_of(&t);
    tn_epilogue e = {0};
    static _Alignas(16) float memory[4];
    (void)unused;
    s.kernel = 5;
    assert_int_equal(tn_launch_conv3x3_forward(&s, F, memory, memory, e, F, memory, 0),
                     cudaErrorInvalidValue);
    s.kernel = 3;
    s.stride = 3;
    assert_int_equal(tn_launch_conv3x3_backward_data(&s, F, memory, memory, F, memory, 0),
                     cudaErrorInvalidValue);
    s.stride = 1;
    assert_int_equal(tn_launch_conv3x3_forward(&s, F, memory + 1, memory, e, F, memory, 0),
                     cudaErrorMisalignedAddress);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_epilogues),
                                       cmocka_unit_test(test_nonfinite), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
