/* CUDA C++ for the SIMT machine: the runtime interface and, in C++, the device side of the language. */
#ifndef SIMT_CUDA_RUNTIME_H
#define SIMT_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"

#ifdef __cplusplus
#include "simt_atomics.h"
#include "simt_device.h"
#include "simt_launch.h"
#include "simt_math.h"
#include "simt_warp.h"
#endif

#endif
