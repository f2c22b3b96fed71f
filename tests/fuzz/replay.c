/* Runs a fuzz target over files: how the ordinary tests replay the corpora. The last line is "N passed, N
 * failed". */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) return -1;
    size_t capacity = 1 << 20;
    uint8_t *bytes = malloc(capacity);
    size_t size = bytes ? fread(bytes, 1, capacity, file) : 0;
    fclose(file);
    if (!bytes || size == capacity) {
        free(bytes);
        return -1;
    }
    /* An exact block, so that a read past the end is seen by the sanitizers. */
    uint8_t *exact = malloc(size ? size : 1);
    if (!exact) abort();
    for (size_t i = 0; i < size; i++) exact[i] = bytes[i];
    free(bytes);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    return 0;
}

int main(int argc, char **argv) {
    int failed = 0;
    for (int i = 1; i < argc; i++)
        if (replay(argv[i]) != 0) {
            fprintf(stderr, "%s: cannot be replayed\n", argv[i]);
            failed++;
        }
    printf("%d passed, %d failed\n", argc - 1 - failed, failed);
    return failed || argc == 1;
}
