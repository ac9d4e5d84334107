/* The functions of elementary.h for whole arrays, for tests. */
#ifndef NNBACKEND_ELEMENTARY_EXPORT_H
#define NNBACKEND_ELEMENTARY_EXPORT_H

#include "elementary.h"

#ifndef EXPORT
#define EXPORT __attribute__((visibility("default")))
#endif

#define EXPORT_ELEMENTARY(name, function)                                         \
    EXPORT void NAME(name)(const REAL *x, REAL *out, intptr_t n) {                \
        intptr_t i = 0;                                                           \
        for (; i + LANES <= n; i += LANES) store(out + i, function(load(x + i))); \
        store_part(out + i, function(load_part(x + i, n - i)), n - i);            \
    }

EXPORT_ELEMENTARY(nnbackend_exp, exponential)
EXPORT_ELEMENTARY(nnbackend_expm1, exponential_minus_one)
EXPORT_ELEMENTARY(nnbackend_log, logarithm)
EXPORT_ELEMENTARY(nnbackend_log1p, logarithm_of_one_plus)
EXPORT_ELEMENTARY(nnbackend_tanh, hyperbolic_tangent)

#endif
