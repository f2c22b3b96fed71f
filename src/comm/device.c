/* Sums in the memory of devices: what is the same for every transport between them. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "comm/transport.h"

/* Where a rank's device is. A machine is known by the number it drew when it started: its name may be that of
 * another one, and its containers may have other names. */
typedef struct device_place {
    char machine[64], host[64], device[TN_DEVICE_PLACE_BYTES];
} device_place;

static void find_machine(device_place *place) {
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    gethostname(place->host, sizeof place->host - 1);
    if (!file || !fgets(place->machine, sizeof place->machine, file))
        snprintf(place->machine, sizeof place->machine, "%s", place->host);
    if (file) fclose(file);
}

static tn_status check_places(const tn_comm *comm, const device_place *all) {
    for (int i = 1; i < comm->size; i++)
        for (int k = 0; k < i; k++)
            if (!strcmp(all[i].machine, all[k].machine) && !strcmp(all[i].device, all[k].device))
                return tn_fail(TN_ERR_USAGE,
                               "ranks %d and %d have the same device (%s of %s); start one process for each "
                               "device of a machine",
                               k, i, all[i].device, all[i].host);
    return TN_OK;
}

static tn_status compare_places(tn_comm *comm, const tn_device_transport *device) {
    device_place *all;
    TN_TRY(tn_alloc(&all, (size_t)comm->size, sizeof *all, "devices"));
    device_place *own = &all[comm->rank];
    find_machine(own);
    tn_status status = tn_comm_agree(comm, device->place(own->device), "devices");
    if (status == TN_OK) status = tn_comm_gather(comm, own, sizeof *own, all, "devices");
    if (status == TN_OK) status = tn_comm_agree(comm, check_places(comm, all), "devices");
    tn_free(all);
    return status;
}

tn_status tn_comm_device_open(tn_comm *comm) {
    const tn_device_transport *device;
    unsigned char id[TN_DEVICE_ID_BYTES] = {0};
    void *state;
    if (comm->device) return TN_OK;
    TN_TRY(tn_comm_agree(comm, tn_transport_find_device(&device), "devices"));
    TN_TRY(compare_places(comm, device));
    TN_TRY(tn_comm_agree(comm, comm->rank == 0 ? device->make_id(id) : TN_OK, "devices"));
    TN_TRY(tn_comm_broadcast(comm, id, sizeof id, "devices"));
    /* Who fails here does so alone: the others may be waiting for it inside. */
    TN_TRY(device->open(id, comm->rank, comm->size, &state));
    comm->device = device;
    comm->device_state = state;
    tn_watchdog_guard(comm->watchdog, device->broken, device->abort, state);
    return TN_OK;
}

void tn_comm_device_begin(tn_comm *comm) {
    comm->device_work = (tn_device_work){0, 0};
}

tn_device_work tn_comm_device_work(const tn_comm *comm) {
    return comm->device_work;
}

/* A rank that is lost is why things fail, or come to an end. */
static tn_status check_lost(tn_comm *comm, tn_status status) {
    if (!comm->watchdog) return status;
    tn_status lost = tn_watchdog_check(comm->watchdog);
    if (lost != TN_OK) comm->silent = true;
    return lost != TN_OK ? lost : status;
}

tn_status tn_comm_device_sum(tn_comm *comm, void *stream, const tn_device_range *ranges, int count,
                             const char *what) {
    comm->device_work.sums++;
    if (comm->watchdog) tn_watchdog_enter(comm->watchdog, what, 1);
    tn_status status = comm->device->sum(comm->device_state, stream, ranges, count);
    if (comm->watchdog) tn_watchdog_leave(comm->watchdog);
    return status == TN_OK ? TN_OK : check_lost(comm, status);
}

tn_status tn_comm_device_join(tn_comm *comm, void *stream) {
    return comm->device->join(comm->device_state, stream, comm->device_work.joins++);
}

void tn_comm_device_enter(tn_comm *comm, tn_device_work work, const char *what) {
    if (comm->watchdog) tn_watchdog_enter(comm->watchdog, what, work.sums - comm->device_work.sums);
}

tn_status tn_comm_device_leave(tn_comm *comm, tn_device_work work, tn_status status) {
    if (comm->watchdog) tn_watchdog_leave(comm->watchdog);
    TN_TRY(check_lost(comm, status));
    *comm->waits += comm->device->waited(comm->device_state, work.joins);
    return TN_OK;
}
