/* The options of the commands, as one struct with typed fields.
 *
 * Names, meanings, defaults and ranges live in one table (src/base/option_table.c); the command line,
 * configuration files, help and the saved config.toml are all read from and printed by that table. `taunet
 * help COMMAND` shows it. */
#ifndef TAUNET_OPTIONS_H
#define TAUNET_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "taunet/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_tau_sharing { TN_TAU_SHARED, TN_TAU_PER_BLOCK } tn_tau_sharing;
typedef enum tn_augment { TN_AUGMENT_STANDARD, TN_AUGMENT_NONE } tn_augment;
typedef enum tn_bad_sample { TN_BAD_SAMPLE_STOP, TN_BAD_SAMPLE_SKIP } tn_bad_sample;

typedef struct tn_input_shape {
    int channels, height, width;
} tn_input_shape;

#define TN_OPTION_LIST_MAX 16

/* A list of numbers such as a mean per channel; count 0 when the option is not given. */
typedef struct tn_float_list {
    int count;
    float values[TN_OPTION_LIST_MAX];
} tn_float_list;

#define TN_OPTIONS_MAX 128

/* Values of the options of one command. Options of other commands keep zero, NULL or false. Texts are never
 * NULL for an option of the command, are UTF-8 and belong to the struct: change them through tn_options_set
 * only. The other fields may be assigned; such a change is saved and compared like any other but does not
 * count as given. */
typedef struct tn_options {
    /* model */
    char *model, *variant;
    char *tau; /* expression in L, "" for the variant's own */
    tn_tau_sharing tau_sharing;
    bool bn_shortcut, zero_init_last_gamma;
    int width, depth; /* of the fully connected networks; 0 = the network's (or theory experiment's) own */
    char *loss;       /* "cross-entropy" or "squared" */
    bool train_ends;
    tn_input_shape input; /* zeros, and classes 0 = the model's own */
    int classes;
    /* data */
    char *data; /* specification for tn_dataset_open */
    tn_augment augment;
    double mixup, label_smoothing; /* 0 = off */
    bool shuffle;
    tn_float_list mean, std; /* of pixel / 255 */
    int limit_batches;       /* 0 = all */
    int image_size, resize;  /* of folder and webdataset; 0 = the data set's own (the checkpoint's) */
    tn_bad_sample on_bad_sample;
    /* optimisation */
    int epochs, steps; /* steps: 0 = `epochs` decides; for bench, timed steps */
    int warmup_steps;
    int batch, micro_batch; /* images; micro_batch 0 = auto */
    bool recompute;         /* activations inside blocks, instead of keeping them */
    double lr, momentum, weight_decay;
    double scalar_lr; /* factor on lr for the scalar group */
    char *schedule;   /* for tn_schedule_parse */
    double warmup;    /* epochs */
    double ema;       /* share that an average of the weights keeps at each step; 0 = no average */
    uint64_t seed;
    char *init; /* file, "" for none */
    /* device */
    char *device; /* "auto", "cpu", "cuda", "cuda:N" */
    int threads;  /* 0 = auto */
    tn_precision precision;
    bool deterministic;
    /* several processes */
    int gpus; /* processes to start on this machine, 0 = as started */
    bool sync_bn;
    double comm_timeout; /* seconds */
    char *signal;        /* "USR1", ...: checkpoint and leave */
    /* files */
    char *out; /* a folder for train and theory, a file for init */
    bool resume, overwrite;
    int save_every, keep, eval_every; /* epochs; keep counts files */
    int log_every;                    /* steps */
    char *probe;                      /* "norms", "" for none */
    char *profile;                    /* file, "" for none */
    char *checkpoint, *predictions;   /* files, predictions "" for none */
    char *plan;                       /* "sm_80", "sm_90", "" for none */
    bool json;
    /* theory */
    char *experiment; /* name of the experiment */
    /* and width; 0 = the experiment's own, and so below */
    tn_float_list depths; /* whole numbers; empty = the experiment's own */
    int trials, samples;  /* independent initialisations; data points */
    bool quick;
    /* table */
    char *recipe, *scale; /* name or file; "full", "quick" or "smoke" */
    int jobs;
    char *train_options; /* further options of every run, as words; "" for none */
    bool list, collect;
    /* report */
    char *runs; /* folders, one a line */
    /* general */
    char *config; /* the last configuration file that was read, "" for none */
    bool print_config, help;

    /* Private: whose options these are, and which were given, by row of the table. */
    const char *command;
    bool given[TN_OPTIONS_MAX];
} tn_options;

/* Makes the options of `command` ("train", "eval", "init", "info", "bench", "theory", "table",
 * "report") with their defaults.
 * TN_ERR_USAGE, with the nearest name, when there is no such command. Free with tn_options_free; NULL is
 * allowed there. */
tn_status tn_options_create(const char *command, tn_options **out);
void tn_options_free(tn_options *options);

/* Reads the arguments that follow the command: `--name value`, `--name=value`, and `--name` alone for yes or
 * no options; "theory" takes the name of its experiment as an argument of its own, "table" that of its
 * recipe, "report" any number of folders. What comes later wins;
 * `--config FILE` is read at its place. TN_ERR_USAGE names option, value and what is allowed. */
tn_status tn_options_parse(tn_options *options, int argc, char *const *argv);

/* Reads a configuration file, or `size` bytes of one that messages call `file`. Each name may be set once in
 * it; it holds no options that only make sense on the command line (--config, --resume, ...). */
tn_status tn_options_load(tn_options *options, const char *path);
tn_status tn_options_load_text(tn_options *options, const char *text, size_t size, const char *file);

/* Sets one option, as `--name value` would. On failure the option keeps its value. */
tn_status tn_options_set(tn_options *options, const char *name, const char *value);

/* Whether the option was given on the command line, in a file or by tn_options_set. False for unknown names.
 */
bool tn_options_is_given(const tn_options *options, const char *name);

/* Checks what single values cannot show, just before the work starts: required options are there, and options
 * that exclude each other are not. TN_ERR_USAGE. */
tn_status tn_options_check(const tn_options *options);

/* Prepares a resumed run: `run` holds the options of the run's config.toml, `given` what was asked for now,
 * both of the same command. TN_ERR_USAGE when an option that was given and that must stay as it was
 * (everything that changes the mathematics) differs, with both values; else everything given is put into
 * `run`. On any failure `run` must not be used for training. */
tn_status tn_options_resume(tn_options *run, const tn_options *given);

/* The configuration file that holds every option of the command, as text (see src/base/config_file.h); the
 * first line is a comment with the program's version. Reading it back gives the same values exactly. Free
 * with tn_options_free_text. */
tn_status tn_options_print_config(const tn_options *options, char **out);

/* Help for a command, or the overview of all commands for NULL: lines of at most 100 columns. Free with
 * tn_options_free_text. */
tn_status tn_options_help(const char *command, char **out);

void tn_options_free_text(char *text);

#ifdef __cplusplus
}
#endif
#endif
