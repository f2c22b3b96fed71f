/* One list of small models, each around one kind of node with one combination of epilogues and a loss at the
 * end. The gradient check of the reference, and the comparison of every backend with the reference, run over
 * this list.
 *
 * Test code: anything that goes wrong aborts. */
#ifndef TN_TESTS_OP_CASES_H
#define TN_TESTS_OP_CASES_H

#include "model/graph.h"

typedef struct op_case {
    const char *name;
    /* Makes the model; free with tn_model_free. */
    tn_status (*build)(const struct op_case *self, tn_model **out);
    int rows;         /* images */
    double tolerance; /* op_gradient_error a float32 backend may have; plain float32 loops stay below 1e-5 */

    /* For build. */
    int in, out, height, width;  /* of the node under test */
    int kernel, stride, padding; /* conv, pools */
    int classes;                 /* 0 for 5 */
    bool large;                  /* a layer of a real network: too large for finite differences */
    unsigned flags;              /* of op_cases.c */
} op_case;

int op_case_count(void);
const op_case *op_case_at(int index);

/* Forward work of a model on `rows` images: operations in multiplications and additions of its matrices,
 * bytes of what its nodes read and write in float32, each once. */
void op_case_work(const tn_model *model, int rows, double *flops, double *bytes);

/* The case's model. */
tn_model *op_case_model(const op_case *self);

/* Inputs of a model as floats, so that a float32 backend and the reference get the same numbers. Drawn from
 * Philox streams: a pure function of the arguments. Parameters are their initial values, those that start at
 * a constant moved away from it, so that no gradient is zero by accident. */
typedef struct op_data {
    float *values, *state; /* param_floats, state_floats */
    float *images;         /* rows x H x W x C */
    float *targets;        /* rows x classes; rows of a softmax loss sum to 1 up to rounding */
    float *row_weights;    /* rows */
    int *labels;           /* rows: the class of the largest target */
} op_data;

/* uneven: row weights differ and every third is zero; else all are 1 / rows. hard: targets of a softmax loss
 * are one class each. Free with op_data_free. */
op_data op_data_draw(const tn_model *model, int rows, uint64_t key, bool uneven, bool hard);
/* The data of a case. */
op_data op_case_data(const op_case *self, const tn_model *model);
void op_data_free(op_data *data);

/* A copy in double precision; free with free(). */
double *op_widen(const float *values, size_t count);

/* How far the gradient `grad` of parameter `param` is off: |grad - expected| / |expected|, Euclidean norms.
 * Gradients that cancel to (nearly) nothing are measured against 1% of the largest among the parameters. Both
 * arrays hold param_floats. NaN when a value is, so accept with `error <= tolerance`. */
double op_gradient_error(const tn_model *model, int param, const double *expected, const float *grad);

#endif
