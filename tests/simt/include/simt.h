/* Control of the SIMT machine, for tests. Everything can be set through the environment too (README.md). */
#ifndef SIMT_H
#define SIMT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Exit status of a process that the machine stopped because it found a fault. */
#define SIMT_FAULT_EXIT 86

/* Sets the seed of all orders (threads, blocks, streams). 0: ascending, laziest streams; 1: descending. Takes
 * effect at the next launch. SIMT_SEED. */
void simt_set_seed(uint64_t seed);

/* "sm_80", "sm_90", "none" (no device), "driver" (insufficient driver) or "broken" (initialisation fails),
 * and how many devices there are. Must be called before other calls, or between tests with nothing allocated.
 * SIMT_DEVICE, SIMT_DEVICES. */
void simt_set_device(const char *mode, int count);

/* Device memory in bytes per device; a cudaMalloc beyond it fails. SIMT_MEMORY. */
void simt_set_memory(size_t bytes);

/* Makes the n-th next call (1 = the next) of the runtime function `call` return `error` (and, for 700 and
 * above, stick). One injection at a time. "*" stands for any function, a launch and the cuBLAS calls of
 * runtime/blas.cpp that ask, which answer CUBLAS_STATUS_EXECUTION_FAILED. SIMT_FAIL="cudaMalloc:3:2". */
void simt_fail_call(const char *call, int n, int error);
/* The call that simt_fail_call made fail; NULL while it has not come to that. */
const char *simt_failed_call(void);

/* What the host has made and not destroyed: allocations of device and pinned memory, streams, events, graphs,
 * handles of cuBLAS. */
size_t simt_objects(void);

/* 1 in the instrumented build, 0 in the plain one. */
int simt_is_instrumented(void);

/* Counts of one kernel since the last reset; only in the instrumented build, and only while counting is on
 * (SIMT_COUNT=1 prints all at exit). A request is one instruction of one warp. */
typedef struct simt_counters {
    uint64_t launches, blocks, threads, barriers; /* barriers: per block */
    uint64_t load_requests, load_bytes, load_sectors, load_ideal_sectors;
    uint64_t store_requests, store_bytes, store_sectors, store_ideal_sectors;
    uint64_t shared_requests, shared_wavefronts, shared_ideal_wavefronts;
    uint64_t atomics, wmma_flops;
} simt_counters;
void simt_count(int on);
void simt_counters_reset(void);
/* Returns 0 when the kernel (its name as launched, without template arguments it is a prefix match) was not
 * seen. */
int simt_counters_get(const char *kernel, simt_counters *out);
/* One line per kernel on standard error. */
void simt_counters_print(void);

/* Operands of cuBLAS calls that were not 16-byte aligned (they only select a slower kernel on a device). */
uint64_t simt_blas_misaligned(void);
/* Kernel launches and other stream operations executed so far. */
uint64_t simt_operations(void);

#ifdef __cplusplus
}
#endif
#endif
