/* Stages of residual blocks against plain double loops. Each conv is checked from what the device itself
 * stored of the one before, so that roundings do not add up; backward is given activations and masks of its
 * own. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/simt/kernel_check.h"

#define B TN_STORE_BF16
#define F TN_STORE_F32

typedef struct stage_case {
    tn_stage_shape shape;
    int parts; /* gradients that arrive */
    bool add;
} stage_case;

static size_t image_count(const tn_stage_shape *s) {
    return (size_t)s->height * (size_t)s->width * (size_t)s->channels;
}

static size_t tensor_count(const tn_stage_shape *s) {
    return (size_t)s->rows * image_count(s);
}

/* One conv of a stage: the first of an entry has a stride of 2 and half as many inputs. */
typedef struct conv_shape {
    int rows, height, width, channels, in_height, in_width, in_channels, stride;
    size_t weights, before; /* its own; those of the convs before it */
} conv_shape;

static conv_shape shape_of(const tn_stage_shape *s, int conv) {
    const bool entry = s->in_height > 0, first = entry && conv == 0;
    const size_t whole = (size_t)s->channels * (size_t)s->channels * 9;
    return (conv_shape){.rows = s->rows,
                        .height = s->height,
                        .width = s->width,
                        .channels = s->channels,
                        .in_height = first ? s->in_height : s->height,
                        .in_width = first ? s->in_width : s->width,
                        .in_channels = first ? s->channels / 2 : s->channels,
                        .stride = first ? 2 : 1,
                        .weights = first ? whole / 2 : whole,
                        .before = (size_t)conv * whole - (entry && conv ? whole / 2 : 0)};
}

static size_t input_count(const conv_shape *s) {
    return (size_t)s->rows * (size_t)s->in_height * (size_t)s->in_width * (size_t)s->in_channels;
}

static size_t all_weights(const tn_stage_shape *s) {
    return shape_of(s, 2 * s->blocks).before;
}

/* Nodes before the convs. */
static int shortcut_nodes(const tn_stage_shape *s) {
    return s->in_height > 0 ? 2 : 0;
}

/* For every pair of pixels that a tap connects: at (n, h, w) of the output, stride * (h, w) + (kh, kw) - 1 of
 * the input. */
typedef struct place {
    size_t out, in; /* first channels */
    int tap;
} place;
static bool next_place(const conv_shape *s, size_t *i, place *p) {
    for (;; ++*i) {
        size_t pixel = *i / 9, pixels = (size_t)s->rows * (size_t)s->height * (size_t)s->width;
        if (pixel >= pixels) return false;
        p->tap = (int)(*i % 9);
        int w = (int)(pixel % (size_t)s->width) * s->stride + p->tap % 3 - 1,
            h = (int)(pixel / (size_t)s->width % (size_t)s->height) * s->stride + p->tap / 3 - 1;
        size_t n = pixel / (size_t)s->width / (size_t)s->height;
        if (w < 0 || h < 0 || w >= s->in_width || h >= s->in_height) continue;
        p->out = pixel * (size_t)s->channels;
        p->in = ((n * (size_t)s->in_height + (size_t)h) * (size_t)s->in_width + (size_t)w) *
                (size_t)s->in_channels;
        ++*i;
        return true;
    }
}

/* y += conv(x, w) or, transposed, x += conv^T(y, w); w is OIHW. */
static void convolve(const conv_shape *s, const double *w, const double *from, double *to, bool transposed) {
    const size_t outs = (size_t)s->channels, ins = (size_t)s->in_channels;
    place p;
    for (size_t i = 0; next_place(s, &i, &p);)
        for (size_t co = 0; co < outs; co++) {
            const double *row = w + co * ins * 9 + p.tap;
            double sum = 0;
            for (size_t ci = 0; ci < ins; ci++)
                if (transposed)
                    to[p.in + ci] += from[p.out + co] * row[9 * ci];
                else
                    sum += from[p.in + ci] * row[9 * ci];
            if (!transposed) to[p.out + co] += sum;
        }
}

static void weight_gradient(const conv_shape *s, const double *x, const double *dz, double *dw) {
    const size_t outs = (size_t)s->channels, ins = (size_t)s->in_channels;
    place p;
    for (size_t i = 0; next_place(s, &i, &p);)
        for (size_t co = 0; co < outs; co++)
            for (size_t ci = 0; ci < ins; ci++)
                dw[(co * ins + ci) * 9 + p.tap] += dz[p.out + co] * x[p.in + ci];
}

