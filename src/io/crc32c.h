/* CRC-32C (Castagnoli), as RFC 3720 and TensorBoard's event files use it. */
#ifndef TN_IO_CRC32C_H
#define TN_IO_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32C of `count` bytes: reflected, initial value and final exclusive-or all ones. "123456789" gives
 * e3069283. */
uint32_t tn_crc32c(const void *bytes, size_t count);

#endif
