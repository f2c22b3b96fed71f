/* The two spellings that CUDA C++ has and C++ has not: a kernel launch and dynamic shared memory. Kernels use
 * these macros, and stay plain C++ otherwise, so that they also run on tests/simt/.
 *
 * - TN_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
 *   is kernel<<<grid, block, shared_bytes, stream>>>(arguments...). A template with commas goes in
 *   parentheses: TN_LAUNCH((conv<3, 16>), ...). Errors are read with cudaGetLastError(), as after <<<>>>.
 *
 * - TN_DYNAMIC_SHARED(type, name)
 *   declares `type *name`, the block's dynamic shared memory, 128-byte aligned. All uses in a kernel are the
 *   same memory. */
#ifndef TN_KERNELS_LAUNCH_H
#define TN_KERNELS_LAUNCH_H

#include <cuda_runtime.h>

#ifdef __CUDACC__
#define TN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                            \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define TN_DYNAMIC_SHARED(type, name)                                                                        \
    extern __shared__ __align__(128) unsigned char tn_dynamic_shared[];                                      \
    type *name = reinterpret_cast<type *>(tn_dynamic_shared)
#else
#define TN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                            \
    simt::launch(#kernel, __FILE__, __LINE__, kernel, (grid), (block), (shared_bytes), (stream),             \
                 ##__VA_ARGS__)
#define TN_DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(simt_dynamic_shared())
#endif

#endif