/* For every value of an entry's x that its shortcut takes: where, and where to. */
static bool next_shortcut(const tn_stage_shape *s, size_t *i, place *p) {
    const size_t c = (size_t)s->channels / 2, w = (size_t)s->width, h = (size_t)s->height, pixel = *i / c,
                 row = pixel / w;
    if (*i >= tensor_count(s) / 2) return false;
    const size_t image = row / h, in_row = image * (size_t)s->in_height + row % h * 2;
    *p = (place){.out = pixel * 2 * c + *i % c,
                 .in = (in_row * (size_t)s->in_width + pixel % w * 2) * c + *i % c};
    ++*i;
    return true;
}

/* OIHW of all convs, and packed as the kernels read it, without the kernel of convert.cu. */
static tensor random_weights(const tn_stage_shape *s, bool backward, const double **oihw) {
    const size_t all = all_weights(s);
    double *values = host_doubles(all), *packed = host_doubles(all);
    for (size_t i = 0; i < all; i++)
        values[i] = draw_real(7, (uint32_t)i) * 1.7 / sqrt(9.0 * (double)s->channels);
    tensor rounded = tensor_of(values, all, B);
    for (int conv = 0; conv < 2 * s->blocks; conv++) {
        const conv_shape k = shape_of(s, conv);
        const size_t ins = (size_t)k.in_channels, outs = (size_t)k.channels, columns = backward ? ins : outs;
        for (size_t i = 0; i < k.weights; i++) {
            size_t in = i / 9 % ins, out = i / 9 / ins, tap = i % 9;
            size_t slab = backward ? out : in, column = backward ? in : out, t = backward ? 8 - tap : tap;
            packed[k.before + ((slab / 16 * 9 + t) * 16 + slab % 16) * columns + column] =
                rounded.host[k.before + i];
        }
    }
    *oihw = rounded.host;
    return tensor_of(packed, all, B);
}

static tn_storage stream_of(const tn_stage_shape *s) {
    return s->wide ? F : B;
}

/* Where the output of a conv lies among those that are kept, in bytes. */
static size_t inner_at(const tn_stage_shape *s, int conv) {
    return tensor_count(s) * (size_t)(conv / 2 * (s->wide ? 6 : 4) + conv % 2 * 2);
}

static tensor inner_of(const tn_stage_shape *s, void *inner, int conv) {
    return (tensor){.count = tensor_count(s),
                    .store = conv % 2 ? stream_of(s) : B,
                    .device = (char *)inner + inner_at(s, conv)};
}

/* What products take. */
static const double *rounded(const double *values, size_t count) {
    return tensor_of(values, count, B).host;
}

static tensor part_of(const tensor *whole, size_t first, size_t count) {
    tensor t = *whole;
    t.count = count;
    t.device = (char *)whole->device + first * (whole->store == B ? 2 : 4);
    return t;
}

/* ---- forward ---- */

/* The residual of an entry's second conv. */
static const double *shortcut_of(const tn_stage_shape *s, const double *x, double c) {
    double *r = host_doubles(tensor_count(s));
    place p;
    for (size_t i = 0; next_shortcut(s, &i, &p);) r[p.out] = x[p.in] + c;
    return r;
}

/* `scalars` are the conv's. */
static void check_conv(const tn_stage_shape *s, int conv, const double *w, const double *scalars,
                       const double *x, const double *r, tensor *y, const uint32_t *mask) {
    const conv_shape k = shape_of(s, conv);
    const size_t count = tensor_count(s);
    double *z = host_doubles(count), *wanted = host_doubles(count);
    char what[32];
    convolve(&k, w + k.before, rounded(x, input_count(&k)), z, false);
    for (size_t i = 0; i < count; i++) {
        z[i] += scalars[1] + (r ? r[i] : 0);
        wanted[i] = (z[i] < 0 ? 0 : z[i]) + scalars[2];
    }
    snprintf(what, sizeof what, "conv %d", conv);
    check_tensor(what, y, wanted);
    check_mask(what, mask, z, count);
}

