/* Sums along the tree of base/sum_tree.h: an exchange of slices, additions, a gather of the sums. */
#include <string.h>

#include "base/memory.h"
#include "base/sum_tree.h"
#include "comm/transport.h"

/* A part of some rank, of which this rank receives a slice. */
typedef struct piece {
    tn_sum_part node;
    int rank;
    char *bytes;
} piece;

struct tn_reduction {
    tn_comm *comm, lane; /* comm is &lane where several sums may be under way */
    const char *what;
    size_t element; /* bytes: of a float or of a double */
    int max_leaves;
    size_t max_elements, bytes;
    char *incoming; /* slices of all parts of all ranks, in the order of their leaves */
    piece *pieces, *stack;
    int *first_leaf;    /* [size + 1] */
    size_t *first_byte; /* [size + 1]: of the slices, in bytes */
    size_t *places;     /* [size] */
    tn_transfer *transfers[TN_SUM_PARTS_MAX];
    int leaves, piece_count, rounds; /* of this sum */
    bool gathering, done;
    void *sum;
};

/* Lists the parts of all ranks, in the order of their leaves. Returns how many; *rounds: the most of one. */
static int list_pieces(tn_reduction *r, int leaves, piece *pieces, int *rounds) {
    int count = 0;
    *rounds = 0;
    tn_sum_deal(leaves, r->comm->size, r->first_leaf);
    for (int rank = 0; rank < r->comm->size; rank++) {
        tn_sum_part parts[TN_SUM_PARTS_MAX];
        int own =
            tn_sum_parts(r->first_leaf[rank], r->first_leaf[rank + 1] - r->first_leaf[rank], leaves, parts);
        if (own > *rounds) *rounds = own;
        for (int i = 0; pieces && i < own; i++) pieces[count + i] = (piece){.node = parts[i], .rank = rank};
        count += own;
    }
    return count;
}

static tn_status allocate(tn_reduction *r) {
    size_t size = (size_t)r->comm->size, most = 0;
    int rounds;
    TN_TRY(tn_alloc(&r->first_leaf, size + 1, sizeof *r->first_leaf, r->what));
    TN_TRY(tn_alloc(&r->first_byte, size + 1, sizeof *r->first_byte, r->what));
    TN_TRY(tn_alloc(&r->places, size, sizeof *r->places, r->what));
    if (size == 1) return TN_OK;
    for (int leaves = 1; leaves <= r->max_leaves; leaves++) {
        size_t count = (size_t)list_pieces(r, leaves, NULL, &rounds);
        if (count > most) most = count;
    }
    TN_TRY(tn_alloc(&r->pieces, most, sizeof *r->pieces, r->what));
    TN_TRY(tn_alloc(&r->stack, most, sizeof *r->stack, r->what));
    r->bytes = most * (r->max_elements / size + 1) * r->element;
    return tn_alloc(&r->incoming, r->bytes, 1, r->what);
}

static tn_status create(tn_comm *comm, int leaves, size_t element, size_t elements, const char *what,
                        tn_reduction **out) {
    tn_reduction *r;
    TN_TRY(tn_alloc(&r, 1, sizeof *r, what));
    r->comm = comm;
    r->what = what;
    r->element = element;
    r->max_leaves = leaves;
    r->max_elements = elements;
    r->done = true;
    tn_status status = allocate(r);
    if (status == TN_OK)
        *out = r;
    else
        tn_reduction_free(r);
    return status;
}

tn_status tn_reduction_create(tn_comm *comm, int leaves, size_t floats, const char *what,
                              tn_reduction **out) {
    *out = NULL;
    return create(comm, leaves, sizeof(float), floats, what, out);
}

void tn_reduction_free(tn_reduction *r) {
    if (!r) return;
    if (r->comm == &r->lane) r->comm->transport->close(r->comm, false);
    tn_free(r->first_leaf);
    tn_free(r->first_byte);
    tn_free(r->places);
    tn_free(r->pieces);
    tn_free(r->stack);
    tn_free(r->incoming);
    tn_free(r);
}

size_t tn_reduction_bytes(const tn_reduction *r) {
    return r->bytes;
}

/* Round i: the i-th part of every rank that has as many. */
static tn_status start_round(tn_reduction *r, int round, const void *part) {
    int seen = 0;
    for (int rank = 0; rank < r->comm->size; rank++) r->places[rank] = SIZE_MAX;
    for (int i = 0; i < r->piece_count; i++) {
        seen = i > 0 && r->pieces[i].rank == r->pieces[i - 1].rank ? seen + 1 : 0;
        if (seen == round) r->places[r->pieces[i].rank] = (size_t)(r->pieces[i].bytes - r->incoming);
    }
    return r->comm->transport->exchange(r->comm, part, r->first_byte, r->incoming, r->places,
                                        &r->transfers[round]);
}

