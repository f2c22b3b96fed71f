#include "base/option_table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/expression.h"
#include "base/schedule.h"

enum {
    TRAIN = 1,
    EVAL = 2,
    INIT = 4,
    INFO = 8,
    BENCH = 16,
    THEORY = 32,
    TABLE = 64,
    REPORT = 128,
    ALL = 255
};

const tn_command tn_command_rows[] = {
    {"train", "train a model", "taunet train --data cifar10:DIR --out runs/first", TRAIN, NULL},
    {"eval", "evaluate a checkpoint",
     "taunet eval --checkpoint runs/first/best.safetensors --data cifar10:DIR", EVAL, NULL},
    {"init", "write freshly initialised weights", "taunet init --model resnet110 --out weights.safetensors",
     INIT, NULL},
    {"info", "devices, libraries, build, model summary", "taunet info --model resnet110 --variant tau", INFO,
     NULL},
    {"bench", "throughput of a training step", "taunet bench --model resnet20 --batch 128 --steps 20", BENCH,
     NULL},
    {"theory", "measure a claim of the theory", "taunet theory spectral --out runs/spectral", THEORY,
     "experiment"},
    {"table", "reproduce a table or figure", "taunet table table1 --scale quick --data cifar10:DIR", TABLE,
     "recipe"},
    {"report", "HTML report of runs", "taunet report runs/first runs/second --out compare.html", REPORT,
     "run"},
};
const int tn_command_count = sizeof tn_command_rows / sizeof *tn_command_rows;

static const char *const variants[] = {"bn", "bn-tau", "tau", "fixup", "alpha", "skipinit", "plain", NULL};
/* In the order of the enums of options.h. */
static const char *const tau_sharings[] = {"shared", "per-block", NULL};
static const char *const augmentations[] = {"standard", "none", NULL};
static const char *const bad_samples[] = {"stop", "skip", NULL};
static const char *const losses[] = {"cross-entropy", "squared", NULL};
static const char *const probes[] = {"norms", NULL};
static const char *const signals[] = {"USR1", "USR2", "HUP", "INT", "TERM", NULL};
static const char *const scales[] = {"full", "quick", "smoke", NULL};
static const char *const precisions[] = {"fp32", "tf32", "bf16", NULL};
static const char *const architectures[] = {"sm_80", "sm_90", NULL};

static tn_status check_schedule(const char *value) {
    tn_schedule schedule;
    return tn_schedule_parse(value, &schedule);
}

static tn_status check_device(const char *value) {
    if (strcmp(value, "auto") == 0 || strcmp(value, "cpu") == 0 || strcmp(value, "cuda") == 0) return TN_OK;
    const char *index = strncmp(value, "cuda:", 5) == 0 ? value + 5 : "";
    size_t digits = strspn(index, "0123456789");
    if (digits >= 1 && digits <= 3 && index[digits] == 0) return TN_OK;
    return tn_fail(TN_ERR_USAGE, "--device \"%s\": no such device; use auto, cpu, cuda or cuda:N",
                   tn_make_legible(value).text);
}

static tn_status check_devices(const char *value) {
    char name[32];
    for (const char *at = value;; at++) {
        size_t length = strcspn(at, ",");
        snprintf(name, sizeof name, "%.*s", (int)length, at);
        TN_TRY(check_device(name));
        at += length;
        if (!*at) return TN_OK;
    }
}

/* The type of a row follows from its field, so that the two cannot disagree. Enums are unsigned here. */
#define FIELD(field)                                                                                         \
    .type = _Generic(((tn_options *)0)->field,                                                               \
        int: TN_OPTION_INT,                                                                                  \
        uint64_t: TN_OPTION_SEED,                                                                            \
        double: TN_OPTION_NUMBER,                                                                            \
        bool: TN_OPTION_BOOL,                                                                                \
        unsigned: TN_OPTION_CHOICE,                                                                          \
        char *: TN_OPTION_TEXT,                                                                              \
        tn_float_list: TN_OPTION_LIST,                                                                       \
        tn_input_shape: TN_OPTION_SHAPE),                                                                    \
    .offset = offsetof(tn_options, field)

#define IN_PLACE "in place of what the checkpoint names"

