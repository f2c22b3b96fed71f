/* Prints what each kernel takes of a multiprocessor: registers, shared memory, spills, and how many of its
 * warps can be resident (cuda_occupancy.h).
 *
 *   cuda_report sm_80=LOG,PTX... sm_90=LOG,PTX...
 *
 * LOG is what `nvcc -Xptxas -v` said, PTX the same kernel's code, from which the block size is read: all
 * kernels state theirs in __launch_bounds__ and are launched with just that. Kernels without one are refused.
 * Exit status 1 where registers are spilled, 2 where the input is not understood. */
#include <cuda_occupancy.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

struct Kernel {
    std::string symbol, file;
    int registers = 0, stack = 0, spills = 0, threads = 0;
    size_t shared = 0;
};

[[noreturn]] static void refuse(const std::string &text) {
    fprintf(stderr, "cuda_report: %s\n", text.c_str());
    exit(2);
}

static std::ifstream open_file(const std::string &path) {
    std::ifstream file(path);
    if (!file) refuse("cannot read " + path + "; run make cuda-report");
    return file;
}

/* Block sizes by symbol: ".entry NAME(" and then ".maxntid X, Y, Z". */
static std::map<std::string, int> block_sizes(const std::string &path) {
    std::map<std::string, int> sizes;
    std::ifstream file = open_file(path);
    std::string line, entry;
    while (std::getline(file, line)) {
        size_t at = line.find(".entry ");
        int x, y, z;
        if (at != std::string::npos)
            entry = line.substr(at + 7, line.find('(') - at - 7);
        else if (sscanf(line.c_str(), ".maxntid %d, %d, %d", &x, &y, &z) == 3)
            sizes[entry] = x * y * z;
        else if (sscanf(line.c_str(), ".maxntid %d", &x) == 1)
            sizes[entry] = x;
    }
    return sizes;
}

/* The kernels of one architecture in ptxas' words. */
static std::vector<Kernel> read_log(const std::string &path, const std::string &arch) {
    std::vector<Kernel> kernels;
    std::ifstream file = open_file(path);
    std::string line, name = path.substr(path.rfind('/') + 1);
    bool wanted = false;
    while (std::getline(file, line)) {
        char symbol[4096], target[32];
        int stack, stores, loads, registers, shared;
        const char *used = strstr(line.c_str(), "Used "), *bytes = strstr(line.c_str(), " bytes smem");
        if (sscanf(line.c_str(), "ptxas info    : Compiling entry function '%4095[^']' for '%31[^']'", symbol,
                   target) == 2) {
            wanted = arch == target;
            if (wanted) kernels.emplace_back();
            if (wanted) kernels.back().symbol = symbol;
            if (wanted) kernels.back().file = name.substr(0, name.find('.'));
        } else if (wanted &&
                   sscanf(line.c_str(), " %d bytes stack frame, %d bytes spill stores, %d bytes spill loads",
                          &stack, &stores, &loads) == 3) {
            kernels.back().stack = stack;
            kernels.back().spills = stores + loads;
        } else if (wanted && used && sscanf(used, "Used %d registers", &registers) == 1) {
            kernels.back().registers = registers;
            while (bytes && bytes > used && bytes[-1] >= '0' && bytes[-1] <= '9') bytes--;
            if (bytes && sscanf(bytes, "%d", &shared) == 1) kernels.back().shared = (size_t)shared;
        }
    }
    return kernels;
}

/* What cudaGetDeviceProperties says of an A100 and an H100 (CUDA C++ Programming Guide, compute
 * capabilities). */
static cudaOccDeviceProp device(const std::string &arch) {
    cudaOccDeviceProp p;
    p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiprocessor = 2048;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.warpSize = 32;
    p.sharedMemPerBlock = 48 << 10;
    p.reservedSharedMemPerBlock = 1 << 10;
    if (arch == "sm_80") {
        p.computeMajor = 8;
        p.sharedMemPerMultiprocessor = 164 << 10;
        p.numSms = 108;
    } else if (arch == "sm_90") {
        p.computeMajor = 9;
        p.sharedMemPerMultiprocessor = 228 << 10;
        p.numSms = 132;
    } else {
        refuse("no figures for " + arch);
    }
    p.sharedMemPerBlockOptin = p.sharedMemPerMultiprocessor - p.reservedSharedMemPerBlock;
    return p;
}

/* Name and template arguments, without return type and parameters. */
static std::string readable(const std::string &symbol) {
    char *text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, nullptr);
    std::string name = text ? text : symbol;
    free(text);
    if (name.compare(0, 5, "void ") == 0) name.erase(0, 5);
    name.erase(std::min(name.find('('), name.size()));
    for (size_t at; (at = name.find("__nv_bfloat16")) != std::string::npos;) name.replace(at, 13, "bf16");
    return name;
}

/* Prints a line; returns whether registers were spilled. */
static bool print_kernel(const std::string &arch, const Kernel &k) {
    if (!k.threads) refuse(readable(k.symbol) + " has no __launch_bounds__");
    cudaOccDeviceProp properties = device(arch);
    cudaOccFuncAttributes attributes;
    cudaOccDeviceState state;
    cudaOccResult result;
    attributes.maxThreadsPerBlock = k.threads;
    attributes.numRegs = k.registers;
    attributes.sharedSizeBytes = k.shared;
    attributes.maxDynamicSharedSizeBytes = properties.sharedMemPerBlock;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &properties, &attributes, &state, k.threads, 0) !=
        CUDA_OCC_SUCCESS)
        refuse(readable(k.symbol) + ": cuda_occupancy.h does not take it");
    int blocks = result.activeBlocksPerMultiprocessor;
    printf("%-6s %-62s %6d %6d %8zu %6d %6d %6d %8d%%\n", arch.c_str(),
           (k.file + ": " + readable(k.symbol)).c_str(), k.threads, k.registers, k.shared, k.stack, k.spills,
           blocks, 100 * blocks * k.threads / properties.maxThreadsPerMultiprocessor);
    return k.spills != 0;
}

int main(int argc, char **argv) {
    int spilled = 0, count = 0;
    printf("%-6s %-62s %6s %6s %8s %6s %6s %6s %9s\n", "", "kernel", "block", "regs", "shared", "stack",
           "spill", "blocks", "occupancy");
    for (int i = 1; i < argc; i++) {
        std::string argument = argv[i];
        size_t equals = argument.find('='), comma = argument.find(',');
        if (equals == std::string::npos || comma == std::string::npos)
            refuse("not ARCH=LOG,PTX: " + argument);
        std::string arch = argument.substr(0, equals);
        std::map<std::string, int> sizes = block_sizes(argument.substr(comma + 1));
        for (Kernel &k : read_log(argument.substr(equals + 1, comma - equals - 1), arch)) {
            k.threads = sizes[k.symbol];
            spilled += print_kernel(arch, k);
            count++;
        }
    }
    if (!count) refuse("no kernels in the logs");
    printf("%d compiled kernels, %d with spilled registers\n", count, spilled);
    return spilled ? 1 : 0;
}
