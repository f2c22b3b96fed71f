/* Decimal numbers as text, always with a point, whatever locale the program around the library has set. */
#ifndef TN_BASE_NUMBER_H
#define TN_BASE_NUMBER_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the unsigned number at the start of `text`: digits with at most one point, then perhaps an
 * exponent ("5",
 * ".5", "1.", "1e-4"); 0 when there is none. No hexadecimal, no "inf", no "nan". */
size_t tn_number_scan(const char *text);

/* Value of the number at the start of `text`, where tn_number_scan found one; infinite when it is too large.
 */
double tn_number_value(const char *text);

/* Reads all of `text` as a number with an optional sign; false when it is not one or is too large for a
 * double. */
bool tn_number_parse(const char *text, double *out);

#define TN_NUMBER_MAX 40

/* Prints a finite number with as few digits as read back to the same double (or the same float). */
void tn_number_print(double value, char out[TN_NUMBER_MAX]);
void tn_number_print_float(float value, char out[TN_NUMBER_MAX]);

#endif