static void run_forward(void *argument) {
    const stage_case *t = argument;
    const tn_stage_shape *s = &t->shape;
    const conv_shape first = shape_of(s, 0);
    const size_t count = tensor_count(s), convs = 2 * (size_t)s->blocks,
                 nodes = convs + (size_t)shortcut_nodes(s);
    const double *w;
    tensor weights = random_weights(s, false, &w), x = tensor_random(input_count(&first), stream_of(s), 1);
    tensor scalars = tensor_random(4 * nodes, F, 2), y = tensor_empty(count, stream_of(s)),
           alone = tensor_empty(count, stream_of(s));
    void *inner = device_raw(inner_at(s, (int)convs - 1));
    uint32_t *masks = device_raw(convs * count / 8);
    int *flags = device_zeros(nodes * sizeof *flags);
    OK(tn_launch_stage_forward(s, x.device, weights.device, floats(scalars), inner, masks, y.device, flags,
                               0));
    OK(tn_launch_stage_forward(s, x.device, weights.device, floats(scalars), NULL, NULL, alone.device, NULL,
                               0));
    const double *block = shortcut_nodes(s) ? shortcut_of(s, x.host, scalars.host[1]) : x.host,
                 *from = x.host;
    for (int conv = 0; conv < (int)convs; conv++) {
        const int node = shortcut_nodes(s) + conv;
        tensor out = conv + 1 == (int)convs ? y : inner_of(s, inner, conv);
        check_conv(s, conv, w, scalars.host + 4 * node, from, conv % 2 ? block : NULL, &out,
                   masks + (size_t)conv * count / 32);
        check_flag("forward", flags + node, 0);
        from = out.host;
        if (conv % 2) block = out.host;
    }
    tensor_read(&alone);
    assert_memory_equal(alone.host, from, count * sizeof *from);
}

/* ---- backward ---- */

static double *masked(const double *g, const uint32_t *mask, size_t count, double sums[2]) {
    double *dz = host_doubles(count);
    for (size_t i = 0; i < count; i++) {
        sums[1] += g[i];
        dz[i] = mask[i / 32] >> i % 32 & 1 ? g[i] : 0;
        sums[0] += dz[i];
    }
    return dz;
}

typedef struct backward_run {
    const tn_stage_shape *shape;
    tensor x, grads, sums;
    const double *inner[64];
    const double *w;
    const uint32_t *masks;
    double grads_before, sums_before;
} backward_run;

static void check_sums(const char *what, const backward_run *b, int node, const double *wanted) {
    /* Sums of values of either sign: what was added matters, not what is left. */
    for (int k = 0; k < 2; k++)
        check_number(what, b->sums.host[3 * node + k], wanted[k] + b->sums_before,
                     0.3 * sqrt((double)tensor_count(b->shape)), 2e-2);
}

/* dx += what flows through the residual, whose gradient is `r`. */
static void add_residual(const backward_run *b, int conv, const double *r, double *dx) {
    const tn_stage_shape *s = b->shape;
    double sums[2] = {0, 0};
    place p;
    if (conv > 0 || !shortcut_nodes(s)) {
        for (size_t i = 0; i < tensor_count(s); i++) dx[i] += r[i];
        return;
    }
    for (size_t i = 0; next_shortcut(s, &i, &p);) {
        dx[p.in] += r[p.out];
        sums[0] += r[p.out];
    }
    sums[1] = sums[0];
    check_sums("shortcut", b, 0, sums);
}

/* All convs from the last; returns dx. */
static double *check_convs(backward_run *b, double *g) {
    const tn_stage_shape *s = b->shape;
    const size_t count = tensor_count(s);
    const double *next = NULL;
    for (int conv = 2 * s->blocks - 1; conv >= 0; conv--) {
        const conv_shape k = shape_of(s, conv);
        double sums[2] = {0, 0}, *dw = host_doubles(k.weights), *dx = host_doubles(input_count(&k));
        double *dz = masked(g, b->masks + (size_t)conv * count / 32, count, sums);
        const double *operand = rounded(dz, count),
                     *x = rounded(conv ? b->inner[conv - 1] : b->x.host, input_count(&k));
        char what[32];
        snprintf(what, sizeof what, "conv %d", conv);
        weight_gradient(&k, x, operand, dw);
        for (size_t i = 0; i < k.weights; i++) dw[i] += b->grads_before;
        tensor grads = part_of(&b->grads, k.before, k.weights);
        /* A value of dz that is rounded the other way is off by half a percent. */
        tensor_read(&grads);
        check_values(what, grads.host, dw, k.weights, 2e-3);
        check_sums(what, b, shortcut_nodes(s) + conv, sums);
        convolve(&k, b->w + k.before, operand, dx, true);
        if (conv % 2 == 0) add_residual(b, conv, next, dx);
        next = s->wide ? dz : operand;
        g = dx;
    }
    return g;
}

