/* Heads of plans, and what is done for a whole model in a few launches: packing of parameters, gradients of
 * scaled weights, gradients of scalars. The tables that say what is where are made once. */
#include <string.h>

#include "backend/cuda_device.h"
#include "base/memory.h"

/* ---- plans ---- */

tn_status tn_cuda_plan_make(tn_backend *backend, const tn_model *model, int node, int chunk_rows,
                            bool training, size_t size, void *out) {
    tn_cuda *cuda = tn_cuda_of(backend);
    const tn_node *n = &model->nodes[node];
    int output = n->output >= 0 ? n->output : n->input;
    tn_cuda_plan *plan;
    TN_TRY(tn_alloc(&plan, 1, size, "layer plan"));
    *plan = (tn_cuda_plan){.head = {.model = model, .node = n},
                           .cuda = cuda,
                           .rows = chunk_rows,
                           .training = training,
                           .x_store = tn_cuda_store(cuda, model, n->input),
                           .y_store = tn_cuda_store(cuda, model, output),
                           .in = model->tensors[n->input].shape,
                           .out = model->tensors[output].shape};
    *(tn_cuda_plan **)out = plan;
    return TN_OK;
}

tn_status tn_cuda_plan_pack(tn_cuda_plan *plan, tn_pack_item item, int param, bool scaled, void *memory) {
    TN_ASSERT(plan->pack_count < TN_CUDA_PACKS);
    item.to = memory;
    plan->packs[plan->pack_count++] = (tn_cuda_pack){.item = item, .param = param, .scaled = scaled};
    return TN_OK;
}

static const float *scalar_of(const tn_cuda *cuda, const tn_plan *plan, int which) {
    return cuda->scalars + 4 * (plan->node - plan->model->nodes) + which;
}

const float *tn_cuda_s(const tn_cuda *cuda, const tn_plan *plan) {
    const tn_scale *s = &plan->node->scale;
    return s->param >= 0 || s->factor != 1.0f ? scalar_of(cuda, plan, 0) : NULL;
}

const float *tn_cuda_c(const tn_cuda *cuda, const tn_plan *plan) {
    return plan->node->term_count > 0 ? scalar_of(cuda, plan, 1) : NULL;
}

const float *tn_cuda_d(const tn_cuda *cuda, const tn_plan *plan) {
    return plan->node->carry >= 0 ? scalar_of(cuda, plan, 2) : NULL;
}

tn_parts tn_cuda_parts(const tn_args *a) {
    tn_parts parts = {.count = a->dy_count};
    for (int i = 0; i < a->dy_count; i++) parts.part[i] = a->dy[i];
    return parts;
}

tn_status tn_cuda_accumulate(tn_cuda *cuda, const tn_args *a, float *to, const float *made, size_t count) {
    if (a->chunk > 0) TN_CUDA(tn_launch_add(count, to, made, cuda->stream));
    return TN_OK;
}

/* ---- tables ---- */

/* A table of the host that grows, on its way to the device. */
typedef struct list {
    void *items;
    size_t count, capacity;
} list;

static tn_status push(list *l, const void *item, size_t size) {
    TN_TRY(tn_grow(&l->items, &l->capacity, l->count + 1, size, "tables"));
    memcpy((char *)l->items + l->count++ * size, item, size);
    return TN_OK;
}

/* Cuts `elements` of item `item` into pieces. */
static tn_status push_pieces(list *pieces, int item, size_t elements) {
    for (size_t first = 0; first < elements; first += TN_PIECE) {
        tn_piece piece = {.item = item, .first = first};
        TN_TRY(push(pieces, &piece, sizeof piece));
    }
    return TN_OK;
}

/* Moves a table to the device and frees it here. */
static tn_status settle(tn_cuda *cuda, list *l, size_t size, void *out, int *count) {
    if (count) *count = (int)l->count;
    tn_status status = tn_cuda_alloc(&cuda->head, out, l->count * size, "tables");
    if (status == TN_OK && l->count > 0)
        status = tn_cuda_upload(&cuda->head, *(void **)out, l->items, l->count * size);
    tn_free(l->items);
    *l = (list){0};
    return status;
}

/* ---- scalars of nodes ---- */

