/* Numbers drawn by NVIDIA's own curand_kernel.h, run on a host by make_philox_reference.cu. */
#ifndef SIMT_PHILOX_REFERENCE_H
#define SIMT_PHILOX_REFERENCE_H
#define PHILOX_WORDS 11
#define PHILOX_SEED  0x0123456789abcdefull
extern const unsigned philox_reference[32 * PHILOX_WORDS];
#endif