/* Outputs of all convs but the last, as forward would have kept them. */
static void *draw_inner(backward_run *b) {
    const tn_stage_shape *s = b->shape;
    const size_t count = tensor_count(s);
    const int convs = 2 * s->blocks;
    char *inner = device_raw(inner_at(s, convs - 1));
    for (int conv = 0; conv + 1 < convs; conv++) {
        tensor t = tensor_random(count, conv % 2 ? stream_of(s) : B, 30 + (uint32_t)conv);
        OK(cudaMemcpy(inner + inner_at(s, conv), t.device, count * (t.store == B ? 2 : 4),
                      cudaMemcpyDeviceToDevice));
        b->inner[conv] = t.host;
    }
    return inner;
}

static tensor constant(size_t count, double value) {
    double *values = host_doubles(count);
    for (size_t i = 0; i < count; i++) values[i] = value;
    return tensor_of(values, count, F);
}

/* Memory for what backward leaves in parts, and how to add them. */
static void leave_parts(const backward_run *b, tn_stage_gradient *gradient, tn_stage_products *products,
                        tn_merge_item items[4]) {
    const tn_stage_shape *s = b->shape;
    const conv_shape first = shape_of(s, 0);
    const int entry = s->in_height > 0, convs = 2 * s->blocks, parts = tn_stage_weight_parts(s),
              sum_parts = tn_stage_sum_parts(s), pairs = s->channels * s->channels;
    float *grads = floats(b->grads), *sums = floats(b->sums);
    gradient->weight_parts = products->weight_parts =
        device_raw((size_t)parts * (all_weights(s) - (entry ? first.weights : 0)) * sizeof(float));
    gradient->sum_parts = device_raw((size_t)sum_parts * 2 * (size_t)convs * sizeof(double));
    items[0] = (tn_merge_item){
        gradient->weight_parts, grads + (entry ? first.weights : 0), parts, convs - entry, pairs, 9};
    items[1] = (tn_merge_item){gradient->sum_parts, sums + 3 * shortcut_nodes(s), sum_parts, 2 * convs, 0, 0};
    if (!entry) return;
    products->entry_parts = device_raw((size_t)parts * first.weights * sizeof(float));
    gradient->shortcut_parts = device_raw((size_t)sum_parts * 2 * sizeof(double));
    items[2] = (tn_merge_item){products->entry_parts, grads, parts, 1, pairs / 2, 9};
    items[3] = (tn_merge_item){gradient->shortcut_parts, sums, sum_parts, 2, 0, 0};
}

/* Alone, or behind or before another stage, which is there twice then and leaves its parts elsewhere. */
static void multiply(const tn_stage_products *products, bool two) {
    const tn_stage_shape *s = &products->shape;
    const size_t bytes = (size_t)tn_stage_weight_parts(s) * all_weights(s) * sizeof(float);
    tn_stage_products both[] = {*products, *products};
    both[s->rows % 2].weight_parts = device_raw(bytes);
    both[s->rows % 2].entry_parts = device_raw(bytes);
    OK(two ? tn_launch_stage_products(2, both, 0) : tn_launch_stage_products(1, products, 0));
}

