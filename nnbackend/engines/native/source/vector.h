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

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
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
typedef uint32_t UNSIGNED;
#define NAME(name) name##_float32
#define REAL_MAX __FLT_MAX__
#define FRACTION_BITS 23
#define EXPONENT_BIAS 127
#else
typedef double REAL;
typedef int64_t INTEGER;
typedef uint64_t UNSIGNED;
#define NAME(name) name##_float64
#define REAL_MAX __DBL_MAX__
#define FRACTION_BITS 52
#define EXPONENT_BIAS 1023
#endif

#define LANES ((intptr_t)(VECTOR_BYTES / (REAL_BITS / 8)))

typedef REAL V __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef INTEGER I __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef UNSIGNED U __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL UNALIGNED_V
    __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(REAL_BITS / 8)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif

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
    REAL x[sizeof(V) / sizeof(REAL)] = {0};
    for (intptr_t i = 0; i < count; i++) x[i] = from[i];
    return load(x);
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

/* Return a * b + c, rounded once where the processor can. Compilers contract a * b + c, too, but
 * not everywhere, and then two copies of one formula differ in their last bit. */
INLINE V multiply_add(V a, V b, V c) {
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VECTOR_BYTES == 64
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && VECTOR_BYTES == 32 && REAL_BITS == 32
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__) && VECTOR_BYTES == 32
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__) && REAL_BITS == 32
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__aarch64__)
    return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

INLINE V absolute(V x) { return (V)((I)x & ~(I)all_of((REAL)-0.0)); }

/* Return the magnitude, which is not negative or NaN, with the sign of x. */
INLINE V with_sign_of(V magnitude, V x) {
    return (V)((I)magnitude | ((I)x & (I)all_of((REAL)-0.0)));
}

/* Return the smaller of x and the bound; NaN stays NaN. */
INLINE V at_most(V x, REAL bound) {
    /* The processor's instructions return the second argument if either is NaN. */
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (V)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x);
#elif VECTOR_BYTES == 64
    return (V)_mm512_min_pd(_mm512_set1_pd(bound), (__m512d)x);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    return (V)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x);
#elif VECTOR_BYTES == 32
    return (V)_mm256_min_pd(_mm256_set1_pd(bound), (__m256d)x);
#elif defined(__SSE2__) && REAL_BITS == 32
    return (V)_mm_min_ps(_mm_set1_ps(bound), (__m128)x);
#elif defined(__SSE2__)
    return (V)_mm_min_pd(_mm_set1_pd(bound), (__m128d)x);
#else
    return choose(x > bound, all_of(bound), x);
#endif
}

/* Return the larger of x and the bound; NaN stays NaN. */
INLINE V at_least(V x, REAL bound) {
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (V)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x);
#elif VECTOR_BYTES == 64
    return (V)_mm512_max_pd(_mm512_set1_pd(bound), (__m512d)x);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    return (V)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x);
#elif VECTOR_BYTES == 32
    return (V)_mm256_max_pd(_mm256_set1_pd(bound), (__m256d)x);
#elif defined(__SSE2__) && REAL_BITS == 32
    return (V)_mm_max_ps(_mm_set1_ps(bound), (__m128)x);
#elif defined(__SSE2__)
    return (V)_mm_max_pd(_mm_set1_pd(bound), (__m128d)x);
#else
    return choose(x < bound, all_of(bound), x);
#endif
}

/* Return a / b to within a unit in the last place, for b and 1 / b far from overflow. */
INLINE V quotient(V a, V b) {
#if VECTOR_BYTES == 64
    /* A division of 64 bytes takes 16 cycles or more. Refine an estimate of 14 bits instead: each
     * step of Newton's method doubles its bits, and the last line is such a step for a / b. */
#if REAL_BITS == 32
    V inverse = (V)_mm512_rcp14_ps((__m512)b);
#else
    V inverse = (V)_mm512_rcp14_pd((__m512d)b);
    inverse += inverse * (1 - b * inverse);
#endif
    V estimate = a * inverse;
    return estimate + inverse * (a - b * estimate);
#else
    return a / b;
#endif
}

/* A small integer added to this stands in the last bits of the sum. */
#define ORIGIN ((REAL)(3ll << (FRACTION_BITS - 1)))

/* Return 2^n for ORIGIN + EXPONENT_BIAS + n, where it is a normal number. */
INLINE V power_of_two(V shifted) { return (V)((U)shifted << FRACTION_BITS); }

/* Return x 2^n for ORIGIN + 2 EXPONENT_BIAS + n; round once, though 2^n may be no number. */
INLINE V times_power_of_two(V x, V shifted) {
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return (V)_mm512_scalef_ps((__m512)x, (__m512)(shifted - (ORIGIN + 2 * EXPONENT_BIAS)));
#elif VECTOR_BYTES == 64
    return (V)_mm512_scalef_pd((__m512d)x, (__m512d)(shifted - (ORIGIN + 2 * EXPONENT_BIAS)));
#else
    U half = (U)shifted >> 1, other = (U)shifted - half;
    return x * power_of_two((V)half) * power_of_two((V)other);
#endif
}

/* Return m in [3/4, 3/2] and e with x = m 2^e. e is infinite or NaN where log(x) is. */
INLINE V fraction_of(V x, V *exponent) {
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    __m512 m = _mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, 3);
    *exponent = (V)_mm512_getexp_ps((__m512)x) - (V)_mm512_getexp_ps(m);
    return (V)m;
