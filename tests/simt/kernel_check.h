/* Support for the tests of kernels: tensors that live on the host in double precision and on the device as
 * stored, and comparison. The same code runs on the SIMT machine and on a device.
 *
 * Everything handed out here belongs to the running case and is released by check_case. Errors abort the
 * test. */
#ifndef TN_TESTS_KERNEL_CHECK_H
#define TN_TESTS_KERNEL_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/kernels.h"

#define OK(call) check_call((call), #call, __FILE__, __LINE__)
void check_call(cudaError_t error, const char *text, const char *file, int line);

/* Runs the case and prints a checksum of all values that were read back. tests/simt/run.py repeats the
 * program under several thread orders: the checksums must not change. */
void check_case(const char *name, void (*run)(void *argument), void *argument);

/* True in the instrumented build of the SIMT machine, where large cases run once instead of in all storages.
 */
bool check_is_slow(void);

/* Device memory: zeroed, as it comes, or a copy of host bytes. */
void *device_zeros(size_t bytes);
void *device_raw(size_t bytes);
void *device_copy(const void *host, size_t bytes);
/* Host memory, zeroed; and a copy of device memory, after all work on `stream 0` has finished. */
void *host_zeros(size_t bytes);
void *host_copy(const void *device, size_t bytes);
double *host_doubles(size_t count);

/* A tensor: `host` is what the device has, exactly. */
typedef struct tensor {
    size_t count;
    tn_storage store;
    double *host;
    void *device;
} tensor;

/* Uniform in [-1, 1], a pure function of key; rounded to the storage. */
tensor tensor_random(size_t count, tn_storage store, uint32_t key);
tensor tensor_of(const double *values, size_t count, tn_storage store);
/* Not initialised; host is NULL until tensor_read, which fills it from the device. */
tensor tensor_empty(size_t count, tn_storage store);
void tensor_read(tensor *t);
/* Float32 tensors as kernels take them. */
float *floats(tensor t);

/* A 3x3 convolution with padding 1, and how many values it reads and makes. */
tn_conv_shape conv3x3_shape(int rows, int height, int width, int in, int out, int stride);
size_t conv_inputs(const tn_conv_shape *s);
size_t conv_outputs(const tn_conv_shape *s);

/* The loss of a row of logits, and its gradient by them. */
double loss_of_row(tn_kernel_loss kind, const double *x, const double *target, int classes, double *dx);

/* Adds what a kernel left in `count` parts: a gradient of 3x3 weights, `pairs` of channels; two sums. */
void merge_weights(const float *parts, int count, int pairs, float *dw);
void merge_sums(const double *parts, int count, float *sums);

/* Two uniform draws for tests: a double in [-1, 1], an integer in [0, n). */
double draw_real(uint32_t key, uint32_t index);
int draw_below(uint32_t key, uint32_t index, int n);

/* got (read back here) against wanted: |difference| <= tolerance * (|wanted| + root mean square of wanted),
 * tolerance 1e-4 for float32 and 2e-2 for bf16; `tolerance` > 0 takes another. */
void check_tensor(const char *what, tensor *got, const double *wanted);
void check_values(const char *what, const double *got, const double *wanted, size_t count, double tolerance);
void check_number(const char *what, double got, double wanted, double scale, double tolerance);
/* Bits of a mask against z > 0; values too near to 0 for float32 are passed over. */
void check_mask(const char *what, const uint32_t *device_mask, const double *z, size_t count);
void check_flag(const char *what, const int *device_flag, int wanted);

static inline size_t mask_bytes(size_t count) {
    return (count + 31) / 32 * 4;
}

#endif
