#error "the SIMT machine has no cooperative groups: use __syncthreads, __syncwarp and the _sync intrinsics"
