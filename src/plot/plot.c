/* Plots: what is drawn, and its layout on paper. Axes and their ticks are in plot_axis.c. */
#include "plot/plot.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "plot/plot_axis.h"

enum { PANEL_WIDTH = 340, PANEL_HEIGHT = 216, LEFT = 62, TOP = 34, BOTTOM = 46, RIGHT = 16, PER_ROW = 3 };
enum { LEGEND_LINE = 16, LEGEND_GAP = 14, LETTER = 6 }; /* LETTER: width of a small letter, about */

typedef struct series {
    char *label, *css_class, *tip; /* the last two may be NULL */
    int colour, count;
    tn_mark mark;
    double *x, *y, *low, *high; /* one block at x */
    bool has_range;
} series;

typedef struct panel {
    char *title, *x_label, *y_label;
    bool log_x, log_y;
    series *series;
    size_t count, capacity;
} panel;

struct tn_plot {
    panel *panels;
    size_t count, capacity;
};

/* Mid tones that stand out from white and from near black. */
static const char *const palette[TN_PLOT_COLOURS] = {"#3b7dd8", "#d97a22", "#2f9e5f", "#cf4436",
                                                     "#8b63c9", "#a88b1f", "#1f9fae", "#c4588f"};

const char *tn_plot_colour(int colour) {
    return palette[colour % TN_PLOT_COLOURS];
}

tn_status tn_plot_create(tn_plot **out) {
    return tn_alloc(out, 1, sizeof **out, "a plot");
}

void tn_plot_free(tn_plot *plot) {
    if (!plot) return;
    for (size_t i = 0; i < plot->count; i++) {
        panel *p = &plot->panels[i];
        for (size_t j = 0; j < p->count; j++) {
            tn_free(p->series[j].label);
            tn_free(p->series[j].css_class);
            tn_free(p->series[j].tip);
            tn_free(p->series[j].x);
        }
        tn_free(p->series);
        tn_free(p->title);
        tn_free(p->x_label);
        tn_free(p->y_label);
    }
    tn_free(plot->panels);
    tn_free(plot);
}

tn_status tn_plot_panel(tn_plot *plot, const char *title, const char *x_label, const char *y_label,
                        bool log_x, bool log_y, int *index) {
    TN_TRY(tn_grow(&plot->panels, &plot->capacity, plot->count + 1, sizeof *plot->panels, "a plot"));
    panel *p = &plot->panels[plot->count];
    *index = (int)plot->count++; /* what follows may fail; the panel is freed with the plot in any case */
    p->log_x = log_x;
    p->log_y = log_y;
    TN_TRY(tn_strdup(&p->title, title));
    TN_TRY(tn_strdup(&p->x_label, x_label));
    return tn_strdup(&p->y_label, y_label);
}

tn_status tn_plot_series(tn_plot *plot, int index, const char *label, int colour, tn_mark mark, int count,
                         const double *x, const double *y, const double *low, const double *high) {
    TN_ASSERT(index >= 0 && (size_t)index < plot->count && count >= 0 && !low == !high);
    panel *p = &plot->panels[index];
    size_t n = (size_t)count;
    TN_TRY(tn_grow(&p->series, &p->capacity, p->count + 1, sizeof *p->series, "a plot"));
    series *s = &p->series[p->count++];
    *s = (series){.colour = colour, .mark = mark, .has_range = low != NULL};
    TN_TRY(tn_strdup(&s->label, label));
    TN_TRY(tn_alloc(&s->x, 4 * n, sizeof *x, "a plot"));
    s->count = count;
    s->y = s->x + n;
    s->low = s->y + n;
    s->high = s->low + n;
    if (n == 0) return TN_OK;
    memcpy(s->x, x, n * sizeof *x);
    memcpy(s->y, y, n * sizeof *y);
    memcpy(s->low, low ? low : y, n * sizeof *y);
    memcpy(s->high, high ? high : y, n * sizeof *y);
    return TN_OK;
}

tn_status tn_plot_mark_series(tn_plot *plot, int index, const char *css_class, const char *tip) {
    TN_ASSERT(index >= 0 && (size_t)index < plot->count && plot->panels[index].count > 0);
    series *s = &plot->panels[index].series[plot->panels[index].count - 1];
    TN_ASSERT(!s->css_class && !s->tip);
    TN_TRY(tn_strdup(&s->css_class, css_class));
    return tn_strdup(&s->tip, tip);
}

