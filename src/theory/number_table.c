#include "theory/number_table.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/number.h"

struct tn_number_table {
    char *columns;
    size_t width;
    double *values;
    size_t count, capacity; /* numbers, not rows */
};

tn_status tn_number_table_create(const char *columns, tn_number_table **out) {
    tn_number_table *table;
    *out = NULL;
    TN_TRY(tn_alloc(&table, 1, sizeof *table, "a table"));
    tn_status status = tn_strdup(&table->columns, columns);
    if (status != TN_OK) {
        tn_free(table);
        return status;
    }
    table->width = 1;
    for (const char *c = columns; *c; c++) table->width += *c == ',';
    *out = table;
    return TN_OK;
}

void tn_number_table_free(tn_number_table *table) {
    if (!table) return;
    tn_free(table->columns);
    tn_free(table->values);
    tn_free(table);
}

tn_status tn_number_table_add(tn_number_table *table, const double *values) {
    TN_TRY(tn_grow(&table->values, &table->capacity, table->count + table->width, sizeof *values, "a table"));
    memcpy(table->values + table->count, values, table->width * sizeof *values);
    table->count += table->width;
    return TN_OK;
}

tn_status tn_number_table_add_checked(tn_number_table *table, size_t count, const double *values) {
    TN_ASSERT(count == table->width);
    return tn_number_table_add(table, values);
}

int tn_number_table_rows(const tn_number_table *table) {
    return (int)(table->count / table->width);
}

double tn_number_table_at(const tn_number_table *table, int row, int column) {
    size_t at = (size_t)row * table->width + (size_t)column;
    TN_ASSERT(row >= 0 && column >= 0 && (size_t)column < table->width && at < table->count);
    return table->values[at];
}

tn_status tn_number_table_print(const tn_number_table *table, tn_string *out) {
    TN_TRY(tn_string_printf(out, "%s\n", table->columns));
    for (size_t i = 0; i < table->count; i++) {
        double value = table->values[i];
        char text[TN_NUMBER_MAX] = "nan";
        if (isfinite(value))
            tn_number_print(value, text);
        else if (isinf(value))
            strcpy(text, value > 0 ? "inf" : "-inf");
        TN_TRY(tn_string_printf(out, "%s%c", text, (i + 1) % table->width ? ',' : '\n'));
    }
    return TN_OK;
}
