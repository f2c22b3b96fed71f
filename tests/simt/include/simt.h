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
 * (SIMT_COUNT=1 prints all at exit). A request is one instruction of one warp. Sectors are 32 bytes; `ideal`
 * is the fewest that could hold the distinct bytes of each request. Sectors of memory are those that come
 * from, or go to, memory if the cache keeps what a launch has touched before: each counts once in a launch.
 * Floating-point operations of tensor cores are counted; those of other kernels are what the program said of
 * them (simt_expect_flops). */
typedef struct simt_counters {
    uint64_t launches, blocks, threads, barriers; /* barriers: per block */
    uint64_t load_requests, load_bytes, load_sectors, load_ideal_sectors, load_memory_sectors;
    uint64_t store_requests, store_bytes, store_sectors, store_ideal_sectors, store_memory_sectors;
    uint64_t shared_requests, shared_wavefronts, shared_ideal_wavefronts;
    uint64_t atomics, fma_flops, tf32_flops, bf16_flops;
} simt_counters;
void simt_count(int on);
/* Of each launch run only so many blocks, spread over its grid (none while counting is off, and none of a
 * launch that differs from an earlier one in addresses alone), and let their counts stand for all: whole
 * training steps of real sizes in seconds. Device memory starts as zeros, results mean nothing, products of
 * cuBLAS and long fills are counted but not made, and nothing is checked but bounds. 0: all blocks.
 * SIMT_SAMPLE. Set it before anything is allocated. */
void simt_sample(uint64_t blocks);
/* The next kernel that is launched makes so many floating-point operations without tensor cores. */
void simt_expect_flops(uint64_t fma);
void simt_counters_reset(void);
/* Returns 0 when the kernel (its name as launched, without template arguments it is a prefix match) was not
 * seen. */
int simt_counters_get(const char *kernel, simt_counters *out);
/* Every operation on the device since the last reset, in order, while counting was on: launches, products of
 * cuBLAS, copies and fills. The names "cublas", "copy", "copy from host", "copy to host", "fill" stand beside
 * those of kernels, "name<arguments>". `grid` and what follows are zero for what is no kernel. */
typedef struct simt_operation {
    const char *name; /* owned by the machine, until the next reset */
    uint64_t grid[3], threads, dynamic_shared, blocks_run;
    simt_counters counters; /* for the whole grid */
} simt_operation;
size_t simt_operations_counted(void);
const simt_operation *simt_operation_at(size_t index);
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
