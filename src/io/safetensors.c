#include "io/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/memory.h"
#include "base/text.h"
#include "io/file_io.h"
#include "io/json_scan.h"

static const struct {
    const char *name;
    int bits;
} dtypes[TN_DTYPES] = {
    [TN_DTYPE_BOOL] = {"BOOL", 8},
    [TN_DTYPE_F4] = {"F4", 4},
    [TN_DTYPE_F6_E2M3] = {"F6_E2M3", 6},
    [TN_DTYPE_F6_E3M2] = {"F6_E3M2", 6},
    [TN_DTYPE_U8] = {"U8", 8},
    [TN_DTYPE_I8] = {"I8", 8},
    [TN_DTYPE_F8_E5M2] = {"F8_E5M2", 8},
    [TN_DTYPE_F8_E4M3] = {"F8_E4M3", 8},
    [TN_DTYPE_F8_E8M0] = {"F8_E8M0", 8},
    [TN_DTYPE_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [TN_DTYPE_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [TN_DTYPE_I16] = {"I16", 16},
    [TN_DTYPE_U16] = {"U16", 16},
    [TN_DTYPE_F16] = {"F16", 16},
    [TN_DTYPE_BF16] = {"BF16", 16},
    [TN_DTYPE_I32] = {"I32", 32},
    [TN_DTYPE_U32] = {"U32", 32},
    [TN_DTYPE_F32] = {"F32", 32},
    [TN_DTYPE_C64] = {"C64", 64},
    [TN_DTYPE_F64] = {"F64", 64},
    [TN_DTYPE_I64] = {"I64", 64},
    [TN_DTYPE_U64] = {"U64", 64},
};

/* A tensor and where its data lies in the data section. */
typedef struct tensor_slot {
    tn_safetensors_entry entry;
    uint64_t begin, end;
    int order;        /* in the header */
    size_t first_dim; /* of the file's dims */
} tensor_slot;

struct tn_safetensors {
    char *header;    /* holds all names and texts */
    void *data_copy; /* NULL when the data is the caller's */
    int count, metadata_count;
    tensor_slot *slots;    /* [count], in the order of the data */
    tensor_slot **by_name; /* [count], in the order of strcmp */
    int64_t *dims;         /* of all tensors, in the order of the header */
    tn_safetensors_meta *metadata;
    size_t slots_capacity, dims_capacity, metadata_capacity;
    size_t dims_count;
    bool has_metadata;
};

const char *tn_dtype_name(tn_dtype dtype) {
    return dtypes[dtype].name;
}

int tn_dtype_bits(tn_dtype dtype) {
    return dtypes[dtype].bits;
}

const char *tn_safetensors_size(tn_dtype dtype, int rank, const int64_t *dims, uint64_t *bytes) {
    uint64_t elements = 1;
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0) return "its shape has a negative number";
        if (dims[i] > 0 && elements > UINT64_MAX / (uint64_t)dims[i]) return "its shape overflows";
        elements *= (uint64_t)dims[i];
    }
    uint64_t bits = (uint64_t)tn_dtype_bits(dtype);
    if (elements > UINT64_MAX / bits) return "its shape overflows";
    if (elements * bits % 8 != 0) return "its elements do not fill whole bytes";
    *bytes = elements * bits / 8;
    return NULL;
}

/* Fails for one tensor: "tensor 'NAME': PROBLEM". */
static tn_status bad_tensor(const char *name, const char *problem) {
    return tn_fail(TN_ERR_DATA, "tensor '%s': %s", tn_make_legible(name).text, problem);
}

static tn_status read_dtype(tn_json_scan *scan, tensor_slot *slot) {
    char *text;
    if (tn_json_peek(scan) != '"') return bad_tensor(slot->entry.name, "its dtype is not a string");
    TN_TRY(tn_json_string(scan, &text));
    for (int i = 0; i < TN_DTYPES; i++)
        if (strcmp(text, dtypes[i].name) == 0) {
            slot->entry.dtype = (tn_dtype)i;
            return TN_OK;
        }
    return tn_fail(TN_ERR_DATA, "tensor '%s': dtype '%s' is unknown", tn_make_legible(slot->entry.name).text,
                   tn_make_legible(text).text);
}

