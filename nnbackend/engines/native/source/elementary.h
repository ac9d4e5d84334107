#ifndef NNBACKEND_ELEMENTARY_H
#define NNBACKEND_ELEMENTARY_H
#include "vector.h"
#define F1(name, f) INLINE V name(V x) { for (intptr_t i = 0; i < LANES; i++) x[i] = (REAL)f((double)x[i]); return x; }
F1(exponential, exp) F1(exponential_minus_one, expm1) F1(logarithm, log) F1(logarithm_of_one_plus, log1p) F1(hyperbolic_tangent, tanh)
#endif
