/* The tau expressions of --tau: numbers, L, + - * / ^, sqrt() and parentheses.
 *
 *   sum     = product { ("+" | "-") product }
 *   product = signed { ("*" | "/") signed }
 *   signed  = ("-" | "+") signed | power
 *   power   = atom [ "^" signed ]              right associative, so -L^2 = -(L^2) and 2^3^2 = 2^9
 *   atom    = number | "L" | "sqrt" "(" sum ")" | "(" sum ")"
 */
#ifndef TN_BASE_EXPRESSION_H
#define TN_BASE_EXPRESSION_H

#include "base/fail.h"

/* Value of `text` at L, the number of residual blocks inside tau. TN_ERR_USAGE, with the column (from 1),
 * when the text is no expression, when a step of the calculation is not finite, or when the result is
 * negative. */
tn_status tn_expression_evaluate(const char *text, double L, double *out);

/* Checks the grammar alone; no value of L is needed. */
tn_status tn_expression_check(const char *text);

#endif
