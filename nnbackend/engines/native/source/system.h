/* What the system has of threads; on Windows the library uses none. */
#ifndef NNBACKEND_SYSTEM_H
#define NNBACKEND_SYSTEM_H

#include <stdatomic.h>
#include <stdint.h>

#ifdef _WIN32
#define MOST_THREADS 1
#else
#include <pthread.h>
#include <time.h>

#define MOST_THREADS 64

/* Buffers of products lie on the stack; the default of some C libraries is 128 KiB. */
#define STACK_BYTES ((size_t)1 << 20)
#endif

#endif
