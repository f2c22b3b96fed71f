/* taunet table: finds the recipe, makes the runs, writes the results. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/memory.h"
#include "io/atomic_file.h"
#include "io/file_io.h"
#include "report/table.h"
#include "report/table_runs.h"

enum { PATH_ROOM = 4400, NAME_ROOM = 128, PLACES = 3 };

/* ---- recipes ---- */

/* Folders in which recipes are looked for, in order. */
static void find_place(int index, const char *program, char out[PATH_ROOM]) {
    static const char *const places[PLACES] = {"bench/tables", "../bench/tables", "../share/taunet/tables"};
    const char *slash = strrchr(program, '/');
    if (index == 0 || !slash)
        snprintf(out, PATH_ROOM, "%s", places[index]);
    else
        snprintf(out, PATH_ROOM, "%.*s/%s", (int)(slash - program), program, places[index]);
}

static bool has_suffix(const char *text, const char *suffix) {
    size_t length = strlen(text), end = strlen(suffix);
    return length > end && !strcmp(text + length - end, suffix);
}

/* The path of a recipe, and the table's name: that of the file without its extension. */
static tn_status find_recipe(const char *recipe, const char *program, char path[PATH_ROOM],
                             char name[NAME_ROOM]) {
    const char *slash = strrchr(recipe, '/'), *last = slash ? slash + 1 : recipe;
    bool file = slash || has_suffix(recipe, ".toml");
    snprintf(path, PATH_ROOM, "%s", recipe);
    for (int i = 0; !file && i < PLACES; i++) {
        char place[PATH_ROOM];
        find_place(i, program, place);
        if (snprintf(path, PATH_ROOM, "%s/%s.toml", place, recipe) < PATH_ROOM && access(path, R_OK) == 0)
            break;
        if (i == PLACES - 1)
            return tn_fail(TN_ERR_USAGE, "no table \"%s\"; 'taunet table list' lists them",
                           tn_make_legible(recipe).text);
    }
    int length = (int)strlen(last) - (has_suffix(last, ".toml") ? 5 : 0);
    int size = snprintf(name, NAME_ROOM, "%.*s", length, last);
    if (size > 0 && size < NAME_ROOM &&
        strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == (size_t)size)
        return TN_OK;
    return tn_fail(TN_ERR_USAGE, "\"%s\": the name of a recipe has letters, digits, '-', '_' and '.' alone",
                   tn_make_legible(recipe).text);
}

static tn_status say_recipe(const char *folder, const char *file, const tn_report_hooks *hooks) {
    char path[2 * PATH_ROOM];
    tn_recipe *recipe;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    TN_TRY(tn_recipe_open(path, &recipe));
    const char *title = tn_section_key(recipe->sections, "title");
    tn_report_say(hooks, true, "%-16.*s%s", (int)strlen(file) - 5, file, title ? title : "");
    tn_recipe_free(recipe);
    return TN_OK;
}

static int is_recipe(const struct dirent *entry) {
    return has_suffix(entry->d_name, ".toml");
}

static tn_status list_recipes(const char *program, const tn_report_hooks *hooks) {
    for (int i = 0; i < PLACES; i++) {
        char folder[PATH_ROOM];
        struct dirent **names;
        find_place(i, program, folder);
        int count = scandir(folder, &names, is_recipe, alphasort);
        if (count <= 0) continue;
        tn_status status = TN_OK;
        for (int k = 0; k < count; k++) {
            if (status == TN_OK) status = say_recipe(folder, names[k]->d_name, hooks);
            free(names[k]);
        }
        free(names);
        return status;
    }
    return tn_fail(TN_ERR_USAGE, "no recipes found in bench/tables, nor beside the program");
}

/* ---- results ---- */

/* Writes a result file whose text `status` says could be made; frees the text. */
static tn_status write_result(const tn_table *table, const char *name, tn_status status, tn_string *text) {
    char path[PATH_ROOM + NAME_ROOM + 64];
    snprintf(path, sizeof path, "%s/%s", table->folder, name);
    if (status == TN_OK) status = tn_atomic_replace(path, text->data, text->length);
    tn_string_free(text);
    return status;
}

static tn_status write_figure(const tn_table *table, const tn_section *section, tn_string *figures) {
    tn_string name = {0}, svg = {0};
    tn_status status = tn_table_plot(table, section, &name, &svg);
    if (status == TN_OK && svg.length > 0) {
        status = write_result(table, name.data, TN_OK, &svg);
        if (status == TN_OK) status = tn_string_printf(figures, "%s\n", name.data);
    }
    tn_string_free(&svg);
    tn_string_free(&name);
    return status;
}

/* The cells of the Markdown, for the terminal: from the first table row on. */
static void say_markdown(const char *text, const tn_report_hooks *hooks) {
    for (const char *at = text; *at;) {
        size_t length = strcspn(at, "\n");
        if (*at == '|' || *at == '#' || *at == '*') tn_report_say(hooks, true, "%.*s", (int)length, at);
        at += length + (at[length] == '\n');
    }
}

