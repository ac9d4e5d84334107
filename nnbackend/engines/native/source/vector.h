/* Vectors of real numbers, in plain C with the vector types of GCC and Clang.
 *
 * Every source file is written for REAL, which is float or double, and compiled for both. A vector
 * has LANES elements; its size follows the instruction set for which the compiler translates.
 */
#ifndef NNBACKEND_VECTOR_H
#define NNBACKEND_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "export.h"

#include "export.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 32
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#endif

#define INLINE static inline __attribute__((always_inline, unused))

#if REAL_BITS == 32
typedef float REAL;
typedef int32_t INTEGER;
#define NAME(name) name##_float32
#define REAL_MAX __FLT_MAX__
#else
typedef double REAL;
typedef int64_t INTEGER;
#define NAME(name) name##_float64
#define REAL_MAX __DBL_MAX__
#endif

#define LANES ((intptr_t)(VECTOR_BYTES / sizeof(REAL)))

typedef REAL V __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef INTEGER I __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL UNALIGNED_V __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(REAL_BITS / 8)));

/* Return a vector whose elements are all x, including the sign of zero. */
INLINE V all_of(REAL x) { return x - (V){0}; }

INLINE V load(const REAL *from) { return *(const UNALIGNED_V *)from; }

INLINE void store(REAL *to, V x) { *(UNALIGNED_V *)to = x; }

/* Load the first count elements, 0 <= count <= LANES, and zeros; touch no memory behind them. */
INLINE V load_part(const REAL *from, intptr_t count) {
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), from);
#elif VECTOR_BYTES == 64
    return (V)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1u), from);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (V)_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), lane));
#elif VECTOR_BYTES == 32
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return (V)_mm256_maskload_pd(from, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane));
#else
    V x = {0};
    for (intptr_t i = 0; i < count; i++) x[i] = from[i];
    return x;
#endif
}

/* Store the first count elements, 0 <= count <= LANES. */
INLINE void store_part(REAL *to, V x, intptr_t count) {
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1u), (__m512)x);
#elif VECTOR_BYTES == 64
    _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1u), (__m512d)x);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), lane), (__m256)x);
#elif VECTOR_BYTES == 32
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    _mm256_maskstore_pd(to, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane), (__m256d)x);
#else
    for (intptr_t i = 0; i < count; i++) to[i] = x[i];
#endif
}

/* Return yes where every bit of the condition is set, and no where none is. */
INLINE V choose(I condition, V yes, V no) {
    return (V)(((I)yes & condition) | ((I)no & ~condition));
}

INLINE V absolute(V x) { return (V)((I)x & ~(I)all_of((REAL)-0.0)); }

/* As the array API's functions: NaN if either argument is NaN. */
INLINE V larger(V a, V b) { return choose((a > b) | (a != a), a, b); }

INLINE V smaller(V a, V b) { return choose((a < b) | (a != a), a, b); }

INLINE V square_root(V x) {
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (V)_mm512_sqrt_ps((__m512)x);
#elif VECTOR_BYTES == 64
    return (V)_mm512_sqrt_pd((__m512d)x);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    return (V)_mm256_sqrt_ps((__m256)x);
#elif VECTOR_BYTES == 32
    return (V)_mm256_sqrt_pd((__m256d)x);
#else
    for (intptr_t i = 0; i < LANES; i++) x[i] = (REAL)(REAL_BITS == 32 ? sqrtf((float)x[i]) : sqrt((double)x[i]));
    return x;
#endif
}

/* Return the sum of all elements, in a fixed order. */
INLINE REAL sum_of(V x) {
    REAL part[LANES];
    store(part, x);
    for (intptr_t half = LANES / 2; half > 0; half /= 2)
        for (intptr_t i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

#endif
