#include "report/table_runs.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/number.h"
#include "base/option_table.h"
#include "base/pool.h"
#include "report/child.h"

enum { ARGUMENTS_MAX = TN_OPTIONS_MAX + 8, PATH_ROOM = 4400, POLL_MILLISECONDS = 20 };

void tn_report_say(const tn_report_hooks *hooks, bool is_result, const char *format, ...) {
    char line[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (hooks && hooks->line) hooks->line(hooks->context, line, is_result);
}

static void run_path(const tn_table *table, int index, const char *extension, char out[PATH_ROOM]) {
    snprintf(out, PATH_ROOM, "%s/runs/%s%s", table->folder, table->plan->runs[index].id, extension);
}

/* ---- what is there ---- */

/* Options that change no result, or that --resume may change. */
static bool is_free(const char *name) {
    static const char *const free_names[] = {"out",  "threads", "device",       "save-every",
                                             "keep", "profile", "deterministic"};
    for (size_t i = 0; i < sizeof free_names / sizeof *free_names; i++)
        if (!strcmp(free_names[i], name)) return true;
    return false;
}

/* The same data set may stand elsewhere. */
static bool same_value(const char *name, const char *a, const char *b) {
    if (!strcmp(a, b)) return true;
    size_t kind = strcspn(a, ":");
    return !strcmp(name, "data") && strncmp(a, "synthetic:", 10) != 0 && !strncmp(a, b, kind + 1);
}

/* A run that is there must be the one that the recipe means now. */
static tn_status check_settings(const tn_table *table, int index, const tn_run_record *record) {
    char *text;
    tn_settings planned;
    TN_TRY(tn_options_print_config(table->plan->runs[index].options, &text));
    tn_status status = tn_settings_parse(text, strlen(text), "options", &planned);
    tn_options_free_text(text);
    TN_TRY(status);
    for (size_t i = 0; i < planned.count && status == TN_OK; i++) {
        const tn_setting *now = &planned.items[i];
        const char *then = tn_settings_find(&record->settings, now->name);
        if (!then || is_free(now->name) || same_value(now->name, now->value, then)) continue;
        status =
            tn_fail(TN_ERR_USAGE,
                    "%s holds a run with %s = \"%s\", where the recipe now says \"%s\"; remove that folder, "
                    "or choose another --out",
                    record->folder, now->name, tn_make_legible(then).text, tn_make_legible(now->value).text);
    }
    tn_settings_free(&planned);
    return status;
}

static tn_status find_reason(const tn_table *table, int index, const tn_run_record *record, tn_string *out) {
    char output[PATH_ROOM];
    if (record->state >= TN_RUN_DIVERGED) return tn_string_append(out, "", 0);
    run_path(table, index, ".output", output);
    TN_TRY(tn_child_last_error(output, out));
    if (out->length == 0)
        TN_TRY(
            tn_string_printf(out, "%s", record->state == TN_RUN_ABSENT ? "not run yet" : "not finished yet"));
    return TN_OK;
}

tn_status tn_table_read_run(tn_table *table, int index) {
    char folder[PATH_ROOM];
    tn_table_result *result = &table->results[index];
    tn_run_record *record;
    tn_string reason = {0};
    run_path(table, index, "", folder);
    TN_TRY(tn_run_record_open(folder, &record));
    tn_status status = record->start ? check_settings(table, index, record) : TN_OK;
    if (status == TN_OK) status = find_reason(table, index, record, &reason);
    if (status != TN_OK) {
        tn_run_record_free(record);
        tn_string_free(&reason);
        return status;
    }
    tn_run_record_free(result->record);
    tn_free(result->reason);
    *result = (tn_table_result){record, reason.data, result->made};
    return TN_OK;
}

/* ---- commands ---- */

typedef struct arguments {
    char *words[ARGUMENTS_MAX];
    int count;
} arguments;

static tn_status add_word(arguments *a, const char *text) {
    TN_ASSERT(a->count + 1 < ARGUMENTS_MAX);
    return tn_strdup(&a->words[a->count++], text);
}

static void free_words(arguments *a) {
    for (int i = 0; i < a->count; i++) tn_free(a->words[i]);
}

static tn_status add_option(arguments *a, const char *name, const char *value) {
    tn_string word = {0};
    tn_status status = tn_string_printf(&word, "--%s=%s", name, value);
    if (status == TN_OK) status = add_word(a, word.data);
    tn_string_free(&word);
    return status;
}

/* All options of the run that were given, in the order of the table of options. */
static tn_status add_options(arguments *a, const tn_options *options) {
    const tn_command *command;
    TN_TRY(tn_command_find("train", &command));
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++) {
        tn_string value = {0};
        if (row->command_line_only || !options->given[row - tn_option_rows]) continue;
        tn_status status = tn_option_print(row, options, &value);
        if (status == TN_OK) status = add_option(a, row->name, value.data);
        tn_string_free(&value);
        TN_TRY(status);
    }
    return TN_OK;
}

