/* A pool of worker threads that runs the iterations of a loop.
 *
 * Iterations are handed out in increasing order, so a worker that takes index i knows that all smaller ones
 * have been taken. Which worker runs which index is not fixed: results must not depend on it. */
#ifndef TN_BASE_POOL_H
#define TN_BASE_POOL_H

#include "base/fail.h"

typedef struct tn_pool tn_pool;

/* Body of a loop: iteration `index` on worker `worker` (0 .. threads-1; two bodies never share a worker at a
 * time). */
typedef tn_status (*tn_pool_body)(void *context, int index, int worker);

/* Starts `threads` threads; each calls on_start (may be NULL) first. With 0 threads, loops run on the calling
 * thread, as worker 0. Free with tn_pool_free. */
tn_status tn_pool_create(int threads, void (*on_start)(void), tn_pool **out);
void tn_pool_free(tn_pool *pool);
int tn_pool_threads(const tn_pool *pool);

/* Runs body for 0 .. count-1 and waits for all. After a failure no further iteration starts; the failure with
 * the smallest index is returned with its message on the calling thread. One caller at a time. */
tn_status tn_pool_run(tn_pool *pool, int count, tn_pool_body body, void *context);

/* What the calling thread does while a loop runs. It is called when the loop begins, after each tn_pool_wake,
 * and again *pause seconds later where it says so; *pause comes negative. */
typedef tn_status (*tn_pool_aside)(void *context, double *pause);

/* The same as tn_pool_run with something to do beside; a failure of it ends the loop and is returned. It is
 * not called where loops run on the calling thread. */
tn_status tn_pool_run_beside(tn_pool *pool, int count, tn_pool_body body, tn_pool_aside aside, void *context);
/* Has the aside called soon; for bodies. */
void tn_pool_wake(tn_pool *pool);

/* Processors this process may run on. */
int tn_processor_count(void);

#endif
