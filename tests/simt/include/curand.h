/* cuRAND's host library, as far as it is used. */
#ifndef SIMT_CURAND_H
#define SIMT_CURAND_H
#include "library_types.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef enum curandStatus { CURAND_STATUS_SUCCESS = 0 } curandStatus_t;
curandStatus_t curandGetProperty(libraryPropertyType property, int *value);
#ifdef __cplusplus
}
#endif
#endif
