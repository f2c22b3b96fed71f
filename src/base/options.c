#include "taunet/options.h"

#include <stdio.h>
#include <string.h>

#include "base/config_file.h"
#include "base/memory.h"
#include "base/option_table.h"

static const tn_command *command_of(const tn_options *options) {
    const tn_command *command = NULL;
    tn_status status = tn_command_find(options->command, &command);
    TN_ASSERT(status == TN_OK);
    return command;
}

static bool *given(tn_options *options, const tn_option *row) {
    return &options->given[row - tn_option_rows];
}

tn_status tn_options_create(const char *command_name, tn_options **out) {
    const tn_command *command;
    tn_options *options;
    *out = NULL;
    TN_TRY(tn_command_find(command_name, &command));
    TN_TRY(tn_alloc(&options, 1, sizeof *options, "options"));
    options->command = command->name;
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++) {
        tn_status status = tn_option_parse(row, options, row->standard);
        if (status == TN_OK) continue;
        tn_options_free(options);
        return status;
    }
    *out = options;
    return TN_OK;
}

void tn_options_free(tn_options *options) {
    if (!options) return;
    const tn_command *command = command_of(options);
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++)
        if (row->type == TN_OPTION_TEXT) tn_free(*(char **)((char *)options + row->offset));
    tn_free(options);
}

void tn_options_free_text(char *text) {
    tn_free(text);
}

/* Puts a further value behind those that an option has been given before. */
static tn_status add(tn_options *options, const tn_option *row, const char *value) {
    tn_string all = {0};
    const char *before = *(char **)(void *)((char *)options + row->offset);
    tn_status status = tn_string_printf(&all, "%s\n%s", before, value);
    if (status == TN_OK) status = tn_option_parse(row, options, all.data);
    tn_string_free(&all);
    return status;
}

static tn_status set(tn_options *options, const tn_option *row, const char *value) {
    if (row->repeated && *given(options, row)) return add(options, row, value);
    TN_TRY(tn_option_parse(row, options, value));
    *given(options, row) = true;
    return TN_OK;
}

tn_status tn_options_set(tn_options *options, const char *name, const char *value) {
    const tn_option *row;
    TN_TRY(tn_option_find(command_of(options), "--", name, &row));
    return set(options, row, value);
}

bool tn_options_is_given(const tn_options *options, const char *name) {
    const tn_command *command = command_of(options);
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++)
        if (strcmp(row->name, name) == 0) return options->given[row - tn_option_rows];
    return false;
}

/* Finds the value of the option at argv[*i] and moves *i to the last argument that belongs to it. */
static tn_status find_value(const tn_option *row, int argc, char *const *argv, int *i, const char **out) {
    const char *equals = strchr(argv[*i], '=');
    const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
    if (equals) {
        *out = equals + 1;
    } else if (row->type == TN_OPTION_BOOL && (!next || strncmp(next, "--", 2) == 0)) {
        *out = "yes";
    } else if (!next) {
        return tn_fail(TN_ERR_USAGE, "--%s needs a value: --%s %s", row->name, row->name, row->argument);
    } else if (strncmp(next, "--", 2) == 0) {
        return tn_fail(TN_ERR_USAGE,
                       "--%s needs a value: --%s %s; for a value that starts with -- write --%s=%s",
                       row->name, row->name, row->argument, row->name, tn_make_legible(next).text);
    } else {
        *out = next;
        ++*i;
    }
    return TN_OK;
}

/* The argument of its own that some commands take, once or repeated. */
static tn_status set_positional(tn_options *options, const tn_command *command, const char *value) {
    const tn_option *row;
    TN_TRY(tn_option_find(command, "--", command->positional, &row));
    if (*given(options, row) && !row->repeated)
        return tn_fail(TN_ERR_USAGE, "unexpected argument \"%s\"; %s takes one --%s",
                       tn_make_legible(value).text, command->name, row->name);
    return set(options, row, value);
}

tn_status tn_options_parse(tn_options *options, int argc, char *const *argv) {
    const tn_command *command = command_of(options);
    for (int i = 0; i < argc; i++) {
        char name[128];
        const char *argument = argv[i], *value = "";
        const tn_option *row;
        if (command->positional && *argument && *argument != '-') {
            TN_TRY(set_positional(options, command, argument));
            continue;
        }
        if (strncmp(argument, "--", 2) != 0 || argument[2] == 0)
            return tn_fail(TN_ERR_USAGE, "unexpected argument \"%s\"; options are written --name value",
                           tn_make_legible(argument).text);
        snprintf(name, sizeof name, "%.*s", (int)strcspn(argument + 2, "="), argument + 2);
        TN_TRY(tn_option_find(command, "--", name, &row));
        TN_TRY(find_value(row, argc, argv, &i, &value));
        if (row->offset == offsetof(tn_options, config)) TN_TRY(tn_options_load(options, value));
        TN_TRY(set(options, row, value));
    }
    return TN_OK;
}