static tn_status write_results(const tn_table *table, const tn_report_hooks *hooks) {
    char name[NAME_ROOM + 8];
    tn_string figures = {0}, text = {0};
    tn_status status = tn_string_append(&figures, "", 0);
    for (const tn_section *s = NULL;
         status == TN_OK && (s = tn_recipe_next(table->plan->recipe, TN_SECTION_PLOT, s));)
        if (tn_table_plan_has(table->plan, s)) status = write_figure(table, s, &figures);
    if (status == TN_OK) {
        snprintf(name, sizeof name, "%s.csv", table->plan->name);
        status = write_result(table, name, tn_table_print_csv(table, &text), &text);
    }
    if (status == TN_OK) {
        snprintf(name, sizeof name, "%s.json", table->plan->name);
        status = write_result(table, name, tn_table_print_json(table, &text), &text);
    }
    if (status == TN_OK) {
        snprintf(name, sizeof name, "%s.md", table->plan->name);
        status = tn_table_print_markdown(table, figures.data, &text);
        if (status == TN_OK) say_markdown(text.data, hooks);
        status = write_result(table, name, status, &text);
    }
    if (status == TN_OK)
        tn_report_say(hooks, true, "written to %s: %s, %s.csv, %s.json and the figures there", table->folder,
                      name, table->plan->name, table->plan->name);
    tn_string_free(&figures);
    return status;
}

/* Tasks of an array read and write in turn: the last one sees all runs. */
static tn_status publish(tn_table *table, const tn_report_hooks *hooks) {
    int lock = open(table->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0) return tn_fail_errno("open the folder", table->folder);
    tn_status status = TN_OK;
    while (flock(lock, LOCK_EX) != 0)
        if (errno != EINTR) {
            status = tn_fail_errno("lock the folder", table->folder);
            break;
        }
    for (int i = 0; i < table->plan->run_count && status == TN_OK; i++) status = tn_table_read_run(table, i);
    if (status == TN_OK) status = tn_atomic_sweep(table->folder, NULL);
    if (status == TN_OK) status = write_results(table, hooks);
    close(lock); /* nothing was written through it */
    return status;
}

/* After everything is written: what went wrong with the runs that were made here. */
static tn_status judge_runs(const tn_table *table) {
    int failed = -1, count = 0, ended = 0, absent = -1;
    for (int i = 0; i < table->plan->run_count; i++) {
        tn_run_state state = table->results[i].record->state;
        ended += state >= TN_RUN_DIVERGED;
        if (!table->results[i].made) continue;
        if (state == TN_RUN_ABSENT && absent < 0) absent = i;
        if (state == TN_RUN_UNFINISHED && count++ == 0) failed = i;
    }
    if (count > 0)
        return tn_fail(TN_ERR_DATA, "%d of %d runs failed on the way; the first is %s: %s", count,
                       table->plan->run_count, table->plan->runs[failed].id, table->results[failed].reason);
    if (ended == 0 && absent >= 0)
        return tn_fail(TN_ERR_DATA, "no run of %s could start; the first is %s: %s", table->plan->name,
                       table->plan->runs[absent].id, table->results[absent].reason);
    return TN_OK;
}

/* ---- the command ---- */

static tn_status list_runs(tn_table *table, const tn_report_hooks *hooks) {
    for (int i = 0; i < table->plan->run_count; i++) {
        tn_string command = {0};
        TN_TRY(tn_table_read_run(table, i));
        tn_status status = tn_table_command(table, i, &command);
        if (status == TN_OK)
            tn_report_say(hooks, true, "%s  # %s", command.data,
                          tn_run_state_name(table->results[i].record->state));
        tn_string_free(&command);
        TN_TRY(status);
    }
    return TN_OK;
}

static tn_status run_table(tn_table *table, const char *program, const tn_report_hooks *hooks) {
    char runs[PATH_ROOM];
    if (table->options->list) return list_runs(table, hooks);
    snprintf(runs, sizeof runs, "%s/runs", table->folder);
    tn_status status = tn_make_folders(runs);
    if (status != TN_OK) return tn_fail_prefix(status, "--out %s", table->folder);
    for (int i = 0; i < table->plan->run_count; i++) TN_TRY(tn_table_read_run(table, i));
    if (!table->options->collect) TN_TRY(tn_table_make_runs(table, program, hooks));
    TN_TRY(publish(table, hooks));
    return table->options->collect ? TN_OK : judge_runs(table);
}

static tn_status with_plan(const tn_table_plan *plan, const tn_options *options, const char *program,
                           const tn_report_hooks *hooks) {
    char folder[PATH_ROOM];
    tn_table table = {.plan = plan, .options = options, .folder = folder};
    int size = *options->out ? snprintf(folder, 4096, "%s", options->out)
                             : snprintf(folder, 4096, "runs/%s-%s", plan->name, plan->scale->heading);
    if (size >= 4000) return tn_fail(TN_ERR_USAGE, "--out: the name of the folder is too long");
    TN_TRY(tn_alloc(&table.results, (size_t)plan->run_count, sizeof *table.results, "a table"));
    tn_status status = run_table(&table, program, hooks);
    for (int i = 0; i < plan->run_count; i++) {
        tn_run_record_free(table.results[i].record);
        tn_free(table.results[i].reason);
    }
    tn_free(table.results);
    return status;
}

tn_status tn_table_run(const tn_options *options, const char *program, const tn_report_hooks *hooks) {
    char path[PATH_ROOM], name[NAME_ROOM];
    tn_recipe *recipe;
    tn_table_plan *plan;
    TN_TRY(tn_options_check(options));
    if (!strcmp(options->recipe, "list")) return list_recipes(program, hooks);
    if (options->list && options->collect)
        return tn_fail(TN_ERR_USAGE, "--list and --collect exclude each other; give one of them");
    TN_TRY(find_recipe(options->recipe, program, path, name));
    TN_TRY(tn_recipe_open(path, &recipe));
    tn_status status = tn_table_plan_create(recipe, name, options, &plan);
    if (status == TN_OK) status = with_plan(plan, options, program, hooks);
    tn_table_plan_free(plan);
    tn_recipe_free(recipe);
    return status;
}
