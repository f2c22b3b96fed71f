/* MNIST, Fashion-MNIST and other sets in the same four files. */
#ifndef TN_DATA_MNIST_H
#define TN_DATA_MNIST_H

#include "data/dataset.h"

/* Fills the description and both splits from the four files of MNIST or of a set of the same form:
 * train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, or with
 * '.' for the '-' before idx; each with or without .gz. It is Fashion-MNIST when the mean of the training
 * pixels is nearer to .2860 than to .1307 and within .02 of it; every other set is normalised and augmented
 * as MNIST. */
tn_status tn_mnist_read(const char *dir, tn_dataset *dataset);

#endif
