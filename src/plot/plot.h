/* Line plots as SVG: panels side by side, linear or logarithmic axes, lines, points, bands, a legend.
 *
 * The picture has no colours of its own for text and axes beyond a class with a light and a dark form, so
 * that it reads on both; it loads nothing from outside. */
#ifndef TN_PLOT_PLOT_H
#define TN_PLOT_PLOT_H

#include <stdbool.h>

#include "base/text.h"

typedef struct tn_plot tn_plot;

typedef enum tn_mark {
    TN_MARK_LINE = 1,
    TN_MARK_POINTS = 2,
    TN_MARK_BOTH = 3,
    TN_MARK_DASHED = 4 /* a line without points: bounds, fits, references */
} tn_mark;

/* Free with tn_plot_free; NULL is allowed there. */
tn_status tn_plot_create(tn_plot **out);
void tn_plot_free(tn_plot *plot);

/* Adds a panel to the right of the others (rows of at most three) and gives its number. */
tn_status tn_plot_panel(tn_plot *plot, const char *title, const char *x_label, const char *y_label,
                        bool log_x, bool log_y, int *panel);

/* Adds a series of `count` points. Points that are not finite, or not positive on a logarithmic axis, leave a
 * gap. Series of a panel with the same `colour` (0, 1, ... of the palette; -1: the colour of text) share it.
 * `low` and `high` (both or neither) draw a band or, with points alone, bars. An empty label stays out of the
 * legend. Everything is copied. */
tn_status tn_plot_series(tn_plot *plot, int panel, const char *label, int colour, tn_mark mark, int count,
                         const double *x, const double *y, const double *low, const double *high);

/* Marks the panel's last series for a page around the picture: it is drawn inside <g class="CLASS"> with
 * `tip` as its tooltip. Both are copied. */
tn_status tn_plot_mark_series(tn_plot *plot, int panel, const char *css_class, const char *tip);

/* The colour of a palette entry (0, 1, ...; they repeat after TN_PLOT_COLOURS), as #rrggbb. */
enum { TN_PLOT_COLOURS = 8 };
const char *tn_plot_colour(int colour);

/* Puts points together in windows of equal size, so that at most `most` are left: x and y become means, low
 * the least and high the greatest of a window (both or neither may be NULL). Returns how many are left. */
int tn_plot_thin(double *x, double *y, double *low, double *high, int count, int most);

/* Appends the whole SVG document, without an XML prolog: fit for a file of its own and for HTML. */
tn_status tn_plot_print(const tn_plot *plot, const char *title, tn_string *out);

/* Appends `text` with what XML and HTML reserve, and all that is not ASCII, as character references. */
tn_status tn_xml_escape(tn_string *out, const char *text);

#endif
