#include "data/tar.h"

#include <stdio.h>
#include <string.h>

/* Fields of a header block. */
enum { NAME = 0, SIZE = 124, CHECKSUM = 148, TYPE = 156, MAGIC = 257, PREFIX = 345 };
enum { NAME_LENGTH = 100, SIZE_LENGTH = 12, CHECKSUM_LENGTH = 8, PREFIX_LENGTH = 155 };

/* What extended headers say about the member that follows. */
typedef struct extension {
    char name[TN_TAR_NAME_MAX];
    bool has_size;
    size_t size;
} extension;

static tn_status fail_at(const tn_tar *tar, size_t offset, const char *problem) {
    return tn_fail(TN_ERR_DATA, "%s: offset %zu: %s; the archive is damaged, fetch or make it again",
                   tar->file, offset, problem);
}

/* Reads an octal number, which may stand between spaces and ends at a zero. */
static bool octal(const uint8_t *field, int length, uint64_t *out) {
    int i = 0;
    *out = 0;
    while (i < length && field[i] == ' ') i++;
    for (; i < length && field[i] >= '0' && field[i] <= '7'; i++) {
        if (*out >> 60) return false;
        *out = 8 * *out + (uint64_t)(field[i] - '0');
    }
    return i == length || field[i] == 0 || field[i] == ' ';
}

/* Sizes are octal or, beyond 8 GiB, GNU's base 256 after a byte 0x80. */
static bool read_size(const uint8_t *field, uint64_t *out) {
    if (field[0] != 0x80) return octal(field, SIZE_LENGTH, out);
    *out = 0;
    for (int i = 1; i < SIZE_LENGTH; i++) {
        if (*out >> 54) return false;
        *out = 256 * *out + field[i];
    }
    return true;
}

static unsigned checksum(const uint8_t *block) {
    unsigned sum = 0;
    for (int i = 0; i < TN_TAR_BLOCK; i++)
        sum += i >= CHECKSUM && i < CHECKSUM + CHECKSUM_LENGTH ? ' ' : block[i];
    return sum;
}

static bool is_zero(const uint8_t *block) {
    for (int i = 0; i < TN_TAR_BLOCK; i++)
        if (block[i]) return false;
    return true;
}

/* Appends at most `length` bytes of a field that ends at a zero. */
static bool append(char name[TN_TAR_NAME_MAX], const uint8_t *field, size_t length) {
    size_t used = strlen(name), more = strnlen((const char *)field, length);
    if (used + more >= TN_TAR_NAME_MAX) return false;
    memcpy(name + used, field, more);
    name[used + more] = 0;
    return true;
}

/* One record of a pax header: "LENGTH KEY=VALUE\n". Returns its length, 0 when it is not one. */
static size_t pax_record(const uint8_t *at, size_t left, extension *next) {
    size_t length = 0, i = 0;
    for (; i < left && i < 8 && at[i] >= '0' && at[i] <= '9'; i++)
        length = 10 * length + (size_t)(at[i] - '0');
    if (i == 0 || i >= left || at[i] != ' ' || length > left || length < i + 4 || at[length - 1] != '\n')
        return 0;
    const uint8_t *key = at + i + 1, *end = at + length - 1, *equals = memchr(key, '=', (size_t)(end - key));
    if (!equals) return 0;
    const uint8_t *value = equals + 1;
    if (equals - key == 4 && memcmp(key, "path", 4) == 0) {
        next->name[0] = 0;
        if (memchr(value, 0, (size_t)(end - value)) || !append(next->name, value, (size_t)(end - value)))
            return 0;
    } else if (equals - key == 4 && memcmp(key, "size", 4) == 0) {
        next->has_size = true;
        next->size = 0;
        if (value == end || end - value > 18) return 0;
        for (; value < end; value++) {
            if (*value < '0' || *value > '9') return 0;
            next->size = 10 * next->size + (size_t)(*value - '0');
        }
    }
    return length;
}

static bool pax_records(const uint8_t *at, size_t left, extension *next) {
    while (left > 0) {
        size_t length = pax_record(at, left, next);
        if (length == 0) return false;
        at += length;
        left -= length;
    }
    return true;
}

