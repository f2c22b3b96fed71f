/* What the kernels of the tau block may cost, asserted on the counters of the SIMT machine: bf16, batch 128,
 * each block of the three stages of a CIFAR ResNet, the blocks that change the shape included; and how many
 * launches a training step takes.
 *
 * Bytes are those of memory: what a launch touches twice comes from the cache the second time, what one
 * launch wrote and the next reads does not. They stand against the least for one block: forward reads x and
 * writes a1, y' and both masks; backward reads dy, a1, x and the masks and writes dx; weights are read, and
 * their gradients written, once. Where a block changes the shape, x and dx are twice as large as the rest. A
 * hot kernel is one that moves a twentieth of the bytes of its group. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/simt/counted_step.h"

#define ROWS       128
#define BLOCKS_RUN 4  /* of each launch */
#define MIXED_RUN  16 /* where blocks of a launch do different things: both gradients of a conv */
#define STAGE      18 /* blocks of a stage of ResNet-110 */

typedef struct block_shape {
    int size, channels;
    bool entry; /* the first block makes this shape from one of twice the size and half the channels */
} block_shape;

static const block_shape shapes[] = {{32, 16, false}, {16, 32, false}, {8, 64, false}},
                         entries[] = {{16, 32, true}, {8, 64, true}};
static int breaches;

