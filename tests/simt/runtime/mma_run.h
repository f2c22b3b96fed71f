#ifndef SIMT_MMA_RUN_H
#define SIMT_MMA_RUN_H
#include "machine.h"
namespace simt {
/* Computes the product that all lanes of a warp have asked for (their simt_product is in r.value). */
void run_product(Worker &w, Rendezvous &r);
} // namespace simt
#endif