/* Reads the header block at tar->at: its type, and where content of what size follows. */
static tn_status read_header(const tn_tar *tar, const extension *next, char *type, size_t *size) {
    const uint8_t *block = tar->bytes + tar->at;
    uint64_t sum, bytes;
    if (!octal(block + CHECKSUM, CHECKSUM_LENGTH, &sum) || sum != checksum(block))
        return fail_at(tar, tar->at, "no tar header (its checksum is wrong)");
    if (!read_size(block + SIZE, &bytes)) return fail_at(tar, tar->at, "a size that is no number");
    *type = (char)block[TYPE];
    bool regular = *type == '0' || *type == 0 || *type == '7';
    if (regular && next->has_size) bytes = next->size;
    /* Links and folders may state a size that no content follows. */
    if (*type >= '1' && *type <= '6') bytes = 0;
    if (bytes > tar->size - tar->at - TN_TAR_BLOCK)
        return fail_at(tar, tar->at, "a member that is cut short");
    *size = (size_t)bytes;
    return TN_OK;
}

static bool member_name(const uint8_t *block, const extension *next, char name[TN_TAR_NAME_MAX]) {
    name[0] = 0;
    if (next->name[0]) return append(name, (const uint8_t *)next->name, TN_TAR_NAME_MAX);
    if (memcmp(block + MAGIC, "ustar", 6) == 0 && block[PREFIX] &&
        (!append(name, block + PREFIX, PREFIX_LENGTH) || !append(name, (const uint8_t *)"/", 1)))
        return false;
    return append(name, block + NAME, NAME_LENGTH);
}

tn_status tn_tar_next(tn_tar *tar, tn_tar_member *out, bool *more) {
    extension next = {.has_size = false};
    *more = false;
    while (tar->size - tar->at >= TN_TAR_BLOCK && !is_zero(tar->bytes + tar->at)) {
        const uint8_t *block = tar->bytes + tar->at;
        size_t header = tar->at, size = 0;
        char type = 0;
        TN_TRY(read_header(tar, &next, &type, &size));
        size_t content = header + TN_TAR_BLOCK, blocks = (size + TN_TAR_BLOCK - 1) / TN_TAR_BLOCK;
        tar->at = blocks * TN_TAR_BLOCK > tar->size - content ? tar->size : content + blocks * TN_TAR_BLOCK;
        if (type == 'x') {
            if (!pax_records(tar->bytes + content, size, &next))
                return fail_at(tar, header, "a pax header that cannot be read, or a name that is too long");
        } else if (type == 'L') {
            next.name[0] = 0;
            if (!append(next.name, tar->bytes + content, size))
                return fail_at(tar, header, "a name that is too long");
        } else if (type == '0' || type == 0 || type == '7') {
            if (!member_name(block, &next, out->name)) return fail_at(tar, header, "a name that is too long");
            out->offset = content;
            out->size = size;
            *more = true;
            return TN_OK;
        } else if (type != 'g') {
            next = (extension){.has_size = false};
        }
    }
    if (tar->at < tar->size && tar->size - tar->at < TN_TAR_BLOCK)
        return fail_at(tar, tar->at, "less than a block: the archive is cut short");
    return TN_OK;
}

void tn_tar_header(const char *name, size_t size, uint8_t block[TN_TAR_BLOCK]) {
    TN_ASSERT(strlen(name) < NAME_LENGTH && size < (size_t)1 << 33);
    memset(block, 0, TN_TAR_BLOCK);
    memcpy(block + NAME, name, strlen(name));
    memcpy(block + 100, "0000644", 7);
    memcpy(block + 108, "0000000", 7);
    memcpy(block + 116, "0000000", 7);
    char digits[32];
    snprintf(digits, sizeof digits, "%011zo", size);
    memcpy(block + SIZE, digits, 11);
    memcpy(block + 136, "00000000000", 11);
    block[TYPE] = '0';
    memcpy(block + MAGIC, "ustar\00000", 8);
    snprintf(digits, sizeof digits, "%06o", checksum(block));
    memcpy(block + CHECKSUM, digits, 6);
    block[CHECKSUM + 7] = ' ';
}