static void ok(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "targets: %s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

/* Zeros: no work has been done with them, and in samples memory begins so. */
static void *device(size_t bytes) {
    void *p;
    ok(cudaMalloc(&p, bytes), "cudaMalloc");
    return p;
}

static size_t values_of(block_shape s) {
    return (size_t)ROWS * (size_t)(s.size * s.size * s.channels);
}

/* Of one block that keeps the shape. */
static double weights_of(block_shape s) {
    return 2 * 9.0 * s.channels * s.channels;
}

static double least_forward(block_shape s, int blocks) {
    return blocks * ((3 * 2 + 2 / 8.0) * (double)values_of(s) + 2 * weights_of(s)) +
           (s.entry ? 2 * (double)values_of(s) - 2 * weights_of(s) / 4 : 0);
}

static double least_backward(block_shape s, int blocks) {
    return blocks * ((4 * 2 + 2 / 8.0) * (double)values_of(s) + (2 + 4) * weights_of(s)) +
           (s.entry ? 2 * 2 * (double)values_of(s) - (2 + 4) * weights_of(s) / 4 : 0);
}

/* ---- what is counted ---- */

static void begin(void) {
    ok(cudaDeviceSynchronize(), "before counting");
    simt_counters_reset();
    simt_count(1);
}

static double sectors(const simt_counters *c) {
    return (double)(c->load_sectors + c->store_sectors);
}

static double memory_bytes(const simt_counters *c) {
    return 32.0 * (double)(c->load_memory_sectors + c->store_memory_sectors);
}

static void print_operations(double least) {
    for (size_t i = 0; i < simt_operations_counted(); i++) {
        const simt_operation *o = simt_operation_at(i);
        const simt_counters *c = &o->counters;
        printf("    %-48s reads %.3f, writes %.3f of least\n", o->name,
               32.0 * (double)c->load_memory_sectors / least, 32.0 * (double)c->store_memory_sectors / least);
    }
}

/* What is reached today where that is more than the target: asserted, so that it only gets better. 0: the
 * target. */
typedef struct reached {
    double bytes, sectors;
} reached;

/* `limit` of bytes relative to least. */
static void judge(const char *what, block_shape s, double least, double limit, reached now) {
    double bytes = 0, worst_sectors = 0, worst_banks = 0;
    ok(cudaDeviceSynchronize(), what);
    simt_count(0);
    for (size_t i = 0; i < simt_operations_counted(); i++)
        bytes += memory_bytes(&simt_operation_at(i)->counters);
    for (size_t i = 0; i < simt_operations_counted(); i++) {
        const simt_operation *o = simt_operation_at(i);
        const simt_counters *c = &o->counters;
        if (!o->threads || memory_bytes(c) < 0.05 * bytes) continue;
        double ideal = (double)(c->load_ideal_sectors + c->store_ideal_sectors), banks = 0;
        double ratio = ideal > 0 ? sectors(c) / ideal : 0;
        if (c->shared_ideal_wavefronts)
            banks = (double)c->shared_wavefronts / (double)c->shared_ideal_wavefronts;
        if (ratio > worst_sectors) worst_sectors = ratio;
        if (banks > worst_banks) worst_banks = banks;
    }
    double allowed = now.bytes > limit ? now.bytes : limit,
           allowed_sectors = now.sectors > 0 ? now.sectors : 1.05;
    bool bad = bytes > allowed * least || worst_sectors > allowed_sectors || worst_banks > 2;
    printf("%-29s %2dx%-2d x %2d  launches %zu  bytes %.3f of least (target %.2f%s)  sectors %.3f%s  banks "
           "%.2f%s\n",
           what, s.size, s.size, s.channels, simt_operations_counted(), bytes / least, limit,
           bytes > limit * least ? ", MISSED" : "", worst_sectors,
           worst_sectors > 1.05 ? " (target 1.05, MISSED)" : "", worst_banks, bad ? "  BREACH" : "");
    if (bad) print_operations(least);
    breaches += bad;
}

/* ---- blocks and stages ---- */

typedef struct memory {
    void *x, *dx, *y, *inner, *weights, *dz;
    uint32_t *masks;
    float *scalars, *grads, *sums, *parts, *entry_parts;
    double *sum_parts, *shortcut_parts;
} memory;

static memory allocate(const tn_stage_shape *s, block_shape b) {
    size_t bytes = 2 * values_of(b), convs = 2 * (size_t)s->blocks, count = (size_t)weights_of(b) / 2,
           parts = (size_t)tn_stage_weight_parts(s);
    return (memory){.x = device((b.entry ? 2 : 1) * bytes),
                    .dx = device((b.entry ? 2 : 1) * bytes),
                    .y = device(bytes),
                    .inner = device(convs * bytes),
                    .weights = device(convs * count * 2),
                    .dz = device(tn_stage_dz_bytes(s) + 1),
                    .masks = device(convs * values_of(b) / 8),
                    .scalars = device((convs + 2) * 4 * sizeof(float)),
                    .grads = device(convs * count * sizeof(float)),
                    .sums = device((convs + 2) * 3 * sizeof(float)),
                    .parts = device(parts * (convs - b.entry) * count * sizeof(float)),
                    .entry_parts = device(parts * count / 2 * sizeof(float)),
                    .sum_parts = device(ROWS * 2 * convs * sizeof(double)),
                    .shortcut_parts = device(ROWS * 2 * sizeof(double))};
}

static void release(memory *m) {
    void *all[] = {m->x,       m->dx,    m->y,    m->inner, m->weights,     m->dz,        m->masks,
                   m->scalars, m->grads, m->sums, m->parts, m->entry_parts, m->sum_parts, m->shortcut_parts};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ok(cudaFree(all[i]), "cudaFree");
}

static void stage(block_shape b, int blocks, double forward, double backward, reached now) {
    tn_stage_shape s = {
        .rows = ROWS, .height = b.size, .width = b.size, .channels = b.channels, .blocks = blocks};
    if (b.entry) s.in_height = s.in_width = 2 * b.size;
    s.images = tn_stage_images(&s);
    char what[2][64];
    for (int i = 0; i < 2; i++)
        snprintf(what[i], sizeof what[i], "%s%s %s", b.entry ? "changing " : "",
                 blocks == 1 ? "block" : "stage of 18", i ? "backward" : "forward");
    memory m = allocate(&s, b);
    begin();
    ok(tn_launch_stage_forward(&s, m.x, m.weights, m.scalars, m.inner, m.masks, m.y, NULL, NULL), "stage");
    judge(what[0], b, least_forward(b, blocks), forward, (reached){0});
    tn_stage_gradient gradient = {.x = m.x,
                                  .inner = m.inner,
                                  .masks = m.masks,
                                  .weights = m.weights,
                                  .dy = {.part = {m.y}, .count = 1},
                                  .dx = m.dx,
                                  .dz = m.dz,
                                  .weight_parts = m.parts,
                                  .sum_parts = m.sum_parts,
                                  .shortcut_parts = m.shortcut_parts};
    const int entry = b.entry, pairs = b.channels * b.channels, parts = tn_stage_weight_parts(&s),
              sum_parts = tn_stage_sum_parts(&s);
    const tn_merge_item items[] = {
        {m.parts, m.grads + entry * pairs / 2 * 9, parts, 2 * blocks - entry, pairs, 9},
        {m.sum_parts, m.sums + 6 * entry, sum_parts, 4 * blocks, 0, 0},
        {m.entry_parts, m.grads, parts, 1, pairs / 2, 9},
        {m.shortcut_parts, m.sums, sum_parts, 2, 0, 0}};
    begin();
    ok(tn_launch_stage_backward(&s, gradient, NULL), "stage");
    const tn_stage_products products = {s, m.x, m.inner, m.dz, m.parts, m.entry_parts};
    if (b.channels > 16) ok(tn_launch_stage_products(1, &products, NULL), "stage");
    ok(tn_launch_merge(entry ? 4 : 2, items, 0, NULL), "merge");
    judge(what[1], b, least_backward(b, blocks), backward, now);
    release(&m);
}

/* Both gradients of a conv with a gate for its input's maker, whose sums are `sums`; what is left in parts as
 * two items. */
static void backward_of(const tn_conv_shape *s, const void *x, const void *dz, const void *w, tn_gate gate,
                        void *dx, float *dw, float *sums, tn_merge_item *items) {
    const tn_storage B = TN_STORE_BF16;
    const int parts = tn_wmma3x3_both_parts(s), sum_parts = tn_wmma3x3_both_sum_parts(s),
              pairs = s->in_channels * s->out_channels;
    float *weights = device((size_t)parts * 9 * (size_t)pairs * sizeof *weights);
    gate.sums = device(2 * (size_t)sum_parts * sizeof *gate.sums);
    ok(tn_launch_wmma3x3_backward(s, B, x, B, dz, w, gate, dx, weights, NULL), "conv");
    items[0] = (tn_merge_item){weights, dw, parts, 1, pairs, 9};
    items[1] = (tn_merge_item){gate.sums, sums, sum_parts, 2, 0, 0};
}

/* The same block by the kernels of single convolutions. */
static void separate_convs(block_shape b, double backward) {
    tn_conv_shape s = {.rows = ROWS,
                       .in_height = b.size,
                       .in_width = b.size,
                       .in_channels = b.channels,
                       .out_height = b.size,
                       .out_width = b.size,
                       .out_channels = b.channels,
                       .kernel = 3,
                       .stride = 1,
                       .padding = 1};
    size_t bytes = 2 * values_of(b), mask = values_of(b) / 8, weights = (size_t)weights_of(b);
    void *x = device(bytes), *a = device(bytes), *y = device(bytes), *dz = device(bytes), *dx = device(bytes);
    void *w = device(weights * 2);
    tn_merge_item items[4];
    uint32_t *masks = device(2 * mask);
    float *scalars = device(64), *grads = device(weights * sizeof(float));
    tn_epilogue first = {.c = scalars, .d = scalars + 1, .relu = 1, .mask = masks}, second = first;
    second.r = x;
    second.mask = masks + mask / 4;
    begin();
    ok(tn_launch_wmma3x3_forward(&s, TN_WMMA_BF16, TN_STORE_BF16, x, w, first, TN_STORE_BF16, a, NULL),
       "conv");
    ok(tn_launch_wmma3x3_forward(&s, TN_WMMA_BF16, TN_STORE_BF16, a, w, second, TN_STORE_BF16, y, NULL),
       "conv");
    judge("two convs forward", b, least_forward(b, 1), 2, (reached){0});
    /* dz of the second conv has been made by the kernel behind it, as the gate makes that of the first here.
     */
    tn_gate inner = {.mask = masks}, outer = {.r = y, .mask = second.mask};
    simt_sample(MIXED_RUN);
    begin();
    backward_of(&s, a, y, w, inner, dz, grads, scalars + 4, items);
    backward_of(&s, x, dz, w, outer, dx, grads + weights / 2, scalars + 7, items + 2);
    ok(tn_launch_merge(4, items, 0, NULL), "merge");
    judge("two convs backward", b, least_backward(b, 1), backward, (reached){0});
    simt_sample(BLOCKS_RUN);
    for (int i = 0; i < 4; i++) ok(cudaFree((void *)(uintptr_t)items[i].parts), "cudaFree");
    void *all[] = {x, a, y, dz, dx, w, masks, scalars, grads};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ok(cudaFree(all[i]), "cudaFree");
}

/* ---- launches of a step ---- */

static void launches(const char *name, bool separate, int limit, int known) {
    tn_model *model;
    tn_engine *engine;
    tn_engine_config config = {.precision = TN_PRECISION_BF16, .max_batch = 8, .separate_layers = separate};
    int count = 0;
    counted_step(name, "tau", config, 1, &model, &engine);
    for (size_t i = 0; i < simt_operations_counted(); i++) {
        const simt_operation *o = simt_operation_at(i);
        count += o->threads > 0 || strcmp(o->name, "cublas") == 0;
    }
    bool bad = count > (known > limit ? known : limit);
    printf("%-10s tau, %-15s  launches of a step %4d (target %d%s)%s\n", name,
           separate ? "conv kernels" : "stage kernels", count, limit, count > limit ? ", MISSED" : "",
           bad ? "  BREACH" : "");
    breaches += bad;
    tn_engine_free(engine);
    tn_model_free(model);
}

int main(void) {
    if (!simt_is_instrumented()) return 2;
    simt_sample(BLOCKS_RUN);
    static const reached block[] = {{0}, {1.9, 0}, {1.95, 0}}, whole_stage[] = {{0}, {1.55, 0}, {1.61, 0}},
                         changing[] = {{1.55, 0}, {1.62, 0}}, whole_changing[] = {{1.53, 0}, {1.58, 0}};
    for (int i = 0; i < 3; i++) {
        stage(shapes[i], 1, 1.15, 1.35, block[i]);
        stage(shapes[i], STAGE, 0.75, 1.35, whole_stage[i]);
        separate_convs(shapes[i], 1.9);
    }
    for (int i = 0; i < 2; i++) {
        stage(entries[i], 1, 1.15, 1.35, changing[i]);
        stage(entries[i], STAGE, 0.75, 1.35, whole_changing[i]);
    }
    launches("resnet20", true, 60, 59);
    launches("resnet20", false, 20, 14);
    launches("resnet110", true, 300, 240);
    launches("resnet110", false, 20, 14);
    printf("targets: %d breaches\n", breaches);
    return breaches ? 1 : 0;
}
