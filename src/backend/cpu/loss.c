/* The loss node: softmax cross-entropy with soft targets, or 1/2 |x - target|^2, one weight per row. Computed
 * in double, row by row; rows of weight zero (padding) contribute nothing, whatever their logits are. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/memory.h"

typedef struct loss_plan {
    tn_plan head;
    int rows, classes;
} loss_plan;

static void loss_free(tn_plan *head) {
    tn_free(head);
}

static tn_status loss_plan_make(tn_backend *backend, const tn_model *model, int index, int chunk_rows,
                                int chunks, bool training, tn_plan **out) {
    (void)backend;
    (void)chunks;
    (void)training;
    loss_plan *plan;
    TN_TRY(tn_alloc(&plan, 1, sizeof *plan, "layer plan"));
    plan->head.model = model;
    plan->head.node = &model->nodes[index];
    plan->rows = chunk_rows;
    plan->classes = model->tensors[plan->head.node->input].shape.channels;
    memcpy(plan->head.implementation[0], "plain", 6);
    *out = &plan->head;
    return TN_OK;
}

static int rank_of(const float *x, int classes, int label) {
    int rank = 0;
    if (!isfinite(x[label])) return classes;
    /* Ties go to the smaller index, as argmax does. */
    for (int j = 0; j < label; j++) rank += x[j] >= x[label];
    for (int j = label + 1; j < classes; j++) rank += x[j] > x[label];
    return rank;
}

/* Loss of one row; also weight * dloss/dx where dx is given. */
static double cross_entropy(const float *x, const float *target, int classes, double weight, float *dx) {
    double largest = (double)x[0], sum = 0, mass = 0, dot = 0;
    for (int j = 1; j < classes; j++)
        if ((double)x[j] > largest) largest = (double)x[j];
    for (int j = 0; j < classes; j++) {
        sum += exp((double)x[j] - largest);
        mass += (double)target[j];
        dot += (double)target[j] * ((double)x[j] - largest);
    }
    for (int j = 0; dx && j < classes; j++)
        dx[j] = (float)(weight * (mass * exp((double)x[j] - largest) / sum - (double)target[j]));
    return mass * log(sum) - dot;
}

static double squared(const float *x, const float *target, int classes, double weight, float *dx) {
    double loss = 0;
    for (int j = 0; j < classes; j++) {
        double difference = (double)x[j] - (double)target[j];
        loss += 0.5 * difference * difference;
        if (dx) dx[j] = (float)(weight * difference);
    }
    return loss;
}

static tn_status loss_rows(tn_plan *head, const tn_args *a) {
    loss_plan *plan = (loss_plan *)(void *)head;
    int classes = plan->classes;
    if (a->dx) memset(a->dx, 0, (size_t)plan->rows * (size_t)classes * sizeof(float));
    for (int i = 0; i < a->rows; i++) {
        size_t at = (size_t)i * (size_t)classes;
        double weight = (double)a->row_weights[i];
        float *dx = a->dx && weight != 0.0 ? a->dx + at : NULL;
        double (*row)(const float *, const float *, int, double, float *) =
            head->node->loss == TN_LOSS_SQUARED ? squared : cross_entropy;
        double loss = row(a->x + at, a->targets + at, classes, weight, dx);
        a->row_loss[i] = (float)loss;
        if (!isfinite(loss)) *a->nonfinite = 1;
        if (a->labels) a->row_rank[i] = rank_of(a->x + at, classes, a->labels[i]);
    }
    return TN_OK;
}

const tn_node_ops tn_cpu_loss = {
    .plan = loss_plan_make, .free = loss_free, .forward = loss_rows, .backward = loss_rows};
