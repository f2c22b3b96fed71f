/* Heads of plans, and what is done for a whole model in a launch: gradients finished, parameters updated and
 * packed. The tables that say what is where are made once. */
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
    plan->packs[plan->pack_count++] =
        (tn_cuda_pack){.item = item, .to = memory, .param = param, .scaled = scaled};
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

/* Device memory, zeroed, that lives as long as the tables. */
static tn_status reserve(tn_cuda *cuda, void *out, size_t bytes) {
    tn_cuda_tables *t = &cuda->tables;
    TN_ASSERT(t->memory_count < TN_CUDA_MEMORIES);
    TN_TRY(tn_cuda_alloc(&cuda->head, out, bytes, "tables"));
    t->memories[t->memory_count++] = *(void **)out;
    t->bytes += bytes;
    return TN_OK;
}

/* Moves a table to the device and frees it here. */
static tn_status settle(tn_cuda *cuda, list *l, size_t size, void *out, int *count) {
    *count = (int)l->count;
    tn_status status = reserve(cuda, out, l->count * size);
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
    tn_update *u = &cuda->tables.update;
    tn_status settled = settle(cuda, &terms, sizeof(tn_node_terms), &u->nodes, &u->node_count);
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

/* The scalars that are wide, or those that are not. */
static tn_status push_scalars(const tn_model *m, bool wide, list *scalars, list *shares) {
    for (int p = 0; p < m->param_count; p++) {
        if (m->params[p].group != TN_GROUP_SCALARS) continue;
        tn_scalar scalar = {.place = (int)m->params[p].offset,
                            .first = (int)shares->count,
                            .grad_factor = m->params[p].grad_factor};
        TN_TRY(push_shares(m, p, shares));
        scalar.count = (int)shares->count - scalar.first;
        if ((scalar.count > TN_SHARES_NARROW) == wide)
            TN_TRY(push(scalars, &scalar, sizeof scalar));
        else
            shares->count = (size_t)scalar.first;
    }
    return TN_OK;
}

static tn_status make_scalars(tn_cuda *cuda, const tn_model *m) {
    tn_finish *f = &cuda->tables.finish;
    list scalars = {0}, shares = {0};
    int share_count;
    tn_status status = push_scalars(m, true, &scalars, &shares);
    f->wide_count = (int)scalars.count;
    if (status == TN_OK) status = push_scalars(m, false, &scalars, &shares);
    tn_status a = settle(cuda, &scalars, sizeof(tn_scalar), &f->scalars, &f->scalar_count);
    tn_status b = settle(cuda, &shares, sizeof(tn_share), &f->shares, &share_count);
    TN_TRY(status);
    TN_TRY(a);
    return b;
}

/* ---- gradients of weights ---- */

static tn_status push_gradients(const tn_cuda *cuda, const tn_model *m, tn_plan *const *plans,
                                const tn_flat *flat, int *flags, list *items, list *pieces) {
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
        for (size_t first = 0; first < w->count; first += TN_PIECE) {
            tn_piece piece = {.item = (int)items->count, .first = first};
            TN_TRY(push(pieces, &piece, sizeof piece));
        }
        item.pieces = (int)pieces->count - item.first_piece;
        TN_TRY(push(items, &item, sizeof item));
    }
    return TN_OK;
}

static tn_status make_gradients(tn_cuda *cuda, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                                int *flags) {
    tn_finish *f = &cuda->tables.finish;
    list items = {0}, pieces = {0};
    tn_status status = push_gradients(cuda, m, plans, flat, flags, &items, &pieces);
    tn_status a = settle(cuda, &items, sizeof(tn_weight_gradient), &f->weights, &f->weight_count);
    tn_status b = settle(cuda, &pieces, sizeof(tn_piece), &f->pieces, &f->piece_count);
    TN_TRY(status);
    TN_TRY(a);
    TN_TRY(b);
    TN_TRY(reserve(cuda, &f->partial, (size_t)f->piece_count * sizeof *f->partial));
    return reserve(cuda, &f->arrived, ((size_t)f->weight_count + 1) * sizeof *f->arrived);
}

/* ---- weights and their copies ---- */

static tn_weight weight_of(const tn_cuda_plan *plan, int param, int *flag) {
    const tn_model *m = plan->head.model;
    const tn_param *p = &m->params[param];
    const tn_scale *s = &plan->head.node->scale;
    tn_weight w = {.first = p->offset,
                   .out = p->rank > 1 ? p->dims[0] : 1,
                   .in = p->rank > 1 ? p->dims[1] : (int)p->count,
                   .taps = p->rank > 2 ? p->dims[2] * p->dims[3] : 1,
                   .trained = p->group == TN_GROUP_WEIGHTS,
                   .scale_factor = 1,
                   .scale = -1,
                   .nonfinite = flag};
    for (int i = 0; i < plan->pack_count; i++) {
        const tn_cuda_pack *pack = &plan->packs[i];
        if (pack->param != param) continue;
        TN_ASSERT(w.pack_count < TN_PACKS);
        w.packs[w.pack_count++] = (tn_pack){
            .layout = pack->item.layout, .store = pack->item.store, .ld = pack->item.ld, .to = pack->to};
        w.identity = pack->item.identity;
        if (!pack->scaled) continue;
        w.scale_factor = s->factor;
        w.scale = s->param >= 0 ? (int)m->params[s->param].offset : -1;
    }
    if (!tn_update_tile(&w)) TN_ASSERT(!"a kernel with more taps than a tile holds");
    return w;
}