/* The device of --device for the `slot`-th job. */
static void choose_device(const char *list, int slot, char out[64]) {
    int count = 1;
    for (const char *c = list; *c; c++) count += *c == ',';
    for (int i = 0; i <= slot % count; i++) tn_next_word(&list, ',', out, 64);
}

static tn_status add_machine(arguments *a, const tn_table *table, int slot) {
    const tn_options *o = table->options;
    char device[64] = "auto", number[16];
    choose_device(o->device, slot, device);
    if (strcmp(device, "auto") != 0) TN_TRY(add_option(a, "device", device));
    int threads = o->threads;
    bool cpu = strncmp(device, "cuda", 4) != 0;
    /* Jobs share the cores. */
    if (threads == 0 && o->jobs > 1 && cpu) threads = (int)fmax(1, tn_processor_count() / o->jobs);
    snprintf(number, sizeof number, "%d", threads);
    return threads > 0 ? add_option(a, "threads", number) : TN_OK;
}

static tn_status make_arguments(const tn_table *table, int index, const char *program, int slot,
                                arguments *a) {
    char folder[PATH_ROOM];
    *a = (arguments){0};
    run_path(table, index, "", folder);
    TN_TRY(add_word(a, program));
    TN_TRY(add_word(a, "train"));
    TN_TRY(add_options(a, table->plan->runs[index].options));
    if (slot >= 0) TN_TRY(add_machine(a, table, slot));
    TN_TRY(add_option(a, "out", folder));
    return slot >= 0 ? add_word(a, "--resume") : TN_OK;
}

/* A word as a shell reads it back. */
static tn_status put_quoted(tn_string *out, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,+%@^";
    if (strspn(word, plain) == strlen(word)) return tn_string_printf(out, "%s", word);
    TN_TRY(tn_string_printf(out, "'"));
    for (; *word; word++)
        TN_TRY(tn_string_append(out, *word == '\'' ? "'\\''" : word, *word == '\'' ? 4 : 1));
    return tn_string_printf(out, "'");
}

tn_status tn_table_command(const tn_table *table, int index, tn_string *out) {
    arguments a;
    tn_status status = make_arguments(table, index, "taunet", -1, &a);
    for (int i = 0; i < a.count && status == TN_OK; i++) {
        if (i > 0) status = tn_string_append(out, " ", 1);
        if (status == TN_OK) status = put_quoted(out, a.words[i]);
    }
    free_words(&a);
    return status;
}

/* ---- children ---- */

typedef struct job {
    pid_t pid; /* 0: free */
    int run;
    double started;
} job;

typedef struct queue {
    tn_table *table;
    const char *program;
    const tn_report_hooks *hooks;
    job *jobs;
    int active, next, finished, todo;
    int share, shares; /* of a Slurm job array */
    bool stopping;
} queue;

/* A number of Slurm's environment; false when it is not there. */
static bool read_slurm(const char *name, double *out) {
    const char *text = getenv(name);
    return text && tn_number_parse(text, out);
}

/* Tasks of an array take turns with the runs. */
static void find_share(queue *q) {
    double id, count, first = 0, step = 1;
    q->shares = 1;
    if (!read_slurm("SLURM_ARRAY_TASK_ID", &id) || !read_slurm("SLURM_ARRAY_TASK_COUNT", &count)) return;
    read_slurm("SLURM_ARRAY_TASK_MIN", &first);
    read_slurm("SLURM_ARRAY_TASK_STEP", &step);
    double share = step > 0 ? floor((id - first) / step) : -1;
    if (!(count >= 1 && count < 1e6 && share >= 0 && share < count)) return;
    q->shares = (int)count;
    q->share = (int)share;
    tn_report_say(q->hooks, false, "task %d of %d of a Slurm array", q->share + 1, q->shares);
}

