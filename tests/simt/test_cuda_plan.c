/* What is planned for which device, and the cost that decides; needs no device. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cuda_plan.h"
#include "taunet/status.h"

static tn_model *network(const char *name, const char *variant) {
    tn_model *model;
    tn_model_config config = {
        .model = name, .variant = variant, .channels = 3, .height = 32, .width = 32, .classes = 10};
    if (tn_model_build(&config, &model) != TN_OK) fail_msg("%s", tn_error());
    return model;
}

/* Nodes in stages, and how many stages there are. */
static int staged(const tn_cuda_arch *arch, tn_precision precision, const tn_model *m, int rows,
                  int *stages) {
    int nodes = 0;
    *stages = 0;
    for (int i = 0, count; i < m->node_count; i += count) {
        tn_cuda_choice c = tn_cuda_choose(arch, precision, m, i, rows);
        count = tn_cuda_choice_span(&c);
        if (count == 1 || c.way == TN_CUDA_HEAD) continue;
        assert_int_equal(c.way, TN_CUDA_STAGE);
        assert_int_equal(c.nodes, count);
        nodes += count;
        ++*stages;
    }
    return nodes;
}

/* All residual blocks, wherever they are without norms and whatever the stream's storage: two convolutions
 * each, and where the shape changes the two nodes of the shortcut; a projection is none. */
static void test_stages(void **unused) {
    static const struct {
        const char *model, *variant;
        tn_precision precision;
        int nodes, stages;
    } cases[] = {
        {"resnet20", "tau", TN_PRECISION_BF16, 22, 3},     {"resnet110", "tau", TN_PRECISION_BF16, 112, 3},
        {"resnet110", "fixup", TN_PRECISION_BF16, 112, 3}, {"resnet8", "plain", TN_PRECISION_BF16, 10, 3},
        {"resnet20", "tau", TN_PRECISION_FP32, 0, 0},      {"resnet20", "bn-tau", TN_PRECISION_BF16, 0, 0},
        {"resnet1202", "tau", TN_PRECISION_BF16, 1204, 3}, {"resnet18", "tau", TN_PRECISION_BF16, 4, 1},
    };
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int a = 0; a < 2; a++) {
            tn_model *m = network(cases[i].model, cases[i].variant);
            int stages, nodes = staged(tn_cuda_arch_named(a ? "sm_90" : "sm_80"), cases[i].precision, m, 128,
                                       &stages);
            /* On an A100, a stream in float32 at 32x32 is too large, and a single block of 16 channels takes
             * as long as its convolutions. */
            const int fewer = a                                       ? 0
                              : !strcmp(cases[i].model, "resnet1202") ? 400
                              : !strcmp(cases[i].model, "resnet8")    ? 2
                                                                      : 0;
            if (nodes != cases[i].nodes - fewer || stages != cases[i].stages - (fewer > 0))
                fail_msg("%s %s: %d nodes in %d stages", cases[i].model, cases[i].variant, nodes, stages);
            tn_model_free(m);
        }
    assert_null(tn_cuda_arch_named("sm_70"));
}

/* Images that do not fit in shared memory are left to kernels of single convolutions. */
static void test_shared_memory(void **unused) {
    tn_cuda_arch arch = *tn_cuda_arch_named("sm_90");
    tn_model *m = network("resnet20", "tau");
    int stages;
    (void)unused;
    arch.shared_bytes = 100 << 10; /* backward of 32x32 needs more, the others not */
    assert_int_equal(staged(&arch, TN_PRECISION_BF16, m, 128, &stages), 16);
    arch.shared_bytes = 48 << 10;
    assert_int_equal(staged(&arch, TN_PRECISION_BF16, m, 128, &stages), 0);
    tn_model_free(m);
}

static void check_stage(const tn_cuda_choice *c, int launches, double bytes, double flops) {
    const tn_cuda_cost *cost = &c->cost[TN_CUDA_STAGE];
    assert_int_equal(cost->launches, launches);
    if (fabs(cost->bytes - bytes) > 1e-3 * bytes) fail_msg("%.0f bytes, by hand %.0f", cost->bytes, bytes);
    assert_true(fabs(cost->flops - flops) < 1e-6 * flops);
    assert_true(cost->seconds < c->cost[TN_CUDA_BLOCK].seconds);
    assert_true(c->cost[TN_CUDA_BLOCK].seconds < c->cost[TN_CUDA_CONV].seconds);
}

