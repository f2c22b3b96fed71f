#include "comm/transport.h"

#ifdef TN_MPI
static const tn_transport *const several = &tn_transport_mpi;
#else
static const tn_transport *const several;
#endif

tn_status tn_transport_find(int ranks, const tn_transport **out) {
    *out = ranks > 1 ? several : &tn_transport_none;
    if (*out) return TN_OK;
    return tn_fail(
        TN_ERR_USAGE,
        "this process is one of %d that mpirun or srun started, but this build has no MPI; install "
        "libopenmpi-dev and pkg-config and run make again, or start a single process",
        ranks);
}
