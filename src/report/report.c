/* taunet report: finds runs in folders and writes the page. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/atomic_file.h"
#include "io/file_io.h"
#include "report/page.h"
#include "report/recipe.h"
#include "report/table_runs.h"
#include "taunet/report.h"

enum { PATH_ROOM = 4400, DEPTH_MAX = 6 };

static bool has_file(const char *folder, const char *name) {
    char path[PATH_ROOM];
    int size = snprintf(path, sizeof path, "%s/%s", folder, name);
    return size < PATH_ROOM && access(path, R_OK) == 0;
}

static tn_status add_run(tn_page *page, const char *folder) {
    char *path = realpath(folder, NULL);
    tn_run_record *record;
    if (!path) return tn_fail_errno("open the folder", folder);
    for (size_t i = 0; i < page->run_count; i++)
        if (!strcmp(page->runs[i].path, path)) {
            free(path);
            return TN_OK;
        }
    tn_status status = tn_run_record_open(folder, &record);
    if (status == TN_OK && !record->start) {
        tn_run_record_free(record); /* began and never came to its first line */
        free(path);
        return TN_OK;
    }
    if (status == TN_OK) {
        status = tn_grow(&page->runs, &page->run_capacity, page->run_count + 1, sizeof *page->runs, "runs");
        if (status == TN_OK) page->runs[page->run_count++].record = record;
        if (status == TN_OK) status = tn_strdup(&page->runs[page->run_count - 1].path, path);
        if (status != TN_OK && (page->run_count == 0 || page->runs[page->run_count - 1].record != record))
            tn_run_record_free(record);
    }
    free(path);
    return status;
}

/* The section that `taunet theory` left; nothing else that has its name. */
static tn_status add_section(tn_page *page, const char *folder) {
    static const char opening[] = "<section class=\"tn-theory\"";
    char path[PATH_ROOM], *text = NULL;
    size_t size;
    tn_status status = TN_OK;
    snprintf(path, sizeof path, "%s/section.html", folder);
    TN_TRY(tn_read_file(path, &text, &size, NULL));
    if (strncmp(text, opening, sizeof opening - 1) != 0)
        status = tn_fail(TN_ERR_DATA, "%s: not a section that taunet theory wrote", path);
    if (status == TN_OK)
        status = tn_grow(&page->sections, &page->section_capacity, page->section_count + 1,
                         sizeof *page->sections, "sections");
    if (status == TN_OK)
        page->sections[page->section_count++] = text;
    else
        tn_free(text);
    return status;
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

/* A folder is a run, the result of an experiment, or holds such folders. */
static tn_status find_runs(tn_page *page, const char *folder, int depth) {
    if (has_file(folder, "log.jsonl")) return add_run(page, folder);
    if (has_file(folder, "section.html")) TN_TRY(add_section(page, folder));
    struct dirent **names;
    int count = depth < DEPTH_MAX ? scandir(folder, &names, is_visible, alphasort) : 0;
    if (count < 0) return tn_fail_errno("read the folder", folder);
    tn_status status = TN_OK;
    for (int i = 0; i < count; i++) {
        char path[PATH_ROOM];
        struct stat info;
        int size = snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        if (status == TN_OK && size < PATH_ROOM && lstat(path, &info) == 0 && S_ISDIR(info.st_mode))
            status = find_runs(page, path, depth + 1);
        free(names[i]);
    }
    if (count > 0 || depth < DEPTH_MAX) free(names);
    return status;
}

/* Labels are paths without the folders that all runs share. */
static tn_status label_runs(tn_page *page) {
    if (page->run_count == 0) return TN_OK;
    const char *first = page->runs[0].path;
    const char *slash = strrchr(first, '/');
    size_t shared = slash ? (size_t)(slash - first) + 1 : 0;
    for (size_t i = 1; i < page->run_count; i++) {
        size_t same = 0;
        while (same < shared && page->runs[i].path[same] == first[same]) same++;
        while (same > 0 && first[same - 1] != '/') same--;
        shared = same;
    }
    for (size_t i = 0; i < page->run_count; i++)
        TN_TRY(tn_strdup(&page->runs[i].label, tn_make_legible(page->runs[i].path + shared).text));
    return TN_OK;
}

static void free_page(tn_page *page) {
    for (size_t i = 0; i < page->run_count; i++) {
        tn_run_record_free(page->runs[i].record);
        tn_free(page->runs[i].path);
        tn_free(page->runs[i].label);
    }
    for (size_t i = 0; i < page->section_count; i++) tn_free(page->sections[i]);
    tn_free(page->runs);
    tn_free(page->sections);
}

static tn_status find_all(tn_page *page, const char *folders) {
    char folder[4096];
    while (tn_next_word(&folders, '\n', folder, sizeof folder)) {
        size_t before = page->run_count + page->section_count;
        TN_TRY(find_runs(page, folder, 0));
        if (page->run_count + page->section_count == before)
            return tn_fail(TN_ERR_USAGE, "%s: no run in it or below that is not named before (no log.jsonl)",
                           tn_make_legible(folder).text);
    }
    return label_runs(page);
}

static tn_status find_output(const tn_options *options, char out[PATH_ROOM]) {
    bool several = strchr(options->runs, '\n') != NULL;
    if (!*options->out && several)
        return tn_fail(TN_ERR_USAGE, "report of several folders needs --out FILE (file to write)");
    int size = *options->out ? snprintf(out, PATH_ROOM, "%s", options->out)
                             : snprintf(out, PATH_ROOM, "%s/report.html", options->runs);
    return size < PATH_ROOM ? TN_OK : tn_fail(TN_ERR_USAGE, "--out: the path is too long");
}

tn_status tn_report_run(const tn_options *options, const tn_report_hooks *hooks) {
    char path[PATH_ROOM];
    tn_page page = {0};
    tn_string text = {0};
    TN_TRY(tn_options_check(options));
    TN_TRY(find_output(options, path));
    tn_status status = find_all(&page, options->runs);
    if (status == TN_OK) status = tn_page_print(&page, &text);
    if (status == TN_OK) status = tn_atomic_replace(path, text.data, text.length);
    if (status == TN_OK)
        tn_report_say(hooks, true, "%s: %zu runs, %zu results of theory, %.0f KiB", path, page.run_count,
                      page.section_count, (double)text.length / 1024);
    tn_string_free(&text);
    free_page(&page);
    return status;
}
