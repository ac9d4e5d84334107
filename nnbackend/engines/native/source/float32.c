/* The library for float32. */
#define REAL_BITS 32

#include "vector.h"

/* Return how many numbers a vector has. */
EXPORT int NAME(nnbackend_lanes)(void) { return (int)LANES; }
