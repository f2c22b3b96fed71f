/* Dense linear algebra in float64, by BLAS and LAPACK (OpenBLAS). Matrices are row-major without gaps. */
#ifndef TN_THEORY_LINEAR_ALGEBRA_H
#define TN_THEORY_LINEAR_ALGEBRA_H

#include <stddef.h>

#include "base/fail.h"
#include "base/philox.h"

typedef enum tn_transpose { TN_PLAIN, TN_TRANSPOSED } tn_transpose;

/* c = alpha op(a) op(b) + beta c; op(a) is rows x inner, op(b) inner x columns, c rows x columns. c must not
 * overlap a or b. */
void tn_gemm(tn_transpose op_a, tn_transpose op_b, int rows, int columns, int inner, double alpha,
             const double *a, const double *b, double beta, double *c);

double tn_dot(size_t count, const double *x, const double *y);
double tn_norm(size_t count, const double *x); /* Euclidean; does not overflow where the result does not */
void tn_axpy(size_t count, double alpha, const double *x, double *y); /* y += alpha x */
void tn_scale(size_t count, double alpha, double *x);

/* Eigenvalues of a symmetric n x n matrix, ascending, into `values`. The matrix stays. TN_ERR_DATA for one
 * with values that are not finite; TN_ERR_MEMORY. */
tn_status tn_symmetric_eigenvalues(int n, const double *matrix, double *values);

/* Singular values of a rows x columns matrix, descending, into `values` (the smaller of both counts). As
 * above. */
tn_status tn_singular_values(int rows, int columns, const double *matrix, double *values);

/* The largest singular value by power iteration, from below, until it changes by less than `tolerance`
 * (relative). `work` holds rows + 2 columns. */
double tn_spectral_norm(int rows, int columns, const double *matrix, double tolerance, double *work);

/* Independent N(0, deviation^2), by Box and Muller's method. */
void tn_fill_normal(tn_rng *rng, size_t count, double deviation, double *out);

/* Loads OpenBLAS and keeps it to the calling thread: work is spread over threads of our own, and results must
 * not depend on their number. Every other function here needs it to have succeeded. TN_ERR_DEVICE when the
 * library is not installed. */
tn_status tn_blas_open(void);

#endif
