/* The library for float64. */
#define REAL_BITS 64

#include "vector.h"

/* Return how many numbers a vector has. */
EXPORT int NAME(nnbackend_lanes)(void) { return (int)LANES; }