static void run_backward(void *argument) {
    const stage_case *t = argument;
    const tn_stage_shape *s = &t->shape;
    const conv_shape first = shape_of(s, 0);
    const size_t count = tensor_count(s), convs = 2 * (size_t)s->blocks, skipped = (size_t)shortcut_nodes(s);
    backward_run b = {.shape = s, .x = tensor_random(input_count(&first), stream_of(s), 1)};
    tensor packed = random_weights(s, true, &b.w), dx = tensor_empty(input_count(&first), stream_of(s));
    uint32_t *masks = host_zeros(convs * count / 8);
    double *dy = host_doubles(count);
    tn_parts parts = {.count = t->parts};
    void *inner = draw_inner(&b);
    for (size_t i = 0; i < convs * count / 32; i++)
        masks[i] = (uint32_t)draw_below(4, (uint32_t)i, 65536) | (uint32_t)draw_below(5, (uint32_t)i, 65536)
                                                                     << 16;
    b.masks = masks;
    for (int k = 0; k < t->parts; k++) {
        tensor part = tensor_random(count, stream_of(s), 10 + (uint32_t)k);
        parts.part[k] = part.device;
        for (size_t i = 0; i < count; i++) dy[i] += part.host[i];
    }
    b.grads_before = t->add ? 0.5 : 0;
    b.sums_before = t->add ? 2 : 0;
    b.grads = t->add ? constant(all_weights(s), 0.5) : tensor_empty(all_weights(s), F);
    b.sums = constant(3 * (convs + skipped), 2);
    tn_stage_gradient gradient = {.x = b.x.device,
                                  .inner = inner,
                                  .masks = device_copy(masks, convs * count / 8),
                                  .weights = packed.device,
                                  .dy = parts,
                                  .dx = dx.device,
                                  .dz = device_raw(tn_stage_dz_bytes(s) + 1)};
    tn_stage_products products = {*s, b.x.device, inner, gradient.dz, NULL, NULL};
    tn_merge_item items[4];
    leave_parts(&b, &gradient, &products, items);
    OK(tn_launch_stage_backward(s, gradient, 0));
    if (s->channels > 16) multiply(&products, t->add);
    OK(tn_launch_merge(skipped ? 4 : 2, items, t->add, 0));
    tensor_read(&b.sums);
    for (size_t i = 0; i < convs + skipped; i++) assert_true(b.sums.host[3 * i + 2] == 2);
    tensor_read(&dx);
    check_values("dx", dx.host, check_convs(&b, dy), input_count(&first), s->wide ? 2e-3 : 2e-2);
}

/* ---- cases ---- */

/* That of six blocks has so many convs that a block of the weight gradient's kernel goes through more images
 * than it takes at a time. Where two more sizes are given, the stage has an entry. */
static const stage_case cases[] = {
    {{2, 8, 8, 16, 2, 1, 0, 0, 0}, 2, false},   {{3, 4, 4, 32, 2, 1, 1, 0, 0}, 1, true},
    {{5, 2, 2, 64, 2, 2, 0, 0, 0}, 3, false},   {{3, 8, 6, 16, 1, 2, 1, 0, 0}, 1, true},
    {{3, 3, 3, 64, 1, 1, 1, 0, 0}, 2, false},   {{3, 4, 2, 32, 2, 1, 0, 8, 4}, 2, true},
    {{5, 2, 3, 64, 1, 2, 0, 3, 5}, 1, false},   {{3, 2, 2, 64, 2, 1, 1, 4, 4}, 2, true},
    {{1, 32, 32, 16, 1, 1, 0, 0, 0}, 2, false}, {{2, 16, 16, 32, 1, 1, 0, 0, 0}, 1, false},
    {{5, 8, 8, 32, 6, 1, 0, 0, 0}, 1, true},    {{3, 8, 8, 64, 1, 2, 0, 0, 0}, 2, true},
    {{70, 2, 4, 32, 2, 3, 1, 0, 0}, 1, false},  {{66, 2, 2, 16, 2, 1, 1, 0, 0}, 1, false},
    {{5, 2, 2, 64, 2, 2, 1, 0, 0}, 3, true},    {{2, 16, 16, 32, 1, 1, 0, 32, 32}, 1, false},
    {{5, 8, 8, 64, 3, 2, 0, 16, 16}, 2, true},  {{70, 2, 4, 32, 1, 3, 1, 4, 7}, 1, false},
    {{9, 4, 4, 32, 7, 1, 0, 7, 8}, 1, true},
};
#define CASES (int)(sizeof cases / sizeof *cases)
#define SMALL 8

static void each_case(const char *name, void (*run)(void *)) {
    for (int i = 0; i < (check_is_slow() ? SMALL : CASES); i++) {
        stage_case t = cases[i];
        char text[64];
        snprintf(text, sizeof text, "%s %d", name, i);
        check_case(text, run, &t);
    }
}

static void test_forward(void **unused) {
    (void)unused;
    each_case("forward", run_forward);
}

static void test_backward(void **unused) {
    (void)unused;
    each_case("backward", run_backward);
}

