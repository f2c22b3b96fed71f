#include "base/sum_tree.h"

#include "base/fail.h"

/* The number in [low, high] that the highest power of two divides. */
static int most_aligned(int low, int high) {
    int best = high;
    for (int step = 1; step > 0 && step <= high; step *= 2) {
        int candidate = high / step * step;
        if (candidate < low) break;
        best = candidate;
        if (step > (1 << 29)) break;
    }
    return low == 0 ? 0 : best;
}

void tn_sum_deal(int leaves, int shares, int *first) {
    int most = (leaves + shares - 1) / shares;
    first[0] = 0;
    for (int i = 1; i < shares; i++) {
        /* Enough must go to the shares before the boundary for the ones behind it to take the rest. */
        long rest = (long)leaves - (long)(shares - i) * most;
        int low = rest > first[i - 1] ? (int)rest : first[i - 1];
        int high = first[i - 1] + most < leaves ? first[i - 1] + most : leaves;
        /* Nobody goes without while there is enough for everyone. */
        if (leaves >= shares && low == first[i - 1]) low++;
        if (leaves >= shares && high > leaves - (shares - i)) high = leaves - (shares - i);
        first[i] = most_aligned(low, high);
    }
    first[shares] = leaves;
}

bool tn_sum_is_alone(tn_sum_part node, int leaves) {
    return ((long)(node.position ^ 1) << node.level) >= leaves;
}

int tn_sum_parts(int first, int count, int leaves, tn_sum_part parts[TN_SUM_PARTS_MAX]) {
    int found = 0, end = first + count;
    TN_ASSERT(first >= 0 && count >= 0 && end <= leaves);
    while (first < end) {
        tn_sum_part part = {0, first};
        /* Up as long as the parent starts here and its leaves are all ours. */
        while (1 << part.level < leaves && part.position % 2 == 0) {
            long parent_end = (long)(part.position / 2 + 1) << (part.level + 1);
            if ((parent_end < leaves ? parent_end : leaves) > end) break;
            part = (tn_sum_part){part.level + 1, part.position / 2};
        }
        long part_end = (long)(part.position + 1) << part.level;
        first = part_end < end ? (int)part_end : end;
        /* A node without a sibling is its own parent, wherever it starts. */
        while (1 << part.level < leaves && tn_sum_is_alone(part, leaves))
            part = (tn_sum_part){part.level + 1, part.position / 2};
        TN_ASSERT(found < TN_SUM_PARTS_MAX);
        parts[found++] = part;
    }
    return found;
}
