/* The program: arguments to options, options to the library, results to the terminal. Uses only include/. */
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/progress.h"
#include "taunet/options.h"
#include "taunet/report.h"
#include "taunet/run.h"
#include "taunet/theory.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static volatile sig_atomic_t stop_signal;

/* The first signal asks for a clean stop; a second one of the same kind ends the process at once. */
static void on_signal(int number) {
    stop_signal = number;
    signal(number, SIG_DFL);
}

/* One line, whatever the names of files in it. */
static void print_error(const char *message) {
    char line[4096] = "";
    size_t length = strlen(message) < sizeof line ? strlen(message) : sizeof line - 1;
    for (size_t i = 0; i < length; i++) line[i] = iscntrl((unsigned char)message[i]) ? '?' : message[i];
    fprintf(stderr, "taunet: %.*s\n", (int)length, line);
}

static int report(tn_status status) {
    if (status == TN_OK) return EXIT_DONE;
    print_error(tn_error());
    if (status == TN_ERR_STOPPED && stop_signal) return 128 + stop_signal;
    return status == TN_ERR_USAGE ? EXIT_USAGE : EXIT_FAILED;
}

/* Output that cannot be written is a failure too: a pipe that is closed, a full disk. */
static int flush_output(int code) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return code;
    fprintf(stderr, "taunet: cannot write to standard output\n");
    return code == EXIT_DONE ? EXIT_FAILED : code;
}

static tn_status print_text(char *text) {
    fputs(text, stdout);
    tn_options_free_text(text);
    return TN_OK;
}

/* The page in the folder of a run that is through. */
static tn_status write_page(const char *folder) {
    tn_options *options;
    tn_status status = tn_options_create("report", &options);
    if (status != TN_OK) return status;
    status = tn_options_set(options, "run", folder);
    if (status == TN_OK) status = tn_report_run(options, NULL);
    tn_options_free(options);
    return status;
}

static tn_status run_train(const tn_options *options) {
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal);
    signal(SIGPIPE, SIG_IGN); /* a viewer that goes away must not end a run */
    progress_state state;
    progress_begin(&state);
    tn_run_hooks hooks = {.event = progress_show, .context = &state, .stop = &stop_signal};
    tn_status status = tn_run_train(options, &hooks);
    progress_end(&state);
    return status == TN_OK ? write_page(options->out) : status;
}

static tn_status run_eval(const tn_options *options) {
    tn_evaluation e;
    tn_status status = tn_run_eval(options, &e);
    if (status != TN_OK) return status;
    if (e.bad_samples) fprintf(stderr, "%d images left out, the first: %s\n", e.bad_samples, e.bad_sample);
    if (options->json)
        printf("{\"loss\": %.9g, \"top1\": %.9g, \"top5\": %.9g, \"images\": %d, \"bad_samples\": %d, "
               "\"seconds\": %.3f}\n",
               e.loss, e.top1, e.top5, e.images, e.bad_samples, e.seconds);
    else
        printf("loss %.6f  top-1 %.2f %%  top-5 %.2f %%  (%d images, %.1f s)\n", e.loss, e.top1, e.top5,
               e.images, e.seconds);
    return TN_OK;
}

static tn_status run_init(const tn_options *options) {
    tn_status status = tn_run_init(options);
    if (status == TN_OK) printf("%s: %s, variant %s\n", options->out, options->model, options->variant);
    return status;
}

static tn_status run_info(const tn_options *options) {
    char *text;
    tn_status status = tn_run_info(options, &text);
    return status == TN_OK ? print_text(text) : status;
}

