/* What a laboratory leaves: lines on the terminal, CSV, SVG and the section. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/atomic_file.h"
#include "io/file_io.h"
#include "theory/laboratory_parts.h"

enum { PATH_ROOM = 4400, LINE_WIDTH = 100, LINE_INDENT = 15 };

static tn_status make_path(const char *folder, const char *name, const char *extension, char *out) {
    int size = snprintf(out, PATH_ROOM, "%s/%s%s", folder, name, extension);
    if (size < PATH_ROOM) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "--out: the name of the folder is too long");
}

tn_status tn_lab_open_folder(const tn_options *options) {
    char path[PATH_ROOM];
    TN_TRY(make_path(options->out, "section", ".html", path));
    if (access(path, F_OK) == 0 && !options->overwrite)
        return tn_fail(TN_ERR_USAGE,
                       "--out %s: holds the result of an experiment; choose another folder, or give "
                       "--overwrite",
                       options->out);
    tn_status status = tn_make_folders(options->out);
    if (status != TN_OK) return tn_fail_prefix(status, "--out %s", options->out);
    if (access(options->out, W_OK | X_OK) == 0) return TN_OK;
    return tn_fail(TN_ERR_IO, "--out %s: cannot write there: %s", options->out, strerror(errno));
}

static tn_status write_file(const char *folder, const char *name, const char *extension,
                            const tn_string *text) {
    char path[PATH_ROOM];
    TN_TRY(make_path(folder, name, extension, path));
    return tn_atomic_replace(path, text->data, text->length);
}

static tn_status put_field(tn_string *out, const char *text, const char *end) {
    TN_TRY(tn_string_csv(out, text));
    return tn_string_printf(out, "%s", end);
}

static tn_status print_verdicts(const tn_lab *lab, tn_string *out) {
    TN_TRY(tn_string_printf(out, "claim,bound,measured,verdict\n"));
    for (size_t i = 0; i < lab->claim_count; i++) {
        const tn_lab_claim *c = &lab->claims[i];
        TN_TRY(put_field(out, c->claim, ","));
        TN_TRY(put_field(out, c->bound, ","));
        TN_TRY(put_field(out, c->measured, ","));
        TN_TRY(put_field(out, tn_verdict_name(c->verdict), "\n"));
    }
    return TN_OK;
}

static tn_status print_table(const tn_lab *lab, size_t i, tn_string *out) {
    return tn_number_table_print(lab->tables[i].table, out);
}

static tn_status print_plot(const tn_lab *lab, size_t i, tn_string *out) {
    return tn_plot_print(lab->plots[i].plot, lab->plots[i].caption, out);
}

static tn_status print_claims(const tn_lab *lab, size_t i, tn_string *out) {
    (void)i;
    return print_verdicts(lab, out);
}

static tn_status print_whole_section(const tn_lab *lab, size_t i, tn_string *out) {
    (void)i;
    return tn_lab_print_section(lab, out);
}

static tn_status write_one(const tn_lab *lab, const char *name, const char *extension,
                           tn_status (*print)(const tn_lab *lab, size_t i, tn_string *out), size_t i) {
    tn_string text = {0};
    tn_status status = print(lab, i, &text);
    if (status == TN_OK) status = write_file(lab->options->out, name, extension, &text);
    tn_string_free(&text);
    return status;
}

/* The section says that a result is complete: an old one goes first, the new one comes last. */
static tn_status write_files(const tn_lab *lab) {
    char path[PATH_ROOM];
    const char *folder = lab->options->out;
    TN_TRY(tn_atomic_sweep(folder, NULL));
    TN_TRY(make_path(folder, "section", ".html", path));
    if (unlink(path) != 0 && errno != ENOENT)
        return tn_fail(TN_ERR_IO, "cannot remove %s: %s", path, strerror(errno));
    for (size_t i = 0; i < lab->table_count; i++)
        TN_TRY(write_one(lab, lab->tables[i].name, ".csv", print_table, i));
    for (size_t i = 0; i < lab->plot_count; i++)
        TN_TRY(write_one(lab, lab->plots[i].name, ".svg", print_plot, i));
    TN_TRY(write_one(lab, "verdicts", ".csv", print_claims, 0));
    return write_one(lab, "section", ".html", print_whole_section, 0);
}

/* Hands `text` to the hook in lines of at most LINE_WIDTH columns, the first one behind `head`. */
static void say(const tn_lab *lab, const char *head, const char *text) {
    char line[2 * LINE_WIDTH];
    if (!lab->hooks || !lab->hooks->line) return;
    int column = snprintf(line, sizeof line, "%-*s", LINE_INDENT, head);
    bool blank = false; /* whether a blank belongs before the next word */
    while (*text) {
        size_t word = strcspn(text, " ");
        if (column + (int)word >= LINE_WIDTH && blank) {
            lab->hooks->line(lab->hooks->context, line, true);
            column = snprintf(line, sizeof line, "%*s", LINE_INDENT, "");
            blank = false;
        }
        if (word > LINE_WIDTH) word = LINE_WIDTH;
        column += snprintf(line + column, sizeof line - (size_t)column, "%s%.*s", blank ? " " : "", (int)word,
                           text);
        blank = true;
        text += word;
        text += strspn(text, " ");
    }
    lab->hooks->line(lab->hooks->context, line, true);
}

static void say_all(const tn_lab *lab) {
    for (size_t i = 0; i < lab->remark_count; i++) say(lab, i ? "" : "remarks", lab->remarks[i]);
    for (size_t i = 0; i < lab->claim_count; i++) {
        say(lab, tn_verdict_name(lab->claims[i].verdict), lab->claims[i].claim);
        say(lab, "    bound", lab->claims[i].bound);
        say(lab, "    measured", lab->claims[i].measured);
    }
}

tn_status tn_lab_publish(tn_lab *lab) {
    char text[PATH_ROOM + 100];
    say_all(lab);
    TN_TRY(write_files(lab));
    snprintf(text, sizeof text, "%s: section.html, verdicts.csv, %zu tables, %zu plots", lab->options->out,
             lab->table_count, lab->plot_count);
    say(lab, "written", text);
    return TN_OK;
}
