/* Counts by kernel, and a record of every operation on the device, while counting is on. */
#ifndef SIMT_LAUNCH_LOG_H
#define SIMT_LAUNCH_LOG_H

#include "machine.h"

namespace simt {

/* A launch has ended; what it counted stands for its whole grid. */
void log_launch(const Launch &launch, uint64_t blocks_run, const simt_counters &counters);
/* A product of cuBLAS, a copy or a fill: what it reads and writes of device memory. */
void log_operation(const char *what, uint64_t load_bytes, uint64_t store_bytes, uint64_t fma_flops,
                   uint64_t tf32_flops, uint64_t bf16_flops);
/* "name<arguments>" of a kernel, as tools/cuda_report prints it. */
std::string readable_name(const void *function);

} // namespace simt

#endif
