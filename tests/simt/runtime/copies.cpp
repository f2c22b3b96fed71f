/* Allocation, copies and fills of the runtime interface. */
#include <cstring>
#include <memory>

#include "launch_log.h"
#include "memory.h"
#include "stream.h"
#if SIMT_INSTRUMENTED
#include "shadow.h"
#endif

namespace simt {

/* While only some blocks of each launch run, memory that is filled would be touched for nothing. */
static constexpr size_t LONG_FILL = 1 << 20;

/* Rows of a copy; a plain copy has one. */
struct Copy {
    char *dst;
    const char *src;
    size_t dpitch, spitch, width, height;
    bool dst_device, src_device;
};

static void perform(const Copy &c) {
    for (size_t row = 0; row < c.height; row++) {
        char *dst = c.dst + row * c.dpitch;
        const char *src = c.src + row * c.spitch;
#if SIMT_INSTRUMENTED
        shadow_copy(c.dst_device ? dst : nullptr, c.src_device ? src : nullptr, c.width);
#endif
        memmove(dst, src, c.width);
    }
}

static void count(const Copy &c) {
    uint64_t bytes = c.width * c.height;
    log_operation(!c.src_device  ? "copy from host"
                  : c.dst_device ? "copy"
                                 : "copy to host",
                  c.src_device ? bytes : 0, c.dst_device ? bytes : 0, 0, 0, 0);
}

static bool one_allocation(const void *p, size_t bytes) {
    const Allocation *a = allocation_at((uintptr_t)p);
    return a && !a->freed && (uintptr_t)p >= a->base && (uintptr_t)p + bytes <= a->base + a->size;
}

static void refuse_stale(const void *p, const char *call) {
    const Allocation *a = allocation_at((uintptr_t)p);
    if (a && a->freed) {
        char where[256];
        describe_address((uintptr_t)p, where, sizeof where);
        report("USE AFTER FREE", Site{}, __builtin_return_address(0), "%s touches %s", call, where);
    }
}

static bool direction_fits(const Copy &c, cudaMemcpyKind kind) {
    switch (kind) {
    case cudaMemcpyHostToHost:
        return !c.dst_device && !c.src_device;
    case cudaMemcpyHostToDevice:
        return c.dst_device && !c.src_device;
    case cudaMemcpyDeviceToHost:
        return !c.dst_device && c.src_device;
    case cudaMemcpyDeviceToDevice:
        return c.dst_device && c.src_device;
    default:
        return kind == cudaMemcpyDefault;
    }
}

/* What is copied out of pageable memory has been read when the call returns. */
static std::shared_ptr<std::vector<char>> snapshot(Copy &c) {
    auto bytes = std::make_shared<std::vector<char>>(c.width * c.height);
    for (size_t row = 0; row < c.height; row++)
        memcpy(bytes->data() + row * c.width, c.src + row * c.spitch, c.width);
    c.src = bytes->data();
    c.spitch = c.width;
    return bytes;
}

static cudaError_t copy(Copy c, cudaMemcpyKind kind, cudaStream_t handle, bool async, const char *call) {
    if (c.width == 0 || c.height == 0) return cudaSuccess;
    size_t dbytes = c.dpitch * (c.height - 1) + c.width, sbytes = c.spitch * (c.height - 1) + c.width;
    c.dst_device = is_device_address(c.dst);
    c.src_device = is_device_address(c.src);
    Stream *s = find_stream(handle);
    if (!s) return cudaErrorInvalidResourceHandle;
    if (!c.dst || !c.src || !direction_fits(c, kind) || c.width > c.dpitch || c.width > c.spitch)
        return cudaErrorInvalidValue;
    refuse_stale(c.dst, call);
    refuse_stale(c.src, call);
    if ((c.dst_device && !one_allocation(c.dst, dbytes)) || (c.src_device && !one_allocation(c.src, sbytes)))
        return cudaErrorInvalidValue;
    if (!async && any_capture()) return refuse_in_capture(call);
    bool to_host = !c.dst_device, from_host = !c.src_device;
    bool to_pinned = to_host && is_pinned(c.dst, dbytes), from_pinned = from_host && is_pinned(c.src, sbytes);
    Op op;
    op.what = call;
    std::shared_ptr<std::vector<char>> kept;
    if (from_host && !from_pinned && !s->capture)
        kept = snapshot(c);
    else if (from_pinned)
        op.host = HostRange{c.src, sbytes, false};
    if (to_pinned) op.host = HostRange{c.dst, dbytes, true};
    op.run = [c, kept](Op &) {
        perform(c);
        count(c);
        return true;
    };
    bool capturing = s->capture != nullptr;
    if (cudaError_t error = enqueue(*s, std::move(op))) return error;
    /* Copies that touch pageable host memory as target, and plain copies except within the device, are waited
     * for. */
    bool wait = !capturing && ((to_host && !to_pinned) || (!async && (to_host || from_host)));
    if (wait) {
        Clock clock = s->last;
        wait_for(*s, s->enqueued);
        join_host(clock);
    }
    return cudaSuccess;
}

static cudaError_t fill(void *dst, int value, size_t bytes, cudaStream_t handle, const char *call) {
    if (bytes == 0) return cudaSuccess;
    Stream *s = find_stream(handle);
    if (!s) return cudaErrorInvalidResourceHandle;
    refuse_stale(dst, call);
    if (!one_allocation(dst, bytes)) return cudaErrorInvalidValue;
    Op op;
    op.what = call;
    op.run = [=](Op &) {
#if SIMT_INSTRUMENTED
        shadow_range_store(dst, bytes);
#endif
        log_operation("fill", 0, bytes, 0, 0, 0);
        if (!settings().sample || bytes < LONG_FILL) memset(dst, value, bytes);
        return true;
    };
    return enqueue(*s, std::move(op));
}

} // namespace simt

