#include "theory/laboratory.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "theory/laboratory_parts.h"
#include "theory/linear_algebra.h"

tn_status tn_lab_create(const tn_experiment *experiment, const tn_options *options,
                        const tn_theory_hooks *hooks, tn_lab **out) {
    TN_TRY(tn_blas_open());
    TN_TRY(tn_alloc(out, 1, sizeof **out, "the laboratory"));
    (*out)->experiment = experiment;
    (*out)->options = options;
    (*out)->hooks = hooks;
    TN_ASSERT(pthread_mutex_init(&(*out)->progress, NULL) == 0);
    return TN_OK;
}

void tn_lab_free(tn_lab *lab) {
    if (!lab) return;
    tn_pool_free(lab->pool);
    pthread_mutex_destroy(&lab->progress);
    for (size_t i = 0; i < lab->claim_count; i++) {
        tn_free(lab->claims[i].claim);
        tn_free(lab->claims[i].bound);
        tn_free(lab->claims[i].measured);
    }
    for (size_t i = 0; i < lab->table_count; i++) tn_number_table_free(lab->tables[i].table);
    for (size_t i = 0; i < lab->plot_count; i++) {
        tn_plot_free(lab->plots[i].plot);
        tn_free(lab->plots[i].caption);
    }
    for (size_t i = 0; i < lab->remark_count; i++) tn_free(lab->remarks[i]);
    tn_free(lab->claims);
    tn_free(lab->tables);
    tn_free(lab->plots);
    tn_free(lab->remarks);
    tn_free(lab);
}

const char *tn_lab_folder(const tn_lab *lab) {
    return lab->options->out;
}

bool tn_lab_is_quick(const tn_lab *lab) {
    return lab->options->quick;
}

uint64_t tn_lab_seed(const tn_lab *lab) {
    return lab->options->seed;
}

static int choose(const tn_lab *lab, int given, int standard, int quick) {
    return given ? given : lab->options->quick ? quick : standard;
}

int tn_lab_width(const tn_lab *lab, int standard, int quick) {
    return choose(lab, lab->options->width, standard, quick);
}

int tn_lab_trials(const tn_lab *lab, int standard, int quick) {
    return choose(lab, lab->options->trials, standard, quick);
}

int tn_lab_samples(const tn_lab *lab, int standard, int quick) {
    return choose(lab, lab->options->samples, standard, quick);
}

