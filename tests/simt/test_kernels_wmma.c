/* The 3x3 convolution on tensor cores against plain double loops over operands that are rounded as the
 * product rounds them: the widths of the networks, bands of rows, several images in a tile, slices of
 * channels, both strides, every storage, every epilogue and gate. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32
#define B TN_STORE_BF16

typedef struct wmma_case {
    int rows, height, width, in, out, stride;
    tn_wmma unit;
    tn_storage x_store, y_store;
    bool s, c, bias, r, relu, d, in_place, gated;
} wmma_case;

static tn_conv_shape shape_of(const wmma_case *t) {
    return conv3x3_shape(t->rows, t->height, t->width, t->in, t->out, t->stride);
}

/* ---- the reference ---- */

/* To nearest, ties away from zero for tf32 and to even for bf16. */
static double rounded(double value, tn_wmma unit) {
    float v = (float)value;
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if (unit == TN_WMMA_TF32)
        bits = (bits + 0x1000u) & ~0x1fffu;
    else
        bits = (bits + 0x7fffu + (bits >> 16 & 1)) & ~0xffffu;
    memcpy(&v, &bits, 4);
    return (double)v;
}

static double *rounded_copy(const double *from, size_t count, tn_wmma unit) {
    double *to = host_doubles(count);
    for (size_t i = 0; i < count; i++) to[i] = rounded(from[i], unit);
    return to;
}

/* Called for every pixel of the output and tap that meets a pixel of the input: first elements of both. */
typedef struct arrays {
    const tn_conv_shape *s;
    const double *x, *w, *dz; /* w: [tap][in][out] */
    double *y, *dx, *dw;      /* dw: OIHW */
} arrays;

static void forward_tap(const arrays *a, size_t y, size_t x, int tap) {
    for (int ci = 0; ci < a->s->in_channels; ci++) {
        const double *w = a->w + ((size_t)tap * a->s->in_channels + ci) * a->s->out_channels;
        for (int co = 0; co < a->s->out_channels; co++) a->y[y + co] += a->x[x + ci] * w[co];
    }
}

static void data_tap(const arrays *a, size_t y, size_t x, int tap) {
    for (int ci = 0; ci < a->s->in_channels; ci++) {
        const double *w = a->w + ((size_t)tap * a->s->in_channels + ci) * a->s->out_channels;
        for (int co = 0; co < a->s->out_channels; co++) a->dx[x + ci] += a->dz[y + co] * w[co];
    }
}

static void weights_tap(const arrays *a, size_t y, size_t x, int tap) {
    for (int co = 0; co < a->s->out_channels; co++)
        for (int ci = 0; ci < a->s->in_channels; ci++)
            a->dw[((size_t)co * a->s->in_channels + ci) * 9 + tap] += a->dz[y + co] * a->x[x + ci];
}

static void each_tap(const arrays *a, void (*visit)(const arrays *, size_t, size_t, int)) {
    const tn_conv_shape *s = a->s;
    size_t y = 0;
    for (int n = 0; n < s->rows; n++)
        for (int oh = 0; oh < s->out_height; oh++)
            for (int ow = 0; ow < s->out_width; ow++, y += s->out_channels)
                for (int tap = 0; tap < 9; tap++) {
                    int h = oh * s->stride - 1 + tap / 3, w = ow * s->stride - 1 + tap % 3;
                    if (h < 0 || w < 0 || h >= s->in_height || w >= s->in_width) continue;
                    visit(a, y, ((size_t)(n * s->in_height + h) * s->in_width + w) * s->in_channels, tap);
                }
}

