#include "train/run_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/atomic_file.h"

#define METRICS_HEADER                                                                                       \
    "epoch,train_loss,train_top1,val_loss,val_top1,val_top5,lr,tau,seconds,images_per_second,data_wait"

const char *tn_run_folder_file(const tn_run_folder *folder, const char *name, char *out) {
    snprintf(out, TN_RUN_PATH, "%s/%s", folder->path, name);
    return out;
}

static bool exists(const tn_run_folder *folder, const char *name) {
    char path[TN_RUN_PATH];
    return access(tn_run_folder_file(folder, name, path), F_OK) == 0;
}

static tn_status make_folders(tn_run_folder *folder) {
    const char *path = folder->path;
    char part[4096];
    for (size_t i = 1; path[i - 1]; i++) {
        if (path[i] != '/' && path[i] != 0) continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) == 0)
            folder->made = folder->made ? folder->made : i;
        else if (errno != EEXIST)
            return tn_fail(TN_ERR_IO, "--out %s: cannot make the folder %s: %s", path, part, strerror(errno));
    }
    return TN_OK;
}

/* Best effort: a folder that is not empty any more stays. */
static void remove_made_folders(tn_run_folder *folder) {
    if (!folder->made) return;
    for (size_t i = strlen(folder->path); i >= folder->made; i--) {
        if (folder->path[i] != '/' && folder->path[i] != 0) continue;
        folder->path[i] = 0;
        (void)rmdir(folder->path);
    }
}

/* Whether a name is that of a file that a run writes. */
static bool is_run_file(const char *name) {
    static const char *const names[] = {"config.toml",      "log.jsonl",        "metrics.csv", "probes.csv",
                                        "last.safetensors", "best.safetensors", "report.html"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i])) return true;
    int epoch, end = 0;
    if (sscanf(name, "epoch-%d.safetensors%n", &epoch, &end) == 1 && end > 0 && !name[end]) return true;
    return !strncmp(name, "events.out.tfevents.", 20);
}

static tn_status remove_file(const tn_run_folder *folder, const char *name) {
    char path[TN_RUN_PATH];
    if (unlink(tn_run_folder_file(folder, name, path)) == 0 || errno == ENOENT) return TN_OK;
    return tn_fail(TN_ERR_IO, "%s: cannot remove: %s", path, strerror(errno));
}

tn_status tn_run_folder_clear(const tn_run_folder *folder) {
    DIR *dir = opendir(folder->path);
    if (!dir) return tn_fail(TN_ERR_IO, "%s: cannot read the folder: %s", folder->path, strerror(errno));
    tn_status status = remove_file(folder, "last.safetensors");
    if (status == TN_OK) status = remove_file(folder, "config.toml");
    for (struct dirent *entry; status == TN_OK && (entry = readdir(dir));)
        if (is_run_file(entry->d_name)) status = remove_file(folder, entry->d_name);
    closedir(dir);
    return status;
}

static tn_status open_folder(tn_run_folder *folder, bool resume, bool overwrite) {
    TN_TRY(make_folders(folder));
    folder->lock = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->lock < 0)
        return tn_fail(TN_ERR_IO, "--out %s: cannot open the folder: %s", folder->path, strerror(errno));
    if (flock(folder->lock, LOCK_EX | LOCK_NB) != 0)
        return tn_fail(TN_ERR_USAGE,
                       "--out %s: another process is training in this folder; wait for it or choose another",
                       folder->path);
    TN_TRY(tn_atomic_sweep(folder->path, NULL));
    bool holds =
        exists(folder, "config.toml") || exists(folder, "log.jsonl") || exists(folder, "last.safetensors");
    if (holds && !resume && !overwrite)
        return tn_fail(TN_ERR_USAGE,
                       "--out %s holds another run; give --resume to continue it, --overwrite to replace it, "
                       "or another folder",
                       folder->path);
    folder->has_run = !overwrite && exists(folder, "config.toml");
    folder->has_checkpoint = !overwrite && exists(folder, "last.safetensors");
    return TN_OK;
}

tn_status tn_run_folder_open(tn_run_folder *folder, const char *path, bool resume, bool overwrite) {
    *folder = (tn_run_folder){.lock = -1};
    if (strlen(path) >= sizeof folder->path) return tn_fail(TN_ERR_USAGE, "--out: the path is too long");
    strcpy(folder->path, path);
    return open_folder(folder, resume, overwrite);
}

