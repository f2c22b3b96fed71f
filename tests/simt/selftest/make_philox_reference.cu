/* Writes philox_reference.cu: built with nvcc, where cuRAND's device functions are compiled for the host too.
 *   nvcc -I. -o make_philox_reference tests/simt/selftest/make_philox_reference.cu && ./make_philox_reference */
#define QUALIFIERS static __forceinline__ __host__ __device__
#include <curand_kernel.h>

#include <cstdio>
#include <cstring>

#include "tests/simt/selftest/philox_reference.h"

int main() {
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