/* The first stage of ResNet-20, counted by hand: 128 images of 32x32x16 in bf16 are 4 MiB. */
static void test_cost(void **unused) {
    const tn_cuda_arch *arch = tn_cuda_arch_named("sm_90");
    tn_model *m = network("resnet20", "tau");
    tn_cuda_choice c = tn_cuda_choose(arch, TN_PRECISION_BF16, m, 1, 128);
    const double unit = 128.0 * 32 * 32 * 16 * 2, masks = 6 * unit / 16, weights = 6 * 9 * 16 * 16 * 2,
                 parts = 128.0 * 6 * (9 * 16 * 16 * 4 + 2 * 8);
    (void)unused;
    assert_int_equal(c.cost[TN_CUDA_BLOCK].launches, 6);
    /* Forward x in, six outputs; backward dy, x and five outputs in, dx out; parts written and read. */
    check_stage(&c, 2, 7 * unit + 8 * unit + 2 * masks + 2 * weights + 2 * parts + 2 * weights,
                3.0 * 6 * 2 * 128 * 32 * 32 * 9 * 16 * 16);
    /* One image more than multiprocessors is another wave. */
    tn_cuda_choice full = tn_cuda_choose(arch, TN_PRECISION_BF16, m, 1, 132),
                   over = tn_cuda_choose(arch, TN_PRECISION_BF16, m, 1, 133);
    assert_true(over.cost[TN_CUDA_STAGE].seconds > 1.2 * full.cost[TN_CUDA_STAGE].seconds);
    tn_model_free(m);
}

/* The second, whose first block changes the shape: what it reads is twice what it computes with. */
static void test_cost_of_entry(void **unused) {
    const tn_cuda_arch *arch = tn_cuda_arch_named("sm_90");
    tn_model *m = network("resnet20", "tau");
    tn_cuda_choice c = tn_cuda_choose(arch, TN_PRECISION_BF16, m, 7, 128);
    const double unit = 128.0 * 16 * 16 * 32 * 2, masks = 6 * unit / 16,
                 weights = (16 + 5 * 32) * 9 * 32 * 2, /* bf16 */
        splits = 3, parts = splits * weights * 2 + 13 * 128 * 8;
    (void)unused;
    assert_string_equal(m->nodes[7].name, "layer2.0.subsample");
    assert_int_equal(c.nodes, 8);
    assert_int_equal(c.first_block, 4);
    assert_int_equal(c.cost[TN_CUDA_BLOCK].launches, 9);
    /* Forward x in, six outputs; backward dy in, six dz, dx out; then x, five outputs and six dz in. */
    check_stage(&c, 3, 8 * unit + 9 * unit + 13 * unit + 2 * masks + 2 * weights + 2 * parts + 2 * weights,
                3.0 * 5.5 * 2 * 128 * 16 * 16 * 9 * 32 * 32);
    tn_model_free(m);
}

static void expect_bytes(const char *what, tn_cuda_cost cost, double wanted) {
    if (fabs(cost.bytes - wanted) > 1e-6 * wanted)
        fail_msg("%s: %.0f bytes, by hand %.0f", what, cost.bytes, wanted);
}

/* The same six convolutions as kernels of their own: with the gates of bf16 and tf32, and the direct ones of
 * float32. */
static void test_cost_of_convolutions(void **unused) {
    const tn_cuda_arch *arch = tn_cuda_arch_named("sm_90");
    tn_model *m = network("resnet20", "tau");
    const tn_conv_shape s = {128, 32, 32, 16, 32, 32, 16, 3, 1, 1};
    const double values = 128.0 * 32 * 32 * 16, weights = 9.0 * 16 * 16, mask = values / 8,
                 products = 2 * values * 9 * 16;
    (void)unused;
    tn_cuda_cost bf16 = tn_cuda_choose(arch, TN_PRECISION_BF16, m, 1, 128).cost[TN_CUDA_CONV], tf32 = {0},
                 fp32 = {0};
    for (int i = 1; i <= 6; i++) {
        const tn_cuda_choice a = tn_cuda_choose(arch, TN_PRECISION_TF32, m, i, 128),
                             b = tn_cuda_choose(arch, TN_PRECISION_FP32, m, i, 128);
        assert_int_equal(a.way, TN_CUDA_CONV);
        assert_int_equal(b.way, TN_CUDA_CONV);
        tf32.bytes += a.cost[a.way].bytes;
        tf32.launches += a.cost[a.way].launches;
        fp32.bytes += b.cost[b.way].bytes;
        fp32.launches += b.cost[b.way].launches;
    }
    /* A block forward: x, a, mask; a, r, y, mask. Backward: dz, a, mask in, dz of a out; dz, x, r, mask in,
     * dx out; parts written and read. */
    const double masks = 4 * mask;
    expect_bytes("bf16", bf16,
                 3 * (12 * 2 * values + masks) +
                     6 * weights * (2 * 2 + 2 * 4.0 * tn_wmma3x3_both_parts(&s) + 4));
    assert_int_equal(bf16.launches, 12);
    assert_true(fabs(bf16.flops - 3 * 6 * products) < 1e-6 * bf16.flops);
    /* The float32 units would take longer. */
    assert_true(bf16.seconds < 3 * 6 * products / arch->float_flops / 2);
    /* Both gradients apart: dz is read twice, x too. */
    expect_bytes(
        "tf32", tf32,
        3 * (14 * 4 * values + masks) +
            6 * weights *
                (2 * 4 + 2 * 4.0 * tn_wmma3x3_parts(&s, TN_WMMA_TF32, TN_STORE_F32, TN_STORE_F32) + 4));
    assert_int_equal(tf32.launches, 18);
    /* No gates: dy and mask in, dz out before each, with a residual's gradient for the second. */
    expect_bytes("fp32", fp32,
                 3 * (5 * 4 * values + 5 * 4 * values + 2 * 4 * 4 * values + masks) +
                     6 * weights * (2 * 4 + 2 * 4.0 * tn_conv3x3_parts(&s) + 4));
    assert_int_equal(fp32.launches, 24);
    tn_model_free(m);
}

