/* Writes philox_reference.cu: built with nvcc, where cuRAND's device functions are compiled for the host too
 * (make simt-curand). Also compares them with cuRAND's host generator, whose words 4v..4v+3 are those of
 * subsequence v for v < 65536, and then the next ones of each. */
#define QUALIFIERS static __forceinline__ __host__ __device__
#include <curand.h>
#include <curand_kernel.h>

#include <cstdio>
#include <cstring>

#include "tests/simt/selftest/philox_reference.h"

static int host_generator_agrees() {
    const int n = 65536 * 4 + 1024;
    unsigned *words = new unsigned[n];
    curandGenerator_t generator;
    if (curandCreateGeneratorHost(&generator, CURAND_RNG_PSEUDO_PHILOX4_32_10) ||
        curandSetPseudoRandomGeneratorSeed(generator, PHILOX_SEED) || curandGenerate(generator, words, n))
        return 0;
    for (int i = 0; i < n; i += 4) {
        curandStatePhilox4_32_10_t state;
        curand_init(PHILOX_SEED, (unsigned long long)(i / 4 % 65536), (unsigned long long)(i / 4 / 65536) * 4,
                    &state);
        uint4 four = curand4(&state);
        if (memcmp(&four, words + i, sizeof four)) return 0;
    }
    return 1;
}

int main() {
    if (!host_generator_agrees()) {
        fprintf(stderr, "cuRAND's host generator draws something else\n");
        return 1;
    }
    printf("#include \"tests/simt/selftest/philox_reference.h\"\n\n/* clang-format off */\n"
           "const unsigned philox_reference[32 * PHILOX_WORDS] = {\n");
    for (int i = 0; i < 32; i++) {
        curandStatePhilox4_32_10_t state;
        unsigned words[PHILOX_WORDS], *to = words;
        curand_init(PHILOX_SEED, (unsigned long long)i * 1000003ull, (unsigned long long)i * 5ull, &state);
        for (int k = 0; k < 3; k++) *to++ = curand(&state);
        uint4 four = curand4(&state);
        *to++ = four.x, *to++ = four.y, *to++ = four.z, *to++ = four.w;
        for (int k = 0; k < 2; k++) *to++ = curand(&state);
        skipahead(7ull, &state);
        *to++ = curand(&state);
        float uniform = curand_uniform(&state);
        memcpy(to, &uniform, 4);
        printf("   ");
        for (unsigned w : words) printf(" 0x%08xu,", w);
        printf("\n");
    }
    printf("};\n");
}
