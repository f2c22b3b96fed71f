/* One cell of the grid of Figure 1: a fully connected network trained for some steps, its losses, and the
 * file in which they are kept, so that a grid that was stopped goes on where it was. */
#ifndef TN_THEORY_TRAINING_CELL_H
#define TN_THEORY_TRAINING_CELL_H

#include "taunet/data.h"
#include "theory/laboratory.h"

typedef struct tn_cell_plan {
    const char *name;  /* of its file, without folder and extension */
    const char *model; /* "fcresnet" or "feedforward" */
    const char *tau;   /* expression in L; "" for feedforward */
    int depth, width;  /* L, m */
    int batch, steps;
    double lr;
    uint64_t seed;
    int threads;           /* 0 = one a core */
    const char *data_spec; /* what `dataset` was opened from */
    const tn_dataset *dataset;
} tn_cell_plan;

typedef struct tn_cell {
    double *losses;    /* [steps]: mean loss of each step's batch; 0 from `finished` on */
    int finished;      /* steps done before the end or the first value that was not finite */
    int nonfinite;     /* that step, counted from 1; 0 when there was none */
    char message[200]; /* where the value appeared; "" */
} tn_cell;

/* Trains with SGD without momentum and weight decay on unaugmented images in the order of `seed`.
 * TN_ERR_STOPPED when asked to. Values that are not finite end the cell and are no error. Free with
 * tn_cell_free. */
tn_status tn_cell_train(tn_lab *lab, const tn_cell_plan *plan, tn_cell *out);
void tn_cell_free(tn_cell *cell);

/* Writes the cell to PLAN->name.csv in the laboratory's folder. */
tn_status tn_cell_save(const tn_lab *lab, const tn_cell_plan *plan, const tn_cell *cell);

/* Reads the cell back; *found is false when there is no file. TN_ERR_USAGE for a file made with other
 * settings, TN_ERR_DATA for one that is damaged. Free with tn_cell_free when found. */
tn_status tn_cell_load(const tn_lab *lab, const tn_cell_plan *plan, tn_cell *out, bool *found);

/* Removes the file, if there is one. */
tn_status tn_cell_remove(const tn_lab *lab, const tn_cell_plan *plan);

#endif
