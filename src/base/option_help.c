/* What the table of options looks like on paper: help and config.toml. */
#include <math.h>
#include <string.h>

#include "base/config_file.h"
#include "base/option_table.h"

#define WIDTH  100
#define INDENT 30 /* column at which the explanations stand */

static tn_status print_line(const tn_option *row, const tn_options *options, tn_string *value,
                            tn_string *out) {
    TN_TRY(tn_option_print(row, options, value));
    TN_TRY(tn_string_printf(out, "%s = ", row->name));
    bool bare = row->type == TN_OPTION_NUMBER || row->type == TN_OPTION_SEED ||
                (row->type == TN_OPTION_INT && !(row->zero && strcmp(value->data, row->zero) == 0));
    if (row->type == TN_OPTION_BOOL)
        TN_TRY(tn_string_printf(out, "%s", strcmp(value->data, "yes") == 0 ? "true" : "false"));
    else if (bare)
        TN_TRY(tn_string_append(out, value->data, value->length));
    else
        TN_TRY(tn_config_quote(out, value->data));
    /* TOML tells floats from integers by their look. */
    if (row->type == TN_OPTION_NUMBER && !strpbrk(value->data, ".e")) TN_TRY(tn_string_append(out, ".0", 2));
    return tn_string_append(out, "\n", 1);
}

static tn_status print_config(const tn_options *options, tn_string *out) {
    const tn_command *command;
    const char *group = "";
    TN_TRY(tn_command_find(options->command, &command));
    TN_TRY(tn_string_printf(out, "# taunet %s\n", tn_version()));
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++) {
        if (row->command_line_only) continue;
        if (strcmp(group, row->group) != 0) TN_TRY(tn_string_printf(out, "\n# %s\n", row->group));
        group = row->group;
        tn_string value = {0};
        tn_status status = print_line(row, options, &value, out);
        tn_string_free(&value);
        TN_TRY(status);
    }
    return TN_OK;
}

/* Hands the text over, or frees what there is of it. */
static tn_status hand_over(tn_status status, tn_string *text, char **out) {
    *out = NULL;
    if (status == TN_OK)
        *out = text->data;
    else
        tn_string_free(text);
    return status;
}

tn_status tn_options_print_config(const tn_options *options, char **out) {
    tn_string text = {0};
    return hand_over(print_config(options, &text), &text, out);
}

/* Appends `words`, broken at blanks; lines after the first start at `indent`. *column is where the line
 * stands now. */
static tn_status print_wrapped(const char *words, size_t indent, size_t *column, tn_string *out) {
    for (const char *at = words; *at;) {
        size_t blanks = strspn(at, " "), length = strcspn(at + blanks, " ");
        if (*column + blanks + length > WIDTH && *column > indent) {
            TN_TRY(tn_string_printf(out, "\n%*s", (int)indent, ""));
            *column = indent;
        } else {
            TN_TRY(tn_string_append(out, at, blanks));
            *column += blanks;
        }
        TN_TRY(tn_string_append(out, at + blanks, length));
        *column += length;
        at += blanks + length;
    }
    return TN_OK;
}

/* "what it does (RANGE; default X)" */
static tn_status describe(const tn_option *row, const tn_command *command, tn_string *out) {
    const char *standard = row->unset ? row->unset : *row->standard ? row->standard : "none";
    bool numeric = row->type == TN_OPTION_INT || row->type == TN_OPTION_NUMBER ||
                   row->type == TN_OPTION_LIST || row->type == TN_OPTION_SHAPE;
    TN_TRY(tn_string_printf(out, "%s (", row->help));
    if (row->choices || (numeric && (isfinite(row->min) || isfinite(row->max)))) {
        TN_TRY(tn_string_printf(out, "%s", row->choices ? "one of " : ""));
        TN_TRY(tn_option_range(row, out));
        TN_TRY(tn_string_printf(out, "; "));
    }
    if (row->required & command->bit) return tn_string_printf(out, "required)");
    return tn_string_printf(out, "default %s)", standard);
}

static tn_status print_option(const tn_option *row, const tn_command *command, tn_string *out) {
    /* An option that is off unless it is named needs no value. */
    bool bare = row->type == TN_OPTION_BOOL && strcmp(row->standard, "no") == 0;
    size_t start = out->length;
    TN_TRY(tn_string_printf(out, "  --%s%s%s", row->name, bare ? "" : " ", bare ? "" : row->argument));
    size_t column = out->length - start;
    if (column + 2 > INDENT)
        TN_TRY(tn_string_printf(out, "\n%*s", INDENT, ""));
    else
        TN_TRY(tn_string_printf(out, "%*s", (int)(INDENT - column), ""));
    column = INDENT;
    tn_string words = {0};
    tn_status status = describe(row, command, &words);
    if (status == TN_OK) status = print_wrapped(words.data, INDENT, &column, out);
    tn_string_free(&words);
    TN_TRY(status);
    return tn_string_append(out, "\n", 1);
}

static tn_status list_resumable(const tn_command *command, tn_string *words) {
    TN_TRY(tn_string_printf(
        words, "With --resume these may differ from the run's, and --data may name another folder:"));
    const char *separator = "";
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++) {
        if (row->resume != TN_RESUME_FREE || row->command_line_only) continue;
        TN_TRY(tn_string_printf(words, "%s --%s", separator, row->name));
        separator = ",";
    }
    return tn_string_append(words, ".", 1);
}

static tn_status print_resume_rule(const tn_command *command, tn_string *out) {
    size_t column = 0;
    tn_string words = {0};
    tn_status status = list_resumable(command, &words);
    if (status == TN_OK) status = tn_string_append(out, "\n", 1);
    if (status == TN_OK) status = print_wrapped(words.data, 0, &column, out);
    tn_string_free(&words);
    TN_TRY(status);
    return tn_string_append(out, "\n", 1);
}

static tn_status print_command_help(const tn_command *command, tn_string *out) {
    const char *group = "";
    bool resumable = false;
    TN_TRY(tn_string_printf(out, "taunet %s: %s\n\n  %s\n", command->name, command->help, command->example));
    for (const tn_option *row = tn_option_rows; (row = tn_option_next(command, row)); row++) {
        if (strcmp(group, row->group) != 0) TN_TRY(tn_string_printf(out, "\n%s\n", row->group));
        group = row->group;
        resumable |= strcmp(row->name, "resume") == 0;
        TN_TRY(print_option(row, command, out));
    }
    return resumable ? print_resume_rule(command, out) : TN_OK;
}

static tn_status print_overview(tn_string *out) {
    TN_TRY(tn_string_printf(out, "taunet COMMAND [--name value | --name=value | --flag]...\n\n"));
    for (int i = 0; i < tn_command_count; i++)
        TN_TRY(tn_string_printf(out, "  %-8s%s\n", tn_command_rows[i].name, tn_command_rows[i].help));
    return tn_string_printf(out,
                            "  help    this overview, or the options of a command: taunet help train\n\n"
                            "  taunet --version prints the version.\n\n"
                            "Exit status: 0 done; 1 the work failed; 2 wrong usage; 130 or 143 stopped by a "
                            "signal after a\ncheckpoint was written.\n");
}

tn_status tn_options_help(const char *name, char **out) {
    tn_string text = {0};
    const tn_command *command;
    *out = NULL;
    if (!name) return hand_over(print_overview(&text), &text, out);
    TN_TRY(tn_command_find(name, &command));
    return hand_over(print_command_help(command, &text), &text, out);
}