tn_status tn_run_folder_open_logs(tn_run_folder *folder, const tn_position *position) {
    char path[TN_RUN_PATH];
    TN_TRY(
        tn_line_log_open(tn_run_folder_file(folder, "log.jsonl", path), position->log_bytes, &folder->log));
    TN_TRY(tn_line_log_open(tn_run_folder_file(folder, "metrics.csv", path), position->metrics_bytes,
                            &folder->metrics));
    if (position->metrics_bytes == 0) TN_TRY(tn_line_log_append(folder->metrics, METRICS_HEADER));
    TN_TRY(tn_tfevents_open(folder->path, &folder->events));
    if (position->step == 0) return TN_OK;
    return tn_tfevents_session_start(folder->events, position->step + (position->rows == 0), -1);
}

tn_status tn_run_folder_close(tn_run_folder *folder) {
    tn_status log = tn_line_log_close(folder->log), metrics = tn_line_log_close(folder->metrics);
    tn_status events = tn_tfevents_close(folder->events);
    remove_made_folders(folder);
    if (folder->lock >= 0) close(folder->lock); /* also unlocks; nothing was written through it */
    folder->log = folder->metrics = NULL;
    folder->events = NULL;
    folder->lock = -1;
    return log != TN_OK ? log : metrics != TN_OK ? metrics : events;
}

tn_status tn_run_folder_write_config(tn_run_folder *folder, const tn_options *options) {
    char path[TN_RUN_PATH], *text;
    tn_atomic_file *file;
    TN_TRY(tn_options_print_config(options, &text));
    tn_status status = tn_atomic_begin(tn_run_folder_file(folder, "config.toml", path), &file);
    if (status == TN_OK) {
        status = tn_atomic_write(file, text, strlen(text));
        if (status == TN_OK)
            status = tn_atomic_commit(file);
        else
            tn_atomic_abort(file);
    }
    tn_options_free_text(text);
    if (status == TN_OK) folder->made = 0;
    return status;
}

json_t *tn_json_real(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

tn_status tn_run_folder_log(tn_run_folder *folder, json_t *line) {
    char *text = line ? json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(line);
    if (!text) return tn_fail(TN_ERR_MEMORY, "log.jsonl: out of memory");
    tn_status status = tn_line_log_append(folder->log, text);
    free(text);
    return status;
}

tn_status tn_run_folder_sync(tn_run_folder *folder, tn_position *position) {
    TN_TRY(tn_tfevents_flush(folder->events));
    TN_TRY(tn_line_log_sync(folder->log));
    TN_TRY(tn_line_log_sync(folder->metrics));
    position->log_bytes = (long)tn_line_log_position(folder->log);
    position->metrics_bytes = (long)tn_line_log_position(folder->metrics);
    return TN_OK;
}

tn_status tn_run_folder_prune(const tn_run_folder *folder, int keep) {
    struct dirent **names;
    int count = scandir(folder->path, &names, NULL, alphasort), epochs = 0;
    if (count < 0) return tn_fail(TN_ERR_IO, "%s: cannot read the folder: %s", folder->path, strerror(errno));
    tn_status status = TN_OK;
    /* Newest first: four digits sort as text up to epoch 9999, and longer numbers are rare enough to keep. */
    for (int i = count - 1; i >= 0; i--) {
        bool epoch = !strncmp(names[i]->d_name, "epoch-", 6) && is_run_file(names[i]->d_name);
        if (epoch && ++epochs > keep && status == TN_OK) status = remove_file(folder, names[i]->d_name);
        free(names[i]);
    }
    free(names);
    return status;
}

static tn_status resumed_options(tn_run_folder *folder, const tn_options *given, tn_options **out) {
    char path[TN_RUN_PATH];
    TN_TRY(tn_options_create("train", out));
    TN_TRY(tn_options_load(*out, tn_run_folder_file(folder, "config.toml", path)));
    return tn_options_resume(*out, given);
}

tn_status tn_run_folder_options(tn_run_folder *folder, const tn_options *given, tn_options **out) {
    TN_TRY(tn_run_folder_open(folder, given->out, given->resume, given->overwrite));
    if (given->resume && folder->has_run) return resumed_options(folder, given, out);
    if (folder->has_checkpoint)
        return tn_fail(TN_ERR_DATA,
                       "--out %s: last.safetensors without config.toml: not a run that can be resumed",
                       folder->path);
    char *text;
    TN_TRY(tn_options_create("train", out));
    TN_TRY(tn_options_print_config(given, &text));
    tn_status status = tn_options_load_text(*out, text, strlen(text), "options");
    tn_options_free_text(text);
    return status;
}
