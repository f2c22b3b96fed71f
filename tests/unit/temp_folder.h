/* Fresh folders and small files for tests, and a limit on file sizes that makes writes fail. */
#ifndef TN_TEST_TEMP_FOLDER_H
#define TN_TEST_TEMP_FOLDER_H

#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct temp_folder {
    char path[256];
} temp_folder;

/* A new folder under $TMPDIR or /tmp. */
static inline temp_folder temp_folder_make(void) {
    temp_folder folder;
    const char *base = getenv("TMPDIR");
    snprintf(folder.path, sizeof folder.path, "%s/taunet-test-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(folder.path)) {
        perror(folder.path);
        abort();
    }
    return folder;
}

static inline int temp_folder_remove_one(const char *path, const struct stat *info, int type,
                                         struct FTW *at) {
    (void)info, (void)type, (void)at;
    return remove(path);
}

static inline void temp_folder_remove(const temp_folder *folder) {
    nftw(folder->path, temp_folder_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* FOLDER/NAME */
typedef struct temp_path {
    char text[1024];
} temp_path;

static inline temp_path temp_path_of(const temp_folder *folder, const char *name) {
    temp_path path;
    snprintf(path.text, sizeof path.text, "%s/%s", folder->path, name);
    return path;
}

static inline void temp_write(const char *path, const void *bytes, size_t count) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) {
        perror(path);
        abort();
    }
}

/* The file's bytes with a zero behind them, NULL when there is no such file; free(3) them. */
static inline char *temp_read(const char *path, size_t *count) {
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    struct stat info;
    if (fstat(fileno(file), &info) != 0) abort();
    char *bytes = calloc(1, (size_t)info.st_size + 1);
    if (!bytes || fread(bytes, 1, (size_t)info.st_size, file) != (size_t)info.st_size) abort();
    fclose(file);
    if (count) *count = (size_t)info.st_size;
    return bytes;
}

/* True when the file holds exactly this text. */
static inline int temp_holds(const char *path, const char *text) {
    size_t count = 0;
    char *bytes = temp_read(path, &count);
    int same = bytes && count == strlen(text) && memcmp(bytes, text, count) == 0;
    free(bytes);
    return same;
}

/* Number of files and folders inside. */
static inline int temp_count(const temp_folder *folder) {
    DIR *entries = opendir(folder->path);
    int count = 0;
    for (struct dirent *entry; entries && (entry = readdir(entries)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) count++;
    if (entries) closedir(entries);
    return count;
}

/* Waits, ten seconds at most, until the folder holds a file of at least `bytes` bytes. */
static inline int temp_wait_for_bytes(const temp_folder *folder, long bytes) {
    for (int tries = 0; tries < 10000; tries++, usleep(1000)) {
        int found = 0;
        DIR *entries = opendir(folder->path);
        for (struct dirent *entry; entries && (entry = readdir(entries)) != NULL;) {
            struct stat info;
            if (stat(temp_path_of(folder, entry->d_name).text, &info) == 0 && S_ISREG(info.st_mode) &&
                info.st_size >= bytes)
                found = 1;
        }
        if (entries) closedir(entries);
        if (found) return 1;
    }
    return 0;
}

/* From now on this process cannot make files longer than `bytes` (writes fail with EFBIG); -1 lifts the
 * limit. */
static inline void temp_limit_files(long bytes) {
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes < 0 ? limit.rlim_max : (rlim_t)bytes;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
}

#endif
