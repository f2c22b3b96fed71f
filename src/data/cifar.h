/* The binary form of CIFAR-10 and CIFAR-100 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html):
 * records of one label byte (CIFAR-100: coarse, then fine label) and 3072 pixels, planes R, G, B of 32x32,
 * row-major. */
#ifndef TN_DATA_CIFAR_H
#define TN_DATA_CIFAR_H

#include <stddef.h>
#include <stdint.h>

#include "data/dataset.h"

typedef struct tn_cifar_kind {
    const char *title; /* for messages */
    int label_bytes;   /* 1, or 2: coarse label in 0..19, then the label proper */
    int classes;
} tn_cifar_kind;

extern const tn_cifar_kind tn_cifar10, tn_cifar100;

/* Number of records in a file of `size` bytes. TN_ERR_DATA when there is none or the last one is cut short.
 * `file` is for messages. */
tn_status tn_cifar_count(const tn_cifar_kind *kind, const char *file, size_t size, int *records);

/* Decodes all records of a file in memory into pixels [records][32][32][3] and labels [records], which the
 * caller sized by tn_cifar_count. TN_ERR_DATA as there, and for a label out of range (names the record,
 * counted from 0). */
tn_status tn_cifar_decode(const tn_cifar_kind *kind, const char *file, const uint8_t *bytes, size_t size,
                          uint8_t *pixels, int *labels);

/* Fills the description and both splits from data_batch_1.bin .. data_batch_5.bin and test_batch.bin, or from
 * train.bin and test.bin. Any number of whole records is fine in a file. A folder with data_batch_1.bin alone
 * is a training set of one file; with some of the others, a missing one is an error. */
tn_status tn_cifar10_read(const char *dir, tn_dataset *dataset);
tn_status tn_cifar100_read(const char *dir, tn_dataset *dataset);

#endif