static tn_status read_shape(tn_json_scan *scan, tn_safetensors *file, tensor_slot *slot) {
    const char *name = slot->entry.name;
    if (tn_json_peek(scan) != '[') return bad_tensor(name, "its shape is not a list");
    slot->first_dim = file->dims_count;
    bool more;
    TN_TRY(tn_json_begin(scan, '[', ']', &more));
    while (more) {
        int64_t dim = 0;
        const char *instead = tn_json_whole(scan, &dim);
        if (instead)
            return tn_fail(TN_ERR_DATA, "tensor '%s': its shape has %s", tn_make_legible(name).text, instead);
        TN_TRY(tn_grow(&file->dims, &file->dims_capacity, file->dims_count + 1, sizeof dim,
                       "shapes of tensors"));
        file->dims[file->dims_count++] = dim;
        slot->entry.rank++;
        TN_TRY(tn_json_next(scan, ']', &more));
    }
    return TN_OK;
}

static tn_status read_offsets(tn_json_scan *scan, tensor_slot *slot) {
    int64_t values[2] = {0};
    int count = 0;
    bool more = tn_json_peek(scan) == '[', right = more;
    if (more) TN_TRY(tn_json_begin(scan, '[', ']', &more));
    while (more && right) {
        right = count < 2 && tn_json_whole(scan, &values[count++]) == NULL;
        if (right) TN_TRY(tn_json_next(scan, ']', &more));
    }
    if (!right || count != 2 || values[0] > values[1])
        return bad_tensor(slot->entry.name, "its data_offsets are not two whole numbers 0 <= BEGIN <= END");
    slot->begin = (uint64_t)values[0];
    slot->end = (uint64_t)values[1];
    return TN_OK;
}

/* Checks what a tensor's description says once it is complete. */
static tn_status check_tensor(const tn_safetensors *file, tensor_slot *slot, uint64_t data_bytes) {
    tn_safetensors_entry *entry = &slot->entry;
    if (slot->end > data_bytes)
        return tn_fail(TN_ERR_DATA,
                       "tensor '%s' ends at byte %llu of the data, but the file holds %llu: it was cut short",
                       tn_make_legible(entry->name).text, (unsigned long long)slot->end,
                       (unsigned long long)data_bytes);
    uint64_t bytes = 0;
    const int64_t *dims = entry->rank > 0 ? file->dims + slot->first_dim : NULL;
    const char *problem = tn_safetensors_size(entry->dtype, entry->rank, dims, &bytes);
    if (problem) return bad_tensor(entry->name, problem);
    if (slot->end - slot->begin != bytes)
        return tn_fail(TN_ERR_DATA, "tensor '%s': its shape takes %llu bytes, its data_offsets hold %llu",
                       tn_make_legible(entry->name).text, (unsigned long long)bytes,
                       (unsigned long long)(slot->end - slot->begin));
    entry->bytes = (size_t)bytes;
    return TN_OK;
}

/* Reads the description of a tensor: an object with three fields in any order. */
static tn_status read_tensor(tn_json_scan *scan, tn_safetensors *file, const char *name,
                             uint64_t data_bytes) {
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    if (tn_json_peek(scan) != '{') return bad_tensor(name, "its description is not an object");
    tensor_slot slot = {.entry.name = name, .order = file->count};
    bool seen[3] = {false}, more;
    TN_TRY(tn_json_begin(scan, '{', '}', &more));
    while (more) {
        char *key;
        TN_TRY(tn_json_string(scan, &key));
        TN_TRY(tn_json_expect(scan, ':'));
        int field = 0;
        while (field < 3 && strcmp(key, fields[field]) != 0) field++;
        if (field == 3) return bad_tensor(name, "it has a field other than dtype, shape and data_offsets");
        if (seen[field])
            return tn_fail(TN_ERR_DATA, "tensor '%s': duplicate key '%s'", tn_make_legible(name).text,
                           fields[field]);
        seen[field] = true;
        TN_TRY(field == 0   ? read_dtype(scan, &slot)
               : field == 1 ? read_shape(scan, file, &slot)
                            : read_offsets(scan, &slot));
        TN_TRY(tn_json_next(scan, '}', &more));
    }
    for (int i = 0; i < 3; i++)
        if (!seen[i])
            return tn_fail(TN_ERR_DATA, "tensor '%s': its %s is missing", tn_make_legible(name).text,
                           fields[i]);
    TN_TRY(check_tensor(file, &slot, data_bytes));
    TN_TRY(tn_grow(&file->slots, &file->slots_capacity, (size_t)file->count + 1, sizeof slot,
                   "table of tensors"));
    file->slots[file->count++] = slot;
    return TN_OK;
}