#define MODEL       .group = "model"
#define DATA        .group = "data"
#define TRAINING    .group = "training"
#define DEVICE      .group = "device"
#define FILES       .group = "files"
#define THEORETICAL .group = "experiment"
#define TABULAR     .group = "table"
#define REPORTING   .group = "report"
#define GENERAL     .group = "general"

/* clang-format off */
const tn_option tn_option_rows[] = {
    {"model", MODEL, "NAME", "resnet20", FIELD(model), .commands = TRAIN | INIT | INFO | BENCH,
     .help = "resnet20, resnet110: any depth 6n+2; resnet18, 34, 50, 101, 152; fcresnet or feedforward"},
    {"model", MODEL, "NAME", "", FIELD(model), .commands = EVAL, .unset = "the checkpoint's",
     .help = IN_PLACE},
    {"variant", MODEL, "NAME", "tau", FIELD(variant), .commands = TRAIN | INIT | INFO | BENCH, .choices = variants,
     .help = "how the residual branch is normalised or scaled"},
    {"variant", MODEL, "NAME", "", FIELD(variant), .commands = EVAL, .choices = variants,
     .unset = "the checkpoint's", .help = IN_PLACE},
    {"tau", MODEL, "EXPRESSION", "", FIELD(tau), .commands = TRAIN | INIT | INFO | BENCH, .check = tn_expression_check,
     .unset = "the variant's",
     .help = "factor of the residual branches, in the number of blocks L: 1/sqrt(L), 2/sqrt(L), 1/L, L^-0.25, 0.136"},
    {"tau", MODEL, "EXPRESSION", "", FIELD(tau), .commands = EVAL, .check = tn_expression_check,
     .unset = "the checkpoint's", .help = IN_PLACE},
    {"tau-sharing", MODEL, "HOW", "shared", FIELD(tau_sharing), .commands = TRAIN | INIT | INFO | BENCH,
     .choices = tau_sharings, .help = "variant tau: one learnable tau for all blocks or one each"},
    {"tau-sharing", MODEL, "HOW", "shared", FIELD(tau_sharing), .commands = EVAL, .choices = tau_sharings,
     .unset = "the checkpoint's", .help = IN_PLACE},
    {"bn-shortcut", MODEL, "YES|NO", "yes", FIELD(bn_shortcut), .commands = TRAIN | INIT | INFO | BENCH,
     .help = "bn networks: batch norm on the shortcuts that change shape"},
    {"bn-shortcut", MODEL, "YES|NO", "yes", FIELD(bn_shortcut), .commands = EVAL, .unset = "the checkpoint's",
     .help = IN_PLACE},
    {"zero-init-last-gamma", MODEL, "YES|NO", "no", FIELD(zero_init_last_gamma), .commands = TRAIN | INIT | INFO | BENCH,
     .help = "bn networks: start the last batch norm of each block at gamma = 0"},
    {"width", MODEL, "M", "auto", FIELD(width), .commands = TRAIN | INIT | INFO | BENCH, .min = 1, .max = 65536,
     .zero = "auto", .help = "hidden units in a layer of fcresnet and feedforward; auto is 128"},
    {"width", MODEL, "M", "auto", FIELD(width), .commands = EVAL, .min = 1, .max = 65536, .zero = "auto",
     .unset = "the checkpoint's", .help = IN_PLACE},
    {"depth", MODEL, "L", "auto", FIELD(depth), .commands = TRAIN | INIT | INFO | BENCH, .min = 1, .max = 20000,
     .zero = "auto", .help = "hidden layers W_1 to W_L of fcresnet and feedforward; auto is 10"},
    {"depth", MODEL, "L", "auto", FIELD(depth), .commands = EVAL, .min = 1, .max = 20000, .zero = "auto",
     .unset = "the checkpoint's", .help = IN_PLACE},
    {"train-ends", MODEL, "YES|NO", "no", FIELD(train_ends), .commands = TRAIN | INIT | INFO | BENCH,
     .help = "fcresnet and feedforward: train the first and the last matrix too"},
    {"train-ends", MODEL, "YES|NO", "no", FIELD(train_ends), .commands = EVAL, .unset = "the checkpoint's",
     .help = IN_PLACE},
    {"loss", MODEL, "NAME", "cross-entropy", FIELD(loss), .commands = TRAIN | INIT | INFO | BENCH, .choices = losses,
     .help = "softmax cross-entropy, or half the squared distance to the target"},
    {"loss", MODEL, "NAME", "cross-entropy", FIELD(loss), .commands = EVAL, .choices = losses,
     .unset = "the checkpoint's", .help = IN_PLACE},
    {"input", MODEL, "CxHxW", "auto", FIELD(input), .commands = INIT | INFO | BENCH, .min = 1, .max = 4096,
     .zero = "auto", .help = "an image's channels, height, width; auto is 3x32x32, of ImageNet's networks 3x224x224"},
    {"classes", MODEL, "N", "auto", FIELD(classes), .commands = INIT | INFO | BENCH, .min = 1, .max = 1000000,
     .zero = "auto", .help = "outputs of the last layer; auto is 10, of ImageNet's networks 1000"},

    {"data", DATA, "SPEC", "", FIELD(data), .commands = TRAIN | EVAL, .required = TRAIN | EVAL,
     .resume = TN_RESUME_MOVED,
     .help = "cifar10:DIR, cifar100:DIR, mnist:DIR, folder:DIR, webdataset:DIR, synthetic:CxHxW:CLASSES:COUNT"},
    {"image-size", DATA, "N", "auto", FIELD(image_size), .commands = TRAIN, .min = 1, .max = 4096, .zero = "auto",
     .help = "folder and webdataset: side of the images that the network sees; auto is 224"},
    {"image-size", DATA, "N", "auto", FIELD(image_size), .commands = EVAL, .min = 1, .max = 4096, .zero = "auto",
     .help = "folder and webdataset: side of the central crop; auto is the checkpoint's"},
    {"resize", DATA, "N", "auto", FIELD(resize), .commands = TRAIN | EVAL, .min = 1, .max = 4096, .zero = "auto",
     .help = "short side before the crop of an evaluation; auto is 8/7 of --image-size: 256 for 224"},
    {"on-bad-sample", DATA, "HOW", "stop", FIELD(on_bad_sample), .commands = TRAIN | EVAL, .choices = bad_samples,
     .resume = TN_RESUME_FREE, .help = "folder and webdataset: an image that cannot be read stops the run or is left out"},
    {"augment", DATA, "HOW", "standard", FIELD(augment), .commands = TRAIN, .choices = augmentations,
     .help = "random crops (of folder and webdataset also sizes) and flips, or none"},
    {"mixup", DATA, "ALPHA", "0", FIELD(mixup), .commands = TRAIN, .min = 0, .max = 1000,
     .help = "mix pairs of images with weights from Beta(ALPHA, ALPHA); 0 is off"},
    {"label-smoothing", DATA, "E", "0", FIELD(label_smoothing), .commands = TRAIN, .min = 0, .max = 1, .below_max = true,
     .help = "spread a share E of each target over all classes"},
    {"shuffle", DATA, "YES|NO", "yes", FIELD(shuffle), .commands = TRAIN,
     .help = "a new order of the training images in each epoch"},
    {"mean", DATA, "X,X,...", "", FIELD(mean), .commands = TRAIN | EVAL, .unset = "the data set's", .min = -INFINITY,
     .max = INFINITY, .help = "mean of each channel, of pixels from 0 to 1"},
    {"std", DATA, "X,X,...", "", FIELD(std), .commands = TRAIN | EVAL, .unset = "the data set's", .min = 0,
     .above_min = true, .max = INFINITY, .help = "standard deviation of each channel"},
    {"limit-batches", DATA, "N", "0", FIELD(limit_batches), .commands = TRAIN, .min = 0, .max = 1000000000,
     .help = "at most N batches an epoch, for quick looks; 0 is all"},

    {"epochs", TRAINING, "N", "200", FIELD(epochs), .commands = TRAIN, .min = 1, .max = 1000000, .resume = TN_RESUME_FREE,
     .help = "length of the run"},
    {"steps", TRAINING, "N", "0", FIELD(steps), .commands = TRAIN, .min = 0, .max = 1000000000, .resume = TN_RESUME_FREE,
     .help = "length of the run in steps; 0 leaves it to --epochs"},
    {"steps", TRAINING, "N", "20", FIELD(steps), .commands = BENCH, .min = 1, .max = 1000000, .help = "timed steps"},
    {"warmup-steps", TRAINING, "N", "5", FIELD(warmup_steps), .commands = BENCH, .min = 0, .max = 1000000,
     .help = "steps before the timed ones"},
    {"batch", TRAINING, "N", "128", FIELD(batch), .commands = TRAIN | EVAL | INFO | BENCH, .min = 1, .max = 1048576,
     .help = "images in a batch, over all workers"},
    {"micro-batch", TRAINING, "N", "auto", FIELD(micro_batch), .commands = TRAIN | EVAL | INFO | BENCH, .min = 1,
     .max = 1048576, .zero = "auto", .help = "images at a time in each worker"},
    {"recompute", TRAINING, "YES|NO", "no", FIELD(recompute), .commands = TRAIN | INFO | BENCH,
     .resume = TN_RESUME_FREE,
     .help = "keep the outputs of blocks alone and compute the rest again for backward: less memory, the same results"},
    {"lr", TRAINING, "X", "0.1", FIELD(lr), .commands = TRAIN, .min = 0, .max = INFINITY, .help = "learning rate"},
    {"momentum", TRAINING, "X", "0.9", FIELD(momentum), .commands = TRAIN, .min = 0, .max = 1, .below_max = true,
     .help = "momentum of SGD"},
    {"weight-decay", TRAINING, "X", "1e-4", FIELD(weight_decay), .commands = TRAIN, .min = 0, .max = INFINITY,
     .help = "weight decay on all parameters"},
    {"scalar-lr", TRAINING, "X", "0.1", FIELD(scalar_lr), .commands = TRAIN, .min = 0, .max = INFINITY,
     .help = "factor on the learning rate of tau, alpha, scale and the scalar biases"},
    {"schedule", TRAINING, "SPEC", "step:100,150:0.1", FIELD(schedule), .commands = TRAIN, .check = check_schedule,
     .help = "constant, cosine, or step:EPOCH,EPOCH,...:FACTOR"},
    {"warmup", TRAINING, "EPOCHS", "0", FIELD(warmup), .commands = TRAIN, .min = 0, .max = 1000000,
     .help = "epochs, or part of one, over which the learning rate rises linearly"},
    {"ema", TRAINING, "DECAY", "0", FIELD(ema), .commands = TRAIN, .min = 0, .max = 1, .below_max = true,
     .help = "evaluate, and keep as best, an average of the weights that keeps DECAY of itself at each step; 0 is off"},
    {"seed", TRAINING, "N", "0", FIELD(seed), .commands = TRAIN | INIT, .help = "seed of all randomness"},
    {"init", TRAINING, "FILE", "", FIELD(init), .commands = TRAIN, .help = "start from the weights of this checkpoint"},

    {"device", DEVICE, "NAME", "auto", FIELD(device), .commands = TRAIN | EVAL | BENCH, .check = check_device,
     .resume = TN_RESUME_FREE, .help = "auto, cpu, cuda or cuda:N"},
    {"threads", DEVICE, "N", "auto", FIELD(threads), .commands = TRAIN | EVAL | INFO | BENCH, .min = 1, .max = 1024,
     .zero = "auto", .resume = TN_RESUME_FREE, .help = "workers on the CPU; auto is one a core"},
    {"precision", DEVICE, "NAME", "fp32", FIELD(precision), .commands = TRAIN | EVAL | BENCH, .choices = precisions,
     .help = "arithmetic; the CPU computes in fp32"},
    {"precision", DEVICE, "NAME", "fp32", FIELD(precision), .commands = INFO, .choices = precisions,
     .help = "arithmetic of --plan"},
    {"plan", DEVICE, "ARCH", "", FIELD(plan), .commands = INFO, .choices = architectures,
     .help = "instead: which kernels a GPU (sm_80, sm_90) would run, and their predicted cost; needs no GPU"},
    {"deterministic", DEVICE, "YES|NO", "yes", FIELD(deterministic), .commands = TRAIN, .resume = TN_RESUME_FREE,
     .help = "the same bits on each run, whatever the threads; the CPU knows no other mode"},

    {"gpus", DEVICE, "N", "auto", FIELD(gpus), .commands = TRAIN, .min = 1, .max = 1024, .zero = "auto",
     .resume = TN_RESUME_FREE, .command_line_only = true,
     .help = "start N processes on this machine that train together; auto is as mpirun or srun started"},
    {"sync-bn", DEVICE, "YES|NO", "no", FIELD(sync_bn), .commands = TRAIN,
     .help = "several processes: batch norm over the whole batch, as in one process, not over each share"},
    {"comm-timeout", DEVICE, "SECONDS", "300", FIELD(comm_timeout), .commands = TRAIN, .min = 1, .max = 1e6,
     .resume = TN_RESUME_FREE, .help = "several processes: how long one may keep the others waiting"},
    {"signal", DEVICE, "NAME", "USR1", FIELD(signal), .commands = TRAIN, .choices = signals, .resume = TN_RESUME_FREE,
     .help = "signal that means: save and leave; so do INT, TERM and HUP"},

    {"out", FILES, "DIR", "", FIELD(out), .commands = TRAIN, .required = TRAIN, .resume = TN_RESUME_FREE,
     .help = "folder of the run"},
    {"out", FILES, "FILE", "", FIELD(out), .commands = INIT, .required = INIT, .help = "safetensors file to write"},
    {"resume", FILES, "YES|NO", "no", FIELD(resume), .commands = TRAIN, .command_line_only = true,
     .resume = TN_RESUME_FREE, .help = "continue the run in --out"},
    {"overwrite", FILES, "YES|NO", "no", FIELD(overwrite), .commands = TRAIN, .command_line_only = true,
     .resume = TN_RESUME_FREE, .help = "replace the run in --out"},
    {"save-every", FILES, "EPOCHS", "1", FIELD(save_every), .commands = TRAIN, .min = 1, .max = 1000000,
     .resume = TN_RESUME_FREE, .help = "epochs between checkpoints"},
    {"keep", FILES, "N", "0", FIELD(keep), .commands = TRAIN, .min = 0, .max = 1000000, .resume = TN_RESUME_FREE,
     .help = "how many epoch-NNNN.safetensors to keep beside best and last"},
    {"eval-every", FILES, "EPOCHS", "1", FIELD(eval_every), .commands = TRAIN, .min = 1, .max = 1000000,
     .resume = TN_RESUME_FREE, .help = "epochs between evaluations on the validation data"},
    {"log-every", FILES, "STEPS", "10", FIELD(log_every), .commands = TRAIN, .min = 1, .max = 1000000000,
     .resume = TN_RESUME_FREE, .help = "steps between lines of log.jsonl"},
    {"probe", FILES, "WHAT", "", FIELD(probe), .commands = TRAIN, .choices = probes,
     .help = "norms: each epoch the norm of every block's output and of its gradient, to probes.csv"},
    {"profile", FILES, "FILE", "", FIELD(profile), .commands = TRAIN, .resume = TN_RESUME_FREE,
     .help = "write a Chrome trace of some steps"},
    {"checkpoint", FILES, "FILE", "", FIELD(checkpoint), .commands = EVAL, .required = EVAL,
     .help = "safetensors file with the weights"},
    {"predictions", FILES, "FILE", "", FIELD(predictions), .commands = EVAL,
     .help = "write the logits as .npy: float32, images x classes, in the order of the data"},
    {"out", FILES, "DIR", "", FIELD(out), .commands = THEORY, .required = THEORY, .help = "folder for the results"},
    {"overwrite", FILES, "YES|NO", "no", FIELD(overwrite), .commands = THEORY, .command_line_only = true,
     .help = "replace the results in --out"},
    {"json", FILES, "YES|NO", "no", FIELD(json), .commands = EVAL | INFO | BENCH, .help = "print one JSON object"},

    {"experiment", THEORETICAL, "NAME", "", FIELD(experiment), .commands = THEORY, .required = THEORY,
     .help = "what to measure, also as an argument of its own; 'taunet theory list' lists them"},
    {"width", THEORETICAL, "M", "auto", FIELD(width), .commands = THEORY, .min = 2, .max = 65536, .zero = "auto",
     .help = "units of a layer; auto is the experiment's own, here and below"},
    {"depths", THEORETICAL, "L,L,...", "", FIELD(depths), .commands = THEORY, .unset = "the experiment's", .min = 2,
     .max = 100000, .help = "numbers of layers to compare"},
    {"trials", THEORETICAL, "N", "auto", FIELD(trials), .commands = THEORY, .min = 1, .max = 1000, .zero = "auto",
     .help = "independent initialisations of each network"},
    {"samples", THEORETICAL, "N", "auto", FIELD(samples), .commands = THEORY, .min = 2, .max = 4096, .zero = "auto",
     .help = "data points"},
    {"data", THEORETICAL, "SPEC", "", FIELD(data), .commands = THEORY, .unset = "the experiment's",
     .help = "images: fig1 takes mnist:../shared/data/mnist unless told otherwise, bn noise"},
    {"steps", THEORETICAL, "N", "auto", FIELD(steps), .commands = THEORY, .min = 1, .max = 1000000, .zero = "auto",
     .help = "training steps of a network"},
    {"checkpoint", THEORETICAL, "FILE", "", FIELD(checkpoint), .commands = THEORY,
     .help = "bn: measure the network in this file instead of fresh ones"},
    {"runs", THEORETICAL, "DIR", "", FIELD(runs), .commands = THEORY, .repeated = true,
     .help = "bn: the epochs of this run with --probe norms instead of fresh networks; may be repeated"},
    {"quick", THEORETICAL, "YES|NO", "no", FIELD(quick), .commands = THEORY,
     .help = "small networks and few trials: seconds, to see that it works"},
    {"seed", THEORETICAL, "N", "0", FIELD(seed), .commands = THEORY, .help = "seed of all randomness"},
    {"threads", THEORETICAL, "N", "auto", FIELD(threads), .commands = THEORY, .min = 1, .max = 1024, .zero = "auto",
     .help = "workers; auto is one a core"},

    {"recipe", TABULAR, "NAME", "", FIELD(recipe), .commands = TABLE, .required = TABLE,
     .help = "the table, also as an argument of its own: a name from 'taunet table list' or a recipe file"},
    {"scale", TABULAR, "NAME", "full", FIELD(scale), .commands = TABLE, .choices = scales,
     .help = "full is the paper's recipe, quick a reduction for two cores, smoke takes minutes"},
    {"data", TABULAR, "SPEC,SPEC,...", "", FIELD(data), .commands = TABLE, .unset = "the recipe's",
     .help = "data sets in place of the recipe's of the same kind: cifar10:DIR,mnist:DIR"},
    {"out", TABULAR, "DIR", "", FIELD(out), .commands = TABLE, .unset = "runs/NAME-SCALE",
     .help = "folder for results and runs; finished runs in it are kept, others continued"},
    {"jobs", TABULAR, "N", "1", FIELD(jobs), .commands = TABLE, .min = 1, .max = 1024, .help = "runs at a time"},
    {"device", TABULAR, "NAME,NAME,...", "auto", FIELD(device), .commands = TABLE, .check = check_devices,
     .help = "device of the runs; of several, each of the --jobs takes one in turn: cuda:0,cuda:1"},
    {"threads", TABULAR, "N", "auto", FIELD(threads), .commands = TABLE, .min = 1, .max = 1024, .zero = "auto",
     .help = "workers of each run; auto shares the cores between the --jobs"},
    {"train-options", TABULAR, "NAME=VALUE ...", "", FIELD(train_options), .commands = TABLE,
     .help = "further options of every run, as for train, by name: \"precision=bf16 epochs=10\""},
    {"list", TABULAR, "YES|NO", "no", FIELD(list), .commands = TABLE, .command_line_only = true,
     .help = "print the runs as commands, with what is there of them, and stop"},
    {"collect", TABULAR, "YES|NO", "no", FIELD(collect), .commands = TABLE, .command_line_only = true,
     .help = "train nothing: write the results of the runs that are there"},

    {"run", REPORTING, "DIR", "", FIELD(runs), .commands = REPORT, .required = REPORT, .repeated = true,
     .command_line_only = true,
     .help = "folder of a run, or one with such folders in it; also as arguments of their own"},
    {"out", REPORTING, "FILE", "", FIELD(out), .commands = REPORT, .unset = "DIR/report.html of a single DIR",
     .help = "file to write"},

    {"config", GENERAL, "FILE", "", FIELD(config), .commands = ALL, .command_line_only = true, .resume = TN_RESUME_FREE,
     .help = "read 'name = value' lines (TOML); what comes later on the command line wins"},
    {"print-config", GENERAL, "YES|NO", "no", FIELD(print_config), .commands = ALL, .command_line_only = true,
     .resume = TN_RESUME_FREE, .help = "print the resolved options and stop"},
    {"help", GENERAL, "YES|NO", "no", FIELD(help), .commands = ALL, .command_line_only = true, .resume = TN_RESUME_FREE,
     .help = "print this help and stop"},
};
/* clang-format on */
const int tn_option_count = sizeof tn_option_rows / sizeof *tn_option_rows;

