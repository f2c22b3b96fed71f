#include "base/fail.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char message[1024];

const char *tn_error(void) {
    return message;
}

const char *tn_version(void) {
    return TN_VERSION;
}

tn_status tn_fail(tn_status status, const char *format, ...) {
    /* Formatted aside first: an argument may be tn_error() itself. */
    char text[sizeof message];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(message, text, sizeof message);
    return status;
}

tn_status tn_fail_prefix(tn_status status, const char *format, ...) {
    char text[2 * sizeof message];
    va_list args;
    va_start(args, format);
    int used = vsnprintf(text, sizeof message, format, args);
    va_end(args);
    if (used >= (int)sizeof message) used = (int)sizeof message - 1;
    snprintf(text + used, sizeof text - (size_t)used, ": %s", message);
    memcpy(message, text, sizeof message - 1);
    message[sizeof message - 1] = 0;
    return status;
}

void tn_assert_failed(const char *what, const char *file, int line) {
    fprintf(stderr, "taunet: internal error: '%s' does not hold at %s:%d; please report it\n", what, file,
            line);
    abort();
}
