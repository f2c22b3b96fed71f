/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the
 * only source of randomness. Streams are keyed, never shared: a number is a pure function of (seed, purpose,
 * a, b) and its index, so results do not depend on threads, workers, ranks or on where a run was resumed. */
#ifndef TN_BASE_PHILOX_H
#define TN_BASE_PHILOX_H

#include <stdint.h>

/* What a stream is for; part of its key. The numbers are part of the file format of runs: never renumber. */
typedef enum tn_purpose {
    TN_RNG_INIT = 1,     /* a = parameter index */
    TN_RNG_SHUFFLE = 2,  /* a = epoch */
    TN_RNG_AUGMENT = 3,  /* a = epoch, b = sample */
    TN_RNG_MIXUP = 4,    /* a = epoch, b = batch */
    TN_RNG_SYNTHETIC = 5 /* a = sample */
} tn_purpose;

/* The block function: encrypts the counter `in` under `key` into `out`. `out` may be `in`. */
void tn_philox(const uint32_t in[4], const uint32_t key[2], uint32_t out[4]);

/* A sequential reader of one stream. */
typedef struct tn_rng {
    uint32_t counter[4]; /* block index, b, a, purpose */
    uint32_t key[2];     /* seed, low word first */
    uint32_t block[4];
    int used; /* words of block already handed out */
} tn_rng;

/* Starts the stream (seed, purpose, a, b) at its beginning. */
tn_rng tn_rng_open(uint64_t seed, tn_purpose purpose, uint32_t a, uint32_t b);

/* Next 32 uniform bits. */
uint32_t tn_rng_bits(tn_rng *rng);

/* Uniform integer in [0, n), n >= 1, without bias (Lemire's multiply and reject). */
uint32_t tn_rng_below(tn_rng *rng, uint32_t n);

/* Uniform in (0, 1), 2^-33 away from both ends. */
double tn_rng_uniform(tn_rng *rng);

/* Standard normal (Box-Muller, one of the pair; the other is discarded so that draws stay independent of
 * the order in which kinds of draws are mixed). */
double tn_rng_normal(tn_rng *rng);

/* Beta(alpha, alpha), alpha > 0, by Marsaglia and Tsang's gamma method. */
double tn_rng_beta(tn_rng *rng, double alpha);

#endif
