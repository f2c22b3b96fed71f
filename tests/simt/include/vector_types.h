/* CUDA's vector types, with the alignments of the real ones; usable from C and C++. */
#ifndef SIMT_VECTOR_TYPES_H
#define SIMT_VECTOR_TYPES_H

#define SIMT_VECTOR1(T, name)                                                                                \
    typedef struct name {                                                                                    \
        T x;                                                                                                 \
    } name
#define SIMT_VECTOR2(T, name, a)                                                                             \
    typedef struct __attribute__((aligned(a))) name {                                                        \
        T x, y;                                                                                              \
    } name
#define SIMT_VECTOR3(T, name)                                                                                \
    typedef struct name {                                                                                    \
        T x, y, z;                                                                                           \
    } name
#define SIMT_VECTOR4(T, name, a)                                                                             \
    typedef struct __attribute__((aligned(a))) name {                                                        \
        T x, y, z, w;                                                                                        \
    } name

SIMT_VECTOR2(signed char, char2, 2);
SIMT_VECTOR2(unsigned char, uchar2, 2);
SIMT_VECTOR2(short, short2, 4);
SIMT_VECTOR2(unsigned short, ushort2, 4);
SIMT_VECTOR2(int, int2, 8);
SIMT_VECTOR2(unsigned int, uint2, 8);
SIMT_VECTOR2(float, float2, 8);
SIMT_VECTOR2(long long, longlong2, 16);
SIMT_VECTOR2(unsigned long long, ulonglong2, 16);
SIMT_VECTOR2(double, double2, 16);
SIMT_VECTOR3(unsigned char, uchar3);
SIMT_VECTOR3(int, int3);
SIMT_VECTOR3(unsigned int, uint3);
SIMT_VECTOR3(float, float3);
SIMT_VECTOR4(signed char, char4, 4);
SIMT_VECTOR4(unsigned char, uchar4, 4);
SIMT_VECTOR4(short, short4, 8);
SIMT_VECTOR4(unsigned short, ushort4, 8);
SIMT_VECTOR4(int, int4, 16);
SIMT_VECTOR4(unsigned int, uint4, 16);
SIMT_VECTOR4(float, float4, 16);

#undef SIMT_VECTOR1
#undef SIMT_VECTOR2
#undef SIMT_VECTOR3
#undef SIMT_VECTOR4

typedef struct dim3 {
    unsigned int x, y, z;
#ifdef __cplusplus
    constexpr dim3(unsigned int a = 1, unsigned int b = 1, unsigned int c = 1) : x(a), y(b), z(c) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const {
        return uint3{x, y, z};
    }
#endif
} dim3;

#endif
