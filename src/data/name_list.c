#include "data/name_list.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

void tn_name_list_free(tn_name_list *list) {
    tn_free(list->text);
    tn_free(list->at);
    *list = (tn_name_list){0};
}

tn_status tn_name_list_add(tn_name_list *list, const char *folder, const char *name) {
    size_t before = folder ? strlen(folder) + 1 : 0, length = before + strlen(name) + 1;
    if (list->count == INT_MAX) return tn_fail(TN_ERR_MEMORY, "%s: more names than can be counted", name);
    TN_TRY(tn_grow(&list->text, &list->text_capacity, list->used + length, 1, "names of files"));
    TN_TRY(
        tn_grow(&list->at, &list->at_capacity, (size_t)list->count + 1, sizeof *list->at, "names of files"));
    char *to = list->text + list->used;
    if (folder) {
        memcpy(to, folder, before - 1);
        to[before - 1] = '/';
    }
    memcpy(to + before, name, length - before);
    list->at[list->count++] = list->used;
    list->used += length;
    return TN_OK;
}

const char *tn_name_list_get(const tn_name_list *list, int index) {
    return list->text + list->at[index];
}

static int compare(const void *a, const void *b, void *text) {
    return strcmp((const char *)text + *(const size_t *)a, (const char *)text + *(const size_t *)b);
}

void tn_name_list_sort(tn_name_list *list, int first) {
    if (list->count - first > 1)
        qsort_r(list->at + first, (size_t)(list->count - first), sizeof *list->at, compare, list->text);
}

int tn_name_list_find(const tn_name_list *list, const char *name) {
    int low = 0, high = list->count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(tn_name_list_get(list, middle), name);
        if (order == 0) return middle;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}
