/* Rows of numbers with named columns, and their CSV form. */
#ifndef TN_THEORY_NUMBER_TABLE_H
#define TN_THEORY_NUMBER_TABLE_H

#include "base/text.h"

typedef struct tn_number_table tn_number_table;

/* `columns`: names separated by commas. Free with tn_number_table_free; NULL is allowed there. */
tn_status tn_number_table_create(const char *columns, tn_number_table **out);
void tn_number_table_free(tn_number_table *table);

/* Adds a row; `values` has as many numbers as there are columns. */
tn_status tn_number_table_add(tn_number_table *table, const double *values);

/* The same with the values as arguments, all of them doubles; `count` must be the number of columns. */
#define TN_TABLE_ADD(table, ...)                                                                             \
    tn_number_table_add_checked(table, sizeof((double[]){__VA_ARGS__}) / sizeof(double),                     \
                                (double[]){__VA_ARGS__})
tn_status tn_number_table_add_checked(tn_number_table *table, size_t count, const double *values);

int tn_number_table_rows(const tn_number_table *table);
double tn_number_table_at(const tn_number_table *table, int row, int column);

/* Appends a header line and a line a row; numbers read back to the same doubles, or are nan, inf, -inf. */
tn_status tn_number_table_print(const tn_number_table *table, tn_string *out);

#endif
