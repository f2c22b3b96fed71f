/* Sums the gradient buffers of chunks along one fixed binary tree over chunk indices.
 *
 * A worker that has finished a chunk brings its buffer to the tree and climbs: where the sibling subtree is
 * not finished it leaves the buffer and goes, where it is it adds the two and climbs on. Which worker adds
 * does not matter, as a + b has the bits of b + a. The sum is therefore the same for any number of workers,
 * and for ranks that own aligned subtrees. */
#ifndef TN_ENGINE_GRADIENT_TREE_H
#define TN_ENGINE_GRADIENT_TREE_H

#include "backend/backend.h"

typedef struct tn_gradient_tree tn_gradient_tree;

/* For at most `chunks` chunks of `floats` floats and `workers` workers. All buffers are allocated here: as
 * many as can be in use at once in the worst order of events. */
tn_status tn_gradient_tree_create(tn_backend *backend, int chunks, int workers, size_t floats,
                                  tn_gradient_tree **out);
void tn_gradient_tree_free(tn_gradient_tree *tree);

/* Starts a sum over chunks 0 .. chunks-1 of which the first `floats` floats count. */
void tn_gradient_tree_begin(tn_gradient_tree *tree, int chunks, size_t floats);

/* A buffer for the calling worker's next chunk. Chunks must be taken in increasing order. */
float *tn_gradient_tree_take(tn_gradient_tree *tree);

/* Brings the buffer of `chunk`. */
void tn_gradient_tree_bring(tn_gradient_tree *tree, int chunk, float *buffer);

/* The finished sum, once every chunk was brought; valid until the next begin. */
const float *tn_gradient_tree_sum(const tn_gradient_tree *tree);

size_t tn_gradient_tree_bytes(const tn_gradient_tree *tree);

/* Buffers that `workers` workers can hold and leave at once, in a tree over `chunks` leaves. */
int tn_gradient_tree_buffers(int chunks, int workers);

#endif
