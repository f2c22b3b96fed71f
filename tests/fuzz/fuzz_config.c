/* Configuration files: any bytes are options or an error of one line, and options that were read are saved so
 * that they read back to the same. The first byte picks the command. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "taunet/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds) {
    if (!holds) abort();
}

static void check_round_trip(const tn_options *options) {
    tn_options *again;
    char *first, *second;
    require(tn_options_print_config(options, &first) == TN_OK);
    require(tn_options_create(options->command, &again) == TN_OK);
    require(tn_options_load_text(again, first, strlen(first), "saved") == TN_OK);
    require(tn_options_print_config(again, &second) == TN_OK);
    require(strcmp(first, second) == 0);
    require(tn_options_resume(again, options) == TN_OK);
    tn_options_free_text(first);
    tn_options_free_text(second);
    tn_options_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const commands[] = {"train", "eval", "init", "info", "bench"};
    if (size == 0) return 0;
    tn_options *options;
    size_t before = tn_memory_in_use();
    char *text = malloc(size - 1 ? size - 1 : 1); /* no larger than the text, so that reading on is seen */
    if (!text) return 0;
    memcpy(text, data + 1, size - 1);
    require(tn_options_create(commands[data[0] % 5], &options) == TN_OK);
    if (tn_options_load_text(options, text, size - 1, "fuzz") == TN_OK)
        check_round_trip(options);
    else
        require(!strpbrk(tn_error(), "\n\r") && strncmp(tn_error(), "fuzz:", 5) == 0);
    tn_options_free(options);
    free(text);
    require(tn_memory_in_use() == before);
    return 0;
}