/* The first convolution is one kernel each way wherever it is 3x3 on images of few channels: 128 images of
 * 32x32x3 floats, 4 MiB of output and its mask, read or written in each, parts written and read. */
static void test_first_convolution(void **unused) {
    static const struct {
        const char *model, *variant;
        tn_precision precision;
        bool stem;
    } cases[] = {{"resnet20", "tau", TN_PRECISION_FP32, true},
                 {"resnet20", "tau", TN_PRECISION_TF32, true},
                 {"resnet20", "bn", TN_PRECISION_BF16, true},
                 {"resnet20", "tau", TN_PRECISION_BF16, true},
                 {"resnet50", "tau", TN_PRECISION_BF16, false}};
    const double image = 128.0 * 32 * 32 * 3 * 4, unit = 128.0 * 32 * 32 * 16 * 2,
                 parts = 256.0 * (27 * 16 * 4 + 2 * 8);
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_model *m = network(cases[i].model, cases[i].variant);
        tn_cuda_choice c = tn_cuda_choose(tn_cuda_arch_named("sm_90"), cases[i].precision, m, 0, 128);
        assert_int_equal(c.way, cases[i].stem ? TN_CUDA_CONV : TN_CUDA_CUBLAS);
        if (cases[i].stem) assert_int_equal(c.cost[c.way].launches, 2);
        if (i == 3) assert_true(fabs(c.cost[c.way].bytes - 2 * (image + unit + unit / 16 + parts)) < 1);
        tn_model_free(m);
    }
}

/* Average pool, linear layer and loss are one where they are narrow, in every precision. */
static void test_head(void **unused) {
    static const struct {
        const char *model, *variant;
        tn_precision precision;
        bool head;
    } cases[] = {{"resnet20", "tau", TN_PRECISION_FP32, true},
                 {"resnet110", "bn", TN_PRECISION_BF16, true},
                 {"resnet20", "tau", TN_PRECISION_BF16, true},
                 {"resnet50", "tau", TN_PRECISION_BF16, false}};
    (void)unused;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_model *m = network(cases[i].model, cases[i].variant);
        const int pool = m->node_count - 3;
        tn_cuda_choice c = tn_cuda_choose(tn_cuda_arch_named("sm_80"), cases[i].precision, m, pool, 128);
        assert_int_equal(c.way, cases[i].head ? TN_CUDA_HEAD : TN_CUDA_OTHER);
        assert_int_equal(tn_cuda_choice_span(&c), cases[i].head ? 3 : 1);
        if (cases[i].head) {
            assert_int_equal(c.cost[TN_CUDA_HEAD].launches, 2);
            assert_true(c.cost[TN_CUDA_HEAD].seconds < c.cost[TN_CUDA_CUBLAS].seconds);
        }
        /* x and its gradient, and twice what is kept of an image and the weights. */
        double wanted = 2 * 128.0 * 8 * 8 * 64 * 2 + 2 * (128 * (74 * 4 + 8.0) + 640 * 4);
        if (i == 2) assert_true(fabs(c.cost[TN_CUDA_HEAD].bytes - wanted) < 1);
        /* A second reader of the pool's output. */
        if (i == 2) m->nodes[pool + 1].residual = m->nodes[pool].output;
        c = tn_cuda_choose(tn_cuda_arch_named("sm_80"), cases[i].precision, m, pool, 128);
        if (i == 2) assert_int_equal(tn_cuda_choice_span(&c), 1);
        tn_model_free(m);
    }
}

static void test_explain(void **unused) {
    tn_model *m = network("resnet110", "tau");
    tn_string text = {0};
    (void)unused;
    assert_int_equal(tn_cuda_explain(m, TN_PRECISION_BF16, "sm_90", 128, &text), TN_OK);
    assert_non_null(strstr(text.data, "    36  layer1.0.conv1           stage"));
    assert_non_null(strstr(text.data, "    38  layer2.0.subsample       stage"));
    assert_non_null(strstr(text.data, "a prediction"));
    tn_string_free(&text);
    assert_int_equal(tn_cuda_explain(m, TN_PRECISION_BF16, "sm_70", 128, &text), TN_ERR_USAGE);
    tn_model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stages),
                                       cmocka_unit_test(test_shared_memory),
                                       cmocka_unit_test(test_cost),
                                       cmocka_unit_test(test_cost_of_entry),
                                       cmocka_unit_test(test_cost_of_convolutions),
                                       cmocka_unit_test(test_first_convolution),
                                       cmocka_unit_test(test_head),
                                       cmocka_unit_test(test_explain)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
