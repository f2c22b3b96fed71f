/* Child processes. */
#ifndef TN_REPORT_CHILD_H
#define TN_REPORT_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/text.h"

/* Starts `argv` (argv[0] is the path of the program; ends with NULL) in a process group of its own, so that a
 * terminal's Ctrl-C reaches it through us alone. Its output goes to the file `output`, which is emptied; its
 * input is empty. */
tn_status tn_child_start(char *const argv[], const char *output, pid_t *out);

/* Whether the process has ended; *code is then its exit status, 128 + N when signal N ended it. */
bool tn_child_ended(pid_t pid, int *code);

/* Asks the process to save and stop. SIGINT, as whoever stops us may send it SIGTERM himself, and a second
 * signal of one kind ends it at once. */
void tn_child_interrupt(pid_t pid);

/* The last line of an output file that begins with "taunet: ", without that; "" when there is none. */
tn_status tn_child_last_error(const char *output, tn_string *out);

#endif