static tn_node_terms terms_of(const tn_model *m, const tn_node *node) {
    tn_node_terms t = {.scale_factor = node->scale.factor,
                       .scale = node->scale.param >= 0 ? (int)m->params[node->scale.param].offset : -1,
                       .carry = node->carry >= 0 ? (int)m->params[node->carry].offset : -1,
                       .term_count = node->term_count};
    for (int i = 0; i < node->term_count; i++) {
        t.terms[i].place = (int)m->params[node->terms[i].param].offset;
        t.terms[i].factor = node->terms[i].factor;
        t.terms[i].scaled = node->terms[i].scaled;
    }
    return t;
}

static tn_status make_terms(tn_cuda *cuda, const tn_model *m) {
    list terms = {0};
    tn_status status = TN_OK;
    for (int i = 0; status == TN_OK && i < m->node_count; i++) {
        tn_node_terms t = terms_of(m, &m->nodes[i]);
        status = push(&terms, &t, sizeof t);
    }
    tn_status settled = settle(cuda, &terms, sizeof(tn_node_terms), &cuda->tables.terms, NULL);
    TN_TRY(status);
    return settled;
}

/* What the nodes give to the gradient of scalar parameter `param`, in node order. */
static tn_status push_shares(const tn_model *m, int param, list *shares) {
    for (int i = 0; i < m->node_count; i++) {
        const tn_node *node = &m->nodes[i];
        for (int t = 0; t < node->term_count; t++) {
            tn_share share = {.kind = TN_SHARE_TERM,
                              .node = i,
                              .scaled = node->terms[t].scaled,
                              .factor = node->terms[t].factor};
            if (node->terms[t].param == param) TN_TRY(push(shares, &share, sizeof share));
        }
        tn_share carry = {.kind = TN_SHARE_CARRY, .node = i};
        if (node->carry == param) TN_TRY(push(shares, &carry, sizeof carry));
        tn_share scale = {.kind = TN_SHARE_SCALE, .node = i, .factor = node->scale.factor};
        if (node->scale.param == param) TN_TRY(push(shares, &scale, sizeof scale));
    }
    return TN_OK;
}

static tn_status push_scalars(const tn_model *m, list *scalars, list *shares) {
    for (int p = 0; p < m->param_count; p++) {
        if (m->params[p].group != TN_GROUP_SCALARS) continue;
        tn_scalar scalar = {.place = (int)m->params[p].offset,
                            .first = (int)shares->count,
                            .grad_factor = m->params[p].grad_factor};
        TN_TRY(push_shares(m, p, shares));
        scalar.count = (int)shares->count - scalar.first;
        TN_TRY(push(scalars, &scalar, sizeof scalar));
    }
    return TN_OK;
}

static tn_status make_scalars(tn_cuda *cuda, const tn_model *m) {
    list scalars = {0}, shares = {0};
    tn_status status = push_scalars(m, &scalars, &shares);
    tn_status a =
        settle(cuda, &scalars, sizeof(tn_scalar), &cuda->tables.scalars, &cuda->tables.scalar_count);
    tn_status b = settle(cuda, &shares, sizeof(tn_share), &cuda->tables.shares, NULL);
    TN_TRY(status);
    TN_TRY(a);
    return b;
}

/* ---- packing and gradients ---- */

static tn_status push_packs(tn_cuda *cuda, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                            int *flags, list *items, list *pieces) {
    for (int i = 0; i < m->node_count; i++) {
        const tn_cuda_plan *plan = (const tn_cuda_plan *)(void *)plans[i];
        for (int k = 0; k < plan->pack_count; k++) {
            tn_pack_item item = plan->packs[k].item;
            item.from = flat->values + m->params[plan->packs[k].param].offset;
            item.s = plan->packs[k].scaled ? tn_cuda_s(cuda, &plan->head) : NULL;
            item.nonfinite = flags + i;
            TN_TRY(push_pieces(pieces, (int)items->count, tn_pack_count(&item)));
            TN_TRY(push(items, &item, sizeof item));
        }
    }
    return TN_OK;
}

static tn_status push_gradients(tn_cuda *cuda, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                                int *flags, list *items, list *pieces) {
    for (int i = 0; i < m->node_count; i++) {
        const tn_node *node = &m->nodes[i];
        if (node->kind != TN_NODE_CONV && node->kind != TN_NODE_LINEAR) continue;
        const tn_param *w = &m->params[node->weight];
        if (w->group == TN_GROUP_FIXED) continue;
        tn_weight_gradient item = {.grad = flat->grads + w->offset,
                                   .value = flat->values + w->offset,
                                   .count = w->count,
                                   .s = tn_cuda_s(cuda, plans[i]),
                                   .dot = node->scale.param >= 0 ? flat->sums + 3 * (size_t)i + 2 : NULL,
                                   .nonfinite = flags + i,
                                   .first_piece = (int)pieces->count};
        TN_TRY(push_pieces(pieces, (int)items->count, w->count));
        item.pieces = (int)pieces->count - item.first_piece;
        TN_TRY(push(items, &item, sizeof item));
    }
    return TN_OK;
}