/* While a configuration file is read: the line in which each option was set, by row; 0 before. */
typedef struct loading {
    tn_options *options;
    const tn_command *command;
    int lines[TN_OPTIONS_MAX];
} loading;

static tn_status visit(void *context, const tn_config_entry *entry) {
    loading *load = context;
    const tn_option *row;
    if (entry->kind == TN_CONFIG_TABLE || entry->kind == TN_CONFIG_ELEMENT)
        return tn_fail(TN_ERR_USAGE, "%s:%d:%d: tables are not supported; write 'name = value' lines",
                       entry->file, entry->line, entry->name_column);
    tn_status status = tn_option_find(load->command, "", entry->name, &row);
    if (status != TN_OK)
        return tn_fail_prefix(status, "%s:%d:%d", entry->file, entry->line, entry->name_column);
    int *line = &load->lines[row - tn_option_rows];
    if (row->command_line_only)
        return tn_fail(TN_ERR_USAGE, "%s:%d:%d: '%s' belongs on the command line, not into a file",
                       entry->file, entry->line, entry->name_column, row->name);
    if (*line)
        return tn_fail(TN_ERR_USAGE, "%s:%d:%d: '%s' was already set in line %d; keep one of the two",
                       entry->file, entry->line, entry->name_column, row->name, *line);
    *line = entry->line;
    if (entry->kind == TN_CONFIG_BOOL && row->type != TN_OPTION_BOOL)
        status =
            tn_fail(TN_ERR_USAGE, "'%s' is not a yes or no option; it takes %s", row->name, row->argument);
    else
        status = set(load->options, row, entry->value);
    if (status == TN_OK) return TN_OK;
    return tn_fail_prefix(status, "%s:%d:%d", entry->file, entry->line, entry->value_column);
}

tn_status tn_options_load(tn_options *options, const char *path) {
    loading load = {.options = options, .command = command_of(options)};
    return tn_config_read(path, visit, &load);
}

tn_status tn_options_load_text(tn_options *options, const char *text, size_t size, const char *file) {
    loading load = {.options = options, .command = command_of(options)};
    return tn_config_parse(text, size, file, visit, &load);
}

static bool is_empty(const tn_option *row, const tn_options *options) {
    const char *at = (const char *)options + row->offset;
    return row->type == TN_OPTION_TEXT && **(char *const *)(const void *)at == 0;
}

tn_status tn_options_check(const tn_options *options) {
    const tn_command *command = command_of(options);
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++)
        if ((row->required & command->bit) && is_empty(row, options))
            return tn_fail(TN_ERR_USAGE, "%s needs --%s %s (%s)", command->name, row->name, row->argument,
                           row->help);
    if (options->resume && options->overwrite)
        return tn_fail(TN_ERR_USAGE, "--resume and --overwrite exclude each other; give one of them");
    if (options->mean.count && options->std.count && options->mean.count != options->std.count)
        return tn_fail(TN_ERR_USAGE, "--mean has %d numbers and --std has %d; give one a channel to both",
                       options->mean.count, options->std.count);
    return TN_OK;
}

/* Whether a run that had `before` may go on with `after`. */
static bool may_become(const tn_option *row, const char *before, const char *after) {
    if (row->resume == TN_RESUME_FREE || strcmp(before, after) == 0) return true;
    if (row->resume == TN_RESUME_FIXED || strncmp(before, "synthetic:", 10) == 0) return false;
    size_t kind = strcspn(before, ":");
    return before[kind] == ':' && strncmp(before, after, kind + 1) == 0;
}

static tn_status resume_row(const tn_option *row, tn_options *run, const tn_options *now, tn_string *before,
                            tn_string *after) {
    TN_TRY(tn_option_print(row, run, before));
    TN_TRY(tn_option_print(row, now, after));
    if (!may_become(row, before->data, after->data))
        return tn_fail(
            TN_ERR_USAGE,
            "--%s \"%s\": the run that --resume continues has \"%s\"; leave --%s out, or start a new run "
            "in another --out",
            row->name, tn_make_legible(after->data).text, tn_make_legible(before->data).text, row->name);
    return set(run, row, after->data);
}

tn_status tn_options_resume(tn_options *run, const tn_options *now) {
    TN_ASSERT(strcmp(run->command, now->command) == 0);
    const tn_command *command = command_of(run);
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++) {
        if (!now->given[row - tn_option_rows]) continue;
        tn_string before = {0}, after = {0};
        tn_status status = resume_row(row, run, now, &before, &after);
        tn_string_free(&before);
        tn_string_free(&after);
        TN_TRY(status);
    }
    return TN_OK;
}