using namespace simt;

extern "C" {

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    API_ENTER();
    if (!pointer) return api_return(cudaErrorInvalidValue);
    *pointer = nullptr;
    if (any_capture()) return api_return(refuse_in_capture("cudaMalloc"));
    if (bytes == 0) return cudaSuccess;
    if (bytes > device_memory_limit() || device_used(current_device()) > device_memory_limit() - bytes)
        return api_return(cudaErrorMemoryAllocation);
    *pointer = device_allocate(bytes, current_device());
    return api_return(*pointer ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *pointer) {
    API_ENTER();
    if (any_capture()) return api_return(refuse_in_capture("cudaFree"));
    if (!pointer) return cudaSuccess;
    wait_device(current_device());
    switch (device_free(pointer)) {
    case FreeResult::Unknown:
        return api_return(cudaErrorInvalidValue);
    case FreeResult::Twice: {
        char where[256];
        describe_address((uintptr_t)pointer, where, sizeof where);
        report("DOUBLE FREE", Site{}, __builtin_return_address(0), "cudaFree of %s", where);
    }
    default:
        return cudaSuccess;
    }
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned int) {
    API_ENTER();
    *pointer = bytes ? pinned_allocate(bytes) : nullptr;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **pointer, size_t bytes) {
    API_ENTER();
    *pointer = bytes ? pinned_allocate(bytes) : nullptr;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *pointer) {
    API_ENTER();
    if (!pointer) return cudaSuccess;
    wait_device(current_device());
    return api_return(pinned_free(pointer) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned int) {
    API_ENTER();
    return api_return(pinned_register(pointer, bytes, true) ? cudaSuccess
                                                            : cudaErrorHostMemoryAlreadyRegistered);
}

cudaError_t cudaHostUnregister(void *pointer) {
    API_ENTER();
    wait_device(current_device());
    return api_return(pinned_register(pointer, 0, false) ? cudaSuccess : cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaHostGetDevicePointer(void **out, void *host, unsigned int) {
    API_ENTER();
    if (!is_pinned(host, 1)) return api_return(cudaErrorInvalidValue);
    *out = host;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *out, const void *pointer) {
    API_ENTER();
    *out = cudaPointerAttributes{cudaMemoryTypeUnregistered, -1, nullptr, const_cast<void *>(pointer)};
    const Allocation *a = allocation_at((uintptr_t)pointer);
    if (a && !a->freed)
        *out = cudaPointerAttributes{cudaMemoryTypeDevice, a->device, const_cast<void *>(pointer), nullptr};
    else if (is_pinned(pointer, 1))
        *out = cudaPointerAttributes{cudaMemoryTypeHost, current_device(), const_cast<void *>(pointer),
                                     const_cast<void *>(pointer)};
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
    API_ENTER();
    Copy c{static_cast<char *>(dst), static_cast<const char *>(src), bytes, bytes, bytes, 1, false, false};
    return api_return(copy(c, kind, nullptr, false, __func__));
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    API_ENTER();
    Copy c{static_cast<char *>(dst), static_cast<const char *>(src), bytes, bytes, bytes, 1, false, false};
    return api_return(copy(c, kind, stream, true, __func__));
}

cudaError_t cudaMemcpy2D(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                         size_t height, cudaMemcpyKind kind) {
    API_ENTER();
    Copy c{static_cast<char *>(dst),
           static_cast<const char *>(src),
           dpitch,
           spitch,
           width,
           height,
           false,
           false};
    return api_return(copy(c, kind, nullptr, false, __func__));
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    API_ENTER();
    Copy c{static_cast<char *>(dst),
           static_cast<const char *>(src),
           dpitch,
           spitch,
           width,
           height,
           false,
           false};
    return api_return(copy(c, kind, stream, true, __func__));
}

cudaError_t cudaMemset(void *dst, int value, size_t bytes) {
    API_ENTER();
    if (any_capture()) return api_return(refuse_in_capture("cudaMemset"));
    return api_return(fill(dst, value, bytes, nullptr, __func__));
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream) {
    API_ENTER();
    return api_return(fill(dst, value, bytes, stream, __func__));
}

} // extern "C"

cudaError_t simt_copy_symbol(void *symbol, const void *src, size_t bytes, size_t size, size_t offset,
                             cudaStream_t handle, bool async) {
    const char *call = "cudaMemcpyToSymbol";
    std::lock_guard<std::mutex> guard(machine_lock);
    if (cudaError_t error = api_enter(call)) return api_return(error);
    Stream *s = find_stream(handle);
    if (!s) return api_return(cudaErrorInvalidResourceHandle);
    if (offset + bytes > size) return api_return(cudaErrorInvalidValue);
    if (!async && any_capture()) return api_return(refuse_in_capture(call));
    auto kept = std::make_shared<std::vector<char>>(static_cast<const char *>(src),
                                                    static_cast<const char *>(src) + bytes);
    Op op;
    op.what = call;
    op.run = [=](Op &) {
        memcpy(static_cast<char *>(symbol) + offset, kept->data(), bytes);
        return true;
    };
    return api_return(enqueue(*s, std::move(op)));
}
