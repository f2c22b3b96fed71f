/* Reading tar archives (POSIX.1-2001 ustar and pax, GNU) that are in memory, such as mapped files. */
#ifndef TN_DATA_TAR_H
#define TN_DATA_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fail.h"

#define TN_TAR_BLOCK    512
#define TN_TAR_NAME_MAX 1024

/* A cursor. Set bytes, size and file (for messages), the rest zero. */
typedef struct tn_tar {
    const uint8_t *bytes;
    size_t size, at;
    const char *file;
} tn_tar;

/* A regular file in the archive. */
typedef struct tn_tar_member {
    char name[TN_TAR_NAME_MAX];
    size_t offset, size; /* of its content in the archive, whole inside of it */
} tn_tar_member;

/* Goes to the next regular file; *more is false at the end, which is two blocks of zeros or where the bytes
 * end. Folders, links and devices are passed over. TN_ERR_DATA, with the offset, for what is no tar header,
 * for a member that is cut short and for a name that is too long. */
tn_status tn_tar_next(tn_tar *tar, tn_tar_member *out, bool *more);

/* Fills in the ustar header of a regular file, the same for the same arguments: owner 0, mode 0644, time 0.
 * name has at most 99 bytes. Content follows, padded with zeros to whole blocks; two blocks of zeros end an
 * archive. */
void tn_tar_header(const char *name, size_t size, uint8_t block[TN_TAR_BLOCK]);

#endif
