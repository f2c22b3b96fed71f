/* Configuration files: the part of TOML 1.0 that options need.
 *
 *   # comment
 *   name = value        value: "text", 'text', 128, 1e-4, true, false
 *   [table]             and [[table]]: what follows belongs to it; options refuse them, recipes have them
 *
 * Names consist of letters, digits, '-' and '_' (which mean the same). Double-quoted text knows \" \\ \n \t
 * and \uXXXX. Arrays, inline tables, dates and text over several lines are refused, and so are NUL bytes,
 * other control characters and anything that is not UTF-8. Positions are file:line:column, columns counted in
 * characters from 1. */
#ifndef TN_BASE_CONFIG_FILE_H
#define TN_BASE_CONFIG_FILE_H

#include "base/fail.h"
#include "base/text.h"

#define TN_CONFIG_BYTES_MAX (1 << 20)
#define TN_CONFIG_LINE_MAX  32768 /* bytes of a line */
#define TN_CONFIG_NAME_MAX  64    /* bytes of a name, with the NUL */

typedef enum tn_config_kind {
    TN_CONFIG_STRING,
    TN_CONFIG_NUMBER, /* integer or float; `value` is its text without '_' */
    TN_CONFIG_BOOL,   /* "true" or "false" */
    TN_CONFIG_TABLE,  /* [name]: `value` is empty */
    TN_CONFIG_ELEMENT /* [[name]]: one more of that name */
} tn_config_kind;

/* One line of a file that is neither blank nor a comment, valid during the visit. */
typedef struct tn_config_entry {
    const char *file;  /* fit to be shown */
    const char *name;  /* with '-' for '_' */
    const char *value; /* decoded, NUL-terminated UTF-8 */
    tn_config_kind kind;
    int line, name_column, value_column;
} tn_config_entry;

/* Called for each such line, in order. What it returns, when not TN_OK, ends the parse and is
 * returned; the visitor puts the position into its message. */
typedef tn_status (*tn_config_visit)(void *context, const tn_config_entry *entry);

/* Parses `size` bytes. `file` names them in messages. TN_ERR_USAGE for text that is not of this form. */
tn_status tn_config_parse(const char *bytes, size_t size, const char *file, tn_config_visit visit,
                          void *context);

/* The same for a file. TN_ERR_IO when it cannot be read. */
tn_status tn_config_read(const char *path, tn_config_visit visit, void *context);

/* Appends `value` as a double-quoted string that tn_config_parse reads back. `value` is UTF-8. */
tn_status tn_config_quote(tn_string *out, const char *value);

#endif
