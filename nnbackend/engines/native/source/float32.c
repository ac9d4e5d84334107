/* The library for float32. */
#define REAL_BITS 32

#include "elementary_export.h"
#include "queries.h"
