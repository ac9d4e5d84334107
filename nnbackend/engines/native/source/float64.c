/* The library for float64. */
#define REAL_BITS 64

#include "elementary_export.h"
#include "queries.h"
