/* Tau expressions: any bytes are an expression or an error of one line, and what is accepted is finite and at
 * least 0. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/expression.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1); /* exactly as large as the text, so that reading on is seen */
    if (!text) return 0;
    memcpy(text, data, size);
    text[size] = 0;
    tn_status grammar = tn_expression_check(text);
    if (grammar != TN_OK && strpbrk(tn_error(), "\n\r")) abort();
    static const double blocks[] = {1, 9, 600};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        double value = -1;
        tn_status status = tn_expression_evaluate(text, blocks[i], &value);
        if (status == TN_OK && (grammar != TN_OK || !isfinite(value) || value < 0)) abort();
        if (status != TN_OK && (value != -1 || strpbrk(tn_error(), "\n\r"))) abort();
    }
    free(text);
    return 0;
}
