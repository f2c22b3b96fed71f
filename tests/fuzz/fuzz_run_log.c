/* What a run leaves: any bytes are a log.jsonl, and behind a zero byte a probes.csv, or an error of one line;
 * what was read can be shown. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "report/page.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int holds) {
    if (!holds) abort();
}

static void show(tn_run_record *record) {
    char path[] = "/a", label[] = "a";
    tn_page_run run = {.record = record, .path = path, .label = label};
    tn_page page = {.runs = &run, .run_count = 1};
    tn_string text = {0};
    require(tn_page_print(&page, &text) == TN_OK);
    tn_string_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tn_run_record *record;
    size_t before = tn_memory_in_use();
    char *text = malloc(size ? size : 1); /* no larger than the text, so that reading on is seen */
    if (!text) return 0;
    memcpy(text, data, size);
    char *zero = memchr(text, 0, size);
    size_t log = zero ? (size_t)(zero - text) : size;
    require(tn_run_record_open("/nowhere/at/all", &record) == TN_OK);
    tn_status status = tn_run_record_read_log(record, text, log, "fuzz");
    if (status == TN_OK && zero) status = tn_run_record_read_probes(record, zero + 1, size - log - 1, "fuzz");
    if (status != TN_OK)
        require(*tn_error() && !strpbrk(tn_error(), "\n\r"));
    else if (record->start)
        show(record);
    tn_run_record_free(record);
    free(text);
    require(tn_memory_in_use() == before);
    return 0;
}
