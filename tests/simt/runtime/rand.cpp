/* cuRAND's host library: its version. Device generators are in curand_kernel.h. */
#include "curand.h"

curandStatus_t curandGetProperty(libraryPropertyType property, int *value) {
    *value = property == MAJOR_VERSION ? 10 : property == MINOR_VERSION ? 4 : 0;
    return CURAND_STATUS_SUCCESS;
}
