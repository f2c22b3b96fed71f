/* Warp collectives. Each lane that calls one joins the oldest open meeting with the same mask that it has not
 * joined yet. A shuffle needs only its source lane to have arrived, so a lane may run ahead of the others:
 * CUDA promises no memory ordering for shuffles, and most of them cost no switch. All other collectives wait
 * for the whole mask. */
#include "machine.h"
#include "mma_run.h"

namespace simt {

static const char *const kNames[] = {"__syncwarp",        "a shuffle",         "a vote",
                                     "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                     "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync",
                                     "__reduce_and_sync", "__reduce_or_sync",  "__reduce_xor_sync",
                                     "__match_any_sync",  "__match_all_sync",  "mma_sync"};

void warp_reset(Worker &w, int index, int lanes) {
    Warp &warp = w.warps[index];
    warp.head = warp.tail = 0;
    warp.live = lanes == kWarp ? 0xffffffffu : (1u << lanes) - 1u;
    warp.blocked = 0;
    warp.sync_epoch = 0;
}

static void wake_lanes(Worker &w, int warp, unsigned lanes) {
    for (; lanes; lanes &= lanes - 1) wake(w, warp * kWarp + __builtin_ctz(lanes));
}

static uint64_t combine(const Rendezvous &r) {
    uint64_t result = 0;
    unsigned agree = 0;
    bool first = true;
    for (unsigned lanes = r.arrived; lanes; lanes &= lanes - 1) {
        int i = __builtin_ctz(lanes);
        uint64_t v = r.value[i];
        int a = (int)result, b = (int)v;
        switch (r.kind) {
        case SIMT_WARP_BALLOT:
            result |= v << i;
            break;
        case SIMT_WARP_ADD_S:
        case SIMT_WARP_ADD_U:
            result = (uint32_t)(result + v);
            break;
        case SIMT_WARP_MIN_S:
            result = first || b < a ? v : result;
            break;
        case SIMT_WARP_MAX_S:
            result = first || b > a ? v : result;
            break;
        case SIMT_WARP_MIN_U:
            result = first || v < result ? v : result;
            break;
        case SIMT_WARP_MAX_U:
            result = first || v > result ? v : result;
            break;
        case SIMT_WARP_AND:
            result = first ? v : result & v;
            break;
        case SIMT_WARP_OR:
            result |= v;
            break;
        case SIMT_WARP_XOR:
            result ^= v;
            break;
        case SIMT_WARP_MATCH_ALL:
            if (first) result = v;
            if (v == result) agree |= 1u << i;
            break;
        default:
            break;
        }
        first = false;
    }
    return r.kind == SIMT_WARP_MATCH_ALL ? (agree == r.arrived ? agree : 0) : result;
}

static unsigned matching(const Rendezvous &r, int lane) {
    unsigned result = 0;
    for (unsigned lanes = r.arrived; lanes; lanes &= lanes - 1) {
        int i = __builtin_ctz(lanes);
        if (r.value[i] == r.value[lane]) result |= 1u << i;
    }
    return result;
}

/* Ends the meeting when everybody who is to come has come. */
static void settle(Worker &w, int index, Rendezvous &r) {
    Warp &warp = w.warps[index];
    if (r.done || (r.mask & warp.live & ~r.arrived)) return;
    r.done = true;
    if (r.kind == SIMT_WARP_MMA)
        run_product(w, r);
    else if (r.kind != SIMT_WARP_SHUFFLE)
        r.result = combine(r);
    if (r.kind == SIMT_WARP_SYNC && !(warp.live & ~r.mask)) warp.sync_epoch++;
    wake_lanes(w, index, r.waiting);
    r.waiting = 0;
}

static void leave(Worker &w, int index, Rendezvous &r, int lane) {
    Warp &warp = w.warps[index];
    r.left |= 1u << lane;
    bool moved = false;
    while (warp.head != warp.tail) {
        Rendezvous &oldest = warp.ring[warp.head % kRendezvous];
        if (!oldest.done || oldest.left != oldest.arrived) break;
        warp.head++;
        moved = true;
    }
    if (moved && warp.blocked) {
        unsigned lanes = warp.blocked;
        warp.blocked = 0;
        wake_lanes(w, index, lanes);
    }
}

/* The running lane has ended: nobody waits for it any more. */
void warp_exit(Worker &w, Lane &me) {
    Warp &warp = w.warps[me.warp];
    for (unsigned i = warp.head; i != warp.tail; i++) {
        Rendezvous &r = warp.ring[i % kRendezvous];
        if (r.done || !(r.mask >> me.lane & 1) || (r.arrived >> me.lane & 1)) continue;
        for (unsigned lanes = r.waiting; lanes; lanes &= lanes - 1) {
            int other = __builtin_ctz(lanes);
            if (w.lanes[me.warp * kWarp + other].wait_lane != me.lane) continue;
            r.waiting &= ~(1u << other);
            wake(w, me.warp * kWarp + other);
        }
        settle(w, me.warp, r);
    }
}

[[noreturn]] static void mismatch(Worker &w, const Rendezvous &r, Lane &me, int kind, Site site) {
    char one[96], two[96];
    describe_thread(w, me.linear, one, sizeof one);
    describe_thread(w, me.warp * kWarp + __builtin_ctz(r.arrived), two, sizeof two);
    report("DIVERGENT", site, nullptr, "%s calls %s with mask %08x, but %s calls %s with that mask at %s:%d",
           one, kNames[kind], r.mask, two, kNames[r.kind], r.site.file, r.site.line);
}

static Rendezvous &join(Worker &w, Lane &me, int kind, unsigned mask, uint64_t value, Site site) {
    Warp &warp = w.warps[me.warp];
    unsigned bit = 1u << me.lane;
    if (!(mask & bit)) {
        char who[96];
        describe_thread(w, me.linear, who, sizeof who);
        report("DIVERGENT", site, nullptr, "%s calls %s with mask %08x, which does not name its lane %d", who,
               kNames[kind], mask, me.lane);
    }
    for (;;) {
        for (unsigned at = warp.head; at != warp.tail; at++) {
            Rendezvous &r = warp.ring[at % kRendezvous];
            if (r.mask != mask || r.done || (r.arrived & bit)) continue;
            if (r.kind != kind || !(r.site == site)) mismatch(w, r, me, kind, site);
            r.arrived |= bit;
            r.value[me.lane] = value;
            return r;
        }
        if (warp.tail - warp.head < kRendezvous) break;
        warp.blocked |= bit;
        w.state[me.linear] = kAtWarp;
        park(w, me, kNames[kind], site);
    }
    Rendezvous &r = warp.ring[warp.tail++ % kRendezvous];
    r.mask = mask;
    r.arrived = bit;
    r.left = r.waiting = 0;
    r.kind = kind;
    r.done = false;
    r.site = site;
    r.value[me.lane] = value;
    return r;
}

static void wait_in(Worker &w, Lane &me, Rendezvous &r, int lane, Site site) {
    r.waiting |= 1u << me.lane;
    me.wait_lane = lane;
    w.state[me.linear] = kAtWarp;
    park(w, me, kNames[r.kind], site);
}

static void wake_takers(Worker &w, Lane &me, Rendezvous &r) {
    for (unsigned lanes = r.waiting; lanes; lanes &= lanes - 1) {
        int other = __builtin_ctz(lanes);
        if (w.lanes[me.warp * kWarp + other].wait_lane != me.lane) continue;
        r.waiting &= ~(1u << other);
        wake(w, me.warp * kWarp + other);
    }
}

} // namespace simt

