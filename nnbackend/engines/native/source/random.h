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

/* Draw n numbers: kept with probability 1 - rate, else 0. NULL for mask only draws. */
static void draw_mask(Random *random, REAL *mask, intptr_t n, REAL rate, REAL kept) {
    unsigned __int128 state = (unsigned __int128)random->state[0] << 64 | random->state[1];
    const unsigned __int128 increment =
        (unsigned __int128)random->increment[0] << 64 | random->increment[1];
    for (intptr_t i = 0; i < n; i++) {
#if REAL_BITS == 32
        uint64_t bits = random->uinteger;
        if (!random->has_uint32) bits = next_64_bits(&state, increment);
        random->uinteger = bits >> 32;
        random->has_uint32 ^= 1;
        const REAL uniform = (REAL)((uint32_t)bits >> 8) * (1.0f / 16777216.0f);
#else
        const REAL uniform =
            (REAL)(next_64_bits(&state, increment) >> 11) * (1.0 / 9007199254740992.0);
#endif
        if (mask) mask[i] = uniform >= rate ? kept : 0;
    }
    random->state[0] = (uint64_t)(state >> 64), random->state[1] = (uint64_t)state;
}

#endif
