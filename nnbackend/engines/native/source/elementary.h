/* exp, expm1, log, log1p and tanh of vectors, within 3 units in the last place over the whole
 * range, including subnormal numbers. They treat NaN, infinities and the sign of zero as the C
 * library does.
 *
 * Each reduces its argument to a short interval by a power of two, taken from the bits of the
 * number, and evaluates a polynomial there. Its coefficients minimize the largest relative error
 * of the function (by the Remez exchange), which the comments give; rounding adds to it. Every
 * expression stays right whether or not the compiler fuses a product and a sum.
 */
#ifndef NNBACKEND_ELEMENTARY_H
#define NNBACKEND_ELEMENTARY_H

#include "vector.h"

#define LOG_2 0.693147180559945309417232121458176568
#define LOG2_E 1.442695040888963407359924681001892137

#if REAL_BITS == 32
/* LOG_2 in two parts. The first has so few bits that its product with an exponent is exact, and is
 * below LOG_2, so that both parts have the same sign. */
#define LOG_2_HIGH 0x58b9p-15f
#define LOG_2_LOW 1.42860682030941723212e-6f
/* (e^r - 1 - r) / r^2 for |r| <= log(2) / 2; e^r - 1 is within 2^-26. */
static const REAL EXPONENTIAL_SERIES[] = {
    1.3882488e-03f, 8.366517e-03f, 4.16672e-02f, 1.6666543e-01f, 4.9999997e-01f,
};
/* (2 atanh(s) - 2 s) / s^3 as a function of s^2 <= 1/25; atanh(s) is within 2^-28. */
static const REAL LOGARITHM_SERIES[] = {3.0360538e-01f, 3.9957827e-01f, 6.666695e-01f};
#else
#define LOG_2_HIGH 0x162e42fefap-37
#define LOG_2_LOW 1.64659495828970812810e-12
/* As above; within 2^-55 and 2^-55. */
static const REAL EXPONENTIAL_SERIES[] = {
    2.5053784085002858e-08, 2.7626024938259373e-07, 2.755740750400397e-06,  2.480150530493396e-05,
    1.9841269719048798e-04, 1.3888888931540238e-03, 8.333333333389542e-03,  4.1666666666576826e-02,
    1.6666666666666588e-01, 5.000000000000006e-01,
};
static const REAL LOGARITHM_SERIES[] = {
    1.5368191490311814e-01, 1.5250188722046443e-01, 1.81863560501064e-01,   2.2222138502379898e-01,
    2.857142939527466e-01,  3.99999999961618e-01,   6.666666666667271e-01,
};
#endif

#define SERIES(coefficients, x, square) \
    series(coefficients, sizeof(coefficients) / sizeof((coefficients)[0]), x, square)

/* Return the polynomial in x; the coefficient of its highest power is the first. Take the terms in
 * pairs, whose sums do not wait for each other. */
INLINE V series(const REAL *coefficient, intptr_t count, V x, V square) {
    V total = all_of(coefficient[0]);
    if (count % 2 == 0) total = total * x + coefficient[1];
#pragma GCC unroll 16
    for (intptr_t i = 2 - count % 2; i < count; i += 2)
        total = total * square + (coefficient[i] * x + coefficient[i + 1]);
    return total;
}

/* Return r, |r| <= log(2) / 2, and ORIGIN + bias + n with x = r + n log(2). */
INLINE V remainder_of_log_2(V x, INTEGER bias, V *shifted) {
    const REAL origin = ORIGIN + bias;
    *shifted = x * (REAL)LOG2_E + origin;
    V n = *shifted - origin;
    return (x - n * LOG_2_HIGH) - n * LOG_2_LOW;
}

INLINE V exponential(V x) {
    /* Beyond these, the result is infinite, or below half of the smallest subnormal number. */
    const REAL low = (REAL)((1 - EXPONENT_BIAS - FRACTION_BITS - 1.5) * LOG_2);
    const REAL high = (REAL)((EXPONENT_BIAS + 1.25) * LOG_2);
    x = at_least(at_most(x, high), low);
    V shifted, r = remainder_of_log_2(x, 2 * EXPONENT_BIAS, &shifted), square = r * r;
    V power = SERIES(EXPONENTIAL_SERIES, r, square) * square + (r + 1);
    return times_power_of_two(power, shifted);
}

/* Nearer to zero, e^x - 1 and log(1 + x) equal x up to rounding. */
#define IDENTICAL ((REAL)1 / (4ll << FRACTION_BITS))

INLINE V exponential_minus_one(V x) {
    const REAL low = (REAL)(-(FRACTION_BITS + 3) * LOG_2); /* Below, the result is -1. */
    const REAL high = (REAL)((EXPONENT_BIAS + 1.25) * LOG_2);
    V inside = at_least(at_most(x, high), low);
    /* Halve the power, since 2^n may be too large for a number where the result is not. */
    V shifted, r = remainder_of_log_2(inside, EXPONENT_BIAS - 1, &shifted), square = r * r;
    V growth = SERIES(EXPONENTIAL_SERIES, r, square) * square + r, power = power_of_two(shifted);
    V half = power * growth + (power - (REAL)0.5);
    return choose(absolute(x) < IDENTICAL, x, half + half);
}

INLINE V hyperbolic_tangent(V x) {
    /* tanh(x) = (e^2x - 1) / (e^2x + 1). A relative error of the argument leads to none larger of
     * the result, so n log(2) need not be exact. */
    /* Above, the result is 1; there growth + 2 equals growth. */
    const REAL one = (REAL)((FRACTION_BITS + 5) * LOG_2 / 2);
    const REAL origin = ORIGIN + EXPONENT_BIAS;
    V magnitude = at_most(absolute(x), one), twice = magnitude + magnitude;
    V shifted = twice * (REAL)LOG2_E + origin, n = shifted - origin;
    V r = twice - n * (REAL)LOG_2, square = r * r, power = power_of_two(shifted);
    V growth = (power * r + (power - 1)) + power * square * SERIES(EXPONENTIAL_SERIES, r, square);
    return with_sign_of(quotient(growth, growth + 2), x);
}

/* Return log(x) + correction, where the correction is small. */
INLINE V corrected_logarithm(V x, V correction) {
    V e, m = fraction_of(x, &e);
    /* log(1 + f) = 2 atanh(s); take f out of it, which is exact. */
    V f = m - 1, s = quotient(f, m + 1), square = s * s, half = (REAL)0.5 * f * f;
    V rest = s * (half + square * SERIES(LOGARITHM_SERIES, square, square * square)) - half;
    return e * LOG_2_HIGH + (f + (rest + (e * LOG_2_LOW + correction)));
}

INLINE V logarithm(V x) { return corrected_logarithm(x, (V){0}); }

INLINE V logarithm_of_one_plus(V x) {
    V moved = 1 + x;
    /* Correct by the rounding error of the sum, divided by the sum; NaN at the poles. */
    V correction = quotient(x - (moved - 1), moved);
    correction = (V)((I)correction & (correction == correction));
    return choose(absolute(x) < IDENTICAL, x, corrected_logarithm(moved, correction));
}

#endif
