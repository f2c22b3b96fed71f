/* The page of `taunet report` as text. */
#include "report/page.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "plot/plot.h"

static tn_status put(tn_string *out, const char *before, const char *text, const char *after) {
    TN_TRY(tn_string_printf(out, "%s", before));
    TN_TRY(tn_xml_escape(out, text));
    return tn_string_printf(out, "%s", after);
}

static tn_status put_cell(tn_string *out, const char *text) {
    return put(out, "<td>", text, "</td>");
}

/* A number in a cell of its own, a dash where there is none. */
static tn_status put_number(tn_string *out, const char *format, double value) {
    char text[64];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(text, sizeof text, isfinite(value) ? format : "-", value);
#pragma GCC diagnostic pop
    return tn_string_printf(out, "<td class=\"number\">%s</td>", text);
}

static tn_status put_duration(tn_string *out, double seconds) {
    long s = lround(seconds);
    return tn_string_printf(out, "<td class=\"number\">%ld:%02ld:%02ld</td>", s / 3600, s / 60 % 60, s % 60);
}

/* ---- summary ---- */

static tn_status put_summary_row(const tn_page_run *run, tn_string *out) {
    const tn_run_record *r = run->record;
    const char *state = tn_run_state_name(r->state), *seed = tn_settings_find(&r->settings, "seed");
    double best_epoch, best = tn_curve_least(&r->curves[TN_CURVE_VAL_ERROR], &best_epoch);
    double steps = tn_run_record_number(r, "steps"), batches = tn_run_record_number(r, "steps_per_epoch");
    TN_TRY(put(out, "<tr><td>", run->label, "</td>"));
    TN_TRY(tn_string_printf(out, "<td class=\"%s\">%s</td>", state, state));
    TN_TRY(put_number(out, "%.2f", tn_curve_last(&r->curves[TN_CURVE_VAL_ERROR])));
    TN_TRY(put_number(out, "%.2f", best));
    TN_TRY(put_number(out, "%.0f", best_epoch));
    TN_TRY(tn_string_printf(out, "<td class=\"number\">%zu of %.3g</td>",
                            r->curves[TN_CURVE_TRAIN_LOSS].count, ceil(steps / batches)));
    TN_TRY(put_cell(out, tn_run_record_text(r, "model")));
    TN_TRY(put_cell(out, tn_run_record_text(r, "variant")));
    TN_TRY(put_cell(out, tn_run_record_text(r, "dataset")));
    TN_TRY(put(out, "<td class=\"number\">", seed ? seed : "-", "</td>"));
    TN_TRY(put_number(out, "%.2f", tn_curve_last(&r->curves[TN_CURVE_TRAIN_ERROR])));
    TN_TRY(put_number(out, "%.4f", tn_curve_last(&r->curves[TN_CURVE_TRAIN_LOSS])));
    TN_TRY(put_number(out, "%.4f", tn_curve_last(&r->curves[TN_CURVE_TAU])));
    TN_TRY(put_number(out, "%.0f", tn_curve_last(&r->curves[TN_CURVE_RATE])));
    TN_TRY(put_duration(out, r->seconds));
    return tn_string_printf(out, "</tr>\n");
}

static tn_status put_summary(const tn_page *page, tn_string *out) {
    TN_TRY(tn_string_printf(
        out,
        "<section id=\"summary\">\n<h2>Summary</h2>\n<div class=\"scroll\"><table>\n<tr><th>run</th>"
        "<th>state</th><th class=\"number\">val. error %%</th><th class=\"number\">best</th>"
        "<th class=\"number\">in epoch</th><th class=\"number\">epochs</th><th>model</th><th>variant</th>"
        "<th>data</th><th class=\"number\">seed</th><th class=\"number\">train error %%</th>"
        "<th class=\"number\">train loss</th><th class=\"number\">tau</th><th class=\"number\">images/s</th>"
        "<th class=\"number\">time</th></tr>\n"));
    for (size_t i = 0; i < page->run_count; i++) TN_TRY(put_summary_row(&page->runs[i], out));
    TN_TRY(tn_string_printf(out, "</table></div>\n"));
    for (size_t i = 0; i < page->run_count; i++) {
        const tn_run_record *r = page->runs[i].record;
        if (r->state != TN_RUN_DIVERGED) continue;
        TN_TRY(put(out, "<p class=\"diverged\">", page->runs[i].label, " diverged: "));
        TN_TRY(put(out, "", r->message, "</p>\n"));
    }
    return tn_string_printf(out, "</section>\n");
}

