/* cp.async in its C form. A copy happens as late as allowed: when its batch is waited for. */
#ifndef SIMT_CUDA_PIPELINE_PRIMITIVES_H
#define SIMT_CUDA_PIPELINE_PRIMITIVES_H

#include "cuda_runtime.h"

void simt_copy_async(void *dst, const void *src, size_t size, size_t zfill, const char *file, int line);
void simt_copy_commit();
void simt_copy_wait(size_t prior);

static inline void __pipeline_memcpy_async(void *dst_shared, const void *src_global, size_t size_and_align,
                                           size_t zfill = 0, SIMT_SITE) {
    simt_copy_async(dst_shared, src_global, size_and_align, zfill, SIMT_PLACE);
}
static inline void __pipeline_commit() {
    simt_copy_commit();
}
static inline void __pipeline_wait_prior(size_t prior) {
    simt_copy_wait(prior);
}

#endif