int tn_plot_thin(double *x, double *y, double *low, double *high, int count, int most) {
    int window = (count + most - 1) / most, kept = 0;
    if (window <= 1) return count;
    for (int i = 0; i < count; i += window, kept++) {
        int size = count - i < window ? count - i : window;
        double mean_x = 0, mean_y = 0, least = INFINITY, greatest = -INFINITY;
        for (int k = i; k < i + size; k++) {
            mean_x += x[k] / size;
            mean_y += y[k] / size;
            least = low ? fmin(least, low[k]) : 0;
            greatest = high ? fmax(greatest, high[k]) : 0;
        }
        x[kept] = mean_x;
        y[kept] = mean_y;
        if (low) low[kept] = least;
        if (high) high[kept] = greatest;
    }
    return kept;
}

tn_status tn_xml_escape(tn_string *out, const char *text) {
    for (size_t size = strlen(text); size > 0;) {
        size_t length = tn_utf8_length(text, size);
        const unsigned char *c = (const unsigned char *)text;
        if (length == 0) {
            TN_TRY(tn_string_append(out, "?", 1));
            length = 1;
        } else if (length > 1) {
            unsigned code = *c & (0x7Fu >> length);
            for (size_t i = 1; i < length; i++) code = code << 6 | (c[i] & 0x3F);
            TN_TRY(tn_string_printf(out, "&#%u;", code));
        } else if (strchr("<>&\"'", *text)) {
            TN_TRY(tn_string_printf(out, "&#%d;", *text));
        } else {
            TN_TRY(tn_string_append(out, text, 1));
        }
        text += length;
        size -= length;
    }
    return TN_OK;
}

