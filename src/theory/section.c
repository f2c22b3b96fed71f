/* The section of an experiment: a piece of HTML with everything inside, the plots too. */
#include <stdio.h>

#include <string.h>

#include "theory/laboratory_parts.h"

static const char style[] =
    "<style>.tn-theory{font:15px/1.5 system-ui,sans-serif;max-width:1260px;margin:1em auto;padding:0 1em}"
    ".tn-theory table{display:block;overflow-x:auto;border-collapse:collapse;margin:1em 0}"
    ".tn-theory th,.tn-theory td{border-bottom:1px solid #8886;padding:.3em .8em .3em 0;text-align:left;"
    "vertical-align:top;white-space:normal}"
    ".tn-theory .holds{color:#2f9e5f}.tn-theory .fails{color:#cf4436}.tn-theory .open{color:#a88b1f}"
    ".tn-theory .verdict{white-space:nowrap;font-weight:600}"
    ".tn-theory figure{margin:1.5em 0;overflow-x:auto}.tn-theory figcaption{font-size:14px;opacity:.85}"
    ".tn-theory p{max-width:52em}.tn-theory code{font-size:13px}</style>\n";

static tn_status put(tn_string *out, const char *before, const char *text, const char *after) {
    TN_TRY(tn_string_printf(out, "%s", before));
    TN_TRY(tn_xml_escape(out, text));
    return tn_string_printf(out, "%s", after);
}

static tn_status put_verdicts(const tn_lab *lab, tn_string *out) {
    static const char *const classes[] = {"holds", "fails", "open"};
    TN_TRY(tn_string_printf(
        out, "<table>\n<tr><th>claim</th><th>bound</th><th>measured</th><th>verdict</th></tr>\n"));
    for (size_t i = 0; i < lab->claim_count; i++) {
        const tn_lab_claim *c = &lab->claims[i];
        TN_TRY(put(out, "<tr><td>", c->claim, "</td>"));
        TN_TRY(put(out, "<td>", c->bound, "</td>"));
        TN_TRY(put(out, "<td>", c->measured, "</td>"));
        TN_TRY(tn_string_printf(out, "<td class=\"verdict %s\">%s</td></tr>\n", classes[c->verdict],
                                tn_verdict_name(c->verdict)));
    }
    return tn_string_printf(out, "</table>\n");
}

static tn_status put_plots(const tn_lab *lab, tn_string *out) {
    for (size_t i = 0; i < lab->plot_count; i++) {
        TN_TRY(tn_string_printf(out, "<figure>\n"));
        TN_TRY(tn_plot_print(lab->plots[i].plot, lab->plots[i].caption, out));
        TN_TRY(put(out, "<figcaption>", lab->plots[i].caption, "</figcaption>\n</figure>\n"));
    }
    return TN_OK;
}

/* The command that gives these numbers again. */
static tn_status print_command(const tn_options *options, tn_string *out) {
    TN_TRY(tn_string_printf(out, "taunet theory %s", options->experiment));
    if (options->width) TN_TRY(tn_string_printf(out, " --width %d", options->width));
    for (int i = 0; i < options->depths.count; i++)
        TN_TRY(tn_string_printf(out, "%s%g", i ? "," : " --depths ", (double)options->depths.values[i]));
    if (options->trials) TN_TRY(tn_string_printf(out, " --trials %d", options->trials));
    if (options->samples) TN_TRY(tn_string_printf(out, " --samples %d", options->samples));
    if (options->steps) TN_TRY(tn_string_printf(out, " --steps %d", options->steps));
    if (*options->data) TN_TRY(tn_string_printf(out, " --data %s", options->data));
    if (*options->checkpoint) TN_TRY(tn_string_printf(out, " --checkpoint %s", options->checkpoint));
    for (const char *at = options->runs; *at; at += strcspn(at, "\n"), at += *at == '\n')
        TN_TRY(tn_string_printf(out, " --runs %.*s", (int)strcspn(at, "\n"), at));
    if (options->quick) TN_TRY(tn_string_printf(out, " --quick"));
    return tn_string_printf(out, " --seed %llu --out DIR", (unsigned long long)options->seed);
}

static tn_status put_command(const tn_lab *lab, tn_string *out) {
    tn_string command = {0};
    tn_status status = print_command(lab->options, &command);
    if (status == TN_OK) status = put(out, "<p>Command: <code>", command.data, "</code>");
    tn_string_free(&command);
    TN_TRY(status);
    TN_TRY(tn_string_printf(out, " (version %s). Numbers: <code>verdicts.csv</code>", tn_version()));
    for (size_t i = 0; i < lab->table_count; i++)
        TN_TRY(tn_string_printf(out, ", <code>%s.csv</code>", lab->tables[i].name));
    return tn_string_printf(out, ".</p>\n");
}

tn_status tn_lab_print_section(const tn_lab *lab, tn_string *out) {
    const tn_experiment *experiment = lab->experiment;
    TN_TRY(
        tn_string_printf(out, "<section class=\"tn-theory\" id=\"theory-%s\">\n%s", experiment->name, style));
    TN_TRY(put(out, "<h2>", experiment->summary, "</h2>\n"));
    TN_TRY(put(out, "<p>", experiment->about, "</p>\n"));
    TN_TRY(put_verdicts(lab, out));
    for (size_t i = 0; i < lab->remark_count; i++) TN_TRY(put(out, "<p>", lab->remarks[i], "</p>\n"));
    TN_TRY(put_plots(lab, out));
    TN_TRY(put_command(lab, out));
    return tn_string_printf(out, "</section>\n");
}
