#include "machine.h"
void simt_note_atomic(const void *address, size_t bytes, const void *pc) {
    simt::check_atomic(address, bytes, pc);
}
