/* The launch that adds parts, against loops in double precision: gradients of weights, plain values and sums
 * of nodes, of sizes that fill blocks and that do not, alone and many of them in one launch, overwriting and
 * adding. */
#include <math.h>
#include <stdio.h>

#include "tests/simt/kernel_check.h"

#define F TN_STORE_F32

/* An item, what it must become, and the floats that its result spans (of sums also those between). */
typedef struct merged {
    tn_merge_item item;
    tensor to;
    double *wanted;
} merged;

static size_t result_floats(const tn_merge_item *m) {
    return m->taps ? (size_t)m->groups * (size_t)m->pairs * (size_t)m->taps : 3 * (size_t)m->groups / 2 + 1;
}

static void draw_gradient(merged *m, uint32_t key) {
    const size_t pairs = (size_t)m->item.pairs, taps = (size_t)m->item.taps, all = result_floats(&m->item);
    const tensor parts = tensor_random((size_t)m->item.count * all, F, key);
    m->item.parts = parts.device;
    for (size_t i = 0; i < parts.count; i++) {
        const size_t at = i % all, group = at / (taps * pairs), tap = at / pairs % taps, pair = at % pairs;
        m->wanted[(group * pairs + pair) * taps + tap] += parts.host[i];
    }
}

static void draw_sums(merged *m, uint32_t key) {
    const size_t all = (size_t)m->item.groups * (size_t)m->item.count;
    double *parts = host_doubles(all);
    for (size_t i = 0; i < all; i++) {
        const size_t row = i / (size_t)m->item.count;
        parts[i] = draw_real(key, (uint32_t)i);
        m->wanted[row / 2 * 3 + row % 2] += parts[i];
    }
    m->item.parts = device_copy(parts, all * sizeof *parts);
}

/* Results begin with 0.5; with `add` it stays in them, and between sums always. */
static merged draw(tn_merge_item item, uint32_t key, int add) {
    merged m = {.item = item};
    const size_t all = result_floats(&item);
    double *before = host_doubles(all);
    m.wanted = host_doubles(all);
    for (size_t i = 0; i < all; i++) {
        const bool result = item.taps || (i % 3 < 2 && 2 * (i / 3) + i % 3 < (size_t)item.groups);
        before[i] = 0.5;
        if (add || !result) m.wanted[i] = 0.5;
    }
    m.to = tensor_of(before, all, F);
    m.item.to = floats(m.to);
    (item.taps ? draw_gradient : draw_sums)(&m, key);
    return m;
}

static const tn_merge_item items[] = {
    {.count = 28, .groups = 1, .pairs = 256, .taps = 9},
    {.count = 1, .groups = 1, .pairs = 1024, .taps = 9},
    {.count = 5, .groups = 1, .pairs = 21, .taps = 9},   /* fewer than a warp */
    {.count = 2, .groups = 3, .pairs = 40, .taps = 9},   /* groups that end within a block */
    {.count = 33, .groups = 1, .pairs = 432, .taps = 1}, /* values */
    {.count = 3, .groups = 2, .pairs = 289, .taps = 1},
    {.count = 1, .groups = 1, .pairs = 1, .taps = 1},
    {.count = 528, .groups = 2}, /* sums of one node, and of more than a block has warps */
    {.count = 1, .groups = 2},
    {.count = 37, .groups = 42},
    {.count = 4, .groups = 1},
};
#define ITEMS (int)(sizeof items / sizeof *items)

typedef struct merge_case {
    int first, count, add;
} merge_case;

static void run(void *argument) {
    const merge_case *t = argument;
    merged all[TN_MERGE_ITEMS];
    tn_merge_item table[TN_MERGE_ITEMS];
    for (int i = 0; i < t->count; i++) {
        all[i] = draw(items[(t->first + i) % ITEMS], (uint32_t)i, t->add);
        table[i] = all[i].item;
    }
    OK(tn_launch_merge(t->count, table, t->add, 0));
    for (int i = 0; i < t->count; i++) {
        tensor_read(&all[i].to);
        check_values("result", all[i].to.host, all[i].wanted, all[i].to.count, 2e-6);
    }
}

static void test_items(void **unused) {
    (void)unused;
    for (int i = 0; i < 2 * ITEMS; i++) {
        merge_case one = {i / 2, 1, i % 2};
        char name[64];
        snprintf(name, sizeof name, "item %d, add %d", one.first, one.add);
        check_case(name, run, &one);
    }
}

static void test_tables(void **unused) {
    static const int counts[] = {2, 7, 64, 65, TN_MERGE_ITEMS};
    (void)unused;
    for (int i = 0; i < 5; i++) {
        merge_case t = {i, counts[i], i % 2};
        char name[64];
        if (check_is_slow() && t.count > 7 && i != 3) continue;
        snprintf(name, sizeof name, "%d items", t.count);
        check_case(name, run, &t);
    }
}

static void test_refusals(void **unused) {
    static tn_merge_item table[TN_MERGE_ITEMS + 1];
    (void)unused;
    assert_int_equal(tn_launch_merge(0, NULL, 0, 0), cudaSuccess);
    assert_int_equal(tn_launch_merge(TN_MERGE_ITEMS + 1, table, 0, 0), cudaErrorInvalidValue);
    table[0] = (tn_merge_item){.count = 0, .groups = 1, .pairs = 1, .taps = 9};
    assert_int_equal(tn_launch_merge(1, table, 0, 0), cudaErrorInvalidValue);
    table[0] = (tn_merge_item){.count = 1, .groups = 1, .pairs = 1, .taps = 4};
    assert_int_equal(tn_launch_merge(1, table, 0, 0), cudaErrorInvalidValue);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_items), cmocka_unit_test(test_tables),
                                       cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
