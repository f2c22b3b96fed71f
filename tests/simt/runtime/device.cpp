/* Devices, errors and settings of the runtime interface. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "memory.h"
#include "stream.h"

namespace simt {

/* Limits from the CUDA programming guide; clocks and bandwidths are nobody's business here. */
static const DeviceModel models[] = {
    {"SIMT machine (sm_80)", 8, 0, 108, (size_t)40 << 30, 166912, 167936},
    {"SIMT machine (sm_86)", 8, 6, 84, (size_t)24 << 30, 101376, 102400},
    {"SIMT machine (sm_90)", 9, 0, 132, (size_t)80 << 30, 232448, 233472},
};
static const char *const mode_names[] = {"sm_80", "sm_86", "sm_90", "none", "driver"};

static int mode = 2, count = 1;
static size_t memory_limit;
static bool ready;
static std::string fail_name;
static int fail_after, fail_error;
static thread_local cudaError_t last_error;
static thread_local int device;
static cudaError_t sticky[64];

static int parse_mode(const char *text) {
    for (int i = 0; i < 5; i++)
        if (strcmp(text, mode_names[i]) == 0) return i;
    fprintf(stderr, "simt: SIMT_DEVICE is %s, must be sm_80, sm_86, sm_90, none or driver\n", text);
    exit(2);
}

static void start() {
    install_fault_handler();
    if (ready) return;
    ready = true;
    if (const char *text = getenv("SIMT_DEVICE")) mode = parse_mode(text);
    if (const char *text = getenv("SIMT_DEVICES")) count = atoi(text);
    if (const char *text = getenv("SIMT_MEMORY")) memory_limit = strtoull(text, nullptr, 0);
    if (const char *text = getenv("SIMT_FAIL")) {
        std::string all = text;
        size_t a = all.find(':'), b = all.rfind(':');
        if (a == std::string::npos || a == b) {
            fprintf(stderr, "simt: SIMT_FAIL is %s, must be CALL:COUNT:ERROR\n", text);
            exit(2);
        }
        fail_name = all.substr(0, a);
        fail_after = atoi(all.c_str() + a + 1);
        fail_error = atoi(all.c_str() + b + 1);
    }
    shared_symbols_load();
    if (settings().counting) atexit(simt_counters_print);
}

int current_device() {
    return device;
}

cudaError_t &sticky_error(int d) {
    return sticky[d];
}

const DeviceModel &device_model() {
    return models[mode < 3 ? mode : 2];
}

int device_count() {
    return count;
}

size_t device_memory_limit() {
    return memory_limit ? memory_limit : device_model().memory;
}

static cudaError_t absent() {
    return mode == 3 ? cudaErrorNoDevice : mode == 4 ? cudaErrorInsufficientDriver : cudaSuccess;
}

cudaError_t api_enter(const char *call) {
    start();
    if (cudaError_t error = absent()) return error;
    if (sticky[device]) return sticky[device];
    if (fail_after > 0 && fail_name == call && --fail_after == 0) {
        cudaError_t error = (cudaError_t)fail_error;
        if (fail_error >= 700 && fail_error < 800) sticky[device] = error;
        return error;
    }
    return cudaSuccess;
}

cudaError_t api_return(cudaError_t error) {
    if (error && error != cudaErrorNotReady) last_error = error;
    return error;
}

} // namespace simt

using namespace simt;