/* A NaN in an image is noted for the conv that meets it first, and kept. */
static void run_nonfinite(void *argument) {
    tn_stage_shape s = {2, 4, 4, 16, 1, 1, 0, 0, 0};
    const size_t count = tensor_count(&s);
    const double *w;
    double *values = host_doubles(count);
    (void)argument;
    values[count / 2 + 3] = NAN;
    tensor weights = random_weights(&s, false, &w), x = tensor_of(values, count, B),
           scalars = tensor_random(8, F, 2), y = tensor_empty(count, B);
    int *flags = device_zeros(2 * sizeof *flags);
    OK(tn_launch_stage_forward(&s, x.device, weights.device, floats(scalars), NULL, NULL, y.device, flags,
                               0));
    check_flag("first conv", flags, 1);
    check_flag("second conv", flags + 1, 1);
    tensor_read(&y);
    assert_true(y.host[count - 1 - 15] ==
                y.host[count - 1 - 15]); /* two steps of 3x3 do not reach the corner */
    assert_true(y.host[count / 2] != y.host[count / 2]);
    assert_true(y.host[0] == y.host[0]);
}

static void test_nonfinite(void **unused) {
    (void)unused;
    check_case("NaN", run_nonfinite, NULL);
}

static void test_shapes(void **unused) {
    static const struct {
        tn_stage_shape shape;
        int images;
    } groups[] = {{{128, 8, 8, 64, 1, 0, 0, 0, 0}, 1},
                  {{256, 8, 8, 64, 1, 0, 0, 0, 0}, 2},
                  {{1024, 8, 8, 64, 1, 0, 0, 0, 0}, 2},
                  {{4096, 32, 32, 16, 1, 0, 0, 0, 0}, 1}};
    (void)unused;
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        assert_int_equal(tn_stage_images(&groups[i].shape), groups[i].images);
    tn_stage_shape cifar = {128, 32, 32, 16, 17, 1, 0, 0, 0}, odd = {1, 8, 8, 24, 1, 1, 0, 0, 0},
                   large = {1, 64, 64, 16, 1, 1, 0, 0, 0}, bits = {1, 3, 3, 16, 1, 1, 0, 0, 0},
                   narrow = {1, 8, 8, 16, 1, 1, 0, 16, 16}, uneven = {1, 8, 8, 32, 1, 1, 0, 16, 18};
    /* What an A100 gives to a block, one on a multiprocessor. */
    assert_in_range(tn_stage_shared(&cifar, 0), 1, 166912);
    assert_in_range(tn_stage_shared(&cifar, 1), 1, 166912);
    tn_stage_shape wide = cifar; /* in float32 an H100 has room for it */
    wide.wide = 1;
    assert_in_range(tn_stage_shared(&wide, 1), 166913, 232448);
    assert_int_equal(tn_stage_shared(&odd, 0), 0);
    assert_int_equal(tn_stage_shared(&large, 0), 0);
    assert_int_equal(tn_stage_shared(&bits, 0), 0);
    assert_int_equal(tn_stage_shared(&narrow, 0), 0);
    assert_int_equal(tn_stage_shared(&uneven, 0), 0);
    static _Alignas(16) char memory[16];
    assert_int_equal(tn_launch_stage_forward(&odd, memory, memory, NULL, NULL, NULL, memory, NULL, 0),
                     cudaErrorInvalidValue);
    cifar.rows = 1;
    assert_int_equal(tn_launch_stage_forward(&cifar, memory + 2, memory, NULL, NULL, NULL, memory, NULL, 0),
                     cudaErrorMisalignedAddress);
    tn_stage_gradient gradient = {0};
    assert_int_equal(tn_launch_stage_backward(&cifar, gradient, 0), cudaErrorInvalidValue);
    tn_stage_products products[] = {{.shape = {1, 8, 8, 64, 1, 1, 0, 0, 0}, .x = memory, .dz = memory},
                                    {.shape = {1, 8, 8, 32, 1, 1, 1, 0, 0}, .x = memory, .dz = memory}};
    assert_int_equal(tn_launch_stage_products(2, products, 0), cudaErrorInvalidValue);
    assert_int_equal(tn_launch_stage_products(3, products, 0), cudaErrorInvalidValue);
    products[0].x = memory + 2;
    assert_int_equal(tn_launch_stage_products(1, products, 0), cudaErrorMisalignedAddress);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forward), cmocka_unit_test(test_backward),
                                       cmocka_unit_test(test_nonfinite), cmocka_unit_test(test_shapes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
