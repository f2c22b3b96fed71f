#include "comm/transport.h"

#ifdef TN_MPI
static const tn_transport *const several = &tn_transport_mpi;
#else
static const tn_transport *const several;
#endif

#if defined TN_MPI && defined TN_NCCL
static const tn_device_transport *const devices = &tn_transport_nccl;
#else
static const tn_device_transport *const devices;
#endif

tn_status tn_transport_find_device(const tn_device_transport **out) {
    *out = devices;
    if (*out) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "--device cuda: several processes need NCCL, which this build has not; put "
                                 "nccl.h and libnccl beside the CUDA toolkit and run make again, or use "
                                 "--device cpu or a single process");
}

tn_status tn_transport_find(int ranks, const tn_transport **out) {
    *out = ranks > 1 ? several : &tn_transport_none;
    if (*out) return TN_OK;
    return tn_fail(
        TN_ERR_USAGE,
        "this process is one of %d that mpirun or srun started, but this build has no MPI; install "
        "libopenmpi-dev and pkg-config and run make again, or start a single process",
        ranks);
}