/* Both packings of w [tap][in][out], without the kernels of convert.cu. */
static void pack(const tn_conv_shape *s, tn_wmma unit, const double *w, tensor *forward, tensor *backward) {
    tn_storage store = unit == TN_WMMA_BF16 ? B : F;
    size_t in = s->in_channels, out = s->out_channels, count = 9 * in * out;
    double *reversed = host_doubles(count);
    for (size_t tap = 0; tap < 9; tap++)
        for (size_t ci = 0; ci < in; ci++)
            for (size_t co = 0; co < out; co++)
                reversed[((8 - tap) * out + co) * in + ci] = w[(tap * in + ci) * out + co];
    *forward = tensor_of(w, count, store);
    *backward = tensor_of(reversed, count, store);
}

/* ---- cases ---- */

static uint32_t *mask_of(const double *values, size_t count) {
    uint32_t *bits = host_zeros(mask_bytes(count));
    for (size_t i = 0; i < count; i++) bits[i / 32] |= (uint32_t)(values[i] > 0) << i % 32;
    return device_copy(bits, mask_bytes(count));
}

static void run_forward(const wmma_case *t, const arrays *a, tensor x, tensor w) {
    size_t count = conv_outputs(a->s);
    tensor scalars = tensor_random(3, F, 4), bias = tensor_random((size_t)t->out, F, 5);
    tensor r = tensor_random(count, t->y_store, 6), y = t->in_place ? r : tensor_empty(count, t->y_store);
    uint32_t *mask = device_raw(mask_bytes(count));
    int *flag = device_zeros(sizeof *flag);
    double *z = host_doubles(count), *wanted = host_doubles(count);
    each_tap(a, forward_tap);
    for (size_t i = 0; i < count; i++) {
        z[i] = (t->s ? scalars.host[0] : 1.0) * a->y[i] + (t->c ? scalars.host[1] : 0) +
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
    OK(tn_launch_wmma3x3_forward(a->s, t->unit, t->x_store, x.device, w.device, e, t->y_store, y.device, 0));
    check_tensor("y", &y, wanted);
    if (t->relu) check_mask("mask", mask, z, count);
    check_flag("forward", flag, 0);
}

/* Backward data alone, or with the weight gradient in the same launch. */
static void run_backward(const wmma_case *t, const arrays *a, bool both, tensor x, tensor dz, tensor w) {
    size_t count = conv_inputs(a->s), weights = (size_t)t->out * t->in * 9;
    tensor r = tensor_random(count, t->x_store, 7), gate = tensor_random(count, F, 8),
           sums = tensor_empty(2, F), dw = tensor_empty(weights, F),
           dx = t->gated && t->in_place ? r : tensor_empty(count, t->x_store);
    int *flag = device_zeros(sizeof *flag);
    double *wanted = host_doubles(count), totals[2] = {0}, squares = 0;
    for (size_t i = 0; i < count; i++) {
        double v = a->dx[i] + (t->gated ? r.host[i] : 0);
        squares += v * v;
        totals[1] += v;
        wanted[i] = t->gated && gate.host[i] <= 0 ? 0 : v;
        totals[0] += wanted[i];
    }
    tn_gate g = {.nonfinite = flag};
    const int sum_parts = both ? tn_wmma3x3_both_sum_parts(a->s) : tn_wmma3x3_sum_parts(a->s, t->unit);
    if (t->gated) {
        g.r = r.device;
        g.mask = mask_of(gate.host, count);
        g.sums = device_raw(2 * (size_t)sum_parts * sizeof *g.sums);
    }
    if (both) {
        const int left = tn_wmma3x3_both_parts(a->s);
        float *parts = device_raw((size_t)left * weights * sizeof *parts);
        OK(tn_launch_wmma3x3_backward(a->s, t->x_store, x.device, t->y_store, dz.device, w.device, g,
                                      dx.device, parts, 0));
        merge_weights(parts, left, t->out * t->in, floats(dw));
    } else {
        OK(tn_launch_wmma3x3_backward_data(a->s, t->unit, t->y_store, dz.device, w.device, g, t->x_store,
                                           dx.device, 0));
    }
    check_tensor("dx", &dx, wanted);
    check_flag("backward data", flag, 0);
    if (both) check_tensor("dw of both", &dw, a->dw);
    if (!t->gated) return;
    merge_sums(g.sums, sum_parts, floats(sums));
    tensor_read(&sums);
    for (int k = 0; k < 2; k++) check_number("sum", sums.host[k], totals[k], sqrt(squares), 1e-4);
}

static void run_case(void *argument) {
    const wmma_case *t = argument;
    tn_conv_shape s = shape_of(t);
    size_t weights = (size_t)t->out * t->in * 9;
    tensor x = tensor_random(conv_inputs(&s), t->x_store, 1),
           dz = tensor_random(conv_outputs(&s), t->y_store, 3);
    tensor w = tensor_random(weights, F, 2), dw = tensor_empty(weights, F), forward, backward;
    arrays a = {.s = &s,
                .x = rounded_copy(x.host, x.count, t->unit),
                .w = rounded_copy(w.host, weights, t->unit),
                .dz = rounded_copy(dz.host, dz.count, t->unit),
                .y = host_doubles(conv_outputs(&s)),
                .dx = host_doubles(conv_inputs(&s)),
                .dw = host_doubles(weights)};
    pack(&s, t->unit, a.w, &forward, &backward);
    assert_int_equal(tn_wmma3x3_takes(&s, t->unit), 1);
    run_forward(t, &a, x, forward);
    each_tap(&a, data_tap);
    each_tap(&a, weights_tap);
    run_backward(t, &a, false, x, dz, backward);
    const int left = tn_wmma3x3_parts(&s, t->unit, t->x_store, t->y_store);
    float *parts = device_raw((size_t)left * weights * sizeof *parts);
    OK(tn_launch_wmma3x3_backward_weights(&s, t->unit, t->x_store, x.device, t->y_store, dz.device, parts,
                                          0));
    merge_weights(parts, left, t->out * t->in, floats(dw));
    check_tensor("dw", &dw, a.dw);
    if (tn_wmma3x3_both_takes(&s, t->unit)) run_backward(t, &a, true, x, dz, backward);
}

/* Where a case has a part of the kernels of its own is said beside it. */
static const wmma_case cases[] = {
    /* two bands of 16 rows, with the whole epilogue */
    {1, 32, 32, 16, 16, 1, .relu = true, .r = true, .c = true, .d = true, .gated = true},
    /* an odd image, whose last fragments reach beyond it; 32 columns */
    {2, 9, 11, 32, 32, 1, .relu = true, .c = true, .s = true, .gated = true},
    {2, 8, 8, 64, 64, 1, .r = true, .in_place = true, .relu = true, .gated = true},
    /* several images a tile, the last tile not full */
    {5, 3, 2, 16, 32, 1, .relu = true, .bias = true, .gated = true},
    /* channels in slices, several images, the last one missing; 64 columns */
    {3, 7, 7, 128, 64, 1, .relu = true, .r = true, .gated = true},
    /* bands of a wide image, in slices; columns that do not exist */
    {1, 10, 61, 80, 80, 1, .relu = true, .bias = true, .gated = true},
    /* several images for every share of the gradient */
    {5, 4, 6, 32, 32, 1, .gated = true, .in_place = true},
    {1, 4, 5, 48, 48, 1, .relu = true, .gated = true},
    {1, 14, 14, 16, 16, 2, .relu = true, .c = true, .gated = true},
    {2, 9, 10, 16, 32, 2, .relu = true, .d = true, .gated = true},
    {3, 7, 7, 32, 64, 2, .relu = true, .r = true, .bias = true, .gated = true},
    {2, 5, 6, 80, 144, 2, .relu = true, .gated = true},
    /* more tiles than blocks */
    {600, 1, 3, 16, 16, 1, .relu = true, .gated = true},
    {1, 1, 1, 16, 16, 1, .relu = true},
    {1, 3, 4, 256, 272, 1, .relu = true},
};

static void test_shapes(void **unused) {
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int kind = 0; kind < 5; kind++) {
            wmma_case t = cases[i];
            char name[64];
            if (check_is_slow() && (size_t)kind != i % 5 && (i > 4 || (size_t)kind != (i + 2) % 5)) continue;
            t.unit = kind == 4 ? TN_WMMA_TF32 : TN_WMMA_BF16;
            t.x_store = kind == 4 || kind & 1 ? F : B;
            t.y_store = kind == 4 || kind & 2 ? F : B;
            snprintf(name, sizeof name, "case %zu, kind %d", i, kind);
            check_case(name, run_case, &t);
        }
}