/* A text whose middle, start or end stands at (x, y). */
static tn_status put_text(tn_string *out, double x, double y, const char *anchor, const char *extra,
                          const char *text) {
    TN_TRY(tn_string_printf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>", x, y, anchor, extra));
    TN_TRY(tn_xml_escape(out, text));
    return tn_string_printf(out, "</text>\n");
}

static const char *colour_of(const series *s) {
    return s->colour < 0 ? "currentColor" : tn_plot_colour(s->colour);
}

/* Where a panel's frame stands, and its axes. */
typedef struct frame {
    double left, top;
    tn_axis x, y;
} frame;

static double at_x(const frame *f, double value) {
    return f->left + tn_axis_place(&f->x, value) * PANEL_WIDTH;
}

static double at_y(const frame *f, double value) {
    return f->top + (1 - tn_axis_place(&f->y, value)) * PANEL_HEIGHT;
}

static void find_axes(const panel *p, frame *f) {
    tn_axis_begin(&f->x, p->log_x);
    tn_axis_begin(&f->y, p->log_y);
    for (size_t i = 0; i < p->count; i++) {
        const series *s = &p->series[i];
        for (int j = 0; j < s->count; j++) {
            if (!tn_axis_can_show(&f->x, s->x[j]) || !tn_axis_can_show(&f->y, s->y[j])) continue;
            tn_axis_include(&f->x, s->x[j]);
            tn_axis_include(&f->y, s->y[j]);
            if (!s->has_range) continue;
            tn_axis_include(&f->y, s->low[j]);
            tn_axis_include(&f->y, s->high[j]);
        }
    }
    tn_axis_end(&f->x, 6);
    tn_axis_end(&f->y, 5);
}

static tn_status put_axes(const panel *p, const frame *f, tn_string *out) {
    char label[TN_TICK_LABEL];
    double right = f->left + PANEL_WIDTH, bottom = f->top + PANEL_HEIGHT;
    for (int i = 0; i < f->x.ticks; i++) {
        double x = at_x(f, f->x.tick[i]);
        TN_TRY(tn_string_printf(out, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", x, f->top, bottom));
        tn_axis_label(&f->x, f->x.tick[i], label);
        TN_TRY(put_text(out, x, bottom + 16, "middle", "", label));
    }
    for (int i = 0; i < f->y.ticks; i++) {
        double y = at_y(f, f->y.tick[i]);
        TN_TRY(tn_string_printf(out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", f->left, y, right));
        tn_axis_label(&f->y, f->y.tick[i], label);
        TN_TRY(put_text(out, f->left - 6, y + 4, "end", "", label));
    }
    TN_TRY(tn_string_printf(out, "<rect class=\"frame\" x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\"/>\n",
                            f->left, f->top, PANEL_WIDTH, PANEL_HEIGHT));
    TN_TRY(put_text(out, f->left + PANEL_WIDTH / 2.0, f->top - 10, "middle", " class=\"title\"", p->title));
    TN_TRY(put_text(out, f->left + PANEL_WIDTH / 2.0, bottom + 36, "middle", "", p->x_label));
    char turned[80];
    double x = f->left - LEFT + 14, y = f->top + PANEL_HEIGHT / 2.0;
    snprintf(turned, sizeof turned, " transform=\"rotate(-90 %.1f %.1f)\"", x, y);
    return put_text(out, x, y, "middle", turned, p->y_label);
}

static bool shows(const frame *f, const series *s, int i) {
    return tn_axis_can_show(&f->x, s->x[i]) && tn_axis_can_show(&f->y, s->y[i]);
}

/* A point without neighbours, which no line would show, is a short stroke where points are not drawn. */
static tn_status put_line(const frame *f, const series *s, tn_string *out) {
    bool pen_down = false;
    TN_TRY(tn_string_printf(out, "<path class=\"line\" stroke=\"%s\"%s d=\"", colour_of(s),
                            s->mark == TN_MARK_DASHED ? " stroke-dasharray=\"5 4\"" : ""));
    for (int i = 0; i < s->count; i++) {
        bool here = shows(f, s, i), alone = !pen_down && (i + 1 == s->count || !shows(f, s, i + 1));
        if (here && alone && !(s->mark & TN_MARK_POINTS))
            TN_TRY(tn_string_printf(out, "M%.1f %.1fh16", at_x(f, s->x[i]) - 8, at_y(f, s->y[i])));
        else if (here)
            TN_TRY(tn_string_printf(out, "%c%.1f %.1f", pen_down ? 'L' : 'M', at_x(f, s->x[i]),
                                    at_y(f, s->y[i])));
        pen_down = here;
    }
    return tn_string_printf(out, "\"/>\n");
}

/* Runs of points that can be shown are one area each. */
static tn_status put_band(const frame *f, const series *s, tn_string *out) {
    for (int begin = 0, end; begin < s->count; begin = end + 1) {
        for (end = begin; end < s->count && shows(f, s, end) && tn_axis_can_show(&f->y, s->low[end]) &&
                          tn_axis_can_show(&f->y, s->high[end]);
             end++) {
        }
        if (end - begin < 2) continue;
        TN_TRY(tn_string_printf(out, "<path class=\"band\" fill=\"%s\" d=\"", colour_of(s)));
        for (int i = begin; i < end; i++)
            TN_TRY(tn_string_printf(out, "%c%.1f %.1f", i == begin ? 'M' : 'L', at_x(f, s->x[i]),
                                    at_y(f, s->high[i])));
        for (int i = end - 1; i >= begin; i--)
            TN_TRY(tn_string_printf(out, "L%.1f %.1f", at_x(f, s->x[i]), at_y(f, s->low[i])));
        TN_TRY(tn_string_printf(out, "Z\"/>\n"));
    }
    return TN_OK;
}

static tn_status put_points(const frame *f, const series *s, tn_string *out) {
    for (int i = 0; i < s->count; i++) {
        if (!shows(f, s, i)) continue;
        double x = at_x(f, s->x[i]);
        if (s->mark == TN_MARK_POINTS && s->has_range && tn_axis_can_show(&f->y, s->low[i]))
            TN_TRY(tn_string_printf(out, "<path class=\"line\" stroke=\"%s\" d=\"M%.1f %.1fV%.1f\"/>\n",
                                    colour_of(s), x, at_y(f, s->low[i]), at_y(f, s->high[i])));
        TN_TRY(tn_string_printf(out, "<circle fill=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\"/>\n",
                                colour_of(s), x, at_y(f, s->y[i])));
    }
    return TN_OK;
}

static tn_status put_marks(const frame *f, const series *s, tn_string *out) {
    if (s->has_range && s->mark != TN_MARK_POINTS) TN_TRY(put_band(f, s, out));
    if (s->mark != TN_MARK_POINTS) TN_TRY(put_line(f, s, out));
    return s->mark & TN_MARK_POINTS ? put_points(f, s, out) : TN_OK;
}

static tn_status put_series(const frame *f, const series *s, tn_string *out) {
    if (!s->css_class || !s->tip) return put_marks(f, s, out);
    TN_TRY(tn_string_printf(out, "<g class=\""));
    TN_TRY(tn_xml_escape(out, s->css_class));
    TN_TRY(tn_string_printf(out, "\"><title>"));
    TN_TRY(tn_xml_escape(out, s->tip));
    TN_TRY(tn_string_printf(out, "</title>\n"));
    TN_TRY(put_marks(f, s, out));
    return tn_string_printf(out, "</g>\n");
}

/* Lines of the legend; draws them when `out` is not NULL. */
static tn_status put_legend(const panel *p, double left, double top, tn_string *out, int *lines) {
    double x = 0;
    *lines = 0;
    for (size_t i = 0; i < p->count; i++) {
        const series *s = &p->series[i];
        if (!*s->label) continue;
        double width = 22 + LETTER * (double)strlen(s->label) + LEGEND_GAP;
        if (*lines == 0 || x + width > PANEL_WIDTH + LEFT / 2) {
            ++*lines;
            x = 0;
        }
        double y = top + (*lines - 1) * LEGEND_LINE;
        if (out && s->mark != TN_MARK_POINTS)
            TN_TRY(tn_string_printf(
                out, "<path class=\"line\" stroke=\"%s\"%s d=\"M%.1f %.1fh18\"/>\n", colour_of(s),
                s->mark == TN_MARK_DASHED ? " stroke-dasharray=\"5 4\"" : "", left + x, y - 4));
        if (out && (s->mark & TN_MARK_POINTS))
            TN_TRY(tn_string_printf(out, "<circle fill=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\"/>\n",
                                    colour_of(s), left + x + 9, y - 4));
        if (out) TN_TRY(put_text(out, left + x + 22, y, "start", "", s->label));
        x += width;
    }
    return TN_OK;
}

static tn_status put_panel(const panel *p, double left, double top, tn_string *out) {
    frame f = {.left = left + LEFT, .top = top + TOP};
    int lines;
    find_axes(p, &f);
    TN_TRY(put_axes(p, &f, out));
    for (size_t i = 0; i < p->count; i++) TN_TRY(put_series(&f, &p->series[i], out));
    return put_legend(p, f.left - LEFT / 2, f.top + PANEL_HEIGHT + BOTTOM + LEGEND_LINE, out, &lines);
}

/* Legend lines of the tallest panel in a row of them. */
static int legend_lines(const tn_plot *plot, size_t row, size_t columns) {
    int most = 0, lines;
    for (size_t i = row * columns; i < plot->count && i < (row + 1) * columns; i++) {
        (void)put_legend(&plot->panels[i], 0, 0, NULL, &lines); /* cannot fail without output */
        most = lines > most ? lines : most;
    }
    return most;
}

static double row_height(const tn_plot *plot, size_t row, size_t columns) {
    int lines = legend_lines(plot, row, columns);
    return TOP + PANEL_HEIGHT + BOTTOM + (lines > 0 ? LEGEND_LINE * (lines + 1) : 0);
}

static const char style[] =
    "<style>.tn-plot{color:#333;color-scheme:light dark}"
    ".tn-plot text{font:11px system-ui,sans-serif;fill:currentColor}"
    ".tn-plot text.title{font-size:13px;font-weight:600}"
    ".tn-plot .grid{stroke:#888;stroke-opacity:.25;fill:none}.tn-plot .frame{stroke:#888;fill:none}"
    ".tn-plot .line{fill:none;stroke-width:1.6;stroke-linejoin:round}.tn-plot .band{fill-opacity:.16}"
    "@media(prefers-color-scheme:dark){.tn-plot{color:#ddd}}</style>\n";

tn_status tn_plot_print(const tn_plot *plot, const char *title, tn_string *out) {
    size_t columns = plot->count == 4 ? 2 : plot->count < PER_ROW ? plot->count : PER_ROW;
    size_t rows = columns ? (plot->count + columns - 1) / columns : 0;
    double pitch = LEFT + PANEL_WIDTH + RIGHT, height = 8;
    for (size_t r = 0; r < rows; r++) height += row_height(plot, r, columns);
    TN_TRY(tn_string_printf(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"tn-plot\" role=\"img\" width=\"%.0f\" "
        "height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" style=\"max-width:100%%;height:auto\">\n<title>",
        pitch * (double)columns, height, pitch * (double)columns, height));
    TN_TRY(tn_xml_escape(out, title));
    TN_TRY(tn_string_printf(out, "</title>\n%s", style));
    double top = 0;
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = r * columns; i < plot->count && i < (r + 1) * columns; i++)
            TN_TRY(put_panel(&plot->panels[i], pitch * (double)(i - r * columns), top, out));
        top += row_height(plot, r, columns);
    }
    return tn_string_printf(out, "</svg>\n");
}
