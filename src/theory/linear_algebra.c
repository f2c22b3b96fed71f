#include "theory/linear_algebra.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"

/* OpenBLAS is loaded when an experiment needs it and never before: it starts threads of its own, which
 * training must not pay for and which, short of memory, keep a process from ending. */
#define LIBRARY "libopenblas.so.0"

enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 }; /* of CBLAS */

/* CBLAS, and LAPACK's Fortran interface (lengths of the character arguments last). */
static struct {
    void (*dgemm)(int order, int op_a, int op_b, int m, int n, int k, double alpha, const double *a, int lda,
                  const double *b, int ldb, double beta, double *c, int ldc);
    void (*dgemv)(int order, int op, int m, int n, double alpha, const double *a, int lda, const double *x,
                  int incx, double beta, double *y, int incy);
    double (*ddot)(int n, const double *x, int incx, const double *y, int incy);
    double (*dnrm2)(int n, const double *x, int incx);
    void (*daxpy)(int n, double alpha, const double *x, int incx, double *y, int incy);
    void (*dsyev)(const char *jobz, const char *uplo, const int *n, double *a, const int *lda, double *w,
                  double *work, const int *lwork, int *info, size_t jobz_length, size_t uplo_length);
    void (*dgesdd)(const char *jobz, const int *m, const int *n, double *a, const int *lda, double *s,
                   double *u, const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork,
                   int *iwork, int *info, size_t jobz_length);
    void (*set_num_threads)(int count);
} blas;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char load_error[256]; /* empty once everything is there */

static void load(void) {
    const struct {
        const char *name;
        void *slot;
    } symbols[] = {{"cblas_dgemm", &blas.dgemm}, {"cblas_dgemv", &blas.dgemv},
                   {"cblas_ddot", &blas.ddot},   {"cblas_dnrm2", &blas.dnrm2},
                   {"cblas_daxpy", &blas.daxpy}, {"dsyev_", &blas.dsyev},
                   {"dgesdd_", &blas.dgesdd},    {"openblas_set_num_threads", &blas.set_num_threads}};
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; library && i < sizeof symbols / sizeof *symbols; i++) {
        void *found = dlsym(library, symbols[i].name);
        memcpy(symbols[i].slot, &found, sizeof found);
        if (!found) library = NULL;
    }
    if (!library)
        snprintf(load_error, sizeof load_error, "%s", dlerror());
    else
        blas.set_num_threads(1);
}

tn_status tn_blas_open(void) {
    pthread_once(&once, load);
    if (!load_error[0]) return TN_OK;
    return tn_fail(TN_ERR_DEVICE, "theory needs OpenBLAS: %s; install libopenblas0", load_error);
}

#define BLOCK ((size_t)1 << 30) /* BLAS counts with int */

void tn_gemm(tn_transpose op_a, tn_transpose op_b, int rows, int columns, int inner, double alpha,
             const double *a, const double *b, double beta, double *c) {
    blas.dgemm(ROW_MAJOR, op_a == TN_PLAIN ? NO_TRANSPOSE : TRANSPOSE,
               op_b == TN_PLAIN ? NO_TRANSPOSE : TRANSPOSE, rows, columns, inner, alpha, a,
               op_a == TN_PLAIN ? inner : rows, b, op_b == TN_PLAIN ? columns : inner, beta, c, columns);
}

double tn_dot(size_t count, const double *x, const double *y) {
    double sum = 0;
    for (; count > BLOCK; count -= BLOCK, x += BLOCK, y += BLOCK) sum += blas.ddot((int)BLOCK, x, 1, y, 1);
    return sum + blas.ddot((int)count, x, 1, y, 1);
}

double tn_norm(size_t count, const double *x) {
    double norm = 0;
    for (; count > BLOCK; count -= BLOCK, x += BLOCK) norm = hypot(norm, blas.dnrm2((int)BLOCK, x, 1));
    return hypot(norm, blas.dnrm2((int)count, x, 1));
}

void tn_axpy(size_t count, double alpha, const double *x, double *y) {
    for (; count > BLOCK; count -= BLOCK, x += BLOCK, y += BLOCK) blas.daxpy((int)BLOCK, alpha, x, 1, y, 1);
    blas.daxpy((int)count, alpha, x, 1, y, 1);
}

