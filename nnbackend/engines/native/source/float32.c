/* The library for float32. */
#define REAL_BITS 32

#include "queries.h"
