/* The side channel between ranks: a thread and a socket beside the collectives, through which every rank
 * tells where it stands, and over which the death of a rank shows as end-of-file.
 *
 * All ranks are connected to rank 0 by TCP. A rank is lost when its connection ends without a farewell, when
 * nothing was heard from it for the time-out, when it keeps another rank waiting in a collective for that
 * long, or when it says that it failed. Rank 0 then tells all others. The line that names the lost rank, and
 * where it stood, is told by one rank; when rank 0 itself is lost, by one rank of each machine. */
#ifndef TN_COMM_WATCHDOG_H
#define TN_COMM_WATCHDOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

typedef struct tn_watchdog tn_watchdog;

typedef struct tn_watchdog_config {
    int rank, size, local_rank;
    double timeout;                                /* seconds */
    void (*lost)(void *context, const char *text); /* tn_comm_config */
    void *context;
} tn_watchdog_config;

/* How to reach rank 0; filled in there by tn_watchdog_listen and copied to all ranks by the caller. */
#define TN_WATCHDOG_ADDRESSES 16
typedef struct tn_watchdog_place {
    uint64_t token;                            /* tells the ranks of this run from strangers */
    uint32_t addresses[TN_WATCHDOG_ADDRESSES]; /* IPv4, network order; first 127.0.0.1 */
    int address_count;
    uint16_t port;
    char host[64];
} tn_watchdog_place;

/* Makes a watchdog; on rank 0 it listens. Free with tn_watchdog_stop, also after a later failure. */
tn_status tn_watchdog_listen(const tn_watchdog_config *config, tn_watchdog_place *place, tn_watchdog **out);

/* Connects the ranks (on rank 0: waits for all others) and starts to watch. */
tn_status tn_watchdog_start(tn_watchdog *watchdog, const tn_watchdog_place *place);

/* Says goodbye and frees; NULL is allowed. With `failed`, which names why this rank ends, the others end too,
 * without telling it again. */
void tn_watchdog_stop(tn_watchdog *watchdog, const char *failed);

/* Where this rank stands. The texts must stay. A rank enters with the number of collectives that it has begun
 * since, of which `collective` names the last. */
void tn_watchdog_phase(tn_watchdog *watchdog, long step, const char *phase);
void tn_watchdog_enter(tn_watchdog *watchdog, const char *collective, int collectives);
void tn_watchdog_leave(tn_watchdog *watchdog);

/* Has the watchdog's thread look after something that may fail, or stand still, on its own: `broken` says
 * whether it has failed, and why; `abort` is called when a rank is lost, after that was told, and ends what
 * is waited for. NULL: no more; when this returns neither is running. NULL for the watchdog is allowed. */
void tn_watchdog_guard(tn_watchdog *watchdog, bool (*broken)(void *context, char *text, size_t size),
                       void (*abort)(void *context), void *context);

/* Whether a rank is lost; then TN_ERR_PEER with the line, or an empty one where another rank tells it. */
tn_status tn_watchdog_check(tn_watchdog *watchdog);

#endif