static tn_status push_weight(const tn_weight *w, list *weights, list *tiles) {
    for (int out = 0; out < w->out; out += w->tile_out)
        for (int in = 0; in < w->in; in += w->tile_in) {
            tn_tile tile = {.item = (int)weights->count, .out = out, .in = in};
            TN_TRY(push(tiles, &tile, sizeof tile));
        }
    return push(weights, w, sizeof *w);
}

static tn_status push_weights(const tn_model *m, tn_plan *const *plans, int *flags, list *weights,
                              list *tiles) {
    for (int i = 0; i < m->node_count; i++) {
        const tn_node *node = &m->nodes[i];
        const int params[] = {node->weight, node->bias, node->gamma, node->beta};
        for (int k = 0; k < 4; k++) {
            if (params[k] < 0) continue;
            const tn_weight w = weight_of((const tn_cuda_plan *)(const void *)plans[i], params[k], flags + i);
            TN_TRY(push_weight(&w, weights, tiles));
        }
    }
    return TN_OK;
}

static tn_status make_weights(tn_cuda *cuda, const tn_model *m, tn_plan *const *plans, int *flags) {
    tn_update *u = &cuda->tables.update;
    list weights = {0}, tiles = {0};
    int weight_count;
    tn_status status = push_weights(m, plans, flags, &weights, &tiles);
    tn_status a = settle(cuda, &weights, sizeof(tn_weight), &u->weights, &weight_count);
    tn_status b = settle(cuda, &tiles, sizeof(tn_tile), &u->tiles, &u->tile_count);
    TN_TRY(status);
    TN_TRY(a);
    TN_TRY(b);
    return reserve(cuda, &u->arrived, sizeof *u->arrived);
}

static tn_status make_tables(tn_cuda *cuda, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                             const tn_step_memory *memory) {
    tn_cuda_tables *t = &cuda->tables;
    TN_TRY(reserve(cuda, &cuda->scalars, 4 * (size_t)m->node_count * sizeof(float)));
    t->update = (tn_update){.values = flat->values,
                            .grads = flat->grads,
                            .momentum = flat->momentum,
                            .scalar_first = (int)m->weight_floats,
                            .scalar_end = (int)m->trained_floats,
                            .node_scalars = cuda->scalars,
                            .node_flags = memory->parameter_flags,
                            .stop = memory->stop};
    TN_TRY(make_terms(cuda, m));
    TN_TRY(make_weights(cuda, m, plans, memory->parameter_flags));
    if (!flat->grads) return TN_OK;
    TN_TRY(tn_cuda_alloc_parts(cuda, m->node_count, plans));
    t->rates = memory->rates;
    t->finish = (tn_finish){.node_scalars = cuda->scalars,
                            .sums = flat->sums,
                            .grads = flat->grads,
                            .nonfinite = memory->gradient_flags + m->node_count,
                            .flags = memory->flags,
                            .flag_count = memory->flag_count,
                            .stop = memory->stop};
    TN_TRY(make_gradients(cuda, m, plans, flat, memory->gradient_flags));
    return make_scalars(cuda, m);
}

tn_status tn_cuda_prepare(tn_backend *backend, const tn_model *m, tn_plan *const *plans, const tn_flat *flat,
                          const tn_step_memory *memory, size_t *held_bytes) {
    tn_cuda *cuda = tn_cuda_of(backend);
    TN_TRY(make_tables(cuda, m, plans, flat, memory));
    *held_bytes = cuda->workspace_bytes + cuda->tables.bytes + cuda->waiting.bytes;
    return TN_OK;
}

void tn_cuda_free_tables(tn_cuda *cuda) {
    tn_cuda_tables *t = &cuda->tables;
    for (int i = 0; i < t->memory_count; i++) tn_cuda_release(&cuda->head, t->memories[i]);
    *t = (tn_cuda_tables){0};
    cuda->scalars = NULL;
    tn_cuda_free_parts(cuda);
}

/* ---- work ---- */

tn_status tn_cuda_pack_all(tn_backend *backend) {
    tn_cuda *cuda = tn_cuda_of(backend);
    TN_CUDA(tn_launch_update(&cuda->tables.update, cuda->stream));
    return TN_OK;
}

tn_status tn_cuda_finish_all(tn_backend *backend) {
    tn_cuda *cuda = tn_cuda_of(backend);
    TN_CUDA(tn_launch_finish(&cuda->tables.finish, cuda->stream));
    return TN_OK;
}

tn_status tn_cuda_update_all(tn_backend *backend, float mu, float decay) {
    tn_cuda *cuda = tn_cuda_of(backend);
    tn_update update = cuda->tables.update;
    update.rates = cuda->tables.rates;
    update.mu = mu;
    update.decay = decay;
    TN_CUDA(tn_launch_update(&update, cuda->stream));
    return TN_OK;
}
