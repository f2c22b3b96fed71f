/* Sums the gradient buffers of chunks along one fixed binary tree over chunk indices.
 *
 * A worker that has finished a chunk brings its buffer to the tree and climbs: where the sibling subtree is
 * not finished it leaves the buffer and goes, where it is it adds the two and climbs on. Which worker adds
 * does not matter, as a + b has the bits of b + a. The sum is therefore the same for any number of workers.
 *
 * Gradients may be cut into buckets, ranges of the buffers, each of which goes its own way up the tree: those
 * of the last layers are summed while a chunk still computes the others'. A sum stands in the buffer of its
 * leftmost chunk.
 *
 * Where several processes share a batch, each sums its chunks up to the largest subtrees that are all its
 * own, its parts (base/sum_tree.h); the rest of the tree is added between processes (comm/comm.h). */
#ifndef TN_ENGINE_GRADIENT_TREE_H
#define TN_ENGINE_GRADIENT_TREE_H

#include "backend/backend.h"
#include "base/sum_tree.h"

typedef struct tn_gradient_tree tn_gradient_tree;

/* At most this many buckets. */
#define TN_BUCKETS_MAX 8

/* For at most `chunks` chunks of `floats` floats, `share` of them in this process, and `workers` workers. All
 * buffers are allocated here: as many as can be in use at once in the worst order of events. */
tn_status tn_gradient_tree_create(tn_backend *backend, int chunks, int share, int workers, size_t floats,
                                  tn_gradient_tree **out);
void tn_gradient_tree_free(tn_gradient_tree *tree);

/* Starts a sum over chunks first .. first + count - 1 of `chunks`. Bucket i is the floats bounds[i] up to
 * bounds[i + 1]. */
void tn_gradient_tree_begin(tn_gradient_tree *tree, int chunks, int first, int count, int buckets,
                            const size_t *bounds);

/* A buffer for the calling worker's next chunk. Chunks must be taken in increasing order. */
float *tn_gradient_tree_take(tn_gradient_tree *tree);

/* Brings one bucket of the buffer of `chunk`; returns whether the bucket is now ready. A chunk brings each
 * bucket once, in any order, and writes to none that it has brought. */
bool tn_gradient_tree_bring(tn_gradient_tree *tree, int chunk, int bucket, float *buffer);

/* Whether every chunk has brought this bucket and its parts are summed. */
bool tn_gradient_tree_ready(tn_gradient_tree *tree, int bucket);

/* The parts, from left to right, of a bucket that is ready: each points to the bucket's first float. Returns
 * how many. Valid until the next begin. For trees that are shared. */
int tn_gradient_tree_parts(const tn_gradient_tree *tree, int bucket, const float *parts[TN_SUM_PARTS_MAX]);

/* Where the sum of all buckets is, once all are ready: the first part, or where there is none a buffer for
 * what other processes sum up. Of a tree that is not shared the last addition is left to the caller, who can
 * divide it among workers: the sum is then what is returned plus *other; else *other is NULL. */
float *tn_gradient_tree_sum(const tn_gradient_tree *tree, const float **other);

size_t tn_gradient_tree_bytes(const tn_gradient_tree *tree);

/* Buffers that `workers` workers can hold and leave at once, in a tree over `chunks` leaves. */
int tn_gradient_tree_buffers(int chunks, int workers);

#endif
