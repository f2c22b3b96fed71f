/* Report of the images that a run left out (--on-bad-sample skip). */
#ifndef TN_TRAIN_BAD_SAMPLES_H
#define TN_TRAIN_BAD_SAMPLES_H

#include <jansson.h>

#include "taunet/data.h"

#define TN_BAD_SAMPLES_NOTE 1200

/* Adds "bad_samples", their number, and "bad_sample_messages", what was wrong with each of the first 1000 of
 * either loader, to a line of log.jsonl; a line about them for the user goes to `note`, "" when there are
 * none. */
void tn_bad_samples_put(json_t *line, tn_loader *train, tn_loader *val, char note[TN_BAD_SAMPLES_NOTE]);

#endif