/* ---- curves ---- */

static tn_status put_legend(const tn_page *page, tn_string *out) {
    TN_TRY(tn_string_printf(out, "<div class=\"legend\">\n"));
    for (size_t i = 0; i < page->run_count; i++) {
        TN_TRY(tn_string_printf(
            out,
            "<label><input type=\"checkbox\" checked data-run=\"%zu\"><span class=\"swatch%s\" "
            "style=\"border-color:%s\"></span>",
            i, i / TN_PLOT_COLOURS % 2 ? " dashed" : "", tn_plot_colour((int)(i % TN_PLOT_COLOURS))));
        TN_TRY(put(out, "", page->runs[i].label, "</label>\n"));
    }
    if (page->run_count > 1)
        TN_TRY(tn_string_printf(out,
                                "<button data-all=\"1\">all</button><button data-all=\"0\">none</button>\n"));
    return tn_string_printf(out, "</div>\n");
}

static tn_status put_curves(const tn_page *page, tn_string *out) {
    TN_TRY(tn_string_printf(out, "<section id=\"curves\">\n<h2>Curves</h2>\n"));
    TN_TRY(put_legend(page, out));
    TN_TRY(tn_string_printf(out, "<div class=\"figures\">\n"));
    TN_TRY(tn_page_print_curves(page, out));
    TN_TRY(tn_string_printf(out, "</div>\n"));
    if (tn_page_has_probes(page)) {
        TN_TRY(tn_string_printf(out,
                                "<h2 id=\"probes\">Probes</h2>\n<p>Norms on one fixed batch, block by block; "
                                "block 0 is the stem.</p>\n<div class=\"figures\">\n"));
        TN_TRY(tn_page_print_probes(page, out));
        TN_TRY(tn_string_printf(out, "</div>\n"));
    }
    return tn_string_printf(out, "</section>\n");
}

/* ---- options ---- */

static const char *setting(const tn_page *page, size_t run, const char *name) {
    const char *value = tn_settings_find(&page->runs[run].record->settings, name);
    return value ? value : "-";
}

static bool differs(const tn_page *page, const char *name) {
    if (!strcmp(name, "out")) return false;
    for (size_t i = 1; i < page->run_count; i++)
        if (strcmp(setting(page, 0, name), setting(page, i, name)) != 0) return true;
    return false;
}

/* Whether a run before `run` has the setting too: each name is shown once. */
static bool is_known(const tn_page *page, size_t run, const char *name) {
    for (size_t i = 0; i < run; i++)
        if (tn_settings_find(&page->runs[i].record->settings, name)) return true;
    return false;
}

typedef tn_status (*visit_setting)(const tn_page *page, const char *name, size_t run, tn_string *out);

/* Calls `visit` for each name of a setting that differs between runs, or that does not. */
static tn_status each_setting(const tn_page *page, bool differing, visit_setting visit, size_t run,
                              tn_string *out) {
    for (size_t i = 0; i < page->run_count; i++) {
        const tn_settings *settings = &page->runs[i].record->settings;
        for (size_t k = 0; k < settings->count; k++)
            if (!is_known(page, i, settings->items[k].name) &&
                differs(page, settings->items[k].name) == differing)
                TN_TRY(visit(page, settings->items[k].name, run, out));
    }
    return TN_OK;
}

static tn_status put_name(const tn_page *page, const char *name, size_t run, tn_string *out) {
    (void)page, (void)run;
    return put(out, "<th>", name, "</th>");
}

static tn_status put_value(const tn_page *page, const char *name, size_t run, tn_string *out) {
    return put_cell(out, setting(page, run, name));
}

static tn_status put_line(const tn_page *page, const char *name, size_t run, tn_string *out) {
    if (!strcmp(name, "out")) return TN_OK;
    TN_TRY(put(out, "", name, " = "));
    return put(out, "", setting(page, run, name), "\n");
}

