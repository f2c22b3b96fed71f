/* cuRAND's device Philox4x32-10: the same integers as the real header, bit for bit. */
#ifndef SIMT_CURAND_KERNEL_H
#define SIMT_CURAND_KERNEL_H

#include "cuda_runtime.h"

#define CURAND_2POW32_INV (2.3283064e-10f)
#define CURAND_2PI        (6.2831855f)

/* STATE: words of `output` already handed out. */
struct curandStatePhilox4_32_10 {
    uint4 ctr, output;
    uint2 key;
    unsigned STATE;
    int boxmuller_flag;
    float boxmuller_extra;
};
typedef struct curandStatePhilox4_32_10 curandStatePhilox4_32_10_t;

SIMT_INLINE uint4 simt_philox(uint4 c, uint2 k) {
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c.x, p1 = (uint64_t)0xCD9E8D57u * c.z;
        c = uint4{(unsigned)(p1 >> 32) ^ c.y ^ k.x, (unsigned)p1, (unsigned)(p0 >> 32) ^ c.w ^ k.y,
                  (unsigned)p0};
        k.x += 0x9E3779B9u;
        k.y += 0xBB67AE85u;
    }
    return c;
}
SIMT_INLINE uint4 curand_Philox4x32_10(uint4 c, uint2 k) {
    return simt_philox(c, k);
}

/* Adds n to the 128-bit counter. */
SIMT_INLINE void simt_philox_add(uint4 &c, unsigned long long n) {
    unsigned __int128 low = ((unsigned __int128)c.y << 32 | c.x) + n;
    c.x = (unsigned)low;
    c.y = (unsigned)(low >> 32);
    uint64_t high = ((uint64_t)c.w << 32 | c.z) + (uint64_t)(low >> 64);
    c.z = (unsigned)high;
    c.w = (unsigned)(high >> 32);
}
SIMT_INLINE void skipahead(unsigned long long n, curandStatePhilox4_32_10_t *s) {
    s->STATE += (unsigned)(n & 3u);
    n /= 4;
    if (s->STATE > 3) {
        n++;
        s->STATE -= 4;
    }
    simt_philox_add(s->ctr, n);
    s->output = simt_philox(s->ctr, s->key);
}
SIMT_INLINE void skipahead_sequence(unsigned long long n, curandStatePhilox4_32_10_t *s) {
    uint64_t high = ((uint64_t)s->ctr.w << 32 | s->ctr.z) + n;
    s->ctr.z = (unsigned)high;
    s->ctr.w = (unsigned)(high >> 32);
    s->output = simt_philox(s->ctr, s->key);
}
SIMT_INLINE void curand_init(unsigned long long seed, unsigned long long subsequence,
                             unsigned long long offset, curandStatePhilox4_32_10_t *s) {
    s->ctr = uint4{0, 0, 0, 0};
    s->key = uint2{(unsigned)seed, (unsigned)(seed >> 32)};
    s->STATE = 0;
    s->boxmuller_flag = 0;
    s->boxmuller_extra = 0.0f;
    skipahead_sequence(subsequence, s);
    skipahead(offset, s);
}

SIMT_INLINE unsigned curand(curandStatePhilox4_32_10_t *s) {
    unsigned words[4] = {s->output.x, s->output.y, s->output.z, s->output.w}, result = words[s->STATE++];
    if (s->STATE == 4) {
        simt_philox_add(s->ctr, 1);
        s->output = simt_philox(s->ctr, s->key);
        s->STATE = 0;
    }
    return result;
}
SIMT_INLINE uint4 curand4(curandStatePhilox4_32_10_t *s) {
    uint4 old = s->output;
    simt_philox_add(s->ctr, 1);
    s->output = simt_philox(s->ctr, s->key);
    uint4 now = s->output;
    switch (s->STATE) {
    case 0:
        return old;
    case 1:
        return uint4{old.y, old.z, old.w, now.x};
    case 2:
        return uint4{old.z, old.w, now.x, now.y};
    default:
        return uint4{old.w, now.x, now.y, now.z};
    }
}
SIMT_INLINE float simt_uniform(unsigned x) {
    return x * CURAND_2POW32_INV + (CURAND_2POW32_INV / 2.0f);
}
SIMT_INLINE float curand_uniform(curandStatePhilox4_32_10_t *s) {
    return simt_uniform(curand(s));
}
SIMT_INLINE float4 curand_uniform4(curandStatePhilox4_32_10_t *s) {
    uint4 v = curand4(s);
    return float4{simt_uniform(v.x), simt_uniform(v.y), simt_uniform(v.z), simt_uniform(v.w)};
}
/* Box-Muller on two words; equal to the device's up to the last bits of its logarithm and sine. */
SIMT_INLINE float2 simt_normal2(unsigned x, unsigned y) {
    float u = simt_uniform(x),
          v = y * (CURAND_2POW32_INV * CURAND_2PI) + (CURAND_2POW32_INV * CURAND_2PI / 2.0f);
    float radius = sqrtf(-2.0f * logf(u));
    return float2{radius * sinf(v), radius * cosf(v)};
}
SIMT_INLINE float curand_normal(curandStatePhilox4_32_10_t *s) {
    if (s->boxmuller_flag) {
        s->boxmuller_flag = 0;
        return s->boxmuller_extra;
    }
    unsigned x = curand(s), y = curand(s);
    float2 both = simt_normal2(x, y);
    s->boxmuller_flag = 1;
    s->boxmuller_extra = both.y;
    return both.x;
}
SIMT_INLINE float4 curand_normal4(curandStatePhilox4_32_10_t *s) {
    uint4 v = curand4(s);
    float2 a = simt_normal2(v.x, v.y), b = simt_normal2(v.z, v.w);
    return float4{a.x, a.y, b.x, b.y};
}

#endif
