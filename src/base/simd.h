/* The one place for compiler-specific ways to get vector code out of plain C loops.
 *
 * TN_SIMD before a function compiles it for AVX-512, AVX2 with FMA and the baseline, and picks one at run
 * time. Such functions hold short loops over floats and call nothing. */
#ifndef TN_BASE_SIMD_H
#define TN_BASE_SIMD_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&     \
    !defined(__SANITIZE_THREAD__)
#define TN_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TN_SIMD
#endif

#endif