static int ascending(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

tn_status tn_lab_depths(const tn_lab *lab, const int *standard, const int *quick, int least, int *depths,
                        int room, int *count) {
    const tn_float_list *given = &lab->options->depths;
    const int *own = lab->options->quick ? quick : standard;
    int n = 0;
    for (int i = 0; given->count ? i < given->count : own[i] != 0; i++) {
        double depth = given->count ? (double)given->values[i] : own[i];
        if (depth != floor(depth) || depth < least)
            return tn_fail(TN_ERR_USAGE, "--depths: %g is not a whole number of at least %d, which %s needs",
                           depth, least, lab->experiment->name);
        if (n == room) return tn_fail(TN_ERR_USAGE, "--depths: more than %d; give fewer", room);
        depths[n++] = (int)depth;
    }
    qsort(depths, (size_t)n, sizeof *depths, ascending);
    *count = 0;
    for (int i = 0; i < n; i++)
        if (i == 0 || depths[i] != depths[i - 1]) depths[(*count)++] = depths[i];
    return TN_OK;
}

tn_status tn_lab_check_stop(const tn_lab *lab) {
    if (lab->hooks && lab->hooks->stop && *lab->hooks->stop)
        return tn_fail(TN_ERR_STOPPED, "%s: stopped before its end; nothing was written",
                       lab->experiment->name);
    return TN_OK;
}

typedef struct job {
    tn_lab *lab;
    tn_status (*body)(void *context, int index, int worker);
    void *context;
} job;

static tn_status run_job(void *context, int index, int worker) {
    job *j = context;
    TN_TRY(tn_lab_check_stop(j->lab));
    return j->body(j->context, index, worker);
}

tn_status tn_lab_parallel(tn_lab *lab, int count, tn_status (*body)(void *context, int index, int worker),
                          void *context) {
    int threads = lab->options->threads ? lab->options->threads : tn_processor_count();
    job j = {lab, body, context};
    if (!lab->pool) TN_TRY(tn_pool_create(threads, NULL, &lab->pool));
    return tn_pool_run(lab->pool, count, run_job, &j);
}

/* The formatted text in fresh memory. */
static tn_status format_text(char **out, const char *format, va_list args) {
    char small[2048];
    int size = vsnprintf(small, sizeof small, format, args);
    TN_ASSERT(size >= 0 && (size_t)size < sizeof small);
    return tn_strdup(out, small);
}

void tn_lab_progress(tn_lab *lab, const char *format, ...) {
    char text[512];
    va_list args;
    if (!lab->hooks || !lab->hooks->line) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    pthread_mutex_lock(&lab->progress);
    lab->hooks->line(lab->hooks->context, text, false);
    pthread_mutex_unlock(&lab->progress);
}

tn_status tn_lab_remark(tn_lab *lab, const char *format, ...) {
    va_list args;
    TN_TRY(tn_grow(&lab->remarks, &lab->remark_capacity, lab->remark_count + 1, sizeof(char *), "a remark"));
    va_start(args, format);
    tn_status status = format_text(&lab->remarks[lab->remark_count], format, args);
    va_end(args);
    if (status == TN_OK) lab->remark_count++;
    return status;
}

tn_status tn_lab_verdict(tn_lab *lab, tn_verdict verdict, const char *claim, const char *bound,
                         const char *measured, ...) {
    va_list args;
    TN_TRY(
        tn_grow(&lab->claims, &lab->claim_capacity, lab->claim_count + 1, sizeof *lab->claims, "a verdict"));
    tn_lab_claim *c = &lab->claims[lab->claim_count++];
    *c = (tn_lab_claim){.verdict = verdict};
    TN_TRY(tn_strdup(&c->claim, claim));
    TN_TRY(tn_strdup(&c->bound, bound));
    va_start(args, measured);
    tn_status status = format_text(&c->measured, measured, args);
    va_end(args);
    return status;
}

int tn_lab_find_verdict(const tn_lab *lab, const char *claim, tn_verdict *out) {
    int found = 0;
    for (size_t i = 0; i < lab->claim_count; i++) {
        if (claim && !strstr(lab->claims[i].claim, claim)) continue;
        if (found++ == 0 && out) *out = lab->claims[i].verdict;
    }
    return found;
}

tn_status tn_lab_table(tn_lab *lab, const char *name, const char *columns, tn_number_table **out) {
    TN_ASSERT(strlen(name) < TN_LAB_NAME && strcmp(name, "verdicts") != 0);
    TN_TRY(tn_grow(&lab->tables, &lab->table_capacity, lab->table_count + 1, sizeof *lab->tables, "a table"));
    tn_lab_table_entry *entry = &lab->tables[lab->table_count];
    TN_TRY(tn_number_table_create(columns, &entry->table));
    strcpy(entry->name, name);
    lab->table_count++;
    *out = entry->table;
    return TN_OK;
}

tn_status tn_lab_plot(tn_lab *lab, const char *name, const char *caption, tn_plot **out) {
    TN_ASSERT(strlen(name) < TN_LAB_NAME);
    TN_TRY(tn_grow(&lab->plots, &lab->plot_capacity, lab->plot_count + 1, sizeof *lab->plots, "a plot"));
    tn_lab_plot_entry *entry = &lab->plots[lab->plot_count++];
    *entry = (tn_lab_plot_entry){0};
    strcpy(entry->name, name);
    TN_TRY(tn_strdup(&entry->caption, caption));
    TN_TRY(tn_plot_create(&entry->plot));
    *out = entry->plot;
    return TN_OK;
}
