/* Packs an image folder into tar shards for "webdataset:DIR". Uses only include/. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "taunet/data.h"

static const char help[] =
    "usage: datasets/pack [OPTIONS] FOLDER OUT\n"
    "\n"
    "Packs FOLDER (train/ and val/, one folder a class) into tar shards in OUT, for --data webdataset:OUT.\n"
    "Called again after a failure it goes on with the shards that are missing.\n"
    "\n"
    "  --samples N           samples in a shard (1000)\n"
    "  --resize N            resize images whose short side is longer to N; JPEG again (no)\n"
    "  --decoded             store pixels in place of JPEG: larger, with nothing left to decode\n"
    "  --quality Q           of JPEG made by --resize, 1 to 100 (95)\n"
    "  --threads N           (one a processor)\n"
    "  --on-bad-sample HOW   stop, or skip images that cannot be decoded (stop)\n";

static void show(void *context, int done, int shards) {
    (void)context;
    fprintf(stderr, "\r%d of %d shards", done, shards);
    if (done == shards) fputc('\n', stderr);
}

static int usage(const char *problem, const char *what) {
    fprintf(stderr, "pack: %s%s; 'datasets/pack --help' shows the options\n", problem, what);
    return 2;
}

/* Reads a whole number from 1 to a billion. */
static int number(const char *text, int *out) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < 1 || value > 1000000000) return -1;
    *out = (int)value;
    return 0;
}

/* 0: go on; else the exit status plus one. */
static int parse(int argc, char **argv, tn_pack_config *config) {
    static const struct option options[] = {
        {"samples", required_argument, NULL, 's'}, {"resize", required_argument, NULL, 'r'},
        {"decoded", no_argument, NULL, 'd'},       {"quality", required_argument, NULL, 'q'},
        {"threads", required_argument, NULL, 't'}, {"on-bad-sample", required_argument, NULL, 'b'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};
    int letter, bad = 0;
    while (!bad && (letter = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (letter) {
        case 's':
            bad = number(optarg, &config->samples_per_shard);
            break;
        case 'r':
            bad = number(optarg, &config->resize);
            break;
        case 'd':
            config->decoded = true;
            break;
        case 'q':
            bad = number(optarg, &config->quality);
            break;
        case 't':
            bad = number(optarg, &config->threads);
            break;
        case 'b':
            config->skip_bad = !strcmp(optarg, "skip");
            bad = !config->skip_bad && strcmp(optarg, "stop") != 0;
            break;
        case 'h':
            fputs(help, stdout);
            return 1;
        default:
            return 3; /* getopt has said why */
        }
    }
    if (bad) return usage("a value that does not fit its option: ", optarg) + 1;
    if (argc - optind != 2) return usage("give a folder to pack and one for the shards", "") + 1;
    config->from = argv[optind];
    config->to = argv[optind + 1];
    return 0;
}

int main(int argc, char **argv) {
    tn_pack_config config = {.samples_per_shard = 1000, .quality = 95, .progress = show};
    tn_pack_result result;
    int code = parse(argc, argv, &config);
    if (code) return code - 1;
    if (mkdir(config.to, 0777) != 0 && errno != EEXIST) {
        fprintf(stderr, "pack: cannot make folder %s: %s\n", config.to, strerror(errno));
        return 1;
    }
    tn_status status = tn_dataset_pack(&config, &result);
    if (status != TN_OK) {
        fprintf(stderr, "pack: %s\n", tn_error());
        return status == TN_ERR_USAGE ? 2 : 1;
    }
    printf("%d samples in %d shards, %d of them there already\n", result.samples, result.shards,
           result.reused);
    if (result.bad_samples)
        printf("%d images left out, one of them: %s\n", result.bad_samples, result.bad_sample);
    return fflush(stdout) == 0 ? 0 : 1;
}
