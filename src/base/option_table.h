/* The table of options: one row holds all that is known about an option. */
#ifndef TN_BASE_OPTION_TABLE_H
#define TN_BASE_OPTION_TABLE_H

#include "base/fail.h"
#include "base/text.h"
#include "taunet/options.h"

typedef enum tn_option_type {
    TN_OPTION_INT,    /* int */
    TN_OPTION_SEED,   /* uint64_t from 0 to 2^63 - 1 */
    TN_OPTION_NUMBER, /* double, finite */
    TN_OPTION_BOOL,   /* bool */
    TN_OPTION_CHOICE, /* an enum: index into `choices` */
    TN_OPTION_TEXT,   /* char *, one of `choices` when there are any */
    TN_OPTION_LIST,   /* tn_float_list */
    TN_OPTION_SHAPE   /* tn_input_shape */
} tn_option_type;

/* What --resume does when the option is given with another value than the run's. */
typedef enum tn_option_resume {
    TN_RESUME_FIXED = 0, /* refuse */
    TN_RESUME_FREE,      /* take the new value */
    TN_RESUME_MOVED      /* KIND:PLACE: take another place, refuse another kind; "synthetic" has no place */
} tn_option_resume;

typedef struct tn_option {
    const char *name;
    const char *group;    /* heading in help and config.toml */
    const char *argument; /* what help shows for the value */
    const char *standard; /* the default, as a user would write it; "" stands for not set */
    const char *help;     /* one line */
    const char *unset;    /* what help calls the default; NULL: `standard`, or "none" where that is "" */
    unsigned commands;    /* bits of tn_command: whose option it is */
    unsigned required;    /* of those, who cannot do without */
    tn_option_type type;
    size_t offset; /* of the field in tn_options */
    double min, max;
    bool above_min, below_max;  /* the bound itself is not allowed */
    const char *zero;           /* int, shape: the word for 0, which is then allowed beside min to max */
    const char *const *choices; /* ends with NULL */
    tn_status (*check)(const char *value); /* text: further checks; the message is complete */
    tn_option_resume resume;
    bool repeated;          /* text: may be given again; the values are joined by newlines */
    bool command_line_only; /* an order, not a setting: neither saved nor read from files */
} tn_option;

extern const tn_option tn_option_rows[];
extern const int tn_option_count;

typedef struct tn_command {
    const char *name, *help, *example;
    unsigned bit;
    const char *positional; /* the option that an argument without dashes stands for; NULL: there is none */
} tn_command;

extern const tn_command tn_command_rows[];
extern const int tn_command_count;

/* TN_ERR_USAGE, with the nearest name, when there is no such command. */
tn_status tn_command_find(const char *name, const tn_command **out);

/* Finds the option of a command; '_' counts as '-'. `dashes` ("--" or "") stands before names in messages.
 * TN_ERR_USAGE with the nearest name, or with the commands that have the option. */
tn_status tn_option_find(const tn_command *command, const char *dashes, const char *name,
                         const tn_option **out);

/* The first row of the command's options at or behind `row`; NULL when there is none. All rows of a command:
 * for (row = tn_option_rows; (row = tn_option_next(command, row)); row++) */
const tn_option *tn_option_next(const tn_command *command, const tn_option *row);

/* Parses `value` into the row's field; frees the text that was there. On failure the field is as it was. */
tn_status tn_option_parse(const tn_option *row, tn_options *options, const char *value);

/* Appends the field as text that tn_option_parse reads back to the same value. */
tn_status tn_option_print(const tn_option *row, const tn_options *options, tn_string *out);

/* Appends what values are allowed, such as "from 1 to 64"; nothing when any are. */
tn_status tn_option_range(const tn_option *row, tn_string *out);

#endif