static tn_status run_bench(const tn_options *options) {
    tn_bench b;
    tn_status status = tn_run_bench(options, &b);
    if (status != TN_OK) return status;
    if (options->json) {
        printf("{\"model\": \"%s\", \"variant\": \"%s\", \"batch\": %d, \"threads\": %d, \"chunk\": %d, "
               "\"steps\": %d, ",
               options->model, options->variant, b.batch, b.threads, b.chunk_rows, b.steps);
        printf("\"images_per_second\": %.6g, \"minimum\": %.6g, \"maximum\": %.6g, \"gflops\": %.6g, ",
               b.images_per_second, b.minimum, b.maximum, b.gflops);
        printf(
            "\"peak_gflops\": %.6g, \"peak_fraction\": %.6g, \"peak_bytes\": %zu, \"resident_bytes\": %zu, ",
            b.peak_gflops, b.peak_fraction, b.peak_bytes, b.resident_bytes);
        printf("\"start_seconds\": %.6g, \"parameters\": %zu, \"device\": \"%s\"}\n", b.start_seconds,
               b.parameters, b.device);
        return TN_OK;
    }
    printf("%s %s, batch %d, %d steps on %s, %d threads, chunks of %d\n", options->model, options->variant,
           b.batch, b.steps, b.device, b.threads, b.chunk_rows);
    printf("images/s       %.1f (median; %.1f to %.1f)\n", b.images_per_second, b.minimum, b.maximum);
    printf("GFLOP/s        %.1f, %.1f %% of the measured peak of %.1f\n", b.gflops, 100 * b.peak_fraction,
           b.peak_gflops);
    printf("memory         %.1f MiB planned, %.1f MiB resident\n", (double)b.peak_bytes / 1048576.0,
           (double)b.resident_bytes / 1048576.0);
    printf("start          %.2f s to the end of the first step\n", b.start_seconds);
    return TN_OK;
}

/* Progress goes to stderr, so that stdout holds the result alone. */
static void show_line(void *context, const char *text, bool is_result) {
    (void)context;
    fprintf(is_result ? stdout : stderr, "%s\n", text);
}

static tn_status run_theory(const tn_options *options) {
    if (!strcmp(options->experiment, "list")) {
        tn_theory_entry entry;
        for (size_t i = 0; tn_theory_at(i, &entry); i++) printf("%-14s%s\n", entry.name, entry.summary);
        return TN_OK;
    }
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    tn_theory_hooks hooks = {.line = show_line, .stop = &stop_signal};
    return tn_theory_run(options, &hooks);
}

/* Runs are made with this very program, wherever it was called from. */
static tn_status run_table(const tn_options *options) {
    char program[4096];
    ssize_t size = readlink("/proc/self/exe", program, sizeof program - 1);
    if (size > 0)
        program[size] = 0;
    else
        snprintf(program, sizeof program, "taunet"); /* without /proc: as the shell would find it */
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal);
    tn_report_hooks hooks = {.line = show_line, .stop = &stop_signal};
    return tn_table_run(options, program, &hooks);
}

static tn_status run_report(const tn_options *options) {
    tn_report_hooks hooks = {.line = show_line, .stop = &stop_signal};
    return tn_report_run(options, &hooks);
}

static const struct {
    const char *name;
    tn_status (*run)(const tn_options *options);
} commands[] = {{"train", run_train}, {"eval", run_eval},     {"init", run_init},   {"info", run_info},
                {"bench", run_bench}, {"theory", run_theory}, {"table", run_table}, {"report", run_report}};

static tn_status help(const char *command) {
    char *text;
    tn_status status = tn_options_help(command, &text);
    return status == TN_OK ? print_text(text) : status;
}

static tn_status print_config(const tn_options *options) {
    char *text;
    tn_status status = tn_options_print_config(options, &text);
    return status == TN_OK ? print_text(text) : status;
}

static tn_status dispatch(const char *command, tn_options *options) {
    if (options->help) return help(command);
    if (options->print_config) return print_config(options);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(commands[i].name, command)) return commands[i].run(options);
    return TN_OK; /* not reached: tn_options_create knows the same commands */
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "help";
    tn_options *options;
    signal(SIGXFSZ, SIG_IGN); /* a file that grows too large is a failed write, with a message */
    if (!strcmp(command, "--version")) {
        printf("taunet %s\n", tn_version());
        return flush_output(EXIT_DONE);
    }
    if (!strcmp(command, "help") || !strcmp(command, "--help") || !strcmp(command, "-h"))
        return flush_output(report(help(argc > 2 ? argv[2] : NULL)));
    tn_status status = tn_options_create(command, &options);
    if (status != TN_OK) return report(status);
    status = tn_options_parse(options, argc - 2, argv + 2);
    if (status == TN_OK) status = dispatch(command, options);
    int code = report(status);
    tn_options_free(options);
    return flush_output(code);
}
