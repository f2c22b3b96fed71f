#include "tests/simt/kernel_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/philox.h"

/* The SIMT machine has it, a device has not. */
extern int simt_is_instrumented(void) __attribute__((weak));

#define ALLOCATIONS_MAX 4096

static struct {
    void *host[ALLOCATIONS_MAX], *device[ALLOCATIONS_MAX];
    int host_count, device_count;
    uint64_t digest; /* of everything read back */
    const char *name;
} state;

void check_call(cudaError_t error, const char *text, const char *file, int line) {
    if (error != cudaSuccess)
        fail_msg("%s: %s:%d: %s: %s", state.name, file, line, text, cudaGetErrorString(error));
}

static void release_all(void) {
    for (int i = 0; i < state.host_count; i++) free(state.host[i]);
    for (int i = 0; i < state.device_count; i++) OK(cudaFree(state.device[i]));
    state.host_count = state.device_count = 0;
}

void check_case(const char *name, void (*run)(void *argument), void *argument) {
    state.name = name;
    state.digest = 14695981039346656037u;
    run(argument);
    OK(cudaDeviceSynchronize());
    release_all();
    printf("checksum of %s: %016llx\n", name, (unsigned long long)state.digest);
    fflush(stdout);
}

bool check_is_slow(void) {
    return simt_is_instrumented && simt_is_instrumented();
}

void *host_zeros(size_t bytes) {
    void *p = calloc(bytes + 1, 1);
    if (!p || state.host_count == ALLOCATIONS_MAX) fail_msg("%s: out of memory", state.name);
    state.host[state.host_count++] = p;
    return p;
}

double *host_doubles(size_t count) {
    return host_zeros(count * sizeof(double));
}

void *device_raw(size_t bytes) {
    void *p = NULL;
    OK(cudaMalloc(&p, bytes ? bytes : 1));
    if (state.device_count == ALLOCATIONS_MAX) fail_msg("%s: too many allocations", state.name);
    state.device[state.device_count++] = p;
    return p;
}

void *device_zeros(size_t bytes) {
    void *p = device_raw(bytes);
    OK(cudaMemset(p, 0, bytes));
    return p;
}