static tn_status make_packs(tn_cuda *cuda, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                            int *flags) {
    tn_cuda_tables *t = &cuda->tables;
    list items = {0}, pieces = {0};
    tn_status status = push_packs(cuda, m, plans, flat, flags, &items, &pieces);
    tn_status a = settle(cuda, &items, sizeof(tn_pack_item), &t->pack, NULL);
    tn_status b = settle(cuda, &pieces, sizeof(tn_piece), &t->pack_pieces, &t->pack_piece_count);
    TN_TRY(status);
    TN_TRY(a);
    return b;
}

static tn_status make_gradients(tn_cuda *cuda, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                                int *flags) {
    tn_cuda_tables *t = &cuda->tables;
    list items = {0}, pieces = {0};
    tn_status status = push_gradients(cuda, m, plans, flat, flags, &items, &pieces);
    tn_status a = settle(cuda, &items, sizeof(tn_weight_gradient), &t->gradients, &t->gradient_count);
    tn_status b = settle(cuda, &pieces, sizeof(tn_piece), &t->gradient_pieces, &t->gradient_piece_count);
    TN_TRY(status);
    TN_TRY(a);
    TN_TRY(b);
    return tn_cuda_alloc(&cuda->head, &t->dots, (size_t)t->gradient_piece_count * sizeof(double), "tables");
}

tn_status tn_cuda_prepare(tn_backend *backend, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                          int *gradient_flags, int *parameter_flags) {
    tn_cuda *cuda = tn_cuda_of(backend);
    TN_TRY(tn_cuda_alloc(backend, &cuda->scalars, 4 * (size_t)m->node_count * sizeof(float), "scalars"));
    TN_TRY(make_terms(cuda, m));
    TN_TRY(make_packs(cuda, m, plans, flat, parameter_flags));
    cuda->tables.parameter_flags = parameter_flags;
    if (!flat->grads) return TN_OK;
    TN_TRY(tn_cuda_alloc_parts(cuda, m->node_count, plans));
    TN_TRY(make_gradients(cuda, m, plans, flat, gradient_flags));
    return make_scalars(cuda, m);
}

void tn_cuda_free_tables(tn_cuda *cuda) {
    tn_cuda_tables *t = &cuda->tables;
    void *memories[] = {t->terms, t->pack,    t->pack_pieces, t->gradients, t->gradient_pieces,
                        t->dots,  t->scalars, t->shares,      cuda->scalars};
    for (size_t i = 0; i < sizeof memories / sizeof *memories; i++) tn_cuda_release(&cuda->head, memories[i]);
    tn_cuda_free_parts(cuda);
}

/* ---- work ---- */

tn_status tn_cuda_pack_all(tn_backend *backend, const tn_model *m, const tn_flat *flat) {
    tn_cuda *cuda = tn_cuda_of(backend);
    const tn_cuda_tables *t = &cuda->tables;
    TN_CUDA(tn_launch_node_scalars(m->node_count, t->terms, flat->values, cuda->scalars, t->parameter_flags,
                                   cuda->stream));
    TN_CUDA(tn_launch_pack(t->pack, t->pack_piece_count, t->pack_pieces, cuda->stream));
    return TN_OK;
}

tn_status tn_cuda_finish_all(tn_backend *backend) {
    tn_cuda *cuda = tn_cuda_of(backend);
    const tn_cuda_tables *t = &cuda->tables;
    TN_CUDA(tn_launch_weight_gradients(t->gradient_count, t->gradients, t->gradient_piece_count,
                                       t->gradient_pieces, t->dots, cuda->stream));
    return TN_OK;
}

tn_status tn_cuda_scalar_gradients(tn_backend *backend, const tn_model *m, const tn_flat *flat,
                                   int *nonfinite) {
    tn_cuda *cuda = tn_cuda_of(backend);
    const tn_cuda_tables *t = &cuda->tables;
    (void)m;
    TN_CUDA(tn_launch_scalar_gradients(t->scalar_count, t->scalars, t->shares, cuda->scalars, flat->sums,
                                       flat->grads, nonfinite, cuda->stream));
    return TN_OK;
}
