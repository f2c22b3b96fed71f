/* Image data sets on disk: classes as folders, and WebDatasets. Both have the splits train and val; a split
 * that is not there has no samples, but one of them must be. */
#ifndef TN_DATA_IMAGE_FOLDER_H
#define TN_DATA_IMAGE_FOLDER_H

#include "data/dataset.h"
#include "data/name_list.h"

/* DIR/train and DIR/val, in each one folder a class, in it (or in folders below, followed through symbolic
 * links) .jpg, .jpeg, .png and .ppm files; upper case too. Classes are the folders of train (of val where
 * there is no train) numbered in byte order; samples are ordered by class and then by name, in byte order.
 * Names that start with a dot and files with other endings are passed over; image formats that taunet does
 * not decode are an error (TN_ERR_DATA), as are a folder of val that train does not have and an empty split.
 */
tn_status tn_image_folder_read(const char *dir, tn_dataset *dataset);

/* Tar shards in DIR/train and DIR/val or, where there is no DIR/train, in DIR itself with "train" or "val" in
 * their names; they are taken in byte order (data/shard_index.h says what is in them). The number of classes
 * is that of the lines of DIR/classes.txt or, without it, one more than the largest class in train (val). */
tn_status tn_webdataset_read(const char *dir, tn_dataset *dataset);

/* Lines of a list of classes, the last of which need not end with a newline; 0 when it is none: empty, or
 * with an empty line or a zero in it. */
int tn_class_list_lines(const char *text, size_t size);

/* The classes and files of a folder, for the packer: names of files are relative to DIR/SPLIT and
 * begin with that of the class. Lists are freed by the caller, also after a failure; `labels` with tn_free.
 */
tn_status tn_image_folder_classes(const char *dir, tn_name_list *classes);
tn_status tn_image_folder_list(const char *dir, const char *split, const tn_name_list *classes,
                               tn_name_list *files, int **labels);

#endif
