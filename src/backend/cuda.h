/* The CUDA backend: fused kernels (kernels/) for 3x3 convolutions and everything elementwise, cuBLAS for
 * matrix products. One stream, one worker; the work of a step is recorded once as a graph and replayed. */
#ifndef TN_BACKEND_CUDA_H
#define TN_BACKEND_CUDA_H

#include "backend/backend.h"

extern const tn_backend_ops tn_cuda_backend;

#endif
