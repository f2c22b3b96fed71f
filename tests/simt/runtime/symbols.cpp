/* Static shared memory is thread-local storage of functions; the program's own symbol table tells where. */
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "machine.h"

namespace simt {

static std::vector<SharedSymbol> symbols;
static std::map<uint64_t, const char *> functions; /* by address in the file */
static size_t tls_size;
static uintptr_t load_bias;

static void read_table(const char *file) {
    const Elf64_Ehdr *header = reinterpret_cast<const Elf64_Ehdr *>(file);
    const Elf64_Shdr *sections = reinterpret_cast<const Elf64_Shdr *>(file + header->e_shoff);
    for (int s = 0; s < header->e_shnum; s++) {
        if (sections[s].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *table = reinterpret_cast<const Elf64_Sym *>(file + sections[s].sh_offset);
        const char *names = file + sections[sections[s].sh_link].sh_offset;
        for (size_t i = 0; i < sections[s].sh_size / sizeof *table; i++) {
            const Elf64_Sym &symbol = table[i];
            const char *name = names + symbol.st_name;
            int type = ELF64_ST_TYPE(symbol.st_info);
            if (type == STT_FUNC) functions[symbol.st_value] = name;
            /* _ZZ: local to a C++ function; the machine's own are in namespace simt. */
            /* Arrays of classes get a guard variable (_ZGVZ) although nothing is to be constructed. */
            bool guard = strncmp(name, "_ZGVZ", 5) == 0;
            if (type == STT_TLS && (guard || strncmp(name, "_ZZ", 3) == 0) &&
                strncmp(name, "_ZZN4simt", 9) != 0 && symbol.st_shndx != SHN_UNDEF)
                symbols.push_back(SharedSymbol{name, symbol.st_value, symbol.st_size, guard});
        }
    }
    std::sort(symbols.begin(), symbols.end(), [](auto &a, auto &b) { return a.offset < b.offset; });
}

static int first_object(dl_phdr_info *info, size_t, void *out) {
    load_bias = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS) tls_size = info->dlpi_phdr[i].p_memsz;
    *static_cast<void **>(out) = info->dlpi_tls_data;
    return 1;
}

void shared_symbols_load() {
    int fd = open("/proc/self/exe", O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) return;
    void *file = mmap(nullptr, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file != MAP_FAILED) read_table(static_cast<const char *>(file));
    void *unused;
    dl_iterate_phdr(first_object, &unused);
}

char *shared_base(size_t *size) {
    static __thread char *base;
    void *tls = nullptr;
    if (!base) {
        dl_iterate_phdr(first_object, &tls);
        base = static_cast<char *>(tls);
    }
    *size = tls_size;
    return base;
}

const SharedSymbol *shared_symbol_at(size_t offset) {
    size_t low = 0, high = symbols.size();
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (symbols[middle].offset <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0) return nullptr;
    const SharedSymbol &s = symbols[low - 1];
    return offset < s.offset + s.size ? &s : nullptr;
}

void shared_poison() {
    size_t size;
    char *base = shared_base(&size);
    for (const SharedSymbol &s : symbols)
        if (!s.guard) memset(base + s.offset, settings().sample ? 0 : 0xff, s.size);
}

const char *function_name(const void *function) {
    auto found = functions.find((uint64_t)((uintptr_t)function - load_bias));
    return found == functions.end() ? nullptr : found->second;
}

/* Shared variables of the kernel itself; those of functions that it calls are not known to be its. */
size_t static_shared_of(const void *function) {
    const char *name = function_name(function);
    if (!name) return 0;
    std::string prefix = std::string("_ZZ") + (name + 2) + "E";
    size_t total = 0;
    for (const SharedSymbol &s : symbols)
        if (strncmp(s.name, prefix.c_str(), prefix.size()) == 0) total = (total + 15) / 16 * 16 + s.size;
    return total;
}

} // namespace simt
