/* Small functions that Python asks. */
#ifndef NNBACKEND_QUERIES_H
#define NNBACKEND_QUERIES_H

/* Printed by printing.py: the formulas of the package, and nnbackend_kernel. */
#include "kernels.h"
#include "step.h"

EXPORT int NAME(nnbackend_lanes)(void) { return (int)LANES; }

/* Run a program on flat arrays, or on a block. */
EXPORT void NAME(nnbackend_run_flat)(const Program *program, REAL *const *arrays, intptr_t n,
                                     REAL *scratch) {
    run_flat(program, arrays, n, scratch);
}

EXPORT void NAME(nnbackend_run_block)(const Program *program, REAL *const *arrays, intptr_t units,
                                      intptr_t rows, REAL *scratch) {
    run_block(program, arrays, units, rows, scratch);
}

#endif
