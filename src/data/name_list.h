/* Many short strings in one piece of memory: names of classes and files. */
#ifndef TN_DATA_NAME_LIST_H
#define TN_DATA_NAME_LIST_H

#include <stddef.h>

#include "base/fail.h"

/* Zero-initialise; free with tn_name_list_free. */
typedef struct tn_name_list {
    int count;
    char *text;
    size_t *at; /* [count], where each name begins in text */
    size_t used, text_capacity, at_capacity;
} tn_name_list;

void tn_name_list_free(tn_name_list *list);

/* Adds "folder/name", or `name` alone when folder is NULL. TN_ERR_MEMORY, also for more than INT_MAX names.
 */
tn_status tn_name_list_add(tn_name_list *list, const char *folder, const char *name);

/* Valid until the next name is added. */
const char *tn_name_list_get(const tn_name_list *list, int index);

/* Sorts the names from `first` on in the order of their bytes. */
void tn_name_list_sort(tn_name_list *list, int first);

/* Index of `name` in a list that is sorted from 0 on, or -1. */
int tn_name_list_find(const tn_name_list *list, const char *name);

#endif
