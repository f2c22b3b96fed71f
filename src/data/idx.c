#include "data/idx.h"

#include <limits.h>
#include <string.h>
#define ZLIB_CONST /* input pointers are const */
#include <zlib.h>

#include "base/memory.h"

/* Deflate cannot expand by more than this (a run of matches of 258 bytes in 2 bits each). */
#define INFLATE_MAX 1032
/* zlib counts in 32 bits. */
#define CHUNK_MAX ((size_t)1 << 30)

/* A file in memory read from front to back, inflated on the way when it is gzip. */
typedef struct source {
    const char *file;
    const uint8_t *bytes;
    size_t size, used; /* of the file; `used` were handed to zlib or copied */
    bool gzip, ended;
    z_stream stream;
} source;

static size_t consumed(const source *s) {
    return s->used - (s->gzip ? s->stream.avail_in : 0);
}

static tn_status cut_short(const source *s) {
    return tn_fail(TN_ERR_DATA, "%s: the %s ends early, at byte %zu of the file; fetch it again", s->file,
                   s->gzip ? "gzip data" : "file", consumed(s));
}

static tn_status source_open(source *s, const char *file, const uint8_t *bytes, size_t size) {
    *s = (source){.file = file, .bytes = bytes, .size = size};
    s->gzip = size >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b;
    if (s->gzip && inflateInit2(&s->stream, 15 + 16) != Z_OK)
        return tn_fail(TN_ERR_MEMORY, "%s: out of memory for decompression", file);
    return TN_OK;
}

static void source_close(source *s) {
    if (s->gzip) inflateEnd(&s->stream);
}

/* Inflates up to `count` bytes to `to`; fewer only at the end of the gzip data. */
static tn_status inflate_some(source *s, uint8_t *to, size_t count, size_t *got) {
    *got = 0;
    while (*got < count && !s->ended) {
        if (s->stream.avail_in == 0) {
            size_t left = s->size - s->used;
            if (left == 0) return cut_short(s);
            s->stream.next_in = s->bytes + s->used;
            s->stream.avail_in = (uInt)(left < CHUNK_MAX ? left : CHUNK_MAX);
            s->used += s->stream.avail_in;
        }
        size_t room = count - *got < CHUNK_MAX ? count - *got : CHUNK_MAX;
        s->stream.next_out = to + *got;
        s->stream.avail_out = (uInt)room;
        int code = inflate(&s->stream, Z_NO_FLUSH);
        *got += room - s->stream.avail_out;
        if (code == Z_STREAM_END)
            s->ended = true;
        else if (code == Z_MEM_ERROR)
            return tn_fail(TN_ERR_MEMORY, "%s: out of memory for decompression", s->file);
        else if (code != Z_OK && !(code == Z_BUF_ERROR && s->stream.avail_in == 0))
            return tn_fail(TN_ERR_DATA,
                           "%s: the gzip data is damaged at byte %zu of the file (%s); fetch it again",
                           s->file, consumed(s), s->stream.msg ? s->stream.msg : "no reason given");
    }
    return TN_OK;
}

static tn_status source_read(source *s, uint8_t *to, size_t count) {
    size_t got;
    if (s->gzip) {
        TN_TRY(inflate_some(s, to, count, &got));
    } else {
        got = s->size - s->used < count ? s->size - s->used : count;
        memcpy(to, s->bytes + s->used, got);
        s->used += got;
    }
    return got == count ? TN_OK : cut_short(s);
}

/* The data must end here; for gzip this also checks the sum behind it. */
static tn_status source_finish(source *s) {
    uint8_t beyond;
    size_t more = 0;
    if (s->gzip) TN_TRY(inflate_some(s, &beyond, 1, &more));
    if (more != 0)
        return tn_fail(TN_ERR_DATA, "%s: holds more data than its header says; fetch it again", s->file);
    if (consumed(s) != s->size)
        return tn_fail(TN_ERR_DATA, "%s: %zu bytes follow the data at byte %zu of the file; fetch it again",
                       s->file, s->size - consumed(s), consumed(s));
    return TN_OK;
}

/* Reads the header and makes sure that the elements it announces can be in the file. */
static tn_status read_header(source *s, int ndims, tn_idx *out) {
    uint8_t head[4 + 4 * 3];
    TN_TRY(source_read(s, head, 4));
    if (head[0] != 0 || head[1] != 0 || head[2] != 8 || head[3] != ndims)
        return tn_fail(
            TN_ERR_DATA,
            "%s: starts with %02x %02x %02x %02x instead of 00 00 08 %02x (IDX, unsigned bytes, dimensions: "
            "%d); fetch it again or check its name",
            s->file, head[0], head[1], head[2], head[3], ndims, ndims);
    TN_TRY(source_read(s, head + 4, 4 * (size_t)ndims));
    out->size = 1;
    for (int d = 0; d < ndims; d++) {
        const uint8_t *b = head + 4 + 4 * d;
        uint32_t dim = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
        uint32_t limit = d == 0 ? INT_MAX : TN_SIDE_MAX;
        if (dim == 0 && d == 0) return tn_fail(TN_ERR_DATA, "%s: 0 samples; fetch it again", s->file);
        if (dim == 0 || dim > limit)
            return tn_fail(TN_ERR_DATA, "%s: dimension %d at offset %d is %u, not in 1..%u; fetch it again",
                           s->file, d, 4 + 4 * d, dim, limit);
        out->dims[d] = (int)dim;
        out->size *= dim; /* at most 2^31 * 4096 * 4096 */
    }
    size_t rest = s->size - s->used;
    if (!s->gzip && rest != out->size)
        return tn_fail(TN_ERR_DATA, "%s: %zu bytes follow the header, which announces %zu; fetch it again",
                       s->file, rest, out->size);
    if (s->gzip && out->size / INFLATE_MAX > s->size)
        return tn_fail(
            TN_ERR_DATA,
            "%s: %zu bytes of gzip data cannot hold the %zu that the header announces; fetch it again",
            s->file, s->size, out->size);
    return TN_OK;
}

static tn_status parse(source *s, int ndims, tn_idx *out) {
    TN_TRY(read_header(s, ndims, out));
    TN_TRY(tn_alloc(&out->data, out->size, 1, s->file));
    TN_TRY(source_read(s, out->data, out->size));
    return source_finish(s);
}

tn_status tn_idx_parse(const char *file, const uint8_t *bytes, size_t size, int ndims, tn_idx *out) {
    TN_ASSERT(ndims >= 1 && ndims <= 3);
    source s;
    *out = (tn_idx){.data = NULL};
    TN_TRY(source_open(&s, file, bytes, size));
    tn_status status = parse(&s, ndims, out);
    source_close(&s);
    if (status != TN_OK) {
        tn_free(out->data);
        out->data = NULL;
    }
    return status;
}