#elif VECTOR_BYTES == 64
    __m512d m = _mm512_getmant_pd((__m512d)x, _MM_MANT_NORM_p75_1p5, 3);
    *exponent = (V)_mm512_getexp_pd((__m512d)x) - (V)_mm512_getexp_pd(m);
    return (V)m;
#else
    /* The bits of 1 less those of 3/4. */
    const UNSIGNED offset = (UNSIGNED)1 << (FRACTION_BITS - 1);
    const REAL multiple = (REAL)(1ll << FRACTION_BITS);
    /* The bits of a subnormal number mean something else, so take those of a multiple. */
    I is_subnormal = x < (REAL_BITS == 32 ? (REAL)__FLT_MIN__ : (REAL)__DBL_MIN__);
    V normal = choose(is_subnormal, x * multiple, x);
    U biased = ((U)normal + offset) >> FRACTION_BITS;
    V e = (V)(biased + (U)all_of(ORIGIN)) - (ORIGIN + EXPONENT_BIAS);
    e -= (V)(is_subnormal & (I)all_of(FRACTION_BITS));
    V other = choose(x > 0, x, choose(x == 0, all_of((REAL)-INFINITY), all_of((REAL)NAN)));
    *exponent = choose((x > 0) & (x < (REAL)INFINITY), e, other);
    return (V)((U)normal - ((biased - EXPONENT_BIAS) << FRACTION_BITS));
#endif
}

/* As the array API's functions: NaN if either argument is NaN. */
INLINE V larger(V a, V b) { return choose((a > b) | (a != a), a, b); }

INLINE V smaller(V a, V b) { return choose((a < b) | (a != a), a, b); }

/* Return the square root to within 2 units in the last place. */
INLINE V square_root(V x) {
#if VECTOR_BYTES == 64
    /* The instruction takes 20 cycles or more, and waits for divisions. Refine an estimate of 14
     * bits of 1 / sqrt(x), at 0 that of the smallest normal number; but not for subnormal numbers,
     * infinity and NaN, nor for numbers with a sign, whose bits are those of larger integers. */
    const I bits = (I)x, infinity = (I)all_of((REAL)INFINITY);
#if REAL_BITS == 32
    const I smallest = (I)all_of(__FLT_MIN__);
    const int is_usual =
        _mm512_cmplt_epu32_mask((__m512i)bits, (__m512i)infinity) &
        _mm512_cmpge_epu32_mask((__m512i)((U)bits - 1), (__m512i)((U)smallest - 1));
    if (__builtin_expect(is_usual != 0xffff, 0)) return (V)_mm512_sqrt_ps((__m512)x);
    V inverse = (V)_mm512_rsqrt14_ps(_mm512_max_ps((__m512)x, (__m512)smallest));
#else
    const I smallest = (I)all_of(__DBL_MIN__);
    const int is_usual =
        _mm512_cmplt_epu64_mask((__m512i)bits, (__m512i)infinity) &
        _mm512_cmpge_epu64_mask((__m512i)((U)bits - 1), (__m512i)((U)smallest - 1));
    if (__builtin_expect(is_usual != 0xff, 0)) return (V)_mm512_sqrt_pd((__m512d)x);
    V inverse = (V)_mm512_rsqrt14_pd(_mm512_max_pd((__m512d)x, (__m512d)smallest));
    inverse += inverse * ((REAL)0.5 - x * inverse * ((REAL)0.5 * inverse));
#endif
    const V root = x * inverse;
    return root + root * ((REAL)0.5 - (REAL)0.5 * inverse * root);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    return (V)_mm256_sqrt_ps((__m256)x);
#elif VECTOR_BYTES == 32
    return (V)_mm256_sqrt_pd((__m256d)x);
#else
    for (intptr_t i = 0; i < LANES; i++)
        x[i] = (REAL)(REAL_BITS == 32 ? sqrtf((float)x[i]) : sqrt((double)x[i]));
    return x;
#endif
}

/* Return a[0], b[0], a[1], b[1], ... from the first half of a and b. */
INLINE V zip_first(V a, V b) {
#if VECTOR_BYTES * 8 / REAL_BITS == 16
    return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return SHUFFLE(a, b, 0, 4, 1, 5);
#else
    return SHUFFLE(a, b, 0, 2);
#endif
}

/* Return the same of the second half. */
INLINE V zip_second(V a, V b) {
#if VECTOR_BYTES * 8 / REAL_BITS == 16
    return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return SHUFFLE(a, b, 2, 6, 3, 7);
#else
    return SHUFFLE(a, b, 1, 3);
#endif
}

/* Transpose a square of LANES vectors: every pass zips the first half of them with the second. */
INLINE void transpose(V x[LANES]) {
#pragma GCC unroll 4
    for (int pass = 1; pass < LANES; pass *= 2) {
        V zipped[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            zipped[2 * i] = zip_first(x[i], x[i + LANES / 2]);
            zipped[2 * i + 1] = zip_second(x[i], x[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = zipped[i];
    }
}

/* Return the vector of the sums of LANES vectors, each summed as sum_of does. */
INLINE V sums_of(V x[LANES]) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            x[i] = zip_first(x[i], x[i + half]) + zip_second(x[i], x[i + half]);
    return x[0];
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