static tn_status start(tn_reduction *r, int leaves, size_t elements, const void *const *parts, void *sum) {
    int size = r->comm->size, rank = r->comm->rank;
    TN_ASSERT(r->done && leaves >= 1 && leaves <= r->max_leaves && elements <= r->max_elements);
    if (size == 1) {
        if (sum != parts[0]) memcpy(sum, parts[0], elements * r->element);
        return TN_OK;
    }
    r->leaves = leaves;
    r->sum = sum;
    r->done = r->gathering = false;
    r->piece_count = list_pieces(r, leaves, r->pieces, &r->rounds);
    for (int i = 0; i <= size; i++) r->first_byte[i] = (elements * (size_t)i / (size_t)size) * r->element;
    size_t slice = r->first_byte[rank + 1] - r->first_byte[rank];
    int own = 0;
    for (int i = 0; i < r->piece_count; i++) {
        r->pieces[i].bytes = r->incoming + (size_t)i * slice;
        own += r->pieces[i].rank == rank;
    }
    for (int i = 0; i < r->rounds; i++) TN_TRY(start_round(r, i, i < own ? parts[i] : NULL));
    return TN_OK;
}

tn_status tn_reduction_start(tn_reduction *r, int leaves, size_t floats, const float *const *parts,
                             float *sum) {
    const void *own[TN_SUM_PARTS_MAX] = {NULL};
    /* Not before: when a reduction is made, another rank may be failing. */
    if (r->comm != &r->lane) {
        TN_TRY(r->comm->transport->split(r->comm, &r->lane));
        r->comm = &r->lane;
    }
    tn_sum_part nodes[TN_SUM_PARTS_MAX];
    tn_sum_deal(leaves, r->comm->size, r->first_leaf);
    int first = r->first_leaf[r->comm->rank], count = r->first_leaf[r->comm->rank + 1] - first;
    int number = tn_sum_parts(first, count, leaves, nodes);
    for (int i = 0; i < number; i++) own[i] = parts[i];
    return start(r, leaves, floats, own, sum);
}

static void add(const tn_reduction *r, char *to, const char *from, size_t bytes) {
    if (r->element == sizeof(float)) {
        float *x = (float *)(void *)to;
        const float *y = (const float *)(const void *)from;
        for (size_t i = 0; i < bytes / sizeof(float); i++) x[i] += y[i];
    } else {
        double *x = (double *)(void *)to;
        const double *y = (const double *)(const void *)from;
        for (size_t i = 0; i < bytes / sizeof(double); i++) x[i] += y[i];
    }
}

/* Adds this rank's slices of all parts, pair by pair as the tree says. */
static const char *add_pieces(tn_reduction *r, size_t slice) {
    int height = 0;
    for (int i = 0; i < r->piece_count; i++) {
        r->stack[height++] = r->pieces[i];
        for (;;) {
            piece *top = &r->stack[height - 1];
            if (1 << top->node.level >= r->leaves) break;
            if (height > 1 && top->node.position % 2 == 1 && top[-1].node.level == top->node.level &&
                top[-1].node.position == top->node.position - 1) {
                add(r, top[-1].bytes, top->bytes, slice);
                top = &r->stack[--height - 1];
            } else if (!tn_sum_is_alone(top->node, r->leaves)) {
                break;
            }
            top->node = (tn_sum_part){top->node.level + 1, top->node.position / 2};
        }
    }
    TN_ASSERT(height == 1);
    return r->stack[0].bytes;
}

static tn_status start_gather(tn_reduction *r) {
    size_t own = r->first_byte[r->comm->rank], slice = r->first_byte[r->comm->rank + 1] - own;
    memcpy((char *)r->sum + own, add_pieces(r, slice), slice);
    r->gathering = true;
    return r->comm->transport->gather(r->comm, r->sum, r->first_byte, &r->transfers[0]);
}

tn_status tn_reduction_progress(tn_reduction *r, bool *done) {
    while (!r->done) {
        int rounds = r->gathering ? 1 : r->rounds, left = 0;
        for (int i = 0; i < rounds; i++) {
            if (r->transfers[i]) TN_TRY(r->comm->transport->test(r->comm, &r->transfers[i]));
            left += r->transfers[i] != NULL;
        }
        if (left > 0) break;
        if (r->gathering)
            r->done = true;
        else
            TN_TRY(start_gather(r));
    }
    *done = r->done;
    return TN_OK;
}

tn_status tn_reduction_finish(tn_reduction *r) {
    if (r->done) return TN_OK;
    for (int i = 0; i < r->rounds; i++) TN_TRY(tn_comm_wait(r->comm, &r->transfers[i], r->what));
    if (!r->gathering) TN_TRY(start_gather(r));
    TN_TRY(tn_comm_wait(r->comm, &r->transfers[0], r->what));
    r->done = true;
    return TN_OK;
}

/* One leaf a rank. */
static tn_status sum_over_ranks(tn_comm *comm, size_t element, void *data, size_t count, const char *what) {
    tn_reduction *r;
    const void *parts[1] = {data};
    if (comm->size == 1) return TN_OK;
    TN_TRY(create(comm, comm->size, element, count, what, &r));
    tn_status status = start(r, comm->size, count, parts, data);
    if (status == TN_OK) status = tn_reduction_finish(r);
    tn_reduction_free(r);
    return status;
}

tn_status tn_comm_sum_floats(tn_comm *comm, float *data, size_t count, const char *what) {
    return sum_over_ranks(comm, sizeof(float), data, count, what);
}

tn_status tn_comm_sum_doubles(tn_comm *comm, double *data, size_t count, const char *what) {
    return sum_over_ranks(comm, sizeof(double), data, count, what);
}
