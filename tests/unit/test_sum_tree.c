/* How the leaves of the sum tree are dealt, and the subtrees of a range. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/sum_tree.h"

#define LEAVES_MAX 70
#define SHARES_MAX 9

/* The highest node whose leaves are exactly [first, end), found by trying all; level -1 when there is none.
 */
static tn_sum_part node_of(int first, int end, int leaves) {
    tn_sum_part found = {-1, 0};
    for (int level = 0; level == 0 || 1 << (level - 1) < leaves; level++)
        for (int position = 0; position << level < leaves; position++) {
            int from = position << level, to = (position + 1) << level;
            if (from == first && (to < leaves ? to : leaves) == end) found = (tn_sum_part){level, position};
        }
    return found;
}

/* A range's parts are consecutive, exist in the tree, and no two neighbours could be one. */
static void check_parts(int first, int count, int leaves) {
    tn_sum_part parts[TN_SUM_PARTS_MAX];
    int found = tn_sum_parts(first, count, leaves, parts), at = first, ends[TN_SUM_PARTS_MAX + 1] = {first};
    for (int i = 0; i < found; i++) {
        int end = (parts[i].position + 1) << parts[i].level;
        if (end > leaves) end = leaves;
        tn_sum_part node = node_of(at, end, leaves);
        assert_int_equal(node.level, parts[i].level);
        assert_int_equal(node.position, parts[i].position);
        ends[i + 1] = at = end;
    }
    assert_int_equal(at, first + count);
    for (int i = 0; i < found; i++)
        for (int j = i + 1; j < found; j++) assert_int_equal(node_of(ends[i], ends[j + 1], leaves).level, -1);
}

static void test_parts_of_every_range(void **state) {
    (void)state;
    for (int leaves = 1; leaves <= 33; leaves++)
        for (int first = 0; first <= leaves; first++)
            for (int count = 0; first + count <= leaves; count++) check_parts(first, count, leaves);
}

static void test_everything_is_one_part(void **state) {
    (void)state;
    tn_sum_part part[TN_SUM_PARTS_MAX];
    for (int leaves = 1; leaves <= 1000; leaves++) {
        assert_int_equal(tn_sum_parts(0, leaves, leaves, part), 1);
        assert_true(1 << part[0].level >= leaves && part[0].position == 0);
        assert_true(leaves == 1 || 1 << (part[0].level - 1) < leaves);
    }
}

static void test_deal_is_even(void **state) {
    (void)state;
    for (int leaves = 1; leaves <= LEAVES_MAX; leaves++)
        for (int shares = 1; shares <= SHARES_MAX; shares++) {
            int first[SHARES_MAX + 1], most = (leaves + shares - 1) / shares;
            tn_sum_deal(leaves, shares, first);
            assert_int_equal(first[0], 0);
            assert_int_equal(first[shares], leaves);
            for (int i = 0; i < shares; i++) {
                int load = first[i + 1] - first[i];
                if (load < 0 || load > most || (leaves >= shares && load < 1))
                    fail_msg("%d leaves in %d shares: share %d has %d", leaves, shares, i, load);
            }
        }
}

static void test_powers_of_two_are_dealt_as_subtrees(void **state) {
    (void)state;
    for (int shares = 1; shares <= 64; shares *= 2)
        for (int leaves = shares; leaves <= 1024; leaves *= 2) {
            int first[65];
            tn_sum_part parts[TN_SUM_PARTS_MAX];
            tn_sum_deal(leaves, shares, first);
            for (int i = 0; i < shares; i++) {
                assert_int_equal(first[i], leaves / shares * i);
                assert_int_equal(tn_sum_parts(first[i], first[i + 1] - first[i], leaves, parts), 1);
            }
        }
}

/* 16 chunks on three ranks: 4, 6 and 6 instead of 5, 5 and 6, which would be cut at odd places. */
static void test_boundaries_keep_subtrees(void **state) {
    (void)state;
    int first[4];
    tn_sum_deal(16, 3, first);
    assert_int_equal(first[1], 4);
    assert_int_equal(first[2], 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_of_every_range),
        cmocka_unit_test(test_everything_is_one_part),
        cmocka_unit_test(test_deal_is_even),
        cmocka_unit_test(test_powers_of_two_are_dealt_as_subtrees),
        cmocka_unit_test(test_boundaries_keep_subtrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
