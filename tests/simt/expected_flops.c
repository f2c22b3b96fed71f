/* What kernels without tensor cores multiply, from the description of their operation: the linker puts these
 * between the backend and the launchers (--wrap), and the machine notes the work with the next launch. */
#include "kernels/kernels.h"
#include "simt.h"

static uint64_t flops_of(const tn_conv_shape *s) {
    return 2ull * (uint64_t)s->rows * (uint64_t)s->out_height * (uint64_t)s->out_width *
           (uint64_t)s->out_channels * (uint64_t)s->in_channels * (uint64_t)(s->kernel * s->kernel);
}

#define WRAP(name, parameters, arguments)                                                                    \
    cudaError_t __real_##name parameters;                                                                    \
    cudaError_t __wrap_##name parameters;                                                                    \
    cudaError_t __wrap_##name parameters {                                                                   \
        simt_expect_flops(flops_of(shape));                                                                  \
        return __real_##name arguments;                                                                      \
    }

WRAP(tn_launch_conv3x3_forward,
     (const tn_conv_shape *shape, tn_storage x_store, const void *x, const float *w, tn_epilogue epilogue,
      tn_storage y_store, void *y, cudaStream_t stream),
     (shape, x_store, x, w, epilogue, y_store, y, stream))
WRAP(tn_launch_conv3x3_backward_data,
     (const tn_conv_shape *shape, tn_storage y_store, const void *dz, const float *w, tn_storage x_store,
      void *dx, cudaStream_t stream),
     (shape, y_store, dz, w, x_store, dx, stream))
WRAP(tn_launch_conv3x3_backward_weights,
     (const tn_conv_shape *shape, tn_storage x_store, const void *x, tn_storage y_store, const void *dz,
      float *parts, cudaStream_t stream),
     (shape, x_store, x, y_store, dz, parts, stream))
WRAP(tn_launch_stem_forward,
     (const tn_conv_shape *shape, const float *x, const float *w, tn_epilogue epilogue, tn_storage y_store,
      void *y, int *x_nonfinite, cudaStream_t stream),
     (shape, x, w, epilogue, y_store, y, x_nonfinite, stream))
WRAP(tn_launch_stem_backward,
     (const tn_conv_shape *shape, const float *x, tn_storage y_store, tn_parts dy, const uint32_t *mask,
      float *parts, double *sums, cudaStream_t stream),
     (shape, x, y_store, dy, mask, parts, sums, stream))