static int compare_keys(const void *a, const void *b) {
    return strcmp(((const tn_safetensors_meta *)a)->key, ((const tn_safetensors_meta *)b)->key);
}

static tn_status read_metadata(tn_json_scan *scan, tn_safetensors *file) {
    if (file->has_metadata) return tn_fail(TN_ERR_DATA, "duplicate key '" TN_SAFETENSORS_METADATA "'");
    file->has_metadata = true;
    if (tn_json_peek(scan) != '{') return tn_fail(TN_ERR_DATA, TN_SAFETENSORS_METADATA " is not an object");
    bool more;
    TN_TRY(tn_json_begin(scan, '{', '}', &more));
    while (more) {
        char *key, *value;
        TN_TRY(tn_json_string(scan, &key));
        TN_TRY(tn_json_expect(scan, ':'));
        if (tn_json_peek(scan) != '"')
            return tn_fail(TN_ERR_DATA, TN_SAFETENSORS_METADATA ": the value of '%s' is not a string",
                           tn_make_legible(key).text);
        TN_TRY(tn_json_string(scan, &value));
        TN_TRY(tn_grow(&file->metadata, &file->metadata_capacity, (size_t)file->metadata_count + 1,
                       sizeof *file->metadata, "metadata"));
        file->metadata[file->metadata_count++] = (tn_safetensors_meta){key, value};
        TN_TRY(tn_json_next(scan, '}', &more));
    }
    /* Sorted to find keys, and keys that stand twice, quickly. */
    if (file->metadata_count > 0)
        qsort(file->metadata, (size_t)file->metadata_count, sizeof *file->metadata, compare_keys);
    for (int i = 1; i < file->metadata_count; i++)
        if (compare_keys(&file->metadata[i - 1], &file->metadata[i]) == 0)
            return tn_fail(TN_ERR_DATA, TN_SAFETENSORS_METADATA ": duplicate key '%s'",
                           tn_make_legible(file->metadata[i].key).text);
    return TN_OK;
}

static int compare_places(const void *a, const void *b) {
    const tensor_slot *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return x->order - y->order;
}

static int compare_names(const void *a, const void *b) {
    return strcmp((*(tensor_slot *const *)a)->entry.name, (*(tensor_slot *const *)b)->entry.name);
}

/* Sorts the tensors by place, gives them their dims and makes the index by name. */
static tn_status index_tensors(tn_safetensors *file) {
    TN_TRY(tn_alloc(&file->by_name, (size_t)file->count, sizeof *file->by_name, "table of tensors"));
    if (file->count > 0) qsort(file->slots, (size_t)file->count, sizeof *file->slots, compare_places);
    for (int i = 0; i < file->count; i++) {
        tensor_slot *slot = &file->slots[i];
        if (slot->entry.rank > 0) slot->entry.dims = file->dims + slot->first_dim;
        file->by_name[i] = slot;
    }
    if (file->count > 0) qsort(file->by_name, (size_t)file->count, sizeof *file->by_name, compare_names);
    for (int i = 1; i < file->count; i++)
        if (compare_names(&file->by_name[i - 1], &file->by_name[i]) == 0)
            return tn_fail(TN_ERR_DATA, "duplicate key: tensor '%s' stands twice",
                           tn_make_legible(file->by_name[i]->entry.name).text);
    return TN_OK;
}

/* Checks that the tensors, sorted by place, fill the data exactly. */
static tn_status check_places(tn_safetensors *file, uint64_t data_bytes) {
    uint64_t filled = 0;
    for (int i = 0; i < file->count; i++) {
        const tensor_slot *slot = &file->slots[i];
        if (slot->begin != filled)
            return bad_tensor(slot->entry.name, slot->begin < filled
                                                    ? "its data overlaps with another tensor's"
                                                : i == 0 ? "it is the first, but its data does not start at 0"
                                                         : "there is a hole in front of its data");
        filled = slot->end;
    }
    if (filled == data_bytes) return TN_OK;
    return tn_fail(TN_ERR_DATA, "%llu bytes of data follow the last tensor",
                   (unsigned long long)(data_bytes - filled));
}