using namespace simt;

int simt_lane_id() {
    return self()->lane;
}

unsigned simt_active_mask() {
    /* The lanes that happen to run together: as few as CUDA allows. */
    return 1u << self()->lane;
}

void simt_bad_width(int width, const char *file, int line) {
    report("BAD CALL", Site{file, line}, nullptr, "a shuffle's width must be a power of two up to 32, not %d",
           width);
}

uint64_t simt_collective(int kind, unsigned mask, uint64_t value, const char *file, int line) {
    Worker &w = *worker;
    Lane &me = *self();
    Site site{file, line};
    Rendezvous &r = join(w, me, kind, mask, value, site);
    settle(w, me.warp, r);
    if (!r.done) wait_in(w, me, r, -1, site);
    uint64_t result = kind == SIMT_WARP_MATCH_ANY ? matching(r, me.lane) : r.result;
    leave(w, me.warp, r, me.lane);
    return result;
}

uint64_t simt_shuffle(unsigned mask, uint64_t value, int source, const char *file, int line) {
    Worker &w = *worker;
    Lane &me = *self();
    Site site{file, line};
    Rendezvous &r = join(w, me, SIMT_WARP_SHUFFLE, mask, value, site);
    if (r.waiting) wake_takers(w, me, r);
    settle(w, me.warp, r);
    unsigned from = 1u << source;
    /* A source that takes no part gives an undefined value: one that shows. */
    bool comes = (mask & from) && ((w.warps[me.warp].live | r.arrived) & from);
    if (comes && !(r.arrived & from)) wait_in(w, me, r, source, site);
    uint64_t result = r.arrived & from ? r.value[source] : 0xffffffffffffffffu;
    leave(w, me.warp, r, me.lane);
    return result;
}
