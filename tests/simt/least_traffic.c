#include "tests/simt/least_traffic.h"

#include <stdlib.h>

typedef struct parts {
    const tn_model *model;
    int *of_node;   /* the part of each node */
    bool *was_read; /* by the part at hand, of each tensor */
    bool *outside;  /* whether a part other than its producer's reads the tensor */
    bool *kept;     /* for backward, of each tensor */
} parts;

static int producer_part(const parts *p, int tensor) {
    int node = p->model->tensors[tensor].producer;
    return node < 0 ? -1 : p->of_node[node];
}

static bool keeps_input(const tn_node *node) {
    return node->kind == TN_NODE_CONV || node->kind == TN_NODE_LINEAR || node->kind == TN_NODE_NORM;
}

static double values_of(const tn_model *model, int tensor) {
    tn_shape s = model->tensors[tensor].shape;
    return (double)s.channels * s.height * s.width;
}

static void cut(parts *p) {
    int part = 0;
    for (int i = 0; i < p->model->node_count; i++) {
        const tn_node *node = &p->model->nodes[i];
        int used[] = {node->input, node->residual};
        p->of_node[i] = part;
        for (int k = 0; k < 2; k++)
            if (used[k] >= 0 && producer_part(p, used[k]) != part) p->outside[used[k]] = true;
        if (keeps_input(node)) p->kept[node->input] = true;
        part += node->block;
    }
}

/* What the part reads for the first time. */
static void read_inputs(parts *p, int node_index, size_t bytes_of(void *, int), void *context,
                        least_traffic *out) {
    const tn_node *node = &p->model->nodes[node_index];
    int used[] = {node->input, node->residual};
    for (int k = 0; k < 2; k++) {
        int t = used[k];
        if (t < 0 || p->was_read[t]) continue;
        double bytes = values_of(p->model, t) * (double)bytes_of(context, t);
        bool external = producer_part(p, t) != p->of_node[node_index];
        p->was_read[t] = true;
        if (external) out->forward_read += bytes;
        if (external && t > 0) out->backward_write += bytes;
        if (p->kept[t]) out->backward_read += bytes;
    }
}

static void write_output(const parts *p, const tn_node *node, size_t bytes_of(void *, int), void *context,
                         least_traffic *out) {
    if (node->output < 0) return;
    double values = values_of(p->model, node->output),
           bytes = values * (double)bytes_of(context, node->output);
    if (p->outside[node->output] || p->kept[node->output]) out->forward_write += bytes;
    if (p->outside[node->output]) out->backward_read += bytes; /* its gradient */
    double side = node->relu ? values / 8 : node->kind == TN_NODE_MAXPOOL ? values : 0;
    out->forward_write += side;
    out->backward_read += side;
}

least_traffic least_traffic_of(const tn_model *model, size_t (*element_bytes)(void *, int), void *context,
                               size_t weight_bytes) {
    size_t tensors = (size_t)model->tensor_count;
    parts p = {.model = model,
               .of_node = calloc((size_t)model->node_count, sizeof *p.of_node),
               .was_read = calloc(tensors, sizeof(bool)),
               .outside = calloc(tensors, sizeof(bool)),
               .kept = calloc(tensors, sizeof(bool))};
    least_traffic out = {0};
    if (!p.of_node || !p.was_read || !p.outside || !p.kept) abort();
    cut(&p);
    for (int i = 0; i < model->node_count; i++) {
        if (i > 0 && p.of_node[i] != p.of_node[i - 1])
            for (size_t t = 0; t < tensors; t++) p.was_read[t] = false;
        read_inputs(&p, i, element_bytes, context, &out);
        write_output(&p, &model->nodes[i], element_bytes, context, &out);
        if (model->nodes[i].weight >= 0)
            out.weights += 2.0 * (double)weight_bytes * (double)model->params[model->nodes[i].weight].count;
    }
    out.update = 6.0 * sizeof(float) * (double)model->trained_floats;
    free(p.of_node);
    free(p.was_read);
    free(p.outside);
    free(p.kept);
    return out;
}
