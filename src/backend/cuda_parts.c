/* Parts of gradients and sums on their way (kernels.h, tn_merge_item). Kernels leave them in one piece of
 * memory, each in a place of its own, and one launch adds those of many layers: behind the last layer, before
 * gradients go to other processes, and where the memory or the table of a launch is full. */
#include "backend/cuda_device.h"

#define ALIGN_BYTES 256

static size_t bytes_of(const tn_merge_item *s) {
    const size_t rows = (size_t)s->count * (size_t)s->groups,
                 bytes = s->taps ? rows * (size_t)s->pairs * (size_t)s->taps * sizeof(float)
                                 : rows * sizeof(double);
    return (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

tn_merge_item tn_cuda_sums_item(const tn_plan *plan, const tn_flat *flat, int count) {
    return (tn_merge_item){
        .to = flat ? flat->sums + 3 * (plan->node - plan->model->nodes) : NULL, .count = count, .groups = 2};
}

void tn_cuda_expect_parts(tn_cuda_need *need, tn_merge_item item) {
    need->bytes += bytes_of(&item);
    need->items++;
}

tn_status tn_cuda_alloc_parts(tn_cuda *cuda, int count, tn_plan *const *plans) {
    size_t all = 0, most = cuda->parts_bytes;
    for (int i = 0; i < count; i++) {
        const tn_cuda_need *need = &((const tn_cuda_plan *)(const void *)plans[i])->need;
        all += need->bytes;
        if (need->bytes > most) most = need->bytes;
    }
    cuda->waiting = (tn_cuda_waiting){.bytes = all < most ? all : most};
    return tn_cuda_alloc(&cuda->head, &cuda->waiting.memory, cuda->waiting.bytes, "parts of gradients");
}

void tn_cuda_free_parts(tn_cuda *cuda) {
    tn_cuda_release(&cuda->head, cuda->waiting.memory);
    cuda->waiting = (tn_cuda_waiting){0};
}

tn_status tn_cuda_open_parts(tn_cuda *cuda, const tn_args *a, const tn_cuda_need *need) {
    tn_cuda_waiting *p = &cuda->waiting;
    if (p->chunk != a->chunk || p->used + need->bytes > p->bytes || p->count + need->items > TN_MERGE_ITEMS)
        TN_TRY(tn_cuda_settle(&cuda->head, true));
    p->chunk = a->chunk;
    return TN_OK;
}

void *tn_cuda_leave_parts(tn_cuda *cuda, tn_merge_item item) {
    tn_cuda_waiting *p = &cuda->waiting;
    char *place = p->memory + p->used;
    p->used += bytes_of(&item);
    TN_ASSERT(p->used <= p->bytes && p->count < TN_MERGE_ITEMS);
    item.parts = place;
    p->items[p->count++] = item;
    return place;
}

tn_status tn_cuda_settle(tn_backend *backend, bool keep) {
    tn_cuda *cuda = tn_cuda_of(backend);
    tn_cuda_waiting *p = &cuda->waiting;
    const int count = keep ? p->count : 0;
    p->count = 0;
    p->used = 0;
    if (!keep) cuda->pending_count = 0;
    TN_TRY(tn_cuda_stage_flush(cuda));
    TN_CUDA(tn_launch_merge(count, p->items, p->chunk > 0, cuda->stream));
    return TN_OK;
}
