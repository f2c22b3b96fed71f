/* The arithmetic ceiling of a processor core, measured. */
#ifndef TN_BASE_FMA_PEAK_H
#define TN_BASE_FMA_PEAK_H

/* float32 operations per second (a fused multiply-add counts as two) that the calling thread reaches in
 * registers in about `seconds`: the better of the vector widths that the processor has. */
double tn_fma_peak(double seconds);

#endif
