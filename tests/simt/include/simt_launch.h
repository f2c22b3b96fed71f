/* Kernel launches: arguments are converted to the kernel's parameter types and copied at the call. */
#ifndef SIMT_LAUNCH_H
#define SIMT_LAUNCH_H

#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cuda_runtime_api.h"

namespace simt {

struct LaunchRequest {
    const char *kernel, *file;
    int line;
    const void *function;
    dim3 grid, block;
    size_t shared;
    std::shared_ptr<void> arguments; /* the closure that `invoke` takes */
    size_t arguments_size;
    uint64_t fma_flops; /* what the caller said of its work, simt_expect_flops */
    void (*invoke)(void *closure);
    std::vector<const void *> pointers; /* those among the arguments */
};
void submit(LaunchRequest &&request, cudaStream_t stream);

template <class... K> struct Closure {
    void (*kernel)(K...);
    std::tuple<K...> arguments;
    static void invoke(void *self) {
        Closure *c = static_cast<Closure *>(self);
        std::apply(c->kernel, c->arguments);
    }
};

template <class T> void note_pointer(std::vector<const void *> &list, const T &value) {
    if constexpr (std::is_pointer_v<T>) {
        if constexpr (!std::is_function_v<std::remove_pointer_t<T>>)
            list.push_back(const_cast<const void *>(static_cast<const volatile void *>(value)));
    }
}

template <class... K, class... A>
void launch(const char *name, const char *file, int line, void (*kernel)(K...), dim3 grid, dim3 block,
            size_t shared, cudaStream_t stream, A &&...arguments) {
    static_assert(sizeof...(K) == sizeof...(A), "as many arguments as the kernel has parameters");
    static_assert((... && std::is_trivially_copyable_v<K>), "kernel parameters are copied as bytes");
    static_assert((... && !std::is_reference_v<K>), "kernel parameters may not be references");
    auto closure = std::make_shared<Closure<K...>>(
        Closure<K...>{kernel, std::tuple<K...>(static_cast<K>(std::forward<A>(arguments))...)});
    LaunchRequest request{name,
                          file,
                          line,
                          reinterpret_cast<const void *>(kernel),
                          grid,
                          block,
                          shared,
                          {},
                          sizeof(Closure<K...>),
                          0,
                          &Closure<K...>::invoke,
                          {}};
    std::apply([&](const auto &...a) { (note_pointer(request.pointers, a), ...); }, closure->arguments);
    request.arguments = std::move(closure);
    submit(std::move(request), stream);
}

} // namespace simt

/* __constant__ and __device__ variables are ordinary variables here. */
cudaError_t simt_copy_symbol(void *symbol, const void *src, size_t bytes, size_t size, size_t offset,
                             cudaStream_t stream, bool async);
template <class T>
cudaError_t cudaMemcpyToSymbol(T &symbol, const void *src, size_t bytes, size_t offset = 0,
                               cudaMemcpyKind = cudaMemcpyHostToDevice) {
    return simt_copy_symbol((void *)&symbol, src, bytes, sizeof(T), offset, nullptr, false);
}
template <class T>
cudaError_t cudaMemcpyToSymbolAsync(T &symbol, const void *src, size_t bytes, size_t offset, cudaMemcpyKind,
                                    cudaStream_t stream) {
    return simt_copy_symbol((void *)&symbol, src, bytes, sizeof(T), offset, stream, true);
}

#endif
