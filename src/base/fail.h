/* How the library reports failures: tn_fail for what a user can cause, TN_ASSERT for what only a bug can. */
#ifndef TN_BASE_FAIL_H
#define TN_BASE_FAIL_H

#include "taunet/status.h"

/* Formats the calling thread's message (one line, no trailing newline) and returns `status`, so that
 * `return tn_fail(TN_ERR_DATA, "...")` is the usual form. */
tn_status tn_fail(tn_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts `format` and ": " in front of the message already set: adds where to what. Returns `status`. */
tn_status tn_fail_prefix(tn_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints call, file and line to stderr and aborts. For broken invariants only. */
_Noreturn void tn_assert_failed(const char *what, const char *file, int line);

#define TN_ASSERT(condition) ((condition) ? (void)0 : tn_assert_failed(#condition, __FILE__, __LINE__))

/* Returns from the calling function when `call` fails. */
#define TN_TRY(call)                                                                                         \
    do {                                                                                                     \
        tn_status tn_try_status = (call);                                                                    \
        if (tn_try_status != TN_OK) return tn_try_status;                                                    \
    } while (0)

#endif