static tn_status put_options(const tn_page *page, tn_string *out) {
    tn_string names = {0};
    tn_status status = each_setting(page, true, put_name, 0, &names);
    if (status == TN_OK)
        status = tn_string_printf(out, "<section id=\"options\">\n<h2>Options</h2>\n%s",
                                  names.length          ? "<p>What differs between the runs:</p>\n"
                                  : page->run_count > 1 ? "<p>All runs have the same options.</p>\n"
                                                        : "");
    if (status == TN_OK && names.length)
        status =
            tn_string_printf(out, "<div class=\"scroll\"><table>\n<tr><th>run</th>%s</tr>\n", names.data);
    for (size_t i = 0; i < page->run_count && names.length && status == TN_OK; i++) {
        status = put(out, "<tr><td>", page->runs[i].label, "</td>");
        if (status == TN_OK) status = each_setting(page, true, put_value, i, out);
        if (status == TN_OK) status = tn_string_printf(out, "</tr>\n");
    }
    if (status == TN_OK && names.length) status = tn_string_printf(out, "</table></div>\n");
    tn_string_free(&names);
    TN_TRY(status);
    TN_TRY(tn_string_printf(out, "<details><summary>%s</summary>\n<pre>",
                            page->run_count > 1 ? "What all runs share" : "All options"));
    TN_TRY(each_setting(page, false, put_line, 0, out));
    return tn_string_printf(out, "</pre></details>\n</section>\n");
}

/* ---- machines ---- */

static tn_status put_machine(const tn_page_run *run, tn_string *out) {
    const tn_run_record *r = run->record;
    TN_TRY(put(out, "<tr><td>", run->label, "</td>"));
    TN_TRY(put_cell(out, tn_run_record_text(r, "version")));
    TN_TRY(put_cell(out, tn_run_record_text(r, "device")));
    TN_TRY(put_number(out, "%.0f", tn_run_record_number(r, "threads")));
    TN_TRY(put_number(out, "%.0f", tn_run_record_number(r, "chunk")));
    TN_TRY(put_number(out, "%.1f", tn_run_record_number(r, "peak_bytes") / 1048576));
    TN_TRY(put_number(out, "%.0f", tn_run_record_number(r, "parameters")));
    TN_TRY(put_number(out, "%.1f", tn_run_record_number(r, "multiply_adds") * 1e-6));
    TN_TRY(put_number(out, "%.0f", tn_run_record_number(r, "train_images")));
    TN_TRY(put_number(out, "%.0f", tn_run_record_number(r, "val_images")));
    return tn_string_printf(out, "</tr>\n");
}

static tn_status put_machines(const tn_page *page, tn_string *out) {
    TN_TRY(tn_string_printf(
        out, "<section id=\"machines\">\n<h2>Hardware and versions</h2>\n<div class=\"scroll\"><table>\n<tr>"
             "<th>run</th><th>taunet</th><th>device</th><th class=\"number\">threads</th>"
             "<th class=\"number\">images a chunk</th><th class=\"number\">MiB planned</th>"
             "<th class=\"number\">parameters</th><th class=\"number\">M multiply-adds an image</th>"
             "<th class=\"number\">training images</th><th class=\"number\">validation images</th></tr>\n"));
    for (size_t i = 0; i < page->run_count; i++) TN_TRY(put_machine(&page->runs[i], out));
    return tn_string_printf(out, "</table></div>\n</section>\n");
}

/* ---- the whole ---- */

tn_status tn_page_print(const tn_page *page, tn_string *out) {
    char title[256];
    if (page->run_count == 1)
        snprintf(title, sizeof title, "%s", page->runs[0].label);
    else
        snprintf(title, sizeof title, "%zu runs", page->run_count);
    TN_TRY(
        put(out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" "
            "content=\"width=device-width,initial-scale=1\">\n<title>taunet: ",
            title, "</title>\n"));
    TN_TRY(tn_string_printf(out, "<style>\n%s</style>\n</head>\n<body>\n<main>\n", tn_page_style));
    TN_TRY(put(out, "<h1>", title, "</h1>\n"));
    TN_TRY(tn_string_printf(out, "<p>Written by taunet %s from the logs of the runs.</p>\n", tn_version()));
    if (page->run_count > 0) {
        TN_TRY(put_summary(page, out));
        TN_TRY(put_curves(page, out));
        TN_TRY(put_options(page, out));
        TN_TRY(put_machines(page, out));
    }
    for (size_t i = 0; i < page->section_count; i++) TN_TRY(tn_string_printf(out, "%s", page->sections[i]));
    return tn_string_printf(out, "</main>\n<script>\n%s</script>\n</body>\n</html>\n", tn_page_script);
}
