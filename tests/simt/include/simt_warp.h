/* Warp collectives. Lanes of a warp meet by mask; a lane waits only where it needs another's value. */
#ifndef SIMT_WARP_H
#define SIMT_WARP_H

#include "simt_device.h"

enum {
    SIMT_WARP_SYNC,
    SIMT_WARP_SHUFFLE,
    SIMT_WARP_BALLOT,
    SIMT_WARP_ADD_S,
    SIMT_WARP_MIN_S,
    SIMT_WARP_MAX_S,
    SIMT_WARP_ADD_U,
    SIMT_WARP_MIN_U,
    SIMT_WARP_MAX_U,
    SIMT_WARP_AND,
    SIMT_WARP_OR,
    SIMT_WARP_XOR,
    SIMT_WARP_MATCH_ANY,
    SIMT_WARP_MATCH_ALL,
    SIMT_WARP_MMA
};
/* Gives `value` to the lanes of `mask` and returns what lane `source` gave. */
uint64_t simt_shuffle(unsigned mask, uint64_t value, int source, const char *file, int line);
/* Waits for all lanes of `mask`; returns the combination that `kind` asks for. */
uint64_t simt_collective(int kind, unsigned mask, uint64_t value, const char *file, int line);
unsigned simt_active_mask();
int simt_lane_id();
void simt_bad_width(int width, const char *file, int line);

static inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
    simt_collective(SIMT_WARP_SYNC, mask, 0, SIMT_PLACE);
}
static inline unsigned __activemask() {
    return simt_active_mask();
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_BALLOT, mask, predicate != 0, SIMT_PLACE);
}
static inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
    return simt_collective(SIMT_WARP_BALLOT, mask, predicate != 0, SIMT_PLACE) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
    return simt_collective(SIMT_WARP_BALLOT, mask, predicate == 0, SIMT_PLACE) == 0;
}

namespace simt {
template <class T> uint64_t to_bits(const T &value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles take up to 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T> T from_bits(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline int segment(int lane, int width, const char *file, int line) {
    if (width < 1 || width > 32 || (width & (width - 1))) simt_bad_width(width, file, line);
    return lane & ~(width - 1);
}
} // namespace simt

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_SITE) {
    int first = simt::segment(simt_lane_id(), width, SIMT_PLACE);
    return simt::from_bits<T>(
        simt_shuffle(mask, simt::to_bits(value), first + (source & (width - 1)), SIMT_PLACE));
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
    int lane = simt_lane_id(), first = simt::segment(lane, width, SIMT_PLACE), source = lane - (int)delta;
    return simt::from_bits<T>(
        simt_shuffle(mask, simt::to_bits(value), source < first ? lane : source, SIMT_PLACE));
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_SITE) {
    int lane = simt_lane_id(), end = simt::segment(lane, width, SIMT_PLACE) + width,
        source = lane + (int)delta;
    return simt::from_bits<T>(
        simt_shuffle(mask, simt::to_bits(value), source >= end ? lane : source, SIMT_PLACE));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
    int lane = simt_lane_id(), end = simt::segment(lane, width, SIMT_PLACE) + width, source = lane ^ lanes;
    return simt::from_bits<T>(
        simt_shuffle(mask, simt::to_bits(value), source >= end ? lane : source, SIMT_PLACE));
}

static inline int __reduce_add_sync(unsigned mask, int v, SIMT_SITE) {
    return (int)simt_collective(SIMT_WARP_ADD_S, mask, (uint32_t)v, SIMT_PLACE);
}
static inline unsigned __reduce_add_sync(unsigned mask, unsigned v, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_ADD_U, mask, v, SIMT_PLACE);
}
static inline int __reduce_min_sync(unsigned mask, int v, SIMT_SITE) {
    return (int)simt_collective(SIMT_WARP_MIN_S, mask, (uint32_t)v, SIMT_PLACE);
}
static inline unsigned __reduce_min_sync(unsigned mask, unsigned v, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_MIN_U, mask, v, SIMT_PLACE);
}
static inline int __reduce_max_sync(unsigned mask, int v, SIMT_SITE) {
    return (int)simt_collective(SIMT_WARP_MAX_S, mask, (uint32_t)v, SIMT_PLACE);
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned v, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_MAX_U, mask, v, SIMT_PLACE);
}
static inline unsigned __reduce_and_sync(unsigned mask, unsigned v, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_AND, mask, v, SIMT_PLACE);
}
static inline unsigned __reduce_or_sync(unsigned mask, unsigned v, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_OR, mask, v, SIMT_PLACE);
}
static inline unsigned __reduce_xor_sync(unsigned mask, unsigned v, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_XOR, mask, v, SIMT_PLACE);
}
/* match_any: each lane gets its own mask, packed by the machine. */
template <class T> unsigned __match_any_sync(unsigned mask, T value, SIMT_SITE) {
    return (unsigned)simt_collective(SIMT_WARP_MATCH_ANY, mask, simt::to_bits(value), SIMT_PLACE);
}
template <class T> unsigned __match_all_sync(unsigned mask, T value, int *predicate, SIMT_SITE) {
    uint64_t all = simt_collective(SIMT_WARP_MATCH_ALL, mask, simt::to_bits(value), SIMT_PLACE);
    *predicate = all != 0;
    return (unsigned)all;
}

#endif