/* Checks the size of the header, given the file's first 8 bytes. */
static tn_status read_header_size(const unsigned char *first, uint64_t file_bytes, size_t *header_bytes) {
    uint64_t size = 0;
    for (int i = 0; i < 8; i++) size |= (uint64_t)first[i] << (8 * i);
    if (size > TN_SAFETENSORS_HEADER_MAX)
        return tn_fail(TN_ERR_DATA,
                       "its first 8 bytes give a header of %llu bytes, more than %u: "
                       "this is no safetensors file",
                       (unsigned long long)size, TN_SAFETENSORS_HEADER_MAX);
    if (size > file_bytes - 8)
        return tn_fail(TN_ERR_DATA,
                       "its header of %llu bytes ends beyond the file's %llu bytes: it was cut short",
                       (unsigned long long)size, (unsigned long long)file_bytes);
    *header_bytes = (size_t)size;
    return TN_OK;
}

/* Reads file->header, `length` bytes and a zero byte; no data is touched. */
static tn_status read_header(tn_safetensors *file, size_t length, uint64_t data_bytes) {
    char *text = file->header;
    while (length > 0 && text[length - 1] == ' ') text[--length] = 0;
    if (length == 0 || text[0] != '{' || text[length - 1] != '}')
        return tn_fail(TN_ERR_DATA, "its header is not '{...}' with only spaces after it");
    tn_json_scan scan = {.text = text, .at = text, .end = text + length, .what = "its header"};
    bool more;
    TN_TRY(tn_json_begin(&scan, '{', '}', &more));
    while (more) {
        char *key;
        TN_TRY(tn_json_string(&scan, &key));
        TN_TRY(tn_json_expect(&scan, ':'));
        if (strcmp(key, TN_SAFETENSORS_METADATA) == 0)
            TN_TRY(read_metadata(&scan, file));
        else
            TN_TRY(read_tensor(&scan, file, key, data_bytes));
        TN_TRY(tn_json_next(&scan, '}', &more));
    }
    TN_TRY(tn_json_end(&scan));
    TN_TRY(index_tensors(file));
    return check_places(file, data_bytes);
}

/* Points the tensors at the data and checks the hash. */
static tn_status attach_data(tn_safetensors *file, const unsigned char *data, size_t bytes) {
    for (int i = 0; i < file->count; i++) file->slots[i].entry.data = data + file->slots[i].begin;
    const char *expected = tn_safetensors_metadata(file, TN_SAFETENSORS_HASH);
    if (!expected) return TN_OK;
    if (strlen(expected) != 16 || strspn(expected, "0123456789abcdef") != 16)
        return tn_fail(TN_ERR_DATA,
                       TN_SAFETENSORS_METADATA ": '" TN_SAFETENSORS_HASH "' is '%s', "
                                               "not 16 lower-case hexadecimal digits",
                       tn_make_legible(expected).text);
    unsigned long long hash = XXH64(data, bytes, 0);
    if (strtoull(expected, NULL, 16) != hash)
        return tn_fail(TN_ERR_DATA,
                       "its data is damaged: the hash is %016llx, not %s; use another copy, "
                       "or drop '" TN_SAFETENSORS_HASH "' from its metadata if another program changed it",
                       hash, expected);
    return TN_OK;
}

/* Puts the source in front of a failure and frees what there is, or hands the file out. */
static tn_status finish(tn_status status, const char *source, tn_safetensors *file, tn_safetensors **out) {
    if (status == TN_OK) {
        *out = file;
        return TN_OK;
    }
    tn_safetensors_close(file);
    return tn_fail_prefix(status, "%s", source);
}

/* Makes room for the header and the zero byte behind it. */
static tn_status alloc_header(tn_safetensors *file, size_t bytes) {
    return tn_alloc(&file->header, bytes + 1, 1, "its header");
}