extern "C" {

void simt_set_seed(uint64_t seed) {
    settings().seed = seed;
}

void simt_set_device(const char *name, int devices) {
    start();
    mode = parse_mode(name);
    count = devices;
}

void simt_set_memory(size_t bytes) {
    memory_limit = bytes;
}

void simt_fail_call(const char *call, int n, int error) {
    start();
    fail_name = call;
    fail_after = n;
    fail_error = error;
}

int simt_is_instrumented(void) {
    return SIMT_INSTRUMENTED;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) {
    return sticky[device] ? sticky[device] : last_error;
}

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};
#define ERROR_TEXT(e, text)                                                                                  \
    { e, #e, text }
static const ErrorText error_texts[] = {
    ERROR_TEXT(cudaSuccess, "no error"),
    ERROR_TEXT(cudaErrorInvalidValue, "invalid argument"),
    ERROR_TEXT(cudaErrorMemoryAllocation, "out of memory"),
    ERROR_TEXT(cudaErrorInitializationError, "initialization error"),
    ERROR_TEXT(cudaErrorCudartUnloading, "driver shutting down"),
    ERROR_TEXT(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR_TEXT(cudaErrorInvalidSymbol, "invalid device symbol"),
    ERROR_TEXT(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    ERROR_TEXT(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR_TEXT(cudaErrorStubLibrary, "CUDA driver is a stub library"),
    ERROR_TEXT(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    ERROR_TEXT(cudaErrorCallRequiresNewerDriver, "API call is not supported in the installed CUDA driver"),
    ERROR_TEXT(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable"),
    ERROR_TEXT(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR_TEXT(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR_TEXT(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR_TEXT(cudaErrorInvalidKernelImage, "device kernel image is invalid"),
    ERROR_TEXT(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    ERROR_TEXT(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    ERROR_TEXT(cudaErrorOperatingSystem, "OS call failed or operation not supported on this OS"),
    ERROR_TEXT(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR_TEXT(cudaErrorNotReady, "device not ready"),
    ERROR_TEXT(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR_TEXT(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ERROR_TEXT(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    ERROR_TEXT(cudaErrorHostMemoryAlreadyRegistered,
               "part or all of the requested memory range is already mapped"),
    ERROR_TEXT(cudaErrorHostMemoryNotRegistered, "pointer does not correspond to a registered memory region"),
    ERROR_TEXT(cudaErrorMisalignedAddress, "misaligned address"),
    ERROR_TEXT(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR_TEXT(cudaErrorNotSupported, "operation not supported"),
    ERROR_TEXT(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR_TEXT(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR_TEXT(cudaErrorStreamCaptureMerge,
               "operation would result in a merge of separate capture sequences"),
    ERROR_TEXT(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    ERROR_TEXT(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR_TEXT(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR_TEXT(cudaErrorStreamCaptureImplicit,
               "operation would make the legacy stream depend on a capturing blocking "
               "stream"),
    ERROR_TEXT(cudaErrorCapturedEvent,
               "operation not permitted on an event last recorded in a capturing stream"),
    ERROR_TEXT(cudaErrorUnknown, "unknown error"),
};

const char *cudaGetErrorName(cudaError_t error) {
    for (const ErrorText &e : error_texts)
        if (e.error == error) return e.name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    for (const ErrorText &e : error_texts)
        if (e.error == error) return e.text;
    return "unrecognized error code";
}

cudaError_t cudaGetDeviceCount(int *out) {
    std::lock_guard<std::mutex> guard(machine_lock);
    start();
    *out = 0;
    if (cudaError_t error = absent()) return api_return(error);
    *out = count;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *out) {
    API_ENTER();
    *out = device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int wanted) {
    API_ENTER();
    if (wanted < 0 || wanted >= count) return api_return(cudaErrorInvalidDevice);
    device = wanted;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned int) {
    API_ENTER();
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
    API_ENTER();
    if (d < 0 || d >= count) return api_return(cudaErrorInvalidDevice);
    const DeviceModel &m = device_model();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", m.name);
    p->uuid.bytes[0] = (char)d;
    p->totalGlobalMem = device_memory_limit();
    p->sharedMemPerBlock = 49152;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->memPitch = 2147483647;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = m.major;
    p->minor = m.minor;
    p->multiProcessorCount = m.sms;
    p->canMapHostMemory = p->concurrentKernels = p->ECCEnabled = p->unifiedAddressing = 1;
    p->pciBusID = d + 1;
    p->asyncEngineCount = 3;
    p->memoryBusWidth = 5120;
    p->l2CacheSize = 40 << 20;
    p->maxThreadsPerMultiProcessor = m.minor == 6 ? 1536 : 2048;
    p->sharedMemPerMultiprocessor = m.shared_sm;
    p->sharedMemPerBlockOptin = m.shared_optin;
    p->maxBlocksPerMultiProcessor = m.minor == 6 ? 16 : 32;
    p->reservedSharedMemPerBlock = 1024;
    p->cooperativeLaunch = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int d) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, d)) return error;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
        *value = p.regsPerBlock;
        break;
    case cudaDevAttrClockRate:
        *value = 1980000;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrMemoryClockRate:
        *value = 2619000;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = p.memoryBusWidth;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        break;
    default:
        return api_return(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int d) {
    API_ENTER();
    if (d < 0 || d >= count) return api_return(cudaErrorInvalidDevice);
    snprintf(text, (size_t)length, "0000:%02x:00.0", d + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) {
    API_ENTER();
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    API_ENTER();
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    std::lock_guard<std::mutex> guard(machine_lock);
    start();
    *version = mode == 4 ? 0 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    API_ENTER();
    *total = device_memory_limit();
    size_t used = device_used(device);
    *available = used < *total ? *total - used : 0;
    return cudaSuccess;
}

} // extern "C"