_Static_assert(sizeof tn_option_rows / sizeof *tn_option_rows <= TN_OPTIONS_MAX, "raise TN_OPTIONS_MAX");

tn_status tn_command_find(const char *name, const tn_command **out) {
    const char *nearest = NULL;
    int distance = 99;
    for (int i = 0; i < tn_command_count; i++) {
        *out = &tn_command_rows[i];
        int d = tn_edit_distance(name, (*out)->name);
        if (d == 0) return TN_OK;
        if (d < distance) {
            distance = d;
            nearest = (*out)->name;
        }
    }
    *out = NULL;
    if (nearest && tn_is_near(name, nearest, distance))
        return tn_fail(TN_ERR_USAGE, "unknown command '%s'; did you mean '%s'?", tn_make_legible(name).text,
                       nearest);
    return tn_fail(TN_ERR_USAGE, "unknown command '%s'; 'taunet help' lists the commands",
                   tn_make_legible(name).text);
}

const tn_option *tn_option_next(const tn_command *command, const tn_option *row) {
    while (row < tn_option_rows + tn_option_count && !(row->commands & command->bit)) row++;
    return row < tn_option_rows + tn_option_count ? row : NULL;
}

static bool same_name(const char *a, const char *b) {
    while (*a && (*a == *b || (*a == '_' && *b == '-'))) {
        a++;
        b++;
    }
    return *a == *b;
}