static tn_status parse(tn_safetensors *file, const unsigned char *bytes, size_t count) {
    if (count < 8) return tn_fail(TN_ERR_DATA, "it has %zu bytes; a safetensors file has at least 8", count);
    size_t header_bytes = 0;
    TN_TRY(read_header_size(bytes, count, &header_bytes));
    TN_TRY(alloc_header(file, header_bytes));
    memcpy(file->header, bytes + 8, header_bytes);
    size_t data_bytes = count - 8 - header_bytes;
    TN_TRY(read_header(file, header_bytes, data_bytes));
    return attach_data(file, bytes + 8 + header_bytes, data_bytes);
}

tn_status tn_safetensors_parse(const void *bytes, size_t count, const char *source, tn_safetensors **out) {
    *out = NULL;
    tn_safetensors *file;
    TN_TRY(tn_alloc(&file, 1, sizeof *file, "safetensors file"));
    return finish(parse(file, bytes, count), source, file, out);
}

/* Reads the open file; the header is judged before memory is asked for the data. */
static tn_status load(tn_safetensors *file, int fd) {
    struct stat info;
    if (fstat(fd, &info) != 0) return tn_fail_errno("look at", "it");
    if (!S_ISREG(info.st_mode))
        return tn_fail(TN_ERR_IO, "it is %s, not a file",
                       S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe");
    uint64_t file_bytes = (uint64_t)info.st_size;
    unsigned char first[8];
    if (file_bytes < 8) return parse(file, first, (size_t)file_bytes);
    TN_TRY(tn_read_all(fd, "its first 8 bytes", first, 8));
    size_t header_bytes = 0;
    TN_TRY(read_header_size(first, file_bytes, &header_bytes));
    size_t data_bytes = (size_t)(file_bytes - 8 - header_bytes);

    TN_TRY(alloc_header(file, header_bytes));
    TN_TRY(tn_read_all(fd, "its header", file->header, header_bytes));
    TN_TRY(read_header(file, header_bytes, data_bytes));
    TN_TRY(tn_alloc(&file->data_copy, data_bytes, 1, "its data"));
    TN_TRY(tn_read_all(fd, "its data", file->data_copy, data_bytes));
    return attach_data(file, file->data_copy, data_bytes);
}

tn_status tn_safetensors_open(const char *path, tn_safetensors **out) {
    *out = NULL;
    /* Not blocking: a pipe without a writer is refused, not waited for. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return tn_fail_errno("open", path);
    tn_safetensors *file = NULL;
    tn_status status = tn_alloc(&file, 1, sizeof *file, "safetensors file");
    if (status == TN_OK) status = load(file, fd);
    close(fd); /* only read from: nothing can be lost here */
    return finish(status, path, file, out);
}

void tn_safetensors_close(tn_safetensors *file) {
    if (!file) return;
    tn_free(file->header);
    tn_free(file->data_copy);
    tn_free(file->slots);
    tn_free(file->by_name);
    tn_free(file->dims);
    tn_free(file->metadata);
    tn_free(file);
}

int tn_safetensors_count(const tn_safetensors *file) {
    return file->count;
}

const tn_safetensors_entry *tn_safetensors_at(const tn_safetensors *file, int index) {
    TN_ASSERT(index >= 0 && index < file->count);
    return &file->slots[index].entry;
}

const tn_safetensors_entry *tn_safetensors_find(const tn_safetensors *file, const char *name) {
    int low = 0, high = file->count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        int order = strcmp(name, file->by_name[middle]->entry.name);
        if (order == 0) return &file->by_name[middle]->entry;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

int tn_safetensors_metadata_count(const tn_safetensors *file) {
    return file->metadata_count;
}

const tn_safetensors_meta *tn_safetensors_metadata_at(const tn_safetensors *file, int index) {
    TN_ASSERT(index >= 0 && index < file->metadata_count);
    return &file->metadata[index];
}

const char *tn_safetensors_metadata(const tn_safetensors *file, const char *key) {
    tn_safetensors_meta wanted = {.key = key};
    if (file->metadata_count == 0) return NULL;
    const tn_safetensors_meta *found =
        bsearch(&wanted, file->metadata, (size_t)file->metadata_count, sizeof wanted, compare_keys);
    return found ? found->value : NULL;
}
