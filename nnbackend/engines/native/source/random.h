/* NumPy's generator PCG64, which draws the dropout masks: the same numbers as on the host.
 *
 * O'Neill 2014, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for
 * Random Number Generation": a linear congruential generator of 128 bits with the output XSL-RR.
 */
#ifndef NNBACKEND_RANDOM_H
#define NNBACKEND_RANDOM_H

#include "vector.h"

/* The state as NumPy's bit_generator.state has it. */
typedef struct {
    uint64_t state[2], increment[2]; /* the high half first */
    uint64_t has_uint32, uinteger;   /* half of the last number, if it is left */
} Random;

static const uint64_t MULTIPLIER[2] = {0x2360ED051FC65DA4u, 0x4385DF649FCCF645u};

INLINE uint64_t next_64_bits(unsigned __int128 *state, unsigned __int128 increment) {
    *state = *state * ((unsigned __int128)MULTIPLIER[0] << 64 | MULTIPLIER[1]) + increment;
    const uint64_t high = (uint64_t)(*state >> 64), x = high ^ (uint64_t)*state;
    const unsigned turn = (unsigned)(high >> 58);
    return x >> turn | x << (-turn & 63);
}

/* Return x or 0, without a branch that nobody can predict. */
INLINE REAL only_if(int condition, REAL x) {
    UNSIGNED bits;
    memcpy(&bits, &x, sizeof x);
    bits &= -(UNSIGNED)condition;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Draw n uniform numbers; mask, unless it is NULL, becomes kept where one is at least rate, else 0.
 * The numbers are integers divided by a power of two, so compare the integers. */
static void draw_mask(Random *random, REAL *mask, intptr_t n, REAL rate, REAL kept) {
    unsigned __int128 state = (unsigned __int128)random->state[0] << 64 | random->state[1];
    const unsigned __int128 increment =
        (unsigned __int128)random->increment[0] << 64 | random->increment[1];
    intptr_t i = 0;
#if REAL_BITS == 32
    /* Each number of 64 bits is two of 32, the low half first; a half may be left. */
    const uint32_t least_kept = (uint32_t)ceil((double)rate * 16777216.0);
    if (n > 0 && random->has_uint32) {
        random->has_uint32 = 0;
        if (mask) mask[0] = only_if((uint32_t)random->uinteger >> 8 >= least_kept, kept);
        i = 1;
    }
    for (; i < n; i += 2) {
        const uint64_t bits = next_64_bits(&state, increment);
        if (mask) mask[i] = only_if((uint32_t)bits >> 8 >= least_kept, kept);
        if (i + 1 == n) {
            random->has_uint32 = 1, random->uinteger = bits >> 32;
            break;
        }
        if (mask) mask[i + 1] = only_if(bits >> 40 >= least_kept, kept);
    }
#else
    const uint64_t least_kept = (uint64_t)ceil(rate * 9007199254740992.0);
    for (; i < n; i++) {
        const uint64_t bits = next_64_bits(&state, increment);
        if (mask) mask[i] = only_if(bits >> 11 >= least_kept, kept);
    }
#endif
    random->state[0] = (uint64_t)(state >> 64), random->state[1] = (uint64_t)state;
}

#endif