/* The name is an option, but of other commands than this one. */
static tn_status fail_elsewhere(const tn_command *command, const char *dashes, const char *name,
                                unsigned commands) {
    char list[64] = "";
    for (int i = 0; i < tn_command_count; i++) {
        if (!(commands & tn_command_rows[i].bit)) continue;
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", tn_command_rows[i].name);
    }
    return tn_fail(TN_ERR_USAGE, "%s%s is an option of %s, not of %s; 'taunet help %s' lists those", dashes,
                   name, list, command->name, command->name);
}

tn_status tn_option_find(const tn_command *command, const char *dashes, const char *name,
                         const tn_option **out) {
    const tn_option *nearest = NULL;
    int distance = 99;
    unsigned elsewhere = 0;
    for (int i = 0; i < tn_option_count; i++) {
        const tn_option *row = &tn_option_rows[i];
        if (!(row->commands & command->bit)) {
            if (same_name(name, row->name)) elsewhere |= row->commands;
            continue;
        }
        *out = row;
        if (same_name(name, row->name)) return TN_OK;
        int d = tn_edit_distance(name, row->name);
        if (d < distance) {
            distance = d;
            nearest = row;
        }
    }
    *out = NULL;
    if (elsewhere) return fail_elsewhere(command, dashes, tn_make_legible(name).text, elsewhere);
    if (nearest && tn_is_near(name, nearest->name, distance))
        return tn_fail(TN_ERR_USAGE, "unknown option %s%s; did you mean %s%s?", dashes,
                       tn_make_legible(name).text, dashes, nearest->name);
    return tn_fail(TN_ERR_USAGE, "unknown option %s%s; 'taunet help %s' lists the options of %s", dashes,
                   tn_make_legible(name).text, command->name, command->name);
}
