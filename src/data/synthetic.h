/* Made-up images with something to learn in them, for benchmarks, tests and first steps without a download.
 */
#ifndef TN_DATA_SYNTHETIC_H
#define TN_DATA_SYNTHETIC_H

#include "data/dataset.h"

/* Fills the description and both splits from "CxHxW:CLASSES:COUNT" (C up to TN_CHANNELS_MAX, H and W up to
 * TN_SIDE_MAX, CLASSES up to 100000, COUNT images in each split); TN_ERR_USAGE when it does not parse.
 *
 * Sample i has label i mod CLASSES and pixels that are a pure function of (i, split): a pattern of its class,
 * 4x4 cells of values in 64..191 per channel, with noise in -64..63 on top, both from the streams of
 * TN_RNG_SYNTHETIC at seed 0 (a = sample or class; b = 0 train, 1 val, 2 the classes' patterns). */
tn_status tn_synthetic_make(const char *shape, tn_dataset *dataset);

#endif