static bool is_mine(const queue *q, int run) {
    return run % q->shares == q->share && q->table->results[run].record->state < TN_RUN_DIVERGED;
}

static tn_status start_job(queue *q, int slot) {
    char output[PATH_ROOM];
    arguments a;
    job *j = &q->jobs[slot];
    j->run = q->next++;
    j->started = tn_now();
    run_path(q->table, j->run, ".output", output);
    tn_status status = make_arguments(q->table, j->run, q->program, slot, &a);
    if (status == TN_OK) status = tn_child_start(a.words, output, &j->pid);
    free_words(&a);
    if (status != TN_OK) j->pid = 0;
    q->active += status == TN_OK;
    q->table->results[j->run].made = true;
    return status;
}

static tn_status end_job(queue *q, job *j) {
    j->pid = 0;
    q->active--;
    q->finished++;
    TN_TRY(tn_table_read_run(q->table, j->run));
    const tn_table_result *result = &q->table->results[j->run];
    tn_curve_kind metric = q->table->plan->metric;
    const tn_curve *curve = &result->record->curves[metric];
    tn_string value = {0};
    tn_status status = tn_string_append(&value, "", 0);
    if (curve->count) {
        status = tn_string_printf(&value, ": %s ", tn_curve_describe(metric).label);
        if (status == TN_OK) status = tn_metric_print(metric, tn_curve_last(curve), &value);
    }
    if (status == TN_OK)
        tn_report_say(q->hooks, false, "%d/%d  %s  %s%s%s%s  (%.0f s)", q->finished, q->todo,
                      q->table->plan->runs[j->run].id, tn_run_state_name(result->record->state), value.data,
                      *result->reason ? ": " : "", result->reason, tn_now() - j->started);
    tn_string_free(&value);
    return status;
}

/* Ends when nothing runs and nothing is left. After a failure no job is started any more, and those that run
 * are asked to stop. */
static tn_status work(queue *q) {
    tn_status first = TN_OK;
    const struct timespec pause = {0, POLL_MILLISECONDS * 1000000L};
    int count = q->table->plan->run_count, slots = q->table->options->jobs;
    for (;;) {
        bool stop = (q->hooks && q->hooks->stop && *q->hooks->stop) || first != TN_OK;
        for (int i = 0; i < slots; i++) {
            job *j = &q->jobs[i];
            int code;
            if (j->pid && stop && !q->stopping) tn_child_interrupt(j->pid);
            if (j->pid && tn_child_ended(j->pid, &code)) {
                tn_status status = end_job(q, j);
                first = first == TN_OK ? status : first;
            }
            while (q->next < count && !is_mine(q, q->next)) q->next++;
            if (!j->pid && !stop && first == TN_OK && q->next < count) first = start_job(q, i);
        }
        q->stopping |= stop;
        if (q->active == 0 && (stop || first != TN_OK || q->next >= count)) break;
        nanosleep(&pause, NULL);
    }
    if (first == TN_OK && q->stopping && q->finished < q->todo)
        first = tn_fail(TN_ERR_STOPPED, "stopped after %d of %d runs; the same command goes on from there",
                        q->finished, q->todo);
    return first;
}

tn_status tn_table_make_runs(tn_table *table, const char *program, const tn_report_hooks *hooks) {
    queue q = {.table = table, .program = program, .hooks = hooks};
    find_share(&q);
    for (int i = 0; i < table->plan->run_count; i++) q.todo += is_mine(&q, i);
    tn_report_say(hooks, false, "%s, scale %s: %d runs, %d to do here, %d at a time, in %s/runs",
                  table->plan->name, table->plan->scale->heading, table->plan->run_count, q.todo,
                  table->options->jobs, table->folder);
    TN_TRY(tn_alloc(&q.jobs, (size_t)table->options->jobs, sizeof *q.jobs, "jobs"));
    tn_status status = work(&q);
    tn_free(q.jobs);
    return status;
}