void tn_scale(size_t count, double alpha, double *x) {
    for (size_t i = 0; i < count; i++) x[i] *= alpha;
}

/* LAPACK may run for ever on a NaN. */
static tn_status copy_finite(const double *matrix, size_t count, double *copy) {
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(matrix[i]))
            return tn_fail(TN_ERR_DATA,
                           "a matrix has an element that is not finite; use less depth or a smaller tau");
        copy[i] = matrix[i];
    }
    return TN_OK;
}

tn_status tn_symmetric_eigenvalues(int n, const double *matrix, double *values) {
    double *copy;
    size_t elements = (size_t)n * (size_t)n, room = 64 * (size_t)n;
    TN_TRY(tn_alloc(&copy, elements + room, sizeof *copy, "eigenvalues"));
    int length = (int)room, info = 0;
    tn_status status = copy_finite(matrix, elements, copy);
    if (status == TN_OK) blas.dsyev("N", "U", &n, copy, &n, values, copy + elements, &length, &info, 1, 1);
    tn_free(copy);
    if (status == TN_OK && info)
        status = tn_fail(TN_ERR_DATA, "LAPACK found no eigenvalues of a %d x %d matrix (%d)", n, n, info);
    return status;
}

tn_status tn_singular_values(int rows, int columns, const double *matrix, double *values) {
    int smaller = rows < columns ? rows : columns, larger = rows < columns ? columns : rows;
    size_t elements = (size_t)rows * (size_t)columns, room = 16 * (size_t)smaller + 64 * (size_t)larger;
    double *copy;
    int *whole = NULL;
    TN_TRY(tn_alloc(&copy, elements + room, sizeof *copy, "singular values"));
    tn_status status = tn_alloc(&whole, 8 * (size_t)smaller, sizeof *whole, "singular values");
    if (status == TN_OK) status = copy_finite(matrix, elements, copy);
    int length = (int)room, one = 1, info = 0;
    double none = 0;
    /* Row-major is the transpose in Fortran's order: the singular values are the same. */
    if (status == TN_OK)
        blas.dgesdd("N", &columns, &rows, copy, &columns, values, &none, &one, &none, &one, copy + elements,
                    &length, whole, &info, 1);
    tn_free(copy);
    tn_free(whole);
    if (status == TN_OK && info)
        status = tn_fail(TN_ERR_DATA, "LAPACK found no singular values of a %d x %d matrix (%d)", rows,
                         columns, info);
    return status;
}

double tn_spectral_norm(int rows, int columns, const double *matrix, double tolerance, double *work) {
    double *v = work, *image = work + columns, *back = image + rows;
    tn_rng rng = tn_rng_open(1, TN_RNG_SYNTHETIC, (uint32_t)rows, (uint32_t)columns);
    tn_fill_normal(&rng, (size_t)columns, 1, v);
    double before = 0;
    for (int i = 0; i < 1000; i++) {
        double length = tn_norm((size_t)columns, v);
        if (!(length > 0)) return length;
        tn_scale((size_t)columns, 1 / length, v);
        blas.dgemv(ROW_MAJOR, NO_TRANSPOSE, rows, columns, 1, matrix, columns, v, 1, 0, image, 1);
        double norm = tn_norm((size_t)rows, image);
        if (i > 4 && fabs(norm - before) <= tolerance * norm) return norm;
        before = norm;
        blas.dgemv(ROW_MAJOR, TRANSPOSE, rows, columns, 1, matrix, columns, image, 1, 0, back, 1);
        memcpy(v, back, (size_t)columns * sizeof *v);
    }
    return before;
}

void tn_fill_normal(tn_rng *rng, size_t count, double deviation, double *out) {
    for (size_t i = 0; i < count; i += 2) {
        double radius = deviation * sqrt(-2 * log(tn_rng_uniform(rng)));
        double angle = 6.283185307179586477 * tn_rng_uniform(rng), sine, cosine;
        sincos(angle, &sine, &cosine);
        out[i] = radius * cosine;
        if (i + 1 < count) out[i + 1] = radius * sine;
    }
}
