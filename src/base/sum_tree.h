/* The binary tree over the chunks of a batch along which gradients are summed, and how its leaves are dealt
 * to several processes.
 *
 * Node (level, position) covers leaves position << level up to (position + 1) << level, as far as there are
 * that many; a node with an empty right half is its left half. Every process owns a contiguous range of
 * leaves and sums it up to the largest subtrees that lie inside the range, its parts; what joins parts of
 * several processes is added afterwards in the same tree, so the sum has the same bits however the leaves
 * were dealt. */
#ifndef TN_BASE_SUM_TREE_H
#define TN_BASE_SUM_TREE_H

#include <stdbool.h>

typedef struct tn_sum_part {
    int level, position;
} tn_sum_part;

/* A range of leaves has at most so many parts. */
#define TN_SUM_PARTS_MAX 64

/* Deals `leaves` to `shares` >= 1 processes: share i owns leaves first[i] up to first[i + 1]; first has
 * shares + 1 elements. No share is larger than leaves / shares rounded up; within that, boundaries are chosen
 * so that subtrees stay whole. With a power of two of shares and a multiple of it of leaves that is itself a
 * power of two, every share is one subtree. */
void tn_sum_deal(int leaves, int shares, int *first);

/* The parts of leaves first .. first + count - 1 in a tree of `leaves`, from left to right, each named by its
 * highest node. Returns how many; 0 for an empty range. */
int tn_sum_parts(int first, int count, int leaves, tn_sum_part parts[TN_SUM_PARTS_MAX]);

/* Whether the node's sibling covers no leaf, so that the node is its own parent. */
bool tn_sum_is_alone(tn_sum_part node, int leaves);

#endif
