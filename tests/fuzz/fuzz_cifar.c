/* Fuzz target of the CIFAR reader. The first byte of an input chooses CIFAR-10 (even) or CIFAR-100 (odd), the
 * second repeats the rest up to three times, so that small inputs reach several records of 3073 or 3074
 * bytes; the rest is the file. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "data/cifar.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(const tn_cifar_kind *kind, const uint8_t *bytes, size_t size) {
    int records, *labels = NULL;
    uint8_t *pixels = NULL;
    if (tn_cifar_count(kind, "input", size, &records) != TN_OK) {
        /* Decoding refuses the same, before it writes anything. */
        if (tn_cifar_decode(kind, "input", bytes, size, NULL, NULL) == TN_OK) abort();
    } else {
        if ((size_t)records * (3072 + (size_t)kind->label_bytes) != size) abort();
        if (tn_alloc(&pixels, (size_t)records, 3072, "pixels") != TN_OK) abort();
        if (tn_alloc(&labels, (size_t)records, sizeof *labels, "labels") != TN_OK) abort();
        if (tn_cifar_decode(kind, "input", bytes, size, pixels, labels) == TN_OK)
            for (int r = 0; r < records; r++)
                if (labels[r] < 0 || labels[r] >= kind->classes) abort();
    }
    tn_free(pixels);
    tn_free(labels);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    const tn_cifar_kind *kind = data[0] & 1 ? &tn_cifar100 : &tn_cifar10;
    size_t copies = 1 + data[1] % 3, part = size - 2;
    /* malloc, not tn_alloc: the sanitizer then sees a read behind the end. */
    uint8_t *bytes = malloc(copies * part + 1);
    if (!bytes) abort();
    for (size_t c = 0; c < copies; c++) memcpy(bytes + c * part, data + 2, part);
    uint8_t *exact = realloc(bytes, part > 0 ? copies * part : 1);
    if (!exact) abort();
    decode(kind, exact, copies * part);
    if (strchr(tn_error(), '\n')) abort();
    free(exact);
    return 0;
}