static void test_epilogues(void **unused) {
    (void)unused;
    for (int bits = 0; bits < 64; bits++) {
        wmma_case t = {1, 2, 3, 16, 16, 1, .x_store = B};
        char name[64];
        t.y_store = bits & 1 ? F : B;
        t.s = bits & 1;
        t.relu = bits & 2;
        t.r = bits & 4;
        t.c = bits & 8;
        t.d = bits & 16;
        t.bias = bits & 32;
        snprintf(name, sizeof name, "epilogue %d", bits);
        check_case(name, run_case, &t);
    }
}

/* A value that is not finite is flagged, passes ReLU, and does not touch other images. */
static void run_nonfinite(void *argument) {
    wmma_case t = {.rows = 2, .height = 3, .width = 3, .in = *(int *)argument, .out = 16, .stride = 1};
    tn_conv_shape s = shape_of(&t);
    double *values = host_doubles(conv_inputs(&s));
    values[5] = NAN;
    tensor x = tensor_of(values, conv_inputs(&s), F), w = tensor_random((size_t)t.in * 16 * 9, B, 1);
    tensor y = tensor_empty(conv_outputs(&s), F);
    int *flag = device_zeros(sizeof *flag);
    tn_epilogue e = {.relu = 1, .nonfinite = flag};
    OK(tn_launch_wmma3x3_forward(&s, TN_WMMA_BF16, F, x.device, w.device, e, F, y.device, 0));
    check_flag("NaN", flag, 1);
    tensor_read(&y);
    assert_true(y.host[0] != y.host[0]);
    for (size_t i = y.count / 2; i < y.count; i++) assert_true(y.host[i] == 0);
}