void *device_copy(const void *host, size_t bytes) {
    void *p = device_raw(bytes);
    OK(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    return p;
}

void *host_copy(const void *device, size_t bytes) {
    unsigned char *p = host_zeros(bytes);
    OK(cudaDeviceSynchronize());
    OK(cudaMemcpy(p, device, bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < bytes; i++) state.digest = (state.digest ^ p[i]) * 1099511628211u;
    return p;
}

/* ---- tensors ---- */

double draw_real(uint32_t key, uint32_t index) {
    uint32_t counter[4] = {index, 0, 0, 77}, k[2] = {key, 1}, out[4];
    tn_philox(counter, k, out);
    return (double)out[0] / 2147483648.0 - 1.0;
}

int draw_below(uint32_t key, uint32_t index, int n) {
    return (int)((draw_real(key, index) + 1.0) * 0.5 * (double)n);
}

static uint16_t bf16_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if (v != v) return 0x7fff;
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static float value_of(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &word, 4);
    return v;
}

tensor tensor_of(const double *values, size_t count, tn_storage store) {
    tensor t = {.count = count, .store = store, .host = host_doubles(count)};
    float *f = host_zeros(count * sizeof *f);
    uint16_t *b = host_zeros(count * sizeof *b);
    for (size_t i = 0; i < count; i++) {
        f[i] = (float)values[i];
        b[i] = bf16_of(f[i]);
        t.host[i] = (double)(store == TN_STORE_BF16 ? value_of(b[i]) : f[i]);
    }
    t.device = store == TN_STORE_BF16 ? device_copy(b, count * 2) : device_copy(f, count * 4);
    return t;
}

tensor tensor_random(size_t count, tn_storage store, uint32_t key) {
    double *values = host_doubles(count);
    for (size_t i = 0; i < count; i++) values[i] = draw_real(key, (uint32_t)i);
    return tensor_of(values, count, store);
}

tensor tensor_empty(size_t count, tn_storage store) {
    tensor t = {
        .count = count, .store = store, .device = device_raw(count * (store == TN_STORE_BF16 ? 2 : 4))};
    return t;
}

void tensor_read(tensor *t) {
    t->host = host_doubles(t->count);
    if (t->store == TN_STORE_BF16) {
        const uint16_t *b = host_copy(t->device, t->count * 2);
        for (size_t i = 0; i < t->count; i++) t->host[i] = (double)value_of(b[i]);
    } else {
        const float *f = host_copy(t->device, t->count * 4);
        for (size_t i = 0; i < t->count; i++) t->host[i] = (double)f[i];
    }
}

float *floats(tensor t) {
    return t.device;
}

void merge_weights(const float *parts, int count, int pairs, float *dw) {
    const tn_merge_item item = {
        .parts = parts, .to = dw, .count = count, .groups = 1, .pairs = pairs, .taps = 9};
    OK(tn_launch_merge(1, &item, 0, 0));
}

void merge_sums(const double *parts, int count, float *sums) {
    const tn_merge_item item = {.parts = parts, .to = sums, .count = count, .groups = 2};
    OK(tn_launch_merge(1, &item, 0, 0));
}

/* ---- comparison ---- */

void check_values(const char *what, const double *got, const double *wanted, size_t count, double tolerance) {
    double square = 0;
    for (size_t i = 0; i < count; i++) square += wanted[i] * wanted[i];
    double typical = sqrt(square / (double)(count ? count : 1));
    for (size_t i = 0; i < count; i++) {
        double error = fabs(got[i] - wanted[i]), allowed = tolerance * (fabs(wanted[i]) + typical);
        if (!(error <= allowed))
            fail_msg("%s: %s[%zu of %zu] is %.9g, wanted %.9g (typical %.3g)", state.name, what, i, count,
                     got[i], wanted[i], typical);
    }
}

void check_tensor(const char *what, tensor *got, const double *wanted) {
    tensor_read(got);
    check_values(what, got->host, wanted, got->count, got->store == TN_STORE_BF16 ? 2e-2 : 1e-4);
}

void check_number(const char *what, double got, double wanted, double scale, double tolerance) {
    if (!(fabs(got - wanted) <= tolerance * scale))
        fail_msg("%s: %s is %.9g, wanted %.9g (scale %.3g)", state.name, what, got, wanted, scale);
}

void check_mask(const char *what, const uint32_t *device_mask, const double *z, size_t count) {
    const uint8_t *bytes = host_copy(device_mask, (count + 7) / 8);
    for (size_t i = 0; i < count; i++)
        if (fabs(z[i]) > 1e-4 && (bytes[i / 8] >> (i % 8) & 1) != (z[i] > 0))
            fail_msg("%s: %s: bit %zu of %zu is wrong, z is %.9g", state.name, what, i, count, z[i]);
}

void check_flag(const char *what, const int *device_flag, int wanted) {
    const int *flag = host_copy(device_flag, sizeof *flag);
    if (*flag != wanted) fail_msg("%s: %s: the flag is %d, wanted %d", state.name, what, *flag, wanted);
}

tn_conv_shape conv3x3_shape(int rows, int height, int width, int in, int out, int stride) {
    return (tn_conv_shape){.rows = rows,
                           .in_height = height,
                           .in_width = width,
                           .in_channels = in,
                           .out_height = (height - 1) / stride + 1,
                           .out_width = (width - 1) / stride + 1,
                           .out_channels = out,
                           .kernel = 3,
                           .stride = stride,
                           .padding = 1};
}

size_t conv_inputs(const tn_conv_shape *s) {
    return (size_t)s->rows * (size_t)s->in_height * (size_t)s->in_width * (size_t)s->in_channels;
}

size_t conv_outputs(const tn_conv_shape *s) {
    return (size_t)s->rows * (size_t)s->out_height * (size_t)s->out_width * (size_t)s->out_channels;
}

double loss_of_row(tn_kernel_loss kind, const double *x, const double *target, int classes, double *dx) {
    double loss = 0, sum = 0, mass = 0, largest = x[0];
    for (int k = 0; k < classes; k++) largest = fmax(largest, x[k]);
    for (int k = 0; k < classes; k++) {
        sum += exp(x[k] - largest);
        mass += target[k];
    }
    for (int k = 0; k < classes; k++) {
        double log_p = x[k] - largest - log(sum), difference = x[k] - target[k];
        loss += kind == TN_KERNEL_SQUARED ? difference * difference / 2 : -target[k] * log_p;
        dx[k] = kind == TN_KERNEL_SQUARED ? difference : mass * exp(log_p) - target[k];
    }
    return loss;
}
