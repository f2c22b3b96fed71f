#include "backend/backend.h"

#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#ifdef TN_HAVE_CUDA
#include "backend/cuda.h"
#endif

/* The only place that knows which backends exist; "auto" takes the first that has a device. */
static const tn_backend_ops *const registry[] = {
#ifdef TN_HAVE_CUDA
    &tn_cuda_backend,
#endif
    &tn_cpu_backend};

#define BACKENDS (int)(sizeof registry / sizeof *registry)

const tn_backend_ops *tn_backend_at(int index) {
    return index < BACKENDS ? registry[index] : NULL;
}

static const tn_backend_ops *backend_named(const char *name, size_t length) {
    for (int i = 0; i < BACKENDS; i++)
        if (strlen(registry[i]->name) == length && !memcmp(registry[i]->name, name, length))
            return registry[i];
    return NULL;
}

/* "cuda:N" */
static tn_status find_named(const char *device, const tn_backend_ops **ops, int *number) {
    size_t length = strcspn(device, ":");
    char *end = NULL;
    *ops = backend_named(device, length);
    if (!*ops && length == 4 && !memcmp(device, "cuda", 4))
        return tn_fail(TN_ERR_DEVICE,
                       "--device %s: this build of taunet has no CUDA backend; use --device cpu", device);
    bool numbered = device[length] == ':';
    long value = numbered ? strtol(device + length + 1, &end, 10) : 0;
    *number = (int)value;
    if (!*ops || (numbered && (end == device + length + 1 || *end || (*ops)->host_memory || *number < 0 ||
                               *number != value)))
        return tn_fail(TN_ERR_USAGE, "--device %s: unknown device; use auto, cpu, cuda or cuda:N", device);
    int count = (*ops)->device_count();
    if (*number >= count)
        return tn_fail(TN_ERR_DEVICE, "--device %s: %s; %s", device,
                       count ? "there is no device of this number" : (*ops)->absence(),
                       count ? "see taunet info" : "use --device cpu");
    return TN_OK;
}

tn_status tn_backend_find(const char *device, tn_precision precision, const tn_backend_ops **ops,
                          int *number) {
    static const char *const names[] = {"fp32", "tf32", "bf16"};
    *number = 0;
    if (strcmp(device, "auto"))
        TN_TRY(find_named(device, ops, number));
    else
        for (int i = BACKENDS - 1; i >= 0; i--)
            if (registry[i]->device_count() > 0) *ops = registry[i];
    if (!((*ops)->precisions >> precision & 1))
        return tn_fail(TN_ERR_USAGE, "--precision %s: the %s computes in fp32 only; use --precision fp32",
                       names[precision], (*ops)->host_memory ? "CPU" : "device");
    return TN_OK;
}