static void test_nonfinite(void **unused) {
    int narrow = 16, wide = 80;
    (void)unused;
    check_case("resident", run_nonfinite, &narrow);
    check_case("streamed", run_nonfinite, &wide);
}

static void test_refusals(void **unused) {
    wmma_case t = {.rows = 1, .height = 4, .width = 4, .in = 16, .out = 16, .stride = 1};
    tn_conv_shape s = shape_of(&t);
    static _Alignas(32) float memory[16];
    tn_epilogue e = {0};
    (void)unused;
    s.in_channels = 24;
    assert_int_equal(tn_wmma3x3_takes(&s, TN_WMMA_BF16), 0);
    assert_int_equal(tn_launch_wmma3x3_forward(&s, TN_WMMA_BF16, B, memory, memory, e, B, memory, 0),
                     cudaErrorInvalidValue);
    s.in_channels = 16;
    assert_int_equal(tn_launch_wmma3x3_forward(&s, TN_WMMA_TF32, B, memory, memory, e, F, memory, 0),
                     cudaErrorInvalidValue);
    assert_int_equal(tn_launch_wmma3x3_forward(&s, TN_WMMA_BF16, B, memory + 1, memory, e, B, memory, 0),
                     cudaErrorMisalignedAddress);
    assert_int_equal(
        tn_launch_wmma3x3_backward_weights(&s, TN_WMMA_BF16, B, memory, B, memory, memory + 4, 0),
        cudaErrorMisalignedAddress);
    s.in_height = s.out_height = s.in_width = s.out_width = 300;
    assert_int_equal(tn_wmma3x3_takes(&s, TN_WMMA_BF16), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_shapes), cmocka_unit_test(test_epilogues),
                                       cmocka_unit_test(test_nonfinite), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
