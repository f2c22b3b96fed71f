/* What the machine says when it stops: one line with kernel, block, thread, address and source line. Also the
 * signal handlers that turn memory faults of kernels and of host code into such lines. */
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "machine.h"
#include "memory.h"

namespace simt {

/* FILE:LINE of an address in the program, by addr2line; innermost inlined place first. */
static std::string source_line(const void *pc) {
    Dl_info info;
    if (!pc || !dladdr(pc, &info) || !info.dli_fname) return "unknown place";
    char command[1200], line[1024] = "";
    uintptr_t offset = (uintptr_t)pc - 1 - (uintptr_t)info.dli_fbase;
    bool self_file = strchr(info.dli_fname, '/') == nullptr;
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null",
             self_file ? "/proc/self/exe" : info.dli_fname, (size_t)offset);
    if (self_file) { /* the shell's own /proc/self would be meant */
        char path[512];
        ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
        path[n > 0 ? n : 0] = 0;
        snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", path, (size_t)offset);
    }
    std::string best;
    if (FILE *f = popen(command, "r")) {
        /* Lines in the machine's own headers (a __ldg, say) say less than where they were used. */
        while (fgets(line, sizeof line, f)) {
            line[strcspn(line, " (\n")] = 0;
            best = line;
            if (!strstr(line, "tests/simt/include") && !strstr(line, "simt_") && line[0] != '?') break;
        }
        pclose(f);
    }
    return best.empty() || best[0] == '?' ? "unknown place" : best;
}

void describe_thread(const Worker &w, int linear, char *text, size_t size) {
    const uint3 &t = w.index_of[linear], &b = simt_here.block_idx;
    snprintf(text, size, "thread (%u,%u,%u) of block (%u,%u,%u)", t.x, t.y, t.z, b.x, b.y, b.z);
}

void describe_address(uintptr_t address, char *text, size_t size) {
    const Allocation *a = allocation_at(address);
    if (!a) a = allocation_at(address - 4096); /* the pages around an allocation say which one it was */
    if (!a) a = allocation_at(address + 4096);
    if (a && address >= a->base + a->size)
        snprintf(text, size, "0x%zx, %zu bytes behind the end of %sdevice allocation %u of %zu bytes",
                 (size_t)address, (size_t)(address - a->base - a->size), a->freed ? "freed " : "", a->number,
                 a->size);
    else if (a && address < a->base)
        snprintf(text, size, "0x%zx, %zu bytes before %sdevice allocation %u of %zu bytes", (size_t)address,
                 (size_t)(a->base - address), a->freed ? "freed " : "", a->number, a->size);
    else if (a)
        snprintf(text, size, "0x%zx, byte %zu of %sdevice allocation %u of %zu bytes", (size_t)address,
                 (size_t)(address - a->base), a->freed ? "freed " : "", a->number, a->size);
    else if (is_device_address((void *)address))
        snprintf(text, size, "0x%zx, device memory that is not allocated", (size_t)address);
    else
        snprintf(text, size, "0x%zx", (size_t)address);
}

void report(const char *what, Site site, const void *pc, const char *format, ...) {
    static std::mutex lock;
    lock.lock(); /* never released: the process ends here */
    char body[1024], kernel[256] = "";
    va_list list;
    va_start(list, format);
    vsnprintf(body, sizeof body, format, list);
    va_end(list);
    if (worker && simt_self && worker->launch)
        snprintf(kernel, sizeof kernel, " in kernel %s", worker->launch->request.kernel);
    std::string place = site.file ? std::string(site.file) + ":" + std::to_string(site.line)
                        : pc      ? source_line(pc)
                                  : "";
    fflush(stdout);
    fprintf(stderr, "simt: %s%s: %s%s%s [seed %llu]\n", what, kernel, body, place.empty() ? "" : ", at ",
            place.c_str(), (unsigned long long)settings().seed);
    fflush(stderr);
    _exit(SIMT_FAULT_EXIT);
}

static __thread uintptr_t stepping;
static struct sigaction before[2]; /* what others had installed: for SIGSEGV, SIGBUS */

static void device_fault(uintptr_t address, bool write, const void *pc) {
    char where[256], who[96];
    describe_address(address, where, sizeof where);
    const char *verb = write ? "writes" : "reads";
    if (!simt_self) {
        if (is_device_address((void *)address))
            report("HOST ACCESS", Site{}, pc, "host code %s device memory at %s", verb, where);
        return;
    }
    describe_thread(*worker, self()->linear, who, sizeof who);
    const Allocation *a = allocation_at(address);
    report(a && a->freed ? "USE AFTER FREE" : "OUT OF BOUNDS", Site{}, pc, "%s %s %s", who, verb, where);
}

static void on_fault(int number, siginfo_t *info, void *raw) {
    ucontext_t *context = static_cast<ucontext_t *>(raw);
    uintptr_t address = (uintptr_t)info->si_addr;
    bool write = context->uc_mcontext.gregs[REG_ERR] & 2;
    const void *pc = (const void *)(context->uc_mcontext.gregs[REG_RIP] + 1);
    if (number == SIGSEGV && info->si_code != SI_KERNEL && device_touch(address)) return;
    PendingFault fault = number == SIGSEGV ? pending_fault(address, write) : PendingFault::None;
    if (fault == PendingFault::Writes && !simt_self)
        report("HOST ACCESS", Site{}, pc,
               "host code %s pinned memory at 0x%zx before the copy into it has been waited for",
               write ? "writes" : "reads", (size_t)address);
    if (fault == PendingFault::Reads && !simt_self)
        report("HOST ACCESS", Site{}, pc,
               "host code writes pinned memory at 0x%zx before the copy out of it has been waited for",
               (size_t)address);
    if (fault != PendingFault::None) {
        stepping = address;
        pending_step(address, true);
        context->uc_mcontext.gregs[REG_EFL] |= 0x100;
        return;
    }
    if (number == SIGSEGV && info->si_code == SI_KERNEL && simt_self) {
        char who[96];
        describe_thread(*worker, self()->linear, who, sizeof who);
        report("MISALIGNED", Site{}, pc,
               "%s uses an address that is not aligned for its vector type, or no address", who);
    }
    device_fault(address, write, pc);
    sigaction(number, &before[number == SIGBUS], nullptr); /* somebody else's fault: let it happen again */
}

static void on_step(int, siginfo_t *, void *raw) {
    ucontext_t *context = static_cast<ucontext_t *>(raw);
    context->uc_mcontext.gregs[REG_EFL] &= ~0x100ll;
    if (stepping) pending_step(stepping, false);
    stepping = 0;
}

void thread_fault_stack() {
    static __thread bool done;
    if (done) return;
    done = true;
    stack_t stack = {};
    stack.ss_size = 1 << 17;
    stack.ss_sp = malloc(stack.ss_size);
    sigaltstack(&stack, nullptr);
}

/* Again at every call: test frameworks install handlers of their own between tests. */
void install_fault_handler() {
    struct sigaction action = {};
    if (sigaction(SIGSEGV, nullptr, &action) == 0 && action.sa_sigaction == on_fault) return;
    action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before[0]);
    sigaction(SIGBUS, &action, &before[1]);
    action.sa_sigaction = on_step;
    sigaction(SIGTRAP, &action, nullptr);
    thread_fault_stack();
}

} // namespace simt
