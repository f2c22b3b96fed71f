/* Loaded in front of the C library (LD_PRELOAD), lets a program meet a fault at a chosen one of the calls by
 * which it changes files. FAULT says which:
 *
 *   list:FILE    none; at exit the calls' names are written to FILE, one a line, a write with its descriptor
 *   kill:N       SIGKILL at call N, which is not made; of a write the first half is
 *   full:N       the disk is full from call N on: no write, no new file or folder; half of a write goes
 * through
 *
 * Counted are open and openat that may create a file, mkdir, write to a regular file, fsync, ftruncate,
 * renameat, unlink and unlinkat. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LISTED 4096

static atomic_long calls;
static char list[LISTED][16];

/* The function that stands behind ours. */
#define REAL(name) ((__typeof__(&name))(uintptr_t)dlsym(RTLD_NEXT, #name))

static long planned(const char *kind) {
    const char *fault = getenv("FAULT");
    size_t length = strlen(kind);
    return fault && !strncmp(fault, kind, length) ? strtol(fault + length, NULL, 10) : 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static long count_call(const char *name, int fd) {
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (number <= LISTED) snprintf(list[number - 1], sizeof list[0], fd < 0 ? "%s" : "%s %d", name, fd);
    return number;
}

/* Counts a call; true when it finds the disk full. */
static int meet_fault(const char *name, int grows) {
    long number = count_call(name, -1), full = planned("full:");
    if (number == planned("kill:")) die();
    return grows && full && number >= full;
}

__attribute__((destructor)) static void report(void) {
    const char *fault = getenv("FAULT");
    FILE *file = fault && !strncmp(fault, "list:", 5) ? fopen(fault + 5, "w") : NULL;
    if (!file) return;
    for (long i = 0; i < atomic_load(&calls) && i < LISTED; i++) fprintf(file, "%s\n", list[i]);
    fclose(file);
}

static int no_space(void) {
    errno = ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return REAL(write)(fd, bytes, count);
    long number = count_call("write", fd), full = planned("full:");
    if (number == planned("kill:")) {
        (void)!REAL(write)(fd, bytes, count / 2);
        die();
    }
    if (full && number >= full) {
        if (number > full || count < 2) return no_space();
        count /= 2;
    }
    return REAL(write)(fd, bytes, count);
}

int openat(int folder, const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    int grows = flags & O_CREAT && faccessat(folder, path, F_OK, 0) != 0;
    if (flags & O_CREAT && meet_fault("openat", grows)) return no_space();
    return REAL(openat)(folder, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return openat(AT_FDCWD, path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    return meet_fault("mkdir", access(path, F_OK) != 0) ? no_space() : REAL(mkdir)(path, mode);
}

int fsync(int fd) {
    meet_fault("fsync", 0);
    return REAL(fsync)(fd);
}

int ftruncate(int fd, off_t length) {
    meet_fault("ftruncate", 0);
    return REAL(ftruncate)(fd, length);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    meet_fault("renameat", 0);
    return REAL(renameat)(from_folder, from, to_folder, to);
}

int unlink(const char *path) {
    meet_fault("unlink", 0);
    return REAL(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    meet_fault("unlinkat", 0);
    return REAL(unlinkat)(folder, path, flags);
}
