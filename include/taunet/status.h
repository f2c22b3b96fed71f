/* Status codes and error messages.
 *
 * Every function of the library that can fail because of data, files, options or memory returns a tn_status.
 * The text that goes with a failure is kept per thread and read with tn_error(). Broken invariants (bugs)
 * abort with call, file and line instead. The library never prints and never exits. */
#ifndef TAUNET_STATUS_H
#define TAUNET_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tn_status {
    TN_OK = 0,
    TN_ERR_USAGE,    /* a wrong option, name or value: the command exits with 2 */
    TN_ERR_IO,       /* a file or folder cannot be read or written */
    TN_ERR_DATA,     /* a file was read and its content is wrong */
    TN_ERR_MEMORY,   /* memory ran out; the message says what was asked for */
    TN_ERR_DEVICE,   /* the device or its library refused */
    TN_ERR_DIVERGED, /* a value that is not finite appeared in training */
    TN_ERR_STOPPED,  /* stopped by a signal after saving */
    TN_ERR_PEER      /* another process of a distributed run failed or is lost */
} tn_status;

/* Message of the last failure on the calling thread: one line that says what, where and what to do. Never
 * NULL; empty before the first failure, and in a distributed run where another process tells it. Valid until
 * the next failure on this thread; do not free. */
const char *tn_error(void);

/* Version of the library, such as "0.1.0". */
const char *tn_version(void);

#ifdef __cplusplus
}
#endif
#endif
