/* What the shadow memory keeps of an access (shadow.cpp). */
#ifndef SIMT_TAGS_H
#define SIMT_TAGS_H

#include <cstdint>

namespace simt {

/* 26 bits serial number of the block | 12 thread | 12 barriers | 8 warp barriers | 6 flags. A written word
 * has in its flags: 2 bits which bytes, 2 bits which bytes have a value, atomic. A read one: 2 bits which
 * bytes, and whether more than one lane, warp, or block has read since. */
struct Cell {
    uint64_t written, read;
};
constexpr int kSerialAt = 38, kThreadAt = 26, kEpochAt = 14, kSyncAt = 6;
constexpr uint64_t kFlags = 63, kBytes = 3, kValueAt = 2, kAtomic = 16, kLanes = 4, kWarps = 8, kBlocks = 16;
constexpr unsigned kOutside = 4095; /* thread number of copies and library calls */
constexpr uint32_t kMaxSerial = (1u << 26) - 1;

static inline uint32_t serial_of(uint64_t tag) {
    return (uint32_t)(tag >> kSerialAt);
}
static inline unsigned thread_of(uint64_t tag) {
    return (unsigned)(tag >> kThreadAt) & 4095u;
}
static inline unsigned epoch_of(uint64_t tag) {
    return (unsigned)(tag >> kEpochAt) & 4095u;
}
static inline unsigned sync_of(uint64_t tag) {
    return (unsigned)(tag >> kSyncAt) & 255u;
}

static inline bool same_tag(uint64_t a, uint64_t b) {
    return ((a ^ b) & ~kFlags) == 0;
}

/* A word after a write by `me`. */
static inline uint64_t written_by(uint64_t w, uint64_t mask, uint64_t me) {
    uint64_t value = ((w >> kValueAt) & kBytes) | mask;
    uint64_t bytes = same_tag(w, me) ? (w & kBytes) | mask : mask;
    return (me & ~kFlags) | bytes | value << kValueAt;
}

} // namespace simt

#endif
