#include "backend/backend.h"

#include <string.h>

#include "backend/cpu/cpu.h"

/* The only place that knows which backends exist. */
static const tn_backend_ops *const registry[] = {&tn_cpu_backend};

tn_status tn_backend_find(const char *device, const tn_backend_ops **ops, int *number) {
    *number = 0;
    if (!strcmp(device, "auto") || !strcmp(device, "cpu")) {
        *ops = registry[0];
        return TN_OK;
    }
    if (!strncmp(device, "cuda", 4) && (device[4] == 0 || device[4] == ':'))
        return tn_fail(TN_ERR_DEVICE,
                       "--device %s: this build of taunet has no CUDA backend; use --device cpu", device);
    return tn_fail(TN_ERR_USAGE, "--device %s: unknown device; use auto, cpu, cuda or cuda:N", device);
}
